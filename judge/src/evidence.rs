//! From a replay to evidence: the clipped log-likelihood ratio of one answer, in 1/1,000 nat.
//!
//! H0: the worker runs the declared profile. H1: it runs something else on a fraction of its answers, a mixture of the
//! fractions 1, 0.3, 0.1 and 0.03 in equal parts (see `docs/market-and-tiqe.md` for what the ledger does with it).
//!
//! Exact profiles compare bits: an honest answer's replay differs in none, so a difference has no probability worth
//! naming under H0 and counts the whole clip; an equal answer has probability 1 under H0 and
//! (0 + 0.7 + 0.9 + 0.97) / 4 = 0.6425 under H1.
//! Profiles in bf16 compare errors with a bound: see [`BF16_SKETCH_BOUND`].

/// ln 0.6425: what one answer that replays exactly says for the worker.
const EQUAL_MILLI: i64 = -442;
/// Largest relative sketch error of an honest answer under bf16 compute, another family than the judge's included.
/// Measured on a 4.6 M model: honest at most 7e-3, 4-bit weights at least 4e-2. The bound is their geometric mean.
pub const BF16_SKETCH_BOUND: f64 = 1.7e-2;
/// Margin of a token, in logits after temperature, that an honest bf16 worker does not exceed.
pub const BF16_MARGIN_BOUND: f32 = 0.5;

/// How a profile's replay is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// f32 or int8 under exact numerics: bits.
    Exact,
    /// bf16: bounds.
    Bounded,
}

impl Numerics {
    /// By the profile's compute dtype.
    pub fn of(compute_dtype: &str) -> Self {
        if compute_dtype == "bf16" { Self::Bounded } else { Self::Exact }
    }
    /// A token's margin speaks against the worker.
    pub fn token_mismatch(self, margin: f32) -> bool {
        match self {
            Self::Exact => margin != 0.0,
            Self::Bounded => margin > BF16_MARGIN_BOUND,
        }
    }
    /// A sketch speaks against the worker.
    pub fn sketch_mismatch(self, bits_equal: bool, relative_error: f64) -> bool {
        match self {
            Self::Exact => !bits_equal,
            Self::Bounded => relative_error > BF16_SKETCH_BOUND,
        }
    }
}

/// The evidence of one answer of which `tokens` were replayed, clipped to ±`clip_milli`. An answer without tokens (its
/// user went away first) is equal under both hypotheses: it says nothing.
pub fn of_answer(mismatch: bool, tokens: u32, clip_milli: u64) -> i64 {
    let clip = i64::try_from(clip_milli).unwrap_or(i64::MAX);
    match (mismatch, tokens) {
        (true, _) => clip,
        (false, 0) => 0,
        (false, _) => EQUAL_MILLI.max(-clip),
    }
}

/// Relative error of a sketch against its reference: |a − b| / |b| over the eight values; infinite where the reference
/// is zero and the other is not, or where a value is not finite.
pub fn sketch_error(found: &[u8; 16], reference: &[u8; 16]) -> f64 {
    let value = |bytes: &[u8; 16], i: usize| half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f64();
    let (mut difference, mut norm) = (0.0, 0.0);
    for i in 0..8 {
        let (a, b) = (value(found, i), value(reference, i));
        difference += (a - b) * (a - b);
        norm += b * b;
    }
    if found == reference {
        0.0
    } else if difference.is_finite() && norm > 0.0 {
        (difference / norm).sqrt()
    } else {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(values: [f32; 8]) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (i, v) in values.iter().enumerate() {
            bytes[2 * i..2 * i + 2].copy_from_slice(&half::f16::from_f32(*v).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn exact_profiles_compare_bits() {
        let a = sketch([1.0, -2.0, 0.5, 3.0, 1.0, 1.0, 0.0, 4.0]);
        let mut b = a;
        b[0] ^= 1;
        assert_eq!(sketch_error(&a, &a), 0.0);
        let error = sketch_error(&b, &a);
        assert!(error > 0.0 && error < 1e-3, "{error}");
        assert!(Numerics::Exact.sketch_mismatch(false, error));
        assert!(!Numerics::Bounded.sketch_mismatch(false, error));
    }

    #[test]
    fn hostile_sketches_have_an_infinite_error() {
        let zero = sketch([0.0; 8]);
        let mut nan = zero;
        nan[1] = 0x7e;
        assert_eq!(sketch_error(&nan, &sketch([1.0; 8])), f64::INFINITY);
        assert_eq!(sketch_error(&sketch([1.0; 8]), &zero), f64::INFINITY);
        assert_eq!(sketch_error(&zero, &zero), 0.0);
    }

    #[test]
    fn evidence_is_clipped() {
        assert_eq!(of_answer(true, 9, 6_000), 6_000);
        assert_eq!(of_answer(true, 0, 6_000), 6_000, "what no honest worker can have sent needs no token");
        assert_eq!(of_answer(false, 9, 6_000), -442);
        assert_eq!(of_answer(false, 9, 100), -100);
        assert_eq!(of_answer(false, 0, 6_000), 0, "nothing replayed acquits nobody");
        let expected = (f64::ln((0.7 + 0.9 + 0.97) / 4.0) * 1_000.0).round() as i64;
        assert_eq!(EQUAL_MILLI, expected);
    }
}
