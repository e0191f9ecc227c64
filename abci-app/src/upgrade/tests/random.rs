//! Random plans, programs and parameters of consensus, block by block, against an obvious model: which program may execute
//! which block, how often each migration ran, and what a block and evidence may be.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::cosmos::cosmos::staking::v1beta1 as staking_proto;
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::*;
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::cosmos::tendermint::types::{AbciParams, BlockParams, EvidenceParams, ValidatorParams};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::chain::{self, Block, Fatal};
use crate::consensus::{self, proto};
use crate::context::{BlockTime, Commit, Context};
use crate::gov::authority;
use crate::modules::{Answer, Handle, QueryContext};
use crate::staking;
use crate::store::{MemoryState, Overlay, StateRead, StateWrite};
use crate::testing::{CHAIN_ID, GENESIS_SECONDS, genesis};
use crate::tests::drawn;
use crate::upgrade::{Halt, Migration, Upgrades};

/// Names of plans: three that some program knows, one that none does, and two that are none.
const NAMES: [&str; 6] = ["a", "b", "c", "nobody's", "", LONG];
/// One byte more than a name may have.
const LONG: &str = concat!(
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
);
/// Where a migration counts how often it ran.
const RUNS: u8 = b'\xfe';

const fn migration(name: &'static str) -> Migration {
    let run = match name.as_bytes()[0] {
        b'a' => |_: &mut Context, state: &mut dyn StateWrite| count(state, b'a'),
        b'b' => |_: &mut Context, state: &mut dyn StateWrite| count(state, b'b'),
        _ => |_: &mut Context, state: &mut dyn StateWrite| count(state, b'c'),
    };
    Migration { name, run }
}

fn count(state: &mut dyn StateWrite, name: u8) -> Result<(), crate::error::TxError> {
    let runs = state.get(&[RUNS, name]).map_or(0, |value| value[0]);
    state.put(vec![RUNS, name], vec![runs + 1]);
    Ok(())
}

/// The programs: each knows these upgrades.
const PROGRAMS: [&[Migration]; 5] = [
    &[],
    &[migration("a")],
    &[migration("a"), migration("b")],
    &[migration("a"), migration("b"), migration("c")],
    &[migration("b")],
];

#[derive(Clone, Debug)]
enum Step {
    /// For so many blocks from now.
    Plan {
        name: usize,
        ahead: i64,
    },
    Cancel,
    /// Another program is started, which passes over the plan's height or not.
    Program {
        number: usize,
        skip: bool,
    },
    /// The first program that can go on, if one can.
    Right,
    Blocks(u64),
    Consensus {
        bytes: i64,
        gas: i64,
        blocks: i64,
        seconds: i64,
        evidence: i64,
        /// A part that is left out, or what is added that may not be.
        odd: u8,
    },
    Unbonding(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![8 => 600_000..2_000_000_i64, 1 => Just(1 << 19), 1 => Just((1 << 19) - 1),
        1 => Just(100 << 20), 1 => Just((100 << 20) + 1)];
    let gas = prop_oneof![6 => 10_000_000..90_000_000_i64, 2 => Just(-1_i64), 1 => Just(9_999_999), 1 => Just(0), 1 => Just(-2)];
    let positive = || prop_oneof![12 => 1..500_i64, 1 => Just(0_i64), 1 => Just(-1)];
    let evidence = prop_oneof![6 => 0..600_000_i64, 1 => Just(-1_i64), 1 => 500_000..3_000_000_i64];
    let odd = prop_oneof![12 => Just(0_u8), 1 => 1..7_u8];
    prop_oneof![
        8 => (prop_oneof![9 => 0..3_usize, 2 => 3..6_usize], -2..7_i64)
            .prop_map(|(name, ahead)| Step::Plan { name, ahead }),
        2 => Just(Step::Cancel),
        3 => (0..PROGRAMS.len(), prop::bool::weighted(0.3)).prop_map(|(number, skip)| Step::Program { number, skip }),
        10 => Just(Step::Right),
        14 => (1..4_u64).prop_map(Step::Blocks),
        6 => (bytes, gas, positive(), positive(), evidence, odd).prop_map(|(bytes, gas, blocks, seconds, evidence, odd)| {
            Step::Consensus { bytes, gas, blocks, seconds, evidence, odd }
        }),
        3 => prop_oneof![12 => 1..400_i64, 1 => Just(0_i64)].prop_map(Step::Unbonding),
    ]
}

/// What the model holds.
#[derive(Debug)]
struct Model {
    height: u64,
    plan: Option<(usize, u64)>,
    /// When each was done; the newest is the one that a program must know.
    done: BTreeMap<usize, u64>,
    program: usize,
    skipped: BTreeSet<u64>,
    /// Bytes and gas of a block, age of evidence in seconds, once somebody has said so.
    said: Option<(i64, i64, i64)>,
    unbonding: i64,
}

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Executed,
    Needed,
    Early,
    Old,
}

impl Model {
    fn knows(&self, name: usize) -> bool {
        PROGRAMS[self.program].iter().any(|migration| migration.name == NAMES[name])
    }

    fn block(&mut self) -> End {
        let next = self.height + 1;
        let newest = self.done.iter().max_by_key(|(_, at)| **at).map(|(name, _)| *name);
        if newest.is_some_and(|name| !self.knows(name)) {
            return End::Old;
        }
        if let Some((name, at)) = self.plan {
            let skipped = self.skipped.contains(&at);
            if next < at {
                // Who passes the height over has not been upgraded too early.
                if self.knows(name) && !skipped {
                    return End::Early;
                }
            } else if skipped {
                self.plan = None;
            } else if self.knows(name) {
                self.plan = None;
                self.done.insert(name, next);
            } else {
                return End::Needed;
            }
        }
        self.height = next;
        End::Executed
    }
}

struct Run {
    state: MemoryState,
    model: Model,
    seen: BTreeMap<String, usize>,
}

fn time(height: u64) -> BlockTime {
    BlockTime { seconds: GENESIS_SECONDS.saturating_add_unsigned(height), nanos: 0 }
}

impl Run {
    fn new() -> Self {
        let mut genesis = genesis(1);
        genesis.staking.unbonding_seconds = 100;
        let (changes, _) = chain::genesis(CHAIN_ID, time(0), &genesis).unwrap();
        let mut state = MemoryState::default();
        state.apply(&changes);
        let model = Model {
            height: 0,
            plan: None,
            done: BTreeMap::new(),
            program: 0,
            skipped: BTreeSet::new(),
            said: None,
            unbonding: 100,
        };
        let mut run = Run { state, model, seen: BTreeMap::new() };
        run.block().unwrap();
        run
    }

    fn saw(&mut self, kind: impl Into<String>) {
        *self.seen.entry(kind.into()).or_default() += 1;
    }

    fn block(&mut self) -> Result<(), TestCaseError> {
        let known = PROGRAMS[self.model.program];
        let upgrades = Upgrades { known, skipped: self.model.skipped.iter().copied().collect() };
        let height = self.model.height + 1;
        let block = Block { height, time: time(height), txs: &[], commit: Commit::default(), upgrades: &upgrades };
        let executed = chain::block(&self.state, block);
        let found = match &executed {
            Ok(_) => End::Executed,
            Err(Fatal::Upgrade(Halt::Needed { .. })) => End::Needed,
            Err(Fatal::Upgrade(Halt::Early { .. })) => End::Early,
            Err(Fatal::Upgrade(Halt::Old { .. })) => End::Old,
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let before = self.model.done.len();
        let expected = self.model.block();
        prop_assert_eq!(found, expected, "block {} in {:?}", height, self.model);
        if let Ok(executed) = executed {
            self.state.apply(&executed.changes);
        }
        self.saw(format!("{found:?}"));
        if self.model.done.len() > before {
            self.saw("migrated");
        }
        Ok(())
    }

    /// In the newest block, all or nothing. Whoever refuses says that the request is wrong.
    fn send<M: Handle>(&mut self, message: &M, good: bool) -> Result<(), TestCaseError> {
        let height = self.model.height;
        let (mut ctx, mut layer) =
            (Context::new(CHAIN_ID, height, time(height), 1_000), Overlay::new(&self.state as &dyn StateRead));
        let result = message.check().and_then(|()| message.execute(&mut ctx, &mut layer));
        let found = result.as_ref().map(|_| ()).map_err(|error| error.code());
        let expected = if good { Ok(()) } else { Err(("sdk", 18)) };
        prop_assert_eq!(found, expected, "{:?} in {:?}: {:?}", message, self.model, result.as_ref().err());
        if good {
            let changes = layer.into_changes();
            self.state.apply(&changes);
        }
        self.saw(format!("{}{}", M::NAME, if good { "" } else { " refused" }));
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let authority = authority().account();
        match *step {
            Step::Plan { name, ahead } => {
                let height = self.model.height as i64 + ahead;
                let future = height > self.model.height as i64;
                let good = future && name < 4 && !self.model.done.contains_key(&name);
                let plan = Some(Plan { name: NAMES[name].into(), height, info: "i".into(), ..Default::default() });
                self.send(&MsgSoftwareUpgrade { authority, plan }, good)?;
                if good {
                    self.model.plan = Some((name, height as u64));
                }
            }
            Step::Cancel => {
                self.send(&MsgCancelUpgrade { authority }, true)?;
                self.model.plan = None;
            }
            Step::Program { number, skip } => self.start(number, skip),
            Step::Right => {
                let due = self.model.plan.filter(|(_, at)| *at == self.model.height + 1).map(|(name, _)| name);
                let needed: BTreeSet<usize> = self.model.done.keys().copied().chain(due).collect();
                let knows = |program: &[Migration], name: usize| program.iter().any(|m| m.name == NAMES[name]);
                let waits = self.model.plan.map(|(name, _)| name).filter(|name| !needed.contains(name));
                let fits = |program: &[Migration]| {
                    needed.iter().all(|name| knows(program, *name)) && !waits.is_some_and(|name| knows(program, name))
                };
                if let Some(number) = PROGRAMS.iter().position(|program| fits(program)) {
                    self.start(number, false);
                }
            }
            Step::Blocks(blocks) => (0..blocks).try_for_each(|_| self.block())?,
            Step::Consensus { bytes, gas, blocks, seconds, evidence, odd } => {
                let types = if odd == 4 { vec!["ed25519".into(), "bls".into()] } else { vec!["ed25519".to_owned()] };
                let message = proto::MsgUpdateParams {
                    authority,
                    block: (odd != 1).then_some(BlockParams { max_bytes: bytes, max_gas: gas }),
                    evidence: (odd != 2).then_some(EvidenceParams {
                        max_age_num_blocks: blocks,
                        max_age_duration: (odd != 6).then_some(Duration { seconds, nanos: 0 }),
                        max_bytes: evidence,
                    }),
                    validator: (odd != 3).then_some(ValidatorParams { pub_key_types: types }),
                    abci: (odd == 5).then_some(AbciParams { vote_extensions_enable_height: 9 }),
                };
                let good = odd == 0
                    && (524_288..=104_857_600).contains(&bytes)
                    && (gas == -1 || gas >= 10_000_000)
                    && blocks > 0
                    && (0..=bytes).contains(&evidence)
                    && seconds > 0
                    && seconds >= self.model.unbonding;
                self.send(&message, good)?;
                if good {
                    self.model.said = Some((bytes, gas, seconds));
                }
            }
            Step::Unbonding(seconds) => {
                let params = staking_proto::Params {
                    unbonding_time: Some(Duration { seconds, nanos: 0 }),
                    ..staking::params(&self.state)
                };
                let age = self.model.said.map_or(i64::MAX, |(_, _, age)| age);
                let good = seconds > 0 && (seconds <= self.model.unbonding || seconds <= age);
                self.send(&staking_proto::MsgUpdateParams { authority, params: Some(params) }, good)?;
                if good {
                    self.model.unbonding = seconds;
                }
            }
        }
        self.compare()
    }

    fn start(&mut self, number: usize, skip: bool) {
        self.model.program = number;
        self.model.skipped = self.model.plan.filter(|_| skip).map(|(_, at)| at).into_iter().collect();
    }

    fn ask<Q: Answer>(&self, query: &Q) -> Option<Q::Response> {
        let (chain_id, height) = (CHAIN_ID.to_owned(), self.model.height);
        query.answer(&QueryContext { chain_id, height, epoch: 0, epoch_blocks: 1_000 }, &self.state).ok()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let model = &self.model;
        let plan = self.ask(&QueryCurrentPlanRequest {}).unwrap().plan;
        let expected = model.plan.map(|(name, at)| (NAMES[name].to_owned(), at as i64));
        prop_assert_eq!(plan.map(|plan| (plan.name, plan.height)), expected);
        for (at, name) in NAMES.iter().enumerate().take(4) {
            let applied = self.ask(&QueryAppliedPlanRequest { name: (*name).into() }).unwrap().height;
            let done = model.done.get(&at);
            prop_assert_eq!(applied, done.map_or(0, |at| *at as i64), "{}", name);
            let runs = self.state.get(&[RUNS, name.as_bytes()[0]]).map_or(0, |value| value[0]);
            prop_assert_eq!(runs, u8::from(done.is_some()), "a migration runs once: {}", name);
        }
        let params = self.ask(&proto::QueryParamsRequest {}).and_then(|answer| answer.params);
        let found = params.map(|params| {
            let (block, age) = (params.block.unwrap(), params.evidence.unwrap().max_age_duration.unwrap());
            (block.max_bytes, block.max_gas, age.seconds)
        });
        prop_assert_eq!(found, model.said);
        let gas = model.said.map_or(-1, |(_, gas, _)| gas);
        prop_assert_eq!(consensus::block_gas_max(&self.state), if gas > 0 { gas as u64 } else { 400_000_000 });
        prop_assert!(consensus::check_age(&self.state).is_ok(), "evidence is younger than stake: {:?}", model);
        Ok(())
    }
}

fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    steps.iter().try_for_each(|step| run.apply(step))?;
    Ok(run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps: each block is executed by the program that was planned for it, or by none.
    #[test]
    fn programs_and_parameters_agree_with_the_model(steps in sequences()) {
        println!("{:?}", run(&steps)?.seen);
    }
}

#[test]
fn sequences_do_some_of_everything() {
    let blocks = ["Executed", "Needed", "Early", "Old", "migrated"];
    let messages = ["MsgSoftwareUpgrade", "MsgSoftwareUpgrade refused", "MsgCancelUpgrade"];
    let kinds = [&blocks[..], &messages, &["MsgUpdateParams", "MsgUpdateParams refused"]].concat();
    drawn::all_of(&kinds, 8, sequences(), |steps| run(steps).map(|run| run.seen));
}
