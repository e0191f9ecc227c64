//! The set of validators with power, and what matures at the end of a block.
//!
//! The candidates with the most power, up to the parameters' number, are bonded. CometBFT is told the differences to
//! what it was told last. The set never becomes empty: CometBFT would stop.

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{BondStatus, Validator};

use super::records::{
    bonded, candidates, consensus_key, from_timestamp, is_bonded, params, power, remove_validator, set_validator,
    take_due, timestamp, unbonding_completion, validator, validator_queue_key,
};
use super::shares::{shares, tokens};
use super::{LAST_POWER, VALIDATOR_QUEUE, redelegate, unbonding};
use crate::bank::{Pool, transfer};
use crate::context::{Context, ValidatorUpdate};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// Matured entries of each queue that one block pays at most; the rest waits for the next.
const MATURED_MAX: usize = 256;

fn last_power_key(operator: &Address) -> Vec<u8> {
    KeyBuilder::new(LAST_POWER).bytes(&operator.0).finish()
}

/// The hook: the set first, as in the SDK, then what matures.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    update_set(ctx, state)?;
    mature_validators(ctx, state)?;
    unbonding::mature(ctx, state, MATURED_MAX)?;
    redelegate::mature(ctx, state, MATURED_MAX);
    Ok(())
}

/// Bonds the strongest candidates, unbonds the others, and notes the changes of power in the context.
pub(super) fn update_set(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let max = usize::try_from(params(state).max_validators).unwrap_or(usize::MAX);
    let chosen = candidates(state, max);
    let last = last_powers(state);
    if chosen.is_empty() {
        // Undelegating refuses to go here; whatever else led here must not halt the chain.
        tracing::error!(height = ctx.height, "no validator has power: the last set is kept");
        return Ok(());
    }
    for operator in &chosen {
        let Some(mut record) = validator(state, operator) else { continue };
        let power = power(&record);
        if !is_bonded(&record) {
            transfer(ctx, state, Pool::NotBondedTokens, Pool::BondedTokens, tokens(&record))?;
            if let Some(time) = record.unbonding_time.take() {
                state.delete(validator_queue_key(from_timestamp(&time), operator));
            }
            record.unbonding_height = 0;
            record.status = BondStatus::Bonded.into();
            set_validator(state, operator, &record);
            bonded(ctx, state, &record);
        }
        let told = last.iter().find(|(address, _)| address == operator).map(|(_, power)| *power);
        if told != Some(power) {
            tell(ctx, &record, power);
            state.put(last_power_key(operator), power.to_be_bytes().to_vec());
        }
    }
    for (operator, _) in last {
        if !chosen.contains(&operator) {
            state.delete(last_power_key(&operator));
            begin_unbonding(ctx, state, &operator)?;
        }
    }
    Ok(())
}

fn tell(ctx: &mut Context, record: &Validator, power: u64) {
    if let Some(public_key) = consensus_key(record) {
        ctx.validator_updates.push(ValidatorUpdate { public_key, power });
    }
}

fn begin_unbonding(ctx: &mut Context, state: &mut dyn StateWrite, operator: &Address) -> Result<(), TxError> {
    let Some(mut record) = validator(state, operator) else { return Ok(()) };
    tell(ctx, &record, 0);
    transfer(ctx, state, Pool::BondedTokens, Pool::NotBondedTokens, tokens(&record))?;
    let completion = unbonding_completion(ctx, state);
    record.status = BondStatus::Unbonding.into();
    record.unbonding_height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
    record.unbonding_time = Some(timestamp(completion));
    set_validator(state, operator, &record);
    state.put(validator_queue_key(completion, operator), vec![1]);
    Ok(())
}

/// Validators whose unbonding time is over; those without delegations are forgotten.
fn mature_validators(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    for [operator] in take_due(state, VALIDATOR_QUEUE, ctx.time, MATURED_MAX) {
        let Some(mut record) = validator(state, &operator) else { continue };
        record.status = BondStatus::Unbonded.into();
        record.unbonding_time = None;
        record.unbonding_height = 0;
        set_validator(state, &operator, &record);
        if shares(&record).is_zero() {
            remove_validator(ctx, state, &operator, &record)?;
        }
    }
    Ok(())
}

/// The powers that CometBFT was last told, by operator.
pub(super) fn last_powers(state: &dyn StateRead) -> Vec<(Address, u64)> {
    let rows = state.iter_prefix(&[LAST_POWER]);
    rows.filter_map(|(key, value)| {
        let operator = Address(key.get(1..)?.try_into().ok()?);
        Some((operator, u64::from_be_bytes(value.try_into().ok()?)))
    })
    .collect()
}

/// The validators with power, as the last block has left them.
pub(crate) fn bonded_validators(state: &dyn StateRead) -> Vec<(Address, Validator)> {
    let rows = last_powers(state).into_iter();
    rows.filter_map(|(operator, _)| Some((operator, validator(state, &operator).filter(is_bonded)?))).collect()
}

/// The set as CometBFT was told of it, for a chain that goes on from this state.
pub(crate) fn told(state: &dyn StateRead) -> Vec<ValidatorUpdate> {
    let rows = last_powers(state).into_iter();
    rows.filter_map(|(operator, power)| {
        Some(ValidatorUpdate { public_key: consensus_key(&validator(state, &operator)?)?, power })
    })
    .collect()
}
