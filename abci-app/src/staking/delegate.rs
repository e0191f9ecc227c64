//! Stake goes behind a validator and comes out again: `x/staking/keeper/delegation.go`.
//!
//! Before a delegation changes, what it has earned is paid out and its validator's period of rewards ends; after it has
//! changed, the next period begins for it ([`distribution`]).

use polylink_protocol::cosmos::cosmos::staking::v1beta1::Validator;
use polylink_protocol::{Address, Amount, Dec};

use super::records::{
    candidates, delegation, is_bonded, is_forgotten, pool_of, remove_validator, require_delegation, require_validator,
    set_delegation, set_validator, unbonding_completion,
};
use super::shares::{add_tokens, has_invalid_rate, remove_shares, shares_of_tokens, tokens, worth};
use super::{StakingError, unbonding};
use crate::bank::{self, Pool, transfer};
use crate::context::{BlockTime, Context};
use crate::distribution;
use crate::error::TxError;
use crate::store::StateWrite;

/// Where delegated tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The delegator's balance.
    Account,
    /// A pool of staking's.
    Pool(Pool),
}

pub(super) fn overflow() -> TxError {
    TxError::InvalidCoins("more stake than shares can hold".into())
}

/// Puts an amount behind a validator; returns the shares it bought.
pub(super) fn delegate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
    source: Source,
) -> Result<Dec, TxError> {
    let mut validator = require_validator(state, operator)?;
    if has_invalid_rate(&validator) {
        return Err(StakingError::InvalidExchangeRate.into());
    }
    let held = delegation(state, delegator, operator);
    match held {
        Some(_) => distribution::before_delegation_modified(ctx, state, delegator, operator)?,
        None => distribution::before_delegation_created(state, operator)?,
    }
    match source {
        Source::Account => bank::stake(ctx, state, delegator, pool_of(&validator), amount)?,
        Source::Pool(pool) if pool != pool_of(&validator) => transfer(ctx, state, pool, pool_of(&validator), amount)?,
        Source::Pool(_) => {}
    }
    let bought = add_tokens(&mut validator, amount).ok_or_else(overflow)?;
    set_validator(state, operator, &validator);
    let held = held.unwrap_or(Dec::ZERO).checked_add(bought).ok_or_else(overflow)?;
    set_delegation(state, delegator, operator, held);
    distribution::after_delegation_modified(ctx, state, delegator, operator)?;
    Ok(bought)
}

/// The shares that `amount` of a delegation takes. A rounding of the last decimal does not keep anybody from taking all.
pub(super) fn shares_to_unbond(
    state: &dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
) -> Result<Dec, TxError> {
    let validator = require_validator(state, operator)?;
    let held = require_delegation(state, delegator, operator)?;
    if tokens(&validator).is_zero() {
        return Err(StakingError::InsufficientShares.into());
    }
    let shares = shares_of_tokens(&validator, amount);
    // Both of the SDK's conversions (`SharesFromTokens` and its truncated twin) cut off the last decimal.
    shares.filter(|shares| *shares <= held).ok_or_else(|| {
        let worth = worth(&validator, held);
        TxError::invalid(format!("{amount} is more than the delegation's {worth}: invalid shares amount"))
    })
}

/// Takes shares out of a delegation. Returns what they are worth: it stays in the pool of the validator. An operator
/// that keeps less than its minimum is jailed; a validator that is empty and has no power is forgotten.
pub(super) fn unbond(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    shares: Dec,
) -> Result<Amount, TxError> {
    let held = require_delegation(state, delegator, operator)?;
    distribution::before_delegation_modified(ctx, state, delegator, operator)?;
    let rest = held.checked_sub(shares).ok_or_else(|| StakingError::NotEnoughShares(held.to_string()))?;
    let mut validator = require_validator(state, operator)?;
    let minimum = Amount::parse_or_zero(&validator.min_self_delegation)?;
    if delegator == operator && worth(&validator, rest) < minimum {
        validator.jailed = true;
        set_validator(state, operator, &validator);
    }
    set_delegation(state, delegator, operator, rest);
    if !rest.is_zero() {
        distribution::after_delegation_modified(ctx, state, delegator, operator)?;
    }
    let amount = remove_shares(&mut validator, shares).ok_or_else(overflow)?;
    set_validator(state, operator, &validator);
    if is_forgotten(&validator) {
        remove_validator(ctx, state, operator, &validator)?;
    }
    Ok(amount)
}

/// Whether a validator has power.
pub(super) fn has_power(state: &dyn StateWrite) -> bool {
    !candidates(state, 1).is_empty()
}

/// As [`unbond`], for a delegator of its own will: who takes stake away must leave a validator with power, if there was one.
pub(super) fn unbond_willingly(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    shares: Dec,
) -> Result<Amount, TxError> {
    let had_power = has_power(state);
    let amount = unbond(ctx, state, delegator, operator, shares)?;
    if had_power && !has_power(state) { Err(StakingError::LastValidator.into()) } else { Ok(amount) }
}

/// Takes shares out of a delegation, to be paid after the unbonding time. Returns what they are worth and when it is paid.
pub(super) fn undelegate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    shares: Dec,
) -> Result<(Amount, BlockTime), TxError> {
    let validator: Validator = require_validator(state, operator)?;
    unbonding::check_room(state, delegator, operator)?;
    let amount = unbond_willingly(ctx, state, delegator, operator, shares)?;
    if is_bonded(&validator) {
        transfer(ctx, state, Pool::BondedTokens, Pool::NotBondedTokens, amount)?;
    }
    let completion = unbonding_completion(ctx, state);
    unbonding::add(ctx, state, delegator, operator, amount, completion);
    Ok((amount, completion))
}
