//! `polylink bench ledger`: flags and defaults, and the ledgers that are measured.
//!
//! A state is filled by one process and measured by another, so that what filling took is not in the memory measured.

mod chains;

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Instant;

use polylink_abci_app::Genesis;
use polylink_abci_app::app::App;
use polylink_abci_app::chain::SCHEMA_VERSION;
use polylink_abci_app::staking::GenesisValidator;
use polylink_abci_app::store::Store;
use polylink_bench::ledger::in_process;
use polylink_bench::ledger::network::Plan;
use polylink_bench::ledger::{Options, RUNS_MAX, accounts, compare, growth};
use polylink_bench::report::Report;
use polylink_bench::row::{self, Row};
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::{Address, Amount};

use crate::error::CliError;
use crate::files;
use crate::output::Output;

/// The chain that is measured in process.
const CHAIN_ID: &str = "polylink-bench-1";
/// The stake of its validator, in uplk.
const STAKE: Amount = Amount(1_000_000_000_000);

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// CheckTx, FinalizeBlock and Commit, called as a node calls them
    InProcess,
    /// Over RPC, one validator
    OneValidator,
    /// Over RPC, four validators on this machine
    FourValidators,
}

/// `polylink bench ledger`.
#[derive(Args, Debug)]
#[command(after_help = "\
A ratio is ours over the other, larger is better. Over RPC, ours (signed sends) stands beside CometBFT's key-value store
over the same kind of socket and inside the node, which verifies nothing: all with the settings of `polylink node`, blocks
200 ms apart, and room for 100,000 transactions.

Examples:
  polylink bench ledger --quick
  polylink bench ledger --figures one-validator --runs 5
  polylink bench ledger --figures in-process --accounts 10000,1000000 --state /tmp/states --json out.json")]
pub struct LedgerArgs {
    /// What to measure, in this order [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    figures: Vec<Group>,
    /// Accounts of the states in process, the smallest first [default: 10000,1000000; with --quick 10000]
    #[arg(long, value_delimiter = ',')]
    accounts: Vec<u64>,
    /// Transactions of a block in process
    #[arg(long, default_value_t = 2_000)]
    block_txs: usize,
    /// Blocks in process, after one that does not count [default: 50; with --quick 5]
    #[arg(long)]
    blocks: Option<usize>,
    /// Transactions of a run over RPC, as fast as they are taken [default: 40000; with --quick 3000]
    #[arg(long)]
    txs: Option<usize>,
    /// The most of them that wait in the mempool
    #[arg(long, default_value_t = 8_000)]
    waiting: usize,
    /// Then so many a second for five seconds; 0: none
    #[arg(long, default_value_t = 1_000)]
    paced_rate: usize,
    /// Repetitions over RPC; medians are shown [default: 3; with --quick 1]
    #[arg(long)]
    runs: Option<usize>,
    /// CometBFT's binary [default: on PATH, else built into the cache]
    #[arg(long, env = "POLYLINK_COMETBFT")]
    cometbft: Option<PathBuf>,
    /// Folder in which the states are kept for another run [default: none is kept]
    #[arg(long)]
    state: Option<PathBuf>,
    /// Under a minute on two cores
    #[arg(long)]
    quick: bool,
    /// Write the rows as JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `polylink bench ledger-part`: one step in a process of its own.
#[derive(Args, Debug)]
pub struct PartArgs {
    /// The ledger's store
    #[arg(long)]
    store: PathBuf,
    /// Accounts that it has or shall have
    #[arg(long)]
    accounts: u64,
    /// Transactions of a block; 0: only fill the state
    #[arg(long, default_value_t = 0)]
    block_txs: usize,
    /// Blocks
    #[arg(long, default_value_t = 0)]
    blocks: usize,
}

/// The validator's consensus key.
fn consensus_key() -> [u8; 32] {
    ServiceKey::from_bytes(&[1; 32]).public_key()
}

/// A genesis with one validator per key, each of an account of its own, and the accounts that send.
pub(super) fn genesis(consensus_keys: &[[u8; 32]], accounts: u64) -> Genesis {
    let mut genesis = Genesis::default();
    for (address, amount) in accounts::at_genesis(accounts) {
        genesis = genesis.with_account(&address, amount);
    }
    for key in consensus_keys {
        let operator = Address::of_consensus_key(key);
        genesis = genesis.with_account(&operator, STAKE);
        genesis.staking.validators.push(GenesisValidator::new(&operator, key, STAKE));
    }
    genesis
}

/// Runs `polylink bench ledger-part`.
pub fn part(args: &PartArgs) -> Result<(), CliError> {
    let store = Store::open(&args.store, SCHEMA_VERSION).map_err(|e| CliError::value("--store", e))?;
    let app = App::new(store, 0);
    let validator = Address::of_consensus_key(&consensus_key());
    if args.block_txs == 0 {
        let state = genesis(&[consensus_key()], args.accounts).to_json().to_string();
        in_process::fill(&app, CHAIN_ID, validator, state.into(), args.accounts)?;
        return Ok(());
    }
    let options = Options { block_txs: args.block_txs, blocks: args.blocks };
    let rows = in_process::measure(&app, || app.keys_staged(), CHAIN_ID, validator, args.accounts, &options)?;
    Output { json: true }.value(&rows);
    Ok(())
}

/// Runs a part in a process of its own; returns what it printed.
async fn run_part(args: &[&str]) -> Result<Vec<u8>, CliError> {
    let program = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
    let mut command = tokio::process::Command::new(program);
    let output = command.args(["bench", "ledger-part"]).args(args).kill_on_drop(true).output().await;
    let output = output.map_err(|e| CliError::role("ledger-part", e))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(CliError::role("ledger-part", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The figures of one state.
async fn in_process(args: &LedgerArgs, options: &Options, accounts: u64, folder: &Path) -> Result<Vec<Row>, CliError> {
    let store = folder.join(format!("{accounts}"));
    let (path, number) = (store.display().to_string(), accounts.to_string());
    let begun = Instant::now();
    run_part(&["--store", &path, "--accounts", &number]).await?;
    let filled = begun.elapsed().as_secs_f64();
    let (block_txs, blocks) = (options.block_txs.to_string(), options.blocks.to_string());
    let measured = ["--store", &path, "--accounts", &number, "--block-txs", &block_txs, "--blocks", &blocks];
    let printed = run_part(&measured).await?;
    let mut rows: Vec<Row> =
        serde_json::from_slice(&printed).map_err(|e| CliError::role("ledger-part", format!("its rows: {e}")))?;
    if args.state.is_none() {
        rows.push(Row::new(format!("ledger.in_process_{accounts}.fill"), filled, "s", 1, 0.0));
    }
    Ok(rows)
}

/// Runs `polylink bench ledger`.
pub async fn run(args: &LedgerArgs, output: &Output) -> Result<(), CliError> {
    let figures = if args.figures.is_empty() { Group::value_variants() } else { &args.figures };
    let quick_or = |quick: &[u64], whole: &[u64]| if args.quick { quick.to_vec() } else { whole.to_vec() };
    let accounts =
        if args.accounts.is_empty() { quick_or(&[10_000], &[10_000, 1_000_000]) } else { args.accounts.clone() };
    let options = Options { block_txs: args.block_txs, blocks: args.blocks.unwrap_or(if args.quick { 5 } else { 50 }) };
    options.check()?;
    let plan = Plan {
        txs: args.txs.unwrap_or(if args.quick { 3_000 } else { 40_000 }),
        waiting_max: args.waiting,
        paced_rate: args.paced_rate,
        paced_seconds: if args.quick { 2 } else { 5 },
    };
    plan.check()?;
    let runs = args.runs.unwrap_or(if args.quick { 1 } else { 3 });
    if !(1..=RUNS_MAX).contains(&runs) {
        return Err(CliError::value("--runs", format!("1 to {RUNS_MAX} is expected")));
    }
    let temporary = std::env::temp_dir().join(format!("polylink-bench-ledger-{}", std::process::id()));
    let folder = args.state.clone().unwrap_or_else(|| temporary.clone());
    files::create_dir(&folder)?;
    let _removed = Removed(temporary.clone());
    let begun = Instant::now();
    let say = |what: &str| eprintln!("{:>4} s  {what}", begun.elapsed().as_secs());
    let heading = format!(
        "in process {} blocks of {} sends; over RPC {} transactions, medians of {runs}",
        options.blocks, options.block_txs, plan.txs
    );
    let mut report = Report::new("ledger", heading);
    for figure in figures {
        match figure {
            Group::InProcess => {
                let mut rows = Vec::new();
                for accounts in &accounts {
                    say(&format!("in process, {accounts} accounts"));
                    rows.extend(in_process(args, &options, *accounts, &folder).await?);
                }
                growth(&mut rows, &accounts);
                report.rows.extend(rows);
            }
            Group::OneValidator | Group::FourValidators => {
                let (nodes, name) = if *figure == Group::OneValidator { (1, "rpc_1") } else { (4, "rpc_4") };
                let (contestants, absent) = chains::contestants(args.cometbft.as_deref(), nodes)?;
                report.absent = absent;
                report.compared.extend(compare(&contestants, &plan, runs, &temporary, name, say).await?);
            }
        }
    }
    output.say(report.table());
    match &args.json {
        Some(path) => Ok(row::write_json(path, &report.rows())?),
        None => Ok(()),
    }
}

/// A folder that goes away with this value.
pub(super) struct Removed(pub(super) PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // One that is not there, or stays in the temporary folder, is no harm.
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
