//! Causal attention over the paged KV cache, in tiles of 256 absolute positions (numerics rule 5).
//!
//! A block holds 16 positions. Within it, per layer and head: keys `[head_dim][16]`, so that one load gives one dimension
//! of 16 keys and every score has its own chain; values `[16][head_dim]`, so that lanes are dimensions and every output
//! has its own chain over the keys.
#![allow(unsafe_code)] // vector loads from the cache

use polylink_protocol::exact_math::exp;

use super::isa::multiversioned;
use super::lanes::{Lanes, WIDTH};
use crate::backend::KvSpec;
use crate::plan::HEAD_DIM_MAX;
use crate::reference::ATTENTION_TILE;
use crate::sampler::fold_lanes;

/// Positions per block: one vector of keys.
pub(crate) const BLOCK_TOKENS: usize = WIDTH;

/// One query head of one row.
pub(crate) struct Head<'a> {
    pub cache: &'a [f32],
    pub kv: &'a KvSpec,
    pub layer: usize,
    pub kv_head: usize,
    pub blocks: &'a [u32],
    /// First and last position that is seen, the last excluded.
    pub from: usize,
    pub to: usize,
    pub scale: f32,
    pub query: &'a [f32],
}

/// Start of the keys (`part` 0) or values (1) of a block's layer and head.
#[inline(always)]
pub(crate) fn block_start(kv: &KvSpec, block: u32, layer: usize, part: usize, head: usize) -> usize {
    (((block as usize * kv.layers + layer) * 2 + part) * kv.heads + head) * BLOCK_TOKENS * kv.head_dim
}

impl Head<'_> {
    /// Keys or values of the block that holds `position`.
    #[inline(always)]
    fn block(&self, part: usize, position: usize) -> &[f32] {
        let block = self.blocks[position / BLOCK_TOKENS];
        &self.cache[block_start(self.kv, block, self.layer, part, self.kv_head)..][..BLOCK_TOKENS * self.kv.head_dim]
    }

    /// Scores of B blocks from `position` on (a multiple of 16).
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const B: usize>(&self, position: usize, scores: &mut [f32]) {
        let keys: [&[f32]; B] = std::array::from_fn(|b| self.block(0, position + b * BLOCK_TOKENS));
        let scores = &mut scores[..B * BLOCK_TOKENS];
        // SAFETY: a block holds head_dim × 16 keys, the query head_dim values, `scores` B × 16.
        unsafe {
            let mut sums = [L::zero(); B];
            for (d, &q) in self.query.iter().enumerate() {
                let q = L::splat(q);
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = L::fma(q, L::load(keys.as_ptr().add(d * WIDTH)), *sum);
                }
            }
            let scale = L::splat(self.scale);
            for (b, sum) in sums.into_iter().enumerate() {
                L::store(scores.as_mut_ptr().add(b * WIDTH), L::mul(sum, scale));
            }
        }
    }

    /// `Σ p × value` over positions `from..to`, for C × 16 dimensions from `dimension` on.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn values<L: Lanes, const C: usize>(
        &self,
        tile: usize,
        (from, to): (usize, usize),
        weights: &[f32; ATTENTION_TILE],
        dimension: usize,
        sums: &mut [f32],
    ) {
        let (dim, sums) = (self.kv.head_dim, &mut sums[dimension..dimension + C * WIDTH]);
        // SAFETY: a block holds 16 × head_dim values and dimension + 16 C ≤ head_dim (the slice above was cut).
        unsafe {
            let mut acc = [L::zero(); C];
            let mut position = from;
            while position < to {
                let block = self.block(1, position);
                let end = to.min(position / BLOCK_TOKENS * BLOCK_TOKENS + BLOCK_TOKENS);
                while position < end {
                    let p = L::splat(weights[position - tile]);
                    let row = block.as_ptr().add(position % BLOCK_TOKENS * dim + dimension);
                    for (c, acc) in acc.iter_mut().enumerate() {
                        *acc = L::fma(p, L::load(row.add(c * WIDTH)), *acc);
                    }
                    position += 1;
                }
            }
            for (c, acc) in acc.into_iter().enumerate() {
                L::store(sums.as_mut_ptr().add(c * WIDTH), acc);
            }
        }
    }

    /// One tile alone: its maximum, its sum, its weighted values.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn tile<L: Lanes>(&self, tile: usize, from: usize, to: usize, sums: &mut [f32]) -> (f32, f32) {
        let mut scores = [0f32; ATTENTION_TILE];
        let mut position = from / BLOCK_TOKENS * BLOCK_TOKENS;
        while position < to {
            let left = (to - position).div_ceil(BLOCK_TOKENS);
            let scores = &mut scores[position - tile..];
            // SAFETY: as the caller's; `left` blocks hold positions that are seen.
            unsafe {
                if left >= 4 {
                    self.scores::<L, 4>(position, scores);
                    position += 4 * BLOCK_TOKENS;
                } else {
                    self.scores::<L, 1>(position, scores);
                    position += BLOCK_TOKENS;
                }
            }
        }
        let seen = from - tile..to - tile;
        let mut max = f32::NEG_INFINITY;
        for &score in &scores[seen.clone()] {
            max = if score > max { score } else { max };
        }
        // Positions that are not seen get weight 0: adding it to a lane changes nothing, the values skip them.
        let mut weights = [0f32; ATTENTION_TILE];
        for (weight, score) in weights[seen.clone()].iter_mut().zip(&scores[seen]) {
            *weight = exp(score - max);
        }
        let mut lanes = [0f32; 64];
        for chunk in weights.as_chunks::<64>().0 {
            (0..64).for_each(|i| lanes[i] += chunk[i]);
        }
        let mut dimension = 0;
        while dimension < self.kv.head_dim {
            let left = (self.kv.head_dim - dimension) / WIDTH;
            // SAFETY: as the caller's; `left` vectors of dimensions are left.
            unsafe {
                match left {
                    4.. => self.values::<L, 4>(tile, (from, to), &weights, dimension, sums),
                    2.. => self.values::<L, 2>(tile, (from, to), &weights, dimension, sums),
                    _ => self.values::<L, 1>(tile, (from, to), &weights, dimension, sums),
                }
            }
            dimension += WIDTH * if left >= 4 { 4 } else { left.min(2) };
        }
        (max, fold_lanes(&mut lanes))
    }
}

#[inline(always)]
unsafe fn attend_body<L: Lanes>(head: &Head<'_>, output: &mut [f32]) {
    let mut buffer = [0f32; HEAD_DIM_MAX];
    let sums = &mut buffer[..head.kv.head_dim];
    let (mut max, mut total, mut first) = (0f32, 0f32, true);
    let mut tile = head.from / ATTENTION_TILE * ATTENTION_TILE;
    while tile < head.to {
        let (from, to) = (head.from.max(tile), head.to.min(tile + ATTENTION_TILE));
        // SAFETY: as the caller's.
        let (tile_max, tile_total) = unsafe { head.tile::<L>(tile, from, to, sums) };
        tile += ATTENTION_TILE;
        if first {
            (max, total, first) = (tile_max, tile_total, false);
            output.copy_from_slice(sums);
            continue;
        }
        let new_max = if tile_max > max { tile_max } else { max };
        let (a, b) = (exp(max - new_max), exp(tile_max - new_max));
        total = total.mul_add(a, tile_total * b);
        for (output, sum) in output.iter_mut().zip(&*sums) {
            *output = output.mul_add(a, sum * b);
        }
        max = new_max;
    }
    output.iter_mut().for_each(|output| *output /= total);
}

multiversioned! {
    /// Attention of one query head of one row: `output` has head_dim values.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn attend(head: &Head<'_>, output: &mut [f32]) = attend_body
}
