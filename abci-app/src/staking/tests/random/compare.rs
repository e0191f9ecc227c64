//! The ledger beside the model, piece by piece.

use polylink_protocol::cosmos::cosmos::base::v1beta1::DecCoin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    QueryDelegationTotalRewardsRequest, QueryValidatorCommissionRequest,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{BondStatus, QueryRedelegationsRequest, UnbondingDelegation};
use polylink_protocol::{Address, DENOM, Dec, Message};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::model::{Entry, Status};
use super::{Run, number};
use crate::modules::Answer;
use crate::store::StateRead;
use crate::tests::bed::*;
use crate::{bank, slashing, staking};

fn dec(value: Dec) -> f64 {
    value.to_string().parse().unwrap()
}

fn operator_of(valoper: &str) -> u8 {
    let address = Address::from_valoper(valoper).unwrap();
    (1..=ACCOUNTS).find(|n| account(*n) == address).unwrap()
}

impl Run {
    /// Ends a block and begins the next one.
    pub(super) fn block(&mut self) -> Result<(), TestCaseError> {
        self.bed.end();
        let paid = self.model.end(self.height(), self.now());
        for (n, amount) in paid {
            *self.free.get_mut(&n).unwrap() += amount as i128;
        }
        self.forget()?;
        self.compare_stake()?;
        self.compare_rewards()?;
        self.messages = 0;
        let commit = self.bed.commit();
        self.bed.begin();
        let (height, now) = (self.height(), self.now());
        self.model.begin(&commit, height, now);
        let (_, burned) = bank::flows(&self.bed.state, DENOM);
        let slack = 8.0 + self.model.entries.len() as f64;
        prop_assert!(
            (burned.0 as f64 - self.model.burned).abs() <= slack,
            "{burned} burned, not {}",
            self.model.burned
        );
        self.model.burned = burned.0 as f64;
        let slashed = self.bed.ctx.events.iter().filter(|event| event.kind == "slash").count();
        *self.seen.entry("slashes").or_default() += slashed;
        self.compare_stake()
    }

    /// Validators that nobody stands behind any more are gone as soon as they are unbonded.
    fn forget(&mut self) -> Result<(), TestCaseError> {
        let gone: Vec<u8> = self.model.validators.keys().copied().filter(|n| self.validator(*n).is_none()).collect();
        for n in gone {
            let validator = self.model.validators.remove(&n).unwrap();
            prop_assert!(validator.tokens < 2.0 && validator.status == Status::Unbonded, "{n} is gone: {validator:?}");
            self.keys.insert(n, validator);
            *self.seen.entry("forgotten").or_default() += 1;
        }
        Ok(())
    }

    /// Validators, delegations, entries and balances; the model goes on from the ledger's roundings.
    pub(super) fn compare_stake(&mut self) -> Result<(), TestCaseError> {
        self.forget()?;
        let state = &self.bed.state;
        for (n, model) in &mut self.model.validators {
            let found = staking::validator(state, &account(*n));
            prop_assert!(found.is_some(), "{n} is not there: {model:?}");
            let found = found.unwrap();
            let tokens = number(&found.tokens);
            prop_assert!((tokens - model.tokens).abs() <= 4.0, "{n} has {tokens}: {model:?}");
            model.tokens = tokens;
            let status = match found.status() {
                BondStatus::Bonded => Status::Bonded,
                BondStatus::Unbonding => {
                    let due = found.unbonding_time.as_ref().map_or(0, |time| time.seconds.unsigned_abs());
                    Status::Unbonding(found.unbonding_height.unsigned_abs(), due)
                }
                _ => Status::Unbonded,
            };
            prop_assert_eq!(status, model.status, "{}", n);
            // The model's shares are floating-point numbers: whether an operator's own stake is just below its minimum of one
            // is the ledger's to say.
            let on_edge = (model.worth(*n) - 1.0).abs() < 1e-5;
            prop_assert!(found.jailed == model.jailed || on_edge, "{n} is jailed: {}; {model:?}", found.jailed);
            model.jailed = found.jailed;
            let tombstoned = slashing::signing_info(state, &consensus(*n)).is_some_and(|info| info.tombstoned);
            prop_assert_eq!(tombstoned, model.tombstoned);
            for by in 1..=ACCOUNTS {
                let held = staking::delegation(state, &account(by), &account(*n));
                let (held, expected) = (held.map(dec), model.shares.get(&by).copied().unwrap_or(0.0));
                let off = (held.unwrap_or(0.0) - expected).abs();
                prop_assert!(off <= 4.0 + expected * 1e-9, "{by} has {held:?} of {n}: {model:?}");
                match held {
                    Some(held) => drop(model.shares.insert(by, held)),
                    None => drop(model.shares.remove(&by)),
                }
            }
        }
        for n in OPERATORS.filter(|n| !self.model.validators.contains_key(n)) {
            prop_assert!(self.validator(n).is_none());
        }
        self.compare_entries()?;
        for (n, free) in &self.free {
            prop_assert_eq!(bank::balance(&self.bed.state, account(*n)).0 as i128, *free, "account {}", n);
        }
        Ok(())
    }

    fn compare_entries(&mut self) -> Result<(), TestCaseError> {
        let mut found: Vec<Entry> = Vec::new();
        for (_, value) in self.bed.state.iter_prefix(&[staking::UNBONDING]) {
            let record = UnbondingDelegation::decode(value.as_slice()).unwrap();
            let delegator: Address = record.delegator_address.parse().unwrap();
            found.extend(record.entries.iter().map(|entry| Entry {
                delegator: delegator.0[0],
                from: operator_of(&record.validator_address),
                to: None,
                height: entry.creation_height.unsigned_abs(),
                due: entry.completion_time.as_ref().unwrap().seconds.unsigned_abs(),
                initial: number(&entry.initial_balance),
                left: number(&entry.balance),
            }));
        }
        for by in 1..=ACCOUNTS {
            let request = QueryRedelegationsRequest { delegator_addr: account(by).account(), ..Default::default() };
            let answer = request.answer(&self.bed.query(), &self.bed.state).unwrap();
            for row in answer.redelegation_responses {
                let record = row.redelegation.unwrap();
                found.extend(row.entries.into_iter().filter_map(|entry| entry.redelegation_entry).map(|entry| Entry {
                    delegator: by,
                    from: operator_of(&record.validator_src_address),
                    to: Some(operator_of(&record.validator_dst_address)),
                    height: entry.creation_height.unsigned_abs(),
                    due: entry.completion_time.as_ref().unwrap().seconds.unsigned_abs(),
                    initial: number(&entry.initial_balance),
                    left: dec(Dec::from_atomics_str(&entry.shares_dst).unwrap()),
                }));
            }
        }
        let key = |e: &Entry| (e.delegator, e.from, e.to, e.height, e.due, e.initial as u128);
        found.sort_by_key(key);
        // The query leaves out what was moved to a validator that is gone.
        let known = |e: &Entry| e.to.is_none_or(|to| self.model.validators.contains_key(&to));
        let (mut expected, hidden): (Vec<Entry>, Vec<Entry>) = self.model.entries.drain(..).partition(known);
        expected.sort_by_key(key);
        prop_assert_eq!(found.len(), expected.len(), "{:?} are there, not {:?}", &found, &expected);
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert_eq!(key(found), key(expected));
            prop_assert!(
                (found.left - expected.left).abs() <= 2.0 + expected.left * 1e-9,
                "{found:?}, not {expected:?}"
            );
        }
        self.model.entries = found;
        self.model.entries.extend(hidden);
        Ok(())
    }

    /// All that an account has earned: paid, pending, and commission.
    pub(super) fn compare_rewards(&mut self) -> Result<(), TestCaseError> {
        let query = self.bed.query();
        for n in 1..=ACCOUNTS {
            let request = QueryDelegationTotalRewardsRequest { delegator_address: account(n).account() };
            let atomics =
                |coins: &[DecCoin]| coins.first().map_or(0.0, |coin| dec(Dec::from_atomics_str(&coin.amount).unwrap()));
            let mut total = bank::balance(&self.bed.state, purse(n)).0 as f64;
            total += atomics(&request.answer(&query, &self.bed.state).unwrap().total);
            let request = QueryValidatorCommissionRequest { validator_address: account(n).valoper() };
            let commission = request.answer(&query, &self.bed.state).ok().and_then(|answer| answer.commission);
            total += commission.map_or(0.0, |commission| atomics(&commission.commission));
            let expected = self.model.earned.get(&n).copied().unwrap_or(0.0);
            let slack = 8.0 + 2.0 * self.messages as f64;
            let least = expected - self.model.loose.remove(&n).unwrap_or(0.0);
            let fits = total >= least - slack && total <= expected + slack;
            prop_assert!(fits, "{n} has earned {total}, not {expected} or at least {least}");
            self.model.earned.insert(n, total);
        }
        Ok(())
    }
}
