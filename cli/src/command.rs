//! The command line itself: subcommands, parsing, and what an error looks like.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

use crate::error::CliError;
use crate::output::Output;
use crate::{
    bench, chat, config, export, gateway, judge, keys, node, query, rest, serve, status, testnet, tx, up, verify,
};

const AFTER_HELP: &str = "\
Start here:
  polylink up                          a whole network on this machine, and one answered question
  polylink status                      its endpoint, key, RPC and health
  polylink chat 'What is 2 plus 3?'    ask through the gateway
  polylink query pot 1                 what the worker earned for epoch 1
  polylink down                        stop it; `polylink up` continues the same chain

Configuration: flag, then environment (POLYLINK_…), then HOME/polylink.toml, whose tables are named like the
subcommands and whose keys like their long flags.";

#[derive(Parser, Debug)]
#[command(name = "polylink", version, about = "Decentralised inference: serve, use, pay for and audit open models", after_help = AFTER_HELP)]
struct Cli {
    /// Directory of all state [default: ~/.polylink]
    #[arg(long, global = true, env = "POLYLINK_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Configuration file [default: HOME/polylink.toml]
    #[arg(long, global = true, env = "POLYLINK_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// A subcommand that can answer a script.
#[derive(Args, Debug)]
struct ForScripts<T: Args> {
    #[command(flatten)]
    inner: T,
    /// One JSON document instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a whole network on this machine and ask it one question
    Up(up::UpArgs),
    /// State, addresses and health of the network in this home
    Status(ForScripts<status::StatusArgs>),
    /// Stop the network in this home
    Down(status::DownArgs),
    /// Run a node: CometBFT and the ledger
    Node(node::NodeArgs),
    /// Serve the REST that wallets and explorers ask, in front of a node
    Rest(rest::RestArgs),
    /// Write the homes of a network of several validators
    Testnet(testnet::TestnetArgs),
    /// The ledger alone, for CometBFT to connect to
    #[command(hide = true)]
    Ledger(node::LedgerArgs),
    /// Run a worker: the engine behind signed receipts, or an OpenAI endpoint alone
    Serve(serve::ServeArgs),
    /// Run a gateway: the OpenAI endpoint over the workers of the chain, and its API keys
    Gateway(ForScripts<gateway::GatewayArgs>),
    /// Ask a question through a gateway, or a worker directly
    Chat(chat::ChatArgs),
    /// Run a judge: audit what workers served
    Judge(judge::JudgeArgs),
    /// Make, list and show keys
    Keys(ForScripts<keys::KeysArgs>),
    /// Send transactions
    Tx(ForScripts<tx::TxArgs>),
    /// Read the ledger's state
    Query(ForScripts<query::QueryArgs>),
    /// Check a receipt: signatures, digests, path to the root, root under a header
    Verify(ForScripts<verify::VerifyArgs>),
    /// Print the ledger's state as the genesis document of a chain that goes on from it
    Export(export::ExportArgs),
    /// Measure
    Bench(bench::BenchArgs),
}

/// Parses, runs, reports: 0 done, 1 failed, 2 wrong usage.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match parse(&args) {
        Ok(cli) => {
            let filter = EnvFilter::try_from_env("POLYLINK_LOG")
                .unwrap_or_else(|_| EnvFilter::new("info,jmt=warn,fjall=warn,lsm_tree=warn"));
            // A second call (tests) keeps the first subscriber, which is as good.
            let _first = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .try_init();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
            let result = match runtime {
                Ok(runtime) => {
                    let result = runtime.block_on(run(cli, &config::home(&args)));
                    // A read of standard input may be waiting for a line that never comes.
                    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
                    result
                }
                Err(error) => Err(CliError::value("threads", error)),
            };
            match result {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(Stop::Usage(error)) => {
            // If the terminal is gone there is nobody to tell.
            let _told = error.print();
            ExitCode::from(error.exit_code() as u8)
        }
        Err(Stop::Configuration(error)) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

enum Stop {
    Usage(clap::Error),
    Configuration(CliError),
}

fn parse(args: &[OsString]) -> Result<Cli, Stop> {
    let command = config::with_file(Cli::command(), args).map_err(Stop::Configuration)?;
    let matches = command.try_get_matches_from(args).map_err(Stop::Usage)?;
    Cli::from_arg_matches(&matches).map_err(Stop::Usage)
}

async fn run(cli: Cli, home: &Path) -> Result<(), CliError> {
    match cli.command {
        Command::Up(a) => up::run(&a, home).await,
        Command::Serve(a) => serve::run(&a, home).await,
        Command::Gateway(a) => gateway::run(&a.inner, home, &Output { json: a.json }).await,
        Command::Chat(a) => chat::run(&a, home).await,
        Command::Judge(a) => judge::run(&a, home).await,
        Command::Status(a) => status::run(&a.inner, home, &Output { json: a.json }).await,
        Command::Down(a) => status::down(&a, home).await,
        Command::Node(a) => node::run(&a, home).await,
        Command::Rest(a) => rest::run(&a, home).await,
        Command::Testnet(a) => testnet::run(&a),
        Command::Ledger(a) => node::ledger(&a, home).await,
        Command::Keys(a) => keys::run(&a.inner, home, &Output { json: a.json }),
        Command::Tx(a) => tx::run(&a.inner, home, &Output { json: a.json }).await,
        Command::Query(a) => query::run(&a.inner, home, &Output { json: a.json }).await,
        Command::Verify(a) => verify::run(&a.inner, home, &Output { json: a.json }).await,
        Command::Export(a) => export::run(&a, home),
        Command::Bench(a) => bench::run(&a, home, &Output { json: false }).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_teaches() {
        for sub in Cli::command().get_subcommands().filter(|s| !s.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{} has no description", sub.get_name());
        }
    }
}
