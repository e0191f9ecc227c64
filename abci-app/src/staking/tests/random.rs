//! Staking, distribution and slashing together, in random blocks of random messages, absences and double signatures,
//! against an obvious model ([`model`]) that shares no code with them.

mod compare;
mod model;

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgSetWithdrawAddress, MsgWithdrawDelegatorReward, MsgWithdrawValidatorCommission, QueryValidatorCommissionRequest,
};
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::MsgUnjail;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    self as proto, MsgBeginRedelegate, MsgCancelUnbondingDelegation, MsgDelegate, MsgUndelegate,
};
use polylink_protocol::{Amount, DENOM, Dec};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::context::Misbehavior;
use crate::error::TxError;
use crate::modules::{Answer, Handle};
use crate::tests::bed::*;
use crate::tests::number::{Number, of, places};
use crate::{bank, staking};
use model::{Entry, Model, Status, Validator};

/// What may happen. Parts of stake are in percent; over 100 asks for more than there is.
#[derive(Clone, Debug)]
enum Step {
    Delegate {
        by: u8,
        to: u8,
        amount: u128,
    },
    Undelegate {
        by: u8,
        from: u8,
        percent: u128,
    },
    Redelegate {
        by: u8,
        from: u8,
        to: u8,
        percent: u128,
    },
    /// The unbonding entry of this number, or one that is not there.
    Cancel {
        entry: usize,
        percent: u128,
    },
    Withdraw {
        by: u8,
        from: u8,
    },
    Commission {
        by: u8,
    },
    Unjail {
        by: u8,
    },
    Create {
        by: u8,
        amount: u128,
    },
    Absent {
        who: u8,
        absent: bool,
    },
    DoubleSign {
        who: u8,
        back: u64,
    },
    Blocks(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let by = || 1..=ACCOUNTS;
    let operator = || OPERATORS;
    let percent = || prop_oneof![Just(100_u128), Just(150_u128), 1..100_u128, 1..30_u128];
    let amount = || prop_oneof![1..100_u128, 1..2_000 * PLK, Just(500 * PLK)];
    prop_oneof![
        5 => (by(), operator(), amount()).prop_map(|(by, to, amount)| Step::Delegate { by, to, amount }),
        4 => (by(), operator(), percent()).prop_map(|(by, from, percent)| Step::Undelegate { by, from, percent }),
        4 => (by(), operator(), operator(), percent())
            .prop_map(|(by, from, to, percent)| Step::Redelegate { by, from, to, percent }),
        3 => (0..6_usize, percent()).prop_map(|(entry, percent)| Step::Cancel { entry, percent }),
        2 => (by(), operator()).prop_map(|(by, from)| Step::Withdraw { by, from }),
        1 => operator().prop_map(|by| Step::Commission { by }),
        2 => operator().prop_map(|by| Step::Unjail { by }),
        1 => (operator(), amount()).prop_map(|(by, amount)| Step::Create { by, amount }),
        2 => (operator(), prop::bool::ANY).prop_map(|(who, absent)| Step::Absent { who, absent }),
        // Two of the four, so that the others keep the chain alive.
        1 => (4..=5_u8, 0..5_u64).prop_map(|(who, back)| Step::DoubleSign { who, back }),
        6 => (1..4_u64).prop_map(Step::Blocks),
    ]
}

/// What the model foretells of a message. A refusal has the codes that may come.
enum Expect {
    Ok,
    Refused(&'static [(&'static str, u32)]),
}

struct Run {
    bed: Bed,
    model: Model,
    /// What each account's balance should be.
    free: BTreeMap<u8, i128>,
    /// What is remembered of the key of a validator that is gone.
    keys: BTreeMap<u8, Validator>,
    /// Messages of this block: each may have rounded a reward.
    messages: usize,
    /// How often each kind of thing happened, so that a test that tests nothing is seen.
    pub seen: BTreeMap<&'static str, usize>,
}

fn number(text: &str) -> f64 {
    text.parse().unwrap()
}

impl Run {
    fn new() -> Self {
        let mut run = Run {
            bed: Bed::new(),
            model: Model::new(),
            free: (1..=ACCOUNTS).map(|n| (n, FUNDS as i128)).collect(),
            keys: BTreeMap::new(),
            messages: 0,
            seen: BTreeMap::new(),
        };
        for n in OPERATORS {
            *run.free.get_mut(&n).unwrap() -= i128::from(n) * 1_000_000_000 + 1;
        }
        run.model.begin(&Default::default(), 1, run.now());
        for n in 1..=ACCOUNTS {
            let message =
                MsgSetWithdrawAddress { delegator_address: account(n).account(), withdraw_address: purse(n).account() };
            run.bed.send(&message).unwrap();
        }
        run
    }

    fn height(&self) -> u64 {
        self.bed.ctx.height
    }

    fn now(&self) -> u64 {
        self.bed.ctx.time.seconds.unsigned_abs()
    }

    fn validator(&self, n: u8) -> Option<proto::Validator> {
        staking::validator(&self.bed.state, &account(n))
    }

    fn shares(&self, by: u8, of: u8) -> Option<Dec> {
        staking::delegation(&self.bed.state, &account(by), &account(of))
    }

    /// Whether a delegation's shares reach for an amount. The last decimal decides: its worth is shown rounded, and what
    /// many have left of it in last decimals may be worth whole tokens.
    fn reaches(&self, by: u8, from: u8, amount: u128) -> bool {
        let Some((validator, held)) = self.validator(from).zip(self.shares(by, from)) else { return false };
        let exact = |text: &str| text.parse::<Number>().unwrap();
        let (tokens, all) = (exact(&validator.tokens), exact(&validator.delegator_shares));
        tokens > places(0) && all * places(amount) / tokens <= of(held)
    }

    fn send<M: Handle>(&mut self, message: &M, expect: &Expect) -> Result<Option<M::Response>, TestCaseError> {
        self.messages += 1;
        let result: Result<M::Response, TxError> = self.bed.send(message);
        *self.seen.entry(if result.is_ok() { M::NAME } else { "refused" }).or_default() += 1;
        match (result, expect) {
            (Ok(response), Expect::Ok) => Ok(Some(response)),
            (Err(error), Expect::Ok) => Err(TestCaseError::fail(format!("{message:?} was refused: {error}"))),
            (Err(error), Expect::Refused(codes)) => {
                prop_assert!(codes.contains(&error.code()), "{message:?}: {:?}, not {codes:?}: {error}", error.code());
                Ok(None)
            }
            (Ok(_), Expect::Refused(codes)) => {
                Err(TestCaseError::fail(format!("{message:?} was taken, not {codes:?}")))
            }
        }
    }

    /// Whether a validator with power is left when an amount goes from `from` to another validator or to nobody, and a
    /// jailing of `from` is decided; or there was none.
    fn power_is_left(&self, by: u8, from: u8, to: Option<u8>, amount: f64) -> bool {
        let mut before = self.model.validators.values();
        if !before.any(|validator| !validator.jailed && validator.tokens >= 1e6) {
            return true;
        }
        self.model.validators.iter().any(|(n, validator)| {
            let mut tokens = validator.tokens;
            let mut jailed = validator.jailed;
            if *n == from {
                tokens -= amount;
                jailed |= by == from && validator.worth(by) - amount < 1.0;
            }
            if Some(*n) == to {
                tokens += amount;
            }
            !jailed && tokens >= 1e6
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let account_of = |n: u8| account(n).account();
        let valoper = |n: u8| account(n).valoper();
        match *step {
            Step::Delegate { by, to, amount } => {
                let message = MsgDelegate {
                    delegator_address: account_of(by),
                    validator_address: valoper(to),
                    amount: coin(amount),
                };
                let expect = match self.model.validators.get(&to) {
                    None => Expect::Refused(&[("staking", 3)]),
                    Some(validator) if validator.tokens < 0.5 && validator.all() > 0.0 => {
                        Expect::Refused(&[("staking", 34)])
                    }
                    Some(_) => Expect::Ok,
                };
                if self.send(&message, &expect)?.is_some() {
                    self.model.delegate(by, to, amount as f64);
                    *self.free.get_mut(&by).unwrap() -= amount as i128;
                }
            }
            Step::Undelegate { by, from, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let message = MsgUndelegate {
                    delegator_address: account_of(by),
                    validator_address: valoper(from),
                    amount: coin(amount),
                };
                let expect = if amount == 0 || !self.reaches(by, from, amount) {
                    Expect::Refused(&[("sdk", 18)])
                } else if self.model.entries_of(by, from, None).len() >= ENTRIES_MAX {
                    Expect::Refused(&[("staking", 27)])
                } else if !self.power_is_left(by, from, None, amount as f64) {
                    Expect::Refused(&[("staking", 100)])
                } else {
                    Expect::Ok
                };
                let Some(response) = self.send(&message, &expect)? else { return self.compare_stake() };
                let paid = number(&response.amount.unwrap().amount);
                self.model.unbond(by, from, amount as f64, paid);
                let (height, due) = (self.height(), self.now() + UNBONDING);
                let same = |e: &&mut Entry| (e.delegator, e.from, e.to, e.height) == (by, from, None, height);
                match self.model.entries.iter_mut().find(same) {
                    Some(entry) => {
                        entry.initial += paid;
                        entry.left += paid;
                    }
                    None => {
                        let entry = Entry { delegator: by, from, to: None, height, due, initial: paid, left: paid };
                        self.model.entries.push(entry);
                    }
                }
            }
            Step::Redelegate { by, from, to, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let message = MsgBeginRedelegate {
                    delegator_address: account_of(by),
                    validator_src_address: valoper(from),
                    validator_dst_address: valoper(to),
                    amount: coin(amount),
                };
                let receiving = self.model.entries.iter().any(|e| (e.delegator, e.to) == (by, Some(from)));
                let expect = if amount == 0 || !self.reaches(by, from, amount) {
                    Expect::Refused(&[("sdk", 18), ("staking", 3)])
                } else if from == to {
                    Expect::Refused(&[("staking", 29)])
                } else if !self.model.validators.contains_key(&to) {
                    Expect::Refused(&[("staking", 3)])
                } else if receiving {
                    Expect::Refused(&[("staking", 32)])
                } else if self.model.entries_of(by, from, Some(to)).len() >= ENTRIES_MAX {
                    Expect::Refused(&[("staking", 33)])
                } else if self.model.validators[&to].tokens < 0.5 && self.model.validators[&to].all() > 0.0 {
                    Expect::Refused(&[("staking", 34), ("staking", 100)])
                } else if !self.power_is_left(by, from, Some(to), amount as f64) {
                    Expect::Refused(&[("staking", 100)])
                } else {
                    Expect::Ok
                };
                // One micro-unit may be worth none after a slash.
                let tiny = amount <= 1;
                let before = self.validator(from).map_or(0.0, |validator| number(&validator.tokens));
                let result = if tiny && matches!(expect, Expect::Ok) {
                    self.bed.send(&message).ok()
                } else {
                    self.send(&message, &expect)?
                };
                if result.is_none() {
                    return self.compare_stake();
                }
                let paid = before - self.validator(from).map_or(0.0, |validator| number(&validator.tokens));
                let source = self.model.validators[&from].status;
                self.model.unbond(by, from, amount as f64, paid);
                let left = self.model.delegate(by, to, paid);
                let liability = match source {
                    Status::Unbonded => None,
                    Status::Unbonding(height, due) => Some((height, due)),
                    Status::Bonded => Some((self.height(), self.now() + UNBONDING)),
                };
                if let Some((height, due)) = liability {
                    self.model.entries.push(Entry {
                        delegator: by,
                        from,
                        to: Some(to),
                        height,
                        due,
                        initial: paid,
                        left,
                    });
                }
            }
            Step::Cancel { entry, percent } => {
                let chosen = self.model.entries.iter().filter(|entry| entry.to.is_none()).nth(entry);
                let (by, from) = chosen.map_or((1, 4), |entry| (entry.delegator, entry.from));
                let oldest =
                    self.model.entries_of(by, from, None).first().map(|entry| (entry.height, entry.left as u128));
                let (height, left) = oldest.unwrap_or((1, 10));
                let amount = left * percent / 100;
                let message = MsgCancelUnbondingDelegation {
                    delegator_address: account_of(by),
                    validator_address: valoper(from),
                    amount: coin(amount),
                    creation_height: height as i64,
                };
                let expect = match self.model.validators.get(&from) {
                    _ if amount == 0 => Expect::Refused(&[("sdk", 18)]),
                    None => Expect::Refused(&[("staking", 3)]),
                    Some(validator) if validator.tokens < 0.5 && validator.all() > 0.0 => {
                        Expect::Refused(&[("staking", 34)])
                    }
                    Some(validator) if validator.jailed => Expect::Refused(&[("staking", 7)]),
                    Some(_) if oldest.is_none() => Expect::Refused(&[("sdk", 38)]),
                    Some(_) if amount > left => Expect::Refused(&[("sdk", 18)]),
                    Some(_) => Expect::Ok,
                };
                if self.send(&message, &expect)?.is_some() {
                    self.model.delegate(by, from, amount as f64);
                    let same = |e: &&mut Entry| (e.delegator, e.from, e.to, e.height) == (by, from, None, height);
                    let entry = self.model.entries.iter_mut().find(same).unwrap();
                    entry.left -= amount as f64;
                    entry.initial -= amount as f64;
                    let done = entry.left == 0.0;
                    self.model
                        .entries
                        .retain(|e| !done || (e.delegator, e.from, e.to, e.height) != (by, from, None, height));
                }
            }
            Step::Withdraw { by, from } => {
                let message =
                    MsgWithdrawDelegatorReward { delegator_address: account_of(by), validator_address: valoper(from) };
                let expect = match (self.model.validators.contains_key(&from), self.shares(by, from)) {
                    (false, _) => Expect::Refused(&[("distribution", 6)]),
                    (true, None) => Expect::Refused(&[("distribution", 5)]),
                    (true, Some(_)) => Expect::Ok,
                };
                self.send(&message, &expect)?;
            }
            Step::Commission { by } => {
                let message = MsgWithdrawValidatorCommission { validator_address: valoper(by) };
                let request = QueryValidatorCommissionRequest { validator_address: valoper(by) };
                let owed = request.answer(&self.bed.query(), &self.bed.state).ok().and_then(|answer| answer.commission);
                let owed = owed.is_some_and(|owed| !owed.commission.is_empty());
                self.send(&message, if owed { &Expect::Ok } else { &Expect::Refused(&[("distribution", 7)]) })?;
            }
            Step::Unjail { by } => {
                let message = MsgUnjail { validator_addr: valoper(by) };
                let expect = match self.model.validators.get(&by) {
                    None => Expect::Refused(&[("slashing", 2)]),
                    Some(_) if self.shares(by, by).is_none() => Expect::Refused(&[("slashing", 6)]),
                    Some(_) if self.bed.worth(by, by) < 1 => Expect::Refused(&[("slashing", 7)]),
                    Some(validator) if !validator.jailed => Expect::Refused(&[("slashing", 5)]),
                    Some(validator) if validator.tombstoned || validator.jailed_until > self.now() as i64 => {
                        Expect::Refused(&[("slashing", 4)])
                    }
                    Some(_) => Expect::Ok,
                };
                if self.send(&message, &expect)?.is_some() {
                    self.model.validators.get_mut(&by).unwrap().jailed = false;
                }
            }
            Step::Create { by, amount } => {
                let message = create_validator(by, amount);
                let there = self.model.validators.contains_key(&by);
                let expect = if there { Expect::Refused(&[("staking", 4)]) } else { Expect::Ok };
                if self.send(&message, &expect)?.is_some() {
                    let known = self.keys.remove(&by).unwrap();
                    let shares = BTreeMap::from([(by, amount as f64)]);
                    let fresh = Validator {
                        tokens: amount as f64,
                        shares,
                        status: Status::Unbonded,
                        jailed: false,
                        dust: 0.0,
                        ..known
                    };
                    self.model.validators.insert(by, fresh);
                    *self.free.get_mut(&by).unwrap() -= amount as i128;
                }
            }
            Step::Absent { who, absent } => {
                // Somebody must sign, or there is no block.
                if absent && self.bed.absent.is_empty() {
                    self.bed.absent.insert(consensus(who));
                } else if !absent {
                    self.bed.absent.remove(&consensus(who));
                }
            }
            Step::DoubleSign { who, back } => {
                let height = self.height().saturating_sub(back).max(1);
                if let Some(power) = self.bed.signed[&height].get(&consensus(who)) {
                    *self.seen.entry("double signatures").or_default() += 1;
                    let (validator, time) = (consensus(who), self.bed.ctx.time);
                    self.bed.misbehavior.push(Misbehavior { validator, power: *power, height, time });
                }
            }
            Step::Blocks(blocks) => {
                for _ in 0..blocks {
                    self.block()?;
                }
            }
        }
        self.compare_stake()
    }
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.apply(step)?;
    }
    run.block()?;
    Ok(run)
}

/// Random sequences of 500 steps.
fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// They do what the model does, and the same steps give the same state.
    #[test]
    fn stake_rewards_and_slashes_agree_with_the_model(steps in sequences()) {
        let first = run(&steps)?;
        let second = run(&steps)?;
        prop_assert_eq!(&first.bed.state.0, &second.bed.state.0);
        println!("{:?}, {} blocks, supply {}", first.seen, first.height(), bank::supply(&first.bed.state, DENOM));
    }
}

/// Each of them does some of everything that matters. They are drawn with the same seed every time: how seldom a kind of
/// step succeeds by chance is no matter of the ledger's.
#[test]
fn sequences_do_some_of_everything() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        let seen = run(&sequences().new_tree(&mut runner).unwrap().current()).unwrap().seen;
        for kind in
            ["MsgDelegate", "MsgUndelegate", "MsgBeginRedelegate", "MsgWithdrawDelegatorReward", "slashes", "refused"]
        {
            assert!(seen.contains_key(kind), "no {kind} in {seen:?}");
        }
    }
}

/// What a leaver's rounding leaves is worth something to who stays, and earns nothing: rewards are for what a delegation was
/// worth when it began. That is much where little is left, and the validator still has the votes of those that left.
#[test]
fn what_roundings_leave_earns_nothing() {
    for amount in 100..116 {
        run(&[
            Step::Delegate { by: 1, to: 5, amount },
            Step::Blocks(3),
            Step::DoubleSign { who: 5, back: 0 },
            Step::Blocks(1),
            Step::Undelegate { by: 5, from: 5, percent: 100 },
            Step::Blocks(4),
        ])
        .unwrap_or_else(|error| panic!("{amount}: {error}"));
    }
}

#[test]
fn amounts_of_the_model_are_those_of_the_ledger_at_its_begin() {
    let mut run = Run::new();
    assert_eq!(run.bed.worth(7, 7), 7_000_000_001);
    assert_eq!(bank::balance(&run.bed.state, account(7)), Amount(FUNDS - 7_000_000_001));
    run.compare_stake().unwrap();
}
