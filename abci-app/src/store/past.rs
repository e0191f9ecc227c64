//! The state after an older block, as far as heights are kept.
//!
//! The value of a key is that of its newest version up to the height. Keys are those of the newest state, in its order,
//! and those that blocks since have deleted, which leave a row each for as long as a height before may be read.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeSet;

use fjall::{Guard, Readable};

use super::snapshot::{Snapshot, failed};
use super::state::{Order, PairIter, StateRead};
use super::tree::DELETED;
use super::{MAX_KEY_BYTES, StoreError};

/// Deleted keys that one query reads at most, and keys that its iterations look at: most may be younger than the height.
const KEYS_MAX: usize = 1 << 17;

/// The state after one of the heights behind a snapshot's. Reads panic when the disk fails; see [`super::state`].
pub struct Past {
    snapshot: Snapshot,
    height: u64,
    deleted: OnceCell<BTreeSet<Vec<u8>>>,
    looked: Cell<usize>,
}

impl Snapshot {
    /// The state after the block of `height`, within the window.
    pub fn past(&self, height: u64) -> Result<Past, StoreError> {
        self.readable(height)?;
        Ok(Past { snapshot: self.clone(), height, deleted: OnceCell::new(), looked: Cell::new(0) })
    }
}

impl Past {
    /// Whether an iteration ended early, because it would have had to look at too many keys: what was made of it is void.
    pub fn is_cut(&self) -> bool {
        self.looked.get() > KEYS_MAX
    }

    /// Whether another key may be looked at.
    fn look(&self) -> bool {
        self.looked.set(self.looked.get() + 1);
        !self.is_cut()
    }

    /// The keys that blocks since have deleted; some may be back.
    fn deleted(&self) -> &BTreeSet<Vec<u8>> {
        self.deleted.get_or_init(|| {
            let after = [&[DELETED], &(self.height + 1).to_be_bytes()[..]].concat();
            let rows = self.snapshot.database().range(&self.snapshot.tables().tree, after..vec![DELETED + 1]);
            let mut keys = BTreeSet::new();
            for row in rows.map(Guard::into_inner).take_while(|_| self.look()) {
                keys.insert(row.unwrap_or_else(|error| failed(error)).1.to_vec());
            }
            keys
        })
    }
}

impl StateRead for Past {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if key.len() > MAX_KEY_BYTES {
            return None;
        }
        self.snapshot.get_at(key, self.height).unwrap_or_else(|error| failed(error))
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        if end.is_some_and(|end| end <= start) {
            return Box::new(std::iter::empty());
        }
        let mut newest = self.snapshot.iter_range(start, end, order).map(|(key, _)| key).peekable();
        let deleted = self.deleted().range::<[u8], _>((Included(start), end.map_or(Unbounded, Excluded)));
        let deleted: Box<dyn Iterator<Item = &Vec<u8>>> = match order {
            Order::Ascending => Box::new(deleted),
            Order::Descending => Box::new(deleted.rev()),
        };
        let mut deleted = deleted.cloned().peekable();
        let keys = std::iter::from_fn(move || {
            let (Some(a), Some(b)) = (newest.peek(), deleted.peek()) else {
                return newest.next().or_else(|| deleted.next());
            };
            let first = match order {
                Order::Ascending => a.cmp(b),
                Order::Descending => b.cmp(a),
            };
            if first.is_eq() {
                deleted.next();
            }
            if first.is_gt() { deleted.next() } else { newest.next() }
        });
        let keys = keys.take_while(|_| self.look());
        Box::new(keys.filter_map(|key| self.get(&key).map(|value| (key, value))))
    }
}
