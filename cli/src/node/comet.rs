//! CometBFT: where its binary is, and the files of its home.
//!
//! The files are written at the first start only; afterwards the home is CometBFT's, and only the settings that the
//! supervisor decides (ports, the application's socket, block time) are written anew.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

use polylink_abci_app::tx::BLOCK_GAS_MAX;
use polylink_protocol::Address;
use polylink_protocol::keys::ServiceKey;

use crate::error::CliError;
use crate::files;
use crate::keys::random_bytes;

/// The line that the ledger, tendermint-rpc and CosmJS all speak.
const VERSION_LINE: &str = "0.38.";

/// Processors that Go's scheduler is told of at least.
const PROCESSORS_MIN: usize = 4;

/// Variables that CometBFT runs with, where they are not set: `cometbft-config/README.md` says why.
pub fn environment() -> Vec<(String, String)> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).max(PROCESSORS_MIN);
    let ours = [("GOMAXPROCS", processors.to_string()), ("GOGC", "400".into()), ("GOMEMLIMIT", "1GiB".into())];
    ours.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).map(|(n, v)| (n.to_owned(), v)).collect()
}

/// What the supervisor decides about a node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Of the RPC, on loopback.
    pub rpc_port: u16,
    /// Of the peers.
    pub p2p_port: u16,
    /// The application's socket.
    pub socket: PathBuf,
    /// Pause after a block's commit, milliseconds.
    pub block_time_ms: u64,
    /// Nodes that it keeps connected to, `ID@HOST:PORT`, by commas.
    pub peers: String,
}

/// The binary: the one that is named, else one of this line on PATH, else the one that was built into the cache.
pub fn find_binary(named: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(path) = named {
        let version = version(path).ok_or_else(|| CliError::file(path, "does not run as `cometbft version`"))?;
        return match version.starts_with(VERSION_LINE) {
            true => Ok(path.to_owned()),
            false => Err(CliError::file(path, format!("is CometBFT {version}; {VERSION_LINE}x is needed"))),
        };
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    let of_line = |path: &PathBuf| path.is_file() && version(path).is_some_and(|v| v.starts_with(VERSION_LINE));
    on_path.map(|d| d.join("cometbft")).chain([cache().join("bin/cometbft")]).find(of_line).ok_or_else(|| {
        CliError::value(
            "cometbft",
            format!(
                "no CometBFT {VERSION_LINE}x on PATH or in {}; build it with cometbft-config/build.sh (`make up` does)",
                cache().display()
            ),
        )
    })
}

/// One of CometBFT's other tools, on PATH or as it was built into the cache.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    on_path.chain([cache().join("bin")]).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(PathBuf::new, PathBuf::from).join(".cache/polylink");
    std::env::var_os("POLYLINK_CACHE").map_or_else(home, PathBuf::from)
}

fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().trim_start_matches('v').to_owned())
}

/// Makes the home's keys if they are not there; returns the validator's consensus key.
pub fn ensure_keys(home: &Path) -> Result<[u8; 32], CliError> {
    files::create_dir(&home.join("config"))?;
    files::create_dir(&home.join("data"))?;
    let validator = home.join("config/priv_validator_key.json");
    if !validator.exists() {
        let key = ServiceKey::from_bytes(&random_bytes()?);
        let public = key.public_key();
        let address = hex::encode_upper(Address::of_consensus_key(&public).0);
        let value = json!({
            "address": address,
            "pub_key": {"type": "tendermint/PubKeyEd25519", "value": BASE64.encode(public)},
            "priv_key": private(&key),
        });
        files::write_secret_json(&validator, &value)?;
    }
    let node = home.join("config/node_key.json");
    if !node.exists() {
        files::write_secret_json(&node, &json!({"priv_key": private(&ServiceKey::from_bytes(&random_bytes()?))}))?;
    }
    let state = home.join("data/priv_validator_state.json");
    if !state.exists() {
        files::write_secret_json(&state, &json!({"height": "0", "round": 0, "step": 0}))?;
    }
    let stored: Value = files::read_json(&validator)?;
    let public = stored["pub_key"]["value"].as_str().and_then(|text| BASE64.decode(text).ok());
    public
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| CliError::file(&validator, "pub_key.value is not an ed25519 key"))
}

/// How other nodes name this one: its address in hexadecimal.
pub fn node_id(home: &Path) -> Result<String, CliError> {
    let path = home.join("config/node_key.json");
    let stored: Value = files::read_json(&path)?;
    let key = stored["priv_key"]["value"].as_str().and_then(|text| BASE64.decode(text).ok());
    let public: Option<[u8; 32]> = key.and_then(|both| both.get(32..)?.try_into().ok());
    let public = public.ok_or_else(|| CliError::file(&path, "priv_key.value is not an ed25519 key"))?;
    Ok(hex::encode(Address::of_consensus_key(&public).0))
}

/// Refuses what is not `ID@HOST:PORT`, by commas.
pub fn parse_peers(text: &str) -> Result<String, String> {
    let good = |peer: &str| {
        let (id, address) = peer.split_once('@')?;
        let (host, port) = address.rsplit_once(':')?;
        let host = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_[]:".contains(&b));
        (id.len() == 40 && hex::decode(id).is_ok() && host && port.parse::<u16>().is_ok_and(|p| p > 0)).then_some(())
    };
    match text.split(',').find(|peer| !peer.is_empty() && good(peer).is_none()) {
        Some(peer) => Err(format!("`{peer}` is not a peer; write ID@HOST:PORT with an ID of 40 hexadecimal digits")),
        None => Ok(text.to_owned()),
    }
}

/// CometBFT keeps secret ‖ public.
fn private(key: &ServiceKey) -> Value {
    let both = [key.secret_bytes(), key.public_key()].concat();
    json!({"type": "tendermint/PrivKeyEd25519", "value": BASE64.encode(both)})
}

/// Writes the genesis document. The validator set comes from the ledger's InitChain.
pub fn write_genesis(home: &Path, chain_id: &str, time: &str, app_state: Value) -> Result<(), CliError> {
    let document = json!({
        "genesis_time": time,
        "chain_id": chain_id,
        "initial_height": "1",
        "consensus_params": {
            "block": {"max_bytes": "2097152", "max_gas": BLOCK_GAS_MAX.to_string()},
            "evidence": {"max_age_num_blocks": "1000000", "max_age_duration": "1814400000000000", "max_bytes": "1048576"},
            "validator": {"pub_key_types": ["ed25519"]},
            "version": {"app": "0"},
            "abci": {"vote_extensions_enable_height": "0"},
        },
        "app_hash": "",
        "app_state": app_state,
    });
    files::write_json(&home.join("config/genesis.json"), &document)
}

/// Writes the settings; what they do not name keeps CometBFT's default. `cometbft-config/README.md` gives the reasons.
pub fn write_config(home: &Path, settings: &NodeSettings) -> Result<(), CliError> {
    let text = include_str!("../../../cometbft-config/config.toml")
        .replace("{rpc_port}", &settings.rpc_port.to_string())
        .replace("{p2p_port}", &settings.p2p_port.to_string())
        .replace("{peers}", &settings.peers)
        .replace("{socket}", &settings.socket.display().to_string())
        .replace("{block_time_ms}", &settings.block_time_ms.to_string());
    files::write(&home.join("config/config.toml"), text.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_an_id_and_an_address() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        for good in ["", &format!("{id}@127.0.0.1:26656"), &format!("{id}@a.b:1,{id}@[::1]:2")] {
            assert!(parse_peers(good).is_ok(), "{good}");
        }
        for bad in ["x", "127.0.0.1:1", &format!("{id}@host"), &format!("{id}@h:0"), &format!("{id}@h\"x:1")] {
            assert!(parse_peers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_named_by_its_key() {
        let home = tempfile::tempdir().unwrap();
        ensure_keys(home.path()).unwrap();
        let id = node_id(home.path()).unwrap();
        assert!(id.len() == 40 && id == node_id(home.path()).unwrap());
        std::fs::write(home.path().join("config/node_key.json"), "{}").unwrap();
        assert!(node_id(home.path()).unwrap_err().to_string().contains("node_key.json"));
    }
}
