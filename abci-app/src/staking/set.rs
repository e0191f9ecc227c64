//! The set of validators with power, and what matures at the end of a block.
//!
//! The candidates with the most power, up to the parameters' number, are bonded. CometBFT is told the differences to
//! what it was told last. The set never becomes empty: CometBFT would stop.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::{BondStatus, UnbondingDelegation, Validator};
use polylink_protocol::{Address, Amount, Message};

use super::ledger::{
    consensus_key, due, from_timestamp, is_bonded, operator_of_power_key, params, power, remove_validator,
    set_validator, shares, timestamp, tokens, unbonding, unbonding_key, validator, validator_queue_key,
};
use super::{BY_POWER, LAST_POWER, UNBONDING_QUEUE, VALIDATOR_QUEUE};
use crate::bank::{Pool, transfer};
use crate::context::{Context, ValidatorUpdate};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// Matured entries of each queue that one block pays at most; the rest waits for the next.
const MATURED_MAX: usize = 256;

/// The operators of the strongest candidates, strongest first.
pub(super) fn candidates(state: &dyn StateRead, max: usize) -> Vec<Address> {
    let keys = state.iter_prefix_rev(&[BY_POWER]).take(max);
    keys.filter_map(|(key, _)| operator_of_power_key(&key)).collect()
}

fn last_power_key(operator: &Address) -> Vec<u8> {
    KeyBuilder::new(LAST_POWER).bytes(&operator.0).finish()
}

/// The hook: the set first, as in the SDK, then what matures.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    update_set(ctx, state)?;
    mature_validators(ctx, state);
    mature_delegations(ctx, state)
}

/// Bonds the strongest candidates, unbonds the others, and notes the changes of power in the context.
pub(super) fn update_set(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let max = usize::try_from(params(state).max_validators).unwrap_or(usize::MAX);
    let chosen = candidates(state, max);
    let last: Vec<(Address, u64)> = state
        .iter_prefix(&[LAST_POWER])
        .filter_map(|(key, value)| {
            let operator = Address(key.get(1..)?.try_into().ok()?);
            Some((operator, u64::from_be_bytes(value.try_into().ok()?)))
        })
        .collect();
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
    let seconds = params(state).unbonding_time.map_or(0, |time| time.seconds.max(0).unsigned_abs());
    let completion = ctx.time.plus_seconds(seconds);
    record.status = BondStatus::Unbonding.into();
    record.unbonding_height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
    record.unbonding_time = Some(timestamp(completion));
    set_validator(state, operator, &record);
    state.put(validator_queue_key(completion, operator), vec![1]);
    Ok(())
}

/// Validators whose unbonding time is over; those without delegations are forgotten.
fn mature_validators(ctx: &Context, state: &mut dyn StateWrite) {
    for key in due(state, VALIDATOR_QUEUE, ctx.time, MATURED_MAX) {
        let operator = key.get(13..).and_then(|tail| tail.try_into().ok()).map(Address);
        state.delete(key);
        let Some(operator) = operator else { continue };
        let Some(mut record) = validator(state, &operator) else { continue };
        if shares(&record).is_zero() {
            remove_validator(state, &operator, &record);
            continue;
        }
        record.status = BondStatus::Unbonded.into();
        record.unbonding_time = None;
        record.unbonding_height = 0;
        set_validator(state, &operator, &record);
    }
}

/// Pays out unbonding entries whose time has come.
fn mature_delegations(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    for key in due(state, UNBONDING_QUEUE, ctx.time, MATURED_MAX) {
        let pair = key.get(13..33).zip(key.get(33..53));
        let pair = pair.and_then(|(a, b)| Some((Address(a.try_into().ok()?), Address(b.try_into().ok()?))));
        state.delete(key);
        let Some((delegator, operator)) = pair else { continue };
        let Some(mut record) = unbonding(state, &delegator, &operator) else { continue };
        let paid = take_matured(ctx, &mut record)?;
        if record.entries.is_empty() {
            state.delete(unbonding_key(&delegator, &operator));
        } else {
            state.put(unbonding_key(&delegator, &operator), record.encode_to_vec());
        }
        transfer(ctx, state, Pool::NotBondedTokens, delegator, paid)?;
        let coin = format!("{paid}{}", polylink_protocol::DENOM);
        let attributes = [("amount", coin), ("validator", operator.valoper()), ("delegator", delegator.account())];
        ctx.emit("complete_unbonding", &attributes);
    }
    Ok(())
}

fn take_matured(ctx: &Context, record: &mut UnbondingDelegation) -> Result<Amount, TxError> {
    let mut paid = Amount::ZERO;
    let mut waiting = Vec::new();
    for entry in std::mem::take(&mut record.entries) {
        if entry.completion_time.as_ref().is_some_and(|time| from_timestamp(time) > ctx.time) {
            waiting.push(entry);
        } else {
            let amount = Amount::parse_or_zero(&entry.balance)?;
            paid = Amount(paid.0.saturating_add(amount.0));
        }
    }
    record.entries = waiting;
    Ok(paid)
}
