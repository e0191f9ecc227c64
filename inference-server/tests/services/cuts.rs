//! Streams that break off at the gateway: who goes away pays for what was sent, who fails is not paid by the user; the
//! user's charge, the gateway's debt and the worker's claim agree to the micro-unit.

use std::time::Duration;

use polylink_abci_app::testing::key;
use polylink_inference_server::chain::Chain;
use polylink_inference_server::client::{CutAnswer, verify_answer, verify_cut};
use polylink_inference_server::engine::{Event, GenerateRequest};
use polylink_inference_server::gateway::keys::ApiKeys;
use polylink_inference_server::worker::store::WorkerStore;
use polylink_protocol::Amount;
use polylink_protocol::market::{SKETCH_BYTES, answer_amount, completion_digest, receipt_digest, sketch_digest};
use polylink_protocol::market_v1::FinishReason;
use polylink_protocol::transcript::AnswerRecord;
use serde_json::{Value, json};

use super::http::{Events, get, metric, post, stream};
use super::network::*;

const LONG: u64 = 400;

fn long_question() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "What is 12 plus 7?"}], "seed": 5, "stream": true,
        "ignore_eos": true, "max_completion_tokens": LONG, "return_token_ids": true, "temperature": 1.0})
}

/// The ids of a stream's next `k` tokens, and the answer's id.
async fn read_tokens(events: &mut Events, k: usize) -> (String, Vec<u32>) {
    let (mut id, mut tokens) = (String::new(), Vec::new());
    while tokens.len() < k {
        let chunk: Value = serde_json::from_str(&events.next().await.expect("the stream goes on")).unwrap();
        assert!(chunk["error"].is_null(), "{chunk}");
        id = chunk["id"].as_str().unwrap().to_owned();
        tokens.extend(chunk["choices"][0]["token_ids"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32));
    }
    (id, tokens)
}

fn amount(value: &Value) -> u128 {
    value.as_str().unwrap_or_else(|| panic!("no amount: {value}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_pays_for_what_was_sent() {
    let mut network = Network::start().await;
    let url = network.url("/v1/chat/completions");
    let before = metric(&network.worker_url, "polylink:request_success_total", "abort").await;
    let mut events = stream(&url, Some(&network.api_key), &long_question()).await;
    assert_eq!(events.status, 200);
    let (id, seen) = read_tokens(&mut events, 5).await;
    drop(events);
    let usage = eventually("the cut answer is charged", async || {
        let usage = network.usage().await;
        (usage["cut_answers"] == 1).then_some(usage)
    })
    .await;
    assert_eq!((&usage["answers"], &usage["reserved_uplk"]), (&json!(1), &json!("0")));
    assert_eq!(usage["voucher"]["voucher"]["amount"], usage["spent_uplk"], "the user's voucher is over the same");
    eventually("it is counted", async || {
        (metric(&network.base, "polylink:cut_answers_total", "").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(metric(&network.base, "polylink:unbilled_uplk_total", "").await, 0.0);
    assert_eq!(metric(&network.base, "polylink:http_requests_active", "").await, 0.0);
    assert!(metric(&network.worker_url, "polylink:request_success_total", "abort").await > before, "it was stopped");

    // The record: cancelled, over what was seen and no more than was sent, and no complete answer.
    let record = get(&network.url(&format!("/polylink/v1/receipts/{id}")), Some(&network.api_key)).await;
    let record: AnswerRecord = serde_json::from_slice(&record.body).unwrap();
    let receipt = record.receipt.receipt.clone().unwrap();
    assert_eq!(receipt.finish_reason(), FinishReason::Cancelled);
    assert!(record.completions[0].starts_with(&seen));
    assert!((5..LONG).contains(&receipt.completion_tokens), "{}", receipt.completion_tokens);
    assert_eq!(receipt.completion_tokens, record.completions[0].len() as u64);
    let cost = answer_amount(&PRICE, receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens);
    assert_eq!((receipt.amount.clone(), amount(&usage["spent_uplk"])), (cost.to_string(), cost.0));
    assert!(verify_answer(&record, &worker_operator(), &receipt_key().public_key()).is_err());
    let cut = CutAnswer {
        request: &record.request,
        prompt_tokens: record.prompt_token_ids.len() as u64,
        seen: Some(&[seen]),
        receipt: &record.receipt,
        completion_salt: &record.completion_salt,
        completions: &record.completions,
    };
    assert_eq!(verify_cut(&cut, &worker_operator(), &receipt_key().public_key()), Ok(cost));

    // The worker has claimed the same of the gateway.
    eventually("the worker's claim", async || (network.redeemed(GATEWAY).await == cost.0).then_some(())).await;
    let chain: &dyn Chain = &*network.chain;
    let session = usage["session"].as_u64().unwrap();
    eventually("the gateway's claim", async || {
        (chain.session(session).await.unwrap().unwrap().redeemed == cost.to_string()).then_some(())
    })
    .await;
    network.chain.lock().checked_supply();
    a_judge_finds_nothing_wrong(&mut network, &record).await;
    network.stop().await;
}

/// What a judge does with a sampled leaf: the worker's committed transcript stands for the receipt, and an honest engine
/// gives the same tokens and sketches.
async fn a_judge_finds_nothing_wrong(network: &mut Network, record: &AnswerRecord) {
    network.worker.take().unwrap().stop(Duration::from_secs(2)).await;
    let store = WorkerStore::open(&network.folder.path().join("worker")).unwrap();
    let receipt = record.receipt.receipt.as_ref().unwrap();
    let proven = store.sample(receipt.epoch, Amount(0)).unwrap().expect("the only leaf of its epoch");
    let transcript = store.transcript(proven.location).unwrap();
    assert_eq!(transcript.receipt.as_ref(), Some(&record.receipt));
    assert_eq!(receipt_digest(receipt), receipt_digest(transcript.receipt.as_ref().unwrap().receipt.as_ref().unwrap()));
    let choice = &transcript.choices[0];
    let salt = transcript.completion_salt.as_slice().try_into().unwrap();
    assert_eq!(completion_digest(&salt, [choice.token_ids.as_slice()].into_iter()).0, receipt.completion_digest[..]);
    let (sketches, rest) = choice.sketches.as_chunks::<SKETCH_BYTES>();
    assert!(rest.is_empty() && sketches.len() == choice.token_ids.len());
    assert_eq!(sketch_digest([sketches].into_iter()).0, receipt.sketch_digest[..]);
    let request = transcript.request.unwrap().request.unwrap();
    let mut replay = network
        .engine
        .submit(GenerateRequest {
            prompt_ids: transcript.prompt_token_ids,
            sampling: request.sampling.unwrap(),
            seed: request.seed.as_slice().try_into().unwrap(),
            tenant: [0; 32],
            priority: 0,
            logprobs: None,
            prompt_logprobs: None,
            grammar: transcript.grammar,
        })
        .unwrap();
    for (id, sketch) in choice.token_ids.iter().zip(sketches) {
        let Some(Event::Token(token)) = replay.next().await else { panic!("the replay ends early") };
        assert_eq!((token.id, token.sketch), (*id, *sketch));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_again_and_again_gives_no_free_tokens() {
    let network = Network::start().await;
    let keys = ApiKeys::open(&network.folder.path().join("api-keys.json")).unwrap();
    let budget = 20_000;
    let api_key = keys.create("small", Some(Amount(budget)), 0, None).unwrap();
    let url = network.url("/v1/chat/completions");
    let usage = async || get(&network.url("/polylink/v1/usage"), Some(&api_key)).await.json();
    let (mut taken, mut answers) = (0_u128, 0);
    loop {
        let mut events = stream(&url, Some(&api_key), &long_question()).await;
        if events.status != 200 {
            assert_eq!(events.status, 402, "until the budget is used up");
            break;
        }
        let (_, tokens) = read_tokens(&mut events, 20).await;
        // While the answer's fate is open, the most that it may cost is reserved.
        assert!(amount(&usage().await["reserved_uplk"]) > 0);
        drop(events);
        taken += tokens.len() as u128;
        answers += 1;
        eventually("it is charged", async || (usage().await["cut_answers"] == answers).then_some(())).await;
        assert!(answers < 60, "the budget is never used up");
    }
    let usage = usage().await;
    let spent = amount(&usage["spent_uplk"]);
    assert!(spent >= (taken * u128::from(PRICE.completion)).div_ceil(1_000), "{spent} for {taken} tokens");
    assert!(spent <= budget && usage["reserved_uplk"] == "0", "{usage}");
    println!("{answers} cuts, {taken} tokens read, {spent} uplk paid");
    eventually("the worker has claimed it all", async || (network.redeemed(GATEWAY).await == spent).then_some(()))
        .await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_worker_cuts_is_owed_by_nobody() {
    let mut network = Network::start().await;
    let url = network.url("/v1/chat/completions");
    let mut events = stream(&url, Some(&network.api_key), &long_question()).await;
    read_tokens(&mut events, 3).await;
    network.worker.take().unwrap().stop(Duration::ZERO).await;
    let mut last = String::new();
    while let Some(event) = events.next().await {
        last = event;
    }
    assert!(last.contains("\"error\""), "{last}");
    let usage = network.usage().await;
    let figures = (&usage["answers"], &usage["spent_uplk"], &usage["reserved_uplk"]);
    assert_eq!(figures, (&json!(0), &json!("0"), &json!("0")));
    let store = WorkerStore::open(&network.folder.path().join("worker")).unwrap();
    let chain: &dyn Chain = &*network.chain;
    let epoch = chain.epoch().await.unwrap().0;
    for epoch in 0..=epoch {
        assert_eq!(store.close_epoch(epoch).await.unwrap().audited.amount, Amount::ZERO, "epoch {epoch}");
    }
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_gateway_fails_to_finish_is_paid_to_the_worker_and_not_by_the_user() {
    let mut network = Network::start().await;
    network.gateway.take().unwrap().stop(Duration::ZERO).await;
    // In a runtime of its own, which ends in the middle of a stream: as a killed process, it settles nothing.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (chain, folder) = (network.chain.clone(), network.folder.path().to_owned());
    let running = doomed.spawn(async move { start_gateway(&chain, &folder).await }).await.unwrap();
    network.base = format!("http://{}", running.address());
    wait_ready(&network.base).await;
    let mut events = stream(&network.url("/v1/chat/completions"), Some(&network.api_key), &long_question()).await;
    let (id, _) = read_tokens(&mut events, 5).await;
    drop(running);
    doomed.shutdown_background();
    let gateway = start_gateway(&network.chain, network.folder.path()).await;
    network.base = format!("http://{}", gateway.address());
    network.gateway = Some(gateway);
    wait_ready(&network.base).await;
    let unbilled = eventually("the gateway owes it", async || {
        let unbilled = metric(&network.base, "polylink:unbilled_uplk_total", "").await;
        (unbilled > 0.0).then_some(unbilled as u128)
    })
    .await;
    eventually("the worker is paid", async || (network.redeemed(GATEWAY).await == unbilled).then_some(())).await;
    let usage = network.usage().await;
    let figures = (&usage["answers"], &usage["spent_uplk"], &usage["reserved_uplk"]);
    assert_eq!(figures, (&json!(0), &json!("0"), &json!("0")));
    let record = get(&network.url(&format!("/polylink/v1/receipts/{id}")), Some(&network.api_key)).await;
    assert_eq!(record.error().1, "unknown_answer");
    // It goes on, in the same session.
    let mut body = long_question();
    (body["stream"], body["max_completion_tokens"]) = (json!(false), json!(4));
    let answer = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await.json();
    assert_eq!(network.usage().await["spent_uplk"], answer["polylink"]["receipt"]["amount"]);
    let chain: &dyn Chain = &*network.chain;
    assert_eq!(chain.sessions(&key(GATEWAY).address(), &worker_operator()).await.unwrap().len(), 1);
    network.stop().await;
}
