//! The ledger as a process of its own: CometBFT connects to its socket.

use clap::Args;
use std::path::Path;
use std::time::Duration;

use polylink_abci_app::app::{NodeConfig, SNAPSHOT_INTERVAL, rollback, serve};
use polylink_abci_app::server::Address;

use crate::error::CliError;
use crate::files;
use crate::home::Home;
use crate::shutdown;
use crate::supervise::{self, State};

/// From SIGTERM to SIGKILL of a node that has no ledger or no supervisor any more.
const NODE_DEADLINE: Duration = Duration::from_secs(3);

/// `polylink ledger`.
#[derive(Args, Debug)]
pub struct LedgerArgs {
    /// Blocks that CometBFT keeps behind the newest; 0 keeps all
    #[arg(long, env = "POLYLINK_RETAIN_BLOCKS", default_value_t = 0)]
    retain_blocks: u64,
    /// Blocks between two snapshots for nodes that join by state sync; 0 takes none
    #[arg(long, env = "POLYLINK_SNAPSHOT_INTERVAL", default_value_t = SNAPSHOT_INTERVAL)]
    snapshot_interval: u64,
    /// Forget every block after this height and end: a chain's way out of a block that was executed wrongly
    #[arg(long, value_name = "HEIGHT")]
    rollback: Option<u64>,
    /// Heights whose planned upgrade is passed over, as all operators have agreed
    #[arg(long = "skip-upgrade", value_name = "HEIGHT", env = "POLYLINK_SKIP_UPGRADES", value_delimiter = ',')]
    skip_upgrades: Vec<u64>,
    /// Write down what the node asks, in HOME/requests, a file for each start
    #[arg(long, env = "POLYLINK_RECORD_REQUESTS")]
    record_requests: bool,
}

/// Runs `polylink ledger`.
pub async fn ledger(args: &LedgerArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    home.create()?;
    let wrong = |e: &dyn std::fmt::Display| CliError::role("ledger", e);
    // A node that runs already lost the ledger before this one: most end by themselves, some hang for good.
    node_first(&home).await;
    let address: Address = format!("unix://{}", home.socket().display()).parse().map_err(|e| wrong(&e))?;
    let mut config = NodeConfig::new(home.ledger(), address);
    config.retain_blocks = args.retain_blocks;
    config.skip_upgrades.clone_from(&args.skip_upgrades);
    config.snapshot_interval = args.snapshot_interval;
    config.record = args.record_requests.then(|| home.requests());
    if let Some(height) = args.rollback {
        rollback(&config, height).map_err(|e| wrong(&e))?;
        println!("the ledger is at height {height}");
        return Ok(());
    }
    let handle = serve(&config).map_err(|e| wrong(&e))?;
    tracing::info!(address = %handle.address(), "the ledger serves");
    let reason = shutdown::requested().await?;
    tracing::info!(reason, "the ledger stops");
    if reason == shutdown::ORPHANED {
        // Nobody else is left to stop the node first; one whose ledger goes away while it stops can hang for good.
        node_first(&home).await;
    }
    // The server's threads are joined; that must not hold up the runtime's.
    tokio::task::spawn_blocking(move || handle.shutdown()).await.map_err(|e| wrong(&e))
}

/// Ends this home's node, if it still runs: SIGTERM, and after a deadline SIGKILL.
async fn node_first(home: &Home) {
    let Ok(state) = files::read_json::<State>(&home.state()) else { return };
    let Some(pid) = state.roles.iter().find(|role| role.name == "node").and_then(|role| role.pid) else { return };
    let its_home = home.node().display().to_string();
    let runs = || {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        // The number may be another process's by now; and what nobody reaps stays as a zombie.
        read("cmdline").contains(&its_home) && !read("stat").contains(") Z ")
    };
    if !runs() {
        return;
    }
    supervise::terminate(Some(pid));
    let deadline = tokio::time::Instant::now() + NODE_DEADLINE;
    while runs() {
        if tokio::time::Instant::now() > deadline {
            tracing::warn!(pid, "the node does not end; it is killed");
            return supervise::kill(Some(pid));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
