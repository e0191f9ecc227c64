//! The softmax of attention: of one tile alone, and folded over tiles (numerics rule 5).
#![allow(unsafe_code)]
// vectors of scores
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use polylink_protocol::exact_math::exp;

use super::lanes::{Lanes, WIDTH};
use super::vector_math;
use crate::reference::ATTENTION_TILE;
use crate::sampler::fold_lanes;

/// Sets `from..to`: a loop that is inlined, where `fill` would be called.
#[inline(always)]
fn set(values: &mut [f32; ATTENTION_TILE], from: usize, to: usize, value: f32) {
    for i in from..to {
        values[i] = value;
    }
}

/// Turns scores `from..to` of a tile into weights exp(score − maximum), all others into 0; returns maximum and sum.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
pub(super) unsafe fn softmax_tile<L: Lanes>(scores: &mut [f32; ATTENTION_TILE], from: usize, to: usize) -> (f32, f32) {
    // In vectors: positions before and after those seen are −∞, which is no maximum.
    let (first, last) = (from / WIDTH * WIDTH, to.next_multiple_of(WIDTH));
    set(scores, first, from, f32::NEG_INFINITY);
    set(scores, to, last, f32::NEG_INFINITY);
    // SAFETY: first ≤ last ≤ the tile, all multiples of 16.
    unsafe {
        let at = scores.as_mut_ptr();
        let mut largest = L::load(at.add(first));
        let mut i = first + WIDTH;
        while i < last {
            largest = L::max(largest, L::load(at.add(i)));
            i += WIDTH;
        }
        let max = L::largest(largest);
        let mut i = first;
        while i < last {
            L::store(at.add(i), vector_math::exp::<L>(L::sub(L::load(at.add(i)), L::splat(max))));
            i += WIDTH;
        }
        // Four vectors are the 64 lanes of rule 4; what is not seen weighs 0, which changes no lane.
        let (first, last) = (from / 64 * 64, to.next_multiple_of(64));
        set(scores, first, from, 0.0);
        set(scores, to, last, 0.0);
        let at = scores.as_ptr();
        let mut sums = [L::zero(); 4];
        let mut i = first;
        while i < last {
            for lane in 0..4 {
                sums[lane] = L::add(sums[lane], L::load(at.add(i + lane * WIDTH)));
            }
            i += 64;
        }
        let mut lanes = [0f32; 64];
        for lane in 0..4 {
            L::store(lanes.as_mut_ptr().add(lane * WIDTH), sums[lane]);
        }
        (max, fold_lanes(&mut lanes))
    }
}

/// The running fold over tiles.
#[derive(Clone, Copy, Default)]
pub(super) struct Fold {
    max: f32,
    pub total: f32,
    begun: bool,
}

impl Fold {
    #[inline(always)]
    /// A further tile: its maximum, its sum, its weighted values.
    pub fn add(&mut self, (tile_max, tile_total): (f32, f32), sums: &[f32], output: &mut [f32]) {
        assert_eq!(sums.len(), output.len(), "one head");
        if !self.begun {
            *self = Fold { max: tile_max, total: tile_total, begun: true };
            output.copy_from_slice(sums);
            return;
        }
        let max = if tile_max > self.max { tile_max } else { self.max };
        let (a, b) = (exp(self.max - max), exp(tile_max - max));
        self.total = self.total.mul_add(a, tile_total * b);
        for d in 0..output.len() {
            output[d] = output[d].mul_add(a, sums[d] * b);
        }
        self.max = max;
    }
}
