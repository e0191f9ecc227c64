//! The law of the distribution: its pool holds what is outstanding and the community pool, to the last decimal.

use polylink_protocol::{DENOM, Dec};

use super::records::dec;
use super::{COMMUNITY_POOL, OUTSTANDING};
use crate::bank::{Pool, balance, balance_key};
use crate::store::{Changes, Overlay, StateRead};

/// What is owed is not what the pool holds. The process stops before the block is committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the distribution's pool went from {before} to {after} uplk, what it owes from {owed_before} to {owed_after}; nothing \
     was committed, do not restart this binary: report it"
)]
pub struct Breach {
    /// The pool before.
    pub before: Dec,
    /// The pool after.
    pub after: Dec,
    /// Sum of the touched records before.
    pub owed_before: Dec,
    /// Sum of the touched records after.
    pub owed_after: Dec,
}

fn owes(key: &[u8]) -> bool {
    matches!(key.first(), Some(&COMMUNITY_POOL | &OUTSTANDING))
}

/// Saturation cannot hide a breach: no sum comes near 256 bits.
fn add(sum: Dec, value: Option<&[u8]>) -> Dec {
    value.map_or(sum, |value| sum.checked_add(dec(value)).unwrap_or(sum))
}

/// Verifies that `changes` to `base` move the pool by what they move in its records.
///
/// # Errors
/// The breach.
pub fn check_conservation(base: &dyn StateRead, changes: &Changes) -> Result<(), Box<Breach>> {
    let (mut owed_before, mut owed_after) = (Dec::ZERO, Dec::ZERO);
    for (key, value) in changes.iter().filter(|(key, _)| owes(key)) {
        owed_before = add(owed_before, base.get(key).as_deref());
        owed_after = add(owed_after, value.as_deref());
    }
    let key = balance_key(&Pool::Distribution.address(), DENOM);
    let before = Dec::from_amount(balance(base, Pool::Distribution));
    let own = changes.get_key_value(&key).map(|(key, value)| (key.clone(), value.clone()));
    let after = Overlay::with_changes(base, own.into_iter().collect());
    let after = Dec::from_amount(balance(&after, Pool::Distribution));
    if before.checked_add(owed_after) == after.checked_add(owed_before) {
        return Ok(());
    }
    Err(Box::new(Breach { before, after, owed_before, owed_after }))
}

/// Adds up all that the distribution owes and compares it with its pool: for tests and export.
///
/// # Errors
/// The breach, with an empty state before.
pub fn scan(state: &dyn StateRead) -> Result<(), Box<Breach>> {
    let rows = [COMMUNITY_POOL, OUTSTANDING].into_iter().flat_map(|prefix| state.iter_prefix(&[prefix]));
    let owed_after = rows.fold(Dec::ZERO, |sum, (_, value)| add(sum, Some(&value)));
    let after = Dec::from_amount(balance(state, Pool::Distribution));
    if owed_after == after {
        return Ok(());
    }
    Err(Box::new(Breach { before: Dec::ZERO, after, owed_before: Dec::ZERO, owed_after }))
}
