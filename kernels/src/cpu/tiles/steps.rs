//! bf16 products of the family `amx-bf16` on machines without tiles: the same sums, lane by lane.
//!
//! Steps of 32 inputs from the start of each range: even and odd products in a chain each, then both onto the range's
//! sum, each result flushed where it is denormal.
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use polylink_protocol::exact_math::bf16_to_f32;

use crate::cpu::gemm::Product;
use crate::cpu::isa::multiversioned;
use crate::cpu::lanes::{Lanes, WIDTH};
use crate::quantise::BLOCK;

/// R rows by one strip.
///
/// # Safety
/// The machine has `L`; rows and strip exist; no other worker writes them.
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize>(product: &Product<'_>, weights: &[u16], row: usize, strip: usize) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.activations.pairs[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..WIDTH * inputs];
    // SAFETY: the two slices above bound every access: k < inputs (even, as are the steps), r < R.
    unsafe {
        let mut totals = [[L::zero(); 1]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); 1]; R];
            for step in (from..to).step_by(BLOCK) {
                let (mut even, mut odd) = ([L::zero(); R], [L::zero(); R]);
                for k in (step..step + BLOCK).step_by(2) {
                    let w = L::load_pairs(weights.as_ptr().add(k * WIDTH));
                    let (w_even, w_odd) = (L::even(w), L::odd(w));
                    for r in 0..R {
                        let x = input.as_ptr().add(r * inputs + k);
                        even[r] = L::fma_flushed(L::splat(bf16_to_f32(*x)), w_even, even[r]);
                        odd[r] = L::fma_flushed(L::splat(bf16_to_f32(*x.add(1))), w_odd, odd[r]);
                    }
                }
                for r in 0..R {
                    sums[r][0] = L::add_flushed(sums[r][0], L::add_flushed(even[r], odd[r]));
                }
            }
            let kept = [sums.as_mut_ptr().cast(), totals.as_mut_ptr().cast()];
            product.end_range::<L>((row, strip), (R, 1), (index, to == inputs), kept);
        }
    }
}

#[inline(always)]
unsafe fn tile_body<L: Lanes>(product: &Product<'_>, weights: &[u16], rows: (usize, usize), strips: (usize, usize)) {
    for strip in strips.0..strips.1 {
        let mut row = rows.0;
        while row < rows.1 {
            // SAFETY: as the caller's; as many rows are left.
            row += unsafe {
                match rows.1 - row {
                    4.. => (block::<L, 4>(product, weights, row, strip), 4).1,
                    _ => (block::<L, 1>(product, weights, row, strip), 1).1,
                }
            };
        }
    }
}

multiversioned! {
    /// Computes rows `rows.0..rows.1` of the strips `strips.0..strips.1`.
    ///
    /// # Safety
    /// The machine has `set`; no other worker writes these rows and strips; `weights` are the product's matrix.
    pub(crate) unsafe fn tile(
        product: &Product<'_>,
        weights: &[u16],
        rows: (usize, usize),
        strips: (usize, usize),
    ) = tile_body
}
