//! What a worker is owed: per session the answers that run, those that are unpaid, and the vouchers; per epoch the
//! receipts. A pure state machine; the service puts a lock and a journal around it.
//!
//! What always holds: an index is answered at most once; running and unpaid answers together never exceed the session's
//! window; what was paid, is unpaid and may yet be owed for running answers never exceeds the session's funds; a voucher
//! pays exactly the receipts that it names.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::market::{RECEIPT_CHAIN_START, chain_receipt, verify_voucher};
use polylink_protocol::market_v1::SignedVoucher;
use polylink_protocol::transcript::VoucherCall;
use polylink_protocol::{Amount, Digest};

/// How far behind the newest index an index may lie; older ones count as used.
const INDEX_SPAN: usize = 4_096;

/// What bounds a session, from the chain's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// The smaller of deposit and cap.
    pub funds: Amount,
    /// The most answers that may be unpaid.
    pub window: u32,
}

/// Why a request does not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// HTTP 409.
    #[error("index {0} of this session was used already: each request takes a new one")]
    IndexUsed(u64),
    /// HTTP 402.
    #[error(
        "{unpaid} answers of this session are running or unpaid, its window is {window}: send a voucher for the finished ones"
    )]
    WindowFull {
        /// Running and unpaid.
        unpaid: usize,
        /// The session's.
        window: u32,
    },
    /// HTTP 402.
    #[error(
        "this answer may cost {worst} uplk, {left} of the session's {funds} are left: top the session up, or ask for fewer tokens"
    )]
    Funds {
        /// At most.
        worst: Amount,
        /// Neither paid, owed nor reserved.
        left: Amount,
        /// Deposit or cap.
        funds: Amount,
    },
}

/// Why a voucher is refused (HTTP 400, or 402 where it exceeds the funds).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// Signature or shape.
    #[error("{0}")]
    Object(String),
    /// Of another chain or session.
    #[error("the voucher's {field} is {found}, {expected} is expected")]
    Other {
        /// Which field.
        field: &'static str,
        /// In the voucher.
        found: String,
        /// Here.
        expected: String,
    },
    /// It names a receipt that is not unpaid.
    #[error("the voucher names index {0}, which is no unpaid receipt of this session")]
    NotUnpaid(u64),
    /// The indexes are not ascending.
    #[error("the voucher's indexes are empty or not ascending")]
    Order,
    /// Above what is in the session.
    #[error("the voucher is over {amount} uplk, the session has {funds}: top it up first")]
    Funds {
        /// Cumulative.
        amount: Amount,
        /// Deposit or cap.
        funds: Amount,
    },
}

/// An answer that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Digest of its request.
    pub request: Digest,
    /// Its epoch of admission.
    pub epoch: u64,
    /// The most it can cost.
    pub worst: Amount,
}

/// A receipt that no voucher pays yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpaid {
    /// Digest of its request.
    pub request: Digest,
    /// The receipt's.
    pub receipt: Digest,
    /// Its epoch of admission.
    pub epoch: u64,
    /// What it costs.
    pub amount: Amount,
}

/// One session's account.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionBook {
    pub(crate) paid: Amount,
    pub(crate) paid_count: u64,
    pub(crate) receipts_hash: Digest,
    pub(crate) used_below: u64,
    pub(crate) used: BTreeSet<u64>,
    pub(crate) running: BTreeMap<u64, Running>,
    pub(crate) unpaid: BTreeMap<u64, Unpaid>,
    /// The newest voucher of each epoch that is not redeemed yet, the newest of all in any case.
    pub(crate) vouchers: BTreeMap<u64, SignedVoucher>,
    /// Redeemed so far.
    pub(crate) redeemed: Amount,
}

impl Default for SessionBook {
    fn default() -> Self {
        Self {
            paid: Amount::ZERO,
            paid_count: 0,
            receipts_hash: RECEIPT_CHAIN_START,
            used_below: 0,
            used: BTreeSet::new(),
            running: BTreeMap::new(),
            unpaid: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            redeemed: Amount::ZERO,
        }
    }
}

impl SessionBook {
    /// Paid so far, and how many receipts.
    pub fn paid(&self) -> (Amount, u64) {
        (self.paid, self.paid_count)
    }

    /// Whether an index was used.
    pub fn is_used(&self, index: u64) -> bool {
        index < self.used_below || self.used.contains(&index)
    }

    /// The receipts that wait for a voucher.
    pub fn unpaid(&self) -> &BTreeMap<u64, Unpaid> {
        &self.unpaid
    }

    /// Begins an answer under an index.
    pub fn begin(&mut self, index: u64, running: Running, limits: SessionLimits) -> Result<(), BeginError> {
        if self.is_used(index) {
            return Err(BeginError::IndexUsed(index));
        }
        let unpaid = self.running.len() + self.unpaid.len();
        if unpaid >= limits.window as usize {
            return Err(BeginError::WindowFull { unpaid, window: limits.window });
        }
        let owed: Amount = self.unpaid.values().map(|u| u.amount).chain(self.running.values().map(|r| r.worst)).sum();
        let left = limits.funds.saturating_sub(self.paid).saturating_sub(owed);
        if running.worst > left {
            return Err(BeginError::Funds { worst: running.worst, left, funds: limits.funds });
        }
        self.mark_used(index);
        self.running.insert(index, running);
        Ok(())
    }

    /// Ends an answer without a receipt: nothing is owed for it.
    pub fn abandon(&mut self, index: u64) {
        self.running.remove(&index);
    }

    /// Ends an answer with a receipt.
    pub fn finish(&mut self, index: u64, unpaid: Unpaid) {
        self.running.remove(&index);
        self.mark_used(index);
        self.unpaid.insert(index, unpaid);
    }

    fn mark_used(&mut self, index: u64) {
        if index < self.used_below {
            return;
        }
        self.used.insert(index);
        while self.used.len() > INDEX_SPAN || self.used.first() == Some(&self.used_below) {
            let Some(first) = self.used.pop_first() else { break };
            self.used_below = first.saturating_add(1);
        }
    }

    /// Checks a voucher against what is unpaid. `Ok(false)`: it is the newest one, known already.
    pub fn check(
        &self,
        chain_id: &str,
        session: u64,
        spend_key: &[u8],
        limits: SessionLimits,
        call: &VoucherCall,
    ) -> Result<bool, VoucherError> {
        let voucher = verify_voucher(&call.voucher, spend_key).map_err(|e| VoucherError::Object(e.to_string()))?;
        let other = |field, found: String, expected: String| Err(VoucherError::Other { field, found, expected });
        if voucher.chain_id != chain_id {
            return other("chain_id", voucher.chain_id.clone(), chain_id.into());
        }
        if voucher.session != session {
            return other("session", voucher.session.to_string(), session.to_string());
        }
        let newest = self.vouchers.last_key_value().map(|(_, voucher)| voucher);
        if newest == Some(&call.voucher) {
            return Ok(false);
        }
        if call.indexes.is_empty() || !call.indexes.windows(2).all(|w| w[0] < w[1]) {
            return Err(VoucherError::Order);
        }
        let (mut amount, mut hash, mut epoch) = (self.paid, self.receipts_hash, self.newest_epoch());
        for index in &call.indexes {
            let unpaid = self.unpaid.get(index).ok_or(VoucherError::NotUnpaid(*index))?;
            amount = Amount(amount.0.saturating_add(unpaid.amount.0));
            hash = chain_receipt(hash, unpaid.receipt);
            epoch = epoch.max(unpaid.epoch);
        }
        let count = self.paid_count + call.indexes.len() as u64;
        if voucher.amount != amount.to_string() {
            return other("amount", voucher.amount.clone(), amount.to_string());
        }
        if voucher.count != count {
            return other("count", voucher.count.to_string(), count.to_string());
        }
        if voucher.receipts_hash != hash.0 {
            return other("receipts_hash", hex::encode(&voucher.receipts_hash), hash.to_string());
        }
        if voucher.epoch != epoch {
            return other("epoch", voucher.epoch.to_string(), epoch.to_string());
        }
        if amount > limits.funds {
            return Err(VoucherError::Funds { amount, funds: limits.funds });
        }
        Ok(true)
    }

    /// Takes a voucher that [`SessionBook::check`] has accepted, or that was durable before a restart.
    pub fn pay(&mut self, call: &VoucherCall) {
        let Some(voucher) = &call.voucher.voucher else { return };
        for index in &call.indexes {
            if let Some(unpaid) = self.unpaid.remove(index) {
                self.paid = Amount(self.paid.0.saturating_add(unpaid.amount.0));
                self.paid_count += 1;
                self.receipts_hash = chain_receipt(self.receipts_hash, unpaid.receipt);
            }
        }
        self.vouchers.insert(voucher.epoch, call.voucher.clone());
    }

    fn newest_epoch(&self) -> u64 {
        self.vouchers.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The newest voucher of an epoch up to this one, if it is over more than was redeemed.
    pub fn redeemable(&self, epoch: u64) -> Option<&SignedVoucher> {
        let (_, signed) = self.vouchers.range(..=epoch).next_back()?;
        (amount_of(signed) > self.redeemed).then_some(signed)
    }

    /// A voucher was redeemed: older ones are of no use any more.
    pub fn redeemed(&mut self, amount: Amount) {
        self.redeemed = self.redeemed.max(amount);
        let newest = self.newest_epoch();
        let redeemed = self.redeemed;
        self.vouchers.retain(|epoch, signed| *epoch == newest || amount_of(signed) > redeemed);
    }

    /// Nothing runs, is unpaid or waits to be redeemed.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unpaid.is_empty() && self.redeemable(u64::MAX).is_none()
    }
}

/// Cumulative amount of a voucher.
pub fn amount_of(signed: &SignedVoucher) -> Amount {
    let amount = signed.voucher.as_ref().and_then(|v| v.amount.parse().ok());
    amount.unwrap_or(Amount::ZERO)
}

#[cfg(test)]
mod tests;
