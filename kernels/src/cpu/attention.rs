//! Causal attention over the paged KV cache ([`super::cache`]), in tiles of 256 absolute positions (numerics rule 5).
#![allow(unsafe_code)]
// vector loads from the cache
// Iterators over arrays of registers, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

mod compiled;

use polylink_protocol::exact_math::soft_cap;

use super::cache::{BLOCK_TOKENS, Element, part_number, part_words};
use super::lanes::{Lanes, WIDTH};
use super::softmax::{Fold, softmax_tile};
use crate::backend::KvSpec;
use crate::plan::HEAD_DIM_MAX;
use crate::reference::ATTENTION_TILE;

pub(crate) use compiled::attend;

/// Query heads of consecutive rows of one sequence that read one KV head.
pub(crate) struct Queries<'a> {
    pub cache: &'a [f32],
    pub kv: &'a KvSpec,
    pub layer: usize,
    pub kv_head: usize,
    pub blocks: &'a [u32],
    pub window: Option<usize>,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// Position of the first row.
    pub position: usize,
    pub rows: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// The rows' q, k, v: `stride` values a row, this KV head's queries from `first` on.
    pub qkv: &'a [f32],
    pub stride: usize,
    pub first: usize,
    /// Of what this worker attends to next: the blocks it sees, and the KV head.
    pub next: Option<(&'a [u32], usize)>,
}

/// What one query sees: positions `from..to`.
#[derive(Clone, Copy, Default)]
struct Seen {
    from: usize,
    to: usize,
}

/// Queries that share the loads of keys and values.
const SHARED: usize = 4;

/// Bytes between what is read for the first time and what is asked for: what memory delivers while it answers.
const AHEAD: usize = 8 << 10;

/// Memory of one worker: of the queries that are computed together, the tile's scores and then weights, its weighted
/// values, and the outputs of all tiles so far.
pub(crate) struct Scratch {
    weights: [[f32; ATTENTION_TILE]; SHARED],
    sums: [[f32; HEAD_DIM_MAX]; SHARED],
    outputs: [[f32; HEAD_DIM_MAX]; SHARED],
}

impl Scratch {
    pub fn new() -> Self {
        let of_heads = [[0.0; HEAD_DIM_MAX]; SHARED];
        Self { weights: [[0.0; ATTENTION_TILE]; SHARED], sums: of_heads, outputs: of_heads }
    }
}

/// The first Q of the arrays of a scratch.
#[inline(always)]
fn some<const Q: usize, const N: usize>(of: &mut [[f32; N]; SHARED]) -> &mut [[f32; N]; Q] {
    of.first_chunk_mut().expect("no more queries than share their loads")
}

impl Queries<'_> {
    /// Keys (`part` 0) or values (1) of the block that holds `position`: their scales, if they have some, and their
    /// `16 × head_dim` numbers.
    #[inline(always)]
    fn block<E: Element>(&self, part: usize, position: usize) -> (&[f32], &[E]) {
        let block = self.blocks[position / BLOCK_TOKENS];
        let words = part_words(self.kv);
        let words = &self.cache[part_number(self.kv, block, self.layer, part, self.kv_head) * words..][..words];
        let (scales, words) = words.split_at(if E::SCALED { BLOCK_TOKENS } else { 0 });
        let numbers = E::numbers(words);
        assert!(numbers.len() == BLOCK_TOKENS * self.kv.head_dim, "the cache is kept in this type");
        (scales, numbers)
    }

    /// Where the numbers begin that are read `ahead` parts after the keys of the tile's block `at`; the tile has `blocks`
    /// of them. After its keys come its values, then the next tile's keys, or those of what this worker reads next.
    #[inline(always)]
    fn later<E: Element>(&self, (tile, blocks): (usize, usize), ahead: usize) -> *const E {
        let (first, seen) = (tile / BLOCK_TOKENS, self.position / BLOCK_TOKENS + 1);
        let (part, kv_head, list, index) = if ahead < blocks {
            (0, self.kv_head, self.blocks, first + ahead)
        } else if ahead < 2 * blocks {
            (1, self.kv_head, self.blocks, first + ahead - blocks)
        } else if first + ahead - blocks < seen {
            (0, self.kv_head, self.blocks, first + ahead - blocks)
        } else {
            let (list, kv_head) = self.next.unwrap_or((self.blocks, self.kv_head));
            (0, kv_head, list, ahead - 2 * blocks)
        };
        let block = list[index.min(list.len() - 1)];
        let words = part_number(self.kv, block, self.layer, part, kv_head) * part_words(self.kv);
        let skipped = if E::SCALED { BLOCK_TOKENS } else { 0 };
        self.cache.as_ptr().wrapping_add(words + skipped).cast()
    }

    /// How many parts lie between what is read and what is asked for.
    #[inline(always)]
    fn distance(&self) -> usize {
        (AHEAD / (4 * part_words(self.kv))).clamp(4, 16)
    }

    /// Values of query `index` (row × group + head), and what it sees.
    #[inline(always)]
    fn query(&self, index: usize) -> (&[f32], Seen) {
        let (row, head) = (index / self.group, index % self.group);
        let dim = self.kv.head_dim;
        let to = self.position + row + 1;
        let from = self.window.map_or(0, |window| to.saturating_sub(window));
        (&self.qkv[row * self.stride + self.first + head * dim..][..dim], Seen { from, to })
    }

    /// Scores of Q queries with B blocks from `position` on (a multiple of 16). `cold`: this tile's keys and values, from
    /// the first position on so many blocks, are read for the first time: those that come next are asked for.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, E: Element, const Q: usize, const B: usize>(
        &self,
        queries: &[&[f32]; Q],
        position: usize,
        (scores, at): (&mut [[f32; ATTENTION_TILE]; Q], usize),
        cold: Option<(usize, usize)>,
    ) {
        let mut keys: [(&[f32], &[E]); B] = [(&[], &[]); B];
        for b in 0..B {
            keys[b] = self.block(0, position + b * BLOCK_TOKENS);
        }
        let mut next = [std::ptr::null::<E>(); B];
        if let Some(tile) = cold {
            let ahead = (position - tile.0) / BLOCK_TOKENS + self.distance();
            for b in 0..B {
                next[b] = self.later(tile, ahead + b);
                if E::SCALED {
                    // Before its numbers, and those of the values, which are all needed before the first value is.
                    let scales = next[b].cast::<f32>().wrapping_sub(BLOCK_TOKENS);
                    let (of_values, _) = self.block::<E>(1, position + b * BLOCK_TOKENS);
                    // SAFETY: any address may be asked for.
                    unsafe {
                        L::prefetch(scales.cast());
                        L::prefetch(of_values.as_ptr().cast());
                    }
                }
            }
        }
        assert!(at + B * BLOCK_TOKENS <= ATTENTION_TILE, "a tile is a whole number of blocks");
        // SAFETY: a block holds head_dim × 16 keys, a query head_dim values, a row of `scores` the tile.
        unsafe {
            let mut sums = [[L::zero(); B]; Q];
            for line in 0..self.kv.head_dim / E::VECTORS_PER_LINE {
                if cold.is_some() {
                    for b in 0..B {
                        L::prefetch(next[b].wrapping_add(line * E::VECTORS_PER_LINE * WIDTH).cast());
                    }
                }
                for vector in 0..E::VECTORS_PER_LINE {
                    let d = line * E::VECTORS_PER_LINE + vector;
                    for q in 0..Q {
                        let x = L::splat(*queries[q].as_ptr().add(d));
                        for b in 0..B {
                            sums[q][b] = L::fma(x, E::load::<L>(keys[b].1.as_ptr().add(d * WIDTH)), sums[q][b]);
                        }
                    }
                }
            }
            let scale = L::splat(self.scale);
            for q in 0..Q {
                for b in 0..B {
                    if E::SCALED {
                        sums[q][b] = L::mul(sums[q][b], L::load(keys[b].0.as_ptr()));
                    }
                    L::store(scores[q].as_mut_ptr().add(at + b * WIDTH), L::mul(sums[q][b], scale));
                }
            }
        }
    }

    /// `Σ p × value` over what each query sees of a tile, for C × 16 dimensions from `dimension` on. Positions that all see
    /// are read once for all; those before and after them once per query, so that each has its ascending order. `cold`: as
    /// for the scores.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn values<L: Lanes, E: Element, const Q: usize, const C: usize>(
        &self,
        (tile, dimension, cold): (usize, usize, Option<(usize, usize)>),
        seen: &[Seen; Q],
        weights: &[[f32; ATTENTION_TILE]; Q],
        sums: &mut [[f32; HEAD_DIM_MAX]; Q],
    ) {
        let (mut start, mut end) = (seen[0].from, seen[0].to);
        for q in 1..Q {
            (start, end) = (start.max(seen[q].from), end.min(seen[q].to));
        }
        let end = end.max(start);
        let dim = self.kv.head_dim;
        assert!(dimension + C * WIDTH <= dim && dim <= HEAD_DIM_MAX, "vectors of dimensions lie within the head");
        // SAFETY: a block holds 16 × head_dim values; the dimensions lie within it by the assertion; positions within
        // the tile.
        unsafe {
            for q in 0..Q {
                for c in 0..C {
                    L::store(sums[q].as_mut_ptr().add(dimension + c * WIDTH), L::zero());
                }
                for position in seen[q].from..start.min(seen[q].to) {
                    self.value::<L, E, C>(position, weights[q][position - tile], dimension, &mut sums[q]);
                }
            }
            // Sums are in registers here alone, so that the compiler keeps them there.
            let mut acc = [[L::zero(); C]; Q];
            for q in 0..Q {
                for c in 0..C {
                    acc[q][c] = L::load(sums[q].as_ptr().add(dimension + c * WIDTH));
                }
            }
            let mut position = start;
            while position < end {
                let (_, block) = self.block::<E>(1, position);
                let last = end.min(position / BLOCK_TOKENS * BLOCK_TOKENS + BLOCK_TOKENS);
                let next = cold.map(|tile| {
                    let read = tile.1 + (position - tile.0) / BLOCK_TOKENS;
                    self.later::<E>(tile, read + self.distance())
                });
                while position < last {
                    let at = position % BLOCK_TOKENS * dim + dimension;
                    let row = block.as_ptr().add(at);
                    if let Some(next) = next {
                        for line in 0..C.div_ceil(E::VECTORS_PER_LINE) {
                            L::prefetch(next.wrapping_add(at + line * E::VECTORS_PER_LINE * WIDTH).cast());
                        }
                    }
                    let mut v = [L::zero(); C];
                    for c in 0..C {
                        v[c] = E::load::<L>(row.add(c * WIDTH));
                    }
                    for q in 0..Q {
                        let p = L::splat(*weights[q].as_ptr().add(position - tile));
                        for c in 0..C {
                            acc[q][c] = L::fma(p, v[c], acc[q][c]);
                        }
                    }
                    position += 1;
                }
            }
            for q in 0..Q {
                for c in 0..C {
                    L::store(sums[q].as_mut_ptr().add(dimension + c * WIDTH), acc[q][c]);
                }
                for position in end.max(seen[q].from)..seen[q].to {
                    self.value::<L, E, C>(position, weights[q][position - tile], dimension, &mut sums[q]);
                }
            }
        }
    }

    /// Adds one position's weighted value.
    ///
    /// # Safety
    /// The machine has `L`; dimension + 16 C ≤ head_dim.
    #[inline(always)]
    unsafe fn value<L: Lanes, E: Element, const C: usize>(
        &self,
        position: usize,
        p: f32,
        dimension: usize,
        sums: &mut [f32; HEAD_DIM_MAX],
    ) {
        let (_, block) = self.block::<E>(1, position);
        // SAFETY: as the caller's.
        unsafe {
            let row = block.as_ptr().add(position % BLOCK_TOKENS * self.kv.head_dim + dimension);
            for c in 0..C {
                let sum = sums.as_mut_ptr().add(dimension + c * WIDTH);
                L::store(sum, L::fma(L::splat(p), E::load::<L>(row.add(c * WIDTH)), L::load(sum)));
            }
        }
    }

    /// One tile alone, for Q queries that see some of it: their maxima, their sums, their weighted values.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn tile<L: Lanes, E: Element, const Q: usize>(
        &self,
        (tile, cold): (usize, bool),
        queries: &[&[f32]; Q],
        seen: &[Seen; Q],
        weights: &mut [[f32; ATTENTION_TILE]; Q],
        sums: &mut [[f32; HEAD_DIM_MAX]; Q],
    ) -> [(f32, f32); Q] {
        let (mut from, mut to) = (seen[0].from, seen[0].to);
        for q in 1..Q {
            (from, to) = (from.min(seen[q].from), to.max(seen[q].to));
        }
        let mut position = from / BLOCK_TOKENS * BLOCK_TOKENS;
        let cold = cold.then_some((position, (to - position).div_ceil(BLOCK_TOKENS)));
        while position < to {
            let left = (to - position).div_ceil(BLOCK_TOKENS);
            let scores = (&mut *weights, position - tile);
            // SAFETY: as the caller's; `left` blocks hold positions that are seen.
            let blocks = unsafe {
                match left {
                    4.. => (self.scores::<L, E, Q, 4>(queries, position, scores, cold), 4).1,
                    2.. => (self.scores::<L, E, Q, 2>(queries, position, scores, cold), 2).1,
                    _ => (self.scores::<L, E, Q, 1>(queries, position, scores, cold), 1).1,
                }
            };
            position += blocks * BLOCK_TOKENS;
        }
        let mut ends = [(0f32, 0f32); Q];
        for q in 0..Q {
            if let Some(cap) = self.soft_cap {
                for score in &mut weights[q][seen[q].from - tile..seen[q].to - tile] {
                    *score = soft_cap(*score, cap);
                }
            }
            // SAFETY: as the caller's; some of the tile is seen.
            ends[q] = unsafe { softmax_tile::<L>(&mut weights[q], seen[q].from - tile, seen[q].to - tile) };
            if E::SCALED {
                // Whole blocks: what is not seen is never read.
                let mut position = seen[q].from / BLOCK_TOKENS * BLOCK_TOKENS;
                while position < seen[q].to {
                    let (scales, weights) = (self.block::<E>(1, position).0, &mut weights[q][position - tile..]);
                    assert!(scales.len() == BLOCK_TOKENS && weights.len() >= BLOCK_TOKENS, "a block and its weights");
                    // SAFETY: 16 of each; the machine has `L`.
                    unsafe {
                        let scaled = L::mul(L::load(weights.as_ptr()), L::load(scales.as_ptr()));
                        L::store(weights.as_mut_ptr(), scaled);
                    }
                    position += BLOCK_TOKENS;
                }
            }
        }
        let mut dimension = 0;
        while dimension < self.kv.head_dim {
            let left = (self.kv.head_dim - dimension) / WIDTH;
            let at = (tile, dimension, cold);
            // SAFETY: as the caller's; `left` vectors of dimensions are left.
            dimension += WIDTH
                * unsafe {
                    match left {
                        4.. => (self.values::<L, E, Q, 4>(at, seen, weights, sums), 4).1,
                        2.. => (self.values::<L, E, Q, 2>(at, seen, weights, sums), 2).1,
                        _ => (self.values::<L, E, Q, 1>(at, seen, weights, sums), 1).1,
                    }
                };
        }
        ends
    }

    /// Q queries from `first` on; `output` has this run's `[rows × group][head_dim]`.
    ///
    /// # Safety
    /// The machine has `L`.
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: Element, const Q: usize>(
        &self,
        first: usize,
        scratch: &mut Scratch,
        output: &mut impl FnMut(usize) -> *mut f32,
    ) {
        let dim = self.kv.head_dim;
        let mut queries: [&[f32]; Q] = [&[]; Q];
        let mut seen = [Seen::default(); Q];
        for q in 0..Q {
            (queries[q], seen[q]) = self.query(first + q);
        }
        // Rows ascend: the first query begins and ends first.
        let (from, to) = (seen[0].from, seen[Q - 1].to);
        let mut folds = [Fold::default(); Q];
        // Whoever comes first reads the keys of a row that is alone; the others find them in the cache.
        let cold = self.rows == 1 && first == 0;
        let outputs = some::<Q, _>(&mut scratch.outputs);
        let mut tile = from / ATTENTION_TILE * ATTENTION_TILE;
        while tile < to {
            let mut parts = seen;
            let mut all = true;
            for q in 0..Q {
                parts[q] = Seen { from: seen[q].from.max(tile), to: seen[q].to.min(tile + ATTENTION_TILE) };
                all &= parts[q].from < parts[q].to;
            }
            if all {
                // SAFETY: as the caller's.
                let ends = unsafe {
                    let (weights, sums) = (some::<Q, _>(&mut scratch.weights), some::<Q, _>(&mut scratch.sums));
                    self.tile::<L, E, Q>((tile, cold), &queries, &parts, weights, sums)
                };
                let sums = &scratch.sums;
                for q in 0..Q {
                    folds[q].add(ends[q], &sums[q][..dim], &mut outputs[q][..dim]);
                }
            } else {
                for q in 0..Q {
                    if parts[q].from < parts[q].to {
                        // SAFETY: as the caller's.
                        let ends = unsafe {
                            let (weights, sums) = (some::<1, _>(&mut scratch.weights), some::<1, _>(&mut scratch.sums));
                            self.tile::<L, E, 1>((tile, cold), &[queries[q]], &[parts[q]], weights, sums)
                        };
                        folds[q].add(ends[0], &scratch.sums[0][..dim], &mut outputs[q][..dim]);
                    }
                }
            }
            tile += ATTENTION_TILE;
        }
        for q in 0..Q {
            let total = folds[q].total;
            outputs[q][..dim].iter_mut().for_each(|output| *output /= total);
            // SAFETY: the caller's pointer is good for head_dim values.
            unsafe { std::ptr::copy_nonoverlapping(outputs[q].as_ptr(), output(first + q), dim) };
        }
    }
}
