//! Inflation, paid to validators and delegators with the fees: `x/mint` of the Cosmos SDK.
//!
//! What work earns is minted by the market's settlement, by what its fees burned. Beside that a chain may pay for its
//! security: inflation moves by the share of the supply that is bonded, between two bounds, and a block's part of it goes
//! to the fee collector. A genesis that does not ask for it mints nothing here.

mod params;
mod query;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::cosmos::mint::v1beta1::{self as proto, Minter, Params};
use polylink_protocol::{Amount, DENOM, Dec, Message};
use serde::{Deserialize, Serialize};

use crate::bank::{self, Pool, balance, supply, transfer};
use crate::context::Context;
use crate::error::{GenesisError, TxError};
use crate::genesis::Genesis;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{StateRead, StateWrite};

/// Parameters: `0x18` → `cosmos.mint.v1beta1.Params`.
pub const PARAMS: u8 = 0x18;
/// Inflation and what it would mint in a year: `0x19` → `cosmos.mint.v1beta1.Minter`.
pub const MINTER: u8 = 0x19;

/// The mint's tables.
pub const MODULE: Module = Module {
    name: "mint",
    messages: &[MessageRoute::of::<proto::MsgUpdateParams>()],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryParamsRequest>(),
        QueryRoute::of::<proto::QueryInflationRequest>(),
        QueryRoute::of::<proto::QueryAnnualProvisionsRequest>(),
    ],
    begin_block,
    end_block: no_hook,
    genesis,
};

/// The mint at the start of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MintGenesis {
    /// Inflation of the first block, in basis points a year.
    pub inflation_bps: u32,
    /// Its lower bound.
    pub inflation_min_bps: u32,
    /// Its upper bound; 0 mints nothing.
    pub inflation_max_bps: u32,
    /// How far it moves in a year with nothing bonded.
    pub inflation_rate_change_bps: u32,
    /// The share of the supply at which it stands still.
    pub goal_bonded_bps: u32,
    /// Blocks that are expected in a year.
    pub blocks_per_year: u64,
}

impl Default for MintGenesis {
    /// No inflation; the rest is the SDK's.
    fn default() -> Self {
        MintGenesis {
            inflation_bps: 0,
            inflation_min_bps: 0,
            inflation_max_bps: 0,
            inflation_rate_change_bps: 1_300,
            goal_bonded_bps: 6_700,
            blocks_per_year: 6_311_520,
        }
    }
}

fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let mint = &genesis.mint;
    let ordered = mint.inflation_min_bps <= mint.inflation_bps && mint.inflation_bps <= mint.inflation_max_bps;
    if !ordered || mint.inflation_max_bps.max(mint.inflation_rate_change_bps).max(mint.goal_bonded_bps) > 10_000 {
        return Err(GenesisError::invalid("mint", "0 ≤ minimum ≤ inflation ≤ maximum ≤ 10000 must hold"));
    }
    if mint.goal_bonded_bps == 0 || mint.blocks_per_year == 0 {
        return Err(GenesisError::invalid("mint", "goal_bonded_bps and blocks_per_year must be positive"));
    }
    let text = |bps| Dec::from_bps(bps).to_atomics_string();
    let params = Params {
        mint_denom: DENOM.into(),
        inflation_rate_change: text(mint.inflation_rate_change_bps),
        inflation_max: text(mint.inflation_max_bps),
        inflation_min: text(mint.inflation_min_bps),
        goal_bonded: text(mint.goal_bonded_bps),
        blocks_per_year: mint.blocks_per_year,
    };
    state.put(vec![PARAMS], params.encode_to_vec());
    set_minter(state, Dec::from_bps(mint.inflation_bps), Dec::ZERO);
    Ok(())
}

fn params(state: &dyn StateRead) -> Params {
    let bytes = state.get(&[PARAMS]).unwrap_or_default();
    Params::decode(bytes.as_slice()).expect("parameters are written encoded")
}

/// Inflation a year, and what it would mint.
fn minter(state: &dyn StateRead) -> (Dec, Dec) {
    let bytes = state.get(&[MINTER]).unwrap_or_default();
    let minter = Minter::decode(bytes.as_slice()).expect("the minter is written encoded");
    (dec(&minter.inflation), dec(&minter.annual_provisions))
}

fn set_minter(state: &mut dyn StateWrite, inflation: Dec, annual_provisions: Dec) {
    let (inflation, annual_provisions) = (inflation.to_atomics_string(), annual_provisions.to_atomics_string());
    state.put(vec![MINTER], Minter { inflation, annual_provisions }.encode_to_vec());
}

fn dec(text: &str) -> Dec {
    Dec::from_atomics_str(text).expect("decimals are written as atomics")
}

/// The inflation after one more block (`NextInflationRate`): it rises while less than the goal is bonded, else it falls.
fn next_inflation(params: &Params, inflation: Dec, bonded: Dec) -> Option<Dec> {
    let of_goal = bonded.quo_round(dec(&params.goal_bonded))?;
    let distance = of_goal.max(Dec::one()).saturating_sub(of_goal.min(Dec::one()));
    let a_year = distance.mul_round(dec(&params.inflation_rate_change))?;
    let change = a_year.quo_round(Dec::from_amount(Amount(params.blocks_per_year.into())))?;
    let moved = if of_goal > Dec::one() { inflation.saturating_sub(change) } else { inflation.checked_add(change)? };
    Some(moved.min(dec(&params.inflation_max)).max(dec(&params.inflation_min)))
}

fn begin_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let params = params(state);
    if dec(&params.inflation_max).is_zero() {
        return Ok(());
    }
    let overflow = || TxError::InvalidCoins("more inflation than a decimal can hold".into());
    let supply = supply(state, DENOM);
    let bonded = Dec::from_ratio(balance(state, Pool::BondedTokens).0, supply.0).unwrap_or(Dec::ZERO);
    let inflation = next_inflation(&params, minter(state).0, bonded).ok_or_else(overflow)?;
    let annual = inflation.mul_int(supply.0).ok_or_else(overflow)?;
    let provision = annual.quo_int(params.blocks_per_year.into()).and_then(Dec::truncate).ok_or_else(overflow)?;
    set_minter(state, inflation, annual);
    bank::mint(ctx, state, Pool::Mint, provision)?;
    transfer(ctx, state, Pool::Mint, Pool::FeeCollector, provision)?;
    let attributes = [
        ("bonded_ratio", bonded.to_string()),
        ("inflation", inflation.to_string()),
        ("annual_provisions", annual.to_string()),
        ("amount", provision.to_string()),
    ];
    ctx.emit("mint", attributes);
    Ok(())
}
