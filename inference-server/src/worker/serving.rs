//! One answer, from the engine's tokens to the signed receipt.
//!
//! The answer lives in its response's stream: when the client goes away, hyper drops the stream, which cancels the
//! generation within one engine step. What always holds: a receipt is over exactly the tokens that were handed to the
//! stream; a client that leaves after the first of them owes a receipt of kind `cancelled` (or the whole answer's, where
//! only the receipt was still to come), and what was computed of its prompt is not sent before; before the first one, when the engine fails, and when this worker itself cuts the
//! stream, nothing is billed and the session gets its reservation back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use futures::Stream;
use polylink_protocol::market::{
    SALT_BYTES, SKETCH_BYTES, answer_amount, completion_digest, request_digest, sign_receipt, sketch_digest,
};
use polylink_protocol::market_v1::{FinishReason as WireReason, Receipt, Request, SignedReceipt, TokenPrices};
use polylink_protocol::transcript::{GenerateCall, GenerateEvent, PromptLogprobs, TokenLogprobs};

use super::Worker;
use super::records::{ChoiceTranscript, Transcript};
use super::store::StoreError;
use crate::engine::{FinishReason, PromptToken, TextEvent, TextStream, TokenEvent, Usage};
use crate::http::{ApiError, sse};

/// Prompt tokens whose logprobs one event has.
const PROMPT_EVENT_MAX: usize = 256;

/// A reservation in the worker's accounts, given back unless the answer ends with a receipt.
pub(super) struct Reservation {
    pub(super) worker: Arc<Worker>,
    pub(super) session: u64,
    pub(super) index: u64,
    /// The session is.
    pub(super) private: bool,
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

/// An answer under way, without the engine's stream.
struct Answer {
    call: GenerateCall,
    request: Request,
    price: TokenPrices,
    salt: [u8; SALT_BYTES],
    choices: Vec<Choice>,
    /// Logprobs of prompt tokens that are still to be sent.
    prompt: VecDeque<PromptLogprobs>,
    start_time_ms: u64,
    reservation: Reservation,
}

/// An answer and the engine's stream; both are gone once its last event is out.
pub(super) struct Serving {
    under_way: Option<(TextStream, Answer)>,
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
        let (prompt, start_time_ms) = (VecDeque::new(), unix_ms());
        let answer = Answer { call, request, price, salt, choices, prompt, start_time_ms, reservation };
        Self { under_way: Some((text, answer)) }
    }

    /// The answer as server-sent events.
    pub(super) fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut serving| async move {
            let event = serving.next().await?;
            Some((sse::event(&event), serving))
        })
    }

    async fn next(&mut self) -> Option<GenerateEvent> {
        let (text, answer) = self.under_way.as_mut()?;
        if let Some(told) = answer.told() {
            return Some(told);
        }
        let next = loop {
            match text.next().await {
                Some(TextEvent::Prompt(token)) => answer.tell(token),
                next => break next,
            }
        };
        let event = match next {
            // Taken above.
            Some(TextEvent::Prompt(_)) | None => {
                Err(ApiError::unavailable("engine_stopped", "the engine ended the answer: ask again"))
            }
            Some(TextEvent::Token { token, text }) => return Some(answer.token(token, text)),
            Some(TextEvent::Finished { choice, reason, text }) => {
                answer.ended(choice, reason);
                return Some(GenerateEvent::Finish { choice, reason: reason.as_str().into(), text });
            }
            Some(TextEvent::Done { usage }) => self.store(usage).await,
            Some(TextEvent::Failed { code, message }) => Err(ApiError::unavailable(code.as_str(), message)),
        };
        // What failed gives its reservation back here.
        self.under_way = None;
        Some(event.unwrap_or_else(|error| GenerateEvent::Error { code: error.code().into(), message: error.message }))
    }

    /// The last event of a whole answer. In a task of its own, so that a client that leaves now does not undo it.
    async fn store(&mut self, usage: Usage) -> Result<GenerateEvent, ApiError> {
        let Some((_, answer)) = self.under_way.take() else {
            return Err(ApiError::internal("an answer ended twice"));
        };
        let (endings, salt) = (answer.reservation.worker.endings.clone(), answer.salt.to_vec());
        let stored = endings.spawn(answer.store(usage)).await;
        let receipt = stored.map_err(|e| ApiError::internal(format!("a task of the worker ended: {e}")))?;
        let receipt = receipt.map_err(super::service::store_error)?;
        Ok(GenerateEvent::Receipt { receipt: Box::new(receipt), completion_salt: salt })
    }
}

impl Drop for Serving {
    /// The client went away.
    fn drop(&mut self) {
        let Some((text, answer)) = self.under_way.take() else { return };
        let worker = Arc::clone(&answer.reservation.worker);
        if answer.choices.iter().all(|c| c.ids.is_empty()) || worker.cutting.load(Ordering::Acquire) {
            return;
        }
        // Without a runtime the process ends: as after a crash, nothing is billed.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            worker.endings.spawn_on(answer.cut(text), &runtime);
        }
    }
}

impl Answer {
    /// A prompt token's logprobs, to be sent behind the first completion token.
    fn tell(&mut self, PromptToken { logprob, rank, top, .. }: PromptToken) {
        let top = top.iter().map(|t| (t.token, t.logprob)).collect();
        self.prompt.push_back(PromptLogprobs { logprob, rank, top });
    }

    /// What is to be said of the prompt now.
    fn told(&mut self) -> Option<GenerateEvent> {
        let begun = self.choices.iter().any(|choice| !choice.ids.is_empty());
        let count = if begun { self.prompt.len().min(PROMPT_EVENT_MAX) } else { 0 };
        (count > 0).then(|| GenerateEvent::Prompt { tokens: self.prompt.drain(..count).collect() })
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

    fn ended(&mut self, choice: u32, reason: FinishReason) {
        if let Some(state) = self.choices.get_mut(choice as usize) {
            state.reason = Some(reason);
        }
    }

    /// Nobody reads any more: stops the engine, and makes the receipt over what was sent.
    async fn cut(mut self, mut text: TextStream) {
        text.cancel();
        let mut unsent = vec![false; self.choices.len()];
        while let Some(event) = text.next().await {
            match event {
                TextEvent::Prompt(_) => {}
                TextEvent::Token { token, .. } => unsent[token.choice as usize] = true,
                // All of its tokens were sent, only its end was not.
                TextEvent::Finished { choice, reason, .. } if !unsent[choice as usize] => self.ended(choice, reason),
                TextEvent::Finished { .. } => {}
                TextEvent::Done { usage } => {
                    let (session, index) = (self.request.session, self.request.index);
                    match self.store(usage).await {
                        Ok(receipt) => {
                            let tokens = receipt.receipt.map_or(0, |r| r.completion_tokens);
                            tracing::debug!(session, index, tokens, "the caller went away: what was sent is billed");
                        }
                        Err(error) => tracing::warn!(session, index, %error, "a cut answer is not billed"),
                    }
                    return;
                }
                TextEvent::Failed { message, .. } => {
                    tracing::debug!(message, "the engine failed in an answer that was cut: nothing is billed");
                    return;
                }
            }
        }
    }

    /// Signs the receipt, and waits until it and the transcript are on disk.
    async fn store(mut self, usage: Usage) -> Result<SignedReceipt, StoreError> {
        let worker = Arc::clone(&self.reservation.worker);
        let completions = self.choices.iter().map(|c| c.ids.as_slice());
        let completion_tokens: u64 = self.choices.iter().map(|c| c.ids.len() as u64).sum();
        debug_assert!(completion_tokens <= usage.completion_tokens, "the engine counts what was sent");
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
        let choices = self.choices.iter();
        let transcript = Transcript {
            request: Some(self.call.request.clone()),
            receipt: Some(signed.clone()),
            prompt_salt: std::mem::take(&mut self.call.prompt_salt),
            prompt_token_ids: std::mem::take(&mut self.call.prompt_token_ids),
            grammar: self.call.grammar.take(),
            completion_salt: self.salt.to_vec(),
            private: self.reservation.private,
            choices: choices
                .map(|c| ChoiceTranscript { token_ids: c.ids.clone(), sketches: c.sketches.concat() })
                .collect(),
        };
        worker.store.finish(transcript).await?;
        self.reservation.kept = true;
        Ok(signed)
    }

    /// `cancelled` when a choice was cut, `stop` when every choice stopped by itself, else `length`.
    fn reason(&self) -> WireReason {
        let all = |wanted: &[FinishReason]| self.choices.iter().all(|c| c.reason.is_some_and(|r| wanted.contains(&r)));
        match () {
            () if all(&[FinishReason::Stop]) => WireReason::Stop,
            () if all(&[FinishReason::Stop, FinishReason::Length]) => WireReason::Length,
            () => WireReason::Cancelled,
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as u64).unwrap_or_default()
}
