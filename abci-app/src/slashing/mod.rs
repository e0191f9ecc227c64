//! Validators answer for what they sign, and for not signing: `x/slashing` and `x/evidence` of the Cosmos SDK.
//!
//! With each block CometBFT reports who signed the last one. A validator that misses too many of a window of blocks loses
//! a little of its stake and is jailed until its operator lets it out ([`messages`]). One that is proved to have signed two
//! blocks of a height loses more and is *tombstoned*: it stays in jail for good ([`evidence`]).
//!
//! Invariant: the number of missed blocks in a validator's signing info is that of its marks, and none is beyond the
//! window.

mod error;
pub mod evidence;
mod liveness;
mod messages;
mod params;
mod query;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::Timestamp;
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{self as proto, Params, ValidatorSigningInfo};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::{Address, Amount, Dec, Message};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{KeyBuilder, StateRead, StateWrite};

pub use error::SlashingError;
pub use liveness::scan;

/// Parameters: `0x3a` → `cosmos.slashing.v1beta1.Params`.
pub const PARAMS: u8 = 0x3a;
/// Signing infos: `0x3b ‖ consensus address (20)` → `cosmos.slashing.v1beta1.ValidatorSigningInfo`.
pub const SIGNING_INFO: u8 = 0x3b;
/// Missed blocks of the window: `0x3c ‖ consensus address (20) ‖ place in the window u64` → 1.
pub const MISSED: u8 = 0x3c;
/// Evidence: `0x3d ‖ SHA-256 of the value (32)` → `cosmos.evidence.v1beta1.Equivocation`.
pub const EVIDENCE: u8 = 0x3d;

/// Slashing's tables.
pub const MODULE: Module = Module {
    name: "slashing",
    messages: &[MessageRoute::of::<proto::MsgUnjail>(), MessageRoute::of::<proto::MsgUpdateParams>()],
    refused: &["/cosmos.evidence.v1beta1.MsgSubmitEvidence"],
    queries: &[
        QueryRoute::of::<proto::QueryParamsRequest>(),
        QueryRoute::of::<proto::QuerySigningInfoRequest>(),
        QueryRoute::of::<proto::QuerySigningInfosRequest>(),
        QueryRoute::of::<polylink_protocol::cosmos::cosmos::evidence::v1beta1::QueryEvidenceRequest>(),
        QueryRoute::of::<polylink_protocol::cosmos::cosmos::evidence::v1beta1::QueryAllEvidenceRequest>(),
    ],
    begin_block: liveness::begin_block,
    end_block: no_hook,
    genesis,
};

/// Slashing at the start of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlashingGenesis {
    /// Blocks over which signatures are counted.
    pub signed_blocks_window: u32,
    /// The part of them that a validator must sign, in basis points.
    pub min_signed_bps: u32,
    /// How long a validator that was absent stays in jail.
    pub downtime_jail_seconds: u64,
    /// What two signatures at a height cost, in basis points of the stake.
    pub double_sign_bps: u32,
    /// What absence costs, in basis points of the stake.
    pub downtime_bps: u32,
}

impl Default for SlashingGenesis {
    /// The SDK's: half of 100 blocks, ten minutes, 5 % and 1 %.
    fn default() -> Self {
        SlashingGenesis {
            signed_blocks_window: 100,
            min_signed_bps: 5_000,
            downtime_jail_seconds: 600,
            double_sign_bps: 500,
            downtime_bps: 100,
        }
    }
}

/// Decimals stand as text in bytes in this module's messages.
fn dec_bytes(bps: u32) -> Vec<u8> {
    Dec::from_bps(bps).to_atomics_string().into_bytes()
}

fn dec(bytes: &[u8]) -> Dec {
    std::str::from_utf8(bytes).ok().and_then(Dec::from_atomics_str).unwrap_or(Dec::ZERO)
}

fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let slashing = &genesis.slashing;
    if slashing.signed_blocks_window == 0 || slashing.signed_blocks_window > 100_000 {
        return Err(GenesisError::invalid("slashing.signed_blocks_window", "1 to 100000"));
    }
    if slashing.min_signed_bps.max(slashing.double_sign_bps).max(slashing.downtime_bps) > 10_000 {
        return Err(GenesisError::invalid("slashing", "basis points are at most 10000"));
    }
    let seconds = i64::try_from(slashing.downtime_jail_seconds)
        .map_err(|_| GenesisError::invalid("slashing.downtime_jail_seconds", "too many"))?;
    let params = Params {
        signed_blocks_window: slashing.signed_blocks_window.into(),
        min_signed_per_window: dec_bytes(slashing.min_signed_bps),
        downtime_jail_duration: Some(Duration { seconds, nanos: 0 }),
        slash_fraction_double_sign: dec_bytes(slashing.double_sign_bps),
        slash_fraction_downtime: dec_bytes(slashing.downtime_bps),
    };
    state.put(vec![PARAMS], params.encode_to_vec());
    Ok(())
}

/// The parameters in force.
pub fn params(state: &dyn StateRead) -> Params {
    let bytes = state.get(&[PARAMS]).unwrap_or_default();
    Params::decode(bytes.as_slice()).expect("parameters are written encoded")
}

fn info_key(consensus: &Address) -> Vec<u8> {
    KeyBuilder::new(SIGNING_INFO).bytes(&consensus.0).finish()
}

/// What is known of a validator's signatures, from its first block in the set on.
pub fn signing_info(state: &dyn StateRead, consensus: &Address) -> Option<ValidatorSigningInfo> {
    let bytes = state.get(&info_key(consensus))?;
    Some(ValidatorSigningInfo::decode(bytes.as_slice()).expect("signing infos are written encoded"))
}

fn set_signing_info(state: &mut dyn StateWrite, consensus: &Address, info: &ValidatorSigningInfo) {
    state.put(info_key(consensus), info.encode_to_vec());
}

/// A validator has entered the set: its signatures count from here.
pub(crate) fn validator_bonded(ctx: &Context, state: &mut dyn StateWrite, consensus: &Address) {
    let info = signing_info(state, consensus).unwrap_or_else(|| ValidatorSigningInfo {
        address: consensus.valcons(),
        jailed_until: Some(Timestamp::default()),
        ..Default::default()
    });
    let start_height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
    set_signing_info(state, consensus, &ValidatorSigningInfo { start_height, ..info });
}

/// The event of a slash, as the SDK has it.
fn emit_slash(ctx: &mut Context, consensus: &Address, power: u64, reason: &str, jailed: bool, burned: Amount) {
    let attributes = [
        ("address", consensus.valcons()),
        ("power", power.to_string()),
        ("reason", reason.to_owned()),
        ("jailed", if jailed { consensus.valcons() } else { String::new() }),
        ("burned_coins", burned.to_string()),
    ];
    ctx.emit("slash", attributes);
}
