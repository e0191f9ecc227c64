//! The definition: every operation as plain loops over plain values, one thread, nothing packed.
//!
//! It is slow and obvious on purpose. The rules it follows are numbered as in `docs/numerics.md`; every other
//! implementation must give the same bits. Fused multiply-adds are `f32::mul_add` (on machines without the instruction
//! the C library computes it, correctly rounded).

use polylink_protocol::exact_math::{
    bf16_to_f32, e4m3_to_f32, exp, f32_to_bf16, f32_to_f16_saturating, gelu_tanh, silu, soft_cap,
};

use crate::backend::{KvDtype, KvSpec, PairOrder};
use crate::blocks::{KBlock, KKind};
use crate::operations::{
    Batch, Operations, Poisoned, Reserve, RopeTable, SketchRow, finish, flush, fma_flushed, to_bf16_flushed,
};
use crate::program::{Activation, AttentionSpec};
use crate::quantise::{self, BLOCK};
use crate::sampler::{self, SampleContext, SampleJob, SampleScratch, fold_lanes};
use crate::step::{SKETCH_VALUES, Sampled};
use crate::weights::{FP8_BLOCK, MatrixShape, PlainMatrix, PlainValues, fp8_blocks};

/// Absolute positions per attention tile (rule 5).
pub(crate) const ATTENTION_TILE: usize = 256;

/// Positions per KV block here; another one than the packed implementation's, so that tests see that it does not matter.
const BLOCK_TOKENS: usize = 8;

/// Plain loops.
#[derive(Debug, Default)]
pub struct ReferenceOperations(());

impl PlainMatrix {
    /// Element (n, k) as f32 (quantised values expanded).
    fn value(&self, n: usize, k: usize) -> f32 {
        let index = n * self.shape.inputs + k;
        match &self.values {
            PlainValues::F32(values) => values[index],
            PlainValues::Bf16(values) | PlainValues::Bf16Pairs(values, _) => bf16_to_f32(values[index]),
            PlainValues::Int8 { quants, scales, .. } => quants[index] as f32 * scales[index / BLOCK],
            PlainValues::K { kind, blocks, .. } => blocks[index / BLOCK].value(*kind, index % BLOCK),
            PlainValues::Fp8 { numbers, scales, first } => {
                let blocks = fp8_blocks(*first, self.shape.inputs);
                e4m3_to_f32(numbers[index]) * scales[n * blocks + (first + k) / FP8_BLOCK]
            }
            PlainValues::Stack(_) => {
                let (section, n) = self.section(n);
                section.value(n, k)
            }
        }
    }

    /// The matrix of a stack that has output n, and its number there.
    fn section(&self, mut n: usize) -> (&PlainMatrix, usize) {
        if let PlainValues::Stack(sections) = &self.values {
            for section in sections {
                if n < section.shape.outputs {
                    return (section, n);
                }
                n -= section.shape.outputs;
            }
        }
        (self, n)
    }

    /// Whether it takes the activations as integers.
    fn takes_integers(&self) -> bool {
        match &self.values {
            PlainValues::Int8 { .. } | PlainValues::K { .. } => true,
            PlainValues::Stack(sections) => sections.iter().any(PlainMatrix::takes_integers),
            _ => false,
        }
    }

    /// Rule 2: one chain per range, k ascending from 0.
    fn range_sum_f32(&self, n: usize, x: &[f32], range: (usize, usize)) -> f32 {
        (range.0..range.1).fold(0.0, |sum, k| x[k].mul_add(self.value(n, k), sum))
    }
}

/// bf16 pairs: as `vdpbf16ps` sums them, the odd element of a pair first, denormal sums flushed.
fn range_sum_bf16(weights: &[u16], x: &[f32], range: (usize, usize)) -> f32 {
    let product = |sum: f32, k: usize| fma_flushed(bf16_to_f32(to_bf16_flushed(x[k])), bf16_to_f32(weights[k]), sum);
    (range.0..range.1).step_by(2).fold(0.0, |sum, k| product(product(sum, k + 1), k))
}

/// bf16 pairs as `tdpbf16ps` sums them: per step of 32 inputs even and odd elements apart, then both, then onto the sum;
/// denormal sums flushed.
fn range_sum_amx_bf16(weights: &[u16], x: &[f32], range: (usize, usize)) -> f32 {
    let product = |sum: f32, k: usize| fma_flushed(bf16_to_f32(to_bf16_flushed(x[k])), bf16_to_f32(weights[k]), sum);
    (range.0..range.1).step_by(BLOCK).fold(0.0, |sum, step| {
        let of = |first: usize| (first..step + BLOCK).step_by(2).fold(0.0, product);
        flush(sum + flush(of(step) + of(step + 1)))
    })
}

/// Rule 3: integer dots per block, folded into one chain per range.
fn range_sum_int8(
    quants: &[i8],
    scales: &[f32],
    activations: &[i8],
    activation_scales: &[f32],
    range: (usize, usize),
) -> f32 {
    (range.0 / BLOCK..range.1 / BLOCK).fold(0.0, |sum, block| {
        let dot: i32 = (block * BLOCK..(block + 1) * BLOCK).map(|k| activations[k] as i32 * quants[k] as i32).sum();
        (dot as f32).mul_add(activation_scales[block] * scales[block], sum)
    })
}

/// Rule 3, superblocks: a fused multiply-add for the scales' part, then, where there are minima, one for theirs.
fn range_sum_k(
    kind: KKind,
    blocks: &[KBlock],
    activations: &[i8],
    activation_scales: &[f32],
    range: (usize, usize),
) -> f32 {
    (range.0 / BLOCK..range.1 / BLOCK).fold(0.0, |sum, number| {
        let (block, s) = (&blocks[number], activation_scales[number]);
        let a = activations[number * BLOCK..][..BLOCK].iter().map(|&a| i32::from(a));
        let q = block.quants.iter().map(|&q| i32::from(q) - kind.offset());
        if kind == KKind::Q6 {
            let scaled = a.zip(q).enumerate().map(|(i, (a, q))| i32::from(block.scales[i / (BLOCK / 2)]) * (a * q));
            return (scaled.sum::<i32>() as f32).mul_add(s * block.d, sum);
        }
        let integers: i32 = a.clone().sum();
        let dot: i32 = a.zip(q).map(|(a, q)| a * q).sum();
        let sum = (dot as f32).mul_add(s * (block.d * f32::from(block.scales[0])), sum);
        (s * integers as f32).mul_add(-(block.dmin * f32::from(block.min)), sum)
    })
}

/// Rule 4: `1 ÷ √(mean square + eps)` of a row.
fn norm_scale(row: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; 64];
    for (i, &x) in row.iter().enumerate() {
        lanes[i % 64] = x.mul_add(x, lanes[i % 64]);
    }
    let mean = fold_lanes(&mut lanes) / row.len() as f32;
    1.0 / (mean + eps).sqrt()
}

/// Where a key or value lies: `[block][layer][key, value][head][token][scale, then dim]`. The scale of f32 is 1; integers
/// are kept as f32.
fn cache_index(kv: &KvSpec, blocks: &[u32], layer: usize, part: usize, head: usize, position: usize) -> usize {
    let (block, token) = (blocks[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS);
    ((((block * kv.layers + layer) * 2 + part) * kv.heads + head) * BLOCK_TOKENS + token) * (1 + kv.head_dim)
}

/// A key or value as the cache keeps it: its scale, then its numbers.
fn kept(values: &[f32], dtype: KvDtype, to: &mut [f32]) {
    let (scale, numbers) = to.split_at_mut(1);
    match dtype {
        KvDtype::F32 => {
            scale[0] = 1.0;
            numbers.copy_from_slice(values);
        }
        KvDtype::Bf16 => {
            scale[0] = 1.0;
            numbers.iter_mut().zip(values).for_each(|(number, &value)| *number = bf16_to_f32(f32_to_bf16(value)));
        }
        KvDtype::Int8 => {
            let mut quants = vec![0i8; values.len()];
            scale[0] = quantise::vector(values, &mut quants);
            numbers.iter_mut().zip(quants).for_each(|(number, quant)| *number = quant as f32);
        }
        KvDtype::Fp8 => {
            let mut bytes = vec![0u8; values.len()];
            scale[0] = quantise::vector_e4m3(values, &mut bytes);
            numbers.iter_mut().zip(bytes).for_each(|(number, byte)| *number = e4m3_to_f32(byte));
        }
    }
}

impl Operations for ReferenceOperations {
    type Matrix = PlainMatrix;

    fn name(&self) -> &str {
        "reference"
    }

    fn pack(&mut self, matrix: PlainMatrix) -> PlainMatrix {
        matrix
    }

    fn shape(&self, matrix: &PlainMatrix) -> MatrixShape {
        matrix.shape
    }

    fn converts(&self, matrix: &PlainMatrix) -> bool {
        matrix.takes_integers() || matches!(matrix.values, PlainValues::Bf16Pairs(..))
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn block_floats(&self, kv: &KvSpec) -> usize {
        2 * kv.layers * kv.heads * BLOCK_TOKENS * (1 + kv.head_dim)
    }

    fn reserve(&mut self, _: Reserve) {}

    fn workers(&self) -> usize {
        1
    }

    fn embed(&mut self, table: &PlainMatrix, tokens: &[u32], scale: f32, output: &mut [f32]) -> Result<(), Poisoned> {
        for (row, &token) in output.chunks_exact_mut(table.shape.inputs).zip(tokens) {
            row.iter_mut().enumerate().for_each(|(k, value)| *value = table.value(token as usize, k) * scale);
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        input: &[f32],
        weight: &[f32],
        eps: f32,
        residual: bool,
        output: &mut [f32],
    ) -> Result<(), Poisoned> {
        let width = weight.len();
        for (input, output) in input.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
            let scale = norm_scale(input, eps);
            for i in 0..width {
                output[i] = finish((input[i] * scale) * weight[i], None, residual.then_some(output[i]));
            }
        }
        Ok(())
    }

    fn head_norm(
        &mut self,
        spec: &AttentionSpec,
        [query, key]: [&[f32]; 2],
        eps: f32,
        qkv: &mut [f32],
    ) -> Result<(), Poisoned> {
        for row in qkv.chunks_exact_mut((spec.query_heads + 2 * spec.kv_heads) * spec.head_dim) {
            for (index, head) in row.chunks_exact_mut(spec.head_dim).take(spec.query_heads + spec.kv_heads).enumerate()
            {
                let (weight, scale) = (if index < spec.query_heads { query } else { key }, norm_scale(head, eps));
                head.iter_mut().zip(weight).for_each(|(x, weight)| *x = (*x * scale) * weight);
            }
        }
        Ok(())
    }

    fn gemm(
        &mut self,
        matrix: &PlainMatrix,
        input: &[f32],
        output: &mut [f32],
        bias: Option<&[f32]>,
        residual: bool,
    ) -> Result<(), Poisoned> {
        let MatrixShape { outputs, inputs, planes, .. } = matrix.shape;
        let (mut quants, mut scales) = (vec![0i8; inputs], vec![0f32; inputs / BLOCK]);
        for (x, out) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(planes * outputs)) {
            if matrix.takes_integers() {
                let blocks = x.as_chunks::<BLOCK>().0.iter().zip(quants.as_chunks_mut::<BLOCK>().0);
                for ((values, quants), scale) in blocks.zip(&mut scales) {
                    *scale = quantise::activations(values, quants);
                }
            }
            for n in 0..outputs {
                let mut total = 0.0;
                let (section, within) = matrix.section(n);
                for (index, range) in matrix.shape.ranges().enumerate() {
                    let sum = match &section.values {
                        PlainValues::Int8 { quants: w, scales: s, .. } => range_sum_int8(
                            &w[within * inputs..][..inputs],
                            &s[within * (inputs / BLOCK)..][..inputs / BLOCK],
                            &quants,
                            &scales,
                            range,
                        ),
                        PlainValues::K { kind, blocks, .. } => {
                            let own = &blocks[within * (inputs / BLOCK)..][..inputs / BLOCK];
                            range_sum_k(*kind, own, &quants, &scales, range)
                        }
                        PlainValues::Bf16Pairs(w, order) => {
                            let w = &w[within * inputs..][..inputs];
                            match order {
                                PairOrder::Vdp => range_sum_bf16(w, x, range),
                                PairOrder::Amx => range_sum_amx_bf16(w, x, range),
                            }
                        }
                        _ => section.range_sum_f32(within, x, range),
                    };
                    if planes > 1 {
                        out[index * outputs + n] = sum;
                    }
                    total = if index == 0 { sum } else { total + sum };
                }
                if planes == 1 {
                    out[n] = finish(total, bias.map(|bias| bias[n]), residual.then_some(out[n]));
                }
            }
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
        let (dim, pairs) = (spec.head_dim, rope.pairs);
        let width = (spec.query_heads + 2 * spec.kv_heads) * dim;
        for (row, qkv) in qkv.chunks_exact_mut(width).enumerate() {
            let position = batch.positions[row] as usize;
            for head in qkv.chunks_exact_mut(dim).take(spec.query_heads + spec.kv_heads) {
                let (sine, cosine) = rope.at(batch, row);
                for i in 0..pairs {
                    let (low, high) = (head[i], head[i + pairs]);
                    head[i] = low * cosine[i] - high * sine[i];
                    head[i + pairs] = high * cosine[i] + low * sine[i];
                }
            }
            for part in 0..2 {
                for head in 0..spec.kv_heads {
                    let from = (spec.query_heads + part * spec.kv_heads + head) * dim;
                    let to = cache_index(kv, batch.blocks(row), layer, part, head, position);
                    kept(&qkv[from..from + dim], kv.dtype, &mut cache[to..to + 1 + dim]);
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
        let dim = spec.head_dim;
        let width = (spec.query_heads + 2 * spec.kv_heads) * dim;
        for (row, output) in output.chunks_exact_mut(spec.query_heads * dim).enumerate() {
            let end = batch.positions[row] as usize + 1;
            let first = spec.window.map_or(0, |window| end.saturating_sub(window));
            let blocks = batch.blocks(row);
            for (head, output) in output.chunks_exact_mut(dim).enumerate() {
                let query = &qkv[row * width + head * dim..][..dim];
                let kv_head = head / (spec.query_heads / spec.kv_heads);
                let at = |part, position| {
                    let kept = &cache[cache_index(kv, blocks, layer, part, kv_head, position)..][..1 + dim];
                    (kept[0], &kept[1..])
                };
                let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
                for tile in (0..end).step_by(ATTENTION_TILE) {
                    let (from, to) = (tile.max(first), end.min(tile + ATTENTION_TILE));
                    if from >= to {
                        continue;
                    }
                    let score = |position| {
                        let (scale, key): (f32, &[f32]) = at(0, position);
                        let sum = (0..dim).fold(0f32, |sum, d| query[d].mul_add(key[d], sum));
                        let score = sum * scale * spec.scale;
                        spec.soft_cap.map_or(score, |cap| soft_cap(score, cap))
                    };
                    let scores: Vec<f32> = (from..to).map(score).collect();
                    let tile_max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let mut lanes = [0f32; 64];
                    let mut values = vec![0f32; dim];
                    for (position, score) in (from..to).zip(scores) {
                        let p = exp(score - tile_max);
                        lanes[position % 64] += p;
                        let (scale, value) = at(1, position);
                        let weight = p * scale;
                        (0..dim).for_each(|d| values[d] = weight.mul_add(value[d], values[d]));
                    }
                    let tile_sum = fold_lanes(&mut lanes);
                    if max == f32::NEG_INFINITY {
                        (max, sum) = (tile_max, tile_sum);
                        output.copy_from_slice(&values);
                        continue;
                    }
                    let new_max = max.max(tile_max);
                    let (a, b) = (exp(max - new_max), exp(tile_max - new_max));
                    sum = sum.mul_add(a, tile_sum * b);
                    (0..dim).for_each(|d| output[d] = output[d].mul_add(a, values[d] * b));
                    max = new_max;
                }
                output.iter_mut().for_each(|value| *value /= sum);
            }
        }
        Ok(())
    }

    fn gated_mul(
        &mut self,
        activation: Activation,
        input: &[f32],
        output: &mut [f32],
        width: usize,
    ) -> Result<(), Poisoned> {
        let gated = match activation {
            Activation::Silu => silu,
            Activation::GeluTanh => gelu_tanh,
        };
        for (input, output) in input.chunks_exact(2 * width).zip(output.chunks_exact_mut(width)) {
            for i in 0..width {
                output[i] = gated(input[i]) * input[width + i];
            }
        }
        Ok(())
    }

    fn soft_cap(&mut self, values: &mut [f32], cap: f32) -> Result<(), Poisoned> {
        values.iter_mut().for_each(|value| *value = soft_cap(*value, cap));
        Ok(())
    }

    fn sketch(
        &mut self,
        input: &[f32],
        width: usize,
        rows: &[SketchRow],
        output: &mut [[u16; SKETCH_VALUES]],
    ) -> Result<(), Poisoned> {
        for ((input, row), output) in input.chunks_exact(width).zip(rows).zip(output) {
            let key = row.noise_key.sketch_key();
            for (projection, output) in output.iter_mut().enumerate() {
                let mut lanes = [0f32; 64];
                for (i, &x) in input.iter().enumerate() {
                    let minus = key.signs(row.position, i as u32 / 16)[i % 16] >> projection & 1 == 1;
                    lanes[i % 64] += if minus { -x } else { x };
                }
                *output = f32_to_f16_saturating(fold_lanes(&mut lanes));
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        jobs: &[SampleJob],
        logits: &[f32],
        context: &SampleContext<'_>,
        scratch: &mut [SampleScratch],
        output: &mut [Sampled],
    ) -> Result<(), Poisoned> {
        for (job, output) in jobs.iter().zip(output) {
            sampler::run(job, logits, context, &mut scratch[0], &sampler::Plain, output);
        }
        Ok(())
    }
}
