//! HTTP to other services: bounded, with deadlines, errors that say whom was asked.

use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::ApiError;
use crate::http::sse::EventReader;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer that is no stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of a stream (a waiting worker sends comments).
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest body that is no stream.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The address cannot be used.
    #[error("the endpoint `{0}` cannot be used: {1}")]
    Url(String, String),
    /// No answer, or the connection broke.
    #[error("{url} does not answer: {reason}")]
    Unreachable {
        /// Who.
        url: String,
        /// What happened.
        reason: String,
    },
    /// An error object.
    #[error("{url} refuses: {error}")]
    Refused {
        /// Who.
        url: String,
        /// What it says.
        error: Box<ApiError>,
    },
    /// Not what was expected.
    #[error("{url} answers something else than expected: {reason}")]
    Unexpected {
        /// Who.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// A client with pooled connections. Clones share them.
#[derive(Clone)]
pub struct HttpClient {
    inner: Client<HttpConnector, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpClient {
    /// With the timeouts of this module.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(Duration::from_secs(20)).pool_timer(hyper_util::rt::TokioTimer::new());
        Self { inner: builder.build(connector) }
    }

    async fn send(&self, method: Method, url: &str, body: Bytes) -> Result<hyper::Response<Incoming>, CallError> {
        let wrong = |reason: String| CallError::Url(url.into(), reason);
        let uri: Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| wrong(e.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("http:// is expected; TLS between services is not built yet".into()));
        }
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| wrong(e.to_string()))?;
        self.inner.request(request).await.map_err(|e| unreachable(url, &e))
    }

    async fn answer<A: DeserializeOwned>(&self, method: Method, url: &str, body: Bytes) -> Result<A, CallError> {
        let call = async {
            let response = self.send(method, url, body).await?;
            let status = response.status().as_u16();
            Ok((status, whole(url, response).await?))
        };
        let late = || CallError::Unreachable {
            url: url.into(),
            reason: format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
        };
        let (status, bytes) = tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| late())??;
        if !(200..300).contains(&status) {
            return Err(CallError::Refused {
                url: url.into(),
                error: Box::new(ApiError::from_response(status, &bytes)),
            });
        }
        serde_json::from_slice(&bytes).map_err(|e| CallError::Unexpected { url: url.into(), reason: e.to_string() })
    }

    /// GET of a JSON document.
    pub async fn get<A: DeserializeOwned>(&self, url: &str) -> Result<A, CallError> {
        self.answer(Method::GET, url, Bytes::new()).await
    }

    /// POST of one.
    pub async fn post<A: DeserializeOwned>(&self, url: &str, body: &impl Serialize) -> Result<A, CallError> {
        self.answer(Method::POST, url, json(url, body)?).await
    }

    /// POST that is answered by server-sent events. Returns once the answer's head is there.
    pub async fn stream(&self, url: &str, body: &impl Serialize) -> Result<EventStream, CallError> {
        let response = tokio::time::timeout(SILENCE_MAX, self.send(Method::POST, url, json(url, body)?));
        let late = || CallError::Unreachable {
            url: url.into(),
            reason: format!("no answer within {} s", SILENCE_MAX.as_secs()),
        };
        let response = response.await.map_err(|_| late())??;
        let status = response.status().as_u16();
        if status != 200 {
            let bytes = tokio::time::timeout(CALL_TIMEOUT, whole(url, response)).await.map_err(|_| late())??;
            return Err(CallError::Refused {
                url: url.into(),
                error: Box::new(ApiError::from_response(status, &bytes)),
            });
        }
        Ok(EventStream {
            url: url.into(),
            body: response.into_body(),
            reader: EventReader::default(),
            ready: Vec::new(),
        })
    }
}

fn json(url: &str, body: &impl Serialize) -> Result<Bytes, CallError> {
    let text =
        serde_json::to_vec(body).map_err(|e| CallError::Unexpected { url: url.into(), reason: e.to_string() })?;
    Ok(Bytes::from(text))
}

async fn whole(url: &str, response: hyper::Response<Incoming>) -> Result<Bytes, CallError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| CallError::Unreachable { url: url.into(), reason: e.to_string() })?;
    Ok(body.to_bytes())
}

fn unreachable(url: &str, error: &(dyn std::error::Error + 'static)) -> CallError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        reason = format!("{reason}: {inner}");
        cause = inner.source();
    }
    CallError::Unreachable { url: url.into(), reason }
}

/// Server-sent events as they arrive. Dropping it closes the connection, which cancels what the other side does.
pub struct EventStream {
    url: String,
    body: Incoming,
    reader: EventReader,
    /// Complete events, in reverse.
    ready: Vec<Vec<u8>>,
}

impl EventStream {
    /// The next event's JSON; None at the end of the stream.
    pub async fn next<A: DeserializeOwned>(&mut self) -> Result<Option<A>, CallError> {
        let broken = |reason: String| CallError::Unreachable { url: self.url.clone(), reason };
        while self.ready.is_empty() {
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            let frame = frame.map_err(|_| broken(format!("silent for {} s", SILENCE_MAX.as_secs())))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|e| broken(format!("the connection broke: {e}")))?;
            if let Some(bytes) = frame.data_ref() {
                let mut events = self.reader.push(bytes).map_err(|e| broken(e.to_string()))?;
                events.reverse();
                self.ready = events;
            }
        }
        let Some(event) = self.ready.pop() else { return Ok(None) };
        let parsed = serde_json::from_slice(&event);
        parsed.map(Some).map_err(|e| CallError::Unexpected { url: self.url.clone(), reason: e.to_string() })
    }
}
