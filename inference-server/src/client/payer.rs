//! A payer at work: sessions to workers on chain, signed requests, verified answers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use axum::http::StatusCode;
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1::{Model, MsgOpenSession, MsgTopUp, Session};
use polylink_protocol::{Amount, Digest, tx};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::arrivals::{Arrivals, Figures};
use super::book::BookError;
use super::call::{CallError, HttpClient};
use super::settle;
use super::store::{PayError, PayerStore};
use super::worker::WorkerRef;
use crate::chain::{ChainClock, ChainError};
use crate::http::ApiError;
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
    /// Its sessions are private: no judge sees what is asked and answered in them, and none audits it.
    pub private: bool,
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
    /// Somebody else had the key.
    #[error("the spend key was revoked in session {0}: give this service another spend key")]
    Revoked(u64),
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
        matches!(
            self,
            Self::Chain(_)
                | Self::NoSession(_)
                | Self::Revoked(_)
                | Self::NotOffered { .. }
                | Self::Pay(PayError::Book(_))
                | Self::Call(_)
        )
    }

    /// The worker's reason, where it says that the call is at fault: others may see it otherwise.
    pub fn refusal(&self) -> Option<&ApiError> {
        match self {
            Self::Call(CallError::Refused { error, .. }) => Some(&**error).filter(|e| e.status.is_client_error()),
            _ => None,
        }
    }

    /// Whether the worker's clock is ahead of ours, or the epoch ended on the way.
    pub(super) fn is_stale_epoch(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { error, .. }) if ["epoch_closed", "epoch_ahead"].contains(&error.code()))
    }

    /// Whether the worker says that the session's key was revoked: this payer's record is older.
    pub(super) fn is_revoked(&self) -> bool {
        matches!(self, Self::Call(CallError::Refused { error, .. }) if error.code() == "spend_key_revoked")
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
            Self::Call(_) | Self::Chain(_) | Self::NoSession(_) | Self::Revoked(_) | Self::NotOffered { .. } => {
                ApiError::unavailable("worker_unavailable", self.to_string())
            }
            Self::Journal(_) | Self::Pay(PayError::Journal(_)) | Self::Random(_) => {
                ApiError::internal(self.to_string())
            }
        }
    }
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
    pub(super) fn bounds(&self) -> (Amount, u32) {
        let record = self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (amount(&record.deposit).min(amount(&record.cap)), record.window)
    }
}

fn amount(text: &str) -> Amount {
    Amount::parse_or_zero(text).unwrap_or(Amount::ZERO)
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<PayerSession>>>>;
/// Told of a worker whose receipt was refused.
type OnRefusal = Box<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub struct Payer {
    pub(super) config: PayerConfig,
    pub(super) clock: ChainClock,
    pub(super) store: Arc<PayerStore>,
    pub(super) http: HttpClient,
    /// Answers that arrive, and those that broke off.
    pub(super) arrivals: Arrivals,
    pub(super) figures: Figures,
    pub(super) on_refusal: OnceLock<OnRefusal>,
    /// Per (worker, profile): the session, opened by whoever asks first.
    sessions: Mutex<HashMap<(String, Digest), Slot>>,
    /// Every session with a settler, by its id: those in use, and older ones in which something is left to settle.
    settling: Mutex<HashMap<u64, Arc<PayerSession>>>,
    settlers: TaskTracker,
}

impl Payer {
    /// Opens the journal.
    pub fn open(config: PayerConfig, clock: ChainClock) -> Result<Arc<Self>, JournalError> {
        let store = Arc::new(PayerStore::open(&config.journal)?);
        Ok(Arc::new(Self {
            config,
            clock,
            store,
            http: HttpClient::new(),
            arrivals: Arrivals::default(),
            figures: Figures::new(),
            on_refusal: OnceLock::new(),
            sessions: Mutex::default(),
            settling: Mutex::default(),
            settlers: TaskTracker::new(),
        }))
    }

    /// Whoever rests workers wants to know whose receipts do not hold. The first call counts.
    pub fn on_refusal(&self, told: impl Fn(&str) + Send + Sync + 'static) {
        let _first = self.on_refusal.set(Box::new(told));
    }

    /// This service stops and cuts what still arrives: that is not the users' doing, so they are not charged.
    pub fn stopping(&self) {
        self.arrivals.stopping();
    }

    /// What became of answers that broke off.
    pub fn figures(&self) -> &Figures {
        &self.figures
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
        self.moved(worker);
        if let Some(session) = held.as_ref()
            && !self.expires_soon(session, epoch)
        {
            self.top_up(session).await?;
            return Ok(Arc::clone(session));
        }
        let found = match self.find(worker, epoch).await? {
            Some(found) => found,
            None => self.open_on_chain(worker, epoch).await?,
        };
        let session = self.settle(found, worker);
        self.top_up(&session).await?;
        *held = Some(Arc::clone(&session));
        Ok(session)
    }

    fn settling(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<PayerSession>>> {
        self.settling.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The one settler of a session: two would acknowledge each other's vouchers.
    fn settle(self: &Arc<Self>, record: Session, worker: &WorkerRef) -> Arc<PayerSession> {
        let mut settling = self.settling();
        if let Some(session) = settling.get(&record.id) {
            return Arc::clone(session);
        }
        let session = Arc::new(PayerSession {
            id: record.id,
            worker: Mutex::new(worker.clone()),
            record: Mutex::new(record),
            wake: Notify::new(),
        });
        settling.insert(session.id, Arc::clone(&session));
        // Weak, so that a payer that is dropped ends its settlers.
        self.settlers.spawn(settle::run(Arc::downgrade(self), Arc::clone(&session)));
        session
    }

    /// A worker's newest endpoint and key are good for its older sessions too.
    fn moved(&self, worker: &WorkerRef) {
        for session in self.settling().values() {
            let mut known = session.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if (known.operator.as_str(), known.profile) == (worker.operator.as_str(), worker.profile) {
                *known = worker.clone();
            }
        }
    }

    /// Takes up what older sessions, which are no longer asked, have left to settle: after a restart only the journal
    /// knows of them. What is closed on chain takes no voucher any more and stays as it is.
    ///
    /// # Errors
    /// When the chain does not answer: to be tried again.
    pub async fn settle_older(self: &Arc<Self>) -> Result<(), PayerError> {
        for id in self.store.unsettled() {
            if self.settling().contains_key(&id) {
                continue;
            }
            let Some(record) = self.clock.chain().session(id).await?.filter(|session| !session.closed) else {
                continue;
            };
            let Some(profile) = Digest::from_slice(&record.profile_digest) else { continue };
            let Some(found) = self.clock.chain().worker(&record.payee).await? else { continue };
            // Nothing is asked of it: what it takes by now does not matter.
            let worker = WorkerRef::new(&found, &profile, &Model::default());
            tracing::info!(session = id, worker = worker.operator, "an older session is settled");
            self.settle(record, &worker);
        }
        Ok(())
    }

    /// Ends the settler of a session that will not be asked again and owes nothing.
    pub(super) fn is_over(&self, session: &PayerSession) -> bool {
        let Ok(now) = self.clock.now() else { return false };
        let over = self.expires_soon(session, now.epoch) && self.store.book(session.id).is_settled();
        if over {
            self.settling().remove(&session.id);
        }
        over
    }

    fn expires_soon(&self, session: &PayerSession, epoch: u64) -> bool {
        let record = session.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        record.revoked || record.expiry_epoch < epoch + 2
    }

    /// A key that was revoked once opens no further session.
    async fn find(&self, worker: &WorkerRef, epoch: u64) -> Result<Option<Session>, PayerError> {
        let spend_key = self.config.spend_key.public_key();
        let sessions = self.clock.chain().sessions(&self.config.account.address(), &worker.operator).await?;
        if let Some(revoked) = sessions.iter().find(|session| session.revoked && session.spend_key == spend_key) {
            return Err(PayerError::Revoked(revoked.id));
        }
        Ok(sessions.into_iter().rev().find(|session| {
            !session.closed
                && session.spend_key == spend_key
                && session.profile_digest == worker.profile.0
                && session.private == self.config.private
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
            private: self.config.private,
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
}
