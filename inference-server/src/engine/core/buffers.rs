//! The lists of a step, reused, and how much room they need.

use polylink_kernels::{SampleParams, SampleRow, SequenceRows, SlotStart, Span, TokenInput};

use crate::engine::grammar::GrammarState;
use crate::engine::handle::Job;

/// Lists of a step, reused.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) sequences: Vec<SequenceRows>,
    pub(super) tokens: Vec<TokenInput>,
    pub(super) block_tables: Vec<u32>,
    pub(super) starts: Vec<SlotStart>,
    pub(super) histories: Vec<u32>,
    pub(super) rows: Vec<SampleRow>,
    pub(super) logit_bias: Vec<(u32, f32)>,
    pub(super) suppressed: Vec<u32>,
    pub(super) masks: Vec<u32>,
}

/// What choices can put into the lists of one step; grows at admission only.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reserved {
    pub(super) histories: usize,
    pub(super) logit_bias: usize,
    pub(super) suppressed: usize,
    pub(super) masks: usize,
}

impl Reserved {
    /// The largest of any choice, known ones and those of `job`.
    pub(super) fn with(self, job: &Job) -> Self {
        let penalties = job.params.first().is_some_and(|params| params.has_penalties());
        Self {
            histories: self.histories.max(if penalties { job.tokens_max } else { 0 }),
            logit_bias: self.logit_bias.max(job.logit_bias.len()),
            suppressed: self.suppressed.max(job.end_tokens.len()),
            masks: job.grammars.iter().map(GrammarState::words).fold(self.masks, usize::max),
        }
    }
}

impl Buffers {
    pub(super) fn clear_sample(&mut self) {
        self.starts.clear();
        self.histories.clear();
        self.rows.clear();
        self.logit_bias.clear();
        self.suppressed.clear();
        self.masks.clear();
    }
}

/// Appends values to one of the lists, and says where they are.
pub(super) fn append<T: Copy>(list: &mut Vec<T>, values: &[T]) -> Span {
    let start = list.len() as u32;
    list.extend_from_slice(values);
    Span { start, length: values.len() as u32 }
}

/// A row that tells a known token's logprob.
pub(super) fn given(row: usize, slot: u32, token: u32, logprobs: Option<u32>) -> SampleRow {
    let (none, params) = (Span::default(), SampleParams::greedy());
    SampleRow {
        row: row as u32,
        slot,
        params,
        logit_bias: none,
        suppressed: none,
        mask: none,
        logprobs,
        given: Some(token),
    }
}
