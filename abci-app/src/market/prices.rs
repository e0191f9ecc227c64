//! The prices of the epochs: each profile's turn, once per epoch, a bounded number of them in each block.
//!
//! When the pots of an epoch take no more money, its utilisation is known: in epoch y a profile's turn looks at epoch y − 1
//! and fixes the price of epoch y + 1, so that it stands before that epoch begins. A profile whose turn does not come
//! within the epoch keeps its price and is among the first in the next one.

use polylink_protocol::market::{offer_in, price_at, set_price, terms_at};
use polylink_protocol::market_v1::{EpochPrice, Model, Params, PriceTerms};
use polylink_protocol::{Address, Digest};

use super::price::{LEVEL_ONE, Usage, at_level, capacity_tokens, next_level, paid_tokens};
use super::records::{Kind, committed, load, model, pots, save, uplk, worker};
use super::schedule::{Schedule, Window};
use super::{POT_RETENTION_EPOCHS, WORKERS_PER_PROFILE_MAX, keys};
use crate::context::Context;
use crate::store::{Order, StateRead, StateWrite};

/// Profiles of one block at most: with their workers and pots that is at most some thousand records.
pub const TURNS_PER_BLOCK: usize = 16;
/// Records of one profile that are dropped in its turn at most.
const DROPPED_PER_TURN: usize = 4;

/// Where the turns stand: the epoch in which the last circle was completed, and the last profile of the running one.
fn cursor(state: &dyn StateRead) -> (Option<u64>, Option<Digest>) {
    let bytes = state.get(&[keys::PRICE_TURN]).unwrap_or_default();
    let epoch = bytes.get(..8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    (epoch.and_then(|epoch| epoch.checked_sub(1)), bytes.get(8..).and_then(Digest::from_slice))
}

fn put_cursor(state: &mut dyn StateWrite, completed: Option<u64>, last: Option<Digest>) {
    let epoch = completed.map_or(0, |epoch| epoch.saturating_add(1));
    let last = last.map_or(vec![], |profile| profile.to_vec());
    state.put(vec![keys::PRICE_TURN], [&epoch.to_be_bytes()[..], &last].concat());
}

/// The first profile with workers behind this one.
fn next_profile(state: &dyn StateRead, last: Option<&Digest>) -> Option<Digest> {
    let from = last.map_or(vec![keys::OFFER], |profile| [&keys::offers_of(profile)[..], &[0xff; 21]].concat());
    let (key, _) = state.iter_range(&from, Some(&[keys::OFFER + 1]), Order::Ascending).next()?;
    Digest::from_slice(key.get(1..33)?)
}

/// Gives profiles their turn, once the pots of the last epoch are closed.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite, params: &Params, schedule: &Schedule) {
    let Some(used) = ctx.epoch.checked_sub(1) else { return };
    if params.price_gain_bps == 0 || !schedule.is_over(Window::Reveal, used, ctx.height) {
        return;
    }
    let (completed, mut last) = cursor(state);
    if completed == Some(ctx.epoch) {
        return;
    }
    for _ in 0..TURNS_PER_BLOCK {
        let Some(profile) = next_profile(state, last.as_ref()) else {
            return put_cursor(state, Some(ctx.epoch), None);
        };
        turn(ctx, state, params, &profile, used);
        last = Some(profile);
    }
    put_cursor(state, completed, last);
}

/// What of a profile's capacity was paid for in an epoch: of all who hold a place or earned something, and offered it then.
fn usage(state: &dyn StateRead, params: &Params, profile: &Digest, model: &Model, epoch: u64) -> Usage {
    let price = price_at(model, epoch).unwrap_or_default();
    let pots: Vec<_> = Kind::BOTH.into_iter().flat_map(|kind| pots(state, kind, epoch, profile)).collect();
    let holders = state.iter_prefix(&keys::offers_of(profile)).take(WORKERS_PER_PROFILE_MAX);
    let mut operators: Vec<Address> = holders.filter_map(|(key, _)| keys::last_address(&key)).collect();
    operators.extend(pots.iter().map(|(operator, _)| *operator));
    operators.sort_unstable();
    operators.dedup();
    let mut usage = Usage::default();
    for operator in operators {
        let Some(record) = worker(state, &operator).filter(|record| !record.jailed) else { continue };
        let Some(terms) = terms_at(&record, epoch) else { continue };
        let Some(offer) = offer_in(terms, profile) else { continue };
        let in_all = terms.offers.iter().map(|offer| u128::from(offer.capacity_tokens_per_epoch)).sum();
        let (declared, per_plk) = (offer.capacity_tokens_per_epoch, params.capacity_tokens_per_plk);
        let capacity = capacity_tokens(declared, in_all, uplk(&record.bond), per_plk);
        let own = pots.iter().filter(|(owner, _)| *owner == operator);
        let paid = own.map(|(_, pot)| {
            let tokens = pot.root.as_ref().map_or(0, |root| root.tokens);
            paid_tokens(tokens, committed(pot), uplk(&pot.redeemed), &price)
        });
        usage.add(paid.fold(0, u64::saturating_add), capacity);
    }
    usage
}

/// Fixes the price of the next epoch. Without any capacity nothing is known, and the price stays.
fn turn(ctx: &mut Context, state: &mut dyn StateWrite, params: &Params, profile: &Digest, used_epoch: u64) {
    let Some(mut model) = model(state, profile) else { return };
    let usage = usage(state, params, profile, &model, used_epoch);
    let Some(utilization_bps) = usage.utilization_bps() else { return };
    let registered = model.price.unwrap_or_default();
    let before = if model.price_level == 0 { LEVEL_ONE } else { model.price_level };
    let level = next_level(before, utilization_bps, &registered, params);
    let (epoch, price) = (ctx.epoch.saturating_add(1), at_level(&registered, level));
    if level != before {
        model.price_level = level;
        set_price(&mut model, PriceTerms { from_epoch: epoch, price: Some(price) }, used_epoch);
        save(state, keys::model(profile), &model);
    }
    let record = EpochPrice {
        epoch,
        price: Some(price),
        level,
        used_epoch,
        paid_tokens: usage.paid_tokens,
        capacity_tokens: usage.capacity_tokens,
        utilization_bps,
    };
    save(state, keys::price(profile, epoch), &record);
    let oldest = ctx.epoch.saturating_sub(POT_RETENTION_EPOCHS);
    let end = keys::price(profile, oldest);
    // But for the newest of them, which holds until the oldest that is kept.
    let old = state.iter_range(&keys::prices_of(profile), Some(&end), Order::Ascending).take(DROPPED_PER_TURN + 1);
    let mut old: Vec<Vec<u8>> = old.map(|(key, _)| key).collect();
    old.pop();
    old.into_iter().for_each(|key| state.delete(key));
    ctx.emit(
        "price",
        [
            ("profile", profile.to_string()),
            ("epoch", epoch.to_string()),
            ("prompt", price.prompt.to_string()),
            ("cached_prompt", price.cached_prompt.to_string()),
            ("completion", price.completion.to_string()),
            ("utilization_bps", utilization_bps.to_string()),
        ],
    );
}

/// The record of an epoch's price, where a turn made one.
pub(super) fn record(state: &dyn StateRead, profile: &Digest, epoch: u64) -> Option<EpochPrice> {
    load(state, &keys::price(profile, epoch))
}

/// The newest record up to an epoch.
pub(super) fn newest(state: &dyn StateRead, profile: &Digest, epoch: u64) -> Option<EpochPrice> {
    let end = keys::price(profile, epoch.saturating_add(1));
    let key = state.iter_range(&keys::prices_of(profile), Some(&end), Order::Descending).next()?.0;
    load(state, &key)
}
