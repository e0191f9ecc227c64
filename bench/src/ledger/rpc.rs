//! What the load asks of CometBFT's RPC, as plain JSON-RPC: a client of few calls that costs little.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Client;
use serde_json::{Value, json};

use crate::BenchError;
use crate::process::failed;

/// The longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// One node's RPC.
#[derive(Clone)]
pub struct Rpc {
    url: String,
    client: Client,
}

fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

impl Rpc {
    /// At `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`BenchError::Client`].
    pub fn new(url: &str) -> Result<Self, BenchError> {
        Self::with_patience(url, ANSWER_MAX)
    }

    /// As [`Rpc::new`], with another longest wait for an answer.
    ///
    /// # Errors
    /// [`BenchError::Client`].
    pub fn with_patience(url: &str, longest: Duration) -> Result<Self, BenchError> {
        let client = Client::builder().no_proxy().timeout(longest).build().map_err(BenchError::Client)?;
        Ok(Self { url: url.to_owned(), client })
    }

    fn wrong(&self, call: &str, reason: impl std::fmt::Display) -> BenchError {
        failed(&self.url, format!("{call}: {reason}"))
    }

    async fn call(&self, method: &str, params: Value) -> Result<Value, BenchError> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let answer = self.client.post(&self.url).header("content-type", "application/json").body(body);
        let answer = async { answer.send().await?.json::<Value>().await };
        let mut answer = answer.await.map_err(|e| self.wrong(method, e))?;
        match answer["result"].take() {
            Value::Null => Err(self.wrong(method, &answer["error"])),
            result => Ok(result),
        }
    }

    /// The last block that the application has committed. (What `status` names is stored, and not executed yet.)
    pub async fn height(&self) -> Result<u64, BenchError> {
        let info = self.call("abci_info", json!({})).await?;
        // Zero is left out.
        Ok(number(&info["response"]["last_block_height"]).unwrap_or(0))
    }

    /// The oldest block that it has.
    pub async fn oldest(&self) -> Result<u64, BenchError> {
        let status = self.call("status", json!({})).await?;
        number(&status["sync_info"]["earliest_block_height"]).ok_or_else(|| self.wrong("status", "it names no block"))
    }

    /// The chain's id.
    pub async fn chain_id(&self) -> Result<String, BenchError> {
        let status = self.call("status", json!({})).await?;
        let id = status["node_info"]["network"].as_str();
        id.map(str::to_owned).ok_or_else(|| self.wrong("status", "it names no chain"))
    }

    /// How many transactions wait.
    pub async fn waiting(&self) -> Result<u64, BenchError> {
        let answer = self.call("num_unconfirmed_txs", json!({})).await?;
        number(&answer["n_txs"]).ok_or_else(|| self.wrong("num_unconfirmed_txs", "it names no number"))
    }

    /// How many transactions a block has.
    pub async fn txs_of(&self, height: u64) -> Result<usize, BenchError> {
        let height = height.to_string();
        let answer = self.call("blockchain", json!({"minHeight": height, "maxHeight": height})).await?;
        let txs = number(&answer["block_metas"][0]["num_txs"]);
        txs.map(|txs| txs as usize).ok_or_else(|| self.wrong("blockchain", format!("there is no block {height}")))
    }

    /// A block's transactions in base64, with the code of each.
    pub async fn results(&self, height: u64) -> Result<Vec<(String, u64)>, BenchError> {
        let at = json!({"height": height.to_string()});
        let mut block = self.call("block", at.clone()).await?;
        let results = self.call("block_results", at).await?;
        let txs = block["block"]["data"]["txs"].take();
        let texts = txs.as_array().into_iter().flatten().filter_map(|tx| tx.as_str().map(str::to_owned));
        let codes = results["txs_results"].as_array().into_iter().flatten();
        Ok(texts.zip(codes.map(|result| result["code"].as_u64().unwrap_or(0))).collect())
    }

    /// The hash of a block, and the application hash in it.
    pub async fn hashes(&self, height: u64) -> Result<(String, String), BenchError> {
        let height = height.to_string();
        let answer = self.call("blockchain", json!({"minHeight": height, "maxHeight": height})).await?;
        let meta = &answer["block_metas"][0];
        match (meta["block_id"]["hash"].as_str(), meta["header"]["app_hash"].as_str()) {
            (Some(block), Some(app)) if !block.is_empty() => Ok((block.to_owned(), app.to_owned())),
            _ => Err(self.wrong("blockchain", format!("there is no block {height}"))),
        }
    }

    /// An ABCI query's value, in base64.
    pub async fn query(&self, path: &str, data: &[u8]) -> Result<String, BenchError> {
        let data: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = self.call("abci_query", json!({"path": path, "data": data})).await?;
        let response = &answer["response"];
        match response["value"].as_str() {
            Some(value) if response["code"].as_u64().unwrap_or(0) == 0 => Ok(value.to_owned()),
            _ => Err(self.wrong(path, &response["log"])),
        }
    }

    /// Sends a request of several calls; each of them must be taken.
    pub async fn send(&self, body: Bytes) -> Result<(), BenchError> {
        let answer = self.client.post(&self.url).header("content-type", "application/json").body(body);
        let answer = async { answer.send().await?.bytes().await };
        let answer = answer.await.map_err(|e| self.wrong("broadcast_tx_async", e))?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| self.wrong("broadcast_tx_async", e))?;
        // Of a single call the answer stands alone.
        let answers = answer.as_array().map_or(std::slice::from_ref(&answer), Vec::as_slice);
        let refused = |answer: &&Value| !answer["error"].is_null() || answer["result"]["code"].as_u64() != Some(0);
        match answers.iter().find(refused) {
            Some(answer) => Err(self.wrong("broadcast_tx_async", answer)),
            None => Ok(()),
        }
    }
}
