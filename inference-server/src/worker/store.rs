//! The worker's accounts and transcripts behind a lock, with the journal that makes them durable.
//!
//! What always holds: memory changes and journal records happen in one order, under one lock; whoever is told of a
//! receipt or a voucher has waited for the disk first. Answers that ran when the process died are not in the journal:
//! they are not billed. Receipts of private sessions are in a tree of their own, out of which nothing is shown to judges.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use polylink_protocol::market::receipt_digest;
use polylink_protocol::market_v1::{Receipt, SignedVoucher, SumNode, SumPath};
use polylink_protocol::merkle_sum::{Leaf, Sum, SumError, Tree};
use polylink_protocol::transcript::{ReceiptStatus, VoucherCall};
use polylink_protocol::{Amount, Digest};

use super::book::{BeginError, Running, SessionBook, SessionLimits, Unpaid, VoucherError, amount_of};
use super::records::{self, BookRecord, ClosedRecord, Kind, RedeemedRecord, SnapshotRecord, Transcript};
use crate::journal::{Journal, JournalError, Location, Pending};
use crate::records::VoucherRecord;

/// Why the store does not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// See there.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// See there.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// See there.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The receipts of the epoch are committed, or about to be.
    #[error("epoch {0} takes no more answers: its receipts are committed; sign the request for the current epoch")]
    EpochClosed(u64),
    /// The receipts do not make a tree.
    #[error("the receipts of epoch {epoch}: {error}")]
    Tree {
        /// Which.
        epoch: u64,
        /// What is wrong.
        error: SumError,
    },
}

struct Served {
    leaf: Leaf,
    /// Unset until the disk has it.
    location: Option<Location>,
}

/// What an epoch's answers are committed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Of the receipts that judges sample.
    pub audited: Sum,
    /// Of those of private sessions; None where there are none.
    pub private: Option<Sum>,
}

impl Roots {
    /// Receipts under both.
    pub fn count(&self) -> u64 {
        self.audited.count.saturating_add(self.private.map_or(0, |root| root.count))
    }
}

/// The receipts of an epoch, either those of private sessions or the others.
#[derive(Default)]
struct EpochReceipts {
    served: BTreeMap<(u64, u64), Served>,
    root: Option<Sum>,
}

impl EpochReceipts {
    fn tree(&self, epoch: u64) -> Result<Tree, StoreError> {
        Tree::new(self.served.values().map(|s| s.leaf).collect()).map_err(|error| StoreError::Tree { epoch, error })
    }
}

#[derive(Default)]
struct State {
    books: BTreeMap<u64, SessionBook>,
    /// By epoch, and whether they are those of private sessions.
    epochs: BTreeMap<(u64, bool), EpochReceipts>,
    /// Epochs from here on take answers.
    open_from: u64,
    /// Of each segment that holds receipts, their newest epoch.
    segments: BTreeMap<u64, u64>,
    /// Number of the newest segment, and the bytes in it without the accounts that it begins with.
    newest: (u64, u64),
}

/// A sampled or proven receipt.
pub struct Proven {
    /// Where its transcript lies.
    pub location: Location,
    /// From the leaf to the root.
    pub path: SumPath,
    /// The committed root.
    pub root: Sum,
}

/// See the module.
pub struct WorkerStore {
    state: Mutex<State>,
    journal: Journal,
}

impl WorkerStore {
    /// Opens the journal in a folder and replays it.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let mut state = State::default();
        let (journal, _) = Journal::open(folder, |location, bytes| state.replay(location, records::decode(bytes)?))?;
        Ok(Self { state: Mutex::new(state), journal })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is an invariant breach that has been reported; the state is consistent between calls.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins an answer.
    pub fn begin(&self, session: u64, index: u64, running: Running, limits: SessionLimits) -> Result<(), StoreError> {
        let mut state = self.lock();
        if running.epoch < state.open_from {
            return Err(StoreError::EpochClosed(running.epoch));
        }
        Ok(state.books.entry(session).or_default().begin(index, running, limits)?)
    }

    /// Ends an answer without a receipt.
    pub fn abandon(&self, session: u64, index: u64) {
        if let Some(book) = self.lock().books.get_mut(&session) {
            book.abandon(index);
        }
    }

    /// Ends an answer with its receipt; returns when the transcript is on disk.
    pub async fn finish(&self, transcript: Transcript) -> Result<(), StoreError> {
        let pending;
        let (epoch, key);
        {
            let mut state = self.lock();
            let receipt = receipt_of(&transcript);
            (epoch, key) = ((receipt.epoch, transcript.private), (receipt.session, receipt.index));
            if receipt.epoch < state.open_from {
                return Err(StoreError::EpochClosed(receipt.epoch));
            }
            pending = self.write(&mut state, Kind::Answer(transcript.clone()))?;
            state.served(&transcript, None);
        }
        let location = pending.durable().await?;
        self.lock().place(epoch, key, location);
        Ok(())
    }

    /// Checks and takes a voucher; returns when it is on disk, with what is paid.
    pub async fn pay(
        &self,
        chain_id: &str,
        session: u64,
        spend_key: &[u8],
        limits: SessionLimits,
        call: &VoucherCall,
    ) -> Result<(Amount, u64), StoreError> {
        let (pending, paid) = {
            let mut state = self.lock();
            let book = state.books.entry(session).or_default();
            let new = book.check(chain_id, session, spend_key, limits, call)?;
            // One that is known already is perhaps not on disk yet: written again, so that the answer waits for the disk.
            let pending = self.write(&mut state, Kind::Voucher(VoucherRecord::of(call)))?;
            let book = state.books.entry(session).or_default();
            if new {
                book.pay(call);
            }
            (pending, book.paid())
        };
        pending.durable().await?;
        Ok(paid)
    }

    /// Answers that run under requests of this epoch or older ones.
    pub fn running(&self, epoch: u64) -> usize {
        self.lock().books.values().flat_map(|b| b.running.values()).filter(|r| r.epoch <= epoch).count()
    }

    /// Epochs from here on take answers.
    pub fn open_from(&self) -> u64 {
        self.lock().open_from
    }

    /// Ends an epoch for answers and returns the roots of its receipts; the same ones however often it is called.
    pub async fn close_epoch(&self, epoch: u64) -> Result<Roots, StoreError> {
        let (pending, roots): (Pending, Roots) = {
            let mut state = self.lock();
            let root = |private| state.epochs.get(&(epoch, private)).and_then(|receipts| receipts.root);
            if let Some(audited) = root(false) {
                return Ok(Roots { audited, private: root(true) });
            }
            let root = |private| match state.epochs.get(&(epoch, private)) {
                Some(receipts) => Ok(Some(*receipts.tree(epoch)?.root())),
                None => Ok::<_, StoreError>(None),
            };
            let roots = Roots { audited: root(false)?.unwrap_or(Sum::empty()), private: root(true)? };
            let (root, private_root) = (Some(roots.audited.to_proto()), roots.private.map(|root| root.to_proto()));
            let pending = self.write(&mut state, Kind::Closed(ClosedRecord { epoch, root, private_root }))?;
            state.close(epoch, roots);
            (pending, roots)
        };
        pending.durable().await?;
        Ok(roots)
    }

    fn write(&self, state: &mut State, kind: Kind) -> Result<Pending, JournalError> {
        let bytes = records::encode(kind);
        state.newest.1 += bytes.len() as u64;
        self.journal.enqueue(bytes)
    }

    /// Bytes in the newest segment, without the accounts that it begins with.
    pub fn written(&self) -> u64 {
        self.lock().newest.1
    }

    /// The next sessions that have an account here, from this id on.
    pub fn sessions(&self, from: u64, most: usize) -> Vec<u64> {
        self.lock().books.range(from..).map(|(session, _)| *session).take(most).collect()
    }

    /// Forgets the account of a session that takes no request any more, if nothing is left to do in it; `closed`: nor can
    /// anything be redeemed. Older segments still have it, until they are dropped.
    pub fn forget(&self, session: u64, closed: bool) -> bool {
        let mut state = self.lock();
        let done = |book: &SessionBook| book.running.is_empty() && (closed || book.is_idle());
        let forgotten = state.books.get(&session).is_some_and(done);
        if forgotten {
            state.books.remove(&session);
        }
        forgotten
    }

    /// The newest unredeemed voucher of each session up to an epoch.
    pub fn redeemable(&self, epoch: u64) -> Vec<SignedVoucher> {
        self.lock().books.values().filter_map(|book| book.redeemable(epoch).cloned()).collect()
    }

    /// A voucher was redeemed on chain.
    pub fn redeemed(&self, voucher: &SignedVoucher) -> Result<(), StoreError> {
        let Some(session) = voucher.voucher.as_ref().map(|v| v.session) else { return Ok(()) };
        let mut state = self.lock();
        let amount = amount_of(voucher);
        // Not waited for: a redemption that is forgotten is tried again, and the chain says that it is none.
        self.write(&mut state, Kind::Redeemed(RedeemedRecord { session, amount: amount.to_string() }))?;
        if let Some(book) = state.books.get_mut(&session) {
            book.redeemed(amount);
        }
        Ok(())
    }

    /// What became of a request, for who knows its digest.
    pub fn status(&self, session: u64, index: u64, request: &Digest) -> Result<ReceiptStatus, StoreError> {
        let location = {
            let state = self.lock();
            let book = state.books.get(&session);
            if book.and_then(|b| b.running.get(&index)).is_some_and(|r| r.request == *request) {
                return Ok(ReceiptStatus::Running);
            }
            let found = state.epochs.values().rev().find_map(|e| e.served.get(&(session, index)));
            match found {
                None => return Ok(ReceiptStatus::Unserved),
                // The disk has it in a moment.
                Some(Served { location: None, .. }) => return Ok(ReceiptStatus::Running),
                Some(Served { location: Some(location), .. }) => *location,
            }
        };
        let Transcript { receipt, completion_salt, choices, .. } = self.transcript(location)?;
        Ok(match receipt {
            Some(signed) if signed.receipt.as_ref().is_some_and(|r| r.request_digest == request.0) => {
                let completions = choices.into_iter().map(|choice| choice.token_ids).collect();
                ReceiptStatus::Served { receipt: Box::new(signed), completion_salt, completions }
            }
            _ => ReceiptStatus::Unserved,
        })
    }

    /// Path of a receipt in its committed tree; None while it is not committed, or for another receipt.
    pub fn proof(&self, session: u64, index: u64, receipt: &Digest) -> Result<Option<Proven>, StoreError> {
        let state = self.lock();
        let found = state
            .epochs
            .iter()
            .find(|(_, e)| e.served.get(&(session, index)).is_some_and(|s| s.leaf.receipt == *receipt));
        let Some(((epoch, _), receipts)) = found else { return Ok(None) };
        receipts.prove(*epoch, receipts.served.keys().position(|key| *key == (session, index)))
    }

    /// The receipt at a drawn point of an epoch's committed tree: never one of a private session.
    pub fn sample(&self, epoch: u64, point: Amount) -> Result<Option<Proven>, StoreError> {
        let state = self.lock();
        let Some(receipts) = state.epochs.get(&(epoch, false)) else { return Ok(None) };
        let at = receipts.tree(epoch)?.leaf_at(point);
        receipts.prove(epoch, at)
    }

    /// Reads a transcript (blocking).
    pub fn transcript(&self, location: Location) -> Result<Transcript, StoreError> {
        let bytes = self.journal.read(location)?;
        match records::decode(&bytes) {
            Ok(Kind::Answer(transcript)) => Ok(transcript),
            other => {
                let reason = other.err().unwrap_or_else(|| "the record is no transcript".into());
                Err(JournalError::Failed(reason).into())
            }
        }
    }

    /// Begins a new segment, and drops segments whose receipts are all older than `oldest_epoch`.
    pub async fn rotate(&self, oldest_epoch: u64) -> Result<(), StoreError> {
        let pending = {
            let mut state = self.lock();
            let books = state.books.iter().map(|(session, book)| BookRecord::of(*session, book)).collect();
            let snapshot = SnapshotRecord { books, open_from: state.open_from };
            let pending = self.journal.rotate(vec![records::encode(Kind::Snapshot(snapshot))])?;
            state.newest = (state.newest.0 + 1, 0);
            pending
        };
        let newest = pending.durable().await?.segment;
        let mut state = self.lock();
        let kept =
            state.segments.iter().find(|(_, epoch)| **epoch >= oldest_epoch).map_or(newest, |(segment, _)| *segment);
        state.segments.retain(|segment, _| *segment >= kept);
        let readable = |served: &Served| served.location.is_none_or(|l| l.segment >= kept);
        state.epochs.retain(|(epoch, _), receipts| *epoch >= oldest_epoch && receipts.served.values().all(readable));
        self.journal.drop_before(kept)?;
        Ok(())
    }
}

impl EpochReceipts {
    fn prove(&self, epoch: u64, at: Option<usize>) -> Result<Option<Proven>, StoreError> {
        let (Some(at), Some(root)) = (at, self.root) else { return Ok(None) };
        let location = self.served.values().nth(at).and_then(|s| s.location);
        let Some(location) = location else { return Ok(None) };
        let path = self.tree(epoch)?.path(at).map_err(|error| StoreError::Tree { epoch, error })?;
        Ok(Some(Proven { location, path, root }))
    }
}

fn receipt_of(transcript: &Transcript) -> Receipt {
    transcript.receipt.as_ref().and_then(|r| r.receipt.clone()).unwrap_or_default()
}

impl State {
    fn replay(&mut self, location: Location, kind: Kind) -> Result<(), String> {
        if self.newest.0 != location.segment {
            self.newest = (location.segment, 0);
        }
        if !matches!(kind, Kind::Snapshot(_)) {
            self.newest.1 += u64::from(location.length);
        }
        match kind {
            Kind::Answer(transcript) => self.served(&transcript, Some(location)),
            Kind::Voucher(record) => {
                let call = record.call()?;
                let session = call.voucher.voucher.as_ref().map(|v| v.session).unwrap_or_default();
                self.books.entry(session).or_default().pay(&call);
            }
            Kind::Closed(record) => {
                let sum = |node: &SumNode| Sum::from_proto(node).map_err(|e| e.to_string());
                let audited = sum(record.root.as_ref().ok_or("an end of an epoch without root")?)?;
                let private = record.private_root.as_ref().map(sum).transpose()?;
                self.close(record.epoch, Roots { audited, private });
            }
            Kind::Redeemed(record) => {
                let amount =
                    record.amount.parse().map_err(|e: polylink_protocol::amount::AmountError| e.to_string())?;
                self.books.entry(record.session).or_default().redeemed(amount);
            }
            Kind::Snapshot(snapshot) => {
                self.open_from = snapshot.open_from;
                let books = snapshot.books.into_iter().map(|record| Ok((record.session, record.book()?)));
                self.books = books.collect::<Result<_, String>>()?;
            }
        }
        Ok(())
    }

    fn served(&mut self, transcript: &Transcript, location: Option<Location>) {
        let receipt = receipt_of(transcript);
        let request = Digest::from_slice(&receipt.request_digest).unwrap_or(Digest([0; 32]));
        let amount = receipt.amount.parse().unwrap_or(Amount::ZERO);
        let (digest, key) = (receipt_digest(&receipt), (receipt.session, receipt.index));
        let epoch = (receipt.epoch, transcript.private);
        let tokens = receipt.prompt_tokens.saturating_add(receipt.completion_tokens);
        let leaf = Leaf { session: receipt.session, index: receipt.index, receipt: digest, tokens, amount };
        self.epochs.entry(epoch).or_default().served.insert(key, Served { leaf, location });
        self.books
            .entry(receipt.session)
            .or_default()
            .finish(receipt.index, Unpaid { request, receipt: digest, epoch: receipt.epoch, amount });
        if let Some(location) = location {
            self.place(epoch, key, location);
        }
    }

    fn place(&mut self, epoch: (u64, bool), key: (u64, u64), location: Location) {
        if let Some(served) = self.epochs.get_mut(&epoch).and_then(|e| e.served.get_mut(&key)) {
            served.location = Some(location);
        }
        let newest = self.segments.entry(location.segment).or_default();
        *newest = (*newest).max(epoch.0);
    }

    fn close(&mut self, epoch: u64, roots: Roots) {
        self.open_from = self.open_from.max(epoch + 1);
        self.epochs.entry((epoch, false)).or_default().root = Some(roots.audited);
        if let Some(private) = roots.private {
            self.epochs.entry((epoch, true)).or_default().root = Some(private);
        }
    }
}

#[cfg(test)]
mod tests;
