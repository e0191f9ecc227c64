//! Staking's records, and the arithmetic of shares.

use polylink_protocol::cosmos::Timestamp;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, Params, UnbondingDelegation, UnbondingDelegationEntry, Validator,
};
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};

use super::{
    BY_POWER, DELEGATION, DELEGATOR_INDEX, NEXT_UNBONDING_ID, PARAMS, StakingError, UNBONDING, UNBONDING_QUEUE,
    VALIDATOR, VALIDATOR_QUEUE,
};
use crate::bank::{Pool, transfer};
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// Tokens of one unit of power (the SDK's PowerReduction): 1 PLK.
pub const POWER_REDUCTION: u128 = 1_000_000;

/// Staking's parameters.
pub type StakingParams = Params;

/// The parameters in force.
pub fn params(state: &dyn StateRead) -> StakingParams {
    let bytes = state.get(&[PARAMS]).unwrap_or_default();
    Params::decode(bytes.as_slice()).expect("parameters are written encoded")
}

pub(super) fn set_params(state: &mut dyn StateWrite, params: &StakingParams) {
    state.put(vec![PARAMS], params.encode_to_vec());
}

fn validator_key(operator: &Address) -> Vec<u8> {
    KeyBuilder::new(VALIDATOR).bytes(&operator.0).finish()
}

/// A validator by its operator.
pub fn validator(state: &dyn StateRead, operator: &Address) -> Option<Validator> {
    let bytes = state.get(&validator_key(operator))?;
    Some(Validator::decode(bytes.as_slice()).expect("validators are written encoded"))
}

pub(super) fn require_validator(state: &dyn StateRead, operator: &Address) -> Result<Validator, StakingError> {
    validator(state, operator).ok_or_else(|| StakingError::NoValidator(operator.valoper()))
}

/// Votes of a validator: whole units of power of its tokens, none while it is jailed.
pub(super) fn power(validator: &Validator) -> u64 {
    let tokens = if validator.jailed { 0 } else { tokens(validator).0 };
    u64::try_from(tokens / POWER_REDUCTION).unwrap_or(u64::MAX)
}

fn power_key(operator: &Address, power: u64) -> Vec<u8> {
    KeyBuilder::new(BY_POWER).u64(power).bytes(&operator.0.map(|byte| !byte)).finish()
}

/// The operator in a [`BY_POWER`] key.
pub(super) fn operator_of_power_key(key: &[u8]) -> Option<Address> {
    let inverted: [u8; 20] = key.get(9..)?.try_into().ok()?;
    Some(Address(inverted.map(|byte| !byte)))
}

/// Writes a validator and keeps the index of candidates.
pub(super) fn set_validator(state: &mut dyn StateWrite, operator: &Address, new: &Validator) {
    if let Some(old) = validator(state, operator) {
        state.delete(power_key(operator, power(&old)));
    }
    if power(new) > 0 {
        state.put(power_key(operator, power(new)), vec![1]);
    }
    state.put(validator_key(operator), new.encode_to_vec());
}

pub(super) fn remove_validator(state: &mut dyn StateWrite, operator: &Address, validator: &Validator) {
    state.delete(power_key(operator, power(validator)));
    state.delete(validator_key(operator));
    if let Some(key) = consensus_key(validator) {
        let address = Address::of_consensus_key(&key);
        state.delete(KeyBuilder::new(super::BY_CONSENSUS_ADDRESS).bytes(&address.0).finish());
    }
}

pub(super) fn consensus_key(validator: &Validator) -> Option<[u8; 32]> {
    let any = validator.consensus_pubkey.as_ref()?;
    PubKey::decode(any.value.as_slice()).ok()?.key.try_into().ok()
}

pub(super) fn tokens(validator: &Validator) -> Amount {
    Amount::parse_or_zero(&validator.tokens).expect("tokens are written as an amount")
}

pub(super) fn shares(validator: &Validator) -> Dec {
    Dec::from_atomics_str(&validator.delegator_shares).expect("shares are written as atomics")
}

pub(super) fn is_bonded(validator: &Validator) -> bool {
    validator.status == BondStatus::Bonded as i32
}

/// The pool that holds a validator's tokens.
pub(super) fn pool_of(validator: &Validator) -> Pool {
    if is_bonded(validator) { Pool::BondedTokens } else { Pool::NotBondedTokens }
}

/// What shares of a validator are worth, truncated.
pub(super) fn tokens_of_shares(validator: &Validator, part: Dec) -> Amount {
    let all = shares(validator);
    if part >= all {
        return tokens(validator);
    }
    let worth = part.mul_truncate(Dec::from_amount(tokens(validator))).and_then(|product| product.quo_truncate(all));
    worth.and_then(Dec::truncate).unwrap_or(Amount::ZERO)
}

/// The shares that an amount buys, or that are worth it: one each before there are any.
pub(super) fn shares_of_tokens(validator: &Validator, amount: Amount) -> Option<Dec> {
    let all = shares(validator);
    if all.is_zero() {
        return Some(Dec::from_amount(amount));
    }
    all.mul_truncate(Dec::from_amount(amount))?.quo_truncate(Dec::from_amount(tokens(validator)))
}

fn delegation_key(delegator: &Address, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(DELEGATION).bytes(&delegator.0).bytes(&operator.0).finish()
}

pub(super) fn parse_shares(bytes: &[u8]) -> Dec {
    Dec::from_be_bytes(bytes.try_into().expect("shares are written with 32 bytes"))
}

/// The shares that a delegator has of a validator.
pub fn delegation(state: &dyn StateRead, delegator: &Address, operator: &Address) -> Option<Dec> {
    state.get(&delegation_key(delegator, operator)).map(|bytes| parse_shares(&bytes))
}

fn set_delegation(state: &mut dyn StateWrite, delegator: &Address, operator: &Address, shares: Dec) {
    let index = KeyBuilder::new(DELEGATOR_INDEX).bytes(&operator.0).bytes(&delegator.0).finish();
    if shares.is_zero() {
        state.delete(delegation_key(delegator, operator));
        state.delete(index);
    } else {
        state.put(delegation_key(delegator, operator), shares.to_be_bytes().to_vec());
        state.put(index, vec![1]);
    }
}

fn overflow() -> TxError {
    TxError::InvalidCoins("more stake than shares can hold".into())
}

/// Puts an amount behind a validator; returns the shares it bought.
pub(super) fn delegate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
) -> Result<Dec, TxError> {
    let mut validator = require_validator(state, operator)?;
    let bought = shares_of_tokens(&validator, amount).ok_or_else(overflow)?;
    transfer(ctx, state, *delegator, pool_of(&validator), amount)?;
    validator.tokens = tokens(&validator).checked_add(amount).ok_or_else(overflow)?.to_string();
    validator.delegator_shares = shares(&validator).checked_add(bought).ok_or_else(overflow)?.to_atomics_string();
    set_validator(state, operator, &validator);
    let held = delegation(state, delegator, operator).unwrap_or(Dec::ZERO);
    set_delegation(state, delegator, operator, held.checked_add(bought).ok_or_else(overflow)?);
    Ok(bought)
}

/// Takes shares worth `amount` out of a delegation. Returns what they are worth and when it is paid: `None` where it
/// was paid at once, since the validator has no power to answer for.
pub(super) fn undelegate(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
) -> Result<(Amount, Option<BlockTime>), TxError> {
    let mut validator = require_validator(state, operator)?;
    let held = delegation(state, delegator, operator)
        .ok_or_else(|| StakingError::NoDelegation { delegator: delegator.account(), validator: operator.valoper() })?;
    let available = tokens_of_shares(&validator, held);
    if amount > available {
        return Err(StakingError::NotEnough { available: available.0, asked: amount.0 }.into());
    }
    // Shares truncated down must not leave dust behind where all is asked back.
    let sold = if amount == available { held } else { shares_of_tokens(&validator, amount).ok_or_else(overflow)? };
    let worth = tokens_of_shares(&validator, sold);
    let rest = held.checked_sub(sold).ok_or_else(overflow)?;
    set_delegation(state, delegator, operator, rest);
    validator.tokens = tokens(&validator).checked_sub(worth).ok_or_else(overflow)?.to_string();
    validator.delegator_shares = shares(&validator).checked_sub(sold).ok_or_else(overflow)?.to_atomics_string();
    let own = Amount::parse_or_zero(&validator.min_self_delegation)?;
    if delegator == operator && tokens_of_shares(&validator, rest) < own {
        validator.jailed = true;
    }
    set_validator(state, operator, &validator);
    if super::set::candidates(state, 1).is_empty() {
        return Err(StakingError::LastValidator.into());
    }
    let unbonding = params(state).unbonding_time.map_or(0, |time| time.seconds.max(0).unsigned_abs());
    let completion = match validator.status() {
        BondStatus::Bonded => ctx.time.plus_seconds(unbonding),
        BondStatus::Unbonding => validator.unbonding_time.map_or(ctx.time, |time| from_timestamp(&time)),
        BondStatus::Unbonded | BondStatus::Unspecified => {
            transfer(ctx, state, Pool::NotBondedTokens, *delegator, worth)?;
            if shares(&validator).is_zero() {
                remove_validator(state, operator, &validator);
            }
            return Ok((worth, None));
        }
    };
    if is_bonded(&validator) {
        transfer(ctx, state, Pool::BondedTokens, Pool::NotBondedTokens, worth)?;
    }
    add_unbonding(ctx, state, delegator, operator, worth, completion)?;
    Ok((worth, Some(completion)))
}

pub(super) fn timestamp(time: BlockTime) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: time.nanos }
}

pub(super) fn from_timestamp(time: &Timestamp) -> BlockTime {
    BlockTime { seconds: time.seconds, nanos: time.nanos }
}

/// A prefix and a time, so that the queue's keys sort by it. Times before 1970 sort as 1970.
pub(super) fn queue_key(prefix: u8, time: BlockTime) -> KeyBuilder {
    KeyBuilder::new(prefix).u64(u64::try_from(time.seconds).unwrap_or(0)).u32(u32::try_from(time.nanos).unwrap_or(0))
}

pub(super) fn unbonding_key(delegator: &Address, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(UNBONDING).bytes(&delegator.0).bytes(&operator.0).finish()
}

/// The unbonding entries of a delegator and a validator.
pub(super) fn unbonding(state: &dyn StateRead, delegator: &Address, operator: &Address) -> Option<UnbondingDelegation> {
    let bytes = state.get(&unbonding_key(delegator, operator))?;
    Some(UnbondingDelegation::decode(bytes.as_slice()).expect("unbonding delegations are written encoded"))
}

fn add_unbonding(
    ctx: &Context,
    state: &mut dyn StateWrite,
    delegator: &Address,
    operator: &Address,
    amount: Amount,
    completion: BlockTime,
) -> Result<(), TxError> {
    let max_entries = params(state).max_entries;
    let mut record = unbonding(state, delegator, operator).unwrap_or_else(|| UnbondingDelegation {
        delegator_address: delegator.account(),
        validator_address: operator.valoper(),
        entries: Vec::new(),
    });
    if record.entries.len() as u64 >= u64::from(max_entries) {
        return Err(StakingError::MaxEntries(max_entries).into());
    }
    let id = state.get(&[NEXT_UNBONDING_ID]).and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_be_bytes);
    state.put(vec![NEXT_UNBONDING_ID], (id + 1).to_be_bytes().to_vec());
    record.entries.push(UnbondingDelegationEntry {
        creation_height: i64::try_from(ctx.height).unwrap_or(i64::MAX),
        completion_time: Some(timestamp(completion)),
        initial_balance: amount.to_string(),
        balance: amount.to_string(),
        unbonding_id: id,
        unbonding_on_hold_ref_count: 0,
    });
    state.put(unbonding_key(delegator, operator), record.encode_to_vec());
    let queued = queue_key(UNBONDING_QUEUE, completion).bytes(&delegator.0).bytes(&operator.0).finish();
    state.put(queued, vec![1]);
    Ok(())
}

/// Entries of a queue that are due: the keys from its begin to `now` inclusive, `max` at most.
pub(super) fn due(state: &dyn StateRead, prefix: u8, now: BlockTime, max: usize) -> Vec<Vec<u8>> {
    let mut end = queue_key(prefix, now).finish();
    end.extend_from_slice(&[0xff; 41]);
    state.iter_range(&[prefix], Some(&end), crate::store::Order::Ascending).take(max).map(|(key, _)| key).collect()
}

/// The queue of validators that unbond.
pub(super) fn validator_queue_key(time: BlockTime, operator: &Address) -> Vec<u8> {
    queue_key(VALIDATOR_QUEUE, time).bytes(&operator.0).finish()
}

/// The coin of stake.
pub(super) fn check_denom(denom: &str) -> Result<(), StakingError> {
    if denom == DENOM { Ok(()) } else { Err(StakingError::Denom { expected: DENOM, got: denom.to_owned() }) }
}
