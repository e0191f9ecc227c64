//! Tests of upgrades on a running chain: it stops where it must, and goes on with the program that was planned.

mod random;

use std::panic::{AssertUnwindSafe, catch_unwind};

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgSubmitProposal, MsgVote, VoteOption};
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::*;
use polylink_protocol::tx::any;
use polylink_protocol::{Address, DENOM};

use super::{Migration, Upgrades, done, plan};
use crate::auth::{MIN_GAS_PRICE, min_gas_price_milli};
use crate::gov::authority;
use crate::testing::{TestChain, genesis, key};

/// The height of the plan.
const HEIGHT: u64 = 10;

/// The program after the upgrade: it doubles the gas price.
const NEXT: &[Migration] = &[Migration {
    name: "next",
    run: |_, state| {
        let price = min_gas_price_milli(state) * 2;
        state.put(vec![MIN_GAS_PRICE], price.to_be_bytes().to_vec());
        Ok(())
    },
}];

fn address(n: u8) -> Address {
    key(n).address()
}

fn next() -> Upgrades {
    Upgrades { known: NEXT, skipped: Vec::new() }
}

/// Proposes, votes and waits for the end.
fn decide(chain: &mut TestChain, id: u64, message: Any) {
    let proposal = MsgSubmitProposal {
        messages: vec![message],
        initial_deposit: vec![Coin { denom: DENOM.into(), amount: "10000000".into() }],
        proposer: address(1).account(),
        title: "t".into(),
        summary: "s".into(),
        ..Default::default()
    };
    let vote = MsgVote {
        proposal_id: id,
        voter: address(200).account(),
        option: VoteOption::Yes.into(),
        ..Default::default()
    };
    for (n, message) in [(1, any(&proposal)), (200, any(&vote))] {
        let result = chain.send(n, vec![message]);
        assert_eq!(result.code, 0, "{}", result.log);
    }
    chain.advance(2);
}

/// A chain that has decided to be upgraded.
fn planned() -> TestChain {
    let mut genesis = genesis(1);
    (genesis.gov.voting_seconds, genesis.gov.expedited_voting_seconds) = (3, 1);
    let mut chain = TestChain::start(&genesis);
    let plan = Plan { name: "next".into(), height: HEIGHT as i64, info: "see the forum".into(), ..Default::default() };
    decide(&mut chain, 1, any(&MsgSoftwareUpgrade { authority: authority().account(), plan: Some(plan) }));
    assert_eq!(super::plan(&chain.state()).map(|plan| plan.name), Some("next".to_owned()));
    chain
}

/// What the process would end with.
fn halts(chain: &mut TestChain) -> String {
    let halted = catch_unwind(AssertUnwindSafe(|| chain.deliver(Vec::new()))).expect_err("the block was executed");
    halted.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn the_chain_stops_and_goes_on_with_the_next_program() {
    let mut chain = planned();
    chain.advance_to(HEIGHT - 1);
    let before = chain.app_hash.clone();
    for _ in 0..2 {
        let said = halts(&mut chain);
        assert!(said.contains("UPGRADE \"next\" NEEDED at height 10: see the forum"), "{said}");
        // Started again, the same program stops at the same place, with nothing committed.
        chain.restart(Upgrades::default());
        assert_eq!((chain.height(), chain.app().store().app_hash().to_vec()), (HEIGHT - 1, before.clone()));
    }
    chain.restart(next());
    chain.advance(1);
    assert_eq!(min_gas_price_milli(&chain.state()), 50, "the state was migrated, once");
    assert_eq!((plan(&chain.state()), done(&chain.state(), "next")), (None, Some(HEIGHT)));
    let request = QueryAppliedPlanRequest { name: "next".into() };
    let answer: QueryAppliedPlanResponse = chain.query("/cosmos.upgrade.v1beta1.Query/AppliedPlan", &request).unwrap();
    assert_eq!(answer.height, HEIGHT as i64);
    chain.advance(2);
    assert_eq!(min_gas_price_milli(&chain.state()), 50);
    let again = Plan { name: "next".into(), height: 99, ..Default::default() };
    decide(&mut chain, 2, any(&MsgSoftwareUpgrade { authority: authority().account(), plan: Some(again) }));
    chain.advance(1);
    assert_eq!(plan(&chain.state()), None, "a name is used once");
    // The old program does not take up what the new one has begun.
    chain.restart(Upgrades::default());
    let said = halts(&mut chain);
    assert!(said.contains("upgrade \"next\" was done at height 10, and this program does not know it"), "{said}");
    chain.checked_supply();
}

#[test]
fn the_next_program_does_not_run_before_its_height() {
    let mut chain = planned();
    chain.restart(next());
    let said = halts(&mut chain);
    assert!(said.contains("planned for height 10: run the one before until then"), "{said}");
    chain.restart(Upgrades::default());
    chain.advance_to(HEIGHT - 1);
}

#[test]
fn a_plan_is_passed_over_where_the_operators_say_so() {
    let mut chain = planned();
    chain.restart(Upgrades { skipped: vec![HEIGHT], ..Upgrades::default() });
    chain.advance_to(HEIGHT + 1);
    assert_eq!((plan(&chain.state()), done(&chain.state(), "next")), (None, None));
    assert_eq!(min_gas_price_milli(&chain.state()), 25);
    // A node that had passed it over needs to be told no more.
    chain.restart(Upgrades::default());
    chain.advance(1);
}

#[test]
fn a_plan_can_be_taken_back_and_replaced() {
    let mut chain = planned();
    let later = Plan { name: "other".into(), height: 14, ..Default::default() };
    decide(&mut chain, 2, any(&MsgSoftwareUpgrade { authority: authority().account(), plan: Some(later) }));
    chain.advance_to(HEIGHT);
    let answer: QueryCurrentPlanResponse =
        chain.query("/cosmos.upgrade.v1beta1.Query/CurrentPlan", &QueryCurrentPlanRequest {}).unwrap();
    assert_eq!(answer.plan.map(|plan| plan.name), Some("other".to_owned()));
    assert!(chain.height() < 14);
    let mut chain = planned();
    decide(&mut chain, 2, any(&MsgCancelUpgrade { authority: authority().account() }));
    chain.advance_to(HEIGHT + 1);
    assert_eq!(plan(&chain.state()), None);
}
