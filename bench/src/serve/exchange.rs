//! One streamed chat completion, timed at the client: time to first token, gaps between tokens, end to end.

use futures::StreamExt;
use reqwest::Client;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The most bytes of one answer that are read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What is asked, and of whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// Base URL up to and with `/v1`.
    pub endpoint: String,
    /// Bearer token; empty for none.
    pub api_key: String,
    /// Model's name.
    pub model: String,
    /// At most this many completion tokens.
    pub max_tokens: u32,
    /// Ask for exactly `max_tokens` (`ignore_eos`), for figures that compare.
    pub ignore_eos: bool,
    /// Limit of one exchange.
    pub timeout: Duration,
}

/// Times of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// From sending to the first content.
    pub first_token: Duration,
    /// Between one content chunk and the next.
    pub gaps: Vec<Duration>,
    /// From sending to the end of the stream.
    pub total: Duration,
    /// By the answer's usage.
    pub prompt_tokens: u64,
    /// By the answer's usage; the number of content chunks where the server sends no usage.
    pub completion_tokens: u64,
}

/// Sends one question and reads its stream to the end. The error names what went wrong.
pub async fn ask(client: &Client, target: &Target, prompt: &str, seed: u64) -> Result<Timing, String> {
    let mut body = json!({
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_completion_tokens": target.max_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
        "seed": seed,
    });
    if target.ignore_eos {
        body["ignore_eos"] = Value::Bool(true);
    }
    let start = Instant::now();
    let url = format!("{}/chat/completions", target.endpoint.trim_end_matches('/'));
    let mut request = client.post(url).json(&body).timeout(target.timeout);
    if !target.api_key.is_empty() {
        request = request.bearer_auth(&target.api_key);
    }
    let response = request.send().await.map_err(|e| with_sources(&e))?;
    let status = response.status();
    if !status.is_success() {
        let text: String = response.text().await.unwrap_or_default().chars().take(300).collect();
        return Err(format!("HTTP {status}: {text}"));
    }
    let mut events = Events::default();
    let mut chunks = Vec::new();
    let mut usage = None;
    let mut done = false;
    let mut stream = response.bytes_stream();
    while let Some(bytes) = stream.next().await {
        events.push(&bytes.map_err(|e| with_sources(&e))?)?;
        while let Some(data) = events.next_data() {
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(&data).map_err(|e| format!("an event is not JSON: {e}"))?;
            if let Some(error) = event.get("error").filter(|e| !e.is_null()) {
                return Err(format!("the stream ended with an error: {error}"));
            }
            if has_content(&event) {
                chunks.push(start.elapsed());
            }
            if let Some(found) = event.get("usage").filter(|u| u.is_object()) {
                usage = Some((count(found, "prompt_tokens"), count(found, "completion_tokens")));
            }
        }
    }
    let total = start.elapsed();
    if !done {
        return Err("the stream ended without [DONE]".into());
    }
    let Some(first_token) = chunks.first().copied() else { return Err("the answer has no content".into()) };
    let gaps = chunks.windows(2).map(|w| w[1] - w[0]).collect();
    let (prompt_tokens, completion_tokens) = usage.unwrap_or((0, chunks.len() as u64));
    Ok(Timing { first_token, gaps, total, prompt_tokens, completion_tokens })
}

fn has_content(event: &Value) -> bool {
    let choices = event["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    choices.iter().any(|c| c["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()))
}

fn count(usage: &Value, field: &str) -> u64 {
    usage[field].as_u64().unwrap_or(0)
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Splits server-sent events out of arriving bytes (WHATWG HTML §9.2, the `data` field of one line).
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
    read: usize,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.read += bytes.len();
        if self.read > ANSWER_BYTES_MAX {
            return Err(format!("the answer is over {ANSWER_BYTES_MAX} bytes"));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
    fn next_data(&mut self) -> Option<String> {
        loop {
            let end = self.buffer.iter().position(|b| *b == b'\n')?;
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if let Some(data) = String::from_utf8_lossy(&line).trim_end().strip_prefix("data:") {
                return Some(data.trim_start().to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_packets() {
        let mut events = Events::default();
        events.push(b": comment\r\ndata: {\"a\":").unwrap();
        assert_eq!(events.next_data(), None);
        events.push(b"1}\r\n\r\ndata:[DONE]\n\n").unwrap();
        assert_eq!(events.next_data().as_deref(), Some("{\"a\":1}"));
        assert_eq!(events.next_data().as_deref(), Some("[DONE]"));
        assert_eq!(events.next_data(), None);
        assert!(events.push(&vec![0; ANSWER_BYTES_MAX]).is_err());
    }
}
