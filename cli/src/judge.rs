//! `polylink judge`: audits rounds (beacon, seat, disclosure, scores) and votes in trials.

use clap::Args;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use polylink_inference_server::engine::{Engine, EngineConfig, KvCacheSize};
use polylink_judge::llm::Endpoint;
use polylink_judge::service::{self, JudgeConfig};
use polylink_judge::{Auditor, AuditorConfig, HeldModel};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::tiqe::VrfKey;

use crate::chain::RpcArgs;
use crate::error::CliError;
use crate::home::Home;
use crate::keys::Keyring;
use crate::models::{self, PrecisionArgs};
use crate::serve::{GRACE, serve_local, text_model};
use crate::shutdown;

/// `polylink judge`.
#[derive(Args, Debug)]
#[command(after_help = "\
A judge needs an account of the keyring (--key NAME) with the service keys NAME-vrf and NAME-disclosure, registered on
chain; `polylink up` makes three of them.

Example: polylink judge --key judge-1 --model nano --llm-endpoint http://127.0.0.1:8000/v1 --llm-model polylink/nano")]
pub struct JudgeArgs {
    /// Account of the keyring
    #[arg(long, env = "POLYLINK_KEY", default_value = "judge-1")]
    key: String,
    /// Folder or GGUF of the declared model that it replays, or the name of one in ./models
    #[arg(long, env = "POLYLINK_MODEL", default_value = "nano")]
    model: String,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Name of the profile [default: polylink/FOLDER@1]
    #[arg(long)]
    id: Option<String>,
    /// Folder of the cross-encoder [default: models/cross-encoder]
    #[arg(long)]
    cross_encoder: Option<PathBuf>,
    /// The language-model judge's prompt [default: models/judge_prompt.json]
    #[arg(long)]
    rubric: Option<PathBuf>,
    /// Any OpenAI endpoint as language-model judge [default: an engine of its own with the same model]
    #[arg(long, env = "POLYLINK_LLM_ENDPOINT", requires = "llm_model")]
    llm_endpoint: Option<String>,
    /// Model's name there
    #[arg(long)]
    llm_model: Option<String>,
    /// Bearer key there
    #[arg(long, env = "POLYLINK_LLM_API_KEY", hide_env_values = true)]
    llm_api_key: Option<String>,
    /// Share of answers that the language model judges in any case, in basis points
    #[arg(long, default_value_t = 2_500)]
    llm_fraction_bps: u32,
    /// Compute threads of a replay; 0: one per core
    #[arg(long, env = "POLYLINK_THREADS", default_value_t = 1)]
    threads: usize,
    /// How often the chain is looked at, in milliseconds
    #[arg(long, default_value_t = 250)]
    poll_ms: u64,
    #[command(flatten)]
    rpc: RpcArgs,
}

/// Runs `polylink judge`.
pub async fn run(args: &JudgeArgs, home: &Path) -> Result<(), CliError> {
    let wrong = |e: &dyn std::fmt::Display| CliError::role(&args.key, e);
    let ring = Keyring::new(home);
    let account = ring.account(&args.key)?;
    let chain = args.rpc.client(home)?;
    let folder = models::resolve(&args.model);
    let computation = args.precision.computation()?;
    let id = args.id.clone().unwrap_or_else(|| models::profile_id(&folder, computation));
    let (endpoint, own) = match &args.llm_endpoint {
        Some(url) => {
            let model = args.llm_model.clone().unwrap_or_default();
            (Endpoint { url: url.clone(), model, api_key: args.llm_api_key.clone() }, None)
        }
        None => {
            let (model, profile) = models::open(&folder, computation, Some(&id))?;
            let config = EngineConfig {
                threads: args.threads,
                max_running: 8,
                kv_cache: KvCacheSize::Bytes(32 << 20),
                ..EngineConfig::default()
            };
            let engine = Engine::start(model.clone(), config).map_err(|e| wrong(&e))?;
            let name = profile.id.split('@').next().unwrap_or_default().to_owned();
            if model.chat_template().is_none() {
                return Err(CliError::value("--llm-model", format!("{} has no chat template", folder.display())));
            }
            let text = text_model(&model, &engine);
            let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let server = serve_local(engine.clone(), text, name.clone(), any_port).await?;
            let url = format!("http://{}/v1", server.address());
            (Endpoint { url, model: name, api_key: None }, Some((server, engine)))
        }
    };
    let own_models = models::models_folder();
    let config = AuditorConfig {
        models: vec![HeldModel { folder, computation, id }],
        cross_encoder: args.cross_encoder.clone().unwrap_or_else(|| own_models.join("cross-encoder")),
        rubric: args.rubric.clone().unwrap_or_else(|| own_models.join("judge_prompt.json")),
        endpoint: Some(endpoint),
        llm_fraction_bps: args.llm_fraction_bps,
        threads: args.threads,
    };
    let auditor = tokio::task::spawn_blocking(move || Auditor::open(&config)).await.map_err(|e| wrong(&e))?;
    let auditor = auditor.map_err(|e| wrong(&e))?;
    let judge = JudgeConfig {
        vrf: VrfKey::from_bytes(&ring.service_secret(&format!("{}-vrf", args.key))?),
        disclosure: ServiceKey::from_bytes(&ring.service_secret(&format!("{}-disclosure", args.key))?),
        account,
        home: Home::new(home)?.service(&args.key),
        poll: Duration::from_millis(args.poll_ms.max(50)),
    };
    println!("{} audits", args.key);
    let shutdown = async {
        // Signals that cannot be watched end the judge at once, which is what can still be done.
        let _reason = shutdown::requested().await.is_ok();
    };
    let result = service::run(judge, chain, auditor, shutdown).await.map_err(|e| wrong(&e));
    if let Some((server, engine)) = own {
        server.stop(GRACE).await;
        engine.shutdown();
    }
    result
}
