//! An answer as it arrives from a worker, until its receipt is verified and stored.
//!
//! What always holds: an answer that breaks off is not charged to the user; whether the worker had finished it all the
//! same is asked of the worker later (`settle`), since then its receipt is owed.

use std::sync::Arc;

use polylink_protocol::market::{SALT_BYTES, receipt_digest};
use polylink_protocol::market_v1::{SignedReceipt, SignedRequest, TokenPrices};
use polylink_protocol::transcript::{AnswerRecord, GenerateEvent, TokenLogprobs};
use polylink_protocol::{Amount, Digest};

use super::book::Owed;
use super::call::{CallError, EventStream};
use super::payer::{Payer, PayerError, PayerSession};
use super::store::{Answered, Charge};
use super::verify::verify_answer;
use super::worker::WorkerRef;
use crate::http::ApiError;

/// Something that arrived.
#[derive(Clone, Debug)]
pub enum UpstreamEvent {
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

/// The request's place in the accounts, until it is known what became of it.
pub(super) struct Pending {
    pub(super) payer: Arc<Payer>,
    pub(super) session: Arc<PayerSession>,
    pub(super) index: u64,
    pub(super) worst: Amount,
    pub(super) charge: Option<Charge>,
    pub(super) request: Digest,
    pub(super) settled: bool,
}

impl Pending {
    /// It is certain that there is no receipt.
    pub(super) fn unserved(&mut self) {
        self.settled = true;
        self.payer.store.abandon(self.session.id, self.index);
        self.payer.store.release(self.charge.as_ref(), self.worst);
    }
}

impl Drop for Pending {
    /// Broken off: the user is not charged, and the worker is asked whether it had finished all the same.
    fn drop(&mut self) {
        self.payer.streaming().remove(&(self.session.id, self.index));
        if !self.settled {
            tracing::debug!(session = self.session.id, index = self.index, request = %self.request, "an answer broke off");
            self.payer.store.release(self.charge.as_ref(), self.worst);
            self.session.wake.notify_one();
        }
    }
}

/// An answer that arrives. Dropping it closes the connection, which stops the generation.
pub struct Upstream {
    pub(super) answer: Pending,
    pub(super) request: SignedRequest,
    pub(super) prompt_salt: [u8; SALT_BYTES],
    pub(super) prompt_token_ids: Vec<u32>,
    pub(super) completions: Vec<Vec<u32>>,
    pub(super) answer_id: String,
    pub(super) worker: WorkerRef,
    /// The worker's in the request's epoch, as is the price.
    pub(super) receipt_key: Vec<u8>,
    pub(super) price: TokenPrices,
    pub(super) stream: Option<EventStream>,
    pub(super) first: Option<UpstreamEvent>,
    pub(super) ended: bool,
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
        self.ended = !matches!(event, Ok(UpstreamEvent::Tokens { .. } | UpstreamEvent::Finish { .. }));
        Some(event)
    }

    fn unexpected(&self, reason: String) -> PayerError {
        CallError::Unexpected { url: self.worker.endpoint.clone(), reason }.into()
    }

    pub(super) async fn receive(&mut self) -> Result<UpstreamEvent, PayerError> {
        let Some(stream) = self.stream.as_mut() else { return Err(self.unexpected("the stream has ended".into())) };
        match stream.next::<GenerateEvent>().await? {
            Some(GenerateEvent::Tokens { choice, token_ids, logprobs, .. }) => {
                let sampling = self.request.request.as_ref().and_then(|r| r.sampling.as_ref());
                let most = sampling.map_or(0, |s| s.max_tokens as usize);
                let Some(completion) = self.completions.get_mut(choice as usize) else {
                    return Err(self.unexpected(format!("tokens of choice {choice}, which was not asked for")));
                };
                completion.extend(&token_ids);
                if completion.len() > most
                    || token_ids.is_empty()
                    || !(logprobs.is_empty() || logprobs.len() == token_ids.len())
                {
                    return Err(self.unexpected("more tokens than asked for, or none".into()));
                }
                Ok(UpstreamEvent::Tokens { choice, token_ids, logprobs })
            }
            Some(GenerateEvent::Finish { choice, reason, .. }) => Ok(UpstreamEvent::Finish { choice, reason }),
            Some(GenerateEvent::Receipt { receipt, completion_salt }) => self.verify(*receipt, completion_salt).await,
            Some(GenerateEvent::Error { code, message }) => {
                self.answer.unserved();
                let error = Box::new(ApiError::unavailable(&code, message));
                Err(CallError::Refused { url: self.worker.endpoint.clone(), error }.into())
            }
            None => Err(self.unexpected("the stream ended without a receipt".into())),
        }
    }

    async fn verify(&mut self, receipt: SignedReceipt, completion_salt: Vec<u8>) -> Result<UpstreamEvent, PayerError> {
        let record = AnswerRecord {
            request: self.request.clone(),
            receipt,
            prompt_salt: self.prompt_salt.to_vec(),
            prompt_token_ids: std::mem::take(&mut self.prompt_token_ids),
            completion_salt,
            completions: std::mem::take(&mut self.completions),
            path: None,
            root: None,
        };
        let amount = match verify_answer(&record, &self.worker.operator, &self.receipt_key) {
            Ok(amount) => amount,
            Err(error) => {
                // A receipt that does not hold is not paid: the worker's loss is bounded by the window.
                self.answer.unserved();
                return Err(self.unexpected(error.to_string()));
            }
        };
        let receipt = record.receipt.receipt.clone().unwrap_or_default();
        let owed = Owed { receipt: receipt_digest(&receipt), epoch: receipt.epoch, amount };
        let answer = &mut self.answer;
        let charge = answer.charge.clone();
        answer.settled = true;
        let answered = Answered {
            session: answer.session.id,
            index: answer.index,
            owed,
            answer_id: &self.answer_id,
            record: Some(&record),
            charge: charge.as_ref().map(|charge| (charge, answer.worst)),
            tokens: (receipt.prompt_tokens, receipt.completion_tokens),
            endpoint: &self.worker.endpoint,
        };
        answer.payer.store.answered(answer.payer.clock.chain_id(), answered).await?;
        answer.session.wake.notify_one();
        Ok(UpstreamEvent::Verified(Box::new(record)))
    }
}
