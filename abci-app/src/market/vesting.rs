//! Workers' pay on its way to them: each reward is released in equal parts over the vesting epochs, and what is not
//! released yet is clawed back on a conviction.
//!
//! One bucket per (release epoch, owner); a reward of r over n epochs puts `floor(r·i/n) − floor(r·(i−1)/n)` into the
//! bucket of the i-th epoch after it, which adds up to r. The buckets together are the balance of the vesting pool.

use polylink_protocol::market_v1::Vesting;
use polylink_protocol::{Address, Amount};

use super::keys;
use super::params::VESTING_EPOCHS_MAX;
use super::records::amount;
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::store::{StateRead, StateWrite};
use crate::tiqe;

fn put_into(state: &mut dyn StateWrite, epoch: u64, owner: &Address, more: Amount) {
    let key = keys::vesting(epoch, owner);
    let sum = Amount(amount(state, &key).0.saturating_add(more.0));
    if !sum.is_zero() {
        state.put(key, sum.0.to_be_bytes().to_vec());
    }
}

/// Puts a reward, already in the vesting pool, into the buckets of the epochs after `ctx.epoch`.
pub fn add(ctx: &Context, state: &mut dyn StateWrite, owner: &Address, reward: Amount, epochs: u64) {
    let epochs = epochs.clamp(1, VESTING_EPOCHS_MAX);
    let until = |i: u64| reward.mul_div_floor(u128::from(i), u128::from(epochs)).unwrap_or(Amount::ZERO);
    for i in 1..=epochs {
        put_into(state, ctx.epoch.saturating_add(i), owner, until(i).saturating_sub(until(i - 1)));
    }
}

/// Pays out at most `limit` buckets that are due, oldest first; the rest follows in the next blocks. The pay of a
/// worker on trial waits for the verdict, epoch by epoch.
pub fn release(ctx: &mut Context, state: &mut dyn StateWrite, limit: usize) -> Result<(), TxError> {
    let due: Vec<(u64, Address)> = state
        .iter_prefix(&[keys::VESTING])
        .take(limit)
        .filter_map(|(key, _)| keys::split_epoch_address(&key))
        .take_while(|(epoch, _)| *epoch <= ctx.epoch)
        .collect();
    for (epoch, owner) in due {
        let key = keys::vesting(epoch, &owner);
        let part = amount(state, &key);
        state.delete(key);
        if tiqe::on_trial(state, &owner) {
            put_into(state, ctx.epoch.saturating_add(1), &owner, part);
            continue;
        }
        bank::transfer(ctx, state, Pool::MarketVesting, owner, part)?;
        ctx.emit("release_vesting", [("owner", owner.account()), ("amount", format!("{part}uplk"))]);
    }
    Ok(())
}

fn epochs_of(state: &dyn StateRead, now: u64) -> std::ops::RangeInclusive<u64> {
    // Buckets older than now are there only while a long queue of releases is worked off.
    let first = state.iter_prefix(&[keys::VESTING]).next().and_then(|(key, _)| keys::split_epoch_address(&key));
    let oldest = first.map_or(now, |(epoch, _)| epoch).clamp(now.saturating_sub(VESTING_EPOCHS_MAX), now);
    oldest..=now.saturating_add(VESTING_EPOCHS_MAX)
}

/// Takes what an owner has not received yet. Returns what is for the caller to pay out of the vesting pool or burn.
pub fn claw_back(ctx: &Context, state: &mut dyn StateWrite, owner: &Address) -> Amount {
    let mut total = Amount::ZERO;
    for epoch in epochs_of(state, ctx.epoch) {
        let key = keys::vesting(epoch, owner);
        let part = amount(state, &key);
        if !part.is_zero() {
            state.delete(key);
            total = Amount(total.0.saturating_add(part.0));
        }
    }
    total
}

/// What an owner is still to receive, and in which epochs.
pub fn of(state: &dyn StateRead, owner: &Address, now: u64) -> Vesting {
    let parts: Vec<(u64, Amount)> = epochs_of(state, now)
        .map(|epoch| (epoch, amount(state, &keys::vesting(epoch, owner))))
        .filter(|(_, part)| !part.is_zero())
        .collect();
    Vesting {
        owner: owner.account(),
        amount: parts.iter().map(|(_, part)| *part).sum::<Amount>().to_string(),
        start_epoch: parts.first().map_or(now, |(epoch, _)| *epoch),
        end_epoch: parts.last().map_or(now, |(epoch, _)| *epoch),
    }
}
