//! The state of the ledger on disk: a versioned Merkle tree for proofs and a flat table of current
//! values for reads, in one embedded database.
//!
//! The tree is a Jellyfish Merkle tree (`jmt`, SHA-256, ICS23 proofs; version = height); its root is
//! the application hash. A read of the current state is one lookup in the flat table and never walks
//! the tree. A block is first *staged* ([`Store::stage`]: the new root, nothing durable), then
//! *committed* ([`Store::commit`]).
//!
//! | table | row | content |
//! | --- | --- | --- |
//! | `state` | key | value |
//! | `nodes` | `n` ‖ version (8) ‖ nibbles (1) ‖ path | tree node, both as in `store/node.rs` |
//! | `tree` | `mschema` | version of this layout and of the state's keys (8) |
//! | | `mhead` | height (8) ‖ oldest readable height (8) ‖ root (32) |
//! | | `mrestore` | 0: parts of a state that is being restored; 1: a restored state, no block since |
//! | | `v` ‖ SHA-256 of the key ‖ version (8) | 1 ‖ value, or 0 where deleted |
//! | | `p` ‖ SHA-256 of the key | key |
//! | | `d` ‖ version that deletes it (8) ‖ SHA-256 of the key | key |
//! | | `t` ‖ seconds (8) | height (8) of a block of that time |
//! | | `s` ‖ version since which they are stale (8) ‖ index (4) | for each: length (1) ‖ a row `n`…, or `v` ‖ SHA-256 of the key |
//!
//! Integers are big-endian. Invariants: nothing becomes durable before `commit`, which writes all
//! tables in one atomic batch that is on the disk when it returns; the flat table always hashes to
//! the root; a height within the pruning window can be read and proved.

pub mod chunk;
mod database;
pub(crate) mod fault;
pub mod key;
pub mod memo;
mod node;
pub mod overlay;
mod past;
mod proof;
mod prune;
mod restore;
mod rollback;
mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
mod times;
mod tree;
mod update;

use std::path::PathBuf;

pub use chunk::CHUNK_BYTES_MAX;
pub use database::{JOURNAL_BYTES_MIN, Staged, Store, StoreOptions};
pub use key::KeyBuilder;
pub use memo::Memo;
pub use overlay::{Layer, Overlay};
pub use past::Past;
pub use proof::{PROOF_OP_TYPE, Proof, verify_proof};
pub use restore::Restore;
pub(crate) use restore::probe_chunk;
pub use snapshot::Snapshot;
pub use state::{Changes, MemoryState, Order, Pair, PairIter, StateRead, StateWrite, prefix_end};
pub use times::Moment;
pub use tree::{EMPTY_ROOT, root_of};

/// The longest key of the state, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// The root of the state: the application hash.
pub type AppHash = [u8; 32];

/// Why the store cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store at {} is open in another process: stop that one first", path.display())]
    Locked {
        /// Where it lies.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("the store at {} cannot be opened: {error}", path.display())]
    Open {
        /// Where it lies.
        path: PathBuf,
        /// What the database says.
        error: fjall::Error,
    },
    /// It was written by another version of the program.
    #[error(
        "the store at {} has schema version {found}, this program writes {wanted}: run the program of that version, \
         migrate, or start from an empty directory",
        path.display()
    )]
    Schema {
        /// Where it lies.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The version of this program.
        wanted: u64,
    },
    /// The disk failed. The process should stop: no later write is accepted.
    #[error("the database failed: {0}; check the disk, then restart: the last commit is intact")]
    Database(#[from] fjall::Error),
    /// What is stored is not what was written.
    #[error("the store is damaged: {0}; restore it from a snapshot or sync anew")]
    Damaged(String),
    /// The tree refuses.
    #[error("the Merkle tree at height {height} cannot be read: {reason}")]
    Tree {
        /// The height.
        height: u64,
        /// The tree's reason.
        reason: String,
    },
    /// A block out of order.
    #[error("height {height} does not follow the committed height {committed}")]
    Height {
        /// The height of the block.
        height: u64,
        /// The last one committed.
        committed: u64,
    },
    /// A height that cannot be read.
    #[error("height {height} cannot be read: this node holds heights {oldest} to {newest}")]
    Unavailable {
        /// The height asked for.
        height: u64,
        /// The oldest one held.
        oldest: u64,
        /// The newest one held.
        newest: u64,
    },
    /// A restore into a store that has executed blocks.
    #[error("the store is at height {height}: a snapshot is restored into an empty one; move its directory away first")]
    Occupied {
        /// Its height.
        height: u64,
    },
    /// A chunk that is not of the state that is restored.
    #[error("the snapshot is false or damaged: {0}; take another one")]
    Chunk(String),
    /// A pair that no chunk has room for.
    #[error("a key and its value have {bytes} bytes together: more than a chunk of a snapshot holds")]
    Pair {
        /// Their length.
        bytes: usize,
    },
    /// A key that cannot be stored or proved.
    #[error("a state key has {bytes} bytes: 1 to {MAX_KEY_BYTES} are allowed")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// Absence cannot be proved in a tree without leaves.
    #[error("the state at height {height} is empty: there is nothing to prove")]
    Empty {
        /// The height.
        height: u64,
    },
}
