//! Dropping what no readable height needs any more.
//!
//! Each commit writes down what it made stale, under its own height, some hundred marks to a row (a row
//! of its own for each would double what a block writes); a later commit, once the window has passed
//! that height, removes it. Work per commit is bounded by twice what the block itself made
//! stale and some slack, so that a backlog (after the window was shortened) shrinks while no block
//! ever waits for all of it.
//!
//! A mark names the row that is stale, or the deletion whose height has passed; the next search begins at the height where
//! the last one ended, which the head says: a scan from the first mark on would walk over everything that was removed
//! before and is not compacted yet.

use std::collections::BTreeSet;

use fjall::Readable;
use jmt::KeyHash;

use super::StoreError;
use super::snapshot::Snapshot;
use super::tree::{DELETED, HEIGHT, STALE, Tables, decode_preimage, preimage_row};

/// Rows of backlog that any commit removes, whatever its own size.
pub(super) const SLACK: usize = 1024;

/// Marks of one row at most.
const ROW_MARKS: usize = 512;

/// The marks of a commit, row by row: each mark is the length of what it names (1) and that, the row of a node, of a value
/// or of a deletion.
#[derive(Default)]
pub(super) struct Marks {
    rows: Vec<Vec<u8>>,
    count: usize,
}

impl Marks {
    /// Marks a row.
    pub(super) fn row(&mut self, what: &[u8]) {
        if self.count.is_multiple_of(ROW_MARKS) {
            self.rows.push(Vec::new());
        }
        self.count += 1;
        if let Some(row) = self.rows.last_mut() {
            row.push(u8::try_from(what.len()).expect("a row of the tree has at most 42 bytes"));
            row.extend_from_slice(what);
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
    [&[HEIGHT], &since.to_be_bytes()[..], &[STALE], index].concat()
}

/// The rows that no height from `oldest` on needs, found through some `limit` marks and heights from `from` on (the last row
/// of marks is taken whole); the marks' rows are among them. `changed` says which keys the commit itself writes: their
/// preimages stay. Also the height at which the next search begins.
pub(super) fn due(
    newest: &Snapshot,
    tables: &Tables,
    (from, oldest): (u64, u64),
    limit: usize,
    changed: impl Fn(&KeyHash) -> bool,
) -> Result<(BTreeSet<Vec<u8>>, u64), StoreError> {
    let mut rows = BTreeSet::new();
    let next = oldest.saturating_add(1);
    if newest.height() == 0 {
        return Ok((rows, next));
    }
    let damaged = || StoreError::Damaged("a mark of staleness has no known form".into());
    let mut count = 0;
    for since in from.min(next)..next {
        if count >= limit {
            return Ok((rows, since));
        }
        count += 1;
        for guard in newest.database().prefix(&tables.heights, stale_row(since, &[])) {
            if count >= limit {
                return Ok((rows, since));
            }
            let (key, marks) = guard.into_inner()?;
            let mut marks = &*marks;
            while !marks.is_empty() {
                let what = take_mark(&mut marks).ok_or_else(damaged)?;
                count += 1;
                match what.split_first() {
                    Some((&HEIGHT, _)) => {}
                    Some((&DELETED, rest)) => {
                        let key = KeyHash(*rest.last_chunk().ok_or_else(damaged)?);
                        let preimage = preimage_row(&key);
                        let row = newest.database().get(&tables.tree, &preimage)?;
                        let there = row.map(|row| decode_preimage(&row).map(|(there, _)| there)).transpose()?;
                        // Unless the key has come back.
                        if there.is_some_and(|there| there < since) && !changed(&key) {
                            rows.insert(preimage);
                        }
                    }
                    _ => return Err(damaged()),
                }
                rows.insert(what.to_vec());
            }
            rows.insert(key.to_vec());
        }
    }
    Ok((rows, next))
}
