//! A profile that the judge holds: ids to texts, and whether an answer can be an honest run of the declared model.

use std::sync::Arc;

use polylink_inference_server::engine::api::end_tokens;
use polylink_inference_server::model::{Detokenizer, Tokenizer};
use polylink_protocol::Digest;
use polylink_protocol::market_v1::FinishReason;

use crate::cross_encoder::Pair;
use crate::evidence::{self, Numerics};
use crate::replay::Replay;
use crate::{JudgeError, Transcript};

/// What turns a profile's ids into texts and replays them.
pub(crate) struct Held {
    /// The profile's digest.
    pub(crate) profile: Digest,
    /// How its replay is compared.
    pub(crate) numerics: Numerics,
    /// Its tokenizer.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Tokens that end an answer.
    pub(crate) end_tokens: Vec<u32>,
    /// Prompt and completion together, in tokens.
    pub(crate) context_length: usize,
    /// Its declared model.
    pub(crate) replay: Box<dyn Replay>,
}

/// What the replay of an answer found, over all choices so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Replayed {
    /// Completion tokens replayed.
    pub(crate) tokens: u32,
    /// Tokens whose margin speaks against the worker.
    pub(crate) token_mismatches: u32,
    /// Largest margin of a token, in logits.
    pub(crate) margin: f32,
    /// Largest relative sketch error of a token.
    pub(crate) sketch_error: f64,
    /// No honest run of the declared model gives this answer.
    pub(crate) mismatch: bool,
}

impl Held {
    /// Whether the answer has the outward shape of an honest one: as many choices as were asked for, a prompt that
    /// leaves room to answer, and each choice ended where it can end. What fails here is not worth a replay.
    pub(crate) fn shape_is_honest(&self, transcript: &Transcript) -> bool {
        transcript.completions.len() == transcript.sampling().n as usize
            && (1..self.context_length).contains(&transcript.prompt_ids.len())
            && transcript.completions.iter().all(|c| self.may_end_here(transcript, &c.token_ids))
    }

    /// Replays one choice and adds it to what was found of the others.
    pub(crate) fn replay(
        &mut self,
        transcript: &Transcript,
        choice: u32,
        sum: &mut Replayed,
    ) -> Result<(), JudgeError> {
        let completion = &transcript.completions[choice as usize];
        let Some(tokens) = self.replay.replay(transcript, choice)? else {
            sum.mismatch = true;
            return Ok(());
        };
        for ((token, found), sketch) in tokens.iter().zip(&completion.token_ids).zip(&completion.sketches) {
            let error = evidence::sketch_error(sketch, &token.sketch);
            let wrong = self.numerics.token_mismatch(token.margin);
            tracing::trace!(found, margin = token.margin, error, "replayed");
            sum.tokens = sum.tokens.saturating_add(1);
            sum.token_mismatches = sum.token_mismatches.saturating_add(u32::from(wrong));
            sum.mismatch |= wrong || self.numerics.sketch_mismatch(*sketch == token.sketch, error);
            sum.margin = sum.margin.max(token.margin);
            sum.sketch_error = sum.sketch_error.max(error);
        }
        sum.mismatch |= tokens.len() != completion.token_ids.len();
        Ok(())
    }

    /// Whether an honest worker can have ended a choice just there: at an end token, at a stop text, at the limit of
    /// tokens, or anywhere before them because its user went away; never beyond the first of them, whoever went away.
    fn may_end_here(&self, transcript: &Transcript, tokens: &[u32]) -> bool {
        let sampling = transcript.sampling();
        let ends = end_tokens(sampling, &self.end_tokens);
        let limit = (sampling.max_tokens as usize).min(self.context_length.saturating_sub(transcript.prompt_ids.len()));
        let cancelled = transcript.receipt.finish_reason() == FinishReason::Cancelled;
        let Some((last, before)) = tokens.split_last() else { return cancelled };
        if tokens.len() > limit || before.iter().any(|token| ends.contains(token)) {
            return false;
        }
        match self.first_stop(tokens, &sampling.stop) {
            Some(at) => at + 1 == tokens.len(),
            None => tokens.len() == limit || ends.contains(last) || cancelled,
        }
    }

    /// The token that completes the first stop text, found as the worker finds it.
    fn first_stop(&self, tokens: &[u32], stop: &[String]) -> Option<usize> {
        let longest = stop.iter().map(String::len).max()?;
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.tokenizer));
        let mut text = String::new();
        tokens.iter().position(|token| {
            text.push_str(&detokenizer.push(*token));
            let found = stop.iter().any(|stop| text.contains(stop.as_str()));
            // Only the end can still be part of a stop text.
            let keep = (0..=text.len().saturating_sub(longest)).rev().find(|at| text.is_char_boundary(*at));
            text.drain(..keep.unwrap_or_default());
            found
        })
    }
}

/// Question and (first choice's) answer.
pub(super) fn texts(tokenizer: &Tokenizer, transcript: &Transcript) -> Pair {
    let answer = transcript.completions.first().map_or(&[][..], |c| &c.token_ids);
    Pair {
        question: last_message(tokenizer, &transcript.prompt_ids),
        answer: tokenizer.decode(answer).trim().to_string(),
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
