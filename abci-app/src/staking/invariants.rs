//! What always holds of staking, verified over the whole state: for tests and export.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::staking::v1beta1::{Redelegation, UnbondingDelegation, Validator};
use polylink_protocol::{Address, Amount, Dec, Message};

use super::records::{is_bonded, parse_shares, power};
use super::set::last_powers;
use super::shares::{shares, tokens};
use super::unbonding::amount_of;
use super::{BY_POWER, DELEGATION, REDELEGATION, UNBONDING, UNBONDING_BY_VALIDATOR, VALIDATOR};
use crate::bank::{Pool, balance};
use crate::store::StateRead;

fn validators(state: &dyn StateRead) -> BTreeMap<Address, Validator> {
    let rows = state.iter_prefix(&[VALIDATOR]);
    rows.filter_map(|(key, value)| {
        Some((Address(key.get(1..)?.try_into().ok()?), Validator::decode(value.as_slice()).ok()?))
    })
    .collect()
}

/// Verifies that the pools hold what they should, that shares are those of the delegations, that the index of candidates
/// and the last powers are those of the validators, and that no entry outgrows its begin.
///
/// # Errors
/// What does not hold.
pub fn scan(state: &dyn StateRead) -> Result<(), String> {
    let validators = validators(state);
    let (mut bonded, mut rest) = (Amount::ZERO, Amount::ZERO);
    for validator in validators.values() {
        let pool = if is_bonded(validator) { &mut bonded } else { &mut rest };
        pool.0 += tokens(validator).0;
    }
    let mut unbonding = 0;
    for (_, value) in state.iter_prefix(&[UNBONDING]) {
        let record = UnbondingDelegation::decode(value.as_slice()).map_err(|error| error.to_string())?;
        for entry in &record.entries {
            if amount_of(&entry.balance) > amount_of(&entry.initial_balance) {
                return Err(format!("an unbonding entry has grown: {entry:?}"));
            }
            rest.0 += amount_of(&entry.balance).0;
        }
        unbonding += 1;
    }
    if state.iter_prefix(&[UNBONDING_BY_VALIDATOR]).count() != unbonding {
        return Err("the index of unbonding delegations is not theirs".into());
    }
    for (pool, expected) in [(Pool::BondedTokens, bonded), (Pool::NotBondedTokens, rest)] {
        let held = balance(state, pool);
        if held != expected {
            return Err(format!("{} holds {held}, not {expected}", pool.name()));
        }
    }
    for (_, value) in state.iter_prefix(&[REDELEGATION]) {
        let record = Redelegation::decode(value.as_slice()).map_err(|error| error.to_string())?;
        if record.entries.is_empty() {
            return Err("a redelegation without entries".into());
        }
    }
    check_shares(state, &validators)?;
    check_set(state, &validators)
}

fn check_shares(state: &dyn StateRead, validators: &BTreeMap<Address, Validator>) -> Result<(), String> {
    let mut delegated: BTreeMap<Address, Dec> = BTreeMap::new();
    for (key, value) in state.iter_prefix(&[DELEGATION]) {
        let operator = key.get(21..).and_then(|bytes| bytes.try_into().ok()).map(Address);
        let operator = operator.ok_or("a delegation without a validator")?;
        let sum = delegated.entry(operator).or_default();
        *sum = sum.checked_add(parse_shares(&value)).ok_or("shares overflow")?;
    }
    for (operator, validator) in validators {
        let expected = delegated.remove(operator).unwrap_or_default();
        if shares(validator) != expected {
            return Err(format!("{} has {} shares, delegations {expected}", operator.valoper(), shares(validator)));
        }
    }
    if delegated.is_empty() { Ok(()) } else { Err("delegations to a validator that is gone".into()) }
}

fn check_set(state: &dyn StateRead, validators: &BTreeMap<Address, Validator>) -> Result<(), String> {
    let candidates = validators.values().filter(|validator| power(validator) > 0).count();
    if state.iter_prefix(&[BY_POWER]).count() != candidates {
        return Err(format!("the index of candidates does not have {candidates} of them"));
    }
    let last = last_powers(state);
    for (operator, _) in &last {
        if !validators.get(operator).is_some_and(is_bonded) {
            return Err(format!("{} has power and is not bonded", operator.valoper()));
        }
    }
    let bonded = validators.values().filter(|validator| is_bonded(validator)).count();
    if bonded == last.len() { Ok(()) } else { Err(format!("{bonded} are bonded, {} have power", last.len())) }
}
