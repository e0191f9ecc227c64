//! The operations between the products: normalisation, gating, quantisation of activations, sketches.
//!
//! Compiled once per instruction set. Sums over a row use 64
//! lanes (numerics rule 4), so the order does not depend on the vector width.
#![allow(unsafe_code)]
// functions compiled for an instruction set
// Iterators over arrays, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use polylink_protocol::exact_math::{exp, f32_to_f16_saturating, gelu_tanh, ln, silu, soft_cap};

use super::draw;
use super::isa::multiversioned;
use super::lanes::{Lanes, WIDTH};
use super::vector_math;
use crate::operations::{SketchRow, to_bf16_flushed};
use crate::quantise::BLOCK;
use crate::sampler::fold_lanes;
use crate::step::SKETCH_VALUES;

/// `1 ÷ √(mean square + eps)` of a row (numerics rule 4).
#[inline(always)]
unsafe fn norm_scale<L: Lanes>(input: &[f32], eps: f32) -> f32 {
    let (from, whole) = (input.as_ptr(), input.len() / 64 * 64);
    // SAFETY: `whole` values lie there, 64 in the array; the machine has `L`.
    unsafe {
        let mut sums = [L::zero(); 4];
        let mut i = 0;
        while i < whole {
            for part in 0..4 {
                let x = L::load(from.add(i + part * WIDTH));
                sums[part] = L::fma(x, x, sums[part]);
            }
            i += 64;
        }
        let mut lanes = [0f32; 64];
        for part in 0..4 {
            L::store(lanes.as_mut_ptr().add(part * WIDTH), sums[part]);
        }
        for i in whole..input.len() {
            lanes[i % 64] = input[i].mul_add(input[i], lanes[i % 64]);
        }
        let mean = fold_lanes(&mut lanes) / input.len() as f32;
        1.0 / (mean + eps).sqrt()
    }
}

#[inline(always)]
unsafe fn rms_norm_body<L: Lanes>(input: &[f32], weight: &[f32], eps: f32, residual: bool, output: &mut [f32]) {
    let width = input.len();
    assert!(weight.len() == width && output.len() == width, "one row, its weights, its output");
    let (from, by, to) = (input.as_ptr(), weight.as_ptr(), output.as_mut_ptr());
    // SAFETY: all three hold `width` values; the machine has `L`.
    let scale = unsafe { norm_scale::<L>(input, eps) };
    let mut i = 0;
    while i < width / WIDTH * WIDTH {
        // SAFETY: as above.
        unsafe {
            let x = L::mul(L::mul(L::load(from.add(i)), L::splat(scale)), L::load(by.add(i)));
            L::store(to.add(i), if residual { L::add(L::load(to.add(i)), x) } else { x });
        }
        i += WIDTH;
    }
    while i < width {
        let x = (input[i] * scale) * weight[i];
        output[i] = if residual { output[i] + x } else { x };
        i += 1;
    }
}

multiversioned! {
    /// One row of `RmsNorm`, onto what the output holds if `residual`.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn rms_norm(
        input: &[f32],
        weight: &[f32],
        eps: f32,
        residual: bool,
        output: &mut [f32],
    ) = rms_norm_body
}

#[inline(always)]
unsafe fn head_norm_body<L: Lanes>(heads: &mut [f32], weight: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        // SAFETY: as the caller's.
        let scale = unsafe { norm_scale::<L>(head, eps) };
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = (*x * scale) * weight;
        }
    }
}

multiversioned! {
    /// `HeadNorm` of adjacent heads with the same weight.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn head_norm(heads: &mut [f32], weight: &[f32], eps: f32) = head_norm_body
}

/// Turns adjacent heads of one row (rotary embedding): value i of a head with value i + pairs.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
pub(crate) unsafe fn rope<L: Lanes>(heads: &mut [f32], dim: usize, sine: &[f32], cosine: &[f32]) {
    let pairs = sine.len();
    assert!(cosine.len() == pairs && 2 * pairs <= dim, "pairs lie within a head");
    for head in heads.chunks_exact_mut(dim) {
        let (low, high) = head[..2 * pairs].split_at_mut(pairs);
        let mut i = 0;
        while i < pairs / WIDTH * WIDTH {
            // SAFETY: all four hold `pairs` values; the machine has `L`.
            unsafe {
                let (sine, cosine) = (L::load(sine.as_ptr().add(i)), L::load(cosine.as_ptr().add(i)));
                let (x, y) = (L::load(low.as_ptr().add(i)), L::load(high.as_ptr().add(i)));
                L::store(low.as_mut_ptr().add(i), L::sub(L::mul(x, cosine), L::mul(y, sine)));
                L::store(high.as_mut_ptr().add(i), L::add(L::mul(y, cosine), L::mul(x, sine)));
            }
            i += WIDTH;
        }
        while i < pairs {
            let (x, y) = (low[i], high[i]);
            low[i] = x * cosine[i] - y * sine[i];
            high[i] = y * cosine[i] + x * sine[i];
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn silu_mul_body<L: Lanes>(gate: &[f32], up: &[f32], output: &mut [f32]) {
    let width = output.len();
    assert!(gate.len() == width && up.len() == width, "gate, up and output are of one width");
    let mut i = 0;
    while i < width / WIDTH * WIDTH {
        // SAFETY: all three hold `width` values; the machine has `L`.
        unsafe {
            let product = L::mul(vector_math::silu::<L>(L::load(gate.as_ptr().add(i))), L::load(up.as_ptr().add(i)));
            L::store(output.as_mut_ptr().add(i), product);
        }
        i += WIDTH;
    }
    while i < width {
        output[i] = silu(gate[i]) * up[i];
        i += 1;
    }
}

multiversioned! {
    /// A stretch of `GatedMul` with SiLU.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn silu_mul(gate: &[f32], up: &[f32], output: &mut [f32]) = silu_mul_body
}

#[inline(always)]
unsafe fn gelu_mul_body<L: Lanes>(gate: &[f32], up: &[f32], output: &mut [f32]) {
    for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
        *output = gelu_tanh(gate) * up;
    }
}

multiversioned! {
    /// A stretch of `GatedMul` with GELU.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn gelu_mul(gate: &[f32], up: &[f32], output: &mut [f32]) = gelu_mul_body
}

#[inline(always)]
unsafe fn soft_cap_body<L: Lanes>(values: &mut [f32], cap: f32) {
    for value in values {
        *value = soft_cap(*value, cap);
    }
}

multiversioned! {
    /// A stretch of `SoftCap`.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn soft_caps(values: &mut [f32], cap: f32) = soft_cap_body
}

#[inline(always)]
unsafe fn quantise_body<L: Lanes>(
    input: &[f32],
    quads: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
    halves: &mut [i32],
    offsets: [(&mut [i32], i32); 2],
) {
    let (blocks, bytes) = (input.len() / BLOCK, BLOCK / 4 * L::QUAD_BYTES);
    assert!(quads.len() == blocks * bytes && scales.len() == blocks, "one row's blocks");
    assert!(sums.len() == blocks && halves.len() == blocks, "one row's blocks");
    for block in 0..blocks {
        let from = input[block * BLOCK..][..BLOCK].as_ptr();
        let to = &mut quads[block * bytes..][..bytes];
        // SAFETY: a block holds 32 values, `to` their quads; the machine has `L`.
        unsafe {
            let (low, high) = (L::load(from), L::load(from.add(WIDTH)));
            let scale = L::largest(L::max(L::abs(low), L::abs(high))) / 127.0;
            if scale < f32::MIN_POSITIVE {
                (scales[block], sums[block], halves[block]) = (0.0, 0, 0);
                to.fill(0);
                continue;
            }
            let divisor = L::splat(scale);
            let low = vector_math::round::<L>(L::div(low, divisor));
            let high = vector_math::round::<L>(L::div(high, divisor));
            (scales[block], halves[block]) = (scale, L::sum_i32(low));
            sums[block] = halves[block] + L::sum_i32(high);
            if L::QUAD_BYTES == 4 {
                L::store_i8(to.as_mut_ptr(), low);
                L::store_i8(to.as_mut_ptr().add(WIDTH), high);
                continue;
            }
            let mut quants = [0i8; BLOCK];
            L::store_i8(quants.as_mut_ptr(), low);
            L::store_i8(quants.as_mut_ptr().add(WIDTH), high);
            for quad in 0..BLOCK / 4 {
                let four = [quants[4 * quad], quants[4 * quad + 1], quants[4 * quad + 2], quants[4 * quad + 3]];
                L::store_quad(to.as_mut_ptr().add(quad * L::QUAD_BYTES), four);
            }
        }
    }
    for (offsets, factor) in offsets {
        assert!(offsets.len() == blocks, "one row's blocks");
        for block in 0..blocks {
            offsets[block] = factor * sums[block];
        }
    }
}

multiversioned! {
    /// Quantises one row of activations in blocks of 32 (numerics rule 3): quads as the products read them, and per block
    /// a scale, the sum of the integers and that of the first half of them, and multiples of the sum.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn quantise(
        input: &[f32],
        quads: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
        halves: &mut [i32],
        offsets: [(&mut [i32], i32); 2],
    ) = quantise_body
}

#[inline(always)]
unsafe fn round_body<L: Lanes>(input: &[f32], output: &mut [u16]) {
    for (output, &x) in output.iter_mut().zip(input) {
        *output = to_bf16_flushed(x);
    }
}

multiversioned! {
    /// Rounds one row of activations to bf16, for products in pairs.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn round(input: &[f32], output: &mut [u16]) = round_body
}

/// Blocks of 16 values whose signs are made at once.
const SIGNED: usize = WIDTH;

#[inline(always)]
unsafe fn sketch_body<L: Lanes>(input: &[f32], row: &SketchRow, output: &mut [u16; SKETCH_VALUES]) {
    let key = row.noise_key.sketch_key();
    let mut lanes = [[0f32; 64]; SKETCH_VALUES];
    let (whole, rest) = input.as_chunks::<16>();
    for (run, blocks) in whole.chunks(SIGNED).enumerate() {
        let words = draw::philox(row.position, (run * SIGNED) as u32, key.bits());
        for (within, values) in blocks.iter().enumerate() {
            let mut signs = [0u32; 16];
            for i in 0..16 {
                signs[i] = words[i / 4][within] >> (8 * (i % 4));
            }
            let first = within % 4 * 16;
            for projection in 0..SKETCH_VALUES {
                let lanes = &mut lanes[projection][first..first + 16];
                for i in 0..16 {
                    let minus = signs[i] << (31 - projection) & 0x8000_0000;
                    lanes[i] += f32::from_bits(values[i].to_bits() ^ minus);
                }
            }
        }
    }
    let signs = key.signs(row.position, whole.len() as u32);
    let first = whole.len() % 4 * 16;
    for (projection, lanes) in lanes.iter_mut().enumerate() {
        for (i, value) in rest.iter().enumerate() {
            let minus = (signs[i] as u32 >> projection & 1) << 31;
            lanes[first + i] += f32::from_bits(value.to_bits() ^ minus);
        }
    }
    for (output, lanes) in output.iter_mut().zip(&mut lanes) {
        *output = f32_to_f16_saturating(fold_lanes(lanes));
    }
}

multiversioned! {
    /// One row's activation sketch.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn sketch(input: &[f32], row: &SketchRow, output: &mut [u16; SKETCH_VALUES]) = sketch_body
}

#[inline(always)]
unsafe fn log_sum_exp_body<L: Lanes>(logits: &[f32], output: &mut (f32, f32)) {
    let (from, length) = (logits.as_ptr(), logits.len());
    let whole = length / 64 * 64;
    // SAFETY: `whole` values and more lie there; the machine has `L`.
    unsafe {
        let mut largest = [L::splat(f32::NEG_INFINITY); 4];
        let mut i = 0;
        while i < whole {
            for part in 0..4 {
                largest[part] = L::max(largest[part], L::load(from.add(i + part * WIDTH)));
            }
            i += 64;
        }
        let mut max = L::largest(L::max(L::max(largest[0], largest[1]), L::max(largest[2], largest[3])));
        for i in whole..length {
            max = if logits[i] > max { logits[i] } else { max };
        }
        let mut sums = [L::zero(); 4];
        let mut i = 0;
        while i < whole {
            for part in 0..4 {
                let x = L::sub(L::load(from.add(i + part * WIDTH)), L::splat(max));
                sums[part] = L::add(sums[part], vector_math::exp::<L>(x));
            }
            i += 64;
        }
        let mut lanes = [0f32; 64];
        for part in 0..4 {
            L::store(lanes.as_mut_ptr().add(part * WIDTH), sums[part]);
        }
        for i in whole..length {
            lanes[i % 64] += exp(logits[i] - max);
        }
        *output = (max, ln(fold_lanes(&mut lanes)));
    }
}

multiversioned! {
    /// `sampler::log_sum_exp` of finite logits.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn log_sum_exp(logits: &[f32], output: &mut (f32, f32)) = log_sum_exp_body
}
