//! Worker and gateway as they run, against the real engine with a model of the project and the real ledger in this
//! process: sessions, answers, receipts, vouchers, epochs, refusals, restarts.

mod answers;
mod chain;
mod http;
mod local;
mod network;
mod refusals;
