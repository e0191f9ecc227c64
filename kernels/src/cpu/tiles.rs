//! Products by AMX tiles: integers with the bits of every other instruction set, and bf16 in a family of its own.
//!
//! A tile of activations (16 rows) times a tile of weights (16 outputs, as [`super::packed`] lays them) is one
//! instruction. The code is written over [`Tiles`], one method per instruction: [`amx`] is the processor's,
//! [`emulated`] computes what Intel's manual says of each, so that the rest runs in tests on any machine.
//!
//! *Integers* ([`integers`]): blocks of 32 inputs have scales of their own, so an instruction takes 32 inputs, half of
//! what a tile can hold, and its 16 × 16 sums are stored and folded in f32 in the order of numerics rule 3. That fold
//! is the limit: per 16 × 16 × 32 products 16 conversions, multiplications and fused multiply-adds on two ports (24
//! cycles), and some 57 loads on two (28), beside 8 to 16 cycles of the tile unit: by count at most 290
//! multiply-adds a cycle, 2.3 times the peak of byte dot products (two of 64). Q4_K and Q5_K fold 4 operations a row,
//! Q6_K (two halves, two tiles) 6. Not yet run on a machine that has AMX.
//!
//! *bf16* ([`pairs`]): sums stay in tiles over a whole range, four of them per two tiles of either side: nothing but the
//! instruction's rate and the loads limits it.
#![allow(unsafe_code)] // tile instructions

#[cfg(target_arch = "x86_64")]
mod amx;
mod emulated;
mod integers;
mod laid;
mod pairs;
pub(super) mod steps;

use super::gemm::Product;
use super::isa::InstructionSet;
#[cfg(target_arch = "x86_64")]
use super::lanes::Avx512;
use super::lanes::Plain;
use super::lanes::bits::BitLanes;
use super::packed::{Packed, PackedValues, Takes};
use crate::backend::PairOrder;

#[cfg(target_arch = "x86_64")]
pub(super) use amx::granted;
pub(crate) use laid::Laid;

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a full row of a tile.
const ROW_BYTES: usize = 64;
/// Tile registers.
const REGISTERS: usize = 8;

/// Rows from which integers are worth a tile: below, unpacking a block of weights and the tile's sums cost more than byte
/// dot products of the rows (about 6 cycles a row and block, against 40).
const LEAST_ROWS: usize = 8;

/// Rows and bytes per row of a tile register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    rows: usize,
    bytes: usize,
}

/// The tile registers of the thread that uses it, an instruction a method (Intel SDM, volume 2). All are unsafe: the
/// machine must have them, pointers must be good for the tile's rows, and shapes must fit each other.
trait Tiles: Default {
    /// Gives every register its shape, and zeros (`LDTILECFG`). Registers without rows cannot be used.
    unsafe fn configure(&mut self, shapes: &[Shape; REGISTERS]);
    /// `TILERELEASE`.
    unsafe fn release(&mut self);
    /// `TILEZERO`.
    unsafe fn zero<const T: u8>(&mut self);
    /// Row r is read at `from + r × stride` bytes (`TILELOADD`).
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// Row r is written at `to + r × stride` bytes (`TILESTORED`).
    unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize);
    /// `C[m][n] += Σ A[m][4 k + i] · B[k][4 n + i]` of bytes with their signs, in i32 (`TDPBSSD`).
    unsafe fn dot_bytes<const C: u8, const A: u8, const B: u8>(&mut self);
    /// Of bf16 pairs in f32 (`TDPBF16PS`): even and odd products in a chain each, then both to `C`; denormals flushed.
    unsafe fn dot_pairs<const C: u8, const A: u8, const B: u8>(&mut self);
}

/// Whether a product of so many rows is one of tiles.
pub(super) fn used(set: InstructionSet, matrix: &Packed, rows: usize) -> bool {
    set.has_tiles()
        && match matrix.takes() {
            Takes::Floats => false,
            Takes::Integers => rows >= LEAST_ROWS,
            Takes::Pairs => matches!(&matrix.values, PackedValues::Bf16Pairs(_, PairOrder::Amx)),
        }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn body<L: BitLanes, T: Tiles>(product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
    // SAFETY: as the caller's.
    unsafe {
        match &product.matrix.values {
            PackedValues::Bf16Pairs(weights, _) => pairs::tile::<L, T>(product, weights, rows, strips),
            values => integers::tile::<L, T>(product, values, rows, strips),
        }
    }
}

/// Computes rows `rows.0..rows.1` of the strips `strips.0..strips.1` of a product that is one of tiles; `rows.0` is a
/// multiple of 16.
///
/// # Safety
/// The machine has `set`; the activations are laid; no other worker writes these rows and strips.
pub(super) unsafe fn tile(set: InstructionSet, product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni,avx512bf16")]
    unsafe fn processor(product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
        // SAFETY: as the caller's; this function has the instructions.
        unsafe { body::<Avx512<true, true>, amx::Amx>(product, rows, strips) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni")]
    unsafe fn emulated_wide(product: &Product<'_>, rows: (usize, usize), strips: (usize, usize)) {
        // SAFETY: as the caller's; this function has the instructions.
        unsafe { body::<Avx512<true, false>, emulated::Emulated>(product, rows, strips) }
    }
    assert!(rows.0.is_multiple_of(ROWS), "a run of rows begins with a tile");
    // SAFETY: the machine has what `lanes` says; the rest is the caller's promise.
    unsafe {
        match (set, set.lanes()) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Amx, _) => processor(product, rows, strips),
            #[cfg(target_arch = "x86_64")]
            (_, InstructionSet::Avx512Vnni) => emulated_wide(product, rows, strips),
            _ => body::<Plain, emulated::Emulated>(product, rows, strips),
        }
    }
}

/// Multiply-adds of a round of [`rounds`]: four products of full tiles, of bytes or of bf16 pairs.
pub(crate) const fn round_products(bytes: bool) -> usize {
    4 * ROWS * (ROW_BYTES / 4) * if bytes { ROW_BYTES } else { ROW_BYTES / 2 }
}

#[inline(always)]
unsafe fn rounds_of<T: Tiles>(bytes: bool, rounds: usize, result: &mut f32) {
    let mut tiles = T::default();
    let ones = [if bytes { 1u32 } else { 0x3f80_3f80 }; ROWS * ROW_BYTES / 4]; // 1 0 0 0, or a pair of 1.0
    let mut sums = [0u32; ROWS * ROW_BYTES / 4];
    // SAFETY: the machine has T (the caller's promise); full tiles lie in `ones` and `sums`.
    unsafe {
        tiles.configure(&[Shape { rows: ROWS, bytes: ROW_BYTES }; REGISTERS]);
        tiles.load::<4>(ones.as_ptr().cast(), ROW_BYTES);
        tiles.load::<5>(ones.as_ptr().cast(), ROW_BYTES);
        tiles.load::<6>(ones.as_ptr().cast(), ROW_BYTES);
        tiles.load::<7>(ones.as_ptr().cast(), ROW_BYTES);
        for _ in 0..rounds {
            if bytes {
                tiles.dot_bytes::<0, 4, 6>();
                tiles.dot_bytes::<1, 4, 7>();
                tiles.dot_bytes::<2, 5, 6>();
                tiles.dot_bytes::<3, 5, 7>();
            } else {
                tiles.dot_pairs::<0, 4, 6>();
                tiles.dot_pairs::<1, 4, 7>();
                tiles.dot_pairs::<2, 5, 6>();
                tiles.dot_pairs::<3, 5, 7>();
            }
        }
        *result = 0.0;
        let mut add = |sums: &[u32; ROWS * ROW_BYTES / 4]| {
            *result += sums.iter().map(|&sum| if bytes { sum as f32 } else { f32::from_bits(sum) }).sum::<f32>();
        };
        tiles.store::<0>(sums.as_mut_ptr().cast(), ROW_BYTES);
        add(&sums);
        tiles.store::<1>(sums.as_mut_ptr().cast(), ROW_BYTES);
        add(&sums);
        tiles.store::<2>(sums.as_mut_ptr().cast(), ROW_BYTES);
        add(&sums);
        tiles.store::<3>(sums.as_mut_ptr().cast(), ROW_BYTES);
        add(&sums);
        tiles.release();
    }
}

/// Products of tiles that stay in their registers, `rounds` times [`round_products`], and the total of their sums: what
/// this machine's tiles do at most.
///
/// # Safety
/// The machine has `set`, which has tiles.
pub(crate) unsafe fn rounds(set: InstructionSet, bytes: bool, rounds: usize, result: &mut f32) {
    // SAFETY: as the caller's.
    unsafe {
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => rounds_of::<amx::Amx>(bytes, rounds, result),
            _ => rounds_of::<emulated::Emulated>(bytes, rounds, result),
        }
    }
}
