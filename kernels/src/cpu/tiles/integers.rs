//! Integers by tiles: dots of 16 rows by 16 outputs by 32 inputs in i32, folded per block in f32 (numerics rule 3).
//!
//! Weights of a few blocks are unpacked to bytes with a sign, and scales to f32, once for all rows of the tile; then every 16
//! rows pass over them with their 16 × 16 sums in registers. The next block's tiles are on their way while one is folded.
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use std::mem::MaybeUninit;

use super::{ROW_BYTES, ROWS, Shape, Tiles};
use crate::blocks::KKind;
use crate::cpu::gemm::{Product, TILE_ROWS, TOGETHER};
use crate::cpu::kquants::{self, KQuants};
use crate::cpu::lanes::WIDTH;
use crate::cpu::lanes::bits::BitLanes;
use crate::cpu::packed::{PackedValues, Quants};
use crate::cpu::tiles::Laid;
use crate::quantise::BLOCK;

/// Blocks that are unpacked at a time: two strips of them and 16 rows of activations stay in the first-level cache.
const CHUNK: usize = 16;
/// Bytes of a block of a strip.
const BLOCK_BYTES: usize = BLOCK * WIDTH;
/// Places of 16 f32 beside a block: its scales, then minima, or the small scales of its halves.
const BESIDE: usize = 3;
/// Sums of a tile.
const SUMS: usize = ROWS * WIDTH;

/// A dot and a scale per block.
const PLAIN: u8 = 0;
/// And a minimum (Q4_K, Q5_K).
const MINIMA: u8 = 1;
/// Dots of the first and last 16 inputs, each with a small scale (Q6_K).
const HALVES: u8 = 2;

/// Space on the worker's stack, not cleared as a whole: it is reached by pointers, and what is read was written before.
#[repr(C, align(64))]
struct Space {
    /// Per strip and block, quads of inputs: `[8][16][4]`.
    weights: [[[u8; BLOCK_BYTES]; CHUNK]; TOGETHER],
    beside: [[[[f32; WIDTH]; BESIDE]; CHUNK]; TOGETHER],
    /// Of the block being folded and of the next one, of both halves.
    dots: [[[i32; SUMS]; 2]; 2],
    /// Of the range: per strip, `[rows][16]`.
    sums: [[[f32; WIDTH]; TILE_ROWS]; TOGETHER],
    totals: [[[f32; WIDTH]; TILE_ROWS]; TOGETHER],
}

impl Space {
    /// # Safety
    /// The space lives.
    #[inline(always)]
    unsafe fn sums(space: *mut Self, s: usize, row: usize) -> *mut f32 {
        // SAFETY: as the caller's; indexes are checked.
        unsafe { (&raw mut (*space).sums[s][row]).cast() }
    }

    /// # Safety
    /// The space lives.
    #[inline(always)]
    unsafe fn totals(space: *mut Self, s: usize, row: usize) -> *mut f32 {
        // SAFETY: as the caller's; indexes are checked.
        unsafe { (&raw mut (*space).totals[s][row]).cast() }
    }
}

const _: () = assert!(TILE_ROWS.is_multiple_of(ROWS), "a tile's rows are whole tiles of the unit");

/// A packed form of integers.
trait Form: Copy {
    const FOLD: u8;

    /// Writes a block of a strip as bytes with a sign, and what lies beside it.
    ///
    /// # Safety
    /// The machine has `L`; strip and block exist; there is space for 512 bytes and 3 × 16 f32.
    unsafe fn unpack<L: BitLanes>(self, strip: usize, block: usize, bytes: *mut u8, beside: *mut f32);
}

/// 8 bits, or with NIBBLES 4.
#[derive(Clone, Copy)]
struct Plain<'a, const NIBBLES: bool> {
    quants: &'a Quants,
    blocks: usize,
}

impl<const NIBBLES: bool> Form for Plain<'_, NIBBLES> {
    const FOLD: u8 = PLAIN;

    #[inline(always)]
    unsafe fn unpack<L: BitLanes>(self, strip: usize, block: usize, bytes: *mut u8, beside: *mut f32) {
        let (number, size) = (strip * self.blocks + block, Quants::block_bytes(NIBBLES));
        let from = &self.quants.bytes[number * size..][..size];
        let scales = &self.quants.scales[number * WIDTH..][..WIDTH];
        let offset = Quants::offset(NIBBLES) as u8;
        // SAFETY: the slices bound what is read; the caller's space what is written.
        unsafe {
            ahead::<L>(from, CHUNK * size);
            L::store(beside, L::load_f16(scales.as_ptr()));
            for step in 0..size / ROW_BYTES {
                let (from, to) = (from.as_ptr().add(step * ROW_BYTES), bytes.add(step * ROW_BYTES));
                if NIBBLES {
                    let [low, high] = L::load_nibbles(from);
                    L::store_quads(to, L::sub_bytes(low, offset));
                    L::store_quads(to.add(size), L::sub_bytes(high, offset));
                } else {
                    L::store_quads(to, L::sub_bytes(L::load_quads(from), offset));
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Super<'a, const BITS: u8>(&'a KQuants);

impl<const BITS: u8> Form for Super<'_, BITS> {
    const FOLD: u8 = if BITS == kquants::Q6 { HALVES } else { MINIMA };

    #[inline(always)]
    unsafe fn unpack<L: BitLanes>(self, strip: usize, block: usize, bytes: *mut u8, beside: *mut f32) {
        // SAFETY: as the caller's.
        unsafe { self.0.unpack::<L, BITS>(strip, block, bytes, beside) }
    }
}

/// Asks for what lies as far ahead as the next blocks to be unpacked.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
unsafe fn ahead<L: BitLanes>(from: &[u8], distance: usize) {
    for line in 0..from.len() / ROW_BYTES {
        // SAFETY: as the caller's; asking for any address is harmless.
        unsafe { L::prefetch(from.as_ptr().wrapping_add(distance + line * ROW_BYTES)) };
    }
}

/// The tiles of one block of 16 rows by 16 outputs; `A`, `B` and `C` take turns with the next block's.
///
/// # Safety
/// The tiles are configured for the fold; there are a tile of activations, 512 bytes of weights, and space for the dots.
#[inline(always)]
unsafe fn dots<T: Tiles, F: Form>(tiles: &mut T, odd: bool, quants: *const i8, weights: *const u8, to: *mut i32) {
    let (quants, to) = (quants.cast::<u8>(), to.cast::<u8>());
    // SAFETY: as the caller's.
    unsafe {
        if F::FOLD == HALVES {
            tiles.zero::<0>();
            tiles.load::<2>(quants, BLOCK);
            tiles.load::<4>(weights, ROW_BYTES);
            tiles.dot_bytes::<0, 2, 4>();
            tiles.zero::<1>();
            tiles.load::<3>(quants.add(BLOCK / 2), BLOCK);
            tiles.load::<5>(weights.add(BLOCK_BYTES / 2), ROW_BYTES);
            tiles.dot_bytes::<1, 3, 5>();
            tiles.store::<0>(to, ROW_BYTES);
            tiles.store::<1>(to.add(SUMS * size_of::<i32>()), ROW_BYTES);
        } else if odd {
            tiles.zero::<1>();
            tiles.load::<3>(quants, BLOCK);
            tiles.load::<5>(weights, ROW_BYTES);
            tiles.dot_bytes::<1, 3, 5>();
            tiles.store::<1>(to, ROW_BYTES);
        } else {
            tiles.zero::<0>();
            tiles.load::<2>(quants, BLOCK);
            tiles.load::<4>(weights, ROW_BYTES);
            tiles.dot_bytes::<0, 2, 4>();
            tiles.store::<0>(to, ROW_BYTES);
        }
    }
}

/// 16 dots as f32.
///
/// # Safety
/// The machine has `L`, the pointer is good for 16 values.
#[inline(always)]
unsafe fn load_dots<L: BitLanes>(from: *const i32) -> L::F32 {
    // SAFETY: as the caller's.
    unsafe { L::to_f32(L::bits(L::load(from.cast()))) }
}

/// R of 16 rows by a strip over some blocks: `sums`, `[R][16]`, go on.
///
/// # Safety
/// The machine has `L` and `T`, configured; laid activations from block `number` on and strip `s` of the space's weights
/// hold `count` blocks; the dots' space and `sums` were written.
#[inline(always)]
unsafe fn blocks<L: BitLanes, T: Tiles, F: Form, const R: usize>(
    tiles: &mut T,
    laid: &Laid,
    (number, count): (usize, usize),
    space: *mut Space,
    s: usize,
    sums: *mut f32,
) {
    let quants = &laid.quants[number * ROWS * BLOCK..][..count * ROWS * BLOCK];
    let scales = &laid.scales[number * ROWS..][..count * ROWS];
    let taken = &laid.taken[number * ROWS..][..count * ROWS];
    // SAFETY: the slices above bound every access to what is laid: block < count, r < R ≤ 16. The rest is the caller's
    // promise.
    unsafe {
        let weights = move |block: usize| (&raw const (*space).weights[s][block]).cast::<u8>();
        let space_of = move |block: usize| (&raw mut (*space).dots[block % 2]).cast::<i32>();
        let mut acc = [L::zero(); R];
        for r in 0..R {
            acc[r] = L::load(sums.add(r * WIDTH));
        }
        dots::<T, F>(tiles, false, quants.as_ptr(), weights(0), space_of(0));
        for block in 0..count {
            let next = block + 1;
            if next < count {
                let quants = quants.as_ptr().add(next * ROWS * BLOCK);
                dots::<T, F>(tiles, next % 2 == 1, quants, weights(next), space_of(next));
            }
            let beside = (&raw const (*space).beside[s][block]).cast::<f32>();
            let scale = L::load(beside);
            // Minima, or the scales of the halves.
            let second = if F::FOLD == PLAIN { scale } else { L::load(beside.add(WIDTH)) };
            let third = if F::FOLD == HALVES { L::load(beside.add(2 * WIDTH)) } else { scale };
            for r in 0..R {
                let dots = space_of(block).add(r * WIDTH);
                let mut dot = load_dots::<L>(dots);
                if F::FOLD == HALVES {
                    // Whole numbers below 2²⁴: exact, as in integers.
                    dot = L::fma(load_dots::<L>(dots.add(SUMS)), third, L::mul(dot, second));
                }
                let s_a = L::splat(*scales.as_ptr().add(block * ROWS + r));
                acc[r] = L::fma(dot, L::mul(s_a, scale), acc[r]);
                if F::FOLD == MINIMA {
                    acc[r] = L::fma(L::splat(*taken.as_ptr().add(block * ROWS + r)), second, acc[r]);
                }
            }
        }
        for r in 0..R {
            L::store(sums.add(r * WIDTH), acc[r]);
        }
    }
}

/// All rows of a tile by the strips `strips.0..strips.1`, at most [`TOGETHER`].
///
/// # Safety
/// As [`super::tile`]; the tiles are configured; the dots' space was written.
#[inline(always)]
unsafe fn group<L: BitLanes, T: Tiles, F: Form>(
    tiles: &mut T,
    form: F,
    product: &Product<'_>,
    space: *mut Space,
    rows: (usize, usize),
    strips: (usize, usize),
) {
    let (shape, count, together) = (product.matrix.shape, rows.1 - rows.0, strips.1 - strips.0);
    let (row_blocks, laid) = (shape.inputs / BLOCK, &product.activations.laid);
    assert!(count <= TILE_ROWS && together <= TOGETHER, "a tile fits its space");
    // SAFETY: s < together, row < count, b < chunk ≤ CHUNK bound every access to the space; the rest is the caller's
    // promise.
    unsafe {
        for (index, (from, to)) in shape.ranges().enumerate() {
            for s in 0..together {
                Space::sums(space, s, 0).write_bytes(0, count.next_multiple_of(ROWS) * WIDTH);
            }
            let (mut block, end) = (from / BLOCK, to / BLOCK);
            while block < end {
                let chunk = CHUNK.min(end - block);
                for s in 0..together {
                    for b in 0..chunk {
                        let bytes = (&raw mut (*space).weights[s][b]).cast();
                        let beside = (&raw mut (*space).beside[s][b]).cast();
                        form.unpack::<L>(strips.0 + s, block + b, bytes, beside);
                    }
                }
                for row in (0..count).step_by(ROWS) {
                    let laid_blocks = ((rows.0 + row) / ROWS * row_blocks + block, chunk);
                    for s in 0..together {
                        let sums = Space::sums(space, s, row);
                        if count - row <= ROWS / 2 {
                            blocks::<L, T, F, { ROWS / 2 }>(tiles, laid, laid_blocks, space, s, sums);
                        } else {
                            blocks::<L, T, F, ROWS>(tiles, laid, laid_blocks, space, s, sums);
                        }
                    }
                }
                block += chunk;
            }
            let place = (index, to == shape.inputs);
            for s in 0..together {
                for row in 0..count {
                    let (sum, kept) = (Space::sums(space, s, row), Space::totals(space, s, row));
                    let (mut sum, mut total) = (L::load(sum), if index == 0 { L::zero() } else { L::load(kept) });
                    let at = (rows.0 + row, strips.0 + s);
                    product.end_range::<L>(at, (1, 1), place, [&raw mut sum, &raw mut total]);
                    L::store(kept, total);
                }
            }
        }
    }
}

/// # Safety
/// As [`super::tile`].
#[inline(always)]
unsafe fn groups<L: BitLanes, T: Tiles, F: Form>(
    form: F,
    product: &Product<'_>,
    rows: (usize, usize),
    strips: (usize, usize),
) {
    let mut space = MaybeUninit::<Space>::uninit();
    let space = space.as_mut_ptr();
    // Of the last rows too, whose tile is as high as the others': what is laid beyond them is computed and dropped.
    let height = ROWS.min(rows.1 - rows.0);
    let inputs = if F::FOLD == HALVES { BLOCK / 2 } else { BLOCK };
    let shape = |rows, bytes| Shape { rows, bytes };
    let (sums, activations, weights) = (shape(height, ROW_BYTES), shape(height, inputs), shape(inputs / 4, ROW_BYTES));
    let unused = Shape::default();
    let shapes = [sums, sums, activations, activations, weights, weights, unused, unused];
    let mut tiles = T::default();
    // SAFETY: as the caller's; the space is this function's own, and dots that no tile stores are zeros.
    unsafe {
        (&raw mut (*space).dots).write_bytes(0, 1);
        tiles.configure(&shapes);
        for strip in (strips.0..strips.1).step_by(TOGETHER) {
            group::<L, T, F>(&mut tiles, form, product, space, rows, (strip, strips.1.min(strip + TOGETHER)));
        }
        tiles.release();
    }
}

/// # Safety
/// As [`super::tile`], for a matrix of integers.
#[inline(always)]
pub(super) unsafe fn tile<L: BitLanes, T: Tiles>(
    product: &Product<'_>,
    values: &PackedValues,
    rows: (usize, usize),
    strips: (usize, usize),
) {
    let blocks = product.matrix.shape.inputs / BLOCK;
    // SAFETY: as the caller's.
    unsafe {
        match values {
            PackedValues::Quants(quants) if quants.nibbles => {
                groups::<L, T, _>(Plain::<true> { quants, blocks }, product, rows, strips);
            }
            PackedValues::Quants(quants) => groups::<L, T, _>(Plain::<false> { quants, blocks }, product, rows, strips),
            PackedValues::K(quants) => match quants.kind() {
                KKind::Q4 => groups::<L, T, _>(Super::<{ kquants::Q4 }>(quants), product, rows, strips),
                KKind::Q5 => groups::<L, T, _>(Super::<{ kquants::Q5 }>(quants), product, rows, strips),
                KKind::Q6 => groups::<L, T, _>(Super::<{ kquants::Q6 }>(quants), product, rows, strips),
            },
            _ => unreachable!("only integers come here"),
        }
    }
}
