//! What a ledger module sees of the state: ordered bytes to bytes, to read and to write.
//!
//! Modules are written against [`StateRead`] and [`StateWrite`] alone, so that the same code runs
//! over the committed store, over an [`Overlay`](super::Overlay) within a block, and over
//! [`MemoryState`] in a unit test.
//!
//! Invariant: reads are total. A key is there or it is not; a failing disk is neither, and may
//! never become the outcome of a transaction, since two nodes would then disagree. Readers that sit
//! on a disk therefore panic when it fails, and the ABCI server stops the process with that message.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Pairs in key order, ascending or descending as asked.
pub type PairIter<'a> = Box<dyn Iterator<Item = Pair> + 'a>;

/// A set of changes: the new value of each key, or `None` where the key is deleted. Ordered by key,
/// so that whatever is derived from it is the same on every machine.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The direction of an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Ascending,
    /// Largest key first.
    Descending,
}

/// A readable state.
pub trait StateRead {
    /// The value of `key`, if it is there.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// The pairs with `start <= key < end` (`end` of `None` is unbounded), in the given order.
    /// The iterator is lazy: a caller takes as many as its bound allows.
    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_>;

    /// Whether `key` is there.
    fn contains(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    /// The pairs whose key begins with `prefix`, ascending.
    fn iter_prefix(&self, prefix: &[u8]) -> PairIter<'_> {
        self.iter_range(prefix, prefix_end(prefix).as_deref(), Order::Ascending)
    }

    /// The pairs whose key begins with `prefix`, descending.
    fn iter_prefix_rev(&self, prefix: &[u8]) -> PairIter<'_> {
        self.iter_range(prefix, prefix_end(prefix).as_deref(), Order::Descending)
    }

    /// The pairs whose key begins with `prefix` and is not below `start`, ascending: the next page
    /// of a listing whose last page ended just before `start`.
    fn iter_prefix_from(&self, prefix: &[u8], start: &[u8]) -> PairIter<'_> {
        self.iter_range(start.max(prefix), prefix_end(prefix).as_deref(), Order::Ascending)
    }
}

/// A writable state. A write is seen by the reads after it.
pub trait StateWrite: StateRead {
    /// Sets `key` to `value`. Keys are never empty (an ICS23 proof of absence has no meaning for
    /// one) and never longer than [`MAX_KEY_BYTES`](super::MAX_KEY_BYTES).
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);

    /// Removes `key`; no effect where it is not there.
    fn delete(&mut self, key: Vec<u8>);
}

/// The smallest key above every key that begins with `prefix`, or `None` where there is none (the
/// prefix is empty or all `0xff`).
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

macro_rules! forward_reads {
    ($($owner:ty),*) => {$(
        impl<T: StateRead + ?Sized> StateRead for $owner {
            fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
                (**self).get(key)
            }
            fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
                (**self).iter_range(start, end, order)
            }
        }
    )*};
}
forward_reads!(&T, &mut T, Box<T>, Arc<T>);

impl<T: StateWrite + ?Sized> StateWrite for &mut T {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        (**self).put(key, value);
    }
    fn delete(&mut self, key: Vec<u8>) {
        (**self).delete(key);
    }
}

/// A state in memory: the model that the store is tested against, and the ground of unit tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryState(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl MemoryState {
    /// Applies `changes`.
    pub fn apply(&mut self, changes: &Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => self.put(key.clone(), value.clone()),
                None => self.delete(key.clone()),
            }
        }
    }
}

impl StateRead for MemoryState {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        map_range(&self.0, start, end, order, |key, value| (key.clone(), value.clone()))
    }
}

impl StateWrite for MemoryState {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert(key, value);
    }
    fn delete(&mut self, key: Vec<u8>) {
        self.0.remove(&key);
    }
}

/// `start <= key < end` of an ordered map, mapped, in the given order. An empty or inverted range
/// gives nothing (where the map's own `range` would panic).
pub(super) fn map_range<'a, V, T: 'a>(
    map: &'a BTreeMap<Vec<u8>, V>,
    start: &[u8],
    end: Option<&[u8]>,
    order: Order,
    item: impl Fn(&'a Vec<u8>, &'a V) -> T + 'a,
) -> Box<dyn Iterator<Item = T> + 'a> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    if end.is_some_and(|end| end <= start) {
        return Box::new(std::iter::empty());
    }
    let range = map.range::<[u8], _>((Included(start), end.map_or(Unbounded, Excluded)));
    let items = range.map(move |(key, value)| item(key, value));
    match order {
        Order::Ascending => Box::new(items),
        Order::Descending => Box::new(items.rev()),
    }
}
