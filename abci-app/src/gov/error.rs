//! Why governance refuses, in codespace `gov` with the codes of `x/gov/types/errors.go`.

use crate::error::TxError;

/// A refusal of governance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GovError {
    /// No proposal of that number, or no longer.
    #[error("proposal {0} doesn't exist: unknown proposal")]
    UnknownProposal(u64),
    /// It takes no deposits or votes now.
    #[error("{0}: inactive proposal")]
    Inactive(u64),
    /// What is proposed contradicts itself.
    #[error("{0}: invalid proposal content")]
    Content(String),
    /// An option that is none, or weights that do not make one.
    #[error("{0}: invalid vote option")]
    Vote(String),
    /// Content of before messages that nothing here executes.
    #[error("{0}: no handler exists for proposal type")]
    NoHandler(String),
    /// A message that governance does not execute.
    #[error("{0}: proposal message not recognized by router")]
    Unroutable(String),
    /// Neither messages nor metadata.
    #[error("either metadata or Msgs length must be non-nil: no messages proposed")]
    NoMessages,
    /// A message that breaks its own rules.
    #[error("{0}: invalid proposal message")]
    Message(String),
    /// A message that another account than governance's would have to sign.
    #[error("{0}: expected gov account as only signer for proposal message")]
    Signer(String),
    /// Beyond the limit.
    #[error("{what} of {length} bytes, {max} are the most: metadata too long")]
    MetadataTooLong {
        /// Title or metadata.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Less than one must put down.
    #[error("{0}: minimum deposit is too small")]
    DepositTooSmall(String),
    /// Only who proposed may cancel.
    #[error("{0}: invalid proposer")]
    Proposer(String),
    /// Beyond the limit.
    #[error("summary of {length} bytes, {max} are the most: summary too long")]
    SummaryTooLong {
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Decided already.
    #[error("{0}: invalid proposal")]
    Proposal(String),
    /// Deposits are in one coin.
    #[error("{0}: invalid deposit denom")]
    DepositDenom(String),
}

impl GovError {
    fn code(&self) -> u32 {
        match self {
            GovError::UnknownProposal(_) => 2,
            GovError::Inactive(_) => 3,
            GovError::Content(_) => 5,
            GovError::Vote(_) => 7,
            GovError::NoHandler(_) => 9,
            GovError::Unroutable(_) => 10,
            GovError::NoMessages => 11,
            GovError::Message(_) => 12,
            GovError::Signer(_) => 13,
            GovError::MetadataTooLong { .. } => 15,
            GovError::DepositTooSmall(_) => 16,
            GovError::Proposer(_) => 18,
            GovError::Proposal(_) => 21,
            GovError::SummaryTooLong { .. } => 22,
            GovError::DepositDenom(_) => 23,
        }
    }
}

impl From<GovError> for TxError {
    fn from(error: GovError) -> Self {
        TxError::Module { codespace: "gov", code: error.code(), log: error.to_string() }
    }
}
