//! Why staking refuses, in codespace `staking` with the codes of `x/staking/types/errors.go`.

use crate::error::TxError;

/// A refusal of staking. What the SDK refuses as an invalid request of its common codespace is [`TxError::InvalidRequest`]
/// here too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StakingError {
    /// No validator of that operator.
    #[error("validator {0} does not exist")]
    NoValidator(String),
    /// The account is a validator's operator already.
    #[error("{0}: validator already exist for this operator address; must use new validator operator address")]
    OwnerExists(String),
    /// The consensus key is another validator's.
    #[error("{0} has it: validator already exist for this pubkey; must use new validator pubkey")]
    KeyExists(String),
    /// Not an ed25519 key.
    #[error("a consensus key is an /cosmos.crypto.ed25519.PubKey of 32 bytes, not {0}")]
    KeyType(String),
    /// Nothing can be put back behind a validator in jail.
    #[error("validator for this address is currently jailed")]
    Jailed,
    /// A commission over the whole.
    #[error("commission cannot be more than 100%")]
    CommissionHuge,
    /// A commission over the validator's own maximum.
    #[error("commission cannot be more than the max rate")]
    CommissionAboveMaxRate,
    /// Within a day of the last change.
    #[error("commission cannot be changed more than once in 24h")]
    CommissionUpdateTime,
    /// A maximum change over the maximum rate.
    #[error("commission change rate cannot be more than the max rate")]
    ChangeRateAboveMaxRate,
    /// A larger rise than the validator has promised.
    #[error("commission cannot be changed more than max change rate")]
    CommissionAboveMaxChange,
    /// A commission under the chain's minimum.
    #[error("cannot set validator commission to less than minimum rate of {0}")]
    CommissionBelowMinRate(String),
    /// The operator's own stake is too small.
    #[error("validator's self delegation must be greater than their minimum self delegation")]
    SelfDelegationBelowMinimum,
    /// The minimum can only rise.
    #[error("minimum self delegation cannot be decrease")]
    MinSelfDelegationDecreased,
    /// Nothing is delegated there.
    #[error("no delegation for (address, validator) tuple: {delegator} has none to {validator}")]
    NoDelegation {
        /// Whose.
        delegator: String,
        /// To which validator.
        validator: String,
    },
    /// Shares of a validator that was slashed to nothing are worth nothing.
    #[error("insufficient delegation shares: the validator has no tokens left")]
    InsufficientShares,
    /// Fewer shares are held than are to be taken.
    #[error("{0}: not enough delegation shares")]
    NotEnoughShares(String),
    /// Too many unbonding entries of this pair.
    #[error("too many unbonding delegation entries for (delegator, validator) tuple: {0} are the most")]
    MaxUnbondingEntries(u32),
    /// From a validator to itself.
    #[error("cannot redelegate to the same validator")]
    SelfRedelegation,
    /// Worth less than a micro-unit.
    #[error("too few tokens to redelegate (truncates to zero tokens)")]
    TinyRedelegation,
    /// No validator at the other end.
    #[error("redelegation destination validator not found")]
    BadRedelegationDestination,
    /// Stake that has just been moved would move on.
    #[error(
        "redelegation to this validator already in progress; first redelegation to this validator must complete before \
         next redelegation"
    )]
    TransitiveRedelegation,
    /// Too many entries of this triple.
    #[error("too many redelegation entries for (delegator, src-validator, dst-validator) tuple: {0} are the most")]
    MaxRedelegationEntries(u32),
    /// All its stake was slashed, and shares of nothing cannot be bought.
    #[error("cannot delegate to validators with invalid (zero) ex-rate")]
    InvalidExchangeRate,
    /// It would take the last validator's power away and halt the chain. (The SDK lets the chain halt.)
    #[error("this would leave no validator with power, and the chain would halt")]
    LastValidator,
}

impl StakingError {
    fn code(&self) -> u32 {
        match self {
            StakingError::NoValidator(_) => 3,
            StakingError::OwnerExists(_) => 4,
            StakingError::KeyExists(_) => 5,
            StakingError::KeyType(_) => 6,
            StakingError::Jailed => 7,
            StakingError::CommissionHuge => 10,
            StakingError::CommissionAboveMaxRate => 11,
            StakingError::CommissionUpdateTime => 12,
            StakingError::ChangeRateAboveMaxRate => 14,
            StakingError::CommissionAboveMaxChange => 15,
            StakingError::SelfDelegationBelowMinimum => 16,
            StakingError::MinSelfDelegationDecreased => 17,
            StakingError::NoDelegation { .. } => 19,
            StakingError::InsufficientShares => 22,
            StakingError::NotEnoughShares(_) => 24,
            StakingError::MaxUnbondingEntries(_) => 27,
            StakingError::SelfRedelegation => 29,
            StakingError::TinyRedelegation => 30,
            StakingError::BadRedelegationDestination => 31,
            StakingError::TransitiveRedelegation => 32,
            StakingError::MaxRedelegationEntries(_) => 33,
            StakingError::InvalidExchangeRate => 34,
            StakingError::CommissionBelowMinRate(_) => 40,
            StakingError::LastValidator => 100,
        }
    }
}

impl From<StakingError> for TxError {
    fn from(error: StakingError) -> Self {
        TxError::Module { codespace: "staking", code: error.code(), log: error.to_string() }
    }
}
