//! Of the payer's store: records of answers read back, receipts that can still be reported as omitted, and the reports
//! that were made.
//!
//! Receipts are known as long as the journal has them. That one was found under its worker's root is in memory only: after
//! a restart its path is asked for once more. Reports are durable.

use std::collections::BTreeMap;

use polylink_protocol::market_v1::SignedReceipt;
use polylink_protocol::merkle_sum::Leaf;
use polylink_protocol::transcript::AnswerRecord;

use super::super::records::{self, AnsweredRecord, Kind, ReportRecord};
use super::PayerStore;
use crate::journal::{JournalError, Location};

/// A receipt that may be under its worker's root, or not.
#[derive(Clone, Copy, Debug)]
pub struct Unproven {
    /// Its epoch.
    pub epoch: u64,
    /// As the tree has it.
    pub leaf: Leaf,
    /// Of its record.
    location: Location,
}

type Place = (u64, u64);

/// See the module.
#[derive(Default)]
pub(super) struct Receipts {
    /// Per epoch and (session, index).
    unproven: BTreeMap<u64, BTreeMap<Place, Unproven>>,
    /// Per (session, index).
    pub(super) reports: BTreeMap<Place, ReportRecord>,
}

impl Receipts {
    /// An answer is on disk.
    pub(super) fn stored(&mut self, record: &AnsweredRecord, location: Location) -> Result<(), String> {
        let (owed, place) = (record.owed()?, (record.session, record.index));
        let tokens = record.tokens.iter().fold(0_u64, |sum, tokens| sum.saturating_add(*tokens));
        let (session, index) = place;
        let leaf = Leaf { session, index, receipt: owed.receipt, tokens, amount: owed.amount };
        let unproven = Unproven { epoch: record.epoch, leaf, location };
        self.unproven.entry(record.epoch).or_default().insert(place, unproven);
        Ok(())
    }

    /// The journal's segments before this one are deleted.
    pub(super) fn drop_before(&mut self, segment: u64) {
        for receipts in self.unproven.values_mut() {
            receipts.retain(|_, unproven| unproven.location.segment >= segment);
        }
    }

    pub(super) fn noted(&mut self, report: ReportRecord) {
        self.reports.insert((report.session, report.index), report);
    }
}

impl PayerStore {
    /// Record, API key and worker's endpoint of an answer (blocking).
    pub fn answer(&self, answer_id: &str) -> Result<Option<(AnswerRecord, String, String)>, JournalError> {
        let Some(location) = self.lock().answers.get(answer_id).copied() else { return Ok(None) };
        let Some(found) = self.answered_record(location)? else { return Ok(None) };
        Ok(serde_json::from_slice(&found.record).ok().map(|record| (record, found.key_id, found.endpoint)))
    }

    fn answered_record(&self, location: Location) -> Result<Option<AnsweredRecord>, JournalError> {
        let bytes = self.journal.read(location)?;
        let Ok(Kind::Answered(found)) = records::decode(&bytes) else { return Ok(None) };
        Ok(Some(found))
    }

    /// A receipt as its worker signed it (blocking). None: an older version did not keep it.
    pub fn signed_receipt(&self, unproven: &Unproven) -> Result<Option<SignedReceipt>, JournalError> {
        let Some(found) = self.answered_record(unproven.location)? else { return Ok(None) };
        let of_record = || serde_json::from_slice::<AnswerRecord>(&found.record).ok().map(|record| record.receipt);
        Ok(found.signed.or_else(of_record))
    }

    /// Per session, the receipts of epochs before `until` that were neither proven nor reported, oldest first.
    pub fn unproven(&self, until: u64) -> BTreeMap<u64, Vec<Unproven>> {
        let state = self.lock();
        let mut sessions = BTreeMap::<u64, Vec<Unproven>>::new();
        for (place, unproven) in state.receipts.unproven.range(..until).flat_map(|(_, receipts)| receipts) {
            if !state.receipts.reports.contains_key(place) {
                sessions.entry(place.0).or_default().push(*unproven);
            }
        }
        sessions
    }

    /// A receipt needs no further look.
    pub fn proven(&self, unproven: &Unproven) {
        let mut state = self.lock();
        if let Some(receipts) = state.receipts.unproven.get_mut(&unproven.epoch) {
            receipts.remove(&(unproven.leaf.session, unproven.leaf.index));
        }
    }

    /// Reports that are not forgotten.
    pub fn reports(&self) -> Vec<ReportRecord> {
        self.lock().receipts.reports.values().cloned().collect()
    }

    /// A report was made, or its worker has answered it; returns once that is on disk.
    pub async fn note_report(&self, report: ReportRecord) -> Result<(), JournalError> {
        let pending = {
            let mut state = self.lock();
            let pending = self.write(&mut state, Kind::Report(report.clone()))?;
            state.receipts.noted(report);
            self.rotate_if_full(&mut state);
            pending
        };
        pending.durable().await.map(drop)
    }

    /// Forgets receipts of epochs before `epoch`, and reports whose answer was due before `due`.
    pub fn forget_receipts(&self, epoch: u64, due: u64) {
        let mut state = self.lock();
        state.receipts.unproven.retain(|of, _| *of >= epoch);
        state.receipts.reports.retain(|_, report| report.deadline_epoch >= due);
    }
}
