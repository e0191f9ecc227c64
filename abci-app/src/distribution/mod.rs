//! Who earns what of the fees: every delegator its part of its validator's, by F1 ("F1 Fee Distribution", Ojha and
//! Goes), as in `x/distribution` of the Cosmos SDK.
//!
//! A block's fees, and what was minted, go to the community pool by the community tax, and for the rest to the validators
//! of the last block by their power: first their commission, then their delegators. Nothing is paid out then. A validator's
//! history is cut into *periods*, which end whenever one of its delegations changes; with each end the rewards per token
//! since the validator began are written down, so that a delegation of any age is paid by the difference of two numbers.
//! A slash makes the stake of all delegations smaller from a period on.
//!
//! Invariant: the pool `distribution` holds what is outstanding for validators and the community pool, exactly; it is
//! verified on the changes of every block ([`check_conservation`]), and over the whole state by [`scan`]. Rounding is
//! down, and its remainders go to the community pool.

mod allocate;
mod conservation;
mod error;
mod governed;
mod messages;
mod query;
mod records;
mod rewards;
#[cfg(test)]
mod tests;

use polylink_protocol::Dec;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1 as proto;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::StateWrite;

pub use allocate::fund_community_pool;
pub use conservation::{Breach, check_conservation, scan};
pub use error::DistributionError;
pub(crate) use rewards::{
    after_delegation_modified, before_delegation_created, before_delegation_modified, before_validator_slashed,
    validator_created, validator_removed,
};

/// Parameters: `0x30` → `cosmos.distribution.v1beta1.Params`.
pub const PARAMS: u8 = 0x30;
/// The community pool: `0x31` → `Dec` of 32 bytes.
pub const COMMUNITY_POOL: u8 = 0x31;
/// What a validator and its delegators have earned and not been paid: `0x32 ‖ operator (20)` → `Dec`; absent where zero.
pub const OUTSTANDING: u8 = 0x32;
/// The period that runs: `0x33 ‖ operator (20)` → rewards `Dec` ‖ its number u64.
pub const CURRENT: u8 = 0x33;
/// Periods that have ended and are still needed: `0x34 ‖ operator (20) ‖ period u64` → rewards of one token until its end
/// `Dec` ‖ references u32.
pub const HISTORICAL: u8 = 0x34;
/// Commission that was not withdrawn: `0x35 ‖ operator (20)` → `Dec`; absent where zero.
pub const COMMISSION: u8 = 0x35;
/// Where a delegation begins to earn: `0x36 ‖ operator (20) ‖ delegator (20)` → period before u64 ‖ stake `Dec` ‖ height u64.
pub const STARTING: u8 = 0x36;
/// Slashes: `0x37 ‖ operator (20) ‖ height u64 ‖ period u64` → fraction `Dec`.
pub const SLASH: u8 = 0x37;
/// Where an account wants its rewards: `0x38 ‖ account (20)` → address (20).
pub const WITHDRAW_ADDRESS: u8 = 0x38;

/// The distribution's tables.
pub const MODULE: Module = Module {
    name: "distribution",
    messages: &[
        MessageRoute::of::<proto::MsgWithdrawDelegatorReward>(),
        MessageRoute::of::<proto::MsgWithdrawValidatorCommission>(),
        MessageRoute::of::<proto::MsgSetWithdrawAddress>(),
        MessageRoute::of::<proto::MsgFundCommunityPool>(),
        MessageRoute::of::<proto::MsgCommunityPoolSpend>(),
        MessageRoute::of::<proto::MsgUpdateParams>(),
    ],
    refused: &["/cosmos.distribution.v1beta1.MsgDepositValidatorRewardsPool"],
    queries: &[
        QueryRoute::of::<proto::QueryParamsRequest>(),
        QueryRoute::of::<proto::QueryValidatorDistributionInfoRequest>(),
        QueryRoute::of::<proto::QueryValidatorOutstandingRewardsRequest>(),
        QueryRoute::of::<proto::QueryValidatorCommissionRequest>(),
        QueryRoute::of::<proto::QueryValidatorSlashesRequest>(),
        QueryRoute::of::<proto::QueryDelegationRewardsRequest>(),
        QueryRoute::of::<proto::QueryDelegationTotalRewardsRequest>(),
        QueryRoute::of::<proto::QueryDelegatorValidatorsRequest>(),
        QueryRoute::of::<proto::QueryDelegatorWithdrawAddressRequest>(),
        QueryRoute::of::<proto::QueryCommunityPoolRequest>(),
    ],
    begin_block: allocate::begin_block,
    end_block: no_hook,
    genesis,
};

/// The distribution at the start of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistributionGenesis {
    /// The community pool's part of fees and of what is minted, in basis points.
    pub community_tax_bps: u32,
    /// Whether rewards may be sent to another account than the delegator's.
    pub withdraw_address_enabled: bool,
}

impl Default for DistributionGenesis {
    /// The SDK's: 2 %, allowed.
    fn default() -> Self {
        DistributionGenesis { community_tax_bps: 200, withdraw_address_enabled: true }
    }
}

fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let tax = genesis.distribution.community_tax_bps;
    if tax > 10_000 {
        return Err(GenesisError::invalid("distribution.community_tax_bps", "at most 10000"));
    }
    #[allow(deprecated, reason = "explorers read them; they are zero as in the SDK since 0.47")]
    let params = proto::Params {
        community_tax: Dec::from_bps(tax).to_atomics_string(),
        base_proposer_reward: Dec::ZERO.to_atomics_string(),
        bonus_proposer_reward: Dec::ZERO.to_atomics_string(),
        withdraw_addr_enabled: genesis.distribution.withdraw_address_enabled,
    };
    records::set_params(state, &params);
    Ok(())
}
