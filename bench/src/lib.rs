//! Load generators and reports. They talk to public interfaces only, so that any peer can be measured beside us.
//!
//! *Invariant*: nothing here knows the inside of a server (`kernels` is asked for the machine's limits alone); every run is bounded in requests and in time, and every
//! figure that is printed also stands in the rows of the JSON file.

pub mod engine;
pub mod faults;
pub mod ledger;
mod process;
pub mod random_model;
pub mod report;
pub mod row;
pub mod serve;
pub mod soak;
pub mod stats;

/// Why a benchmark does not run or end.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An option out of its domain.
    #[error("{option}: {reason}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is expected.
        reason: String,
    },
    /// The prompts' file.
    #[error("prompts file {path}: {reason}")]
    Prompts {
        /// Where.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// No HTTP client could be made.
    #[error("the HTTP client could not be made: {0}")]
    Client(reqwest::Error),
    /// Nothing succeeded, so there is nothing to report.
    #[error("none of {sent} requests to {endpoint} succeeded; the first error: {first}")]
    NothingSucceeded {
        /// Base URL.
        endpoint: String,
        /// Requests sent.
        sent: usize,
        /// The first error's text.
        first: String,
    },
    /// A server or program that is measured.
    #[error("{name}: {reason}")]
    Contestant {
        /// Which.
        name: String,
        /// What it did, and the end of what it said.
        reason: String,
    },
    /// Something was not as it must be under load.
    #[error("{failures} failures, the first ones: {}", told.join("; "))]
    Soak {
        /// How many.
        failures: u64,
        /// The first ones.
        told: Vec<String>,
    },
    /// The JSON file.
    #[error("{path} could not be written: {source}")]
    Write {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}
