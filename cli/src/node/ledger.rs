//! The ledger as a process of its own: CometBFT connects to its socket.

use clap::Args;
use std::path::Path;

use crate::error::CliError;
use crate::home::Home;
use crate::shutdown;

/// `polylink ledger`.
#[derive(Args, Debug)]
pub struct LedgerArgs {}

/// Runs `polylink ledger`.
pub async fn ledger(_: &LedgerArgs, home: &Path) -> Result<(), CliError> {
    let home = Home::new(home)?;
    home.create()?;
    shutdown::requested().await?;
    Err(CliError::role("ledger", "not wired"))
}
