//! The gateway's own endpoints: the record of an answer (`receipt.json`), an API key's usage, and who the gateway is.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use polylink_protocol::market::receipt_digest;
use polylink_protocol::transcript::{AnswerRecord, ReceiptProof};
use serde_json::json;

use super::Gateway;
use crate::client::call::CallError;
use crate::http::{ApiError, Caller};

pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/polylink/v1/receipts/{id}", get(record))
        .route("/polylink/v1/usage", get(usage))
        .route("/polylink/v1/info", get(info))
        .with_state(gateway)
}

fn caller(headers: &HeaderMap) -> Caller {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    Caller { api_key: text.and_then(|text| text.strip_prefix("Bearer ")).map(|key| key.trim().into()) }
}

async fn record(
    State(gateway): State<Arc<Gateway>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = gateway.keys.authenticate(&caller(&headers))?;
    let (shared, wanted) = (Arc::clone(&gateway), id.clone());
    let found = tokio::task::spawn_blocking(move || shared.payer.store().answer(&wanted)).await;
    let found = found.map_err(|e| ApiError::internal(e.to_string()))?.map_err(|e| ApiError::internal(e.to_string()))?;
    // Another key's answer does not exist for this one.
    let (mut record, _, endpoint) = found.filter(|(_, key_id, _)| *key_id == key.id).ok_or_else(|| {
        let shown: String = id.chars().take(80).collect();
        ApiError::new(
            StatusCode::NOT_FOUND,
            "unknown_answer",
            format!("there is no answer `{shown}` of this API key here any more"),
        )
    })?;
    add_proof(&gateway, &mut record, &endpoint).await;
    Ok(axum::Json(record).into_response())
}

/// Path and root, once the worker has committed them; without them the record is sound too.
async fn add_proof(gateway: &Gateway, record: &mut AnswerRecord, endpoint: &str) {
    let Some(receipt) = &record.receipt.receipt else { return };
    let (session, index, digest) = (receipt.session, receipt.index, receipt_digest(receipt));
    let url = format!("{endpoint}/polylink/v1/proof?session={session}&index={index}&receipt={digest}");
    match gateway.payer.http().get::<ReceiptProof>(&url).await {
        Ok(proof) => (record.path, record.root) = (Some(proof.path), Some(proof.root)),
        Err(CallError::Refused { error, .. }) if error.status == StatusCode::NOT_FOUND => {}
        Err(error) => tracing::debug!(%error, "the worker does not prove a receipt now"),
    }
}

async fn usage(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let key = gateway.keys.authenticate(&caller(&headers))?;
    let used = gateway.payer.store().key(&key.id);
    let object = json!({
        "key": key.id, "name": key.name, "budget_uplk": key.budget, "rate_per_minute": key.rate_per_minute,
        "spent_uplk": used.spent, "reserved_uplk": used.reserved, "answers": used.answers,
        "cut_answers": used.cut,
        "prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens,
        "session": key.session.as_ref().map(|s| s.session), "voucher": used.voucher, "redeemed_uplk": used.redeemed,
    });
    Ok(axum::Json(object).into_response())
}

async fn info(State(gateway): State<Arc<Gateway>>) -> Response {
    let account = gateway.config.account.address().account();
    let (chain_id, private) = (gateway.payer.clock().chain_id(), gateway.config.private);
    axum::Json(json!({"chain_id": chain_id, "account": account, "private": private})).into_response()
}
