//! A block's fees are allocated to the validators of the block before it: `x/distribution/keeper/allocation.go`.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::Validator;
use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::DistributionError;
use super::records::{Current, commission, current, outstanding, params, set_commission, set_current, set_outstanding};
use super::rewards::{add_to_community_pool, minus, overflow, plus};
use crate::bank::{Pool, balance, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::staking;
use crate::store::StateWrite;

/// The hook: what the fee collector has got by the last block and by minting in this one.
pub(super) fn begin_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    // Nobody has signed a block yet.
    if ctx.height <= 1 {
        return Ok(());
    }
    let collected = balance(state, Pool::FeeCollector);
    if collected.is_zero() {
        return Ok(());
    }
    transfer(ctx, state, Pool::FeeCollector, Pool::Distribution, collected)?;
    let fees = Dec::from_amount(collected);
    let votes = std::mem::take(&mut ctx.commit.votes);
    let total: u128 = votes.iter().map(|vote| u128::from(vote.power)).sum();
    let tax = Dec::from_atomics_str(&params(state).community_tax).unwrap_or(Dec::ZERO);
    let shared = fees.mul_truncate(Dec::one().saturating_sub(tax)).ok_or_else(overflow)?;
    let mut remaining = fees;
    for vote in &votes {
        // A validator that is gone leaves its part to the community pool.
        let Some(operator) = staking::operator_of(state, &vote.validator) else { continue };
        let Some(validator) = staking::validator(state, &operator) else { continue };
        let power = Dec::from_ratio(u128::from(vote.power), total).unwrap_or(Dec::ZERO);
        let reward = shared.mul_truncate(power).ok_or_else(overflow)?;
        allocate(ctx, state, &operator, &validator, reward)?;
        remaining = minus(remaining, reward)?;
    }
    ctx.commit.votes = votes;
    add_to_community_pool(state, remaining)
}

/// A validator's part: its commission, the rest to the period that runs.
fn allocate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    validator: &Validator,
    reward: Dec,
) -> Result<(), TxError> {
    let rates = validator.commission.as_ref().and_then(|commission| commission.commission_rates.as_ref());
    let rate = rates.and_then(|rates| Dec::from_atomics_str(&rates.rate)).unwrap_or(Dec::ZERO);
    let own = reward.mul_round(rate).ok_or_else(overflow)?;
    let shared = minus(reward, own)?;
    if !own.is_zero() {
        let sum = plus(commission(state, operator), own)?;
        set_commission(state, operator, sum);
    }
    let running = current(state, operator).ok_or(DistributionError::NoValidator)?;
    set_current(state, operator, Current { rewards: plus(running.rewards, shared)?, ..running });
    let sum = plus(outstanding(state, operator), reward)?;
    set_outstanding(state, operator, sum);
    for (kind, amount) in [("commission", own), ("rewards", reward)] {
        let amount = if amount.is_zero() { String::new() } else { format!("{amount}{DENOM}") };
        ctx.emit(kind, [("amount", amount), ("validator", operator.valoper())]);
    }
    Ok(())
}

/// Gives uplk to the community pool.
pub fn fund_community_pool(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: impl Into<Address>,
    amount: Amount,
) -> Result<(), TxError> {
    transfer(ctx, state, from, Pool::Distribution, amount)?;
    add_to_community_pool(state, Dec::from_amount(amount))
}
