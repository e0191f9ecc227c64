//! A payer at work: sessions to workers on chain, signed requests, verified answers.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market::{SALT_BYTES, answer_amount, prompt_digest, request_digest, sign_request};
use polylink_protocol::market_v1::{MsgOpenSession, MsgTopUp, Request, Sampling, Session};
use polylink_protocol::transcript::GenerateCall;
use polylink_protocol::{Amount, Digest, tx};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::book::{BookError, Running};
use super::call::{CallError, HttpClient};
use super::settle;
use super::store::{Charge, PayError, PayerStore};
use super::upstream::{Pending, Upstream};
use super::worker::WorkerRef;
use crate::chain::{ChainClock, ChainError};
use crate::http::ApiError;
use crate::http::local::random_bytes;
use crate::journal::JournalError;

/// A payer's settings.
#[derive(Clone)]
pub struct PayerConfig {
    /// Opens and tops up sessions.
    pub account: AccountKey,
    /// Signs requests and vouchers.
    pub spend_key: ServiceKey,
    /// Put into a new session, and added when less than a quarter of it is left.
    pub deposit: Amount,
    /// Answers that may be unpaid at once, per session.
    pub window: u32,
    /// Epochs from opening to expiry.
    pub expiry_epochs: u64,
    /// Folder of the journal.
    pub journal: PathBuf,
}

/// Why a payer does not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PayerError {
    /// See there.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// See there.
    #[error(transparent)]
    Pay(#[from] PayError),
    /// See there.
    #[error(transparent)]
    Call(#[from] CallError),
    /// See there.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The session's record on chain cannot be read.
    #[error("the new session to {0} is not on chain")]
    NoSession(String),
    /// Terms hold by epoch: it left the profile, or comes with the next epoch.
    #[error("the worker {worker} does not offer the profile in epoch {epoch}: ask another one")]
    NotOffered {
        /// Who.
        worker: String,
        /// When.
        epoch: u64,
    },
    /// The system gives no random bytes.
    #[error("{0}")]
    Random(String),
}

impl PayerError {
    /// Whether another worker, or the same one a moment later, may do it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Chain(_) | Self::NoSession(_) | Self::NotOffered { .. } | Self::Pay(PayError::Book(_)) => true,
            Self::Call(CallError::Refused { error, .. }) => {
                // What the request itself is at fault for would be refused everywhere.
                !matches!(error.status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE)
            }
            Self::Call(_) => true,
            _ => false,
        }
    }

    /// Whether the worker's clock is ahead of ours, or the epoch ended on the way.
    fn is_stale_epoch(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { error, .. }) if ["epoch_closed", "epoch_ahead"].contains(&error.code()))
    }

    /// Whether the worker is to be left alone for a while.
    pub fn is_workers_fault(&self) -> bool {
        match self {
            Self::Call(CallError::Refused { error, .. }) => error.status.is_server_error(),
            Self::Call(_) => true,
            _ => false,
        }
    }

    /// As an HTTP answer to the user.
    pub fn api(&self) -> ApiError {
        match self {
            Self::Pay(PayError::Budget { .. }) => {
                ApiError::new(StatusCode::PAYMENT_REQUIRED, "insufficient_budget", self.to_string())
            }
            Self::Pay(PayError::Book(BookError::WindowFull(_))) => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "session_window_full", self.to_string())
            }
            Self::Pay(PayError::Book(_)) => ApiError::unavailable("session_funds", self.to_string()),
            Self::Call(CallError::Refused { error, .. }) if error.status.is_client_error() => {
                let mut error = ApiError::clone(error);
                // A conflict or a missing payment between gateway and worker is not the user's.
                if matches!(
                    error.status,
                    StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT | StatusCode::UNAUTHORIZED
                ) {
                    error = ApiError::unavailable("worker_refused", self.to_string());
                }
                error
            }
            Self::Call(_) | Self::Chain(_) | Self::NoSession(_) | Self::NotOffered { .. } => {
                ApiError::unavailable("worker_unavailable", self.to_string())
            }
            Self::Journal(_) | Self::Pay(PayError::Journal(_)) | Self::Random(_) => {
                ApiError::internal(self.to_string())
            }
        }
    }
}

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Token ids.
    pub prompt_token_ids: Vec<u32>,
    /// Parameters; `max_tokens` is resolved.
    pub sampling: Sampling,
    /// Of the noise.
    pub seed: [u8; 32],
    /// Alternatives per token; None: no logprobs.
    pub logprobs: Option<u32>,
    /// Id of the answer.
    pub answer_id: String,
}

/// A session to a worker, as this payer holds it.
pub struct PayerSession {
    pub(super) worker: Mutex<WorkerRef>,
    pub(super) record: Mutex<Session>,
    pub(super) wake: Notify,
    pub(super) id: u64,
}

impl PayerSession {
    /// Its id on chain.
    pub fn id(&self) -> u64 {
        self.id
    }
    pub(super) fn worker(&self) -> WorkerRef {
        self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
    fn bounds(&self) -> (Amount, u32) {
        let record = self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (deposit, cap) = (amount(&record.deposit), amount(&record.cap));
        (if cap.is_zero() { deposit } else { deposit.min(cap) }, record.window)
    }
}

fn amount(text: &str) -> Amount {
    Amount::parse_or_zero(text).unwrap_or(Amount::ZERO)
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<PayerSession>>>>;

/// See the module.
pub struct Payer {
    pub(super) config: PayerConfig,
    pub(super) clock: ChainClock,
    pub(super) store: PayerStore,
    pub(super) http: HttpClient,
    /// Per (worker, profile): the session, opened by whoever asks first.
    sessions: Mutex<HashMap<(String, Digest), Slot>>,
    /// (session, index) of the answers that are arriving now.
    streaming: Mutex<HashSet<(u64, u64)>>,
    settlers: TaskTracker,
}

impl Payer {
    /// Opens the journal.
    pub fn open(config: PayerConfig, clock: ChainClock) -> Result<Arc<Self>, JournalError> {
        let store = PayerStore::open(&config.journal)?;
        let (http, settlers) = (HttpClient::new(), TaskTracker::new());
        let (sessions, streaming) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { config, clock, store, http, sessions, streaming, settlers }))
    }

    /// Accounts and answers.
    pub fn store(&self) -> &PayerStore {
        &self.store
    }

    /// The chain's clock.
    pub fn clock(&self) -> &ChainClock {
        &self.clock
    }

    /// HTTP to workers.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    pub(super) fn streaming(&self) -> std::sync::MutexGuard<'_, HashSet<(u64, u64)>> {
        self.streaming.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether an answer is arriving now.
    pub(super) fn is_streaming(&self, session: u64, index: u64) -> bool {
        self.streaming().contains(&(session, index))
    }

    fn slot(&self, worker: &WorkerRef) -> Slot {
        let mut sessions = self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(sessions.entry((worker.operator.clone(), worker.profile)).or_default())
    }

    /// The session to a worker if there is an open one already; never waits for the chain.
    pub fn ready_session(&self, worker: &WorkerRef) -> Option<Arc<PayerSession>> {
        self.slot(worker).try_lock().ok()?.clone()
    }

    /// The session to a worker; found on chain, or opened, or topped up where little is left.
    pub async fn session(self: &Arc<Self>, worker: &WorkerRef) -> Result<Arc<PayerSession>, PayerError> {
        let slot = self.slot(worker);
        let mut held = slot.lock().await;
        let epoch = self.clock.now()?.epoch;
        if let Some(session) = held.as_ref() {
            *session.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = worker.clone();
            if !self.expires_soon(session, epoch) {
                self.top_up(session).await?;
                return Ok(Arc::clone(session));
            }
        }
        let found = match self.find(worker, epoch).await? {
            Some(found) => found,
            None => self.open_on_chain(worker, epoch).await?,
        };
        let session = Arc::new(PayerSession {
            id: found.id,
            worker: Mutex::new(worker.clone()),
            record: Mutex::new(found),
            wake: Notify::new(),
        });
        // Weak, so that a payer that is dropped ends its settlers.
        self.settlers.spawn(settle::run(Arc::downgrade(self), Arc::clone(&session)));
        self.top_up(&session).await?;
        *held = Some(Arc::clone(&session));
        Ok(session)
    }

    fn expires_soon(&self, session: &PayerSession, epoch: u64) -> bool {
        let expiry = session.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).expiry_epoch;
        expiry < epoch + 2
    }

    async fn find(&self, worker: &WorkerRef, epoch: u64) -> Result<Option<Session>, PayerError> {
        let spend_key = self.config.spend_key.public_key();
        let sessions = self.clock.chain().sessions(&self.config.account.address(), &worker.operator).await?;
        Ok(sessions.into_iter().rev().find(|session| {
            !session.closed
                && session.spend_key == spend_key
                && session.profile_digest == worker.profile.0
                && session.expiry_epoch >= epoch + 2
        }))
    }

    async fn open_on_chain(&self, worker: &WorkerRef, epoch: u64) -> Result<Session, PayerError> {
        let deposit = self.config.deposit.to_string();
        let message = MsgOpenSession {
            payer: self.config.account.address().account(),
            payee: worker.operator.clone(),
            spend_key: self.config.spend_key.public_key().to_vec(),
            cap: deposit.clone(),
            deposit,
            window: self.config.window,
            expiry_epoch: epoch + self.config.expiry_epochs.max(4),
            private: false,
            profile_digest: worker.profile.to_vec(),
        };
        self.clock.chain().broadcast(&self.config.account, vec![tx::any(&message)]).await?;
        // A request of an epoch before the opening could not be paid.
        self.clock.ask().await?;
        let found = self.find(worker, epoch).await?.ok_or_else(|| PayerError::NoSession(worker.operator.clone()))?;
        tracing::info!(session = found.id, worker = worker.operator, deposit = found.deposit, "session opened");
        Ok(found)
    }

    /// Adds a deposit when less than a quarter of one is left.
    async fn top_up(&self, session: &PayerSession) -> Result<(), PayerError> {
        let left = session.bounds().0.saturating_sub(self.store.book(session.id).committed());
        if left.0 >= self.config.deposit.0 / 4 {
            return Ok(());
        }
        let message = MsgTopUp {
            payer: self.config.account.address().account(),
            session: session.id,
            amount: self.config.deposit.to_string(),
            cap: String::new(),
        };
        self.clock.chain().broadcast(&self.config.account, vec![tx::any(&message)]).await?;
        if let Some(record) = self.clock.chain().session(session.id).await? {
            tracing::info!(session = session.id, deposit = record.deposit, "session topped up");
            *session.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = record;
        }
        Ok(())
    }

    /// Signs a request, sends it, and returns when the answer's first event is there. Where the epoch ended on the way,
    /// it is signed once more for the new one.
    pub async fn ask(
        self: &Arc<Self>,
        session: &Arc<PayerSession>,
        ask: &Ask,
        charge: Option<Charge>,
    ) -> Result<Upstream, PayerError> {
        match self.ask_once(session, ask, charge.clone()).await {
            Err(error) if error.is_stale_epoch() => {
                self.clock.ask().await?;
                self.ask_once(session, ask, charge).await
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
            (Running { request: digest, epoch, worst }, (signed, digest))
        };
        let begun = self.store.begin(session.id, session.bounds(), charge.as_ref(), worst, request).await;
        let (index, (request, digest)) = begun?;
        self.streaming().insert((session.id, index));
        let mut upstream = Upstream {
            answer: Pending {
                payer: Arc::clone(self),
                session: Arc::clone(session),
                index,
                worst,
                charge,
                request: digest,
                settled: false,
            },
            request,
            prompt_salt,
            prompt_token_ids: ask.prompt_token_ids.clone(),
            completions: vec![vec![]; ask.sampling.n.max(1) as usize],
            answer_id: ask.answer_id.clone(),
            worker,
            receipt_key,
            price,
            stream: None,
            first: None,
            ended: false,
        };
        let url = format!("{}/polylink/v1/generate", upstream.worker.endpoint);
        let call = GenerateCall {
            request: upstream.request.clone(),
            prompt_salt: prompt_salt.to_vec(),
            prompt_token_ids: ask.prompt_token_ids.clone(),
            voucher: None,
            logprobs: ask.logprobs.map_or(0, |top| top.max(1)),
        };
        let opened = self.http.stream(&url, &call).await;
        if let Err(CallError::Refused { .. } | CallError::Url(..)) = &opened {
            // It says itself that it does not answer this index.
            upstream.answer.unserved();
        }
        upstream.stream = Some(opened?);
        let first = upstream.receive().await?;
        upstream.first = Some(first);
        Ok(upstream)
    }
}
