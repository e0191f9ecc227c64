//! bf16 products by tiles, of the family `amx-bf16`: sums stay in tiles over a range's steps of 32 inputs.
//!
//! Every number of rows goes through tiles, one row too: a tile of fewer rows is the same sum.

use std::mem::MaybeUninit;

use super::{REGISTERS, ROW_BYTES, ROWS, Shape, Tiles};
use crate::cpu::gemm::{Product, TILE_ROWS, TOGETHER};
use crate::cpu::lanes::{Lanes, WIDTH};
use crate::quantise::BLOCK;

/// Steps of 32 inputs before the sums of other rows are taken up: the weights of two strips then stay in the first-level
/// cache for all rows.
const CHUNK: usize = 16;
/// Bytes of a tile.
const TILE_BYTES: usize = ROWS * ROW_BYTES;
/// Tiles of rows that a run of rows has at most.
const RUN: usize = TILE_ROWS / ROWS;

/// Sums of a range, and totals, on the worker's stack; reached by pointers, as nothing of it is read unwritten.
#[repr(C, align(64))]
struct Space {
    /// Per tile of rows and strip, `[16][16]`.
    sums: [[[f32; ROWS * WIDTH]; TOGETHER]; RUN],
    totals: [[[f32; ROWS * WIDTH]; TOGETHER]; RUN],
}

/// `A2` says that there is a second tile of rows, `B2` that there is a second strip. Registers: sums 0 (first rows, first
/// strip), 1, 2 (second rows), 3; activations 4, 5; weights 6, 7.
///
/// # Safety
/// The tiles are configured; `count` tiles lie at each of `rows` and `strips` that is used; sums have space, and were
/// written unless `first`.
#[inline(always)]
unsafe fn steps<L: Lanes, T: Tiles, const A2: bool, const B2: bool>(
    tiles: &mut T,
    rows: [*const u8; 2],
    strips: [*const u8; 2],
    sums: [[*mut u8; 2]; 2],
    (count, first): (usize, bool),
) {
    // SAFETY: as the caller's.
    unsafe {
        if first {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
        } else {
            tiles.load::<0>(sums[0][0], ROW_BYTES);
            if B2 {
                tiles.load::<1>(sums[0][1], ROW_BYTES);
            }
            if A2 {
                tiles.load::<2>(sums[1][0], ROW_BYTES);
            }
            if A2 && B2 {
                tiles.load::<3>(sums[1][1], ROW_BYTES);
            }
        }
        for step in 0..count {
            let at = step * TILE_BYTES;
            tiles.load::<4>(rows[0].add(at), ROW_BYTES);
            tiles.load::<6>(strips[0].add(at), ROW_BYTES);
            tiles.dot_pairs::<0, 4, 6>();
            if B2 {
                tiles.load::<7>(strips[1].add(at), ROW_BYTES);
                tiles.dot_pairs::<1, 4, 7>();
            }
            if A2 {
                tiles.load::<5>(rows[1].add(at), ROW_BYTES);
                tiles.dot_pairs::<2, 5, 6>();
            }
            if A2 && B2 {
                tiles.dot_pairs::<3, 5, 7>();
            }
        }
        tiles.store::<0>(sums[0][0], ROW_BYTES);
        if B2 {
            tiles.store::<1>(sums[0][1], ROW_BYTES);
        }
        if A2 {
            tiles.store::<2>(sums[1][0], ROW_BYTES);
        }
        if A2 && B2 {
            tiles.store::<3>(sums[1][1], ROW_BYTES);
        }
    }
}

/// All rows of a tile by one or two strips.
///
/// # Safety
/// As [`super::tile`]; the tiles are configured.
#[inline(always)]
unsafe fn group<L: Lanes, T: Tiles>(
    tiles: &mut T,
    product: &Product<'_>,
    weights: &[u16],
    space: *mut Space,
    rows: (usize, usize),
    strips: (usize, usize),
) {
    let (shape, count, together) = (product.matrix.shape, rows.1 - rows.0, strips.1 - strips.0);
    let (row_steps, runs) = (shape.inputs / BLOCK, count.div_ceil(ROWS));
    assert!(runs <= RUN && together <= TOGETHER, "a tile fits its space");
    let pairs = &product.activations.laid.pairs[rows.0 * shape.inputs..][..runs * ROWS * shape.inputs];
    let weights = &weights[strips.0 * WIDTH * shape.inputs..][..together * WIDTH * shape.inputs];
    // SAFETY: the slices above bound every access to rows and weights (step < row_steps, run < runs, s < together), and
    // run < RUN, s < TOGETHER those to the space; the rest is the caller's promise.
    unsafe {
        let rows_at = |run: usize, step: usize| pairs.as_ptr().cast::<u8>().add((run * row_steps + step) * TILE_BYTES);
        let strip_at = |s: usize, step: usize| weights.as_ptr().cast::<u8>().add((s * row_steps + step) * TILE_BYTES);
        let sums = move |run: usize, s: usize| (&raw mut (*space).sums[run][s]).cast::<u8>();
        for (index, (from, to)) in shape.ranges().enumerate() {
            let (start, end) = (from / BLOCK, to / BLOCK);
            for step in (start..end).step_by(CHUNK) {
                let part = (CHUNK.min(end - step), step == start);
                let second = together - 1;
                let strip = [strip_at(0, step), strip_at(second, step)];
                for run in (0..runs).step_by(2) {
                    let other = (run + 1).min(runs - 1);
                    let row = [rows_at(run, step), rows_at(other, step)];
                    let of = |run| [sums(run, 0), sums(run, second)];
                    let sums = [of(run), of(other)];
                    match (other > run, second > 0) {
                        (true, true) => steps::<L, T, true, true>(tiles, row, strip, sums, part),
                        (true, false) => steps::<L, T, true, false>(tiles, row, strip, sums, part),
                        (false, true) => steps::<L, T, false, true>(tiles, row, strip, sums, part),
                        (false, false) => steps::<L, T, false, false>(tiles, row, strip, sums, part),
                    }
                }
            }
            let place = (index, to == shape.inputs);
            for s in 0..together {
                for row in 0..count {
                    let at = row % ROWS * WIDTH;
                    let sum = (&raw const (*space).sums[row / ROWS][s]).cast::<f32>().add(at);
                    let kept = (&raw mut (*space).totals[row / ROWS][s]).cast::<f32>().add(at);
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
/// As [`super::tile`], for a matrix of bf16 pairs.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, T: Tiles>(
    product: &Product<'_>,
    weights: &[u16],
    rows: (usize, usize),
    strips: (usize, usize),
) {
    let mut space = MaybeUninit::<Space>::uninit();
    let space = space.as_mut_ptr();
    // The last rows' tile is as high as the others': what is laid beyond them is computed and dropped.
    let height = ROWS.min(rows.1 - rows.0);
    let (high, full) = (Shape { rows: height, bytes: ROW_BYTES }, Shape { rows: ROWS, bytes: ROW_BYTES });
    let shapes: [Shape; REGISTERS] = [high, high, high, high, high, high, full, full];
    let mut tiles = T::default();
    // SAFETY: as the caller's; the space is this function's own.
    unsafe {
        tiles.configure(&shapes);
        for strip in (strips.0..strips.1).step_by(TOGETHER) {
            group::<L, T>(&mut tiles, product, weights, space, rows, (strip, strips.1.min(strip + TOGETHER)));
        }
        tiles.release();
    }
}
