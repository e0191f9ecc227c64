//! An upgrade of a network of two nodes, with two programs: governance plans it; the program that does not know it stops
//! each ledger before its block with the name in its log, as often as it is started; the next program migrates the state at
//! that block on both, and the chain goes on with equal hashes.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comet::{Comet, DEADLINE};
use polylink_abci_app::auth::{MIN_GAS_PRICE, min_gas_price_milli};
use polylink_abci_app::server::{self, Address as Socket, EXIT_CODE_PANIC, Options};
use polylink_abci_app::store::{StateWrite, Store};
use polylink_abci_app::testing::{CHAIN_ID, genesis, key};
use polylink_abci_app::upgrade::{self, Migration, Upgrades};
use polylink_abci_app::{App, chain::SCHEMA_VERSION, gov};
use polylink_protocol::DENOM;
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{MsgSubmitProposal, MsgVote, VoteOption};
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{MsgSoftwareUpgrade, Plan};
use polylink_protocol::tx::any;
use tendermint_rpc::{Client, HttpClient};

/// Set in a ledger's process to its home.
const CHILD: &str = "POLYLINK_TEST_UPGRADE_HOME";
/// Set in the process of the next program.
const NEXT: &str = "POLYLINK_TEST_UPGRADE_NEXT";

/// What the next program does to the state: it doubles the gas price.
const MIGRATIONS: &[Migration] = &[Migration {
    name: "next",
    run: |_, state: &mut dyn StateWrite| {
        let price = min_gas_price_milli(state) * 2;
        state.put(vec![MIN_GAS_PRICE], price.to_be_bytes().to_vec());
        Ok(())
    },
}];

/// Today's program, with the table that it has, or the next one.
fn run_ledger(home: &Path) -> ! {
    let upgrades = match std::env::var(NEXT) {
        Ok(_) => Upgrades { known: MIGRATIONS, skipped: Vec::new() },
        Err(_) => Upgrades::default(),
    };
    let store = Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap();
    let options =
        Options { observer: Some(server::record(&home.join("lives"), store.height()).unwrap()), ..Options::default() };
    let app = App::with_upgrades(store, 0, None, upgrades);
    let _server = server::serve(&Socket::unix(home.join("abci.sock")).unwrap(), app, options).unwrap();
    loop {
        std::thread::park();
    }
}

/// A ledger's process: this test again.
struct Ledger(Child, PathBuf);

impl Ledger {
    fn start(home: &Path, next: bool) -> Ledger {
        let said = std::fs::File::create(home.join("ledger.log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_network_is_upgraded", "--nocapture"])
            .env(CHILD, home)
            .envs(next.then_some((NEXT, "1")))
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(home.join("abci.sock")).is_err() {
            assert!(begin.elapsed() < DEADLINE, "the ledger does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ledger(child, home.to_path_buf())
    }

    /// Waits until the program has stopped itself; returns what it said.
    fn halted(mut self) -> String {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert_eq!(status.code(), Some(EXIT_CODE_PANIC));
                return std::fs::read_to_string(self.1.join("ledger.log")).unwrap();
            }
            assert!(begin.elapsed() < DEADLINE, "the ledger does not halt");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets governance plan the upgrade "next" for this height.
async fn plan(chain: &ChainClient, height: u64) {
    let plan = Plan { name: "next".into(), height: height as i64, info: "see the forum".into(), ..Default::default() };
    let proposal = MsgSubmitProposal {
        messages: vec![any(&MsgSoftwareUpgrade { authority: gov::authority().account(), plan: Some(plan) })],
        initial_deposit: vec![Coin { denom: DENOM.into(), amount: "10000000".into() }],
        proposer: key(1).address().account(),
        title: "the next program".into(),
        summary: "it doubles the gas price".into(),
        ..Default::default()
    };
    chain.broadcast(&key(1), vec![any(&proposal)]).await.unwrap();
    let voter = key(200).address().account();
    let vote = MsgVote { proposal_id: 1, voter, option: VoteOption::Yes.into(), ..Default::default() };
    chain.broadcast(&key(200), vec![any(&vote)]).await.unwrap();
}

async fn app_hash(client: &HttpClient, height: u64) -> Vec<u8> {
    let commit = client.commit(u32::try_from(height).unwrap()).await.unwrap();
    commit.signed_header.header.app_hash.as_bytes().to_vec()
}

#[tokio::test]
async fn a_network_is_upgraded() {
    if let Ok(home) = std::env::var(CHILD) {
        run_ledger(home.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let homes = ["validator", "follower"].map(|name| dir.path().join(name));
    let mut validator = Comet::init(&homes[0], &homes[0].join("abci.sock"), 100);
    let mut start = genesis(1);
    start.staking.validators[0].consensus_key = validator.consensus_key();
    (start.gov.voting_seconds, start.gov.expedited_voting_seconds) = (2, 1);
    validator.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = start.to_json();
    });
    let mut follower = Comet::follow(&homes[1], &homes[1].join("abci.sock"), &validator, 100);
    let [first, second] = [0, 1].map(|n| Ledger::start(&homes[n], false));
    validator.start().await;
    follower.start().await;
    let chain = ChainClient::new(&validator.url()).unwrap();
    // Long enough for the votes to be counted before it.
    let height = chain.status().await.unwrap().height + 60;
    plan(&chain, height).await;

    // Today's program ends before the block, and says what is needed; started again, it ends there again.
    let needed = format!("UPGRADE \"next\" NEEDED at height {height}: see the forum");
    let store = |n: usize| Store::open(homes[n].join("ledger"), SCHEMA_VERSION).unwrap();
    let said = first.halted();
    assert!(said.contains(&needed), "{said}");
    validator.kill();
    let head = |n: usize| {
        let store = store(n);
        (store.height(), store.app_hash())
    };
    let before = head(0);
    assert_eq!(before.0, height - 1);
    let again = Ledger::start(&homes[0], false);
    validator.launch();
    assert!(again.halted().contains(&needed));
    validator.kill();
    assert_eq!(head(0), before);

    // The next program goes on from there, with the state migrated. The node that has today's still ends at the same place
    // as soon as it gets the block (a node that starts fetches what it lacks), and goes on with the next one too.
    let next = Ledger::start(&homes[0], true);
    let mut clients = vec![validator.start().await];
    follower.kill();
    follower.launch();
    assert!(second.halted().contains(&needed));
    follower.kill();
    assert_eq!(head(1), before);
    let ledgers = [next, Ledger::start(&homes[1], true)];
    clients.push(follower.start().await);
    for (node, client) in [&validator, &follower].into_iter().zip(&clients) {
        node.wait_for_height(client, height + 5).await;
    }
    for at in height..height + 5 {
        assert_eq!(app_hash(&clients[0], at).await, app_hash(&clients[1], at).await, "height {at}");
    }
    let migrated = app_hash(&clients[0], height + 1).await;
    assert!(validator.stop() && follower.stop(), "the nodes must stop on SIGTERM");
    drop(ledgers);
    for n in [0, 1] {
        let store = store(n);
        store.check().unwrap();
        let state = store.snapshot();
        assert_eq!(state.app_hash_at(height).unwrap().to_vec(), migrated);
        assert_eq!(min_gas_price_milli(&state), 2 * start.min_gas_price_milli);
        assert_eq!((upgrade::plan(&state), upgrade::done(&state, "next")), (None, Some(height)));
        assert_eq!(server::check_records(&homes[n].join("lives")).unwrap().0, 3 - n);
    }

    // Today's program takes up nothing of what the next one has begun.
    let [next, old] = [0, 1].map(|n| Ledger::start(&homes[n], n == 0));
    validator.launch();
    follower.launch();
    let said = old.halted();
    assert!(said.contains(&format!("upgrade \"next\" was done at height {height}")), "{said}");
    drop(next);
}
