//! A worker changes its receipt key and its ask while the network runs: both hold from the next epoch on.

use std::time::{Duration, Instant};

use polylink_inference_server::chain::Chain;
use polylink_inference_server::http::server;
use polylink_inference_server::worker::WorkerConfig;
use polylink_protocol::Digest;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{answer_amount, profile_digest};
use polylink_protocol::market_v1::{Receipt, TokenPrices};
use serde_json::{Value, json};

use super::http::post;
use super::network::*;

async fn ask(network: &Network) -> (u16, Value) {
    let body =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "1 plus 1?"}], "max_completion_tokens": 8});
    let reply = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
    (reply.status, reply.json())
}

fn receipt(answer: &Value) -> Receipt {
    serde_json::from_value(answer["polylink"]["receipt"].clone()).unwrap()
}

fn cost(price: &TokenPrices, receipt: &Receipt) -> String {
    answer_amount(price, receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens).to_string()
}

/// Stops the worker and starts it with other settings at the same endpoint.
async fn restart(network: &mut Network, change: impl FnOnce(&mut WorkerConfig)) {
    let worker = network.worker.take().unwrap();
    let address = worker.address();
    worker.stop(Duration::from_millis(10)).await;
    let listener = server::bind(address).await.unwrap();
    let mut config = worker_config(WORKER, network.folder.path(), format!("http://{address}"));
    change(&mut config);
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, listener).await);
    wait_ready(&network.worker_url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_and_a_new_ask_hold_from_the_next_epoch() {
    let mut network = Network::start().await;
    let (status, first) = ask(&network).await;
    assert_eq!(status, 200, "{first}");
    let old = receipt(&first);
    assert_eq!(old.amount, cost(&PRICE, &old));

    let dear = TokenPrices { prompt: 20_000, cached_prompt: 5_000, completion: 60_000 };
    let new_key = ServiceKey::from_bytes(&[44; 32]);
    let changed = new_key.clone();
    restart(&mut network, |config| (config.receipt_key, config.ask) = (changed, dear)).await;
    let chain: &dyn Chain = &*network.chain;
    let record = chain.worker(&worker_operator()).await.unwrap().unwrap();
    let from = record.terms.last().unwrap().from_epoch;
    assert_eq!(record.terms.last().unwrap().receipt_key, new_key.public_key());

    // Until then it does not sign with a key that could not be proven; afterwards it answers by the new terms.
    let begun = Instant::now();
    let answer = loop {
        let (status, answer) = ask(&network).await;
        if status == 200 {
            break answer;
        }
        assert_eq!(status, 503, "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(60), "never answered again: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let new = receipt(&answer);
    assert!(new.epoch >= from, "an answer of epoch {} by terms that hold from {from} on", new.epoch);
    assert_eq!(answer["polylink"]["receipt_key"], hex::encode(new_key.public_key()));
    assert_eq!(new.amount, cost(&dear, &new));

    // The pot of the old answer's epoch says by which key and at which price it is proven, whatever came since.
    let profile: Digest = profile_digest(&model().profile(MODEL).unwrap());
    let pot = loop {
        let pot = chain.pot(old.epoch, &worker_operator(), &profile).await.unwrap();
        if let Some(pot) = pot.filter(|pot| pot.root.is_some()) {
            break pot;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "epoch {} is not committed", old.epoch);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((pot.receipt_key, pot.price), (receipt_key().public_key().to_vec(), Some(PRICE)));
    network.stop().await;
}
