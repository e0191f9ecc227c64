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
use super::packed::{Fp8, Packed, PackedValues, Quants};
use super::pool::SharedSlice;
use super::register_blocks::{Kept, Part, Places, Stored, float_block, fp8_block, integer_block, pair_block};
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
    /// `[rows][inputs / 32]`: sums of the block's integers.
    pub sums: Aligned<i32>,
    /// `[rows][inputs / 32]`: what takes the weights' offset off again, for those of 8 and of 4 bits: minus the offset
    /// times the block's sum.
    pub offsets: [Aligned<i32>; 2],
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
        let offsets = [Aligned::zeroed(blocks), Aligned::zeroed(blocks)];
        Self { pairs, quads, scales: Aligned::zeroed(blocks), sums, offsets, halves, laid: Laid::default() }
    }
}

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
    /// Stores what one row has in a strip that is not full: a plane's partial sum, or the finished total.
    ///
    /// # Safety
    /// No other worker may write `out`, the strip's first place in the row.
    #[inline(always)]
    unsafe fn store_some<L: Lanes>(&self, out: &mut [f32], bias: Option<&[f32]>, sum: L::F32) {
        let mut sums = [0f32; WIDTH];
        // SAFETY: 16 values lie in the array.
        unsafe { L::store(sums.as_mut_ptr(), sum) };
        for i in 0..out.len() {
            out[i] = finish(sums[i], bias.map(|bias| bias[i]), self.residual.then_some(out[i]));
        }
    }

    /// Ends a range of a block of `rows` rows and `strips` strips: gives its sums away as a plane, or adds them to the totals;
    /// the last range stores those. All are read from memory, in loops: registers would have the same written out for
    /// each of them. What is the same for all rows is asked once: with few inputs in a range, this is a good part of the time.
    ///
    /// # Safety
    /// No other worker may write these rows and strips; `sums` holds the block's, `totals` what the ranges before left.
    #[inline(always)]
    pub(super) unsafe fn end_range<L: Lanes>(
        &self,
        (row, strip): (usize, usize),
        (rows, strips): (usize, usize),
        (index, last): (usize, bool),
        [sums, totals]: Places<L>,
    ) {
        let MatrixShape { outputs, planes, .. } = self.matrix.shape;
        let earlier = planes == 1 && index > 0;
        // SAFETY: as the caller's; `count` values lie at each place, and 16 in a bias of a full strip.
        unsafe {
            if planes == 1 && !last {
                for i in 0..rows * strips {
                    let (sum, kept) = (sums.add(i).read(), totals.add(i));
                    kept.write(if earlier { L::add(kept.read(), sum) } else { sum });
                }
                return;
            }
            let plane = if planes == 1 { 0 } else { index };
            for s in 0..strips {
                let first = (strip + s) * WIDTH;
                let count = WIDTH.min(outputs - first);
                let bias = self.bias.map(|bias| &bias[first..][..count]);
                let added = match bias {
                    Some(bias) if count == WIDTH => L::load(bias.as_ptr()),
                    _ => L::zero(),
                };
                for r in 0..rows {
                    let at = r * strips + s;
                    let mut sum = sums.add(at).read();
                    if earlier {
                        sum = L::add(totals.add(at).read(), sum);
                    }
                    let out = self.output.part(((row + r) * planes + plane) * self.width + self.first + first, count);
                    if count < WIDTH {
                        self.store_some::<L>(out, bias, sum);
                        continue;
                    }
                    if bias.is_some() {
                        sum = L::add(sum, added);
                    }
                    if self.residual {
                        sum = L::add(L::load(out.as_ptr()), sum);
                    }
                    L::store(out.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// Rows up to which floats are computed in parts of [`PART_BYTES`]: the weights of one part stay in the first-level cache
/// for all rows, while the next ones arrive. With more rows, weights arrive early enough.
const PART_ROWS: usize = 48;

/// Bytes of one strip's weights that are computed for all rows before those that come next.
const PART_BYTES: usize = 4096;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 96;

/// A packed form, and how a block of rows and strips of its products is computed.
trait Form: Copy {
    /// Whether a sum takes two registers: the integers of a block, and the chain over blocks. All inputs are then one part.
    const INTEGERS: bool;
    /// Bytes that the weights of two inputs take in a strip.
    const PAIR_BYTES: usize;

    /// R rows by S strips.
    ///
    /// # Safety
    /// As [`float_block`].
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        part: Part,
        kept: Places<L>,
    );
}

impl<W: Stored> Form for &[W] {
    const INTEGERS: bool = false;
    const PAIR_BYTES: usize = 2 * WIDTH * size_of::<W>();
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        part: Part,
        kept: Places<L>,
    ) {
        // SAFETY: as the caller's.
        unsafe { float_block::<L, W, R, S>(product, self, at, part, kept) }
    }
}

impl Form for &Fp8 {
    const INTEGERS: bool = false;
    const PAIR_BYTES: usize = 2 * WIDTH;
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        part: Part,
        kept: Places<L>,
    ) {
        // SAFETY: as the caller's.
        unsafe { fp8_block::<L, R, S>(product, self, at, part, kept) }
    }
}

#[derive(Clone, Copy)]
struct Pairs<'a>(&'a [u16]);

impl Form for Pairs<'_> {
    const INTEGERS: bool = false;
    const PAIR_BYTES: usize = 2 * WIDTH * size_of::<u16>();
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        part: Part,
        kept: Places<L>,
    ) {
        // SAFETY: as the caller's.
        unsafe { pair_block::<L, R, S>(product, self.0, at, part, kept) }
    }
}

#[derive(Clone, Copy)]
struct Integers<'a, const NIBBLES: bool>(&'a Quants);

impl<const NIBBLES: bool> Form for Integers<'_, NIBBLES> {
    const INTEGERS: bool = true;
    const PAIR_BYTES: usize = Quants::block_bytes(NIBBLES) / (BLOCK / 2);
    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const S: usize>(
        self,
        product: &Product<'_>,
        at: (usize, usize),
        part: Part,
        kept: Places<L>,
    ) {
        // SAFETY: as the caller's.
        unsafe { integer_block::<L, NIBBLES, R, S>(product, self.0, at, part, kept) }
    }
}

/// Strips that are computed together, where there are as many.
pub(crate) const TOGETHER: usize = 2;

/// Rows of the next block: as many as keep their sums in registers, and no rest that is computed slowly alone.
#[inline(always)]
fn block_rows<L: Lanes, F: Form>(left: usize, strips: usize) -> usize {
    match (L::WIDE && !F::INTEGERS, strips) {
        (_, 1) => {
            if left >= 4 {
                4
            } else {
                1
            }
        }
        (true, _) => match left {
            12.. => 12,
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        },
        (false, _) => match left {
            9.. => 6,
            7.. => 4,
            _ => left,
        },
    }
}

/// All rows of a tile, in blocks whose sums stay in registers.
///
/// # Safety
/// As [`float_block`]; there are at most [`TILE_ROWS`] rows.
#[inline(always)]
unsafe fn blocks<L: Lanes, F: Form>(form: F, product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
    let (inputs, count) = (product.matrix.shape.inputs, rows.1 - rows.0);
    let mut kept = Kept::<L>::new();
    let inputs_together =
        if F::INTEGERS || count == 1 || count > PART_ROWS { inputs } else { PART_BYTES / F::PAIR_BYTES * 2 };
    let mut strip = strips.0;
    while strip < strips.1 {
        // One row of integers keeps up with one stream.
        let together = if F::INTEGERS && count == 1 { 1 } else { (strips.1 - strip).min(TOGETHER) };
        let mut from = 0;
        while from < inputs {
            let to = inputs.min(from + inputs_together);
            let (mut row, mut pass) = (rows.0, 0);
            while row < rows.1 {
                let step = block_rows::<L, F>(rows.1 - row, together);
                let (at, part) = ((row, strip), Part { from, to, pass, alone: step == count });
                // SAFETY: as the caller's; `step` rows are left.
                unsafe {
                    let kept = kept.of(row - rows.0);
                    match (step, together) {
                        (12, 2) if L::WIDE && !F::INTEGERS => form.block::<L, 12, 2>(product, at, part, kept),
                        (8, 2) if L::WIDE && !F::INTEGERS => form.block::<L, 8, 2>(product, at, part, kept),
                        (6, 2) if !L::WIDE || F::INTEGERS => form.block::<L, 6, 2>(product, at, part, kept),
                        (5, 2) if !L::WIDE || F::INTEGERS => form.block::<L, 5, 2>(product, at, part, kept),
                        (4, 2) => form.block::<L, 4, 2>(product, at, part, kept),
                        (3, 2) if !L::WIDE || F::INTEGERS => form.block::<L, 3, 2>(product, at, part, kept),
                        (2, 2) => form.block::<L, 2, 2>(product, at, part, kept),
                        (1, 2) => form.block::<L, 1, 2>(product, at, part, kept),
                        (4, _) => form.block::<L, 4, 1>(product, at, part, kept),
                        (_, _) => form.block::<L, 1, 1>(product, at, part, kept),
                    }
                };
                (row, pass) = (row + step, pass + 1);
            }
            from = to;
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
            PackedValues::Fp8(fp8) => blocks::<L, _>(fp8, product, rows, strips),
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
