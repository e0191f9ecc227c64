//! Staking: validators, the stake behind them, and the power that CometBFT gives their keys.
//!
//! A validator is an operator (the account that created it), an ed25519 consensus key, and delegations to it. A
//! delegation is a number of the validator's shares; a share is worth `tokens / shares` of the validator. Stake behind
//! validators with power sits in the pool of bonded tokens, everything else in that of not bonded ones. What is taken
//! back is paid after the unbonding time, so that it can still be held liable for what happened before.
//!
//! Invariants: the bonded pool holds the tokens of the bonded validators, the other one those of the rest and all
//! unbonding entries; a validator's shares are the sum of its delegations'. (`x/staking` of the Cosmos SDK, without
//! slashing: shares therefore stay at one token each.)

mod genesis;
mod ledger;
mod messages;
mod query;
mod set;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::cosmos::staking::v1beta1 as proto;

use crate::error::TxError;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};

pub use genesis::{GenesisValidator, StakingGenesis};
pub use ledger::{StakingParams, delegation, params, validator};

/// Validators: `0x20 ‖ operator (20)` → `cosmos.staking.v1beta1.Validator`.
pub const VALIDATOR: u8 = 0x20;
/// Operators by consensus address: `0x21 ‖ consensus address (20)` → operator (20).
pub const BY_CONSENSUS_ADDRESS: u8 = 0x21;
/// Delegations: `0x22 ‖ delegator (20) ‖ operator (20)` → shares, `Dec` of 32 bytes big-endian.
pub const DELEGATION: u8 = 0x22;
/// Delegators of a validator: `0x23 ‖ operator (20) ‖ delegator (20)` → 1.
pub const DELEGATOR_INDEX: u8 = 0x23;
/// Unbonding delegations: `0x24 ‖ delegator (20) ‖ operator (20)` → `cosmos.staking.v1beta1.UnbondingDelegation`.
pub const UNBONDING: u8 = 0x24;
/// Unbonding delegations by completion: `0x25 ‖ seconds u64 ‖ nanoseconds u32 ‖ delegator (20) ‖ operator (20)` → 1.
pub const UNBONDING_QUEUE: u8 = 0x25;
/// Power that CometBFT was last told: `0x26 ‖ operator (20)` → u64.
pub const LAST_POWER: u8 = 0x26;
/// Parameters: `0x27` → `cosmos.staking.v1beta1.Params`.
pub const PARAMS: u8 = 0x27;
/// The next id of an unbonding entry: `0x28` → u64.
pub const NEXT_UNBONDING_ID: u8 = 0x28;
/// Validators that unbond, by completion: `0x29 ‖ seconds u64 ‖ nanoseconds u32 ‖ operator (20)` → 1.
pub const VALIDATOR_QUEUE: u8 = 0x29;
/// Candidates by power: `0x2a ‖ power u64 ‖ inverted operator (20)` → 1; read backwards, ties to the lower operator.
pub const BY_POWER: u8 = 0x2a;

/// Staking's tables.
pub const MODULE: Module = Module {
    name: "staking",
    messages: &[
        MessageRoute::of::<proto::MsgCreateValidator>(),
        MessageRoute::of::<proto::MsgDelegate>(),
        MessageRoute::of::<proto::MsgUndelegate>(),
    ],
    refused: &[
        "/cosmos.staking.v1beta1.MsgEditValidator",
        "/cosmos.staking.v1beta1.MsgBeginRedelegate",
        "/cosmos.staking.v1beta1.MsgCancelUnbondingDelegation",
    ],
    queries: &[
        QueryRoute::of::<proto::QueryValidatorsRequest>(),
        QueryRoute::of::<proto::QueryValidatorRequest>(),
        QueryRoute::of::<proto::QueryDelegationRequest>(),
        QueryRoute::of::<proto::QueryDelegatorDelegationsRequest>(),
        QueryRoute::of::<proto::QueryValidatorDelegationsRequest>(),
        QueryRoute::of::<proto::QueryUnbondingDelegationRequest>(),
        QueryRoute::of::<proto::QueryDelegatorUnbondingDelegationsRequest>(),
        QueryRoute::of::<proto::QueryDelegatorValidatorsRequest>(),
        QueryRoute::of::<proto::QueryPoolRequest>(),
        QueryRoute::of::<proto::QueryParamsRequest>(),
    ],
    begin_block: no_hook,
    end_block: set::end_block,
    genesis: genesis::run,
};

/// Why staking refuses, in codespace `staking` with the SDK's codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StakingError {
    /// No validator of that operator.
    #[error("validator {0} does not exist")]
    NoValidator(String),
    /// The account is a validator's operator already.
    #[error("{0} is a validator's operator already; it must use another account")]
    OwnerExists(String),
    /// The consensus key is another validator's.
    #[error("the consensus key is that of validator {0} already; a new validator needs a new key")]
    KeyExists(String),
    /// Not an ed25519 key.
    #[error("a consensus key is an /cosmos.crypto.ed25519.PubKey of 32 bytes, not {0}")]
    KeyType(String),
    /// Nothing is delegated there.
    #[error("no delegation of {delegator} to {validator}")]
    NoDelegation {
        /// Whose.
        delegator: String,
        /// To which validator.
        validator: String,
    },
    /// Less is delegated than is asked back.
    #[error("the delegation is worth {available} uplk, {asked} are asked back")]
    NotEnough {
        /// What it is worth.
        available: u128,
        /// What was asked.
        asked: u128,
    },
    /// Too many unbonding entries of this pair.
    #[error("{0} unbonding entries of this delegator and validator are the most: wait for one to complete")]
    MaxEntries(u32),
    /// Commission rates that contradict each other.
    #[error("commission: {0}")]
    Commission(&'static str),
    /// A field of the description that is too long or missing.
    #[error("description: {0}")]
    Description(&'static str),
    /// The operator's own stake is too small.
    #[error("the self-delegation must be at least the minimum self-delegation, which must be positive")]
    SelfDelegation,
    /// Stake in another coin.
    #[error("stake is in {expected}, not in {got}")]
    Denom {
        /// The coin of stake.
        expected: &'static str,
        /// The one given.
        got: String,
    },
    /// It would take the last validator's power away and halt the chain.
    #[error("this would leave no validator with power, and the chain would halt")]
    LastValidator,
}

impl From<StakingError> for TxError {
    fn from(error: StakingError) -> Self {
        let code = match &error {
            StakingError::NoValidator(_) => 3,
            StakingError::OwnerExists(_) => 4,
            StakingError::KeyExists(_) => 5,
            StakingError::KeyType(_) => 6,
            StakingError::Description(_) => 9,
            StakingError::Commission(_) => 10,
            StakingError::SelfDelegation => 16,
            StakingError::NoDelegation { .. } => 19,
            StakingError::NotEnough { .. } => 22,
            StakingError::MaxEntries(_) => 28,
            StakingError::Denom { .. } => 40,
            StakingError::LastValidator => 41,
        };
        TxError::Module { codespace: "staking", code, log: error.to_string() }
    }
}
