//! A halted chain and its ways out, as `docs/operations.md` describes them: a program that stops at a block, one that
//! executed a block wrongly, a ledger whose directory is lost.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comet::{Comet, DEADLINE};
use polylink_abci_app::server::{self, Address as Socket, EXIT_CODE_PANIC, Options};
use polylink_abci_app::store::Store;
use polylink_abci_app::testing::{CHAIN_ID, genesis};
use polylink_abci_app::{App, chain::SCHEMA_VERSION};
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;
use tendermint_rpc::Client;

/// Set in the ledger's process to its home.
const CHILD: &str = "POLYLINK_TEST_RECOVERY_HOME";
/// The height at which that program breaks an invariant, if any.
const BREAKS_AT: &str = "POLYLINK_TEST_BREAKS_AT";
/// The height whose block that program executes wrongly, if any: it takes it to be a second younger.
const WRONG_AT: &str = "POLYLINK_TEST_WRONG_AT";

/// A program with a mistake, around the real one.
#[derive(Clone)]
struct Mistaken {
    app: App,
    breaks_at: Option<i64>,
    wrong_at: Option<i64>,
}

impl Application for Mistaken {
    fn info(&self, request: pb::RequestInfo) -> pb::ResponseInfo {
        self.app.info(request)
    }
    fn init_chain(&self, request: pb::RequestInitChain) -> pb::ResponseInitChain {
        self.app.init_chain(request)
    }
    fn check_tx(&self, request: pb::RequestCheckTx) -> pb::ResponseCheckTx {
        self.app.check_tx(request)
    }
    fn finalize_block(&self, mut request: pb::RequestFinalizeBlock) -> pb::ResponseFinalizeBlock {
        assert_ne!(Some(request.height), self.breaks_at, "this program does not get over this block");
        if let Some(time) = request.time.as_mut().filter(|_| Some(request.height) == self.wrong_at) {
            time.seconds += 1;
        }
        self.app.finalize_block(request)
    }
    fn commit(&self) -> pb::ResponseCommit {
        self.app.commit()
    }
}

fn run_ledger(home: &Path) -> ! {
    let height = |name| std::env::var(name).ok().map(|height| height.parse().unwrap());
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let options = Options {
        observer: Some(server::record(&home.join("lives"), app.store().height()).unwrap()),
        ..Options::default()
    };
    let app = Mistaken { app, breaks_at: height(BREAKS_AT), wrong_at: height(WRONG_AT) };
    let _server = server::serve(&Socket::unix(home.join("abci.sock")).unwrap(), app, options).unwrap();
    loop {
        std::thread::park();
    }
}

/// The ledger's process: this test again.
fn start(home: &Path, mistakes: &[(&str, u64)]) -> Running {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_halted_chain_goes_on", "--nocapture"])
        .env(CHILD, home)
        .envs(mistakes.iter().map(|(name, height)| (name, height.to_string())))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while std::os::unix::net::UnixStream::connect(home.join("abci.sock")).is_err() {
        assert!(begin.elapsed() < DEADLINE, "the ledger does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Running(child, home.to_path_buf())
}

struct Running(Child, PathBuf);

impl Running {
    /// Waits until the program has stopped itself; returns the height that it has committed.
    fn halted(mut self) -> u64 {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert_eq!(status.code(), Some(EXIT_CODE_PANIC));
                return self.height();
            }
            assert!(begin.elapsed() < DEADLINE, "the ledger does not halt");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self) -> u64 {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        self.height()
    }

    fn height(&self) -> u64 {
        Store::open(self.1.join("ledger"), SCHEMA_VERSION).unwrap().height()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_halted_chain_goes_on() {
    if let Ok(home) = std::env::var(CHILD) {
        run_ledger(home.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let mut comet = Comet::init(&home, &home.join("abci.sock"), 50);
    let mut state = genesis(1);
    state.staking.validators[0].consensus_key = comet.consensus_key();
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = state.to_json();
    });

    // A program that breaks an invariant stops before the block counts, each time anew; a mended one takes the block.
    for _ in 0..2 {
        let ledger = start(&home, &[(BREAKS_AT, 8)]);
        comet.launch();
        assert_eq!(ledger.halted(), 7);
        comet.kill();
    }
    let ledger = start(&home, &[]);
    let client = comet.start().await;
    comet.wait_for_height(&client, 10).await;
    assert!(comet.stop(), "the node must stop on SIGTERM");
    let height = ledger.stop();

    // The ledger's directory is lost: CometBFT hands it every block again, and compares every hash.
    std::fs::remove_dir_all(home.join("ledger")).unwrap();
    let ledger = start(&home, &[]);
    let client = comet.start().await;
    comet.wait_for_height(&client, height + 2).await;

    // One node's program executes a block wrongly and commits it. It takes no block of the others any more; mended, it
    // goes back before the block and executes it anew.
    let follower = dir.path().join("follower");
    let mut other = Comet::follow(&follower, &follower.join("abci.sock"), &comet, 50);
    let wrong = 6;
    let mistaken = start(&follower, &[(WRONG_AT, wrong)]);
    other.launch();
    let standing = other.client();
    other.wait_for_height(&standing, wrong).await;
    let now = client.status().await.unwrap().sync_info.latest_block_height.value();
    comet.wait_for_height(&client, now + 10).await;
    other.kill();
    assert_eq!(mistaken.stop(), wrong, "it stands at the block");
    let store = |home: &Path| Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap();
    let header = client.commit(u32::try_from(wrong + 1).unwrap()).await.unwrap().signed_header.header;
    assert_ne!(header.app_hash.as_bytes(), store(&follower).app_hash());
    let mut said = other.rollback(&[]);
    if said.contains(&format!("height {wrong} ")) {
        // It had stored the block after it, which it could not execute.
        said = other.rollback(&["--hard"]) + &other.rollback(&[]);
    }
    assert!(said.contains(&format!("height {} ", wrong - 1)), "{said}");
    store(&follower).rollback(wrong - 1).unwrap();
    let mended = start(&follower, &[]);
    let client = other.start().await;
    other.wait_for_height(&client, now).await;
    assert!(other.stop(), "the node must stop on SIGTERM");
    assert!(mended.stop() >= now);
    let lives = server::check_records(&follower.join("lives")).unwrap().0;
    assert_eq!(lives, 2, "one with the mistake, one without");
    let follower = store(&follower);
    follower.check().unwrap();
    assert_eq!(header.app_hash.as_bytes(), follower.snapshot().app_hash_at(wrong).unwrap());
    assert!(comet.stop(), "the node must stop on SIGTERM");
    ledger.stop();
    store(&home).check().unwrap();
    let (lives, requests) = server::check_records(&home.join("lives")).unwrap();
    assert_eq!(lives, 4, "two that halted, one that went on, one over an empty directory");
    println!("{requests} requests in {lives} lives keep to the grammar");
}
