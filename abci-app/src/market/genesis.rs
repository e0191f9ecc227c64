//! The market's part of the genesis document: parameters, and models and workers that are there from the start.
//!
//! Models and workers stand there as the messages that would register them, and are checked and executed as such; a
//! worker's bond comes out of its genesis balance.

use polylink_protocol::market_v1::{MsgRegisterModel, MsgRegisterWorker, Params};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{params, settle};
use crate::context::Context;
use crate::error::GenesisError;
use crate::genesis::Genesis;
use crate::modules::Handle;
use crate::store::StateWrite;
use crate::tiqe;

/// What the market starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarketGenesis {
    /// Version 1 of the parameters; what the document does not name is as in the defaults.
    #[serde(deserialize_with = "over_defaults")]
    pub params: Params,
    /// Models, in order.
    pub models: Vec<MsgRegisterModel>,
    /// Workers, in order.
    pub workers: Vec<MsgRegisterWorker>,
}

/// Parameters of which only some are named, as in documents that are older than the others.
fn over_defaults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Params, D::Error> {
    let named = serde_json::Map::<String, Value>::deserialize(deserializer)?;
    let mut all = serde_json::to_value(params::default()).map_err(D::Error::custom)?;
    all.as_object_mut().into_iter().for_each(|all| all.extend(named.clone()));
    serde_json::from_value(all).map_err(D::Error::custom)
}

impl Default for MarketGenesis {
    fn default() -> Self {
        MarketGenesis { params: params::default(), models: vec![], workers: vec![] }
    }
}

/// Checks and executes a message of the genesis document.
pub(crate) fn run<M: Handle>(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    field: &str,
    message: &M,
) -> Result<(), GenesisError> {
    message
        .signer()
        .and_then(|_| message.check())
        .and_then(|()| message.execute(ctx, state))
        .map(|_| ())
        .map_err(|error| GenesisError::invalid(field, error))
}

pub(super) fn start(ctx: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    params::check(&genesis.market.params)?;
    if genesis.market.params.activation_epoch != 0 {
        return Err(GenesisError::invalid("market.params.activation_epoch", "0 is expected of the first version"));
    }
    params::put(state, &genesis.market.params);
    settle::begin_block(ctx, state)?;
    for (index, model) in genesis.market.models.iter().enumerate() {
        run(ctx, state, &format!("market.models[{index}]"), model)?;
    }
    for (index, worker) in genesis.market.workers.iter().enumerate() {
        run(ctx, state, &format!("market.workers[{index}]"), worker)?;
    }
    // Judges name profiles, so that they come after the models.
    tiqe::start_judges(ctx, state, genesis)
}
