//! `polylink bench faults`: a network on this machine, made to be killed, stopped, wiped and cut.

use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use polylink_abci_app::server::check_records;
use polylink_bench::faults::{self, Fault, Home as Lying, Links, Network, Options, SENDERS};
use polylink_bench::ledger::network::{Node, Program};
use polylink_bench::row::{self, Row};
use polylink_protocol::Amount;

use super::ledger::Removed;
use crate::error::CliError;
use crate::files;
use crate::home::Home;
use crate::node::{NodeSettings, ensure_keys, environment, find_binary, node_id, write_config};
use crate::output::Output;
use crate::shutdown::SUPERVISED;
use crate::testnet::{self, Member, Plan};

/// Pause after a block.
const BLOCK_TIME_MS: u64 = 300;
/// Blocks of which a validator must sign half.
const SIGNED_BLOCKS_WINDOW: u32 = 10_000;
/// Blocks between two snapshots.
const SNAPSHOT_INTERVAL: &str = "20";
/// What a validator stakes, in uplk.
const STAKE: Amount = Amount(5_000_000_000);

/// Faults by the names that rows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// SIGKILL to the ledger
    KillLedger,
    /// SIGKILL to CometBFT
    KillNode,
    /// SIGSTOP to both
    Freeze,
    /// Stopped in order and started again
    Restart,
    /// Away while the others work
    Away,
    /// Stopped, its state removed, started again
    Wipe,
    /// The same, and its state comes from another's snapshot
    Sync,
    /// Cut off from the others
    Cut,
    /// A second node with the same key
    DoubleSign,
}

impl From<Kind> for Fault {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::KillLedger => Fault::KillLedger,
            Kind::KillNode => Fault::KillNode,
            Kind::Freeze => Fault::Freeze,
            Kind::Restart => Fault::Restart,
            Kind::Away => Fault::Away,
            Kind::Wipe => Fault::Wipe,
            Kind::Sync => Fault::Sync,
            Kind::Cut => Fault::Cut,
            Kind::DoubleSign => Fault::DoubleSign,
        }
    }
}

/// `polylink bench faults`.
#[derive(Args, Debug)]
#[command(after_help = "\
Fails at the first thing that does not hold: nodes that disagree about a block or an application hash, a committed
transaction that is lost, a validator that does not commit again within a minute.

Examples:
  polylink bench faults --quick
  polylink bench faults --count 200 --seed 7 --json out.json")]
pub struct FaultsArgs {
    /// Validators
    #[arg(long, default_value_t = 4)]
    validators: usize,
    /// What is done, in this order, again and again [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// How many faults in all [default: 56; with --quick each kind once]
    #[arg(long)]
    count: Option<usize>,
    /// Seconds for which a validator is frozen, away or cut off [default: 10; with --quick 1]
    #[arg(long)]
    pause: Option<u64>,
    /// Sends a second meanwhile
    #[arg(long, default_value_t = 20)]
    rate: u64,
    /// Of whom it meets
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CometBFT's binary [default: on PATH, else built into the cache]
    #[arg(long, env = "POLYLINK_COMETBFT")]
    cometbft: Option<PathBuf>,
    /// About a minute on two cores
    #[arg(long)]
    quick: bool,
    /// Write the rows as JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs `polylink bench faults`.
pub async fn run(args: &FaultsArgs, output: &Output) -> Result<(), CliError> {
    if !(4..=16).contains(&args.validators) {
        let reason = format!("{}: 4 to 16 are expected, so that one of them is less than a third", args.validators);
        return Err(CliError::value("--validators", reason));
    }
    if !(1..=1_000).contains(&args.rate) {
        return Err(CliError::value("--rate", format!("{}: 1 to 1,000 are expected", args.rate)));
    }
    let kinds = if args.faults.is_empty() { Kind::value_variants() } else { &args.faults };
    let faults: Vec<Fault> = kinds.iter().map(|kind| Fault::from(*kind)).collect();
    let repeated = faults.iter().filter(|fault| **fault != Fault::DoubleSign).count();
    let options = Options {
        count: args.count.unwrap_or(if args.quick { repeated } else { 56 }),
        pause: Duration::from_secs(args.pause.unwrap_or(if args.quick { 1 } else { 10 })),
        rate: args.rate,
        seed: args.seed,
        faults,
    };
    let comet = find_binary(args.cometbft.as_deref())?;
    let folder = std::env::temp_dir().join(format!("polylink-faults-{}", std::process::id()));
    let _removed = Removed(folder.clone());
    let (network, records) = network(&folder, args.validators, &comet).await?;
    let begun = Instant::now();
    let mut rows =
        faults::run(&options, network, |what| eprintln!("{:>4} s  {what}", begun.elapsed().as_secs())).await?;
    rows.extend(requests(&records)?);
    output.say(row::table(&rows));
    match &args.json {
        Some(path) => Ok(row::write_json(path, &rows)?),
        None => Ok(()),
    }
}

/// Writes the homes, with peers that are reached through the links, and one more with the first validator's key.
/// Returns where each ledger writes down what it is asked too.
async fn network(folder: &Path, validators: usize, comet: &Path) -> Result<(Network, Vec<PathBuf>), CliError> {
    let links = Links::bind(validators + 1).await?;
    let plan = Plan {
        chain_id: "polylink-faults-1".into(),
        ports: testnet::ports(validators, None)?,
        block_time_ms: BLOCK_TIME_MS,
        stake: STAKE,
    };
    let mut genesis = super::ledger::genesis(&[], SENDERS);
    // Being away for some seconds is no offence here: a jailed validator would leave three, of whom none may be away.
    genesis.slashing.signed_blocks_window = SIGNED_BLOCKS_WINDOW;
    let mut members = testnet::write(folder, &plan, |_| Ok(genesis))?;
    members.push(twin(folder, &members[0])?);
    let ids = members.iter().map(|member| node_id(&member.home.node())).collect::<Result<Vec<_>, _>>()?;
    for (at, member) in members.iter_mut().enumerate() {
        // Nobody dials the twin, and it dials all but the one whose key it has.
        let others = (0..validators).filter(|other| *other != at && !(at == validators && *other == 0));
        let peers: Vec<String> =
            others.map(|other| format!("{}@127.0.0.1:{}", ids[other], links.port(at, other))).collect();
        member.peers = peers.join(",");
    }
    let ports = members.iter().map(|member| member.ports["p2p"]).collect();
    let records = members.iter().map(|member| member.home.requests()).collect();
    let mut homes = members.iter().map(|member| lying(member, comet)).collect::<Result<Vec<_>, _>>()?;
    let twin = homes.pop().ok_or_else(|| CliError::role("bench", "no home was written"))?;
    Ok((Network { homes, twin, ports, links }, records))
}

/// What all ledgers were asked keeps to CometBFT's grammar in each of their lives: how much that is.
fn requests(records: &[PathBuf]) -> Result<[Row; 2], CliError> {
    let (mut lives, mut requests) = (0, 0);
    // The double node may never have been started.
    for folder in records.iter().filter(|folder| folder.exists()) {
        let (begun, asked) = check_records(folder).map_err(|error| CliError::role("node", error))?;
        (lives, requests) = (lives + begun, requests + asked);
    }
    let row = |what: &str, count: usize| Row::new(format!("faults.{what}"), count as f64, "", 1, 0.0);
    Ok([row("ledger_lives", lives), row("requests_checked", requests)])
}

/// A home with a key of its own as a node and another's as a validator.
fn twin(folder: &Path, of: &Member) -> Result<Member, CliError> {
    let home = Home::new(&folder.join("twin"))?;
    home.create()?;
    ensure_keys(&home.node())?;
    for file in ["priv_validator_key.json", "genesis.json"] {
        let (from, to) = (of.home.node().join("config").join(file), home.node().join("config").join(file));
        std::fs::copy(&from, &to).map_err(|e| CliError::file(&from, e))?;
    }
    Ok(Member { home, ports: testnet::ports(1, None)?.remove(0), peers: String::new() })
}

fn lying(member: &Member, comet: &Path) -> Result<Lying, CliError> {
    let home = &member.home;
    let settings = NodeSettings {
        rpc_port: member.ports["rpc"],
        p2p_port: member.ports["p2p"],
        socket: home.socket(),
        block_time_ms: BLOCK_TIME_MS,
        peers: member.peers.clone(),
    };
    write_config(&home.node(), &settings)?;
    // Empty until the node runs: a directory entry that a wipe finds.
    files::create_dir(&home.ledger())?;
    let program = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
    let args = |words: &[&str], path: &Path| {
        words.iter().map(|word| (*word).to_owned()).chain([path.display().to_string()]).collect()
    };
    let ledger = Program {
        path: program,
        args: args(&["ledger", "--record-requests", "--snapshot-interval", SNAPSHOT_INTERVAL, "--home"], home.path()),
        env: vec![(SUPERVISED.into(), "1".into())],
    };
    let data = home.node().join("data");
    // `priv_validator_state.json` stays: what was signed once is never signed otherwise.
    let databases = ["application.db", "blockstore.db", "cs.wal", "evidence.db", "state.db", "tx_index.db"];
    Ok(Lying {
        node: Node {
            app: Some((ledger, home.socket())),
            node: Program {
                path: comet.to_owned(),
                args: args(&["start", "--home"], &home.node()),
                env: environment(),
            },
            rpc: format!("http://127.0.0.1:{}", settings.rpc_port),
        },
        config: home.node().join("config/config.toml"),
        wiped: databases.iter().map(|name| data.join(name)).chain([home.ledger()]).collect(),
    })
}
