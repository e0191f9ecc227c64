//! The payer's account of one session: indexes, answers that run, receipts to be paid, vouchers. A pure state machine.
//!
//! Receipts are paid in the order of their epochs: while an answer of an older epoch runs, newer receipts wait, so that
//! each voucher's increase belongs to the epoch that it names and is redeemed into that epoch's pot. A receipt that was
//! refused holds nothing up, but its index stays in the window: a worker whose receipts do not hold gets no more than
//! that many requests of a session.

use std::collections::BTreeMap;

use polylink_protocol::market::{RECEIPT_CHAIN_START, chain_receipt};
use polylink_protocol::market_v1::{SignedRequest, Voucher};
use polylink_protocol::transcript::VoucherCall;
use polylink_protocol::{Amount, Digest};

/// Most receipts that one voucher pays.
const VOUCHER_RECEIPTS_MAX: usize = 256;

/// Why no request can begin now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// Wait for vouchers to be acknowledged.
    #[error("{0} answers of the session to this worker are running or unpaid, which is its window")]
    WindowFull(usize),
    /// Top up.
    #[error("the session to this worker has {left} uplk left, the answer may cost {worst}")]
    Funds {
        /// Left.
        left: Amount,
        /// At most.
        worst: Amount,
    },
}

/// An answer that runs, or whose fate is not known yet, or whose receipt was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Digest of the request.
    pub request: Digest,
    /// Its epoch.
    pub epoch: u64,
    /// The most it may cost.
    pub worst: Amount,
    /// The request as it was signed, to check a late receipt against; None in journals of older versions.
    pub signed: Option<SignedRequest>,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Its receipt did not hold: it is never paid, and keeps its place in the window.
    pub refused: bool,
}

/// A verified receipt that is not paid yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Digest of the receipt.
    pub receipt: Digest,
    /// Its epoch.
    pub epoch: u64,
    /// What it costs.
    pub amount: Amount,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct PayerBook {
    /// Acknowledged by the worker.
    pub(crate) paid: Amount,
    pub(crate) count: u64,
    pub(crate) receipts_hash: Digest,
    /// Of the newest voucher.
    pub(crate) epoch: u64,
    pub(crate) next_index: u64,
    pub(crate) running: BTreeMap<u64, Running>,
    pub(crate) owed: BTreeMap<u64, Owed>,
    /// Signed and not acknowledged yet.
    pub(crate) outstanding: Option<VoucherCall>,
}

impl Default for PayerBook {
    fn default() -> Self {
        Self {
            paid: Amount::ZERO,
            count: 0,
            receipts_hash: RECEIPT_CHAIN_START,
            epoch: 0,
            next_index: 0,
            running: BTreeMap::new(),
            owed: BTreeMap::new(),
            outstanding: None,
        }
    }
}

impl PayerBook {
    /// Paid, owed, and what running answers may cost.
    pub fn committed(&self) -> Amount {
        let owed = self.owed.values().map(|o| o.amount).chain(self.running.values().map(|r| r.worst));
        [self.paid].into_iter().chain(owed).sum()
    }

    /// Whether a request may begin.
    pub fn check(&self, worst: Amount, funds: Amount, window: u32) -> Result<(), BookError> {
        let open = self.open();
        if open >= window as usize {
            return Err(BookError::WindowFull(open));
        }
        let left = funds.saturating_sub(self.committed());
        if worst > left {
            return Err(BookError::Funds { left, worst });
        }
        Ok(())
    }

    /// A request begins under an index (the next one, but for a replay).
    pub fn begin(&mut self, index: u64, running: Running) {
        self.next_index = self.next_index.max(index + 1);
        self.running.insert(index, running);
    }

    /// A request ends without a receipt.
    pub fn abandon(&mut self, index: u64) {
        self.running.remove(&index);
    }

    /// The receipt of a request does not hold.
    pub fn refuse(&mut self, index: u64) {
        if let Some(running) = self.running.get_mut(&index) {
            running.refused = true;
        }
    }

    /// A request ends with a verified receipt.
    pub fn finish(&mut self, index: u64, owed: Owed) {
        self.next_index = self.next_index.max(index + 1);
        self.running.remove(&index);
        self.owed.insert(index, owed);
    }

    /// The next voucher to be signed, with the indexes that it pays; None while one is outstanding or nothing can be paid.
    pub fn next_voucher(&self, chain_id: &str, session: u64) -> Option<(Voucher, Vec<u64>)> {
        if self.outstanding.is_some() {
            return None;
        }
        let oldest = self.owed.values().map(|owed| owed.epoch).min()?;
        if self.running.values().any(|running| !running.refused && running.epoch < oldest) {
            return None;
        }
        let (mut amount, mut hash, mut indexes) = (self.paid, self.receipts_hash, Vec::new());
        for (index, owed) in self.owed.iter().filter(|(_, owed)| owed.epoch == oldest).take(VOUCHER_RECEIPTS_MAX) {
            amount = amount.checked_add(owed.amount)?;
            hash = chain_receipt(hash, owed.receipt);
            indexes.push(*index);
        }
        let voucher = Voucher {
            chain_id: chain_id.into(),
            session,
            epoch: self.epoch.max(oldest),
            amount: amount.to_string(),
            count: self.count + indexes.len() as u64,
            receipts_hash: hash.to_vec(),
        };
        Some((voucher, indexes))
    }

    /// A voucher was signed.
    pub fn signed(&mut self, call: VoucherCall) {
        self.outstanding = Some(call);
    }

    /// The outstanding voucher was acknowledged.
    pub fn acknowledged(&mut self) {
        let Some(call) = self.outstanding.take() else { return };
        for index in &call.indexes {
            if let Some(owed) = self.owed.remove(index) {
                self.paid = Amount(self.paid.0.saturating_add(owed.amount.0));
                self.count += 1;
                self.receipts_hash = chain_receipt(self.receipts_hash, owed.receipt);
            }
        }
        if let Some(voucher) = &call.voucher.voucher {
            debug_assert_eq!(voucher.count, self.count, "the voucher pays what it names");
            self.epoch = self.epoch.max(voucher.epoch);
        }
    }

    /// Answers that run or are unpaid, and those whose receipts were refused: what the window bounds.
    pub fn open(&self) -> usize {
        self.running.len() + self.owed.len()
    }

    /// Nothing runs, is owed or outstanding (what was refused is neither).
    pub fn is_settled(&self) -> bool {
        self.running.values().all(|running| running.refused) && self.owed.is_empty() && self.outstanding.is_none()
    }
}

#[cfg(test)]
mod tests;
