//! A proxy between a payer and a real worker that changes what the worker says: how a worker lies in these tests.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use polylink_inference_server::http::server;
use polylink_inference_server::http::sse::EventReader;

use super::http::Reply;

type Change = Box<dyn Fn(&str, &mut Reply) + Send + Sync>;

/// What becomes of an event of a stream.
pub enum Pass {
    /// It goes through.
    On,
    /// These go through instead of it.
    Instead(Vec<Vec<u8>>),
    /// The stream ends before it; the worker is read to its end, and knows nothing of it.
    End,
    /// As `End`, but the stream stays open, silent, until its reader leaves.
    Hold,
}

type Stream = Arc<dyn Fn(&[u8]) -> Pass + Send + Sync>;

struct Shared {
    target: String,
    client: Client<HttpConnector, Full<Bytes>>,
    change: Change,
    stream: Stream,
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
        Self::start_altering(listener, target, change, |_| Pass::On)
    }

    /// As `start`; `stream` sees each event of a stream as well.
    pub fn start_altering(
        listener: tokio::net::TcpListener,
        target: &str,
        change: impl Fn(&str, &mut Reply) + Send + Sync + 'static,
        stream: impl Fn(&[u8]) -> Pass + Send + Sync + 'static,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let shared =
            Arc::new(Shared { target: target.into(), client, change: Box::new(change), stream: Arc::new(stream) });
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
            return Response::from_parts(parts, altered(body, Arc::clone(&shared.stream)));
        }
    } else {
        reply.body = to_bytes(Body::new(body), 8 << 20).await.unwrap().to_vec();
        (shared.change)(path, &mut reply);
    }
    let status = axum::http::StatusCode::from_u16(reply.status).unwrap();
    (status, [("content-type", "application/json")], reply.body).into_response()
}

fn altered(mut body: hyper::body::Incoming, stream: Stream) -> Body {
    let (to, from) = tokio::sync::mpsc::channel::<Bytes>(64);
    tokio::spawn(async move {
        let (mut reader, mut to, mut held) = (EventReader::default(), Some(to), None);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                // Who goes away is gone for the worker too.
                () = async { to.as_ref().unwrap().closed().await }, if to.is_some() => return,
            };
            let Some(Ok(frame)) = frame else { break };
            let Some(bytes) = frame.data_ref() else { continue };
            for event in reader.push(bytes).unwrap() {
                let Some(sender) = &to else { continue };
                let sent = match stream(&event) {
                    Pass::On => vec![event],
                    Pass::Instead(others) => others,
                    Pass::End => {
                        to = None;
                        continue;
                    }
                    Pass::Hold => {
                        held = to.take();
                        continue;
                    }
                };
                for event in sent {
                    let text = [b"data: ", event.as_slice(), b"\n\n"].concat();
                    if sender.send(text.into()).await.is_err() {
                        return;
                    }
                }
            }
        }
        if let Some(sender) = held {
            sender.closed().await;
        }
    });
    let chunks = futures::stream::unfold(from, |mut from| async move {
        from.recv().await.map(|bytes| (Ok::<_, std::io::Error>(bytes), from))
    });
    Body::from_stream(chunks)
}
