//! The chain as the services see it: one trait with what they ask of it, implemented over CometBFT's RPC for production
//! and over the ledger in this process for tests; and a clock that follows blocks and epochs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use polylink_protocol::client::{ChainClient, ClientError};
use polylink_protocol::cosmos::Any;
use polylink_protocol::keys::AccountKey;
use polylink_protocol::{Address, Digest, Message, market_v1 as market, tiqe_v1 as tiqe};
use tokio::sync::watch;

/// How often the clock looks at the chain.
const CLOCK_PERIOD: Duration = Duration::from_millis(200);
/// How old the clock's time may be before services refuse what depends on it.
const CLOCK_AGE_MAX: Duration = Duration::from_secs(20);

/// The chain did not do what was asked; the text says what and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No answer, or no sensible one: trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The ledger's answer is no.
    #[error("{0}")]
    Refused(String),
    /// What was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
}

impl From<ClientError> for ChainError {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NotFound { .. } => Self::NotFound(text),
            ClientError::Refused { .. } | ClientError::Query { .. } => Self::Refused(text),
            _ => Self::Unavailable(text),
        }
    }
}

/// What services ask of the chain.
pub trait Chain: Send + Sync + 'static {
    /// Its id.
    fn chain_id(&self) -> BoxFuture<'_, Result<String, ChainError>>;
    /// One ABCI query of the newest state: encoded request in, encoded response out.
    fn query(&self, path: &'static str, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ChainError>>;
    /// Signs the messages with the account's key and waits until they are in a block; returns its height.
    fn broadcast<'a>(&'a self, key: &'a AccountKey, messages: Vec<Any>) -> BoxFuture<'a, Result<u64, ChainError>>;
}

impl Chain for ChainClient {
    fn chain_id(&self) -> BoxFuture<'_, Result<String, ChainError>> {
        Box::pin(async { Ok(self.status().await?.chain_id) })
    }
    fn query(&self, path: &'static str, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ChainError>> {
        Box::pin(async move { Ok(self.query_raw(path, request, 0, false).await?.value) })
    }
    fn broadcast<'a>(&'a self, key: &'a AccountKey, messages: Vec<Any>) -> BoxFuture<'a, Result<u64, ChainError>> {
        Box::pin(async move { Ok(ChainClient::broadcast(self, key, messages).await?.height) })
    }
}

impl dyn Chain {
    async fn get<A: Message + Default>(&self, path: &'static str, request: &impl Message) -> Result<A, ChainError> {
        let answer = self.query(path, request.encode_to_vec()).await?;
        A::decode(answer.as_slice()).map_err(|e| ChainError::Unavailable(format!("{path} cannot be read: {e}")))
    }

    async fn find<A: Message + Default>(
        &self,
        path: &'static str,
        request: &impl Message,
    ) -> Result<Option<A>, ChainError> {
        match self.get(path, request).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ChainError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Current epoch and newest height.
    pub async fn epoch(&self) -> Result<(u64, u64), ChainError> {
        let request = market::QueryEpochRequest { number: 0, current: true };
        let answer: market::QueryEpochResponse = self.get("/polylink.market.v1.Query/Epoch", &request).await?;
        Ok((answer.epoch.map(|e| e.number).unwrap_or_default(), answer.height.max(0) as u64))
    }

    /// The market's parameters.
    pub async fn market_params(&self) -> Result<market::Params, ChainError> {
        let answer: market::QueryParamsResponse =
            self.get("/polylink.market.v1.Query/Params", &market::QueryParamsRequest {}).await?;
        answer.params.ok_or_else(|| ChainError::Unavailable("the market has no parameters".into()))
    }

    /// The audit's parameters.
    pub async fn tiqe_params(&self) -> Result<tiqe::Params, ChainError> {
        let answer: tiqe::QueryParamsResponse =
            self.get("/polylink.tiqe.v1.Query/Params", &tiqe::QueryParamsRequest {}).await?;
        answer.params.ok_or_else(|| ChainError::Unavailable("the audit has no parameters".into()))
    }

    /// A session.
    pub async fn session(&self, session: u64) -> Result<Option<market::Session>, ChainError> {
        let answer: Option<market::QuerySessionResponse> =
            self.find("/polylink.market.v1.Query/Session", &market::QuerySessionRequest { session }).await?;
        Ok(answer.and_then(|a| a.session))
    }

    /// All sessions between two accounts, oldest first.
    pub async fn sessions(&self, payer: &Address, payee: &str) -> Result<Vec<market::Session>, ChainError> {
        let mut found = Vec::new();
        let mut key = Vec::new();
        // Bounded: 100 pages of 1,000.
        for _ in 0..100 {
            let pagination = Some(market::PageRequest { key, limit: 1_000 });
            let request = market::QuerySessionsRequest { payer: payer.account(), payee: payee.into(), pagination };
            let answer: market::QuerySessionsResponse =
                self.get("/polylink.market.v1.Query/Sessions", &request).await?;
            found.extend(answer.sessions);
            key = answer.pagination.map(|p| p.next_key).unwrap_or_default();
            if key.is_empty() {
                break;
            }
        }
        found.sort_by_key(|session| session.id);
        Ok(found)
    }

    /// A worker.
    pub async fn worker(&self, operator: &str) -> Result<Option<market::Worker>, ChainError> {
        let request = market::QueryWorkerRequest { operator: operator.into() };
        let answer: Option<market::QueryWorkerResponse> =
            self.find("/polylink.market.v1.Query/Worker", &request).await?;
        Ok(answer.and_then(|a| a.worker))
    }

    /// The first 1,000 workers of a profile.
    pub async fn workers(&self, profile: &Digest) -> Result<Vec<market::Worker>, ChainError> {
        let pagination = Some(market::PageRequest { key: vec![], limit: 1_000 });
        let request = market::QueryWorkersRequest { profile_digest: profile.to_vec(), pagination };
        let answer: market::QueryWorkersResponse = self.get("/polylink.market.v1.Query/Workers", &request).await?;
        Ok(answer.workers)
    }

    /// A model.
    pub async fn model(&self, profile: &Digest) -> Result<Option<market::Model>, ChainError> {
        let request = market::QueryModelRequest { profile_digest: profile.to_vec() };
        let answer: Option<market::QueryModelResponse> = self.find("/polylink.market.v1.Query/Model", &request).await?;
        Ok(answer.and_then(|a| a.model))
    }

    /// What a worker committed and earned in an epoch, private sessions apart. Where it committed, key and price stand here.
    pub async fn pot(&self, epoch: u64, worker: &str, profile: &Digest) -> Result<Option<market::Pot>, ChainError> {
        self.pot_of(epoch, worker, profile, false).await
    }

    /// The same of private sessions, or of the others.
    pub async fn pot_of(
        &self,
        epoch: u64,
        worker: &str,
        profile: &Digest,
        private: bool,
    ) -> Result<Option<market::Pot>, ChainError> {
        let (worker, profile_digest) = (worker.into(), profile.to_vec());
        let request = market::QueryPotRequest { epoch, worker, profile_digest, private };
        let answer: Option<market::QueryPotResponse> = self.find("/polylink.market.v1.Query/Pot", &request).await?;
        Ok(answer.and_then(|a| a.pot))
    }

    /// The first 1,000 open reports of receipts that a worker is said to have omitted.
    pub async fn reports(&self, worker: &str) -> Result<Vec<market::OmissionReport>, ChainError> {
        let pagination = Some(market::PageRequest { key: vec![], limit: 1_000 });
        let request = market::QueryReportsRequest { worker: worker.into(), pagination };
        let answer: market::QueryReportsResponse = self.get("/polylink.market.v1.Query/Reports", &request).await?;
        Ok(answer.reports)
    }

    /// The audit round of an epoch.
    pub async fn round(&self, epoch: u64, profile: &[u8]) -> Result<Option<tiqe::Round>, ChainError> {
        let request = tiqe::QueryRoundRequest { epoch, profile_digest: profile.to_vec() };
        let answer: Option<tiqe::QueryRoundResponse> = self.find("/polylink.tiqe.v1.Query/Round", &request).await?;
        Ok(answer.and_then(|a| a.round))
    }

    /// All judges.
    pub async fn judges(&self) -> Result<Vec<tiqe::Judge>, ChainError> {
        let answer: tiqe::QueryJudgesResponse =
            self.get("/polylink.tiqe.v1.Query/Judges", &tiqe::QueryJudgesRequest {}).await?;
        Ok(answer.judges)
    }

    /// Trials of a worker.
    pub async fn trials(&self, worker: &str) -> Result<Vec<tiqe::Trial>, ChainError> {
        let request = tiqe::QueryTrialsRequest { worker: worker.into() };
        let answer: Option<tiqe::QueryTrialsResponse> = self.find("/polylink.tiqe.v1.Query/Trials", &request).await?;
        Ok(answer.map(|a| a.trials).unwrap_or_default())
    }

    /// A worker's quality under a profile.
    pub async fn quality(&self, worker: &str, profile: &Digest) -> Result<Option<tiqe::Quality>, ChainError> {
        let request = tiqe::QueryQualityRequest { worker: worker.into(), profile_digest: profile.to_vec() };
        let answer: Option<tiqe::QueryQualityResponse> = self.find("/polylink.tiqe.v1.Query/Quality", &request).await?;
        Ok(answer.and_then(|a| a.quality))
    }
}

/// Where the chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainTime {
    /// Current epoch: the newest height's.
    pub epoch: u64,
    /// Newest committed height.
    pub height: u64,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
    /// Blocks from an epoch's first one in which receipts of the epoch before are committed.
    pub receipts_window: u64,
}

impl ChainTime {
    /// Blocks since the epoch's first one.
    pub fn offset(&self) -> u64 {
        self.height.saturating_sub(self.epoch.saturating_mul(self.epoch_blocks))
    }
}

/// Follows the chain in the background.
#[derive(Clone)]
pub struct ChainClock {
    chain: Arc<dyn Chain>,
    chain_id: Arc<str>,
    newest: watch::Receiver<(ChainTime, Instant)>,
    told: Arc<watch::Sender<(ChainTime, Instant)>>,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Parameters change with an epoch at the earliest, so they are asked for once per epoch.
async fn look(chain: &dyn Chain, known: Option<ChainTime>) -> Result<ChainTime, ChainError> {
    let (epoch, height) = chain.epoch().await?;
    if let Some(known) = known.filter(|known| known.epoch == epoch) {
        return Ok(ChainTime { height, ..known });
    }
    let params = chain.market_params().await?;
    let (epoch_blocks, receipts_window) = (params.epoch_blocks, params.receipts_window_blocks);
    Ok(ChainTime { epoch, height, epoch_blocks, receipts_window })
}

impl ChainClock {
    /// Waits until the chain answers, then follows it. Tells every few seconds that it waits.
    pub async fn start(chain: Arc<dyn Chain>) -> Self {
        let mut said = None;
        let (chain_id, time) = loop {
            match (chain.chain_id().await, look(&*chain, None).await) {
                (Ok(id), Ok(time)) => break (id, time),
                (Err(error), _) | (_, Err(error)) => {
                    if said.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(5)) {
                        tracing::info!(%error, "waiting for the chain");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        };
        let (sender, newest) = watch::channel((time, Instant::now()));
        let told = Arc::new(sender);
        let (followed, sender) = (Arc::clone(&chain), Arc::clone(&told));
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(CLOCK_PERIOD).await;
                let known = sender.borrow().0;
                match look(&*followed, Some(known)).await {
                    Ok(time) => drop(sender.send((time, Instant::now()))),
                    Err(error) => tracing::debug!(%error, "the chain does not answer"),
                }
            }
        });
        Self { chain, chain_id: chain_id.into(), newest, told, _task: Arc::new(AbortOnDrop(task)) }
    }

    /// The chain that it follows.
    pub fn chain(&self) -> &Arc<dyn Chain> {
        &self.chain
    }

    /// The chain's id.
    pub fn chain_id(&self) -> &str {
        &self.chain_id
    }

    /// Where the chain stands.
    ///
    /// # Errors
    /// When nothing was heard of it for too long.
    pub fn now(&self) -> Result<ChainTime, ChainError> {
        let (time, at) = *self.newest.borrow();
        match at.elapsed() {
            age if age <= CLOCK_AGE_MAX => Ok(time),
            age => Err(ChainError::Unavailable(format!(
                "the chain has not answered for {} s: is its node running?",
                age.as_secs()
            ))),
        }
    }

    /// Asks the chain now, for when the clock may lag behind somebody else's.
    pub async fn ask(&self) -> Result<ChainTime, ChainError> {
        let known = self.newest.borrow().0;
        let time = look(&*self.chain, Some(known)).await?;
        self.told.send_if_modified(|newest| {
            let newer = time.height > newest.0.height;
            if newer {
                *newest = (time, Instant::now());
            }
            newer
        });
        Ok(time)
    }

    /// Waits for the next look.
    pub async fn tick(&mut self) {
        // The sender lives as long as this clock; if its task died, sleeping keeps callers from spinning.
        if self.newest.changed().await.is_err() {
            tokio::time::sleep(CLOCK_PERIOD).await;
        }
    }
}
