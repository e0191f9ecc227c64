//! The ABCI server and the store under a real CometBFT, with the smallest application there is:
//! `key=value` transactions. What is tested is what every ledger needs of the two: calls in the
//! order of the specification, proofs that hold against the headers, and no loss when either process
//! is killed.
#![allow(clippy::unwrap_used, missing_docs)]

mod comet;

use std::path::Path;
use std::sync::{Arc, Mutex};

use comet::Comet;
use polylink_abci_app::server::{self, Address, Options, RequestLog, ServerHandle, check_grammar};
use polylink_abci_app::store::{
    Changes, Overlay, PROOF_OP_TYPE, Staged, StateWrite, Store, StoreOptions, verify_proof,
};
use tendermint_abci::Application;
use tendermint_proto::v0_38::abci::{
    ExecTxResult, RequestCheckTx, RequestFinalizeBlock, RequestInfo, RequestInitChain, RequestQuery, ResponseCheckTx,
    ResponseCommit, ResponseFinalizeBlock, ResponseInfo, ResponseInitChain, ResponseQuery,
};
use tendermint_proto::v0_38::crypto::{ProofOp, ProofOps};
use tendermint_rpc::query::Query;
use tendermint_rpc::{Client, HttpClient, Order};

#[derive(Clone)]
struct KeyValue {
    store: Store,
    pending: Arc<Mutex<(Changes, Option<Staged>)>>,
}

impl KeyValue {
    fn open(path: &Path) -> Self {
        let options = StoreOptions { keep_heights: 10_000, ..StoreOptions::new(1) };
        KeyValue { store: Store::open_with(path, options).unwrap(), pending: Arc::default() }
    }
}

fn parse(tx: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = tx.iter().position(|&byte| byte == b'=')?;
    (at > 0 && at + 1 < tx.len()).then(|| (&tx[..at], &tx[at + 1..]))
}

impl Application for KeyValue {
    fn info(&self, _: RequestInfo) -> ResponseInfo {
        let newest = self.store.snapshot();
        let last_block_app_hash = if newest.height() == 0 { vec![] } else { newest.app_hash().to_vec() };
        ResponseInfo {
            last_block_height: newest.height() as i64,
            last_block_app_hash: last_block_app_hash.into(),
            app_version: self.store.schema_version(),
            ..Default::default()
        }
    }

    fn init_chain(&self, request: RequestInitChain) -> ResponseInitChain {
        let genesis = Changes::from([(b"chain".to_vec(), Some(request.chain_id.into_bytes()))]);
        let app_hash = self.store.stage(genesis.clone(), 1).unwrap().app_hash();
        *self.pending.lock().unwrap() = (genesis, None);
        ResponseInitChain { app_hash: app_hash.to_vec().into(), ..Default::default() }
    }

    fn check_tx(&self, request: RequestCheckTx) -> ResponseCheckTx {
        ResponseCheckTx { code: u32::from(parse(&request.tx).is_none()), ..Default::default() }
    }

    fn finalize_block(&self, request: RequestFinalizeBlock) -> ResponseFinalizeBlock {
        let mut pending = self.pending.lock().unwrap();
        let genesis = if self.store.height() == 0 { pending.0.clone() } else { Changes::new() };
        let mut block = Overlay::with_changes(self.store.snapshot(), genesis);
        let mut tx_results = Vec::new();
        for tx in &request.txs {
            let pair = parse(tx);
            if let Some((key, value)) = pair {
                block.put(key.to_vec(), value.to_vec());
            }
            tx_results.push(ExecTxResult { code: u32::from(pair.is_none()), ..Default::default() });
        }
        let staged = self.store.stage(block.into_changes(), request.height as u64).unwrap();
        let app_hash = staged.app_hash().to_vec().into();
        pending.1 = Some(staged);
        ResponseFinalizeBlock { tx_results, app_hash, ..Default::default() }
    }

    fn commit(&self) -> ResponseCommit {
        let staged = self.pending.lock().unwrap().1.take().unwrap();
        self.store.commit(staged).unwrap();
        ResponseCommit::default()
    }

    fn query(&self, request: RequestQuery) -> ResponseQuery {
        let newest = self.store.snapshot();
        let height = if request.height == 0 { newest.height() } else { request.height as u64 };
        match newest.prove(&request.data, height) {
            Ok(proof) => {
                let data = proof.encode();
                let op = ProofOp { r#type: PROOF_OP_TYPE.into(), key: proof.key.clone(), data };
                ResponseQuery {
                    key: proof.key.into(),
                    value: proof.value.unwrap_or_default().into(),
                    proof_ops: Some(ProofOps { ops: vec![op] }),
                    height: height as i64,
                    ..Default::default()
                }
            }
            Err(error) => ResponseQuery { code: 1, log: error.to_string(), ..Default::default() },
        }
    }
}

fn serve(home: &Path, log: &RequestLog) -> (KeyValue, ServerHandle) {
    let app = KeyValue::open(&home.join("ledger"));
    let options = Options { observer: Some(log.observer()), ..Options::default() };
    let server = server::serve(&Address::unix(home.join("abci.sock")).unwrap(), app.clone(), options).unwrap();
    (app, server)
}

/// Sends a transaction and waits until it is found by its hash; returns its height.
async fn send(comet: &Comet, client: &HttpClient, tx: &str) -> u64 {
    let sent = client.broadcast_tx_sync(tx.as_bytes()).await.unwrap();
    assert!(sent.code.is_ok(), "{}", sent.log);
    let query = Query::eq("tx.hash", sent.hash.to_string());
    comet
        .wait_for("result of the transaction", || async {
            let found = client.tx_search(query.clone(), false, 1, 1, Order::Ascending).await;
            let found = found.map_err(|error| error.to_string())?;
            found.txs.first().map(|tx| tx.height.value()).ok_or_else(|| "not found".to_owned())
        })
        .await
}

/// Reads a key with its proof, and checks the proof against the next block's header.
async fn read_proved(comet: &Comet, client: &HttpClient, key: &str, height: u64) -> Option<String> {
    let asked = u32::try_from(height).unwrap().into();
    let answer = client.abci_query(None, key.as_bytes(), Some(asked), true).await.unwrap();
    assert!(answer.code.is_ok(), "{}", answer.log);
    comet.wait_for_height(client, height + 1).await;
    let next = u32::try_from(height + 1).unwrap();
    let header = client.commit(next).await.unwrap().signed_header.header;
    let root: [u8; 32] = header.app_hash.as_bytes().try_into().unwrap();
    let op = answer.proof.unwrap().ops.remove(0);
    assert_eq!((op.field_type.as_str(), op.key.as_slice()), (PROOF_OP_TYPE, key.as_bytes()));
    let value = (!answer.value.is_empty()).then_some(answer.value);
    assert!(verify_proof(&root, key.as_bytes(), value.as_deref(), &op.data), "the proof of {key} at {height}");
    assert!(!verify_proof(&root, key.as_bytes(), Some(b"forged"), &op.data));
    value.map(|value| String::from_utf8(value).unwrap())
}

#[tokio::test]
async fn a_chain_runs_and_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let mut comet = Comet::init(&home, &home.join("abci.sock"), 50);
    let log = RequestLog::new(1_000_000);
    let (app, server) = serve(&home, &log);

    let client = comet.start().await;
    let status = client.status().await.unwrap();
    assert!(status.node_info.version.to_string().starts_with("0.38."));
    assert!(!status.sync_info.latest_app_hash.as_bytes().is_empty());
    // The genesis hash stands in the first header.
    assert!(!client.commit(1u32).await.unwrap().signed_header.header.app_hash.as_bytes().is_empty());

    let height = send(&comet, &client, "fruit=apple").await;
    assert_eq!(read_proved(&comet, &client, "fruit", height).await.as_deref(), Some("apple"));
    assert_eq!(read_proved(&comet, &client, "fruit", height - 1).await, None);
    assert_eq!(read_proved(&comet, &client, "chain", height).await, Some(status.node_info.network.to_string()));
    let refused = client.broadcast_tx_sync(*b"garbage").await.unwrap();
    assert!(refused.code.is_err(), "CheckTx must refuse what does not parse");
    let future = client.abci_query(None, *b"fruit", Some(1_000_000u32.into()), true).await.unwrap();
    assert!(future.code.is_err() && future.log.contains("this node holds heights"), "{}", future.log);

    // The node is killed and comes back; the application runs on.
    comet.kill();
    let client = comet.start().await;
    let later = send(&comet, &client, "fruit=pear").await;
    assert!(later > height);
    assert_eq!(read_proved(&comet, &client, "fruit", later).await.as_deref(), Some("pear"));
    assert_eq!(read_proved(&comet, &client, "fruit", height).await.as_deref(), Some("apple"));
    // It runs: a block's Commit is in the log before it is done.
    let (before, logged) = (app.store.height() as i64, check_grammar(&log.entries(), 0).unwrap());
    assert!((before..=app.store.height() as i64 + 1).contains(&logged), "{before} {logged}");

    // Both stop, in order, and start again.
    assert!(comet.stop(), "the node must stop on SIGTERM");
    assert_eq!(check_grammar(&log.entries(), 0), Ok(app.store.height() as i64));
    let stopped_at = app.store.height();
    assert_eq!(server.failures(), Vec::<String>::new());
    server.shutdown();
    drop(app);
    let log = RequestLog::new(1_000_000);
    let (app, server) = serve(&home, &log);
    assert_eq!(app.store.height(), stopped_at);
    let client = comet.start().await;
    let last = send(&comet, &client, "vegetable=leek").await;
    assert!(last > stopped_at);
    assert_eq!(read_proved(&comet, &client, "fruit", last).await.as_deref(), Some("pear"));
    assert!(comet.stop());
    app.store.check().unwrap();
    assert_eq!(check_grammar(&log.entries(), stopped_at as i64), Ok(app.store.height() as i64));
    println!("{} blocks, {} requests", app.store.height(), log.entries().len());
    server.shutdown();
}
