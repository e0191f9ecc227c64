//! The ledger as a process of its own: CometBFT connects to its socket.

use clap::Args;
use std::path::Path;

use polylink_abci_app::app::{NodeConfig, serve};
use polylink_abci_app::server::Address;

use crate::error::CliError;
use crate::home::Home;
use crate::shutdown;

/// `polylink ledger`.
#[derive(Args, Debug)]
pub struct LedgerArgs {
    /// Blocks that CometBFT keeps behind the newest; 0 keeps all
    #[arg(long, default_value_t = 0)]
    retain_blocks: u64,
}

/// Runs `polylink ledger`.
pub async fn ledger(args: &LedgerArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    home.create()?;
    let wrong = |e: &dyn std::fmt::Display| CliError::role("ledger", e);
    let address: Address = format!("unix://{}", home.socket().display()).parse().map_err(|e| wrong(&e))?;
    let mut config = NodeConfig::new(home.ledger(), address);
    config.retain_blocks = args.retain_blocks;
    let handle = serve(&config).map_err(|e| wrong(&e))?;
    tracing::info!(address = %handle.address(), "the ledger serves");
    let reason = shutdown::requested().await?;
    tracing::info!(reason, "the ledger stops");
    // The server's threads are joined; that must not hold up the runtime's.
    tokio::task::spawn_blocking(move || handle.shutdown()).await.map_err(|e| wrong(&e))
}
