//! Answers reports of omitted receipts: what is said to be missing is shown under the root that was committed.

use std::sync::Arc;

use polylink_protocol::market_v1::{MsgShowReceipt, OmissionReport};
use polylink_protocol::{Digest, tx};

use super::Worker;
use super::register::send;
use crate::chain::ChainError;

/// Reports of one look; the others follow in the next epoch.
const REPORTS_MAX: usize = 64;

/// Shows every reported receipt of this worker's profile that is in one of its trees.
///
/// # Errors
/// When the chain does not answer: to be tried again. An answer that the ledger refuses is told and left.
pub(super) async fn answer(worker: &Arc<Worker>) -> Result<(), ChainError> {
    let open = worker.clock.chain().reports(&worker.operator).await?;
    let mine = open.into_iter().filter(|report| report.profile_digest == worker.profile_digest.0);
    for report in mine.take(REPORTS_MAX) {
        let Some(message) = message(worker, &report).await else { continue };
        match send(worker, vec![tx::any(&message)]).await {
            Ok(height) => tracing::info!(report = report.id, height, "a reported receipt is shown"),
            Err(error @ ChainError::Refused(_)) => tracing::error!(report = report.id, %error, "it cannot be shown"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn message(worker: &Arc<Worker>, report: &OmissionReport) -> Option<MsgShowReceipt> {
    let (store, session, index) = (Arc::clone(worker), report.session, report.index);
    let receipt = Digest::from_slice(&report.receipt_digest)?;
    let proven = super::service::blocking(move || store.store.proof(session, index, &receipt)).await;
    match proven {
        Ok(Some(proven)) => {
            Some(MsgShowReceipt { operator: worker.operator.clone(), report: report.id, path: Some(proven.path) })
        }
        Ok(None) => {
            let (report, epoch) = (report.id, report.epoch);
            tracing::error!(report, epoch, session, index, "a reported receipt is in no tree of this worker");
            None
        }
        Err(error) => {
            tracing::error!(report = report.id, %error, "a reported receipt cannot be read");
            None
        }
    }
}
