//! Domain-separated SHA-256, and the rule by which protobuf messages become digests.
//!
//! `digest(tag, parts) = SHA-256(tag ‖ 0x00 ‖ parts…)`. A tag never contains a zero byte, so no tag is a prefix of
//! another one with its data. Every tag in use stands in [`tag`]; a new meaning of the bytes takes a new tag.

use prost::Message;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The domain tags. `docs/wire.md` says what follows each.
pub mod tag {
    /// Model profile, ADR-027 bytes.
    pub const PROFILE: &str = "polylink/profile/v1";
    /// Request, ADR-027 bytes; what the spend key signs.
    pub const REQUEST: &str = "polylink/request/v1";
    /// Receipt, ADR-027 bytes; what the receipt key signs.
    pub const RECEIPT: &str = "polylink/receipt/v1";
    /// Voucher, ADR-027 bytes; what the spend key signs.
    pub const VOUCHER: &str = "polylink/voucher/v1";
    /// One link of the chain hash over paid receipts.
    pub const RECEIPT_CHAIN: &str = "polylink/receipt-chain/v1";
    /// Salted prompt token ids.
    pub const PROMPT: &str = "polylink/prompt/v1";
    /// Salted completion token ids.
    pub const COMPLETION: &str = "polylink/completion/v1";
    /// A grammar's text.
    pub const GRAMMAR: &str = "polylink/grammar/v1";
    /// Activation sketches of a completion.
    pub const SKETCH: &str = "polylink/sketch/v1";
    /// Leaf of the Merkle-sum tree.
    pub const SUM_LEAF: &str = "polylink/sum-leaf/v1";
    /// Inner node of the Merkle-sum tree.
    pub const SUM_NODE: &str = "polylink/sum-node/v1";
    /// The tree without leaves.
    pub const SUM_EMPTY: &str = "polylink/sum-empty/v1";
    /// Input of a judge's VRF.
    pub const VRF_INPUT: &str = "polylink/vrf-input/v1";
    /// The beacon from the sorted VRF outputs.
    pub const BEACON: &str = "polylink/beacon/v1";
    /// The beacon before the first round.
    pub const BEACON_GENESIS: &str = "polylink/beacon-genesis/v1";
    /// A ticket's place in the drawing of seats.
    pub const SEAT: &str = "polylink/seat/v1";
    /// The point of a sample in a pot.
    pub const SAMPLE: &str = "polylink/sample/v1";
    /// Commitment to a round's scores.
    pub const SCORES: &str = "polylink/scores/v1";
    /// Whether the language-model judge sees an answer.
    pub const LLM_DRAW: &str = "polylink/llm-draw/v1";
    /// A judge's signed request for a transcript.
    pub const DISCLOSURE: &str = "polylink/disclosure/v1";
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// From a slice of exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
    /// The bytes as a vector, as protobuf fields want them.
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
    /// Plain SHA-256 of a file or a text, without a tag.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// An incremental tagged hash. Integers go in big-endian, byte strings with a four-byte length before them.
pub struct Hasher(Sha256);

impl Hasher {
    /// Starts with the tag and its closing zero.
    pub fn new(tag: &str) -> Self {
        Self(Sha256::new().chain_update(tag.as_bytes()).chain_update([0]))
    }
    /// Bytes of a length that the tag fixes.
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }
    /// Bytes of any length: `len u32 ‖ bytes`.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        // A longer input would wrap its length and so collide with another one.
        assert!(bytes.len() <= u32::MAX as usize, "a hashed field is under 4 GiB");
        self.0.update((bytes.len() as u32).to_be_bytes());
        self.0.update(bytes);
        self
    }
    /// Four bytes, big-endian.
    pub fn u32(self, value: u32) -> Self {
        self.fixed(&value.to_be_bytes())
    }
    /// Eight bytes, big-endian.
    pub fn u64(self, value: u64) -> Self {
        self.fixed(&value.to_be_bytes())
    }
    /// Sixteen bytes, big-endian.
    pub fn u128(self, value: u128) -> Self {
        self.fixed(&value.to_be_bytes())
    }
    /// The digest.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Digest of a protobuf message: its ADR-027 bytes (fields ascending, defaults omitted, shortest varints, which is
/// what `prost` writes for a message without maps) behind the tag.
pub fn of_message<M: Message>(tag: &str, message: &M) -> Digest {
    Hasher::new(tag).fixed(&message.encode_to_vec()).finish()
}

/// What a key signs for a message: `tag ‖ 0x00 ‖ ADR-027 bytes`.
pub fn sign_bytes<M: Message>(tag: &str, message: &M) -> Vec<u8> {
    let mut out = Vec::with_capacity(tag.len() + 1 + message.encoded_len());
    out.extend_from_slice(tag.as_bytes());
    out.push(0);
    out.extend_from_slice(&message.encode_to_vec());
    out
}

/// Why bytes are not the canonical encoding of a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CanonicalError {
    /// Not protobuf of this type.
    #[error("not a {what}: {reason}")]
    Malformed {
        /// The message's name.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// Decodes, but encodes to other bytes (unknown fields, defaults written out, long varints, wrong order).
    #[error("a {0} in another than the canonical encoding (ADR-027)")]
    NotCanonical(&'static str),
}

/// Decodes and requires that encoding gives the same bytes, so that one object has one digest.
pub fn decode_canonical<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, CanonicalError> {
    let message = M::decode(bytes).map_err(|e| CanonicalError::Malformed { what, reason: e.to_string() })?;
    if message.encode_to_vec() != bytes {
        return Err(CanonicalError::NotCanonical(what));
    }
    Ok(message)
}
