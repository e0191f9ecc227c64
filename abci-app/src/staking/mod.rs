//! Staking: validators, delegations and the power behind consensus keys.

use serde::{Deserialize, Serialize};

use crate::modules::{Module, no_hook};

/// Staking's part of the genesis document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StakingGenesis {}

/// Staking's tables.
pub const MODULE: Module = Module {
    name: "staking",
    messages: &[],
    refused: &[],
    queries: &[],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: |_, _, _| Ok(()),
};
