//! The operations that a CPU implementation provides; [`crate::executor`] walks a program and calls them.
//!
//! Two implementations: [`crate::reference`] (plain loops, the definition) and [`crate::cpu`] (packed, vectorised,
//! threaded). Shapes are checked by the caller; slices have exactly the stated lengths.

use polylink_protocol::exact_math::{f32_to_bf16, rope_turn};
use polylink_protocol::noise::NoiseKey;

use crate::backend::{BackendError, KRanges, KvSpec, Limits, Part, WeightForm};
use crate::program::{Activation, AttentionSpec, RopeGrowth, RopeSpec};
use crate::sampler::{SampleJob, SampleScratch};
use crate::step::{SKETCH_VALUES, Sampled, SequenceRows};
use crate::weights::{self, MatrixShape, PlainMatrix};

/// A worker thread panicked within an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poisoned;

/// The rows of a forward step, checked against the limits.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub sequences: &'a [SequenceRows],
    pub block_tables: &'a [u32],
    /// Per row: index of its sequence.
    pub sequence_of: &'a [u32],
    /// Per row: position within its sequence.
    pub positions: &'a [u32],
}

impl<'a> Batch<'a> {
    /// Block table of a row's sequence.
    #[inline(always)]
    pub fn blocks(&self, row: usize) -> &'a [u32] {
        let span = self.sequences[self.sequence_of[row] as usize].blocks;
        &self.block_tables[span.start as usize..][..span.length as usize]
    }
}

/// Sizes an implementation needs to reserve its scratch memory at build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reserve {
    pub limits: Limits,
    /// Largest number of inputs of a matrix that converts them; 0 if there is none.
    pub converted_inputs: usize,
}

/// Sines and cosines, `[positions][pairs]` each; a head's pair i is its values `i` and `i + pairs`.
pub(crate) struct RopeTable {
    pub pairs: usize,
    pub sine: Vec<f32>,
    pub cosine: Vec<f32>,
    /// The same for long sequences, where they differ.
    pub long: Option<(Vec<f32>, Vec<f32>)>,
}

impl RopeTable {
    /// The table of positions `0..positions`.
    pub fn new(spec: &RopeSpec, positions: usize) -> Self {
        let pairs = spec.frequencies.len();
        let turns = |fixed: &[f32], growth: Option<RopeGrowth>| {
            let (mut sine, mut cosine) = (Vec::with_capacity(positions * pairs), Vec::with_capacity(positions * pairs));
            for position in 0..positions {
                let grown = growth.filter(|growth| position >= growth.trained);
                let grown = grown.map(|growth| growth.frequencies(position, pairs));
                for &frequency in grown.as_deref().unwrap_or(fixed) {
                    let turn = rope_turn(position as u32, frequency);
                    sine.push(turn.0 * spec.scale);
                    cosine.push(turn.1 * spec.scale);
                }
            }
            (sine, cosine)
        };
        let (sine, cosine) = turns(&spec.frequencies, spec.growth);
        Self { pairs, sine, cosine, long: spec.long.as_ref().map(|long| turns(long, None)) }
    }

    /// Sines and cosines of a row.
    #[inline(always)]
    pub fn at(&self, batch: &Batch<'_>, row: usize) -> (&[f32], &[f32]) {
        let start = batch.positions[row] as usize * self.pairs;
        let (sine, cosine) = match &self.long {
            Some((sine, cosine)) if batch.sequences[batch.sequence_of[row] as usize].long => (sine, cosine),
            _ => (&self.sine, &self.cosine),
        };
        (&sine[start..][..self.pairs], &cosine[start..][..self.pairs])
    }
}

/// One wanted row's sketch: its sequence's key and the position of the token to be sampled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SketchRow {
    pub noise_key: NoiseKey,
    pub position: u32,
}

pub(crate) trait Operations: Send {
    /// A packed matrix.
    type Matrix: Send;

    fn name(&self) -> &str;
    fn pack(&mut self, matrix: PlainMatrix) -> Self::Matrix;
    /// Packs a weight of its parts; as [`crate::Backend::prepare`].
    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<Self::Matrix, BackendError> {
        Ok(self.pack(weights::matrix(parts, ranges, form)?))
    }
    fn shape(&self, matrix: &Self::Matrix) -> MatrixShape;
    /// Whether its products convert the activations first (to integers, or to bf16).
    fn converts(&self, matrix: &Self::Matrix) -> bool;
    /// Positions per KV block.
    fn block_tokens(&self) -> usize;
    fn reserve(&mut self, reserve: Reserve);

    /// Words (of 4 bytes) of a KV block; the block's inner layout is the implementation's own.
    fn block_floats(&self, kv: &KvSpec) -> usize;

    /// `output: [tokens][inputs]`.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], scale: f32, output: &mut [f32]) -> Result<(), Poisoned>;

    /// `input, output: [rows][weight.len()]`; `residual` means what the output holds before.
    fn rms_norm(
        &mut self,
        input: &[f32],
        weight: &[f32],
        eps: f32,
        residual: bool,
        output: &mut [f32],
    ) -> Result<(), Poisoned>;

    /// `qkv: [rows][(query_heads + 2 kv_heads) × head_dim]`, `weights`: of queries and of keys, `[head_dim]` each.
    fn head_norm(
        &mut self,
        spec: &AttentionSpec,
        weights: [&[f32]; 2],
        eps: f32,
        qkv: &mut [f32],
    ) -> Result<(), Poisoned>;

    /// `input: [rows][inputs]`, `output: [rows][planes × outputs]`; then `output = residual + (sum + bias)` where
    /// `residual` means what the output holds before.
    fn gemm(
        &mut self,
        matrix: &Self::Matrix,
        input: &[f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned>;

    /// `qkv: [rows][(query_heads + 2 kv_heads) × head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn rope_append(
        &mut self,
        spec: &AttentionSpec,
        rope: &RopeTable,
        batch: &Batch<'_>,
        kv: &KvSpec,
        layer: usize,
        cache: &mut [f32],
        qkv: &mut [f32],
    ) -> Result<(), Poisoned>;

    /// `output: [rows][query_heads × head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        batch: &Batch<'_>,
        kv: &KvSpec,
        layer: usize,
        cache: &[f32],
        qkv: &[f32],
        output: &mut [f32],
    ) -> Result<(), Poisoned>;

    /// `input: [rows][2 width]`, `output: [rows][width]`.
    fn gated_mul(
        &mut self,
        activation: Activation,
        input: &[f32],
        output: &mut [f32],
        width: usize,
    ) -> Result<(), Poisoned>;

    /// [`Operations::gated_mul`] of `input`, then [`Operations::gemm`] of that; `between: [rows][inputs]` has space for
    /// it, and nobody reads afterwards what is there.
    #[allow(clippy::too_many_arguments)]
    fn gated_gemm(
        &mut self,
        activation: Activation,
        matrix: &Self::Matrix,
        input: &[f32],
        between: &mut [f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned> {
        let width = self.shape(matrix).inputs;
        self.gated_mul(activation, input, between, width)?;
        self.gemm(matrix, between, output, bias, residual)
    }

    /// `cap × tanh(value ÷ cap)` of every value, in place.
    fn soft_cap(&mut self, values: &mut [f32], cap: f32) -> Result<(), Poisoned>;

    /// `input: [rows.len()][width]`.
    fn sketch(
        &mut self,
        input: &[f32],
        width: usize,
        rows: &[SketchRow],
        output: &mut [[u16; SKETCH_VALUES]],
    ) -> Result<(), Poisoned>;

    /// Draws one token per job. `scratch` has at least one entry per worker.
    fn sample(
        &mut self,
        jobs: &[SampleJob],
        logits: &[f32],
        context: &crate::sampler::SampleContext<'_>,
        scratch: &mut [SampleScratch],
        output: &mut [Sampled],
    ) -> Result<(), Poisoned>;

    /// Worker threads, the engine's included.
    fn workers(&self) -> usize;
}

/// `residual + (sum + bias)`, in place over what `output` holds before (the residual), for rows of `width`.
#[inline(always)]
pub(crate) fn finish(sum: f32, bias: Option<f32>, residual: Option<f32>) -> f32 {
    let sum = match bias {
        Some(bias) => sum + bias,
        None => sum,
    };
    match residual {
        Some(residual) => residual + sum,
        None => sum,
    }
}

/// What bf16 products (`vdpbf16ps`) make of a value: denormals are 0, of their sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// 2³²: brings denormal products of two values and their sums far from the denormals.
pub(crate) const UP: f32 = 4_294_967_296.0;

/// What bf16 products make of a fused multiply-add: a result is flushed if it is denormal **as rounded to 24 bits**, so
/// also what lies so near the least normal number that IEEE rounding makes that number of it (Intel SDM, volume 1,
/// "Numeric Underflow Exception": tiny is judged after rounding). No argument is denormal.
#[inline(always)]
pub(crate) fn fma_flushed(a: f32, b: f32, c: f32) -> f32 {
    let result = a.mul_add(b, c);
    if result == 0.0 || result.abs() > f32::MIN_POSITIVE {
        return result;
    }
    // The same sum times 2⁶⁴, where nothing is denormal.
    let scaled = (a * UP).mul_add(b * UP, c * (UP * UP));
    if scaled.abs() < f32::MIN_POSITIVE * (UP * UP) { f32::from_bits(result.to_bits() & 0x8000_0000) } else { result }
}

/// A value as a bf16 product takes it: rounded to nearest even, denormals flushed.
#[inline(always)]
pub(crate) fn to_bf16_flushed(x: f32) -> u16 {
    let bits = f32_to_bf16(x);
    if bits & 0x7f80 == 0 { bits & 0x8000 } else { bits }
}
