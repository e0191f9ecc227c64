//! The operations between the products: normalisation, gating, quantisation of activations, sketches.
//!
//! Plain loops over fixed arrays that the compiler vectorises; compiled once per instruction set. Sums over a row use 64
//! lanes (numerics rule 4), so the order does not depend on the vector width.
#![allow(unsafe_code)] // functions compiled for an instruction set

use polylink_protocol::exact_math::{f32_to_f16_saturating, gelu_tanh, silu, soft_cap};

use super::isa::multiversioned;
use super::lanes::Lanes;
use crate::operations::{SketchRow, to_bf16_flushed};
use crate::quantise::{self, BLOCK};
use crate::sampler::fold_lanes;
use crate::step::SKETCH_VALUES;

/// `1 ÷ √(mean square + eps)` of a row (numerics rule 4).
#[inline(always)]
fn norm_scale(input: &[f32], eps: f32) -> f32 {
    let mut lanes = [0f32; 64];
    let (chunks, rest) = input.as_chunks::<64>();
    for chunk in chunks {
        for i in 0..64 {
            lanes[i] = chunk[i].mul_add(chunk[i], lanes[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(x, *lane);
    }
    let mean = fold_lanes(&mut lanes) / input.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[inline(always)]
unsafe fn rms_norm_body<L: Lanes>(input: &[f32], weight: &[f32], eps: f32, residual: bool, output: &mut [f32]) {
    let scale = norm_scale(input, eps);
    let values = output.iter_mut().zip(input).zip(weight);
    if residual {
        for ((output, x), weight) in values {
            *output += (x * scale) * weight;
        }
    } else {
        for ((output, x), weight) in values {
            *output = (x * scale) * weight;
        }
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
        let scale = norm_scale(head, eps);
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

#[inline(always)]
unsafe fn silu_mul_body<L: Lanes>(gate: &[f32], up: &[f32], output: &mut [f32]) {
    for ((output, &gate), &up) in output.iter_mut().zip(gate).zip(up) {
        *output = silu(gate) * up;
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
) {
    let quads = quads.chunks_exact_mut(BLOCK / 4 * L::QUAD_BYTES);
    let blocks = input.as_chunks::<BLOCK>().0.iter().zip(quads);
    for ((values, to), (scale, (sum, half))) in blocks.zip(scales.iter_mut().zip(sums.iter_mut().zip(halves))) {
        let mut quants = [0i8; BLOCK];
        *scale = quantise::activations(values, &mut quants);
        let (first, second) = quants.split_at(BLOCK / 2);
        *half = first.iter().map(|quant| *quant as i32).sum();
        *sum = *half + second.iter().map(|quant| *quant as i32).sum::<i32>();
        for (quad, to) in quants.as_chunks::<4>().0.iter().zip(to.chunks_exact_mut(L::QUAD_BYTES)) {
            // SAFETY: `to` has QUAD_BYTES bytes.
            unsafe { L::store_quad(to.as_mut_ptr(), *quad) };
        }
    }
}

multiversioned! {
    /// Quantises one row of activations in blocks of 32 (numerics rule 3): quads as the products read them, and per block
    /// a scale, the sum of the integers and that of the first half of them.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn quantise(
        input: &[f32],
        quads: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
        halves: &mut [i32],
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

#[inline(always)]
unsafe fn sketch_body<L: Lanes>(input: &[f32], row: &SketchRow, output: &mut [u16; SKETCH_VALUES]) {
    let key = row.noise_key.sketch_key();
    let mut lanes = [[0f32; 64]; SKETCH_VALUES];
    for (block, values) in input.chunks(16).enumerate() {
        let signs = key.signs(row.position, block as u32);
        let first = block % 4 * 16;
        for (projection, lanes) in lanes.iter_mut().enumerate() {
            for ((lane, value), sign) in lanes[first..first + 16].iter_mut().zip(values).zip(signs) {
                let minus = (sign as u32 >> projection & 1) << 31;
                *lane += f32::from_bits(value.to_bits() ^ minus);
            }
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
