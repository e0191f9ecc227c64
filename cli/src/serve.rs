//! `polylink serve`: a worker (engine, receipts, duties on chain), one half of a tensor split, or an engine alone.

use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polylink_inference_server::engine::{
    BackendKind, Engine, EngineConfig, EngineHandle, KvCacheSize, Speculation, SplitConfig,
};
use polylink_inference_server::http::local::{LocalAnswerer, TextModel};
use polylink_inference_server::http::metrics::HttpMetrics;
use polylink_inference_server::http::{FrontLimits, router, server};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_inference_server::tensor_split::{PeerConfig, run_peer};
use polylink_inference_server::worker::{self, ProviderConfig, WorkerConfig};
use polylink_protocol::Amount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::TokenPrices;

use crate::chain::{RpcArgs, parse_amount};
use crate::error::CliError;
use crate::home::Home;
use crate::keys::{Keyring, Kind};
use crate::models::{self, PrecisionArgs};
use crate::shutdown;

/// A stopping service lets its running answers end for so long.
pub const GRACE: Duration = Duration::from_secs(10);

/// Prices in uplk per 1,000 tokens.
#[derive(Args, Debug, Clone)]
pub struct PriceArgs {
    /// Price of 1,000 prompt tokens that are computed, in uplk
    #[arg(long, env = "POLYLINK_PRICE_PROMPT", default_value_t = 10_000)]
    pub price_prompt: u64,
    /// Price of 1,000 prompt tokens found in the prefix cache, in uplk
    #[arg(long, env = "POLYLINK_PRICE_CACHED", default_value_t = 2_500)]
    pub price_cached: u64,
    /// Price of 1,000 completion tokens, in uplk
    #[arg(long, env = "POLYLINK_PRICE_COMPLETION", default_value_t = 30_000)]
    pub price_completion: u64,
}

impl PriceArgs {
    /// As the chain has them.
    pub fn prices(&self) -> TokenPrices {
        TokenPrices { prompt: self.price_prompt, cached_prompt: self.price_cached, completion: self.price_completion }
    }
}

/// `polylink serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink serve --model nano --key worker --listen 127.0.0.1:8101      a worker of the chain
  polylink serve --model nano --local --listen 127.0.0.1:8000           an OpenAI endpoint without chain or payment
  polylink serve --model nano --join --listen 127.0.0.1:9001 --split-secret S          the other device of a
  polylink serve --model nano --split 2:1 --peer 127.0.0.1:9001 --split-secret S   tensor split, and its leader")]
pub struct ServeArgs {
    /// Hugging Face folder or GGUF file of a model, or the name of one in ./models
    #[arg(long, env = "POLYLINK_MODEL", default_value = "nano")]
    model: String,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Name under which it is registered [default: polylink/FOLDER@1]
    #[arg(long)]
    id: Option<String>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, env = "POLYLINK_LISTEN", default_value = "127.0.0.1:8101")]
    listen: SocketAddr,
    /// As gateways reach it [default: http://LISTEN]
    #[arg(long)]
    advertise: Option<String>,
    /// Account of the keyring that is the worker's name on chain
    #[arg(long, env = "POLYLINK_KEY", default_value = "worker")]
    key: String,
    /// Bond at the first registration
    #[arg(long, value_parser = parse_amount, default_value = "200plk")]
    bond: Amount,
    #[command(flatten)]
    prices: PriceArgs,
    /// Royalty of this model in basis points, where this worker registers it
    #[arg(long, default_value_t = 500)]
    royalty_bps: u32,
    /// Tokens per epoch that it says it can serve
    #[arg(long, default_value_t = 1_000_000)]
    capacity: u64,
    /// Answer in no private session: what judges do not see is paid at less where little else is served
    #[arg(long)]
    no_private: bool,
    /// Compute threads; 0: one per core
    #[arg(long, env = "POLYLINK_THREADS", default_value_t = 0)]
    threads: usize,
    /// Tokens of one step, prefill and decode together
    #[arg(long, default_value_t = 256)]
    token_budget: usize,
    /// Answers under way at once
    #[arg(long, default_value_t = 32)]
    max_running: usize,
    /// Answers that may wait; more get 429
    #[arg(long, default_value_t = 256)]
    max_waiting: usize,
    /// Memory of the KV cache in MiB [default: what a GPU has free; 256 on a CPU]
    #[arg(long)]
    kv_cache_mib: Option<usize>,
    /// What computes
    #[arg(long, value_enum, env = "POLYLINK_BACKEND", default_value = "auto")]
    backend: Device,
    /// Guess tokens ahead; answers are the same, in fewer steps where guesses are right
    #[arg(long, value_enum, default_value = "off")]
    speculation: Guessing,
    /// Guess tokens with this model: folder, or name of one in ./models, with the same vocabulary
    #[arg(long, value_name = "FOLDER", env = "POLYLINK_DRAFT_MODEL", conflicts_with = "speculation")]
    draft_model: Option<String>,
    /// An OpenAI endpoint over the engine alone: no chain, no payment, no receipts
    #[arg(long)]
    local: bool,
    /// Tensor split: proportions, own first, such as 2:1
    #[arg(long, requires = "peer")]
    split: Option<String>,
    /// Tensor split: where a peer listens; once per peer, in order
    #[arg(long)]
    peer: Vec<SocketAddr>,
    /// Be a peer of a tensor split, for the leader to connect to
    #[arg(long, conflicts_with_all = ["split", "local"])]
    join: bool,
    /// Tensor split: what both sides know and nobody else; must not be empty
    #[arg(long, env = "POLYLINK_SPLIT_SECRET", hide_env_values = true, default_value = "")]
    split_secret: String,
    /// Tensor split: seconds until a silent peer fails its requests
    #[arg(long, default_value_t = 4)]
    peer_timeout: u64,
    /// For tests of the audit only: claim the profile of this folder while serving the weights of --model
    #[arg(long, hide = true)]
    dishonestly_claim: Option<String>,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Device {
    /// A GPU if this program has its kernels and the machine a driver, else the CPU
    #[default]
    Auto,
    /// The CPU
    Cpu,
    /// The first NVIDIA GPU
    Cuda,
}

impl Device {
    fn kind(self) -> BackendKind {
        match self {
            // A program without kernels has nothing to say about their absence.
            Device::Auto if cfg!(feature = "cuda") => BackendKind::Auto,
            Device::Auto | Device::Cpu => BackendKind::Cpu,
            Device::Cuda => BackendKind::Cuda,
        }
    }
}

/// How tokens are guessed ahead without a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Guessing {
    /// Not at all
    #[default]
    Off,
    /// By what followed when the last tokens occurred before
    Lookup,
}

fn speculation(args: &ServeArgs) -> Result<Speculation, CliError> {
    if let Some(draft) = &args.draft_model {
        let computation = args.precision.computation()?;
        let model = LoadedModel::open(models::resolve(draft), computation);
        return model.map(Speculation::Draft).map_err(|e| CliError::role("draft model", e));
    }
    Ok(match args.speculation {
        Guessing::Off => Speculation::Off,
        Guessing::Lookup => Speculation::Lookup,
    })
}

fn parse_split(text: &str) -> Result<Vec<u32>, CliError> {
    let parts: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    match parts {
        Ok(shares) if shares.len() > 1 && shares.iter().all(|s| *s > 0) => Ok(shares),
        _ => Err(CliError::value("--split", format!("`{text}`: proportions such as 2:1 are expected"))),
    }
}

fn engine(args: &ServeArgs, model: LoadedModel) -> Result<EngineHandle, CliError> {
    let split = args.split.as_deref().map(parse_split).transpose()?.map(|shares| SplitConfig {
        shares,
        peers: args.peer.clone(),
        secret: args.split_secret.clone(),
        timeout: Duration::from_secs(args.peer_timeout),
    });
    let config = EngineConfig {
        token_budget: args.token_budget,
        max_running: args.max_running,
        max_waiting: args.max_waiting,
        kv_cache: args.kv_cache_mib.map_or(KvCacheSize::Free, |mib| KvCacheSize::Bytes(mib << 20)),
        backend: args.backend.kind(),
        threads: args.threads,
        speculation: speculation(args)?,
        split,
        ..EngineConfig::default()
    };
    Engine::start(model, config).map_err(|e| CliError::role("engine", e))
}

/// The text side of a model.
pub fn text_model(model: &LoadedModel, engine: &EngineHandle) -> TextModel {
    TextModel { context_length: engine.info().context_length as u32, ..TextModel::of(model) }
}

/// Serves an engine's OpenAI endpoint; the second value stops it.
pub async fn serve_local(
    engine: EngineHandle,
    text: TextModel,
    name: String,
    listen: SocketAddr,
) -> Result<server::HttpServer, CliError> {
    let listener = server::bind(listen).await.map_err(|e| CliError::role("serve", e))?;
    let answerer = Arc::new(LocalAnswerer::new(engine, text, name));
    server::start(listener, router(answerer, FrontLimits::default(), HttpMetrics::new()))
        .map_err(|e| CliError::role("serve", e))
}

/// Runs `polylink serve`.
pub async fn run(args: &ServeArgs, home: &Path) -> Result<(), CliError> {
    if (args.join || args.split.is_some()) && args.split_secret.is_empty() {
        let reason =
            "a tensor split needs one, the same on both sides: whoever reaches the port could take part without it";
        return Err(CliError::value("--split-secret", reason));
    }
    let folder = models::resolve(&args.model);
    let (model, own_profile) = models::open(&folder, args.precision.computation()?, args.id.as_deref())?;
    if args.join {
        return join(args, model).await;
    }
    let wrong = |e: &dyn std::fmt::Display| CliError::role("worker", e);
    if args.local {
        let engine = engine(args, model.clone())?;
        let name = own_profile.id.split('@').next().unwrap_or_default().to_owned();
        let text = text_model(&model, &engine);
        let server = serve_local(engine.clone(), text, name.clone(), args.listen).await?;
        println!("http://{}/v1 serves {name}", server.address());
        shutdown::requested().await?;
        server.stop(GRACE).await;
        engine.shutdown();
        return Ok(());
    }
    let profile = match &args.dishonestly_claim {
        None => own_profile,
        Some(claimed) => {
            tracing::warn!(
                serves = own_profile.id,
                claims = claimed,
                "a test of the audit: other weights than claimed"
            );
            models::open(&models::resolve(claimed), Precision::F32, args.id.as_deref())?.1
        }
    };
    let chain = args.rpc.client(home)?;
    let ring = Keyring::new(home);
    let operator = ring.account(&args.key)?;
    let receipt = format!("{}-receipt", args.key);
    ring.ensure(&receipt, Kind::Service)?;
    let listener = server::bind(args.listen).await.map_err(|e| wrong(&e))?;
    let address = listener.local_addr().map_err(|e| wrong(&e))?;
    let engine = engine(args, model.clone())?;
    let config = WorkerConfig {
        operator,
        receipt_key: ServiceKey::from_bytes(&ring.service_secret(&receipt)?),
        profile,
        ask: args.prices.prices(),
        capacity_tokens_per_epoch: args.capacity,
        bond: args.bond,
        endpoint: args.advertise.clone().unwrap_or_else(|| format!("http://{address}")),
        journal: Home::new(home)?.service(&args.key),
        provider: Some(ProviderConfig { royalty_bps: args.royalty_bps, price: args.prices.prices() }),
        keep_epochs: 16,
        private: !args.no_private,
    };
    let tokenizer = Arc::clone(model.tokenizer());
    let running =
        worker::start(config, engine.clone(), tokenizer, Arc::new(chain), listener).await.map_err(|e| wrong(&e))?;
    println!("worker {} serves on http://{}", running.operator(), running.address());
    let reason = shutdown::requested().await?;
    tracing::info!(reason, "the worker stops");
    running.stop(GRACE).await;
    engine.shutdown();
    Ok(())
}

/// The peer's loop has no end of its own; it ends with the process.
async fn join(args: &ServeArgs, model: LoadedModel) -> Result<(), CliError> {
    let config = PeerConfig {
        listen: args.listen,
        secret: args.split_secret.clone(),
        threads: args.threads,
        backend: args.backend.kind(),
    };
    println!("waits for a leader on {}", args.listen);
    let peer = tokio::task::spawn_blocking(move || run_peer(config, model));
    tokio::select! {
        ended = peer => match ended {
            Ok(result) => result.map_err(|e| CliError::role("peer", e)),
            Err(error) => Err(CliError::role("peer", error)),
        },
        reason = shutdown::requested() => reason.map(|_| ()),
    }
}
