//! A chain under load over CometBFT's RPC: ours and CometBFT's own key-value store alike.
//!
//! Each run has a fresh chain. Transactions are made and put into requests before the clock runs; the client bounds how
//! many wait in the mempool. A run ends when all of them are committed, and counts if all were executed with code 0. A
//! block is seen when the application says that it has committed it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::accounts::SENDERS_MAX;
use super::load::{Committed, Load, Sent};
use super::rpc::Rpc;
use crate::BenchError;
use crate::process::{Process, cpu_seconds, failed};
use futures::future::try_join;
use tokio::process::Command;

/// The longest wait for a chain's first blocks.
const START_MAX: Duration = Duration::from_secs(90);
/// The longest wait for the last transaction of a run.
const RUN_MAX: Duration = Duration::from_secs(300);
/// Between two looks at a chain.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// A program with its arguments.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// What it is given.
    pub args: Vec<String>,
    /// Variables besides this process' own.
    pub env: Vec<(String, String)>,
}

impl Program {
    /// Starts it.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it cannot be started.
    pub(crate) fn start(&self, name: &str) -> Result<Process, BenchError> {
        let env = self.env.iter().map(|(name, value)| (name, value));
        Process::start_bound(name, Command::new(&self.path).args(&self.args).envs(env))
    }
}

/// One node of a chain.
#[derive(Clone, Debug)]
pub struct Node {
    /// The application and its socket; None where the node holds it itself.
    pub app: Option<(Program, PathBuf)>,
    /// CometBFT.
    pub node: Program,
    /// `http://HOST:PORT` of its RPC.
    pub rpc: String,
}

/// Makes a fresh chain in a folder: its nodes, not started.
pub type Make = Box<dyn Fn(&Path) -> Result<Vec<Node>, String>>;

/// What transactions a chain takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Signed sends of the ledger.
    Sends,
    /// `key=value`, of 250 bytes.
    KeyValues,
}

/// A chain to load.
pub struct Contestant {
    /// As in the rows.
    pub name: String,
    /// Its transactions.
    pub kind: Kind,
    /// Its nodes.
    pub make: Make,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// As fast as they are taken.
    pub txs: usize,
    /// The most that wait in the mempool meanwhile.
    pub waiting_max: usize,
    /// Then so many a second…
    pub paced_rate: usize,
    /// … for so many seconds.
    pub paced_seconds: usize,
}

impl Plan {
    /// Refuses what is out of its domain.
    ///
    /// # Errors
    /// [`BenchError::Option`].
    pub fn check(&self) -> Result<(), BenchError> {
        let most = SENDERS_MAX as usize / 2;
        for (option, value, least, most) in [
            ("--txs", self.txs, 1, 1_000_000),
            // No two transactions of a sender wait at a time, so that they need not come in an order.
            ("--waiting", self.waiting_max, 100, most),
            ("--paced-rate", self.paced_rate, 0, most),
        ] {
            if value < least || value > most {
                return Err(BenchError::Option { option, reason: format!("{least} to {most} are expected") });
            }
        }
        Ok(())
    }
}

/// Figures of one run.
#[derive(Debug, Default)]
pub struct Run {
    /// Committed per second, as fast as they are taken.
    pub rate: f64,
    /// From sending to commit, in milliseconds, then.
    pub latency_ms: Vec<f64>,
    /// The same at the lower rate.
    pub paced_latency_ms: Vec<f64>,
    /// Processor time per transaction of all nodes, all applications and the client, in microseconds.
    pub cpu_us: [f64; 3],
}

struct Chain {
    name: String,
    apps: Vec<Process>,
    nodes: Vec<Process>,
    rpcs: Vec<Rpc>,
}

impl Chain {
    async fn start(contestant: &Contestant, folder: &Path) -> Result<Self, BenchError> {
        let name = contestant.name.clone();
        let nodes = (contestant.make)(folder).map_err(|reason| failed(&name, reason))?;
        let mut chain = Chain { name, apps: Vec::new(), nodes: Vec::new(), rpcs: Vec::new() };
        let begun = Instant::now();
        for Node { app, node, rpc } in nodes {
            if let Some((program, socket)) = app {
                chain.apps.push(program.start(&chain.name)?);
                while !socket.exists() {
                    chain.wait(begun, "the application does not listen").await?;
                }
            }
            chain.nodes.push(node.start(&chain.name)?);
            chain.rpcs.push(Rpc::new(&rpc)?);
        }
        for at in 0..chain.rpcs.len() {
            while chain.rpcs[at].height().await.unwrap_or(0) < 2 {
                chain.wait(begun, "no block is committed").await?;
            }
        }
        Ok(chain)
    }

    async fn wait(&mut self, begun: Instant, what: &str) -> Result<(), BenchError> {
        self.check()?;
        if begun.elapsed() > START_MAX {
            return Err(self
                .nodes
                .last()
                .or(self.apps.last())
                .map_or_else(|| failed(&self.name, what), |p| p.failed(what)));
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.apps.iter_mut().chain(&mut self.nodes).try_for_each(Process::check)
    }

    /// Processor seconds of nodes, applications and this process.
    fn cpu(&self) -> [f64; 3] {
        let sum = |list: &[Process]| list.iter().map(|process| cpu_seconds(process.pid())).sum();
        [sum(&self.nodes), sum(&self.apps), cpu_seconds(None)]
    }

    /// Sends a load and waits until it is committed.
    async fn take(&mut self, load: &Load, pace: Pace) -> Result<Seen, BenchError> {
        let first = self.rpcs[0].height().await?;
        let (begun, cpu) = (Instant::now(), self.cpu());
        let seeing = Applied::follow(&self.rpcs[0], first + 1, load.txs(), begun);
        let (sent, applied) = match try_join(load.send(&self.rpcs, pace, begun), seeing).await {
            Ok(both) => both,
            // A process that has ended says why.
            Err(error) => return Err(self.check().err().unwrap_or(error)),
        };
        let used = self.cpu();
        let seconds = applied.last().map_or(0.0, |block| block.1.as_secs_f64());
        let latency_ms = self.latencies(load, &applied, &sent).await?;
        let cpu_us = [0, 1, 2].map(|at| (used[at] - cpu[at]) * 1e6 / load.txs() as f64);
        Ok(Seen { rate: load.txs() as f64 / seconds, latency_ms, cpu_us })
    }

    async fn latencies(&self, load: &Load, applied: &[(u64, Duration)], sent: &Sent) -> Result<Vec<f64>, BenchError> {
        let mut latencies = Vec::with_capacity(load.txs());
        let mut committed = Committed::of(load);
        for (height, seen) in applied {
            for (tx, code) in self.rpcs[0].results(*height).await? {
                let noted = committed.note(&tx, code);
                let at = noted.map_err(|reason| failed(&self.name, format!("block {height}: {reason}")))?;
                latencies.push((seen.as_secs_f64() - sent.at(at).as_secs_f64()) * 1e3);
            }
        }
        committed.end().map_err(|reason| failed(&self.name, reason))?;
        Ok(latencies)
    }

    async fn stop(self) {
        // First the nodes: one whose application goes away complains.
        for process in self.nodes.into_iter().chain(self.apps) {
            process.stop().await;
        }
    }
}

struct Seen {
    rate: f64,
    latency_ms: Vec<f64>,
    cpu_us: [f64; 3],
}

/// How a load is sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as it is taken, with at most so many waiting in the mempool.
    Full(usize),
    /// So many a second.
    Rate(usize),
}

/// Blocks with transactions, as they are applied.
struct Applied;

impl Applied {
    /// From a height on until so many transactions are committed: heights, each with the time at which it was seen.
    async fn follow(rpc: &Rpc, from: u64, txs: usize, begun: Instant) -> Result<Vec<(u64, Duration)>, BenchError> {
        let (mut next, mut committed, mut blocks) = (from, 0, Vec::new());
        while committed < txs {
            if begun.elapsed() > RUN_MAX {
                return Err(failed("the chain", format!("{committed} of {txs} transactions were committed")));
            }
            tokio::time::sleep(POLL).await;
            let newest = rpc.height().await?;
            let now = begun.elapsed();
            while next <= newest {
                let found = rpc.txs_of(next).await?;
                if found > 0 {
                    committed += found;
                    blocks.push((next, now));
                }
                next += 1;
            }
        }
        Ok(blocks)
    }
}

/// One run of a contestant on a fresh chain in `folder`.
///
/// # Errors
/// [`BenchError::Contestant`] if it does not start, loses or refuses a transaction.
pub async fn run(contestant: &Contestant, plan: &Plan, folder: &Path) -> Result<Run, BenchError> {
    let mut chain = Chain::start(contestant, folder).await?;
    let mut source = super::load::Source::new(contestant.kind, &chain.rpcs[0], SENDERS_MAX).await?;
    let full = chain.take(&source.make(plan.txs), Pace::Full(plan.waiting_max)).await?;
    let mut run = Run { rate: full.rate, latency_ms: full.latency_ms, cpu_us: full.cpu_us, ..Default::default() };
    let paced = plan.paced_rate * plan.paced_seconds;
    if paced > 0 {
        run.paced_latency_ms = chain.take(&source.make(paced), Pace::Rate(plan.paced_rate)).await?.latency_ms;
    }
    chain.stop().await;
    Ok(run)
}
