//! A proxy between a payer and a real worker that changes what the worker says: how a worker lies in these tests.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use polylink_inference_server::http::server;

use super::http::Reply;

type Change = Box<dyn Fn(&str, &mut Reply) + Send + Sync>;

struct Shared {
    target: String,
    client: Client<HttpConnector, Full<Bytes>>,
    change: Change,
}

pub struct Proxy {
    pub url: String,
}

impl Proxy {
    /// Everything goes through; replies that are no streams, and refusals, may be changed by path.
    pub async fn start(target: &str, change: impl Fn(&str, &mut Reply) + Send + Sync + 'static) -> Self {
        let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        Self::start_on(listener, target, change)
    }

    pub fn start_on(
        listener: tokio::net::TcpListener,
        target: &str,
        change: impl Fn(&str, &mut Reply) + Send + Sync + 'static,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let shared = Arc::new(Shared { target: target.into(), client, change: Box::new(change) });
        let router = axum::Router::new().fallback(forward).with_state(shared);
        // It ends with the test's runtime.
        let server = server::start(listener, router).unwrap();
        Self { url: format!("http://{}", server.address()) }
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 8 << 20).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().as_str();
    let mut forwarded = hyper::Request::builder().method(parts.method).uri(format!("{}{path}", shared.target));
    forwarded = forwarded.header("content-type", "application/json");
    let Ok(response) = shared.client.request(forwarded.body(Full::new(body)).unwrap()).await else {
        return axum::http::StatusCode::BAD_GATEWAY.into_response();
    };
    let (parts, body) = response.into_parts();
    let streamed = parts.headers.get("content-type").is_some_and(|t| t.to_str().unwrap().contains("event-stream"));
    let mut reply = Reply { status: parts.status.as_u16(), headers: parts.headers.clone(), body: vec![] };
    if streamed {
        (shared.change)(path, &mut reply);
        if reply.status == 200 {
            return Response::from_parts(parts, Body::new(body));
        }
    } else {
        reply.body = to_bytes(Body::new(body), 8 << 20).await.unwrap().to_vec();
        (shared.change)(path, &mut reply);
    }
    let status = axum::http::StatusCode::from_u16(reply.status).unwrap();
    (status, [("content-type", "application/json")], reply.body).into_response()
}
