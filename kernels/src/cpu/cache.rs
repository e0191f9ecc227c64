//! How the CPU keeps keys and values: blocks of 16 positions, f32, bf16, 8-bit integers or e4m3.
//!
//! Within a block, per layer, key or value, and head: for numbers of a byte first the 16 positions' scales, f32; then keys
//! `[head_dim][16]`, so that one load gives one dimension of 16 keys and every score has its own chain, or values
//! `[16][head_dim]`, so that lanes are dimensions and every output has its own chain over the keys. The cache is one slice
//! of f32 words; bf16 lie two to a word, bytes four.
#![allow(unsafe_code)]
// smaller numbers within words
// Adapters of iterators are compiled apart, and called.
#![allow(clippy::needless_range_loop)]

use polylink_protocol::exact_math::f32_to_bf16;

use super::lanes::{Lanes, WIDTH};
use crate::backend::{KvDtype, KvSpec};
use crate::plan::HEAD_DIM_MAX;
use crate::quantise;

/// Positions per block: one vector of keys.
pub(crate) const BLOCK_TOKENS: usize = WIDTH;

/// Bytes of a line of the processor's caches.
const LINE: usize = 64;

/// A number that the cache holds.
pub(crate) trait Element: Copy + 'static {
    /// Whether scales stand before the numbers.
    const SCALED: bool;

    /// Vectors in a cache line.
    const VECTORS_PER_LINE: usize = LINE / (WIDTH * size_of::<Self>());

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

impl Element for u16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn numbers(words: &[f32]) -> &[u16] {
        // SAFETY: a word is four bytes, aligned for two of them, and every pattern of bits is a u16.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 2 * words.len()) }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load_bf16(from) }
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

/// A number of e4m3.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct E4m3(u8);

impl Element for E4m3 {
    const SCALED: bool = true;

    #[inline(always)]
    fn numbers(words: &[f32]) -> &[E4m3] {
        // SAFETY: a word is four bytes, and every byte is an `E4m3`, which is one.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 4 * words.len()) }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const E4m3) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load_e4m3(from.cast()) }
    }
}

/// Words of one block's keys, or values, of one layer and head.
#[inline(always)]
pub(crate) fn part_words(kv: &KvSpec) -> usize {
    match kv.dtype {
        KvDtype::F32 => BLOCK_TOKENS * kv.head_dim,
        KvDtype::Bf16 => BLOCK_TOKENS * kv.head_dim / 2,
        KvDtype::Int8 | KvDtype::Fp8 => BLOCK_TOKENS + BLOCK_TOKENS * kv.head_dim / 4,
    }
}

/// The words of the keys (`part` 0) or values (1) of a block's layer and head start at this times [`part_words`].
#[inline(always)]
pub(crate) fn part_number(kv: &KvSpec, block: u32, layer: usize, part: usize, head: usize) -> usize {
    ((block as usize * kv.layers + layer) * 2 + part) * kv.heads + head
}

/// Puts the numbers of one position's key (`part` 0) or value (1) where they belong among their block's.
#[inline(always)]
fn place<T: Copy>(part: usize, token: usize, vector: &[T], numbers: &mut [T]) {
    if part == 1 {
        return numbers[token * vector.len()..][..vector.len()].copy_from_slice(vector);
    }
    assert!(token < BLOCK_TOKENS && numbers.len() == vector.len() * BLOCK_TOKENS, "one block");
    for d in 0..vector.len() {
        numbers[d * BLOCK_TOKENS + token] = vector[d];
    }
}

/// Keeps the key (`part` 0) or the value (1) of one position in its block's words.
#[inline(always)]
pub(crate) fn keep(kv: &KvSpec, part: usize, token: usize, vector: &[f32], words: &mut [f32]) {
    match kv.dtype {
        KvDtype::F32 => place(part, token, vector, words),
        KvDtype::Bf16 => {
            let mut rounded = [0u16; HEAD_DIM_MAX];
            let rounded = &mut rounded[..vector.len()];
            for d in 0..vector.len() {
                rounded[d] = f32_to_bf16(vector[d]);
            }
            // SAFETY: a word is four bytes, aligned for two of them; they are borrowed mutably.
            let numbers: &mut [u16] =
                unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) };
            place(part, token, rounded, numbers);
        }
        KvDtype::Int8 => {
            let (scales, words) = words.split_at_mut(BLOCK_TOKENS);
            let mut quants = [0i8; HEAD_DIM_MAX];
            let quants = &mut quants[..vector.len()];
            scales[token] = quantise::vector(vector, quants);
            // SAFETY: a word is four bytes; they are borrowed mutably.
            let numbers: &mut [i8] =
                unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 4 * words.len()) };
            place(part, token, quants, numbers);
        }
        KvDtype::Fp8 => {
            let (scales, words) = words.split_at_mut(BLOCK_TOKENS);
            let mut bytes = [0u8; HEAD_DIM_MAX];
            let bytes = &mut bytes[..vector.len()];
            scales[token] = quantise::vector_e4m3(vector, bytes);
            // SAFETY: a word is four bytes; they are borrowed mutably.
            let numbers: &mut [u8] =
                unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 4 * words.len()) };
            place(part, token, bytes, numbers);
        }
    }
}
