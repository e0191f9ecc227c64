//! Dropping what no readable height needs any more.
//!
//! Each commit writes down what it made stale, under its own height; a later commit, once the window
//! has passed that height, removes it. Work per commit is bounded by twice what the block itself made
//! stale and some slack, so that a backlog (after the window was shortened) shrinks while no block
//! ever waits for all of it.
//!
//! Every mark removes the one value that its own commit overwrote, and the next search begins where the
//! last one ended: a scan from the first mark or the first version on would walk over everything that
//! was removed before and is not compacted yet.

use std::collections::BTreeSet;

use fjall::Readable;
use jmt::KeyHash;
use jmt::storage::StaleNodeIndex;

use super::StoreError;
use super::snapshot::Snapshot;
use super::tree::{NODE, STALE, Tables, VALUE, node_row, preimage_row, value_row};

/// Rows of backlog that any commit removes, whatever its own size.
pub(super) const SLACK: usize = 1024;

/// The row that marks a node as stale.
pub(super) fn stale_node_row(stale: &StaleNodeIndex) -> Vec<u8> {
    stale_row(stale.stale_since_version, &node_row(&stale.node_key))
}

/// The row that marks the values of a key below `height` as stale.
pub(super) fn stale_value_row(height: u64, key: &KeyHash) -> Vec<u8> {
    stale_row(height, &[&[VALUE], &key.0[..]].concat())
}

fn stale_row(since: u64, what: &[u8]) -> Vec<u8> {
    [&[STALE], &since.to_be_bytes()[..], what].concat()
}

/// The rows that no height from `oldest` on needs, found through at most `limit` marks from height `from` on; the marks are
/// among them. `changed` says which keys the commit itself writes: their preimages stay. Also the height at which the next
/// search begins.
pub(super) fn due(
    newest: &Snapshot,
    tables: &Tables,
    (from, oldest): (u64, u64),
    limit: usize,
    changed: impl Fn(&KeyHash) -> bool,
) -> Result<(BTreeSet<Vec<u8>>, u64), StoreError> {
    let mut rows = BTreeSet::new();
    let mut next = oldest.saturating_add(1);
    let marks = stale_row(from.min(next), &[])..stale_row(next, &[]);
    for (count, guard) in newest.database().range(&tables.tree, marks).enumerate() {
        let mark = guard.key()?;
        let damaged = || StoreError::Damaged("a mark of staleness has no known form".into());
        let (since, what) = mark[1..].split_first_chunk::<8>().ok_or_else(damaged)?;
        let since = u64::from_be_bytes(*since);
        if count == limit {
            next = since;
            break;
        }
        match what.split_first() {
            Some((&NODE, _)) => {
                rows.insert(what.to_vec());
            }
            Some((&VALUE, key)) => {
                let key = KeyHash(key.try_into().map_err(|_| damaged())?);
                due_values(newest, tables, &mut rows, &key, since, &changed)?;
            }
            _ => return Err(damaged()),
        }
        rows.insert(mark.to_vec());
    }
    Ok((rows, next))
}

/// The value of `key` that was overwritten at `since`; where it was deleted then, the marker too, and the
/// preimage if the key has not come back.
fn due_values(
    newest: &Snapshot,
    tables: &Tables,
    rows: &mut BTreeSet<Vec<u8>>,
    key: &KeyHash,
    since: u64,
    changed: &impl Fn(&KeyHash) -> bool,
) -> Result<(), StoreError> {
    let database = newest.database();
    if let Some(overwritten) = database.range(&tables.tree, value_row(key, 0)..value_row(key, since)).next_back() {
        rows.insert(overwritten.key()?.to_vec());
    }
    let marker = value_row(key, since);
    if database.get(&tables.tree, &marker)?.is_some_and(|value| *value == [0]) {
        let later = value_row(key, since + 1)..=value_row(key, u64::MAX);
        let came_back = database.range(&tables.tree, later).next().is_some();
        rows.insert(marker);
        if !came_back && !changed(key) {
            rows.insert(preimage_row(key));
        }
    }
    Ok(())
}
