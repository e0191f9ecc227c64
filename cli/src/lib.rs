//! The command line of PolyLink: one binary, a subcommand per role, one file per subcommand.
//!
//! *Invariant*: nothing here decides anything of the protocol; commands wire the library crates to flags, files,
//! processes and the terminal.

pub mod bench;
pub mod chain;
pub mod chat;
pub mod config;
pub mod error;
pub mod export;
pub mod files;
pub mod gateway;
pub mod home;
pub mod judge;
pub mod keys;
pub mod models;
pub mod node;
pub mod output;
pub mod query;
pub mod rest;
pub mod serve;
pub mod shutdown;
pub mod status;
pub mod suggest;
pub mod supervise;
pub mod testnet;
pub mod tx;
pub mod up;
pub mod verify;

mod command;

pub use command::main;
