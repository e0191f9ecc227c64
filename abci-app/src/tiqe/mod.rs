//! The audit: judges, beacons, seats, scores and trials.

use polylink_protocol::tiqe_v1::Params;
use serde::{Deserialize, Serialize};

use crate::modules::{Module, no_hook};

/// The audit's part of the genesis document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TiqeGenesis {
    /// Version 1 of the parameters.
    pub params: Params,
}

/// The audit's tables.
pub const MODULE: Module = Module {
    name: "tiqe",
    messages: &[],
    refused: &[],
    queries: &[],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: |_, _, _| Ok(()),
};
