//! What the journals of payer and worker have in common: a voucher with what it pays, and how records, amounts and
//! digests become bytes. Protobuf; field numbers are never reused.

use polylink_protocol::market_v1::SignedVoucher;
use polylink_protocol::transcript::VoucherCall;
use polylink_protocol::{Amount, Digest};
use prost::Message;

/// A voucher and what it pays: signed by a payer, accepted by a worker.
#[derive(Clone, PartialEq, Message)]
pub struct VoucherRecord {
    /// As the spend key signed it.
    #[prost(message, optional, tag = "1")]
    pub voucher: Option<SignedVoucher>,
    /// Indexes of the receipts that it newly pays.
    #[prost(uint64, repeated, tag = "2")]
    pub indexes: Vec<u64>,
}

impl VoucherRecord {
    /// For the journal.
    pub fn of(call: &VoucherCall) -> Self {
        Self { voucher: Some(call.voucher.clone()), indexes: call.indexes.clone() }
    }
    /// From the journal.
    ///
    /// # Errors
    /// A record without voucher, which no version writes.
    pub fn call(self) -> Result<VoucherCall, String> {
        Ok(VoucherCall { voucher: self.voucher.ok_or("a voucher record without voucher")?, indexes: self.indexes })
    }
}

/// The record of some bytes. `whose`: for the error.
///
/// # Errors
/// Bytes that are no record.
pub fn decode<R: Message + Default>(whose: &str, bytes: &[u8]) -> Result<R, String> {
    R::decode(bytes).map_err(|e| format!("not a {whose}'s record: {e}"))
}

/// What a record of a newer version is answered with.
pub const UNKNOWN_KIND: &str = "a record of a kind that this version does not know";

/// An amount in uplk; none where a record has no text.
///
/// # Errors
/// A text that is no amount.
pub fn amount(text: &str) -> Result<Amount, String> {
    Amount::parse_or_zero(text).map_err(|e| e.to_string())
}

/// A digest of 32 bytes.
///
/// # Errors
/// Another length.
pub fn digest(bytes: &[u8]) -> Result<Digest, String> {
    Digest::from_slice(bytes).ok_or_else(|| "a digest that has not 32 bytes".into())
}
