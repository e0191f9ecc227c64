//! Staking's records and their keys: parameters, validators with the index of candidates, delegations, queues.

use polylink_protocol::cosmos::Timestamp;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{BondStatus, Params, Validator};
use polylink_protocol::{Address, DENOM, Dec, Message};

use super::shares::{shares, tokens};
use super::{
    BY_CONSENSUS_ADDRESS, BY_POWER, DELEGATION, DELEGATOR_INDEX, NEXT_UNBONDING_ID, PARAMS, StakingError, VALIDATOR,
    VALIDATOR_QUEUE,
};
use crate::bank::Pool;
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::store::{KeyBuilder, StateRead, StateWrite};
use crate::{distribution, slashing};

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

/// From now until what is taken back now is paid.
pub(super) fn unbonding_completion(ctx: &Context, state: &dyn StateRead) -> BlockTime {
    ctx.time.plus_seconds(params(state).unbonding_time.map_or(0, |time| time.seconds.max(0).unsigned_abs()))
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

fn consensus_index(address: &Address) -> Vec<u8> {
    KeyBuilder::new(BY_CONSENSUS_ADDRESS).bytes(&address.0).finish()
}

/// The operator of the validator whose consensus key has this address.
pub(crate) fn operator_of(state: &dyn StateRead, consensus: &Address) -> Option<Address> {
    state.get(&consensus_index(consensus))?.try_into().ok().map(Address)
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
fn operator_of_power_key(key: &[u8]) -> Option<Address> {
    let inverted: [u8; 20] = key.get(9..)?.try_into().ok()?;
    Some(Address(inverted.map(|byte| !byte)))
}

/// The operators of the strongest candidates, strongest first.
pub(super) fn candidates(state: &dyn StateRead, max: usize) -> Vec<Address> {
    let keys = state.iter_prefix_rev(&[BY_POWER]).take(max);
    keys.filter_map(|(key, _)| operator_of_power_key(&key)).collect()
}

/// Writes a validator and keeps the index of candidates.
pub(super) fn set_validator(state: &mut dyn StateWrite, operator: &Address, new: &Validator) {
    let (before, after) = (validator(state, operator).map_or(0, |old| power(&old)), power(new));
    if before != after {
        if before > 0 {
            state.delete(power_key(operator, before));
        }
        if after > 0 {
            state.put(power_key(operator, after), vec![1]);
        }
    }
    state.put(validator_key(operator), new.encode_to_vec());
}

/// Writes a validator that was not there, with the index of its key, and lets the other modules know of it.
pub(super) fn create_validator(
    state: &mut dyn StateWrite,
    operator: &Address,
    consensus: &Address,
    new: &Validator,
) -> Result<(), TxError> {
    state.put(consensus_index(consensus), operator.0.to_vec());
    set_validator(state, operator, new);
    distribution::validator_created(state, operator);
    Ok(())
}

/// Forgets a validator without shares and tokens. What it is still owed is paid.
pub(super) fn remove_validator(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    validator: &Validator,
) -> Result<(), TxError> {
    if power(validator) > 0 {
        state.delete(power_key(operator, power(validator)));
    }
    state.delete(validator_key(operator));
    if let Some(consensus) = consensus_address(validator) {
        state.delete(consensus_index(&consensus));
    }
    distribution::validator_removed(ctx, state, operator)
}

/// Takes a validator out of the candidates until it is let out again. The set is without it from the block's end on.
pub(crate) fn jail(state: &mut dyn StateWrite, operator: &Address) {
    if let Some(record) = validator(state, operator).filter(|record| !record.jailed) {
        set_validator(state, operator, &Validator { jailed: true, ..record });
    }
}

/// Makes a validator a candidate again.
pub(crate) fn unjail(state: &mut dyn StateWrite, operator: &Address) {
    if let Some(record) = validator(state, operator).filter(|record| record.jailed) {
        set_validator(state, operator, &Validator { jailed: false, ..record });
    }
}

/// The 32 bytes of a validator's consensus key.
pub(super) fn consensus_key(validator: &Validator) -> Option<[u8; 32]> {
    let any = validator.consensus_pubkey.as_ref()?;
    PubKey::decode(any.value.as_slice()).ok()?.key.try_into().ok()
}

/// The address of a validator's consensus key, by which CometBFT speaks of it.
pub(crate) fn consensus_address(validator: &Validator) -> Option<Address> {
    consensus_key(validator).map(|key| Address::of_consensus_key(&key))
}

pub(super) fn is_bonded(validator: &Validator) -> bool {
    validator.status == BondStatus::Bonded as i32
}

/// The pool that holds a validator's tokens.
pub(super) fn pool_of(validator: &Validator) -> Pool {
    if is_bonded(validator) { Pool::BondedTokens } else { Pool::NotBondedTokens }
}

/// A validator that nobody stands behind and that has no power to answer for.
pub(super) fn is_forgotten(validator: &Validator) -> bool {
    validator.status() == BondStatus::Unbonded && shares(validator).is_zero()
}

/// Becomes known to those who watch signatures when it enters the set.
pub(super) fn bonded(ctx: &Context, state: &mut dyn StateWrite, validator: &Validator) {
    if let Some(consensus) = consensus_address(validator) {
        slashing::validator_bonded(ctx, state, &consensus);
    }
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

pub(super) fn require_delegation(
    state: &dyn StateRead,
    delegator: &Address,
    operator: &Address,
) -> Result<Dec, StakingError> {
    delegation(state, delegator, operator)
        .ok_or_else(|| StakingError::NoDelegation { delegator: delegator.account(), validator: operator.valoper() })
}

/// The validators that an account has delegated to, with its shares; `max` at most.
pub(crate) fn delegations_of(state: &dyn StateRead, delegator: &Address, max: usize) -> Vec<(Address, Dec)> {
    let prefix = KeyBuilder::new(DELEGATION).bytes(&delegator.0).finish();
    let rows = state.iter_prefix(&prefix).take(max);
    rows.filter_map(|(key, value)| Some((Address(key.get(21..)?.try_into().ok()?), parse_shares(&value)))).collect()
}

/// Writes a delegation, or forgets it where no shares are left.
pub(super) fn set_delegation(state: &mut dyn StateWrite, delegator: &Address, operator: &Address, shares: Dec) {
    let index = KeyBuilder::new(DELEGATOR_INDEX).bytes(&operator.0).bytes(&delegator.0).finish();
    if shares.is_zero() {
        state.delete(delegation_key(delegator, operator));
        state.delete(index);
    } else {
        state.put(delegation_key(delegator, operator), shares.to_be_bytes().to_vec());
        state.put(index, vec![1]);
    }
}

pub(super) fn timestamp(time: BlockTime) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: time.nanos }
}

pub(super) fn from_timestamp(time: &Timestamp) -> BlockTime {
    BlockTime { seconds: time.seconds, nanos: time.nanos }
}

/// The number of the next unbonding or redelegation entry.
pub(super) fn next_entry_id(state: &mut dyn StateWrite) -> u64 {
    let id = state.get(&[NEXT_UNBONDING_ID]).and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_be_bytes);
    state.put(vec![NEXT_UNBONDING_ID], (id + 1).to_be_bytes().to_vec());
    id
}

/// A prefix and a time, so that the queue's keys sort by it. Times before 1970 sort as 1970.
pub(super) fn queue_key(prefix: u8, time: BlockTime) -> KeyBuilder {
    KeyBuilder::new(prefix).u64(u64::try_from(time.seconds).unwrap_or(0)).u32(u32::try_from(time.nanos).unwrap_or(0))
}

/// The queue of validators that unbond.
pub(super) fn validator_queue_key(time: BlockTime, operator: &Address) -> Vec<u8> {
    queue_key(VALIDATOR_QUEUE, time).bytes(&operator.0).finish()
}

/// The addresses behind the time of a queue's key: `N` of them.
pub(super) fn queued<const N: usize>(key: &[u8]) -> Option<[Address; N]> {
    let mut addresses = [Address([0; 20]); N];
    for (index, address) in addresses.iter_mut().enumerate() {
        let at = 13 + 20 * index;
        *address = Address(key.get(at..at + 20)?.try_into().ok()?);
    }
    Some(addresses)
}

/// Takes the entries of a queue that are due (until `now`, inclusive), `max` at most.
pub(super) fn take_due<const N: usize>(
    state: &mut dyn StateWrite,
    prefix: u8,
    now: BlockTime,
    max: usize,
) -> Vec<[Address; N]> {
    let mut end = queue_key(prefix, now).finish();
    end.extend_from_slice(&[0xff; 61]);
    let due = state.iter_range(&[prefix], Some(&end), crate::store::Order::Ascending);
    let due: Vec<Vec<u8>> = due.take(max).map(|(key, _)| key).collect();
    due.into_iter()
        .filter_map(|key| {
            let addresses = queued(&key);
            state.delete(key);
            addresses
        })
        .collect()
}

/// The coin of stake.
pub(super) fn check_denom(denom: &str) -> Result<(), TxError> {
    if denom == DENOM {
        return Ok(());
    }
    Err(TxError::invalid(format!("invalid coin denomination: got {}, expected {DENOM}", denom.escape_debug())))
}
