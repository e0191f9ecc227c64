//! Places: a profile has a bounded number of workers, the ones with the most bond.
//!
//! Who offers a profile holds a place in its index as long as it may serve: gateways find workers there. When all are
//! taken, a newcomer takes the place of the worker with the least bond if its own is greater, as validators do. Who loses
//! its place (or its bond, or is convicted) leaves the index at once; what it offered ends with the epoch, so that it
//! still commits to what it has served. It comes back by MsgUpdateWorker, once its bond is whole again.
//!
//! Invariant: an index entry belongs to a worker that is not jailed, is bonded at least at the minimum, and offers the
//! profile by its newest terms; a profile has at most [`WORKERS_PER_PROFILE_MAX`] of them.

use std::cmp::Reverse;

use polylink_protocol::market::set_terms;
use polylink_protocol::market_v1::{Offer, Worker, WorkerTerms};
use polylink_protocol::{Address, Amount, Digest};

use super::error::MarketError;
use super::records::{save, uplk, worker};
use super::{WORKERS_PER_PROFILE_MAX, keys, models};
use crate::context::Context;
use crate::store::StateWrite;

/// The newest terms: those in force, or those of the next epoch.
pub(super) fn newest(worker: &Worker) -> WorkerTerms {
    worker.terms.last().cloned().unwrap_or_default()
}

/// A place for each of these offers; whoever must make room for one leaves.
pub(super) fn take(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    bond: Amount,
    offers: &[Offer],
) -> Result<(), MarketError> {
    for offer in offers {
        let (profile, _) = models::known(state, &offer.profile_digest)?;
        let key = keys::offer(&profile, operator);
        if state.contains(&key) {
            continue;
        }
        let index = state.iter_prefix(&keys::offers_of(&profile)).take(WORKERS_PER_PROFILE_MAX);
        let holders: Vec<Address> = index.filter_map(|(key, _)| keys::last_address(&key)).collect();
        if holders.len() >= WORKERS_PER_PROFILE_MAX {
            // Of equal bonds the higher address leaves.
            let records = holders.iter().filter_map(|holder| Some((*holder, worker(state, holder)?)));
            let least = records.min_by_key(|(holder, record)| (uplk(&record.bond), Reverse(*holder)));
            match least {
                Some((holder, mut record)) if uplk(&record.bond) < bond => {
                    leave(ctx, state, &holder, &mut record, |offer| offer.profile_digest == profile.0);
                    save(state, keys::worker(&holder), &record);
                    ctx.emit("place_lost", [("operator", holder.account()), ("profile", profile.to_string())]);
                }
                _ => return Err(MarketError::TooManyWorkers { profile, max: WORKERS_PER_PROFILE_MAX }),
            }
        }
        state.put(key, keys::THERE.to_vec());
    }
    Ok(())
}

/// Gives up the places of these offers.
pub(super) fn give_up<'a>(state: &mut dyn StateWrite, operator: &Address, offers: impl Iterator<Item = &'a Offer>) {
    for profile in offers.filter_map(|offer| Digest::from_slice(&offer.profile_digest)) {
        state.delete(keys::offer(&profile, operator));
    }
}

/// Ends a worker's offers that `ends` names: their places at once, the offers with this epoch. The caller saves the
/// record.
pub(super) fn leave(
    ctx: &Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    record: &mut Worker,
    ends: impl Fn(&Offer) -> bool,
) {
    let terms = newest(record);
    let (ended, offers): (Vec<Offer>, Vec<Offer>) = terms.offers.into_iter().partition(ends);
    if !ended.is_empty() {
        give_up(state, operator, ended.iter());
        let from_epoch = ctx.epoch.saturating_add(1);
        set_terms(record, WorkerTerms { from_epoch, receipt_key: terms.receipt_key, offers });
    }
}
