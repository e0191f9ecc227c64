//! A worker that leaves receipts out of its root is reported by the gateway that has them, one that does not never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use polylink_inference_server::chain::{Chain, ChainError};
use polylink_inference_server::http::server;
use polylink_protocol::cosmos::Any;
use polylink_protocol::keys::AccountKey;
use polylink_protocol::market_v1::{MsgCommitReceipts, OmissionReport};
use polylink_protocol::merkle_sum::{Leaf, Sum, Tree};
use polylink_protocol::{Digest, Message as _, tx};
use serde_json::json;

use super::chain::LocalChain;
use super::http::{metric, post};
use super::network::*;

/// Between a worker and the chain: while it is told to, every root that the worker commits becomes one over another receipt.
struct Omitting {
    chain: Arc<LocalChain>,
    omits: Arc<AtomicBool>,
}

fn other_root(message: &Any) -> Option<Any> {
    let mut commit = MsgCommitReceipts::decode(message.value.as_slice()).ok()?;
    let root = Sum::from_proto(commit.root.as_ref()?).ok().filter(|root| root.count > 0)?;
    let leaf = Leaf { session: 1 << 40, index: 0, receipt: Digest([1; 32]), tokens: root.tokens, amount: root.amount };
    commit.root = Some(Tree::new(vec![leaf]).unwrap().root().to_proto());
    Some(tx::any(&commit))
}

impl Chain for Omitting {
    fn chain_id(&self) -> BoxFuture<'_, Result<String, ChainError>> {
        self.chain.chain_id()
    }
    fn query(&self, path: &'static str, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, ChainError>> {
        self.chain.query(path, request)
    }
    fn broadcast<'a>(&'a self, key: &'a AccountKey, mut messages: Vec<Any>) -> BoxFuture<'a, Result<u64, ChainError>> {
        for message in &mut messages {
            if self.omits.load(Ordering::SeqCst)
                && message.type_url == "/polylink.market.v1.MsgCommitReceipts"
                && let Some(other) = other_root(message)
            {
                *message = other;
            }
        }
        self.chain.broadcast(key, messages)
    }
}

async fn ask(network: &Network) -> u64 {
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "1 plus 1?"}], "max_tokens": 4});
    let reply = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    reply.json()["polylink"]["receipt"]["epoch"].as_u64().unwrap()
}

async fn reports(network: &Network) -> Vec<OmissionReport> {
    let chain: &dyn Chain = &*network.chain;
    chain.reports(&worker_operator()).await.unwrap()
}

async fn figure(network: &Network, name: &str) -> f64 {
    metric(&network.base, &format!("polylink:{name}_receipts_total"), "").await
}

/// Asks, once per epoch at most, until the figure is no longer zero. An epoch whose window the worker misses says nothing.
async fn until(network: &Network, name: &str) {
    let mut asked = 0;
    eventually(name, async || {
        let now = (&*network.chain as &dyn Chain).epoch().await.unwrap().0;
        if asked == 0 || asked + 2 < now {
            asked = ask(network).await;
        }
        (figure(network, name).await > 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_reports_what_its_worker_omits_and_nothing_else() {
    let mut network = Network::start().await;
    let worker = network.worker.take().unwrap();
    let address = worker.address();
    worker.stop(Duration::from_secs(1)).await;
    let omits = Arc::new(AtomicBool::new(false));
    let chain = Arc::new(Omitting { chain: Arc::clone(&network.chain), omits: Arc::clone(&omits) });
    let listener = server::bind(address).await.unwrap();
    let config = worker_config(WORKER, network.folder.path(), format!("http://{address}"));
    network.worker = Some(start_worker_with(config, &chain, &network.engine, listener).await);
    wait_ready(&network.worker_url).await;

    // Honest: its receipts are looked at, and nothing is said of them.
    until(&network, "proven").await;
    assert_eq!((figure(&network, "reported").await, reports(&network).await), (0.0, vec![]));

    omits.store(true, Ordering::SeqCst);
    until(&network, "reported").await;
    omits.store(false, Ordering::SeqCst);
    let open = reports(&network).await;
    assert!(open.iter().all(|report| report.payer == gateway_address().account()), "{open:?}");
    let session =
        (&*network.chain as &dyn Chain).sessions(&gateway_address(), &worker_operator()).await.unwrap().remove(0);
    assert!(!open.is_empty() && open.iter().all(|report| report.session == session.id), "{open:?}");

    // After a restart it knows what it has reported. The worker cannot show it, and pays for each.
    network.gateway.take().unwrap().stop(Duration::from_secs(1)).await;
    let gateway = start_gateway(&network.chain, network.folder.path()).await;
    network.base = format!("http://{}", gateway.address());
    network.gateway = Some(gateway);
    let slashed = open.iter().fold(1_000_000_000_u64, |bond, _| bond - bond / 20);
    eventually("it is slashed for each", async || {
        let worker = (&*network.chain as &dyn Chain).worker(&worker_operator()).await.unwrap().unwrap();
        (worker.bond == slashed.to_string()).then_some(())
    })
    .await;
    assert_eq!((figure(&network, "reported").await, reports(&network).await), (0.0, vec![]));
    network.stop().await;
}
