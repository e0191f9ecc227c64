//! Stake that moves from one validator to another without leaving: it earns at the new one from then on, and answers for
//! the old one's faults until the unbonding time is over.
//!
//! Stake that has just arrived cannot move on (a *transitive* redelegation): else it would hop away from its liability.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::{BondStatus, Redelegation, RedelegationEntry};
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};

use super::delegate::{Source, delegate, has_power, unbond};
use super::records::{
    from_timestamp, next_entry_id, params, pool_of, queue_key, require_validator, take_due, timestamp,
    unbonding_completion, validator,
};
use super::unbonding::{amount_of, is_mature};
use super::{REDELEGATION, REDELEGATION_BY_DESTINATION, REDELEGATION_BY_SOURCE, REDELEGATION_QUEUE, StakingError};
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};

fn key(prefix: u8, parts: [&Address; 3]) -> Vec<u8> {
    parts.iter().fold(KeyBuilder::new(prefix), |key, part| key.bytes(&part.0)).finish()
}

/// The redelegation of a delegator between two validators.
pub(super) fn record(state: &dyn StateRead, delegator: &Address, from: &Address, to: &Address) -> Option<Redelegation> {
    let bytes = state.get(&key(REDELEGATION, [delegator, from, to]))?;
    Some(Redelegation::decode(bytes.as_slice()).expect("redelegations are written encoded"))
}

fn save(state: &mut dyn StateWrite, [delegator, from, to]: [&Address; 3], record: &Redelegation) {
    let main = key(REDELEGATION, [delegator, from, to]);
    let indexes =
        [key(REDELEGATION_BY_SOURCE, [from, delegator, to]), key(REDELEGATION_BY_DESTINATION, [to, delegator, from])];
    if record.entries.is_empty() {
        state.delete(main);
        indexes.into_iter().for_each(|index| state.delete(index));
    } else {
        state.put(main, record.encode_to_vec());
        indexes.into_iter().for_each(|index| state.put(index, vec![1]));
    }
}

/// Whether stake of the delegator has lately come to this validator.
fn is_receiving(state: &dyn StateRead, delegator: &Address, operator: &Address) -> bool {
    let prefix = KeyBuilder::new(REDELEGATION_BY_DESTINATION).bytes(&operator.0).bytes(&delegator.0).finish();
    state.iter_prefix(&prefix).next().is_some()
}

/// The delegators that have moved stake away from a validator, and where to.
pub(super) fn away_from(state: &dyn StateRead, from: &Address) -> Vec<(Address, Address)> {
    let prefix = KeyBuilder::new(REDELEGATION_BY_SOURCE).bytes(&from.0).finish();
    let address = |bytes: Option<&[u8]>| bytes.and_then(|bytes| bytes.try_into().ok()).map(Address);
    let rows = state.iter_prefix(&prefix);
    rows.filter_map(|(key, _)| Some((address(key.get(21..41))?, address(key.get(41..))?))).collect()
}

/// Moves shares. Returns when the liability for the old validator's faults ends.
pub(super) fn redelegate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    [from, to]: [&Address; 2],
    shares: Dec,
) -> Result<BlockTime, TxError> {
    if from == to {
        return Err(StakingError::SelfRedelegation.into());
    }
    validator(state, to).ok_or(StakingError::BadRedelegationDestination)?;
    let source = require_validator(state, from)?;
    if is_receiving(state, delegator, from) {
        return Err(StakingError::TransitiveRedelegation.into());
    }
    let found = record(state, delegator, from, to);
    let max = params(state).max_entries;
    if found.as_ref().is_some_and(|found| found.entries.len() as u64 >= u64::from(max)) {
        return Err(StakingError::MaxRedelegationEntries(max).into());
    }
    let had_power = has_power(state);
    let amount = unbond(ctx, state, delegator, from, shares)?;
    if amount.is_zero() {
        return Err(StakingError::TinyRedelegation.into());
    }
    let bought = delegate(ctx, state, delegator, to, amount, Source::Pool(pool_of(&source)))?;
    // The other validator may have power now, where this one has lost it.
    if had_power && !has_power(state) {
        return Err(StakingError::LastValidator.into());
    }
    let (height, completion) = match source.status() {
        // It had no power to do wrong with.
        BondStatus::Unbonded | BondStatus::Unspecified => return Ok(ctx.time),
        BondStatus::Unbonding => {
            (source.unbonding_height, source.unbonding_time.as_ref().map_or(ctx.time, from_timestamp))
        }
        BondStatus::Bonded => (i64::try_from(ctx.height).unwrap_or(i64::MAX), unbonding_completion(ctx, state)),
    };
    let mut record = found.unwrap_or_else(|| Redelegation {
        delegator_address: delegator.account(),
        validator_src_address: from.valoper(),
        validator_dst_address: to.valoper(),
        entries: Vec::new(),
    });
    record.entries.push(RedelegationEntry {
        creation_height: height,
        completion_time: Some(timestamp(completion)),
        initial_balance: amount.to_string(),
        shares_dst: bought.to_atomics_string(),
        unbonding_id: next_entry_id(state),
        unbonding_on_hold_ref_count: 0,
    });
    save(state, [delegator, from, to], &record);
    let queued = queue_key(REDELEGATION_QUEUE, completion).bytes(&delegator.0).bytes(&from.0).bytes(&to.0);
    state.put(queued.finish(), vec![1]);
    Ok(completion)
}

/// Ends the liability of what is due, of `max` queued triples at most.
pub(super) fn mature(ctx: &mut Context, state: &mut dyn StateWrite, max: usize) {
    for [delegator, from, to] in take_due(state, REDELEGATION_QUEUE, ctx.time, max) {
        let Some(mut record) = record(state, &delegator, &from, &to) else { continue };
        let (due, waiting) = std::mem::take(&mut record.entries)
            .into_iter()
            .partition::<Vec<_>, _>(|entry| is_mature(entry.completion_time.as_ref(), ctx.time));
        record.entries = waiting;
        save(state, [&delegator, &from, &to], &record);
        let moved: Amount = due.iter().map(|entry| amount_of(&entry.initial_balance)).sum();
        let attributes = [
            ("amount", format!("{moved}{DENOM}")),
            ("delegator", delegator.account()),
            ("source_validator", from.valoper()),
            ("destination_validator", to.valoper()),
        ];
        ctx.emit("complete_redelegation", attributes);
    }
}
