//! CometBFT's RPC, as plain JSON: what the bridge asks of its node.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use reqwest::Client;
use serde_json::{Value, json};

use crate::error::{ApiError, DEADLINE_EXCEEDED};

/// The longest wait for the node.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A node's RPC.
#[derive(Clone)]
pub struct Node {
    url: String,
    client: Client,
}

/// A method's answer.
pub struct Answered {
    /// Encoded.
    pub value: Vec<u8>,
    /// The height that was read, where it was one.
    pub height: Option<u64>,
}

impl Answered {
    /// Of a message.
    pub fn new(message: &impl Message, height: Option<u64>) -> Self {
        Self { value: message.encode_to_vec(), height }
    }
}

/// A method's request.
pub fn decoded<M: Message + Default>(request: &[u8]) -> Result<M, ApiError> {
    M::decode(request).map_err(ApiError::invalid)
}

/// A number that CometBFT prints as a string.
pub fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Node {
    /// At `http://HOST:PORT`.
    pub fn new(url: &str) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().timeout(ANSWER_MAX).build()?;
        Ok(Self { url: url.to_owned(), client })
    }

    /// One call: its result, or CometBFT's error as a text.
    pub async fn call(&self, method: &str, params: Value) -> Result<Result<Value, String>, ApiError> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let request = self.client.post(&self.url).header("content-type", "application/json").body(body);
        let answer = async { request.send().await?.json::<Value>().await };
        let mut answer = answer.await.map_err(|error| match error.is_timeout() {
            true => {
                let reason = format!("the node does not answer within {} s", ANSWER_MAX.as_secs());
                ApiError::new(DEADLINE_EXCEEDED, reason)
            }
            // What reqwest says of a URL is the node's, not the caller's business.
            false => ApiError::unavailable(format!("the node does not answer: {}", error.without_url())),
        })?;
        if answer["error"].is_null() {
            return Ok(Ok(answer["result"].take()));
        }
        let text = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
        Ok(Err(match text("data") {
            data if data.is_empty() => text("message"),
            data => data,
        }))
    }

    /// One call that must succeed.
    pub async fn result(&self, method: &str, params: Value) -> Result<Value, ApiError> {
        self.call(method, params).await?.map_err(ApiError::invalid)
    }

    /// One query of the ledger; height 0 is the newest.
    pub async fn query(&self, path: &str, data: &[u8], height: u64) -> Result<Answered, ApiError> {
        let params = json!({"path": path, "data": hex::encode(data), "height": height.to_string(), "prove": false});
        let answer = self.result("abci_query", params).await?;
        let response = &answer["response"];
        let text = |name: &str| response[name].as_str().unwrap_or_default();
        match response["code"].as_u64().unwrap_or(0) {
            0 => {
                let value = STANDARD.decode(text("value")).map_err(ApiError::unavailable)?;
                Ok(Answered { value, height: Some(number(&response["height"])) })
            }
            code => Err(ApiError::of_query(text("codespace"), code, text("log"))),
        }
    }

    /// A height as CometBFT takes it: the newest where none is given.
    pub fn at(height: Option<u64>) -> Value {
        height.map_or_else(|| json!({}), |height| json!({"height": height.to_string()}))
    }
}
