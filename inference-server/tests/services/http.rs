//! A small HTTP client for the tests: any method, headers, whole or streamed bodies.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use polylink_inference_server::http::sse::EventReader;
use serde_json::Value;

pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
    pub fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |name: &str| json["error"][name].as_str().unwrap_or_default().to_owned();
        assert!(json["error"]["message"].is_string(), "no error object: {json}");
        (self.status, text("code"), text("message"))
    }
}

async fn open(method: &str, url: &str, key: Option<&str>, body: Vec<u8>) -> hyper::Response<Incoming> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    client.request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
}

pub async fn send(method: &str, url: &str, key: Option<&str>, body: Vec<u8>) -> Reply {
    let response = open(method, url, key, body).await;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { status, headers, body: response.into_body().collect().await.unwrap().to_bytes().to_vec() }
}

pub async fn get(url: &str, key: Option<&str>) -> Reply {
    send("GET", url, key, vec![]).await
}

pub async fn post(url: &str, key: Option<&str>, body: &Value) -> Reply {
    send("POST", url, key, body.to_string().into_bytes()).await
}

/// A stream of events, read one by one; dropping it closes the connection.
pub struct Events {
    pub status: u16,
    body: Incoming,
    reader: EventReader,
    ready: std::collections::VecDeque<Vec<u8>>,
}

pub async fn stream(url: &str, key: Option<&str>, body: &Value) -> Events {
    let response = open("POST", url, key, body.to_string().into_bytes()).await;
    let status = response.status().as_u16();
    Events { status, body: response.into_body(), reader: EventReader::default(), ready: Default::default() }
}

impl Events {
    /// The next event's text; None at the end.
    pub async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() {
            let frame = self.body.frame().await?.unwrap();
            if let Some(bytes) = frame.data_ref() {
                self.ready.extend(self.reader.push(bytes).unwrap());
            }
        }
        self.ready.pop_front().map(|event| String::from_utf8(event).unwrap())
    }

    /// All chunks; the stream must end with `[DONE]`.
    pub async fn chunks(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while let Some(event) = self.next().await {
            if event == "[DONE]" {
                return chunks;
            }
            chunks.push(serde_json::from_str(&event).unwrap());
        }
        panic!("the stream broke off: {chunks:?}");
    }
}

/// The value of a metric, of the line that has this text in its labels.
pub async fn metric(base: &str, name: &str, label: &str) -> f64 {
    let text = String::from_utf8(get(&format!("{base}/metrics"), None).await.body).unwrap();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}
