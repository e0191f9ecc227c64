//! Asking workers for sampled transcripts, all side by side, under one deadline.
//!
//! Always holds: a worker has places of its own among the calls under way, so that none waits for another worker, however
//! many of them stall; a call ends by the deadline, whatever comes of its body by then; no body is read beyond what the
//! profile's longest honest answer takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use polylink_protocol::Address;
use polylink_protocol::client::{ChainClient, ClientError};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::{Session, Worker};
use polylink_protocol::tiqe_v1::Sample;
use polylink_protocol::transcript::{Disclosure, DisclosureCall, disclosure_digest};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::evaluate::HeldProfile;
use crate::transcript::{self, Expected};
use crate::{JudgeError, Transcript};

/// The longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls per sample before it counts as missing, and the pause between them: the worker's node may be a block behind.
const TRIES: u32 = 2;
const TRY_PAUSE: Duration = Duration::from_millis(200);
/// Calls under way to one worker; and to all, as long as that leaves one to each.
const CALLS_PER_WORKER_MAX: usize = 4;
const CALLS_MAX: usize = 64;
/// Queries of the chain under way.
const QUERIES_MAX: usize = 8;

/// Who asks, and where the chain is.
pub(super) struct Caller<'a> {
    pub(super) chain: &'a ChainClient,
    pub(super) chain_id: &'a str,
    pub(super) judge: &'a str,
    pub(super) key: &'a ServiceKey,
}

/// A sample to ask for.
pub(super) struct Ask<'a> {
    pub(super) held: HeldProfile,
    pub(super) sample: &'a Sample,
}

/// One sample's call, made out.
struct Call {
    worker: String,
    endpoint: String,
    body: DisclosureCall,
    sample: u32,
    bytes_max: usize,
}

/// An HTTP client for workers' endpoints.
pub(super) struct Client {
    http: reqwest::Client,
}

impl Client {
    pub(super) fn new() -> Result<Self, JudgeError> {
        // A worker names its own endpoint; a redirect could name anybody's.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
        Ok(Self { http: http.map_err(|e| JudgeError::Http(e.to_string()))? })
    }

    /// Each sample's transcript, or None where the worker showed nothing by the deadline that verifies. An error is the
    /// chain's: what it did not say is held against no worker.
    pub(super) async fn all(
        &self,
        caller: &Caller<'_>,
        asks: &[Ask<'_>],
        until: Instant,
    ) -> Result<Vec<Option<Transcript>>, JudgeError> {
        let workers = workers(caller.chain, asks).await?;
        let calls = asks.iter().map(|ask| call(caller, ask, workers.get(ask.sample.worker.as_str())?));
        let disclosed = self.gather(calls.collect(), until).await;
        let named = disclosed.iter().flatten().map(session_of);
        let sessions = sessions(caller.chain, named.collect()).await?;
        let mut transcripts = Vec::with_capacity(asks.len());
        for (ask, disclosure) in asks.iter().zip(disclosed) {
            let session = disclosure.as_ref().and_then(|disclosure| sessions.get(&session_of(disclosure)));
            transcripts.push(match (disclosure, session, workers.get(ask.sample.worker.as_str())) {
                (Some(disclosure), Some(session), Some(worker)) => {
                    // Hashing all that a worker may send takes time that other tasks need not wait for.
                    tokio::task::yield_now().await;
                    check(caller, ask, worker, session, disclosure)
                }
                _ => None,
            });
        }
        Ok(transcripts)
    }

    /// What the workers show by the deadline.
    async fn gather(&self, calls: Vec<Option<Call>>, until: Instant) -> Vec<Option<Disclosure>> {
        let workers: BTreeSet<String> = calls.iter().flatten().map(|call| call.worker.clone()).collect();
        let each = (CALLS_MAX / workers.len().max(1)).clamp(1, CALLS_PER_WORKER_MAX);
        let places: BTreeMap<String, Semaphore> = workers.into_iter().map(|w| (w, Semaphore::new(each))).collect();
        let ask = async |call: Option<Call>| {
            let call = call?;
            // Never closed; a sample that gets no place in time has no time left to be asked for.
            let _place = places.get(&call.worker)?.acquire().await.ok()?;
            self.ask(&call, until).await
        };
        futures::future::join_all(calls.into_iter().map(ask)).await
    }

    async fn ask(&self, call: &Call, until: Instant) -> Option<Disclosure> {
        let mut reason = String::from("no time was left");
        for tries_left in (1..=TRIES).rev() {
            let time = until.saturating_duration_since(Instant::now()) / tries_left;
            match timeout(time.min(CALL_TIMEOUT), self.fetch(call)).await {
                Ok(Ok(disclosure)) => return Some(disclosure),
                Ok(Err(error)) => reason = error,
                Err(_) => reason = "no whole answer in time".into(),
            }
            sleep(TRY_PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
        }
        tracing::warn!(epoch = call.body.epoch, worker = call.worker, sample = call.sample, reason, "no transcript");
        None
    }

    async fn fetch(&self, call: &Call) -> Result<Disclosure, String> {
        let url = format!("{}/polylink/v1/disclose", call.endpoint.trim_end_matches('/'));
        let sent = self.http.post(&url).json(&call.body).send().await;
        let mut response = sent.map_err(|e| e.to_string())?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| e.to_string())? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > call.bytes_max {
                return Err(format!("the transcript has more than {} bytes", call.bytes_max));
            }
        }
        if !status.is_success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&bytes).chars().take(300).collect::<String>()));
        }
        let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice(&bytes)).await;
        parsed.map_err(|e| e.to_string())?.map_err(|e| format!("not a transcript: {e}"))
    }
}

fn session_of(disclosure: &Disclosure) -> u64 {
    disclosure.request.request.as_ref().map(|r| r.session).unwrap_or_default()
}

/// The records of all workers that are asked, by address.
async fn workers(chain: &ChainClient, asks: &[Ask<'_>]) -> Result<BTreeMap<String, Worker>, ClientError> {
    let named: BTreeSet<&str> = asks.iter().map(|ask| ask.sample.worker.as_str()).collect();
    let addresses: Vec<Address> = named.into_iter().filter_map(|worker| worker.parse().ok()).collect();
    let found = stream::iter(addresses).map(|address| async move { chain.worker(&address).await });
    let found: Vec<Option<Worker>> = found.buffer_unordered(QUERIES_MAX).try_collect().await?;
    Ok(found.into_iter().flatten().map(|worker| (worker.operator.clone(), worker)).collect())
}

async fn sessions(chain: &ChainClient, named: BTreeSet<u64>) -> Result<BTreeMap<u64, Session>, ClientError> {
    let found = stream::iter(named).map(|id| async move { Ok::<_, ClientError>((id, chain.session(id).await?)) });
    let found: Vec<(u64, Option<Session>)> = found.buffer_unordered(QUERIES_MAX).try_collect().await?;
    Ok(found.into_iter().filter_map(|(id, session)| Some((id, session?))).collect())
}

fn call(caller: &Caller<'_>, ask: &Ask<'_>, worker: &Worker) -> Option<Call> {
    let point = ask.sample.point.parse().ok()?;
    let address: Address = worker.operator.parse().ok()?;
    let digest =
        disclosure_digest(caller.chain_id, &address, caller.judge, ask.sample.epoch, &ask.held.profile.0, point);
    let body = DisclosureCall {
        judge: caller.judge.into(),
        epoch: ask.sample.epoch,
        profile_digest: ask.held.profile.to_vec(),
        point,
        signature: caller.key.sign(&digest.0),
    };
    let (sample, bytes_max) = (ask.sample.number, ask.held.disclosure_bytes_max);
    Some(Call { worker: worker.operator.clone(), endpoint: worker.endpoint.clone(), body, sample, bytes_max })
}

fn check(
    caller: &Caller<'_>,
    ask: &Ask<'_>,
    worker: &Worker,
    session: &Session,
    disclosure: Disclosure,
) -> Option<Transcript> {
    let (epoch, sample) = (ask.sample.epoch, ask.sample.number);
    // Else a worker could fill its pot with receipts that nobody can ever owe it.
    if session.payee != worker.operator || session.profile_digest != ask.held.profile.0 {
        tracing::warn!(epoch, worker = worker.operator, sample, "a receipt of a session that pays another");
        return None;
    }
    let expected = Expected {
        chain_id: caller.chain_id,
        worker: &worker.operator,
        receipt_key: &ask.sample.receipt_key,
        price: ask.sample.price.as_ref()?,
        spend_key: &session.spend_key,
        deposit: session.deposit.parse().unwrap_or_default(),
        epoch: ask.sample.epoch,
        profile: &ask.held.profile,
        root: ask.sample.root.as_ref()?,
        point: ask.sample.point.parse().ok()?,
    };
    match transcript::verify(disclosure, &expected) {
        Ok(transcript) => Some(transcript),
        Err(error) => {
            tracing::warn!(epoch, worker = worker.operator, sample, %error, "a transcript that does not verify");
            None
        }
    }
}

#[cfg(test)]
mod tests;
