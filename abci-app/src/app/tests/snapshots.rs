//! State sync through the application's calls: whole, with bad chunks, with bad offers, cut off.

use tendermint_abci::Application;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::abci::response_apply_snapshot_chunk::Result as Applied;
use tendermint_proto::v0_38::abci::response_offer_snapshot::Result as Offered;

use crate::app::{App, SnapshotConfig};
use crate::chain::SCHEMA_VERSION;
use crate::store::{CHUNK_BYTES_MAX, Store};
use crate::testing::{TestChain, genesis};

/// A chain that has snapshots of its heights 4 and 6 in `directory`.
fn chain(directory: &std::path::Path) -> TestChain {
    let config = SnapshotConfig { directory: directory.to_owned(), interval: 2, keep: 2, chunk_bytes: CHUNK_BYTES_MAX };
    let mut chain = TestChain::start_with(&genesis(3), Some(config));
    for _ in 0..6 {
        chain.advance(1);
        chain.app().snapshots().unwrap().wait();
    }
    chain
}

fn offer(app: &App, snapshot: &pb::Snapshot, app_hash: &[u8]) -> Offered {
    let request = pb::RequestOfferSnapshot { snapshot: Some(snapshot.clone()), app_hash: app_hash.to_vec().into() };
    Offered::try_from(app.offer_snapshot(request).result).unwrap()
}

fn apply(app: &App, index: u32, chunk: &bytes::Bytes) -> pb::ResponseApplySnapshotChunk {
    let request = pb::RequestApplySnapshotChunk { index, chunk: chunk.clone(), sender: "peer".into() };
    app.apply_snapshot_chunk(request)
}

fn fresh(directory: &tempfile::TempDir) -> App {
    App::new(Store::open(directory.path(), SCHEMA_VERSION).unwrap(), 0)
}

#[test]
fn snapshots_are_listed_handed_out_and_restored() {
    let (directory, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = chain(directory.path());
    let list = chain.app().list_snapshots().snapshots;
    assert_eq!(list.iter().map(|snapshot| snapshot.height).collect::<Vec<_>>(), [4, 6], "two are kept");
    let newest = list.last().unwrap().clone();
    let app_hash = chain.state().app_hash_at(6).unwrap();
    let load = |height, format, chunk| {
        chain.app().load_snapshot_chunk(pb::RequestLoadSnapshotChunk { height, format, chunk }).chunk
    };
    let chunk = load(6, 1, 0);
    assert!(!chunk.is_empty());
    for (height, format, index) in [(2, 1, 0), (6, 2, 0), (6, 1, 1), (u64::MAX, u32::MAX, u32::MAX)] {
        assert!(load(height, format, index).is_empty(), "{height} {format} {index}");
    }

    let app = fresh(&target);
    assert_eq!(offer(&app, &newest, &app_hash), Offered::Accept);
    assert_eq!(apply(&app, 0, &chunk).result, i32::from(Applied::Accept));
    let info = app.info(pb::RequestInfo::default());
    assert_eq!((info.last_block_height, info.last_block_app_hash.to_vec()), (6, app_hash.to_vec()));
    // The mempool stands on the restored state, and the next block gives the same hash.
    let tx = chain.sign(1, vec![]);
    assert_eq!(app.check_tx(pb::RequestCheckTx { tx: tx.clone().into(), r#type: 0 }).codespace, "sdk");
    let block = pb::RequestFinalizeBlock { height: 7, txs: vec![tx.into()], ..Default::default() };
    let ours = app.finalize_block(block.clone());
    assert_eq!(ours, chain.app().finalize_block(block));
    app.commit();
    assert_eq!((app.store().height(), app.store().app_hash().to_vec()), (7, ours.app_hash.to_vec()));
    app.store().check().unwrap();
    // A ledger with blocks of its own takes no other state.
    assert_eq!(offer(&app, &newest, &app_hash), Offered::Abort);
}

#[test]
fn what_peers_send_wrong_is_answered_by_the_protocol() {
    let (directory, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = chain(directory.path());
    let newest = chain.app().list_snapshots().snapshots.pop().unwrap();
    let chunk = chain.app().load_snapshot_chunk(pb::RequestLoadSnapshotChunk { height: 6, format: 1, chunk: 0 }).chunk;
    let (app_hash, other_hash) = (chain.state().app_hash_at(6).unwrap(), chain.state().app_hash_at(5).unwrap());
    let app = fresh(&target);
    assert_eq!(apply(&app, 0, &chunk).result, i32::from(Applied::Abort), "without an offer");

    let altered = |alter: &dyn Fn(&mut pb::Snapshot)| {
        let mut snapshot = newest.clone();
        alter(&mut snapshot);
        snapshot
    };
    let offers = [
        (altered(&|s| s.format = 2), Offered::RejectFormat),
        (altered(&|s| s.height = 7), Offered::Reject),
        (altered(&|s| s.height = 0), Offered::Reject),
        (altered(&|s| s.chunks = 2), Offered::Reject),
        (altered(&|s| s.chunks = u32::MAX), Offered::Reject),
        (altered(&|s| s.hash = vec![0; 32].into()), Offered::Reject),
        (altered(&|s| s.hash = Default::default()), Offered::Reject),
        (altered(&|s| s.metadata = Default::default()), Offered::Reject),
        (altered(&|s| s.metadata = vec![1; 33].into()), Offered::Reject),
        (pb::Snapshot::default(), Offered::RejectFormat),
    ];
    for (snapshot, answer) in offers {
        assert_eq!(offer(&app, &snapshot, &app_hash), answer, "{snapshot:?}");
    }
    for hash in [&other_hash[..], &[], &[0; 33]] {
        assert_eq!(offer(&app, &newest, hash), Offered::Reject, "of another state than the verified one");
    }
    assert_eq!(app.offer_snapshot(pb::RequestOfferSnapshot::default()).result, i32::from(Offered::Reject));

    // A bad chunk is fetched anew, its sender shunned; the good one still counts.
    assert_eq!(offer(&app, &newest, &app_hash), Offered::Accept);
    let mut bad = chunk.to_vec();
    bad[100] ^= 1;
    for bad in [bad.into(), bytes::Bytes::new(), chunk.slice(1..)] {
        let answer = apply(&app, 0, &bad);
        assert_eq!(answer.result, i32::from(Applied::Retry));
        assert_eq!((answer.refetch_chunks, answer.reject_senders), (vec![0], vec!["peer".to_owned()]));
    }
    assert_eq!(app.store().height(), 0);
    assert_eq!(apply(&app, 1, &chunk).result, i32::from(Applied::RetrySnapshot), "out of order: from the beginning");
    assert_eq!(apply(&app, 0, &chunk).result, i32::from(Applied::Abort), "which is an offer");
    assert_eq!(offer(&app, &newest, &app_hash), Offered::Accept);
    assert_eq!(apply(&app, 0, &chunk).result, i32::from(Applied::Accept));
    assert_eq!(apply(&app, 0, &chunk).result, i32::from(Applied::Abort), "nothing is awaited any more");
    assert_eq!((app.store().height(), app.store().app_hash()), (6, app_hash));
}

/// Digests that are true to their chunks, of a state that is not the verified one: nobody can make them fit the hash that
/// the light client vouches for.
#[test]
fn a_snapshot_of_a_forged_state_is_rejected_by_its_first_chunk() {
    use crate::app::snapshots::Manifest;
    use sha2::{Digest, Sha256};
    let (directory, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let chain = chain(directory.path());
    let app_hash = chain.state().app_hash_at(6).unwrap();
    let chunk = chain.app().load_snapshot_chunk(pb::RequestLoadSnapshotChunk { height: 6, format: 1, chunk: 0 }).chunk;
    let app = fresh(&target);
    // Richer by one bit: some value's last byte before the proof of 4 + n · 65 bytes is altered.
    for at in [30, chunk.len() / 2, chunk.len() - 1] {
        let mut forged = chunk.to_vec();
        forged[at] ^= 1;
        let manifest = Manifest { height: 6, app_hash, chunks: vec![Sha256::digest(&forged).into()] };
        assert_eq!(offer(&app, &crate::app::convert::snapshot(manifest), &app_hash), Offered::Accept);
        let answer = apply(&app, 0, &forged.into());
        assert_eq!(answer.result, i32::from(Applied::RejectSnapshot), "byte {at}");
        assert_eq!(app.store().height(), 0);
    }
    // The chain can still begin from its genesis.
    let started = app.init_chain(pb::RequestInitChain {
        chain_id: crate::testing::CHAIN_ID.into(),
        app_state_bytes: genesis(3).to_json().to_string().into(),
        initial_height: 1,
        ..Default::default()
    });
    assert_eq!(started.app_hash.len(), 32);
    app.finalize_block(pb::RequestFinalizeBlock { height: 1, ..Default::default() });
    app.commit();
    app.store().check().unwrap();
}

#[test]
fn snapshots_outlive_a_restart_and_nothing_incomplete_or_damaged_is_handed_out() {
    use crate::app::snapshots::Snapshots;
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let list = chain.app().snapshots().unwrap().list();
    drop(chain);
    let config =
        SnapshotConfig { directory: directory.path().to_owned(), interval: 2, keep: 2, chunk_bytes: CHUNK_BYTES_MAX };
    std::fs::create_dir(directory.path().join("8.partial")).unwrap();
    std::fs::create_dir(directory.path().join("8")).unwrap();
    let again = Snapshots::open(config.clone(), 6);
    assert_eq!(again.list(), list);
    assert!(!directory.path().join("8.partial").exists() && !directory.path().join("8").exists());
    assert!(again.chunk(4, 0).is_some());
    let file = directory.path().join("4/0");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(again.chunk(4, 0), None, "damaged");
    // The ledger was rolled back to height 5: what came after is of no chain any more.
    assert_eq!(Snapshots::open(config, 5).list(), list[..1]);
}
