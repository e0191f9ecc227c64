//! A committed state, held still: what queries read while the next block is executed.

use std::sync::Arc;

use fjall::Readable;
use jmt::Sha256Jmt;
use jmt::storage::TreeReader;

use super::proof::Proof;
use super::tree::{EMPTY_ROOT, Tables, TreeView, key_hash};
use super::{AppHash, MAX_KEY_BYTES, Order, PairIter, StateRead, StoreError};

/// What the newest commit says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub height: u64,
    pub oldest: u64,
    /// Marks of staleness below this height are all done with.
    pub pruned: u64,
    pub app_hash: AppHash,
}

impl Default for Head {
    /// Before the first block.
    fn default() -> Self {
        Head { height: 0, oldest: 0, pruned: 0, app_hash: EMPTY_ROOT }
    }
}

/// The state after one commit. Cheap to clone; reads never wait for a writer. Reads through
/// [`StateRead`] panic when the disk fails; see [`super::state`].
#[derive(Clone)]
pub struct Snapshot(Arc<Inner>);

struct Inner {
    database: fjall::Snapshot,
    tables: Tables,
    head: Head,
}

impl Snapshot {
    pub(super) fn new(database: fjall::Snapshot, tables: Tables, head: Head) -> Self {
        Snapshot(Arc::new(Inner { database, tables, head }))
    }

    pub(super) fn database(&self) -> &fjall::Snapshot {
        &self.0.database
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// Its height.
    pub fn height(&self) -> u64 {
        self.0.head.height
    }

    /// The oldest height that can be read and proved.
    pub fn oldest(&self) -> u64 {
        self.0.head.oldest
    }

    /// Marks of staleness below this height are all done with.
    pub(super) fn pruned(&self) -> u64 {
        self.0.head.pruned
    }

    /// Its root.
    pub fn app_hash(&self) -> AppHash {
        self.0.head.app_hash
    }

    /// The value of `key`, or the failure of the disk. A key that no table may hold, as a query can
    /// ask for, is not there.
    pub fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if key.len() > MAX_KEY_BYTES {
            return Ok(None);
        }
        Ok(self.0.database.get(&self.0.tables.state, key)?.map(|value| value.to_vec()))
    }

    /// The value of `key` after the block of `height`, within the window.
    pub fn get_at(&self, key: &[u8], height: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.readable(height)?;
        if height == self.height() {
            return self.read(key);
        }
        self.view().get_value_option(height, key_hash(key)).map_err(tree_error(height))
    }

    /// The root after the block of `height`, within the window.
    pub fn app_hash_at(&self, height: u64) -> Result<AppHash, StoreError> {
        self.readable(height)?;
        if self.height() == 0 {
            return Ok(EMPTY_ROOT);
        }
        Sha256Jmt::new(&self.view()).get_root_hash(height).map(|root| root.0).map_err(tree_error(height))
    }

    /// The value of `key` after the block of `height` with the proof that it is so, or the proof
    /// that the key is absent. It holds against [`app_hash_at`](Self::app_hash_at) of that height,
    /// which stands in the header of the next one.
    pub fn prove(&self, key: &[u8], height: u64) -> Result<Proof, StoreError> {
        self.readable(height)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(StoreError::Key { bytes: key.len() });
        }
        if self.app_hash_at(height)? == EMPTY_ROOT {
            return Err(StoreError::Empty { height });
        }
        let view = self.view();
        let tree = Sha256Jmt::new(&view);
        let (value, proof) = tree.get_with_ics23_proof(key.to_vec(), height).map_err(tree_error(height))?;
        Ok(Proof { key: key.to_vec(), value, proof })
    }

    pub(super) fn view(&self) -> TreeView<'_> {
        TreeView::new(&self.0.tables, &self.0.database)
    }

    pub(super) fn readable(&self, height: u64) -> Result<(), StoreError> {
        let Head { height: newest, oldest, .. } = self.0.head;
        if (oldest..=newest).contains(&height) {
            return Ok(());
        }
        Err(StoreError::Unavailable { height, oldest, newest })
    }
}

fn tree_error(height: u64) -> impl Fn(anyhow::Error) -> StoreError {
    move |reason| StoreError::Tree { height, reason: format!("{reason:#}") }
}

/// Stops the caller; see the invariant in [`super::state`].
pub(super) fn failed(error: impl std::fmt::Display) -> ! {
    panic!("the state cannot be read: {error}")
}

impl StateRead for Snapshot {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.read(key) {
            Ok(value) => value,
            Err(error) => failed(error),
        }
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        if end.is_some_and(|end| end <= start) {
            return Box::new(std::iter::empty());
        }
        // The database panics on keys beyond its own limit, and a query may ask from any. No stored
        // key is longer than ours: against them a longer bound compares as its beginning does, except
        // that a key equal to the beginning lies below the bound.
        let start = start.get(..MAX_KEY_BYTES + 1).map_or(Included(start), |long| Excluded(&long[..MAX_KEY_BYTES]));
        let end = end.map_or(Unbounded, |end| {
            end.get(..MAX_KEY_BYTES + 1).map_or(Excluded(end), |long| Included(&long[..MAX_KEY_BYTES]))
        });
        let range = (start, end);
        let rows = self.0.database.range::<&[u8], _>(&self.0.tables.state, range);
        let pair = |guard: fjall::Guard| match guard.into_inner() {
            Ok((key, value)) => (key.to_vec(), value.to_vec()),
            Err(error) => failed(error),
        };
        match order {
            Order::Ascending => Box::new(rows.map(pair)),
            Order::Descending => Box::new(rows.rev().map(pair)),
        }
    }
}
