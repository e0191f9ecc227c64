//! F1: periods, and what a delegation has earned between two of them. The order of operations and the rounding are those
//! of `x/distribution/keeper/{validator,delegation,hooks}.go`.

use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::DistributionError;
use super::records::{
    Current, Historical, Slash, Starting, commission, community_pool, current, forget, historical, outstanding,
    remove_starting, set_community_pool, set_current, set_historical, set_outstanding, set_slash, set_starting,
    slashes, starting, withdraw_address,
};
use crate::bank::{Pool, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::staking;
use crate::store::{StateRead, StateWrite};

pub(super) fn overflow() -> TxError {
    TxError::InvalidCoins("more rewards than a decimal can hold".into())
}

pub(super) fn plus(a: Dec, b: Dec) -> Result<Dec, TxError> {
    a.checked_add(b).ok_or_else(overflow)
}

/// `a − b`, where the records say that `b` is a part of `a`.
pub(super) fn minus(a: Dec, b: Dec) -> Result<Dec, TxError> {
    a.checked_sub(b).ok_or_else(|| TxError::InvalidCoins("less is outstanding than was earned".into()))
}

pub(super) fn add_to_community_pool(state: &mut dyn StateWrite, amount: Dec) -> Result<(), TxError> {
    if !amount.is_zero() {
        let sum = plus(community_pool(state), amount)?;
        set_community_pool(state, sum);
    }
    Ok(())
}

/// Begins the books of a validator: period 0 has ended, period 1 runs.
pub(crate) fn validator_created(state: &mut dyn StateWrite, operator: &Address) {
    set_historical(state, operator, 0, Historical { ratio: Dec::ZERO, references: 1 });
    set_current(state, operator, Current { rewards: Dec::ZERO, period: 1 });
}

/// Closes the books of a validator without delegations: its commission is paid, and what rounding has left goes to the
/// community pool.
pub(crate) fn validator_removed(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
) -> Result<(), TxError> {
    let open = outstanding(state, operator);
    let earned = commission(state, operator).min(open);
    let left = minus(open, earned)?;
    forget(state, operator);
    add_to_community_pool(state, plus(left, earned.fraction())?)?;
    let paid = earned.truncate().ok_or_else(overflow)?;
    let to = withdraw_address(state, operator);
    transfer(ctx, state, Pool::Distribution, to, paid)
}

fn change_references(state: &mut dyn StateWrite, operator: &Address, period: u64, up: bool) -> Result<(), TxError> {
    let record = historical(state, operator, period).ok_or(DistributionError::NoValidator)?;
    let references = if up { record.references.checked_add(1) } else { record.references.checked_sub(1) };
    let references = references.ok_or_else(overflow)?;
    set_historical(state, operator, period, Historical { references, ..record });
    Ok(())
}

/// Ends the period that runs; returns its number.
pub(super) fn end_period(state: &mut dyn StateWrite, operator: &Address) -> Result<u64, TxError> {
    let validator = staking::validator(state, operator).ok_or(DistributionError::NoValidator)?;
    let ended = current(state, operator).ok_or(DistributionError::NoValidator)?;
    let tokens = staking::tokens(&validator);
    let ratio = if tokens.is_zero() {
        // Nobody is there to whom it could belong.
        let open = outstanding(state, operator);
        let left = ended.rewards.min(open);
        if !left.is_zero() {
            add_to_community_pool(state, left)?;
            set_outstanding(state, operator, minus(open, left)?);
        }
        Dec::ZERO
    } else {
        ended.rewards.quo_truncate(Dec::from_amount(tokens)).ok_or_else(overflow)?
    };
    let before = historical(state, operator, ended.period - 1).ok_or(DistributionError::NoValidator)?;
    change_references(state, operator, ended.period - 1, false)?;
    let record = Historical { ratio: plus(before.ratio, ratio)?, references: 1 };
    set_historical(state, operator, ended.period, record);
    set_current(state, operator, Current { rewards: Dec::ZERO, period: ended.period + 1 });
    Ok(ended.period)
}

/// Begins to count for a delegation, with the period that has just ended.
fn initialize(
    ctx: &Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
) -> Result<(), TxError> {
    let previous_period = current(state, operator).ok_or(DistributionError::NoValidator)?.period - 1;
    change_references(state, operator, previous_period, true)?;
    let validator = staking::validator(state, operator).ok_or(DistributionError::NoValidator)?;
    let shares = staking::delegation(state, delegator, operator).ok_or(DistributionError::NoDelegation)?;
    // A validator that was slashed to nothing has shares without a worth.
    let stake = staking::tokens_of_shares_truncated(&validator, shares).unwrap_or(Dec::ZERO);
    set_starting(state, operator, delegator, Starting { previous_period, stake, height: ctx.height });
    Ok(())
}

/// What `stake` has earned between the ends of two periods.
fn between(state: &dyn StateRead, operator: &Address, from: u64, to: u64, stake: Dec) -> Result<Dec, TxError> {
    let ratio =
        |period| historical(state, operator, period).map(|record| record.ratio).ok_or(DistributionError::NoDelegation);
    minus(ratio(to)?, ratio(from)?)?.mul_truncate(stake).ok_or_else(overflow)
}

/// What a delegation has earned until the end of `ending`, at `height`.
pub(super) fn earned(
    state: &dyn StateRead,
    delegator: &Address,
    operator: &Address,
    ending: u64,
    height: u64,
) -> Result<Dec, TxError> {
    let begin = starting(state, operator, delegator).ok_or(DistributionError::NoDelegation)?;
    if begin.height == height {
        return Ok(Dec::ZERO);
    }
    let (mut rewards, mut stake, mut from) = (Dec::ZERO, begin.stake, begin.previous_period);
    for slash in slashes(state, operator, begin.height, height) {
        if slash.period > from {
            rewards = plus(rewards, between(state, operator, from, slash.period, stake)?)?;
            stake = stake.mul_truncate(Dec::one().saturating_sub(slash.fraction)).ok_or_else(overflow)?;
            from = slash.period;
        }
    }
    // Slash by slash it is rounded otherwise than at once: never more than it is worth now.
    let validator = staking::validator(state, operator).ok_or(DistributionError::NoValidator)?;
    let shares = staking::delegation(state, delegator, operator).ok_or(DistributionError::NoDelegation)?;
    stake = stake.min(staking::tokens_of_shares(&validator, shares).unwrap_or(Dec::ZERO));
    plus(rewards, between(state, operator, from, ending, stake)?)
}

/// Pays a delegation's rewards and forgets where it began. Returns what was paid.
pub(super) fn withdraw(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
) -> Result<Amount, TxError> {
    let begin = starting(state, operator, delegator).ok_or(DistributionError::NoDelegation)?;
    let ending = end_period(state, operator)?;
    let raw = earned(state, delegator, operator, ending, ctx.height)?;
    let open = outstanding(state, operator);
    // The last decimals of many delegations may add up to more than there is.
    let rewards = raw.min(open);
    let paid = rewards.truncate().ok_or_else(overflow)?;
    let to = withdraw_address(state, delegator);
    transfer(ctx, state, Pool::Distribution, to, paid)?;
    set_outstanding(state, operator, minus(open, rewards)?);
    add_to_community_pool(state, rewards.fraction())?;
    change_references(state, operator, begin.previous_period, false)?;
    remove_starting(state, operator, delegator);
    let attributes =
        [("amount", format!("{paid}{DENOM}")), ("validator", operator.valoper()), ("delegator", delegator.account())];
    ctx.emit("withdraw_rewards", attributes);
    Ok(paid)
}

/// Pays a delegation's rewards and begins to count anew.
pub(super) fn withdraw_and_go_on(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
) -> Result<Amount, TxError> {
    let paid = withdraw(ctx, state, delegator, operator)?;
    initialize(ctx, state, delegator, operator)?;
    Ok(paid)
}

/// Before the first shares of a delegation.
pub(crate) fn before_delegation_created(state: &mut dyn StateWrite, operator: &Address) -> Result<(), TxError> {
    end_period(state, operator).map(|_| ())
}

/// Before the shares of a delegation change.
pub(crate) fn before_delegation_modified(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
) -> Result<(), TxError> {
    withdraw(ctx, state, delegator, operator).map(|_| ())
}

/// After a delegation has shares again.
pub(crate) fn after_delegation_modified(
    ctx: &Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
) -> Result<(), TxError> {
    initialize(ctx, state, delegator, operator)
}

/// Before a validator loses `fraction` of its tokens.
pub(crate) fn before_validator_slashed(
    ctx: &Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    fraction: Dec,
) -> Result<(), TxError> {
    let period = end_period(state, operator)?;
    change_references(state, operator, period, true)?;
    set_slash(state, operator, Slash { height: ctx.height, period, fraction });
    Ok(())
}
