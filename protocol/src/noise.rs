//! Sampling noise that anyone can compute again: a pure function of (key, position, token).
//!
//! A worker draws a token as the largest of `logit + Gumbel noise` (Gumbel-max). The noise comes from a counter-based
//! generator, Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by the
//! request's seed, so that a judge who knows the seed replays every draw, in any order, on any device.
//!
//! * key: first 64 bits, big-endian, of `SHA-256("polylink/noise/v1" ‖ 0x00 ‖ seed ‖ choice as u32 big-endian)`;
//! * counter: `(position, token ÷ 4, 0, 0)`; the word is `token mod 4`. `position` is the sampled token's index in the
//!   whole sequence, prompt included;
//! * u = ((x >> 9) + ½)·2⁻²³: never 0 or 1, exact in f32; noise = −ln(−ln u) by [`crate::exact_math::ln`].
//!
//! The activation sketch's ±1 projection uses the same generator under a key of its own.

use sha2::{Digest, Sha256};

use crate::exact_math::ln;

const NOISE_TAG: &[u8] = b"polylink/noise/v1\0";
const SKETCH_SIGNS_TAG: &[u8] = b"polylink/sketch-signs/v1\0";

/// No noise is larger: the largest is 16.6355 (u = 1 − 2⁻²⁴). A token whose logit lags by more cannot win.
pub const GUMBEL_MAX: f32 = 16.65;

/// Key of one choice of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NoiseKey(pub u64);

/// The key for a request's seed and one of its choices (`n` in the request, counted from 0).
pub fn noise_key(seed: &[u8], choice: u32) -> NoiseKey {
    let hash = Sha256::new().chain_update(NOISE_TAG).chain_update(seed).chain_update(choice.to_be_bytes()).finalize();
    NoiseKey(first_64_bits(&hash))
}

fn first_64_bits(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |bits, &byte| bits << 8 | byte as u64)
}

/// Philox 4x32 with 10 rounds. `key`: the low word is Philox's first key word.
#[inline(always)]
pub fn philox_4x32_10(mut counter: [u32; 4], key: u64) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let a = counter[0] as u64 * 0xd251_1f53;
        let b = counter[2] as u64 * 0xcd9e_8d57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ k0, b as u32, (a >> 32) as u32 ^ counter[3] ^ k1, a as u32];
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
    counter
}

/// Gumbel noise from 32 random bits.
#[inline(always)]
pub fn gumbel_from_bits(x: u32) -> f32 {
    let u = ((x >> 9) as f32 + 0.5) * f32::from_bits(0x3400_0000); // 2⁻²³
    -ln(-ln(u))
}

impl NoiseKey {
    /// Noise of `token` at `position`.
    #[inline(always)]
    pub fn gumbel(self, position: u32, token: u32) -> f32 {
        gumbel_from_bits(philox_4x32_10([position, token / 4, 0, 0], self.0)[(token % 4) as usize])
    }

    /// Key of the sketch's signs.
    pub fn sketch_key(self) -> SketchKey {
        let hash = Sha256::new().chain_update(SKETCH_SIGNS_TAG).chain_update(self.0.to_be_bytes()).finalize();
        SketchKey(first_64_bits(&hash))
    }
}

/// Key of the ±1 projection of one choice of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchKey(u64);

impl SketchKey {
    /// Philox's key.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Signs of hidden values `16 × block .. 16 × block + 16` for the token at `position`: bit `j` of byte `i` set means
    /// that projection `j` takes value `16 × block + i` negatively. (Byte `i` is byte `i % 4`, little-endian, of word
    /// `i / 4` of Philox at counter `(position, block, 0, 0)`.)
    #[inline(always)]
    pub fn signs(self, position: u32, block: u32) -> [u8; 16] {
        let words = philox_4x32_10([position, block, 0, 0], self.0);
        let mut bytes = [0; 16];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
#[path = "noise/tests.rs"]
mod tests;
