//! Matrix products over packed weights ([`super::packed`]).
//!
//! A tile is a few strips of 16 outputs by a run of rows. Within it every output has its own chain (numerics rules 2 and
//! 3): lanes are outputs, never inputs, so the number of rows, strips or lanes changes no bit.
#![allow(unsafe_code)]
// vector loads from packed weights; tiles write disjoint parts of the output
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use super::isa::multiversioned;
use super::lanes::{Lanes, WIDTH};
use super::packed::{Packed, PackedValues, Quants};
use super::pool::SharedSlice;
use crate::memory::Aligned;
use crate::operations::finish;
use crate::quantise::BLOCK;
use crate::weights::MatrixShape;

/// Activations of the current product, as its matrix takes them.
#[derive(Default)]
pub(crate) struct Activations {
    /// For bf16 pairs: `[rows][inputs]`.
    pub pairs: Aligned<u16>,
    /// For integers: `[rows][inputs / 4]` quads, as the instruction set wants to read them.
    pub quads: Aligned<i8>,
    /// `[rows][inputs / 32]`.
    pub scales: Aligned<f32>,
    /// `[rows][inputs / 32]`: sums of the block's integers, which take the weights' offset off again.
    pub sums: Aligned<i32>,
    /// `[rows][inputs / 32]`: sums of the first 16 integers of each block.
    pub halves: Aligned<i32>,
}

impl Activations {
    pub fn reserve(values: usize) -> Self {
        let blocks = values.div_ceil(BLOCK);
        // Quads take at most twice their values' bytes.
        let (pairs, quads) = (Aligned::zeroed(values), Aligned::zeroed(2 * values));
        let (sums, halves) = (Aligned::zeroed(blocks), Aligned::zeroed(blocks));
        Self { pairs, quads, scales: Aligned::zeroed(blocks), sums, halves }
    }
}

/// Quads (four inputs) in a block.
const QUADS: usize = BLOCK / 4;

/// One product: what all its tiles share.
pub(crate) struct Product<'a> {
    pub matrix: &'a Packed,
    /// `[rows][inputs]`.
    pub input: &'a [f32],
    /// For a matrix that converts it: the input converted.
    pub activations: &'a Activations,
    /// `[rows][planes][width]`; this matrix has the columns from `first` on (others are another's of a stack).
    pub output: &'a SharedSlice<'a, f32>,
    pub width: usize,
    pub first: usize,
    pub bias: Option<&'a [f32]>,
    pub residual: bool,
}

impl Product<'_> {
    /// Stores one strip of one row: a plane's partial sum, or the finished total.
    ///
    /// # Safety
    /// No other worker may write this row and strip.
    #[inline(always)]
    unsafe fn store<L: Lanes>(&self, row: usize, strip: usize, plane: usize, sum: L::F32) {
        let MatrixShape { outputs, planes, .. } = self.matrix.shape;
        let first = strip * WIDTH;
        let count = WIDTH.min(outputs - first);
        // SAFETY: the tile owns this row and strip; the array holds 16 values.
        let (out, sums) = unsafe {
            let mut sums = [0f32; WIDTH];
            L::store(sums.as_mut_ptr(), sum);
            (self.output.part((row * planes + plane) * self.width + self.first + first, count), sums)
        };
        if self.bias.is_none() && !self.residual {
            out.copy_from_slice(&sums[..count]);
            return;
        }
        for (i, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
            *out = finish(sum, self.bias.map(|bias| bias[first + i]), self.residual.then_some(*out));
        }
    }

    /// Ends a range: gives its sum away as a plane, or adds it to the total; the last range stores the total.
    ///
    /// # Safety
    /// As [`Product::store`].
    #[inline(always)]
    pub(super) unsafe fn end_range<L: Lanes, const R: usize, const S: usize>(
        &self,
        row: usize,
        strip: usize,
        (index, last): (usize, bool),
        sums: &[[L::F32; S]; R],
        totals: &mut [[L::F32; S]; R],
    ) {
        for r in 0..R {
            for s in 0..S {
                // SAFETY: as the caller's.
                unsafe {
                    if self.matrix.shape.planes > 1 {
                        self.store::<L>(row + r, strip + s, index, sums[r][s]);
                        continue;
                    }
                    totals[r][s] = if index == 0 { sums[r][s] } else { L::add(totals[r][s], sums[r][s]) };
                    if last {
                        self.store::<L>(row + r, strip + s, 0, totals[r][s]);
                    }
                }
            }
        }
    }
}

/// A stored float that 16 lanes can be loaded of.
trait Stored: Copy {
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load(from) }
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load_bf16(from) }
    }
}

/// R rows by S strips of a float product.
///
/// # Safety
/// The machine has `L`; rows and strips exist; no other worker writes them.
#[inline(always)]
unsafe fn float_block<L: Lanes, W: Stored, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &[W],
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.input[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    // SAFETY: the two slices above bound every access: k < inputs, r < R, s < S.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for k in from..to {
                let mut w = [L::zero(); S];
                for s in 0..S {
                    w[s] = W::load::<L>(weights.as_ptr().add((s * inputs + k) * WIDTH));
                }
                for r in 0..R {
                    let x = L::splat(*input.as_ptr().add(r * inputs + k));
                    for s in 0..S {
                        sums[r][s] = L::fma(x, w[s], sums[r][s]);
                    }
                }
            }
            product.end_range::<L, R, S>(row, strip, (index, to == inputs), &sums, &mut totals);
        }
    }
}

/// R rows by S strips of a product in bf16 pairs.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn pair_block<L: Lanes, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &[u16],
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.activations.pairs[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    // SAFETY: the two slices above bound every access: k < inputs (even, as are the ranges), r < R, s < S.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            let mut k = from;
            while k < to {
                for s in 0..S {
                    let w = L::load_pairs(weights.as_ptr().add((s * inputs + k) * WIDTH));
                    for r in 0..R {
                        sums[r][s] = L::dot_pairs(sums[r][s], w, input.as_ptr().add(r * inputs + k));
                    }
                }
                k += 2;
            }
            product.end_range::<L, R, S>(row, strip, (index, to == inputs), &sums, &mut totals);
        }
    }
}

/// R rows by S strips of an integer product. With NIBBLES a byte holds two weights.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn integer_block<L: Lanes, const NIBBLES: bool, const R: usize, const S: usize>(
    product: &Product<'_>,
    quants: &Quants,
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let blocks = shape.inputs / BLOCK;
    let (block_bytes, offset) = (quants.block_bytes(), quants.offset());
    let row_bytes = shape.inputs / 4 * L::QUAD_BYTES;
    let Activations { quads, scales, sums, .. } = product.activations;
    let quads = &quads[row * row_bytes..][..R * row_bytes];
    let scales = &scales[row * blocks..][..R * blocks];
    let block_sums = &sums[row * blocks..][..R * blocks];
    let w = &quants.bytes[strip * blocks * block_bytes..][..S * blocks * block_bytes];
    let w_scales = &quants.scales[strip * WIDTH * blocks..][..S * WIDTH * blocks];
    // SAFETY: the five slices above bound every access: block < blocks, r < R, s < S, quad < 8.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for block in from / BLOCK..to / BLOCK {
                let mut dots = [[L::splat_i32(0); S]; R];
                for r in 0..R {
                    dots[r] = [L::splat_i32(*block_sums.as_ptr().add(r * blocks + block) * -offset); S];
                }
                let quads = quads.as_ptr().add(block * QUADS * L::QUAD_BYTES);
                for step in 0..if NIBBLES { QUADS / 2 } else { QUADS } {
                    for s in 0..S {
                        let from = w.as_ptr().add((s * blocks + block) * block_bytes + step * 4 * WIDTH);
                        if NIBBLES {
                            let [low, high] = L::load_nibbles(from);
                            for r in 0..R {
                                let quad = quads.add(r * row_bytes + step * L::QUAD_BYTES);
                                dots[r][s] = L::dot_quads(dots[r][s], low, quad);
                                dots[r][s] = L::dot_quads(dots[r][s], high, quad.add(QUADS / 2 * L::QUAD_BYTES));
                            }
                        } else {
                            let w = L::load_quads(from);
                            for r in 0..R {
                                dots[r][s] =
                                    L::dot_quads(dots[r][s], w, quads.add(r * row_bytes + step * L::QUAD_BYTES));
                            }
                        }
                    }
                }
                for s in 0..S {
                    let scale = L::load_f16(w_scales.as_ptr().add((s * blocks + block) * WIDTH));
                    for r in 0..R {
                        let scale = L::mul(L::splat(*scales.as_ptr().add(r * blocks + block)), scale);
                        sums[r][s] = L::fma(L::to_f32(dots[r][s]), scale, sums[r][s]);
                    }
                }
            }
            product.end_range::<L, R, S>(row, strip, (index, to == shape.inputs), &sums, &mut totals);
        }
    }
}

/// R rows by S strips of any product.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const S: usize>(product: &Product<'_>, row: usize, strip: usize) {
    // SAFETY: as the caller's.
    unsafe {
        match &product.matrix.values {
            PackedValues::F32(values) => float_block::<L, f32, R, S>(product, values, row, strip),
            PackedValues::Bf16(values) => float_block::<L, u16, R, S>(product, values, row, strip),
            PackedValues::Bf16Pairs(values) => pair_block::<L, R, S>(product, values, row, strip),
            PackedValues::Quants(quants) if quants.nibbles => {
                integer_block::<L, true, R, S>(product, quants, row, strip)
            }
            PackedValues::Quants(quants) => integer_block::<L, false, R, S>(product, quants, row, strip),
            PackedValues::K(_) | PackedValues::Stack(_) => unreachable!("superblocks have tiles of their own"),
        }
    }
}

/// Strips per tile.
pub(crate) const TILE_STRIPS: usize = 2;

/// All rows of a tile, in blocks of 6, 4, 2 and 1.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn tile_body<L: Lanes>(product: &Product<'_>, rows: (usize, usize), strip: usize) {
    let two = strip + 1 < product.matrix.strips();
    let mut row = rows.0;
    while row < rows.1 {
        // SAFETY: as the caller's; `step` rows are left.
        let step = unsafe {
            match (rows.1 - row, two) {
                (6.., true) => (block::<L, 6, 2>(product, row, strip), 6).1,
                (4.., true) => (block::<L, 4, 2>(product, row, strip), 4).1,
                (2.., true) => (block::<L, 2, 2>(product, row, strip), 2).1,
                (_, true) => (block::<L, 1, 2>(product, row, strip), 1).1,
                (4.., false) => (block::<L, 4, 1>(product, row, strip), 4).1,
                (_, false) => (block::<L, 1, 1>(product, row, strip), 1).1,
            }
        };
        row += step;
    }
}

multiversioned! {
    /// Computes rows `rows.0..rows.1` of the strips `strip` and, if there is one, `strip + 1`.
    ///
    /// # Safety
    /// The machine has `set`; no other worker writes these rows and strips.
    pub(crate) unsafe fn tile(product: &Product<'_>, rows: (usize, usize), strip: usize) = tile_body
}
