//! What CometBFT knows, in the SDK's form: `cosmos.base.tendermint.v1beta1`, `cosmos.base.node.v1beta1`, and the node's
//! health as gRPC asks for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::base::node::v1beta1::ConfigResponse;
use polylink_protocol::cosmos::cosmos::base::query::v1beta1::{PageRequest, PageResponse};
use polylink_protocol::cosmos::cosmos::base::tendermint::v1beta1 as service;
use polylink_protocol::cosmos::cosmos::crypto::ed25519::PubKey;
use polylink_protocol::cosmos::tendermint::{p2p, types};
use polylink_protocol::tx::any;
use serde_json::{Value, json};

use crate::error::{ApiError, NOT_FOUND, UNIMPLEMENTED};
use crate::node::{Answered, Node, decoded, number};
use crate::{descriptors, json as printed, routes};

/// Of blocks, validators and the node.
pub const SERVICE: &str = "cosmos.base.tendermint.v1beta1.Service";
/// Of the node's settings.
pub const NODE: &str = "cosmos.base.node.v1beta1.Service";
/// Of whether it serves.
pub const HEALTH: &str = "grpc.health.v1.Health";
/// Validators of a page at most, as CometBFT allows, and unless asked otherwise.
const PAGE_MAX: u64 = 100;

/// Answers a method of [`SERVICE`].
pub async fn answer(node: &Node, method: &str, request: &[u8]) -> Result<Answered, ApiError> {
    match method {
        "GetNodeInfo" => node_info(node).await,
        "GetSyncing" => {
            let syncing = is_syncing(&node.result("status", json!({})).await?);
            Ok(Answered::new(&service::GetSyncingResponse { syncing }, None))
        }
        "GetLatestBlock" => block(node, None).await,
        "GetBlockByHeight" => {
            let request: service::GetBlockByHeightRequest = decoded(request)?;
            block(node, Some(positive(request.height)?)).await
        }
        "GetLatestValidatorSet" => {
            let request: service::GetLatestValidatorSetRequest = decoded(request)?;
            validators(node, None, request.pagination).await
        }
        "GetValidatorSetByHeight" => {
            let request: service::GetValidatorSetByHeightRequest = decoded(request)?;
            validators(node, Some(positive(request.height)?), request.pagination).await
        }
        _ => Err(ApiError::new(UNIMPLEMENTED, format!("unknown method {method} for service {SERVICE}"))),
    }
}

fn positive(height: i64) -> Result<u64, ApiError> {
    match u64::try_from(height) {
        Ok(height) if height > 0 => Ok(height),
        _ => Err(ApiError::invalid(format!("height must be greater than 0, but got {height}"))),
    }
}

fn is_syncing(status: &Value) -> bool {
    status["sync_info"]["catching_up"].as_bool().unwrap_or(false)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A part of CometBFT's JSON.
fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| ApiError::unavailable(format!("the node's answer: {error}")))
}

async fn node_info(node: &Node) -> Result<Answered, ApiError> {
    let status = node.result("status", json!({})).await?;
    let info = node.result("abci_info", json!({})).await?;
    let of = &status["node_info"];
    let protocol = |name: &str| number(&of["protocol_version"][name]);
    let default_node_info = p2p::DefaultNodeInfo {
        protocol_version: Some(p2p::ProtocolVersion {
            p2p: protocol("p2p"),
            block: protocol("block"),
            app: protocol("app"),
        }),
        default_node_id: text(&of["id"]),
        listen_addr: text(&of["listen_addr"]),
        network: text(&of["network"]),
        version: text(&of["version"]),
        channels: hex::decode(text(&of["channels"])).unwrap_or_default(),
        moniker: text(&of["moniker"]),
        other: Some(p2p::DefaultNodeInfoOther {
            tx_index: text(&of["other"]["tx_index"]),
            rpc_address: text(&of["other"]["rpc_address"]),
        }),
    };
    let application_version = service::VersionInfo {
        name: "polylink".into(),
        app_name: "polylink".into(),
        version: text(&info["response"]["version"]),
        ..Default::default()
    };
    let response = service::GetNodeInfoResponse {
        default_node_info: Some(default_node_info),
        application_version: Some(application_version),
    };
    Ok(Answered::new(&response, None))
}

async fn block(node: &Node, height: Option<u64>) -> Result<Answered, ApiError> {
    let mut found = node.result("block", Node::at(height)).await?;
    let block = block_of(found["block"].take())?;
    let sdk_block = block.header.clone().map(|header| of_sdk(header, &block));
    let height = block.header.as_ref().and_then(|header| u64::try_from(header.height).ok());
    // The two methods' answers are of one shape.
    let response = service::GetBlockByHeightResponse {
        block_id: Some(parsed(found["block_id"].take())?),
        block: Some(block),
        sdk_block,
    };
    Ok(Answered::new(&response, height))
}

/// A block of CometBFT's JSON.
fn block_of(mut value: Value) -> Result<types::Block, ApiError> {
    // Evidence stands there by the names of Go's fields.
    for evidence in value["evidence"]["evidence"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = evidence["value"].as_object_mut() {
            *fields = std::mem::take(fields).into_iter().map(|(name, value)| (routes::snake(&name), value)).collect();
        }
    }
    parsed(value)
}

/// The block as the SDK has it besides: its proposer in bech32.
fn of_sdk(header: types::Header, block: &types::Block) -> service::Block {
    let proposer = <[u8; 20]>::try_from(header.proposer_address.as_slice()).ok();
    let header = service::Header {
        version: header.version,
        chain_id: header.chain_id,
        height: header.height,
        time: header.time,
        last_block_id: header.last_block_id,
        last_commit_hash: header.last_commit_hash,
        data_hash: header.data_hash,
        validators_hash: header.validators_hash,
        next_validators_hash: header.next_validators_hash,
        consensus_hash: header.consensus_hash,
        app_hash: header.app_hash,
        last_results_hash: header.last_results_hash,
        evidence_hash: header.evidence_hash,
        proposer_address: proposer.map(|bytes| Address(bytes).valcons()).unwrap_or_default(),
    };
    service::Block {
        header: Some(header),
        data: block.data.clone(),
        evidence: block.evidence.clone(),
        last_commit: block.last_commit.clone(),
    }
}

async fn validators(node: &Node, height: Option<u64>, pagination: Option<PageRequest>) -> Result<Answered, ApiError> {
    let asked = pagination.unwrap_or_default();
    let limit = if asked.limit == 0 { PAGE_MAX } else { asked.limit.min(PAGE_MAX) };
    let mut params = Node::at(height);
    params["per_page"] = json!(limit.to_string());
    params["page"] = json!((asked.offset / limit + 1).to_string());
    let found = node.result("validators", params).await?;
    let validators = found["validators"].as_array().into_iter().flatten().map(|validator| {
        let address = hex::decode(text(&validator["address"])).ok().and_then(|bytes| bytes.try_into().ok());
        let key = STANDARD.decode(text(&validator["pub_key"]["value"])).unwrap_or_default();
        let signed = |name: &str| text(&validator[name]).parse().unwrap_or(0);
        service::Validator {
            address: address.map(|bytes| Address(bytes).valcons()).unwrap_or_default(),
            pub_key: Some(any(&PubKey { key })),
            voting_power: signed("voting_power"),
            proposer_priority: signed("proposer_priority"),
        }
    });
    let height = number(&found["block_height"]);
    // As above.
    let response = service::GetValidatorSetByHeightResponse {
        block_height: i64::try_from(height).unwrap_or(i64::MAX),
        validators: validators.collect(),
        pagination: Some(PageResponse { next_key: Vec::new(), total: number(&found["total"]) }),
    };
    Ok(Answered::new(&response, Some(height)))
}

/// The one method of [`NODE`]: the least price of gas, which the ledger knows, not the node.
pub async fn config(node: &Node) -> Result<Answered, ApiError> {
    let name = "feemarket.feemarket.v1.Query/GasPrices";
    let method = descriptors::method(name).ok_or_else(|| ApiError::unavailable(name))?;
    let answered = node.query(&descriptors::abci_path(&method), &[], 0).await?;
    let prices = printed::of(&descriptors::decode(method.output(), &answered.value)?);
    let prices = prices["prices"].as_array().into_iter().flatten();
    let prices: Vec<String> = prices.map(|coin| text(&coin["amount"]) + &text(&coin["denom"])).collect();
    let response = ConfigResponse { minimum_gas_price: prices.join(","), ..Default::default() };
    Ok(Answered::new(&response, answered.height))
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The one method of [`HEALTH`]: a service serves while the node answers and has caught up.
pub async fn health(node: &Node, request: &[u8]) -> Result<Answered, ApiError> {
    let HealthRequest { service } = decoded(request)?;
    if !service.is_empty() && descriptors::POOL.get_service_by_name(&service).is_none() {
        return Err(ApiError::new(NOT_FOUND, "unknown service"));
    }
    let status = match node.result("status", json!({})).await {
        Ok(status) if !is_syncing(&status) => 1,
        _ => 2,
    };
    Ok(Answered::new(&HealthResponse { status }, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF00FF";
    const ADDRESS: &str = "0102030405060708090A0B0C0D0E0F1011121314";

    fn comet() -> Value {
        let id = json!({"hash": HASH, "parts": {"total": 1, "hash": HASH}});
        let vote = json!({"type": 2, "height": "4", "round": 0, "block_id": id, "timestamp": "2026-11-27T10:00:00.5Z",
            "validator_address": ADDRESS, "validator_index": 0, "signature": "AAA=", "extension": null,
            "extension_signature": null});
        json!({
            "header": {"version": {"block": "11"}, "chain_id": "c", "height": "5", "time": "2026-11-27T10:00:00.25Z",
                "last_block_id": {"hash": "", "parts": {"total": 0, "hash": ""}}, "last_commit_hash": HASH,
                "data_hash": HASH, "validators_hash": HASH, "next_validators_hash": HASH, "consensus_hash": HASH,
                "app_hash": HASH, "last_results_hash": "", "evidence_hash": HASH, "proposer_address": ADDRESS},
            "data": {"txs": ["AQI="]},
            "evidence": {"evidence": [{"type": "tendermint/DuplicateVoteEvidence", "value": {"vote_a": vote, "vote_b": vote,
                "TotalVotingPower": "4", "ValidatorPower": "1", "Timestamp": "2026-11-27T10:00:00Z"}}]},
            "last_commit": {"height": "4", "round": 0, "block_id": id, "signatures": [
                {"block_id_flag": 2, "validator_address": ADDRESS, "timestamp": "2026-11-27T10:00:00Z", "signature": "AAA="},
                {"block_id_flag": 1, "validator_address": "", "timestamp": "0001-01-01T00:00:00Z", "signature": null}]},
        })
    }

    #[test]
    fn a_block_is_the_sdks_with_its_evidence_and_absent_votes() {
        let block = block_of(comet()).unwrap();
        let sdk_block = block.header.clone().map(|header| of_sdk(header, &block));
        let response = service::GetBlockByHeightResponse { block_id: None, block: Some(block), sdk_block };
        let answered = Answered::new(&response, None);
        let output = descriptors::method(&format!("{SERVICE}/GetLatestBlock")).unwrap().output();
        let printed = printed::of(&descriptors::decode(output, &answered.value).unwrap());
        let (block, of_sdk) = (&printed["block"], &printed["sdk_block"]);
        assert_eq!(block["header"]["version"], json!({"block": "11", "app": "0"}));
        assert_eq!(
            (&block["header"]["height"], &block["header"]["time"]),
            (&json!("5"), &json!("2026-11-27T10:00:00.25Z"))
        );
        assert_eq!(block["header"]["app_hash"], json!(STANDARD.encode(hex::decode(HASH).unwrap())));
        assert_eq!(block["header"]["proposer_address"], json!(STANDARD.encode(hex::decode(ADDRESS).unwrap())));
        assert!(of_sdk["header"]["proposer_address"].as_str().unwrap().starts_with("polyvalcons1"));
        assert_eq!((&block["data"], &of_sdk["data"]), (&json!({"txs": ["AQI="]}), &json!({"txs": ["AQI="]})));
        let evidence = &block["evidence"]["evidence"][0]["duplicate_vote_evidence"];
        assert_eq!(
            (&evidence["total_voting_power"], &evidence["vote_a"]["type"]),
            (&json!("4"), &json!("SIGNED_MSG_TYPE_PRECOMMIT"))
        );
        let votes = &block["last_commit"]["signatures"];
        assert_eq!(
            (&votes[0]["block_id_flag"], &votes[0]["signature"]),
            (&json!("BLOCK_ID_FLAG_COMMIT"), &json!("AAA="))
        );
        assert_eq!((&votes[1]["block_id_flag"], &votes[1]["signature"]), (&json!("BLOCK_ID_FLAG_ABSENT"), &json!("")));
        assert_eq!(block["last_commit"]["block_id"]["part_set_header"]["total"], json!(1));
    }

    #[test]
    fn heights_are_positive() {
        assert_eq!(positive(7), Ok(7));
        for height in [0, -1, i64::MIN] {
            assert!(positive(height).unwrap_err().message.contains("height"), "{height}");
        }
    }
}
