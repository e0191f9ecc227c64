//! The real ledger, a process of its own, under a real CometBFT: `kill -9` of the ledger, of the
//! node, or of both loses nothing that was committed and lets the chain go on.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comet::{Comet, DEADLINE};
use polylink_abci_app::chain::SCHEMA_VERSION;
use polylink_abci_app::server::{self, Address as Socket, Options};
use polylink_abci_app::store::Store;
use polylink_abci_app::testing::{CHAIN_ID, genesis, key};
use polylink_abci_app::{App, bank};
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::any;
use polylink_protocol::{Amount, DENOM};

/// Set in the ledger's process to its home.
const CHILD: &str = "POLYLINK_TEST_LEDGER_HOME";

/// What account 2 has at genesis.
const BEFORE: u128 = 1_000_000_000_000;

/// The ledger's process: this test again.
struct Ledger {
    home: PathBuf,
    child: Option<Child>,
}

impl Ledger {
    fn start(&mut self) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_9_of_any_process_loses_nothing", "--nocapture"])
            .env(CHILD, &self.home)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.home.join("abci.sock")).is_err() {
            assert!(begin.elapsed() < DEADLINE, "the ledger does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run_ledger(home: &Path) -> ! {
    let app = App::new(Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap(), 0);
    let options = Options {
        observer: Some(server::record(&home.join("lives"), app.store().height()).unwrap()),
        ..Options::default()
    };
    let _handle = server::serve(&Socket::unix(home.join("abci.sock")).unwrap(), app, options).unwrap();
    loop {
        std::thread::park();
    }
}

fn send(amount: u128) -> Vec<Any> {
    vec![any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: amount.to_string() }],
    })]
}

#[tokio::test]
async fn kill_9_of_any_process_loses_nothing() {
    if let Ok(home) = std::env::var(CHILD) {
        run_ledger(home.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let mut comet = Comet::init(&home, &home.join("abci.sock"), 50);
    let mut state = genesis(3);
    state.staking.validators[0].consensus_key = comet.consensus_key();
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = state.to_json();
    });
    let mut ledger = Ledger { home: home.clone(), child: None };
    let mut paid = 0;
    for round in 0..7u128 {
        ledger.start();
        comet.start().await;
        let chain = ChainClient::new(&comet.url()).unwrap();
        // What was committed is there; what was only in the mempool at the kill may be there or not.
        let found = chain.balance(&key(2).address()).await.unwrap().0 - BEFORE;
        assert!(found == paid || found == paid + 1, "round {round}: paid {paid}, found {found}");
        paid = found;
        chain.broadcast(&key(1), send(1000 + round)).await.unwrap();
        paid += 1000 + round;
        assert_eq!(chain.balance(&key(2).address()).await.unwrap(), Amount(BEFORE + paid));

        // One more is under way when the kill comes.
        let sender = chain.clone();
        let under_way = tokio::spawn(async move { sender.broadcast(&key(1), send(1)).await });
        tokio::time::sleep(Duration::from_millis(15 * round as u64)).await;
        match round {
            0 | 3 => {
                ledger.kill();
                // Mostly the node ends itself within a second; sometimes it hangs while it stops (seen), so
                // that whoever supervises it needs a deadline.
                let ended = comet.ends(Duration::from_secs(3));
                println!("the node whose ledger was killed {}", if ended { "ended" } else { "hung" });
                comet.kill();
            }
            1 | 4 => {
                comet.kill();
                ledger.kill();
            }
            2 | 5 => {
                comet.kill();
                // The ledger runs on; only the node comes back, in the next round with a new one.
                comet.start().await;
                comet.kill();
                ledger.kill();
            }
            _ => {
                assert!(comet.stop(), "the node must stop on SIGTERM");
                ledger.kill();
            }
        }
        under_way.abort();
    }
    let store = Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap();
    store.check().unwrap();
    bank::scan(&store.snapshot()).unwrap();
    let balance = bank::balance(&store.snapshot(), key(2).address());
    assert!([BEFORE + paid, BEFORE + paid + 1].contains(&balance.0));
    let (lives, requests) = server::check_records(&home.join("lives")).unwrap();
    assert_eq!(lives, 7);
    println!(
        "{} blocks through 6 rounds of kills; {requests} requests in {lives} lives keep to the grammar",
        store.height()
    );
}
