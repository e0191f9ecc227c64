//! Dropping what no readable height needs any more.
//!
//! Each commit writes down what it made stale, under its own height; a later commit, once the window
//! has passed that height, removes it. Work per commit is bounded by twice what the block itself made
//! stale and some slack, so that a backlog (after the window was shortened) shrinks while no block
//! ever waits for all of it.

use fjall::{OwnedWriteBatch, Readable};
use jmt::KeyHash;
use jmt::storage::StaleNodeIndex;

use super::snapshot::Snapshot;
use super::tree::{Tables, node_row, value_row};
use super::{StoreError, prefix_end};

/// Rows of backlog that any commit removes, whatever its own size.
pub(super) const SLACK: usize = 1024;

const NODE: u8 = 0;
const VALUE: u8 = 1;

/// The row that marks a node as stale.
pub(super) fn stale_node_row(stale: &StaleNodeIndex) -> Vec<u8> {
    let mut row = stale.stale_since_version.to_be_bytes().to_vec();
    row.push(NODE);
    row.extend(node_row(&stale.node_key));
    row
}

/// The row that marks the values of a key below `height` as stale.
pub(super) fn stale_value_row(height: u64, key: &KeyHash) -> Vec<u8> {
    let mut row = height.to_be_bytes().to_vec();
    row.push(VALUE);
    row.extend(key.0);
    row
}

/// Adds to `batch` the removal of at most `limit` stale rows that no height from `oldest` on needs.
/// `changed` says which keys the batch itself writes: their rows are not touched, for one batch may
/// not both write and remove a row.
pub(super) fn prune(
    newest: &Snapshot,
    tables: &Tables,
    batch: &mut OwnedWriteBatch,
    oldest: u64,
    limit: usize,
    changed: impl Fn(&KeyHash) -> bool,
) -> Result<(), StoreError> {
    let database = newest.database();
    let due = oldest.saturating_add(1).to_be_bytes();
    for guard in database.range(&tables.stale, ..due).take(limit) {
        let row = guard.key()?;
        let damaged = || StoreError::Damaged("a row of the table `stale` has no known form".into());
        let (since, rest) = row.split_first_chunk::<8>().ok_or_else(damaged)?;
        match rest.split_first() {
            Some((&NODE, node)) => batch.remove(&tables.nodes, node),
            Some((&VALUE, key)) => {
                let key = KeyHash(key.try_into().map_err(|_| damaged())?);
                drop_values(newest, tables, batch, &key, u64::from_be_bytes(*since), &changed)?;
            }
            _ => return Err(damaged()),
        }
        batch.remove(&tables.stale, row.to_vec());
    }
    Ok(())
}

/// Removes the values of `key` that were written before `since`; where it was deleted then, the
/// marker too, and the preimage if the key has not come back.
fn drop_values(
    newest: &Snapshot,
    tables: &Tables,
    batch: &mut OwnedWriteBatch,
    key: &KeyHash,
    since: u64,
    changed: &impl Fn(&KeyHash) -> bool,
) -> Result<(), StoreError> {
    let database = newest.database();
    for guard in database.range(&tables.values, value_row(key, 0)..value_row(key, since)) {
        batch.remove(&tables.values, guard.key()?.to_vec());
    }
    let marker = value_row(key, since);
    if database.get(&tables.values, &marker)?.is_some_and(|value| *value == [0]) {
        let end = prefix_end(&key.0).unwrap_or_else(|| vec![0xff; 41]);
        let came_back = database.range(&tables.values, value_row(key, since + 1)..end).next().is_some();
        batch.remove(&tables.values, marker);
        if !came_back && !changed(key) {
            batch.remove(&tables.preimages, key.0);
        }
    }
    Ok(())
}
