//! How the CPU keeps keys and values: blocks of 16 positions, f32 or 8-bit integers.
//!
//! Within a block, per layer, key or value, and head: for integers first the 16 positions' scales, f32; then keys
//! `[head_dim][16]`, so that one load gives one dimension of 16 keys and every score has its own chain, or values
//! `[16][head_dim]`, so that lanes are dimensions and every output has its own chain over the keys. The cache is one slice
//! of f32 words; integers lie four to a word.
#![allow(unsafe_code)] // integers within words

use super::lanes::{Lanes, WIDTH};
use crate::backend::{KvDtype, KvSpec};
use crate::quantise;

/// Positions per block: one vector of keys.
pub(crate) const BLOCK_TOKENS: usize = WIDTH;

/// A number that the cache holds.
pub(crate) trait Element: Copy + 'static {
    /// Whether scales stand before the numbers.
    const SCALED: bool;

    /// The numbers in these words.
    fn numbers(words: &[f32]) -> &[Self];

    /// 16 of them as f32.
    ///
    /// # Safety
    /// The machine has `L`; 16 numbers lie there.
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F32;
}

impl Element for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn numbers(words: &[f32]) -> &[f32] {
        words
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load(from) }
    }
}

impl Element for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn numbers(words: &[f32]) -> &[i8] {
        // SAFETY: a word is four bytes, and every byte is an i8.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const i8) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load_i8(from) }
    }
}

/// Words of one block's keys, or values, of one layer and head.
#[inline(always)]
pub(crate) fn part_words(kv: &KvSpec) -> usize {
    match kv.dtype {
        KvDtype::F32 => BLOCK_TOKENS * kv.head_dim,
        KvDtype::Int8 => BLOCK_TOKENS + BLOCK_TOKENS * kv.head_dim / 4,
    }
}

/// The words of the keys (`part` 0) or values (1) of a block's layer and head start at this times [`part_words`].
#[inline(always)]
pub(crate) fn part_number(kv: &KvSpec, block: u32, layer: usize, part: usize, head: usize) -> usize {
    ((block as usize * kv.layers + layer) * 2 + part) * kv.heads + head
}

/// Keeps the key (`part` 0) or the value (1) of one position in its block's words.
#[inline(always)]
pub(crate) fn keep(kv: &KvSpec, part: usize, token: usize, vector: &[f32], words: &mut [f32]) {
    let dim = kv.head_dim;
    let at = |d: usize| if part == 0 { d * BLOCK_TOKENS + token } else { token * dim + d };
    match kv.dtype {
        KvDtype::F32 => vector.iter().enumerate().for_each(|(d, &x)| words[at(d)] = x),
        KvDtype::Int8 => {
            let (scales, words) = words.split_at_mut(BLOCK_TOKENS);
            let mut quants = [0i8; crate::plan::HEAD_DIM_MAX];
            scales[token] = quantise::vector(vector, &mut quants[..dim]);
            // SAFETY: a word is four bytes; they are borrowed mutably.
            let numbers: &mut [i8] =
                unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 4 * words.len()) };
            quants[..dim].iter().enumerate().for_each(|(d, &quant)| numbers[at(d)] = quant);
        }
    }
}
