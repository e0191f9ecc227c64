//! `polylink up`: a whole network on this machine under one supervisor, one answered question, and how to go on.
//!
//! The first start makes keys, ports and a genesis; later ones continue the same chain. Every role is a process of its
//! own, so that any of them can die and be started again.

mod ask;
mod detach;
mod genesis;
mod setup;

use clap::Args;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polylink_protocol::client::ChainClient;

use crate::error::CliError;
use crate::home::{Home, Network, check_ports};
use crate::keys::Keyring;
use crate::models::PrecisionArgs;
use crate::node::{self, NodeSettings, find_binary, write_config};
use crate::rest;
use crate::serve::PriceArgs;
use crate::shutdown;
use crate::status::answers;
use crate::supervise::{Role, Supervisor};

pub use genesis::{JUDGES, chain_id as new_chain_id, now as genesis_time};

/// How long a service may take until it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(90);
/// From SIGTERM to SIGKILL for services, which let running answers end.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// `polylink up`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink up                                   in ~/.polylink, until Ctrl-C
  polylink up --home /tmp/net --detach          in the background; then: polylink status --home /tmp/net --json
  polylink up --block-time-ms 300               faster epochs, for trying things out

Ports are free ones unless given, and stay the same in a home.")]
pub struct UpArgs {
    /// Hugging Face folder or GGUF file of a model, or the name of one in ./models
    #[arg(long, env = "POLYLINK_MODEL", default_value = "nano")]
    model: String,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    prices: PriceArgs,
    /// Pause after each block, in milliseconds
    #[arg(long, env = "POLYLINK_BLOCK_TIME_MS", default_value_t = 800)]
    block_time_ms: u64,
    /// Blocks of an epoch, fixed at the first start
    #[arg(long, default_value_t = 20)]
    epoch_blocks: u64,
    /// Compute threads of the worker; 0: one per core
    #[arg(long, env = "POLYLINK_THREADS", default_value_t = 0)]
    threads: usize,
    /// Return once everything is healthy; `polylink down` stops it
    #[arg(long)]
    detach: bool,
    /// Do not ask a first question
    #[arg(long)]
    no_ask: bool,
    /// The first question
    #[arg(long, default_value = "What is 17 plus 25?")]
    question: String,
    /// Port of CometBFT's RPC
    #[arg(long, env = "POLYLINK_RPC_PORT")]
    rpc_port: Option<u16>,
    /// Port of CometBFT for peers
    #[arg(long, env = "POLYLINK_P2P_PORT")]
    p2p_port: Option<u16>,
    /// Port of the REST for wallets
    #[arg(long, env = "POLYLINK_REST_PORT")]
    rest_port: Option<u16>,
    /// Port of the gRPC for wallets and relayers
    #[arg(long, env = "POLYLINK_GRPC_PORT")]
    grpc_port: Option<u16>,
    /// Port of the OpenAI endpoint
    #[arg(long, env = "POLYLINK_GATEWAY_PORT")]
    gateway_port: Option<u16>,
    /// Port of the worker
    #[arg(long, env = "POLYLINK_WORKER_PORT")]
    worker_port: Option<u16>,
    /// CometBFT's binary [default: on PATH, else built into the cache]
    #[arg(long, env = "POLYLINK_COMETBFT")]
    cometbft: Option<PathBuf>,
}

/// Says what happens, with the seconds since the start.
struct Progress(Instant);

impl Progress {
    fn say(&self, line: impl std::fmt::Display) {
        println!("[{:5.1} s] {line}", self.0.elapsed().as_secs_f64());
    }
}

/// Runs `polylink up`.
pub async fn run(args: &UpArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    home.create()?;
    let lock = home.lock()?.ok_or_else(|| {
        let reason = format!(
            "a network runs in {} already; see `polylink status`, or stop it with `polylink down`",
            home.path().display()
        );
        CliError::role("up", reason)
    })?;
    if args.detach {
        drop(lock);
        return detach::start(&home).await;
    }
    let progress = Progress(Instant::now());
    let binary = find_binary(args.cometbft.as_deref())?;
    progress.say(format_args!("home {}", home.path().display()));
    let network = setup::prepare(args, &home, &progress)?;
    check_ports(&network.ports)?;
    let settings = NodeSettings {
        rpc_port: network.port("rpc")?,
        p2p_port: network.port("p2p")?,
        socket: home.socket(),
        block_time_ms: args.block_time_ms,
        peers: String::new(),
    };
    write_config(&home.node(), &settings)?;
    let mut supervisor = Supervisor::new(&home.state(), false);
    let result = tokio::select! {
        result = live(args, &home, network, &binary, &mut supervisor, &progress) => result,
        reason = shutdown::requested() => reason.map(|reason| progress.say(format_args!("{reason}: stopping in order"))),
    };
    supervisor.stop().await;
    progress.say("stopped; `polylink up` continues the same chain");
    drop(lock);
    result
}

/// Starts all roles, shows that they work, and goes on until it is dropped.
async fn live(
    args: &UpArgs,
    home: &Home,
    network: Network,
    binary: &Path,
    supervisor: &mut Supervisor,
    progress: &Progress,
) -> Result<(), CliError> {
    let (rpc, patience) = (network.url("rpc")?, node::START_DEADLINE);
    let chain = node::start(supervisor, home, binary, &rpc, patience, |line| progress.say(line)).await?;
    supervisor.start(rest::role(home, &rpc, network.port("rest")?, network.port("grpc")?)?)?;
    let trusted = ask::trusted_header(&chain, home).await?;
    let network = start_services(args, home, network, &chain, supervisor, progress).await?;
    supervisor.set_ready();
    progress.say("everything is healthy");
    let asked =
        if args.no_ask { None } else { Some(ask::first_question(&network, &chain, home, &args.question).await?) };
    print_how_to_go_on(home, &network)?;
    if let Some(asked) = asked {
        let (epoch, from) = (asked.epoch, trusted.signed_header.header.height);
        progress.say(format_args!("waiting until the worker has committed its receipts of epoch {epoch} on chain …"));
        let receipt = home.path().join("receipts/first.json");
        match ask::verify_fully(&network, &chain, home, asked, &trusted).await {
            Ok(height) => progress.say(format_args!(
                "the receipt is fully verified: committed for epoch {epoch}, proved by the header of height {height}, \
                 followed from the one of height {from} that was trusted at the start: {}",
                receipt.display()
            )),
            // The network serves all the same, and its operator can look at it only while it runs.
            Err(error) => progress.say(format_args!("the receipt is NOT verified: {error}")),
        }
    }
    println!("\nCtrl-C stops everything.");
    std::future::pending().await
}

async fn start_services(
    args: &UpArgs,
    home: &Home,
    network: Network,
    chain: &ChainClient,
    supervisor: &mut Supervisor,
    progress: &Progress,
) -> Result<Network, CliError> {
    let worker = network.url("worker")?;
    supervisor.start(service(home, "worker", worker_args(args, &network)?)?)?;
    for number in 1..=JUDGES {
        let name = format!("judge-{number}");
        supervisor.start(service(home, &name, judge_args(args, &name))?)?;
    }
    ready(supervisor, "worker", &worker, home).await?;
    progress.say("worker is registered and serves");
    let network = setup::ensure_api_key(home, network, chain).await?;
    let gateway = network.url("gateway")?;
    supervisor.start(service(home, "gateway", gateway_args(args, &network)?)?)?;
    ready(supervisor, "gateway", &gateway, home).await?;
    progress.say("gateway answers");
    Ok(network)
}

fn service(home: &Home, name: &str, mut args: Vec<String>) -> Result<Role, CliError> {
    args.extend(["--home".into(), home.path().display().to_string()]);
    Ok(Role {
        name: name.into(),
        program: std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?,
        args,
        env: vec![],
        log: home.log(name),
        stop_deadline: STOP_DEADLINE,
    })
}

fn model_args(args: &UpArgs) -> Vec<String> {
    let mut list = vec!["--model".to_owned(), args.model.clone()];
    list.extend(args.precision.flags());
    list
}

fn worker_args(args: &UpArgs, network: &Network) -> Result<Vec<String>, CliError> {
    let mut list = vec!["serve".into(), "--key".into(), "worker".into()];
    list.extend(["--listen".into(), format!("127.0.0.1:{}", network.port("worker")?)]);
    list.extend(["--threads".into(), args.threads.to_string()]);
    for (flag, price) in [
        ("--price-prompt", args.prices.price_prompt),
        ("--price-cached", args.prices.price_cached),
        ("--price-completion", args.prices.price_completion),
    ] {
        list.extend([flag.into(), price.to_string()]);
    }
    list.extend(model_args(args));
    Ok(list)
}

fn judge_args(args: &UpArgs, name: &str) -> Vec<String> {
    let mut list: Vec<String> = ["judge", "--key", name].map(String::from).to_vec();
    list.extend(model_args(args));
    list
}

fn gateway_args(args: &UpArgs, network: &Network) -> Result<Vec<String>, CliError> {
    let mut list = vec!["gateway".into(), "--key".into(), "gateway".into()];
    list.extend(["--listen".into(), format!("127.0.0.1:{}", network.port("gateway")?)]);
    list.extend(["--model".into(), args.model.clone()]);
    Ok(list)
}

/// Waits until a service's `/ready` answers 200.
async fn ready(supervisor: &Supervisor, name: &str, url: &str, home: &Home) -> Result<(), CliError> {
    let http = reqwest::Client::new();
    let deadline = Instant::now() + READY_DEADLINE;
    while !answers(&http, &format!("{url}/ready")).await {
        supervisor.check(3)?;
        if Instant::now() > deadline {
            let why = match http.get(format!("{url}/ready")).send().await {
                Ok(response) => response.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            let reason =
                format!("not ready within {} s: {why}; see {}", READY_DEADLINE.as_secs(), home.log(name).display());
            return Err(CliError::role(name, reason));
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(())
}

fn print_how_to_go_on(home: &Home, network: &Network) -> Result<(), CliError> {
    let (endpoint, key, model) = (network.endpoint()?, &network.api_key, &network.model);
    let user = Keyring::new(home.path()).account("user")?.address();
    let directory = home.path().display();
    let program = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
    let program = program.display();
    // Snippets stand at the line's start, so that they run as they are copied.
    println!(
        "
  endpoint   {endpoint}
  API key    {key}
  model      {model}
  metrics    {gateway}/metrics (gateway), {worker}/metrics (worker)
  RPC        {rpc} (chain {chain})
  REST       {rest} (what wallets ask; `query suggest-chain` tells them of the chain)
  gRPC       127.0.0.1:{grpc} (the same, with reflection)
  account    user, {user}, funded; its key is in {directory}/keys

  Ask it from a shell:

curl {endpoint}/chat/completions -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is 2 plus 3?\"}}]}}'

  Ask it from Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url=\"{endpoint}\", api_key=\"{key}\")
question = [{{\"role\": \"user\", \"content\": \"What is 2 plus 3?\"}}]
print(client.chat.completions.create(model=\"{model}\", messages=question).choices[0].message.content)

  Look at it:

{program} --home {directory} status
{program} --home {directory} query epoch
",
        gateway = network.url("gateway")?,
        worker = network.url("worker")?,
        rpc = network.url("rpc")?,
        rest = network.url("rest")?,
        grpc = network.port("grpc")?,
        chain = network.chain_id,
    );
    Ok(())
}
