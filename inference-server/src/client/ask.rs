//! One request: signed, sent, and on its way back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polylink_protocol::Amount;
use polylink_protocol::market::{SALT_BYTES, answer_amount, prompt_digest, request_digest, sign_request};
use polylink_protocol::market_v1::{Request, Sampling};
use polylink_protocol::transcript::GenerateCall;

use super::arrivals::Arrival;
use super::book::Running;
use super::call::CallError;
use super::payer::{Payer, PayerError, PayerSession};
use super::store::Charge;
use super::upstream::{Fate, Pending, Upstream};
use crate::http::local::random_bytes;

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Token ids.
    pub prompt_token_ids: Vec<u32>,
    /// Parameters; `max_tokens` is resolved.
    pub sampling: Sampling,
    /// Text of the grammar whose digest is in `sampling`.
    pub grammar: Option<String>,
    /// Of the noise.
    pub seed: [u8; 32],
    /// Alternatives per token; None: no logprobs.
    pub logprobs: Option<u32>,
    /// Alternatives per prompt token; None: no logprobs of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// Id of the answer.
    pub answer_id: String,
}

/// A reservation whose reader may go away while its index is made durable: nothing was sent then.
struct Unsent<'a> {
    payer: &'a Payer,
    session: u64,
    index: Mutex<Option<u64>>,
    charge: Option<&'a Charge>,
    worst: Amount,
}

impl Unsent<'_> {
    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        let index = self.lock().take();
        if let Some(index) = index {
            self.payer.arrivals.end(self.session, index);
            self.payer.store().abandon(self.session, index);
            self.payer.store().release(self.charge, self.worst);
        }
    }
}

impl Payer {
    /// Signs a request, sends it, and returns when the answer's first event is there. Where the epoch ended on the way,
    /// it is signed once more for the new one. Dropping the future, or what it returns, is the reader's going away.
    pub async fn ask(
        self: &Arc<Self>,
        session: &Arc<PayerSession>,
        ask: &Ask,
        charge: Option<Charge>,
    ) -> Result<Upstream, PayerError> {
        match self.ask_once(session, ask, charge.clone()).await {
            Err(error) if error.is_stale_epoch() => {
                self.clock().ask().await?;
                self.ask_once(session, ask, charge).await
            }
            Err(error) if error.is_revoked() => {
                session.record.lock().unwrap_or_else(PoisonError::into_inner).revoked = true;
                Err(error)
            }
            other => other,
        }
    }

    async fn ask_once(
        self: &Arc<Self>,
        session: &Arc<PayerSession>,
        ask: &Ask,
        charge: Option<Charge>,
    ) -> Result<Upstream, PayerError> {
        let worker = session.worker();
        let epoch = self.clock.now()?.epoch;
        let offer = worker.offer(epoch).map(|(key, price)| (key.to_vec(), price));
        let (receipt_key, price) =
            offer.ok_or_else(|| PayerError::NotOffered { worker: worker.operator.clone(), epoch })?;
        let prompt_salt: [u8; SALT_BYTES] = random_bytes().map_err(|e| PayerError::Random(e.message))?;
        let prompt_tokens = ask.prompt_token_ids.len() as u64;
        let completion_tokens = u64::from(ask.sampling.max_tokens) * u64::from(ask.sampling.n.max(1));
        let worst = answer_amount(&price, prompt_tokens, 0, completion_tokens).max(answer_amount(
            &price,
            prompt_tokens,
            prompt_tokens,
            completion_tokens,
        ));
        let unsent =
            Unsent { payer: self, session: session.id, index: Mutex::new(None), charge: charge.as_ref(), worst };
        let request = |index: u64| {
            let request = Request {
                chain_id: self.clock.chain_id().into(),
                session: session.id,
                epoch,
                index,
                profile_digest: worker.profile.to_vec(),
                prompt_digest: prompt_digest(&prompt_salt, &ask.prompt_token_ids).to_vec(),
                sampling: Some(ask.sampling.clone()),
                max_price: Some(price),
                seed: ask.seed.to_vec(),
            };
            let digest = request_digest(&request);
            let signed = sign_request(request, &self.config.spend_key);
            let running =
                Running { request: digest, epoch, worst, signed: Some(signed.clone()), prompt_tokens, refused: false };
            // Known as arriving before anybody can find it in the accounts.
            self.arrivals.begin(session.id, index);
            *unsent.lock() = Some(index);
            (running, signed)
        };
        let begun = self.store.begin(session.id, session.bounds(), charge.as_ref(), worst, request).await;
        let index = unsent.lock().take();
        if let (Err(_), Some(index)) = (&begun, index) {
            self.arrivals.end(session.id, index);
        }
        let (index, request) = begun?;
        let arrival = Arrival {
            request,
            prompt_salt,
            prompt_token_ids: ask.prompt_token_ids.clone(),
            grammar: ask.grammar.clone(),
            completions: vec![vec![]; ask.sampling.n.max(1) as usize],
            answer_id: ask.answer_id.clone(),
            charge: charge.clone().map(|charge| (charge, worst)),
            failed: false,
        };
        let call = GenerateCall {
            request: arrival.request.clone(),
            prompt_salt: prompt_salt.to_vec(),
            prompt_token_ids: ask.prompt_token_ids.clone(),
            grammar: ask.grammar.clone(),
            voucher: None,
            logprobs: ask.logprobs.map_or(0, |top| top.max(1)),
            prompt_logprobs: ask.prompt_logprobs,
        };
        let url = format!("{}/polylink/v1/generate", worker.endpoint);
        let answer =
            Pending { payer: Arc::clone(self), session: Arc::clone(session), index, arrival, fate: Fate::Arriving };
        let finished = vec![false; ask.sampling.n.max(1) as usize];
        let untold = ask.prompt_logprobs.map_or(0, |_| ask.prompt_token_ids.len().saturating_sub(1));
        let mut upstream = Upstream {
            answer,
            worker,
            receipt_key,
            price,
            stream: None,
            first: None,
            untold,
            held: None,
            ended: false,
            finished,
        };
        let opened = self.http.stream(&url, &call).await;
        match &opened {
            Ok(_) => {}
            // It says itself that it does not answer this index.
            Err(CallError::Refused { .. } | CallError::Url(..)) => upstream.answer.unserved(),
            Err(_) => upstream.answer.fate = Fate::Failed,
        }
        upstream.stream = Some(opened?);
        let first = upstream.receive().await?;
        upstream.first = Some(first);
        Ok(upstream)
    }
}
