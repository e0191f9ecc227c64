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

use crate::step::{SampleParams, SampleRow, Sampled, TOP_LOGPROBS_MAX, TokenLogprob};

/// Fixed point of a token's weight in top-p: `⌊exp(z − max) × 2⁴⁰⌋`; sums of 2²⁴ of them fit in u64.
const WEIGHT_ONE: f32 = (1u64 << 40) as f32;

/// Stands for "every token is masked"; the executor turns it into an error.
pub(crate) const NO_TOKEN: u32 = u32::MAX;

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
    /// Occurrences in the completion, by token; bit 31: occurs in prompt or completion. All 0 between draws.
    counts: Vec<u32>,
}

const SEEN: u32 = 1 << 31;

impl SampleScratch {
    /// For a vocabulary of this size.
    pub fn new(vocabulary: usize) -> Self {
        Self { scores: vec![0.0; vocabulary], tokens: Vec::with_capacity(vocabulary), counts: vec![0; vocabulary] }
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
) -> Option<(Candidates, u32)> {
    adjust(logits, inputs, scratch);
    let SampleParams { temperature, top_k, top_p, min_p, .. } = *inputs.params;
    let vocabulary = logits.len();
    let SampleScratch { scores, tokens, .. } = scratch;
    let scores = &scores[..vocabulary];
    let likeliest = largest(scores)?;
    let (top_k, max) = (top_k as usize, scores[likeliest as usize]);
    let (by_rank, by_weight, by_share) = (top_k > 0 && top_k < vocabulary, top_p < 1.0, min_p > 0.0);
    if temperature <= 0.0 || !(by_rank || by_weight || by_share) {
        return Some((Candidates::All, likeliest));
    }
    // What weighs nothing in fixed point can only be kept by rank, and would be cut by top-p anyway.
    let weight = |token: u32| (exp(scores[token as usize] - max) * WEIGHT_ONE) as u64;
    let before = |a: &u32, b: &u32| {
        let (x, y) = (scores[*a as usize], scores[*b as usize]);
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    tokens.clear();
    tokens.extend((0..vocabulary as u32).filter(|&token| scores[token as usize] > f32::NEG_INFINITY));
    if by_rank && top_k < tokens.len() {
        tokens.select_nth_unstable_by(top_k - 1, before);
        tokens.truncate(top_k);
    }
    if by_weight {
        tokens.retain(|&token| weight(token) > 0);
        tokens.sort_unstable_by(before);
        let total: u64 = tokens.iter().map(|&token| weight(token)).sum();
        // top_p in units of 2⁻³²: exact, since f64 holds an f32 times a power of two.
        let share = (top_p.max(0.0) as f64 * 4_294_967_296.0) as u128;
        let threshold = ((total as u128 * share) >> 32) as u64;
        let mut sum = 0;
        let kept = tokens.iter().take_while(|&&token| {
            let keep = sum < threshold;
            sum += weight(token);
            keep
        });
        let kept = kept.count().max(1);
        tokens.truncate(kept);
    }
    if by_share {
        tokens.retain(|&token| exp(scores[token as usize] - max) >= min_p);
    }
    Some((Candidates::Listed, likeliest))
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
    let (kind, likeliest) = candidates(logits, inputs, scratch)?;
    if inputs.params.temperature <= 0.0 {
        return Some(likeliest);
    }
    let (scores, key) = (&scratch.scores[..logits.len()], inputs.params.noise_key);
    Some(match kind {
        Candidates::All => draw(scores, 0..logits.len() as u32, likeliest, key, position).0,
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

/// Draws one row's token and its logprobs. The caller has checked every span and token, and says how it computes
/// [`log_sum_exp`].
pub(crate) fn run(
    job: &SampleJob,
    logits: &[f32],
    context: &SampleContext<'_>,
    scratch: &mut SampleScratch,
    log_sum_exp: &dyn Fn(&[f32]) -> (f32, f32),
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
    let (max, log_sum) = log_sum_exp(logits);
    let logprob = |token: u32| TokenLogprob { token, logprob: (logits[token as usize] - max) - log_sum };
    output.token = match sample_token(logits, &inputs, job.position, scratch) {
        Some(token) => logprob(token),
        None => TokenLogprob { token: NO_TOKEN, logprob: f32::NEG_INFINITY },
    };
    output.top_count = row.logprobs.min(context.vocabulary as u32);
    let top = top_tokens(logits, output.top_count as usize);
    for (entry, &token) in output.top.iter_mut().zip(&top[..output.top_count as usize]) {
        *entry = logprob(token);
    }
}

/// The `count` ≤ 20 largest logits, largest first, ties by id: insertion into a small sorted list.
fn top_tokens(logits: &[f32], count: usize) -> [u32; TOP_LOGPROBS_MAX] {
    let mut top = [0u32; TOP_LOGPROBS_MAX];
    let mut filled = 0;
    if count == 0 {
        return top;
    }
    for (token, &logit) in logits.iter().enumerate() {
        if filled == count && logit <= logits[top[count - 1] as usize] {
            continue;
        }
        let mut place = if filled < count { filled } else { count - 1 };
        while place > 0 && logits[top[place - 1] as usize] < logit {
            top[place] = top[place - 1];
            place -= 1;
        }
        top[place] = token as u32;
        filled = (filled + 1).min(count);
    }
    top
}

#[cfg(test)]
mod tests;
