//! One answer through the gateway: key, model, worker, stream.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use polylink_protocol::Amount;
use polylink_protocol::market_v1::{Sampling, TokenPrices};
use polylink_protocol::transcript::{AnswerRecord, PromptLogprobs};
use prometheus::proto::MetricFamily;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use super::keys::ApiKey;
use super::workers::{Registry, epoch_price};
use super::{Gateway, Offered, refresh};
use crate::client::store::{Charge, PayError};
use crate::client::text::ChoiceText;
use crate::client::{Ask, PayerError, Upstream, UpstreamEvent, WorkerRef};
use crate::http::front::unknown_model;
use crate::http::local::{TextModel, answer_id, encode, random_bytes};
use crate::http::{
    Answer, AnswerEvent, AnswerRequest, AnswerUsage, Answerer, ApiError, Caller, ModelCard, PromptPiece, TokenPiece,
};

/// Workers that one request is tried on.
const ATTEMPTS_MAX: usize = 4;
/// Pause before a second attempt on the same worker.
const RETRY_PAUSE: Duration = Duration::from_millis(150);
/// How long a user's session is believed.
const FUNDS_FRESH: Duration = Duration::from_secs(20);
/// Users' sessions in the cache; at the limit all are forgotten.
const FUNDS_MAX: usize = 10_000;

impl Answerer for Gateway {
    fn authorise(&self, caller: &Caller) -> Result<(), ApiError> {
        self.keys.authenticate(caller).map(drop)
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelCard>, ApiError>> {
        Box::pin(async { Ok(self.cards()) })
    }

    fn answer(&self, caller: Caller, request: AnswerRequest) -> BoxFuture<'_, Result<Answer, ApiError>> {
        Box::pin(self.begin(caller, request))
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            self.payer.clock().now().map_err(|e| e.to_string())?;
            let workers: Vec<WorkerRef> = self.registry().workers.values().flatten().cloned().collect();
            if workers.is_empty() {
                return Err("no worker on chain serves a model that this gateway knows".into());
            }
            match workers.iter().any(|worker| self.payer.ready_session(worker).is_some()) {
                true => Ok(()),
                false => Err("sessions to the workers are being opened".into()),
            }
        })
    }

    fn text_model(&self, name: &str) -> Result<TextModel, ApiError> {
        Ok(self.find(name)?.text)
    }

    fn families(&self) -> Vec<MetricFamily> {
        vec![]
    }
}

impl Gateway {
    /// Models that have workers.
    fn cards(&self) -> Vec<ModelCard> {
        let epoch = self.payer.clock().now().map_or(0, |time| time.epoch);
        let registry = self.registry();
        let card = |offered: Offered| {
            let workers = registry.workers.get(&offered.digest).map_or(0, Vec::len);
            (workers > 0).then(|| ModelCard {
                id: offered.name,
                created: 0,
                owned_by: offered.model.provider.clone(),
                context_length: offered.text.context_length,
                polylink: json!({
                    "profile_digest": offered.digest.to_string(), "workers": workers,
                    "price_uplk_per_1k": epoch_price(&offered.model, epoch), "profile": offered.model.profile,
                }),
            })
        };
        self.offered().into_iter().filter_map(card).collect()
    }

    /// The model of a name: its id, or its id without revision or organisation where that is enough to tell.
    fn find(&self, name: &str) -> Result<Offered, ApiError> {
        let offered = self.offered();
        let served = |o: &&Offered| self.registry().workers.get(&o.digest).is_some_and(|w| !w.is_empty());
        // Known and too dear: that is what is said of it then.
        let known = |o: &&Offered| self.registry().dear.contains_key(&o.digest);
        let short = |o: &Offered| o.name.split('@').next().unwrap_or_default().to_owned();
        let matches: [&dyn Fn(&Offered) -> bool; 3] =
            [&|o| o.name == name, &|o| short(o) == name, &|o| short(o).split('/').next_back() == Some(name)];
        for matching in matches {
            let mut found = offered.iter().filter(|o| matching(o));
            if let Some(first) = found.clone().find(served).or_else(|| found.find(known)) {
                return Ok(first.clone());
            }
        }
        Err(unknown_model(name, &self.cards()))
    }

    /// What a key may spend in all: its budget, and what its session holds.
    async fn charge(&self, key: &ApiKey) -> Result<Charge, ApiError> {
        let mut charge = key.charge();
        if let Some((session, _)) = &charge.session {
            let funds = self.funds(*session).await?;
            charge.budget = Some(charge.budget.map_or(funds, |budget| budget.min(funds)));
        }
        Ok(charge)
    }

    async fn funds(&self, session: u64) -> Result<Amount, ApiError> {
        let now = self.payer.clock().now().map_err(|e| ApiError::unavailable("chain_unavailable", e.to_string()))?;
        {
            let known = self.user_funds.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // What a key signs is still paid in the epoch after its revocation: who looks in every epoch loses nothing.
            if let Some((funds, at, read)) = known.get(&session)
                && at.elapsed() < FUNDS_FRESH
                && *read == now.epoch
            {
                return Ok(*funds);
            }
        }
        let me = self.config.account.address().account();
        let found = self.payer.clock().chain().session(session).await;
        let found = found
            .map_err(|e| ApiError::unavailable("chain_unavailable", format!("the session cannot be read: {e}")))?;
        let payment = |reason: &str| {
            let message = format!(
                "the API key's session {session} with this gateway {reason}: open a new one and make a key for it"
            );
            ApiError::new(StatusCode::PAYMENT_REQUIRED, "no_session", message)
        };
        let record = found.filter(|s| s.payee == me).ok_or_else(|| payment("does not exist"))?;
        if record.revoked {
            return Err(payment("has a spend key that was revoked"));
        }
        if record.closed || record.expiry_epoch < now.epoch {
            return Err(payment("is closed or has expired"));
        }
        let parse = |text: &str| Amount::parse_or_zero(text).unwrap_or(Amount::ZERO);
        let funds = parse(&record.deposit).min(parse(&record.cap));
        let mut known = self.user_funds.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= FUNDS_MAX {
            known.clear();
        }
        known.insert(session, (funds, Instant::now(), now.epoch));
        Ok(funds)
    }

    async fn begin(&self, caller: Caller, mut request: AnswerRequest) -> Result<Answer, ApiError> {
        let key = self.keys.authenticate(&caller)?;
        self.keys.admit(&key)?;
        let offered = self.find(&request.model)?;
        let charge = self.charge(&key).await?;
        let (mut sampling, grammar) = offered.text.sampling(&request)?;
        let tools = request.take_tools(offered.text.dialect(&request)?);
        let (prompt_logprobs, hides_tokens) = (request.scored_prompt(), request.prompt_only);
        let prompt_token_ids = encode(offered.text.clone(), request.prompt, request.add_special_tokens).await?;
        let max_tokens = offered.text.max_tokens(prompt_token_ids.len(), sampling.max_tokens)?;
        // A signed request is for one token at least: it is drawn and billed, and not shown.
        sampling.max_tokens = if request.prompt_only { 1 } else { max_tokens };
        let seed = match request.seed {
            Some(seed) => seed,
            None => random_bytes()?,
        };
        let id = answer_id(request.kind)?;
        let logprobs = request.logprobs;
        let answer_id = id.clone();
        let ask = Ask { prompt_token_ids, sampling, grammar, seed, logprobs, prompt_logprobs, answer_id };
        let upstream = self.attempt(&offered, &ask, charge).await?;
        let (n, stop) = (ask.sampling.n.max(1), Arc::from(ask.sampling.stop.clone()));
        let tokenizer = Arc::clone(&offered.text.tokenizer);
        let texts = (0..n).map(|_| ChoiceText::new(Arc::clone(&tokenizer), Arc::clone(&stop))).collect();
        let relay = Relay {
            worker: upstream.upstream.worker().operator.clone(),
            receipt_key: upstream.upstream.receipt_key().to_vec(),
            price: *upstream.upstream.price(),
            events: self.pump(upstream, &ask),
            texts,
            untold: ask.prompt_token_ids.iter().skip(1).copied().collect::<Vec<_>>().into_iter(),
            hides_tokens,
            top: request.logprobs.map(|n| n as usize),
            id: id.clone(),
            answers: self.answers.clone(),
        };
        let events = stream::unfold(relay, |mut relay| async move { Some((relay.next().await?, relay)) });
        let prompt_token_ids = ask.prompt_token_ids;
        Ok(Answer { id, model: offered.name, tokenizer, prompt_token_ids, tools, events: events.boxed() })
    }

    /// Takes an answer in as fast as it comes, however slowly its user reads: so what has arrived is what the worker has
    /// sent when the user goes away, and is what a cut answer's receipt is measured by. What waits for the user is bounded
    /// by the answer's own length: each event has a token, or the logprobs of one of the prompt, or ends a choice, and one ends
    /// the answer.
    fn pump(&self, mut from: Guarded, ask: &Ask) -> Receiver<Result<UpstreamEvent, PayerError>> {
        let Sampling { n, max_tokens, .. } = ask.sampling;
        let prompt = ask.prompt_logprobs.map_or(0, |_| ask.prompt_token_ids.len());
        let (to, events) = channel(prompt + n.max(1) as usize * (max_tokens as usize + 1) + 1);
        let registry = Arc::clone(&self.registry);
        self.pumps.spawn(async move {
            loop {
                let event = tokio::select! {
                    biased;
                    event = from.upstream.next() => event,
                    // The user went away: dropping the answer says so.
                    () = to.closed() => return,
                };
                let Some(event) = event else { return };
                if matches!(&event, Err(error) if error.is_workers_fault()) {
                    let mut registry = registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    registry.failed(&from.upstream.worker().operator, Instant::now());
                }
                // Never full; the user may have gone away.
                if to.try_send(event).is_err() {
                    return;
                }
            }
        });
        events
    }

    /// Asks workers one after another until one begins to answer. One that refuses what another one takes rests for a
    /// moment; where all refuse, none of them is at fault, and the user gets their reason. One that may cost more than the key
    /// has left is passed over for a cheaper one, even if that one is busy.
    async fn attempt(&self, offered: &Offered, ask: &Ask, charge: Charge) -> Result<Guarded, ApiError> {
        let mut excluded: Vec<String> = Vec::new();
        let mut refusals: Vec<(String, ApiError)> = Vec::new();
        let mut last: Option<PayerError> = None;
        let mut too_dear: Option<(Vec<String>, ApiError)> = None;
        let mut attempt = 0;
        while attempt < ATTEMPTS_MAX {
            let epoch = self.payer.clock().now().map_err(|e| PayerError::from(e).api())?.epoch;
            if self.registry().epoch < epoch {
                refresh::follow(self, epoch).await;
            }
            let picked = self.registry().pick(&offered.digest, epoch, &excluded, Instant::now());
            let worker = match (picked, attempt) {
                (Some(worker), _) => worker,
                (None, 0) => return Err(too_dear.map_or_else(|| self.nobody(offered), |(_, reason)| reason)),
                // Another attempt would be refused for the same reason.
                (None, _) if last.is_none() => break,
                // All were tried: what failed for a moment (an epoch's end, a full window) may be over.
                (None, _) => {
                    let dear = too_dear.iter().flat_map(|(operators, _)| operators.iter());
                    excluded = refusals.iter().map(|(operator, _)| operator).chain(dear).cloned().collect();
                    tokio::time::sleep(RETRY_PAUSE).await;
                    match self.registry().pick(&offered.digest, epoch, &excluded, Instant::now()) {
                        Some(worker) => worker,
                        None => break,
                    }
                }
            };
            if attempt > 0 {
                self.retries.inc();
            }
            let guard = InFlight::new(self, &worker);
            let asked = async {
                let session = self.payer.session(&worker).await?;
                self.payer.ask(&session, ask, Some(charge.clone())).await
            };
            match asked.await {
                Ok(upstream) => {
                    let mut registry = self.registry();
                    registry.succeeded(&worker.operator);
                    refusals.iter().for_each(|(operator, _)| registry.refused(operator, Instant::now()));
                    drop(registry);
                    return Ok(Guarded { upstream, _guard: guard });
                }
                // Nothing was asked of it: this is no attempt. Each worker is passed over once.
                Err(error @ PayerError::Pay(PayError::Budget { .. })) => {
                    excluded.push(worker.operator.clone());
                    let (operators, reason) = too_dear.get_or_insert_with(|| (vec![], error.api()));
                    operators.push(worker.operator);
                    *reason = error.api();
                    continue;
                }
                Err(error) => {
                    if !error.is_retryable() {
                        tracing::debug!(%error, "a request is refused");
                        return Err(error.api());
                    }
                    tracing::warn!(worker = worker.operator, %error, attempt, "a worker did not answer");
                    excluded.push(worker.operator.clone());
                    match error.refusal() {
                        Some(reason) if is_of_the_call(reason) => refusals.push((worker.operator, reason.clone())),
                        Some(_) => {
                            self.registry().refused(&worker.operator, Instant::now());
                            last = Some(error);
                        }
                        None => {
                            if error.is_workers_fault() {
                                self.registry().failed(&worker.operator, Instant::now());
                            }
                            last = Some(error);
                        }
                    }
                    attempt += 1;
                }
            }
        }
        Err(match (last, too_dear, refusals.pop()) {
            (Some(error), _, _) => error.api(),
            (None, Some((_, reason)), _) | (None, None, Some((_, reason))) => reason,
            (None, None, None) => self.nobody(offered),
        })
    }

    /// Why no worker is asked.
    fn nobody(&self, offered: &Offered) -> ApiError {
        let Some(dear) = self.registry().dear.get(&offered.digest).copied() else {
            let message = format!("no worker serves `{}` at the moment: try again later", offered.name);
            return ApiError::unavailable("no_worker", message);
        };
        let show = |p: &TokenPrices| format!("{}/{}/{}", p.prompt, p.cached_prompt, p.completion);
        let message = format!(
            "all {} workers of `{}` ask more than this gateway pays: the cheapest takes {} uplk per 1,000 \
             prompt/cached/completion tokens, the limit is {}: try again later, or have the gateway's limit raised",
            dear.workers,
            offered.name,
            show(&dear.cheapest),
            show(&dear.limit)
        );
        ApiError::unavailable("price_above_limit", message)
    }
}

/// Whether a refusal is about the call itself, not about sessions, epochs or load.
fn is_of_the_call(reason: &ApiError) -> bool {
    !matches!(
        reason.status,
        StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS
    )
}

/// Counts an answer of a worker as long as it lives.
struct InFlight {
    registry: Arc<Mutex<Registry>>,
    operator: String,
}

impl InFlight {
    fn new(gateway: &Gateway, worker: &WorkerRef) -> Self {
        gateway.registry().health.entry(worker.operator.clone()).or_default().in_flight += 1;
        Self { registry: Arc::clone(&gateway.registry), operator: worker.operator.clone() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(health) = registry.health.get_mut(&self.operator) {
            health.in_flight = health.in_flight.saturating_sub(1);
        }
    }
}

struct Guarded {
    upstream: Upstream,
    _guard: InFlight,
}

/// Turns the worker's tokens into the user's events.
struct Relay {
    worker: String,
    receipt_key: Vec<u8>,
    price: TokenPrices,
    events: Receiver<Result<UpstreamEvent, PayerError>>,
    texts: Vec<ChoiceText>,
    /// Prompt tokens whose logprobs are still to come, if they were asked for.
    untold: std::vec::IntoIter<u32>,
    /// The prompt alone was asked for.
    hides_tokens: bool,
    top: Option<usize>,
    id: String,
    answers: prometheus::IntCounter,
}

impl Relay {
    async fn next(&mut self) -> Option<AnswerEvent> {
        let mut event = self.events.recv().await?;
        while self.hides_tokens && matches!(event, Ok(UpstreamEvent::Tokens { .. })) {
            event = self.events.recv().await?;
        }
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let reason = match &error {
                    PayerError::Call(crate::client::call::CallError::Refused { error, .. }) => ApiError::clone(error),
                    error => error.api(),
                };
                let message = format!("the answer broke off and is not charged: {}", reason.message);
                return Some(AnswerEvent::Failed(ApiError { message, ..reason }));
            }
        };
        Some(match event {
            UpstreamEvent::Prompt { tokens } => {
                let pieces = self.untold.by_ref().zip(tokens);
                let piece = |(id, told): (u32, PromptLogprobs)| PromptPiece {
                    id,
                    logprob: told.logprob,
                    rank: told.rank,
                    top: told.top,
                };
                AnswerEvent::Prompt(pieces.map(piece).collect())
            }
            UpstreamEvent::Tokens { choice, token_ids, logprobs } => {
                let text = match self.texts.get_mut(choice as usize) {
                    Some(text) => token_ids.iter().map(|id| text.push(*id)).collect(),
                    None => String::new(),
                };
                let piece = |(i, id): (usize, &u32)| {
                    let given = logprobs.get(i).filter(|_| self.top.is_some());
                    let top = given.map(|g| g.top.iter().take(self.top.unwrap_or(0)).copied().collect());
                    TokenPiece { id: *id, logprob: given.map(|g| g.logprob), top: top.unwrap_or_default() }
                };
                AnswerEvent::Tokens { choice, tokens: token_ids.iter().enumerate().map(piece).collect(), text }
            }
            UpstreamEvent::Finish { choice, reason } => {
                let text = self.texts.get_mut(choice as usize).map(ChoiceText::finish).unwrap_or_default();
                let reason = if self.hides_tokens { "length".into() } else { reason };
                AnswerEvent::Finish { choice, reason, text }
            }
            UpstreamEvent::Verified(record) => {
                self.answers.inc();
                self.done(&record)
            }
        })
    }

    fn done(&self, record: &AnswerRecord) -> AnswerEvent {
        let receipt = record.receipt.receipt.clone().unwrap_or_default();
        let usage = AnswerUsage {
            prompt_tokens: receipt.prompt_tokens,
            cached_tokens: receipt.cached_tokens,
            completion_tokens: receipt.completion_tokens,
        };
        let polylink: Value = json!({
            "receipt": receipt,
            "signature": hex::encode(&record.receipt.signature),
            "worker": self.worker,
            "receipt_key": hex::encode(&self.receipt_key),
            "session": receipt.session,
            "price": self.price,
            "record": format!("/polylink/v1/receipts/{}", self.id),
        });
        AnswerEvent::Done { usage, polylink: Some(polylink) }
    }
}
