//! Asking workers for sampled transcripts.

use std::collections::BTreeMap;
use std::time::Duration;

use polylink_protocol::client::ChainClient;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::Worker;
use polylink_protocol::tiqe_v1::Sample;
use polylink_protocol::transcript::{Disclosure, DisclosureCall, disclosure_digest};
use polylink_protocol::{Address, Digest};

use crate::transcript::{self, Expected};
use crate::{JudgeError, Transcript};

/// The longest that one disclosure may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls per sample before it counts as missing.
const TRIES: usize = 2;
/// The largest transcript that is read.
const TRANSCRIPT_BYTES_MAX: usize = 16 << 20;

/// Who asks, and where the chain is.
pub(super) struct Caller<'a> {
    pub(super) chain: &'a ChainClient,
    pub(super) chain_id: &'a str,
    pub(super) judge: &'a str,
    pub(super) key: &'a ServiceKey,
}

/// An HTTP client with deadlines.
pub(super) struct Client {
    http: reqwest::Client,
}

impl Client {
    pub(super) fn new() -> Result<Self, JudgeError> {
        // A worker names its own endpoint; a redirect could name anybody's.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
        Ok(Self { http: http.map_err(|e| JudgeError::Http(e.to_string()))? })
    }

    /// Each sample's transcript, or None where the worker showed nothing that verifies.
    pub(super) async fn all(
        &self,
        caller: &Caller<'_>,
        profile: &Digest,
        samples: &[Sample],
    ) -> Result<Vec<Option<Transcript>>, JudgeError> {
        let mut workers: BTreeMap<&str, Option<Worker>> = BTreeMap::new();
        let mut out = Vec::with_capacity(samples.len());
        for sample in samples {
            if !workers.contains_key(sample.worker.as_str()) {
                let found = match sample.worker.parse::<Address>() {
                    Ok(address) => caller.chain.worker(&address).await?,
                    Err(_) => None,
                };
                workers.insert(&sample.worker, found);
            }
            let worker = workers.get(sample.worker.as_str()).and_then(Option::as_ref);
            out.push(match worker {
                Some(worker) => self.one(caller, sample.epoch, profile, sample, worker).await?,
                None => None,
            });
        }
        Ok(out)
    }

    async fn one(
        &self,
        caller: &Caller<'_>,
        epoch: u64,
        profile: &Digest,
        sample: &Sample,
        worker: &Worker,
    ) -> Result<Option<Transcript>, JudgeError> {
        let mut reason = String::new();
        for _ in 0..TRIES {
            match self.call(caller, epoch, profile, sample, worker).await {
                Ok(disclosure) => return self.check(caller, epoch, profile, sample, worker, disclosure).await,
                Err(error) => reason = error,
            }
        }
        tracing::warn!(epoch, worker = worker.operator, sample = sample.number, reason, "no transcript");
        Ok(None)
    }

    async fn call(
        &self,
        caller: &Caller<'_>,
        epoch: u64,
        profile: &Digest,
        sample: &Sample,
        worker: &Worker,
    ) -> Result<Disclosure, String> {
        let point = sample.point.parse().map_err(|e| format!("the sample's point: {e}"))?;
        let address: Address = worker.operator.parse().map_err(|e| format!("the worker's address: {e}"))?;
        let digest = disclosure_digest(caller.chain_id, &address, caller.judge, epoch, &profile.0, point);
        let body = DisclosureCall {
            judge: caller.judge.into(),
            epoch,
            profile_digest: profile.to_vec(),
            point,
            signature: caller.key.sign(&digest.0),
        };
        let url = format!("{}/polylink/v1/disclose", worker.endpoint.trim_end_matches('/'));
        let sent = self.http.post(&url).timeout(CALL_TIMEOUT).json(&body).send().await;
        let mut response = sent.map_err(|e| e.to_string())?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > TRANSCRIPT_BYTES_MAX {
                return Err(format!("the transcript has more than {TRANSCRIPT_BYTES_MAX} bytes"));
            }
        }
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&bytes).chars().take(300).collect::<String>()));
        }
        serde_json::from_slice(&bytes).map_err(|e| format!("not a transcript: {e}"))
    }

    async fn check(
        &self,
        caller: &Caller<'_>,
        epoch: u64,
        profile: &Digest,
        sample: &Sample,
        worker: &Worker,
        disclosure: Disclosure,
    ) -> Result<Option<Transcript>, JudgeError> {
        let session = disclosure.request.request.as_ref().map(|r| r.session).unwrap_or_default();
        let session = caller.chain.session(session).await?;
        let (Some(session), Some(root), Some(price), Ok(point)) =
            (session, &sample.root, sample.price, sample.point.parse())
        else {
            return Ok(None);
        };
        // Else a worker could fill its pot with receipts that nobody can ever owe it.
        if session.payee != worker.operator || session.profile_digest != profile.0 {
            tracing::warn!(
                epoch,
                worker = worker.operator,
                sample = sample.number,
                "a receipt of a session that pays another"
            );
            return Ok(None);
        }
        let expected = Expected {
            chain_id: caller.chain_id,
            worker: &worker.operator,
            receipt_key: &sample.receipt_key,
            price: &price,
            spend_key: &session.spend_key,
            deposit: session.deposit.parse().unwrap_or_default(),
            epoch,
            profile,
            root,
            point,
        };
        match transcript::verify(disclosure, &expected) {
            Ok(transcript) => Ok(Some(transcript)),
            Err(error) => {
                tracing::warn!(epoch, worker = worker.operator, sample = sample.number, %error, "a transcript that does not verify");
                Ok(None)
            }
        }
    }
}
