//! One answer, from the engine's tokens to the signed receipt.
//!
//! The answer lives in its response's stream: when the client goes away, hyper drops the stream, which cancels the
//! generation within one engine step and gives the session its reservation back.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use futures::Stream;
use polylink_protocol::market::{
    SALT_BYTES, SKETCH_BYTES, answer_amount, completion_digest, request_digest, sign_receipt, sketch_digest,
};
use polylink_protocol::market_v1::{FinishReason as WireReason, Receipt, Request, TokenPrices};
use polylink_protocol::transcript::{GenerateCall, GenerateEvent, TokenLogprobs};

use super::Worker;
use super::records::{ChoiceTranscript, Transcript};
use crate::engine::{FinishReason, TextEvent, TextStream, TokenEvent, Usage};
use crate::http::{ApiError, sse};

/// A reservation in the worker's accounts, given back unless the answer ends with a receipt.
pub(super) struct Reservation {
    pub(super) worker: Arc<Worker>,
    pub(super) session: u64,
    pub(super) index: u64,
    pub(super) kept: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.worker.store.abandon(self.session, self.index);
        }
    }
}

#[derive(Default)]
struct Choice {
    ids: Vec<u32>,
    sketches: Vec<[u8; SKETCH_BYTES]>,
    reason: Option<FinishReason>,
}

/// An answer under way.
pub(super) struct Serving {
    text: TextStream,
    call: GenerateCall,
    request: Request,
    price: TokenPrices,
    salt: [u8; SALT_BYTES],
    choices: Vec<Choice>,
    start_time_ms: u64,
    reservation: Reservation,
    ended: bool,
}

impl Serving {
    pub(super) fn new(
        text: TextStream,
        call: GenerateCall,
        request: Request,
        price: TokenPrices,
        salt: [u8; SALT_BYTES],
        reservation: Reservation,
    ) -> Self {
        let n = request.sampling.as_ref().map_or(1, |s| s.n.max(1));
        let choices = (0..n).map(|_| Choice::default()).collect();
        Self { text, call, request, price, salt, choices, start_time_ms: unix_ms(), reservation, ended: false }
    }

    /// The answer as server-sent events.
    pub(super) fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut serving| async move {
            let event = serving.next().await?;
            Some((sse::event(&event), serving))
        })
    }

    async fn next(&mut self) -> Option<GenerateEvent> {
        if self.ended {
            return None;
        }
        let event = match self.text.next().await {
            Some(TextEvent::Token { token, text }) => return Some(self.token(token, text)),
            Some(TextEvent::Finished { choice, reason, text }) => {
                if let Some(state) = self.choices.get_mut(choice as usize) {
                    state.reason = Some(reason);
                }
                return Some(GenerateEvent::Finish { choice, reason: reason.as_str().into(), text });
            }
            Some(TextEvent::Done { usage }) => self.receipt(&usage).await,
            Some(TextEvent::Failed { code, message }) => Err(ApiError::unavailable(code.as_str(), message)),
            None => Err(ApiError::unavailable("engine_stopped", "the engine ended the answer: ask again")),
        };
        self.ended = true;
        Some(event.unwrap_or_else(|error| GenerateEvent::Error { code: error.code().into(), message: error.message }))
    }

    fn token(&mut self, token: TokenEvent, text: String) -> GenerateEvent {
        if let Some(choice) = self.choices.get_mut(token.choice as usize) {
            choice.ids.push(token.id);
            choice.sketches.push(token.sketch);
        }
        let logprobs = match self.call.logprobs {
            0 => vec![],
            _ => {
                let top = token.top.iter().map(|t| (t.token, t.logprob)).collect();
                vec![TokenLogprobs { logprob: token.logprob, top }]
            }
        };
        GenerateEvent::Tokens { choice: token.choice, token_ids: vec![token.id], text, logprobs }
    }

    /// Signs the receipt, and waits until it and the transcript are on disk.
    async fn receipt(&mut self, usage: &Usage) -> Result<GenerateEvent, ApiError> {
        let worker = &self.reservation.worker;
        let completions = self.choices.iter().map(|c| c.ids.as_slice());
        let completion_tokens: u64 = self.choices.iter().map(|c| c.ids.len() as u64).sum();
        debug_assert_eq!(completion_tokens, usage.completion_tokens, "the engine's count is what was streamed");
        let amount = answer_amount(&self.price, usage.prompt_tokens, usage.cached_tokens, completion_tokens);
        let receipt = Receipt {
            request_digest: request_digest(&self.request).to_vec(),
            worker: worker.operator.clone(),
            session: self.request.session,
            index: self.request.index,
            epoch: self.request.epoch,
            profile_digest: self.request.profile_digest.clone(),
            completion_digest: completion_digest(&self.salt, completions).to_vec(),
            sketch_digest: sketch_digest(self.choices.iter().map(|c| c.sketches.as_slice())).to_vec(),
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens,
            amount: amount.to_string(),
            finish_reason: self.reason() as i32,
            start_time_ms: self.start_time_ms,
            end_time_ms: unix_ms().max(self.start_time_ms),
        };
        let signed = sign_receipt(receipt, &worker.config.receipt_key);
        let transcript = Transcript {
            request: Some(self.call.request.clone()),
            receipt: Some(signed.clone()),
            prompt_salt: self.call.prompt_salt.clone(),
            prompt_token_ids: std::mem::take(&mut self.call.prompt_token_ids),
            completion_salt: self.salt.to_vec(),
            choices: self
                .choices
                .iter()
                .map(|c| ChoiceTranscript { token_ids: c.ids.clone(), sketches: c.sketches.concat() })
                .collect(),
        };
        // The accounts are changed before the first await, so that a client that leaves now finds the receipt later.
        let finished = worker.store.finish(transcript);
        self.reservation.kept = true;
        let worker = Arc::clone(worker);
        if let Err(error) = finished.await {
            worker.store.abandon(self.request.session, self.request.index);
            return Err(super::service::store_error(error));
        }
        Ok(GenerateEvent::Receipt { receipt: Box::new(signed), completion_salt: self.salt.to_vec() })
    }

    /// `stop` when every choice stopped by itself, else `length`.
    fn reason(&self) -> WireReason {
        let all_stopped = self.choices.iter().all(|c| c.reason == Some(FinishReason::Stop));
        if all_stopped { WireReason::Stop } else { WireReason::Length }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or_default()
}
