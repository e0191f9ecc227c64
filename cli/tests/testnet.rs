//! `polylink testnet`: four validators on this machine, each by `polylink node`, agree on their state.
#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, Running, command, fails, text};
use serde_json::Value;
use std::path::Path;
use std::time::Instant;

/// A node that is told to stop when the test ends, so that its children end too.
struct Node(Running);

impl Drop for Node {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0.0);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _stopped = self.0.0.wait();
    }
}

fn write(out: &Path, more: &[&str]) -> String {
    let out = out.display().to_string();
    let output = command(&[&["testnet", "--out", &out][..], more].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

async fn ask(http: &reqwest::Client, rpc: &str, call: &str) -> Option<Value> {
    let answer: Value = http.get(format!("{rpc}/{call}")).send().await.ok()?.json().await.ok()?;
    (!answer["result"].is_null()).then(|| answer["result"].clone())
}

async fn height(http: &reqwest::Client, rpc: &str) -> u64 {
    let status = ask(http, rpc, "status").await.unwrap_or_default();
    status["sync_info"]["latest_block_height"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_validators_commit_the_same_state() {
    let folder = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
    let said = write(folder.path(), &["--validators", "4", "--block-time-ms", "300"]);
    let rpcs: Vec<String> = said.lines().filter_map(|line| Some(line.split_once("# RPC ")?.1.to_owned())).collect();
    assert_eq!(rpcs.len(), 4, "{said}");
    let nodes: Vec<Node> = (1..=4)
        .map(|number| {
            let home = folder.path().join(format!("node-{number}"));
            let log = std::fs::File::create(folder.path().join(format!("{number}.log"))).unwrap();
            let mut node = command(&["node", "--home", home.to_str().unwrap()]);
            Node(Running(node.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()))
        })
        .collect();
    let http = reqwest::Client::new();
    let begun = Instant::now();
    for rpc in &rpcs {
        while height(&http, rpc).await < 4 {
            assert!(begun.elapsed() < PATIENCE, "{rpc} commits nothing");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    let validators = ask(&http, &rpcs[0], "validators").await.unwrap();
    assert_eq!(validators["total"], "4");
    for height in 1..=4 {
        let mut hashes = Vec::new();
        for rpc in &rpcs {
            let block = ask(&http, rpc, &format!("block?height={height}")).await.unwrap();
            hashes.push(block["block"]["header"]["app_hash"].as_str().unwrap().to_owned());
        }
        assert!(hashes[0].len() == 64 && hashes.iter().all(|hash| *hash == hashes[0]), "{height}: {hashes:?}");
    }
    // A third of the power gone stops nobody: three of four go on.
    let mut nodes = nodes;
    drop(nodes.pop());
    let before = height(&http, &rpcs[0]).await;
    while height(&http, &rpcs[0]).await < before + 2 {
        assert!(begun.elapsed() < PATIENCE, "three of four stand still");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    drop(nodes);
    (1..=4).for_each(|number| common::requests_keep_to_the_grammar(&folder.path().join(format!("node-{number}"))));
}

#[test]
fn what_no_network_can_be_made_of_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("net").display().to_string();
    for (args, named) in [
        (&["--validators", "0"][..], "--validators: 0"),
        (&["--validators", "101"], "--validators: 101"),
        (&["--first-port", "65530"], "--first-port: 65530"),
        (&["--block-time-ms", "0"], "--block-time-ms: 0"),
        (&["--chain-id", ""], "--chain-id"),
        (&["--stake", "many"], "many"),
    ] {
        let said = fails(&[&["testnet", "--out", &out][..], args].concat());
        assert!(said.contains(named), "{args:?}: {said}");
        assert!(!Path::new(&out).exists(), "{args:?} left something");
    }
    write(Path::new(&out), &["--validators", "2", "--first-port", "26600"]);
    let first = std::fs::read_to_string(Path::new(&out).join("node-1/polylink.toml")).unwrap();
    assert!(first.contains("rpc-port = 26601") && first.contains("@127.0.0.1:26610"), "{first}");
    let again = fails(&["testnet", "--out", &out]);
    assert!(again.contains("node-1") && again.contains("--out"), "{again}");
    let peers = fails(&["node", "--home", &out, "--peers", "nobody"]);
    assert!(peers.contains("nobody"), "{peers}");
}
