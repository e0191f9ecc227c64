//! Transactions: broadcast, by hash, by events, and what one would use.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DynamicMessage, Value as Field};
use serde_json::{Value, json};

use crate::error::{ApiError, NOT_FOUND};
use crate::node::{Node, number};
use crate::{Answered, Parameters, descriptors, json as printed, query};

const TXS: &str = "/cosmos/tx/v1beta1/txs";
const SIMULATE: &str = "/cosmos/tx/v1beta1/simulate";
/// Transactions of a page, at most and unless asked otherwise: as CometBFT allows.
const PAGE_MAX: u64 = 100;
/// The SDK's code of a transaction that waits already.
const IN_MEMPOOL: u64 = 19;
/// The SDK's code of a mempool without room.
const MEMPOOL_FULL: u64 = 20;

/// Answers what is read of transactions; None where the path is another's.
pub async fn get(node: &Node, path: &str, parameters: &Parameters) -> Result<Option<Answered>, ApiError> {
    if path == TXS {
        return search(node, parameters).await.map(Some);
    }
    match path.strip_prefix(TXS).and_then(|rest| rest.strip_prefix('/')) {
        Some(hash) if !hash.contains('/') => by_hash(node, hash).await.map(Some),
        _ => Ok(None),
    }
}

/// Answers what is sent; None where the path is another's.
pub async fn post(node: &Node, path: &str, body: &[u8]) -> Result<Option<Answered>, ApiError> {
    match path {
        TXS => broadcast(node, body).await.map(Some),
        SIMULATE => simulate(node, body).await.map(Some),
        _ => Ok(None),
    }
}

/// The transaction of a body, and the body.
fn tx_bytes(body: &[u8]) -> Result<(Vec<u8>, Value), ApiError> {
    let body: Value = serde_json::from_slice(body).map_err(ApiError::invalid)?;
    let text = body["tx_bytes"].as_str().ok_or_else(|| ApiError::invalid("tx_bytes: a text in base64 is expected"))?;
    let bytes = STANDARD.decode(text).map_err(|error| ApiError::invalid(format!("tx_bytes: {error}")))?;
    if bytes.is_empty() {
        return Err(ApiError::invalid("invalid empty tx"));
    }
    Ok((bytes, body))
}

async fn broadcast(node: &Node, body: &[u8]) -> Result<Answered, ApiError> {
    let (bytes, body) = tx_bytes(body)?;
    let method = match body["mode"].as_str() {
        Some("BROADCAST_MODE_SYNC" | "BROADCAST_MODE_BLOCK") => "broadcast_tx_sync",
        Some("BROADCAST_MODE_ASYNC") => "broadcast_tx_async",
        _ => {
            let modes = "mode: BROADCAST_MODE_SYNC or BROADCAST_MODE_ASYNC is expected";
            return Err(ApiError::invalid(modes));
        }
    };
    let hash = polylink_protocol::tx::hash(&bytes);
    let result = match node.call(method, json!({"tx": STANDARD.encode(&bytes)})).await? {
        Ok(result) => result,
        Err(reason) if reason.contains("already exists in cache") => {
            json!({"code": IN_MEMPOOL, "codespace": "sdk", "log": ""})
        }
        Err(reason) if reason.contains("mempool is full") => {
            json!({"code": MEMPOOL_FULL, "codespace": "sdk", "log": reason})
        }
        Err(reason) => return Err(ApiError::invalid(reason)),
    };
    let response = response(&hash, 0, &result, Value::Null, "");
    Ok(json!({"tx_response": response}).into())
}

async fn simulate(node: &Node, body: &[u8]) -> Result<Answered, ApiError> {
    let (bytes, _) = tx_bytes(body)?;
    let name = "cosmos.tx.v1beta1.Service/Simulate";
    let method = descriptors::method(name).ok_or_else(|| ApiError::unavailable(name))?;
    let mut request = DynamicMessage::new(method.input());
    request.set_field_by_name("tx_bytes", Field::Bytes(bytes.into()));
    query(node, &method, &request.encode_to_vec(), 0).await
}

async fn by_hash(node: &Node, hash: &str) -> Result<Answered, ApiError> {
    let bytes = hex::decode(hash).ok().filter(|bytes| bytes.len() == 32);
    let bytes = bytes.ok_or_else(|| ApiError::invalid("a hash of 64 hexadecimal digits is expected"))?;
    let found = node.call("tx", json!({"hash": STANDARD.encode(bytes), "prove": false})).await?;
    let found = found.map_err(|reason| match reason.contains("not found") {
        true => ApiError::new(NOT_FOUND, format!("tx not found: {}", hash.to_uppercase())),
        false => ApiError::invalid(reason),
    })?;
    let (tx, response) = of_chain(node, &found).await?;
    Ok(json!({"tx": tx, "tx_response": response}).into())
}

async fn search(node: &Node, parameters: &Parameters) -> Result<Answered, ApiError> {
    let named =
        |name: &'static str| parameters.iter().filter(move |(key, _)| key == name).map(|(_, text)| text.as_str());
    let conditions: Vec<&str> = named("events").chain(named("query")).filter(|text| !text.is_empty()).collect();
    if conditions.is_empty() {
        return Err(ApiError::invalid("must declare at least one event to search: query=message.sender='…'"));
    }
    let numbered = |name: &'static str, other: &'static str, default: u64| {
        let Some(text) = named(name).chain(named(other)).next() else { return Ok(default) };
        text.parse::<u64>().map_err(|_| ApiError::invalid(format!("parsing field \"{name}\": a number is expected")))
    };
    let limit = numbered("limit", "pagination.limit", PAGE_MAX)?.clamp(1, PAGE_MAX);
    let offset = numbered("pagination.offset", "", 0)?;
    let page = numbered("page", "", offset / limit + 1)?.max(1);
    let order = match named("order_by").next() {
        Some("ORDER_BY_DESC" | "2") => "desc",
        _ => "asc",
    };
    let params = json!({"query": conditions.join(" AND "), "prove": false, "page": page.to_string(),
                        "per_page": limit.to_string(), "order_by": order});
    let empty = json!({"txs": [], "total_count": "0"});
    let found =
        node.call("tx_search", params).await?.or_else(|reason| match reason.contains("page should be within") {
            // Beyond the last page there is nothing.
            true => Ok(empty),
            false => Err(ApiError::invalid(reason)),
        })?;
    let (mut txs, mut responses) = (Vec::new(), Vec::new());
    for found in found["txs"].as_array().into_iter().flatten() {
        let (tx, response) = of_chain(node, found).await?;
        txs.push(tx);
        responses.push(response);
    }
    let total = number(&found["total_count"]).to_string();
    Ok(json!({"txs": txs, "tx_responses": responses, "pagination": null, "total": total}).into())
}

/// A transaction as it stands on the chain: decoded, and its result.
async fn of_chain(node: &Node, found: &Value) -> Result<(Value, Value), ApiError> {
    let bytes = STANDARD.decode(found["tx"].as_str().unwrap_or_default()).map_err(ApiError::unavailable)?;
    let height = number(&found["height"]);
    // TxRaw and Tx have the same bytes: what one holds encoded the other holds as messages.
    let descriptor = descriptors::message("cosmos.tx.v1beta1.Tx").ok_or_else(|| ApiError::unavailable("Tx"))?;
    let tx = match DynamicMessage::decode(descriptor, bytes.as_slice()) {
        Ok(message) => printed::of(&message),
        // A block may hold what is no transaction: its result says so.
        Err(_) => Value::Null,
    };
    let mut opened = json!({"@type": "/cosmos.tx.v1beta1.Tx"});
    for (key, value) in tx.as_object().into_iter().flatten() {
        opened[key] = value.clone();
    }
    let at = node.result("header", Node::at(Some(height))).await?;
    let time = at["header"]["time"].as_str().unwrap_or_default();
    // Blocks have nanoseconds, the SDK prints seconds.
    let time = time.split_once('.').map_or_else(|| time.to_owned(), |(seconds, _)| format!("{seconds}Z"));
    let hash = found["hash"].as_str().unwrap_or_default();
    Ok((tx, response(hash, height, &found["tx_result"], opened, &time)))
}

/// `cosmos.base.abci.v1beta1.TxResponse`.
fn response(hash: &str, height: u64, result: &Value, tx: Value, time: &str) -> Value {
    let text = |name: &str| result[name].as_str().unwrap_or_default();
    let data = STANDARD.decode(text("data")).unwrap_or_default();
    let numeral = |name: &str| number(&result[name]).to_string();
    json!({
        "height": height.to_string(),
        "txhash": hash,
        "codespace": text("codespace"),
        "code": result["code"].as_u64().unwrap_or(0),
        "data": hex::encode_upper(data),
        "raw_log": text("log"),
        "logs": [],
        "info": text("info"),
        "gas_wanted": numeral("gas_wanted"),
        "gas_used": numeral("gas_used"),
        "tx": tx,
        "timestamp": time,
        "events": result["events"].as_array().cloned().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_without_a_transaction_are_named() {
        for (body, named) in [
            ("", "EOF"),
            ("{}", "tx_bytes"),
            (r#"{"tx_bytes": 5}"#, "tx_bytes"),
            (r#"{"tx_bytes": "%"}"#, "tx_bytes"),
            (r#"{"tx_bytes": ""}"#, "empty"),
        ] {
            let error = tx_bytes(body.as_bytes()).unwrap_err();
            assert!(error.code == 3 && error.message.contains(named), "{body}: {error}");
        }
        assert_eq!(tx_bytes(br#"{"tx_bytes": "AQI="}"#).unwrap().0, [1, 2]);
    }

    #[test]
    fn a_result_is_printed_as_by_the_sdk() {
        let result = json!({"code": 5, "codespace": "sdk", "log": "insufficient funds", "data": "Eg==",
                            "gas_wanted": "100000", "gas_used": "7"});
        let response = response("AB", 9, &result, Value::Null, "2026-01-02T03:04:05Z");
        assert_eq!((&response["code"], &response["height"], &response["data"]), (&json!(5), &json!("9"), &json!("12")));
        assert_eq!((&response["gas_used"], &response["raw_log"]), (&json!("7"), &json!("insufficient funds")));
    }
}
