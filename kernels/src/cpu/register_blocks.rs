//! Blocks of a product: a few rows by one or two strips, their sums in registers.
#![allow(unsafe_code)]
// vector loads from packed weights; tiles write disjoint parts of the output
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;
use std::sync::atomic::{Ordering, compiler_fence};

use super::gemm::{Activations, Product, TILE_ROWS, TOGETHER};
use super::lanes::{Lanes, WIDTH};
use super::packed::{Fp8, Quants};
use crate::quantise::BLOCK;
use crate::weights::{FP8_BLOCK, MatrixShape, fp8_blocks};

/// Quads (four inputs) in a block of integers.
const QUADS: usize = BLOCK / 4;

/// Part of a product that one block computes: its inputs `from..to`, in one of the passes (one per block of rows) over a
/// tile's strips. Sums that go on beyond `to` are kept in memory until then.
///
/// A block asks for weights ahead of their use: those of the next inputs of its strips or, at their end, of the strips
/// that come next. Each of the first passes asks for one strip's, a pass that is alone for all. One row of floats is
/// computed so fast that the processor sees itself what comes next; of integers it asks for what lies [`NEAR`] ahead.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub from: usize,
    pub to: usize,
    pub pass: usize,
    pub alone: bool,
}

impl Part {
    /// Where the weights begin that the block asks for, as one comes to the `from`th input: null for a strip that
    /// another pass asks for. `weights`: of the first strip, `inputs × 16` values each.
    #[inline(always)]
    fn ahead<W, const R: usize, const S: usize>(&self, weights: *const W, inputs: usize) -> [*const W; S] {
        let mut ahead = [std::ptr::null(); S];
        for s in 0..S {
            if R > 1 && (self.alone || self.pass == s) {
                let next = if self.to < inputs { s * inputs + self.to } else { (S + s) * inputs };
                ahead[s] = weights.wrapping_add(next * WIDTH);
            }
        }
        ahead
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes ahead in the same stream.
const NEAR: usize = 8192;

/// Of a tile: sums that are not complete, and the totals of the ranges before: what a block does not keep in registers.
pub(super) struct Kept<L: Lanes> {
    sums: MaybeUninit<[L::F32; TILE_ROWS * TOGETHER]>,
    totals: MaybeUninit<[L::F32; TILE_ROWS * TOGETHER]>,
}

/// Where a block's sums and totals are kept: `[rows][strips]` each.
pub(super) type Places<L> = [*mut <L as Lanes>::F32; 2];

impl<L: Lanes> Kept<L> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { sums: MaybeUninit::uninit(), totals: MaybeUninit::uninit() }
    }

    /// Places of a block that begins with this row of the tile.
    ///
    /// # Safety
    /// `row` is below [`TILE_ROWS`].
    #[inline(always)]
    pub unsafe fn of(&mut self, row: usize) -> Places<L> {
        let (sums, totals) = (self.sums.as_mut_ptr().cast::<L::F32>(), self.totals.as_mut_ptr().cast::<L::F32>());
        // SAFETY: as the caller's.
        unsafe { [sums.add(row * TOGETHER), totals.add(row * TOGETHER)] }
    }
}

/// A stored float that 16 lanes can be loaded of.
pub(super) trait Stored: Copy {
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

/// The ranges that a part has inputs of: number, first and last input of the part in it, whether it begins and ends there.
struct PartRanges {
    next: usize,
    index: usize,
    length: usize,
    part_end: usize,
    inputs: usize,
}

#[inline(always)]
fn ranges(shape: &MatrixShape, part: Part) -> PartRanges {
    let (length, inputs) = (shape.range_length, shape.inputs);
    PartRanges { next: part.from, index: part.from / length, length, part_end: part.to, inputs }
}

impl Iterator for PartRanges {
    type Item = (usize, usize, usize, bool, bool);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.part_end {
            return None;
        }
        let (from, begin) = (self.next, self.index * self.length);
        let end = self.inputs.min(begin + self.length);
        let to = end.min(self.part_end);
        let item = (self.index, from, to, from == begin, to == end);
        (self.next, self.index) = (to, self.index + 1);
        Some(item)
    }
}

/// R rows by S strips of a float product.
///
/// # Safety
/// The machine has `L`; rows and strips exist; no other worker writes them; before a part that does not begin with the
/// first input came the one before it, with the same `kept`.
#[inline(always)]
pub(super) unsafe fn float_block<L: Lanes, W: Stored, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &[W],
    (row, strip): (usize, usize),
    part: Part,
    kept: Places<L>,
) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.input[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    let ahead = part.ahead::<W, R, S>(weights.as_ptr(), inputs);
    // SAFETY: the two slices above bound every access: k < inputs, r < R, s < S; what is kept was left by the part before.
    unsafe {
        for (index, from, to, begins, ends) in ranges(&shape, part) {
            let mut sums = if begins { [[L::zero(); S]; R] } else { kept[0].cast::<[[L::F32; S]; R]>().read() };
            for k in from..to {
                let mut w = [L::zero(); S];
                for s in 0..S {
                    if !ahead[s].is_null() {
                        L::prefetch(ahead[s].wrapping_add((k - part.from) * WIDTH).cast());
                    }
                    w[s] = W::load::<L>(weights.as_ptr().add((s * inputs + k) * WIDTH));
                }
                for r in 0..R {
                    let x = L::splat(*input.as_ptr().add(r * inputs + k));
                    for s in 0..S {
                        sums[r][s] = L::fma(x, w[s], sums[r][s]);
                    }
                }
            }
            kept[0].cast::<[[L::F32; S]; R]>().write(sums);
            if ends {
                product.end_range::<L>((row, strip), (R, S), (index, to == inputs), kept);
            }
        }
    }
}

/// R rows by S strips of a product of e4m3: what [`float_block`] makes of each number × its scale, in f32.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
pub(super) unsafe fn fp8_block<L: Lanes, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &Fp8,
    (row, strip): (usize, usize),
    part: Part,
    kept: Places<L>,
) {
    let shape = product.matrix.shape;
    let (inputs, first) = (shape.inputs, weights.first);
    let blocks = fp8_blocks(first, inputs);
    let input = &product.input[row * inputs..][..R * inputs];
    let numbers = &weights.numbers[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    let scales = &weights.scales[strip * WIDTH * blocks..][..S * WIDTH * blocks];
    let ahead = part.ahead::<u8, R, S>(numbers.as_ptr(), inputs);
    // SAFETY: the three slices above bound every access: k < inputs, block < blocks, r < R, s < S; what is kept was left by the
    // part before.
    unsafe {
        for (index, from, to, begins, ends) in ranges(&shape, part) {
            let mut sums = if begins { [[L::zero(); S]; R] } else { kept[0].cast::<[[L::F32; S]; R]>().read() };
            let mut k = from;
            while k < to {
                let block = (first + k) / FP8_BLOCK;
                let end = to.min((block + 1) * FP8_BLOCK - first);
                let mut scale = [L::zero(); S];
                for s in 0..S {
                    scale[s] = L::load(scales.as_ptr().add((s * blocks + block) * WIDTH));
                }
                while k < end {
                    let mut w = [L::zero(); S];
                    for s in 0..S {
                        if !ahead[s].is_null() && k % (LINE / WIDTH) == 0 {
                            L::prefetch(ahead[s].wrapping_add((k - part.from) * WIDTH));
                        }
                        w[s] = L::mul(L::load_e4m3_small(numbers.as_ptr().add((s * inputs + k) * WIDTH)), scale[s]);
                    }
                    for r in 0..R {
                        let x = L::splat(*input.as_ptr().add(r * inputs + k));
                        for s in 0..S {
                            sums[r][s] = L::fma(x, w[s], sums[r][s]);
                        }
                    }
                    k += 1;
                }
            }
            kept[0].cast::<[[L::F32; S]; R]>().write(sums);
            if ends {
                product.end_range::<L>((row, strip), (R, S), (index, to == inputs), kept);
            }
        }
    }
}

/// R rows by S strips of a product in bf16 pairs.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
pub(super) unsafe fn pair_block<L: Lanes, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &[u16],
    (row, strip): (usize, usize),
    part: Part,
    kept: Places<L>,
) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.activations.pairs[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    let ahead = part.ahead::<u16, R, S>(weights.as_ptr(), inputs);
    // SAFETY: the two slices above bound every access: k < inputs (even, as are ranges and parts), r < R, s < S; what is
    // kept was left by the part before.
    unsafe {
        for (index, from, to, begins, ends) in ranges(&shape, part) {
            let mut sums = if begins { [[L::zero(); S]; R] } else { kept[0].cast::<[[L::F32; S]; R]>().read() };
            let mut k = from;
            while k < to {
                let mut w = [L::load_pairs(weights.as_ptr().add(k * WIDTH)); S];
                for s in 0..S {
                    if !ahead[s].is_null() {
                        L::prefetch(ahead[s].wrapping_add((k - part.from) * WIDTH).cast());
                    }
                    w[s] = L::load_pairs(weights.as_ptr().add((s * inputs + k) * WIDTH));
                }
                for r in 0..R {
                    for s in 0..S {
                        sums[r][s] = L::dot_pairs(sums[r][s], w[s], input.as_ptr().add(r * inputs + k));
                    }
                }
                k += 2;
            }
            kept[0].cast::<[[L::F32; S]; R]>().write(sums);
            if ends {
                product.end_range::<L>((row, strip), (R, S), (index, to == inputs), kept);
            }
        }
    }
}

/// R rows by S strips of an integer product, all inputs. With NIBBLES a byte holds two weights.
///
/// # Safety
/// The machine has `L`; rows and strips exist; no other worker writes them; `quants` are NIBBLES or not.
#[inline(always)]
pub(super) unsafe fn integer_block<L: Lanes, const NIBBLES: bool, const R: usize, const S: usize>(
    product: &Product<'_>,
    quants: &Quants,
    (row, strip): (usize, usize),
    part: Part,
    kept: Places<L>,
) {
    let shape = product.matrix.shape;
    let blocks = shape.inputs / BLOCK;
    let block_bytes = const { Quants::block_bytes(NIBBLES) };
    let row_bytes = shape.inputs / 4 * L::QUAD_BYTES;
    let Activations { quads, scales, offsets, .. } = product.activations;
    let quads = &quads[row * row_bytes..][..R * row_bytes];
    let scales = &scales[row * blocks..][..R * blocks];
    let offsets = &offsets[NIBBLES as usize][row * blocks..][..R * blocks];
    let w = &quants.bytes[strip * blocks * block_bytes..][..S * blocks * block_bytes];
    let w_scales = &quants.scales[strip * WIDTH * blocks..][..S * WIDTH * blocks];
    let next = if R == 1 { NEAR / block_bytes } else { S * blocks };
    // SAFETY: the five slices above bound every access: block < blocks, r < R, s < S, quad < 8.
    unsafe {
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for block in from / BLOCK..to / BLOCK {
                for s in 0..S {
                    if part.alone || part.pass == s {
                        let number = s * blocks + block + next;
                        let at = w.as_ptr().wrapping_add(number * block_bytes);
                        for line in 0..block_bytes / LINE {
                            L::prefetch(at.wrapping_add(line * LINE));
                        }
                        L::prefetch(w_scales.as_ptr().wrapping_add(number * WIDTH).cast());
                    }
                }
                let mut dots = [[L::splat_i32(0); S]; R];
                for r in 0..R {
                    dots[r] = [L::splat_i32(*offsets.as_ptr().add(r * blocks + block)); S];
                }
                let quads = quads.as_ptr().add(block * QUADS * L::QUAD_BYTES);
                let from = w.as_ptr().add(block * block_bytes);
                // Weights first: a row's activations are then loaded once for all strips. The fences cost nothing: the
                // compiler would load all steps' values at once, and put the sums on the stack for them.
                if NIBBLES {
                    for step in 0..QUADS / 2 {
                        if R > 1 {
                            compiler_fence(Ordering::SeqCst);
                        }
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
                        if R > 1 {
                            compiler_fence(Ordering::SeqCst);
                        }
                        let mut w = [L::load_weights(from.add(step * 4 * WIDTH)); S];
                        for s in 1..S {
                            w[s] = L::load_weights(from.add(s * blocks * block_bytes + step * 4 * WIDTH));
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
            kept[0].cast::<[[L::F32; S]; R]>().write(sums);
            product.end_range::<L>((row, strip), (R, S), (index, to == shape.inputs), kept);
        }
    }
}
