//! REST as wallets and explorers know it from the Cosmos SDK, in front of a node's RPC: the ledger's queries, the state of
//! the chain, and the broadcast, search and simulation of transactions.
//!
//! The bridge holds no state and decides nothing: a query is an `abci_query`, its answer is printed by the descriptors of
//! its type ([`json`]). [`routes`] says which path is which query.
//!
//! *Invariant*: every answer, refusals too, is JSON of the SDK's gateway with the height that was read; requests under
//! way, their size, and the wait for the node are bounded.

mod chain;
pub mod descriptors;
mod error;
pub mod json;
mod node;
pub mod request;
pub mod routes;
mod txs;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, middleware};
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use error::ApiError;
use node::Node;

/// Requests under way at a time; one more is told to come back.
pub const REQUESTS_MAX: usize = 64;
/// Bytes of a body at most: a transaction of the largest size in base64, with room.
pub const BODY_BYTES_MAX: usize = 512 * 1024;
/// The height that shall be read, and that was.
static HEIGHT: HeaderName = HeaderName::from_static("x-cosmos-block-height");

/// Parameters in their order.
type Parameters = Vec<(String, String)>;

/// An answer with the height that was read.
struct Answered {
    value: Value,
    height: Option<u64>,
}

impl From<Value> for Answered {
    fn from(value: Value) -> Self {
        Self { value, height: None }
    }
}

#[derive(Clone)]
struct Bridge {
    node: Node,
    places: Arc<Semaphore>,
}

/// Serves the node at `rpc` (`http://HOST:PORT`) until it is dropped.
///
/// # Errors
/// Of the listener, or where no HTTP client can be made.
pub async fn serve(listener: TcpListener, rpc: &str) -> std::io::Result<()> {
    let node = Node::new(rpc).map_err(std::io::Error::other)?;
    let bridge = Bridge { node, places: Arc::new(Semaphore::new(REQUESTS_MAX)) };
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
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let Ok(_place) = bridge.places.try_acquire() else {
        let busy = format!("{REQUESTS_MAX} requests are under way already: ask again in a moment");
        return ApiError::new(error::RESOURCE_EXHAUSTED, busy).into_response();
    };
    let answered = async {
        let Query(parameters) = parameters.map_err(ApiError::invalid)?;
        match method {
            Method::GET => get(&bridge.node, uri.path(), &parameters, height_of(&headers)?).await,
            Method::POST => {
                let body = body.map_err(ApiError::invalid)?;
                txs::post(&bridge.node, uri.path(), &body).await?.ok_or_else(nothing)
            }
            _ => Err(nothing()),
        }
    };
    match answered.await {
        Ok(Answered { value, height }) => {
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
    ApiError::new(error::UNIMPLEMENTED, "Not Implemented")
}

fn height_of(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(value) = headers.get(&HEIGHT) else { return Ok(0) };
    let height = value.to_str().ok().and_then(|text| text.parse().ok());
    height.ok_or_else(|| ApiError::invalid("x-cosmos-block-height: a height is expected"))
}

async fn get(node: &Node, path: &str, parameters: &Parameters, height: u64) -> Result<Answered, ApiError> {
    if let Some(answered) = chain::get(node, path).await? {
        return Ok(answered);
    }
    if let Some(answered) = txs::get(node, path, parameters).await? {
        return Ok(answered);
    }
    let routes::Found { method, fields } = routes::find(path).ok_or_else(nothing)?;
    let texts = fields.iter().chain(parameters).map(|(name, text)| (name.as_str(), text.as_str()));
    let request = request::make(method.input(), texts)?;
    query(node, &method, &request.encode_to_vec(), height).await
}

async fn query(
    node: &Node,
    method: &prost_reflect::MethodDescriptor,
    request: &[u8],
    height: u64,
) -> Result<Answered, ApiError> {
    let answer = node.query(&descriptors::abci_path(method), request, height).await?;
    let value = json::of(&descriptors::decode(method.output(), &answer.value)?);
    Ok(Answered { value, height: Some(answer.height) })
}
