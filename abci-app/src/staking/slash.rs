//! Stake is burned for what a validator did: `x/staking/keeper/slash.go`.
//!
//! What is owed is a fraction of the stake that stood behind the validator when it did wrong. Stake that left since then,
//! unbonding or redelegated, pays its part first; the rest is taken from what is behind the validator now. What was
//! redelegated and unbonds from there pays as well: else two steps would lead away from any liability (GHSA-86h5-xcpx-cfqc;
//! the SDK since 0.50.5). Work is bounded by the entries that exist: seven for each pair of a delegator and a validator.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::BondStatus;
use polylink_protocol::{Address, Amount, Dec};

use super::delegate::{overflow, unbond};
use super::records::{POWER_REDUCTION, delegation, pool_of, require_validator, set_validator, validator};
use super::shares::{remove_tokens, tokens};
use super::unbonding::{amount_of, is_mature};
use super::{redelegate, unbonding};
use crate::bank::{Pool, burn};
use crate::context::Context;
use crate::distribution;
use crate::error::TxError;
use crate::store::StateWrite;

/// A fraction of an amount, rounded down.
fn part(amount: Amount, fraction: Dec) -> Result<Amount, TxError> {
    fraction.mul_int(amount.0).and_then(Dec::truncate).ok_or_else(overflow)
}

/// Burns `fraction` of the stake behind a validator, which had `power` at the block `infraction` (that of the stake that
/// is liable). Returns what was burned of its own tokens. A validator that is unbonded, or gone, has nothing to answer with.
pub(crate) fn slash(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    infraction: i64,
    power: u64,
    fraction: Dec,
) -> Result<Amount, TxError> {
    let Some(record) = validator(state, operator) else { return Ok(Amount::ZERO) };
    if record.status() == BondStatus::Unbonded {
        return Ok(Amount::ZERO);
    }
    let owed = part(Amount(u128::from(power) * POWER_REDUCTION), fraction)?;
    let mut remaining = owed;
    if infraction < i64::try_from(ctx.height).unwrap_or(i64::MAX) {
        for delegator in unbonding::delegators_of(state, operator) {
            remaining =
                remaining.saturating_sub(unbonding_entries(ctx, state, &delegator, operator, infraction, fraction)?);
        }
        for (delegator, to) in redelegate::away_from(state, operator) {
            let moved = [&delegator, operator, &to];
            remaining = remaining.saturating_sub(redelegation_entries(ctx, state, moved, infraction, fraction)?);
        }
    }
    let mut record = require_validator(state, operator)?;
    let held = tokens(&record);
    let burned = remaining.min(held);
    if burned.is_zero() {
        return Ok(Amount::ZERO);
    }
    // Rounded up, so that nobody is paid more than is there.
    let effective = Dec::from_amount(burned).quo_up(Dec::from_amount(held)).ok_or_else(overflow)?;
    distribution::before_validator_slashed(ctx, state, operator, effective.min(Dec::one()))?;
    remove_tokens(&mut record, burned).ok_or_else(overflow)?;
    set_validator(state, operator, &record);
    burn(ctx, state, pool_of(&record), burned)?;
    Ok(burned)
}

/// Slashes what unbonds since the infraction. Returns what it owes, which may be more than it still has.
fn unbonding_entries(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    infraction: i64,
    fraction: Dec,
) -> Result<Amount, TxError> {
    let Some(mut record) = unbonding::record(state, delegator, operator) else { return Ok(Amount::ZERO) };
    let (mut owed, mut burned) = (Amount::ZERO, Amount::ZERO);
    for entry in &mut record.entries {
        if entry.creation_height < infraction || is_mature(entry.completion_time.as_ref(), ctx.time) {
            continue;
        }
        let share = part(amount_of(&entry.initial_balance), fraction)?;
        let taken = share.min(amount_of(&entry.balance));
        owed = owed.checked_add(share).ok_or_else(overflow)?;
        burned = burned.checked_add(taken).ok_or_else(overflow)?;
        entry.balance = amount_of(&entry.balance).saturating_sub(taken).to_string();
    }
    unbonding::save(state, delegator, operator, &record);
    burn(ctx, state, Pool::NotBondedTokens, burned)?;
    Ok(owed)
}

/// Takes what moved stake owes out of what unbonds since the infraction from the validator that it had moved to. Returns what
/// is still owed.
fn unbonding_of_moved(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    to: &Address,
    infraction: i64,
    owed: Amount,
) -> Result<Amount, TxError> {
    let Some(mut record) = unbonding::record(state, delegator, to) else { return Ok(owed) };
    let mut left = owed;
    for entry in &mut record.entries {
        if entry.creation_height < infraction || is_mature(entry.completion_time.as_ref(), ctx.time) {
            continue;
        }
        let balance = amount_of(&entry.balance);
        let taken = left.min(balance);
        left = left.saturating_sub(taken);
        entry.balance = balance.saturating_sub(taken).to_string();
    }
    unbonding::save(state, delegator, to, &record);
    burn(ctx, state, Pool::NotBondedTokens, owed.saturating_sub(left))?;
    Ok(left)
}

/// Slashes what was moved to another validator since the infraction: what unbonds there first, then the delegation for the
/// part that this has not paid. (The SDK takes the whole fraction of the delegation then.) Returns what it owes.
fn redelegation_entries(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    [delegator, from, to]: [&Address; 3],
    infraction: i64,
    fraction: Dec,
) -> Result<Amount, TxError> {
    let Some(record) = redelegate::record(state, delegator, from, to) else { return Ok(Amount::ZERO) };
    let mut owed = Amount::ZERO;
    for entry in &record.entries {
        if entry.creation_height < infraction || is_mature(entry.completion_time.as_ref(), ctx.time) {
            continue;
        }
        let share = part(amount_of(&entry.initial_balance), fraction)?;
        owed = owed.checked_add(share).ok_or_else(overflow)?;
        let left = unbonding_of_moved(ctx, state, delegator, to, infraction, share)?;
        if left.is_zero() {
            continue;
        }
        let moved = Dec::from_atomics_str(&entry.shares_dst).expect("shares are written as atomics");
        let wanted = fraction.mul_round(moved).and_then(|all| all.mul_int(left.0)?.quo_int(share.0));
        let wanted = wanted.ok_or_else(overflow)?;
        // What has been paid out can no longer be reached.
        let Some(held) = delegation(state, delegator, to) else { continue };
        if wanted.is_zero() {
            continue;
        }
        let pool = pool_of(&require_validator(state, to)?);
        let taken = unbond(ctx, state, delegator, to, wanted.min(held))?;
        burn(ctx, state, pool, taken)?;
    }
    Ok(owed)
}
