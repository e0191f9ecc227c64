//! `polylink bench faults`: a network of validators under load while they are killed, stopped, wiped and cut off.
//!
//! What must hold is looked at over RPC alone: (1) at every height all nodes have the same block and the same application
//! hash; (2) every transaction that was seen committed is in the chain of every node at the end; (3) within a minute after
//! a fault all nodes commit again, but for one that executes the whole chain anew, which has a second more for each block;
//! (4) while less than a third of the power is away the others go on.

mod check;
mod links;
mod member;

use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use links::Links;
pub use member::Home;

use crate::BenchError;
use crate::ledger::rpc::Rpc;
use crate::process::failed;
use crate::row::Row;
use crate::stats::Summary;
use check::Sent;
use member::Member;

/// The longest time until all nodes commit again.
pub const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// What a node that executes the whole chain anew has besides, for each block: it gets them by CometBFT's block sync, or, as
/// was seen, leaves that at once and follows at the pace of consensus.
const BLOCK_MAX: Duration = Duration::from_secs(1);
/// Blocks that show that a node commits again.
const BLOCKS: u64 = 2;
const POLL: Duration = Duration::from_millis(100);
/// The longest wait for a node, which may stand still.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest step of a wait: an answer that does not come, and what a busy machine adds.
const STEP_MAX: Duration = Duration::from_secs(4);
/// Accounts that send.
pub const SENDERS: u64 = 500;

/// What is done to a validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the ledger.
    KillLedger,
    /// SIGKILL to CometBFT.
    KillNode,
    /// SIGSTOP to both for a while.
    Freeze,
    /// Stopped in order and started again.
    Restart,
    /// Away for a while with all the others at work.
    Away,
    /// Stopped, its state removed, started again: it executes all blocks anew.
    Wipe,
    /// The same, and its state comes from another's snapshot. Not the first validator, which keeps all blocks.
    Sync,
    /// Cut off from all others for a while.
    Cut,
    /// A second node with the same key.
    DoubleSign,
}

impl Fault {
    /// All of them, the last one at most once in a run: its validator is tombstoned.
    pub const ALL: [Fault; 9] = [
        Fault::KillLedger,
        Fault::KillNode,
        Fault::Freeze,
        Fault::Restart,
        Fault::Away,
        Fault::Wipe,
        Fault::Sync,
        Fault::Cut,
        Fault::DoubleSign,
    ];

    /// As in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillLedger => "kill_ledger",
            Fault::KillNode => "kill_node",
            Fault::Freeze => "freeze",
            Fault::Restart => "restart",
            Fault::Away => "away",
            Fault::Wipe => "wipe",
            Fault::Sync => "sync",
            Fault::Cut => "cut",
            Fault::DoubleSign => "double_sign",
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// In this order, again and again.
    pub faults: Vec<Fault>,
    /// How many in all.
    pub count: usize,
    /// How long a validator is frozen, away or cut off.
    pub pause: Duration,
    /// Sends a second.
    pub rate: u64,
    /// Of whom it meets.
    pub seed: u64,
}

/// A network on the disk.
pub struct Network {
    /// The validators.
    pub homes: Vec<Home>,
    /// A second home with the first validator's key.
    pub twin: Home,
    /// The ports of the validators for peers, and at last the twin's.
    pub ports: Vec<u16>,
    /// Their connections.
    pub links: Links,
}

/// A wait in steps. Where the whole machine stands still (a suspended one), nodes and this process do alike: a step counts
/// no longer than one can last.
struct Wait {
    total: Duration,
    step: Instant,
}

impl Wait {
    fn new() -> Self {
        Self { total: Duration::ZERO, step: Instant::now() }
    }

    /// Ends a step; how long it has been.
    fn so_far(&mut self) -> Duration {
        let begun = std::mem::replace(&mut self.step, Instant::now());
        self.total += begun.elapsed().min(STEP_MAX);
        self.total
    }
}

struct Run {
    members: Vec<Member>,
    rpcs: Vec<Rpc>,
    links: Links,
}

impl Run {
    async fn heights(&self) -> Vec<Option<u64>> {
        // At once, so that one that stands still does not hold the others up.
        join_all(self.rpcs.iter().map(Rpc::height)).await.into_iter().map(Result::ok).collect()
    }

    /// How long a node may take that executes the whole chain anew.
    async fn replay_max(&self) -> Duration {
        let newest = self.heights().await.into_iter().flatten().max().unwrap_or(0);
        BLOCK_MAX * u32::try_from(newest).unwrap_or(u32::MAX)
    }

    /// Waits until the nodes of these numbers have committed further blocks; in seconds.
    async fn go_on(&self, nodes: &[usize], what: &str) -> Result<f64, BenchError> {
        self.go_on_within(nodes, what, RECOVERY_MAX).await
    }

    async fn go_on_within(&self, nodes: &[usize], what: &str, longest: Duration) -> Result<f64, BenchError> {
        let mut wait = Wait::new();
        let mut from: Option<u64> = None;
        loop {
            let heights = self.heights().await;
            let newest = heights.iter().flatten().max().copied();
            let goal = *from.get_or_insert(newest.unwrap_or(0)) + BLOCKS;
            if nodes.iter().all(|node| heights[*node].is_some_and(|height| height >= goal)) {
                return Ok(wait.so_far().as_secs_f64());
            }
            if wait.so_far() > longest {
                let reason = format!("within {} s not all nodes commit again: {heights:?}", longest.as_secs());
                return Err(failed(what, reason));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Does it to a validator; returns seconds until all commit again.
    async fn inflict(&mut self, fault: Fault, node: usize, pause: Duration) -> Result<f64, BenchError> {
        let others: Vec<usize> = (0..self.members.len()).filter(|other| *other != node).collect();
        match fault {
            Fault::KillLedger => self.members[node].kill_app().await,
            Fault::KillNode => self.members[node].kill_node().await,
            Fault::Restart => self.members[node].stop().await,
            Fault::Freeze => {
                self.members[node].freeze(true);
                let result = self.go_on(&others, "the others of a frozen validator").await;
                tokio::time::sleep(pause).await;
                self.members[node].freeze(false);
                result?;
            }
            Fault::Away => {
                self.members[node].stop().await;
                self.go_on(&others, "the others of a validator that is away").await?;
                tokio::time::sleep(pause).await;
            }
            Fault::Wipe => {
                self.members[node].stop().await;
                self.members[node].wipe()?;
            }
            Fault::Sync => {
                // Who joins trusts a header that it has from elsewhere; here from the one that keeps all.
                let url = self.members[0].rpc().to_owned();
                let (hash, _) = self.rpcs[0].hashes(1).await?;
                self.members[node].stop().await;
                self.members[node].wipe()?;
                self.members[node].configure(&format!(
                    "[statesync]\nenable = true\nrpc_servers = \"{url},{url}\"\ntrust_height = 1\ntrust_hash = \"{hash}\"\n\
                     trust_period = \"24h\"\ndiscovery_time = \"7s\"\n"
                ))?;
            }
            Fault::Cut => {
                self.links.cut(node, true);
                let result = self.go_on(&others, "the others of a validator that is cut off").await;
                tokio::time::sleep(pause).await;
                self.links.cut(node, false);
                result?;
            }
            Fault::DoubleSign => {}
        }
        self.members[node].start().await?;
        let all: Vec<usize> = (0..self.members.len()).collect();
        let (mut seconds, mut longest) = (0.0, RECOVERY_MAX);
        if fault == Fault::Wipe {
            seconds += self.go_on(&others, "the others of a validator that was wiped").await?;
            longest += self.replay_max().await;
        }
        seconds += self.go_on_within(&all, fault.name(), longest).await?;
        if fault == Fault::Sync {
            // A restored snapshot has a height too; its node commits when it has further ones.
            seconds += self.go_on(&all, fault.name()).await?;
            self.members[node].configure("")?;
            if self.rpcs[node].oldest().await? <= 1 {
                return Err(failed(fault.name(), "it has executed all blocks, instead of taking a snapshot"));
            }
        }
        Ok(seconds)
    }
}

/// Starts the network, does all of it, and looks whether what must hold has held.
///
/// # Errors
/// [`BenchError::Contestant`] for the first thing that does not hold.
pub async fn run(options: &Options, network: Network, mut progress: impl FnMut(&str)) -> Result<Vec<Row>, BenchError> {
    let Network { homes, twin, ports, links } = network;
    links.start(&ports);
    let members: Vec<Member> =
        homes.into_iter().enumerate().map(|(at, home)| Member::new(format!("validator {at}"), home)).collect();
    let rpcs =
        members.iter().map(|member| Rpc::with_patience(member.rpc(), PATIENCE)).collect::<Result<Vec<_>, _>>()?;
    let mut run = Run { members, rpcs, links };
    for member in &mut run.members {
        member.start().await?;
    }
    let all: Vec<usize> = (0..run.members.len()).collect();
    run.go_on(&all, "the start").await?;
    let sent = Sent::start(&run.rpcs, options.rate).await?;
    let mut draw = ChaCha8Rng::seed_from_u64(options.seed);
    let mut recoveries: Vec<(Fault, f64)> = Vec::new();
    let faults = options.faults.iter().filter(|fault| **fault != Fault::DoubleSign).copied();
    for fault in faults.collect::<Vec<_>>().into_iter().cycle().take(options.count) {
        let node = draw.random_range(usize::from(fault == Fault::Sync)..run.members.len());
        let seconds = run.inflict(fault, node, options.pause).await?;
        progress(&format!("{} of validator {node}: all commit again after {seconds:.1} s", fault.name()));
        recoveries.push((fault, seconds));
    }
    if options.faults.contains(&Fault::DoubleSign) {
        let mut second = Member::new("the double".into(), twin);
        second.start().await?;
        // It begins with an empty home: before it signs it executes the chain.
        let longest = RECOVERY_MAX + run.replay_max().await;
        check::until_tombstoned(&run.rpcs[1], longest).await?;
        second.kill_app().await;
        let others: Vec<usize> = (1..run.members.len()).collect();
        let seconds = run.go_on(&others, Fault::DoubleSign.name()).await?;
        progress(&format!("a validator has signed twice and is out: the others go on after {seconds:.1} s"));
        recoveries.push((Fault::DoubleSign, seconds));
    }
    let counts = sent.stop().await?;
    let compared = check::same_chain(&run.rpcs, &counts).await?;
    for member in &mut run.members {
        member.stop().await;
    }
    Ok(rows(options, &recoveries, &counts, compared))
}

fn rows(options: &Options, recoveries: &[(Fault, f64)], counts: &check::Counts, compared: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for fault in &options.faults {
        let seconds: Vec<f64> = recoveries.iter().filter(|(of, _)| of == fault).map(|(_, seconds)| *seconds).collect();
        if !seconds.is_empty() {
            let summary = Summary::of(seconds);
            let name = format!("faults.{}.recovery", fault.name());
            rows.push(Row::new(format!("{name}.p50"), summary.p50, "s", summary.count, summary.deviation));
            rows.push(Row::new(format!("{name}.max"), summary.max, "s", summary.count, summary.deviation));
        }
    }
    let one = |name: &str, value: u64, unit: &str| Row::new(format!("faults.{name}"), value as f64, unit, 1, 0.0);
    rows.push(one("inflicted", recoveries.len() as u64, "faults"));
    rows.push(one("heights_compared", compared, "blocks"));
    rows.push(one("sent", counts.sent, "txs"));
    rows.push(one("committed", counts.committed.len() as u64, "txs"));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_is_no_long_wait() {
        let step = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        let mut wait = Wait { total: RECOVERY_MAX - 2 * STEP_MAX, step };
        assert!(wait.so_far() <= RECOVERY_MAX - STEP_MAX);
        wait.step = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        assert!(wait.so_far() > RECOVERY_MAX - STEP_MAX, "steps add up");
    }

    #[test]
    fn every_fault_that_was_met_has_its_recovery() {
        let options =
            Options { faults: Fault::ALL.to_vec(), count: 3, pause: Duration::from_secs(1), rate: 1, seed: 1 };
        let met = [(Fault::Cut, 1.0), (Fault::Wipe, 4.0), (Fault::Cut, 3.0)];
        let rows = rows(&options, &met, &check::Counts::default(), 7);
        let value = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.value);
        assert_eq!(value("faults.cut.recovery.max"), Some(3.0));
        assert_eq!(value("faults.wipe.recovery.p50"), Some(4.0));
        assert_eq!((value("faults.freeze.recovery.max"), value("faults.inflicted")), (None, Some(3.0)));
        assert_eq!(value("faults.heights_compared"), Some(7.0));
    }
}
