//! The audit's part of the genesis document: parameters, and judges that are there from the start.

use polylink_protocol::tiqe_v1::{MsgRegisterJudge, Params};
use serde::{Deserialize, Serialize};

use super::params;
use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::market::run_genesis_message;
use crate::store::StateWrite;

/// What the audit starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TiqeGenesis {
    /// Version 1 of the parameters.
    pub params: Params,
    /// Judges, active from epoch 0; their bonds come out of their genesis balances.
    pub judges: Vec<MsgRegisterJudge>,
}

impl Default for TiqeGenesis {
    fn default() -> Self {
        TiqeGenesis { params: params::default(), judges: vec![] }
    }
}

pub(super) fn start(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    params::check(&genesis.tiqe.params)?;
    if genesis.tiqe.params.activation_epoch != 0 {
        return Err(GenesisError::invalid("tiqe.params.activation_epoch", "0 is expected of the first version"));
    }
    params::put(state, &genesis.tiqe.params);
    Ok(())
}

/// Registers the judges of the genesis document. Called by the market, once the models are there.
pub(crate) fn start_judges(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    genesis: &Genesis,
) -> Result<(), GenesisError> {
    for (index, judge) in genesis.tiqe.judges.iter().enumerate() {
        run_genesis_message(ctx, state, &format!("tiqe.judges[{index}]"), judge)?;
    }
    Ok(())
}
