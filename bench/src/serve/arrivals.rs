//! Arrival times of an open-loop load: a Poisson process, whose gaps are independent and exponential.
//!
//! One seeded stream gives all gaps of a run; nothing else draws from it, so that gaps cannot correlate.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// Gaps of a Poisson process, in order.
pub struct Gaps {
    stream: ChaCha8Rng,
    rate_per_second: f64,
}

impl Gaps {
    /// `rate_per_second` must be positive and finite.
    pub fn new(seed: u64, rate_per_second: f64) -> Self {
        assert!(rate_per_second.is_finite() && rate_per_second > 0.0, "the caller has checked the rate");
        Self { stream: ChaCha8Rng::seed_from_u64(seed), rate_per_second }
    }
}

impl Iterator for Gaps {
    type Item = Duration;
    /// By inversion: −ln(1 − u) / rate with u in [0, 1), so the logarithm's argument is never zero.
    fn next(&mut self) -> Option<Duration> {
        let u: f64 = self.stream.random();
        Some(Duration::from_secs_f64(-(1.0 - u).ln() / self.rate_per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Summary;

    /// Rate, coefficient of variation and lag-1 autocorrelation of the realised gaps are those of a Poisson process
    /// (a load generator that reuses a seed between its workers fails the last).
    #[test]
    fn gaps_are_exponential_and_independent() {
        let gaps: Vec<f64> = Gaps::new(1, 50.0).take(20_000).map(|g| g.as_secs_f64()).collect();
        let s = Summary::of(gaps.clone());
        assert!((s.mean * 50.0 - 1.0).abs() < 0.03, "rate off: mean gap {}", s.mean);
        assert!((s.deviation / s.mean - 1.0).abs() < 0.03, "coefficient of variation {}", s.deviation / s.mean);
        let lag1 = gaps.windows(2).map(|w| (w[0] - s.mean) * (w[1] - s.mean)).sum::<f64>()
            / (gaps.len() as f64 * s.deviation * s.deviation);
        assert!(lag1.abs() < 0.03, "lag-1 autocorrelation {lag1}");
        assert_ne!(Gaps::new(1, 50.0).next(), Gaps::new(2, 50.0).next());
    }
}
