//! Who signed, who did not, and what too much absence costs: `x/slashing/keeper/infractions.go`.

use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{Params, ValidatorSigningInfo};
use polylink_protocol::{Address, Dec, Message};

use super::{MISSED, dec, emit_slash, evidence, params, set_signing_info, signing_info};
use crate::context::{Context, Vote};
use crate::error::TxError;
use crate::staking;
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// From a change of the set to the first block that it signs, and from a block to the one that carries its signatures.
const POWER_DELAY: i64 = 2;

/// The hook: signatures of the last block, then evidence of older ones.
pub(super) fn begin_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let params = params(state);
    for vote in std::mem::take(&mut ctx.commit.votes) {
        count(ctx, state, &params, &vote)?;
    }
    for misbehavior in std::mem::take(&mut ctx.commit.misbehavior) {
        evidence::punish(ctx, state, &params, &misbehavior)?;
    }
    Ok(())
}

fn mark(consensus: &Address, place: i64) -> Vec<u8> {
    KeyBuilder::new(MISSED).bytes(&consensus.0).u64(place.unsigned_abs()).finish()
}

/// Forgets what a validator has missed.
fn clear(state: &mut dyn StateWrite, consensus: &Address) {
    let prefix = KeyBuilder::new(MISSED).bytes(&consensus.0).finish();
    let marks: Vec<Vec<u8>> = state.iter_prefix(&prefix).map(|(key, _)| key).collect();
    marks.into_iter().for_each(|key| state.delete(key));
}

/// Counts every validator's signatures from here on, with nothing missed so far.
pub(super) fn restart(ctx: &Context, state: &mut dyn StateWrite) {
    let rows: Vec<(Vec<u8>, Vec<u8>)> = state.iter_prefix(&[super::SIGNING_INFO]).collect();
    for (key, value) in rows {
        let consensus = key.get(1..).and_then(|bytes| bytes.try_into().ok()).map(Address);
        let (Some(consensus), Ok(info)) = (consensus, ValidatorSigningInfo::decode(value.as_slice())) else { continue };
        clear(state, &consensus);
        let start_height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
        let info = ValidatorSigningInfo { start_height, index_offset: 0, missed_blocks_counter: 0, ..info };
        set_signing_info(state, &consensus, &info);
    }
}

fn count(ctx: &mut Context, state: &mut dyn StateWrite, params: &Params, vote: &Vote) -> Result<(), TxError> {
    let consensus = vote.validator;
    // A validator that is gone has nothing left to answer with.
    let Some(operator) = staking::operator_of(state, &consensus) else { return Ok(()) };
    let (Some(validator), Some(mut info)) = (staking::validator(state, &operator), signing_info(state, &consensus))
    else {
        return Ok(());
    };
    // For a block or two after its jailing it is still in the set; nothing is expected of it then.
    if validator.jailed {
        return Ok(());
    }
    let window = params.signed_blocks_window.max(1);
    let place = mark(&consensus, info.index_offset.rem_euclid(window));
    info.index_offset += 1;
    let missed = !vote.signed;
    match (state.contains(&place), missed) {
        (false, true) => {
            state.put(place, vec![1]);
            info.missed_blocks_counter += 1;
        }
        (true, false) => {
            state.delete(place);
            info.missed_blocks_counter -= 1;
        }
        _ => {}
    }
    let height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
    if missed {
        let attributes = [
            ("address", consensus.valcons()),
            ("missed_blocks", info.missed_blocks_counter.to_string()),
            ("height", height.to_string()),
        ];
        ctx.emit("liveness", attributes);
    }
    let most = window - least_signed(params, window);
    if height > info.start_height + window && info.missed_blocks_counter > most {
        let fraction = dec(&params.slash_fraction_downtime);
        let burned = staking::slash(ctx, state, &operator, height - POWER_DELAY, vote.power, fraction)?;
        staking::jail(state, &operator);
        emit_slash(ctx, &consensus, vote.power, "missing_signature", true, burned);
        let seconds = params.downtime_jail_duration.as_ref().map_or(0, |time| time.seconds.max(0).unsigned_abs());
        let until = ctx.time.plus_seconds(seconds);
        info = ValidatorSigningInfo {
            jailed_until: Some(polylink_protocol::cosmos::Timestamp { seconds: until.seconds, nanos: until.nanos }),
            missed_blocks_counter: 0,
            index_offset: 0,
            ..info
        };
        clear(state, &consensus);
    }
    set_signing_info(state, &consensus, &info);
    Ok(())
}

/// The blocks of a window that must be signed, rounded half to even.
fn least_signed(params: &Params, window: i64) -> i64 {
    let least = dec(&params.min_signed_per_window).mul_int(u128::from(window.unsigned_abs())).and_then(Dec::round);
    least.and_then(|least| i64::try_from(least.0).ok()).unwrap_or(window).min(window)
}

/// Verifies that the marks of every validator are as many as its info says, and within the window: for tests and export.
///
/// # Errors
/// The first that are not.
pub fn scan(state: &dyn StateRead) -> Result<(), String> {
    let window = params(state).signed_blocks_window;
    for (key, value) in state.iter_prefix(&[super::SIGNING_INFO]) {
        let info = ValidatorSigningInfo::decode(value.as_slice()).map_err(|error| error.to_string())?;
        let prefix = [&[MISSED], &key[1..]].concat();
        let marks: Vec<Vec<u8>> = state.iter_prefix(&prefix).map(|(key, _)| key).collect();
        let within = marks.iter().all(|key| key[21..] < window.to_be_bytes()[..]);
        if i64::try_from(marks.len()) != Ok(info.missed_blocks_counter) || !within {
            return Err(format!("{} has {} marks: {info:?}", info.address, marks.len()));
        }
    }
    Ok(())
}
