//! What a worker owes the chain at each epoch's end: the root of its receipts (an empty one is its heartbeat), and the
//! redemption of the newest vouchers; and to each report of an omitted receipt its answer.
//!
//! The commit waits for answers that still run under the ended epoch, until the receipts window is about to close; an
//! answer that is later than that fails with `epoch_closed` and is not billed.

use std::sync::Arc;

use polylink_protocol::cosmos::Any;
use polylink_protocol::market_v1::{MsgCommitReceipts, MsgRedeem, SignedVoucher};
use polylink_protocol::tiqe_v1::{Params, TrialState};
use polylink_protocol::tx;

use super::register::{refresh, send, size};
use super::{Worker, reports};
use crate::chain::{ChainError, ChainTime};

/// Blocks of the receipts window kept for a second attempt.
const SPARE_BLOCKS: u64 = 2;
/// Redemptions and bytes of one transaction.
const REDEEM_MAX: usize = 20;
const REDEEM_BYTES_MAX: usize = 16 << 10;
/// A segment of the journal with so much in it is full, even without receipts: payers may send vouchers again and again.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Sessions per epoch that are looked at, whether their accounts can be forgotten.
const FORGET_LOOKS: usize = 64;

/// What is to be done now about an ended epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing yet.
    Wait,
    /// Commit its receipts.
    Commit(u64),
    /// The window has passed: this epoch stays uncommitted, and unpaid.
    Missed(u64),
}

/// Pure: what the time asks for. `done_before`: epochs below are committed or missed. `running`: answers that run under
/// the ended epoch or older ones.
pub(super) fn duty(time: &ChainTime, done_before: u64, running: usize) -> Duty {
    let Some(ended) = time.epoch.checked_sub(1).filter(|ended| *ended >= done_before) else { return Duty::Wait };
    let offset = time.offset();
    // A transaction that is sent now is in the next block at the earliest.
    if offset + 1 >= time.receipts_window {
        Duty::Missed(ended)
    } else if running == 0 || offset + 1 + SPARE_BLOCKS >= time.receipts_window {
        Duty::Commit(ended)
    } else {
        Duty::Wait
    }
}

/// Does the duties until it is dropped.
pub(super) async fn run(worker: &Arc<Worker>) {
    let mut clock = worker.clock.clone();
    // Epochs before the restart: the chain says whether they are committed, the journal what the root was.
    let mut done_before = 0;
    let mut redeemed_again = 0;
    let mut tried_at = 0;
    let mut refreshed = 0;
    let mut forget_from = 0;
    let (mut shown, mut warned) = (0, 0);
    loop {
        clock.tick().await;
        let Ok(time) = clock.now() else { continue };
        if time.epoch > refreshed {
            match refresh(worker).await {
                Ok(()) => refreshed = time.epoch,
                Err(error) => tracing::debug!(%error, "the worker's record cannot be read now"),
            }
        }
        if time.epoch > warned {
            match warn(worker).await {
                Ok(()) => warned = time.epoch,
                Err(error) => tracing::debug!(%error, "the worker's trials cannot be read now"),
            }
        }
        if time.epoch > shown {
            match reports::answer(worker).await {
                Ok(()) => shown = time.epoch,
                Err(error) => tracing::warn!(%error, "reports of omitted receipts are not answered yet; tried again"),
            }
        }
        // Vouchers for the last answers of an epoch may come after its receipts were committed; its pot still takes them.
        if time.epoch > redeemed_again && time.offset() >= time.receipts_window {
            redeem(worker, time.epoch - 1).await;
            forget_from = forget(worker, time.epoch, forget_from).await;
            redeemed_again = time.epoch;
        }
        let running = time.epoch.checked_sub(1).map_or(0, |ended| worker.store.running(ended));
        match duty(&time, done_before, running) {
            Duty::Wait => {}
            Duty::Missed(epoch) => {
                let committed = worker.clock.chain().pot(epoch, &worker.operator, &worker.profile_digest).await;
                if !matches!(&committed, Ok(Some(pot)) if pot.root.is_some()) {
                    tracing::warn!(epoch, "the receipts window has passed: the epoch's receipts are not committed");
                }
                if let Err(error) = worker.store.close_epoch(epoch).await {
                    tracing::error!(epoch, %error, "the epoch cannot be closed");
                }
                done_before = epoch + 1;
            }
            // What failed is tried again with the next block.
            Duty::Commit(_) if time.height == tried_at => {}
            Duty::Commit(epoch) => match commit(worker, epoch).await {
                Ok(()) => done_before = epoch + 1,
                Err(error) => {
                    tracing::warn!(epoch, error, "the receipts are not committed yet; tried again");
                    tried_at = time.height;
                }
            },
        }
    }
}

/// Tells of a conviction that can be appealed against: only the operator knows whether what its judges found is so.
async fn warn(worker: &Worker) -> Result<(), ChainError> {
    for trial in worker.clock.chain().trials(&worker.operator).await? {
        if trial.state() == TrialState::Convicted {
            let (id, until) = (trial.id, trial.appeal_until_epoch);
            tracing::error!(trial = id, until, "this worker is convicted: `polylink tx appeal {id}` up to that epoch");
        }
    }
    Ok(())
}

async fn commit(worker: &Worker, epoch: u64) -> Result<(), String> {
    let roots = worker.store.close_epoch(epoch).await.map_err(|e| e.to_string())?;
    let pot =
        worker.clock.chain().pot(epoch, &worker.operator, &worker.profile_digest).await.map_err(|e| e.to_string())?;
    if pot.is_none_or(|pot| pot.root.is_none()) {
        let message = MsgCommitReceipts {
            operator: worker.operator.clone(),
            epoch,
            profile_digest: worker.profile_digest.to_vec(),
            root: Some(roots.audited.to_proto()),
            private_root: roots.private.map(|root| root.to_proto()),
        };
        let height = send(worker, vec![tx::any(&message)]).await.map_err(|e| e.to_string())?;
        let (receipts, amount, private) =
            (roots.audited.count, roots.audited.amount, roots.private.map_or(0, |r| r.count));
        tracing::info!(epoch, height, receipts, %amount, private, "receipts committed");
    }
    redeem(worker, epoch).await;
    if roots.count() > 0 || worker.store.written() >= SEGMENT_BYTES {
        let tiqe = worker.clock.chain().tiqe_params().await.map_err(|e| e.to_string())?;
        let market = worker.clock.chain().market_params().await.map_err(|e| e.to_string())?;
        let reported = market.report_epochs.saturating_add(market.report_answer_epochs).saturating_add(1);
        let oldest = epoch.saturating_sub(worker.config.keep_epochs.max(asked_for(&tiqe)).max(reported));
        worker.store.rotate(oldest).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Forgets accounts of sessions that are closed, or have expired so long ago that their payers have had the worker's last
/// word. Returns where to go on.
async fn forget(worker: &Worker, epoch: u64, from: u64) -> u64 {
    let sessions = worker.store.sessions(from, FORGET_LOOKS);
    for id in &sessions {
        let Ok(found) = worker.sessions.get(*id, 0, false).await else { return *id };
        // What a node does not know may be too new for it.
        let Some(session) = found else { continue };
        let expired = session.expiry_epoch.saturating_add(worker.config.keep_epochs) < epoch;
        if (session.closed || expired) && worker.store.forget(*id, session.closed) {
            tracing::debug!(session = id, "the session is over: its account is forgotten");
        }
    }
    if sessions.len() < FORGET_LOOKS { 0 } else { sessions.last().map_or(0, |last| last.saturating_add(1)) }
}

/// For how many epochs an epoch's transcripts may be asked for: a trial samples the epoch that opened it and the three
/// before, its beacon comes two epochs later, then the votes, then an appeal with a beacon and votes; and as many again for
/// beacons that were postponed.
fn asked_for(params: &Params) -> u64 {
    let appeal = if params.appeal_epochs == 0 { 0 } else { params.appeal_epochs + params.trial_epochs + 2 };
    params.trial_epochs.saturating_add(5).saturating_add(appeal).saturating_mul(2)
}

/// Redeems the newest voucher of each session up to the epoch; what fails is tried again an epoch later.
async fn redeem(worker: &Worker, epoch: u64) {
    let vouchers = worker.store.redeemable(epoch);
    let mut batch: Vec<(Any, SignedVoucher)> = Vec::new();
    for voucher in vouchers {
        let message = MsgRedeem { payee: worker.operator.clone(), voucher: Some(voucher.clone()) };
        batch.push((tx::any(&message), voucher));
        let messages: Vec<Any> = batch.iter().map(|(m, _)| m.clone()).collect();
        if batch.len() >= REDEEM_MAX || size(&messages) >= REDEEM_BYTES_MAX {
            redeem_batch(worker, std::mem::take(&mut batch)).await;
        }
    }
    redeem_batch(worker, batch).await;
}

async fn redeem_batch(worker: &Worker, batch: Vec<(Any, SignedVoucher)>) {
    if batch.is_empty() {
        return;
    }
    let messages: Vec<Any> = batch.iter().map(|(m, _)| m.clone()).collect();
    match send(worker, messages).await {
        Ok(height) => {
            tracing::info!(height, vouchers = batch.len(), "vouchers redeemed");
            batch.iter().for_each(|(_, voucher)| note(worker, voucher));
        }
        // One bad voucher fails its whole transaction: then each goes alone.
        Err(ChainError::Refused(_)) if batch.len() > 1 => {
            for (message, voucher) in batch {
                match send(worker, vec![message]).await {
                    Ok(_) => note(worker, &voucher),
                    Err(error) => tracing::warn!(%error, "a voucher cannot be redeemed"),
                }
            }
        }
        Err(error) => tracing::warn!(%error, "vouchers cannot be redeemed now; tried again an epoch later"),
    }
}

fn note(worker: &Worker, voucher: &SignedVoucher) {
    if let Err(error) = worker.store.redeemed(voucher) {
        tracing::warn!(%error, "a redemption is not noted; the chain will say that it was done");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(epoch: u64, offset: u64) -> ChainTime {
        ChainTime { epoch, height: epoch * 20 + offset, epoch_blocks: 20, receipts_window: 5 }
    }

    #[test]
    fn receipts_are_committed_once_within_their_window() {
        for (epoch, offset, done_before, running, expected) in [
            (0, 3, 0, 0, Duty::Wait),
            (1, 0, 0, 0, Duty::Commit(0)),
            (1, 0, 1, 0, Duty::Wait),
            (1, 0, 0, 2, Duty::Wait),
            (1, 1, 0, 2, Duty::Wait),
            (1, 2, 0, 2, Duty::Commit(0)),
            (1, 3, 0, 2, Duty::Commit(0)),
            (1, 4, 0, 0, Duty::Missed(0)),
            (7, 19, 3, 0, Duty::Missed(6)),
            (7, 19, 7, 0, Duty::Wait),
        ] {
            assert_eq!(
                duty(&time(epoch, offset), done_before, running),
                expected,
                "{epoch} {offset} {done_before} {running}"
            );
        }
    }
}
