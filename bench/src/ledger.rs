//! `polylink bench ledger`: signed sends through the ledger, in process over its ABCI interface and over CometBFT's RPC
//! beside CometBFT's own key-value store.
//!
//! *Invariant*: a transaction counts only if it was executed with code 0. What is ours is known here by ABCI and RPC
//! alone.

pub mod accounts;
pub mod in_process;
pub(crate) mod load;
pub mod network;
pub(crate) mod rpc;

use std::path::Path;

use crate::BenchError;
use crate::report::{Compared, Series};
use crate::row::Row;
use crate::stats::Summary;

const MIB: f64 = (1 << 20) as f64;
/// The most transactions of a block.
pub const BLOCK_TXS_MAX: usize = 10_000;
/// The most blocks of a run.
pub const BLOCKS_MAX: usize = 1_000;

/// The most runs over RPC.
pub const RUNS_MAX: usize = 100;

/// What to measure in process.
#[derive(Clone, Debug)]
pub struct Options {
    /// Transactions of a block.
    pub block_txs: usize,
    /// Blocks, after one that does not count.
    pub blocks: usize,
}

impl Options {
    /// Refuses what is out of its domain.
    ///
    /// # Errors
    /// [`BenchError::Option`].
    pub fn check(&self) -> Result<(), BenchError> {
        for (option, value, most) in
            [("--block-txs", self.block_txs, BLOCK_TXS_MAX), ("--blocks", self.blocks, BLOCKS_MAX)]
        {
            if value == 0 || value > most {
                return Err(BenchError::Option { option, reason: format!("1 to {most} are expected") });
            }
        }
        Ok(())
    }
}

/// Runs contestants in turns, ours first, each time on a fresh chain under `folder`. `figure` is the first part of the
/// names of what is compared; `progress` is told what begins.
///
/// # Errors
/// [`BenchError::Contestant`] for the first one that fails.
pub async fn compare(
    contestants: &[network::Contestant],
    plan: &network::Plan,
    runs: usize,
    folder: &Path,
    figure: &str,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Compared>, BenchError> {
    let mut seen: Vec<Vec<network::Run>> = contestants.iter().map(|_| Vec::new()).collect();
    for turn in 0..runs {
        for (at, contestant) in contestants.iter().enumerate() {
            progress(&format!("{figure}: {}, run {}", contestant.name, turn + 1));
            seen[at].push(network::run(contestant, plan, &folder.join(format!("{figure}-{turn}-{at}"))).await?);
        }
    }
    let latencies =
        |run: &network::Run| [Summary::of(run.latency_ms.clone()), Summary::of(run.paced_latency_ms.clone())];
    let summaries: Vec<Vec<_>> = seen.iter().map(|runs| runs.iter().map(latencies).collect()).collect();
    let series = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Series> {
        // A chain whose node holds its application has no processor time of one.
        let samples = |at: usize| (0..runs).map(|run| of(at, run)).filter(|value| *value > 0.0).collect();
        contestants.iter().enumerate().map(|(at, contestant)| Series::new(&contestant.name, samples(at))).collect()
    };
    let mut compared = Vec::new();
    let mut add = |what: &str, unit, more_is_better, series| {
        compared.push(Compared { name: format!("{figure}.{what}"), unit, more_is_better, series, limit: None });
    };
    add("rate", "tx/s", true, series(&|at, run| seen[at][run].rate));
    for (which, name) in [(0, "latency_full"), (1, "latency_paced")] {
        if which == 1 && plan.paced_rate * plan.paced_seconds == 0 {
            continue;
        }
        add(&format!("{name}.p50"), "ms", false, series(&|at, run| summaries[at][run][which].p50));
        add(&format!("{name}.p95"), "ms", false, series(&|at, run| summaries[at][run][which].p95));
        add(&format!("{name}.p99"), "ms", false, series(&|at, run| summaries[at][run][which].p99));
    }
    for (which, name) in [(0, "cpu_node"), (1, "cpu_app"), (2, "cpu_client")] {
        add(name, "µs/tx", false, series(&|at, run| seen[at][run].cpu_us[which]));
    }
    Ok(compared)
}

/// Sets the cost of larger states beside that of the first one: rows of runs in process, the smallest state first.
pub fn growth(rows: &mut [Row], accounts: &[u64]) {
    let Some(first) = accounts.first() else { return };
    for what in ["cpu_per_tx", "block.p50"] {
        let name = |accounts: u64| format!("ledger.in_process_{accounts}.{what}");
        let Some(least) = rows.iter().find(|row| row.name == name(*first)).map(|row| row.value) else { continue };
        for row in rows.iter_mut().filter(|row| accounts[1..].iter().any(|n| row.name == name(*n))) {
            row.against = Some(format!("{first} accounts"));
            row.ratio = Some(least / row.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_states_are_set_beside_the_smallest() {
        let row = |n: u64, value| Row::new(format!("ledger.in_process_{n}.cpu_per_tx"), value, "µs", 1, 0.0);
        let mut rows = [row(100, 50.0), row(1000, 80.0)];
        growth(&mut rows, &[100, 1000]);
        assert_eq!((rows[0].ratio, rows[1].ratio), (None, Some(0.625)));
        assert_eq!(rows[1].against.as_deref(), Some("100 accounts"));
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        assert!(Options { block_txs: 2_000, blocks: 20 }.check().is_ok());
        for (block_txs, blocks) in [(0, 1), (1, 0), (BLOCK_TXS_MAX + 1, 1), (1, BLOCKS_MAX + 1)] {
            assert!(Options { block_txs, blocks }.check().is_err());
        }
    }
}
