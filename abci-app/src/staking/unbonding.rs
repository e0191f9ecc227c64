//! Stake that was taken back and is not paid yet: it can still be slashed for what its validator did before.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::{UnbondingDelegation, UnbondingDelegationEntry};
use polylink_protocol::{Address, Amount, DENOM, Message};

use super::delegate::{Source, delegate};
use super::records::{from_timestamp, next_entry_id, params, queue_key, require_validator, take_due, timestamp};
use super::shares::has_invalid_rate;
use super::{StakingError, UNBONDING, UNBONDING_BY_VALIDATOR, UNBONDING_QUEUE};
use crate::bank::{self, Pool};
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};

fn key(delegator: &Address, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(UNBONDING).bytes(&delegator.0).bytes(&operator.0).finish()
}

fn index(operator: &Address, delegator: &Address) -> Vec<u8> {
    KeyBuilder::new(UNBONDING_BY_VALIDATOR).bytes(&operator.0).bytes(&delegator.0).finish()
}

/// The unbonding entries of a delegator and a validator.
pub(super) fn record(state: &dyn StateRead, delegator: &Address, operator: &Address) -> Option<UnbondingDelegation> {
    let bytes = state.get(&key(delegator, operator))?;
    Some(UnbondingDelegation::decode(bytes.as_slice()).expect("unbonding delegations are written encoded"))
}

/// Writes the entries, or forgets the record where none is left.
pub(super) fn save(state: &mut dyn StateWrite, delegator: &Address, operator: &Address, record: &UnbondingDelegation) {
    if record.entries.is_empty() {
        state.delete(key(delegator, operator));
        state.delete(index(operator, delegator));
    } else {
        state.put(key(delegator, operator), record.encode_to_vec());
        state.put(index(operator, delegator), vec![1]);
    }
}

/// Those who have unbonding entries of a validator.
pub(super) fn delegators_of(state: &dyn StateRead, operator: &Address) -> Vec<Address> {
    let prefix = KeyBuilder::new(UNBONDING_BY_VALIDATOR).bytes(&operator.0).finish();
    state.iter_prefix(&prefix).filter_map(|(key, _)| Some(Address(key.get(21..)?.try_into().ok()?))).collect()
}

/// Refuses where the pair has as many entries as it may have.
pub(super) fn check_room(state: &dyn StateRead, delegator: &Address, operator: &Address) -> Result<(), StakingError> {
    let (max, entries) = (params(state).max_entries, record(state, delegator, operator).map_or(0, |r| r.entries.len()));
    if entries as u64 >= u64::from(max) { Err(StakingError::MaxUnbondingEntries(max)) } else { Ok(()) }
}

/// Adds an entry; what is taken back within a block is one.
pub(super) fn add(
    ctx: &Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
    completion: BlockTime,
) {
    let mut record = record(state, delegator, operator).unwrap_or_else(|| UnbondingDelegation {
        delegator_address: delegator.account(),
        validator_address: operator.valoper(),
        entries: Vec::new(),
    });
    let (height, due) = (i64::try_from(ctx.height).unwrap_or(i64::MAX), Some(timestamp(completion)));
    let unbonding_id = next_entry_id(state);
    let same = |entry: &&mut UnbondingDelegationEntry| entry.creation_height == height && entry.completion_time == due;
    if let Some(entry) = record.entries.iter_mut().find(same) {
        entry.initial_balance = (amount_of(&entry.initial_balance).0 + amount.0).to_string();
        entry.balance = (amount_of(&entry.balance).0 + amount.0).to_string();
    } else {
        record.entries.push(UnbondingDelegationEntry {
            creation_height: height,
            completion_time: due,
            initial_balance: amount.to_string(),
            balance: amount.to_string(),
            unbonding_id,
            unbonding_on_hold_ref_count: 0,
        });
    }
    save(state, delegator, operator, &record);
    state.put(queue_key(UNBONDING_QUEUE, completion).bytes(&delegator.0).bytes(&operator.0).finish(), vec![1]);
}

/// An amount in an entry.
pub(super) fn amount_of(text: &str) -> Amount {
    Amount::parse_or_zero(text).expect("entries are written with amounts")
}

/// Whether an entry's time has come.
pub(super) fn is_mature(completion: Option<&polylink_protocol::cosmos::Timestamp>, now: BlockTime) -> bool {
    completion.is_none_or(|time| from_timestamp(time) <= now)
}

/// Puts what is unbonding since `height` back behind its validator.
pub(super) fn cancel(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
    height: i64,
) -> Result<(), TxError> {
    let validator = require_validator(state, operator)?;
    if has_invalid_rate(&validator) {
        return Err(StakingError::InvalidExchangeRate.into());
    }
    if validator.jailed {
        return Err(StakingError::Jailed.into());
    }
    let mut record = record(state, delegator, operator).ok_or_else(|| {
        let validator = operator.valoper();
        TxError::NotFound(format!(
            "unbonding delegation with delegator {delegator} not found for validator {validator}"
        ))
    })?;
    let position = record.entries.iter().position(|entry| entry.creation_height == height).ok_or_else(|| {
        TxError::NotFound(format!("unbonding delegation entry is not found at block height {height}"))
    })?;
    let entry = &mut record.entries[position];
    let rest = amount_of(&entry.balance)
        .checked_sub(amount)
        .ok_or_else(|| TxError::invalid("amount is greater than the unbonding delegation entry balance"))?;
    if entry.completion_time.as_ref().is_some_and(|time| from_timestamp(time) < ctx.time) {
        return Err(TxError::invalid("unbonding delegation is already processed"));
    }
    delegate(ctx, state, delegator, operator, amount, Source::Pool(Pool::NotBondedTokens))?;
    if rest.is_zero() {
        record.entries.remove(position);
    } else {
        entry.initial_balance = amount_of(&entry.initial_balance).saturating_sub(amount).to_string();
        entry.balance = rest.to_string();
    }
    save(state, delegator, operator, &record);
    Ok(())
}

/// Pays out what is due, of `max` queued pairs at most.
pub(super) fn mature(ctx: &mut Context, state: &mut dyn StateWrite, max: usize) -> Result<(), TxError> {
    for [delegator, operator] in take_due(state, UNBONDING_QUEUE, ctx.time, max) {
        let Some(mut record) = record(state, &delegator, &operator) else { continue };
        let (due, waiting) = std::mem::take(&mut record.entries)
            .into_iter()
            .partition::<Vec<_>, _>(|entry| is_mature(entry.completion_time.as_ref(), ctx.time));
        record.entries = waiting;
        save(state, &delegator, &operator, &record);
        let paid: Amount = due.iter().map(|entry| amount_of(&entry.balance)).sum();
        bank::unstake(ctx, state, Pool::NotBondedTokens, &delegator, paid)?;
        let coin = if paid.is_zero() { String::new() } else { format!("{paid}{DENOM}") };
        let attributes = [("amount", coin), ("validator", operator.valoper()), ("delegator", delegator.account())];
        ctx.emit("complete_unbonding", attributes);
    }
    Ok(())
}
