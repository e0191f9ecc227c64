//! The gateway: OpenAI's interface for users with API keys, paid answers of workers behind it.
//!
//! It renders the chat template, tokenises, signs the request and sends token ids; it verifies the receipt against what
//! was streamed before the answer's last chunk leaves.
//!
//! What always holds: a user pays for a whole answer, or, having gone away, for what was sent until then; what a worker or
//! this gateway fails to finish is charged to nobody; a request is tried on another worker only while nothing of its
//! answer has been shown; a key never spends beyond its budget or its session.

mod answering;
pub mod keys;
mod records;
mod refresh;
mod workers;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1::{Model, ModelProfile, MsgOpenSession};
use polylink_protocol::{Address, Amount, Digest, tx};
use prometheus::IntCounter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::{Chain, ChainClock, ChainError};
use crate::client::{Payer, PayerConfig};
use crate::http::local::TextModel;
use crate::http::metrics::HttpMetrics;
use crate::http::server::{self, HttpServer};
use crate::http::{FrontLimits, router};
use crate::journal::JournalError;
use keys::{ApiKeys, KeysError, UserSession};
pub use workers::PriceLimit;
use workers::Registry;

/// A gateway's settings.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Pays workers, is paid by users.
    pub account: AccountKey,
    /// Signs requests and vouchers to workers.
    pub spend_key: ServiceKey,
    /// Put into each session to a worker.
    pub deposit: Amount,
    /// Answers that may be unpaid at a worker.
    pub window: u32,
    /// Epochs from a session's opening to its expiry.
    pub expiry_epochs: u64,
    /// Its sessions to workers are private, all of them.
    pub private: bool,
    /// Workers that ask more are not asked.
    pub max_price: PriceLimit,
    /// The most in deposits that may be at stake in reports of omitted receipts; zero: none are made.
    pub report_stake_max: Amount,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// File of the API keys.
    pub api_keys: PathBuf,
    /// Limits of the HTTP side.
    pub limits: FrontLimits,
}

/// A profile that this gateway can offer when the chain has it and workers serve it: one per precision of a folder.
#[derive(Clone)]
pub struct GatewayModel {
    /// As computed from the gateway's own folder, weights included: only the profile with exactly this digest is offered.
    /// A name on chain says nothing, since anybody may register any weights under it.
    pub profile: ModelProfile,
    /// Tokenizer, template, context.
    pub text: TextModel,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// See there.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// See there.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The listener broke.
    #[error("the listening socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// A model on chain that this gateway has the text side of.
#[derive(Clone)]
pub(crate) struct Offered {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) model: Model,
    pub(crate) text: TextModel,
}

/// What all parts of the gateway share.
pub(crate) struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) models: Vec<GatewayModel>,
    pub(crate) payer: Arc<Payer>,
    pub(crate) keys: ApiKeys,
    pub(crate) offered: Mutex<Vec<Offered>>,
    pub(crate) registry: Arc<Mutex<Registry>>,
    /// Held by whoever reads the registry for a new epoch.
    pub(crate) following: tokio::sync::Mutex<()>,
    /// Funds of users' sessions, and when and in which epoch they were looked up.
    pub(crate) user_funds: Mutex<HashMap<u64, (Amount, Instant, u64)>>,
    pub(crate) retries: IntCounter,
    pub(crate) answers: IntCounter,
    /// Answers that arrive.
    pub(crate) pumps: TaskTracker,
}

impl Gateway {
    pub(crate) fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    pub(crate) fn offered(&self) -> Vec<Offered> {
        self.offered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// A gateway that serves.
pub struct RunningGateway {
    server: HttpServer,
    stop: CancellationToken,
    tasks: TaskTracker,
    payer: Arc<Payer>,
    pumps: TaskTracker,
}

/// Waits for the chain, then serves; workers and sessions are looked after in the background (`/ready` tells when a
/// request would be answered).
pub async fn start(
    config: GatewayConfig,
    models: Vec<GatewayModel>,
    chain: Arc<dyn Chain>,
    listener: TcpListener,
) -> Result<RunningGateway, GatewayError> {
    let keys = ApiKeys::open(&config.api_keys)?;
    let clock = ChainClock::start(chain).await;
    let payer = Payer::open(
        PayerConfig {
            account: config.account.clone(),
            spend_key: config.spend_key.clone(),
            deposit: config.deposit,
            window: config.window,
            expiry_epochs: config.expiry_epochs,
            private: config.private,
            journal: config.journal.clone(),
        },
        clock,
    )?;
    let metrics = HttpMetrics::new();
    let counter = |name: &str, help: &str| -> IntCounter {
        let counter = IntCounter::new(name, help).expect("the name is a constant that Prometheus allows");
        metrics
            .registry()
            .register(Box::new(counter.clone()))
            .expect("each name is registered once in this new registry");
        counter
    };
    for counter in payer.figures().counters() {
        metrics.registry().register(Box::new(counter)).expect("each name is registered once in this new registry");
    }
    let gateway = Arc::new(Gateway {
        retries: counter("polylink:gateway_retries_total", "Requests tried on another worker"),
        answers: counter("polylink:gateway_answers_total", "Answers verified and charged"),
        models,
        payer,
        keys,
        offered: Mutex::default(),
        registry: Arc::default(),
        following: tokio::sync::Mutex::default(),
        user_funds: Mutex::default(),
        pumps: TaskTracker::new(),
        config,
    });
    let registry = Arc::clone(&gateway.registry);
    gateway.payer.on_refusal(move |operator| {
        let mut registry = registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.distrusted(operator, Instant::now());
    });
    let (payer, pumps) = (Arc::clone(&gateway.payer), gateway.pumps.clone());
    let routes = router(Arc::clone(&gateway), gateway.config.limits.clone(), metrics)
        .merge(records::router(Arc::clone(&gateway)));
    let server = server::start(listener, routes)?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let stopped = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            ((), (), ()) = async {
                tokio::join!(refresh::run(&gateway), refresh::redeem(&gateway), refresh::report(&gateway))
            } => {}
        }
    });
    tracing::info!(address = %server.address(), "the gateway serves");
    Ok(RunningGateway { server, stop, tasks, payer, pumps })
}

impl RunningGateway {
    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// Takes no new requests, lets the running answers end (at most for `grace`), and stops.
    pub async fn stop(self, grace: Duration) {
        if !self.server.drain(grace).await {
            self.payer.stopping();
            self.server.cut().await;
        }
        self.pumps.close();
        self.pumps.wait().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Opens a user's session with a gateway and gives the gateway its spend key in custody: what an API key is made with.
pub async fn open_user_session(
    chain: &dyn Chain,
    user: &AccountKey,
    gateway: &Address,
    deposit: Amount,
    spend_key: [u8; 32],
    expiry_epoch: u64,
) -> Result<UserSession, ChainError> {
    let public = ServiceKey::from_bytes(&spend_key).public_key();
    let message = MsgOpenSession {
        payer: user.address().account(),
        payee: gateway.account(),
        spend_key: public.to_vec(),
        deposit: deposit.to_string(),
        cap: deposit.to_string(),
        // What the gateway may leave unpaid at most; it signs a voucher with every answer.
        window: 64,
        expiry_epoch,
        private: false,
        profile_digest: vec![],
    };
    chain.broadcast(user, vec![tx::any(&message)]).await?;
    let sessions = chain.sessions(&user.address(), &gateway.account()).await?;
    let found = sessions.into_iter().rev().find(|session| session.spend_key == public && !session.closed);
    let session = found.ok_or_else(|| ChainError::NotFound("the new session is not on chain".into()))?.id;
    Ok(UserSession { session, spend_key: spend_key.to_vec() })
}
