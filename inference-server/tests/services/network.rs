//! Chain, worker and gateway in one process, each behind its own socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polylink_abci_app::testing::key;
use polylink_inference_server::chain::Chain;
use polylink_inference_server::engine::{Engine, EngineConfig, EngineHandle, KvCacheSize};
use polylink_inference_server::gateway::keys::ApiKeys;
use polylink_inference_server::gateway::{self, GatewayConfig, GatewayModel, PriceLimit, RunningGateway};
use polylink_inference_server::http::local::TextModel;
use polylink_inference_server::http::{FrontLimits, server};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_inference_server::worker::{self, ProviderConfig, RunningWorker, WorkerConfig};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::TokenPrices;
use polylink_protocol::{Address, Amount};

use super::chain::LocalChain;
use super::http::get;

pub const WORKER: u8 = 1;
pub const GATEWAY: u8 = 2;
pub const USER: u8 = 3;
pub const MODEL: &str = "polylink/pico@test";

pub const PRICE: TokenPrices = TokenPrices { prompt: 10_000, cached_prompt: 2_500, completion: 30_000 };

pub fn model() -> LoadedModel {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pico");
    LoadedModel::open(folder, Precision::F32).unwrap()
}

pub fn engine() -> EngineHandle {
    let config = EngineConfig { threads: 1, kv_cache: KvCacheSize::Blocks(256), ..EngineConfig::default() };
    Engine::start(model(), config).unwrap()
}

pub fn worker_operator() -> String {
    key(WORKER).address().account()
}

pub fn gateway_address() -> Address {
    key(GATEWAY).address()
}

pub struct Network {
    pub chain: Arc<LocalChain>,
    pub folder: tempfile::TempDir,
    pub engine: EngineHandle,
    pub worker: Option<RunningWorker>,
    pub gateway: Option<RunningGateway>,
    pub worker_url: String,
    pub base: String,
    pub api_key: String,
}

pub fn receipt_key() -> ServiceKey {
    ServiceKey::from_bytes(&[41; 32])
}

pub fn spend_key() -> ServiceKey {
    ServiceKey::from_bytes(&[42; 32])
}

pub async fn start_worker(chain: &Arc<LocalChain>, engine: &EngineHandle, folder: &Path, port: u16) -> RunningWorker {
    let listener = server::bind(([127, 0, 0, 1], port).into()).await.unwrap();
    let config = worker_config(WORKER, folder, format!("http://{}", listener.local_addr().unwrap()));
    start_worker_with(config, chain, engine, listener).await
}

pub fn worker_config(operator: u8, folder: &Path, endpoint: String) -> WorkerConfig {
    WorkerConfig {
        operator: key(operator),
        receipt_key: receipt_key(),
        profile: model().profile(MODEL).unwrap(),
        ask: PRICE,
        capacity_tokens_per_epoch: 1_000_000,
        bond: Amount(1_000_000_000),
        endpoint,
        journal: folder.join(if operator == WORKER { "worker".into() } else { format!("worker-{operator}") }),
        provider: Some(ProviderConfig { royalty_bps: 500, price: PRICE }),
        keep_epochs: 8,
        private: true,
    }
}

pub async fn start_worker_with(
    config: WorkerConfig,
    chain: &Arc<impl Chain>,
    engine: &EngineHandle,
    listener: tokio::net::TcpListener,
) -> RunningWorker {
    let chain: Arc<dyn Chain> = chain.clone();
    worker::start(config, engine.clone(), model().tokenizer().clone(), chain, listener).await.unwrap()
}

pub async fn start_gateway(chain: &Arc<LocalChain>, folder: &Path) -> RunningGateway {
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let config = gateway_config(folder);
    start_gateway_with(config, chain, listener).await
}

pub fn gateway_config(folder: &Path) -> GatewayConfig {
    GatewayConfig {
        account: key(GATEWAY),
        spend_key: spend_key(),
        deposit: Amount(50_000_000),
        window: 32,
        expiry_epochs: 1_000,
        private: false,
        max_price: PriceLimit::DEFAULT,
        report_stake_max: Amount(1_000_000),
        journal: folder.join("gateway"),
        api_keys: folder.join("api-keys.json"),
        limits: FrontLimits::default(),
    }
}

pub async fn start_gateway_with(
    config: GatewayConfig,
    chain: &Arc<LocalChain>,
    listener: tokio::net::TcpListener,
) -> RunningGateway {
    let model = model();
    let models = vec![GatewayModel { profile: model.profile(MODEL).unwrap(), text: TextModel::of(&model) }];
    let chain: Arc<dyn Chain> = chain.clone();
    gateway::start(config, models, chain, listener).await.unwrap()
}

pub async fn wait_ready(base: &str) {
    let begun = Instant::now();
    loop {
        let reply = get(&format!("{base}/ready"), None).await;
        if reply.status == 200 {
            return;
        }
        assert_eq!(reply.status, 503);
        assert!(begun.elapsed() < Duration::from_secs(60), "not ready: {}", String::from_utf8_lossy(&reply.body));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "never: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Network {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let chain = LocalChain::start();
        let engine = engine();
        let worker = start_worker(&chain, &engine, folder.path(), 0).await;
        let worker_url = format!("http://{}", worker.address());
        wait_ready(&worker_url).await;
        let (user, payee) = (key(USER), gateway_address());
        let opened = gateway::open_user_session(&*chain, &user, &payee, Amount(20_000_000), [43; 32], 10_000).await;
        let session = opened.unwrap();
        let keys = ApiKeys::open(&folder.path().join("api-keys.json")).unwrap();
        let api_key = keys.create("test", None, 0, Some(session)).unwrap();
        let gateway = start_gateway(&chain, folder.path()).await;
        let base = format!("http://{}", gateway.address());
        wait_ready(&base).await;
        Self { chain, folder, engine, worker: Some(worker), gateway: Some(gateway), worker_url, base, api_key }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// What the API key has used.
    pub async fn usage(&self) -> serde_json::Value {
        get(&self.url("/polylink/v1/usage"), Some(&self.api_key)).await.json()
    }

    /// What the workers' sessions of an account have paid on chain.
    pub async fn redeemed(&self, payer: u8) -> u128 {
        let chain: &dyn Chain = &*self.chain;
        let sessions = chain.sessions(&key(payer).address(), &worker_operator()).await.unwrap();
        sessions.iter().map(|s| s.redeemed.parse().unwrap_or(0)).sum()
    }

    pub async fn stop(mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop(Duration::from_secs(2)).await;
        }
        if let Some(worker) = self.worker.take() {
            worker.stop(Duration::from_secs(2)).await;
        }
        self.engine.shutdown();
    }
}
