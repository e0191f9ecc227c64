//! Fetching from a node what a receipt is checked against.

use tendermint::block::Height;
use tendermint_rpc::{Client as _, Paging};

use polylink_abci_app::store::PROOF_OP_TYPE;
use polylink_protocol::Digest;
use polylink_protocol::client::ChainClient;
use polylink_protocol::digest::decode_canonical;
use polylink_protocol::market::terms_at;
use polylink_protocol::market_v1::Receipt;
use polylink_protocol::transcript::AnswerRecord;

use super::answer::parts;
use super::evidence::{ChainEvidence, LightBlock, StateProof, check_signatures, pot_key, session_key};
use super::fault;
use crate::error::CliError;

/// ABCI path of a state key's value with its proof.
const STORE_PATH: &str = "/store";
/// How long the header after the state is waited for.
const HEADER_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// A header with commit and validators; 0 is the newest.
pub async fn light_block(chain: &ChainClient, height: u64) -> Result<LightBlock, CliError> {
    let height = if height == 0 { chain.status().await?.height } else { height };
    let at = Height::try_from(height).map_err(|e| CliError::value("height", e))?;
    let wrong = |e: tendermint_rpc::Error| CliError::http(chain.url(), format!("no block at height {height}: {e}"));
    let commit = chain.rpc().commit(at).await.map_err(wrong)?;
    let validators = chain.rpc().validators(at, Paging::All).await.map_err(wrong)?;
    Ok(LightBlock::new(commit.signed_header, &validators.validators))
}

/// The evidence for a record at the newest height.
pub async fn evidence(chain: &ChainClient, record: &AnswerRecord) -> Result<ChainEvidence, CliError> {
    let session_key = session_key(record)?;
    let height = chain.query_raw(STORE_PATH, session_key.clone(), 0, true).await?.height;
    let prove = async |part: &'static str, key: Vec<u8>| -> Result<StateProof, CliError> {
        let answer = chain.query_raw(STORE_PATH, key.clone(), height, true).await?;
        if answer.value.is_empty() {
            return Err(fault(part, "the chain has none for this receipt (yet); is the epoch over?").into());
        }
        let proof = answer.proof.into_iter().find(|(kind, ..)| kind == PROOF_OP_TYPE);
        let (_, _, proof) = proof.ok_or_else(|| fault(part, format!("the node gave no {PROOF_OP_TYPE} proof")))?;
        Ok(StateProof { key, value: answer.value, proof })
    };
    let session = prove("session", session_key).await?;
    let record_of_session = decode_canonical("session", &session.value).map_err(|e| fault("session", e))?;
    let pot = prove("pot", pot_key(record, &record_of_session)?).await?;
    let deadline = tokio::time::Instant::now() + HEADER_WAIT;
    while chain.status().await?.height <= height {
        if tokio::time::Instant::now() > deadline {
            return Err(CliError::http(
                chain.url(),
                format!("no block after height {height} within {} s", HEADER_WAIT.as_secs()),
            ));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(ChainEvidence { height, block: light_block(chain, height + 1).await?, session, pot })
}

/// Checks a record's signatures by the keys that a node names, before or after the epoch's commitment.
pub async fn check_signatures_on(chain: &ChainClient, record: &AnswerRecord) -> Result<(), CliError> {
    let (_, receipt) = parts(record)?;
    let session = chain.session(receipt.session).await?;
    let session = session.ok_or_else(|| fault("receipt.session", "the chain has no such session"))?;
    Ok(check_signatures(record, &session, &receipt_key(chain, receipt).await?)?)
}

/// The worker's receipt key in the receipt's epoch: by its terms, or, once they are forgotten, by its pot.
async fn receipt_key(chain: &ChainClient, receipt: &Receipt) -> Result<Vec<u8>, CliError> {
    let operator = receipt.worker.parse().map_err(|e| fault("receipt.worker", e))?;
    let worker =
        chain.worker(&operator).await?.ok_or_else(|| fault("receipt.worker", "the chain has no such worker"))?;
    if let Some(terms) = terms_at(&worker, receipt.epoch) {
        return Ok(terms.receipt_key.clone());
    }
    let profile = Digest::from_slice(&receipt.profile_digest)
        .ok_or_else(|| fault("receipt.profile_digest", "32 bytes are expected"))?;
    let pot = chain.pot(receipt.epoch, &receipt.worker, &profile).await?.filter(|pot| pot.root.is_some());
    let forgotten = || fault("receipt.epoch", "the chain does not know the worker's key of that epoch (any more)");
    Ok(pot.ok_or_else(forgotten)?.receipt_key)
}
