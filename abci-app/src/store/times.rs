//! When blocks were made, as far as it decides which of them may be forgotten.
//!
//! Every [`EVERY`]th height leaves a row of its time. Nothing of it is part of the state: a node that joined late knows
//! the times since then.

use fjall::{Guard, OwnedWriteBatch, Readable};

use super::StoreError;
use super::snapshot::Snapshot;
use super::tree::Tables;

/// First byte of a time's row.
pub(super) const TIME: u8 = b't';

/// One height in so many leaves its time.
const EVERY: u64 = 16;

/// Rows that one commit removes at most.
const REMOVED_MAX: usize = 1024;

/// A block's time, with how long blocks are needed.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Seconds since the Unix epoch.
    pub seconds: u64,
    /// Blocks younger than this may not be forgotten: the unbonding time, within which misbehaviour is punished and
    /// light clients trust a header.
    pub window_seconds: u64,
}

fn row(seconds: u64) -> Vec<u8> {
    [&[TIME], &seconds.to_be_bytes()[..]].concat()
}

/// Writes a height's time, and returns the newest height known to be older than the window. The rows of older ones say
/// nothing any more and go.
pub(super) fn put(
    batch: &mut OwnedWriteBatch,
    newest: &Snapshot,
    tables: &Tables,
    height: u64,
    moment: Moment,
) -> Result<u64, StoreError> {
    if height.is_multiple_of(EVERY) {
        batch.insert(&tables.tree, row(moment.seconds), height.to_be_bytes());
    }
    let Some(cutoff) = moment.seconds.checked_sub(moment.window_seconds) else { return Ok(0) };
    let mut before = newest.database().range(&tables.tree, row(0)..=row(cutoff));
    let Some(settled) = before.next_back().map(Guard::into_inner).transpose()? else { return Ok(0) };
    if height.is_multiple_of(EVERY) {
        for old in newest.database().range(&tables.tree, row(0)..row(cutoff)).take(REMOVED_MAX) {
            let old = old.key()?;
            if old < settled.0 {
                batch.remove(&tables.tree, old);
            }
        }
    }
    let height: [u8; 8] = settled.1.as_ref().try_into().map_err(|_| StoreError::Damaged("a height's row".into()))?;
    Ok(u64::from_be_bytes(height))
}
