//! The whole state as a genesis document: what a new chain goes on from.
//!
//! An exported state is every key with its value, as `docs/state-keys.md` lists them, so that nothing is lost or converted
//! on the way. The chain that is started from it begins at the height after it, with the validators that stood there; the
//! application hash is the same as it would have been. What must hold of a state is verified before anything is started.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polylink_protocol::DENOM;
use serde::{Deserialize, Serialize};

use crate::chain::{CHAIN_ID, EPOCH_BLOCKS, set_last_time};
use crate::context::{BlockTime, ValidatorUpdate};
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::store::{Changes, MemoryState, Order, Snapshot, StateRead, StateWrite};
use crate::{bank, distribution, gov, slashing, staking};

#[cfg(test)]
mod tests;

/// A state of another chain, or of another time of this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// The height that it was committed at.
    pub height: u64,
    /// The version of its keys and values.
    pub schema: u64,
    /// Keys and values in base64, in the order of the keys.
    pub entries: Vec<(String, String)>,
}

/// The newest state as `app_state`, after everything that must hold of it was verified.
///
/// # Errors
/// What does not hold.
pub fn export(snapshot: &Snapshot) -> Result<serde_json::Value, GenesisError> {
    check(snapshot)?;
    let rows = snapshot.iter_range(&[], None, Order::Ascending);
    let entries = rows.map(|(key, value)| (BASE64.encode(key), BASE64.encode(value))).collect();
    let exported = Exported { height: snapshot.height(), schema: crate::chain::SCHEMA_VERSION, entries };
    Ok(serde_json::json!({ "exported": exported }))
}

/// Adds up everything that must add up.
fn check(state: &dyn StateRead) -> Result<(), GenesisError> {
    let wrong = |breach: String| GenesisError::invalid("exported", breach);
    if bank::supply(state, DENOM).is_zero() || !state.contains(&[EPOCH_BLOCKS]) {
        return Err(wrong("this is no state of a chain that has begun".into()));
    }
    bank::scan(state).map_err(|breach| wrong(breach.to_string()))?;
    distribution::scan(state).map_err(|breach| wrong(breach.to_string()))?;
    staking::scan(state).map_err(wrong)?;
    slashing::scan(state).map_err(wrong)?;
    gov::scan(state).map_err(|breach| wrong(breach.to_string()))
}

/// The state before the first block of a chain that goes on from an exported one.
pub(crate) fn import(
    chain_id: &str,
    time: BlockTime,
    genesis: &Genesis,
    exported: &Exported,
) -> Result<(Changes, Vec<ValidatorUpdate>), GenesisError> {
    let wrong = |reason: &str| Err(GenesisError::invalid("exported", reason));
    if Genesis::default() != (Genesis { exported: None, ..genesis.clone() }) {
        return wrong("beside an exported state nothing else is said");
    }
    if exported.schema != crate::chain::SCHEMA_VERSION {
        return wrong("its keys and values are of another version than this program's");
    }
    let mut state = MemoryState::default();
    for (index, (key, value)) in exported.entries.iter().enumerate() {
        let decode = |text: &str| {
            BASE64.decode(text).map_err(|error| GenesisError::invalid(format!("exported.entries[{index}]"), error))
        };
        let key = decode(key)?;
        if key.is_empty() || key.len() > crate::store::MAX_KEY_BYTES {
            return Err(GenesisError::invalid(format!("exported.entries[{index}]"), "no key of a state"));
        }
        state.put(key, decode(value)?);
    }
    check(&state)?;
    state.put(vec![CHAIN_ID], chain_id.as_bytes().to_vec());
    set_last_time(&mut state, time);
    let updates = staking::told(&state);
    Ok((state.0.into_iter().map(|(key, value)| (key, Some(value))).collect(), updates))
}
