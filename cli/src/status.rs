//! `polylink status` and `polylink down`: what the network in a home says of itself, and its end.

use clap::Args;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

use polylink_protocol::client::ChainClient;

use crate::error::CliError;
use crate::files;
use crate::home::{Home, Network};
use crate::output::Output;
use crate::supervise::{State, terminate};

/// `polylink status`.
#[derive(Args, Debug)]
#[command(after_help = "Example: polylink status --json | jq -r .endpoint")]
pub struct StatusArgs {}

/// `polylink down`.
#[derive(Args, Debug)]
pub struct DownArgs {
    /// Seconds until it is an error that the network still runs
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// True where an HTTP service answers 200 at a path.
pub async fn answers(http: &reqwest::Client, url: &str) -> bool {
    let response = http.get(url).timeout(Duration::from_secs(3)).send().await;
    response.is_ok_and(|r| r.status().is_success())
}

/// What is known of the network: addresses, roles, health.
pub async fn collect(home: &Home) -> Result<Value, CliError> {
    let network = home.require_network()?;
    let running = home.lock()?.is_none();
    let state: State = if running { files::read_json(&home.state()).unwrap_or_default() } else { State::default() };
    let rpc = network.url("rpc")?;
    let (mut height, mut ready) = (None, false);
    if running {
        height = ChainClient::new(&rpc)?.status().await.ok().map(|s| s.height);
        ready = answers(&reqwest::Client::new(), &format!("{}/ready", network.url("gateway")?)).await;
    }
    let all_run = !state.roles.is_empty() && state.roles.iter().all(|r| r.state == "running");
    let health = match (running, height.is_some() && ready && all_run) {
        (false, _) => "stopped",
        (true, true) => "ok",
        (true, false) if state.phase == "starting" => "starting",
        (true, false) => "degraded",
    };
    describe(&network, &rpc, &state, height, health)
}

fn describe(network: &Network, rpc: &str, state: &State, height: Option<u64>, health: &str) -> Result<Value, CliError> {
    Ok(json!({
        "health": health,
        "phase": state.phase,
        "endpoint": network.endpoint()?,
        "api_key": network.api_key,
        "model": network.model,
        "rpc": rpc,
        "rest": network.url("rest").ok(),
        "grpc": network.port("grpc").ok().map(|port| format!("127.0.0.1:{port}")),
        "metrics": format!("{}/metrics", network.url("gateway")?),
        "worker": network.url("worker")?,
        "chain_id": network.chain_id,
        "height": height,
        "profile": network.profile,
        "epoch_blocks": network.epoch_blocks,
        "pid": (state.pid != 0).then_some(state.pid),
        "roles": state.roles,
    }))
}

/// Runs `polylink status`.
pub async fn run(_: &StatusArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    output.value(&collect(&Home::new(home)?).await?);
    Ok(())
}

/// Runs `polylink down`.
pub async fn down(args: &DownArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    if home.lock()?.is_some() {
        println!("nothing runs in {}", home.path().display());
        return Ok(());
    }
    let state: State = files::read_json(&home.state())?;
    terminate(Some(state.pid));
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    while home.lock()?.is_none() {
        if Instant::now() > deadline {
            let reason =
                format!("process {} still runs after {} s; see {}", state.pid, args.timeout, home.log("up").display());
            return Err(CliError::role("supervisor", reason));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("stopped; `polylink up` continues the same chain");
    Ok(())
}
