//! Pays a session's receipts, and finds out what became of requests that broke off.

use std::sync::{Arc, Weak};
use std::time::Duration;

use polylink_protocol::market::{receipt_digest, verify_receipt};
use polylink_protocol::transcript::{ReceiptStatus, VoucherAck};

use super::book::{Owed, Running};
use super::call::CallError;
use super::payer::{Payer, PayerError, PayerSession};
use super::store::Answered;
use super::worker::WorkerRef;

/// Time between two looks when nothing wakes the settler.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Runs until the payer is dropped.
pub(super) async fn run(payer: Weak<Payer>, session: Arc<PayerSession>) {
    let mut pause = Duration::from_millis(100);
    loop {
        let Some(payer) = payer.upgrade() else { return };
        let outcome = async {
            pay(&payer, &session).await?;
            reconcile(&payer, &session).await?;
            pay(&payer, &session).await
        };
        match outcome.await {
            Ok(()) => {
                drop(payer);
                pause = Duration::from_millis(100);
                // Woken early or by time: both are a reason to look.
                let _ = tokio::time::timeout(PERIOD, session.wake.notified()).await;
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

/// Asks the worker about requests that run in the accounts and have no stream any more.
async fn reconcile(payer: &Payer, session: &PayerSession) -> Result<(), PayerError> {
    let book = payer.store.book(session.id);
    for (index, running) in book.running.iter().filter(|(index, _)| !payer.is_streaming(session.id, **index)) {
        ask(payer, session, *index, running).await?;
    }
    Ok(())
}

async fn ask(payer: &Payer, session: &PayerSession, index: u64, running: &Running) -> Result<(), PayerError> {
    let worker = session.worker();
    let url = format!("{}/polylink/v1/receipts/{}/{index}?request={}", worker.endpoint, session.id, running.request);
    match payer.http.get::<ReceiptStatus>(&url).await? {
        ReceiptStatus::Running => {}
        ReceiptStatus::Unserved => payer.store.abandon(session.id, index),
        ReceiptStatus::Served { receipt } => {
            let unexpected = |reason: String| CallError::Unexpected { url: url.clone(), reason };
            let receipt_key = receipt_key(payer, &worker, running.epoch).await?;
            let found = verify_receipt(&receipt, &receipt_key).map_err(|e| unexpected(e.to_string()))?;
            let amount = found.amount.parse().map_err(|_| unexpected("a receipt without amount".into()))?;
            if found.request_digest != running.request.0 || amount > running.worst {
                return Err(unexpected("a receipt of another request".into()).into());
            }
            let owed = Owed { receipt: receipt_digest(found), epoch: found.epoch, amount };
            let answered = Answered {
                session: session.id,
                index,
                owed,
                answer_id: "",
                record: None,
                charge: None,
                tokens: (found.prompt_tokens, found.completion_tokens),
                endpoint: &worker.endpoint,
            };
            payer.store.answered(payer.clock.chain_id(), answered).await?;
        }
    }
    Ok(())
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
