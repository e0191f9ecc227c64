//! What drawing a token asks of every logit, in vectors: noise that could win, and weights.
//!
//! The bits are those of [`crate::sampler::Plain`]. Noise is made 64 tokens at a time ([`philox`]); what it would have to be
//! for any of them to win is turned into a bound on its random bits, so that logarithms are taken of hardly any.
#![allow(unsafe_code)]
// functions compiled for an instruction set
// Iterators over arrays, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use polylink_protocol::exact_math::exp;
use polylink_protocol::noise::{GUMBEL_MAX, NoiseKey, gumbel_from_bits};

use super::isa::multiversioned;
use super::lanes::{Lanes, WIDTH};
use super::vector_math;
use crate::sampler::{WEIGHT_ONE, fixed};

/// Tokens whose noise is made at once.
const TOGETHER: usize = 4 * WIDTH;

/// Philox 4x32-10 at the counters `(position, first + lane, 0, 0)`: word by word, 16 lanes each.
#[inline(always)]
pub(crate) fn philox(position: u32, first: u32, key: u64) -> [[u32; WIDTH]; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let mut words = [[position; WIDTH], [0; WIDTH], [0; WIDTH], [0; WIDTH]];
    for lane in 0..WIDTH {
        words[1][lane] = first.wrapping_add(lane as u32);
    }
    for _ in 0..10 {
        let mut next = [[0; WIDTH]; 4];
        for lane in 0..WIDTH {
            let a = words[0][lane] as u64 * 0xd251_1f53;
            let b = words[2][lane] as u64 * 0xcd9e_8d57;
            next[0][lane] = (b >> 32) as u32 ^ words[1][lane] ^ k0;
            next[1][lane] = b as u32;
            next[2][lane] = (a >> 32) as u32 ^ words[3][lane] ^ k1;
            next[3][lane] = a as u32;
        }
        words = next;
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    words
}

/// Random bits below this (of 23) make noise that does not lift a score of `max` to `best`.
///
/// Noise of u reaches x only if u ≥ exp(−exp(−x)), so only if 1 − u ≤ exp(−x). The slack is for what rounding does to
/// the sum, to the noise and to this bound.
#[inline(always)]
fn least_bits(best: f32, max: f32) -> u32 {
    let slack = 1e-3 + (best.abs() + max.abs()) * f32::EPSILON;
    let missing = exp((max - best) + slack) * 8_388_608.0 + 1.0;
    8_388_608 - (missing.min(8_388_608.0) as u32)
}

#[inline(always)]
unsafe fn draw_body<L: Lanes>(scores: &[f32], likeliest: u32, key: NoiseKey, position: u32, output: &mut (u32, f32)) {
    let mut best = (likeliest, scores[likeliest as usize] + key.gumbel(position, likeliest));
    let whole = scores.len() / TOGETHER * TOGETHER;
    let try_one = |token: usize, noise: f32, best: &mut (u32, f32)| {
        let sum = scores[token] + noise;
        if sum > best.1 || (sum == best.1 && (token as u32) < best.0) {
            *best = (token as u32, sum);
        }
    };
    for start in (0..whole).step_by(TOGETHER) {
        // SAFETY: the block lies within the scores; the machine has `L`.
        let max = unsafe {
            let at = scores.as_ptr().add(start);
            let (a, b) = (L::max(L::load(at), L::load(at.add(WIDTH))), L::load(at.add(2 * WIDTH)));
            L::largest(L::max(L::max(a, b), L::load(at.add(3 * WIDTH))))
        };
        if max + GUMBEL_MAX < best.1 {
            continue;
        }
        let words = philox(position, (start / 4) as u32, key.0);
        let least = least_bits(best.1, max);
        let mut any = 0;
        for word in 0..4 {
            for lane in 0..WIDTH {
                any |= u32::from(words[word][lane] >> 9 >= least);
            }
        }
        if any == 0 {
            continue;
        }
        for token in 0..TOGETHER {
            let bits = words[token % 4][token / 4];
            if bits >> 9 >= least {
                try_one(start + token, gumbel_from_bits(bits), &mut best);
            }
        }
    }
    for token in whole..scores.len() {
        if scores[token] + GUMBEL_MAX >= best.1 {
            try_one(token, key.gumbel(position, token as u32), &mut best);
        }
    }
    *output = best;
}

multiversioned! {
    /// `sampler::draw` of all tokens.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn draw(
        scores: &[f32],
        likeliest: u32,
        key: NoiseKey,
        position: u32,
        output: &mut (u32, f32),
    ) = draw_body
}

#[inline(always)]
unsafe fn weigh_body<L: Lanes>(scores: &[f32], max: f32, weights: &mut [f32], total: &mut u64) {
    assert_eq!(scores.len(), weights.len(), "one weight for each score");
    let whole = scores.len() / WIDTH * WIDTH;
    let mut sums = [0u64; WIDTH];
    for start in (0..whole).step_by(WIDTH) {
        let mut scaled = [0f32; WIDTH];
        // SAFETY: 16 values lie there in each; the machine has `L`. No score is above the maximum, so no weight above 1:
        // times 2⁴⁰ it fits.
        unsafe {
            let weight = vector_math::exp::<L>(L::sub(L::load(scores.as_ptr().add(start)), L::splat(max)));
            L::store(weights.as_mut_ptr().add(start), weight);
            L::store(scaled.as_mut_ptr(), L::mul(L::min(weight, L::splat(1.0)), L::splat(WEIGHT_ONE)));
            for lane in 0..WIDTH {
                sums[lane] += scaled[lane].to_int_unchecked::<i64>() as u64;
            }
        }
    }
    for i in whole..scores.len() {
        weights[i] = exp(scores[i] - max);
        sums[0] += fixed(weights[i]);
    }
    *total = sums.iter().sum();
}

multiversioned! {
    /// `exp(score − max)` of every score (of a masked one, −∞: the least number that `exp` gives), and their sum in fixed
    /// point. No score may be above `max`.
    ///
    /// # Safety
    /// The machine has `set`.
    pub(crate) unsafe fn weigh(scores: &[f32], max: f32, weights: &mut [f32], total: &mut u64) = weigh_body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::InstructionSet;
    use crate::sampler;
    use polylink_protocol::noise::{noise_key, philox_4x32_10};

    fn sets() -> impl Iterator<Item = InstructionSet> {
        InstructionSet::ALL.into_iter().filter(|set| set.available())
    }

    #[test]
    fn lanes_are_counters() {
        let words = philox(7, u32::MAX - 3, 0x0123_4567_89ab_cdef);
        for lane in 0..WIDTH as u32 {
            let expected = philox_4x32_10([7, (u32::MAX - 3).wrapping_add(lane), 0, 0], 0x0123_4567_89ab_cdef);
            assert_eq!(words.map(|word| word[lane as usize]), expected);
        }
    }

    #[test]
    fn the_bound_on_random_bits_lets_every_winner_through() {
        // Scores of every magnitude, near and far, ties included: the same token, and the same sum.
        let (mut seen, mut lifted) = (std::collections::BTreeSet::new(), 0);
        for seed in 0..400u32 {
            let key = noise_key(b"draws", seed);
            let count = [64, 1000, 1003, 129, 5][seed as usize % 5];
            let spread = [0.0, 0.5, 3.0, 12.0, 200.0, 1e6][seed as usize % 6];
            let base = [0.0, -1000.0, 3e5][seed as usize % 3];
            let mut scores: Vec<f32> =
                (0..count).map(|token| base + spread * (key.gumbel(u32::MAX, token) * 0.5).min(2.0)).collect();
            if seed % 4 == 0 {
                scores.iter_mut().step_by(3).for_each(|score| *score = f32::NEG_INFINITY);
                scores[1] = base;
            }
            let likeliest =
                (0..count).max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]).then(b.cmp(a)));
            let likeliest = likeliest.unwrap();
            for position in 0..8 {
                let expected = sampler::draw(&scores, 0..count, likeliest, key, position);
                for set in sets() {
                    let mut drawn = (0, 0.0);
                    // SAFETY: the machine has the set.
                    unsafe { draw(set, &scores, likeliest, key, position, &mut drawn) };
                    assert_eq!(drawn, expected, "{set}: {count} scores, spread {spread} around {base}");
                }
                seen.insert(expected.0);
                lifted += u32::from(expected.0 != likeliest);
            }
        }
        assert!(seen.len() > 100 && lifted > 1000, "{} tokens, {lifted} other than the likeliest", seen.len());
    }

    #[test]
    fn noise_that_just_wins_is_let_through_and_hardly_any_other() {
        // For every lag: the least bits that win are at or above the bound, and the bound is not far below them.
        for lag in 1..160 {
            let lag = lag as f32 * 0.1;
            let wins = |bits: u32| 2.0 + gumbel_from_bits(bits << 9) >= 2.0 + lag;
            let first = (0..23)
                .rev()
                .fold(1 << 23, |first, bit| if wins(first - (1 << bit)) { first - (1 << bit) } else { first });
            let least = least_bits(2.0 + lag, 2.0);
            assert!(least <= first, "a lag of {lag}: bits from {first} on win, those from {least} on are looked at");
            let (open, needed) = ((1 << 23) - least, (1 << 23) - first.min((1 << 23) - 1));
            assert!(lag < 1.0 || open <= 2 * needed + 4, "a lag of {lag}: {open} looked at, {needed} win");
        }
    }
}
