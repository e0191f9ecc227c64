//! The ledger: a deterministic state machine, its Merkle store and its ABCI server.
//!
//! CometBFT orders transactions and calls the application over a socket ([`server`]); the
//! application executes them against the committed state ([`store`]) and answers with the hash of
//! the next one. Inside execution nothing touches the network, a float, the wall clock or the
//! order of a hash map: two nodes fed the same blocks have the same application hash.
//!
//! A transaction is decoded and authorised in [`tx`], its messages are handled by the modules
//! ([`auth`], [`bank`], [`vesting`], [`feegrant`], [`staking`], [`distribution`], [`slashing`], [`mint`],
//! [`gov`], [`upgrade`], [`consensus`], [`market`], [`tiqe`]) whose tables are listed in [`modules`].

pub mod app;
pub mod auth;
pub mod bank;
pub mod chain;
pub mod consensus;
pub mod context;
pub mod distribution;
pub mod error;
pub mod export;
pub mod feegrant;
#[doc(hidden)]
pub mod fuzzing;
pub mod gas;
pub mod genesis;
pub mod gov;
pub mod market;
pub mod mint;
pub mod modules;
pub mod paging;
pub mod query;
pub mod router;
pub mod server;
pub mod slashing;
pub mod staking;
pub mod store;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tiqe;
pub mod tx;
pub mod upgrade;
pub mod vesting;

pub use app::{App, NodeConfig, NodeHandle, ServeError, serve};
pub use context::Context;
pub use error::{GenesisError, QueryError, TxError};
pub use genesis::Genesis;
