//! The command line's errors: each says what is wrong and what to do, in one line that starts with `error:`.

use std::path::Path;

use polylink_protocol::client::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A value given by flag, environment or file.
    #[error("{what}: {reason}")]
    Value {
        /// The option or argument.
        what: String,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A file.
    #[error("{path}: {reason}")]
    File {
        /// Where.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A process of ours.
    #[error("{role}: {reason}")]
    Role {
        /// Which role.
        role: String,
        /// What happened and what to do.
        reason: String,
    },
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ClientError),
    /// The load generator.
    #[error(transparent)]
    Bench(#[from] polylink_bench::BenchError),
    /// A receipt or its proof does not hold.
    #[error("not verified: {0}")]
    NotVerified(#[from] crate::verify::Fault),
    /// An HTTP service.
    #[error("{url}: {reason}")]
    Http {
        /// What was asked.
        url: String,
        /// What was answered.
        reason: String,
    },
}

impl CliError {
    /// A value that is wrong.
    pub fn value(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Value { what: what.into(), reason: reason.to_string() }
    }
    /// A file that is wrong.
    pub fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.display().to_string(), reason: reason.to_string() }
    }
    /// A role that failed.
    pub fn role(role: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Role { role: role.into(), reason: reason.to_string() }
    }
    /// A service that refused.
    pub fn http(url: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Http { url: url.into(), reason: reason.to_string() }
    }
}
