//! `cosmos.base.tendermint.v1beta1`: what CometBFT knows, in the SDK's form: hashes in base64 instead of hexadecimal,
//! consensus addresses in bech32, names of the proto files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::Address;
use serde_json::{Map, Value, json};

use crate::Answered;
use crate::error::ApiError;
use crate::node::{Node, number};

const SERVICE: &str = "/cosmos/base/tendermint/v1beta1/";
/// Validators of a page.
const PAGE_MAX: u64 = 100;

/// Answers what is asked of the chain; None where the path is another's.
pub async fn get(node: &Node, path: &str) -> Result<Option<Answered>, ApiError> {
    let Some(rest) = path.strip_prefix(SERVICE) else { return Ok(None) };
    let answered = match rest.split_once('/') {
        None if rest == "node_info" => node_info(node).await?,
        None if rest == "syncing" => {
            let status = node.result("status", json!({})).await?;
            json!({"syncing": status["sync_info"]["catching_up"]}).into()
        }
        Some(("blocks", height)) => block(node, at(height)?).await?,
        Some(("validatorsets", height)) => validators(node, at(height)?).await?,
        _ => return Ok(None),
    };
    Ok(Some(answered))
}

fn at(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "latest" => Ok(None),
        text => match text.parse() {
            Ok(height) if height > 0 => Ok(Some(height)),
            _ => Err(ApiError::invalid(format!("parsing field \"height\": \"{}\" is no height", text.escape_debug()))),
        },
    }
}

async fn node_info(node: &Node) -> Result<Answered, ApiError> {
    let status = node.result("status", json!({})).await?;
    let info = node.result("abci_info", json!({})).await?;
    let of = &status["node_info"];
    let channels = hex::decode(of["channels"].as_str().unwrap_or_default()).unwrap_or_default();
    let version = &info["response"]["version"];
    Ok(json!({
        "default_node_info": {
            "protocol_version": of["protocol_version"],
            "default_node_id": of["id"],
            "listen_addr": of["listen_addr"],
            "network": of["network"],
            "version": of["version"],
            "channels": STANDARD.encode(channels),
            "moniker": of["moniker"],
            "other": of["other"],
        },
        "application_version": {
            "name": "polylink", "app_name": "polylink", "version": version, "git_commit": "", "build_tags": "",
            "go_version": "", "build_deps": [], "cosmos_sdk_version": "",
        },
    })
    .into())
}

/// CometBFT's JSON of a block or a part of it as the gateway prints it.
fn converted(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let renamed = |key: &str| if key == "parts" { "part_set_header".to_owned() } else { key.to_owned() };
            let mut object: Map<String, Value> =
                fields.iter().map(|(key, value)| (renamed(key), converted(key, value))).collect();
            if key == "version" && !object.contains_key("app") {
                object.insert("app".into(), json!("0"));
            }
            Value::Object(object)
        }
        Value::Array(list) => list.iter().map(|value| converted(key, value)).collect(),
        Value::String(text) if key.ends_with("hash") || key.ends_with("_address") => {
            hex::decode(text).map_or_else(|_| value.clone(), |bytes| json!(STANDARD.encode(bytes)))
        }
        Value::Number(flag) if key == "block_id_flag" => {
            let names = ["UNKNOWN", "ABSENT", "COMMIT", "NIL"];
            let name = flag.as_u64().and_then(|flag| names.get(flag as usize)).copied();
            name.map_or_else(|| value.clone(), |name| json!(format!("BLOCK_ID_FLAG_{name}")))
        }
        value => value.clone(),
    }
}

async fn block(node: &Node, height: Option<u64>) -> Result<Answered, ApiError> {
    let found = node.result("block", Node::at(height)).await?;
    let height = number(&found["block"]["header"]["height"]);
    let block = converted("", &found["block"]);
    let mut of_sdk = block.clone();
    let proposer = found["block"]["header"]["proposer_address"].as_str();
    if let Some(address) = proposer.and_then(address_of) {
        of_sdk["header"]["proposer_address"] = json!(address.valcons());
    }
    let value = json!({"block_id": converted("", &found["block_id"]), "block": block, "sdk_block": of_sdk});
    Ok(Answered { value, height: Some(height) })
}

fn address_of(hexadecimal: &str) -> Option<Address> {
    Some(Address(hex::decode(hexadecimal).ok()?.try_into().ok()?))
}

async fn validators(node: &Node, height: Option<u64>) -> Result<Answered, ApiError> {
    let mut params = Node::at(height);
    params["per_page"] = json!(PAGE_MAX.to_string());
    let found = node.result("validators", params).await?;
    let validators = found["validators"].as_array().into_iter().flatten().map(|validator| {
        let address = validator["address"].as_str().and_then(address_of).map(|address| address.valcons());
        json!({
            "address": address,
            "pub_key": {"@type": "/cosmos.crypto.ed25519.PubKey", "key": validator["pub_key"]["value"]},
            "voting_power": validator["voting_power"],
            "proposer_priority": validator["proposer_priority"],
        })
    });
    let height = number(&found["block_height"]);
    let value = json!({
        "block_height": height.to_string(),
        "validators": validators.collect::<Vec<_>>(),
        "pagination": {"next_key": null, "total": found["total"]},
    });
    Ok(Answered { value, height: Some(height) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_base64_and_names_are_the_proto_files() {
        let comet = json!({"header": {"version": {"block": "11"}, "app_hash": "00FF", "height": "5",
            "last_block_id": {"hash": "", "parts": {"total": 1, "hash": "01"}}},
            "last_commit": {"signatures": [{"block_id_flag": 2, "validator_address": "02", "signature": "AAA="}]}});
        let printed = converted("", &comet);
        assert_eq!(printed["header"]["version"], json!({"block": "11", "app": "0"}));
        assert_eq!(printed["header"]["app_hash"], "AP8=");
        assert_eq!(printed["header"]["last_block_id"]["part_set_header"], json!({"total": 1, "hash": "AQ=="}));
        let vote = &printed["last_commit"]["signatures"][0];
        assert_eq!(
            (&vote["block_id_flag"], &vote["validator_address"]),
            (&json!("BLOCK_ID_FLAG_COMMIT"), &json!("Ag=="))
        );
        assert_eq!(vote["signature"], "AAA=");
    }

    #[test]
    fn heights_are_positive_numbers_or_latest() {
        assert_eq!(at("latest"), Ok(None));
        assert_eq!(at("7"), Ok(Some(7)));
        for text in ["0", "-1", "x", "", "99999999999999999999"] {
            assert!(at(text).is_err(), "{text}");
        }
    }
}
