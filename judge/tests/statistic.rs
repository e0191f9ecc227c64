//! The evidence statistic with the ledger's own formula and parameters: how many answers are audited before a trial opens,
//! by the fraction of answers that a worker cheats on; and that an honest worker is not tried.
#![allow(clippy::unwrap_used)]

use polylink_abci_app::tiqe::{params, scoring::cusum_milli};
use polylink_judge::evidence::of_answer;

/// SplitMix64 (Steele, Lea, Flood 2014): its own seed, the same figures on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, of: f64) -> bool {
        ((self.next() >> 11) as f64) < of * (1_u64 << 53) as f64
    }
}

fn after(statistic: u64, mismatch: bool) -> u64 {
    let clip = params::default().evidence_clip_milli;
    cusum_milli(statistic, [of_answer(mismatch, 20, clip)], clip)
}

/// Audited answers until the statistic crosses, for a worker whose answers mismatch with this probability; ascending.
fn answers_until_trial(fraction: f64, runs: u64) -> Vec<u64> {
    let threshold = params::default().cusum_threshold_milli;
    let run = |seed| {
        let (mut random, mut statistic, mut answers) = (Random(seed), 0, 0);
        while statistic < threshold {
            statistic = after(statistic, random.chance(fraction));
            answers += 1;
        }
        answers
    };
    let mut all: Vec<u64> = (0..runs).map(run).collect();
    all.sort_unstable();
    all
}

#[test]
fn a_cheat_is_tried_after_so_many_audited_answers() {
    let trial_samples = params::default().trial_samples as i32;
    // (fraction, simulated workers, bounds of the mean)
    for (fraction, runs, least, most) in
        [(1.0, 10, 4.0, 4.0), (0.3, 4_000, 13.0, 22.0), (0.1, 4_000, 80.0, 160.0), (0.03, 100, 1_000.0, 100_000.0)]
    {
        let answers = answers_until_trial(fraction, runs);
        let mean = answers.iter().sum::<u64>() as f64 / answers.len() as f64;
        let (median, p95) = (answers[answers.len() / 2], answers[answers.len() * 95 / 100]);
        let convicted = 1.0 - (1.0 - fraction).powi(trial_samples);
        println!(
            "cheats on {fraction} of its answers: trial after {mean:.1} audited answers on average, median {median}, 95 % by {p95}; a trial of {trial_samples} samples has a mismatch in {:.0} %",
            100.0 * convicted
        );
        assert!((least..=most).contains(&mean), "{fraction}: {mean}");
    }
}

#[test]
fn one_mismatch_among_a_trials_samples_outweighs_the_others() {
    let params = params::default();
    let (clip, others) = (params.evidence_clip_milli, i64::from(params.trial_samples) - 1);
    assert!(of_answer(true, 20, clip) + others * of_answer(false, 20, clip) > 0);
}

#[test]
fn an_honest_worker_is_not_tried() {
    let threshold = params::default().cusum_threshold_milli;
    // Exact profiles: an honest answer never mismatches, and nothing else adds to the statistic.
    // Bounded ones: as if one honest answer in a thousand went over its bounds.
    for (rate, answers) in [(0.0, 1_000_000), (1e-3, 4_000_000)] {
        let (mut random, mut statistic, mut highest) = (Random(7), 0, 0);
        for _ in 0..answers {
            statistic = after(statistic, random.chance(rate));
            highest = highest.max(statistic);
        }
        println!(
            "honest, {rate} of its answers mismatch: {answers} answers, statistic at most {highest} of {threshold}"
        );
        assert!(highest < threshold, "{rate}: tried");
    }
}
