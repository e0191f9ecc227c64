//! The load under faults, and what must hold of the chain at the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{QuerySigningInfosRequest, QuerySigningInfosResponse};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{POLL, SENDERS};
use crate::BenchError;
use crate::ledger::load::Source;
use crate::ledger::network::Kind;
use crate::ledger::rpc::Rpc;
use crate::process::failed;

/// What was sent, and what was seen committed.
#[derive(Debug, Default)]
pub struct Counts {
    /// Taken by a node.
    pub sent: u64,
    /// In base64, with code 0 in a block of some node.
    pub committed: BTreeSet<String>,
    /// The newest height that was looked at.
    height: u64,
}

/// A load that goes on beside the faults.
pub struct Sent {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<Counts, BenchError>>,
}

impl Sent {
    /// Sends so many a second to the nodes in turn, and follows the chain of whoever answers.
    pub async fn start(rpcs: &[Rpc], rate: u64) -> Result<Self, BenchError> {
        let source = Source::new(Kind::Sends, &rpcs[0], SENDERS).await?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(send(rpcs.to_vec(), source, rate.max(1), stopped));
        Ok(Self { stop, task })
    }

    /// Ends it, and waits until what was taken last has had time to be committed.
    pub async fn stop(self) -> Result<Counts, BenchError> {
        // If it has ended already, its result says why.
        let _ended = self.stop.send(true);
        self.task.await.map_err(|e| failed("load", e))?
    }
}

async fn send(
    rpcs: Vec<Rpc>,
    mut source: Source,
    rate: u64,
    stop: watch::Receiver<bool>,
) -> Result<Counts, BenchError> {
    let mut counts = Counts { height: rpcs[0].height().await.unwrap_or(1), ..Default::default() };
    let mut at = 0;
    let mut looked = Instant::now();
    while !*stop.borrow() {
        let load = source.make(1);
        // A node that is down takes nothing; the next one may.
        for turn in 0..rpcs.len() {
            if load.send_one(&rpcs[(at + turn) % rpcs.len()]).await.is_ok() {
                counts.sent += 1;
                break;
            }
        }
        at += 1;
        if looked.elapsed() > 5 * POLL {
            follow(&rpcs, &mut counts).await;
            looked = Instant::now();
        }
        tokio::time::sleep(Duration::from_micros(1_000_000 / rate)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    follow(&rpcs, &mut counts).await;
    match counts.committed.is_empty() {
        true => Err(failed("load", format!("none of {} transactions was committed", counts.sent))),
        false => Ok(counts),
    }
}

/// Notes what the newest blocks hold, as far as a node tells.
async fn follow(rpcs: &[Rpc], counts: &mut Counts) {
    for rpc in rpcs {
        let Ok(newest) = rpc.height().await else { continue };
        while counts.height < newest {
            let Ok(results) = rpc.results(counts.height + 1).await else { break };
            counts.committed.extend(results.into_iter().filter(|(_, code)| *code == 0).map(|(tx, _)| tx));
            counts.height += 1;
        }
    }
}

/// Waits until a validator is tombstoned for having signed twice.
pub async fn until_tombstoned(rpc: &Rpc, longest: Duration) -> Result<(), BenchError> {
    let begun = Instant::now();
    loop {
        let request = QuerySigningInfosRequest::default().encode_to_vec();
        if let Ok(text) = rpc.query("/cosmos.slashing.v1beta1.Query/SigningInfos", &request).await {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            let answer = QuerySigningInfosResponse::decode(bytes.as_slice()).unwrap_or_default();
            if answer.info.iter().any(|info| info.tombstoned) {
                return Ok(());
            }
        }
        if begun.elapsed() > longest {
            return Err(failed("the double", "nobody was tombstoned for having signed twice"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Compares all nodes' chains up to the height that all have: blocks, application hashes, and that nothing that was seen
/// committed is missing. Returns how many heights.
pub async fn same_chain(rpcs: &[Rpc], counts: &Counts) -> Result<u64, BenchError> {
    let begun = Instant::now();
    let common = loop {
        let mut common = u64::MAX;
        for rpc in rpcs {
            common = common.min(rpc.height().await?);
        }
        if common >= counts.height {
            break common;
        }
        if begun.elapsed() > super::RECOVERY_MAX {
            let reason = format!("a node is at {common}, transactions were seen at {}", counts.height);
            return Err(failed("the chain", reason));
        }
        tokio::time::sleep(POLL).await;
    };
    let mut missing = counts.committed.clone();
    for height in 1..=common {
        let mut first: Option<(String, String)> = None;
        for (node, rpc) in rpcs.iter().enumerate() {
            let found = match rpc.hashes(height).await {
                Ok(found) => found,
                // One whose state was wiped and synced from a snapshot has no old blocks.
                Err(_) if node > 0 && height < common => continue,
                Err(error) => return Err(error),
            };
            match &first {
                None => first = Some(found),
                Some(first) if *first == found => {}
                Some(first) => {
                    let reason = format!("height {height}: {first:?} here, {found:?} at validator {node}");
                    return Err(failed("the nodes disagree", reason));
                }
            }
        }
        for (tx, code) in rpcs[0].results(height).await? {
            if code == 0 {
                missing.remove(&tx);
            }
        }
    }
    match missing.len() {
        0 => Ok(common),
        lost => Err(failed("the chain", format!("{lost} committed transactions are lost"))),
    }
}
