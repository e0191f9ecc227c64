//! The market: models, workers, sessions, receipts, pots and their settlement.

use polylink_protocol::market_v1::Params;
use serde::{Deserialize, Serialize};

use crate::modules::{Module, no_hook};

/// The market's part of the genesis document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarketGenesis {
    /// Version 1 of the parameters.
    pub params: Params,
}

impl Default for MarketGenesis {
    fn default() -> Self {
        MarketGenesis { params: Params { epoch_blocks: 20, ..Default::default() } }
    }
}

/// The market's tables.
pub const MODULE: Module = Module {
    name: "market",
    messages: &[],
    refused: &[],
    queries: &[],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: |_, _, _| Ok(()),
};
