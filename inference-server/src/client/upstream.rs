//! An answer as it arrives from a worker, until its receipt is verified and stored.
//!
//! What always holds: who goes away pays. A reader that drops an answer is charged for what the worker has sent until
//! then, once the worker's receipt of it is verified (`settle`); an answer that fails is neither charged nor paid; one that
//! this service cuts because it stops is charged to no user, and paid.

use std::sync::Arc;

use polylink_protocol::market::receipt_digest;
use polylink_protocol::market_v1::{SignedReceipt, TokenPrices};
use polylink_protocol::transcript::{AnswerRecord, GenerateEvent, PromptLogprobs, TokenLogprobs};

use super::arrivals::Arrival;
use super::book::Owed;
use super::call::{CallError, EventStream};
use super::payer::{Payer, PayerError, PayerSession};
use super::store::Answered;
use super::verify::verify_answer;
use super::worker::WorkerRef;
use crate::http::ApiError;
use crate::journal::JournalError;

/// Most alternatives per token, whatever was asked for: what waits for a slow reader is bounded by it.
const TOP_LOGPROBS_MAX: usize = 20;

/// Something that arrived.
#[derive(Clone, Debug)]
pub enum UpstreamEvent {
    /// Logprobs of the next prompt tokens, from the second one on; all of them come before the first completion token.
    Prompt {
        /// At least one.
        tokens: Vec<PromptLogprobs>,
    },
    /// Completion tokens of a choice.
    Tokens {
        /// Which choice.
        choice: u32,
        /// At least one.
        token_ids: Vec<u32>,
        /// As many, or none.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A choice has ended.
    Finish {
        /// Which choice.
        choice: u32,
        /// `stop` or `length`.
        reason: String,
    },
    /// All there, verified and stored.
    Verified(Box<AnswerRecord>),
}

/// What is known of an answer's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing yet: whoever drops it now goes away.
    Arriving,
    /// It failed on the way.
    Failed,
    /// It is verified, and this service could not store it: its user is not charged, the worker is paid.
    Unstored,
    /// It is in the accounts, with a receipt, or without one for good.
    Settled,
}

/// The request's place in the accounts, until it is known what became of it.
pub(super) struct Pending {
    pub(super) payer: Arc<Payer>,
    pub(super) session: Arc<PayerSession>,
    pub(super) index: u64,
    pub(super) arrival: Arrival,
    pub(super) fate: Fate,
}

impl Pending {
    fn release(&mut self) {
        if let Some((charge, worst)) = self.arrival.charge.take() {
            self.payer.store.release(Some(&charge), worst);
        }
    }

    /// It is certain that there is no receipt.
    pub(super) fn unserved(&mut self) {
        self.fate = Fate::Settled;
        self.payer.store.abandon(self.session.id, self.index);
        self.release();
    }

    /// There is one, and it does not hold: the worker's loss, bounded by the window.
    fn refused(&mut self, worker: &WorkerRef, reason: &str) {
        self.fate = Fate::Settled;
        self.payer.refuse(self.session.id, self.index, worker, reason);
        self.release();
    }
}

impl Drop for Pending {
    /// Broken off: the worker is asked what it has sent.
    fn drop(&mut self) {
        let (session, index) = (self.session.id, self.index);
        if self.fate == Fate::Settled {
            self.payer.arrivals.end(session, index);
            return;
        }
        let reader_left = self.fate == Fate::Arriving && !self.payer.arrivals.is_stopping();
        tracing::debug!(session, index, reader_left, "an answer broke off");
        if !reader_left {
            self.release();
        }
        self.arrival.failed = self.fate == Fate::Failed;
        self.payer.arrivals.cut(session, index, self.arrival.clone());
        self.session.wake.notify_one();
    }
}

/// An answer that arrives. Dropping it closes the connection, which stops the generation.
pub struct Upstream {
    pub(super) answer: Pending,
    pub(super) worker: WorkerRef,
    /// The worker's in the request's epoch, as is the price.
    pub(super) receipt_key: Vec<u8>,
    pub(super) price: TokenPrices,
    pub(super) stream: Option<EventStream>,
    pub(super) first: Option<UpstreamEvent>,
    /// Prompt tokens whose logprobs were asked for and have not come.
    pub(super) untold: usize,
    /// The first completion token, which the worker sends before them.
    pub(super) held: Option<UpstreamEvent>,
    pub(super) ended: bool,
    /// Per choice: it has ended.
    pub(super) finished: Vec<bool>,
}

impl Upstream {
    /// Who answers.
    pub fn worker(&self) -> &WorkerRef {
        &self.worker
    }

    /// The key that signs the receipt.
    pub fn receipt_key(&self) -> &[u8] {
        &self.receipt_key
    }

    /// What the tokens cost.
    pub fn price(&self) -> &TokenPrices {
        &self.price
    }

    /// The next event; None after [`UpstreamEvent::Verified`] or an error.
    pub async fn next(&mut self) -> Option<Result<UpstreamEvent, PayerError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.ended {
            return None;
        }
        let event = self.receive().await;
        self.ended = matches!(event, Ok(UpstreamEvent::Verified(_)) | Err(_));
        Some(event)
    }

    fn unexpected(&self, reason: String) -> PayerError {
        CallError::Unexpected { url: self.worker.endpoint.clone(), reason }.into()
    }

    pub(super) async fn receive(&mut self) -> Result<UpstreamEvent, PayerError> {
        let received = self.receive_event().await;
        if received.is_err() && self.answer.fate == Fate::Arriving {
            self.answer.fate = Fate::Failed;
        }
        received
    }

    /// The next event, in the order in which it is given on: the first completion token after the prompt's logprobs.
    async fn receive_event(&mut self) -> Result<UpstreamEvent, PayerError> {
        if self.untold == 0 {
            if let Some(held) = self.held.take() {
                return Ok(held);
            }
            return self.receive_next().await;
        }
        if self.held.is_none() {
            match self.receive_next().await? {
                token @ UpstreamEvent::Tokens { .. } => self.held = Some(token),
                _ => return Err(self.unexpected("something else than a token at first".into())),
            }
        }
        match self.receive_next().await? {
            told @ UpstreamEvent::Prompt { .. } => Ok(told),
            _ => Err(self.unexpected(format!("logprobs of {} prompt tokens are missing", self.untold))),
        }
    }

    async fn receive_next(&mut self) -> Result<UpstreamEvent, PayerError> {
        let Some(stream) = self.stream.as_mut() else { return Err(self.unexpected("the stream has ended".into())) };
        match stream.next::<GenerateEvent>().await? {
            Some(GenerateEvent::Tokens { choice, token_ids, logprobs, .. }) => {
                let arrival = &mut self.answer.arrival;
                let sampling = arrival.request.request.as_ref().and_then(|r| r.sampling.as_ref());
                let most = sampling.map_or(0, |s| s.max_tokens as usize);
                let finished = self.finished.get(choice as usize).is_none_or(|finished| *finished);
                let Some(completion) = arrival.completions.get_mut(choice as usize).filter(|_| !finished) else {
                    return Err(
                        self.unexpected(format!("tokens of choice {choice}, which was not asked for or has ended"))
                    );
                };
                if completion.len() + token_ids.len() > most
                    || token_ids.is_empty()
                    || !(logprobs.is_empty() || logprobs.len() == token_ids.len())
                {
                    return Err(self.unexpected("more tokens than asked for, or none".into()));
                }
                if logprobs.iter().any(|token| token.top.len() > TOP_LOGPROBS_MAX) {
                    return Err(self.unexpected(format!("more than {TOP_LOGPROBS_MAX} log-probabilities of a token")));
                }
                completion.extend(&token_ids);
                Ok(UpstreamEvent::Tokens { choice, token_ids, logprobs })
            }
            Some(GenerateEvent::Prompt { tokens }) => {
                let most = self.held.as_ref().map_or(0, |_| self.untold);
                if !(1..=most).contains(&tokens.len()) {
                    return Err(self.unexpected("logprobs of prompt tokens that were not asked for, or of none".into()));
                }
                if tokens.iter().any(|token| token.top.len() > TOP_LOGPROBS_MAX) {
                    return Err(self.unexpected(format!("more than {TOP_LOGPROBS_MAX} log-probabilities of a token")));
                }
                self.untold -= tokens.len();
                Ok(UpstreamEvent::Prompt { tokens })
            }
            Some(GenerateEvent::Finish { choice, reason, .. }) => {
                let finished = self.finished.get_mut(choice as usize).filter(|finished| !**finished);
                match (finished, reason.as_str()) {
                    (Some(finished), "stop" | "length") => *finished = true,
                    (None, _) => {
                        return Err(self.unexpected(format!("an end of choice {choice}, which is not under way")));
                    }
                    (Some(_), _) => return Err(self.unexpected("an end that is neither `stop` nor `length`".into())),
                }
                Ok(UpstreamEvent::Finish { choice, reason })
            }
            Some(GenerateEvent::Receipt { receipt, completion_salt }) => {
                if !self.finished.iter().all(|finished| *finished) {
                    return Err(self.unexpected("a receipt before every choice has ended".into()));
                }
                self.verify(*receipt, completion_salt).await
            }
            Some(GenerateEvent::Error { code, message }) => {
                self.answer.unserved();
                let error = Box::new(ApiError::unavailable(&code, message));
                Err(CallError::Refused { url: self.worker.endpoint.clone(), error }.into())
            }
            None => Err(self.unexpected("the stream ended without a receipt".into())),
        }
    }

    async fn verify(&mut self, receipt: SignedReceipt, completion_salt: Vec<u8>) -> Result<UpstreamEvent, PayerError> {
        let record = self.answer.arrival.record(receipt, completion_salt, None);
        let amount = match verify_answer(&record, &self.worker.operator, &self.receipt_key) {
            Ok(amount) => amount,
            Err(error) => {
                self.answer.refused(&self.worker, &error.to_string());
                return Err(self.unexpected(error.to_string()));
            }
        };
        let receipt = record.receipt.receipt.clone().unwrap_or_default();
        let owed = Owed { receipt: receipt_digest(&receipt), epoch: receipt.epoch, amount };
        let answer = &mut self.answer;
        answer.fate = Fate::Settled;
        let answered = Answered {
            session: answer.session.id,
            index: answer.index,
            owed,
            answer_id: &answer.arrival.answer_id,
            record: Some(&record),
            charge: answer.arrival.charge.as_ref().map(|(charge, worst)| (charge, *worst)),
            tokens: (receipt.prompt_tokens, receipt.completion_tokens),
            endpoint: &self.worker.endpoint,
            cut: false,
            signed: None,
        };
        // Dropped meanwhile, it is in the accounts all the same.
        let stored = answer.payer.store.answered(answer.payer.clock.chain_id(), answered).await;
        if let Err(error) = stored {
            // After a failed write nothing is accepted any more, and what was to be written is in the accounts already.
            if !matches!(error, JournalError::Failed(_)) {
                answer.fate = Fate::Unstored;
            }
            return Err(error.into());
        }
        answer.session.wake.notify_one();
        Ok(UpstreamEvent::Verified(Box::new(record)))
    }
}

impl Arrival {
    /// The answer's record; `completions`: the worker's, where it says more than has arrived.
    pub(super) fn record(
        &self,
        receipt: SignedReceipt,
        completion_salt: Vec<u8>,
        completions: Option<Vec<Vec<u32>>>,
    ) -> AnswerRecord {
        AnswerRecord {
            request: self.request.clone(),
            receipt,
            prompt_salt: self.prompt_salt.to_vec(),
            prompt_token_ids: self.prompt_token_ids.clone(),
            grammar: self.grammar.clone(),
            completion_salt,
            completions: completions.unwrap_or_else(|| self.completions.clone()),
            path: None,
            root: None,
        }
    }
}
