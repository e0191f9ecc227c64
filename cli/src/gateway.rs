//! `polylink gateway`: the OpenAI endpoint over the workers that the chain knows, and its API keys.

use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polylink_inference_server::gateway::keys::ApiKeys;
use polylink_inference_server::gateway::{self, GatewayConfig, GatewayModel, PriceLimit};
use polylink_inference_server::http::FrontLimits;
use polylink_inference_server::http::local::TextModel;
use polylink_inference_server::http::server;
use polylink_inference_server::model::{Computation, KvDtype, Precision, kv_dtype_name};
use polylink_protocol::Amount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::{ModelProfile, TokenPrices};

use crate::chain::{RpcArgs, parse_amount};
use crate::error::CliError;
use crate::files;
use crate::home::Home;
use crate::keys::{Keyring, Kind, random_bytes};
use crate::models;
use crate::output::Output;
use crate::serve::GRACE;
use crate::shutdown;

/// A user's session with a gateway expires this many epochs after its opening.
pub const USER_EXPIRY_EPOCHS: u64 = 90_000;

/// `polylink gateway`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  polylink gateway --key gateway --listen 127.0.0.1:8080 --model nano
  polylink gateway key new alice --from user --deposit 10plk    an API key that spends alice's session"
)]
pub struct GatewayArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Account of the keyring: pays workers, is paid by users
    #[arg(long, env = "POLYLINK_KEY", default_value = "gateway")]
    key: String,
    /// Where to listen; port 0 takes a free one
    #[arg(long, env = "POLYLINK_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Folder or GGUF of a model that it can offer, or the name of one in ./models, or ID=FOLDER where workers serve it under
    /// another id; once per model. Only workers of exactly these weights are asked
    #[arg(long, env = "POLYLINK_MODEL", default_value = "nano")]
    model: Vec<String>,
    /// Deposit of each session with a worker; also what is added when little is left
    #[arg(long, value_parser = parse_amount, default_value = "100plk")]
    deposit: Amount,
    /// Answers that may be unpaid at a worker
    #[arg(long, default_value_t = 64)]
    window: u32,
    /// Epochs from a session's opening to its expiry
    #[arg(long, default_value_t = 1_000)]
    expiry_epochs: u64,
    /// Open private sessions with workers: no judge sees what users ask and get, and none audits it
    #[arg(long)]
    private: bool,
    /// Ask no worker that wants more than so many times the model's registered price
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    max_price_factor: u64,
    /// Instead: ask no worker that wants more uplk for 1,000 prompt/cached/completion tokens than this, such as 20/5/60
    #[arg(long, value_parser = parse_prices, conflicts_with = "max_price_factor")]
    max_price: Option<TokenPrices>,
    /// The most in deposits that may be at stake in reports of receipts that workers have omitted; 0: report none
    #[arg(long, value_parser = parse_amount, default_value = "1plk")]
    max_report_deposits: Amount,
    /// Answers under way at once; more get 429
    #[arg(long, default_value_t = 256)]
    max_answers: usize,
    #[command(flatten)]
    rpc: RpcArgs,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// API keys of the gateway in this home
    #[command(subcommand)]
    Key(KeyAction),
}

#[derive(Subcommand, Debug)]
enum KeyAction {
    /// Make an API key, charged to a new session of an account
    New {
        /// For people
        name: String,
        /// Account of the keyring that pays
        #[arg(long, default_value = "user")]
        from: String,
        /// Deposit of its session with the gateway
        #[arg(long, value_parser = parse_amount, default_value = "10plk")]
        deposit: Amount,
        /// The most that the key may spend [default: the session]
        #[arg(long, value_parser = parse_amount)]
        budget: Option<Amount>,
        /// Requests per minute; 0: no limit
        #[arg(long, default_value_t = 0)]
        rate: u32,
        /// The gateway's account
        #[arg(long, default_value = "gateway")]
        gateway: String,
        #[command(flatten)]
        rpc: RpcArgs,
    },
}

/// Three prices, as `prompt/cached/completion`.
fn parse_prices(text: &str) -> Result<TokenPrices, String> {
    let prices: Vec<u64> = text.split('/').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
    match prices[..] {
        [prompt, cached_prompt, completion] => Ok(TokenPrices { prompt, cached_prompt, completion }),
        _ => Err("three whole numbers are expected: prompt/cached/completion, such as 20/5/60".into()),
    }
}

/// Where the keys of a gateway lie.
pub fn api_keys_file(home: &Home, key: &str) -> PathBuf {
    home.service(key).join("api-keys.json")
}

/// What a new API key is to be.
pub struct NewKey<'a> {
    /// For people.
    pub name: &'a str,
    /// Who pays.
    pub from: &'a str,
    /// The gateway's account.
    pub gateway: &'a str,
    /// Into the session's escrow.
    pub deposit: Amount,
    /// The most that it may spend.
    pub budget: Option<Amount>,
    /// Requests per minute.
    pub rate: u32,
}

/// Opens the session and makes the key.
pub async fn new_api_key(
    home: &Home,
    chain: &polylink_protocol::client::ChainClient,
    new: &NewKey<'_>,
) -> Result<String, CliError> {
    let wrong = |e: &dyn std::fmt::Display| CliError::role("gateway", e);
    let ring = Keyring::new(home.path());
    let (user, gateway) = (ring.account(new.from)?, ring.account(new.gateway)?.address());
    let expiry = chain.epoch().await?.0 + USER_EXPIRY_EPOCHS;
    let session = gateway::open_user_session(chain, &user, &gateway, new.deposit, random_bytes()?, expiry).await;
    files::create_dir(&home.service(new.gateway))?;
    let keys = ApiKeys::open(&api_keys_file(home, new.gateway)).map_err(|e| wrong(&e))?;
    keys.create(new.name, new.budget, new.rate, Some(session.map_err(|e| wrong(&e))?)).map_err(|e| wrong(&e))
}

/// Every profile that the folders stand for: one per precision, from their own weights.
fn text_models(names: &[String]) -> Result<Vec<GatewayModel>, CliError> {
    let mut found = Vec::new();
    for name in names {
        let (id, folder) = match name.split_once('=') {
            Some((id, folder)) if !models::resolve(name).exists() => (Some(id), models::resolve(folder)),
            _ => (None, models::resolve(name)),
        };
        let (model, profile) = models::open(&folder, Precision::F32, id)?;
        let text = TextModel::of(&model);
        // Only the profile's word on how it is computed differs: the files are the same.
        let precisions = std::iter::once(Precision::F32).chain(model.other_precisions().iter().copied());
        let caches = [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8];
        let computations = precisions.flat_map(|precision| caches.map(|kv_dtype| Computation { precision, kv_dtype }));
        found.extend(computations.map(|computation| GatewayModel {
            profile: ModelProfile {
                id: id.map_or_else(|| models::profile_id(&folder, computation), str::to_owned),
                weight_quantization: match profile.weight_quantization.as_str() {
                    "none" => computation.precision.weight_quantization().into(),
                    of_the_files => of_the_files.into(),
                },
                compute_dtype: match computation.precision {
                    Precision::F32 => profile.compute_dtype.clone(),
                    other => other.compute_dtype().into(),
                },
                kv_dtype: kv_dtype_name(computation.kv_dtype).into(),
                numerics: computation.precision.numerics().into(),
                ..profile.clone()
            },
            text: text.clone(),
        }));
    }
    Ok(found)
}

/// Runs `polylink gateway`.
pub async fn run(args: &GatewayArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let home_layout = Home::new(home)?;
    if let Some(Action::Key(KeyAction::New { name, from, deposit, budget, rate, gateway, rpc })) = &args.action {
        let new = NewKey { name, from, gateway, deposit: *deposit, budget: *budget, rate: *rate };
        let key = new_api_key(&home_layout, &rpc.client(home)?, &new).await?;
        output.value(&json!({"name": name, "api_key": key}));
        return Ok(());
    }
    let wrong = |e: &dyn std::fmt::Display| CliError::role("gateway", e);
    let ring = Keyring::new(home);
    let spend = format!("{}-spend", args.key);
    ring.ensure(&spend, Kind::Service)?;
    let chain = args.rpc.client(home)?;
    let config = GatewayConfig {
        account: ring.account(&args.key)?,
        spend_key: ServiceKey::from_bytes(&ring.service_secret(&spend)?),
        deposit: args.deposit,
        window: args.window,
        expiry_epochs: args.expiry_epochs,
        private: args.private,
        max_price: args.max_price.map_or(PriceLimit::Factor(args.max_price_factor), PriceLimit::Fixed),
        report_stake_max: args.max_report_deposits,
        journal: home_layout.service(&args.key),
        api_keys: api_keys_file(&home_layout, &args.key),
        limits: FrontLimits { answers_max: args.max_answers, ..FrontLimits::default() },
    };
    let models = text_models(&args.model)?;
    let listener = server::bind(args.listen).await.map_err(|e| wrong(&e))?;
    let running = gateway::start(config, models, Arc::new(chain), listener).await.map_err(|e| wrong(&e))?;
    println!("http://{}/v1", running.address());
    let reason = shutdown::requested().await?;
    tracing::info!(reason, "the gateway stops");
    running.stop(GRACE).await;
    Ok(())
}
