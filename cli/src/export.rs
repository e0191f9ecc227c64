//! `polylink export`: the ledger's newest state as a genesis document that another chain can go on from.

use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

use polylink_abci_app::chain::{SCHEMA_VERSION, constants, last_time};
use polylink_abci_app::export::export;
use polylink_abci_app::store::Store;

use crate::error::CliError;
use crate::home::Home;

/// `polylink export`.
#[derive(Args, Debug)]
#[command(after_help = "\
The node must be stopped. Put `chain_id`, `initial_height`, `genesis_time` and `app_state` of what is printed into the
genesis.json of every node of the new chain, leave `validators` empty, and start them with empty data directories.")]
pub struct ExportArgs {
    /// Id of the new chain [default: the old one's]
    #[arg(long)]
    chain_id: Option<String>,
    /// Directory of the ledger's database [default: that of this home]
    #[arg(long)]
    data: Option<PathBuf>,
}

/// Runs `polylink export`.
pub fn run(args: &ExportArgs, home: &Path) -> Result<(), CliError> {
    let data = match &args.data {
        Some(data) => data.clone(),
        None => Home::new(home)?.ledger(),
    };
    if !data.is_dir() {
        return Err(CliError::file(&data, "no ledger is there; name its directory with --data"));
    }
    let store = Store::open(&data, SCHEMA_VERSION).map_err(|error| CliError::file(&data, error))?;
    let state = store.snapshot();
    let empty = || CliError::file(&data, "no block has been committed there");
    let constants = constants(&state).ok_or_else(empty)?;
    let app_state = export(&state).map_err(|error| CliError::file(&data, error))?;
    let document = json!({
        "chain_id": args.chain_id.clone().unwrap_or(constants.chain_id),
        "genesis_time": last_time(&state).rfc3339(),
        "initial_height": (state.height() + 1).to_string(),
        "validators": [],
        "app_state": app_state,
    });
    println!("{document}");
    Ok(())
}
