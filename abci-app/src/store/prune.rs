//! Dropping what no readable height needs any more.
//!
//! Each commit writes down what it made stale, under its own height, some hundred marks to a row (a row
//! of its own for each would double what a block writes); a later commit, once the window has passed
//! that height, removes it. Work per commit is bounded by twice what the block itself made
//! stale and some slack, so that a backlog (after the window was shortened) shrinks while no block
//! ever waits for all of it.
//!
//! Every mark removes the one value that its own commit overwrote, and the next search begins where the
//! last one ended: a scan from the first mark or the first version on would walk over everything that
//! was removed before and is not compacted yet.

use std::collections::BTreeSet;

use fjall::Readable;
use jmt::KeyHash;

use super::StoreError;
use super::snapshot::Snapshot;
use super::tree::{NODE, STALE, Tables, VALUE, deleted_row, preimage_row, value_row};

/// Rows of backlog that any commit removes, whatever its own size.
pub(super) const SLACK: usize = 1024;

/// Marks of one row at most.
const ROW_MARKS: usize = 512;

/// The marks of a commit, row by row: each mark is the length of what it names (1) and that, a node's row, or `v` ‖ SHA-256
/// of the key whose values below the commit's height are stale.
#[derive(Default)]
pub(super) struct Marks {
    rows: Vec<Vec<u8>>,
    count: usize,
}

impl Marks {
    /// Marks a node as stale.
    pub(super) fn node(&mut self, row: &[u8]) {
        self.mark(&[row]);
    }

    /// Marks the older values of a key as stale.
    pub(super) fn values(&mut self, key: &KeyHash) {
        self.mark(&[&[VALUE], &key.0]);
    }

    fn mark(&mut self, what: &[&[u8]]) {
        if self.count.is_multiple_of(ROW_MARKS) {
            self.rows.push(Vec::new());
        }
        self.count += 1;
        let length = what.iter().map(|part| part.len()).sum::<usize>();
        if let Some(row) = self.rows.last_mut() {
            row.push(u8::try_from(length).expect("a row of the tree has at most 53 bytes"));
            what.iter().for_each(|part| row.extend_from_slice(part));
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The rows with their keys.
    pub(super) fn rows(self, height: u64) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        (0_u32..).zip(self.rows).map(move |(index, marks)| (stale_row(height, &index.to_be_bytes()), marks))
    }
}

/// The next mark of a row.
fn take_mark<'a>(marks: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&length, rest) = marks.split_first()?;
    let (what, rest) = rest.split_at_checked(length.into())?;
    *marks = rest;
    Some(what)
}

fn stale_row(since: u64, index: &[u8]) -> Vec<u8> {
    [&[STALE], &since.to_be_bytes()[..], index].concat()
}

/// The rows that no height from `oldest` on needs, found through some `limit` marks from height `from` on (the last row of
/// them is taken whole); the marks' rows are among them. `changed` says which keys the commit itself writes: their
/// preimages stay. Also the height at which the next search begins.
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
    let mut count = 0;
    for guard in newest.database().range(&tables.tree, marks) {
        let (key, marks) = guard.into_inner()?;
        let damaged = || StoreError::Damaged("a mark of staleness has no known form".into());
        let since = u64::from_be_bytes(*key[1..].first_chunk::<8>().ok_or_else(damaged)?);
        if count >= limit {
            next = since;
            break;
        }
        let mut marks = &*marks;
        while !marks.is_empty() {
            let what = take_mark(&mut marks).ok_or_else(damaged)?;
            count += 1;
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
        }
        rows.insert(key.to_vec());
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
        rows.insert(deleted_row(key, since));
        if !came_back && !changed(key) {
            rows.insert(preimage_row(key));
        }
    }
    Ok(())
}
