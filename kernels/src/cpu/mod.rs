//! The CPU backend: packed weights, vectorised loops for several instruction sets, own threads.
//!
//! It gives the bits of [`crate::reference`] on every instruction set and any number of threads. An operation is cut into
//! tiles that [`pool::Pool`] hands to its workers; small operations stay on the engine's thread. After `reserve` nothing
//! is allocated.
#![allow(unsafe_code)] // tiles write disjoint parts of shared outputs; functions compiled for an instruction set

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod draw;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod kquants;
pub(crate) mod lanes;
pub(crate) mod packed;
pub(crate) mod pool;
mod prepare;
mod tiles;
pub(crate) mod vector_math;

use std::num::NonZeroUsize;

use polylink_protocol::noise::NoiseKey;

use self::attention::Queries;
use self::cache::{BLOCK_TOKENS, part_number, part_words};
use self::gemm::{Activations, Product, TOGETHER};
use self::isa::InstructionSet;
use self::packed::{Packed, PackedValues, Takes};
use self::pool::{Pool, SharedSlice};
use self::tiles::Laid;
use crate::backend::{BackendError, KRanges, KvSpec, PairOrder, Part, WeightForm};
use crate::executor::Executor;
use crate::operations::{Batch, Operations, Poisoned, Reserve, RopeTable, SketchRow};
use crate::program::{Activation, AttentionSpec};
use crate::quantise::BLOCK;
use crate::sampler::{self, SampleContext, SampleJob, SampleScratch};
use crate::step::{SKETCH_VALUES, Sampled};
use crate::weights::{MatrixShape, PlainMatrix};

/// How a [`CpuBackend`] runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the engine's included; `None`: one per available core.
    pub threads: Option<NonZeroUsize>,
    /// Forces an instruction set; `None`: the best one there is.
    pub instructions: Option<InstructionSet>,
}

/// The fast CPU backend.
pub type CpuBackend = Executor<CpuOperations>;

impl CpuBackend {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if an instruction set is forced that this machine lacks.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        Ok(Executor::over(CpuOperations::new(options)?))
    }
}

/// Packed, vectorised, threaded operations.
pub struct CpuOperations {
    set: InstructionSet,
    pool: Pool,
    activations: Activations,
}

/// Rows per tile of a product; a run of rows reuses the weights from cache.
const TILE_ROWS: usize = 96;

/// Rows up to which the weights are read once, in long stretches: tiles are then as wide as the workers' number allows.
const FEW_ROWS: usize = TILE_ROWS;

/// Tiles per worker of a product of few rows: enough that no worker waits long for the last one.
const FEW_ROWS_TILES: usize = 12;

/// Activations that are kept in the second-level cache while the weights pass by: half of a small one.
const CACHED_BYTES: usize = 512 << 10;

/// Rows of a sequence that read its keys and values together.
const RUN_ROWS: usize = 8;

/// Values below which an operation between products is not worth waking the helpers.
const SMALL: usize = 8192;

impl CpuOperations {
    pub(crate) fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let set = options.instructions.unwrap_or_else(InstructionSet::detect);
        if !set.available() {
            return Err(BackendError::Unavailable(format!("this machine has no {set} instructions")));
        }
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        Ok(Self { set, pool: Pool::new(threads), activations: Activations::default() })
    }

    /// Converts the rows of a product to what the matrix takes.
    pub(crate) fn convert(&mut self, matrix: &Packed, input: &[f32]) -> Result<(), Poisoned> {
        let (set, inputs) = (self.set, matrix.shape.inputs);
        let (rows, blocks, bytes) = (input.len() / inputs, inputs / BLOCK, inputs / 4 * set.quad_bytes());
        let mut activations = std::mem::take(&mut self.activations);
        let Activations { pairs, quads, scales, sums, halves, .. } = &mut activations;
        let (pairs, quads) = (SharedSlice::new(pairs), SharedSlice::new(quads));
        let (scales, sums, halves) = (SharedSlice::new(scales), SharedSlice::new(sums), SharedSlice::new(halves));
        let row = |row: usize| &input[row * inputs..][..inputs];
        // SAFETY (both): each item has its own row; the machine has `set`.
        let done = match matrix.takes() {
            Takes::Floats => Ok(()),
            Takes::Pairs => self.each(rows, input.len(), &|r| unsafe {
                elementwise::round(set, row(r), pairs.part(r * inputs, inputs));
            }),
            Takes::Integers => self.each(rows, input.len(), &|r| unsafe {
                let (scales, sums) = (scales.part(r * blocks, blocks), sums.part(r * blocks, blocks));
                let halves = halves.part(r * blocks, blocks);
                elementwise::quantise(set, row(r), quads.part(r * bytes, bytes), scales, sums, halves);
            }),
        };
        self.activations = activations;
        if done.is_ok() && tiles::used(set, matrix, rows) {
            return Laid::fill(&mut self.pool, &mut self.activations, matrix.takes(), rows, inputs);
        }
        done
    }

    /// Runs `job(item)` for every item, on all workers if the whole is large enough.
    fn each(&mut self, items: usize, values: usize, job: &(dyn Fn(usize) + Sync)) -> Result<(), Poisoned> {
        if values < SMALL {
            return self.pool.run(1, &|_, _| (0..items).for_each(job));
        }
        self.pool.run(items, &|item, _| job(item))
    }
}

/// One matrix's product, its activations converted already.
fn run(pool: &mut Pool, set: InstructionSet, product: &Product<'_>) -> Result<(), Poisoned> {
    let (matrix, inputs) = (product.matrix, product.matrix.shape.inputs);
    let rows = product.input.len() / inputs;
    let by_tiles = tiles::used(set, matrix, rows);
    let strips = matrix.strips();
    let wide = if rows <= FEW_ROWS {
        (strips / (pool.workers() * FEW_ROWS_TILES)).next_multiple_of(4).max(TOGETHER)
    } else {
        TOGETHER
    };
    let (columns, runs) = (strips.div_ceil(wide), rows.div_ceil(TILE_ROWS));
    let small = rows * inputs * matrix.shape.outputs < 4 * SMALL;
    // Runs of rows that stay in the second-level cache together while the weights pass by.
    let row_bytes = match matrix.takes() {
        Takes::Floats => inputs * size_of::<f32>(),
        Takes::Pairs => inputs * size_of::<u16>(),
        Takes::Integers => inputs / 4 * set.quad_bytes(),
    };
    let together = (CACHED_BYTES / (TILE_ROWS * row_bytes)).max(1);
    let tile = |index: usize, _: usize| {
        let first = index / (together * columns) * together;
        let (within, width) = (index % (together * columns), together.min(runs - first));
        let (column, run) = (within / width, first + within % width);
        let rows = (run * TILE_ROWS, rows.min((run + 1) * TILE_ROWS));
        let strips = (column * wide, strips.min((column + 1) * wide));
        // SAFETY: each tile has its own rows and strips; the machine has `set`.
        unsafe {
            match &matrix.values {
                _ if by_tiles => tiles::tile(set, product, rows, strips),
                PackedValues::Bf16Pairs(weights, PairOrder::Amx) => {
                    tiles::steps::tile(set, product, weights, rows, strips);
                }
                PackedValues::K(quants) => kquants::tile(set, product, quants, rows, strips),
                _ => gemm::tile(set, product, rows, strips),
            }
        }
    };
    if small {
        return pool.run(1, &|_, worker| (0..columns * runs).for_each(|index| tile(index, worker)));
    }
    pool.run(columns * runs, &tile)
}

impl Operations for CpuOperations {
    type Matrix = Packed;

    fn name(&self) -> &str {
        self.set.backend_name()
    }

    fn pack(&mut self, matrix: PlainMatrix) -> Packed {
        Packed::new(matrix)
    }

    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<Packed, BackendError> {
        prepare::prepare(&mut self.pool, parts, ranges, form)
    }

    fn shape(&self, matrix: &Packed) -> MatrixShape {
        matrix.shape
    }

    fn converts(&self, matrix: &Packed) -> bool {
        matrix.takes() != Takes::Floats
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn block_floats(&self, kv: &KvSpec) -> usize {
        2 * kv.layers * kv.heads * part_words(kv)
    }

    fn reserve(&mut self, reserve: Reserve) {
        self.activations = Activations::reserve(reserve.limits.rows * reserve.converted_inputs);
        if self.set.has_tiles() {
            self.activations.laid = Laid::reserve(reserve.limits.rows, reserve.converted_inputs);
        }
    }

    fn workers(&self) -> usize {
        self.pool.workers()
    }

    fn embed(&mut self, table: &Packed, tokens: &[u32], scale: f32, output: &mut [f32]) -> Result<(), Poisoned> {
        let (width, values) = (table.shape.inputs, output.len());
        let output = SharedSlice::new(output);
        self.each(tokens.len(), values, &|row| {
            // SAFETY: each item has its own row.
            let output = unsafe { output.part(row * width, width) };
            table.row(tokens[row] as usize, output);
            if scale != 1.0 {
                output.iter_mut().for_each(|value| *value *= scale);
            }
        })
    }

    fn rms_norm(
        &mut self,
        input: &[f32],
        weight: &[f32],
        eps: f32,
        residual: bool,
        output: &mut [f32],
    ) -> Result<(), Poisoned> {
        let (set, width) = (self.set, weight.len());
        let output = SharedSlice::new(output);
        self.each(input.len() / width, input.len(), &|row| {
            // SAFETY: each item has its own row; the machine has `set`.
            unsafe {
                let output = output.part(row * width, width);
                elementwise::rms_norm(set, &input[row * width..][..width], weight, eps, residual, output);
            }
        })
    }

    fn head_norm(
        &mut self,
        spec: &AttentionSpec,
        [query, key]: [&[f32]; 2],
        eps: f32,
        qkv: &mut [f32],
    ) -> Result<(), Poisoned> {
        let (set, dim, values) = (self.set, spec.head_dim, qkv.len());
        let width = (spec.query_heads + 2 * spec.kv_heads) * dim;
        let qkv = SharedSlice::new(qkv);
        self.each(values / width, values, &|row| {
            // SAFETY: each item has its own row; the machine has `set`.
            unsafe {
                let (queries, keys) = qkv
                    .part(row * width, (spec.query_heads + spec.kv_heads) * dim)
                    .split_at_mut(spec.query_heads * dim);
                elementwise::head_norm(set, queries, query, eps);
                elementwise::head_norm(set, keys, key, eps);
            }
        })
    }

    fn gemm(
        &mut self,
        matrix: &Packed,
        input: &[f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned> {
        self.convert(matrix, input)?;
        let (output, width) = (SharedSlice::new(output), matrix.shape.outputs);
        let mut first = 0;
        for matrix in matrix.sections() {
            let bias = bias.map(|bias| &bias[first..]);
            let (activations, output) = (&self.activations, &output);
            let product = Product { matrix, input, activations, output, width, first, bias, residual };
            run(&mut self.pool, self.set, &product)?;
            first += matrix.shape.outputs;
        }
        Ok(())
    }

    fn rope_append(
        &mut self,
        spec: &AttentionSpec,
        rope: &RopeTable,
        batch: &Batch<'_>,
        kv: &KvSpec,
        layer: usize,
        cache: &mut [f32],
        qkv: &mut [f32],
    ) -> Result<(), Poisoned> {
        // On one thread: two rows of a wrong step may name the same cache line, and the work is small.
        let (dim, pairs) = (spec.head_dim, rope.pairs);
        let width = (spec.query_heads + 2 * spec.kv_heads) * dim;
        for (row, qkv) in qkv.chunks_exact_mut(width).enumerate() {
            let position = batch.positions[row] as usize;
            let (sine, cosine) = rope.at(batch, row);
            for head in qkv.chunks_exact_mut(dim).take(spec.query_heads + spec.kv_heads) {
                let (low, high) = head[..2 * pairs].split_at_mut(pairs);
                for i in 0..pairs {
                    let (x, y) = (low[i], high[i]);
                    low[i] = x * cosine[i] - y * sine[i];
                    high[i] = y * cosine[i] + x * sine[i];
                }
            }
            let (block, token) = (batch.blocks(row)[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            let (_, appended) = qkv.split_at(spec.query_heads * dim);
            let (keys, values) = appended.split_at(spec.kv_heads * dim);
            let words = part_words(kv);
            for (part, vectors) in [keys, values].into_iter().enumerate() {
                for (head, vector) in vectors.chunks_exact(dim).enumerate() {
                    let at = part_number(kv, block, layer, part, head) * words;
                    cache::keep(kv, part, token, vector, &mut cache[at..at + words]);
                }
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        batch: &Batch<'_>,
        kv: &KvSpec,
        layer: usize,
        cache: &[f32],
        qkv: &[f32],
        output: &mut [f32],
    ) -> Result<(), Poisoned> {
        let (set, dim, group) = (self.set, spec.head_dim, spec.query_heads / spec.kv_heads);
        let (width, out_width) = ((spec.query_heads + 2 * spec.kv_heads) * dim, spec.query_heads * dim);
        let seen: usize = batch.positions.iter().map(|&position| position as usize + 1).sum();
        let rows = batch.positions.len();
        // Few rows are handed out one by one, so that all workers have some.
        let run = if rows >= RUN_ROWS * 4 * self.pool.workers() { RUN_ROWS } else { 1 };
        let runs = rows.div_ceil(run);
        let output = SharedSlice::new(output);
        // Head by head: rows that see the same blocks find a head's keys and values in the second-level cache.
        self.each(runs * spec.kv_heads, seen * dim * spec.query_heads, &|item| {
            let (mut row, kv_head) = (item % runs * run, item / runs);
            let end = rows.min(row + run);
            while row < end {
                let same = |other: &usize| batch.sequence_of[*other] == batch.sequence_of[row];
                let count = (row..end).take_while(same).count();
                let queries = Queries {
                    cache,
                    kv,
                    layer,
                    kv_head,
                    blocks: batch.blocks(row),
                    window: spec.window,
                    scale: spec.scale,
                    soft_cap: spec.soft_cap,
                    position: batch.positions[row] as usize,
                    rows: count,
                    group,
                    qkv: &qkv[row * width..][..count * width],
                    stride: width,
                    first: kv_head * group * dim,
                };
                let offset = row * out_width + kv_head * group * dim;
                // SAFETY: each item has its own rows and heads; the machine has `set`.
                unsafe { attention::attend(set, &queries, &output, offset, out_width) };
                row += count;
            }
        })
    }

    fn gated_mul(
        &mut self,
        activation: Activation,
        input: &[f32],
        output: &mut [f32],
        width: usize,
    ) -> Result<(), Poisoned> {
        let (set, values) = (self.set, 8 * output.len());
        let output = SharedSlice::new(output);
        self.each(input.len() / (2 * width), values, &|row| {
            let (gate, up) = input[row * 2 * width..][..2 * width].split_at(width);
            // SAFETY: each item has its own row; the machine has `set`.
            unsafe {
                let output = output.part(row * width, width);
                match activation {
                    Activation::Silu => elementwise::silu_mul(set, gate, up, output),
                    Activation::GeluTanh => elementwise::gelu_mul(set, gate, up, output),
                }
            }
        })
    }

    fn soft_cap(&mut self, values: &mut [f32], cap: f32) -> Result<(), Poisoned> {
        let (set, count) = (self.set, values.len());
        let values = SharedSlice::new(values);
        self.each(count.div_ceil(SMALL), 8 * count, &|item| {
            let start = item * SMALL;
            // SAFETY: each item has its own stretch; the machine has `set`.
            unsafe { elementwise::soft_caps(set, values.part(start, SMALL.min(count - start)), cap) };
        })
    }

    fn sketch(
        &mut self,
        input: &[f32],
        width: usize,
        rows: &[SketchRow],
        output: &mut [[u16; SKETCH_VALUES]],
    ) -> Result<(), Poisoned> {
        let set = self.set;
        let output = SharedSlice::new(output);
        self.each(rows.len(), 8 * input.len(), &|row| {
            // SAFETY: each item has its own row; the machine has `set`.
            unsafe {
                elementwise::sketch(set, &input[row * width..][..width], &rows[row], &mut output.part(row, 1)[0])
            };
        })
    }

    fn sample(
        &mut self,
        jobs: &[SampleJob],
        logits: &[f32],
        context: &SampleContext<'_>,
        scratch: &mut [SampleScratch],
        output: &mut [Sampled],
    ) -> Result<(), Poisoned> {
        let set = self.set;
        let (scratch, output) = (SharedSlice::new(scratch), SharedSlice::new(output));
        self.pool.run(jobs.len(), &|item, worker| {
            // SAFETY: each worker has its own scratch, each item its own output.
            let (scratch, output) = unsafe { (&mut scratch.part(worker, 1)[0], &mut output.part(item, 1)[0]) };
            sampler::run(&jobs[item], logits, context, scratch, &set, output);
        })
    }
}

impl sampler::Math for InstructionSet {
    // SAFETY (all): operations are made only of sets that the machine has.
    fn log_sum_exp(&self, logits: &[f32]) -> (f32, f32) {
        let mut result = (0.0, 0.0);
        unsafe { elementwise::log_sum_exp(*self, logits, &mut result) };
        result
    }

    fn draw(&self, scores: &[f32], likeliest: u32, key: NoiseKey, position: u32) -> (u32, f32) {
        let mut drawn = (likeliest, 0.0);
        unsafe { draw::draw(*self, scores, likeliest, key, position, &mut drawn) };
        drawn
    }

    fn weigh(&self, scores: &[f32], max: f32, weights: &mut [f32]) -> u64 {
        let mut total = 0;
        unsafe { draw::weigh(*self, scores, max, weights, &mut total) };
        total
    }
}

#[cfg(test)]
mod tests;
