//! One model over several processes: a tensor split through TCP, with the same bits as one process.
//!
//! ```text
//! leader (rank 0): scheduler, KV pool, sampler ──control: every forward step──► peer (rank r): the same program
//!                  own shard ◄────────────data: partial sums, logits──────────►                 on its own shard
//! ```
//!
//! Peers listen; the leader connects to each twice (control and data), proves that it knows the secret, and sends the
//! plan: shares, rank, limits, and the digest of the model folder, which must be the peer's. Exchanges run in a star
//! around the leader. Block tables are the leader's: every device has the same blocks, with its own heads in them.
//!
//! What always holds: a device group either runs the same steps in the same order or falls apart; every wait is bounded
//! by the configured timeout but a peer's wait for the next step; a lost peer fails the step (`BackendError::Lost`), and
//! the engine connects anew. Nothing is encrypted: the group belongs in a private network.

mod collective;
mod error;
mod handshake;
mod leader;
mod peer;
mod wire;

pub use collective::TcpCollective;
pub use error::SplitError;
pub(crate) use leader::lead;
pub use peer::{Peer, PeerConfig, run_peer};
