//! The judge: TIQE's evaluators (cross-encoder, language-model judge, seeded replay) and the service that audits rounds.
//!
//! *Invariant*: a judge decides no money. It signs scores; medians, pay and punishment are the ledger's. What it commits
//! is durable before it is sent, so that a restart reveals exactly what was committed.

pub mod cross_encoder;
pub mod evaluate;
pub mod evidence;
pub mod llm;
pub mod replay;
pub mod service;
pub mod setup;
pub mod transcript;

pub use evaluate::{Auditor, Case, Finding};
pub use setup::{AuditorConfig, HeldModel};
pub use transcript::Transcript;

use std::path::PathBuf;

/// Why a judge cannot work.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A model folder lacks something or holds something else.
    #[error("{path}: {reason}")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// The cross-encoder could not be computed.
    #[error("the cross-encoder failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The evaluators' threads.
    #[error("the evaluators failed: {0}")]
    Evaluators(String),
    /// It is gone, and with it every score to come.
    #[error("a thread of the evaluators has ended: start the judge again")]
    EvaluatorsEnded,
    /// A duty's task; a defect of the judge.
    #[error("a duty broke off: {0}")]
    Task(String),
    /// The replay could not be computed.
    #[error("the replay failed: {0}")]
    Replay(String),
    /// The judge's own files.
    #[error("the judge's journal {path}: {reason}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The chain refused or did not answer.
    #[error(transparent)]
    Chain(#[from] polylink_protocol::client::ClientError),
    /// A key.
    #[error("{0}")]
    Vrf(#[from] polylink_protocol::tiqe::VrfError),
    /// The HTTP client.
    #[error("no HTTP client: {0}")]
    Http(String),
    /// Randomness for the salt.
    #[error("the system gave no randomness: {0}")]
    Random(String),
}
