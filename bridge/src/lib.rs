//! REST and gRPC as wallets, explorers and relayers know them from the Cosmos SDK, in front of a node's RPC: the ledger's
//! queries, the state of the chain, and the broadcast, search and simulation of transactions.
//!
//! The bridge holds no state and decides nothing. A method of the descriptors is answered in one place, encoded
//! ([`Bridge::answer`]): a query is an `abci_query`, whose path is the method's. REST finds the method of a path
//! ([`routes`]) and prints the answer by the descriptors of its type ([`json`]); gRPC passes the bytes on.
//!
//! *Invariant*: every answer, refusals too, has the SDK's form with the height that was read; requests under way, their
//! size, and the wait for the node are bounded.

mod chain;
pub mod descriptors;
mod error;
mod grpc;
pub mod json;
mod node;
pub mod request;
mod rest;
pub mod routes;
mod txs;

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName};
use prost_reflect::MethodDescriptor;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use error::ApiError;
use node::{Answered, Node};

/// Requests under way at a time; one more is told to come back.
pub const REQUESTS_MAX: usize = 64;
/// Bytes of a body at most: a transaction of the largest size in base64, with room.
pub const BODY_BYTES_MAX: usize = 512 * 1024;
/// The height that shall be read, and that was.
static HEIGHT: HeaderName = HeaderName::from_static("x-cosmos-block-height");

/// What stands in front of a node.
#[derive(Clone)]
pub struct Bridge {
    node: Node,
    places: Arc<Semaphore>,
}

impl Bridge {
    /// Of the node at `rpc` (`http://HOST:PORT`).
    ///
    /// # Errors
    /// Where no HTTP client can be made.
    pub fn new(rpc: &str) -> std::io::Result<Self> {
        let node = Node::new(rpc).map_err(std::io::Error::other)?;
        Ok(Self { node, places: Arc::new(Semaphore::new(REQUESTS_MAX)) })
    }

    /// Serves REST until it is dropped.
    ///
    /// # Errors
    /// Of the listener.
    pub async fn serve_rest(&self, listener: TcpListener) -> std::io::Result<()> {
        rest::serve(self.clone(), listener).await
    }

    /// Serves gRPC until it is dropped.
    ///
    /// # Errors
    /// Of the listener.
    pub async fn serve_grpc(&self, listener: TcpListener) -> std::io::Result<()> {
        grpc::serve(self.clone(), listener).await
    }

    /// Answers a method's encoded request, as of a height where it is a query's; 0 is the newest.
    async fn answer(&self, method: &MethodDescriptor, request: &[u8], height: u64) -> Result<Answered, ApiError> {
        let Ok(_place) = self.places.try_acquire() else {
            let busy = format!("{REQUESTS_MAX} requests are under way already: ask again in a moment");
            return Err(ApiError::new(error::RESOURCE_EXHAUSTED, busy));
        };
        match method.parent_service().full_name() {
            chain::SERVICE => chain::answer(&self.node, method.name(), request).await,
            chain::NODE => chain::config(&self.node).await,
            chain::HEALTH => chain::health(&self.node, request).await,
            txs::SERVICE => txs::answer(&self.node, method, request, height).await,
            _ => self.node.query(&descriptors::abci_path(method), request, height).await,
        }
    }
}

/// The height that a request names; 0 where it names none.
fn height_of(headers: &HeaderMap) -> Result<u64, ApiError> {
    let Some(value) = headers.get(&HEIGHT) else { return Ok(0) };
    // CometBFT's heights have a sign.
    let height = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|height| *height <= i64::MAX as u64);
    height.ok_or_else(|| ApiError::invalid("x-cosmos-block-height: a height is expected"))
}
