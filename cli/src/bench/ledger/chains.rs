//! The chains that are loaded over RPC: ours and CometBFT's key-value store, with the same settings.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use polylink_bench::ledger::accounts::SENDERS_MAX;
use polylink_bench::ledger::network::{Contestant, Kind, Make, Node, Program};
use polylink_bench::report::OURS;
use polylink_protocol::Amount;

use crate::error::CliError;
use crate::files;
use crate::node::{NodeSettings, environment, find_binary, find_tool, write_config};
use crate::shutdown::SUPERVISED;
use crate::testnet::{self, Member, Plan};

/// Pause after a block.
const BLOCK_TIME_MS: u64 = 200;
/// What a validator stakes, in uplk.
const STAKE: Amount = Amount(5_000_000_000);
/// The line of the settings that bounds what waits, and its value here.
const MEMPOOL: (&str, &str) = ("size = 5000", "size = 100000");

/// Where a chain's application is.
#[derive(Clone)]
enum App {
    Ledger,
    Socket(PathBuf),
    InNode,
}

/// Who is not there, and why.
type Absent = Vec<(String, String)>;

/// The chains of so many validators, ours first; and who is absent, with the reason.
pub fn contestants(cometbft: Option<&Path>, nodes: usize) -> Result<(Vec<Contestant>, Absent), CliError> {
    let comet = find_binary(cometbft)?;
    let contestant = |name: &str, kind, app: App| {
        let comet = comet.clone();
        let make: Make = Box::new(move |folder| chain(folder, nodes, &comet, &app).map_err(|e| e.to_string()));
        Contestant { name: name.to_owned(), kind, make }
    };
    let mut all = vec![contestant(OURS, Kind::Sends, App::Ledger)];
    let mut absent = Vec::new();
    match find_tool("abci-cli") {
        Some(tool) => all.push(contestant("kvstore over the socket", Kind::KeyValues, App::Socket(tool))),
        None => absent
            .push(("kvstore over the socket".to_owned(), "build it with cometbft-config/build.sh abci-cli".to_owned())),
    }
    all.push(contestant("kvstore in the node", Kind::KeyValues, App::InNode));
    Ok((all, absent))
}

fn chain(folder: &Path, nodes: usize, comet: &Path, app: &App) -> Result<Vec<Node>, CliError> {
    let plan = Plan {
        chain_id: "polylink-bench-1".into(),
        ports: testnet::ports(nodes, None)?,
        block_time_ms: BLOCK_TIME_MS,
        stake: STAKE,
    };
    let members = testnet::write(folder, &plan, |_| Ok(super::genesis(&[], SENDERS_MAX)))?;
    let validators = members.iter().map(validator).collect::<Result<Vec<_>, _>>()?;
    members.iter().map(|member| node(member, comet, app, &validators)).collect()
}

/// A validator as a genesis document names it: the key-value store takes its set from there.
fn validator(member: &Member) -> Result<Value, CliError> {
    let key: Value = files::read_json(&member.home.node().join("config/priv_validator_key.json"))?;
    Ok(json!({"address": key["address"], "pub_key": key["pub_key"], "power": "10", "name": ""}))
}

fn node(member: &Member, comet: &Path, app: &App, validators: &[Value]) -> Result<Node, CliError> {
    let home = &member.home;
    let settings = NodeSettings {
        rpc_port: member.ports["rpc"],
        p2p_port: member.ports["p2p"],
        socket: home.socket(),
        block_time_ms: BLOCK_TIME_MS,
        peers: member.peers.clone(),
    };
    write_config(&home.node(), &settings)?;
    let socket = format!("unix://{}", home.socket().display());
    let path = home.node().join("config/config.toml");
    let mut text = std::fs::read_to_string(&path).map_err(|e| CliError::file(&path, e))?;
    text = text.replace(MEMPOOL.0, MEMPOOL.1);
    if !text.contains(MEMPOOL.1) {
        return Err(CliError::file(&path, format!("`{}` is not there any more", MEMPOOL.0)));
    }
    if !matches!(app, App::Ledger) {
        let path = home.node().join("config/genesis.json");
        let mut genesis: Value = files::read_json(&path)?;
        genesis["validators"] = validators.into();
        genesis["app_state"] = json!({});
        files::write_json(&path, &genesis)?;
    }
    if matches!(app, App::InNode) {
        text = text.replace(&format!("\"{socket}\""), "\"kvstore\"");
    }
    files::write(&path, text.as_bytes(), 0o644)?;
    let home_flag = |path: &Path| vec!["--home".to_owned(), path.display().to_string()];
    let program = match app {
        App::Ledger => {
            let path = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
            let args = [vec!["ledger".to_owned()], home_flag(home.path())].concat();
            Some(Program { path, args, env: vec![(SUPERVISED.into(), "1".into())] })
        }
        App::Socket(tool) => {
            let args = ["kvstore", "--address", &socket, "--log_level", "error"];
            Some(Program { path: tool.clone(), args: args.map(str::to_owned).to_vec(), env: environment() })
        }
        App::InNode => None,
    };
    Ok(Node {
        app: program.map(|program| (program, home.socket())),
        node: Program {
            path: comet.to_owned(),
            args: [vec!["start".to_owned()], home_flag(&home.node())].concat(),
            env: environment(),
        },
        rpc: format!("http://127.0.0.1:{}", settings.rpc_port),
    })
}
