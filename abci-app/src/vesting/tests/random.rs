//! Random transfers, stakes and times of accounts that vest against an obvious model: every balance is a list of what
//! happened to it, and what has vested is added up from the schedule whenever it is asked for.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, MsgSend, Output};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{MsgDelegate, MsgUndelegate};
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::{
    MsgCreatePeriodicVestingAccount, MsgCreatePermanentLockedAccount, MsgCreateVestingAccount, Period,
};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::{Address, Amount, DENOM};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::context::{BlockTime, Context};
use crate::genesis::Genesis;
use crate::modules::{Handle, MODULES};
use crate::staking::GenesisValidator;
use crate::store::{MemoryState, Overlay};
use crate::{bank, chain, vesting};

const FUNDS: u128 = 1_000_000_000;
/// Accounts that are there from the start; those beyond come into being as they may.
const ACCOUNTS: u8 = 3;
const ALL: u8 = 12;
const OPERATOR: u8 = 99;
const UNBONDING: u64 = 5;
const CHAIN: &str = "polylink-model-3";

fn account(n: u8) -> Address {
    Address([n; 20])
}

#[derive(Clone, Debug)]
enum Schedule {
    Continuous { seconds: u64 },
    Delayed { seconds: u64 },
    Periodic { parts: Vec<(u64, u128)> },
    Permanent,
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        by: u8,
        to: u8,
        amount: u128,
        schedule: Schedule,
    },
    Send {
        from: u8,
        to: u8,
        amount: u128,
    },
    /// As much as there is to spend, and more by this.
    SendAll {
        from: u8,
        to: u8,
        more: u128,
    },
    Multi {
        from: u8,
        to: [u8; 2],
        amount: u128,
    },
    Delegate {
        by: u8,
        amount: u128,
    },
    Undelegate {
        by: u8,
        percent: u128,
    },
    Seconds(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let by = || 1..=ALL;
    let amount = || prop_oneof![1..100_u128, 1..10_000_u128, 1..FUNDS / 10];
    let schedule = prop_oneof![
        (1..60_u64).prop_map(|seconds| Schedule::Continuous { seconds }),
        (1..60_u64).prop_map(|seconds| Schedule::Delayed { seconds }),
        proptest::collection::vec((1..12_u64, 1..5_000_u128), 1..5).prop_map(|parts| Schedule::Periodic { parts }),
        Just(Schedule::Permanent),
    ];
    prop_oneof![
        5 => (1..=ACCOUNTS, prop_oneof![8 => ACCOUNTS + 1..=ALL, 1 => 1..=ALL], amount(), schedule)
            .prop_map(|(by, to, amount, schedule)| Step::Create { by, to, amount, schedule }),
        6 => (by(), by(), amount()).prop_map(|(from, to, amount)| Step::Send { from, to, amount }),
        4 => (by(), by(), 0..2_u128).prop_map(|(from, to, more)| Step::SendAll { from, to, more }),
        2 => (by(), by(), by(), amount()).prop_map(|(from, a, b, amount)| Step::Multi { from, to: [a, b], amount }),
        4 => (by(), amount()).prop_map(|(by, amount)| Step::Delegate { by, amount }),
        3 => (by(), 1..=100_u128).prop_map(|(by, percent)| Step::Undelegate { by, percent }),
        4 => (1..8_u64).prop_map(Step::Seconds),
    ]
}

/// An account of the model. What is staked stays part of what it is worth.
#[derive(Clone, Debug, Default)]
struct Person {
    held: u128,
    staked: u128,
    /// Since when, how much, how; none for an ordinary account.
    schedule: Option<(u64, u128, Schedule)>,
    /// Of what is staked or unbonds: what counted as locked, and the rest.
    locked_stake: u128,
    free_stake: u128,
}

impl Person {
    /// What has not vested.
    fn unvested(&self, now: u64) -> u128 {
        let Some((start, amount, schedule)) = &self.schedule else { return 0 };
        let passed = now - start;
        match schedule {
            Schedule::Permanent => *amount,
            Schedule::Delayed { seconds } => {
                if passed >= *seconds {
                    0
                } else {
                    *amount
                }
            }
            Schedule::Periodic { parts } => {
                // Each second of it, one after the other.
                let mut end = 0;
                parts
                    .iter()
                    .filter(|(seconds, _)| {
                        end += seconds;
                        end > passed
                    })
                    .map(|(_, part)| part)
                    .sum()
            }
            Schedule::Continuous { seconds } if passed >= *seconds => 0,
            Schedule::Continuous { seconds } => {
                // The part that has passed, in 18 decimals to the nearest; amounts are far below where that shows.
                let scale = 1_000_000_000_000_000_000_u128;
                let scaled = u128::from(passed) * scale * 2 / u128::from(*seconds);
                let part = scaled.div_ceil(2);
                let vested = amount * part;
                let (whole, rest) = (vested / scale, vested % scale);
                let up = rest > scale / 2 || (rest == scale / 2 && whole % 2 == 1);
                amount - (whole + u128::from(up))
            }
        }
    }

    fn spendable(&self, now: u64) -> u128 {
        self.held.saturating_sub(self.unvested(now).saturating_sub(self.locked_stake))
    }
}

struct Run {
    state: MemoryState,
    ctx: Context,
    people: BTreeMap<u8, Person>,
    /// Whose, how much, when it is paid.
    unbonding: Vec<(u8, u128, u64)>,
    seen: BTreeMap<String, usize>,
}

fn time(second: u64) -> BlockTime {
    BlockTime { seconds: 1_700_000_000_i64.saturating_add_unsigned(second), nanos: 0 }
}

fn coins(amount: u128) -> Vec<Coin> {
    vec![Coin { denom: DENOM.into(), amount: amount.to_string() }]
}

type Expect = Result<(), (&'static str, u32)>;
const TOO_MUCH: Expect = Err(("sdk", 5));

impl Run {
    fn new() -> Self {
        let mut genesis = Genesis::default().with_account(&account(OPERATOR), Amount(FUNDS));
        let mut people = BTreeMap::new();
        for n in 1..=ACCOUNTS {
            genesis = genesis.with_account(&account(n), Amount(FUNDS));
            people.insert(n, Person { held: FUNDS, ..Person::default() });
        }
        let key = ServiceKey::from_bytes(&[OPERATOR; 32]).public_key();
        genesis.staking.validators.push(GenesisValidator::new(&account(OPERATOR), &key, Amount(FUNDS)));
        genesis.staking.unbonding_seconds = UNBONDING;
        let (changes, _) = chain::genesis(CHAIN, time(0), &genesis).unwrap();
        let mut state = MemoryState::default();
        state.apply(&changes);
        let ctx = Context::new(CHAIN, 1, time(1), 1_000_000);
        Run { state, ctx, people, unbonding: Vec::new(), seen: BTreeMap::new() }
    }

    fn now(&self) -> u64 {
        self.ctx.height
    }

    fn person(&self, n: u8) -> Person {
        self.people.get(&n).cloned().unwrap_or_default()
    }

    fn spendable(&self, n: u8) -> u128 {
        self.person(n).spendable(self.now())
    }

    fn send<M: Handle>(&mut self, message: &M, expect: Expect) -> Result<bool, TestCaseError> {
        let mut layer = Overlay::new(&self.state);
        let mut ctx = self.ctx.clone();
        let checked = message.signer().and_then(|_| message.check());
        let result = checked.and_then(|()| message.execute(&mut ctx, &mut layer)).map(|_| ());
        let kind = if result.is_ok() { M::NAME } else { "refused" };
        *self.seen.entry(kind.to_owned()).or_default() += 1;
        let found = result.as_ref().map(|_| ()).map_err(|error| error.code());
        prop_assert_eq!(found, expect, "at {}: {:?}: {:?}", self.now(), message, result);
        if result.is_ok() {
            let changes = layer.into_changes();
            bank::check_conservation(&self.state, &changes).unwrap();
            self.state.apply(&changes);
        }
        Ok(result.is_ok())
    }

    fn moved(&mut self, from: u8, to: u8, amount: u128) {
        self.people.entry(from).or_default().held -= amount;
        self.people.entry(to).or_default().held += amount;
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let now = self.now();
        let text = |n: u8| account(n).account();
        match step.clone() {
            Step::Create { by, to, amount, schedule } => {
                let amount = match &schedule {
                    Schedule::Periodic { parts } => parts.iter().map(|(_, part)| part).sum(),
                    _ => amount,
                };
                let expect = if self.people.contains_key(&to) {
                    Err(("sdk", 18))
                } else if self.spendable(by) < amount {
                    TOO_MUCH
                } else {
                    Ok(())
                };
                let (from_address, to_address) = (text(by), text(to));
                let end = |seconds: u64| time(now + seconds).seconds;
                let done = match &schedule {
                    Schedule::Continuous { seconds } | Schedule::Delayed { seconds } => {
                        let delayed = matches!(schedule, Schedule::Delayed { .. });
                        let (amount, end_time) = (coins(amount), end(*seconds));
                        let message = MsgCreateVestingAccount { from_address, to_address, amount, end_time, delayed };
                        self.send(&message, expect)?
                    }
                    Schedule::Periodic { parts } => {
                        let period =
                            |(seconds, part): &(u64, u128)| Period { length: *seconds as i64, amount: coins(*part) };
                        let vesting_periods = parts.iter().map(period).collect();
                        let start_time = end(0);
                        let message =
                            MsgCreatePeriodicVestingAccount { from_address, to_address, start_time, vesting_periods };
                        self.send(&message, expect)?
                    }
                    Schedule::Permanent => {
                        let message =
                            MsgCreatePermanentLockedAccount { from_address, to_address, amount: coins(amount) };
                        self.send(&message, expect)?
                    }
                };
                if done {
                    self.moved(by, to, amount);
                    self.people.get_mut(&to).unwrap().schedule = Some((now, amount, schedule));
                }
            }
            Step::Send { from, to, amount } => self.transfer(from, to, amount)?,
            Step::SendAll { from, to, more } => self.transfer(from, to, self.spendable(from) + more)?,
            Step::Multi { from, to, amount } => {
                let output = |n: u8| Output { address: text(n), coins: coins(amount) };
                let message = MsgMultiSend {
                    inputs: vec![Input { address: text(from), coins: coins(2 * amount) }],
                    outputs: to.iter().map(|n| output(*n)).collect(),
                };
                // All of it is taken first, also what comes back.
                let expect = if self.spendable(from) < 2 * amount { TOO_MUCH } else { Ok(()) };
                if self.send(&message, expect)? {
                    to.iter().for_each(|n| self.moved(from, *n, amount));
                }
            }
            Step::Delegate { by, amount } => {
                let message = MsgDelegate {
                    delegator_address: text(by),
                    validator_address: account(OPERATOR).valoper(),
                    amount: coins(amount).pop(),
                };
                // Locked coins too.
                let expect = if self.person(by).held < amount { TOO_MUCH } else { Ok(()) };
                if self.send(&message, expect)? {
                    let person = self.people.get_mut(&by).unwrap();
                    let locked = person.unvested(now).saturating_sub(person.locked_stake).min(amount);
                    person.locked_stake += locked;
                    person.free_stake += amount - locked;
                    person.held -= amount;
                    person.staked += amount;
                }
            }
            Step::Undelegate { by, percent } => {
                let amount = self.person(by).staked * percent / 100;
                let entries = self.unbonding.iter().filter(|(n, _, due)| *n == by && *due != now + UNBONDING).count();
                if amount > 0 && entries < 7 {
                    let message = MsgUndelegate {
                        delegator_address: text(by),
                        validator_address: account(OPERATOR).valoper(),
                        amount: coins(amount).pop(),
                    };
                    if self.send(&message, Ok(()))? {
                        self.people.get_mut(&by).unwrap().staked -= amount;
                        self.unbonding.push((by, amount, now + UNBONDING));
                    }
                }
            }
            Step::Seconds(seconds) => {
                for _ in 0..seconds {
                    self.end_block();
                }
            }
        }
        self.compare()
    }

    fn transfer(&mut self, from: u8, to: u8, amount: u128) -> Result<(), TestCaseError> {
        let message =
            MsgSend { from_address: account(from).account(), to_address: account(to).account(), amount: coins(amount) };
        let expect = match amount {
            0 => Err(("sdk", 10)),
            amount if self.spendable(from) < amount => TOO_MUCH,
            _ => Ok(()),
        };
        if self.send(&message, expect)? {
            self.moved(from, to, amount);
        }
        Ok(())
    }

    fn end_block(&mut self) {
        for module in MODULES {
            (module.end_block)(&mut self.ctx, &mut self.state).unwrap();
        }
        let now = self.now();
        // All that is due of a pair is paid as one.
        let (due, waiting) = std::mem::take(&mut self.unbonding).into_iter().partition(|(_, _, due)| *due <= now);
        self.unbonding = waiting;
        let mut paid: BTreeMap<u8, u128> = BTreeMap::new();
        let due: Vec<(u8, u128, u64)> = due;
        due.iter().for_each(|(n, amount, _)| *paid.entry(*n).or_default() += amount);
        for (n, amount) in paid {
            let person = self.people.get_mut(&n).unwrap();
            let free = person.free_stake.min(amount);
            person.free_stake -= free;
            person.locked_stake -= (amount - free).min(person.locked_stake);
            person.held += amount;
        }
        let height = self.ctx.height + 1;
        self.ctx = Context::new(CHAIN, height, time(height), 1_000_000);
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        for n in 1..=ALL {
            let person = self.person(n);
            let held = bank::balance(&self.state, account(n)).0;
            prop_assert_eq!(held, person.held, "account {}: {:?}", n, person);
            let locked = vesting::locked(&self.state, &account(n), self.ctx.time).0;
            let expected = person.unvested(self.now()).saturating_sub(person.locked_stake);
            prop_assert_eq!(locked, expected, "account {} at {}: {:?}", n, self.now(), person);
        }
        bank::scan(&self.state).unwrap();
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps do what the model does.
    #[test]
    fn money_that_vests_agrees_with_the_model(steps in proptest::collection::vec(step(), 500)) {
        let mut run = Run::new();
        for step in &steps {
            run.apply(step)?;
        }
        let vesting = run.people.values().filter(|person| person.schedule.is_some()).count();
        prop_assert!(vesting > 0, "no account that vests in {:?}", run.seen);
        for kind in ["MsgSend", "MsgMultiSend", "MsgDelegate", "MsgUndelegate", "refused"] {
            prop_assert!(run.seen.contains_key(kind), "no {} in {:?}", kind, run.seen);
        }
        println!("{:?}", run.seen);
    }
}
