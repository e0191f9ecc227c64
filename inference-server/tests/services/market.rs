//! What the services owe to the ledger's rules while they run: each epoch's price, revoked keys, reported receipts.

use std::time::Duration;

use polylink_abci_app::testing::key;
use polylink_inference_server::chain::Chain;
use polylink_protocol::market::{answer_amount, max_prices, price_at, profile_digest};
use polylink_protocol::market_v1::*;
use polylink_protocol::transcript::AnswerRecord;
use polylink_protocol::{Digest, tx};
use serde_json::{Value, json};

use super::http::{get, post};
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

fn profile() -> Digest {
    profile_digest(&model().profile(MODEL).unwrap())
}

async fn worker_record(network: &Network) -> Worker {
    let chain: &dyn Chain = &*network.chain;
    chain.worker(&worker_operator()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_charged_at_the_price_of_its_epoch() {
    let mut network = Network::start().await;
    // One token an epoch is all that it says it can serve, for next to nothing: every answer is full use of it, and the epoch
    // price rises from epoch to epoch.
    let worker = network.worker.take().unwrap();
    let address = worker.address();
    worker.stop(Duration::from_millis(10)).await;
    let listener = polylink_inference_server::http::server::bind(address).await.unwrap();
    let mut config = worker_config(WORKER, network.folder.path(), format!("http://{address}"));
    let low = TokenPrices { prompt: 1, cached_prompt: 1, completion: 1 };
    (config.capacity_tokens_per_epoch, config.ask) = (1, low);
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, listener).await);
    wait_ready(&network.worker_url).await;
    let chain: &dyn Chain = &*network.chain;
    let from = worker_record(&network).await.terms.last().unwrap().from_epoch;

    let mut seen = std::collections::BTreeMap::new();
    eventually("the price rises by a fifth", async || {
        let (status, answer) = ask(&network).await;
        // Between the old terms and the new ones it may not answer.
        if status != 200 {
            let (now, _) = chain.epoch().await.unwrap();
            assert!(now <= from, "a price that moves refuses nobody: {status} {answer}");
            return None;
        }
        let found = receipt(&answer);
        if found.epoch < from {
            return None;
        }
        let model = chain.model(&profile()).await.unwrap().unwrap();
        if let Some(price) = price_at(&model, found.epoch) {
            let price = max_prices(&price, &low);
            let amount = answer_amount(&price, found.prompt_tokens, found.cached_tokens, found.completion_tokens);
            assert_eq!(found.amount, amount.to_string(), "epoch {}: {price:?}", found.epoch);
            assert_eq!(answer["polylink"]["price"], serde_json::to_value(price).unwrap());
            seen.insert(found.epoch, price.completion);
        }
        let least = seen.values().min().copied()?;
        (seen.values().next_back()? * 5 >= least * 6).then_some(())
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_is_answered_no_more_and_what_it_was_answered_is_paid() {
    let network = Network::start().await;
    let (status, answer) = ask(&network).await;
    assert_eq!(status, 200, "{answer}");
    let owed: u128 = receipt(&answer).amount.parse().unwrap();
    let chain: &dyn Chain = &*network.chain;
    let payer = key(GATEWAY);
    let session = chain.sessions(&payer.address(), &worker_operator()).await.unwrap().remove(0);
    let message =
        MsgRevokeSpendKey { payer: payer.address().account(), session: session.id, spend_key: session.spend_key };
    chain.broadcast(&payer, vec![tx::any(&message)]).await.unwrap();

    // Within one look of the worker at the session; then nobody answers with this key, on no session.
    let refused = eventually("refused", async || {
        let (status, answer) = ask(&network).await;
        (status != 200).then_some((status, answer))
    });
    let (status, refused) = refused.await;
    assert_eq!(status, 503, "{refused}");
    let refused = eventually("the gateway knows why", async || {
        let (_, answer) = ask(&network).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default().to_owned();
        message.contains("revoked").then_some(message)
    });
    refused.await;
    assert_eq!(chain.sessions(&payer.address(), &worker_operator()).await.unwrap().len(), 1, "no other one is opened");
    eventually("what was served is redeemed", async || (network.redeemed(GATEWAY).await >= owed).then_some(())).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_revoked_key_spends_nothing_more_at_the_gateway() {
    let network = Network::start().await;
    let (status, answer) = ask(&network).await;
    assert_eq!(status, 200, "{answer}");
    let chain: &dyn Chain = &*network.chain;
    let user = key(USER);
    let session = chain.sessions(&user.address(), &gateway_address().account()).await.unwrap().remove(0);
    let message =
        MsgRevokeSpendKey { payer: user.address().account(), session: session.id, spend_key: session.spend_key };
    chain.broadcast(&user, vec![tx::any(&message)]).await.unwrap();
    let refused = eventually("refused", async || {
        let (status, answer) = ask(&network).await;
        (status != 200).then_some((status, answer))
    });
    let (status, refused) = refused.await;
    assert_eq!((status, refused["error"]["code"].as_str()), (402, Some("no_session")), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("revoked"), "{refused}");
    // What it had spent before is still the gateway's.
    let spent = network.usage().await["spent_uplk"].clone();
    assert_ne!(spent, "0");
    eventually("the voucher is redeemed", async || {
        let found = chain.session(session.id).await.unwrap().unwrap();
        (spent == found.redeemed).then_some(())
    })
    .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_shows_a_receipt_that_is_reported() {
    let network = Network::start().await;
    let (chain, payer): (&dyn Chain, _) = (&*network.chain, key(GATEWAY));
    // Reports are taken once the root of the receipt's epoch stands; an epoch that the worker had no time to commit has none.
    let mut asked: Option<(u64, MsgReportOmitted)> = None;
    let message = eventually("a report is taken", async || {
        let now = chain.epoch().await.unwrap().0;
        if asked.as_ref().is_none_or(|(epoch, _)| epoch + 2 < now) {
            let (status, answer) = ask(&network).await;
            assert_eq!(status, 200, "{answer}");
            let path = answer["polylink"]["record"].as_str().unwrap().to_owned();
            let record = get(&network.url(&path), Some(&network.api_key)).await;
            let record: AnswerRecord = serde_json::from_slice(&record.body).unwrap();
            let message = MsgReportOmitted { payer: payer.address().account(), receipt: Some(record.receipt) };
            asked = Some((receipt(&answer).epoch, message));
        }
        let (_, message) = asked.clone()?;
        match chain.broadcast(&payer, vec![tx::any(&message)]).await {
            Ok(_) => Some(message),
            Err(error) => {
                let text = error.to_string();
                assert!(["are reported from", "committed nothing"].iter().any(|known| text.contains(known)), "{text}");
                None
            }
        }
    })
    .await;
    eventually("it is answered", async || {
        let open = chain.reports(&worker_operator()).await.unwrap();
        open.is_empty().then_some(())
    })
    .await;
    assert_eq!(worker_record(&network).await.bond, "1000000000", "shown, not slashed");
    let again = chain.broadcast(&payer, vec![tx::any(&message)]).await.unwrap_err().to_string();
    assert!(again.contains("market 40"), "{again}");
    network.stop().await;
}
