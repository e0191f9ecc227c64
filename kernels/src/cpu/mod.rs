//! The CPU backend: packed weights, vectorised loops for several instruction sets, own threads.
//!
//! It gives the bits of [`crate::reference`] on every instruction set and any number of threads. An operation is cut into
//! tiles that [`pool::Pool`] hands to its workers; small operations stay on the engine's thread. After `reserve` nothing
//! is allocated.
#![allow(unsafe_code)] // tiles write disjoint parts of shared outputs; functions compiled for an instruction set

mod append;
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
mod products;
mod register_blocks;
mod softmax;
pub(crate) mod tiles;
pub(crate) mod vector_math;

use std::num::NonZeroUsize;

use polylink_protocol::noise::NoiseKey;

use self::append::{Append, CHUNK};
use self::attention::Queries;
use self::cache::{BLOCK_TOKENS, part_words};
use self::gemm::Activations;
use self::isa::InstructionSet;
use self::packed::{Packed, Takes};
use self::pool::{Pool, SharedSlice};
use self::tiles::Laid;
use crate::backend::{BackendError, KRanges, KvSpec, Part, WeightForm};
use crate::executor::Executor;
use crate::operations::{Batch, Operations, Poisoned, Reserve, RopeTable, SketchRow};
use crate::program::{Activation, AttentionSpec};
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
    /// One per worker.
    scratch: Vec<attention::Scratch>,
}

/// Tiles per worker of an operation over rows.
const ROW_TILES: usize = 4;

/// Rows of a sequence that read its keys and values together.
const RUN_ROWS: usize = 8;

/// Values below which an operation between products is not worth waking the helpers.
const SMALL: usize = 32_768;

impl CpuOperations {
    pub(crate) fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let set = options.instructions.unwrap_or_else(InstructionSet::detect);
        if !set.available() {
            return Err(BackendError::Unavailable(format!("this machine has no {set} instructions")));
        }
        let threads =
            options.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        Ok(Self::over(set, Pool::new(threads)))
    }

    /// The machine must have `set`.
    fn over(set: InstructionSet, pool: Pool) -> Self {
        let scratch = (0..pool.workers()).map(|_| attention::Scratch::new()).collect();
        Self { set, pool, activations: Activations::default(), scratch }
    }

    /// Runs `job(item)` for every item, on all workers if the whole is large enough.
    fn each(&mut self, items: usize, values: usize, job: &(dyn Fn(usize) + Sync)) -> Result<(), Poisoned> {
        self.each_on(items, values, &|item, _| job(item))
    }

    /// As [`Self::each`]; `job(item, worker)`.
    fn each_on(&mut self, items: usize, values: usize, job: &(dyn Fn(usize, usize) + Sync)) -> Result<(), Poisoned> {
        let tiles = if values < SMALL { 1 } else { items.min(ROW_TILES * self.pool.workers()) };
        self.pool.run(tiles, &|tile, worker| {
            (items * tile / tiles..items * (tile + 1) / tiles).for_each(|item| job(item, worker));
        })
    }
}

/// One row of a gated product.
///
/// # Safety
/// The machine has `set`.
unsafe fn gate(set: InstructionSet, activation: Activation, input: &[f32], output: &mut [f32]) {
    let (gate, up) = input.split_at(output.len());
    // SAFETY: as the caller's.
    unsafe {
        match activation {
            Activation::Silu => elementwise::silu_mul(set, gate, up, output),
            Activation::GeluTanh => elementwise::gelu_mul(set, gate, up, output),
        }
    }
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
        self.multiply(matrix, input, output, bias, residual)
    }

    fn gated_gemm(
        &mut self,
        activation: Activation,
        matrix: &Packed,
        input: &[f32],
        between: &mut [f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned> {
        let (set, width, workers) = (self.set, matrix.shape.inputs, self.pool.workers());
        if matrix.sections().iter().any(|matrix| matrix.takes() == Takes::Floats) {
            self.gated_mul(activation, input, between, width)?;
            return self.gemm(matrix, between, output, bias, residual);
        }
        // A row is converted as soon as it is there: each worker has space for one, which stays in its cache.
        let rows = between.len() / width;
        let space = SharedSlice::new(between);
        self.convert_rows(matrix, rows, 8 * rows * width, &|row, worker| {
            let place = if workers < rows { worker } else { row };
            // SAFETY: each worker, or each row, has its own; the machine has `set`.
            unsafe {
                let gated = space.part(place * width, width);
                gate(set, activation, &input[row * 2 * width..][..2 * width], gated);
                gated
            }
        })?;
        self.multiply(matrix, between, output, bias, residual)
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
        let (set, rows, values, heads) = (self.set, batch.positions.len(), qkv.len(), spec.kv_heads);
        let (qkv, cache) = (SharedSlice::new(qkv), SharedSlice::new(cache));
        let append = Append { spec, rope, batch, kv, layer, cache, qkv };
        // By heads, not by rows, for the cache's sake. Each worker has adjacent ones.
        let workers = self.pool.workers();
        if heads >= workers {
            return self.each(workers, values, &|worker| {
                let heads = heads * worker / workers..heads * (worker + 1) / workers;
                for first in (0..rows).step_by(CHUNK) {
                    let rows = first..rows.min(first + CHUNK);
                    // SAFETY: each item has its own heads; the machine has `set`.
                    unsafe {
                        append::turn(set, &append, rows.clone(), heads.clone());
                        append::store(set, &append, rows, heads.clone(), 0..2);
                    }
                }
            });
        }
        // SAFETY (both): each item has its own row, then its own head of keys or values; the machine has `set`.
        self.each(rows, values, &|row| unsafe { append::turn(set, &append, row..row + 1, 0..heads) })?;
        self.each(2 * heads, values, &|item| unsafe {
            let (part, head) = (item / heads, item % heads);
            append::store(set, &append, 0..rows, head..head + 1, part..part + 1);
        })
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
        let items = runs * spec.kv_heads;
        let (output, scratch) = (SharedSlice::new(output), SharedSlice::new(&mut self.scratch));
        // Head by head: rows that see the same blocks find a head's keys and values in the second-level cache.
        let item = |item: usize, next: Option<usize>, worker: usize| {
            // SAFETY: each worker has its own.
            let scratch = unsafe { &mut scratch.part(worker, 1)[0] };
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
                    next: next.map(|next| {
                        let row = next % runs * run;
                        let from =
                            spec.window.map_or(0, |window| (batch.positions[row] as usize + 1).saturating_sub(window));
                        (&batch.blocks(row)[from / BLOCK_TOKENS..], next / runs)
                    }),
                };
                let offset = row * out_width + kv_head * group * dim;
                // SAFETY: each item has its own rows and heads; the machine has `set`.
                unsafe { attention::attend(set, &queries, scratch, &output, (offset, out_width)) };
                row += count;
            }
        };
        if seen * dim * spec.query_heads < SMALL {
            return self.pool.run(1, &|_, worker| (0..items).for_each(|index| item(index, None, worker)));
        }
        // Several in a row, so that a worker can ask in time for what it reads next.
        let row = (items / (8 * self.pool.workers())).clamp(1, 8);
        self.pool.run(items.div_ceil(row), &|tile, worker| {
            let end = items.min((tile + 1) * row);
            (tile * row..end).for_each(|index| item(index, (index + 1 < end).then_some(index + 1), worker));
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
            // SAFETY: each item has its own row; the machine has `set`.
            unsafe { gate(set, activation, &input[row * 2 * width..][..2 * width], output.part(row * width, width)) };
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
