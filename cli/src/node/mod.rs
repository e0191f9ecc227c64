//! `polylink node`: CometBFT, the ledger and the bridge (REST, gRPC) as children of one supervisor.
//!
//! The ledger is started first and stopped last: a node whose application goes away while it is stopping can hang.

mod comet;
mod ledger;

use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polylink_protocol::client::ChainClient;

use crate::error::CliError;
use crate::files;
use crate::home::{Home, choose_ports};
use crate::rest;
use crate::shutdown;
use crate::supervise::{Role, Supervisor};

pub use comet::{
    NodeSettings, ensure_keys, environment, find_binary, find_tool, node_id, parse_peers, write_config, write_genesis,
};
pub use ledger::{LedgerArgs, ledger};

/// From SIGTERM to SIGKILL for node and ledger.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a node with peers waits for enough of them.
const PEERS_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long the node may take until it commits a block.
pub const START_DEADLINE: Duration = Duration::from_secs(60);

/// `polylink node`.
#[derive(Args, Debug)]
#[command(after_help = "\
The first start needs a genesis document; later ones use the one in HOME/node. `polylink up` makes a genesis of its own.

Example: polylink node --genesis genesis.json --rpc-port 26657")]
pub struct NodeArgs {
    /// Genesis document of the chain, for the first start
    #[arg(long)]
    genesis: Option<PathBuf>,
    /// Port of the RPC on loopback [default: a free one]
    #[arg(long, env = "POLYLINK_RPC_PORT")]
    rpc_port: Option<u16>,
    /// Port for peers on loopback [default: a free one]
    #[arg(long, env = "POLYLINK_P2P_PORT")]
    p2p_port: Option<u16>,
    /// Port of the REST for wallets, on loopback [default: a free one]
    #[arg(long, env = "POLYLINK_REST_PORT")]
    rest_port: Option<u16>,
    /// Port of the gRPC for wallets and relayers, on loopback [default: a free one]
    #[arg(long, env = "POLYLINK_GRPC_PORT")]
    grpc_port: Option<u16>,
    /// Pause after each block, in milliseconds
    #[arg(long, env = "POLYLINK_BLOCK_TIME_MS", default_value_t = 1_000)]
    block_time_ms: u64,
    /// Other nodes of the chain, ID@HOST:PORT, by commas
    #[arg(long, env = "POLYLINK_PEERS", default_value = "", value_parser = parse_peers)]
    peers: String,
    /// CometBFT's binary [default: on PATH, else built into the cache]
    #[arg(long, env = "POLYLINK_COMETBFT")]
    cometbft: Option<PathBuf>,
}

/// The two children, in the order of their start.
pub fn roles(home: &Home, binary: &Path) -> Result<[Role; 2], CliError> {
    let program = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
    let text = |path: &Path| path.display().to_string();
    let ledger = Role {
        name: "ledger".into(),
        program,
        args: vec!["ledger".into(), "--home".into(), text(home.path())],
        env: vec![],
        log: home.log("ledger"),
        stop_deadline: STOP_DEADLINE,
    };
    let node = Role {
        name: "node".into(),
        program: binary.to_owned(),
        args: vec!["start".into(), "--home".into(), text(&home.node())],
        env: environment(),
        log: home.log("node"),
        stop_deadline: STOP_DEADLINE,
    };
    Ok([ledger, node])
}

/// Starts both and waits for the chain's height to grow, for so long at most, calling `progress` meanwhile.
pub async fn start(
    supervisor: &mut Supervisor,
    home: &Home,
    binary: &Path,
    rpc: &str,
    patience: Duration,
    mut progress: impl FnMut(&str),
) -> Result<ChainClient, CliError> {
    let [ledger, node] = roles(home, binary)?;
    let deadline = tokio::time::Instant::now() + patience;
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    supervisor.start(ledger)?;
    while tokio::net::UnixStream::connect(home.socket()).await.is_err() {
        supervisor.check(2)?;
        if tokio::time::Instant::now() > deadline {
            return Err(CliError::role("ledger", format!("does not listen; see {}", home.log("ledger").display())));
        }
        pause().await;
    }
    progress("ledger listens");
    supervisor.start(node)?;
    let chain = ChainClient::new(rpc)?;
    let mut first = None;
    loop {
        if let Ok(status) = chain.status().await
            && status.height > *first.get_or_insert(status.height)
        {
            progress(&format!("node commits blocks (height {})", status.height));
            return Ok(chain);
        }
        supervisor.check(3)?;
        if tokio::time::Instant::now() > deadline {
            let reason = format!("no new block within {} s; see {}", patience.as_secs(), home.log("node").display());
            return Err(CliError::role("node", reason));
        }
        pause().await;
    }
}

/// Runs `polylink node`.
pub async fn run(args: &NodeArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    home.create()?;
    let _lock = home.lock()?.ok_or_else(|| {
        CliError::role("node", format!("something runs in {} already; see `polylink status`", home.path().display()))
    })?;
    let binary = find_binary(args.cometbft.as_deref())?;
    ensure_keys(&home.node())?;
    let genesis = home.node().join("config/genesis.json");
    match (&args.genesis, genesis.exists()) {
        (Some(given), false) => {
            let document: serde_json::Value = files::read_json(given)?;
            files::write_json(&genesis, &document)?;
        }
        (None, false) => {
            return Err(CliError::file(
                &genesis,
                "no genesis document yet; give one with --genesis, or use `polylink up`, which makes one",
            ));
        }
        (_, true) => {}
    }
    let ports = choose_ports(&[
        ("rpc", args.rpc_port),
        ("p2p", args.p2p_port),
        ("rest", args.rest_port),
        ("grpc", args.grpc_port),
    ])?;
    let settings = NodeSettings {
        rpc_port: ports["rpc"],
        p2p_port: ports["p2p"],
        socket: home.socket(),
        block_time_ms: args.block_time_ms,
        peers: args.peers.clone(),
    };
    write_config(&home.node(), &settings)?;
    let rpc = format!("http://127.0.0.1:{}", settings.rpc_port);
    let mut supervisor = Supervisor::new(&home.state(), false);
    let result = tokio::select! {
        result = live(args, &home, &binary, &rpc, [ports["rest"], ports["grpc"]], &mut supervisor) => result,
        reason = shutdown::requested() => reason.map(|_| ()),
    };
    supervisor.stop().await;
    result
}

/// Starts both and goes on until it is dropped.
async fn live(
    args: &NodeArgs,
    home: &Home,
    binary: &Path,
    rpc: &str,
    [rest_port, grpc_port]: [u16; 2],
    supervisor: &mut Supervisor,
) -> Result<(), CliError> {
    let patience = if args.peers.is_empty() { START_DEADLINE } else { PEERS_DEADLINE };
    start(supervisor, home, binary, rpc, patience, |line| println!("{line}")).await?;
    supervisor.start(rest::role(home, rpc, rest_port, grpc_port)?)?;
    supervisor.set_ready();
    println!(
        "RPC: {rpc}\nREST: http://127.0.0.1:{rest_port}\ngRPC: 127.0.0.1:{grpc_port}\nCtrl-C stops node and ledger."
    );
    std::future::pending().await
}
