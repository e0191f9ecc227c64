//! What crosses between services over HTTP: a gateway's call of a worker, the worker's stream, and the disclosure of a
//! sampled transcript to a seated judge. JSON, with bytes in hexadecimal; signed parts keep their protobuf digests.
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /polylink/v1/generate` | [`GenerateCall`] | server-sent events, each a [`GenerateEvent`] |
//! | `POST /polylink/v1/vouchers` | [`VoucherCall`] | [`VoucherAck`] once it is durable |
//! | `GET /polylink/v1/receipts/{session}/{index}?request=digest` | – | [`ReceiptStatus`] |
//! | `GET /polylink/v1/proof?session=&index=&receipt=digest` | – | [`ReceiptProof`] once the root is committed |
//! | `POST /polylink/v1/disclose` | [`DisclosureCall`] | [`Disclosure`] |
//! | `GET /polylink/v1/info` | – | [`WorkerInfo`] |

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, tag};
use crate::hex_bytes;
use crate::market_v1::{ModelProfile, SignedReceipt, SignedRequest, SignedVoucher, SumNode, SumPath, TokenPrices};
use crate::{Address, Amount};

/// A signed request with what its digests stand for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateCall {
    /// Signed by the session's spend key.
    pub request: SignedRequest,
    /// Salt of the prompt digest, 32 bytes.
    #[serde(with = "hex_bytes")]
    pub prompt_salt: Vec<u8>,
    /// The prompt's token ids.
    pub prompt_token_ids: Vec<u32>,
    /// Text of the grammar that the sampling parameters name by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar: Option<String>,
    /// The newest voucher, so that payment needs no call of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher: Option<VoucherCall>,
    /// Top log-probabilities wanted per completion token, at most 20. They do not change the answer.
    #[serde(default)]
    pub logprobs: u32,
    /// Of every prompt token but the first the log-probability and rank, and so many top ones at its place, at most 20;
    /// absent: of none. They are no part of the receipt or the transcript.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<u32>,
}

/// One server-sent event of the worker's stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GenerateEvent {
    /// Some completion tokens of one choice.
    Tokens {
        /// Which choice.
        choice: u32,
        /// Their ids, to be hashed by the caller.
        token_ids: Vec<u32>,
        /// The text that they complete; may lag behind the ids by an unfinished character or a possible stop text.
        text: String,
        /// Per token, when asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprobs>,
    },
    /// What the call asked of the next prompt tokens, from the second one on. Sent right behind the first completion token,
    /// so that whoever has it owes a receipt.
    Prompt {
        /// At least one.
        tokens: Vec<PromptLogprobs>,
    },
    /// One choice has ended.
    Finish {
        /// Which choice.
        choice: u32,
        /// `stop` or `length`.
        reason: String,
        /// The last of its text.
        text: String,
    },
    /// The end: what was served, signed.
    Receipt {
        /// Durable at the worker before this event is sent.
        receipt: Box<SignedReceipt>,
        /// Salt of the completion digest.
        #[serde(with = "hex_bytes")]
        completion_salt: Vec<u8>,
    },
    /// The answer failed; nothing is billed.
    Error {
        /// A short code, such as `peer_lost`.
        code: String,
        /// What happened and what to do.
        message: String,
    },
}

/// Log-probabilities of one completion token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token's own.
    pub logprob: f32,
    /// The most likely ones, best first.
    pub top: Vec<(u32, f32)>,
}

/// Log-probabilities at one prompt token's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromptLogprobs {
    /// The token's own.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    pub rank: u32,
    /// The most likely ones, best first.
    pub top: Vec<(u32, f32)>,
}

/// A voucher and the receipts that it pays beyond the one before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoucherCall {
    /// Signed by the session's spend key.
    pub voucher: SignedVoucher,
    /// Indexes of the receipts newly paid, ascending: the receipt chain goes on over them in this order.
    pub indexes: Vec<u64>,
}

/// What became of a request, asked by its payer, who alone knows the request's digest (of a random seed).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReceiptStatus {
    /// Still being answered.
    Running,
    /// Answered, or cut after its first token because its caller went away: its receipt, which is to be paid, and what
    /// the receipt's completion digest stands for.
    Served {
        /// As the worker signed it.
        receipt: Box<SignedReceipt>,
        /// Salt of the completion digest.
        #[serde(with = "hex_bytes")]
        completion_salt: Vec<u8>,
        /// Per choice, the completion.
        completions: Vec<Vec<u32>>,
    },
    /// Not answered, and never will be under this index: nothing is owed.
    Unserved,
}

/// Where a receipt lies in the worker's committed tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiptProof {
    /// From the leaf to the root.
    pub path: SumPath,
    /// As committed on chain for (worker, profile, epoch).
    pub root: SumNode,
}

/// Everything that a receipt's digests stand for: what `polylink verify` reads (`receipt.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRecord {
    /// As the spend key signed it.
    pub request: SignedRequest,
    /// As the worker signed it.
    pub receipt: SignedReceipt,
    /// Salt of the prompt digest.
    #[serde(with = "hex_bytes")]
    pub prompt_salt: Vec<u8>,
    /// The prompt.
    pub prompt_token_ids: Vec<u32>,
    /// Text of the grammar, where the request names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar: Option<String>,
    /// Salt of the completion digest.
    #[serde(with = "hex_bytes")]
    pub completion_salt: Vec<u8>,
    /// Per choice, the completion.
    pub completions: Vec<Vec<u32>>,
    /// From the leaf to the root, once the epoch's receipts are committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<SumPath>,
    /// The committed root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<SumNode>,
}

/// What a worker says of a voucher that it has stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VoucherAck {
    /// The session.
    pub session: u64,
    /// Paid so far.
    pub amount: Amount,
    /// Receipts paid so far.
    pub count: u64,
}

/// What a worker offers, as it says itself; the chain's record is what counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Operator's account.
    pub operator: String,
    /// Ed25519 key of its receipts.
    #[serde(with = "hex_bytes")]
    pub receipt_key: Vec<u8>,
    /// What it serves.
    pub profile: ModelProfile,
    /// What it asks.
    pub ask: TokenPrices,
    /// Prompt and completion together.
    pub context_length: u32,
    /// Requests running now.
    pub running: u64,
    /// Requests waiting now.
    pub waiting: u64,
    /// The most that run at once; 0: it does not say.
    #[serde(default)]
    pub slots: u64,
}

/// A seated judge asks for one sampled leaf.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisclosureCall {
    /// The judge's account.
    pub judge: String,
    /// The audited epoch.
    pub epoch: u64,
    /// The profile.
    #[serde(with = "hex_bytes")]
    pub profile_digest: Vec<u8>,
    /// The drawn amount in the pot's tree.
    pub point: Amount,
    /// By the judge's disclosure key over [`disclosure_digest`].
    #[serde(with = "hex_bytes")]
    pub signature: Vec<u8>,
}

/// What a judge's disclosure key signs.
pub fn disclosure_digest(
    chain_id: &str,
    worker: &Address,
    judge: &str,
    epoch: u64,
    profile: &[u8],
    point: Amount,
) -> Digest {
    Hasher::new(tag::DISCLOSURE)
        .bytes(chain_id.as_bytes())
        .fixed(&worker.0)
        .bytes(judge.as_bytes())
        .u64(epoch)
        .bytes(profile)
        .u128(point.0)
        .finish()
}

/// One transcript: everything that the receipt's digests stand for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disclosure {
    /// As the spend key signed it.
    pub request: SignedRequest,
    /// As the worker signed it.
    pub receipt: SignedReceipt,
    /// From the leaf to the committed root.
    pub path: SumPath,
    /// The committed root.
    pub root: SumNode,
    /// Salt of the prompt digest.
    #[serde(with = "hex_bytes")]
    pub prompt_salt: Vec<u8>,
    /// The prompt.
    pub prompt_token_ids: Vec<u32>,
    /// Text of the grammar, where the request names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar: Option<String>,
    /// Salt of the completion digest.
    #[serde(with = "hex_bytes")]
    pub completion_salt: Vec<u8>,
    /// Per choice, the completion.
    pub completions: Vec<Vec<u32>>,
    /// Per choice, 16 bytes per completion token (eight f16, little-endian).
    #[serde(with = "hex_bytes::list")]
    pub sketches: Vec<Vec<u8>>,
}
