//! The sampler's structures as the kernels have them (`kernels/cuda/sampler.cuh`), and where its memory lies.

use crate::backend::Limits;
use crate::cuda::driver::DevicePtr;
use crate::step::{Sampled, TOP_LOGPROBS_MAX, TokenLogprob};

/// Flags of a row, as in `sampler.cuh`.
pub(super) mod flag {
    pub const GIVEN: u32 = 1;
    pub const GREEDY: u32 = 2;
    pub const PENALTIES: u32 = 4;
    pub const BY_RANK: u32 = 8;
    pub const BY_WEIGHT: u32 = 16;
    pub const BY_SHARE: u32 = 32;
    pub const LOGPROBS: u32 = 64;
    pub const LAST: u32 = 128;
    pub const ADJUSTED: u32 = 256;
    pub const BIAS_REPEATS: u32 = 512;
    pub const DRAWN_APART: u32 = 1024;
    pub const CUT: u32 = BY_RANK | BY_WEIGHT | BY_SHARE;
}

/// Blocks that share a row in `sampler_scan`, at most.
pub(super) const PARTS_MAX: usize = 64;

/// Tokens of a run, and buckets of scores, as in `sampler.cuh`.
const RUN: usize = 128;
const BUCKETS: usize = 2048;

/// Bytes of the adjusted scores, and of the counts beside them: rows beyond are taken in further passes.
const SCORES_BYTES: usize = 128 << 20;

/// Logit biases and suppressed tokens per slot that a step has room for: what the server admits of one request, and more.
const BIASES: usize = 1024;
const SUPPRESSED: usize = 1024;

/// `SampleHeader`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub rows: u32,
    pub listed: [u32; 4],
    pub spare: [u32; 3],
}

/// `SampleRow`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub bias: DevicePtr,
    pub suppressed: DevicePtr,
    pub mask: DevicePtr,
    pub noise_key: u64,
    pub share: u64,
    pub logits_row: u32,
    pub scores_row: u32,
    pub slot: u32,
    pub position: u32,
    pub flags: u32,
    pub given: u32,
    pub top_count: u32,
    pub top_k: u32,
    pub bias_count: u32,
    pub suppressed_count: u32,
    pub history_length: u32,
    pub prompt_length: u32,
    pub append_at: u32,
    pub temperature: f32,
    pub min_p: f32,
    pub repetition: f32,
    pub presence: f32,
    pub frequency: f32,
    pub listed: [u32; 4],
}

/// Words of 8 bytes.
pub(super) const HEADER: usize = size_of::<Header>() / 8;
pub(super) const ROW: usize = size_of::<Row>() / 8;

/// `SamplePartial` and `SampleState`, of which the host only knows the size.
const PARTIAL_BYTES: usize = 16;
const STATE_BYTES: usize = 32;

/// `SampleResult`: what the device tells of a row.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleResult {
    token: ResultLogprob,
    rank: u32,
    top_count: u32,
    top: [ResultLogprob; TOP_LOGPROBS_MAX],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ResultLogprob {
    token: u32,
    logprob: f32,
}

impl SampleResult {
    pub fn sampled(&self) -> Sampled {
        let of = |one: ResultLogprob| TokenLogprob { token: one.token, logprob: one.logprob };
        let mut sampled =
            Sampled { token: of(self.token), rank: self.rank, top_count: self.top_count, ..Sampled::default() };
        let count = (self.top_count as usize).min(TOP_LOGPROBS_MAX);
        sampled.top.iter_mut().zip(&self.top[..count]).for_each(|(to, from)| *to = of(*from));
        sampled
    }
}

/// `SampleArgs`: the parameter of all of the sampler's kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampleArgs {
    header: DevicePtr,
    rows: DevicePtr,
    logits: DevicePtr,
    scores: DevicePtr,
    counts: DevicePtr,
    histories: DevicePtr,
    last_sample: DevicePtr,
    partials: DevicePtr,
    bounds: DevicePtr,
    maxima: DevicePtr,
    bucket_weights: DevicePtr,
    bucket_counts: DevicePtr,
    states: DevicePtr,
    results: DevicePtr,
    vocabulary: u32,
    logits_stride: u32,
    scores_stride: u32,
    positions: u32,
    parts: u32,
    pub first: u32,
    pub last: u32,
    spare: u32,
}

/// The sampler's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Adjust,
    Scan,
    Weigh,
    Cut,
    Draw,
    Logprobs,
    Finish,
}

impl Kernel {
    pub const ALL: [Self; 7] =
        [Self::Adjust, Self::Scan, Self::Weigh, Self::Cut, Self::Draw, Self::Logprobs, Self::Finish];

    /// Its file, its name, and the threads of a block.
    pub const fn entry(self) -> (&'static str, &'static str, u32) {
        match self {
            Self::Adjust => ("sampler", "sampler_adjust", 1024),
            Self::Scan => ("sampler", "sampler_scan", 256),
            Self::Weigh => ("sampler_cut", "sampler_weigh", 256),
            Self::Cut => ("sampler_cut", "sampler_cut", 512),
            Self::Draw => ("sampler", "sampler_draw", 256),
            Self::Logprobs => ("sampler_logprobs", "sampler_logprobs", 1024),
            Self::Finish => ("sampler", "sampler_finish", 1024),
        }
    }
}

/// One launch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub args: SampleArgs,
}

/// What the sampler works on: fixed when the backend is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SamplerShape {
    pub limits: Limits,
    pub vocabulary: usize,
    /// The logits of the forward step's wanted rows, `[wanted rows][logits_stride]` f32, 16-byte aligned.
    pub logits: DevicePtr,
    pub logits_stride: usize,
}

/// Where everything lies in the sampler's arena, in bytes; all of it is 0 at first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    shape: SamplerShape,
    /// Adjusted rows of one pass.
    pub adjusted_rows: usize,
    scores_stride: usize,
    /// Words of 8 bytes that a step may upload, to the arena's start.
    pub upload_words: usize,
    scores: usize,
    counts: usize,
    pub histories: usize,
    pub last_sample: usize,
    partials: usize,
    bounds: usize,
    maxima: usize,
    bucket_weights: usize,
    bucket_counts: usize,
    states: usize,
    pub results: usize,
    pub bytes: usize,
}

impl Layout {
    pub fn new(shape: SamplerShape) -> Self {
        Self::with_scores(shape, SCORES_BYTES)
    }

    /// With so many bytes of adjusted scores (at least one row's).
    pub fn with_scores(shape: SamplerShape, scores_bytes: usize) -> Self {
        let SamplerShape { limits: Limits { wanted_rows, slots, positions, .. }, vocabulary, .. } = shape;
        let scores_stride = vocabulary.next_multiple_of(4);
        let adjusted_rows = (scores_bytes / (4 * scores_stride)).clamp(1, wanted_rows.max(1));
        let lists = slots.max(1) * (4 * vocabulary.div_ceil(32) + 8 * BIASES + 4 * SUPPRESSED);
        let upload_words = HEADER + wanted_rows * ROW + lists.div_ceil(8) + 3;
        let mut bytes = 0;
        let mut place = |size: usize| {
            let at = bytes;
            bytes += size.next_multiple_of(256);
            at
        };
        place(8 * upload_words);
        let scores = place(4 * scores_stride * adjusted_rows);
        let counts = place(4 * scores_stride * adjusted_rows);
        let histories = place(4 * slots * positions);
        let last_sample = place(4 * slots);
        let partials = place(PARTIAL_BYTES * PARTS_MAX * wanted_rows);
        let bounds = place(4 * wanted_rows);
        let maxima = place(4 * vocabulary.div_ceil(RUN) * wanted_rows);
        let bucket_weights = place(8 * BUCKETS * wanted_rows);
        let bucket_counts = place(4 * BUCKETS * wanted_rows);
        let states = place(STATE_BYTES * wanted_rows);
        let results = place(size_of::<SampleResult>() * wanted_rows);
        Self {
            shape,
            adjusted_rows,
            scores_stride,
            upload_words,
            scores,
            counts,
            histories,
            last_sample,
            partials,
            bounds,
            maxima,
            bucket_weights,
            bucket_counts,
            states,
            results,
            bytes,
        }
    }

    /// What no step finds as another left it: everything but the slots, and what is 0 between steps.
    #[cfg(test)]
    pub fn unreliable(&self) -> [std::ops::Range<usize>; 5] {
        [
            0..self.scores,
            self.scores..self.counts,
            self.partials..self.bounds,
            self.maxima..self.bucket_weights,
            self.states..self.bytes,
        ]
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// Tokens of a slot's history, at most.
    pub fn positions(&self) -> usize {
        self.shape.limits.positions
    }

    /// The kernels' arguments, for an arena at `base`.
    pub fn args(&self, base: DevicePtr, parts: usize) -> SampleArgs {
        let at = |offset: usize| base + offset as u64;
        SampleArgs {
            header: base,
            rows: at(8 * HEADER),
            logits: self.shape.logits,
            scores: at(self.scores),
            counts: at(self.counts),
            histories: at(self.histories),
            last_sample: at(self.last_sample),
            partials: at(self.partials),
            bounds: at(self.bounds),
            maxima: at(self.maxima),
            bucket_weights: at(self.bucket_weights),
            bucket_counts: at(self.bucket_counts),
            states: at(self.states),
            results: at(self.results),
            vocabulary: self.shape.vocabulary as u32,
            logits_stride: self.shape.logits_stride as u32,
            scores_stride: self.scores_stride as u32,
            positions: self.shape.limits.positions as u32,
            parts: parts as u32,
            first: 0,
            last: u32::MAX,
            spare: 0,
        }
    }
}
