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
use super::tiles::Laid;
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
    /// For products by tiles: the rows once more, as tiles read them.
    pub laid: Laid,
}

impl Activations {
    pub fn reserve(values: usize) -> Self {
        let blocks = values.div_ceil(BLOCK);
        // Quads take at most twice their values' bytes.
        let (pairs, quads) = (Aligned::zeroed(values), Aligned::zeroed(2 * values));
        let (sums, halves) = (Aligned::zeroed(blocks), Aligned::zeroed(blocks));
        Self { pairs, quads, scales: Aligned::zeroed(blocks), sums, halves, laid: Laid::default() }
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
        // SAFETY: the tile owns this row and strip; `count` values lie there, and 16 in the array.
        unsafe {
            let out = self.output.part((row * planes + plane) * self.width + self.first + first, count);
            if count == WIDTH {
                let mut sum = sum;
                if let Some(bias) = self.bias {
                    sum = L::add(sum, L::load(bias[first..][..WIDTH].as_ptr()));
                }
                if self.residual {
                    sum = L::add(L::load(out.as_ptr()), sum);
                }
                return L::store(out.as_mut_ptr(), sum);
            }
            let mut sums = [0f32; WIDTH];
            L::store(sums.as_mut_ptr(), sum);
            for i in 0..count {
                out[i] = finish(sums[i], self.bias.map(|bias| bias[first + i]), self.residual.then_some(out[i]));
            }
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

/// Which part of the weights that come next a block asks for ahead of their use: it is one of `passes` over its strips
/// (one per block of rows), and the passes share the work. Where there is one pass, the processor sees well what comes
/// next, except that integers' loops are too long for it to look far: they ask for what lies [`NEAR`] ahead.
#[derive(Clone, Copy)]
struct Ahead {
    pass: usize,
    passes: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes ahead in the same stream.
const NEAR: usize = 8192;

/// Inputs between two requests for weights ahead, in products of floats: a whole number of cache lines.
const AHEAD_INPUTS: usize = 32;

/// Asks for `bytes` bytes at a place within the weights.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
unsafe fn ask<L: Lanes>(at: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        // SAFETY: as the caller's; asking for any address is harmless.
        unsafe { L::prefetch(at.wrapping_add(line)) };
        line += LINE;
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
    (row, strip): (usize, usize),
    ahead: Ahead,
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
            let mut start = from;
            while start < to {
                let end = to.min(start + AHEAD_INPUTS);
                if ahead.passes > 1 && start / AHEAD_INPUTS % ahead.passes == ahead.pass {
                    for s in 0..S {
                        let next = weights.as_ptr().wrapping_add(((S + s) * inputs + start) * WIDTH);
                        ask::<L>(next.cast(), AHEAD_INPUTS * WIDTH * size_of::<W>());
                    }
                }
                for k in start..end {
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
                start = end;
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
    (row, strip): (usize, usize),
    ahead: Ahead,
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
                let end = to.min(k + AHEAD_INPUTS);
                if ahead.passes > 1 && k / AHEAD_INPUTS % ahead.passes == ahead.pass {
                    for s in 0..S {
                        let next = weights.as_ptr().wrapping_add(((S + s) * inputs + k) * WIDTH);
                        ask::<L>(next.cast(), AHEAD_INPUTS * WIDTH * size_of::<u16>());
                    }
                }
                while k < end {
                    let mut w = [L::load_pairs(weights.as_ptr().add(k * WIDTH)); S];
                    for s in 1..S {
                        w[s] = L::load_pairs(weights.as_ptr().add((s * inputs + k) * WIDTH));
                    }
                    for r in 0..R {
                        for s in 0..S {
                            sums[r][s] = L::dot_pairs(sums[r][s], w[s], input.as_ptr().add(r * inputs + k));
                        }
                    }
                    k += 2;
                }
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
    (row, strip): (usize, usize),
    ahead: Ahead,
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
                if block % ahead.passes == ahead.pass {
                    for s in 0..S {
                        let number = s * blocks + block;
                        let next = if ahead.passes == 1 { number + NEAR / block_bytes } else { number + S * blocks };
                        ask::<L>(w.as_ptr().wrapping_add(next * block_bytes), block_bytes);
                        ask::<L>(w_scales.as_ptr().wrapping_add(next * WIDTH).cast(), 1);
                    }
                }
                let mut dots = [[L::splat_i32(0); S]; R];
                for r in 0..R {
                    dots[r] = [L::splat_i32(*block_sums.as_ptr().add(r * blocks + block) * -offset); S];
                }
                let quads = quads.as_ptr().add(block * QUADS * L::QUAD_BYTES);
                let from = w.as_ptr().add(block * block_bytes);
                // Weights first: a row's activations are then loaded once for all strips.
                if NIBBLES {
                    for step in 0..QUADS / 2 {
                        let mut w = [L::load_nibbles(from.add(step * 4 * WIDTH)); S];
                        for s in 1..S {
                            w[s] = L::load_nibbles(from.add(s * blocks * block_bytes + step * 4 * WIDTH));
                        }
                        for r in 0..R {
                            let quad = quads.add(r * row_bytes + step * L::QUAD_BYTES);
                            for s in 0..S {
                                dots[r][s] = L::dot_quads(dots[r][s], w[s][0], quad);
                            }
                            let quad = quad.add(QUADS / 2 * L::QUAD_BYTES);
                            for s in 0..S {
                                dots[r][s] = L::dot_quads(dots[r][s], w[s][1], quad);
                            }
                        }
                    }
                } else {
                    for step in 0..QUADS {
                        let mut w = [L::load_quads(from.add(step * 4 * WIDTH)); S];
                        for s in 1..S {
                            w[s] = L::load_quads(from.add(s * blocks * block_bytes + step * 4 * WIDTH));
                        }
                        for r in 0..R {
                            let quad = quads.add(r * row_bytes + step * L::QUAD_BYTES);
                            for s in 0..S {
                                dots[r][s] = L::dot_quads(dots[r][s], w[s], quad);
                            }
                        }
                    }
                }
                let mut d = [L::zero(); S];
                for s in 0..S {
                    d[s] = L::load_f16(w_scales.as_ptr().add((s * blocks + block) * WIDTH));
                }
                for r in 0..R {
                    let scale = L::splat(*scales.as_ptr().add(r * blocks + block));
                    for s in 0..S {
                        sums[r][s] = L::fma(L::to_f32(dots[r][s]), L::mul(scale, d[s]), sums[r][s]);
                    }
                }
            }
            product.end_range::<L, R, S>(row, strip, (index, to == shape.inputs), &sums, &mut totals);
        }
    }
}

/// A packed form, and how a block of rows and strips of its products is computed.
trait Form: Copy {
    /// Whether a sum takes two registers: the integers of a block, and the chain over blocks.
    const INTEGERS: bool;

    /// R rows by S strips.
    ///
    /// # Safety
    /// As [`float_block`].
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        ahead: Ahead,
    );
}

impl<W: Stored> Form for &[W] {
    const INTEGERS: bool = false;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(self, p: &Product<'_>, at: (usize, usize), ahead: Ahead) {
        // SAFETY: as the caller's.
        unsafe { float_block::<L, W, R, S>(p, self, at, ahead) }
    }
}

#[derive(Clone, Copy)]
struct Pairs<'a>(&'a [u16]);

impl Form for Pairs<'_> {
    const INTEGERS: bool = false;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(self, p: &Product<'_>, at: (usize, usize), ahead: Ahead) {
        // SAFETY: as the caller's.
        unsafe { pair_block::<L, R, S>(p, self.0, at, ahead) }
    }
}

#[derive(Clone, Copy)]
struct Integers<'a, const NIBBLES: bool>(&'a Quants);

impl<const NIBBLES: bool> Form for Integers<'_, NIBBLES> {
    const INTEGERS: bool = true;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(self, p: &Product<'_>, at: (usize, usize), ahead: Ahead) {
        // SAFETY: as the caller's.
        unsafe { integer_block::<L, NIBBLES, R, S>(p, self.0, at, ahead) }
    }
}

/// Strips that are computed together, where there are as many.
pub(crate) const TOGETHER: usize = 2;

/// All rows of a tile, in blocks whose sums stay in registers.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn blocks<L: Lanes, F: Form>(form: F, product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
    let most = if L::WIDE && !F::INTEGERS { 12 } else { 6 };
    let passes = (rows.1 - rows.0).div_ceil(most);
    let mut strip = strips.0;
    while strip < strips.1 {
        let (mut row, mut pass, left) = (rows.0, 0, strips.1 - strip);
        // One row of integers keeps up with one stream.
        let together = if F::INTEGERS && rows.1 - rows.0 == 1 { 1 } else { left.min(TOGETHER) };
        while row < rows.1 {
            let (at, ahead) = ((row, strip), Ahead { pass, passes });
            // SAFETY: as the caller's; `step` rows are left.
            let step = unsafe {
                match (rows.1 - row, together) {
                    (12.., 2) if L::WIDE && !F::INTEGERS => (form.block::<L, 12, 2>(product, at, ahead), 12).1,
                    (8, 2) if L::WIDE => (form.block::<L, 8, 2>(product, at, ahead), 8).1,
                    (6.., 2) => (form.block::<L, 6, 2>(product, at, ahead), 6).1,
                    (4.., 2) => (form.block::<L, 4, 2>(product, at, ahead), 4).1,
                    (_, 2) => (form.block::<L, 1, 2>(product, at, ahead), 1).1,
                    (4.., _) => (form.block::<L, 4, 1>(product, at, ahead), 4).1,
                    (_, _) => (form.block::<L, 1, 1>(product, at, ahead), 1).1,
                }
            };
            (row, pass) = (row + step, pass + 1);
        }
        strip += together;
    }
}

/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn tile_body<L: Lanes>(product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
    // SAFETY: as the caller's.
    unsafe {
        match &product.matrix.values {
            PackedValues::F32(values) => blocks::<L, _>(&values[..], product, rows, strips),
            PackedValues::Bf16(values) => blocks::<L, _>(&values[..], product, rows, strips),
            PackedValues::Bf16Pairs(values, _) => blocks::<L, _>(Pairs(values), product, rows, strips),
            PackedValues::Quants(quants) if quants.nibbles => {
                blocks::<L, _>(Integers::<true>(quants), product, rows, strips);
            }
            PackedValues::Quants(quants) => blocks::<L, _>(Integers::<false>(quants), product, rows, strips),
            PackedValues::K(_) | PackedValues::Stack(_) => unreachable!("superblocks have tiles of their own"),
        }
    }
}

multiversioned! {
    /// Computes rows `rows.0..rows.1` of the strips `strips.0..strips.1`.
    ///
    /// # Safety
    /// The machine has `set`; no other worker writes these rows and strips.
    pub(crate) unsafe fn tile(product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) = tile_body
}
