//! Looks whether workers have committed what they signed: of each receipt of an epoch the path under the root on chain is
//! asked of its worker, and what it does not show is reported.
//!
//! What always holds: a receipt is reported at most once, also across restarts; deposits in reports that wait for their
//! workers are at most what the payer allows; a worker that is not there has until the last epoch in which it can be
//! reported; one that denies a receipt and then shows it on chain gets one deposit, and no further one for a long while.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use axum::http::StatusCode;
use polylink_protocol::market_v1::{MsgReportOmitted, Params, SignedReceipt};
use polylink_protocol::merkle_sum::{Sum, verify};
use polylink_protocol::transcript::ReceiptProof;
use polylink_protocol::{Amount, Digest, tx};

use super::call::CallError;
use super::payer::{Payer, PayerError};
use super::records::ReportRecord;
use super::store::Unproven;
use crate::chain::ChainError;

/// Receipts of a session and an epoch that are asked for; of more, as many are drawn.
const CHECKS_MAX: usize = 256;
/// Reports of one look; further ones are made in the next epoch's.
const REPORTS_MAX: usize = 16;
/// Reports about one worker that may wait for its answer.
const REPORTS_OF_WORKER_MAX: usize = 4;
/// For so many epochs a worker that has denied a receipt and then shown it on chain is not reported again.
const HELD_EPOCHS: u64 = 64;

/// A receipt that its worker does not show.
struct Suspect {
    unproven: Unproven,
    worker: String,
    reason: String,
}

/// What a worker says of a receipt.
enum Said {
    Shown,
    Denied(String),
    Nothing(String),
}

/// Whether a report still waits for its worker.
fn waits(report: &ReportRecord, epoch: u64) -> bool {
    !report.shown && report.deadline_epoch >= epoch
}

/// How many further reports of a worker may be made, by those that were.
fn places(reports: &[ReportRecord], worker: &str, epoch: u64) -> usize {
    let of_worker = || reports.iter().filter(|report| report.worker == worker);
    let held = |report: &ReportRecord| report.shown && report.deadline_epoch.saturating_add(HELD_EPOCHS) >= epoch;
    if of_worker().any(held) {
        return 0;
    }
    REPORTS_OF_WORKER_MAX.saturating_sub(of_worker().filter(|report| waits(report, epoch)).count())
}

/// How many deposits can be added to those at stake.
fn affordable(reports: &[ReportRecord], epoch: u64, deposit: Amount, stake_max: Amount) -> usize {
    let at_stake: Amount = reports.iter().filter(|report| waits(report, epoch)).map(ReportRecord::deposit).sum();
    let left = stake_max.saturating_sub(at_stake).0.checked_div(deposit.0).unwrap_or(REPORTS_MAX as u128);
    usize::try_from(left).unwrap_or(usize::MAX).min(REPORTS_MAX)
}

impl Payer {
    /// Looks at every receipt that can be reported now, and reports those that their workers do not show. Once per epoch,
    /// when its receipts window is over. `stake_max`: the most in deposits that may be at stake; zero: nothing is done.
    ///
    /// # Errors
    /// When the chain does not answer: to be tried again.
    pub async fn report_omissions(&self, stake_max: Amount) -> Result<(), PayerError> {
        let chain = self.clock.chain();
        let (epoch, params) = (self.clock.now()?.epoch, chain.market_params().await?);
        self.store.forget_receipts(epoch.saturating_sub(params.report_epochs), epoch.saturating_sub(HELD_EPOCHS));
        if stake_max == Amount::ZERO || params.report_epochs == 0 {
            return Ok(());
        }
        self.follow_reports(epoch).await?;
        let reports = self.store.reports();
        let sessions = self.store.unproven(epoch);
        let looks = sessions.into_iter().map(|(session, found)| self.look(session, found, &reports, epoch, &params));
        let mut suspects = Vec::new();
        for found in futures::future::join_all(looks).await {
            suspects.extend(found?);
        }
        suspects.sort_by_key(|suspect| std::cmp::Reverse(suspect.unproven.leaf.amount));
        let deposit = Amount::parse_or_zero(&params.report_deposit).unwrap_or(Amount(u128::MAX));
        let limit = affordable(&reports, epoch, deposit, stake_max);
        if suspects.len() > limit {
            let (suspects, at_once) = (suspects.len(), limit);
            tracing::warn!(suspects, at_once, "more receipts are omitted than can be reported now; the others wait");
        }
        let deadline_epoch = epoch.saturating_add(params.report_answer_epochs);
        for suspect in suspects.into_iter().take(limit) {
            self.report(suspect, deposit, deadline_epoch).await?;
        }
        Ok(())
    }

    /// Finds out what became of reports.
    async fn follow_reports(&self, epoch: u64) -> Result<(), PayerError> {
        let mut of_workers = BTreeMap::<String, Vec<ReportRecord>>::new();
        for report in self.store.reports() {
            if waits(&report, epoch) {
                of_workers.entry(report.worker.clone()).or_default().push(report);
            } else if !report.shown && report.deadline_epoch.saturating_add(1) == epoch {
                let ReportRecord { session, index, worker, .. } = report;
                tracing::info!(session, index, worker, "the reported receipt was not shown in time");
            }
        }
        for (worker, reports) in of_workers {
            let open = self.clock.chain().reports(&worker).await?;
            // Open until the end of its last epoch, unless it is shown: what is missing in this list by then was.
            let now = self.clock.ask().await?.epoch;
            for mut report in reports {
                let place = (report.session, report.index);
                if waits(&report, now) && !open.iter().any(|open| (open.session, open.index) == place) {
                    let (session, index) = place;
                    tracing::warn!(session, index, worker, "a receipt that the worker denied is shown on chain");
                    report.shown = true;
                    self.store.note_report(report).await?;
                    if let Some(told) = self.on_refusal.get() {
                        told(&worker);
                    }
                }
            }
        }
        Ok(())
    }

    /// The receipts of a session that its worker does not show, as many as may be reported.
    async fn look(
        &self,
        session: u64,
        found: Vec<Unproven>,
        reports: &[ReportRecord],
        epoch: u64,
        params: &Params,
    ) -> Result<Vec<Suspect>, PayerError> {
        let chain = self.clock.chain();
        let Some(record) = chain.session(session).await? else { return Ok(vec![]) };
        let Some(profile) = Digest::from_slice(&record.profile_digest) else { return Ok(vec![]) };
        let worker = chain.worker(&record.payee).await?.filter(|worker| !worker.jailed);
        let (Some(worker), wanted) = (worker, places(reports, &record.payee, epoch)) else { return Ok(vec![]) };
        let mut suspects = Vec::new();
        let mut epochs = BTreeMap::<u64, Vec<Unproven>>::new();
        for unproven in found {
            epochs.entry(unproven.epoch).or_default().push(unproven);
        }
        for (of, mut receipts) in epochs {
            let pot = chain.pot_of(of, &worker.operator, &profile, record.private).await?;
            let root = pot.and_then(|pot| pot.root).and_then(|root| Sum::from_proto(&root).ok());
            // Without a root the worker is not paid for the epoch, and never will be.
            let Some(root) = root else {
                receipts.iter().for_each(|unproven| self.store.proven(unproven));
                continue;
            };
            // No worker knows which ones are drawn.
            let draw = RandomState::new();
            receipts.sort_by_cached_key(|unproven| draw.hash_one(unproven.leaf.index));
            receipts.drain(CHECKS_MAX.min(receipts.len())..).for_each(|unproven| self.store.proven(&unproven));
            let last = of.saturating_add(params.report_epochs) <= epoch;
            for unproven in receipts {
                if suspects.len() >= wanted {
                    return Ok(suspects);
                }
                let reason = match self.path_of(&worker.endpoint, &unproven, &root).await {
                    Said::Shown => {
                        self.figures.proven.inc();
                        self.store.proven(&unproven);
                        continue;
                    }
                    Said::Denied(reason) => reason,
                    Said::Nothing(reason) if last => reason,
                    Said::Nothing(reason) => {
                        tracing::debug!(worker = worker.operator, reason, "receipts are not proven yet; asked again");
                        return Ok(suspects);
                    }
                };
                suspects.push(Suspect { unproven, worker: worker.operator.clone(), reason });
            }
        }
        Ok(suspects)
    }

    async fn path_of(&self, endpoint: &str, unproven: &Unproven, root: &Sum) -> Said {
        let (leaf, endpoint) = (&unproven.leaf, endpoint.trim_end_matches('/'));
        let (session, index, receipt) = (leaf.session, leaf.index, leaf.receipt);
        let url = format!("{endpoint}/polylink/v1/proof?session={session}&index={index}&receipt={receipt}");
        match self.http.get::<ReceiptProof>(&url).await {
            Ok(proof) => match verify(leaf, &proof.path, root) {
                Ok(_) => Said::Shown,
                Err(error) => Said::Denied(format!("its path does not lead to the root on chain: {error}")),
            },
            Err(CallError::Refused { error, .. }) if error.status == StatusCode::NOT_FOUND => {
                Said::Denied(error.to_string())
            }
            Err(error) => Said::Nothing(error.to_string()),
        }
    }

    async fn report(&self, suspect: Suspect, deposit: Amount, deadline_epoch: u64) -> Result<(), PayerError> {
        let Suspect { unproven, worker, reason } = suspect;
        let (session, index) = (unproven.leaf.session, unproven.leaf.index);
        let Some(receipt) = self.signed_receipt(unproven).await? else {
            self.store.proven(&unproven);
            return Ok(());
        };
        let report = ReportRecord {
            session,
            index,
            worker: worker.clone(),
            deposit: deposit.to_string(),
            deadline_epoch,
            shown: false,
        };
        // It may be that this service ended when it had just been sent.
        let open = self.clock.chain().reports(&worker).await?;
        if open.iter().any(|open| (open.session, open.index) == (session, index)) {
            return Ok(self.store.note_report(report).await?);
        }
        let message = MsgReportOmitted { payer: self.config.account.address().account(), receipt: Some(receipt) };
        match self.clock.chain().broadcast(&self.config.account, vec![tx::any(&message)]).await {
            Ok(height) => {
                tracing::warn!(session, index, worker, reason, height, "an omitted receipt is reported");
                self.store.note_report(report).await?;
                self.figures.reported.inc();
            }
            Err(error @ ChainError::Refused(_)) => {
                tracing::warn!(session, index, worker, reason, %error, "an omitted receipt cannot be reported");
                self.store.proven(&unproven);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn signed_receipt(&self, unproven: Unproven) -> Result<Option<SignedReceipt>, PayerError> {
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.signed_receipt(&unproven)).await;
        Ok(read.map_err(|error| crate::journal::JournalError::Failed(error.to_string()))??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(index: u64, worker: &str, deadline_epoch: u64, shown: bool) -> ReportRecord {
        let (worker, deposit) = (worker.into(), "100".into());
        ReportRecord { session: 1, index, worker, deposit, deadline_epoch, shown }
    }

    #[test]
    fn what_is_at_stake_is_bounded_and_nobody_farms_deposits() {
        let reports = [report(1, "a", 10, false), report(2, "a", 9, false), report(3, "b", 10, true)];
        for (epoch, stake_max, expected) in
            [(9, 500, 3), (9, 200, 0), (9, 299, 0), (9, 300, 1), (10, 300, 2), (11, 300, 3), (11, 1 << 40, 16)]
        {
            assert_eq!(affordable(&reports, epoch, Amount(100), Amount(stake_max)), expected, "{epoch} {stake_max}");
        }
        assert_eq!(affordable(&reports, 9, Amount::ZERO, Amount(1)), REPORTS_MAX, "also where nothing is at stake");
        for (worker, epoch, expected) in
            [("a", 9, 2), ("a", 10, 3), ("a", 11, 4), ("b", 9, 0), ("b", 74, 0), ("b", 75, 4)]
        {
            assert_eq!(places(&reports, worker, epoch), expected, "{worker} {epoch}");
        }
    }
}
