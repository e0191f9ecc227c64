//! Stake is burned for what a validator did: `x/staking/keeper/slash.go`.
//!
//! What is owed is a fraction of the stake that stood behind the validator when it did wrong. Stake that left since then,
//! unbonding or redelegated, pays its part first; the rest is taken from what is behind the validator now. Work is bounded
//! by the entries that exist: seven for each pair of a delegator and a validator.

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

/// Slashes what was moved to another validator since the infraction, out of the delegation there. Returns what it owes.
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
        owed = owed.checked_add(part(amount_of(&entry.initial_balance), fraction)?).ok_or_else(overflow)?;
        let moved = Dec::from_atomics_str(&entry.shares_dst).expect("shares are written as atomics");
        let wanted = fraction.mul_round(moved).ok_or_else(overflow)?;
        // What has left the new validator too can no longer be reached.
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
