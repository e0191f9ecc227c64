//! The settlement: pots whose round is over are shared out, a bounded number of them in each block.
//!
//! Pots wait in a queue by (epoch, profile, worker) and leave it once settled; what one block does not reach the next
//! one does, into the next epoch if it must be. A pot waits for its round to be scored; the one of the worker's private
//! sessions is settled behind it, since what it is worth depends on it ([`settlement::private_alpha`]).

use polylink_protocol::market::royalty_at;
use polylink_protocol::market_v1::{Epoch, Pot};
use polylink_protocol::{Address, Amount, Bps, DENOM, Digest};

use super::params;
use super::records::{Kind, amount, committed, model, pot, pot_or_new, save, save_pot, uplk, worker};
use super::refunds::{self, REFUNDS_PER_BLOCK};
use super::schedule::{Schedule, Window};
use super::settlement::{Cover, Split, Terms, by_weight, cover, private_alpha, split};
use super::{POT_RETENTION_EPOCHS, RELEASES_PER_BLOCK, bonds, keys, prices, reports, sessions, vesting};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::store::{StateRead, StateWrite};
use crate::{distribution, tiqe};

/// At an epoch's first block: the totals before it, from which its own minting and burning are known.
pub(super) fn begin_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    if ctx.epoch_offset == 0 {
        let (minted, burned) = bank::flows(state, DENOM);
        let start_height = i64::try_from(ctx.height).unwrap_or(i64::MAX);
        let record = Epoch { number: ctx.epoch, start_height, minted: minted.to_string(), burned: burned.to_string() };
        save(state, keys::epoch(ctx.epoch), &record);
        ctx.emit("epoch", [("number", ctx.epoch.to_string())]);
    }
    Ok(())
}

/// Settles pots that are due, fixes prices of the next epoch, ends what waited for a worker's word, releases what has vested and unbonded, and drops what is past its retention.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let params = params::at(state, ctx.epoch);
    let schedule = Schedule::new(&params);
    let due: Vec<(u64, Digest, Address)> = state
        .iter_prefix(&[keys::POT_DUE])
        .take(params.max_pots_settled_per_block as usize)
        .filter_map(|(key, _)| keys::split_pot(&key))
        .take_while(|(epoch, _, _)| schedule.is_over(Window::Reveal, *epoch, ctx.height))
        .collect();
    for (epoch, profile, operator) in due {
        if tiqe::is_pending(state, epoch, &profile) {
            break;
        }
        settle(ctx, state, epoch, &profile, &operator)?;
    }
    prices::end_block(ctx, state, &params, &schedule);
    reports::end_block(ctx, state, RELEASES_PER_BLOCK)?;
    vesting::release(ctx, state, RELEASES_PER_BLOCK)?;
    bonds::release(ctx, state, RELEASES_PER_BLOCK)?;
    sessions::forget(ctx, state, RELEASES_PER_BLOCK)?;
    refunds::end_block(ctx, state, REFUNDS_PER_BLOCK)?;
    for table in [keys::POT, keys::PRIVATE_POT, keys::EMITTED, keys::EPOCH, keys::REPORTED] {
        prune(state, table, ctx.epoch, RELEASES_PER_BLOCK);
    }
    Ok(())
}

/// Drops the oldest entries of a table keyed epoch first, at most `limit`.
pub(crate) fn prune(state: &mut dyn StateWrite, prefix: u8, now: u64, limit: usize) {
    let old: Vec<Vec<u8>> = state
        .iter_prefix(&[prefix])
        .take(limit)
        .map(|(key, _)| key)
        .take_while(|key| {
            let epoch = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            epoch.is_some_and(|epoch| epoch.saturating_add(POT_RETENTION_EPOCHS) < now)
        })
        .collect();
    for key in old {
        state.delete(key);
    }
}

/// The oldest entries `prefix ‖ epoch ‖ id` of a queue that are past the retention, at most `limit`; taken out of it.
pub(crate) fn past_retention(state: &mut dyn StateWrite, prefix: u8, now: u64, limit: usize) -> Vec<(u64, u64)> {
    let due: Vec<(Vec<u8>, (u64, u64))> = state
        .iter_prefix(&[prefix])
        .take(limit)
        .filter_map(|(key, _)| {
            let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
            let entry = (number(1)?, number(9)?);
            Some((key, entry))
        })
        .take_while(|(_, (epoch, _))| epoch.saturating_add(POT_RETENTION_EPOCHS) < now)
        .collect();
    due.into_iter()
        .map(|(key, entry)| {
            state.delete(key);
            entry
        })
        .collect()
}

fn settle(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    epoch: u64,
    profile: &Digest,
    operator: &Address,
) -> Result<(), TxError> {
    state.delete(keys::pot_due(epoch, profile, operator));
    Kind::BOTH.into_iter().try_for_each(|kind| settle_one(ctx, state, kind, epoch, profile, operator))
}

fn settle_one(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    kind: Kind,
    epoch: u64,
    profile: &Digest,
    operator: &Address,
) -> Result<(), TxError> {
    let unsettled = pot(state, kind, epoch, profile, operator).filter(|pot| !pot.settled);
    let Some(mut pot) = unsettled else { return Ok(()) };
    let params = params::at(state, epoch.saturating_add(1));
    let jailed = worker(state, operator).is_none_or(|worker| worker.jailed);
    let mut cover = cover(uplk(&pot.redeemed), uplk(&pot.carried_in), committed(&pot), uplk(&pot.allowance));
    if jailed {
        // There will be no next pot.
        cover.expired = Amount(cover.expired.0.saturating_add(cover.carried_out.0));
        (cover.carried_out, cover.allowance_out) = (Amount::ZERO, Amount::ZERO);
    }

    let mut verdict = tiqe::verdict(state, epoch, profile, operator);
    if kind.is_private() {
        verdict.alpha = unaudited_alpha(state, epoch, profile, operator, verdict.alpha, cover.paid);
        // Who has not judged is not paid for it: their part is withheld, not the worker's.
        verdict.judges.clear();
    }
    let alpha = if jailed { Bps::ZERO } else { alpha(state, &pot, &cover, verdict.alpha, profile, operator) };
    let judged = verdict.judges.iter().any(|(_, weight)| *weight > 0);
    let shares = split(cover.paid, &terms(state, profile, epoch, alpha, judged));
    if !shares.emission.is_zero() {
        let emitted = amount(state, &keys::emitted(epoch));
        let total = Amount(emitted.0.saturating_add(shares.emission.0));
        state.put(keys::emitted(epoch), total.0.to_be_bytes().to_vec());
    }
    pay(ctx, state, profile, operator, &cover, &shares, &verdict.judges, params.vesting_epochs)?;
    carry(state, kind, epoch, profile, operator, &cover);

    pot.settled = true;
    pot.alpha_bps = alpha.get();
    pot.fees_burned = shares.fees_burned.to_string();
    pot.emission = shares.emission.to_string();
    pot.royalty = shares.royalty.to_string();
    pot.worker_reward = shares.worker.to_string();
    pot.judge_reward = shares.judges.to_string();
    pot.withheld = shares.withheld.to_string();
    pot.paid = cover.paid.to_string();
    pot.carried_out = cover.carried_out.to_string();
    pot.expired = cover.expired.to_string();
    save_pot(state, profile, operator, &pot);
    ctx.emit(
        "settle",
        [
            ("worker", operator.account()),
            ("profile", profile.to_string()),
            ("epoch", epoch.to_string()),
            ("private", pot.private.to_string()),
            ("paid", format!("{}uplk", cover.paid)),
            ("alpha_bps", alpha.get().to_string()),
            ("worker_reward", format!("{}uplk", shares.worker)),
            ("judge_reward", format!("{}uplk", shares.judges)),
            ("withheld", format!("{}uplk", shares.withheld)),
            ("emission", format!("{}uplk", shares.emission)),
        ],
    );
    Ok(())
}

/// By what a pot of an epoch is shared out.
pub(super) fn terms(state: &dyn StateRead, profile: &Digest, epoch: u64, alpha: Bps, judged: bool) -> Terms {
    let params = params::at(state, epoch.saturating_add(1));
    let royalty = model(state, profile).map_or(0, |model| royalty_at(&model, epoch));
    Terms {
        fee_burn: Bps::clamped(params.fee_burn_bps),
        kappa: Bps::clamped(params.kappa_bps),
        judge_share: Bps::clamped(params.judge_share_bps),
        royalty: Bps::clamped(royalty),
        alpha,
        emission_left: uplk(&params.emission_per_epoch).saturating_sub(amount(state, &keys::emitted(epoch))),
        judged,
    }
}

/// What `paid` from private sessions is worth beside what the worker's audited pot of the epoch was paid, which is settled.
fn unaudited_alpha(
    state: &dyn StateRead,
    epoch: u64,
    profile: &Digest,
    operator: &Address,
    alpha: Bps,
    paid: Amount,
) -> Bps {
    let params = tiqe::params::at(state, epoch.saturating_add(1));
    let audited = pot(state, Kind::Audited, epoch, profile, operator).map_or(Amount::ZERO, |pot| uplk(&pot.paid));
    private_alpha(alpha, Bps::clamped(params.alpha_floor_bps), audited, params.private_share_bps, paid)
}

/// The pot's quality. Money that the epoch's own commitment does not cover belongs to the epoch before: it is not worth
/// more than that one was, so that nobody redeems late to be paid by a better round.
fn alpha(state: &dyn StateRead, current: &Pot, cover: &Cover, alpha: Bps, profile: &Digest, operator: &Address) -> Bps {
    if cover.paid <= committed(current) {
        return alpha;
    }
    let kind = Kind::of(current.private);
    let before = current.epoch.checked_sub(1).and_then(|epoch| pot(state, kind, epoch, profile, operator));
    before.map_or(alpha, |before| alpha.min(Bps::clamped(before.alpha_bps)))
}

#[allow(clippy::too_many_arguments)]
fn pay(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    profile: &Digest,
    operator: &Address,
    cover: &Cover,
    shares: &Split,
    judges: &[(Address, u64)],
    vesting_epochs: u64,
) -> Result<(), TxError> {
    bank::mint(ctx, state, Pool::MarketPots, shares.emission)?;
    let burned = [shares.fees_burned, shares.withheld, cover.expired].into_iter().sum();
    bank::burn(ctx, state, Pool::MarketPots, burned)?;
    if let Some(model) = model(state, profile) {
        bank::transfer(ctx, state, Pool::MarketPots, model.provider.parse::<Address>()?, shares.royalty)?;
    }
    bank::transfer(ctx, state, Pool::MarketPots, Pool::MarketVesting, shares.worker)?;
    if !shares.worker.is_zero() {
        vesting::add(ctx, state, operator, shares.worker, vesting_epochs);
    }
    let weights: Vec<u64> = judges.iter().map(|(_, weight)| *weight).collect();
    let (parts, rest) = by_weight(shares.judges, &weights);
    for ((judge, _), part) in judges.iter().zip(parts) {
        bank::transfer(ctx, state, Pool::MarketPots, *judge, part)?;
    }
    // Less than one uplk per judge: the community's.
    distribution::fund_community_pool(ctx, state, Pool::MarketPots, rest)
}

fn carry(state: &mut dyn StateWrite, kind: Kind, epoch: u64, profile: &Digest, operator: &Address, cover: &Cover) {
    if cover.carried_out.is_zero() && cover.allowance_out.is_zero() {
        return;
    }
    let mut next = pot_or_new(state, kind, epoch.saturating_add(1), profile, operator);
    next.carried_in = cover.carried_out.to_string();
    next.allowance = cover.allowance_out.to_string();
    save_pot(state, profile, operator, &next);
}
