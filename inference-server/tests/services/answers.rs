//! The main job: an answer, streamed and not, its receipt, its payment, its place in the committed tree; restarts.

use std::time::Duration;

use polylink_abci_app::testing::key;
use polylink_inference_server::chain::Chain;
use polylink_inference_server::client::verify_answer;
use polylink_protocol::Digest;
use polylink_protocol::market::{profile_digest, receipt_digest};
use polylink_protocol::merkle_sum::{Leaf, Sum, verify};
use polylink_protocol::transcript::AnswerRecord;
use serde_json::{Value, json};

use super::http::{get, post, stream};
use super::network::*;

fn question(stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "What is 12 plus 7?"}],
        "seed": 5, "max_completion_tokens": 24, "stream": stream})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_served_paid_and_proven() {
    let network = Network::start().await;
    let (url, api_key) = (network.url("/v1/chat/completions"), Some(network.api_key.as_str()));

    let whole = post(&url, api_key, &question(false)).await;
    assert_eq!(whole.status, 200, "{}", String::from_utf8_lossy(&whole.body));
    let whole = whole.json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(["stop", "length"].contains(&whole["choices"][0]["finish_reason"].as_str().unwrap()));
    assert_eq!(whole["polylink"]["worker"], worker_operator());

    let mut body = question(true);
    body["stream_options"] = json!({"include_usage": true});
    let chunks = stream(&url, api_key, &body).await.chunks().await;
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text, "the same seed gives the same text, streamed and not");
    let finish = chunks.iter().find(|c| c["choices"][0]["finish_reason"].is_string()).unwrap();
    assert!(finish["polylink"]["signature"].is_string(), "the receipt is on the chunk with the finish_reason");
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    assert!(chunks.last().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());

    // The record that `polylink verify` reads: sound now, with its path once the epoch is committed.
    let record_url = network.url(whole["polylink"]["record"].as_str().unwrap());
    let record: AnswerRecord = serde_json::from_slice(&get(&record_url, api_key).await.body).unwrap();
    let amount = verify_answer(&record, &worker_operator(), &receipt_key().public_key()).unwrap();
    assert_eq!(amount.to_string(), whole["polylink"]["receipt"]["amount"].as_str().unwrap());
    let proven = eventually("the receipt's path", async || {
        let record: AnswerRecord = serde_json::from_slice(&get(&record_url, api_key).await.body).unwrap();
        record.path.is_some().then_some(record)
    })
    .await;
    let receipt = proven.receipt.receipt.as_ref().unwrap();
    let profile = Digest::from_slice(&receipt.profile_digest).unwrap();
    assert_eq!(profile, profile_digest(&model().profile(MODEL).unwrap()));
    let chain: &dyn Chain = &*network.chain;
    let pot = eventually("the committed root", async || {
        let pot = chain.pot(receipt.epoch, &worker_operator(), &profile).await.unwrap()?;
        (pot.root.is_some() && pot.redeemed != "0" && !pot.redeemed.is_empty()).then_some(pot)
    })
    .await;
    let root = pot.root.unwrap();
    assert_eq!(proven.root.as_ref(), Some(&root));
    let tokens = receipt.prompt_tokens + receipt.completion_tokens;
    let leaf =
        Leaf { session: receipt.session, index: receipt.index, receipt: receipt_digest(receipt), tokens, amount };
    verify(&leaf, proven.path.as_ref().unwrap(), &Sum::from_proto(&root).unwrap()).unwrap();

    // The gateway has paid what was answered, and the user has paid the gateway.
    let session = chain.session(receipt.session).await.unwrap().unwrap();
    let usage = get(&network.url("/polylink/v1/usage"), api_key).await.json();
    assert_eq!(usage["answers"], 2);
    assert!(session.redeemed.parse::<u128>().unwrap() >= amount.0);
    assert_eq!(usage["voucher"]["voucher"]["amount"], usage["spent_uplk"]);
    let user_session = usage["session"].as_u64().unwrap();
    eventually("the user's voucher redeemed", async || {
        let session = chain.session(user_session).await.unwrap().unwrap();
        (session.redeemed == usage["spent_uplk"].as_str().unwrap()).then_some(())
    })
    .await;
    network.chain.lock().checked_supply();
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_goes_on_after_restarts_and_nothing_is_paid_twice() {
    let mut network = Network::start().await;
    let api_key = network.api_key.clone();
    let mut spent = 0_u128;
    for round in 0..3_u64 {
        let url = network.url("/v1/chat/completions");
        let answers = (0..6).map(|i| {
            let (url, api_key) = (url.clone(), api_key.clone());
            let mut body = question(i % 2 == 0);
            body["seed"] = json!(round * 10 + i);
            async move {
                if i % 2 == 0 {
                    let chunks = stream(&url, Some(&api_key), &body).await.chunks().await;
                    chunks.into_iter().find(|c| c["polylink"].is_object()).unwrap()
                } else {
                    post(&url, Some(&api_key), &body).await.json()
                }
            }
        });
        for answer in futures::future::join_all(answers).await {
            spent += answer["polylink"]["receipt"]["amount"].as_str().unwrap().parse::<u128>().unwrap();
        }
        let usage = get(&network.url("/polylink/v1/usage"), Some(&api_key)).await.json();
        assert_eq!(usage["spent_uplk"].as_str().unwrap().parse::<u128>().unwrap(), spent);
        // Both stop at once, without grace; both come back from their journals, on the same port and on another one.
        network.gateway.take().unwrap().stop(Duration::from_millis(10)).await;
        let port = network.worker.as_ref().unwrap().address().port();
        network.worker.take().unwrap().stop(Duration::from_millis(10)).await;
        let folder = network.folder.path().to_owned();
        network.worker = Some(start_worker(&network.chain, &network.engine, &folder, port).await);
        wait_ready(&network.worker_url).await;
        let gateway = start_gateway(&network.chain, &folder).await;
        network.base = format!("http://{}", gateway.address());
        network.gateway = Some(gateway);
        wait_ready(&network.base).await;
    }
    let chain: &dyn Chain = &*network.chain;
    eventually("everything is redeemed", async || {
        let sessions = chain.sessions(&key(GATEWAY).address(), &worker_operator()).await.unwrap();
        assert_eq!(sessions.len(), 1, "one session, also after restarts");
        let redeemed: u128 = sessions[0].redeemed.parse().unwrap_or(0);
        assert!(redeemed <= spent, "{redeemed} of {spent}");
        (redeemed == spent).then_some(())
    })
    .await;
    network.chain.lock().checked_supply();
    network.stop().await;
}
