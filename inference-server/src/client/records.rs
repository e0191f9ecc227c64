//! What the payer's journal holds, in protobuf (field numbers are never reused).

use polylink_protocol::Amount;
use polylink_protocol::market_v1::{SignedReceipt, SignedRequest, SignedVoucher};
use prost::Message;

use super::book::{Owed, PayerBook, Running};
use super::store::KeyAccount;
use crate::records::{UNKNOWN_KIND, VoucherRecord, amount, digest};

/// One record.
#[derive(Clone, PartialEq, Message)]
pub struct PayerRecord {
    /// What it is.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub kind: Option<Kind>,
}

/// Kinds of records.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// A request was sent.
    #[prost(message, tag = "1")]
    Begun(BegunRecord),
    /// It was answered.
    #[prost(message, tag = "2")]
    Answered(AnsweredRecord),
    /// It was not, and never will be.
    #[prost(message, tag = "3")]
    Abandoned(IndexRecord),
    /// A voucher was signed.
    #[prost(message, tag = "4")]
    Voucher(VoucherRecord),
    /// It was acknowledged.
    #[prost(message, tag = "5")]
    Acknowledged(IndexRecord),
    /// Indexes below this one may have been used; not written any more.
    #[prost(message, tag = "6")]
    Lease(IndexRecord),
    /// A user's voucher was redeemed.
    #[prost(message, tag = "7")]
    UserRedeemed(UserRedeemedRecord),
    /// All accounts, at the beginning of a segment.
    #[prost(message, tag = "8")]
    Snapshot(SnapshotRecord),
    /// The worker's receipt of a request does not hold: it is never paid.
    #[prost(message, tag = "9")]
    Refused(IndexRecord),
    /// A receipt was reported as omitted, or its worker has shown it since.
    #[prost(message, tag = "10")]
    Report(ReportRecord),
}

/// A request.
#[derive(Clone, PartialEq, Message)]
pub struct BegunRecord {
    /// Session to the worker.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Digest.
    #[prost(bytes = "vec", tag = "4")]
    pub request: Vec<u8>,
    /// The most it costs, uplk.
    #[prost(string, tag = "5")]
    pub worst: String,
    /// As it was signed.
    #[prost(message, optional, tag = "6")]
    pub signed: Option<SignedRequest>,
    /// Tokens of its prompt.
    #[prost(uint64, tag = "7")]
    pub prompt_tokens: u64,
    /// In a snapshot: the receipt of it was refused.
    #[prost(bool, tag = "8")]
    pub refused: bool,
}

/// An answer.
#[derive(Clone, PartialEq, Message)]
pub struct AnsweredRecord {
    /// Session to the worker.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Digest of the receipt.
    #[prost(bytes = "vec", tag = "4")]
    pub receipt: Vec<u8>,
    /// Uplk.
    #[prost(string, tag = "5")]
    pub amount: String,
    /// Id of the answer; empty where nobody saw it.
    #[prost(string, tag = "6")]
    pub answer_id: String,
    /// Id of the API key that it is charged to; empty: to nobody.
    #[prost(string, tag = "7")]
    pub key_id: String,
    /// The `AnswerRecord`, as JSON.
    #[prost(bytes = "vec", tag = "8")]
    pub record: Vec<u8>,
    /// Prompt and completion tokens.
    #[prost(uint64, repeated, tag = "9")]
    pub tokens: Vec<u64>,
    /// The user's cumulative voucher to the gateway, where the key has a session.
    #[prost(message, optional, tag = "10")]
    pub user_voucher: Option<SignedVoucher>,
    /// Endpoint of the worker, for the receipt's proof.
    #[prost(string, tag = "11")]
    pub endpoint: String,
    /// It was cut: its user went away.
    #[prost(bool, tag = "12")]
    pub cut: bool,
    /// The receipt, where there is no record with it.
    #[prost(message, optional, tag = "13")]
    pub signed: Option<SignedReceipt>,
}

/// A report of an omitted receipt.
#[derive(Clone, PartialEq, Message)]
pub struct ReportRecord {
    /// Session to the worker.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Account of the worker.
    #[prost(string, tag = "3")]
    pub worker: String,
    /// Uplk.
    #[prost(string, tag = "4")]
    pub deposit: String,
    /// The last epoch in which the worker may show it.
    #[prost(uint64, tag = "5")]
    pub deadline_epoch: u64,
    /// It has.
    #[prost(bool, tag = "6")]
    pub shown: bool,
}

/// An index of a session.
#[derive(Clone, PartialEq, Message)]
pub struct IndexRecord {
    /// Session to the worker.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Index.
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

/// A redemption.
#[derive(Clone, PartialEq, Message)]
pub struct UserRedeemedRecord {
    /// API key.
    #[prost(string, tag = "1")]
    pub key_id: String,
    /// Cumulative, uplk.
    #[prost(string, tag = "2")]
    pub amount: String,
}

/// All accounts.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotRecord {
    /// Per session.
    #[prost(message, repeated, tag = "1")]
    pub books: Vec<BookRecord>,
    /// Per API key.
    #[prost(message, repeated, tag = "2")]
    pub keys: Vec<KeyRecord>,
    /// Of omitted receipts.
    #[prost(message, repeated, tag = "3")]
    pub reports: Vec<ReportRecord>,
}

/// A session's account.
#[derive(Clone, PartialEq, Message)]
pub struct BookRecord {
    /// Session.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Uplk.
    #[prost(string, tag = "2")]
    pub paid: String,
    /// Receipts.
    #[prost(uint64, tag = "3")]
    pub count: u64,
    /// Chain hash.
    #[prost(bytes = "vec", tag = "4")]
    pub receipts_hash: Vec<u8>,
    /// Of the newest voucher.
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
    /// Next index.
    #[prost(uint64, tag = "6")]
    pub next_index: u64,
    /// Requests without a known end.
    #[prost(message, repeated, tag = "7")]
    pub running: Vec<BegunRecord>,
    /// Receipts to be paid (without their records).
    #[prost(message, repeated, tag = "8")]
    pub owed: Vec<AnsweredRecord>,
    /// Unacknowledged.
    #[prost(message, optional, tag = "9")]
    pub outstanding: Option<VoucherRecord>,
}

/// An API key's account.
#[derive(Clone, PartialEq, Message)]
pub struct KeyRecord {
    /// Its id.
    #[prost(string, tag = "1")]
    pub key_id: String,
    /// Uplk.
    #[prost(string, tag = "2")]
    pub spent: String,
    /// Answers.
    #[prost(uint64, tag = "3")]
    pub answers: u64,
    /// Tokens.
    #[prost(uint64, tag = "4")]
    pub prompt_tokens: u64,
    /// Tokens.
    #[prost(uint64, tag = "5")]
    pub completion_tokens: u64,
    /// The newest voucher to the gateway.
    #[prost(message, optional, tag = "6")]
    pub voucher: Option<SignedVoucher>,
    /// Uplk of it that were redeemed.
    #[prost(string, tag = "7")]
    pub redeemed: String,
    /// Of the answers, those that were cut.
    #[prost(uint64, tag = "8")]
    pub cut: u64,
}

/// The bytes of a record.
pub fn encode(kind: Kind) -> Vec<u8> {
    PayerRecord { kind: Some(kind) }.encode_to_vec()
}

/// The record of some bytes.
///
/// # Errors
/// Bytes that no payer writes.
pub fn decode(bytes: &[u8]) -> Result<Kind, String> {
    crate::records::decode::<PayerRecord>("payer", bytes)?.kind.ok_or_else(|| UNKNOWN_KIND.into())
}

impl BegunRecord {
    /// For the journal.
    pub fn of(session: u64, index: u64, running: &Running) -> Self {
        Self {
            session,
            index,
            epoch: running.epoch,
            request: running.request.to_vec(),
            worst: running.worst.to_string(),
            signed: running.signed.clone(),
            prompt_tokens: running.prompt_tokens,
            refused: running.refused,
        }
    }
    /// From the journal.
    pub fn running(self) -> Result<Running, String> {
        Ok(Running {
            request: digest(&self.request)?,
            epoch: self.epoch,
            worst: amount(&self.worst)?,
            signed: self.signed,
            prompt_tokens: self.prompt_tokens,
            refused: self.refused,
        })
    }
}

impl AnsweredRecord {
    /// From the journal.
    pub fn owed(&self) -> Result<Owed, String> {
        Ok(Owed { receipt: digest(&self.receipt)?, epoch: self.epoch, amount: amount(&self.amount)? })
    }
}

impl ReportRecord {
    /// What the payer gets back where the worker does not show the receipt.
    pub fn deposit(&self) -> Amount {
        amount(&self.deposit).unwrap_or(Amount::ZERO)
    }
}

impl BookRecord {
    /// For the journal.
    pub fn of(session: u64, book: &PayerBook) -> Self {
        let owed = book.owed.iter().map(|(index, owed)| AnsweredRecord {
            session,
            index: *index,
            epoch: owed.epoch,
            receipt: owed.receipt.to_vec(),
            amount: owed.amount.to_string(),
            ..Default::default()
        });
        Self {
            session,
            paid: book.paid.to_string(),
            count: book.count,
            receipts_hash: book.receipts_hash.to_vec(),
            epoch: book.epoch,
            next_index: book.next_index,
            running: book.running.iter().map(|(index, running)| BegunRecord::of(session, *index, running)).collect(),
            owed: owed.collect(),
            outstanding: book.outstanding.as_ref().map(VoucherRecord::of),
        }
    }
    /// From the journal.
    pub fn book(self) -> Result<PayerBook, String> {
        Ok(PayerBook {
            paid: amount(&self.paid)?,
            count: self.count,
            receipts_hash: digest(&self.receipts_hash)?,
            epoch: self.epoch,
            next_index: self.next_index,
            running: self.running.into_iter().map(|r| Ok((r.index, r.running()?))).collect::<Result<_, String>>()?,
            owed: self.owed.iter().map(|o| Ok((o.index, o.owed()?))).collect::<Result<_, String>>()?,
            outstanding: self.outstanding.map(VoucherRecord::call).transpose()?,
        })
    }
}

impl KeyRecord {
    /// For the journal.
    pub fn of(key_id: &str, account: &KeyAccount) -> Self {
        Self {
            key_id: key_id.into(),
            spent: account.spent.to_string(),
            answers: account.answers,
            prompt_tokens: account.prompt_tokens,
            completion_tokens: account.completion_tokens,
            voucher: account.voucher.clone(),
            redeemed: account.redeemed.to_string(),
            cut: account.cut,
        }
    }
    /// From the journal.
    pub fn account(self) -> Result<KeyAccount, String> {
        Ok(KeyAccount {
            spent: amount(&self.spent)?,
            reserved: Amount::ZERO,
            answers: self.answers,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            voucher: self.voucher,
            redeemed: amount(&self.redeemed)?,
            cut: self.cut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on disk, written out by hand from the protobuf encoding: a change of them loses what payers have stored.
    #[test]
    fn records_have_the_bytes_they_always_had() {
        let index = IndexRecord { session: 7, index: 64 };
        let begun =
            BegunRecord { session: 7, index: 1, epoch: 2, request: vec![3], worst: "9".into(), ..Default::default() };
        let report = ReportRecord {
            session: 7,
            index: 64,
            worker: "w".into(),
            deposit: "5".into(),
            deadline_epoch: 9,
            shown: true,
        };
        for (kind, bytes) in [
            (Kind::Begun(begun), "0a0c0807100118022201032a0139"),
            (Kind::Abandoned(index.clone()), "1a0408071040"),
            (Kind::Voucher(VoucherRecord { voucher: None, indexes: vec![1, 2] }), "220412020102"),
            (Kind::Acknowledged(index.clone()), "2a0408071040"),
            (Kind::Lease(index.clone()), "320408071040"),
            (Kind::Refused(index), "4a0408071040"),
            (Kind::Report(report), "520e080710401a017722013528093001"),
            (Kind::UserRedeemed(UserRedeemedRecord { key_id: "k".into(), amount: "5".into() }), "3a060a016b120135"),
            (Kind::Snapshot(SnapshotRecord::default()), "4200"),
        ] {
            assert_eq!(hex::encode(encode(kind.clone())), bytes);
            assert_eq!(decode(&hex::decode(bytes).unwrap()), Ok(kind));
        }
        assert!(decode(&[0xff]).is_err() && decode(&[]).is_err());
    }
}
