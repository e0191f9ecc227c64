//! What the engine is asked and what it answers: the types that HTTP handlers, the worker service and the judge see.
//!
//! A request is token ids in, token ids out. Texts (chat templates, stop strings, detokenising) are the caller's side:
//! see [`crate::engine::TextStream`], which turns a [`crate::engine::RequestStream`] into text.
//!
//! What always holds for an accepted request: its events are, where it asks for that, one [`Event::Prompt`] for each
//! prompt token but the first; per choice, zero or more [`Event::Token`] and one
//! [`Event::Finished`], and at the very end exactly one [`Event::Done`] or [`Event::Failed`]; after [`Event::Failed`]
//! nothing is billed. The tokens are a pure function of (model profile, prompt, sampling, seed, choice).

use polylink_kernels::{SKETCH_VALUES, SampleParams, TokenLogprob};
use polylink_protocol::market::SKETCH_BYTES;
use polylink_protocol::market_v1::{self, Sampling};
use polylink_protocol::noise::noise_key;

/// Most choices (`n`) of one request.
pub const CHOICES_MAX: u32 = 16;

/// What is to be generated. The sampling parameters' ranges are those of `protocol::market::check_request`.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Token ids of the whole prompt, as the chat template and the tokenizer gave them; at least one.
    pub prompt_ids: Vec<u32>,
    /// Everything that changes which tokens come out; `max_tokens` 0: none, the prompt is computed. `stop` (texts) is not
    /// looked at here: [`TextStream`] does it.
    ///
    /// [`TextStream`]: crate::engine::TextStream
    pub sampling: Sampling,
    /// Seed of the noise: choice `c` draws with `noise_key(seed, c)`.
    pub seed: [u8; 32],
    /// Who asks: salt of the prefix cache (nobody sees, not even by timing, what others have cached) and the unit of
    /// fair sharing. Any 32 bytes, such as a digest of the payer's address.
    pub tenant: [u8; 32],
    /// Larger goes first, and is preempted last; −100 to 100, usually 0.
    pub priority: i32,
    /// Per completion token its logprob and those of so many likeliest ones, 0 to 20; `None`: none (then told as 0).
    pub logprobs: Option<u32>,
    /// Logprobs of every prompt token but the first, and of so many likeliest tokens at its place, 0 to 20; `None`: of none.
    /// Such a prompt is computed whole, whatever the prefix cache has of it, and in pieces of a few rows.
    pub prompt_logprobs: Option<u32>,
    /// Text of the grammar that every choice is held to ([`crate::engine::grammar`]); `sampling` has its digest.
    pub grammar: Option<String>,
}

/// Something that happened to a request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A prompt token's logprob, in order, before the first [`Event::Token`].
    Prompt(PromptToken),
    /// A completion token.
    Token(TokenEvent),
    /// A choice has ended; no more tokens of it.
    Finished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// All choices have ended. The last event.
    Done {
        /// What was computed.
        usage: Usage,
    },
    /// The request failed; nothing of it may be billed. The last event.
    Failed {
        /// What kind of failure.
        code: FailureCode,
        /// What happened and what to do.
        message: String,
    },
}

/// What the model thinks of a prompt token after those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens by probability, from 1; ties by id.
    pub rank: u32,
    /// As many of the likeliest tokens as the request asked for, most likely first.
    pub top: Vec<TokenLogprob>,
}

/// A completion token. An end token that finishes a choice is given too, as its last one: it is hashed and billed, and
/// has no text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Which choice, `0..n`.
    pub choice: u32,
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the raw logits (before penalties, bias and temperature).
    pub logprob: f32,
    /// As many of the likeliest tokens as the request asked for, most likely first.
    pub top: Vec<TokenLogprob>,
    /// The activation sketch of the hidden state that it was drawn from: eight f16, little-endian.
    pub sketch: [u8; SKETCH_BYTES],
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop token, or (seen by `TextStream`) a stop text.
    Stop,
    /// `max_tokens`, or the model's context is full.
    Length,
    /// The caller cancelled it.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

impl From<FinishReason> for market_v1::FinishReason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => market_v1::FinishReason::Stop,
            FinishReason::Length => market_v1::FinishReason::Length,
            FinishReason::Cancelled => market_v1::FinishReason::Cancelled,
        }
    }
}

/// Kinds of failure of an accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// A device of a split was lost (`peer_lost`).
    PeerLost,
    /// The engine failed in a step (`engine_failed`).
    EngineFailed,
    /// The engine was shut down without draining (`engine_stopped`).
    EngineStopped,
}

impl FailureCode {
    /// As it stands in error objects.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureCode::PeerLost => "peer_lost",
            FailureCode::EngineFailed => "engine_failed",
            FailureCode::EngineStopped => "engine_stopped",
        }
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, once for all choices, cached ones included.
    pub prompt_tokens: u64,
    /// Prompt tokens of the first choice whose keys and values were found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of all choices that were given out as events.
    pub completion_tokens: u64,
}

/// Why a request was not accepted. Nothing was computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// HTTP 400.
    #[error("the prompt is empty: at least one token is expected")]
    EmptyPrompt,
    /// HTTP 400: the prompt alone fills the model's context.
    #[error(
        "the prompt has {prompt_tokens} tokens, the model's context is {context_length}: leave room for at least one token of answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Prompt and completion together.
        context_length: usize,
    },
    /// HTTP 400: prompt and longest answer can never be held in the KV cache together.
    #[error(
        "prompt ({prompt_tokens} tokens) and max_tokens ({max_tokens}) need {needed_blocks} KV blocks of {block_tokens} tokens, this engine has {kv_blocks}: shorten one of them"
    )]
    NeverFits {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// As asked for, or cut to the context.
        max_tokens: usize,
        /// Blocks needed by one choice.
        needed_blocks: usize,
        /// Positions per block.
        block_tokens: usize,
        /// Blocks there are.
        kv_blocks: usize,
    },
    /// HTTP 400: a parameter is out of its domain.
    #[error("{field}: {reason}")]
    Parameter {
        /// The field's name in [`Sampling`] or [`GenerateRequest`].
        field: &'static str,
        /// What is expected.
        reason: String,
    },
    /// HTTP 429: come back later.
    #[error("{waiting} requests are waiting already, the limit is {limit}: try again later")]
    QueueFull {
        /// Choices that wait.
        waiting: usize,
        /// The limit.
        limit: usize,
    },
    /// HTTP 429: the engine is nearly full, and this tenant has its part of it.
    #[error(
        "{held} answers of yours run or wait, your part is {part} while {tenants} clients share an engine that is nearly full: try again later"
    )]
    ShareFull {
        /// Choices of the tenant that run or wait.
        held: usize,
        /// How many it may have.
        part: usize,
        /// Tenants of which anything runs or waits, this one included.
        tenants: usize,
    },
    /// HTTP 503: the engine is shutting down.
    #[error("the engine is draining and takes no new requests: use another worker")]
    Draining,
    /// HTTP 503: the engine cannot compute now.
    #[error("the engine is unavailable: {reason}")]
    Unavailable {
        /// Why, and what is being done.
        reason: String,
    },
}

impl AdmissionError {
    /// The HTTP status that says the same.
    pub fn http_status(&self) -> u16 {
        match self {
            AdmissionError::EmptyPrompt
            | AdmissionError::PromptTooLong { .. }
            | AdmissionError::NeverFits { .. }
            | AdmissionError::Parameter { .. } => 400,
            AdmissionError::QueueFull { .. } | AdmissionError::ShareFull { .. } => 429,
            AdmissionError::Draining | AdmissionError::Unavailable { .. } => 503,
        }
    }
}

/// The sampling parameters of one choice as the backend wants them.
pub fn sample_params(sampling: &Sampling, seed: &[u8; 32], choice: u32) -> SampleParams {
    SampleParams {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        noise_key: noise_key(seed, choice),
    }
}

/// Tokens that end a choice: the model's end tokens (unless `ignore_eos`) and the request's stop tokens; ascending.
/// Before `min_tokens` completion tokens exactly these may not be drawn. A grammar ends by the model's end tokens in any
/// case: where it is complete nothing else may be drawn, not even before `min_tokens`.
pub fn end_tokens(sampling: &Sampling, model_end_tokens: &[u32]) -> Vec<u32> {
    let model = if sampling.ignore_eos && sampling.grammar_digest.is_empty() { &[] } else { model_end_tokens };
    let mut tokens: Vec<u32> = model.iter().chain(&sampling.stop_token_ids).copied().collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// A sketch's bytes: eight f16, little-endian, as the receipt's digest takes them.
pub fn sketch_bytes(sketch: &[u16; SKETCH_VALUES]) -> [u8; SKETCH_BYTES] {
    let mut bytes = [0; SKETCH_BYTES];
    for (bytes, value) in bytes.chunks_exact_mut(2).zip(sketch) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}
