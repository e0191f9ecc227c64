//! The distribution beside the exact model of stake and rewards ([`Book`]), in random blocks with random fees and votes, to
//! the last decimal: withdrawals, commissions and their changes, slashes with all that they take, redelegations, other
//! addresses, the community pool.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::base::v1beta1::DecCoin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgCommunityPoolSpend, MsgFundCommunityPool, MsgSetWithdrawAddress, MsgUpdateParams, MsgWithdrawDelegatorReward,
    MsgWithdrawValidatorCommission, QueryDelegationRewardsRequest, QueryDelegationTotalRewardsRequest,
    QueryParamsRequest,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, Description, MsgBeginRedelegate, MsgDelegate, MsgEditValidator, MsgUndelegate,
};
use polylink_protocol::{Address, Amount, DENOM, Dec};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::bank::{self, Pool};
use crate::context::Vote;
use crate::distribution::{HISTORICAL, SLASH, records};
use crate::modules::{Answer, Handle};
use crate::store::{KeyBuilder, StateRead};
use crate::tests::bed::*;
use crate::tests::book::{Book, Status};
use crate::tests::number::{Number, ONE, floor, of, places, times, whole};
use crate::{gov, staking};

/// Blocks are three hours apart, so that commissions change within a run.
const SECONDS: u64 = 3 * 3_600;
const UNBONDING_SECONDS: u64 = 2 * 24 * 3_600;
/// An operator that nobody else knows, so that there always is one with power.
const GUARDIAN: u8 = 9;

/// What may happen. Parts of stake are in percent.
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
    Withdraw {
        by: u8,
        from: u8,
    },
    Commission {
        by: u8,
    },
    Address {
        by: u8,
        to: u8,
    },
    Fund {
        by: u8,
        amount: u128,
    },
    Spend {
        to: u8,
        percent: u128,
    },
    Tax {
        bps: u32,
    },
    Rate {
        by: u8,
        bps: u32,
    },
    Create {
        by: u8,
        amount: u128,
    },
    Unjail {
        who: u8,
    },
    /// In the begin of a block: a fraction of the power of so many blocks ago, in a thousand.
    Slash {
        who: u8,
        back: u64,
        power: u128,
        thousandths: u32,
    },
    /// So many blocks with these fees, by validators with these votes; the fifth is one that nobody knows.
    Blocks {
        blocks: u64,
        fees: u128,
        votes: [u64; 5],
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (by, operator) = (|| 1..=ACCOUNTS, || OPERATORS);
    let percent = || prop_oneof![2 => Just(100_u128), 1 => Just(101_u128), 4 => 1..100_u128];
    let amount = || prop_oneof![1..100_u128, 1..2_000 * PLK, Just(500 * PLK)];
    let votes = || prop_oneof![Just(0_u64), 1..5_u64, 1..1_000_000_u64];
    let votes = move || [votes(), votes(), votes(), votes(), votes()];
    prop_oneof![
        5 => (by(), operator(), amount()).prop_map(|(by, to, amount)| Step::Delegate { by, to, amount }),
        3 => (by(), operator(), percent()).prop_map(|(by, from, percent)| Step::Undelegate { by, from, percent }),
        4 => (by(), operator(), operator(), percent())
            .prop_map(|(by, from, to, percent)| Step::Redelegate { by, from, to, percent }),
        4 => (by(), operator()).prop_map(|(by, from)| Step::Withdraw { by, from }),
        2 => operator().prop_map(|by| Step::Commission { by }),
        1 => (by(), 0..=ACCOUNTS).prop_map(|(by, to)| Step::Address { by, to }),
        1 => (by(), amount()).prop_map(|(by, amount)| Step::Fund { by, amount }),
        1 => (by(), 1..130_u128).prop_map(|(to, percent)| Step::Spend { to, percent }),
        // Where everything is taxed, nobody earns anything.
        1 => prop_oneof![5 => 0..3_000_u32, 1 => 0..=10_000_u32, 1 => Just(10_000)].prop_map(|bps| Step::Tax { bps }),
        2 => (operator(), 0..2_000_u32).prop_map(|(by, bps)| Step::Rate { by, bps }),
        1 => (operator(), amount()).prop_map(|(by, amount)| Step::Create { by, amount }),
        2 => operator().prop_map(|who| Step::Unjail { who }),
        // Seldom much: shares of a validator that has lost everything can neither move nor be added to ever again.
        2 => (operator(), 0..20_u64, 0..9_000_u128, prop_oneof![9 => 1..100_u32, 1 => 1..=1_000_u32])
            .prop_map(|(who, back, power, thousandths)| Step::Slash { who, back, power, thousandths }),
        6 => (1..4_u64, prop_oneof![Just(0_u128), 1..50_u128, 1..2_000_000_000_u128], votes())
            .prop_map(|(blocks, fees, votes)| Step::Blocks { blocks, fees, votes }),
    ]
}

fn bps(bps: u32) -> Number {
    places(u128::from(bps) * ONE / 10_000)
}

fn rate(n: u8) -> Number {
    bps(commission_bps(n))
}

struct Run {
    bed: Bed,
    book: Book,
    tax: Number,
    /// The fees that the next block shares out.
    collected: u128,
    /// What each account has spent of what it had.
    spent: BTreeMap<u8, u128>,
    seen: BTreeMap<&'static str, usize>,
}

impl Run {
    fn new() -> Self {
        let bed = Bed::with(SECONDS, |genesis| {
            genesis.staking.unbonding_seconds = UNBONDING_SECONDS;
            genesis.staking.max_validators = 10;
            genesis.staking.max_entries = 7;
            *genesis = std::mem::take(genesis).with_account(&account(GUARDIAN), Amount(FUNDS));
            let key = consensus_key(GUARDIAN);
            genesis.staking.validators.push(staking::GenesisValidator::new(&account(GUARDIAN), &key, Amount(PLK)));
        });
        let mut book = Book::new(10, UNBONDING_SECONDS, 1_700_000_000);
        let mut spent = BTreeMap::new();
        for n in OPERATORS {
            let amount = u128::from(n) * 1_000 * PLK + 1;
            book.create(n, amount, rate(n));
            spent.insert(n, amount);
        }
        book.create(GUARDIAN, PLK, bps(1_000));
        book.choose();
        let tax = bps(200);
        let mut run = Run { collected: FEES, bed, book, tax, spent, seen: BTreeMap::new() };
        run.clock();
        run
    }

    fn clock(&mut self) {
        self.book.height = self.bed.ctx.height;
        self.book.now = self.bed.ctx.time.seconds.unsigned_abs();
    }

    fn block(&mut self, fees: u128, votes: [u64; 5]) -> Result<(), TestCaseError> {
        self.bed.end();
        self.book.end();
        self.compare()?;
        let voters: Vec<u8> = OPERATORS.chain([77]).collect();
        let votes = voters.into_iter().zip(votes).filter(|(_, power)| *power > 0);
        let votes: Vec<(u8, u64)> = votes.collect();
        let vote = |(n, power): &(u8, u64)| Vote { validator: consensus(*n), power: *power, signed: true };
        self.bed.votes = Some(votes.iter().map(vote).collect());
        self.bed.fees = fees;
        self.bed.begin();
        self.clock();
        // Each of those that are there by its votes; what is left is everybody's.
        let shared = times(whole(self.collected), whole(1) - self.tax);
        let all: u64 = votes.iter().map(|(_, power)| power).sum();
        let mut rest = whole(self.collected);
        for (n, power) in votes {
            let reward = times(shared, places(power.into()) * places(ONE) / places(all.into()));
            if self.book.validators.contains_key(&n) {
                self.book.earn(n, reward);
                rest -= reward;
            }
        }
        self.book.community += rest;
        self.collected = fees;
        Ok(())
    }

    /// A message that staking may refuse for reasons of its own.
    fn taken<M: Handle>(&mut self, message: &M) -> bool {
        let taken = self.bed.send(message).is_ok();
        *self.seen.entry(if taken { M::NAME } else { "refused" }).or_default() += 1;
        taken
    }

    /// A message whose refusal is foretold.
    fn sent<M: Handle>(&mut self, message: &M, refused: Option<(&'static str, u32)>) -> Result<bool, TestCaseError> {
        let result = self.bed.send(message).map_err(|error| error.code());
        *self.seen.entry(if result.is_ok() { M::NAME } else { "refused" }).or_default() += 1;
        prop_assert_eq!(result.as_ref().err(), refused.as_ref(), "{:?}", message);
        Ok(result.is_ok())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (name, valoper) = (|n: u8| account(n).account(), |n: u8| account(n).valoper());
        match *step {
            Step::Delegate { by, to, amount } => {
                let (delegator_address, validator_address) = (name(by), valoper(to));
                if self.taken(&MsgDelegate { delegator_address, validator_address, amount: coin(amount) }) {
                    self.book.delegate(by, to, amount);
                    *self.spent.entry(by).or_default() += amount;
                }
            }
            Step::Undelegate { by, from, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let (delegator_address, validator_address) = (name(by), valoper(from));
                if self.taken(&MsgUndelegate { delegator_address, validator_address, amount: coin(amount) }) {
                    self.book.undelegate(by, from, amount);
                }
            }
            Step::Redelegate { by, from, to, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let message = MsgBeginRedelegate {
                    delegator_address: name(by),
                    validator_src_address: valoper(from),
                    validator_dst_address: valoper(to),
                    amount: coin(amount),
                };
                if self.taken(&message) {
                    self.book.redelegate(by, from, to, amount);
                }
            }
            Step::Withdraw { by, from } => {
                let validator = self.book.validators.get(&from);
                let refused = match validator {
                    None => Some(("distribution", 6)),
                    Some(validator) if !validator.shares.contains_key(&by) => Some(("distribution", 5)),
                    Some(_) => None,
                };
                let (delegator_address, validator_address) = (name(by), valoper(from));
                if self.sent(&MsgWithdrawDelegatorReward { delegator_address, validator_address }, refused)? {
                    self.book.withdraw(by, from);
                }
            }
            Step::Commission { by } => {
                let there = self.book.validators.get(&by).is_some_and(|validator| validator.commission > places(0));
                let refused = (!there).then_some(("distribution", 7));
                if self.sent(&MsgWithdrawValidatorCommission { validator_address: valoper(by) }, refused)? {
                    self.book.withdraw_commission(by);
                }
            }
            Step::Address { by, to } => {
                // Nobody may send rewards to a pool.
                let address = if to == 0 { Pool::Distribution.address() } else { purse(to) };
                let message =
                    MsgSetWithdrawAddress { delegator_address: name(by), withdraw_address: address.account() };
                if self.sent(&message, (to == 0).then_some(("sdk", 4)))? {
                    self.book.purses.insert(by, address);
                }
            }
            Step::Fund { by, amount } => {
                self.sent(
                    &MsgFundCommunityPool { depositor: name(by), amount: coin(amount).into_iter().collect() },
                    None,
                )?;
                self.book.community += whole(amount);
                *self.spent.entry(by).or_default() += amount;
            }
            Step::Spend { to, percent } => {
                let amount = floor(self.book.community) * percent / 100;
                let message = MsgCommunityPoolSpend {
                    authority: gov::authority().account(),
                    recipient: name(to),
                    amount: coin(amount).into_iter().collect(),
                };
                let refused = match amount {
                    0 => Some(("sdk", 10)),
                    _ => (whole(amount) > self.book.community).then_some(("distribution", 9)),
                };
                if self.sent(&message, refused)? {
                    self.book.community -= whole(amount);
                    *self.book.paid.entry(account(to)).or_default() += amount;
                }
            }
            Step::Tax { bps } => {
                let mut params =
                    QueryParamsRequest {}.answer(&self.bed.query(), &self.bed.state).unwrap().params.unwrap();
                params.community_tax = self::bps(bps).to_string();
                let authority = gov::authority().account();
                self.sent(&MsgUpdateParams { authority, params: Some(params) }, None)?;
                self.tax = self::bps(bps);
            }
            Step::Rate { by, bps } => {
                let rate = self::bps(bps);
                let message = MsgEditValidator {
                    description: Some(Description { moniker: "other".into(), ..Default::default() }),
                    validator_address: valoper(by),
                    commission_rate: rate.to_string(),
                    min_self_delegation: String::new(),
                };
                if self.taken(&message) {
                    self.book.validators.get_mut(&by).unwrap().rate = rate;
                }
            }
            Step::Create { by, amount } => {
                if self.taken(&create_validator(by, amount)) {
                    self.book.create(by, amount, rate(by));
                    *self.spent.entry(by).or_default() += amount;
                }
            }
            Step::Unjail { who } => {
                staking::unjail(&mut self.bed.state, &account(who));
                if let Some(validator) = self.book.validators.get_mut(&who) {
                    validator.jailed = false;
                }
            }
            Step::Slash { who, back, power, thousandths } => {
                self.block(7, [1, 0, 2, 0, 0])?;
                let since = self.bed.ctx.height as i64 - back as i64;
                let votes = u64::try_from(power).unwrap();
                let part = u128::from(thousandths) * ONE / 1_000;
                let (operator, fraction) = (account(who), Dec::from_atomics(part));
                let (ctx, state) = (&mut self.bed.ctx, &mut self.bed.state);
                let burned = staking::slash(ctx, state, &operator, since, votes, fraction).unwrap();
                let expected = self.book.slash(who, since, power, places(part));
                prop_assert_eq!(burned.0, expected, "{:?}", step);
                *self.seen.entry("slashes").or_default() += usize::from(expected > 0);
            }
            Step::Blocks { blocks, fees, votes } => {
                for _ in 0..blocks {
                    self.block(fees, votes)?;
                }
            }
        }
        self.compare()
    }

    /// Everything, to the last decimal.
    fn compare(&self) -> Result<(), TestCaseError> {
        let state = &self.bed.state;
        for n in OPERATORS.chain([GUARDIAN]) {
            let operator = account(n);
            let rows = |prefix: u8| {
                state.iter_prefix(&KeyBuilder::new(prefix).bytes(&operator.0).finish()).collect::<Vec<_>>()
            };
            let found = staking::validator(state, &operator);
            let (Some(found), Some(expected)) = (&found, self.book.validators.get(&n)) else {
                prop_assert!(found.is_none() && !self.book.validators.contains_key(&n), "validator {}", n);
                prop_assert!(rows(HISTORICAL).is_empty() && rows(SLASH).is_empty());
                continue;
            };
            prop_assert_eq!(&found.tokens, &expected.tokens.to_string(), "tokens of {}", n);
            prop_assert_eq!(&found.delegator_shares, &expected.all.to_string(), "shares of {}", n);
            let status = match expected.status {
                Status::Bonded => BondStatus::Bonded,
                Status::Unbonding(..) => BondStatus::Unbonding,
                Status::Unbonded => BondStatus::Unbonded,
            };
            prop_assert_eq!((found.status(), found.jailed), (status, expected.jailed), "{}", n);
            prop_assert_eq!(of(records::commission(state, &operator)), expected.commission, "commission of {}", n);
            prop_assert_eq!(of(records::outstanding(state, &operator)), expected.outstanding, "outstanding of {}", n);
            let current = records::current(state, &operator).unwrap();
            prop_assert_eq!(of(current.rewards), expected.running, "running rewards of {}", n);
            for by in 1..=ACCOUNTS {
                let held = staking::delegation(state, &account(by), &operator).map(of);
                prop_assert_eq!(held, expected.shares.get(&by).copied(), "shares of {} in {}", by, n);
                let (delegator_address, validator_address) = (account(by).account(), operator.valoper());
                let request = QueryDelegationRewardsRequest { delegator_address, validator_address };
                let pending = request.answer(&self.bed.query(), state).ok().map(|answer| sum(&answer.rewards));
                prop_assert_eq!(pending, held.map(|_| self.book.pending(by, n)), "rewards of {} from {}", by, n);
            }
            // What is remembered of old periods is what something begins with.
            prop_assert_eq!(rows(SLASH).len(), expected.slashes);
            let periods = rows(HISTORICAL);
            let references = periods.iter().map(|(_, value)| u32::from_be_bytes(value[32..].try_into().unwrap()));
            prop_assert_eq!(references.sum::<u32>() as usize, expected.shares.len() + expected.slashes + 1, "{}", n);
        }
        for by in 1..=ACCOUNTS {
            let request = QueryDelegationTotalRewardsRequest { delegator_address: account(by).account() };
            let shown = sum(&request.answer(&self.bed.query(), state).unwrap().total);
            let with = self.book.validators.iter().filter(|(_, validator)| validator.shares.contains_key(&by));
            let expected = with.fold(places(0), |sum, (n, _)| sum + self.book.pending(by, *n));
            prop_assert_eq!(shown, expected, "all rewards of {}", by);
            let paid = |address: Address| self.book.paid.get(&address).copied().unwrap_or(0);
            let left = FUNDS - self.spent.get(&by).copied().unwrap_or(0) + paid(account(by));
            prop_assert_eq!(bank::balance(state, account(by)).0, left, "balance of {}", by);
            prop_assert_eq!(bank::balance(state, purse(by)).0, paid(purse(by)), "purse of {}", by);
        }
        prop_assert_eq!(of(records::community_pool(state)), self.book.community, "community pool");
        prop_assert_eq!(bank::flows(state, DENOM).1.0, self.book.burned, "burned");
        Ok(())
    }
}

fn sum(coins: &[DecCoin]) -> Number {
    coins.iter().fold(places(0), |sum, coin| sum + coin.amount.parse::<Number>().unwrap())
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.apply(step)?;
    }
    run.block(0, [1; 5])?;
    Ok(run)
}

/// Random sequences of 500 steps.
fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// They earn and pay what the model says, to the last decimal, and the same steps give the same state.
    #[test]
    fn rewards_are_those_of_the_model(steps in sequences()) {
        let first = run(&steps)?;
        prop_assert_eq!(&first.bed.state.0, &run(&steps)?.bed.state.0);
        println!("{:?}, {} blocks", first.seen, first.bed.ctx.height);
    }
}

/// Each of them does enough of everything that matters. They are drawn with the same seed every time: how seldom a kind of
/// step succeeds by chance is no matter of the ledger's.
#[test]
fn sequences_do_some_of_everything() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        let run = run(&sequences().new_tree(&mut runner).unwrap().current()).unwrap();
        for kind in [
            "MsgDelegate",
            "MsgUndelegate",
            "MsgBeginRedelegate",
            "MsgWithdrawDelegatorReward",
            "refused",
            "slashes",
            "MsgWithdrawValidatorCommission",
            "MsgSetWithdrawAddress",
            "MsgCommunityPoolSpend",
            "MsgEditValidator",
        ] {
            let times = run.seen.get(kind).copied().unwrap_or(0);
            assert!(times >= 3, "{times} of {kind} in {:?}", run.seen);
        }
    }
}
