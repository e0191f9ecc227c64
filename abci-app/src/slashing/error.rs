//! Why slashing refuses, in codespace `slashing` with the codes of `x/slashing/types/errors.go`.

use polylink_protocol::Amount;

use crate::error::TxError;

/// A refusal of slashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlashingError {
    /// Nobody's validator.
    #[error("address is not associated with any known validator")]
    NoValidator,
    /// Too early, or tombstoned.
    #[error("validator still jailed; cannot be unjailed")]
    Jailed,
    /// It is free.
    #[error("validator not jailed; cannot be unjailed")]
    NotJailed,
    /// The operator has no stake of its own.
    #[error("validator has no self-delegation; cannot be unjailed")]
    NoSelfDelegation,
    /// The operator has less than it has promised.
    #[error("{has} less than {least}: validator's self delegation less than minimum; cannot be unjailed")]
    SelfDelegationTooLow {
        /// What it has.
        has: Amount,
        /// What it has promised.
        least: Amount,
    },
}

impl From<SlashingError> for TxError {
    fn from(error: SlashingError) -> Self {
        let code = match error {
            SlashingError::NoValidator => 2,
            SlashingError::Jailed => 4,
            SlashingError::NotJailed => 5,
            SlashingError::NoSelfDelegation => 6,
            SlashingError::SelfDelegationTooLow { .. } => 7,
        };
        TxError::Module { codespace: "slashing", code, log: error.to_string() }
    }
}
