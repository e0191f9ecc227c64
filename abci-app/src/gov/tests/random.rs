//! Random proposals, deposits, votes, stakes and times against an obvious model: whole numbers, lists that are searched,
//! and everything counted from the start whenever it is asked for.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{
    MsgCancelProposal, MsgDeposit, MsgSubmitProposal, MsgVoteWeighted, Proposal, ProposalStatus, WeightedVoteOption,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{MsgDelegate, MsgUndelegate};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::{Address, Amount, DENOM};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::context::{BlockTime, Context};
use crate::genesis::Genesis;
use crate::gov;
use crate::modules::{Handle, MODULES};
use crate::staking::GenesisValidator;
use crate::store::{MemoryState, Overlay};
use crate::{bank, chain};

const PLK: u128 = 1_000_000;
const FUNDS: u128 = 1_000_000 * PLK;
/// Accounts; the first [`OPERATORS`] run validators.
const ACCOUNTS: u8 = 6;
const OPERATORS: u8 = 3;
const MIN_DEPOSIT: u128 = 10 * PLK;
const EXPEDITED_MIN_DEPOSIT: u128 = 20 * PLK;
const DEPOSIT_SECONDS: u64 = 12;
const VOTING_SECONDS: u64 = 8;
const EXPEDITED_SECONDS: u64 = 3;

fn account(n: u8) -> Address {
    Address([n; 20])
}

/// Weights in quarters of Yes, Abstain, No, NoWithVeto.
type Weights = [u128; 4];

#[derive(Clone, Debug)]
enum Step {
    Submit { by: u8, deposit: u128, expedited: bool },
    Deposit { by: u8, back: u64, amount: u128 },
    Vote { by: u8, back: u64, weights: Weights },
    Cancel { by: u8, back: u64 },
    Delegate { by: u8, to: u8, amount: u128 },
    Undelegate { by: u8, from: u8, percent: u128 },
    Seconds(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let by = || 1..=ACCOUNTS;
    // The newest, or one before it; sometimes one that never was.
    let back = || 0..4_u64;
    let amount = || prop_oneof![Just(PLK / 20), Just(PLK), Just(4 * PLK), Just(10 * PLK), Just(20 * PLK)];
    let weights = prop_oneof![
        4 => (0..4_usize).prop_map(|at| { let mut weights = [0; 4]; weights[at] = 4; weights }),
        1 => Just([1, 1, 1, 1]),
        1 => Just([3, 0, 1, 0]),
        1 => Just([2, 0, 0, 2]),
        1 => Just([0, 1, 0, 0]),
    ];
    prop_oneof![
        3 => (by(), prop_oneof![Just(0_u128), amount()], prop::bool::ANY)
            .prop_map(|(by, deposit, expedited)| Step::Submit { by, deposit, expedited }),
        4 => (by(), back(), amount()).prop_map(|(by, back, amount)| Step::Deposit { by, back, amount }),
        8 => (by(), back(), weights).prop_map(|(by, back, weights)| Step::Vote { by, back, weights }),
        1 => (by(), back()).prop_map(|(by, back)| Step::Cancel { by, back }),
        2 => (by(), 1..=OPERATORS, 1..500 * PLK).prop_map(|(by, to, amount)| Step::Delegate { by, to, amount }),
        1 => (by(), 1..=OPERATORS, 1..=100_u128).prop_map(|(by, from, percent)| Step::Undelegate { by, from, percent }),
        5 => (1..4_u64).prop_map(Step::Seconds),
    ]
}

#[derive(Clone, Debug)]
struct Entry {
    proposer: u8,
    expedited: bool,
    status: ProposalStatus,
    deposits: BTreeMap<u8, u128>,
    votes: BTreeMap<u8, Weights>,
    begun: u64,
    end: u64,
    /// The last count, in quarters.
    counted: Weights,
}

#[derive(Default)]
struct Model {
    /// By id, from 1; `None` where forgotten.
    proposals: Vec<Option<Entry>>,
    stake: BTreeMap<(u8, u8), u128>,
    free: BTreeMap<u8, u128>,
    burned: u128,
}

impl Entry {
    fn is_open(&self) -> bool {
        matches!(self.status, ProposalStatus::DepositPeriod | ProposalStatus::VotingPeriod)
    }
    fn total(&self) -> u128 {
        self.deposits.values().sum()
    }
    fn needed(&self) -> u128 {
        if self.expedited { EXPEDITED_MIN_DEPOSIT } else { MIN_DEPOSIT }
    }
}

impl Model {
    fn get(&mut self, id: u64) -> Option<&mut Entry> {
        usize::try_from(id).ok()?.checked_sub(1).and_then(|at| self.proposals.get_mut(at)?.as_mut())
    }

    /// Everybody's stake goes where its holder voted, else where the validator did.
    fn count(&self, votes: &BTreeMap<u8, Weights>) -> Weights {
        let mut counted = [0; 4];
        for ((by, to), amount) in &self.stake {
            let Some(weights) = votes.get(by).or_else(|| votes.get(to)) else { continue };
            for (sum, weight) in counted.iter_mut().zip(weights) {
                *sum += amount * weight;
            }
        }
        counted
    }

    /// Whether it passes, and whether the deposits burn.
    fn verdict(&self, counted: Weights, expedited: bool) -> (bool, bool) {
        let (bonded, voted): (u128, u128) = (self.stake.values().sum::<u128>() * 4, counted.iter().sum());
        let [yes, abstain, _, veto] = counted;
        if voted * 1_000 < bonded * 334 || voted == abstain {
            return (false, false);
        }
        if veto * 1_000 > voted * 334 {
            return (false, true);
        }
        let decided = voted - abstain;
        (if expedited { yes * 1_000 > decided * 667 } else { yes * 2 > decided }, false)
    }

    fn give_back(&mut self, deposits: &BTreeMap<u8, u128>) {
        for (by, amount) in deposits {
            *self.free.get_mut(by).unwrap() += amount;
        }
    }

    fn end_block(&mut self, now: u64) {
        for at in 0..self.proposals.len() {
            let Some(mut entry) = self.proposals[at].clone().filter(|entry| entry.is_open() && entry.end <= now) else {
                continue;
            };
            if entry.status == ProposalStatus::DepositPeriod {
                self.give_back(&entry.deposits);
                self.proposals[at] = None;
                continue;
            }
            entry.counted = self.count(&entry.votes);
            entry.votes.clear();
            let (passes, burns) = self.verdict(entry.counted, entry.expedited);
            if entry.expedited && !passes {
                entry.expedited = false;
                entry.end = entry.begun + VOTING_SECONDS;
            } else {
                entry.status = if passes { ProposalStatus::Passed } else { ProposalStatus::Rejected };
                if burns {
                    self.burned += entry.total();
                } else {
                    self.give_back(&entry.deposits);
                }
                entry.deposits.clear();
            }
            self.proposals[at] = Some(entry);
        }
    }
}

struct Run {
    state: MemoryState,
    ctx: Context,
    model: Model,
    seen: BTreeMap<&'static str, usize>,
}

fn time(second: u64) -> BlockTime {
    BlockTime { seconds: 1_700_000_000_i64.saturating_add_unsigned(second), nanos: 0 }
}

fn coins(amount: u128) -> Vec<Coin> {
    if amount == 0 { vec![] } else { vec![Coin { denom: DENOM.into(), amount: amount.to_string() }] }
}

impl Run {
    fn new() -> Self {
        let mut genesis = Genesis::default();
        let mut model = Model::default();
        for n in 1..=ACCOUNTS {
            genesis = genesis.with_account(&account(n), Amount(FUNDS));
            model.free.insert(n, FUNDS);
        }
        for n in 1..=OPERATORS {
            let stake = u128::from(n) * 1_000 * PLK;
            let key = ServiceKey::from_bytes(&[n; 32]).public_key();
            genesis.staking.validators.push(GenesisValidator::new(&account(n), &key, Amount(stake)));
            model.stake.insert((n, n), stake);
            *model.free.get_mut(&n).unwrap() -= stake;
        }
        genesis.gov.deposit_seconds = DEPOSIT_SECONDS;
        genesis.gov.voting_seconds = VOTING_SECONDS;
        genesis.gov.expedited_voting_seconds = EXPEDITED_SECONDS;
        genesis.gov.expedited_min_deposit = Amount(EXPEDITED_MIN_DEPOSIT);
        let (changes, _) = chain::genesis("polylink-model-2", time(0), &genesis).unwrap();
        let mut state = MemoryState::default();
        state.apply(&changes);
        Run { state, ctx: Context::new("polylink-model-2", 1, time(1), 1_000_000), model, seen: BTreeMap::new() }
    }

    fn now(&self) -> u64 {
        self.ctx.height
    }

    fn send<M: Handle>(&mut self, message: &M, expect: Result<(), (&str, u32)>) -> Result<bool, TestCaseError> {
        let mut layer = Overlay::new(&self.state);
        let mut ctx = self.ctx.clone();
        let checked = message.signer().and_then(|_| message.check());
        let result = checked.and_then(|()| message.execute(&mut ctx, &mut layer)).map(|_| ());
        *self.seen.entry(if result.is_ok() { M::NAME } else { "refused" }).or_default() += 1;
        let found = result.as_ref().map(|_| ()).map_err(|error| error.code());
        prop_assert_eq!(found, expect, "{:?}: {:?}", message, result);
        if result.is_ok() {
            let changes = layer.into_changes();
            bank::check_conservation(&self.state, &changes).unwrap();
            self.state.apply(&changes);
        }
        Ok(found.is_ok())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let now = self.now();
        let newest = self.model.proposals.len() as u64;
        match *step {
            Step::Submit { by, deposit, expedited } => {
                let message = MsgSubmitProposal {
                    initial_deposit: coins(deposit),
                    proposer: account(by).account(),
                    metadata: "m".into(),
                    title: "t".into(),
                    summary: "s".into(),
                    expedited,
                    ..Default::default()
                };
                let mut entry = Entry {
                    proposer: by,
                    expedited,
                    status: ProposalStatus::DepositPeriod,
                    deposits: BTreeMap::new(),
                    votes: BTreeMap::new(),
                    begun: now,
                    end: now + DEPOSIT_SECONDS,
                    counted: [0; 4],
                };
                let expect = if deposit < entry.needed() / 100 { Err(("gov", 16)) } else { Ok(()) };
                if self.send(&message, expect)? {
                    self.model.put_down(&mut entry, by, deposit, now);
                    self.model.proposals.push(Some(entry));
                }
            }
            Step::Deposit { by, back, amount } => {
                let id = (newest + 1).saturating_sub(back);
                let message = MsgDeposit { proposal_id: id, depositor: account(by).account(), amount: coins(amount) };
                let expect = match self.model.get(id) {
                    None => Err(("gov", 2)),
                    Some(entry) if !entry.is_open() => Err(("gov", 3)),
                    Some(entry) if amount < entry.needed() / 100 => Err(("gov", 16)),
                    Some(_) => Ok(()),
                };
                if self.send(&message, expect)? {
                    let mut entry = self.model.get(id).unwrap().clone();
                    self.model.put_down(&mut entry, by, amount, now);
                    *self.model.get(id).unwrap() = entry;
                }
            }
            Step::Vote { by, back, weights } => {
                let id = (newest + 1).saturating_sub(back);
                let options = (1..=4).zip(weights).filter(|(_, weight)| *weight > 0).map(|(option, weight)| {
                    let weight = ["", "0.25", "0.5", "0.75", "1"][weight as usize].to_owned();
                    WeightedVoteOption { option, weight }
                });
                let message = MsgVoteWeighted {
                    proposal_id: id,
                    voter: account(by).account(),
                    options: options.collect(),
                    metadata: String::new(),
                };
                let voted_on =
                    self.model.get(id).filter(|entry| entry.status == ProposalStatus::VotingPeriod).is_some();
                let expect = match weights.iter().sum::<u128>() {
                    4 if voted_on => Ok(()),
                    4 => Err(("gov", 3)),
                    _ => Err(("gov", 7)),
                };
                if self.send(&message, expect)? {
                    self.model.get(id).unwrap().votes.insert(by, weights);
                }
            }
            Step::Cancel { by, back } => {
                let id = newest.saturating_sub(back);
                let message = MsgCancelProposal { proposal_id: id, proposer: account(by).account() };
                let expect = match self.model.get(id) {
                    None => Err(("gov", 2)),
                    Some(entry) if entry.proposer != by => Err(("gov", 18)),
                    Some(entry) if !entry.is_open() => Err(("gov", 21)),
                    Some(_) => Ok(()),
                };
                if self.send(&message, expect)? {
                    let entry = self.model.proposals[id as usize - 1].take().unwrap();
                    self.model.burned += entry.deposits.values().map(|amount| amount / 2).sum::<u128>();
                    let rest = entry.deposits.iter().map(|(by, amount)| (*by, amount - amount / 2)).collect();
                    self.model.give_back(&rest);
                }
            }
            Step::Delegate { by, to, amount } => {
                let message = MsgDelegate {
                    delegator_address: account(by).account(),
                    validator_address: account(to).valoper(),
                    amount: coins(amount).pop(),
                };
                if self.send(&message, Ok(()))? {
                    *self.model.stake.entry((by, to)).or_default() += amount;
                    *self.model.free.get_mut(&by).unwrap() -= amount;
                }
            }
            Step::Undelegate { by, from, percent } => {
                // An operator keeps what its validator needs.
                let held = self.model.stake.get(&(by, from)).copied().unwrap_or(0);
                let amount = if by == from { held * percent / 200 } else { held * percent / 100 };
                if amount > 0 {
                    let message = MsgUndelegate {
                        delegator_address: account(by).account(),
                        validator_address: account(from).valoper(),
                        amount: coins(amount).pop(),
                    };
                    // At most seven entries of a pair, of different heights.
                    let mut layer = Overlay::new(&self.state);
                    if message.execute(&mut self.ctx.clone(), &mut layer).is_ok() {
                        let changes = layer.into_changes();
                        self.state.apply(&changes);
                        *self.model.stake.get_mut(&(by, from)).unwrap() -= amount;
                    }
                }
            }
            Step::Seconds(seconds) => {
                for _ in 0..seconds {
                    for module in MODULES {
                        (module.end_block)(&mut self.ctx, &mut self.state).unwrap();
                    }
                    self.model.end_block(self.now());
                    let height = self.ctx.height + 1;
                    self.ctx = Context::new("polylink-model-2", height, time(height), 1_000_000);
                    self.compare()?;
                }
            }
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        for (index, entry) in self.model.proposals.clone().iter().enumerate() {
            let id = index as u64 + 1;
            let found: Option<Proposal> = gov::proposal(&self.state, id);
            prop_assert_eq!(found.is_some(), entry.is_some(), "{}: {:?}", id, entry);
            let (Some(found), Some(entry)) = (found, entry) else { continue };
            prop_assert_eq!((found.status(), found.expedited), (entry.status, entry.expedited), "{}", id);
            let tally = found.final_tally_result.unwrap();
            let counts = [tally.yes_count, tally.abstain_count, tally.no_count, tally.no_with_veto_count];
            prop_assert_eq!(
                counts.map(|count| count.parse::<u128>().unwrap()),
                entry.counted.map(|sum| sum / 4),
                "{}",
                id
            );
            *self.seen.entry(entry.status.as_str_name()).or_default() += 1;
        }
        for (n, free) in &self.model.free {
            prop_assert_eq!(bank::balance(&self.state, account(*n)).0, *free, "account {}", n);
        }
        prop_assert_eq!(bank::flows(&self.state, DENOM).1.0, self.model.burned);
        prop_assert_eq!(gov::scan(&self.state), Ok(()));
        Ok(())
    }
}

impl Model {
    fn put_down(&mut self, entry: &mut Entry, by: u8, amount: u128, now: u64) {
        *self.free.get_mut(&by).unwrap() -= amount;
        if amount > 0 {
            *entry.deposits.entry(by).or_default() += amount;
        }
        if entry.status == ProposalStatus::DepositPeriod && entry.total() >= entry.needed() {
            entry.status = ProposalStatus::VotingPeriod;
            entry.begun = now;
            entry.end = now + if entry.expedited { EXPEDITED_SECONDS } else { VOTING_SECONDS };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps do what the model does.
    #[test]
    fn proposals_agree_with_the_model(steps in proptest::collection::vec(step(), 500)) {
        let mut run = Run::new();
        for step in &steps {
            run.apply(step)?;
        }
        for kind in ["MsgSubmitProposal", "MsgDeposit", "MsgVoteWeighted", "refused", "PROPOSAL_STATUS_REJECTED"] {
            prop_assert!(run.seen.contains_key(kind), "no {} in {:?}", kind, run.seen);
        }
        println!("{:?}", run.seen);
    }
}
