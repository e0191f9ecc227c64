//! The ledger as a process part: a store in a directory, served on a socket.

use std::path::PathBuf;

use crate::app::App;
use crate::chain::SCHEMA_VERSION;
use crate::server::{self, Address, Options, ServerError, ServerHandle};
use crate::store::{Store, StoreError, StoreOptions};

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
}

impl NodeConfig {
    /// With the defaults: all blocks, 100,000 heights.
    pub fn new(data: impl Into<PathBuf>, address: Address) -> Self {
        NodeConfig { data: data.into(), address, retain_blocks: 0, keep_heights: 100_000 }
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

/// Opens the store and serves the ledger.
pub fn serve(config: &NodeConfig) -> Result<NodeHandle, ServeError> {
    let options = StoreOptions { keep_heights: config.keep_heights, ..StoreOptions::new(SCHEMA_VERSION) };
    let app = App::new(Store::open_with(&config.data, options)?, config.retain_blocks);
    let server = server::serve(&config.address, app.clone(), Options::default())?;
    Ok(NodeHandle { server, app })
}
