//! The distribution's records and their bytes. All amounts are of uplk, with 18 decimals.

use polylink_protocol::cosmos::cosmos::distribution::v1beta1::Params;
use polylink_protocol::{Address, Dec, Message};

use super::{COMMISSION, COMMUNITY_POOL, CURRENT, HISTORICAL, OUTSTANDING, PARAMS, SLASH, STARTING, WITHDRAW_ADDRESS};
use crate::store::{KeyBuilder, StateRead, StateWrite};

pub(super) fn params(state: &dyn StateRead) -> Params {
    let bytes = state.get(&[PARAMS]).unwrap_or_default();
    Params::decode(bytes.as_slice()).expect("parameters are written encoded")
}

pub(super) fn set_params(state: &mut dyn StateWrite, params: &Params) {
    state.put(vec![PARAMS], params.encode_to_vec());
}

fn of_validator(prefix: u8, operator: &Address) -> Vec<u8> {
    KeyBuilder::new(prefix).bytes(&operator.0).finish()
}

/// The first 32 bytes of a value.
pub(super) fn dec(bytes: &[u8]) -> Dec {
    Dec::from_be_bytes(bytes[..32].try_into().expect("decimals are written with 32 bytes"))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("numbers are written with 8 bytes"))
}

fn get_dec(state: &dyn StateRead, key: &[u8]) -> Dec {
    state.get(key).map_or(Dec::ZERO, |bytes| dec(&bytes))
}

/// Zero has no key.
fn set_dec(state: &mut dyn StateWrite, key: Vec<u8>, value: Dec) {
    if !value.is_zero() {
        state.put(key, value.to_be_bytes().to_vec());
    } else if state.contains(&key) {
        state.delete(key);
    }
}

pub(super) fn community_pool(state: &dyn StateRead) -> Dec {
    get_dec(state, &[COMMUNITY_POOL])
}

pub(super) fn set_community_pool(state: &mut dyn StateWrite, value: Dec) {
    set_dec(state, vec![COMMUNITY_POOL], value);
}

pub(super) fn outstanding(state: &dyn StateRead, operator: &Address) -> Dec {
    get_dec(state, &of_validator(OUTSTANDING, operator))
}

pub(super) fn set_outstanding(state: &mut dyn StateWrite, operator: &Address, value: Dec) {
    set_dec(state, of_validator(OUTSTANDING, operator), value);
}

pub(super) fn commission(state: &dyn StateRead, operator: &Address) -> Dec {
    get_dec(state, &of_validator(COMMISSION, operator))
}

pub(super) fn set_commission(state: &mut dyn StateWrite, operator: &Address, value: Dec) {
    set_dec(state, of_validator(COMMISSION, operator), value);
}

/// The period that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Current {
    /// What delegators have earned in it.
    pub rewards: Dec,
    /// Its number.
    pub period: u64,
}

pub(super) fn current(state: &dyn StateRead, operator: &Address) -> Option<Current> {
    let bytes = state.get(&of_validator(CURRENT, operator))?;
    Some(Current { rewards: dec(&bytes), period: number(&bytes[32..]) })
}

pub(super) fn set_current(state: &mut dyn StateWrite, operator: &Address, current: Current) {
    let mut value = current.rewards.to_be_bytes().to_vec();
    value.extend_from_slice(&current.period.to_be_bytes());
    state.put(of_validator(CURRENT, operator), value);
}

/// A period that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Historical {
    /// What one token has earned from the validator's begin to the period's end.
    pub ratio: Dec,
    /// Delegations and slashes that begin with it, and one if it is the last.
    pub references: u32,
}

fn historical_key(operator: &Address, period: u64) -> Vec<u8> {
    KeyBuilder::new(HISTORICAL).bytes(&operator.0).u64(period).finish()
}

pub(super) fn historical(state: &dyn StateRead, operator: &Address, period: u64) -> Option<Historical> {
    let bytes = state.get(&historical_key(operator, period))?;
    let references = bytes[32..].try_into().expect("references are written with 4 bytes");
    Some(Historical { ratio: dec(&bytes), references: u32::from_be_bytes(references) })
}

/// A period without references is forgotten.
pub(super) fn set_historical(state: &mut dyn StateWrite, operator: &Address, period: u64, record: Historical) {
    if record.references == 0 {
        return state.delete(historical_key(operator, period));
    }
    let mut value = record.ratio.to_be_bytes().to_vec();
    value.extend_from_slice(&record.references.to_be_bytes());
    state.put(historical_key(operator, period), value);
}

/// From where on a delegation earns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Starting {
    /// The period that ended with its begin.
    pub previous_period: u64,
    /// Its worth then, in tokens.
    pub stake: Dec,
    /// The height of its begin.
    pub height: u64,
}

fn starting_key(operator: &Address, delegator: &Address) -> Vec<u8> {
    KeyBuilder::new(STARTING).bytes(&operator.0).bytes(&delegator.0).finish()
}

pub(super) fn starting(state: &dyn StateRead, operator: &Address, delegator: &Address) -> Option<Starting> {
    let bytes = state.get(&starting_key(operator, delegator))?;
    Some(Starting { previous_period: number(&bytes[..8]), stake: dec(&bytes[8..]), height: number(&bytes[40..]) })
}

pub(super) fn set_starting(state: &mut dyn StateWrite, operator: &Address, delegator: &Address, record: Starting) {
    let mut value = record.previous_period.to_be_bytes().to_vec();
    value.extend_from_slice(&record.stake.to_be_bytes());
    value.extend_from_slice(&record.height.to_be_bytes());
    state.put(starting_key(operator, delegator), value);
}

pub(super) fn remove_starting(state: &mut dyn StateWrite, operator: &Address, delegator: &Address) {
    state.delete(starting_key(operator, delegator));
}

/// A slash: the stake of every delegation shrank by this fraction when the period had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slash {
    pub height: u64,
    pub period: u64,
    pub fraction: Dec,
}

/// The key behind `0x37 ‖ operator`, and the value.
pub(super) fn parse_slash(tail: &[u8], value: &[u8]) -> Option<Slash> {
    let at = |from: usize| Some(number(tail.get(from..from + 8)?));
    Some(Slash { height: at(0)?, period: at(8)?, fraction: dec(value) })
}

pub(super) fn set_slash(state: &mut dyn StateWrite, operator: &Address, slash: Slash) {
    let key = KeyBuilder::new(SLASH).bytes(&operator.0).u64(slash.height).u64(slash.period).finish();
    state.put(key, slash.fraction.to_be_bytes().to_vec());
}

/// The slashes of a validator between two heights, both inclusive, in their order.
pub(super) fn slashes(state: &dyn StateRead, operator: &Address, from: u64, to: u64) -> Vec<Slash> {
    let prefix = of_validator(SLASH, operator);
    let start = [prefix.as_slice(), &from.to_be_bytes()].concat();
    let rows = state.iter_prefix_from(&prefix, &start);
    let rows = rows.filter_map(|(key, value)| parse_slash(key.get(21..)?, &value));
    rows.take_while(|slash| slash.height <= to).collect()
}

/// Drops everything of a validator but what it is owed.
pub(super) fn forget(state: &mut dyn StateWrite, operator: &Address) {
    for prefix in [CURRENT, HISTORICAL, SLASH, COMMISSION, OUTSTANDING] {
        let keys: Vec<Vec<u8>> = state.iter_prefix(&of_validator(prefix, operator)).map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| state.delete(key));
    }
}

fn withdraw_key(account: &Address) -> Vec<u8> {
    KeyBuilder::new(WITHDRAW_ADDRESS).bytes(&account.0).finish()
}

/// Where an account's rewards go: to itself, unless it has said otherwise.
pub(super) fn withdraw_address(state: &dyn StateRead, account: &Address) -> Address {
    state.get(&withdraw_key(account)).and_then(|bytes| bytes.try_into().ok()).map_or(*account, Address)
}

pub(super) fn set_withdraw_address(state: &mut dyn StateWrite, account: &Address, to: &Address) {
    state.put(withdraw_key(account), to.0.to_vec());
}
