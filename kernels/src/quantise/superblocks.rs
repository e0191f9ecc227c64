//! Superblocks of 256 from floats, in one pass and without a search (numerics rule 3): the bytes that a file would hold.
//!
//! All divisions and roundings are IEEE, ties to even, so that every machine makes the same bytes.

use polylink_protocol::exact_math::{f16_to_f32, f32_to_f16_saturating};

use super::BLOCK;
use crate::blocks::{KKind, SUPER, SUPER_BLOCKS};

/// Values per scale of Q6_K.
const GROUP: usize = 16;

/// Appends one superblock's bytes. Inputs are finite.
pub(crate) fn superblock(kind: KKind, values: &[f32; SUPER], out: &mut Vec<u8>) {
    match kind {
        KKind::Q6 => q6(values, out),
        _ => q4_or_q5(kind, values, out),
    }
}

/// To the nearest integer of a range; 0 steps have nothing but 0.
fn step(value: f32, step: f32, low: f32, high: f32) -> i32 {
    if step == 0.0 { 0 } else { super::round_to_integer((value / step).clamp(low, high)) }
}

fn q6(values: &[f32; SUPER], out: &mut Vec<u8>) {
    let extreme = |group: &[f32]| group.iter().fold(0f32, |best, &x| if x.abs() > best.abs() { x } else { best });
    let mut steps = [0f32; SUPER / GROUP];
    for (step, group) in steps.iter_mut().zip(values.chunks_exact(GROUP)) {
        *step = extreme(group) / -32.0;
    }
    let half = f32_to_f16_saturating(extreme(&steps) / -128.0);
    let d = f16_to_f32(half);
    let scales = steps.map(|own| step(own, d, -128.0, 127.0));
    let (mut low, mut high) = ([0u8; SUPER / 2], [0u8; SUPER / 4]);
    for (i, &value) in values.iter().enumerate() {
        let quant = (step(value, d * scales[i / GROUP] as f32, -32.0, 31.0) + 32) as u8;
        let (part, group, within) = (i / 128, i / 32 % 4, i % 32);
        low[64 * part + 32 * (group % 2) + within] |= (quant & 15) << (group / 2 * 4);
        high[32 * part + within] |= quant >> 4 << (2 * group);
    }
    out.extend(low);
    out.extend(high);
    out.extend(scales.map(|scale| scale as i8 as u8));
    out.extend(half.to_le_bytes());
}

fn q4_or_q5(kind: KKind, values: &[f32; SUPER], out: &mut Vec<u8>) {
    let largest_quant = if kind == KKind::Q5 { 31.0 } else { 15.0 };
    let (mut steps, mut depths) = ([0f32; SUPER_BLOCKS], [0f32; SUPER_BLOCKS]);
    for (j, block) in values.chunks_exact(BLOCK).enumerate() {
        let low = block.iter().fold(0f32, |low, &x| low.min(x));
        let high = block.iter().fold(0f32, |high, &x| high.max(x));
        // Halves first: the difference of two finite values may be none.
        steps[j] = (high * 0.5 - low * 0.5) / (largest_quant * 0.5);
        depths[j] = -low;
    }
    let largest = |values: &[f32]| values.iter().fold(0f32, |largest, &x| largest.max(x));
    let half = f32_to_f16_saturating(largest(&steps) / 63.0);
    let half_min = f32_to_f16_saturating(largest(&depths) / 63.0);
    let (d, dmin) = (f16_to_f32(half), f16_to_f32(half_min));
    let scales = steps.map(|own| step(own, d, 0.0, 63.0) as u8);
    let mins = depths.map(|own| step(own, dmin, 0.0, 63.0) as u8);
    let (mut packed, mut nibbles, mut fifths) = ([0u8; 12], [0u8; SUPER / 2], [0u8; BLOCK]);
    for j in 0..SUPER_BLOCKS / 2 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    for (i, &value) in values.iter().enumerate() {
        let (j, within) = (i / BLOCK, i % BLOCK);
        let raised = value + dmin * f32::from(mins[j]);
        let quant = step(raised, d * f32::from(scales[j]), 0.0, largest_quant) as u8;
        nibbles[j / 2 * BLOCK + within] |= (quant & 15) << (j % 2 * 4);
        fifths[within] |= quant >> 4 << j;
    }
    out.extend(half.to_le_bytes());
    out.extend(half_min.to_le_bytes());
    out.extend(packed);
    if kind == KKind::Q5 {
        out.extend(fifths);
    }
    out.extend(nibbles);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::k_block;

    #[test]
    fn values_come_back_within_their_steps() {
        let values: [f32; SUPER] = std::array::from_fn(|i| ((i * 37 % 101) as f32 - 40.0) * (1 + i / 64) as f32);
        for (kind, steps) in [(KKind::Q4, 15.0), (KKind::Q5, 31.0), (KKind::Q6, 63.0)] {
            let mut bytes = Vec::new();
            superblock(kind, &values, &mut bytes);
            assert_eq!(bytes.len(), kind.dtype().block().1);
            for (i, value) in values.iter().enumerate() {
                let found = k_block(kind, &bytes, i / BLOCK).value(kind, i % BLOCK);
                let block = &values[i / BLOCK * BLOCK..][..BLOCK];
                let spread = block.iter().fold(0f32, |s, x| s.max(*x)) - block.iter().fold(0f32, |s, x| s.min(*x));
                // Half a step of the values, and what the rounded scale and minimum are off by.
                let bound = spread / steps * 0.8 + 400.0 / 63.0 * 0.6;
                assert!((found - value).abs() <= bound, "{kind:?} {i}: {found} for {value}, bound {bound}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for kind in [KKind::Q4, KKind::Q5, KKind::Q6] {
            let mut bytes = Vec::new();
            superblock(kind, &[0.0; SUPER], &mut bytes);
            assert!((0..SUPER).all(|i| k_block(kind, &bytes, i / BLOCK).value(kind, i % BLOCK) == 0.0));
        }
    }
}
