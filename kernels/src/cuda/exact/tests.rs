//! Bit for bit against the plain implementation, on a device, or under the emulator where there is none.
//!
//! `POLYLINK_TEST_SEED` repeats a run. `POLYLINK_GPU_TIMES=1` adds times.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use self::machine::{Machine, Memory};
use super::attention::{AttentionItem, AttentionMerge, AttentionPlan};
use super::products::{ExactMatrix, ExactProducts, Product};
use super::*;
use crate::cuda::driver::{Device, DeviceBuffer, DevicePtr};

mod attention;
pub(in crate::cuda) mod machine;
mod products;
mod times;

/// Numbers that differ from run to run.
pub(super) struct Random(u64);

impl Random {
    /// Says its seed.
    pub fn new(test: &str) -> Self {
        let given = std::env::var("POLYLINK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = given.unwrap_or_else(now);
        println!("{test}: POLYLINK_TEST_SEED={seed}");
        Self(seed)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// About normal, of deviation 1.
    pub fn normal(&mut self) -> f32 {
        let word = self.next();
        (0..4).map(|i| ((word >> (16 * i)) & 0xffff) as f32 / 65536.0 - 0.5).sum::<f32>() * 1.7
    }

    /// Values in stretches of 32 of unlike magnitudes: most about 1, some huge, tiny, denormal, or 0.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count);
        while values.len() < count {
            let magnitude = match self.below(16) {
                0 => 0.0,
                1 => 1e-40,
                2 => 1e-37,
                3 => 1e-30,
                4 => 1e4,
                5 => 1e-3,
                _ => 1.0,
            };
            for _ in 0..32.min(count - values.len()) {
                let zero = self.below(40) == 0;
                values.push(if zero { 0.0 } else { self.normal() * magnitude });
            }
        }
        values
    }
}

/// Mismatches of all cases of a test; the test fails at its end, if there are any.
#[derive(Default)]
pub(super) struct Report {
    failed: usize,
    cases: usize,
}

impl Report {
    /// Compares rows of `width` values, bit by bit.
    pub fn compare(&mut self, case: &str, width: usize, expected: &[f32], found: &[f32]) {
        self.cases += 1;
        assert_eq!(expected.len(), found.len(), "{case}");
        let differs = |i: &usize| expected[*i].to_bits() != found[*i].to_bits();
        let wrong: Vec<usize> = (0..expected.len()).filter(differs).collect();
        let Some((&first, &last)) = wrong.first().zip(wrong.last()) else { return };
        self.failed += 1;
        if self.failed > 40 {
            return;
        }
        println!("FAILED {case}: {} of {} values differ, indexes {first} … {last}", wrong.len(), expected.len());
        let poison = wrong.iter().filter(|&&i| found[i].to_bits() == u32::MAX).count();
        let rows: std::collections::BTreeSet<usize> = wrong.iter().map(|i| i / width).collect();
        let columns: std::collections::BTreeSet<usize> = wrong.iter().map(|i| i % width).collect();
        let few = |set: &std::collections::BTreeSet<usize>| set.iter().take(20).copied().collect::<Vec<_>>();
        println!(
            "  {poison} never written; {} rows {:?}; {} columns {:?}",
            rows.len(),
            few(&rows),
            columns.len(),
            few(&columns)
        );
        for &i in wrong.iter().take(6) {
            let (e, f) = (expected[i], found[i]);
            println!(
                "  row {} column {}: expected {:08x} {e:e}, found {:08x} {f:e}",
                i / width,
                i % width,
                e.to_bits(),
                f.to_bits()
            );
        }
        let error = wrong.iter().map(|&i| f64::from((expected[i] - found[i]).abs())).fold(0.0, f64::max);
        println!("  largest difference {error:e}");
    }

    pub fn end(self, test: &str) {
        println!("{test}: {} of {} cases failed", self.failed, self.cases);
        assert_eq!(self.failed, 0, "{test}");
    }
}

/// A step's counts, for some groups.
pub(super) fn counts(machine: &Machine, groups: &[[u32; 8]]) -> Memory {
    machine.holding(groups.as_flattened())
}

/// The order of a step's counts.
pub(super) fn count(rows: usize, items: usize, merges: usize) -> [u32; 8] {
    [rows as u32, rows as u32, 1, items as u32, merges as u32, 0, 0, 0]
}
