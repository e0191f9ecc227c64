//! The ledger: a deterministic state machine, its Merkle store and its ABCI server.
//!
//! CometBFT orders transactions and calls the application over a socket ([`server`]); the
//! application executes them against the committed state ([`store`]) and answers with the hash of
//! the next one. Inside execution nothing touches the network, a float, the wall clock or the
//! order of a hash map: two nodes fed the same blocks have the same application hash.

pub mod server;
pub mod store;
