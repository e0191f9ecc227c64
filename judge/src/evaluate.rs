//! The three evaluators over a batch of transcripts, whichever workers and rounds they come from.
//!
//! Side by side: the replay on all; and the cross-encoder on all in one batch, then the language-model judge on a fraction
//! (drawn by the round's beacon and the receipt's digest, so that judges choose alike and no worker can choose) and on
//! what the cross-encoder leaves uncertain. What a deadline cuts off is left out, never guessed: an answer
//! without a replay has no evidence, one without the language model no score of it.

mod held;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use polylink_protocol::tiqe::llm_draw_bps;
use polylink_protocol::tiqe_v1::Score;
use polylink_protocol::{Digest, market};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::held::{Held, Replayed};
use self::thread::{BATCHES_MAX, Replayer, Replays, TextScorer, Texts};
use crate::cross_encoder::{CrossEncoder, Pair};
use crate::evidence;
use crate::llm::LlmJudge;
use crate::{JudgeError, Transcript};

/// Cross-encoder probabilities between these are uncertain: the language-model judge looks too.
const UNCERTAIN: std::ops::Range<f32> = 0.35..0.65;
/// Calls of the language-model judge at once, per batch.
const LLM_CALLS_MAX: usize = 8;
/// A choice's token in a disclosure: up to 11 bytes as a number, 32 as a sketch, and room for spaces.
const DISCLOSED_TOKEN_BYTES: usize = 64;
/// Of a disclosure, all that is not tokens: signed objects and path; and the most that is read in any case.
const DISCLOSURE_REST_BYTES: usize = 256 << 10;
const DISCLOSURE_BYTES_MAX: usize = 8 << 20;

/// A transcript and the beacon that drew it: of the round, or of the trial's drawing.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was served.
    pub transcript: Transcript,
    /// Decides whether the language-model judge sees it.
    pub beacon: Digest,
}

/// What was found about one transcript.
#[derive(Clone, Debug)]
pub struct Finding {
    /// As it is committed; `sample` is the caller's to set.
    pub score: Score,
    /// Largest margin of a token, in logits.
    pub margin: f32,
    /// Largest relative sketch error of a token.
    pub sketch_error: f64,
    /// The evidence speaks against the worker.
    pub mismatch: bool,
}

/// What is known outside the evaluators' thread of a profile that can be replayed.
#[derive(Clone, Copy, Debug)]
pub struct HeldProfile {
    /// Its digest.
    pub profile: Digest,
    /// No honest disclosure of an answer is longer.
    pub disclosure_bytes_max: usize,
}

/// The evaluators: a handle on their threads, which end with the last handle.
#[derive(Clone)]
pub struct Auditor {
    texts: mpsc::Sender<Texts>,
    replays: mpsc::Sender<Replays>,
    forwards: Arc<AtomicU64>,
    held: Arc<[HeldProfile]>,
    llm: Option<Arc<LlmJudge>>,
    llm_fraction_bps: u32,
}

impl Auditor {
    pub(crate) fn start(
        cross_encoder: CrossEncoder,
        held: Vec<Held>,
        llm: Option<LlmJudge>,
        llm_fraction_bps: u32,
    ) -> Result<Self, JudgeError> {
        let profiles = held.iter().map(|held| HeldProfile {
            profile: held.profile,
            // The prompt once, and at most 16 choices.
            disclosure_bytes_max: (held.context_length * 17 * DISCLOSED_TOKEN_BYTES + DISCLOSURE_REST_BYTES)
                .min(DISCLOSURE_BYTES_MAX),
        });
        let (profiles, forwards) = (profiles.collect(), Arc::<AtomicU64>::default());
        let tokenizers = held.iter().map(|held| (held.profile, Arc::clone(&held.tokenizer))).collect();
        let scorer = TextScorer { cross_encoder, profiles: tokenizers, forwards: Arc::clone(&forwards) };
        let replayer = Replayer { held };
        let (texts, texts_asked) = mpsc::channel(BATCHES_MAX);
        let (replays, replays_asked) = mpsc::channel(BATCHES_MAX);
        spawn("cross-encoder", move || scorer.run(texts_asked))?;
        spawn("replay", move || replayer.run(replays_asked))?;
        Ok(Self { texts, replays, forwards, held: profiles, llm: llm.map(Arc::new), llm_fraction_bps })
    }

    /// Profiles that can be replayed.
    pub fn held(&self) -> &[HeldProfile] {
        &self.held
    }

    /// Forward passes of the cross-encoder so far: what tests and metrics see of the batching.
    pub fn forwards(&self) -> u64 {
        self.forwards.load(Ordering::Relaxed)
    }

    /// Scores every case, in their order; evidence is clipped to ±`clip_milli`. Replays and calls of the language model
    /// that are not through at `until` are left out.
    pub async fn evaluate(
        &self,
        cases: Vec<Case>,
        clip_milli: u64,
        until: Instant,
    ) -> Result<Vec<Finding>, JudgeError> {
        if cases.is_empty() {
            return Ok(Vec::new());
        }
        let drawn: Vec<bool> = cases
            .iter()
            .map(|case| {
                llm_draw_bps(&case.beacon, &market::receipt_digest(&case.transcript.receipt)) < self.llm_fraction_bps
            })
            .collect();
        let transcripts: Arc<[Transcript]> = cases.into_iter().map(|case| case.transcript).collect();
        let ended = || JudgeError::EvaluatorsEnded;
        let ((answer, scored), (replies, replayed)) = (oneshot::channel(), oneshot::channel());
        let replays = Replays { transcripts: Arc::clone(&transcripts), until: until.into_std(), answer: replies };
        self.replays.send(replays).await.map_err(|_| ended())?;
        self.texts.send(Texts { transcripts, answer }).await.map_err(|_| ended())?;
        let scored = scored.await.map_err(|_| ended())??;
        let scores: Vec<f32> = scored.iter().map(|(_, score)| *score).collect();
        let (llm, replayed) = tokio::join!(self.ask_llm(scored, &drawn, until), replayed);
        let replayed = replayed.map_err(|_| ended())??;
        let each = scores.into_iter().zip(llm).zip(replayed);
        Ok(each.map(|((cross, llm), replayed)| finding(cross, llm, replayed, clip_milli)).collect())
    }

    /// The language model's score of each pair that it is to see, where it gives one in time.
    async fn ask_llm(&self, pairs: Vec<(Pair, f32)>, drawn: &[bool], until: Instant) -> Vec<Option<f64>> {
        let mut scores = vec![None; pairs.len()];
        let Some(llm) = &self.llm else { return scores };
        let asked = pairs.into_iter().zip(drawn).enumerate();
        let asked = asked.filter(|(_, ((_, cross), drawn))| **drawn || UNCERTAIN.contains(cross));
        let calls = asked.map(|(at, ((pair, _), _))| {
            let llm = Arc::clone(llm);
            async move {
                match timeout_at(until, llm.score(&pair)).await {
                    Ok(Ok(score)) => (at, Some(score)),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "no score of the LLM judge");
                        (at, None)
                    }
                    Err(_) => {
                        tracing::warn!("no score of the LLM judge in time");
                        (at, None)
                    }
                }
            }
        });
        let mut calls = futures::stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(LLM_CALLS_MAX);
        while let Some((at, score)) = calls.next().await {
            scores[at] = score;
        }
        scores
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), JudgeError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(run);
    thread.map(drop).map_err(|e| JudgeError::Evaluators(format!("no thread: {e}")))
}

fn finding(cross: f32, llm: Option<f64>, replayed: Option<Replayed>, clip_milli: u64) -> Finding {
    let bps = |p: f64| (p.clamp(0.0, 1.0) * 10_000.0).round() as u32;
    let found = replayed.unwrap_or_default();
    let score = Score {
        cross_bps: bps(f64::from(cross)),
        has_llm: llm.is_some(),
        llm_bps: llm.map_or(0, bps),
        replayed: replayed.is_some(),
        tokens: found.tokens,
        token_mismatches: found.token_mismatches,
        margin_micro: (f64::from(found.margin) * 1e6).min(1e15) as u64,
        sketch_error_nano: (found.sketch_error * 1e9).min(1e15) as u64,
        evidence_milli: replayed.map_or(0, |r| evidence::of_answer(r.mismatch, r.tokens, clip_milli)),
        ..Default::default()
    };
    Finding { score, margin: found.margin, sketch_error: found.sketch_error, mismatch: found.mismatch }
}
