//! The state of the ledger: a versioned Merkle tree and a flat table of current values, on disk.
pub mod key;
pub mod overlay;
pub mod state;

pub use key::KeyBuilder;
pub use overlay::{Layer, Overlay};
pub use state::{Changes, MemoryState, Order, Pair, PairIter, StateRead, StateWrite, prefix_end};

/// The longest key of the state, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
