//! REST as the SDK's gateway has it: a path and its parameters become a method's request, the answer is printed.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{BroadcastMode, BroadcastTxRequest, SimulateRequest};
use prost::Message;
use prost_reflect::MethodDescriptor;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::error::UNIMPLEMENTED;
use crate::{ApiError, BODY_BYTES_MAX, Bridge, HEIGHT, descriptors, height_of, json, request, routes};

/// Parameters in their order.
type Parameters = Vec<(String, String)>;

/// Serves it until it is dropped.
pub async fn serve(bridge: Bridge, listener: TcpListener) -> std::io::Result<()> {
    let router = Router::new()
        .fallback(handle)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(for_browsers))
        .with_state(bridge);
    axum::serve(listener, router).await
}

/// Wallets in browsers come from anywhere, and nothing here is secret.
async fn for_browsers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-cosmos-block-height"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn handle(
    State(bridge): State<Bridge>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    parameters: Result<Query<Parameters>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let asked = match method {
        Method::OPTIONS => return StatusCode::NO_CONTENT.into_response(),
        Method::GET => parameters.map_err(ApiError::invalid).and_then(|Query(parameters)| get(uri.path(), &parameters)),
        Method::POST => body.map_err(ApiError::invalid).and_then(|body| post(uri.path(), &body)),
        _ => Err(nothing()),
    };
    let answered = async {
        let (method, request) = asked?;
        let answered = bridge.answer(&method, &request, height_of(&headers)?).await?;
        let value = json::of(&descriptors::decode(method.output(), &answered.value)?);
        Ok::<_, ApiError>((value, answered.height))
    };
    match answered.await {
        Ok((value, height)) => {
            let mut response = Json(value).into_response();
            if let Some(height) = height {
                response.headers_mut().insert(HEIGHT.clone(), HeaderValue::from(height));
            }
            response
        }
        Err(error) => error.into_response(),
    }
}

/// As the SDK's gateway says it.
fn nothing() -> ApiError {
    ApiError::new(UNIMPLEMENTED, "Not Implemented")
}

/// The method of a path and its encoded request.
fn get(path: &str, parameters: &Parameters) -> Result<(MethodDescriptor, Vec<u8>), ApiError> {
    let routes::Found { method, fields } = routes::find(path).ok_or_else(nothing)?;
    let texts = fields.iter().chain(parameters).map(|(name, text)| (name.as_str(), text.as_str()));
    let request = request::make(method.input(), texts)?;
    Ok((method, request.encode_to_vec()))
}

/// The same for what is sent: a transaction to broadcast, or to simulate.
fn post(path: &str, body: &[u8]) -> Result<(MethodDescriptor, Vec<u8>), ApiError> {
    let name = match path {
        "/cosmos/tx/v1beta1/txs" => "cosmos.tx.v1beta1.Service/BroadcastTx",
        "/cosmos/tx/v1beta1/simulate" => "cosmos.tx.v1beta1.Service/Simulate",
        _ => return Err(nothing()),
    };
    let method = descriptors::method(name).ok_or_else(nothing)?;
    let body: Value = serde_json::from_slice(body).map_err(ApiError::invalid)?;
    let text = body["tx_bytes"].as_str().ok_or_else(|| ApiError::invalid("tx_bytes: a text in base64 is expected"))?;
    let tx_bytes = STANDARD.decode(text).map_err(|error| ApiError::invalid(format!("tx_bytes: {error}")))?;
    let request = if method.name() == "Simulate" {
        SimulateRequest { tx_bytes, ..Default::default() }.encode_to_vec()
    } else {
        let mode = body["mode"].as_str().and_then(BroadcastMode::from_str_name).unwrap_or_default();
        BroadcastTxRequest { tx_bytes, mode: mode.into() }.encode_to_vec()
    };
    Ok((method, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_without_a_transaction_are_named() {
        for (body, named) in
            [("", "EOF"), ("{}", "tx_bytes"), (r#"{"tx_bytes": 5}"#, "tx_bytes"), (r#"{"tx_bytes": "%"}"#, "tx_bytes")]
        {
            let error = post("/cosmos/tx/v1beta1/txs", body.as_bytes()).unwrap_err();
            assert!(error.code == 3 && error.message.contains(named), "{body}: {error}");
        }
        let (method, request) =
            post("/cosmos/tx/v1beta1/txs", br#"{"tx_bytes": "AQI=", "mode": "BROADCAST_MODE_ASYNC"}"#).unwrap();
        let request = BroadcastTxRequest::decode(request.as_slice()).unwrap();
        assert_eq!(
            (method.name(), request.tx_bytes.as_slice(), request.mode()),
            ("BroadcastTx", &[1, 2][..], BroadcastMode::Async)
        );
    }
}
