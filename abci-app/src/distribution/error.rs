//! Why the distribution refuses, in codespace `distribution` with the codes of `x/distribution/types/errors.go`.

use crate::error::TxError;

/// A refusal of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DistributionError {
    /// Nothing is delegated there.
    #[error("no delegation distribution info")]
    NoDelegation,
    /// No such validator.
    #[error("no validator distribution info")]
    NoValidator,
    /// Nothing was earned since the last withdrawal.
    #[error("no validator commission to withdraw")]
    NoCommission,
    /// The chain pays delegators alone.
    #[error("set withdraw address disabled")]
    WithdrawAddressDisabled,
    /// More than the community pool has.
    #[error("community pool does not have sufficient coins to distribute")]
    PoolTooSmall,
}

impl From<DistributionError> for TxError {
    fn from(error: DistributionError) -> Self {
        let code = match error {
            DistributionError::NoDelegation => 5,
            DistributionError::NoValidator => 6,
            DistributionError::NoCommission => 7,
            DistributionError::WithdrawAddressDisabled => 8,
            DistributionError::PoolTooSmall => 9,
        };
        TxError::Module { codespace: "distribution", code, log: error.to_string() }
    }
}
