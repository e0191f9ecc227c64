//! Queries: by gRPC method name, answered from a committed state, or by key with a proof.
//!
//! A query never waits for execution: it reads a snapshot. Its answer names the height it read, which is never 0 (clients
//! take 0 for "no answer"), and may be any that is kept. `/store/key` answers the value of any key of `docs/state-keys.md`; with `prove`, an ICS23
//! proof against the application hash in the header of the height after the answer's.

use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::{GasInfo, Result as SimulationResult, TxMsgData};
use polylink_protocol::cosmos::cosmos::base::v1beta1::DecCoin;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{SimulateRequest, SimulateResponse};
use polylink_protocol::cosmos::tendermint::abci::{Event as ProtoEvent, EventAttribute};
use polylink_protocol::{DENOM, Dec};

use crate::auth::min_gas_price_milli;
use crate::chain::{constants, next_block_context};
use crate::error::QueryError;
use crate::modules::{MODULES, QueryContext};
use crate::router;
use crate::store::{Overlay, Proof, Snapshot, StateRead, StoreError};
use crate::tx::{self, Mode, Outcome};

/// Values by key.
pub const STORE_PATH: &str = "/store/key";
/// What a transaction would use.
pub const SIMULATE_PATH: &str = "/cosmos.tx.v1beta1.Service/Simulate";
/// A transaction by its hash.
pub const GET_TX_PATH: &str = "/cosmos.tx.v1beta1.Service/GetTx";
/// Gas prices, as clients with dynamic gas ask for them.
pub const GAS_PRICES_PATH: &str = "/feemarket.feemarket.v1.Query/GasPrices";
/// The gas price in one denomination.
pub const GAS_PRICE_PATH: &str = "/feemarket.feemarket.v1.Query/GasPrice";

/// The service of transactions. The state knows of none that is past: [`GET_TX_PATH`] is the node's to answer.
const TX_SERVICE: &str = "/cosmos.tx.v1beta1.Service/";

/// The node's index of transactions, which the SDK's service asks over RPC too. A query of the ledger waits for it, and others
/// of the same connection with it: so it has a deadline, and is asked for single transactions only.
pub trait Index: Send + Sync {
    /// Answers an encoded `GetTxRequest` with an encoded `GetTxResponse`.
    ///
    /// # Errors
    /// No such transaction, a request that is none, or a node that does not answer in time.
    fn transaction(&self, request: &[u8]) -> Result<Vec<u8>, QueryError>;
}

/// What of the service of transactions the node answers; `None` for every other path.
///
/// # Errors
/// Those of the index; a method that would have the node search, broadcast or read blocks while the ledger waits.
pub fn of_node(index: Option<&dyn Index>, path: &str, data: &[u8]) -> Option<Result<Vec<u8>, QueryError>> {
    let method = path.strip_prefix(TX_SERVICE)?;
    match (path, index) {
        (SIMULATE_PATH, _) => None,
        (GET_TX_PATH, Some(index)) => Some(index.transaction(data)),
        (GET_TX_PATH, None) => {
            let reason =
                format!("{path} (this ledger does not know its node's RPC: ask that for `tx`, or REST or gRPC)");
            Some(Err(QueryError::UnknownPath(reason)))
        }
        _ if ["GetTxsEvent", "GetBlockWithTxs", "BroadcastTx"].contains(&method) => {
            let reason = format!("{path} (no query of the ledger: ask the node's RPC, or REST or gRPC)");
            Some(Err(QueryError::UnknownPath(reason)))
        }
        _ => None,
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// The encoded response, or the value of a key (empty where it is not there).
    pub value: Vec<u8>,
    /// The height read.
    pub height: u64,
    /// The proof, where one was asked for.
    pub proof: Option<Proof>,
}

/// Answers a query. `height` 0 means the newest; with a proof, the newest whose header's successor exists.
pub fn run(snapshot: &Snapshot, path: &str, data: &[u8], height: u64, prove: bool) -> Result<Answered, QueryError> {
    let newest = snapshot.height();
    if newest == 0 {
        return Err(QueryError::Height("no block has been committed yet: ask again in a moment".into()));
    }
    if is_store(path) {
        return by_key(snapshot, data, height, prove);
    }
    if height == 0 || height == newest {
        let value = match path {
            SIMULATE_PATH => simulate(snapshot, data)?,
            path => method(snapshot, path, data, newest)?,
        };
        return Ok(Answered { value, height: newest, proof: None });
    }
    if path == SIMULATE_PATH {
        return Err(QueryError::Height(format!("{path} is answered at the newest height ({newest}) only")));
    }
    let past = snapshot.past(height).map_err(unreadable)?;
    let value = method(&past, path, data, height)?;
    if past.is_cut() {
        let reason = format!("{path} cannot be answered as of height {height}: too many keys are younger");
        return Err(QueryError::Height(reason));
    }
    Ok(Answered { value, height, proof: None })
}

/// Why a height cannot be read: it is in the future, or not kept any more.
fn unreadable(error: StoreError) -> QueryError {
    let text = error.to_string();
    match error {
        StoreError::Key { .. } => QueryError::InvalidArgument(text),
        StoreError::Unavailable { height, oldest, .. } if height < oldest => QueryError::NoState(text),
        _ => QueryError::Height(text),
    }
}

/// A method of the modules, on the state after the block of `height`.
fn method(state: &dyn StateRead, path: &str, data: &[u8], height: u64) -> Result<Vec<u8>, QueryError> {
    Ok(match path {
        GAS_PRICES_PATH => GasPricesResponse { prices: vec![gas_price(state)] }.encode_to_vec(),
        GAS_PRICE_PATH => gas_price_of(state, data)?,
        path => {
            let route = router::query(path).ok_or_else(|| {
                QueryError::UnknownPath(path.chars().take(128).flat_map(char::escape_debug).collect())
            })?;
            let constants = constants(state).ok_or_else(|| QueryError::Height("the chain has not begun".into()))?;
            let ctx = QueryContext {
                epoch: height / constants.epoch_blocks.max(1),
                chain_id: constants.chain_id,
                height,
                epoch_blocks: constants.epoch_blocks,
            };
            (route.answer)(data, &ctx, state)?
        }
    })
}

/// `/store/key`; clients of the Cosmos SDK name a module in between, which says nothing here: a key names its own.
fn is_store(path: &str) -> bool {
    let module = path.strip_prefix("/store/").and_then(|rest| rest.strip_suffix("/key"));
    path == STORE_PATH
        || path == "/store"
        || module.is_some_and(|name| MODULES.iter().any(|module| module.name == name))
}

fn by_key(snapshot: &Snapshot, key: &[u8], height: u64, prove: bool) -> Result<Answered, QueryError> {
    let newest = snapshot.height();
    let height = match height {
        0 if prove => newest.saturating_sub(1).max(snapshot.oldest()),
        0 => newest,
        height => height,
    };
    if prove {
        let proof = snapshot.prove(key, height).map_err(unreadable)?;
        return Ok(Answered { value: proof.value.clone().unwrap_or_default(), height, proof: Some(proof) });
    }
    let value = snapshot.get_at(key, height).map_err(unreadable)?;
    Ok(Answered { value: value.unwrap_or_default(), height, proof: None })
}

fn simulate(snapshot: &Snapshot, data: &[u8]) -> Result<Vec<u8>, QueryError> {
    let request = SimulateRequest::decode(data)
        .map_err(|error| QueryError::InvalidArgument(format!("SimulateRequest: {error}")))?;
    if request.tx_bytes.is_empty() {
        return Err(QueryError::InvalidArgument("SimulateRequest.tx_bytes is empty".into()));
    }
    let ctx = next_block_context(snapshot, snapshot.height())
        .ok_or_else(|| QueryError::Height("the chain has not begun".into()))?;
    let mut state = Overlay::new(snapshot.clone());
    let Outcome { result, gas_wanted, gas_used, events } = tx::run(&ctx, &mut state, &request.tx_bytes, Mode::Simulate);
    let data = result.map_err(QueryError::Simulation)?;
    let msg_responses = TxMsgData::decode(data.as_slice()).map(|data| data.msg_responses).unwrap_or_default();
    let event = |event: crate::context::Event| {
        let kind = event.kind.to_owned();
        let attribute = |(key, value, index)| EventAttribute { key, value, index };
        ProtoEvent { r#type: kind, attributes: event.into_attributes().map(attribute).collect() }
    };
    let result =
        SimulationResult { events: events.into_iter().map(event).collect(), msg_responses, ..Default::default() };
    Ok(SimulateResponse { gas_info: Some(GasInfo { gas_wanted, gas_used }), result: Some(result) }.encode_to_vec())
}

/// `feemarket.feemarket.v1.GasPricesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GasPricesResponse {
    /// The price in each denomination that pays fees.
    #[prost(message, repeated, tag = "1")]
    pub prices: Vec<DecCoin>,
}

/// `feemarket.feemarket.v1.GasPriceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GasPriceRequest {
    /// In which denomination.
    #[prost(string, tag = "1")]
    pub denom: String,
}

/// `feemarket.feemarket.v1.GasPriceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GasPriceResponse {
    /// The price.
    #[prost(message, optional, tag = "1")]
    pub price: Option<DecCoin>,
}

fn gas_price(state: &dyn StateRead) -> DecCoin {
    let price = Dec::from_ratio(min_gas_price_milli(state).into(), 1_000).unwrap_or(Dec::ZERO);
    DecCoin { denom: DENOM.into(), amount: price.to_atomics_string() }
}

fn gas_price_of(state: &dyn StateRead, data: &[u8]) -> Result<Vec<u8>, QueryError> {
    let request = GasPriceRequest::decode(data)
        .map_err(|error| QueryError::InvalidArgument(format!("GasPriceRequest: {error}")))?;
    if request.denom != DENOM {
        let denom: String = request.denom.chars().take(128).flat_map(char::escape_debug).collect();
        return Err(QueryError::NotFound(format!("fees are paid in {DENOM}, not in {denom}")));
    }
    Ok(GasPriceResponse { price: Some(gas_price(state)) }.encode_to_vec())
}
