//! What the end of a voting does was paid for by those who have voted, whoever they are and however they stake.

use polylink_protocol::keys::ServiceKey;

use super::*;
use crate::chain;
use crate::context::{BlockTime, Context};
use crate::gas::Metered;
use crate::gov::end::end_block;
use crate::gov::query::COUNTED_MAX;
use crate::gov::records::set_vote;
use crate::modules::{Answer, Handle, QueryContext};
use crate::staking::GenesisValidator;
use crate::store::{MemoryState, StateRead, StateWrite};

/// Validators, all of them bonded.
const VALIDATORS: u8 = 60;

fn of(n: u8) -> Address {
    Address([n; 20])
}

fn context(seconds: u64) -> Context {
    let time = BlockTime { seconds: 1_700_000_000_i64.saturating_add_unsigned(seconds), nanos: 0 };
    Context::new("c-1", 1 + seconds, time, 1_000)
}

/// Executes a message, and returns the gas of what it read and wrote.
fn execute<M: Handle>(state: &mut dyn StateWrite, message: &M) -> u64 {
    let mut metered = Metered::new(state, u64::MAX);
    message.execute(&mut context(0), &mut metered).unwrap();
    metered.gas()
}

/// A proposal that is voted on, by `voters` of whom each stakes behind so many validators; and what the votes cost.
fn voted(voters: u8, behind: u8) -> (MemoryState, u64) {
    let mut genesis = crate::genesis::Genesis::default();
    for n in 1..=voters {
        genesis = genesis.with_account(&of(n), Amount(1_000_000 * PLK));
    }
    for n in (0..VALIDATORS).map(|n| 100 + n) {
        genesis = genesis.with_account(&of(n), Amount(10 * PLK));
        let key = ServiceKey::from_bytes(&[n; 32]).public_key();
        genesis.staking.validators.push(GenesisValidator::new(&of(n), &key, Amount(5 * PLK)));
    }
    (genesis.gov.voting_seconds, genesis.gov.expedited_voting_seconds) = (VOTING, VOTING / 2);
    let (changes, _) = chain::genesis("c-1", context(0).time, &genesis).unwrap();
    let mut state = MemoryState::default();
    state.apply(&changes);
    let proposer = of(1).account();
    execute(&mut state, &v1::MsgSubmitProposal { proposer, ..proposal(1, vec![], 10 * PLK) });
    let mut gas = 0;
    for n in 1..=voters {
        for validator in (0..behind).map(|n| of(100 + n).valoper()) {
            let (delegator_address, amount) = (of(n).account(), Some(coin(PLK)));
            execute(&mut state, &MsgDelegate { delegator_address, validator_address: validator, amount });
        }
        let (voter, option) = (of(n).account(), VoteOption::Yes.into());
        gas += execute(&mut state, &v1::MsgVote { proposal_id: 1, voter, option, metadata: String::new() });
    }
    (state, gas)
}

#[test]
fn the_count_reads_no_more_than_the_votes_have() {
    let mut ended = Vec::new();
    for (voters, behind) in [(1, 0), (40, 0), (40, 1), (20, 20), (4, VALIDATORS), (40, VALIDATORS)] {
        let (mut state, paid) = voted(voters, behind);
        let mut metered = Metered::new(&mut state, u64::MAX);
        end_block(&mut context(VOTING), &mut metered).unwrap();
        let gas = metered.gas();
        assert_ne!(super::super::records::proposal(&state, 1).unwrap().status(), ProposalStatus::VotingPeriod);
        assert_eq!(state.iter_prefix(&[crate::gov::VOTE]).count(), 0);
        ended.push(gas);
        // What does not depend on the votes: the set of validators, the proposal, its deposit.
        assert!(gas <= paid + ended[0], "{voters} voters behind {behind}: {gas} of {paid} and {}", ended[0]);
    }
}

#[test]
fn a_query_counts_no_more_votes_than_it_may() {
    let (mut state, _) = voted(1, 0);
    let ctx = QueryContext { chain_id: "c-1".into(), height: 1, epoch: 0, epoch_blocks: 1_000 };
    let mut more = |count: usize| {
        for n in 0..count as u32 {
            let mut voter = [7; 20];
            voter[..4].copy_from_slice(&n.to_be_bytes());
            let vote = v1::Vote { proposal_id: 1, voter: "a voter".into(), ..Default::default() };
            set_vote(&mut state, &Address(voter), &vote);
        }
        v1::QueryTallyResultRequest { proposal_id: 1 }.answer(&ctx, &state)
    };
    assert!(more(COUNTED_MAX - 1).is_ok());
    let said = more(COUNTED_MAX).unwrap_err().to_string();
    assert!(said.contains("ask when the voting is over"), "{said}");
}
