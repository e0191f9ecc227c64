//! Chains that live through random blocks of messages of every module, through the real store: two from the same genesis
//! document, and one that goes on from an exported state of the first in a fresh application.

use polylink_protocol::Address;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::MsgRegisterModel;
use polylink_protocol::tiqe_v1::MsgRegisterJudge;
use proptest::prelude::*;
use std::collections::BTreeMap;

use super::export;
use super::messages::*;
use crate::genesis::Genesis;
use crate::market::testbed::{register_judge, register_model, register_worker};
use crate::staking;
use crate::store::{Order, StateRead};
use crate::testing::{TestChain, genesis};

/// Steps before the export, and after it.
const BEFORE: usize = 500;
const AFTER: usize = 200;

#[derive(Clone, Debug)]
enum Step {
    /// By whom, of which kind, with whom, how much, a small number.
    Message(usize, u8, usize, u128, u64),
    /// What the audit and the market ask for now, by those whose bit is set.
    Duty(u8),
    /// The block ends; an actor's validator begins or ceases to be absent, and seconds pass.
    Block { toggled: usize, skipped: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let amount = prop_oneof![1..1_000_u128, PLK..200 * PLK, Just(100 * PLK)];
    let toggled = prop_oneof![9 => Just(0_usize), 1 => 1..5_usize];
    let skipped = prop_oneof![4 => Just(0_u64), 1 => 1..5_u64];
    prop_oneof![
        10 => (0..ACTORS.len(), 0..KINDS, 0..ACTORS.len(), amount, 0..8_u64)
            .prop_map(|(by, kind, other, amount, small)| Step::Message(by, kind, other, amount, small)),
        2 => prop_oneof![3 => Just(u8::MAX), 1 => 0..=u8::MAX].prop_map(Step::Duty),
        5 => (toggled, skipped).prop_map(|(toggled, skipped)| Step::Block { toggled, skipped }),
    ]
}

/// One validator, judges, workers, and times that are short enough to be over.
pub fn start() -> Genesis {
    let mut genesis = genesis(5);
    genesis.staking.unbonding_seconds = 6;
    genesis.staking.max_validators = 3;
    genesis.staking.historical_entries = 4;
    genesis.slashing.signed_blocks_window = 6;
    genesis.slashing.downtime_jail_seconds = 4;
    (genesis.gov.voting_seconds, genesis.gov.expedited_voting_seconds, genesis.gov.deposit_seconds) = (6, 3, 9);
    let params = &mut genesis.market.params;
    (params.vesting_epochs, params.unbonding_epochs, params.dispute_epochs) = (2, 2, 1);
    genesis.tiqe.params.cusum_threshold_milli = genesis.tiqe.params.evidence_clip_milli;
    genesis.tiqe.params.appeal_epochs = 1;
    genesis.market.models.push(MsgRegisterModel { provider: address(1).account(), ..register_model() });
    genesis.market.workers.extend(WORKERS.map(|n| register_worker(address(n))));
    let judge = |n: u8| MsgRegisterJudge { operator: address(n).account(), ..register_judge(n) };
    genesis.tiqe.judges.extend(JUDGES.map(judge));
    genesis
}

fn all(chain: &TestChain) -> Vec<(Vec<u8>, Vec<u8>)> {
    chain.state().iter_range(&[], None, Order::Ascending).collect()
}

/// Chains that are given the same blocks.
struct Chains {
    all: Vec<TestChain>,
    /// Of the block that is being made: its transactions, and each actor's in it.
    txs: Vec<Vec<u8>>,
    ahead: [u64; ACTORS.len()],
    /// Modules whose messages succeeded, and how often; refusals.
    seen: BTreeMap<String, usize>,
}

impl Chains {
    fn new(count: usize) -> Self {
        let mut all: Vec<TestChain> = (0..count).map(|_| TestChain::start(&start())).collect();
        all.iter_mut().for_each(|chain| chain.advance(1));
        Chains { all, txs: Vec::new(), ahead: [0; ACTORS.len()], seen: BTreeMap::new() }
    }

    fn push(&mut self, by: usize, message: polylink_protocol::cosmos::Any) {
        self.txs.push(self.all[0].sign_after(ACTORS[by], self.ahead[by], vec![message]));
        self.ahead[by] += 1;
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Message(by, kind, other, amount, small) => {
                let paid = if kind < REDEEM { None } else { payee(&self.all[0], small) };
                let by = ACTORS.iter().position(|n| Some(*n) == paid).unwrap_or(by);
                // Sessions are mostly with workers.
                let other = if kind == 22 && small > 1 { WORKERS[small as usize % 2] } else { ACTORS[other] };
                let made = message(&self.all[0], kind, ACTORS[by], other, amount, small);
                if paid.is_some() || kind < REDEEM {
                    self.push(by, made);
                }
            }
            Step::Duty(who) => {
                for by in (0..5).filter(|by| who >> by & 1 == 1) {
                    if let Some(made) = duty(&self.all[0], ACTORS[by]) {
                        self.push(by, made);
                    }
                }
            }
            Step::Block { toggled, skipped } => self.block(toggled, skipped)?,
        }
        Ok(())
    }

    fn block(&mut self, toggled: usize, skipped: u64) -> Result<(), TestCaseError> {
        let (txs, mut results) = (std::mem::take(&mut self.txs), Vec::new());
        self.ahead = [0; ACTORS.len()];
        for chain in &mut self.all {
            if toggled > 0 {
                let key = ServiceKey::from_bytes(&[ACTORS[toggled]; 32]).public_key();
                let consensus = Address::of_consensus_key(&key);
                if !chain.absent.remove(&consensus) {
                    chain.absent.insert(consensus);
                }
            }
            chain.skip_seconds(skipped);
            results.push((chain.deliver(txs.clone()), chain.block_events.clone()));
        }
        for result in &results[0].0 {
            let attributes = result.events.iter().flat_map(|event| &event.attributes);
            let actions = attributes.filter(|attribute| attribute.key == "action" && result.code == 0);
            let kind = actions.map(|attribute| attribute.value.clone()).next();
            let kind = kind.unwrap_or_else(|| format!("{} {}", result.codespace, result.code));
            *self.seen.entry(kind).or_default() += 1;
        }
        let height = self.all[0].height();
        for (chain, result) in self.all.iter().zip(&results).skip(1) {
            prop_assert_eq!(result, &results[0], "results of block {}", height);
            prop_assert_eq!(&chain.app_hash, &self.all[0].app_hash, "block {}", height);
        }
        Ok(())
    }
}

fn exported(chain: &TestChain) -> Result<serde_json::Value, TestCaseError> {
    export(&chain.state()).map_err(|error| TestCaseError::fail(error.to_string()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_goes_on_from_its_export_as_without(steps in proptest::collection::vec(step(), BEFORE + AFTER)) {
        let mut chains = Chains::new(2);
        for step in &steps[..BEFORE] {
            chains.apply(step)?;
        }
        chains.block(0, 0)?;
        let state = exported(&chains.all[0])?;
        let restored = Genesis::from_json(state.to_string().as_bytes()).unwrap();
        let third = chains.all[0].restored(&restored);
        prop_assert_eq!(&third.app_hash, &chains.all[0].app_hash, "as it was exported");
        // From here on the second has nothing more to show.
        chains.all[1] = third;
        for step in &steps[BEFORE..] {
            chains.apply(step)?;
        }
        chains.block(0, 0)?;
        let [one, third] = &chains.all[..] else { unreachable!("two chains") };
        prop_assert_eq!(all(one), all(third));
        prop_assert_eq!(exported(one)?, exported(third)?);
        for chain in &chains.all {
            chain.checked_supply();
            chain.app().store().check().map_err(|error| TestCaseError::fail(error.to_string()))?;
        }
        println!(
            "{} blocks, {} validators, {:?}",
            one.height(),
            staking::bonded_validators(&one.state()).len(),
            chains.seen
        );
        let kinds = chains.seen.keys().filter(|kind| kind.starts_with('/')).count();
        prop_assert!(kinds >= 25, "{} kinds of messages succeeded: {:?}", kinds, chains.seen);
    }
}
