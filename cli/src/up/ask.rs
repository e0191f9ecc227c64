//! The first question: answer, receipt, signatures, and after its epoch the proof that it stands on chain.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tendermint::Time;

use polylink_protocol::client::ChainClient;

use crate::error::CliError;
use crate::files;
use crate::home::{Home, Network};
use crate::verify::{self, LightBlock, ReceiptFile, check_answer, check_evidence};

/// Epochs within which a receipt must be provable: the one it was given in, and the next, in which its root is committed.
const EPOCHS: u64 = 2;

/// What is remembered of the question.
pub(super) struct Asked {
    /// The answer's id.
    id: String,
    /// The receipt's epoch.
    pub(super) epoch: u64,
}

/// The header that proofs are followed from: the newest one at the start, before any question was asked, so that no
/// proof brings its own trust. It is kept, for checking receipts later without this node.
pub(super) async fn trusted_header(chain: &ChainClient, home: &Home) -> Result<LightBlock, CliError> {
    let trusted = verify::light_block(chain, 0).await?;
    let directory = home.path().join("receipts");
    files::create_dir(&directory)?;
    files::write_json(&directory.join("trusted-header.json"), &trusted)?;
    Ok(trusted)
}

/// One non-streamed chat completion.
pub async fn chat(network: &Network, question: &str) -> Result<Value, CliError> {
    let url = format!("{}/chat/completions", network.endpoint()?);
    let body = json!({"model": network.model, "messages": [{"role": "user", "content": question}], "max_completion_tokens": 64, "temperature": 0});
    let request = reqwest::Client::new().post(&url).bearer_auth(&network.api_key).json(&body);
    let response = request.timeout(Duration::from_secs(60)).send().await.map_err(|e| CliError::http(&url, e))?;
    json_of(&url, response).await
}

async fn json_of(url: &str, response: reqwest::Response) -> Result<Value, CliError> {
    let status = response.status();
    let text = response.text().await.map_err(|e| CliError::http(url, e))?;
    if !status.is_success() {
        return Err(CliError::http(url, format!("HTTP {status}: {}", text.chars().take(500).collect::<String>())));
    }
    serde_json::from_str(&text).map_err(|e| CliError::http(url, format!("not JSON: {e}")))
}

/// An answer's record, as the gateway has it now.
pub async fn record(network: &Network, id: &str) -> Result<ReceiptFile, CliError> {
    let url = format!("{}/polylink/v1/receipts/{id}", network.url("gateway")?);
    let request = reqwest::Client::new().get(&url).bearer_auth(&network.api_key).timeout(Duration::from_secs(10));
    let value = json_of(&url, request.send().await.map_err(|e| CliError::http(&url, e))?).await?;
    Ok(ReceiptFile::from_json(&value.to_string())?)
}

/// Asks, prints answer and receipt, and checks digests and signatures.
pub(super) async fn first_question(
    network: &Network,
    chain: &ChainClient,
    home: &Home,
    question: &str,
) -> Result<Asked, CliError> {
    let answer = chat(network, question).await?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    let id = answer["id"].as_str().unwrap_or_default().to_owned();
    println!("\n  question   {question}\n  answer     {text}");
    let file = record(network, &id).await?;
    check_answer(&file.answer)?;
    let receipt = file.answer.receipt.receipt.clone().unwrap_or_default();
    verify::check_signatures_on(chain, &file.answer).await?;
    files::write_json(&home.path().join("receipts/first.json"), &file)?;
    println!(
        "  receipt    session {}, index {}, epoch {}: {} + {} tokens, {} uplk; request's and worker's signatures verified",
        receipt.session, receipt.index, receipt.epoch, receipt.prompt_tokens, receipt.completion_tokens, receipt.amount
    );
    Ok(Asked { id, epoch: receipt.epoch })
}

/// Waits until the worker has committed the receipt, then checks the whole chain of proofs and stores it. Returns the
/// height of the header that the proofs end in.
pub(super) async fn verify_fully(
    network: &Network,
    chain: &ChainClient,
    home: &Home,
    asked: Asked,
    trusted: &LightBlock,
) -> Result<u64, CliError> {
    let mut lost_since = None;
    loop {
        let last = match attempt(network, chain, &asked.id, trusted).await {
            Ok((file, height)) => {
                files::write_json(&home.path().join("receipts/first.json"), &file)?;
                return Ok(height);
            }
            Err(error) => error,
        };
        match chain.epoch().await {
            Ok((epoch, _)) if epoch >= asked.epoch + EPOCHS => {
                let reason = format!(
                    "epochs {} and {} are over and the receipt cannot be verified: {last}; see {}",
                    asked.epoch,
                    asked.epoch + EPOCHS - 1,
                    home.log("worker").display()
                );
                return Err(CliError::role("worker", reason));
            }
            Ok(_) => lost_since = None,
            // A node that is being started again is waited for; the supervisor says what happens.
            Err(error) => {
                if lost_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(120) {
                    return Err(error.into());
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn attempt(
    network: &Network,
    chain: &ChainClient,
    id: &str,
    trusted: &LightBlock,
) -> Result<(ReceiptFile, u64), CliError> {
    let mut file = record(network, id).await?;
    if file.answer.path.is_none() {
        return Err(CliError::value("path", "not committed yet"));
    }
    let evidence = verify::evidence(chain, &file.answer).await?;
    check_answer(&file.answer)?;
    check_evidence(&file.answer, &evidence, trusted, Time::now())?;
    let height = evidence.block.signed_header.header.height.value();
    file.chain = Some(evidence);
    Ok((file, height))
}
