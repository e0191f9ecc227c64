//! The last headers with the sets of validators that stood behind them: `x/staking/keeper/historical_info.go`.

use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::HistoricalInfo;
use polylink_protocol::cosmos::tendermint::types::Header;

use super::HISTORICAL_INFO;
use super::records::{consensus_address, params, power, timestamp};
use super::set::bonded_validators;
use crate::context::Context;
use crate::error::TxError;
use crate::store::{KeyBuilder, Order, StateRead, StateWrite};

/// Entries that one block drops at most: one is added by each.
const DROPPED_MAX: usize = 64;

fn key(height: u64) -> Vec<u8> {
    KeyBuilder::new(HISTORICAL_INFO).u64(height).finish()
}

/// What is known of a height, while it is among the last ones.
pub(super) fn find(state: &dyn StateRead, height: u64) -> Option<HistoricalInfo> {
    Some(HistoricalInfo::decode(state.get(&key(height))?.as_slice()).expect("historical infos are written encoded"))
}

/// The hook: this block's header, as far as the ledger is told of it, with the set as the last block has left it.
pub(super) fn begin_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let entries = u64::from(params(state).historical_entries);
    let oldest = (ctx.height + 1).saturating_sub(entries);
    let old = state.iter_range(&[HISTORICAL_INFO], Some(&key(oldest)), Order::Ascending).take(DROPPED_MAX);
    let old: Vec<Vec<u8>> = old.map(|(key, _)| key).collect();
    old.into_iter().for_each(|key| state.delete(key));
    if entries == 0 {
        return Ok(());
    }
    let mut valset: Vec<_> = bonded_validators(state).into_iter().map(|(_, validator)| validator).collect();
    // In CometBFT's order: the strongest first, equals by their consensus addresses.
    valset.sort_by_key(|validator| (std::cmp::Reverse(power(validator)), consensus_address(validator)));
    let header = Header {
        chain_id: ctx.chain_id.clone(),
        height: i64::try_from(ctx.height).unwrap_or(i64::MAX),
        time: Some(timestamp(ctx.time)),
        next_validators_hash: ctx.commit.next_validators_hash.clone(),
        app_hash: ctx.commit.app_hash.clone(),
        proposer_address: ctx.commit.proposer.clone(),
        ..Default::default()
    };
    state.put(key(ctx.height), HistoricalInfo { header: Some(header), valset }.encode_to_vec());
    Ok(())
}
