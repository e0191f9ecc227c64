//! Numbers of e4m3 as products take them (`gemm_fp8.cuh`).

use super::{Stretch, TILE, strip_words};
use crate::backend::{BackendError, Dtype, Part};
use crate::cuda::gemm::GemmShape;
use crate::weights::{FP8_BLOCK, fp8_block};

/// Inputs of a tile.
const DEPTH: usize = FP8_BLOCK;
/// Outputs that lie together.
const EIGHT: usize = 8;
/// Words of 16 bits that 8 outputs of a tile take: their numbers, and a scale of 32 bits each.
const EIGHT_WORDS: usize = EIGHT * DEPTH / 2 + 2 * EIGHT;
/// Scales are kept 2^120 times as large, which f32 must hold.
const SCALE_MAX: f32 = 128.0;

/// Whether a weight of these parts is kept in e4m3: all of them are, their inputs begin and end with blocks, and no scale is absurdly
/// large.
pub(in crate::cuda) fn takes(parts: &[Part<'_>]) -> bool {
    parts.iter().all(|part| {
        let (tensor, columns) = (&part.tensor, &part.shard.columns);
        tensor.dtype == Dtype::Fp8
            && columns.start.is_multiple_of(DEPTH)
            && columns.end.is_multiple_of(DEPTH)
            && tensor.data.chunks_exact(Dtype::Fp8.block().1).all(|block| fp8_block(block).1.abs() < SCALE_MAX)
    })
}

/// Fills whole strips of 64 outputs, from output `first` on.
pub(super) fn pack_strips(
    stretches: &[Stretch<'_>],
    shape: &GemmShape,
    first: usize,
    space: &mut [u16],
) -> Result<(), BackendError> {
    let size = Dtype::Fp8.block().1;
    for (number, strip) in space.chunks_mut(strip_words(shape)).enumerate() {
        strip.fill(0);
        for row in 0..TILE.min(shape.outputs.saturating_sub(first + number * TILE)) {
            let Some((part, from)) = Stretch::of(stretches, first + number * TILE + row) else { continue };
            let (tensor, columns) = (&part.tensor, &part.shard.columns);
            let start = (from * tensor.shape[1] + columns.start) / DEPTH * size;
            let blocks = tensor.data[start..][..columns.len() / DEPTH * size].chunks_exact(size);
            let tiles = strip.chunks_exact_mut(TILE / EIGHT * EIGHT_WORDS);
            for (index, (block, tile)) in blocks.zip(tiles).enumerate() {
                let (numbers, scale) = fp8_block(block);
                if let Some(bad) = numbers.iter().position(|number| number & 0x7f == 0x7f) {
                    let reason = format!(
                        "element ({from}, {}) is NaN: the file is damaged",
                        columns.start + index * DEPTH + bad
                    );
                    return Err(BackendError::Tensor { name: tensor.name.into(), reason });
                }
                put(&mut tile[row / EIGHT * EIGHT_WORDS..][..EIGHT_WORDS], row % EIGHT, numbers, scale);
            }
        }
    }
    Ok(())
}

/// A block, which is one row's of a run of 8.
fn put(eight: &mut [u16], row: usize, numbers: &[u8], scale: f32) {
    for (k, &number) in numbers.iter().enumerate() {
        // Of 16 inputs, 2 c and the next, and those 8 further, are a lane's: c, c + 8, c + 1, c + 9.
        let (sixteen, within) = (k / 16, k % 16);
        let (lane, byte) = (4 * row + within % 8 / 2, within / 8 + 2 * (within % 2));
        let at = (sixteen / 4 * 32 + lane) * 16 + sixteen % 4 * 4 + byte;
        eight[at / 2] |= u16::from(number) << (8 * (at % 2));
    }
    let bits = (scale * 2f32.powi(120)).to_bits();
    let at = EIGHT * DEPTH / 2 + 2 * row;
    (eight[at], eight[at + 1]) = (bits as u16, (bits >> 16) as u16);
}

/// A weight as the kernels take it, made at once.
#[cfg(test)]
pub(in crate::cuda) fn packed(parts: &[Part<'_>], shape: &GemmShape) -> Result<Vec<u16>, BackendError> {
    let mut space = vec![0xffff; shape.packed_bytes() / 2];
    super::pack_strips(&super::stretches(parts), shape, 0, &mut space)?;
    Ok(space)
}
