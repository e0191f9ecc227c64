//! A copy-on-write layer over a state: what a block, a transaction, a message or a simulation
//! writes before it is known whether it will count.
//!
//! Layers nest: the block's layer lies over the committed state, the ante chain's and each
//! message's over that. A layer that fails is dropped and leaves no trace; one that succeeds gives
//! its [`Changes`] to the layer below. Changes are kept in key order, so that they are the same on
//! every machine whatever the order of the writes.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::state::{Changes, Order, Pair, PairIter, StateRead, StateWrite, map_range};

/// Writes over a base `R` that is only read. `R` is a borrowed state (`&dyn StateRead`) for the
/// short-lived layers of execution, or an owned one (`Snapshot`, `Arc<_>`) where the layer outlives
/// the call, as that of `CheckTx` does.
#[derive(Clone, Debug)]
pub struct Overlay<R> {
    base: R,
    changes: Changes,
}

/// A layer within a call: over any state, borrowed.
pub type Layer<'a> = Overlay<&'a dyn StateRead>;

impl<R: StateRead> Overlay<R> {
    /// An empty layer over `base`.
    pub fn new(base: R) -> Self {
        Overlay { base, changes: BTreeMap::new() }
    }

    /// A layer over `base` that already holds `changes`.
    pub fn with_changes(base: R, changes: Changes) -> Self {
        Overlay { base, changes }
    }

    /// The state below this layer.
    pub fn base(&self) -> &R {
        &self.base
    }

    /// Gives up the layer and returns the state below it.
    pub fn into_base(self) -> R {
        self.base
    }

    /// What this layer has changed so far.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Gives up the layer and returns what it changed.
    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// Forgets what this layer changed, and returns it.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Takes over the changes of a layer that stood on this one.
    pub fn apply(&mut self, changes: Changes) {
        self.changes.extend(changes);
    }

    /// A new layer on top of this one.
    pub fn nest(&self) -> Layer<'_> {
        Overlay::new(self)
    }

    /// Runs `work` in a layer of its own: on `Ok` its writes are kept, on `Err` none of them is.
    pub fn attempt<T, E>(&mut self, work: impl FnOnce(&mut Layer<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut layer = self.nest();
        let outcome = work(&mut layer)?;
        let changes = layer.into_changes();
        self.apply(changes);
        Ok(outcome)
    }
}

impl<R: StateRead> StateRead for Overlay<R> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.changes.get(key) {
            Some(change) => change.clone(),
            None => self.base.get(key),
        }
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        let above = map_range(&self.changes, start, end, order, |key, change| (key.as_slice(), change.as_deref()));
        let below = self.base.iter_range(start, end, order);
        Box::new(Merge { above: above.peekable(), below: below.peekable(), order })
    }
}

impl<R: StateRead> StateWrite for Overlay<R> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        debug_assert!(!key.is_empty() && key.len() <= super::MAX_KEY_BYTES, "state key of {} bytes", key.len());
        self.changes.insert(key, Some(value));
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }
}

/// Two ordered iterations made one; where both have a key the one above decides.
struct Merge<A: Iterator, B: Iterator> {
    above: std::iter::Peekable<A>,
    below: std::iter::Peekable<B>,
    order: Order,
}

impl<'a, A, B> Iterator for Merge<A, B>
where
    A: Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    B: Iterator<Item = Pair>,
{
    type Item = Pair;

    fn next(&mut self) -> Option<Pair> {
        loop {
            let first = match (self.above.peek(), self.below.peek()) {
                (None, _) => return self.below.next(),
                (Some(_), None) => Ordering::Less,
                (Some((above, _)), Some((below, _))) => match self.order {
                    Order::Ascending => (*above).cmp(below.as_slice()),
                    Order::Descending => below.as_slice().cmp(above),
                },
            };
            if first == Ordering::Greater {
                return self.below.next();
            }
            if first == Ordering::Equal {
                self.below.next();
            }
            if let Some((key, Some(value))) = self.above.next() {
                return Some((key.to_vec(), value.to_vec()));
            }
        }
    }
}
