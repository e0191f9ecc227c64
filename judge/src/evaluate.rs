//! The three evaluators over a batch of transcripts, whichever workers and rounds they come from.
//!
//! Order: the cross-encoder on all in one batch; the language-model judge on a fraction (drawn by the receipt's digest, so
//! that judges choose alike) and on what the cross-encoder leaves uncertain; the replay on all. What the language-model
//! judge does not answer is left out, never guessed.

use polylink_inference_server::engine::api::end_tokens;
use polylink_inference_server::model::Tokenizer;
use polylink_protocol::market_v1::FinishReason;
use polylink_protocol::tiqe_v1::Score;
use polylink_protocol::{Digest, market};

use crate::cross_encoder::{CrossEncoder, Pair};
use crate::evidence::{self, Numerics};
use crate::llm::LlmJudge;
use crate::replay::Replay;
use crate::{JudgeError, Transcript};

/// Cross-encoder probabilities between these are uncertain: the language-model judge looks too.
const UNCERTAIN: std::ops::Range<f32> = 0.35..0.65;

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

/// A profile that this judge holds: what turns ids into texts and replays them.
pub struct Held {
    /// The profile's digest.
    pub profile: Digest,
    /// How its replay is compared.
    pub numerics: Numerics,
    /// Its tokenizer.
    pub tokenizer: std::sync::Arc<Tokenizer>,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// Prompt and completion together, in tokens.
    pub context_length: usize,
    /// Its declared model.
    pub replay: Box<dyn Replay>,
}

/// The evaluators.
pub struct Auditor {
    /// Always asked.
    pub cross_encoder: CrossEncoder,
    /// Asked on a fraction, where there is one.
    pub llm: Option<LlmJudge>,
    /// Share of answers that the language-model judge sees whatever the cross-encoder says, in basis points.
    pub llm_fraction_bps: u32,
    /// Profiles that can be replayed.
    pub held: Vec<Held>,
}

impl Auditor {
    /// Scores every transcript; evidence is clipped to ±`clip_milli`.
    pub async fn evaluate(&mut self, transcripts: &[Transcript], clip_milli: u64) -> Result<Vec<Finding>, JudgeError> {
        let pairs: Vec<Pair> = transcripts.iter().map(|t| self.texts(t)).collect();
        let cross = self.cross_encoder.score(&pairs)?;
        let mut findings = Vec::with_capacity(transcripts.len());
        for ((transcript, pair), cross) in transcripts.iter().zip(&pairs).zip(cross) {
            let llm = self.ask_llm(transcript, pair, cross).await;
            findings.push(self.finding(transcript, cross, llm, clip_milli)?);
        }
        Ok(findings)
    }

    /// Question and (first choice's) answer of a transcript. A profile that is not held has no tokenizer here: its texts
    /// are empty, and the cross-encoder says what it says of that.
    fn texts(&self, transcript: &Transcript) -> Pair {
        let held = self.held(transcript);
        let answer = transcript.completions.first().map_or(&[][..], |c| &c.token_ids);
        held.map_or(Pair { question: String::new(), answer: String::new() }, |held| Pair {
            question: last_message(&held.tokenizer, &transcript.prompt_ids),
            answer: held.tokenizer.decode(answer).trim().to_string(),
        })
    }

    fn held(&self, transcript: &Transcript) -> Option<&Held> {
        self.held.iter().find(|h| h.profile.0 == transcript.receipt.profile_digest.as_slice())
    }

    async fn ask_llm(&self, transcript: &Transcript, pair: &Pair, cross: f32) -> Option<f64> {
        let digest = market::receipt_digest(&transcript.receipt);
        let drawn = u32::from(u16::from_be_bytes([digest.0[0], digest.0[1]])) * 10_000 / 65_536 < self.llm_fraction_bps;
        if !drawn && !UNCERTAIN.contains(&cross) {
            return None;
        }
        match self.llm.as_ref()?.score(pair).await {
            Ok(score) => Some(score),
            Err(error) => {
                tracing::warn!(%error, "no score of the LLM judge");
                None
            }
        }
    }

    fn finding(
        &mut self,
        transcript: &Transcript,
        cross: f32,
        llm: Option<f64>,
        clip_milli: u64,
    ) -> Result<Finding, JudgeError> {
        let bps = |p: f64| (p.clamp(0.0, 1.0) * 10_000.0).round() as u32;
        let mut score = Score {
            cross_bps: bps(f64::from(cross)),
            has_llm: llm.is_some(),
            llm_bps: llm.map_or(0, bps),
            ..Default::default()
        };
        let (mut margin, mut sketch_error, mut mismatch) = (0.0_f32, 0.0_f64, false);
        let profile = transcript.receipt.profile_digest.as_slice();
        if let Some(held) = self.held.iter_mut().find(|h| h.profile.0 == profile) {
            score.replayed = true;
            mismatch |= transcript.completions.len() != transcript.sampling().n as usize;
            for (choice, completion) in transcript.completions.iter().enumerate() {
                let tokens = held.replay.replay(transcript, choice as u32)?;
                for ((token, found), sketch) in tokens.iter().zip(&completion.token_ids).zip(&completion.sketches) {
                    let error = evidence::sketch_error(sketch, &token.sketch);
                    let wrong = held.numerics.token_mismatch(token.margin);
                    tracing::trace!(found, margin = token.margin, error, "replayed");
                    score.tokens += 1;
                    score.token_mismatches += u32::from(wrong);
                    mismatch |= wrong || held.numerics.sketch_mismatch(*sketch == token.sketch, error);
                    margin = margin.max(token.margin);
                    sketch_error = sketch_error.max(error);
                }
                mismatch |= tokens.len() != completion.token_ids.len();
                mismatch |= !held.may_end_here(transcript, &completion.token_ids);
            }
            score.margin_micro = (f64::from(margin) * 1e6).min(1e15) as u64;
            score.sketch_error_nano = (sketch_error * 1e9).min(1e15) as u64;
            score.evidence_milli = evidence::of_answer(mismatch, clip_milli);
        }
        Ok(Finding { score, margin, sketch_error, mismatch })
    }
}

impl Held {
    /// Whether an honest worker can have ended a choice just there: at an end token, at a stop text, at the limit of
    /// tokens, or because its user went away; and not beyond the first of them.
    fn may_end_here(&self, transcript: &Transcript, tokens: &[u32]) -> bool {
        let sampling = transcript.sampling();
        let ends = end_tokens(sampling, &self.end_tokens);
        let limit = (sampling.max_tokens as usize).min(self.context_length.saturating_sub(transcript.prompt_ids.len()));
        let Some((last, before)) = tokens.split_last() else {
            return transcript.receipt.finish_reason() == FinishReason::Cancelled;
        };
        if tokens.len() > limit || before.iter().any(|token| ends.contains(token)) {
            return false;
        }
        let text = || self.tokenizer.decode(tokens);
        tokens.len() == limit
            || ends.contains(last)
            || (!sampling.stop.is_empty() && sampling.stop.iter().any(|stop| text().contains(stop.as_str())))
            || transcript.receipt.finish_reason() == FinishReason::Cancelled
    }
}

/// The text between the last special tokens that have any between them: with every chat template that fences messages
/// by special tokens, the user's last message.
fn last_message(tokenizer: &Tokenizer, prompt: &[u32]) -> String {
    let special: Vec<bool> = prompt.iter().map(|id| tokenizer.has_special(&tokenizer.token_text(*id))).collect();
    let text = |ids: &[u32]| tokenizer.decode(ids).trim().to_string();
    let mut end = prompt.len();
    for at in (0..prompt.len()).rev() {
        if special[at] {
            let message = text(&prompt[at + 1..end]);
            if !message.is_empty() {
                return message;
            }
            end = at;
        }
    }
    text(&prompt[..end])
}
