//! A gateway whose sessions are private: it is served, paid and shown its receipts, and no judge is shown anything.

use std::time::Duration;

use polylink_inference_server::chain::Chain;
use polylink_inference_server::http::server;
use polylink_protocol::Digest;
use polylink_protocol::market::receipt_digest;
use polylink_protocol::merkle_sum::{Leaf, Sum, verify};
use polylink_protocol::transcript::AnswerRecord;
use serde_json::json;

use super::http::{get, metric, post};
use super::network::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_gateway_is_served_and_its_receipts_are_under_a_root_of_their_own() {
    let mut network = Network::start().await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "1 plus 1?"}], "max_tokens": 4});
    let open = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
    let open = |field: &str| open.json()["polylink"]["receipt"][field].as_u64().unwrap();
    let (open, open_epoch) = (open("session"), open("epoch"));
    network.gateway.take().unwrap().stop(Duration::from_secs(1)).await;
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    // The same account, key and journal: what it does from now on is private.
    let config =
        polylink_inference_server::gateway::GatewayConfig { private: true, ..gateway_config(network.folder.path()) };
    let gateway = start_gateway_with(config, &network.chain, listener).await;
    network.base = format!("http://{}", gateway.address());
    network.gateway = Some(gateway);
    wait_ready(&network.base).await;
    assert_eq!(get(&network.url("/polylink/v1/info"), None).await.json()["private"], true);

    let chain: &dyn Chain = &*network.chain;
    let (mut asked, mut record) = (0, None);
    let (record, private) = eventually("the private root", async || {
        let now = chain.epoch().await.unwrap().0;
        // An epoch whose window the worker misses says nothing.
        if record.is_none() || asked + 2 < now {
            let reply = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
            assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
            let id = reply.json()["id"].as_str().unwrap().to_owned();
            asked = reply.json()["polylink"]["receipt"]["epoch"].as_u64().unwrap();
            record = Some(id);
        }
        let url = network.url(&format!("/polylink/v1/receipts/{}", record.as_ref()?));
        let record: AnswerRecord = serde_json::from_slice(&get(&url, Some(&network.api_key)).await.body).unwrap();
        let receipt = record.receipt.receipt.clone()?;
        let profile = Digest::from_slice(&receipt.profile_digest)?;
        let pot = chain.pot_of(receipt.epoch, &receipt.worker, &profile, true).await.unwrap()?;
        let paid = pot.root.is_some() && pot.redeemed != "0" && record.path.is_some();
        paid.then_some((record, pot))
    })
    .await;
    let receipt = record.receipt.receipt.clone().unwrap();
    assert_ne!(receipt.session, open);
    let session = chain.session(receipt.session).await.unwrap().unwrap();
    assert!(session.private && !chain.session(open).await.unwrap().unwrap().private);
    let root = Sum::from_proto(private.root.as_ref().unwrap()).unwrap();
    assert_eq!(record.root, private.root);
    let leaf = Leaf {
        session: receipt.session,
        index: receipt.index,
        receipt: receipt_digest(&receipt),
        tokens: receipt.prompt_tokens + receipt.completion_tokens,
        amount: receipt.amount.parse().unwrap(),
    };
    verify(&leaf, &record.path.unwrap(), &root).unwrap();
    // Nothing of it is under the root that judges draw from.
    let profile = Digest::from_slice(&receipt.profile_digest).unwrap();
    let audited = chain.pot(receipt.epoch, &receipt.worker, &profile).await.unwrap().unwrap();
    assert_eq!(audited.root.unwrap().count, u64::from(open_epoch == receipt.epoch), "the open answer alone");
    // The gateway looks for its receipts where they belong, and has nothing to report.
    eventually("proven", async || {
        (metric(&network.base, "polylink:proven_receipts_total", "").await > 0.0).then_some(())
    })
    .await;
    assert!(chain.reports(&worker_operator()).await.unwrap().is_empty());
    network.stop().await;
}
