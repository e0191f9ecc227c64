//! State sync between real nodes: one takes snapshots, another joins by CometBFT's own state sync from a trusted header, in
//! many chunks, and then follows the blocks with the same application hashes; a peer that alters chunks is shunned.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
use polylink_protocol::{Address, Amount, DENOM};
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as Applied;
use tendermint_rpc::Client;
use tokio::sync::Mutex as AsyncMutex;

/// So slow that a node without a vote keeps up, on a busy machine too.
const BLOCK_TIME_MS: u64 = 500;
/// Blocks that CometBFT keeps where nobody needs older ones.
const RETAINED: u64 = 10;
/// So small that the state of [`chain`] is cut into dozens.
const CHUNK_BYTES: usize = 20 << 10;

/// One network at a time.
static NETWORK: AsyncMutex<()> = AsyncMutex::const_new(());

/// The real application, with what it is asked for chunks.
#[derive(Clone)]
struct Ledger {
    app: App,
    /// Whether it alters the chunks that it hands out.
    alters: bool,
    /// The height of the only snapshot that it offers; 0 for all.
    offers: Arc<AtomicU64>,
    /// How many chunks it has handed out.
    handed_out: Arc<AtomicUsize>,
    /// The chunks that it was given: by whom, and what it said of them.
    given: Arc<Mutex<Vec<(u32, String, Applied)>>>,
}

impl Application for Ledger {
    fn info(&self, request: pb::RequestInfo) -> pb::ResponseInfo {
        self.app.info(request)
    }
    fn init_chain(&self, request: pb::RequestInitChain) -> pb::ResponseInitChain {
        self.app.init_chain(request)
    }
    fn check_tx(&self, request: pb::RequestCheckTx) -> pb::ResponseCheckTx {
        self.app.check_tx(request)
    }
    fn prepare_proposal(&self, request: pb::RequestPrepareProposal) -> pb::ResponsePrepareProposal {
        self.app.prepare_proposal(request)
    }
    fn process_proposal(&self, request: pb::RequestProcessProposal) -> pb::ResponseProcessProposal {
        self.app.process_proposal(request)
    }
    fn finalize_block(&self, request: pb::RequestFinalizeBlock) -> pb::ResponseFinalizeBlock {
        self.app.finalize_block(request)
    }
    fn commit(&self) -> pb::ResponseCommit {
        self.app.commit()
    }
    fn query(&self, request: pb::RequestQuery) -> pb::ResponseQuery {
        self.app.query(request)
    }
    fn list_snapshots(&self) -> pb::ResponseListSnapshots {
        let mut answer = self.app.list_snapshots();
        let only = self.offers.load(Ordering::Relaxed);
        answer.snapshots.retain(|snapshot| only == 0 || snapshot.height == only);
        answer
    }
    fn offer_snapshot(&self, request: pb::RequestOfferSnapshot) -> pb::ResponseOfferSnapshot {
        self.app.offer_snapshot(request)
    }
    fn load_snapshot_chunk(&self, request: pb::RequestLoadSnapshotChunk) -> pb::ResponseLoadSnapshotChunk {
        self.handed_out.fetch_add(1, Ordering::Relaxed);
        let mut chunk = self.app.load_snapshot_chunk(request).chunk.to_vec();
        if let Some(byte) = chunk.get_mut(100).filter(|_| self.alters) {
            *byte ^= 1;
        }
        pb::ResponseLoadSnapshotChunk { chunk: chunk.into() }
    }
    fn apply_snapshot_chunk(&self, request: pb::RequestApplySnapshotChunk) -> pb::ResponseApplySnapshotChunk {
        let (index, sender) = (request.index, request.sender.clone());
        let answer = self.app.apply_snapshot_chunk(request);
        self.given.lock().unwrap().push((index, sender, answer.result()));
        answer
    }
}

/// A ledger with a snapshot every so many blocks, many of them kept, since a joining node looks for seven seconds before it
/// begins.
fn serve(home: &Path, log: &RequestLog, interval: u64, retained: u64, alters: bool) -> (Ledger, ServerHandle) {
    let store = Store::open(home.join("ledger"), SCHEMA_VERSION).unwrap();
    let (directory, chunk_bytes) = (home.join("snapshots"), CHUNK_BYTES);
    let snapshots = SnapshotConfig { directory, interval, keep: 50, chunk_bytes };
    let app = App::with_snapshots(store, retained, Some(snapshots));
    let app = Ledger { app, alters, offers: Arc::default(), handed_out: Arc::default(), given: Arc::default() };
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    (app.clone(), server::serve(&Socket::unix(home.join("abci.sock")).unwrap(), app, options).unwrap())
}

fn ledger(home: &Path, log: &RequestLog) -> (App, ServerHandle) {
    let (ledger, server) = serve(home, log, 10, RETAINED, false);
    (ledger.app, server)
}

/// A new chain of one validator, with enough accounts for many chunks.
fn chain(home: &Path, block_time_ms: u64) -> Comet {
    let comet = Comet::init(home, &home.join("abci.sock"), block_time_ms);
    let mut start = genesis(3);
    for n in 0..900_u16 {
        let [high, low] = n.to_be_bytes();
        let mut address = [0xc4; 20];
        (address[0], address[1]) = (high, low);
        start = start.with_account(&Address(address), Amount(1));
    }
    start.staking.validators[0].consensus_key = comet.consensus_key();
    start.staking.unbonding_seconds = 2;
    comet.edit_genesis(|document| {
        document["chain_id"] = CHAIN_ID.into();
        document["validators"] = serde_json::json!([]);
        document["app_state"] = start.to_json();
    });
    comet
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
    let _alone = NETWORK.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let [first_home, second_home] = ["first", "second"].map(|name| dir.path().join(name));
    let mut first = chain(&first_home, BLOCK_TIME_MS);
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
    let applied = joined_log.entries().iter().filter(|entry| entry.name == "ApplySnapshotChunk").count();
    let manifest = source.snapshots().unwrap().list().into_iter().find(|manifest| manifest.height == oldest).unwrap();
    assert!(applied > 16 && applied == manifest.chunks.len(), "{applied} chunks");
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
    source.snapshots().unwrap().wait();
    let theirs = source.snapshots().unwrap().list();
    let ours = again.snapshots().unwrap().list();
    let newest = ours.last().unwrap();
    assert!(newest.height > oldest && theirs.contains(newest), "both cut the same state alike");
    assert!(second.stop() && first.stop());
    again_server.shutdown();
    server.shutdown();
    assert_eq!(check_grammar(&again_log.entries(), before as i64), Ok(again.store().height() as i64));
    assert_eq!(check_grammar(&log.entries(), 0), Ok(source.store().height() as i64));
    println!("joined at height {oldest} in {applied} chunks, {} snapshots at the source", theirs.len());
}

#[tokio::test]
async fn a_peer_that_alters_chunks_is_shunned() {
    let _alone = NETWORK.lock().await;
    const INTERVAL: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let [honest_home, altering_home, home] = ["honest", "altering", "joining"].map(|name| dir.path().join(name));
    let log = || RequestLog::new(1_000_000);
    let [honest_log, altering_log, joining_log] = [log(), log(), log()];
    let mut honest = chain(&honest_home, BLOCK_TIME_MS);
    let (source, source_server) = serve(&honest_home, &honest_log, INTERVAL, 0, false);
    honest.start().await;
    let mut altering = Comet::follow(&altering_home, &altering_home.join("abci.sock"), &honest, BLOCK_TIME_MS);
    let (liar, liar_server) = serve(&altering_home, &altering_log, INTERVAL, 0, true);
    altering.start().await;
    let snapshots = |ledger: &Ledger| ledger.app.snapshots().unwrap().list();
    let manifest = honest
        .wait_for("snapshot that both have", || async {
            let [ours, theirs] = [&source, &liar].map(snapshots);
            let both = ours.into_iter().rfind(|manifest| theirs.contains(manifest));
            both.ok_or_else(|| format!("{} and {}", source.app.store().height(), liar.app.store().height()))
        })
        .await;
    // From now on both offer that one alone: whoever joins may take it from either, whatever they cut meanwhile.
    for ledger in [&source, &liar] {
        ledger.offers.store(manifest.height, Ordering::Relaxed);
    }
    let mut node = Comet::join(&home, &home.join("abci.sock"), &honest, BLOCK_TIME_MS, 3).await;
    node.connect(&altering);
    let (joined, server) = serve(&home, &joining_log, INTERVAL, 0, false);
    node.start().await;
    let height = joined.app.store().snapshot().oldest();
    assert_eq!(height, manifest.height);
    let chunks = manifest.chunks.len();

    // Each chunk was taken once, in its order, from the honest one. What the other sent was refused: the first one, and at
    // most those under way (CometBFT fetches four at once); the rest of its were thrown away without a look.
    let given = joined.given.lock().unwrap().clone();
    let taken: Vec<u32> =
        given.iter().filter(|(.., said)| *said == Applied::Accept).map(|(index, ..)| *index).collect();
    assert_eq!(taken, (0..u32::try_from(chunks).unwrap()).collect::<Vec<_>>());
    let from =
        |id: &str| given.iter().filter(|(_, sender, _)| sender == id).map(|(.., said)| *said).collect::<Vec<_>>();
    let refused = from(&altering.id());
    assert!((1..=4).contains(&refused.len()) && refused.iter().all(|said| *said == Applied::Retry), "{refused:?}");
    let handed_out = liar.handed_out.load(Ordering::Relaxed);
    assert_eq!(from(&honest.id()), vec![Applied::Accept; chunks]);
    let [ours, theirs] = [&joined, &source].map(|ledger| ledger.app.store().snapshot().app_hash_at(height).unwrap());
    assert_eq!(ours, theirs);
    joined.app.store().check().unwrap();
    assert!(node.stop() && altering.stop() && honest.stop(), "the nodes must stop on SIGTERM");
    for (ledger, server, log) in
        [(joined, server, joining_log), (liar, liar_server, altering_log), (source, source_server, honest_log)]
    {
        server.shutdown();
        assert_eq!(check_grammar(&log.entries(), 0), Ok(ledger.app.store().height() as i64));
    }
    println!("{chunks} chunks of the honest node taken; of {handed_out} of the other one {} looked at", refused.len());
}
