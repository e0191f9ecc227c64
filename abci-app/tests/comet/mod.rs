//! A real CometBFT node for tests: one validator in a temporary home, on free ports, with the
//! settings that the network uses. Each test binary uses a part of it.
#![allow(dead_code)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tendermint_rpc::client::CompatMode;
use tendermint_rpc::{Client, HttpClient};

/// The longest that a node may take to start, to make a block or to stop, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A node's home and, while it runs, its process. Dropping it kills the process.
pub struct Comet {
    binary: PathBuf,
    home: PathBuf,
    rpc_port: u16,
    p2p_port: u16,
    child: Option<Child>,
}

impl Comet {
    /// Makes the home of a one-validator chain whose application listens on `socket`.
    pub fn init(home: &Path, socket: &Path, block_time_ms: u64) -> Comet {
        let binary = binary();
        let quiet = Command::new(&binary).arg("init").arg("--home").arg(home).stdout(Stdio::null()).status().unwrap();
        assert!(quiet.success(), "cometbft init failed");
        let (rpc_port, p2p_port) = free_ports();
        let config = include_str!("../../../cometbft-config/config.toml")
            .replace("{rpc_port}", &rpc_port.to_string())
            .replace("{p2p_port}", &p2p_port.to_string())
            .replace("{peers}", "")
            .replace("{socket}", &socket.display().to_string())
            .replace("{block_time_ms}", &block_time_ms.to_string());
        std::fs::write(home.join("config/config.toml"), config).unwrap();
        // Evidence is taken for as long as stake unbonds: CometBFT's own genesis has two days.
        let genesis = home.join("config/genesis.json");
        let text = std::fs::read_to_string(&genesis).unwrap().replace("\"172800000000000\"", "\"1814400000000000\"");
        std::fs::write(&genesis, text).unwrap();
        Comet { binary, home: home.to_path_buf(), rpc_port, p2p_port, child: None }
    }

    /// Makes the home of a node that follows the chain of `peer` from its genesis, without a vote.
    pub fn follow(home: &Path, socket: &Path, peer: &Comet, block_time_ms: u64) -> Comet {
        let node = Comet::init(home, socket, block_time_ms);
        std::fs::copy(peer.home.join("config/genesis.json"), home.join("config/genesis.json")).unwrap();
        node.connect(peer);
        node
    }

    /// Makes another node a peer of this one, from its next start on.
    pub fn connect(&self, peer: &Comet) {
        let peer = format!("{}@127.0.0.1:{}", peer.id(), peer.p2p_port);
        self.edit_config(|text| {
            let first = text.replace("persistent_peers = \"\"", &format!("persistent_peers = \"{peer}\""));
            if first != text {
                first
            } else {
                text.replace("persistent_peers = \"", &format!("persistent_peers = \"{peer},"))
            }
        });
    }

    /// Its id among its peers.
    pub fn id(&self) -> String {
        let id = Command::new(&self.binary).args(["show-node-id", "--home"]).arg(&self.home).output().unwrap();
        String::from_utf8(id.stdout).unwrap().trim().to_owned()
    }

    /// As [`follow`](Self::follow), by state sync, trusting the header of `height`. It looks for snapshots for a time of
    /// which ten seconds are no multiple: after so long a server of RPC closes an idle connection, and CometBFT gives up
    /// state sync for good where it sends a request on one that is just being closed.
    pub async fn join(home: &Path, socket: &Path, peer: &Comet, block_time_ms: u64, height: u64) -> Comet {
        let node = Comet::follow(home, socket, peer, block_time_ms);
        let trusted = peer.client().commit(u32::try_from(height).unwrap()).await.unwrap().signed_header;
        let (url, hash) = (peer.url(), trusted.header.hash());
        let sync = format!(
            "\n[statesync]\nenable = true\nrpc_servers = \"{url},{url}\"\ntrust_height = {height}\ntrust_hash = \"{hash}\"\n\
             trust_period = \"1h\"\ndiscovery_time = \"7s\"\n"
        );
        node.edit_config(|text| text + &sync);
        node
    }

    fn edit_config(&self, edit: impl FnOnce(String) -> String) {
        let path = self.home.join("config/config.toml");
        std::fs::write(&path, edit(std::fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// Starts the node and waits until a block beyond those it knew is executed. It tells of a block
    /// once that is stored, which is before it is executed: so until there are two.
    pub async fn start(&mut self) -> HttpClient {
        self.launch();
        let client = self.client();
        let first = self.wait_for("an answer of the RPC", || client.status()).await;
        let height = first.sync_info.latest_block_height.value();
        self.wait_for_height(&client, height + 2).await;
        client
    }

    /// Starts the node and waits for nothing.
    pub fn launch(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("node.log")).unwrap();
        let child = Command::new(&self.binary)
            .args(["start", "--home"])
            .arg(&self.home)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Runs `cometbft rollback` over the home of a node that stands still; returns what it says.
    pub fn rollback(&self, arguments: &[&str]) -> String {
        assert!(self.child.is_none(), "the node runs");
        let output = Command::new(&self.binary).arg("rollback").args(arguments).arg("--home").arg(&self.home).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The address of its RPC.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port)
    }

    /// A client of its RPC.
    pub fn client(&self) -> HttpClient {
        HttpClient::builder(self.url().parse().unwrap()).compat_mode(CompatMode::V0_38).build().unwrap()
    }

    /// Waits until the chain has reached `height`.
    pub async fn wait_for_height(&self, client: &HttpClient, height: u64) {
        self.wait_for(&format!("height {height}"), || async {
            let status = client.status().await.map_err(|error| error.to_string())?;
            let newest = status.sync_info.latest_block_height.value();
            if newest >= height { Ok(()) } else { Err(format!("height {newest}")) }
        })
        .await;
    }

    /// Asks until there is an answer, or fails with the last refusal and the node's log.
    pub async fn wait_for<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        mut ask: impl FnMut() -> F,
    ) -> T {
        let begin = Instant::now();
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) if begin.elapsed() > DEADLINE => {
                    let log = std::fs::read_to_string(self.home.join("node.log")).unwrap_or_default();
                    panic!("no {what} within {DEADLINE:?}: {error}\nthe node's log:\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Stops the node in order; it has a deadline, then it is killed. Returns whether it obeyed.
    pub fn stop(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }

    /// Alters the genesis document.
    pub fn edit_genesis(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.home.join("config/genesis.json");
        let mut genesis = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut genesis);
        std::fs::write(path, genesis.to_string()).unwrap();
    }

    /// The validator's public key, in base64.
    pub fn consensus_key(&self) -> String {
        let key = std::fs::read(self.home.join("config/priv_validator_key.json")).unwrap();
        let key: Value = serde_json::from_slice(&key).unwrap();
        key["pub_key"]["value"].as_str().unwrap().to_owned()
    }

    /// Waits for the node to end by itself; returns whether it did.
    pub fn ends(&mut self, within: Duration) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < within {
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Comet {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The pinned CometBFT, built now if it is not there.
fn binary() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cometbft-config/build.sh");
    let output = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{} failed", script.display());
    PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().last().unwrap())
}

/// Two ports that were free a moment ago.
fn free_ports() -> (u16, u16) {
    let sockets = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let [rpc, p2p] = sockets.map(|socket| socket.local_addr().unwrap().port());
    (rpc, p2p)
}
