//! Percentiles and spread of samples. Percentiles are by nearest rank (the smallest sample that at least p percent of
//! the samples do not exceed), so each is a value that was seen.

/// What a set of samples amounts to; all zero when there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation.
    pub deviation: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// Of finite samples in any order.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let (Some(max), n) = (samples.last().copied(), samples.len()) else { return Self::default() };
        let mean = samples.iter().sum::<f64>() / n as f64;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let rank = |p: f64| samples[((p / 100.0 * n as f64).ceil() as usize).clamp(1, n) - 1];
        Self { count: n, mean, deviation: variance.sqrt(), p50: rank(50.0), p95: rank(95.0), p99: rank(99.0), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let s = Summary::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((s.count, s.p50, s.p95, s.p99, s.max), (200, 100.0, 190.0, 198.0, 200.0));
        assert!((s.mean - 100.5).abs() < 1e-9);
        assert_eq!(Summary::of(vec![3.0]).p99, 3.0);
        assert_eq!(Summary::of(vec![]), Summary::default());
    }
}
