//! State sync between two real nodes: one takes snapshots, one joins by CometBFT's own state sync from a trusted header,
//! and then follows the blocks with the same application hashes.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::Path;

use comet::Comet;
use polylink_abci_app::app::SnapshotConfig;
use polylink_abci_app::server::{self, Address as Socket, Options, RequestLog, ServerHandle, check_grammar};
use polylink_abci_app::store::Store;
use polylink_abci_app::testing::{CHAIN_ID, genesis, key};
use polylink_abci_app::{App, bank, chain::SCHEMA_VERSION};
use polylink_protocol::client::ChainClient;
use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::any;
use polylink_protocol::{Amount, DENOM};
use tendermint_rpc::Client;

const BLOCK_TIME_MS: u64 = 100;

/// A ledger with a snapshot every 10 blocks, many of them kept, since a joining node looks for five seconds before it
/// begins; and with the last 10 blocks, as far as nobody needs older ones.
fn ledger(home: &Path, log: &RequestLog) -> (App, ServerHandle) {
    let store = Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap();
    let snapshots = SnapshotConfig { directory: home.join("snapshots"), interval: 10, keep: 50 };
    let app = App::with_snapshots(store, 10, Some(snapshots));
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    (app.clone(), server::serve(&Socket::unix(home.join("abci.sock")).unwrap(), app, options).unwrap())
}

fn send(amount: u128) -> Vec<Any> {
    vec![any(&MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: amount.to_string() }],
    })]
}

#[tokio::test]
async fn a_node_joins_by_state_sync_and_follows() {
    let dir = tempfile::tempdir().unwrap();
    let [first_home, second_home] = ["first", "second"].map(|name| dir.path().join(name));
    let mut first = Comet::init(&first_home, &first_home.join("abci.sock"), BLOCK_TIME_MS);
    let mut start = genesis(3);
    start.staking.validators[0].consensus_key = first.consensus_key();
    start.staking.unbonding_seconds = 2;
    first.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = start.to_json();
    });
    let log = RequestLog::new(1_000_000);
    let (source, server) = ledger(&first_home, &log);
    let client = first.start().await;
    let chain = ChainClient::new(&first.url()).unwrap();
    chain.broadcast(&key(1), send(1_000)).await.unwrap();
    // All blocks below the first snapshot's are forgotten once they are older than the unbonding time: whoever joins now
    // cannot execute the chain from its genesis.
    first
        .wait_for("first blocks to be forgotten", || async {
            let oldest = client.status().await.map_err(|error| error.to_string())?.sync_info.earliest_block_height;
            if oldest.value() == 10 { Ok(()) } else { Err(format!("the oldest block is {oldest}")) }
        })
        .await;

    let mut second = Comet::join(&second_home, &second_home.join("abci.sock"), &first, BLOCK_TIME_MS, 11).await;
    let joined_log = RequestLog::new(1_000_000);
    let (joined, joined_server) = ledger(&second_home, &joined_log);
    let client = second.start().await;
    let oldest = joined.store().snapshot().oldest();
    assert!(oldest >= 10 && oldest % 10 == 0, "restored at {oldest}");
    second.wait_for_height(&client, oldest + 2).await;
    let executed = joined_log.entries().iter().find(|entry| entry.name == "FinalizeBlock").unwrap().height;
    assert_eq!(executed, Some(oldest as i64 + 1), "no block was executed before the snapshot's");

    // Until it has caught up it takes no transactions.
    second
        .wait_for("node that has caught up", || async {
            let status = client.status().await.map_err(|error| error.to_string())?;
            if status.sync_info.catching_up { Err("it catches up".to_owned()) } else { Ok(()) }
        })
        .await;
    // A transaction sent to the node that joined reaches the validator and comes back in a block.
    let joined_chain = ChainClient::new(&second.url()).unwrap();
    joined_chain.broadcast(&key(1), send(500)).await.unwrap();
    let balance = |app: &App| bank::balance(&app.store().snapshot(), key(2).address());
    assert_eq!(balance(&joined), Amount(1_000_000_000_000 + 1_500));
    let height = joined.store().height();
    second.wait_for_height(&client, height + 3).await;
    let common = joined.store().height().min(source.store().height()) - 1;
    for height in oldest..=common {
        let [ours, theirs] = [&joined, &source].map(|app| app.store().snapshot().app_hash_at(height).unwrap());
        assert_eq!(ours, theirs, "height {height}");
    }
    let header = first.client().commit(u32::try_from(common + 1).unwrap()).await.unwrap().signed_header.header;
    assert_eq!(header.app_hash.as_bytes(), joined.store().snapshot().app_hash_at(common).unwrap());

    // It starts again like any other node, and takes snapshots of its own.
    assert!(second.stop(), "the node must stop on SIGTERM");
    joined_server.shutdown();
    joined.store().check().unwrap();
    assert_eq!(check_grammar(&joined_log.entries(), 0), Ok(joined.store().height() as i64));
    let before = joined.store().height();
    drop(joined);
    let again_log = RequestLog::new(1_000_000);
    let (again, again_server) = ledger(&second_home, &again_log);
    let client = second.start().await;
    second.wait_for_height(&client, before + 12).await;
    again.snapshots().unwrap().wait();
    let theirs = source.snapshots().unwrap().list();
    let ours = again.snapshots().unwrap().list();
    let newest = ours.last().unwrap();
    assert!(newest.height > oldest && theirs.contains(newest), "both cut the same state alike");
    assert!(second.stop() && first.stop());
    again_server.shutdown();
    server.shutdown();
    assert_eq!(check_grammar(&again_log.entries(), before as i64), Ok(again.store().height() as i64));
    assert_eq!(check_grammar(&log.entries(), 0), Ok(source.store().height() as i64));
    println!("joined at height {oldest}, {} snapshots at the source", theirs.len());
}
