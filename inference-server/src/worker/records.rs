//! What the worker's journal holds, in protobuf (field numbers are never reused).

use polylink_protocol::market_v1::{SignedReceipt, SignedRequest, SignedVoucher, SumNode};
use prost::Message;

use super::book::{SessionBook, Unpaid};
use crate::records::{UNKNOWN_KIND, VoucherRecord, amount, digest};

/// One record.
#[derive(Clone, PartialEq, Message)]
pub struct WorkerRecord {
    /// What it is.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    pub kind: Option<Kind>,
}

/// Kinds of records.
// One at a time is encoded or decoded: a box would only cost an allocation.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// An answer and all that its receipt stands for.
    #[prost(message, tag = "1")]
    Answer(Transcript),
    /// A voucher that was accepted.
    #[prost(message, tag = "2")]
    Voucher(VoucherRecord),
    /// An epoch takes no more receipts; what was committed for it.
    #[prost(message, tag = "3")]
    Closed(ClosedRecord),
    /// A voucher was redeemed on chain.
    #[prost(message, tag = "4")]
    Redeemed(RedeemedRecord),
    /// All accounts, at the beginning of a segment.
    #[prost(message, tag = "5")]
    Snapshot(SnapshotRecord),
}

/// A transcript.
#[derive(Clone, PartialEq, Message)]
pub struct Transcript {
    /// As the spend key signed it.
    #[prost(message, optional, tag = "1")]
    pub request: Option<SignedRequest>,
    /// As this worker signed it.
    #[prost(message, optional, tag = "2")]
    pub receipt: Option<SignedReceipt>,
    /// Of the prompt digest.
    #[prost(bytes = "vec", tag = "3")]
    pub prompt_salt: Vec<u8>,
    /// The prompt.
    #[prost(uint32, repeated, tag = "4")]
    pub prompt_token_ids: Vec<u32>,
    /// Of the completion digest.
    #[prost(bytes = "vec", tag = "5")]
    pub completion_salt: Vec<u8>,
    /// Per choice.
    #[prost(message, repeated, tag = "6")]
    pub choices: Vec<ChoiceTranscript>,
    /// Of the grammar, where the request names one.
    #[prost(string, optional, tag = "7")]
    pub grammar: Option<String>,
    /// Its session is private.
    #[prost(bool, tag = "8")]
    pub private: bool,
}

/// One choice of a transcript.
#[derive(Clone, PartialEq, Message)]
pub struct ChoiceTranscript {
    /// The completion.
    #[prost(uint32, repeated, tag = "1")]
    pub token_ids: Vec<u32>,
    /// 16 bytes per token.
    #[prost(bytes = "vec", tag = "2")]
    pub sketches: Vec<u8>,
}

/// An epoch's end.
#[derive(Clone, PartialEq, Message)]
pub struct ClosedRecord {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Root of its receipts.
    #[prost(message, optional, tag = "2")]
    pub root: Option<SumNode>,
    /// Of those of private sessions, where there are any.
    #[prost(message, optional, tag = "3")]
    pub private_root: Option<SumNode>,
}

/// A redemption.
#[derive(Clone, PartialEq, Message)]
pub struct RedeemedRecord {
    /// Which session.
    #[prost(uint64, tag = "1")]
    pub session: u64,
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
    /// The newest closed epoch plus one; 0: none.
    #[prost(uint64, tag = "2")]
    pub open_from: u64,
}

/// One session's account; answers that run are not in it, since a restart ends them.
#[derive(Clone, PartialEq, Message)]
pub struct BookRecord {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Uplk.
    #[prost(string, tag = "2")]
    pub paid: String,
    /// Receipts.
    #[prost(uint64, tag = "3")]
    pub paid_count: u64,
    /// Chain hash.
    #[prost(bytes = "vec", tag = "4")]
    pub receipts_hash: Vec<u8>,
    /// Indexes below are used.
    #[prost(uint64, tag = "5")]
    pub used_below: u64,
    /// And these.
    #[prost(uint64, repeated, tag = "6")]
    pub used: Vec<u64>,
    /// Unpaid receipts.
    #[prost(message, repeated, tag = "7")]
    pub unpaid: Vec<UnpaidRecord>,
    /// Vouchers that are still wanted.
    #[prost(message, repeated, tag = "8")]
    pub vouchers: Vec<SignedVoucher>,
    /// Uplk.
    #[prost(string, tag = "9")]
    pub redeemed: String,
}

/// An unpaid receipt.
#[derive(Clone, PartialEq, Message)]
pub struct UnpaidRecord {
    /// Index.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Request digest.
    #[prost(bytes = "vec", tag = "2")]
    pub request: Vec<u8>,
    /// Receipt digest.
    #[prost(bytes = "vec", tag = "3")]
    pub receipt: Vec<u8>,
    /// Epoch of admission.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Uplk.
    #[prost(string, tag = "5")]
    pub amount: String,
}

/// The bytes of a record.
pub fn encode(kind: Kind) -> Vec<u8> {
    WorkerRecord { kind: Some(kind) }.encode_to_vec()
}

/// The record of some bytes.
///
/// # Errors
/// Bytes that no worker writes.
pub fn decode(bytes: &[u8]) -> Result<Kind, String> {
    crate::records::decode::<WorkerRecord>("worker", bytes)?.kind.ok_or_else(|| UNKNOWN_KIND.into())
}

impl BookRecord {
    /// For the journal.
    pub fn of(session: u64, book: &SessionBook) -> Self {
        Self {
            session,
            paid: book.paid.to_string(),
            paid_count: book.paid_count,
            receipts_hash: book.receipts_hash.to_vec(),
            // An answer that runs now may end without a receipt after a restart; its index stays used all the same.
            used_below: book.used_below,
            used: book.used.iter().copied().collect(),
            unpaid: book
                .unpaid
                .iter()
                .map(|(index, unpaid)| UnpaidRecord {
                    index: *index,
                    request: unpaid.request.to_vec(),
                    receipt: unpaid.receipt.to_vec(),
                    epoch: unpaid.epoch,
                    amount: unpaid.amount.to_string(),
                })
                .collect(),
            vouchers: book.vouchers.values().cloned().collect(),
            redeemed: book.redeemed.to_string(),
        }
    }

    /// From the journal.
    pub fn book(self) -> Result<SessionBook, String> {
        let unpaid = self.unpaid.iter().map(|u| {
            let (request, receipt) = (digest(&u.request)?, digest(&u.receipt)?);
            Ok((u.index, Unpaid { request, receipt, epoch: u.epoch, amount: amount(&u.amount)? }))
        });
        Ok(SessionBook {
            paid: amount(&self.paid)?,
            paid_count: self.paid_count,
            receipts_hash: digest(&self.receipts_hash)?,
            used_below: self.used_below,
            used: self.used.into_iter().collect(),
            running: Default::default(),
            unpaid: unpaid.collect::<Result<_, String>>()?,
            vouchers: self
                .vouchers
                .into_iter()
                .map(|v| (v.voucher.as_ref().map(|v| v.epoch).unwrap_or_default(), v))
                .collect(),
            redeemed: amount(&self.redeemed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes on disk, written out by hand from the protobuf encoding: a change of them loses what workers have stored.
    #[test]
    fn records_have_the_bytes_they_always_had() {
        let choice = ChoiceTranscript { token_ids: vec![7], sketches: vec![9, 9] };
        let transcript = Transcript {
            request: None,
            receipt: None,
            prompt_salt: vec![1, 2],
            prompt_token_ids: vec![5, 300],
            completion_salt: vec![3],
            choices: vec![choice],
            grammar: Some("g".into()),
            private: false,
        };
        let private = Transcript { private: true, ..Default::default() };
        let root = SumNode { count: 2, ..Default::default() };
        for (kind, bytes) in [
            (Kind::Answer(transcript), "0a181a020102220305ac022a010332070a0107120209093a0167"),
            (Kind::Voucher(VoucherRecord { voucher: None, indexes: vec![1, 2] }), "120412020102"),
            (Kind::Answer(private), "0a024001"),
            (Kind::Closed(ClosedRecord { epoch: 3, root: None, private_root: None }), "1a020803"),
            (Kind::Closed(ClosedRecord { epoch: 3, root: None, private_root: Some(root) }), "1a0608031a021002"),
            (Kind::Redeemed(RedeemedRecord { session: 7, amount: "50".into() }), "2206080712023530"),
            (Kind::Snapshot(SnapshotRecord { books: vec![], open_from: 4 }), "2a021004"),
        ] {
            assert_eq!(hex::encode(encode(kind.clone())), bytes);
            assert_eq!(decode(&hex::decode(bytes).unwrap()), Ok(kind));
        }
        assert!(decode(&[0xff]).is_err() && decode(&[]).is_err());
    }
}
