//! The round's arithmetic: medians, α, evidence and the judges' pay. Pure, integers only; every rounding is stated.

use polylink_protocol::tiqe::lower_weighted_median;
use polylink_protocol::tiqe_v1::{SampleResult, Score};

/// How many parts of a judge's pay weigh what it alone could know, against one for agreeing at all.
const INFORMED_PARTS: u64 = 4;
/// A pot's α is the average of so many epochs, the new one once.
const BLEND_ALPHA: u64 = 4;
/// The profile's running quality moves by one in so many parts with every pot.
const BLEND_BASELINE: i128 = 32;

/// A judge's revealed scores, one for each sample in order, with its weight in the medians (seats × judge weight) and
/// its seats.
pub struct Sheet<'a> {
    /// Weight in the medians.
    pub weight: u64,
    /// Seats drawn.
    pub seats: u64,
    /// One score per sample.
    pub scores: &'a [Score],
}

/// λ·llm + (1−λ)·cross, rounded down; cross alone without an LLM score; 0 for what was not disclosed.
pub fn quality_bps(score: &Score, lambda_bps: u32) -> u32 {
    let (lambda, cross, llm) = (lambda_bps.min(10_000), score.cross_bps.min(10_000), score.llm_bps.min(10_000));
    match score {
        Score { missing: true, .. } => 0,
        Score { has_llm: true, .. } => (lambda * llm + (10_000 - lambda) * cross) / 10_000,
        _ => cross,
    }
}

/// The lower weighted median of quality and of evidence for each sample. Without a sheet there are no results.
pub fn medians(sheets: &[Sheet<'_>], numbers: &[u32], lambda_bps: u32) -> Vec<SampleResult> {
    numbers
        .iter()
        .enumerate()
        .filter_map(|(at, number)| {
            let column: Vec<(&Score, u64)> =
                sheets.iter().filter_map(|sheet| Some((sheet.scores.get(at)?, sheet.weight))).collect();
            let quality: Vec<_> = column.iter().map(|(score, w)| (quality_bps(score, lambda_bps), *w)).collect();
            let evidence: Vec<_> = column.iter().map(|(score, w)| (score.evidence_milli, *w)).collect();
            Some(SampleResult {
                sample: *number,
                quality_bps: lower_weighted_median(&quality)?,
                evidence_milli: lower_weighted_median(&evidence)?,
                reveals: column.len() as u32,
            })
        })
        .collect()
}

/// Scores as the round counts them: what was not disclosed is evidence by the ledger's rule, whatever the judge wrote. In
/// the median that decides an answer which more than half of the weight says is missing.
pub fn counted(scores: &[Score], missing_evidence_milli: u64) -> Vec<Score> {
    let missing = i64::try_from(missing_evidence_milli).unwrap_or(i64::MAX);
    let counted = scores.iter().map(|score| match score.missing {
        true => Score { evidence_milli: missing, ..*score },
        false => *score,
    });
    counted.collect()
}

/// How near a score is to a result: half by quality, half by evidence; 10,000 when equal.
fn closeness(score: &Score, result: &SampleResult, lambda_bps: u32, clip_milli: u64) -> u64 {
    let quality = u64::from(quality_bps(score, lambda_bps).abs_diff(result.quality_bps)).min(10_000);
    let range = clip_milli.saturating_mul(2).max(1);
    let evidence = score.evidence_milli.abs_diff(result.evidence_milli).min(range);
    // At most 10^4 · 2·10^6, far below 2^64, since `clip_milli` is at most 10^6.
    (10_000 - quality) / 2 + (10_000 - evidence.saturating_mul(10_000) / range) / 2
}

/// Each judge's share of the judges' pay: seats × (agreement on the samples + 4 × what of it is informed), where the
/// informed part is the agreement on each sample less the agreement with the next one's result (cyclically). A constant
/// score agrees as well with the neighbours as with the samples, so that its informed part is 0.
pub fn pay_weights(sheets: &[Sheet<'_>], results: &[SampleResult], lambda_bps: u32, clip_milli: u64) -> Vec<u64> {
    let samples = results.len();
    sheets
        .iter()
        .map(|sheet| {
            let (mut on, mut across) = (0_u64, 0_u64);
            for (at, score) in sheet.scores.iter().enumerate().take(samples) {
                on += closeness(score, &results[at], lambda_bps, clip_milli);
                across += closeness(score, &results[(at + 1) % samples], lambda_bps, clip_milli);
            }
            let informed = on.saturating_sub(across).saturating_mul(INFORMED_PARTS);
            sheet.seats.saturating_mul((on + informed) / samples.max(1) as u64)
        })
        .collect()
}

/// Quality relative to the profile's running quality, at most 10,000; 0 below the floor. Without a baseline it is whole.
pub fn relative_bps(quality_bps: u32, baseline_milli: u64, floor_bps: u32) -> u32 {
    if baseline_milli == 0 {
        return 10_000;
    }
    let relative = (u64::from(quality_bps) * 1_000 * 10_000 / baseline_milli).min(10_000) as u32;
    if relative < floor_bps { 0 } else { relative }
}

/// `(3·average + new) / 4`, rounded down; the new value where there is no average.
pub fn blend_bps(average: Option<u32>, new: u32) -> u32 {
    match average {
        None => new,
        Some(average) => ((u64::from(average) * (BLEND_ALPHA - 1) + u64::from(new)) / BLEND_ALPHA) as u32,
    }
}

/// The running quality of a profile in 1/1,000 basis point, moved by one pot's; the pot's own where there is none.
pub fn move_baseline(baseline_milli: u64, quality_bps: u32) -> u64 {
    let new = i128::from(quality_bps) * 1_000;
    if baseline_milli == 0 {
        return new as u64;
    }
    let old = i128::from(baseline_milli);
    (old + (new - old) / BLEND_BASELINE).max(1) as u64
}

/// The reflected CUSUM over the answers of one pot, in order: `S = max(0, S + evidence)`, evidence clipped.
pub fn cusum_milli(start: u64, evidence_milli: impl IntoIterator<Item = i64>, clip_milli: u64) -> u64 {
    let clip = i64::try_from(clip_milli).unwrap_or(i64::MAX);
    evidence_milli.into_iter().fold(start, |sum, evidence| sum.saturating_add_signed(evidence.clamp(-clip, clip)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn score(cross_bps: u32, evidence_milli: i64) -> Score {
        Score { cross_bps, evidence_milli, ..Default::default() }
    }

    #[test]
    fn quality_blends_the_evaluators() {
        let both = Score { cross_bps: 8_000, has_llm: true, llm_bps: 5_000, ..Default::default() };
        assert_eq!(quality_bps(&both, 3_000), 7_100);
        assert_eq!(quality_bps(&score(8_000, 0), 3_000), 8_000);
        assert_eq!(quality_bps(&Score { missing: true, ..both }, 3_000), 0);
    }

    #[test]
    fn what_most_say_is_missing_is_evidence_whatever_they_wrote() {
        let missing = |evidence_milli| vec![Score { missing: true, ..score(9_000, evidence_milli) }];
        let seen = |evidence_milli| vec![score(9_000, evidence_milli)];
        type Columns = Vec<(u64, Vec<Score>)>;
        let cases: [(&str, Columns, i64, u32); 4] = [
            ("all", vec![(1, missing(0)), (1, missing(-6_000))], 2_000, 0),
            ("most", vec![(2, missing(0)), (1, seen(-400))], 2_000, 0),
            ("half of the weight is not most", vec![(1, missing(6_000)), (1, seen(-400))], -400, 0),
            ("a minority", vec![(1, missing(6_000)), (2, seen(-400))], -400, 9_000),
        ];
        for (case, columns, evidence, quality) in cases {
            let columns: Vec<_> =
                columns.into_iter().map(|(weight, scores)| (weight, counted(&scores, 2_000))).collect();
            let sheets: Vec<_> =
                columns.iter().map(|(weight, scores)| Sheet { weight: *weight, seats: 1, scores }).collect();
            let results = medians(&sheets, &[0], 0);
            assert_eq!((results[0].evidence_milli, results[0].quality_bps), (evidence, quality), "{case}");
        }
    }

    #[test]
    fn one_liar_does_not_move_the_median() {
        let honest = [score(9_000, -500), score(8_000, -400)];
        let liar = [score(0, 6_000), score(0, 6_000)];
        let sheet = |scores| Sheet { weight: 100, seats: 1, scores };
        let results = medians(&[sheet(&honest), sheet(&liar), sheet(&honest)], &[0, 1], 0);
        assert_eq!(
            results.iter().map(|r| (r.quality_bps, r.evidence_milli)).collect::<Vec<_>>(),
            [(9_000, -500), (8_000, -400)]
        );
        assert!(medians(&[], &[0, 1], 0).is_empty());
    }

    #[test]
    fn a_constant_score_earns_less_than_an_informed_one() {
        let informed: Vec<Score> = [9_000, 2_000, 8_500, 3_000].map(|q| score(q, 0)).to_vec();
        for constant in [0, 2_500, 6_000, 10_000] {
            let lazy = vec![score(constant, 0); 4];
            let sheet = |scores| Sheet { weight: 100, seats: 1, scores };
            let sheets = [sheet(&informed), sheet(&informed), sheet(&lazy)];
            let results = medians(&sheets, &[0, 1, 2, 3], 0);
            let pay = pay_weights(&sheets, &results, 0, 6_000);
            assert!(pay[0] > 2 * pay[2], "{constant}: {pay:?}");
            assert!(pay[2] <= 10_000, "a constant score has no informed part: {pay:?}");
        }
    }

    #[test]
    fn alpha_is_relative_and_blended() {
        assert_eq!(relative_bps(8_000, 0, 3_000), 10_000);
        assert_eq!(relative_bps(4_000, 8_000_000, 3_000), 5_000);
        assert_eq!(relative_bps(2_000, 8_000_000, 3_000), 0);
        assert_eq!(relative_bps(9_999, 8_000_000, 3_000), 10_000);
        assert_eq!(blend_bps(None, 5_000), 5_000);
        assert_eq!(blend_bps(Some(10_000), 0), 7_500);
        assert_eq!(move_baseline(0, 8_000), 8_000_000);
        assert_eq!(move_baseline(8_000_000, 4_800), 7_900_000);
    }

    #[test]
    fn evidence_adds_up_and_never_goes_below_zero() {
        assert_eq!(cusum_milli(0, [-5_000, 2_000, -500, 9_000], 6_000), 7_500);
        assert_eq!(cusum_milli(0, [6_000; 4], 6_000), 24_000);
    }

    proptest! {
        /// Evidence is a log-likelihood ratio, so that E[e^X] ≤ 1 for an honest worker; here X is uniform over −3 to 1
        /// nats (E[e^X] = 0.67), more noise than exact numerics give. 40,000 answers never come to 24 nats.
        #[test]
        fn an_honest_worker_is_not_tried_in_a_long_run(seed: u64) {
            let mut x = seed | 1;
            let mut noise = || {
                // xorshift64*: any seeded generator serves here.
                x ^= x >> 12;
                x ^= x << 25;
                x ^= x >> 27;
                (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as i64 % 4_000 - 3_000
            };
            let mut sum = 0;
            for _ in 0..10_000 {
                sum = cusum_milli(sum, [noise(), noise(), noise(), noise()], 6_000);
                prop_assert!(sum < 24_000, "reached {sum}");
            }
        }

        #[test]
        fn scoring_is_total(
            cells in prop::collection::vec((any::<u32>(), any::<u32>(), any::<i64>(), any::<bool>()), 0..24),
            judges in 1_usize..5, lambda: u32
        ) {
            let scores: Vec<Score> = cells.iter().map(|(cross_bps, llm_bps, evidence_milli, has_llm)| Score {
                cross_bps: *cross_bps, llm_bps: *llm_bps, evidence_milli: *evidence_milli, has_llm: *has_llm,
                ..Default::default()
            }).collect();
            let samples = scores.len() / judges;
            let sheets: Vec<Sheet> = (0..judges)
                .map(|j| Sheet { weight: 100, seats: 1, scores: &scores[j * samples..(j + 1) * samples] })
                .collect();
            let numbers: Vec<u32> = (0..samples as u32).collect();
            let results = medians(&sheets, &numbers, lambda);
            prop_assert_eq!(results.len(), samples);
            let weights = pay_weights(&sheets, &results, lambda, 6_000);
            prop_assert!(weights.iter().all(|w| *w <= 50_000));
        }
    }
}
