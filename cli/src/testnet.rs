//! `polylink testnet`: the homes of a network of several validators, each to be started by `polylink node`.
//!
//! A home is that of any node: its settings stand in its `polylink.toml` as the flags of `polylink node`, its keys and the
//! genesis document, which is the same in all of them, where a node looks for them. Nothing is started.

use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polylink_abci_app::Genesis;
use polylink_abci_app::staking::GenesisValidator;
use polylink_protocol::{Address, Amount};

use crate::chain::parse_amount;
use crate::config;
use crate::error::CliError;
use crate::files;
use crate::home::{Home, choose_ports};
use crate::keys::{Keyring, Kind};
use crate::node::{ensure_keys, node_id, write_genesis};
use crate::up;

/// The most validators: as many as the ledger's set has at its default.
const VALIDATORS_MAX: usize = 100;
/// Ports of one node that follow each other under `--first-port`.
const PORTS: [&str; 4] = ["p2p", "rpc", "rest", "grpc"];
/// Ports from one node's first to the next one's.
const PORT_STRIDE: u16 = 10;
/// The account that has coins for everything else.
const FUNDED: &str = "user";

/// `polylink testnet`.
#[derive(Args, Debug)]
#[command(after_help = "\
Writes FOLDER/node-1 … and starts nothing; each node is then started by the command that is printed.

Example: polylink testnet --validators 4 --out /tmp/net")]
pub struct TestnetArgs {
    /// Validators, each with a home of its own
    #[arg(long, default_value_t = 4)]
    validators: usize,
    /// Folder of the homes; it must not hold any yet
    #[arg(long)]
    out: PathBuf,
    /// The chain's id [default: a new one]
    #[arg(long)]
    chain_id: Option<String>,
    /// Ports from this one on: each node has p2p, RPC, REST and gRPC, 10 after those of the node before [default: free ones]
    #[arg(long)]
    first_port: Option<u16>,
    /// Pause after each block, in milliseconds
    #[arg(long, default_value_t = 1_000)]
    block_time_ms: u64,
    /// What each validator stakes
    #[arg(long, default_value = "5000plk", value_parser = parse_amount)]
    stake: Amount,
    /// What the account `user` has, whose key is in the first home
    #[arg(long, default_value = "1000000plk", value_parser = parse_amount)]
    funds: Amount,
}

/// A node of a network that was written.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it lies.
    pub home: Home,
    /// Its ports, by name.
    pub ports: BTreeMap<String, u16>,
    /// The other nodes, as `polylink node --peers` takes them.
    pub peers: String,
}

/// A network to write.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The chain's id.
    pub chain_id: String,
    /// The ports of each node, by name.
    pub ports: Vec<BTreeMap<String, u16>>,
    /// Pause after a block, in milliseconds.
    pub block_time_ms: u64,
    /// What each validator stakes.
    pub stake: Amount,
}

/// The ports of so many nodes.
pub fn ports(nodes: usize, first: Option<u16>) -> Result<Vec<BTreeMap<String, u16>>, CliError> {
    let Some(first) = first else {
        let names: Vec<String> = (0..nodes).flat_map(|node| PORTS.map(|name| format!("{node} {name}"))).collect();
        let wanted: Vec<(&str, Option<u16>)> = names.iter().map(|name| (name.as_str(), None)).collect();
        let chosen = choose_ports(&wanted)?;
        let of = |node: usize| PORTS.map(|name| (name.to_owned(), chosen[&format!("{node} {name}")])).into();
        return Ok((0..nodes).map(of).collect());
    };
    let last = usize::from(first) + nodes * usize::from(PORT_STRIDE);
    if first == 0 || last > usize::from(u16::MAX) {
        let reason = format!("{first}: ports from there to {last} are needed; they go from 1 to 65535");
        return Err(CliError::value("--first-port", reason));
    }
    let of = |node: usize| {
        let first = first + PORT_STRIDE * node as u16;
        PORTS.iter().zip(first..).map(|(name, port)| ((*name).to_owned(), port)).collect()
    };
    Ok((0..nodes).map(of).collect())
}

/// Writes the homes `out/node-1` and so on. `genesis` makes what the chain starts from besides its validators; it may put
/// keys into the homes.
pub fn write(
    out: &Path,
    plan: &Plan,
    genesis: impl FnOnce(&[Home]) -> Result<Genesis, CliError>,
) -> Result<Vec<Member>, CliError> {
    let homes = (1..=plan.ports.len()).map(|number| Home::new(&out.join(format!("node-{number}"))));
    let homes: Vec<Home> = homes.collect::<Result<_, _>>()?;
    if let Some(home) = homes.iter().find(|home| home.path().exists()) {
        return Err(CliError::file(home.path(), "is there already; name another folder with --out"));
    }
    for home in &homes {
        home.create()?;
    }
    let mut genesis = genesis(&homes)?;
    for home in &homes {
        let consensus_key = ensure_keys(&home.node())?;
        let ring = Keyring::new(home.path());
        ring.ensure("validator", Kind::Account)?;
        let operator: Address = ring.account("validator")?.address();
        // As much again for fees and further stake.
        genesis = genesis.with_account(&operator, Amount(plan.stake.0.saturating_mul(2)));
        genesis.staking.validators.push(GenesisValidator::new(&operator, &consensus_key, plan.stake));
    }
    let peers: Vec<String> = homes
        .iter()
        .zip(&plan.ports)
        .map(|(home, ports)| Ok(format!("{}@127.0.0.1:{}", node_id(&home.node())?, ports["p2p"])))
        .collect::<Result<_, CliError>>()?;
    let (time, state) = (up::genesis_time(), genesis.to_json());
    let others = |at: usize| {
        let others = peers.iter().enumerate().filter(|(other, _)| *other != at);
        others.map(|(_, peer)| peer.as_str()).collect::<Vec<_>>().join(",")
    };
    let members = homes.into_iter().zip(&plan.ports).enumerate();
    let members = members.map(|(at, (home, ports))| Member { home, ports: ports.clone(), peers: others(at) });
    let members: Vec<Member> = members.collect();
    for Member { home, ports, peers } in &members {
        write_genesis(&home.node(), &plan.chain_id, &time, state.clone())?;
        let mut node: toml::Table =
            ports.iter().map(|(name, port)| (format!("{name}-port"), i64::from(*port).into())).collect();
        node.insert("block-time-ms".into(), i64::try_from(plan.block_time_ms).unwrap_or(i64::MAX).into());
        node.insert("peers".into(), peers.clone().into());
        let table = toml::Table::from_iter([("node".to_owned(), toml::Value::Table(node))]);
        files::write(&home.path().join(config::FILE_NAME), table.to_string().as_bytes(), 0o644)?;
    }
    Ok(members)
}

/// Runs `polylink testnet`.
pub fn run(args: &TestnetArgs) -> Result<(), CliError> {
    if !(1..=VALIDATORS_MAX).contains(&args.validators) {
        let reason = format!("{}: 1 to {VALIDATORS_MAX} are expected", args.validators);
        return Err(CliError::value("--validators", reason));
    }
    if !(1..=60_000).contains(&args.block_time_ms) {
        let reason = format!("{}: 1 to 60,000 are expected", args.block_time_ms);
        return Err(CliError::value("--block-time-ms", reason));
    }
    let chain_id = args.chain_id.clone().map_or_else(up::new_chain_id, Ok)?;
    if chain_id.is_empty() || chain_id.len() > 50 {
        return Err(CliError::value("--chain-id", "1 to 50 characters are expected"));
    }
    let plan = Plan {
        chain_id,
        ports: ports(args.validators, args.first_port)?,
        block_time_ms: args.block_time_ms,
        stake: args.stake,
    };
    let members = write(&args.out, &plan, |homes| {
        let ring = Keyring::new(homes[0].path());
        ring.ensure(FUNDED, Kind::Account)?;
        Ok(Genesis::default().with_account(&ring.account(FUNDED)?.address(), args.funds))
    })?;
    println!("chain {}: {} validators", plan.chain_id, members.len());
    for Member { home, ports, .. } in &members {
        println!("polylink node --home {}    # RPC http://127.0.0.1:{}", home.path().display(), ports["rpc"]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_apart_and_within_what_there_is() {
        let chosen = ports(3, Some(26_600)).unwrap();
        assert_eq!((chosen[0]["p2p"], chosen[0]["rpc"], chosen[2]["rpc"]), (26_600, 26_601, 26_621));
        let free = ports(4, None).unwrap();
        let distinct: std::collections::BTreeSet<_> = free.iter().flat_map(|node| node.values()).collect();
        assert_eq!(distinct.len(), 4 * PORTS.len());
        for first in [0, 65_530] {
            assert!(ports(4, Some(first)).unwrap_err().to_string().contains("--first-port"));
        }
    }
}
