//! Gas: the published price of work, in units that no machine's speed changes.
//!
//! A transaction pays for its bytes, its signatures, each message, and each read and write of the state. The table is
//! [`COSTS`], printed in `docs/state-keys.md`. Reads and writes are counted by [`Metered`], which a message executes on;
//! they cannot fail midway, so that the limit is judged when the message is done, and beyond it all of it is rolled back.
//!
//! Invariant: work is bounded by the gas that was paid for. What a message looks up is bounded by itself; an iteration, which
//! may be as long as others have made the table, ends where the limit is exceeded.

use std::cell::Cell;

use crate::error::TxError;
use crate::store::{Order, PairIter, StateRead, StateWrite};

/// What work costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// Each byte of the transaction.
    pub tx_byte: u64,
    /// Verification of a secp256k1 signature.
    pub signature: u64,
    /// Each message, whatever it does.
    pub message: u64,
    /// Each key looked up, or pair of an iteration.
    pub read: u64,
    /// Each byte of a value read.
    pub read_byte: u64,
    /// Each key written or deleted.
    pub write: u64,
    /// Each byte of key and value written.
    pub write_byte: u64,
    /// Verification of an ed25519 signature or a VRF proof within a message.
    pub proof: u64,
}

/// The table in force (the first five rows with the SDK's defaults).
pub const COSTS: Costs = Costs {
    tx_byte: 10,
    signature: 1_000,
    message: 1_000,
    read: 1_000,
    read_byte: 3,
    write: 2_000,
    write_byte: 30,
    proof: 2_000,
};

/// Counts the gas of one transaction against its limit.
#[derive(Clone, Debug, Default)]
pub struct GasMeter {
    /// `None`: no limit (simulation, genesis, block hooks).
    limit: Option<u64>,
    used: u64,
}

impl GasMeter {
    /// With a limit.
    pub fn limited(limit: u64) -> Self {
        GasMeter { limit: Some(limit), used: 0 }
    }
    /// Without one.
    pub fn unlimited() -> Self {
        GasMeter::default()
    }
    /// What has been used so far.
    pub fn used(&self) -> u64 {
        self.used
    }
    /// What is left of the limit, or of `most` where that is less.
    pub fn left(&self, most: u64) -> u64 {
        self.limit.unwrap_or(most).min(most).saturating_sub(self.used)
    }
    /// Adds work, and refuses it beyond the limit.
    pub fn charge(&mut self, gas: u64) -> Result<(), TxError> {
        self.used = self.used.saturating_add(gas);
        match self.limit {
            Some(limit) if self.used > limit => Err(TxError::OutOfGas { limit, used: self.used }),
            _ => Ok(()),
        }
    }
}

/// A state whose reads and writes are counted. The count depends on the calls alone, never on what a cache below
/// happens to hold.
pub struct Metered<'a> {
    inner: &'a mut dyn StateWrite,
    gas: Cell<u64>,
    left: u64,
}

impl<'a> Metered<'a> {
    /// Counts what is done to `inner` through it. Once that is more than `left`, iterations end: whoever does it must not
    /// keep what was made of them.
    pub fn new(inner: &'a mut dyn StateWrite, left: u64) -> Self {
        Metered { inner, gas: Cell::new(0), left }
    }
    /// What was done so far.
    pub fn gas(&self) -> u64 {
        self.gas.get()
    }
    fn add(&self, gas: u64) {
        self.gas.set(self.gas.get().saturating_add(gas));
    }
}

fn read_cost(bytes: usize) -> u64 {
    COSTS.read + COSTS.read_byte * bytes as u64
}

impl StateRead for Metered<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let value = self.inner.get(key);
        self.add(read_cost(value.as_ref().map_or(0, Vec::len)));
        value
    }

    fn iter_range(&self, start: &[u8], end: Option<&[u8]>, order: Order) -> PairIter<'_> {
        self.add(COSTS.read);
        Box::new(self.inner.iter_range(start, end, order).take_while(|(_, value)| {
            self.add(read_cost(value.len()));
            self.gas() <= self.left
        }))
    }
}

impl StateWrite for Metered<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.add(COSTS.write + COSTS.write_byte * (key.len() + value.len()) as u64);
        self.inner.put(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.add(COSTS.write);
        self.inner.delete(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryState;

    #[test]
    fn the_limit_itself_is_allowed() {
        let mut meter = GasMeter::limited(10);
        assert_eq!(meter.charge(10), Ok(()));
        assert_eq!(meter.charge(1), Err(TxError::OutOfGas { limit: 10, used: 11 }));
        assert_eq!(GasMeter::unlimited().charge(u64::MAX), Ok(()));
    }

    #[test]
    fn reads_and_writes_are_counted() {
        let mut state = MemoryState::default();
        let mut metered = Metered::new(&mut state, u64::MAX);
        metered.put(vec![1, 2], vec![3; 8]);
        assert_eq!(metered.gas(), COSTS.write + COSTS.write_byte * 10);
        let before = metered.gas();
        assert_eq!(metered.get(&[1, 2]), Some(vec![3; 8]));
        assert_eq!(metered.gas() - before, COSTS.read + 8 * COSTS.read_byte);
        let before = metered.gas();
        assert_eq!(metered.iter_prefix(&[1]).count(), 1);
        assert_eq!(metered.gas() - before, 2 * COSTS.read + 8 * COSTS.read_byte);
        assert_eq!(metered.get(&[9]), None);
    }

    #[test]
    fn an_iteration_ends_where_the_limit_is_exceeded() {
        let mut state = MemoryState::default();
        for n in 0..1_000_u16 {
            state.put([&[1], &n.to_be_bytes()[..]].concat(), vec![]);
        }
        let count = |left: u64, state: &mut MemoryState| {
            let metered = Metered::new(state, left);
            let rows = metered.iter_prefix(&[1]).count();
            let again = metered.iter_prefix_rev(&[1]).count();
            (rows, again, metered.gas())
        };
        assert_eq!(count(11 * COSTS.read, &mut state), (10, 0, 14 * COSTS.read));
        assert_eq!(count(2_002 * COSTS.read, &mut state), (1_000, 1_000, 2_002 * COSTS.read));
    }
}
