//! One request of a soak, and what became of it.

use std::time::Duration;

use futures::StreamExt;
use rand::Rng;
use rand::rngs::StdRng;
use reqwest::Client;
use serde_json::{Value, json};

use super::clock::Clock;

/// An answer that has begun stands still when nothing comes of it for so long; it may have been preempted for others.
const STANDS_STILL: Duration = Duration::from_secs(300);

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    body: Value,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// An answer of the usual priority.
    Usual,
    /// An answer of a higher priority.
    Prior,
    /// One of a lower priority, which may wait for as long as the load lasts: leaves if it is not whole in time.
    Later(Duration),
    /// Of a higher priority too; leaves after so many tokens.
    Leaves(u64),
    /// Must be refused.
    Nonsense,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Whole; tokens that were computed for it.
    Answered { tokens: u64 },
    /// The client left.
    Left,
    /// The server is full, and says so.
    Refused,
    /// Refused as it must be.
    Nonsense,
}

/// Bodies that no server may take: name of a field, and its value as JSON.
const NONSENSE: [(&str, &str); 8] = [
    ("prompt", "[]"),
    ("prompt", "[99999999]"),
    ("prompt", "{\"a\": 1}"),
    ("max_tokens", "0"),
    ("temperature", "17"),
    ("n", "1000"),
    ("model", "\"no such model\""),
    ("logit_bias", "{\"x\": \"y\"}"),
];

impl Asked {
    /// The higher a tenant's number, the longer are its prompts and answers: a share is one of tokens, not of requests.
    pub(super) fn random(rng: &mut StdRng, model: &str, tenant: usize) -> Self {
        let kind = match rng.random_range(0..100) {
            0..78 => Kind::Usual,
            78..84 => Kind::Prior,
            84..87 => Kind::Later(Duration::from_millis(rng.random_range(100..4_000))),
            87..94 => Kind::Leaves(rng.random_range(1..20)),
            _ => Kind::Nonsense,
        };
        // Prompts that share their beginnings, sometimes.
        let topic = rng.random_range(0..6);
        let longest = 40 * (1 + tenant.min(2));
        let length = rng.random_range(1..longest);
        let words = (0..length).map(|i| if i < 40 { topic * 50 + i } else { rng.random_range(0..900) });
        let prompt: Vec<String> = words.map(|word| word.to_string()).collect();
        let mut body = json!({
            "model": model,
            "prompt": prompt.join(" "),
            "max_tokens": rng.random_range(1..longest),
            "temperature": f64::from(rng.random_range(0..12)) / 10.0,
            "seed": rng.random_range(0..1_000_000),
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if rng.random_bool(0.1) {
            body["n"] = json!(2);
        }
        if rng.random_bool(0.1) {
            body["presence_penalty"] = json!(0.5);
        }
        match kind {
            // Smaller goes first.
            Kind::Prior | Kind::Leaves(_) => body["priority"] = json!(-1),
            Kind::Later(_) => body["priority"] = json!(1),
            Kind::Nonsense => {
                let (field, value) = NONSENSE[rng.random_range(0..NONSENSE.len())];
                body[field] = value.parse().unwrap_or(Value::Null);
            }
            Kind::Usual => {}
        }
        Self { body, kind }
    }

    /// Whether its tokens are part of its tenant's share: nobody leaves those, since who leaves is not told what its prompt
    /// took.
    pub(super) fn counts_for_shares(&self) -> bool {
        self.kind == Kind::Usual
    }
}

/// Asks, and reads what comes. The error says what is not as it must be.
pub(super) async fn ask(
    client: &Client,
    endpoint: &str,
    key: &str,
    asked: &Asked,
    clock: &Clock,
) -> Result<Outcome, String> {
    let answer = read(client, endpoint, key, asked, clock);
    match asked.kind {
        Kind::Later(patience) => clock.within(patience, answer).await.unwrap_or(Ok(Outcome::Left)),
        _ => answer.await,
    }
}

async fn read(client: &Client, endpoint: &str, key: &str, asked: &Asked, clock: &Clock) -> Result<Outcome, String> {
    let url = format!("{}/completions", endpoint.trim_end_matches('/'));
    let reply = client.post(url).bearer_auth(key).json(&asked.body).send();
    // Whoever waits for a place waits for others' answers: the stall of the whole server is watched elsewhere.
    let reply = reply.await.map_err(|e| format!("no reply: {e}"))?;
    let status = reply.status().as_u16();
    if status != 200 {
        let text = reply.text().await.map_err(|e| format!("HTTP {status} without a body: {e}"))?;
        let value: Value = serde_json::from_str(&text).map_err(|_| format!("HTTP {status} is no JSON: {text:.200}"))?;
        if value["error"]["message"].as_str().is_none_or(str::is_empty) {
            return Err(format!("HTTP {status} gives no reason: {text:.200}"));
        }
        return match (asked.kind, status) {
            (Kind::Nonsense, 400..500) if status != 429 => Ok(Outcome::Nonsense),
            (_, 429) => Ok(Outcome::Refused),
            _ => Err(format!("HTTP {status}: {text:.300}")),
        };
    }
    if asked.kind == Kind::Nonsense {
        return Err("nonsense was answered".into());
    }
    let mut stream = reply.bytes_stream();
    let (mut buffer, mut chunks, mut usage, mut done) = (Vec::new(), 0, None, false);
    loop {
        let next = clock.within(STANDS_STILL, stream.next()).await;
        let Some(bytes) = next.ok_or("an answer that had begun stands still")? else { break };
        buffer.extend_from_slice(&bytes.map_err(|e| format!("the stream broke: {e}"))?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(data) = line.trim_end().strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).map_err(|e| format!("an event is not JSON: {e}"))?;
            if !event["error"].is_null() {
                return Err(format!("the answer failed: {}", event["error"]));
            }
            chunks += 1;
            if event["usage"].is_object() {
                usage = Some(event["usage"].clone());
            }
        }
        if let Kind::Leaves(after) = asked.kind
            && chunks >= after
        {
            return Ok(Outcome::Left);
        }
    }
    let Some(usage) = usage.filter(|_| done) else { return Err("the stream ended without usage or [DONE]".into()) };
    let count = |field: &str| usage[field].as_u64().unwrap_or(0);
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    Ok(Outcome::Answered { tokens: count("completion_tokens") + count("prompt_tokens").saturating_sub(cached) })
}
