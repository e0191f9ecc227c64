//! Why the ledger refuses a transaction, and with which code clients learn of it.
//!
//! The codes of codespace `sdk` are the Cosmos SDK's (`types/errors/errors.go`), since wallets branch on them. A module
//! with refusals of its own has an error enum of its own that becomes [`TxError::Module`] under the module's codespace.
//!
//! Invariant: the code and the log of a refusal are functions of the state and the transaction alone: they are part of
//! the block's results, whose hash all nodes agree on.

use polylink_protocol::address::AddressError;
use polylink_protocol::amount::AmountError;
use polylink_protocol::digest::CanonicalError;
use polylink_protocol::keys::KeyError;

/// The codespace of the Cosmos SDK's common errors.
pub const SDK: &str = "sdk";

/// A refusal. The text says what is wrong and, where the sender can mend it, how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxError {
    /// The bytes are no transaction by the rules of `tx::decode`.
    #[error("{0}: tx parse error")]
    Decode(String),
    /// A signature does not verify, or somebody else would have to sign.
    #[error("{0}: unauthorized")]
    Unauthorized(String),
    /// The account does not hold the amount.
    #[error("spendable balance {available}{denom} is smaller than {needed}{denom}: insufficient funds")]
    InsufficientFunds {
        /// What it holds.
        available: u128,
        /// What was asked of it.
        needed: u128,
        /// Of which coin.
        denom: String,
    },
    /// A message or query that this ledger does not know or has not built.
    #[error("{0}: unknown request")]
    UnknownRequest(String),
    /// A text that is no address of the expected kind.
    #[error("{0}: invalid address")]
    InvalidAddress(String),
    /// A key of an unsupported kind, or one that is not the account's.
    #[error("{0}: invalid pubkey")]
    InvalidPubkey(String),
    /// No such account.
    #[error("account {0} does not exist; it comes into being with the first coins it receives: unknown address")]
    UnknownAddress(String),
    /// An amount or denomination out of the rules.
    #[error("{0}: invalid coins")]
    InvalidCoins(String),
    /// More work than the gas limit pays for.
    #[error("out of gas: gas limit {limit}, used {used}; sign again with a higher limit: out of gas")]
    OutOfGas {
        /// The transaction's limit.
        limit: u64,
        /// What it had used when it was stopped.
        used: u64,
    },
    /// A gas limit above what one transaction may ask for.
    #[error("gas limit {limit} is above the ledger's {max}: invalid gas limit")]
    GasLimit {
        /// The transaction's limit.
        limit: u64,
        /// The most.
        max: u64,
    },
    /// A memo beyond the limit.
    #[error("the memo has {len} characters, at most {max} are allowed: memo too large")]
    MemoTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A fee below the minimum gas price.
    #[error("insufficient fees; got: {got} required: {required}: insufficient fee")]
    InsufficientFee {
        /// The fee offered, with denomination.
        got: String,
        /// The least fee, with denomination.
        required: String,
    },
    /// More signatures than messages need, or than a transaction may have.
    #[error("{0}: maximum number of signatures exceeded")]
    TooManySignatures(String),
    /// None.
    #[error("no signatures supplied")]
    NoSignatures,
    /// A message's content breaks its rules.
    #[error("{0}: invalid request")]
    InvalidRequest(String),
    /// Beyond the size limit.
    #[error("the transaction has {len} bytes, at most {max} are taken: tx too large")]
    TooLarge {
        /// Its size.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// What is named is not there.
    #[error("{0}: not found")]
    NotFound(String),
    /// Sent too late by its own declaration.
    #[error("block height: {height}, timeout height: {timeout}: tx timeout height")]
    TimeoutHeight {
        /// The block's height.
        height: u64,
        /// The last one that the sender allows.
        timeout: u64,
    },
    /// Extension options that the ledger would have to obey and does not know.
    #[error("{0}: unknown extension options")]
    UnknownExtension(String),
    /// Not the account's next sequence.
    #[error("account sequence mismatch, expected {expected}, got {got}: incorrect account sequence")]
    WrongSequence {
        /// The account's next sequence.
        expected: u64,
        /// The signed one.
        got: u64,
    },
    /// Something known that this ledger does not support.
    #[error("{0}: feature not supported")]
    NotSupported(String),
    /// A module's own refusal.
    #[error("{log}")]
    Module {
        /// The module's codespace (`market`, `tiqe`, `staking`).
        codespace: &'static str,
        /// Its code there, from 2 (0 is success, 1 is reserved by the SDK for internal errors).
        code: u32,
        /// What is wrong and what to do.
        log: String,
    },
}

impl TxError {
    /// The codespace and the code, as `ExecTxResult` carries them.
    pub fn code(&self) -> (&'static str, u32) {
        match self {
            TxError::Decode(_) => (SDK, 2),
            TxError::Unauthorized(_) => (SDK, 4),
            TxError::InsufficientFunds { .. } => (SDK, 5),
            TxError::UnknownRequest(_) => (SDK, 6),
            TxError::InvalidAddress(_) => (SDK, 7),
            TxError::InvalidPubkey(_) => (SDK, 8),
            TxError::UnknownAddress(_) => (SDK, 9),
            TxError::InvalidCoins(_) => (SDK, 10),
            TxError::OutOfGas { .. } => (SDK, 11),
            TxError::MemoTooLarge { .. } => (SDK, 12),
            TxError::InsufficientFee { .. } => (SDK, 13),
            TxError::TooManySignatures(_) => (SDK, 14),
            TxError::NoSignatures => (SDK, 15),
            TxError::InvalidRequest(_) => (SDK, 18),
            TxError::TooLarge { .. } => (SDK, 21),
            TxError::TimeoutHeight { .. } => (SDK, 30),
            TxError::UnknownExtension(_) => (SDK, 31),
            TxError::WrongSequence { .. } => (SDK, 32),
            TxError::NotSupported(_) => (SDK, 37),
            TxError::NotFound(_) => (SDK, 38),
            TxError::GasLimit { .. } => (SDK, 41),
            TxError::Module { codespace, code, .. } => (codespace, *code),
        }
    }

    /// A refusal of a message's content.
    pub fn invalid(what: impl Into<String>) -> Self {
        TxError::InvalidRequest(what.into())
    }
}

impl From<AddressError> for TxError {
    fn from(error: AddressError) -> Self {
        TxError::InvalidAddress(error.to_string())
    }
}
impl From<AmountError> for TxError {
    fn from(error: AmountError) -> Self {
        TxError::InvalidCoins(error.to_string())
    }
}
impl From<CanonicalError> for TxError {
    fn from(error: CanonicalError) -> Self {
        TxError::InvalidRequest(error.to_string())
    }
}
impl From<KeyError> for TxError {
    fn from(error: KeyError) -> Self {
        TxError::Unauthorized(error.to_string())
    }
}

/// Why a query has no answer. The log has the form of the Cosmos SDK's gRPC errors, which clients match against.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// There is no such thing.
    #[error("rpc error: code = NotFound desc = {0}: key not found")]
    NotFound(String),
    /// The request is malformed.
    #[error("rpc error: code = InvalidArgument desc = {0}: invalid request")]
    InvalidArgument(String),
    /// No such path.
    #[error("unknown query path {0}: unknown request")]
    UnknownPath(String),
    /// A height that is in the future.
    #[error("{0}: invalid height")]
    Height(String),
    /// A height below zero, or one that is not kept: to the SDK an invalid request too.
    #[error("{0}: invalid request")]
    NoState(String),
    /// The simulation of a transaction failed as the transaction itself would.
    #[error("{0}")]
    Simulation(TxError),
}

impl QueryError {
    /// The codespace and the code of `ResponseQuery`.
    pub fn code(&self) -> (&'static str, u32) {
        match self {
            QueryError::NotFound(_) => (SDK, 22),
            QueryError::InvalidArgument(_) | QueryError::NoState(_) => (SDK, 18),
            QueryError::UnknownPath(_) => (SDK, 6),
            QueryError::Height(_) => (SDK, 26),
            QueryError::Simulation(error) => error.code(),
        }
    }
}

impl From<AddressError> for QueryError {
    fn from(error: AddressError) -> Self {
        QueryError::InvalidArgument(error.to_string())
    }
}

/// Why a chain cannot be started from a genesis document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// Not JSON of the expected shape.
    #[error("genesis app_state: {0}")]
    Malformed(String),
    /// A value that no chain can start from.
    #[error("genesis {field}: {reason}")]
    Invalid {
        /// Where it stands.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl GenesisError {
    /// A value out of the rules.
    pub fn invalid(field: impl Into<String>, reason: impl ToString) -> Self {
        GenesisError::Invalid { field: field.into(), reason: reason.to_string() }
    }
}

impl From<TxError> for GenesisError {
    fn from(error: TxError) -> Self {
        GenesisError::Invalid { field: "app_state".into(), reason: error.to_string() }
    }
}
