//! Staking: validators, the stake behind them, and the power that CometBFT gives their keys.
//!
//! A validator is an operator (the account that created it), an ed25519 consensus key, and delegations to it. A
//! delegation is a number of the validator's shares; a share is worth `tokens / shares` of the validator. Stake behind
//! validators with power sits in the pool of bonded tokens, everything else in that of not bonded ones. What is taken
//! back is paid after the unbonding time, so that it can still be held liable for what happened before.
//!
//! Invariants: the bonded pool holds the tokens of the bonded validators, the other one those of the rest and all
//! unbonding entries; a validator's shares are the sum of its delegations' ([`scan`] verifies them over the whole state).
//! Rules, order and rounding are those of `x/staking` of the Cosmos SDK 0.50.

mod delegate;
mod error;
mod genesis;
mod historical;
mod invariants;
mod messages;
mod params;
mod query;
mod records;
mod redelegate;
mod set;
mod shares;
mod slash;
mod stake_messages;
#[cfg(test)]
mod tests;
mod unbonding;

use polylink_protocol::cosmos::cosmos::staking::v1beta1 as proto;

use crate::modules::{MessageRoute, Module, QueryRoute};

pub use error::StakingError;
pub use genesis::{GenesisValidator, StakingGenesis};
pub use invariants::scan;
pub use records::{StakingParams, delegation, params, validator};
pub(crate) use records::{consensus_address, delegations_of, jail, operator_of, unjail};
pub(crate) use set::{bonded_validators, told};
pub(crate) use shares::{shares, tokens, tokens_of_shares, tokens_of_shares_truncated, worth};
pub(crate) use slash::slash;

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

/// Redelegations: `0x2b ‖ delegator (20) ‖ from (20) ‖ to (20)` → `cosmos.staking.v1beta1.Redelegation`.
pub const REDELEGATION: u8 = 0x2b;
/// Redelegations by completion: `0x2c ‖ seconds u64 ‖ nanoseconds u32 ‖ delegator (20) ‖ from (20) ‖ to (20)` → 1.
pub const REDELEGATION_QUEUE: u8 = 0x2c;
/// Redelegations by source: `0x2d ‖ from (20) ‖ delegator (20) ‖ to (20)` → 1.
pub const REDELEGATION_BY_SOURCE: u8 = 0x2d;
/// Redelegations by destination: `0x2e ‖ to (20) ‖ delegator (20) ‖ from (20)` → 1.
pub const REDELEGATION_BY_DESTINATION: u8 = 0x2e;
/// Delegators that unbond from a validator: `0x2f ‖ operator (20) ‖ delegator (20)` → 1.
pub const UNBONDING_BY_VALIDATOR: u8 = 0x2f;

/// The last headers and their sets: `0x1e ‖ height u64` → `cosmos.staking.v1beta1.HistoricalInfo`.
pub const HISTORICAL_INFO: u8 = 0x1e;

/// Staking's tables.
pub const MODULE: Module = Module {
    name: "staking",
    messages: &[
        MessageRoute::of::<proto::MsgCreateValidator>(),
        MessageRoute::of::<proto::MsgEditValidator>(),
        MessageRoute::of::<proto::MsgDelegate>(),
        MessageRoute::of::<proto::MsgBeginRedelegate>(),
        MessageRoute::of::<proto::MsgUndelegate>(),
        MessageRoute::of::<proto::MsgCancelUnbondingDelegation>(),
        MessageRoute::of::<proto::MsgUpdateParams>(),
    ],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryValidatorsRequest>(),
        QueryRoute::of::<proto::QueryValidatorRequest>(),
        QueryRoute::of::<proto::QueryDelegationRequest>(),
        QueryRoute::of::<proto::QueryDelegatorDelegationsRequest>(),
        QueryRoute::of::<proto::QueryValidatorDelegationsRequest>(),
        QueryRoute::of::<proto::QueryUnbondingDelegationRequest>(),
        QueryRoute::of::<proto::QueryValidatorUnbondingDelegationsRequest>(),
        QueryRoute::of::<proto::QueryRedelegationsRequest>(),
        QueryRoute::of::<proto::QueryDelegatorValidatorRequest>(),
        QueryRoute::of::<proto::QueryHistoricalInfoRequest>(),
        QueryRoute::of::<proto::QueryDelegatorUnbondingDelegationsRequest>(),
        QueryRoute::of::<proto::QueryDelegatorValidatorsRequest>(),
        QueryRoute::of::<proto::QueryPoolRequest>(),
        QueryRoute::of::<proto::QueryParamsRequest>(),
    ],
    begin_block: historical::begin_block,
    end_block: set::end_block,
    genesis: genesis::run,
};
