//! Rotary embedding of a step's queries and keys, and what the KV cache keeps of its rows.
#![allow(unsafe_code)]
// workers have heads, or rows, of their own; functions compiled for an instruction set
// Adapters of iterators are compiled apart, and called.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::cache::{BLOCK_TOKENS, keep, part_number, part_words};
use super::elementwise;
use super::isa::multiversioned;
use super::lanes::Lanes;
use super::pool::SharedSlice;
use crate::backend::KvSpec;
use crate::operations::{Batch, RopeTable};
use crate::program::AttentionSpec;

/// Rows that are turned and then kept, while they are in the first-level cache.
pub(crate) const CHUNK: usize = 8;

/// A step's q, k, v of one layer, `[rows][(query_heads + 2 kv_heads) × head_dim]`, and the cache.
pub(crate) struct Append<'a> {
    pub spec: &'a AttentionSpec,
    pub rope: &'a RopeTable,
    pub batch: &'a Batch<'a>,
    pub kv: &'a KvSpec,
    pub layer: usize,
    pub cache: SharedSlice<'a, f32>,
    pub qkv: SharedSlice<'a, f32>,
}

impl Append<'_> {
    /// Where a row's head begins among `qkv`; heads of queries, keys and values are numbered on.
    #[inline(always)]
    fn place(&self, row: usize, head: usize) -> usize {
        (row * (self.spec.query_heads + 2 * self.spec.kv_heads) + head) * self.spec.head_dim
    }
}

#[inline(always)]
unsafe fn turn_body<L: Lanes>(append: &Append<'_>, rows: Range<usize>, heads: Range<usize>) {
    let (spec, dim) = (append.spec, append.spec.head_dim);
    let group = spec.query_heads / spec.kv_heads;
    for row in rows {
        let (sine, cosine) = append.rope.at(append.batch, row);
        let all = [(heads.start * group, heads.len() * group), (spec.query_heads + heads.start, heads.len())];
        for (first, count) in all {
            // SAFETY: the caller has these heads of these rows; the machine has `L`.
            unsafe {
                let heads = append.qkv.part(append.place(row, first), count * dim);
                elementwise::rope::<L>(heads, dim, sine, cosine);
            }
        }
    }
}

multiversioned! {
    /// Turns the keys of some KV heads, and the queries that read them, of some rows.
    ///
    /// # Safety
    /// The machine has `set`; nobody else has these heads of these rows.
    pub(crate) unsafe fn turn(append: &Append<'_>, rows: Range<usize>, heads: Range<usize>) = turn_body
}

#[inline(always)]
unsafe fn store_body<L: Lanes>(append: &Append<'_>, rows: Range<usize>, heads: Range<usize>, parts: Range<usize>) {
    let (spec, kv, words) = (append.spec, append.kv, part_words(append.kv));
    for row in rows {
        let position = append.batch.positions[row] as usize;
        let (block, token) = (append.batch.blocks(row)[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
        for part in parts.clone() {
            for head in heads.clone() {
                let at = part_number(kv, block, append.layer, part, head) * words;
                let from = append.place(row, spec.query_heads + part * spec.kv_heads + head);
                // SAFETY: the caller has these parts and heads of all rows and blocks.
                unsafe { keep(kv, part, token, append.qkv.part(from, spec.head_dim), append.cache.part(at, words)) };
            }
        }
    }
}

multiversioned! {
    /// Puts keys (part 0) and values (1) of some KV heads, of some rows, into the cache.
    ///
    /// # Safety
    /// The machine has `set`; nobody else has these parts and heads, of any row and block: two rows of a wrong step may name
    /// the same place.
    pub(crate) unsafe fn store(
        append: &Append<'_>,
        rows: Range<usize>,
        heads: Range<usize>,
        parts: Range<usize>,
    ) = store_body
}
