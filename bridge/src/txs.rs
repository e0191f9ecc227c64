//! `cosmos.tx.v1beta1.Service`: transactions broadcast, by hash, by events, and what one would use.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::abci::v1beta1::TxResponse;
use polylink_protocol::cosmos::cosmos::tx::v1beta1 as service;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{BroadcastMode, OrderBy, Tx};
use polylink_protocol::cosmos::tendermint::abci::{Event, EventAttribute};
use prost::Message;
use prost_reflect::MethodDescriptor;
use serde_json::{Value, json};

use crate::descriptors;
use crate::error::{ApiError, NOT_FOUND, UNIMPLEMENTED};
use crate::node::{Answered, Node, decoded, number};

/// Its name.
pub const SERVICE: &str = "cosmos.tx.v1beta1.Service";
/// Transactions of a page, at most and unless asked otherwise: as CometBFT allows.
const PAGE_MAX: u64 = 100;
/// The SDK's code of a transaction that waits already.
const IN_MEMPOOL: u32 = 19;
/// The SDK's code of a mempool without room.
const MEMPOOL_FULL: u32 = 20;

/// Answers a method.
pub async fn answer(node: &Node, method: &MethodDescriptor, request: &[u8], height: u64) -> Result<Answered, ApiError> {
    match method.name() {
        // The ledger's own.
        "Simulate" => node.query(&descriptors::abci_path(method), request, height).await,
        "BroadcastTx" => broadcast(node, decoded(request)?).await,
        "GetTx" => by_hash(node, decoded(request)?).await,
        "GetTxsEvent" => search(node, decoded(request)?).await,
        "TxDecode" => {
            let service::TxDecodeRequest { tx_bytes } = decoded(request)?;
            Ok(Answered::new(&service::TxDecodeResponse { tx: Some(decoded(filled(&tx_bytes)?)?) }, None))
        }
        "TxEncode" => {
            let service::TxEncodeRequest { tx } = decoded(request)?;
            let tx_bytes = tx.ok_or_else(|| ApiError::invalid("invalid empty tx"))?.encode_to_vec();
            Ok(Answered::new(&service::TxEncodeResponse { tx_bytes }, None))
        }
        name => Err(ApiError::new(UNIMPLEMENTED, format!("unknown method {name} for service {SERVICE}"))),
    }
}

fn filled(tx: &[u8]) -> Result<&[u8], ApiError> {
    if tx.is_empty() { Err(ApiError::invalid("invalid empty tx")) } else { Ok(tx) }
}

async fn broadcast(node: &Node, request: service::BroadcastTxRequest) -> Result<Answered, ApiError> {
    let bytes = filled(&request.tx_bytes)?;
    let method = match request.mode() {
        BroadcastMode::Sync | BroadcastMode::Block => "broadcast_tx_sync",
        BroadcastMode::Async => "broadcast_tx_async",
        BroadcastMode::Unspecified => {
            return Err(ApiError::invalid("mode: BROADCAST_MODE_SYNC or BROADCAST_MODE_ASYNC is expected"));
        }
    };
    let refused = |code: u32, log: String| json!({"code": code, "codespace": "sdk", "log": log});
    let result = match node.call(method, json!({"tx": STANDARD.encode(bytes)})).await? {
        Ok(result) => result,
        Err(reason) if reason.contains("already exists in cache") => refused(IN_MEMPOOL, String::new()),
        Err(reason) if reason.contains("mempool is full") => refused(MEMPOOL_FULL, reason),
        Err(reason) => return Err(ApiError::invalid(reason)),
    };
    let tx_response = TxResponse { txhash: polylink_protocol::tx::hash(bytes), ..response(&result) };
    Ok(Answered::new(&service::BroadcastTxResponse { tx_response: Some(tx_response) }, None))
}

async fn by_hash(node: &Node, request: service::GetTxRequest) -> Result<Answered, ApiError> {
    let bytes = hex::decode(&request.hash).ok().filter(|bytes| bytes.len() == 32);
    let bytes = bytes.ok_or_else(|| ApiError::invalid("a hash of 64 hexadecimal digits is expected"))?;
    let found = node.call("tx", json!({"hash": STANDARD.encode(bytes), "prove": false})).await?;
    let found = found.map_err(|reason| match reason.contains("not found") {
        true => ApiError::new(NOT_FOUND, format!("tx not found: {}", request.hash.to_uppercase())),
        false => ApiError::invalid(reason),
    })?;
    let (tx, tx_response) = of_chain(node, &found).await?;
    Ok(Answered::new(&service::GetTxResponse { tx, tx_response: Some(tx_response) }, None))
}

#[expect(deprecated, reason = "clients of the SDK up to 0.46 name events and pages by these fields")]
async fn search(node: &Node, request: service::GetTxsEventRequest) -> Result<Answered, ApiError> {
    let order = if request.order_by() == OrderBy::Desc { "desc" } else { "asc" };
    let conditions: Vec<String> =
        request.events.into_iter().chain([request.query]).filter(|text| !text.is_empty()).collect();
    if conditions.is_empty() {
        return Err(ApiError::invalid("must declare at least one event to search: query=message.sender='…'"));
    }
    let pagination = request.pagination.unwrap_or_default();
    let limit = [request.limit, pagination.limit].into_iter().find(|limit| *limit > 0);
    let limit = limit.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let page = if request.page > 0 { request.page } else { pagination.offset / limit + 1 };
    let params = json!({"query": conditions.join(" AND "), "prove": false, "page": page.to_string(),
                        "per_page": limit.to_string(), "order_by": order});
    let empty = json!({"txs": [], "total_count": "0"});
    let found =
        node.call("tx_search", params).await?.or_else(|reason| match reason.contains("page should be within") {
            // Beyond the last page there is nothing.
            true => Ok(empty),
            false => Err(ApiError::invalid(reason)),
        })?;
    let mut answer = service::GetTxsEventResponse { total: number(&found["total_count"]), ..Default::default() };
    for found in found["txs"].as_array().into_iter().flatten() {
        let (tx, response) = of_chain(node, found).await?;
        answer.txs.push(tx.unwrap_or_default());
        answer.tx_responses.push(response);
    }
    Ok(Answered::new(&answer, None))
}

/// A transaction as it stands on the chain: decoded, and its result.
async fn of_chain(node: &Node, found: &Value) -> Result<(Option<Tx>, TxResponse), ApiError> {
    let bytes = STANDARD.decode(found["tx"].as_str().unwrap_or_default()).map_err(ApiError::unavailable)?;
    let height = number(&found["height"]);
    // TxRaw and Tx have the same bytes: what one holds encoded the other holds as messages. A block may hold what is no
    // transaction: its result says so.
    let tx = Tx::decode(bytes.as_slice()).ok();
    let at = node.result("header", Node::at(Some(height))).await?;
    let time = at["header"]["time"].as_str().unwrap_or_default();
    let response = TxResponse {
        height: i64::try_from(height).unwrap_or(i64::MAX),
        txhash: found["hash"].as_str().unwrap_or_default().to_owned(),
        tx: Some(Any { type_url: "/cosmos.tx.v1beta1.Tx".into(), value: bytes }),
        // Blocks have nanoseconds, the SDK prints seconds.
        timestamp: time.split_once('.').map_or_else(|| time.to_owned(), |(seconds, _)| format!("{seconds}Z")),
        ..response(&found["tx_result"])
    };
    Ok((tx, response))
}

/// What CometBFT says of a result.
fn response(result: &Value) -> TxResponse {
    let text = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
    let numeral = |name: &str| text(name).parse().unwrap_or(0);
    TxResponse {
        codespace: text("codespace"),
        code: result["code"].as_u64().and_then(|code| u32::try_from(code).ok()).unwrap_or(0),
        data: hex::encode_upper(STANDARD.decode(text("data")).unwrap_or_default()),
        raw_log: text("log"),
        info: text("info"),
        gas_wanted: numeral("gas_wanted"),
        gas_used: numeral("gas_used"),
        events: result["events"].as_array().into_iter().flatten().map(event).collect(),
        ..Default::default()
    }
}

fn event(value: &Value) -> Event {
    let attribute = |of: &Value| EventAttribute {
        key: of["key"].as_str().unwrap_or_default().to_owned(),
        value: of["value"].as_str().unwrap_or_default().to_owned(),
        index: of["index"].as_bool().unwrap_or(false),
    };
    Event {
        r#type: value["type"].as_str().unwrap_or_default().to_owned(),
        attributes: value["attributes"].as_array().into_iter().flatten().map(attribute).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_the_sdks() {
        let result = json!({"code": 5, "codespace": "sdk", "log": "insufficient funds", "data": "Eg==",
            "gas_wanted": "100000", "gas_used": "7",
            "events": [{"type": "tx", "attributes": [{"key": "fee", "value": "5uplk", "index": true}]}]});
        let response = response(&result);
        assert_eq!((response.code, response.data.as_str(), response.gas_used), (5, "12", 7));
        assert_eq!((response.raw_log.as_str(), response.gas_wanted), ("insufficient funds", 100_000));
        let name = "cosmos.base.abci.v1beta1.TxResponse";
        let message = descriptors::decode(descriptors::message(name).unwrap(), &response.encode_to_vec()).unwrap();
        let printed = crate::json::of(&message);
        assert_eq!(printed["events"], result["events"]);
        assert_eq!((&printed["gas_used"], &printed["logs"], &printed["tx"]), (&json!("7"), &json!([]), &Value::Null));
    }
}
