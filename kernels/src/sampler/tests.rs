//! The sampler against a naive one written from the definition, and each rule by itself.

use super::*;
use crate::cpu::isa::InstructionSet;
use polylink_protocol::noise::noise_key;

fn logits(seed: u32, count: usize) -> Vec<f32> {
    // Rounded to eighths, so that ties are common.
    (0..count as u32).map(|token| (noise_key(b"logits", seed).gumbel(seed, token) * 16.0).round() / 8.0).collect()
}

/// Straight from `docs/numerics.md`: sorts everything, draws noise for everything.
fn naive(logits: &[f32], inputs: &DrawInputs<'_>, position: u32) -> Option<u32> {
    let params = inputs.params;
    let mut scores = logits.to_vec();
    for token in 0..logits.len() as u32 {
        let score = &mut scores[token as usize];
        let count = inputs.completion.iter().filter(|&&t| t == token).count();
        if params.has_penalties() && (count > 0 || inputs.prompt.contains(&token)) {
            *score = if *score > 0.0 { *score / params.repetition_penalty } else { *score * params.repetition_penalty };
            if count > 0 {
                *score = (*score - params.frequency_penalty * count as f32) - params.presence_penalty;
            }
        }
        *score += inputs.logit_bias.iter().find(|(t, _)| *t == token).map_or(0.0, |(_, bias)| *bias);
    }
    let allowed = |token: &u32| {
        let masked = !inputs.mask.is_empty() && inputs.mask[*token as usize / 32] >> (token % 32) & 1 == 0;
        !masked && !inputs.suppressed.contains(token)
    };
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(allowed).collect();
    if params.temperature > 0.0 {
        scores.iter_mut().for_each(|score| *score /= params.temperature);
    }
    order.sort_by(|a, b| scores[*b as usize].partial_cmp(&scores[*a as usize]).unwrap().then(a.cmp(b)));
    let first = *order.first()?;
    if params.temperature <= 0.0 {
        return Some(first);
    }
    let max = scores[first as usize];
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let weight = |token: &u32| (exp(scores[*token as usize] - max) as f64 * (1u64 << 40) as f64).floor() as u128;
        let total: u128 = order.iter().map(weight).sum();
        let threshold = (total * (params.top_p as f64 * (1u64 << 32) as f64) as u128) >> 32;
        let mut before = 0;
        let mut kept = Vec::new();
        for token in &order {
            if kept.is_empty() || before < threshold {
                kept.push(*token);
            }
            before += weight(token);
        }
        order = kept;
    }
    order.retain(|token| params.min_p <= 0.0 || exp(scores[*token as usize] - max) >= params.min_p);
    let sum = |token: &u32| scores[*token as usize] + params.noise_key.gumbel(position, *token);
    order.into_iter().min_by(|a, b| sum(b).partial_cmp(&sum(a)).unwrap().then(a.cmp(b)))
}

#[test]
fn agrees_with_the_naive_sampler() {
    let prompt = [1, 2, 3, 3, 7];
    let completion = [2, 9, 9, 9, 40];
    let mask: Vec<u32> = (0..16).map(|word| 0xdead_beef_u32.rotate_left(word)).collect();
    let mut scratch = SampleScratch::new(500);
    let mut drawn = std::collections::BTreeSet::new();
    for seed in 0..2000u32 {
        let pick =
            |choices: &[f32], salt: u32| choices[(seed.wrapping_mul(0x9e37_79b9) >> salt) as usize % choices.len()];
        let params = SampleParams {
            temperature: pick(&[0.0, 0.3, 1.0, 2.5], 3),
            top_k: pick(&[0.0, 1.0, 2.0, 17.0, 499.0, 1000.0], 5) as u32,
            top_p: pick(&[1.0, 0.99, 0.5, 0.0, 0.9], 8),
            min_p: pick(&[0.0, 0.0, 0.2, 1.0], 11),
            repetition_penalty: pick(&[1.0, 1.3, 0.8], 14),
            presence_penalty: pick(&[0.0, 0.5], 17),
            frequency_penalty: pick(&[0.0, 0.25, -0.5], 20),
            noise_key: noise_key(b"draw", seed % 3),
        };
        let inputs = DrawInputs {
            params: &params,
            prompt: &prompt,
            completion: &completion,
            logit_bias: &[(4, 2.0), (5, -3.0)],
            suppressed: if seed % 2 == 0 { &[11, 12] } else { &[] },
            mask: if seed % 3 == 0 { &mask } else { &[] },
        };
        let logits = logits(seed, if seed % 5 == 0 { 7 + 40 } else { 500 });
        let inputs = if logits.len() < 500 { DrawInputs { mask: &[], ..inputs } } else { inputs };
        let token = sample_token(&logits, &inputs, seed, &mut scratch);
        assert_eq!(token, naive(&logits, &inputs, seed), "{params:?}");
        for set in InstructionSet::ALL.into_iter().filter(|set| set.available()) {
            assert_eq!(sample_with(&logits, &inputs, seed, &mut scratch, &set), token, "{set}: {params:?}");
        }
        drawn.extend(token);
    }
    assert!(drawn.len() > 100, "the table draws widely: {}", drawn.len());
    assert!(scratch.counts.iter().all(|&count| count == 0), "counts are left clean");
}

#[test]
fn skipping_hopeless_tokens_changes_nothing() {
    // A token far behind is skipped; one that noise can still lift to the top is not.
    let mut scratch = SampleScratch::new(2);
    let params = SampleParams { temperature: 1.0, ..SampleParams::greedy() };
    let mut wins = 0;
    for position in 0..20_000 {
        let params = SampleParams { noise_key: noise_key(b"far", 0), ..params };
        let inputs =
            DrawInputs { params: &params, prompt: &[], completion: &[], logit_bias: &[], suppressed: &[], mask: &[] };
        let token = sample_token(&[0.0, -6.0], &inputs, position, &mut scratch);
        assert_eq!(token, naive(&[0.0, -6.0], &inputs, position));
        wins += token.unwrap();
        assert_eq!(sample_token(&[0.0, -25.0], &inputs, position, &mut scratch), Some(0));
    }
    let expected = 20_000.0 * (-6f64).exp() / (1.0 + (-6f64).exp());
    assert!((wins as f64 - expected).abs() < 4.0 * expected.sqrt(), "{wins} wins, {expected:.1} expected");
}

#[test]
fn everything_masked_draws_nothing() {
    let mut scratch = SampleScratch::new(3);
    let params = SampleParams::greedy();
    let inputs = DrawInputs {
        params: &params,
        prompt: &[],
        completion: &[],
        logit_bias: &[],
        suppressed: &[0, 2],
        mask: &[0b101],
    };
    assert_eq!(sample_token(&[1.0, 2.0, 3.0], &inputs, 0, &mut scratch), None);
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let logits = logits(1, 300);
    let (max, log_sum) = log_sum_exp(&logits);
    let total: f64 = logits.iter().map(|&logit| (logit as f64).exp()).sum();
    for &logit in &logits {
        let exact = logit as f64 - total.ln();
        assert!((((logit - max) - log_sum) as f64 - exact).abs() < 1e-5);
    }
    let top = top_tokens(&logits, 20);
    let mut order: Vec<u32> = (0..300).collect();
    order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
    assert_eq!(top[..], order[..20]);
    for (place, &token) in order.iter().enumerate() {
        assert_eq!(rank_of(&logits, token) as usize, 1 + place, "token {token}, ties by id");
    }
}
