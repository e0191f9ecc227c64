//! The law of the bank: nothing appears or disappears but by minting and burning.
//!
//! The check looks at keys and values alone, not at how they came about, so that it also catches a module that writes
//! balances behind the bank's back.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::Amount;

use super::{BALANCE, FLOWS, SUPPLY, amount_of, flows, supply};
use crate::store::{Changes, Overlay, StateRead};

/// Money appeared or disappeared. The process stops before the block is committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "conservation of {denom} is breached: balances went from {before} to {after}, supply from {supply_before} to \
     {supply_after}, with {minted} minted and {burned} burned; nothing was committed, do not restart this binary: \
     report it"
)]
pub struct Breach {
    /// Of which coin.
    pub denom: String,
    /// Sum of the touched balances before.
    pub before: Amount,
    /// Sum of the touched balances after.
    pub after: Amount,
    /// Recorded supply before.
    pub supply_before: Amount,
    /// Recorded supply after.
    pub supply_after: Amount,
    /// Minted in between.
    pub minted: Amount,
    /// Burned in between.
    pub burned: Amount,
}

/// Sums of the touched balances, before and after.
#[derive(Default)]
struct Touched {
    before: Amount,
    after: Amount,
}

fn denom_of(balance_key: &[u8]) -> String {
    String::from_utf8_lossy(balance_key.get(21..).unwrap_or_default()).into_owned()
}

/// Verifies that `changes` to `base` conserve every coin that they touch: after + burned = before + minted, for the
/// balances and for the recorded supply.
pub fn check_conservation(base: &dyn StateRead, changes: &Changes) -> Result<(), Box<Breach>> {
    let mut coins: BTreeMap<String, Touched> = BTreeMap::new();
    for (key, value) in changes {
        match key.first() {
            Some(&BALANCE) => {
                let coin = coins.entry(denom_of(key)).or_default();
                // Saturation cannot hide a breach: sums of balances stay far below 2^128 unless money was made.
                let before = base.get(key).map_or(Amount::ZERO, |bytes| amount_of(&bytes));
                let after = value.as_deref().map_or(Amount::ZERO, amount_of);
                coin.before = Amount(coin.before.0.saturating_add(before.0));
                coin.after = Amount(coin.after.0.saturating_add(after.0));
            }
            Some(&SUPPLY | &FLOWS) => {
                coins.entry(String::from_utf8_lossy(&key[1..]).into_owned()).or_default();
            }
            _ => {}
        }
    }
    let totals = changes.iter().filter(|(key, _)| matches!(key.first(), Some(&SUPPLY | &FLOWS)));
    let after_state = Overlay::with_changes(base, totals.map(|(key, value)| (key.clone(), value.clone())).collect());
    for (denom, touched) in coins {
        let (minted_before, burned_before) = flows(base, &denom);
        let (minted_after, burned_after) = flows(&after_state, &denom);
        let breach = Breach {
            before: touched.before,
            after: touched.after,
            supply_before: supply(base, &denom),
            supply_after: supply(&after_state, &denom),
            minted: minted_after.saturating_sub(minted_before),
            burned: burned_after.saturating_sub(burned_before),
            denom,
        };
        let holds = |before: Amount, after: Amount| {
            before.checked_add(breach.minted) == after.checked_add(breach.burned)
                && before.checked_add(breach.minted).is_some()
        };
        let monotonic = minted_after >= minted_before && burned_after >= burned_before;
        if !monotonic || !holds(breach.before, breach.after) || !holds(breach.supply_before, breach.supply_after) {
            return Err(Box::new(breach));
        }
    }
    Ok(())
}

/// Adds up every balance of the state and compares it with the recorded supply of each coin.
pub fn scan(state: &dyn StateRead) -> Result<(), Box<Breach>> {
    let mut sums: BTreeMap<String, Amount> = BTreeMap::new();
    for (key, value) in state.iter_prefix(&[BALANCE]) {
        let sum = sums.entry(denom_of(&key)).or_default();
        *sum = Amount(sum.0.saturating_add(amount_of(&value).0));
    }
    let supplied: BTreeSet<String> =
        state.iter_prefix(&[SUPPLY]).map(|(key, _)| String::from_utf8_lossy(&key[1..]).into_owned()).collect();
    for denom in supplied.into_iter().chain(sums.keys().cloned()) {
        let (recorded, found) = (supply(state, &denom), sums.get(&denom).copied().unwrap_or_default());
        if recorded != found {
            let (minted, burned) = flows(state, &denom);
            return Err(Box::new(Breach {
                before: recorded,
                after: found,
                supply_before: recorded,
                supply_after: recorded,
                minted,
                burned,
                denom,
            }));
        }
    }
    Ok(())
}
