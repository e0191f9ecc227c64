//! Tests of governance on a running chain. Random sequences against a model are in [`random`].

mod bound;
mod random;
mod rules;

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::{v1, v1beta1};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::MsgDelegate;
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{MsgSoftwareUpgrade, Plan};
use polylink_protocol::cosmos::cosmos::{distribution, mint, slashing, staking};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM, Dec, Message, Name, market_v1, tiqe_v1};
use tendermint_proto::v0_38::abci as pb;

use super::{authority, params, scan};
use crate::bank::{self, Pool};
use crate::testing::{GAS_LIMIT, TestChain, genesis, key};
use crate::tx::ante::least_fee;
use crate::{market, tiqe};
use v1::{ProposalStatus, VoteOption};

/// One vote's worth.
const PLK: u128 = 1_000_000;
/// How long a proposal is voted on; blocks are a second apart.
const VOTING: u64 = 10;
/// How long it waits for deposits.
const DEPOSITS: u64 = 20;

fn chain(accounts: u8) -> TestChain {
    let mut genesis = genesis(accounts);
    genesis.gov.deposit_seconds = DEPOSITS;
    genesis.gov.voting_seconds = VOTING;
    genesis.gov.expedited_voting_seconds = VOTING / 2;
    TestChain::start(&genesis)
}

fn address(n: u8) -> Address {
    key(n).address()
}

fn coin(amount: u128) -> Coin {
    Coin { denom: DENOM.into(), amount: amount.to_string() }
}

fn proposal(n: u8, messages: Vec<Any>, deposit: u128) -> v1::MsgSubmitProposal {
    v1::MsgSubmitProposal {
        messages,
        initial_deposit: if deposit > 0 { vec![coin(deposit)] } else { vec![] },
        proposer: address(n).account(),
        metadata: "m".into(),
        title: "A title".into(),
        summary: "A summary".into(),
        expedited: false,
    }
}

fn deposit(n: u8, proposal_id: u64, amount: u128) -> Any {
    any(&v1::MsgDeposit { proposal_id, depositor: address(n).account(), amount: vec![coin(amount)] })
}

fn vote(n: u8, proposal_id: u64, option: VoteOption) -> Any {
    any(&v1::MsgVote { proposal_id, voter: address(n).account(), option: option.into(), metadata: String::new() })
}

fn weighted(n: u8, proposal_id: u64, options: &[(VoteOption, &str)]) -> Any {
    let option = |(option, weight): &(VoteOption, &str)| v1::WeightedVoteOption {
        option: (*option).into(),
        weight: (*weight).into(),
    };
    let options = options.iter().map(option).collect();
    any(&v1::MsgVoteWeighted { proposal_id, voter: address(n).account(), options, metadata: String::new() })
}

/// Sends, and fails where that fails.
fn send(chain: &mut TestChain, n: u8, message: Any) -> pb::ExecTxResult {
    let result = chain.send(n, vec![message]);
    assert_eq!(result.code, 0, "{}", result.log);
    result
}

fn found(chain: &TestChain, proposal_id: u64) -> Option<v1::Proposal> {
    let request = v1::QueryProposalRequest { proposal_id };
    let answer: Result<v1::QueryProposalResponse, String> = chain.query("/cosmos.gov.v1.Query/Proposal", &request);
    answer.map(|answer| answer.proposal.unwrap()).ok()
}

fn status(chain: &TestChain, id: u64) -> ProposalStatus {
    found(chain, id).map_or(ProposalStatus::Unspecified, |found| found.status())
}

fn event(events: &[pb::Event], kind: &str, key: &str) -> Vec<String> {
    let events = events.iter().filter(|event| event.r#type == kind);
    let values = events.flat_map(|event| &event.attributes).filter(|attribute| attribute.key == key);
    values.map(|attribute| attribute.value.clone()).collect()
}

/// Submits with the whole deposit, has validator 200 vote Yes, and waits for the end.
fn pass(chain: &mut TestChain, messages: Vec<Any>) -> u64 {
    let result = send(chain, 1, any(&proposal(1, messages, 10 * PLK)));
    let id: u64 = event(&result.events, "submit_proposal", "proposal_id")[0].parse().unwrap();
    send(chain, 200, vote(200, id, VoteOption::Yes));
    chain.advance(VOTING - 1);
    id
}

#[test]
fn what_passes_is_done() {
    let mut chain = chain(3);
    chain.advance(1);
    let authority = authority().account();
    let before = chain.balance(address(1)).0;
    let state = chain.state();
    let mut new_gov = params(&state);
    new_gov.quorum = "0.200000000000000000".into();
    let mut new_staking = crate::staking::params(&state);
    new_staking.max_validators = 7;
    let mut new_slashing = crate::slashing::params(&state);
    new_slashing.signed_blocks_window = 33;
    let read = |path: &str, chain: &TestChain| chain.query::<_, mint::v1beta1::QueryParamsResponse>(path, &()).unwrap();
    let mut new_mint = read("/cosmos.mint.v1beta1.Query/Params", &chain).params.unwrap();
    new_mint.goal_bonded = Dec::from_bps(5_000).to_atomics_string();
    let path = "/cosmos.distribution.v1beta1.Query/Params";
    let tax = |chain: &TestChain| chain.query::<_, distribution::v1beta1::QueryParamsResponse>(path, &()).unwrap();
    let mut new_distribution = tax(&chain).params.unwrap();
    new_distribution.community_tax = Dec::from_bps(1_000).to_atomics_string();
    let new_market =
        market_v1::Params { version: 2, activation_epoch: 2, fee_burn_bps: 77, ..market::params::at(&state, 0) };
    let new_tiqe = tiqe_v1::Params { version: 2, activation_epoch: 2, seats: 9, ..tiqe::params::at(&state, 0) };
    let messages = vec![
        any(&v1::MsgUpdateParams { authority: authority.clone(), params: Some(new_gov.clone()) }),
        any(&staking::v1beta1::MsgUpdateParams { authority: authority.clone(), params: Some(new_staking.clone()) }),
        any(&slashing::v1beta1::MsgUpdateParams { authority: authority.clone(), params: Some(new_slashing.clone()) }),
        any(&mint::v1beta1::MsgUpdateParams { authority: authority.clone(), params: Some(new_mint.clone()) }),
        any(&distribution::v1beta1::MsgUpdateParams {
            authority: authority.clone(),
            params: Some(new_distribution.clone()),
        }),
        any(&market_v1::MsgUpdateParams { authority: authority.clone(), params: Some(new_market) }),
        any(&tiqe_v1::MsgUpdateParams { authority: authority.clone(), params: Some(new_tiqe) }),
        any(&distribution::v1beta1::MsgCommunityPoolSpend {
            authority,
            recipient: address(3).account(),
            amount: vec![coin(500)],
        }),
    ];
    let id = pass(&mut chain, messages);
    let done = found(&chain, id).unwrap();
    assert_eq!((done.status(), done.failed_reason.as_str()), (ProposalStatus::Passed, ""));
    assert_eq!(done.final_tally_result.unwrap().yes_count, (1_000 * PLK).to_string());
    assert_eq!(event(&chain.block_events, "active_proposal", "proposal_result"), ["proposal_passed"]);
    let state = chain.state();
    assert_eq!((params(&state), crate::staking::params(&state)), (new_gov, new_staking));
    assert_eq!(crate::slashing::params(&state), new_slashing);
    assert_eq!(read("/cosmos.mint.v1beta1.Query/Params", &chain).params, Some(new_mint));
    assert_eq!(tax(&chain).params, Some(new_distribution));
    assert_eq!([0, 1, 2].map(|epoch| market::params::at(&state, epoch).fee_burn_bps), [1_000, 1_000, 77]);
    assert_eq!([1, 2].map(|epoch| tiqe::params::at(&state, epoch).seats), [7, 9]);
    assert_eq!(chain.balance(address(3)), Amount(1_000_000 * PLK + 500));
    // The deposit is back; the fee of the one transaction is not.
    assert_eq!(chain.balance(address(1)).0, before - least_fee(GAS_LIMIT, 25).0);
    assert_eq!((chain.balance(Pool::Gov), scan(&state)), (Amount::ZERO, Ok(())));
    chain.checked_supply();
    crate::slashing::scan(&state).unwrap();
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut chain = chain(2);
    chain.advance(1);
    let authority = authority().account();
    let mut new = crate::staking::params(&chain.state());
    let old = new.clone();
    new.max_validators = 7;
    // Of this height when it is proposed, of the past when it is done.
    let plan = Plan { name: "next".into(), height: chain.height() as i64 + 4, ..Default::default() };
    let id = pass(
        &mut chain,
        vec![
            any(&staking::v1beta1::MsgUpdateParams { authority: authority.clone(), params: Some(new) }),
            any(&MsgSoftwareUpgrade { authority, plan: Some(plan) }),
        ],
    );
    let failed = found(&chain, id).unwrap();
    assert_eq!(failed.status(), ProposalStatus::Failed);
    assert!(failed.failed_reason.contains("scheduled in the past"), "{}", failed.failed_reason);
    let log = &event(&chain.block_events, "active_proposal", "proposal_log")[0];
    assert!(log.contains("msg 1 (/cosmos.upgrade.v1beta1.MsgSoftwareUpgrade) failed"), "{log}");
    assert_eq!(crate::staking::params(&chain.state()), old);
    assert_eq!(chain.balance(Pool::Gov), Amount::ZERO);
}

/// Validator 200 has 1,000 PLK of its own, 600 of account 1 and 400 of account 2.
#[test]
fn stake_decides_and_the_silent_vote_as_their_validator() {
    use VoteOption::{Abstain, No, NoWithVeto, Yes};
    let mut chain = chain(3);
    for (n, amount) in [(1, 600), (2, 400)] {
        let (delegator_address, validator_address) = (address(n).account(), address(200).valoper());
        send(
            &mut chain,
            n,
            any(&MsgDelegate { delegator_address, validator_address, amount: Some(coin(amount * PLK)) }),
        );
    }
    let (passed, rejected) = (ProposalStatus::Passed, ProposalStatus::Rejected);
    type Case = (&'static str, &'static [(u8, &'static [(VoteOption, &'static str)])], ProposalStatus, bool, [u128; 4]);
    let cases: &[Case] = &[
        ("nobody", &[], rejected, false, [0, 0, 0, 0]),
        ("the validator for all", &[(200, &[(Yes, "1")])], passed, false, [2_000, 0, 0, 0]),
        ("a delegator for itself", &[(200, &[(Yes, "1")]), (1, &[(No, "1")])], passed, false, [1_400, 0, 600, 0]),
        ("too few", &[(1, &[(Yes, "1")])], rejected, false, [600, 0, 0, 0]),
        ("delegators alone", &[(1, &[(Yes, "1")]), (2, &[(No, "1")])], passed, false, [600, 0, 400, 0]),
        ("a veto", &[(200, &[(NoWithVeto, "1")]), (1, &[(Yes, "1")])], rejected, true, [600, 0, 0, 1_400]),
        ("nobody decides", &[(200, &[(Abstain, "1")])], rejected, false, [0, 2_000, 0, 0]),
        (
            "half is not more",
            &[(200, &[(Yes, "1")]), (1, &[(No, "1")]), (2, &[(No, "1")])],
            rejected,
            false,
            [1_000, 0, 1_000, 0],
        ),
        ("weights", &[(200, &[(Yes, "0.6"), (Abstain, "0.4")])], passed, false, [1_200, 800, 0, 0]),
        ("no stake", &[(3, &[(Yes, "1")])], rejected, false, [0, 0, 0, 0]),
        ("the last vote counts", &[(200, &[(No, "1")]), (200, &[(Yes, "1")])], passed, false, [2_000, 0, 0, 0]),
    ];
    for (index, (name, votes, expected, burned, tally)) in cases.iter().enumerate() {
        let id = index as u64 + 1;
        send(&mut chain, 3, any(&proposal(3, vec![], 10 * PLK)));
        for (voter, options) in *votes {
            send(&mut chain, *voter, weighted(*voter, id, options));
        }
        let (before, burned_before) = (chain.balance(address(3)).0, bank::flows(&chain.state(), DENOM).1.0);
        let request = v1::QueryTallyResultRequest { proposal_id: id };
        let path = "/cosmos.gov.v1.Query/TallyResult";
        let now: v1::QueryTallyResultResponse = chain.query(path, &request).unwrap();
        chain.advance(VOTING - votes.len() as u64);
        assert_eq!(status(&chain, id), *expected, "{name}");
        let done: v1::QueryTallyResultResponse = chain.query(path, &request).unwrap();
        let done = done.tally.unwrap();
        assert_eq!(now.tally.as_ref(), Some(&done), "{name}");
        let counts = [&done.yes_count, &done.abstain_count, &done.no_count, &done.no_with_veto_count];
        assert_eq!(counts.map(|count| count.parse::<u128>().unwrap() / PLK), *tally, "{name}");
        let (back, gone) =
            (chain.balance(address(3)).0 - before, bank::flows(&chain.state(), DENOM).1.0 - burned_before);
        assert_eq!((back, gone), if *burned { (0, 10 * PLK) } else { (10 * PLK, 0) }, "{name}");
        assert_eq!(scan(&chain.state()), Ok(()));
    }
}

#[test]
fn deposits_bring_a_proposal_to_the_vote_or_go_back() {
    let mut chain = chain(3);
    send(&mut chain, 1, any(&proposal(1, vec![], 4 * PLK)));
    assert_eq!(status(&chain, 1), ProposalStatus::DepositPeriod);
    let result = chain.send(2, vec![deposit(2, 1, PLK / 10 - 1)]);
    assert_eq!((result.codespace.as_str(), result.code), ("gov", 16), "{}", result.log);
    let result = chain.send(1, vec![vote(1, 1, VoteOption::Yes)]);
    assert_eq!((result.codespace.as_str(), result.code), ("gov", 3), "{}", result.log);
    let result = send(&mut chain, 2, deposit(2, 1, 6 * PLK));
    assert_eq!(event(&result.events, "proposal_deposit", "voting_period_start"), ["1"]);
    assert_eq!(status(&chain, 1), ProposalStatus::VotingPeriod);
    // More may come, and counts as one's own.
    send(&mut chain, 2, deposit(2, 1, PLK));
    let request = v1::QueryDepositsRequest { proposal_id: 1, pagination: None };
    let deposits: v1::QueryDepositsResponse = chain.query("/cosmos.gov.v1.Query/Deposits", &request).unwrap();
    let mut held: Vec<&str> = deposits.deposits.iter().map(|deposit| deposit.amount[0].amount.as_str()).collect();
    held.sort_unstable();
    assert_eq!(held, ["4000000", "7000000"]);
    assert_eq!(chain.balance(Pool::Gov), Amount(11 * PLK));
    chain.advance(VOTING);
    assert_eq!((status(&chain, 1), chain.balance(Pool::Gov)), (ProposalStatus::Rejected, Amount::ZERO));
    let result = chain.send(2, vec![deposit(2, 1, PLK)]);
    assert_eq!((result.codespace.as_str(), result.code), ("gov", 3), "{}", result.log);

    // One that does not get enough is forgotten, and its deposits go back.
    let before = chain.balance(address(3)).0;
    send(&mut chain, 3, any(&proposal(3, vec![], PLK)));
    chain.advance(DEPOSITS);
    assert_eq!(status(&chain, 2), ProposalStatus::Unspecified);
    assert_eq!(event(&chain.block_events, "inactive_proposal", "proposal_result"), ["proposal_dropped"]);
    assert_eq!(chain.balance(address(3)).0, before - least_fee(GAS_LIMIT, 25).0);
    let result = chain.send(2, vec![deposit(2, 2, PLK)]);
    assert_eq!((result.codespace.as_str(), result.code), ("gov", 2), "{}", result.log);

    // Cancelling costs half.
    send(&mut chain, 3, any(&proposal(3, vec![], 10 * PLK)));
    let cancel = |n: u8| any(&v1::MsgCancelProposal { proposal_id: 3, proposer: address(n).account() });
    let result = chain.send(2, vec![cancel(2)]);
    assert_eq!((result.codespace.as_str(), result.code), ("gov", 18), "{}", result.log);
    let burned = bank::flows(&chain.state(), DENOM).1.0;
    send(&mut chain, 3, cancel(3));
    assert_eq!(bank::flows(&chain.state(), DENOM).1.0 - burned, 5 * PLK);
    assert_eq!((status(&chain, 3), scan(&chain.state())), (ProposalStatus::Unspecified, Ok(())));
    chain.advance(VOTING);
    chain.checked_supply();
}

#[test]
fn a_hurry_that_fails_goes_on_without_it() {
    let mut chain = chain(1);
    let hurried = v1::MsgSubmitProposal { expedited: true, ..proposal(1, vec![], 50 * PLK) };
    send(&mut chain, 1, any(&hurried));
    send(&mut chain, 200, vote(200, 1, VoteOption::Yes));
    chain.advance(VOTING / 2 - 1);
    assert_eq!(status(&chain, 1), ProposalStatus::Passed, "after half the time");
    send(&mut chain, 1, any(&hurried));
    chain.advance(VOTING / 2);
    let goes_on = found(&chain, 2).unwrap();
    assert_eq!((goes_on.status(), goes_on.expedited), (ProposalStatus::VotingPeriod, false));
    assert_eq!(chain.balance(Pool::Gov), Amount(50 * PLK));
    send(&mut chain, 200, vote(200, 2, VoteOption::Yes));
    chain.advance(VOTING / 2);
    assert_eq!(status(&chain, 2), ProposalStatus::Passed);
}

#[test]
fn what_breaks_the_rules_is_refused_with_the_sdks_codes() {
    let mut chain = chain(2);
    send(&mut chain, 1, any(&proposal(1, vec![], 10 * PLK)));
    let good = || proposal(1, vec![], 0);
    let with = |messages: Vec<Any>| any(&v1::MsgSubmitProposal { messages, ..good() });
    let own = address(1).account();
    let spend = any(&MsgSend { from_address: authority().account(), to_address: own.clone(), amount: vec![coin(1)] });
    let cancel =
        |authority: String| any(&polylink_protocol::cosmos::cosmos::upgrade::v1beta1::MsgCancelUpgrade { authority });
    let legacy = |content: Any| {
        any(&v1beta1::MsgSubmitProposal { content: Some(content), initial_deposit: vec![], proposer: own.clone() })
    };
    let text = |title: &str| any(&v1beta1::TextProposal { title: title.into(), description: "d".into() });
    let other = Coin { denom: "other".into(), amount: "1".into() };
    let bad_params = v1::Params { threshold: "1.1".into(), ..params(&chain.state()) };
    // Nobody has the key of the account that governance acts for, although it could pay.
    let result = chain.send(1, vec![cancel(authority().account())]);
    assert_eq!((result.codespace.as_str(), result.code), ("sdk", 8), "{}", result.log);
    let bad_params = any(&v1::MsgUpdateParams { authority: authority().account(), params: Some(bad_params) });
    let to_a_pool = Pool::BondedTokens.address().account();
    let to_a_pool = v1::Params { proposal_cancel_dest: to_a_pool, ..params(&chain.state()) };
    let to_a_pool = any(&v1::MsgUpdateParams { authority: authority().account(), params: Some(to_a_pool) });
    let plain = |title: &str, metadata: &str, summary: &str| {
        any(&v1::MsgSubmitProposal {
            title: title.into(),
            metadata: metadata.into(),
            summary: summary.into(),
            ..good()
        })
    };
    let long = "x".repeat(256);
    for (name, message, codespace, code) in [
        ("no title", plain("", "m", "s"), "sdk", 18),
        ("neither messages nor metadata", plain("t", "", "s"), "gov", 11),
        ("a long title", plain(&long, "m", "s"), "gov", 15),
        ("long metadata", plain("t", &long, "s"), "gov", 15),
        ("a long summary", plain("t", "m", &"s".repeat(10_201)), "gov", 22),
        ("metadata of another title", plain("t", r#"{"title":"u","summary":"s"}"#, "s"), "gov", 5),
        ("a message that spends deposits", with(vec![spend]), "gov", 10),
        ("an unknown message", with(vec![Any { type_url: "/a.B".into(), value: vec![] }]), "gov", 10),
        ("another authority", with(vec![cancel(own.clone())]), "gov", 13),
        ("impossible parameters", with(vec![bad_params]), "gov", 12),
        ("parameters that give to a pool", with(vec![to_a_pool]), "gov", 12),
        ("too many messages", with(vec![cancel(authority().account()); 17]), "sdk", 18),
        ("another coin", any(&v1::MsgSubmitProposal { initial_deposit: vec![other], ..good() }), "gov", 23),
        ("outside of a proposal, by oneself", cancel(own.clone()), "gov", 13),
        ("no such option", vote(1, 1, VoteOption::Unspecified), "gov", 7),
        ("weights below one", weighted(1, 1, &[(VoteOption::Yes, "0.5")]), "gov", 7),
        ("an option twice", weighted(1, 1, &[(VoteOption::Yes, "0.5"), (VoteOption::Yes, "0.5")]), "gov", 7),
        ("weights above one", weighted(1, 1, &[(VoteOption::Yes, "0.6"), (VoteOption::No, "0.5")]), "gov", 7),
        ("no options", weighted(1, 1, &[]), "sdk", 18),
        ("no proposal", vote(1, 9, VoteOption::Yes), "gov", 3),
        ("a deposit of nothing", deposit(1, 1, 0), "sdk", 10),
        ("content without a handler", legacy(cancel(own.clone())), "gov", 9),
        ("content without a title", legacy(text(" ")), "gov", 5),
    ] {
        let result = chain.send(1, vec![message]);
        assert_eq!((result.codespace.as_str(), result.code), (codespace, code), "{name}: {}", result.log);
        assert!(!result.log.is_empty(), "{name}");
    }
    assert_eq!(status(&chain, 2), ProposalStatus::Unspecified);
}

#[test]
fn the_older_messages_and_queries_say_the_same() {
    let mut chain = chain(2);
    let path = |method: &str| format!("/cosmos.gov.v1beta1.Query/{method}");
    let content = any(&v1beta1::TextProposal { title: "t".into(), description: "d".into() });
    let submit = v1beta1::MsgSubmitProposal {
        content: Some(content.clone()),
        initial_deposit: vec![coin(10 * PLK)],
        proposer: address(1).account(),
    };
    send(&mut chain, 1, any(&submit));
    let weight = |bps| Dec::from_bps(bps).to_atomics_string();
    let options = vec![
        v1beta1::WeightedVoteOption { option: 1, weight: weight(7_500) },
        v1beta1::WeightedVoteOption { option: 2, weight: weight(2_500) },
    ];
    let votes = v1beta1::MsgVoteWeighted { proposal_id: 1, voter: address(200).account(), options: options.clone() };
    send(&mut chain, 200, any(&votes));
    send(&mut chain, 2, any(&v1beta1::MsgVote { proposal_id: 1, voter: address(2).account(), option: 3 }));
    let amount = vec![coin(PLK)];
    send(
        &mut chain,
        2,
        any(&v1beta1::MsgDeposit { proposal_id: 1, depositor: address(2).account(), amount: amount.clone() }),
    );

    let request = v1beta1::QueryProposalRequest { proposal_id: 1 };
    let answer: v1beta1::QueryProposalResponse = chain.query(&path("Proposal"), &request).unwrap();
    let shown = answer.proposal.unwrap();
    assert_eq!((shown.content, shown.status), (Some(content), ProposalStatus::VotingPeriod as i32));
    let voter = address(200).account();
    let request = v1beta1::QueryVoteRequest { proposal_id: 1, voter: voter.clone() };
    let answer: v1beta1::QueryVoteResponse = chain.query(&path("Vote"), &request).unwrap();
    assert_eq!(answer.vote.unwrap().options, options);
    let request = v1beta1::QueryVotesRequest { proposal_id: 1, pagination: None };
    let answer: v1beta1::QueryVotesResponse = chain.query(&path("Votes"), &request).unwrap();
    assert_eq!(answer.votes.len(), 2);
    let request = v1beta1::QueryDepositRequest { proposal_id: 1, depositor: address(2).account() };
    let answer: v1beta1::QueryDepositResponse = chain.query(&path("Deposit"), &request).unwrap();
    assert_eq!(answer.deposit.unwrap().amount, amount);
    for (depositor, voter, status, expected) in
        [("", "", 0, 1), (address(2).account().as_str(), "", 0, 1), ("", voter.as_str(), 2, 1), ("", "", 3, 0)]
    {
        let request = v1beta1::QueryProposalsRequest {
            proposal_status: status,
            voter: voter.into(),
            depositor: depositor.into(),
            pagination: None,
        };
        let answer: v1beta1::QueryProposalsResponse = chain.query(&path("Proposals"), &request).unwrap();
        assert_eq!(answer.proposals.len(), expected, "{depositor} {voter} {status}");
    }
    let ask = |params_type: &str| {
        let request = v1beta1::QueryParamsRequest { params_type: params_type.into() };
        chain.query::<_, v1beta1::QueryParamsResponse>(&path("Params"), &request)
    };
    assert_eq!(ask("deposit").unwrap().deposit_params.unwrap().min_deposit, vec![coin(10 * PLK)]);
    assert_eq!(ask("voting").unwrap().voting_params.unwrap().voting_period.unwrap().seconds, VOTING as i64);
    assert_eq!(ask("tallying").unwrap().tally_params.unwrap().quorum, weight(3_340).into_bytes());
    assert!(ask("what").unwrap_err().contains("what is not a valid parameter type"));
    chain.advance(VOTING);
    let request = v1beta1::QueryTallyResultRequest { proposal_id: 1 };
    let answer: v1beta1::QueryTallyResultResponse = chain.query(&path("TallyResult"), &request).unwrap();
    assert_eq!(answer.tally.unwrap().yes, (750 * PLK).to_string());
    assert_eq!(status(&chain, 1), ProposalStatus::Passed);
    let any = found(&chain, 1).unwrap().messages.remove(0);
    assert_eq!(any.type_url, v1::MsgExecLegacyContent::type_url());
    assert_eq!(v1::MsgExecLegacyContent::decode(any.value.as_slice()).unwrap().authority, authority().account());
}
