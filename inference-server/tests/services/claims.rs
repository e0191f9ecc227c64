//! What a worker cannot have paid: it may have a user of its own, whom nobody charges when the answer breaks off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polylink_inference_server::client::{Payer, Upstream, UpstreamEvent};
use polylink_inference_server::http::server;
use polylink_protocol::transcript::ReceiptStatus;
use serde_json::{Value, json};

use super::http::{Reply, metric, stream};
use super::network::*;
use super::payer::{ask, payer, payer_with, read, worker_at};
use super::proxy::{Pass, Proxy};

async fn lying(
    network: &Network,
    change: impl Fn(&str, &mut Reply) + Send + Sync + 'static,
    stream: impl Fn(&[u8]) -> Pass + Send + Sync + 'static,
) -> Proxy {
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    Proxy::start_altering(listener, &network.worker_url, change, stream)
}

fn kind(event: &[u8]) -> String {
    let event: Value = serde_json::from_slice(event).unwrap();
    event["type"].as_str().unwrap().to_owned()
}

async fn refused(payer: &Payer, session: u64, network: &Network) {
    eventually("the claim is refused", async || (payer.figures().refused.get() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let book = payer.store().book(session);
    assert!(book.is_settled() && book.open() == 1, "nothing is owed, and its place in the window is kept");
    assert_eq!((payer.figures().refused.get(), network.redeemed(USER).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_breaks_its_own_stream_is_not_paid() {
    let network = Network::start().await;
    let proxy = lying(&network, |_, _| {}, |event| if kind(event) == "receipt" { Pass::End } else { Pass::On }).await;
    let payer = payer(&network, 1_000).await;
    let session = payer.session(&worker_at(&proxy.url)).await.unwrap();
    let mut upstream: Upstream = payer.ask(&session, &ask(12, 1), None).await.unwrap();
    let mut seen = 0;
    let error = loop {
        match upstream.next().await.unwrap() {
            Ok(UpstreamEvent::Tokens { token_ids, .. }) => seen += token_ids.len(),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(seen == 12 && error.is_workers_fault(), "the whole answer, but for its receipt: {error}");
    drop(upstream);
    refused(&payer, session.id(), &network).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_comes_when_no_user_can_be_charged_any_more_is_not_paid() {
    let network = Network::start().await;
    let later = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&later);
    let change = move |path: &str, reply: &mut Reply| {
        if path.starts_with("/polylink/v1/receipts/") && !flag.load(Ordering::SeqCst) {
            reply.body = serde_json::to_vec(&ReceiptStatus::Running).unwrap();
        }
    };
    let proxy = lying(&network, change, |_| Pass::On).await;
    let payer = payer(&network, 1_000).await;
    let session = payer.session(&worker_at(&proxy.url)).await.unwrap();
    let mut upstream = payer.ask(&session, &ask(380, 2), None).await.unwrap();
    read(&mut upstream, Some(5)).await;
    drop(upstream);
    eventually("it is refused", async || (payer.figures().refused.get() == 1).then_some(())).await;
    later.store(true, Ordering::SeqCst);
    refused(&payer, session.id(), &network).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_for_what_never_arrived_is_not_paid() {
    let network = Network::start().await;
    let proxy = lying(&network, |_, _| {}, |_| Pass::Hold).await;
    let payer = payer(&network, 1_000).await;
    let session = payer.session(&worker_at(&proxy.url)).await.unwrap();
    let asked = ask(12, 3);
    let asking = payer.ask(&session, &asked, None);
    assert!(tokio::time::timeout(Duration::from_secs(2), asking).await.is_err(), "nothing arrives");
    refused(&payer, session.id(), &network).await;
    network.stop().await;
}

/// The whole of it: a user and a worker who share the gain, and a gateway between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_a_user_together_gain_nothing_from_a_gateway() {
    let mut network = Network::start().await;
    network.worker.take().unwrap().stop(Duration::from_secs(1)).await;
    let port = network.worker_url.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = lying(&network, |_, _| {}, |event| if kind(event) == "receipt" { Pass::End } else { Pass::On }).await;
    let listener = server::bind(([127, 0, 0, 1], port).into()).await.unwrap();
    let config = worker_config(WORKER, network.folder.path(), proxy.url.clone());
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, listener).await);
    wait_ready(&network.worker_url).await;
    let body =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": true});
    eventually("the gateway goes by the new endpoint", async || {
        let mut events = stream(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
        let mut last = String::new();
        while let Some(event) = events.next().await {
            last = event;
        }
        last.contains("\"error\"").then_some(())
    })
    .await;
    let before = network.usage().await["spent_uplk"].clone();
    eventually("the claim is refused", async || {
        (metric(&network.base, "polylink:refused_receipts_total", "").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(metric(&network.base, "polylink:unbilled_uplk_total", "").await, 0.0);
    let usage = network.usage().await;
    assert_eq!((&usage["spent_uplk"], &usage["reserved_uplk"]), (&before, &json!("0")));
    let spent: u128 = before.as_str().unwrap().parse().unwrap();
    eventually("what users pay is what the worker gets", async || {
        (network.redeemed(GATEWAY).await == spent).then_some(())
    })
    .await;
    network.stop().await;
}

type Change = fn(Value) -> Vec<Value>;

/// What a worker may put into its stream to fill a gateway's memory, or its users' with nonsense.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_more_than_was_asked_for_fails() {
    let network = Network::start().await;
    let wrong: [(&str, &str, Change); 5] = [
        ("an end twice", "finish", |event| vec![event.clone(), event]),
        ("an end of no choice", "finish", |mut event| {
            event["choice"] = json!(7);
            vec![event]
        }),
        ("an end of no kind", "finish", |mut event| {
            event["reason"] = json!("x".repeat(1 << 20));
            vec![event]
        }),
        ("no end", "finish", |_| vec![]),
        ("21 alternatives", "tokens", |mut event| {
            event["logprobs"] = json!([{"logprob": -1.0, "top": vec![(1, -1.0); 21]}]);
            vec![event]
        }),
    ];
    let payer = payer_with(&network, 1_000, 8).await;
    for (i, (what, which, change)) in wrong.into_iter().enumerate() {
        let alter = move |event: &[u8]| {
            if kind(event) != which {
                return Pass::On;
            }
            let changed = change(serde_json::from_slice(event).unwrap());
            Pass::Instead(changed.iter().map(|event| event.to_string().into_bytes()).collect())
        };
        let proxy = lying(&network, |_, _| {}, alter).await;
        let session = payer.session(&worker_at(&proxy.url)).await.unwrap();
        let error = match payer.ask(&session, &ask(3, i as u8), None).await {
            Err(error) => error,
            Ok(mut upstream) => loop {
                match upstream.next().await.expect(what) {
                    Ok(UpstreamEvent::Verified(_)) => panic!("{what} is taken"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            },
        };
        assert!(error.is_workers_fault(), "{what}: {error}");
    }
    network.stop().await;
}
