//! The ledger as a process part: a store in a directory, served on a socket.

use std::path::PathBuf;

use crate::app::{App, SnapshotConfig, Snapshots};
use crate::chain::SCHEMA_VERSION;
use crate::server::{self, Address, Options, ServerError, ServerHandle};
use crate::store::{CHUNK_BYTES_MAX, Store, StoreError, StoreOptions};
use crate::upgrade::Upgrades;

/// Where a ledger lives.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The directory of its database; created where there is none.
    pub data: PathBuf,
    /// Where it listens for CometBFT.
    pub address: Address,
    /// Blocks that CometBFT keeps behind the newest; 0 keeps all. Evidence must stay provable for the unbonding time.
    pub retain_blocks: u64,
    /// Heights behind the newest that can be read and proved.
    pub keep_heights: u64,
    /// Blocks between two snapshots for nodes that join by state sync; 0 takes none.
    pub snapshot_interval: u64,
    /// Snapshots kept.
    pub snapshots_kept: usize,
    /// Heights whose planned upgrade is passed over.
    pub skip_upgrades: Vec<u64>,
    /// Where the node's requests are written down, a file for each life of the ledger.
    pub record: Option<PathBuf>,
}

/// Blocks between two snapshots, where nobody says otherwise.
pub const SNAPSHOT_INTERVAL: u64 = 1_000;

impl NodeConfig {
    /// With the defaults: all blocks, 100,000 heights, the two newest snapshots.
    pub fn new(data: impl Into<PathBuf>, address: Address) -> Self {
        NodeConfig {
            data: data.into(),
            address,
            retain_blocks: 0,
            keep_heights: 100_000,
            snapshot_interval: SNAPSHOT_INTERVAL,
            snapshots_kept: 2,
            skip_upgrades: Vec::new(),
            record: None,
        }
    }

    /// Its snapshots lie beside the database, in a folder of its name with `-snapshots`.
    fn snapshot_config(&self) -> SnapshotConfig {
        let mut name = self.data.file_name().unwrap_or_default().to_owned();
        name.push("-snapshots");
        SnapshotConfig {
            directory: self.data.with_file_name(name),
            interval: self.snapshot_interval,
            keep: self.snapshots_kept,
            chunk_bytes: CHUNK_BYTES_MAX,
        }
    }
}

/// Why a ledger cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The record of requests.
    #[error("the record of requests cannot be begun: {0}")]
    Record(std::io::Error),
}

/// A served ledger. Dropping it shuts it down; stop CometBFT first.
pub struct NodeHandle {
    server: ServerHandle,
    app: App,
}

impl NodeHandle {
    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.server.address()
    }

    /// The application.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Stops serving, after the call in execution.
    pub fn shutdown(self) {
        self.server.shutdown();
    }
}

/// Forgets every block after `height`, within what can still be read, and the snapshots of them.
pub fn rollback(config: &NodeConfig, height: u64) -> Result<(), ServeError> {
    let store = open(config)?;
    store.rollback(height)?;
    drop(Snapshots::open(config.snapshot_config(), height));
    Ok(())
}

fn open(config: &NodeConfig) -> Result<Store, StoreError> {
    let options = StoreOptions { keep_heights: config.keep_heights, ..StoreOptions::new(SCHEMA_VERSION) };
    Store::open_with(&config.data, options)
}

/// Opens the store and serves the ledger.
pub fn serve(config: &NodeConfig) -> Result<NodeHandle, ServeError> {
    let upgrades = Upgrades { skipped: config.skip_upgrades.clone(), ..Upgrades::default() };
    let snapshots = Some(config.snapshot_config());
    let app = App::with_upgrades(open(config)?, config.retain_blocks, snapshots, upgrades);
    let observer = config.record.as_deref().map(|folder| server::record(folder, app.store().height())).transpose();
    let options = Options { observer: observer.map_err(ServeError::Record)?, ..Options::default() };
    let server = server::serve(&config.address, app.clone(), options)?;
    Ok(NodeHandle { server, app })
}
