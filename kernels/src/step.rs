//! What a backend is asked to do at once, and what it answers.
//!
//! A model step is two submissions: [`ForwardStep`], ragged rows of any mix of prefill chunks and decodes, and
//! [`SampleStep`], which draws tokens from the logits the forward left. Grammar masks can be computed in between.
//! All slices are borrowed from the engine's reused buffers: a step allocates nothing.

use polylink_protocol::noise::NoiseKey;

use crate::backend::Limits;

/// Most logprobs per sampled row.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// Smallest temperature above 0: logits divided by it stay far from overflow.
pub const TEMPERATURE_MIN: f32 = 1e-4;

/// Values of the activation sketch per token.
pub const SKETCH_VALUES: usize = 8;

/// An input token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenInput {
    /// Known to the engine.
    Id(u32),
    /// What was last sampled in this slot (the engine need not have seen it yet).
    LastSample(u32),
}

/// A stretch of one of the step's shared slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First element.
    pub start: u32,
    /// Number of elements.
    pub length: u32,
}

impl Span {
    /// `start..start + length` of a slice; `None` if it does not lie within.
    pub fn of<T>(self, slice: &[T]) -> Option<&[T]> {
        let start = self.start as usize;
        slice.get(start..start.checked_add(self.length as usize)?)
    }
}

/// One sequence's rows in a forward step: positions `first_position .. first_position + rows` of it.
///
/// KV of all earlier positions must have been written by earlier steps (or be shared blocks written for another
/// sequence with the same prefix). Rows of one sequence are adjacent; a sequence occurs once per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// The sequence's slot, `0..limits.slots`.
    pub slot: u32,
    /// Position of its first row.
    pub first_position: u32,
    /// Number of rows: 1 for a decode.
    pub rows: u32,
    /// Logits are wanted of the last `wanted` rows: 1 for a decode and for the last chunk of a prefill, 0 for the other
    /// chunks, more for a replay or for prompt logprobs.
    pub wanted: u32,
    /// Its block table within [`ForwardStep::block_tables`]: entry `i` is the block of positions
    /// `i × block_tokens ..`; covers at least the last row's position.
    pub blocks: Span,
    /// Key of the sequence's noise; the sketch's signs come from it.
    pub noise_key: NoiseKey,
    /// Keys and queries are turned by [`crate::RopeSpec::long`], where there is such a table. All rows of the sequence
    /// whose keys are read must have been turned alike.
    pub long: bool,
}

/// Runs the program over ragged rows.
#[derive(Clone, Copy, Debug)]
pub struct ForwardStep<'a> {
    /// In order of their rows.
    pub sequences: &'a [SequenceRows],
    /// One per row.
    pub tokens: &'a [TokenInput],
    /// Block tables of all sequences.
    pub block_tables: &'a [u32],
    /// Copy the wanted rows' logits into [`StepOutput::logits`] (replay, tests).
    pub logits_out: bool,
}

/// How tokens of a sequence are drawn. The order of operations is fixed: repetition, frequency and presence penalty,
/// logit bias, masks, temperature, top-k, top-p, min-p, then the largest of `logit + Gumbel noise`; ties to the lowest
/// id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// 0, or at least [`TEMPERATURE_MIN`]. 0: greedy (no noise; top-k, top-p, min-p are without effect).
    pub temperature: f32,
    /// Keep the k largest; 0: all.
    pub top_k: u32,
    /// Keep the smallest set of largest tokens that holds this share of the probability; ≥ 1: all.
    pub top_p: f32,
    /// Keep tokens at least this share as probable as the likeliest; 0: all.
    pub min_p: f32,
    /// Over prompt and completion: positive logits are divided, others multiplied by it; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens of the completion; 0: off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the completion; 0: off.
    pub frequency_penalty: f32,
    /// Key of the sequence's noise.
    pub noise_key: NoiseKey,
}

impl SampleParams {
    /// The likeliest token.
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            noise_key: NoiseKey(0),
        }
    }

    /// Whether any penalty is on, so that the slot's history is needed.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Gives a slot a new sequence: sets its history for the penalties. Needed before the first sample of a sequence with
/// penalties and after a preemption; allowed always. Samples are then added to the history by the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotStart {
    /// The slot.
    pub slot: u32,
    /// Prompt tokens, within [`SampleStep::histories`].
    pub prompt: Span,
    /// Completion tokens so far, within [`SampleStep::histories`].
    pub completion: Span,
}

/// One row to be sampled, or looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    /// Index among the wanted rows of the forward step before.
    pub row: u32,
    /// Slot whose last sample and history it becomes.
    pub slot: u32,
    /// How.
    pub params: SampleParams,
    /// Logit bias, within [`SampleStep::logit_bias`]; each token at most once.
    pub logit_bias: Span,
    /// Tokens that may not be drawn (end of sequence before the least number of tokens), within
    /// [`SampleStep::suppressed`].
    pub suppressed: Span,
    /// Grammar mask, within [`SampleStep::masks`]: `⌈vocabulary / 32⌉` words, bit `t % 32` of word `t / 32` set: token
    /// `t` is allowed. Length 0: everything is.
    pub mask: Span,
    /// Logprobs of the token and of so many likeliest ones, at most [`TOP_LOGPROBS_MAX`]; `None`: of none, which saves a
    /// pass over the row.
    pub logprobs: Option<u32>,
    /// The token that follows, where that is known (a prompt's): its logprob and rank are told, nothing is drawn, and the
    /// slot's last sample and history stay.
    pub given: Option<u32>,
}

/// Draws tokens from the logits of the forward step before (once or several times per row).
#[derive(Clone, Copy, Debug)]
pub struct SampleStep<'a> {
    /// Applied first, in order.
    pub starts: &'a [SlotStart],
    /// Tokens that `starts` points into.
    pub histories: &'a [u32],
    /// Rows, in the order of the output.
    pub rows: &'a [SampleRow],
    /// (token, added to its logit).
    pub logit_bias: &'a [(u32, f32)],
    /// Tokens.
    pub suppressed: &'a [u32],
    /// Mask words.
    pub masks: &'a [u32],
}

/// One submission.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Run the program.
    Forward(ForwardStep<'a>),
    /// Draw tokens.
    Sample(SampleStep<'a>),
}

/// A token and its logprob.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenLogprob {
    /// Token.
    pub token: u32,
    /// Natural logarithm of its probability under the raw logits (before penalties, bias and temperature).
    pub logprob: f32,
}

/// One drawn or given token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token and its logprob (0 if it was not asked for).
    pub token: TokenLogprob,
    /// Of a given token: its place among all by raw logits, from 1, ties by id. Of a drawn one: 0.
    pub rank: u32,
    /// The likeliest tokens, most likely first, ties by id; the first `top_count` entries are valid.
    pub top: [TokenLogprob; TOP_LOGPROBS_MAX],
    /// As asked for (at most the vocabulary).
    pub top_count: u32,
}

impl Default for Sampled {
    fn default() -> Self {
        let none = TokenLogprob::default();
        Self { token: none, rank: 0, top: [none; TOP_LOGPROBS_MAX], top_count: 0 }
    }
}

/// Where results go. Make one with [`StepOutput::with_limits`] and reuse it: filling it then allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// Of the last forward step: bits of 8 f16 per wanted row (empty if the program has no sketch).
    pub sketches: Vec<[u16; SKETCH_VALUES]>,
    /// Of the last forward step, if it asked for them: `[wanted rows][vocabulary]`, else empty.
    pub logits: Vec<f32>,
    /// Of the last sample step: one per row.
    pub samples: Vec<Sampled>,
}

impl StepOutput {
    /// Room for any step within the limits. `logits_out`: also for logits, which is the large part.
    pub fn with_limits(limits: &Limits, vocabulary: usize, logits_out: bool) -> Self {
        Self {
            sketches: Vec::with_capacity(limits.wanted_rows),
            logits: Vec::with_capacity(if logits_out { limits.wanted_rows * vocabulary } else { 0 }),
            samples: Vec::with_capacity(limits.wanted_rows),
        }
    }
}
