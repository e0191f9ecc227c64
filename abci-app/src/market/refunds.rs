//! Refunds: on a conviction those who paid for the answers that the trial looked at get back a part of it, out of the
//! worker's pay that had not vested and of its slash; what is not given back of these is burned ([`budget`]).
//!
//! Who paid what into which pot is noted at each redemption, and kept as long as pots are. The verdict fixes what each pot's
//! payers get together and puts that into the escrow; the payers follow, a bounded number in each block. Who was refunded
//! is taken out of the note, so that nobody is twice and the table is the cursor.

pub mod budget;

use polylink_protocol::market_v1::{Pot, Refund, RefundPot, Refunding};
use polylink_protocol::tiqe_v1::Trial;
use polylink_protocol::{Address, Amount, Bps, Digest, Message as _};

use super::params;
use super::records::{Kind, amount, load, pot, save, uplk};
use super::settle::terms;
use super::settlement::split;
use super::{POT_RETENTION_EPOCHS, RELEASES_PER_BLOCK, keys, models, settle};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::store::{StateRead, StateWrite};
use crate::tiqe::TRIAL_POT_EPOCHS;
use budget::{Outcome, budgets, rate, released, share};

/// Payers that one block refunds at most.
pub const REFUNDS_PER_BLOCK: usize = 64;
/// Old notes that each redemption drops: more than the one that it may make, so that they never pile up.
const DROPPED_PER_NOTE: usize = 2;

/// A payer's money went into a pot.
pub(super) fn note(
    ctx: &Context,
    state: &mut dyn StateWrite,
    (kind, epoch, profile, worker): (Kind, u64, &Digest, &Address),
    payer: &Address,
    increase: Amount,
) {
    settle::prune(state, kind.table(keys::PAID, keys::PRIVATE_PAID), ctx.epoch, DROPPED_PER_NOTE);
    let key = keys::paid(kind, epoch, profile, worker, payer);
    let sum = Amount(amount(state, &key).0.saturating_add(increase.0));
    state.put(key, sum.0.to_be_bytes().to_vec());
}

/// What became of a settled pot's money by the opening of a trial.
fn outcome(state: &dyn StateRead, pot: &Pot, opened: u64) -> Outcome {
    // It was settled in the next epoch, or later: then less of it is released.
    let settled = pot.epoch.saturating_add(1);
    let vesting = params::at(state, settled).vesting_epochs;
    // Nothing is released from the opening on.
    let worker = released(uplk(&pot.worker_reward), settled, opened, vesting);
    let given = [uplk(&pot.royalty), uplk(&pot.judge_reward), worker].into_iter().sum();
    Outcome { paid: uplk(&pot.paid), given }
}

/// The same of a pot that will be settled after the conviction, with nothing for the worker.
fn outcome_to_come(state: &dyn StateRead, kind: Kind, profile: &Digest, epoch: u64, money: Amount) -> Outcome {
    let mut terms = terms(state, profile, epoch, Bps::ZERO, !kind.is_private());
    terms.emission_left = Amount(u128::MAX);
    let shares = split(money, &terms);
    Outcome { paid: money, given: Amount(shares.royalty.0.saturating_add(shares.judges.0)) }
}

/// What was redeemed into a pot and paid out of it.
fn covered(pot: &Pot) -> Amount {
    uplk(&pot.redeemed).saturating_sub(uplk(&pot.carried_out))
}

/// The pots of a kind that a trial looks at and that are settled, newest first, and what became of the money of each, and of
/// what the newest one carried into the next.
fn looked_at(
    state: &dyn StateRead,
    kind: Kind,
    trial: &Trial,
    profile: &Digest,
    worker: &Address,
) -> (Vec<Pot>, Vec<Outcome>) {
    let settled = |epoch: u64| pot(state, kind, epoch, profile, worker).filter(|pot| pot.settled);
    let epochs = (0..TRIAL_POT_EPOCHS).filter_map(|back| trial.evidence_epoch.checked_sub(back));
    let pots: Vec<Pot> = epochs.filter_map(settled).collect();
    let mut outcomes: Vec<Outcome> = pots.iter().map(|pot| outcome(state, pot, trial.opened_epoch)).collect();
    let carried = pots.iter().find(|pot| pot.epoch == trial.evidence_epoch).map(|pot| uplk(&pot.carried_out));
    if let Some(carried) = carried.filter(|carried| !carried.is_zero()) {
        let next = trial.evidence_epoch.saturating_add(1);
        outcomes.push(match settled(next) {
            Some(pot) => outcome(state, &pot, trial.opened_epoch),
            None => outcome_to_come(state, kind, profile, next, carried),
        });
    }
    (pots, outcomes)
}

/// Executes a conviction's money: sets aside what the payers get, and burns the rest. `slashed` lies in the pool of bonds,
/// `clawed_back` in that of vesting pay. Returns what is set aside.
pub(crate) fn open(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    trial: &Trial,
    slashed: Amount,
    clawed_back: Amount,
) -> Result<Amount, TxError> {
    let (worker, profile): (Address, Digest) = (trial.worker.parse()?, models::digest(&trial.profile_digest)?);
    let (mut pots, mut outcomes) = (vec![], vec![]);
    for kind in Kind::BOTH {
        let (of_kind, became) = looked_at(state, kind, trial, &profile, &worker);
        pots.extend(of_kind);
        outcomes.extend(became);
    }
    let fund = Amount(slashed.0.saturating_add(clawed_back.0));
    let money: Vec<Amount> = pots.iter().map(covered).collect();
    let budgets = budgets(&money, rate(outcomes.into_iter()), fund);
    let total: Amount = budgets.iter().copied().sum();

    let of_vesting = total.min(clawed_back);
    let of_bonds = total.saturating_sub(of_vesting);
    bank::transfer(ctx, state, Pool::MarketVesting, Pool::MarketEscrow, of_vesting)?;
    bank::transfer(ctx, state, Pool::WorkerBonds, Pool::MarketEscrow, of_bonds)?;
    bank::burn(ctx, state, Pool::MarketVesting, clawed_back.saturating_sub(of_vesting))?;
    bank::burn(ctx, state, Pool::WorkerBonds, slashed.saturating_sub(of_bonds))?;
    if !total.is_zero() {
        let pots = pots.iter().zip(budgets).filter(|(_, budget)| !budget.is_zero()).map(|(pot, budget)| RefundPot {
            epoch: pot.epoch,
            budget: budget.to_string(),
            redeemed: pot.redeemed.clone(),
            private: pot.private,
        });
        let refunding = Refunding {
            trial: trial.id,
            worker: trial.worker.clone(),
            profile_digest: profile.to_vec(),
            pots: pots.collect(),
            left: total.to_string(),
        };
        save(state, keys::refunding(trial.id), &refunding);
    }
    Ok(total)
}

/// Refunds at most `limit` payers, in the order of the trials, and drops what is past its retention.
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite, mut limit: usize) -> Result<(), TxError> {
    while limit > 0 {
        let first = state.iter_prefix(&[keys::REFUNDING]).next();
        let Some(mut refunding) = first.and_then(|(_, value)| Refunding::decode(value.as_slice()).ok()) else { break };
        // The end of a pot counts as a payer, so that empty ones are bounded as well.
        limit = limit.saturating_sub(pay(ctx, state, &mut refunding, limit)?);
        if !refunding.pots.is_empty() {
            save(state, keys::refunding(refunding.trial), &refunding);
            continue;
        }
        state.delete(keys::refunding(refunding.trial));
        let rest = uplk(&refunding.left);
        bank::burn(ctx, state, Pool::MarketEscrow, rest)?;
        ctx.emit(
            "refunded",
            [("trial", refunding.trial.to_string()), ("worker", refunding.worker), ("burned", format!("{rest}uplk"))],
        );
    }
    forget(state, ctx.epoch);
    for table in [keys::PAID, keys::PRIVATE_PAID] {
        settle::prune(state, table, ctx.epoch, RELEASES_PER_BLOCK);
    }
    Ok(())
}

/// Refunds payers of the first pot that is left; returns how much of the limit that took.
fn pay(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    refunding: &mut Refunding,
    limit: usize,
) -> Result<usize, TxError> {
    let Some(pot) = refunding.pots.first().cloned() else { return Ok(1) };
    let (worker, profile): (Address, Digest) = (refunding.worker.parse()?, models::digest(&refunding.profile_digest)?);
    let prefix = keys::paid_into(Kind::of(pot.private), pot.epoch, &profile, &worker).finish();
    let payers: Vec<Vec<u8>> = state.iter_prefix(&prefix).take(limit).map(|(key, _)| key).collect();
    for key in &payers {
        let part = share(uplk(&pot.budget), amount(state, key), uplk(&pot.redeemed));
        state.delete(key.clone());
        let Some(payer) = keys::last_address(key).filter(|_| !part.is_zero()) else { continue };
        bank::transfer(ctx, state, Pool::MarketEscrow, payer, part)?;
        refunding.left = uplk(&refunding.left).saturating_sub(part).to_string();
        record(ctx, state, refunding, &payer, part);
    }
    if payers.len() < limit {
        refunding.pots.remove(0);
        return Ok(payers.len().saturating_add(1));
    }
    Ok(limit)
}

/// What a payer got, for whoever asks.
fn record(ctx: &mut Context, state: &mut dyn StateWrite, refunding: &Refunding, payer: &Address, part: Amount) {
    let key = keys::refund(payer, refunding.trial);
    let before = load::<Refund>(state, &key).map_or(Amount::ZERO, |refund| uplk(&refund.amount));
    let refund = Refund {
        payer: payer.account(),
        trial: refunding.trial,
        worker: refunding.worker.clone(),
        profile_digest: refunding.profile_digest.clone(),
        amount: Amount(before.0.saturating_add(part.0)).to_string(),
        epoch: ctx.epoch,
    };
    save(state, key, &refund);
    state.put(keys::refund_made(ctx.epoch, refunding.trial, payer), keys::THERE.to_vec());
    ctx.emit(
        "refund",
        [
            ("trial", refunding.trial.to_string()),
            ("payer", refund.payer),
            ("pot_epoch", refunding.pots.first().map_or(0, |pot| pot.epoch).to_string()),
            ("amount", format!("{part}uplk")),
        ],
    );
}

/// Drops records of refunds that were made long ago, a bounded number at a time.
fn forget(state: &mut dyn StateWrite, now: u64) {
    let old: Vec<(Vec<u8>, Vec<u8>)> = state
        .iter_prefix(&[keys::REFUND_MADE])
        .take(RELEASES_PER_BLOCK)
        .filter_map(|(key, _)| {
            let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
            let refund = keys::refund(&keys::last_address(&key)?, number(9)?);
            (number(1)?.saturating_add(POT_RETENTION_EPOCHS) < now).then_some((key, refund))
        })
        .collect();
    for (made, refund) in old {
        state.delete(made);
        state.delete(refund);
    }
}
