//! A streamed answer that is read bit by bit, so that something can happen in the middle of it.

use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use std::time::Duration;

use super::Net;

pub struct Streaming {
    bytes: BoxStream<'static, Result<Vec<u8>, reqwest::Error>>,
    seen: String,
}

/// A stream that has come to its end, whole or not.
#[derive(Debug, Default)]
pub struct Streamed {
    /// The answer's id.
    pub id: String,
    pub text: String,
    /// `[DONE]` came.
    pub done: bool,
    /// The receipt, on the chunk with the finish reason.
    pub receipt: Option<Value>,
    /// The error event.
    pub error: Option<Value>,
}

impl Net {
    /// Begins a streamed chat completion; it must be accepted.
    pub async fn stream(&self, messages: Value, more: Value) -> Streaming {
        let mut body = json!({"model": self.model, "messages": messages, "stream": true});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let request = self.http.post(format!("{}/chat/completions", self.endpoint)).bearer_auth(&self.api_key);
        let response = request.json(&body).timeout(Duration::from_secs(90)).send().await.unwrap();
        let status = response.status();
        assert!(status.is_success(), "{status}: {}", response.text().await.unwrap_or_default());
        let bytes = response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec()));
        Streaming { bytes: bytes.boxed(), seen: String::new() }
    }
}

impl Streaming {
    /// Reads until so many events have come.
    pub async fn until_events(&mut self, count: usize) {
        while self.seen.matches("data:").count() < count {
            let chunk = self.bytes.next().await.expect("the stream ended too early").unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    /// The answer's id, once an event has come.
    pub fn id(&self) -> String {
        let event = self.seen.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event has come");
        serde_json::from_str::<Value>(event).unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// Reads to the end, however it comes.
    pub async fn read_out(mut self) -> Streamed {
        while let Some(Ok(chunk)) = self.bytes.next().await {
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        let mut answer = Streamed::default();
        for event in self.seen.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if event == "[DONE]" {
                answer.done = true;
                continue;
            }
            // A last event may be cut off.
            let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
            if event["error"].is_object() {
                answer.error = Some(event["error"].clone());
            }
            if let Some(id) = event["id"].as_str() {
                answer.id = id.to_owned();
            }
            answer.text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            if event["polylink"]["receipt"].is_object() {
                answer.receipt = Some(event["polylink"]["receipt"].clone());
            }
        }
        answer
    }
}
