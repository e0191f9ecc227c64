//! Integers for weights and activations: blocks of 32 along K, one scale each (numerics rule 3).
//!
//! * `Q8_0`: scale d = f16(largest magnitude / 127), q = round(x / d), ties to even, within ±127. (ggml divides by the
//!   unrounded scale; ours is nearer to the weight.)
//! * `Q4_0`: d = f16(x* / −8) for the value x* of largest magnitude (the first of them), q = ⌊x / d + 8.5⌋ within 0..15,
//!   value (q − 8)·d; as ggml's. Kept here as q − 8.
//! * activations: s = largest magnitude / 127 in f32, q = round(x / s), ties to even; s subnormal or 0: s = q = 0.
//!
//! f16 scales are rounded to nearest even, saturating. A scale of 0 makes its block 0.

use polylink_protocol::exact_math::{f16_to_f32, f32_to_e4m3_saturating, f32_to_f16_saturating};

pub(crate) mod superblocks;

/// Values per scale, on both sides of a product.
pub const BLOCK: usize = 32;

/// Of finite values. In lanes, so that it is a few vector operations wherever it is compiled in.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in whole {
        for i in 0..16 {
            lanes[i] = larger(lanes[i], chunk[i].abs());
        }
    }
    for i in 0..rest.len() {
        lanes[i] = larger(lanes[i], rest[i].abs());
    }
    lanes.into_iter().fold(0f32, larger)
}

/// Quantises one block to Q8_0; returns the scale.
pub fn q8_0(values: &[f32; BLOCK], quants: &mut [i8]) -> f32 {
    let scale = f16_to_f32(f32_to_f16_saturating(largest_magnitude(values) / 127.0));
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = if scale == 0.0 { 0 } else { round_to_integer((value / scale).clamp(-127.0, 127.0)) as i8 };
    }
    scale
}

/// Quantises one block to Q4_0; returns the scale (which may be negative).
pub fn q4_0(values: &[f32; BLOCK], quants: &mut [i8]) -> f32 {
    let extreme = values.iter().fold(0f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
    let scale = f16_to_f32(f32_to_f16_saturating(extreme / -8.0));
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = if scale == 0.0 { 0 } else { (value / scale + 8.5).clamp(0.0, 15.0).floor() as i8 - 8 };
    }
    scale
}

/// Quantises one block of activations; returns the scale. Inputs are finite.
#[inline(always)]
pub fn activations(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> f32 {
    let scale = largest_magnitude(values) / 127.0;
    if scale < f32::MIN_POSITIVE {
        quants.iter_mut().for_each(|quant| *quant = 0);
        return 0.0;
    }
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = round_to_integer(value / scale) as i8;
    }
    scale
}

/// Quantises a vector of any length with one scale, as a block of activations; returns the scale.
#[inline(always)]
pub fn vector(values: &[f32], quants: &mut [i8]) -> f32 {
    let scale = largest_magnitude(values) / 127.0;
    if scale < f32::MIN_POSITIVE {
        quants.fill(0);
        return 0.0;
    }
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = round_to_integer(value / scale) as i8;
    }
    scale
}

/// The power of two that values whose largest magnitude is this are kept in multiples of, as e4m3, and its inverse: the largest
/// lies in 128 … 256 of it. At most 2⁷, and `None` below 2⁻¹¹⁰, so that bf16 holds every multiple exactly.
#[inline(always)]
fn e4m3_scale(largest: f32) -> Option<(f32, f32)> {
    let exponent = largest.to_bits() >> 23;
    let scale = (exponent.saturating_sub(7)).min(127 + 7);
    (exponent >= 127 - 110).then(|| (f32::from_bits(scale << 23), f32::from_bits((254 - scale) << 23)))
}

/// Brings a vector of any length to e4m3 under one power of two; returns that (numerics rule 5).
#[inline(always)]
pub fn vector_e4m3(values: &[f32], numbers: &mut [u8]) -> f32 {
    let Some((scale, inverse)) = e4m3_scale(largest_magnitude(values)) else {
        numbers.fill(0);
        return 0.0;
    };
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = f32_to_e4m3_saturating(value * inverse);
    }
    scale
}

/// Nearest integer, ties to even, of |x| < 2²²: the addition does the rounding, whatever the instruction set.
#[inline(always)]
pub(crate) fn round_to_integer(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((x + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

#[cfg(test)]
mod tests {
    use polylink_protocol::exact_math::{bf16_to_f32, e4m3_to_f32, f32_to_bf16};

    use super::*;

    fn block(f: impl Fn(usize) -> f32) -> [f32; BLOCK] {
        std::array::from_fn(f)
    }

    #[test]
    fn q8_0_is_within_half_a_step_and_exact_on_its_own_grid() {
        let values = block(|i| (i as f32 - 13.3) * 0.37);
        let mut quants = [0i8; BLOCK];
        let scale = q8_0(&values, &mut quants);
        for (value, quant) in values.iter().zip(quants) {
            assert!((value - quant as f32 * scale).abs() <= scale * 0.5005);
        }
        let grid = block(|i| (i as f32 - 16.0) * 0.5 * if i == 0 { 127.0 / 16.0 } else { 1.0 });
        let scale = q8_0(&grid, &mut quants);
        assert_eq!(scale, 0.5);
        assert!(grid.iter().zip(quants).all(|(value, quant)| *value == quant as f32 * scale));
    }

    #[test]
    fn q4_0_keeps_the_extreme_value_and_zero_blocks() {
        let values = block(|i| if i == 5 { -8.0 } else { i as f32 / 8.0 });
        let mut quants = [0i8; BLOCK];
        let scale = q4_0(&values, &mut quants);
        assert_eq!(quants[5] as f32 * scale, -8.0);
        assert!(quants.iter().all(|quant| (-8..=7).contains(quant)));
        assert_eq!(q4_0(&[0.0; BLOCK], &mut quants), 0.0);
        assert_eq!(quants, [0; BLOCK]);
    }

    #[test]
    fn activations_round_ties_to_even_and_drop_subnormal_scales() {
        let mut quants = [0i8; BLOCK];
        let scale = activations(&block(|i| [127.0, -127.0, 0.5, 1.5, 2.5, -0.5][i % 6]), &mut quants);
        assert_eq!((scale, &quants[..6]), (1.0, &[127, -127, 0, 2, 2, 0][..]));
        assert_eq!(activations(&block(|_| 1e-37), &mut quants), 0.0);
        assert_eq!(quants, [0; BLOCK]);
    }

    #[test]
    fn e4m3_vectors_are_multiples_of_a_power_of_two_that_bf16_holds() {
        let mut numbers = [0u8; 4];
        for exponent in -126..=127 {
            for mantissa in [1.0, 1.5, 2.0 - f32::EPSILON] {
                let largest = mantissa * 2f32.powi(exponent);
                let values = [largest / 3.0, -largest, largest / 1000.0, -0.0];
                let scale = vector_e4m3(&values, &mut numbers);
                if exponent < -110 {
                    assert_eq!((scale, numbers), (0.0, [0; 4]), "{largest:e}");
                    continue;
                }
                assert_eq!(scale, 2f32.powi((exponent - 7).min(7)), "{largest:e}");
                for (value, number) in values.into_iter().zip(numbers) {
                    let kept = e4m3_to_f32(number) * scale;
                    assert_eq!(bf16_to_f32(f32_to_bf16(kept)), kept, "{kept:e} of {value:e}");
                    // Half a step of 3 bits of mantissa, or of the denormals; beyond 448 × 2⁷ what is kept is that.
                    let allowed = (value.abs() / 17.0).max(scale / 1024.0);
                    let nearest = value.clamp(-57_344.0, 57_344.0);
                    assert!((kept - nearest).abs() <= allowed, "{kept:e} of {value:e}");
                }
            }
        }
    }
}
