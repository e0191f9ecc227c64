//! The load under faults, and what must hold of the chain at the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{QuerySigningInfosRequest, QuerySigningInfosResponse};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{POLL, RECOVERY_MAX, SENDERS, Wait};
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
    let mut wait = Wait::new();
    loop {
        let request = QuerySigningInfosRequest::default().encode_to_vec();
        if let Ok(text) = rpc.query("/cosmos.slashing.v1beta1.Query/SigningInfos", &request).await {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            let answer = QuerySigningInfosResponse::decode(bytes.as_slice()).unwrap_or_default();
            if answer.info.iter().any(|info| info.tombstoned) {
                return Ok(());
            }
        }
        if wait.so_far() > longest {
            return Err(failed("the double", "nobody was tombstoned for having signed twice"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Compares all nodes' chains up to the height that all have, each from its oldest block on: blocks, application hashes,
/// and that nothing that was seen committed is missing. Returns how many heights.
pub async fn same_chain(rpcs: &[Rpc], counts: &Counts) -> Result<u64, BenchError> {
    let mut wait = Wait::new();
    let common = loop {
        let mut common = u64::MAX;
        for rpc in rpcs {
            common = common.min(rpc.height().await?);
        }
        if common >= counts.height {
            break common;
        }
        if wait.so_far() > RECOVERY_MAX {
            let reason = format!("a node is at {common}, transactions were seen at {}", counts.height);
            return Err(failed("the chain", reason));
        }
        tokio::time::sleep(POLL).await;
    };
    let mut oldest = Vec::new();
    for rpc in rpcs {
        oldest.push(rpc.oldest().await?);
    }
    let mut chain = Compared { missing: counts.committed.clone(), ..Default::default() };
    for height in 1..=common {
        for (node, rpc) in rpcs.iter().enumerate() {
            // One that joined from a snapshot has no older blocks; the first one has all.
            if node == 0 || height >= oldest[node] {
                chain.hashes(height, node, rpc.hashes(height).await?)?;
            }
        }
        chain.results(rpcs[0].results(height).await?);
    }
    chain.end()?;
    Ok(common)
}

/// What the nodes' chains have shown.
#[derive(Debug, Default)]
struct Compared {
    /// The height looked at, and what the first node has there.
    first: Option<(u64, (String, String))>,
    /// Seen committed, and in no block yet.
    missing: BTreeSet<String>,
}

impl Compared {
    /// A node's block and application hash.
    fn hashes(&mut self, height: u64, node: usize, found: (String, String)) -> Result<(), BenchError> {
        match &self.first {
            Some((at, first)) if *at == height && *first != found => {
                let reason = format!("height {height}: {first:?} here, {found:?} at validator {node}");
                Err(failed("the nodes disagree", reason))
            }
            Some((at, _)) if *at == height => Ok(()),
            _ => {
                self.first = Some((height, found));
                Ok(())
            }
        }
    }

    /// The transactions of a block.
    fn results(&mut self, results: Vec<(String, u64)>) {
        for (tx, _) in results.iter().filter(|(_, code)| *code == 0) {
            self.missing.remove(tx);
        }
    }

    fn end(&self) -> Result<(), BenchError> {
        match self.missing.len() {
            0 => Ok(()),
            lost => Err(failed("the chain", format!("{lost} committed transactions are lost"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(block: &str, app: &str) -> (String, String) {
        (block.to_owned(), app.to_owned())
    }

    #[test]
    fn nodes_that_differ_are_found() {
        let mut chain = Compared::default();
        for (height, node) in [(1, 0), (1, 1), (2, 0), (2, 3)] {
            chain.hashes(height, node, pair(&format!("B{height}"), "A")).unwrap();
        }
        for other in [pair("C2", "A"), pair("B2", "X")] {
            let error = chain.hashes(2, 1, other).unwrap_err().to_string();
            assert!(error.contains("height 2") && error.contains("validator 1"), "{error}");
        }
    }

    #[test]
    fn a_transaction_that_is_lost_or_failed_is_found() {
        let committed: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
        let mut chain = Compared { missing: committed, ..Default::default() };
        chain.results(vec![("a".into(), 0), ("b".into(), 5), ("c".into(), 0)]);
        assert!(chain.end().unwrap_err().to_string().contains("1 committed"));
        chain.results(vec![("b".into(), 0)]);
        chain.end().unwrap();
    }
}
