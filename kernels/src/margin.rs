//! How far a committed token is from what the declared model would have drawn (fidelity replay).
//!
//! Same order of operations as the sampler, same code up to the draw ([`crate::sampler`]). A cut-off (top-k, top-p,
//! min-p) near its border would give an honest token that a rounding pushed out an infinite deficit; so a token outside
//! of the candidates is measured by the logits by which it misses them, beside its deficit against the winner.

use polylink_protocol::noise::NoiseKey;

use crate::sampler::{self, Candidates, DrawInputs, Plain, SampleScratch};

/// Distance of a committed token from the draw. Unit: logits after penalties, bias and division by the temperature
/// (for temperature 0: not divided).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Margin {
    /// Winner's `score + noise` less the committed token's, at least 0; 0 if it is the winner.
    pub deficit: f32,
    /// Score of the last candidate less the committed token's, if that is not a candidate; else 0. +∞ if it is masked.
    pub miss: f32,
    /// What the replay draws.
    pub drawn: u32,
}

impl Margin {
    /// `max(deficit, miss)`: 0 for a token that the declared model draws.
    pub fn value(&self) -> f32 {
        self.deficit.max(self.miss)
    }
}

/// Margin of `committed` at `position` under these logits; `None` if every token is masked or `committed` is not in the
/// vocabulary.
pub fn replay_margin(
    logits: &[f32],
    inputs: &DrawInputs<'_>,
    position: u32,
    committed: u32,
    scratch: &mut SampleScratch,
) -> Option<Margin> {
    if committed as usize >= logits.len() {
        return None;
    }
    let (kind, likeliest) = sampler::candidates(logits, inputs, scratch, &Plain)?;
    let scores = &scratch.scores[..logits.len()];
    let score = scores[committed as usize];
    let key: NoiseKey = inputs.params.noise_key;
    let (drawn, best, own) = if inputs.params.temperature <= 0.0 {
        (likeliest, scores[likeliest as usize], score)
    } else {
        let (drawn, best) = match kind {
            Candidates::All => sampler::draw(scores, 0..logits.len() as u32, likeliest, key, position),
            Candidates::Listed => sampler::draw(scores, scratch.tokens.iter().copied(), likeliest, key, position),
        };
        (drawn, best, score + key.gumbel(position, committed))
    };
    if score == f32::NEG_INFINITY {
        return Some(Margin { deficit: f32::INFINITY, miss: f32::INFINITY, drawn });
    }
    let miss = match kind {
        Candidates::Listed if !scratch.tokens.contains(&committed) => {
            let last = scratch.tokens.iter().map(|&token| scores[token as usize]).fold(f32::INFINITY, f32::min);
            (last - score).max(0.0)
        }
        _ => 0.0,
    };
    Some(Margin { deficit: (best - own).max(0.0), miss, drawn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::SampleParams;
    use polylink_protocol::noise::noise_key;

    fn inputs(params: &SampleParams) -> DrawInputs<'_> {
        DrawInputs { params, prompt: &[1, 2], completion: &[3], logit_bias: &[], suppressed: &[7], mask: &[] }
    }

    fn logits(seed: u32) -> Vec<f32> {
        (0..200).map(|token| 3.0 * noise_key(b"logits", seed).gumbel(seed, token)).collect()
    }

    #[test]
    fn a_drawn_token_has_margin_zero_under_every_parameter() {
        let base = SampleParams { temperature: 0.8, noise_key: noise_key(b"m", 0), ..SampleParams::greedy() };
        let table = [
            SampleParams::greedy(),
            base,
            SampleParams { top_k: 5, ..base },
            SampleParams { top_p: 0.7, ..base },
            SampleParams { min_p: 0.1, repetition_penalty: 1.3, frequency_penalty: 0.5, ..base },
            SampleParams { top_k: 20, top_p: 0.9, min_p: 0.01, presence_penalty: 1.0, ..base },
        ];
        let mut scratch = SampleScratch::new(200);
        for params in &table {
            for position in 0..300 {
                let logits = logits(position);
                let token = sampler::sample_token(&logits, &inputs(params), position, &mut scratch).unwrap();
                let margin = replay_margin(&logits, &inputs(params), position, token, &mut scratch).unwrap();
                assert_eq!((margin.value(), margin.drawn), (0.0, token));
                assert_ne!(token, 7, "suppressed");
            }
        }
    }

    #[test]
    fn a_token_just_outside_a_cut_off_misses_by_little_and_a_far_one_by_much() {
        let params =
            SampleParams { temperature: 1.0, top_k: 2, noise_key: noise_key(b"m", 1), ..SampleParams::greedy() };
        let mut scratch = SampleScratch::new(200);
        let mut logits = vec![-50.0; 200];
        (logits[10], logits[11], logits[12], logits[13]) = (5.0, 4.0, 3.9, -2.0);
        let near = replay_margin(&logits, &inputs(&params), 0, 12, &mut scratch).unwrap();
        let far = replay_margin(&logits, &inputs(&params), 0, 13, &mut scratch).unwrap();
        assert!((near.miss - 0.1).abs() < 1e-5 && far.miss == 6.0, "{near:?} {far:?}");
        let masked = replay_margin(&logits, &inputs(&params), 0, 7, &mut scratch).unwrap();
        assert_eq!(masked.value(), f32::INFINITY);
        assert!(replay_margin(&logits, &inputs(&params), 0, 200, &mut scratch).is_none());
    }

    #[test]
    fn greedy_deficit_is_in_logits() {
        let mut scratch = SampleScratch::new(4);
        let params = SampleParams::greedy();
        let inputs = DrawInputs { prompt: &[], completion: &[], suppressed: &[], ..inputs(&params) };
        let margin = replay_margin(&[1.0, 3.5, 3.5, 2.0], &inputs, 9, 3, &mut scratch).unwrap();
        assert_eq!((margin.deficit, margin.miss, margin.drawn), (1.5, 0.0, 1), "ties go to the lowest id");
    }
}
