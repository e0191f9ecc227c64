//! The worker's service: answers signed requests of sessions that pay it, signs receipts, keeps transcripts for the
//! audit, and does its duties on chain at each epoch's end.
//!
//! What always holds: no answer runs that its session cannot pay for; a receipt is durable before the last event of its
//! answer is sent, a voucher before it is acknowledged; an answer that its caller cuts is billed for the tokens that were
//! sent, one that this worker cuts is not billed.

pub mod book;
mod checks;
mod disclose;
mod duties;
pub mod records;
mod register;
mod reports;
mod service;
mod serving;
mod sessions;
pub mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market::{self, ObjectError};
use polylink_protocol::market_v1::{ModelProfile, TokenPrices};
use polylink_protocol::{Amount, Digest};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::{Chain, ChainClock};
use crate::engine::EngineHandle;
use crate::http::metrics::HttpMetrics;
use crate::http::server::{self, HttpServer};
use crate::journal::JournalError;
use crate::model::Tokenizer;

/// Longest wait of a stop for receipts on their way to the disk: an engine step and a flush.
const ENDINGS_WAIT: Duration = Duration::from_secs(10);

/// A worker's settings.
#[derive(Clone)]
pub struct WorkerConfig {
    /// Signs transactions; its address is the worker's name on chain.
    pub operator: AccountKey,
    /// Signs receipts.
    pub receipt_key: ServiceKey,
    /// What it claims to serve.
    pub profile: ModelProfile,
    /// What it asks.
    pub ask: TokenPrices,
    /// Tokens per epoch that it says it can serve.
    pub capacity_tokens_per_epoch: u64,
    /// Put into the bond pool at registration.
    pub bond: Amount,
    /// As gateways reach it, such as `http://127.0.0.1:8101`.
    pub endpoint: String,
    /// Folder of its journal.
    pub journal: PathBuf,
    /// Registers the model if the chain does not have it.
    pub provider: Option<ProviderConfig>,
    /// Epochs whose transcripts are kept for audits and proofs; more where the chain's trials may ask for older ones.
    pub keep_epochs: u64,
    /// Answers in private sessions too, which are paid at less where little else is served.
    pub private: bool,
}

/// How the worker registers its own model.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Share of the fees, in basis points.
    pub royalty_bps: u32,
    /// The price that it begins with.
    pub price: TokenPrices,
}

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The profile cannot be registered.
    #[error(transparent)]
    Profile(#[from] ObjectError),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The listener broke.
    #[error("the listening socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// What all parts of the worker share.
pub(crate) struct Worker {
    pub(crate) config: WorkerConfig,
    /// Bech32 account.
    pub(crate) operator: String,
    pub(crate) profile_digest: Digest,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) clock: ChainClock,
    pub(crate) store: store::WorkerStore,
    pub(crate) sessions: sessions::Sessions,
    pub(crate) metrics: HttpMetrics,
    /// None: registered; else why not.
    pub(crate) not_ready: std::sync::Mutex<Option<String>>,
    /// Its record on chain, once it is registered: by which key and at which price it answers in which epoch.
    pub(crate) record: std::sync::Mutex<polylink_protocol::market_v1::Worker>,
    /// Answers on their way to the disk, whether or not somebody waits for them.
    pub(crate) endings: TaskTracker,
    /// This worker stops and cuts what still runs: that is not its callers' doing, so it is not billed.
    pub(crate) cutting: AtomicBool,
}

/// A worker that serves.
pub struct RunningWorker {
    worker: Arc<Worker>,
    server: HttpServer,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Waits for the chain, then serves; registers in the background (`/ready` tells when that is done).
pub async fn start(
    config: WorkerConfig,
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    chain: Arc<dyn Chain>,
    listener: TcpListener,
) -> Result<RunningWorker, WorkerError> {
    market::check_profile(&config.profile)?;
    let worker = Arc::new(Worker {
        operator: config.operator.address().account(),
        profile_digest: market::profile_digest(&config.profile),
        store: store::WorkerStore::open(&config.journal)?,
        clock: ChainClock::start(Arc::clone(&chain)).await,
        sessions: sessions::Sessions::new(chain),
        metrics: HttpMetrics::new(),
        not_ready: std::sync::Mutex::new(Some("the worker is not registered on chain yet".into())),
        record: std::sync::Mutex::default(),
        endings: TaskTracker::new(),
        cutting: AtomicBool::new(false),
        config,
        engine,
        tokenizer,
    });
    let server = server::start(listener, service::router(Arc::clone(&worker)))?;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let background = Arc::clone(&worker);
    let stopped = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = async {
                register::register(&background).await;
                duties::run(&background).await;
            } => {}
        }
    });
    tracing::info!(address = %server.address(), operator = worker.operator, profile = %worker.profile_digest, "the worker serves");
    Ok(RunningWorker { worker, server, stop, tasks })
}

impl RunningWorker {
    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// Its account.
    pub fn operator(&self) -> &str {
        &self.worker.operator
    }

    /// Takes no new requests, lets the running answers end (at most for `grace`), waits until every receipt is on disk,
    /// and stops.
    pub async fn stop(self, grace: Duration) {
        if !self.server.drain(grace).await {
            self.worker.cutting.store(true, Ordering::Release);
            self.server.cut().await;
        }
        self.worker.endings.close();
        if tokio::time::timeout(ENDINGS_WAIT, self.worker.endings.wait()).await.is_err() {
            tracing::error!(
                open = self.worker.endings.len(),
                "answers could not be stored in time: they are not billed"
            );
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
