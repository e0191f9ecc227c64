//! The state directory: where each thing lies, the lock of its supervisor, and the record of the network in it.
//!
//! | path | holds |
//! | --- | --- |
//! | `polylink.toml` | configuration, optional |
//! | `keys/` | the keyring |
//! | `network.json` | addresses, ports and the first API key, readable by the owner only |
//! | `node/` | CometBFT's home: config, validator key, blocks |
//! | `ledger/` | the ledger's store |
//! | `worker/`, `gateway/`, `judge-N/` | each service's journal |
//! | `run/` | socket, lock and state of the running supervisor |
//! | `logs/` | one file per role |

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::error::CliError;
use crate::files;

/// The directory and the names in it.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// At a path, made absolute; nothing is created.
    pub fn new(path: &Path) -> Result<Self, CliError> {
        std::path::absolute(path).map(Self).map_err(|e| CliError::file(path, e))
    }
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// What is known of the network.
    pub fn network(&self) -> PathBuf {
        self.0.join("network.json")
    }
    /// CometBFT's home.
    pub fn node(&self) -> PathBuf {
        self.0.join("node")
    }
    /// The ledger's store.
    pub fn ledger(&self) -> PathBuf {
        self.0.join("ledger")
    }
    /// What the ledger was asked, where it writes that down.
    pub fn requests(&self) -> PathBuf {
        self.0.join("requests")
    }
    /// A service's own directory.
    pub fn service(&self, role: &str) -> PathBuf {
        self.0.join(role)
    }
    /// The ledger's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("run/ledger.sock")
    }
    /// What the supervisor says of its roles.
    pub fn state(&self) -> PathBuf {
        self.0.join("run/state.json")
    }
    /// A role's log.
    pub fn log(&self, role: &str) -> PathBuf {
        self.0.join("logs").join(format!("{role}.log"))
    }
    /// Makes the directories that every supervisor needs.
    pub fn create(&self) -> Result<(), CliError> {
        for directory in ["run", "logs", "keys"] {
            files::create_dir(&self.0.join(directory))?;
        }
        Ok(())
    }
    /// Takes the supervisor's lock, which ends with the process however it ends. None: another one holds it.
    pub fn lock(&self) -> Result<Option<File>, CliError> {
        let path = self.0.join("run/lock");
        files::create_dir(&self.0.join("run"))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| CliError::file(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => Err(CliError::file(&path, e)),
        }
    }
    /// The network's record, if there is one.
    pub fn read_network(&self) -> Result<Option<Network>, CliError> {
        if self.network().exists() { files::read_json(&self.network()).map(Some) } else { Ok(None) }
    }
    /// The network's record, or what to do to have one.
    pub fn require_network(&self) -> Result<Network, CliError> {
        let missing = || CliError::file(&self.network(), "no network in this home yet; start one with `polylink up`");
        self.read_network()?.ok_or_else(missing)
    }
}

/// What is known of the network in a home; stable from the first start on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Chain id.
    pub chain_id: String,
    /// Port of each listener on loopback, by name.
    pub ports: BTreeMap<String, u16>,
    /// Key of the gateway that belongs to the funded user.
    pub api_key: String,
    /// Name of the model that is served.
    pub model: String,
    /// Its profile digest, hexadecimal.
    pub profile: String,
    /// Blocks of an epoch.
    pub epoch_blocks: u64,
    /// Pause between blocks, milliseconds.
    pub block_time_ms: u64,
}

impl Network {
    /// The port of a listener.
    pub fn port(&self, name: &str) -> Result<u16, CliError> {
        let known = || self.ports.keys().cloned().collect::<Vec<_>>().join(", ");
        self.ports
            .get(name)
            .copied()
            .ok_or_else(|| CliError::value("network.json", format!("no port `{name}`; there are: {}", known())))
    }
    /// `http://127.0.0.1:PORT` of a listener.
    pub fn url(&self, name: &str) -> Result<String, CliError> {
        Ok(format!("http://127.0.0.1:{}", self.port(name)?))
    }
    /// The OpenAI base URL.
    pub fn endpoint(&self) -> Result<String, CliError> {
        Ok(self.url("gateway")? + "/v1")
    }
}

/// A port for each name: the wanted one, which must be free, or any free one. All are held open until every name has
/// its own, so that no two get the same.
pub fn choose_ports(wanted: &[(&str, Option<u16>)]) -> Result<BTreeMap<String, u16>, CliError> {
    let mut held = Vec::new();
    let mut chosen = BTreeMap::new();
    for (name, port) in wanted {
        let listener = bind(name, port.unwrap_or(0))?;
        let address = listener.local_addr().map_err(|e| CliError::value(*name, e))?;
        chosen.insert((*name).to_owned(), address.port());
        held.push(listener);
    }
    Ok(chosen)
}

/// Refuses ports that another process holds, by name.
pub fn check_ports<'a>(ports: impl IntoIterator<Item = (&'a String, &'a u16)>) -> Result<(), CliError> {
    ports.into_iter().try_for_each(|(name, port)| bind(name, *port).map(drop))
}

fn bind(name: &str, port: u16) -> Result<TcpListener, CliError> {
    TcpListener::bind(("127.0.0.1", port)).map_err(|e| {
        CliError::value(
            format!("port {port} of {name}"),
            format!("{e}; stop the process that holds it, or give another with --{name}-port"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct_and_a_taken_one_is_named() {
        let ports = choose_ports(&[("rpc", None), ("p2p", None), ("gateway", None)]).unwrap();
        let distinct: std::collections::BTreeSet<_> = ports.values().collect();
        assert_eq!(distinct.len(), 3);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let error = choose_ports(&[("rpc", Some(port))]).unwrap_err().to_string();
        assert!(error.contains("--rpc-port") && error.contains(&port.to_string()), "{error}");
    }

    #[test]
    fn one_supervisor_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path()).unwrap();
        let held = home.lock().unwrap();
        assert!(held.is_some());
        assert!(home.lock().unwrap().is_none());
        drop(held);
        assert!(home.lock().unwrap().is_some());
    }
}
