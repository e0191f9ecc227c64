//! The payer's accounts behind a lock, with the journal that makes them durable: sessions to workers, API keys, the
//! records of answers, and reports of omitted receipts.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{RECEIPT_CHAIN_START, chain_receipt, sign_voucher};
use polylink_protocol::market_v1::{SignedReceipt, SignedVoucher, Voucher};
use polylink_protocol::transcript::{AnswerRecord, VoucherCall};
use polylink_protocol::{Amount, Digest};

use super::book::{BookError, Owed, PayerBook, Running};
use super::records::{
    self, AnsweredRecord, BegunRecord, BookRecord, IndexRecord, KeyRecord, Kind, SnapshotRecord, UserRedeemedRecord,
};
use crate::journal::{Journal, JournalError, Location, Pending};
use crate::records::VoucherRecord;

mod receipts;

use receipts::Receipts;
pub use receipts::Unproven;

/// When a segment of the journal is full, and how many full ones are kept. Answers whose records can be asked for are
/// forgotten oldest first, whole segments at a time.
#[derive(Clone, Copy, Debug)]
struct Segments {
    answers: usize,
    /// Of all records: requests that are never answered are written too.
    bytes: usize,
    kept: u64,
}

impl Default for Segments {
    fn default() -> Self {
        Self { answers: 4_096, bytes: 64 << 20, kept: 8 }
    }
}

/// What an API key has used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyAccount {
    /// Charged.
    pub spent: Amount,
    /// The most that its running answers may cost.
    pub reserved: Amount,
    /// Answers charged.
    pub answers: u64,
    /// Of these, cut ones, charged for the tokens that were sent until the user went away.
    pub cut: u64,
    /// Tokens charged.
    pub prompt_tokens: u64,
    /// Tokens charged.
    pub completion_tokens: u64,
    /// The newest cumulative voucher to the gateway.
    pub voucher: Option<SignedVoucher>,
    /// Of it, redeemed on chain.
    pub redeemed: Amount,
}

/// Whom an answer is charged to.
#[derive(Clone)]
pub struct Charge {
    /// The API key's id.
    pub key_id: String,
    /// Its budget; None: unlimited.
    pub budget: Option<Amount>,
    /// The user's session to the gateway, and its spend key in the gateway's custody.
    pub session: Option<(u64, ServiceKey)>,
}

/// Why a request cannot begin.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PayError {
    /// Of the session to the worker.
    #[error(transparent)]
    Book(#[from] BookError),
    /// Of the key.
    #[error(
        "the API key's budget is {budget} uplk, {left} are left, this answer may cost {worst}: ask for fewer tokens, or have the budget raised"
    )]
    Budget {
        /// In all.
        budget: Amount,
        /// Left.
        left: Amount,
        /// At most.
        worst: Amount,
    },
    /// See there.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[derive(Default)]
struct State {
    books: BTreeMap<u64, PayerBook>,
    keys: BTreeMap<String, KeyAccount>,
    answers: HashMap<String, Location>,
    receipts: Receipts,
    /// Number of the newest segment.
    segment: u64,
    /// Answers and bytes in it, without the accounts that it begins with.
    in_segment: (usize, usize),
}

/// See the module.
pub struct PayerStore {
    state: Mutex<State>,
    journal: Journal,
    limits: Segments,
}

/// A verified answer, to be stored.
pub struct Answered<'a> {
    /// Session to the worker.
    pub session: u64,
    /// Index there.
    pub index: u64,
    /// What it costs.
    pub owed: Owed,
    /// The answer's id; empty where nobody saw it.
    pub answer_id: &'a str,
    /// Request, receipt, ids.
    pub record: Option<&'a AnswerRecord>,
    /// Whom it is charged to, and what was reserved for it.
    pub charge: Option<(&'a Charge, Amount)>,
    /// Prompt and completion tokens.
    pub tokens: (u64, u64),
    /// Of the worker.
    pub endpoint: &'a str,
    /// Its user went away before its end.
    pub cut: bool,
    /// The receipt, where there is no record with it.
    pub signed: Option<&'a SignedReceipt>,
}

impl PayerStore {
    /// Opens the journal in a folder and replays it. Requests without a known end stay in their books until the worker
    /// says what became of them.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        Self::open_with(folder, Segments::default())
    }

    fn open_with(folder: &Path, limits: Segments) -> Result<Self, JournalError> {
        let mut state = State::default();
        let (journal, newest) =
            Journal::open(folder, |location, bytes| state.replay(location, records::decode(bytes)?))?;
        state.begin_segment(newest);
        Ok(Self { state: Mutex::new(state), journal, limits })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between calls; a panic under the lock is an invariant breach that has been reported.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reserves an index of a session and the answer's cost; `request` makes the request of the index. The index is never
    /// given out again, not even after a crash.
    pub async fn begin<T>(
        &self,
        session: u64,
        (funds, window): (Amount, u32),
        charge: Option<&Charge>,
        worst: Amount,
        request: impl FnOnce(u64) -> (Running, T),
    ) -> Result<(u64, T), PayError> {
        let (index, made, noted) = {
            let mut state = self.lock();
            let State { books, keys, .. } = &mut *state;
            let book = books.entry(session).or_default();
            book.check(worst, funds, window)?;
            if let Some(Charge { key_id, budget, .. }) = charge {
                let account = keys.entry(key_id.clone()).or_default();
                let used = Amount(account.spent.0.saturating_add(account.reserved.0));
                if let Some(budget) = budget
                    && used.0.saturating_add(worst.0) > budget.0
                {
                    return Err(PayError::Budget { budget: *budget, left: budget.saturating_sub(used), worst });
                }
                account.reserved = Amount(account.reserved.0.saturating_add(worst.0));
            }
            let index = book.next_index;
            let (running, made) = request(index);
            let record = Kind::Begun(BegunRecord::of(session, index, &running));
            book.begin(index, running);
            let noted = self.write(&mut state, record);
            self.rotate_if_full(&mut state);
            (index, made, noted)
        };
        let noted = match noted {
            Ok(noted) => noted,
            Err(error) => {
                self.abandon(session, index);
                self.release(charge, worst);
                return Err(error.into());
            }
        };
        // Before the worker hears of it: after a crash its index is not given out again, and its receipt is asked for, so
        // that it is paid and its place in the window is free again.
        if let Err(error) = noted.durable().await {
            self.abandon(session, index);
            self.release(charge, worst);
            return Err(error.into());
        }
        Ok((index, made))
    }

    /// Gives back what was reserved on a key.
    pub fn release(&self, charge: Option<&Charge>, worst: Amount) {
        if let Some(charge) = charge
            && let Some(account) = self.lock().keys.get_mut(&charge.key_id)
        {
            account.reserved = account.reserved.saturating_sub(worst);
        }
    }

    /// The request was not answered: it never reached the worker, or the worker has said so.
    pub fn abandon(&self, session: u64, index: u64) {
        let mut state = self.lock();
        if let Some(book) = state.books.get_mut(&session) {
            book.abandon(index);
            // Should it be lost, the worker is asked once more after a restart.
            if let Err(error) = self.write(&mut state, Kind::Abandoned(IndexRecord { session, index })) {
                tracing::warn!(%error, session, index, "the end of a request is not noted");
            }
            self.rotate_if_full(&mut state);
        }
    }

    /// The worker's receipt of a request does not hold.
    pub fn refuse(&self, session: u64, index: u64) {
        let mut state = self.lock();
        if let Some(book) = state.books.get_mut(&session) {
            book.refuse(index);
            // Should it be lost, the worker is asked once more after a restart, and what is known by then decides.
            if let Err(error) = self.write(&mut state, Kind::Refused(IndexRecord { session, index })) {
                tracing::warn!(%error, session, index, "the refusal of a receipt is not noted");
            }
            self.rotate_if_full(&mut state);
        }
    }

    /// Stores a verified answer and charges it; returns once it is on disk.
    pub async fn answered(&self, chain_id: &str, answered: Answered<'_>) -> Result<(), JournalError> {
        let (record, pending) = {
            let mut state = self.lock();
            let user_voucher =
                answered.charge.and_then(|(charge, _)| state.user_voucher(chain_id, charge, &answered.owed));
            let record = AnsweredRecord {
                session: answered.session,
                index: answered.index,
                epoch: answered.owed.epoch,
                receipt: answered.owed.receipt.to_vec(),
                amount: answered.owed.amount.to_string(),
                answer_id: answered.answer_id.into(),
                key_id: answered.charge.map(|(charge, _)| charge.key_id.clone()).unwrap_or_default(),
                record: answered.record.map(|r| serde_json::to_vec(r).unwrap_or_default()).unwrap_or_default(),
                tokens: vec![answered.tokens.0, answered.tokens.1],
                user_voucher,
                endpoint: answered.endpoint.into(),
                cut: answered.cut,
                signed: answered.signed.cloned(),
            };
            let pending = self.write(&mut state, Kind::Answered(record.clone()))?;
            state.answered(&record).map_err(JournalError::Failed)?;
            if let Some((charge, worst)) = answered.charge
                && let Some(account) = state.keys.get_mut(&charge.key_id)
            {
                account.reserved = account.reserved.saturating_sub(worst);
            }
            self.rotate_if_full(&mut state);
            (record, pending)
        };
        let location = pending.durable().await?;
        self.lock().stored(&record, location).map_err(JournalError::Failed)
    }

    /// Signs the next voucher of a session, if there is something to pay, and returns it once it is on disk; the
    /// outstanding one if there is one.
    pub async fn voucher(
        &self,
        chain_id: &str,
        session: u64,
        key: &ServiceKey,
    ) -> Result<Option<VoucherCall>, JournalError> {
        let (call, pending) = {
            let mut state = self.lock();
            let Some(book) = state.books.get_mut(&session) else { return Ok(None) };
            let call = match (&book.outstanding, book.next_voucher(chain_id, session)) {
                (Some(call), _) => call.clone(),
                (None, Some((voucher, indexes))) => VoucherCall { voucher: sign_voucher(voucher, key), indexes },
                (None, None) => return Ok(None),
            };
            // An outstanding one is written again: it may be that the first write is still on its way.
            book.signed(call.clone());
            let pending = self.write(&mut state, Kind::Voucher(VoucherRecord::of(&call)))?;
            self.rotate_if_full(&mut state);
            (call, pending)
        };
        pending.durable().await?;
        Ok(Some(call))
    }

    /// The worker has the outstanding voucher.
    pub fn acknowledged(&self, session: u64) -> Result<(), JournalError> {
        let mut state = self.lock();
        if let Some(book) = state.books.get_mut(&session) {
            book.acknowledged();
            // Should it be lost, the same voucher is sent once more, and acknowledged once more.
            self.write(&mut state, Kind::Acknowledged(IndexRecord { session, index: 0 }))?;
            self.rotate_if_full(&mut state);
        }
        Ok(())
    }

    /// A session's account.
    pub fn book(&self, session: u64) -> PayerBook {
        self.lock().books.get(&session).cloned().unwrap_or_default()
    }

    /// Sessions in which something runs, is owed or outstanding.
    pub fn unsettled(&self) -> Vec<u64> {
        self.lock().books.iter().filter(|(_, book)| !book.is_settled()).map(|(session, _)| *session).collect()
    }

    /// What a key has used.
    pub fn key(&self, key_id: &str) -> KeyAccount {
        self.lock().keys.get(key_id).cloned().unwrap_or_default()
    }

    /// Users' vouchers that are over more than was redeemed: key, voucher, amount.
    pub fn user_vouchers(&self) -> Vec<(String, SignedVoucher, Amount)> {
        let state = self.lock();
        let owed = state.keys.iter().filter_map(|(key, account)| {
            let voucher = account.voucher.clone()?;
            let amount = voucher.voucher.as_ref()?.amount.parse().ok()?;
            (amount > account.redeemed).then(|| (key.clone(), voucher, amount))
        });
        owed.collect()
    }

    /// A user's voucher was redeemed.
    pub fn user_redeemed(&self, key_id: &str, amount: Amount) -> Result<(), JournalError> {
        let mut state = self.lock();
        let record = UserRedeemedRecord { key_id: key_id.into(), amount: amount.to_string() };
        self.write(&mut state, Kind::UserRedeemed(record))?;
        if let Some(account) = state.keys.get_mut(key_id) {
            account.redeemed = account.redeemed.max(amount);
        }
        self.rotate_if_full(&mut state);
        Ok(())
    }

    fn write(&self, state: &mut State, kind: Kind) -> Result<Pending, JournalError> {
        let answers = usize::from(matches!(kind, Kind::Answered(_)));
        let bytes = records::encode(kind);
        let length = bytes.len();
        let pending = self.journal.enqueue(bytes)?;
        state.wrote(answers, length);
        Ok(pending)
    }

    /// Begins a new segment with all accounts where the newest is full. Call it when the state has what was written. Where
    /// the disk is too busy for it, the next record tries again.
    fn rotate_if_full(&self, state: &mut State) {
        let Segments { answers, bytes, kept } = self.limits;
        if state.in_segment.0 < answers && state.in_segment.1 < bytes {
            return;
        }
        let books = state.books.iter().map(|(session, book)| BookRecord::of(*session, book)).collect();
        let keys = state.keys.iter().map(|(id, account)| KeyRecord::of(id, account)).collect();
        let reports = state.receipts.reports.values().cloned().collect();
        let accounts = records::encode(Kind::Snapshot(SnapshotRecord { books, keys, reports }));
        if let Err(error) = self.journal.rotate(vec![accounts]) {
            tracing::warn!(%error, "a new segment of the journal cannot be begun now; tried again");
            return;
        }
        state.begin_segment(state.segment + 1);
        let oldest = state.segment.saturating_sub(kept);
        state.answers.retain(|_, location| location.segment >= oldest);
        state.receipts.drop_before(oldest);
        if let Err(error) = self.journal.drop_before(oldest) {
            tracing::warn!(%error, "old segments of the journal are deleted later");
        }
    }
}

impl State {
    fn begin_segment(&mut self, segment: u64) {
        if self.segment != segment {
            (self.segment, self.in_segment) = (segment, (0, 0));
        }
    }

    fn wrote(&mut self, answers: usize, bytes: usize) {
        self.in_segment = (self.in_segment.0 + answers, self.in_segment.1.saturating_add(bytes));
    }

    /// The user's next cumulative voucher to the gateway, over the same receipt.
    fn user_voucher(&self, chain_id: &str, charge: &Charge, owed: &Owed) -> Option<SignedVoucher> {
        let (session, key) = charge.session.as_ref()?;
        let before = self.keys.get(&charge.key_id).and_then(|a| a.voucher.as_ref()).and_then(|v| v.voucher.clone());
        // A key that was given a new session begins a new account there.
        let before = before.filter(|voucher| voucher.session == *session).unwrap_or_default();
        let hash = Digest::from_slice(&before.receipts_hash).unwrap_or(RECEIPT_CHAIN_START);
        let amount = Amount::parse_or_zero(&before.amount).ok()?.checked_add(owed.amount)?;
        let voucher = Voucher {
            chain_id: chain_id.into(),
            session: *session,
            epoch: before.epoch.max(owed.epoch),
            amount: amount.to_string(),
            count: before.count + 1,
            receipts_hash: chain_receipt(hash, owed.receipt).to_vec(),
        };
        Some(sign_voucher(voucher, key))
    }

    fn answered(&mut self, record: &AnsweredRecord) -> Result<(), String> {
        let owed = record.owed()?;
        self.books.entry(record.session).or_default().finish(record.index, owed);
        if !record.key_id.is_empty() {
            let account = self.keys.entry(record.key_id.clone()).or_default();
            account.spent = Amount(account.spent.0.saturating_add(owed.amount.0));
            account.answers += 1;
            account.cut += u64::from(record.cut);
            account.prompt_tokens += record.tokens.first().copied().unwrap_or_default();
            account.completion_tokens += record.tokens.get(1).copied().unwrap_or_default();
            if record.user_voucher.is_some() {
                let session =
                    |v: &Option<SignedVoucher>| v.as_ref().and_then(|v| v.voucher.as_ref()).map(|v| v.session);
                if session(&account.voucher) != session(&record.user_voucher) {
                    account.redeemed = Amount::ZERO;
                }
                account.voucher = record.user_voucher.clone();
            }
        }
        Ok(())
    }

    /// An answer's record is on disk.
    fn stored(&mut self, record: &AnsweredRecord, location: Location) -> Result<(), String> {
        if !record.answer_id.is_empty() {
            self.answers.insert(record.answer_id.clone(), location);
        }
        self.receipts.stored(record, location)
    }

    fn replay(&mut self, location: Location, kind: Kind) -> Result<(), String> {
        self.begin_segment(location.segment);
        if !matches!(kind, Kind::Snapshot(_)) {
            self.wrote(usize::from(matches!(kind, Kind::Answered(_))), location.length as usize);
        }
        match kind {
            Kind::Begun(record) => {
                self.books.entry(record.session).or_default().begin(record.index, record.running()?);
            }
            Kind::Answered(record) => {
                self.answered(&record)?;
                self.stored(&record, location)?;
            }
            Kind::Report(record) => self.receipts.noted(record),
            Kind::Refused(record) => self.books.entry(record.session).or_default().refuse(record.index),
            Kind::Abandoned(record) => self.books.entry(record.session).or_default().abandon(record.index),
            Kind::Voucher(record) => {
                let call = record.call()?;
                let session = call.voucher.voucher.as_ref().map(|v| v.session).unwrap_or_default();
                self.books.entry(session).or_default().signed(call);
            }
            Kind::Acknowledged(record) => self.books.entry(record.session).or_default().acknowledged(),
            // Of older versions, which did not wait for the disk before they asked a worker.
            Kind::Lease(record) => {
                let book = self.books.entry(record.session).or_default();
                book.next_index = book.next_index.max(record.index);
            }
            Kind::UserRedeemed(record) => {
                let amount =
                    record.amount.parse().map_err(|e: polylink_protocol::amount::AmountError| e.to_string())?;
                self.keys.entry(record.key_id).or_default().redeemed = amount;
            }
            Kind::Snapshot(snapshot) => {
                let books = snapshot.books.into_iter().map(|b| Ok((b.session, b.book()?)));
                self.books = books.collect::<Result<_, String>>()?;
                let keys = snapshot.keys.into_iter().map(|k| Ok((k.key_id.clone(), k.account()?)));
                self.keys = keys.collect::<Result<_, String>>()?;
                snapshot.reports.into_iter().for_each(|report| self.receipts.noted(report));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
