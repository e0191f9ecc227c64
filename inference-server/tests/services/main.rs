//! Worker and gateway as they run, against the real engine with a model of the project and the real ledger in this
//! process: sessions, answers, receipts, vouchers, epochs, refusals, restarts.

// Test code: a panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod answers;
mod chain;
mod claims;
mod cuts;
mod http;
mod local;
mod market;
mod network;
mod omissions;
mod payer;
mod private;
mod prompts;
mod proxy;
mod refusals;
mod structured;
mod terms;
mod workers;
