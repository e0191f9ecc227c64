//! Drawing a token from logits: a pure function of (logits, parameters, history, noise key, position).
//!
//! The order is fixed (`docs/numerics.md`): repetition, frequency, presence penalty; logit bias; masks; temperature;
//! top-k; top-p; min-p; then the largest `logit + Gumbel noise`. Ties go to the lowest id everywhere. The judge's replay
//! ([`crate::margin`]) runs the same [`candidates`], so that the two cannot drift apart.
//!
//! Nothing here allocates: scratch memory is made once per worker.

use std::cmp::Ordering;

use polylink_protocol::exact_math::{exp, ln};
use polylink_protocol::noise::{GUMBEL_MAX, NoiseKey};

use crate::step::{SampleParams, SampleRow, Sampled, TokenLogprob};

mod places;

use self::places::{rank_of, top_tokens};

/// Fixed point of a token's weight in top-p: `⌊exp(z − max) × 2⁴⁰⌋`; sums of 2²⁴ of them fit in u64.
pub(crate) const WEIGHT_ONE: f32 = (1u64 << 40) as f32;

/// Stands for "every token is masked"; the executor turns it into an error.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

/// Stands for "a logit is not finite"; the executor turns it into an error.
pub(crate) const NOT_FINITE: u32 = u32::MAX - 1;

/// What is sampled for one row, resolved against the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleJob {
    pub row: SampleRow,
    /// Position of the token to be drawn.
    pub position: u32,
}

/// The shared slices of a sample step and the slots' histories.
pub(crate) struct SampleContext<'a> {
    pub vocabulary: usize,
    pub logit_bias: &'a [(u32, f32)],
    pub suppressed: &'a [u32],
    pub masks: &'a [u32],
    pub histories: &'a [SlotHistory],
}

/// The tokens of a slot's sequence, prompt first.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotHistory {
    pub tokens: Vec<u32>,
    pub prompt_length: usize,
    /// Set by a `SlotStart`; cleared when the history outgrows its memory.
    pub known: bool,
}

/// What besides the logits decides a draw.
#[derive(Clone, Copy, Debug)]
pub struct DrawInputs<'a> {
    /// Temperature, cut-offs, penalties, noise key.
    pub params: &'a SampleParams,
    /// Prompt tokens (repetition penalty).
    pub prompt: &'a [u32],
    /// Completion tokens so far (all penalties).
    pub completion: &'a [u32],
    /// (token, added to its logit).
    pub logit_bias: &'a [(u32, f32)],
    /// Tokens that may not be drawn.
    pub suppressed: &'a [u32],
    /// Grammar mask: bit `t % 32` of word `t / 32`; empty: everything is allowed.
    pub mask: &'a [u32],
}

/// Reused memory of one worker.
#[derive(Clone, Debug)]
pub struct SampleScratch {
    /// Adjusted logits by token; −∞: may not be drawn.
    pub(crate) scores: Vec<f32>,
    /// Tokens that may be drawn, once a cut-off is on.
    pub(crate) tokens: Vec<u32>,
    /// `exp(score − max)` by token, or a cut-off's bounds.
    weights: Vec<f32>,
    /// Occurrences in the completion, by token; bit 31: occurs in prompt or completion. All 0 between draws.
    counts: Vec<u32>,
}

const SEEN: u32 = 1 << 31;

impl SampleScratch {
    /// For a vocabulary of this size.
    pub fn new(vocabulary: usize) -> Self {
        Self {
            scores: vec![0.0; vocabulary],
            tokens: Vec::with_capacity(vocabulary),
            weights: vec![0.0; vocabulary],
            counts: vec![0; vocabulary],
        }
    }
}

/// What is computed of every logit: plain loops, or a backend's vectors with the same bits.
pub(crate) trait Math {
    /// [`log_sum_exp`].
    fn log_sum_exp(&self, logits: &[f32]) -> (f32, f32);
    /// [`draw`] of all tokens.
    fn draw(&self, scores: &[f32], likeliest: u32, key: NoiseKey, position: u32) -> (u32, f32);
    /// `exp(score − max)` of every score; returns their sum in fixed point ([`fixed`]).
    fn weigh(&self, scores: &[f32], max: f32, weights: &mut [f32]) -> u64;
}

/// The definition.
pub(crate) struct Plain;

impl Math for Plain {
    fn log_sum_exp(&self, logits: &[f32]) -> (f32, f32) {
        log_sum_exp(logits)
    }

    fn draw(&self, scores: &[f32], likeliest: u32, key: NoiseKey, position: u32) -> (u32, f32) {
        draw(scores, 0..scores.len() as u32, likeliest, key, position)
    }

    fn weigh(&self, scores: &[f32], max: f32, weights: &mut [f32]) -> u64 {
        weights.iter_mut().zip(scores).for_each(|(weight, score)| *weight = exp(score - max));
        weights.iter().map(|&weight| fixed(weight)).sum()
    }
}

/// Which tokens may be drawn.
pub(crate) enum Candidates {
    /// All whose score is above −∞.
    All,
    /// Those listed in `scratch.tokens`.
    Listed,
}

/// Penalties, bias and masks; then, unless greedy, division by the temperature. Fills `scratch.scores`.
fn adjust(logits: &[f32], inputs: &DrawInputs<'_>, scratch: &mut SampleScratch) {
    let SampleParams { temperature, repetition_penalty, presence_penalty, frequency_penalty, .. } = *inputs.params;
    let scores = &mut scratch.scores[..logits.len()];
    scores.copy_from_slice(logits);
    if inputs.params.has_penalties() {
        for &token in inputs.prompt {
            scratch.counts[token as usize] |= SEEN;
        }
        for &token in inputs.completion {
            let count = &mut scratch.counts[token as usize];
            *count = (*count | SEEN) + 1;
        }
        for &token in inputs.prompt.iter().chain(inputs.completion) {
            let count = std::mem::take(&mut scratch.counts[token as usize]);
            if count == 0 {
                continue; // adjusted already
            }
            let score = &mut scores[token as usize];
            *score = if *score > 0.0 { *score / repetition_penalty } else { *score * repetition_penalty };
            let count = count & !SEEN;
            if count > 0 {
                *score -= frequency_penalty * count as f32;
                *score -= presence_penalty;
            }
        }
    }
    for &(token, bias) in inputs.logit_bias {
        scores[token as usize] += bias;
    }
    for &token in inputs.suppressed {
        scores[token as usize] = f32::NEG_INFINITY;
    }
    if !inputs.mask.is_empty() {
        for (token, score) in scores.iter_mut().enumerate() {
            if inputs.mask[token / 32] >> (token % 32) & 1 == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
    if temperature > 0.0 {
        scores.iter_mut().for_each(|score| *score /= temperature);
    }
}

/// The token with the largest score, lowest id first; `None` if no token may be drawn.
fn largest(scores: &[f32]) -> Option<u32> {
    let (mut best, mut token) = (f32::NEG_INFINITY, None);
    for (run, scores) in scores.chunks(64).enumerate() {
        // Most runs hold nothing larger: asked of all at once, without a branch each.
        if !scores.iter().fold(false, |any, &score| any | (score > best)) {
            continue;
        }
        for (index, &score) in scores.iter().enumerate() {
            if score > best {
                (best, token) = (score, Some((run * 64 + index) as u32));
            }
        }
    }
    token
}

/// Everything up to the draw. Returns the candidates and the likeliest token; `None`: every token is masked.
pub(crate) fn candidates(
    logits: &[f32],
    inputs: &DrawInputs<'_>,
    scratch: &mut SampleScratch,
    math: &dyn Math,
) -> Option<(Candidates, u32)> {
    adjust(logits, inputs, scratch);
    let SampleParams { temperature, top_k, top_p, min_p, .. } = *inputs.params;
    let vocabulary = logits.len();
    let SampleScratch { scores, tokens, weights, .. } = scratch;
    let scores = &scores[..vocabulary];
    let likeliest = largest(scores)?;
    let (top_k, max) = (top_k as usize, scores[likeliest as usize]);
    let (by_rank, by_weight, by_share) = (top_k > 0 && top_k < vocabulary, top_p < 1.0, min_p > 0.0);
    if temperature <= 0.0 || !(by_rank || by_weight || by_share) {
        return Some((Candidates::All, likeliest));
    }
    let weights = &mut weights[..vocabulary];
    tokens.clear();
    if by_rank {
        rank(scores, top_k, weights, tokens);
    }
    // Of few tokens, weights are computed one by one; of all, at once.
    if tokens.is_empty() {
        let total = math.weigh(scores, max, weights);
        if by_weight {
            heaviest(scores, max, (weights, total), top_p, tokens);
        } else {
            at_least(weights, min_p, tokens);
        }
    } else {
        tokens.iter().for_each(|&token| weights[token as usize] = exp(scores[token as usize] - max));
        if by_weight {
            tokens.retain(|&token| fixed(weights[token as usize]) > 0);
            tokens.sort_unstable_by(|a, b| before(scores, *a, *b));
            let total = tokens.iter().map(|&token| fixed(weights[token as usize])).sum();
            let kept = reaching(share(total, top_p), 0, tokens, weights).max(1);
            tokens.truncate(kept);
        }
    }
    if by_share {
        tokens.retain(|&token| weights[token as usize] >= min_p && scores[token as usize] > f32::NEG_INFINITY);
    }
    Some((Candidates::Listed, likeliest))
}

/// The order of tokens: largest score first, ties by id.
fn before(scores: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (scores[a as usize], scores[b as usize]);
    y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// A weight in fixed point. What weighs nothing in it can only be kept by rank, and would be cut by top-p anyway.
#[inline(always)]
pub(crate) fn fixed(weight: f32) -> u64 {
    (weight * WEIGHT_ONE) as u64
}

/// The part `top_p` of a sum of weights. In units of 2⁻³²: exact, since f64 holds an f32 times a power of two.
fn share(total: u64, top_p: f32) -> u64 {
    ((total as u128 * (top_p.max(0.0) as f64 * 4_294_967_296.0) as u128) >> 32) as u64
}

/// How many of these tokens, in this order, come before the sum of weights, `sum` so far, has reached the threshold.
fn reaching(threshold: u64, mut sum: u64, tokens: &[u32], weights: &[f32]) -> usize {
    let kept = tokens.iter().take_while(|&&token| {
        let keep = sum < threshold;
        sum += fixed(weights[token as usize]);
        keep
    });
    kept.count()
}

/// Adds the tokens whose value is at least `bound`, in their order.
fn at_least(values: &[f32], bound: f32, tokens: &mut Vec<u32>) {
    for (run, values) in values.chunks(RUN).enumerate() {
        // Most runs have none: asked of all at once, without a branch each.
        if values.iter().fold(false, |any, &value| any | (value >= bound)) {
            let these = values.iter().zip((run * RUN) as u32..).filter(|(value, _)| **value >= bound);
            tokens.extend(these.map(|(_, token)| token));
        }
    }
}

/// Tokens that share one bound.
const RUN: usize = 64;

/// The `count` first tokens, in no order; all that may be drawn, if there are no more.
///
/// The `count`-th largest of the runs' largest scores is no larger than the `count`-th largest score: what is below it is
/// none of them, and hardly anything else is left to be ordered.
fn rank(scores: &[f32], count: usize, bounds: &mut [f32], tokens: &mut Vec<u32>) {
    let runs = scores.len().div_ceil(RUN);
    let mut bound = f32::NEG_INFINITY;
    if count <= runs {
        for (bound, scores) in bounds.iter_mut().zip(scores.chunks(RUN)) {
            *bound = scores.iter().fold(f32::NEG_INFINITY, |max, &score| if score > max { score } else { max });
        }
        bound = *bounds[..runs].select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
    }
    at_least(scores, bound.max(f32::MIN), tokens);
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, |a, b| before(scores, *a, *b));
        tokens.truncate(count);
    }
}

/// Parts of a unit of score, and how many of them there are: what is further behind weighs nothing.
const PARTS: f32 = 32.0;
const BUCKETS: usize = 28 * PARTS as usize;

/// The first tokens up to the share `top_p` of all weights, whose sum is `total`, in no order; always the first one.
///
/// All that weigh less than `(1 − top_p) × total ÷ their number` are together less than what is not kept, so none of them
/// is. The others fall into buckets by their score: all of a bucket come before all of the next, so only the tokens of the
/// bucket in which the share is reached have to be put in order.
fn heaviest(scores: &[f32], max: f32, (weights, total): (&[f32], u64), top_p: f32, tokens: &mut Vec<u32>) {
    let threshold = share(total, top_p);
    let (beyond, least) = ((total - threshold) as f64 / weights.len() as f64, 1.0);
    // Half of it, for what rounding does; at least one in fixed point.
    at_least(weights, ((0.5 * beyond).max(least) / f64::from(WEIGHT_ONE)) as f32, tokens);
    // Rounding keeps the order of differences, and so does the cut of the fraction.
    let bucket = |token: u32| (((max - scores[token as usize]) * PARTS) as usize).min(BUCKETS - 1);
    let mut sums = [0u64; BUCKETS];
    tokens.iter().for_each(|&token| sums[bucket(token)] += fixed(weights[token as usize]));
    let (mut sum, mut last) = (0, 0);
    while last + 1 < BUCKETS && sum + sums[last] < threshold {
        sum += sums[last];
        last += 1;
    }
    tokens.retain(|&token| bucket(token) <= last);
    // Those of the last bucket to the end, in order.
    let mut first = tokens.len();
    let mut at = 0;
    while at < first {
        if bucket(tokens[at]) == last {
            first -= 1;
            tokens.swap(at, first);
        } else {
            at += 1;
        }
    }
    let of_last = &mut tokens[first..];
    of_last.sort_unstable_by(|a, b| before(scores, *a, *b));
    let kept = reaching(threshold, sum, of_last, weights);
    tokens.truncate((first + kept).max(1));
}

/// The candidate with the largest `score + noise`, ties to the lowest id.
///
/// A token whose score plus [`GUMBEL_MAX`] stays below the best sum so far cannot win (f32 addition is monotone), so its
/// noise is not computed. The likeliest token goes first to make that bound good.
pub(crate) fn draw(
    scores: &[f32],
    tokens: impl Iterator<Item = u32>,
    likeliest: u32,
    key: NoiseKey,
    position: u32,
) -> (u32, f32) {
    let mut best = (likeliest, scores[likeliest as usize] + key.gumbel(position, likeliest));
    for token in tokens {
        let score = scores[token as usize];
        if score + GUMBEL_MAX < best.1 || token == likeliest {
            continue;
        }
        let sum = score + key.gumbel(position, token);
        if sum > best.1 || (sum == best.1 && token < best.0) {
            best = (token, sum);
        }
    }
    best
}

/// Draws a token; `None` if every token is masked.
pub fn sample_token(
    logits: &[f32],
    inputs: &DrawInputs<'_>,
    position: u32,
    scratch: &mut SampleScratch,
) -> Option<u32> {
    sample_with(logits, inputs, position, scratch, &Plain)
}

fn sample_with(
    logits: &[f32],
    inputs: &DrawInputs<'_>,
    position: u32,
    scratch: &mut SampleScratch,
    math: &dyn Math,
) -> Option<u32> {
    let DrawInputs { params, logit_bias, suppressed, mask, .. } = inputs;
    if params.temperature <= 0.0
        && !params.has_penalties()
        && [logit_bias.len(), suppressed.len(), mask.len()] == [0; 3]
    {
        return largest(logits);
    }
    let (kind, likeliest) = candidates(logits, inputs, scratch, math)?;
    if inputs.params.temperature <= 0.0 {
        return Some(likeliest);
    }
    let (scores, key) = (&scratch.scores[..logits.len()], inputs.params.noise_key);
    Some(match kind {
        Candidates::All => math.draw(scores, likeliest, key, position).0,
        Candidates::Listed => draw(scores, scratch.tokens.iter().copied(), likeliest, key, position).0,
    })
}

/// `max + ln(Σ exp(logit − max))`: 64 lanes by token mod 64, folded (numerics rule 4). Returns (max, logarithm).
pub fn log_sum_exp(logits: &[f32]) -> (f32, f32) {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
    let mut lanes = [0f32; 64];
    for chunk in logits.chunks(64) {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp(logit - max);
        }
    }
    (max, ln(fold_lanes(&mut lanes)))
}

/// Adds 64 lanes by folding 32, 16, 8, 4, 2, 1 (numerics rule 4).
#[inline(always)]
pub(crate) fn fold_lanes(lanes: &mut [f32; 64]) -> f32 {
    let mut width = 32;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Whether all are finite: asked of runs at once, without a branch each.
fn all_finite(logits: &[f32]) -> bool {
    let exponent = f32::INFINITY.to_bits();
    let infinite = |any, logit: &f32| any | (logit.to_bits() & exponent == exponent);
    logits.chunks(1024).all(|run| !run.iter().fold(false, infinite))
}

/// Draws one row's token, unless it is given, and its logprobs. The caller has checked every span and token.
pub(crate) fn run(
    job: &SampleJob,
    logits: &[f32],
    context: &SampleContext<'_>,
    scratch: &mut SampleScratch,
    math: &dyn Math,
    output: &mut Sampled,
) {
    let row = &job.row;
    let history = &context.histories[row.slot as usize];
    let (prompt, completion) = history.tokens.split_at(history.prompt_length);
    let inputs = DrawInputs {
        params: &row.params,
        prompt,
        completion,
        logit_bias: row.logit_bias.of(context.logit_bias).unwrap_or_default(),
        suppressed: row.suppressed.of(context.suppressed).unwrap_or_default(),
        mask: row.mask.of(context.masks).unwrap_or_default(),
    };
    let logits = &logits[row.row as usize * context.vocabulary..][..context.vocabulary];
    if !all_finite(logits) {
        output.token = TokenLogprob { token: NOT_FINITE, logprob: f32::NEG_INFINITY };
        return;
    }
    let wanted = row.logprobs.map(|_| math.log_sum_exp(logits));
    let logprob = |token: u32| {
        let of = |(max, log_sum)| (logits[token as usize] - max) - log_sum;
        TokenLogprob { token, logprob: wanted.map_or(0.0, of) }
    };
    output.token = match row.given.or_else(|| sample_with(logits, &inputs, job.position, scratch, math)) {
        Some(token) => logprob(token),
        None => TokenLogprob { token: NO_TOKEN, logprob: f32::NEG_INFINITY },
    };
    output.rank = row.given.map_or(0, |token| rank_of(logits, token));
    output.top_count = row.logprobs.unwrap_or(0).min(context.vocabulary as u32);
    let top = top_tokens(logits, output.top_count as usize);
    for (entry, &token) in output.top.iter_mut().zip(&top[..output.top_count as usize]) {
        *entry = logprob(token);
    }
}

#[cfg(test)]
mod tests;
