//! Pays a session's receipts, and finds out what became of requests that broke off.

use std::sync::{Arc, Weak};
use std::time::Duration;

use polylink_protocol::market::receipt_digest;
use polylink_protocol::market_v1::{SignedReceipt, SignedRequest};
use polylink_protocol::transcript::{AnswerRecord, ReceiptStatus, VoucherAck};

use super::arrivals::Arrival;
use super::book::{Owed, Running};
use super::call::CallError;
use super::payer::{Payer, PayerError, PayerSession};
use super::store::Answered;
use super::verify::{CutAnswer, verify_cut};
use super::worker::WorkerRef;

/// Shortest time between two looks.
const SOON: Duration = Duration::from_millis(100);
/// Time between two looks when nothing wakes the settler.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Epochs after a request's own in which its user may still be charged for what was cut; what the worker shows later is
/// the worker's loss. The reservation ends then, whether or not the worker answers.
const CHARGE_EPOCHS: u64 = 2;

/// Runs until the payer is dropped, or nothing is left to do in a session that has expired.
pub(super) async fn run(payer: Weak<Payer>, session: Arc<PayerSession>) {
    let mut pause = SOON;
    loop {
        let Some(payer) = payer.upgrade() else { return };
        let outcome = async {
            pay(&payer, &session).await?;
            let open = reconcile(&payer, &session).await?;
            pay(&payer, &session).await?;
            Ok::<_, PayerError>(open)
        };
        match outcome.await {
            Ok(open) => {
                if payer.is_over(&session) {
                    return;
                }
                drop(payer);
                // A worker that is still ending what its caller has cut is asked again soon.
                let wait = if open { pause } else { PERIOD };
                pause = if open { (pause * 2).min(PERIOD) } else { SOON };
                // Woken early or by time: both are a reason to look.
                let _ = tokio::time::timeout(wait, session.wake.notified()).await;
            }
            Err(error) => {
                drop(payer);
                tracing::warn!(session = session.id, %error, "the session cannot be settled now; tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Sends vouchers until nothing is owed that can be paid now.
async fn pay(payer: &Payer, session: &PayerSession) -> Result<(), PayerError> {
    let url = format!("{}/polylink/v1/vouchers", session.worker().endpoint);
    while let Some(call) = payer.store.voucher(payer.clock.chain_id(), session.id, &payer.config.spend_key).await? {
        let ack: VoucherAck = payer.http.post(&url, &call).await?;
        let Some(voucher) = &call.voucher.voucher else { return Ok(()) };
        if ack.count < voucher.count {
            let reason = format!("acknowledges {} receipts of {}", ack.count, voucher.count);
            return Err(CallError::Unexpected { url, reason }.into());
        }
        payer.store.acknowledged(session.id)?;
    }
    Ok(())
}

/// Asks the worker about requests that run in the accounts and have no stream any more. One that cannot be asked about
/// does not hold up the others; the last error is told. Returns whether the worker is still at one of them.
async fn reconcile(payer: &Payer, session: &PayerSession) -> Result<bool, PayerError> {
    let (book, now) = (payer.store.book(session.id), payer.clock.now()?.epoch);
    let mut outcome = Ok(false);
    for (index, running) in book.running.iter().filter(|(_, running)| !running.refused) {
        let Some(arrival) = payer.arrivals.broken(session.id, *index) else { continue };
        let late = running.epoch.saturating_add(CHARGE_EPOCHS) < now;
        if late {
            release(payer, session.id, *index);
        }
        match ask(payer, session, *index, running, arrival, late).await {
            Ok(open) => outcome = outcome.map(|before| before || open),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// Nobody is charged for a broken answer any more.
fn release(payer: &Payer, session: u64, index: u64) {
    if let Some((charge, worst)) = payer.arrivals.uncharge(session, index) {
        payer.store.release(Some(&charge), worst);
    }
}

async fn ask(
    payer: &Payer,
    session: &PayerSession,
    index: u64,
    running: &Running,
    arrival: Option<Arc<Arrival>>,
    late: bool,
) -> Result<bool, PayerError> {
    let worker = session.worker();
    let refuse = |reason: &str| {
        payer.refuse(session.id, index, &worker, reason);
        release(payer, session.id, index);
        payer.arrivals.end(session.id, index);
    };
    let unpayable = arrival.as_ref().and_then(|arrival| arrival.unpayable(late));
    let url = format!("{}/polylink/v1/receipts/{}/{index}?request={}", worker.endpoint, session.id, running.request);
    match payer.http.get::<ReceiptStatus>(&url).await? {
        // For good, or the worker could wait for a restart, after which nobody knows what had arrived.
        ReceiptStatus::Running if late && arrival.is_some() => refuse("the worker is still at it, epochs later"),
        ReceiptStatus::Running => return Ok(true),
        ReceiptStatus::Unserved => {
            payer.store.abandon(session.id, index);
            release(payer, session.id, index);
            payer.arrivals.end(session.id, index);
        }
        ReceiptStatus::Served { .. } if let Some(reason) = unpayable => refuse(reason),
        ReceiptStatus::Served { receipt, completion_salt, completions } => {
            let missing = SignedRequest::default();
            let cut = CutAnswer {
                request: running.signed.as_ref().unwrap_or(&missing),
                prompt_tokens: running.prompt_tokens,
                seen: arrival.as_ref().map(|arrival| arrival.completions.as_slice()),
                receipt: &receipt,
                completion_salt: &completion_salt,
                completions: &completions,
            };
            let receipt_key = receipt_key(payer, &worker, running.epoch).await?;
            match verify_cut(&cut, &worker.operator, &receipt_key) {
                Ok(amount) => {
                    let found = receipt.receipt.clone().unwrap_or_default();
                    let owed = Owed { receipt: receipt_digest(&found), epoch: found.epoch, amount };
                    let signed = SignedReceipt::clone(&receipt);
                    let record = arrival.map(|a| a.record(*receipt, completion_salt, Some(completions)));
                    owe(payer, session, index, owed, &signed, record).await?;
                }
                Err(error) => refuse(&error.to_string()),
            }
        }
    }
    Ok(false)
}

/// A broken answer's receipt holds: the worker is owed its amount, and the user who went away is charged the same.
async fn owe(
    payer: &Payer,
    session: &PayerSession,
    index: u64,
    owed: Owed,
    signed: &SignedReceipt,
    record: Option<AnswerRecord>,
) -> Result<(), PayerError> {
    // Taken out only now, so that it is charged once, and not after it was released.
    let arrival = payer.arrivals.end(session.id, index);
    let charge = arrival.as_ref().and_then(|arrival| arrival.charge.as_ref());
    let record = charge.and(record.as_ref());
    let tokens = signed.receipt.as_ref().map_or((0, 0), |receipt| (receipt.prompt_tokens, receipt.completion_tokens));
    let (charged, amount) = (charge.is_some(), u64::try_from(owed.amount.0).unwrap_or(u64::MAX));
    let answered = Answered {
        session: session.id,
        index,
        owed,
        // Who is not charged for it has not had it.
        answer_id: charge.and(arrival.as_ref()).map_or("", |arrival| arrival.answer_id.as_str()),
        record,
        charge: charge.map(|(charge, worst)| (charge, *worst)),
        tokens,
        endpoint: &session.worker().endpoint,
        cut: true,
        signed: record.is_none().then_some(signed),
    };
    let stored = payer.store.answered(payer.clock.chain_id(), answered).await;
    if let (Err(_), Some(arrival)) = (&stored, arrival) {
        // Tried again: the disk may only have been busy.
        payer.arrivals.cut(session.id, index, Arc::unwrap_or_clone(arrival));
    }
    stored?;
    match charged {
        true => payer.figures.cut_charged.inc(),
        false => payer.figures.unbilled.inc_by(amount),
    }
    tracing::info!(session = session.id, index, amount, charged, "a broken answer is owed");
    Ok(())
}

impl Payer {
    /// A worker's receipt does not hold: it is never paid, its index stays in the window, and whoever rests workers is
    /// told.
    pub(super) fn refuse(&self, session: u64, index: u64, worker: &WorkerRef, reason: &str) {
        tracing::warn!(session, index, worker = worker.operator, reason, "a receipt does not hold and is not paid");
        self.store.refuse(session, index);
        self.figures.refused.inc();
        if let Some(told) = self.on_refusal.get() {
            told(&worker.operator);
        }
    }
}

/// The key that signs the worker's receipts of an epoch: by its terms, or, where they are forgotten, by its pot.
async fn receipt_key(payer: &Payer, worker: &WorkerRef, epoch: u64) -> Result<Vec<u8>, PayerError> {
    if let Some(terms) = worker.at(epoch) {
        return Ok(terms.receipt_key.clone());
    }
    let pot = payer.clock.chain().pot(epoch, &worker.operator, &worker.profile).await?;
    let missing = || PayerError::NotOffered { worker: worker.operator.clone(), epoch };
    Ok(pot.filter(|pot| pot.root.is_some()).ok_or_else(missing)?.receipt_key)
}
