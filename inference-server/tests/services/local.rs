//! The OpenAI endpoints over an engine alone: shapes of answers, limits, a client that goes away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use polylink_inference_server::engine::{Engine, EngineConfig, EngineHandle, KvCacheSize};
use polylink_inference_server::http::local::{LocalAnswerer, TextModel};
use polylink_inference_server::http::metrics::HttpMetrics;
use polylink_inference_server::http::server::{self, HttpServer};
use polylink_inference_server::http::{FrontLimits, router};
use serde_json::{Value, json};

use super::http::{get, metric, post, send, stream};
use super::network::{engine, model};

pub async fn start(limits: FrontLimits) -> (HttpServer, String) {
    start_over(engine(), limits).await
}

async fn start_over(engine: EngineHandle, limits: FrontLimits) -> (HttpServer, String) {
    let answerer = LocalAnswerer::new(engine, TextModel::of(&model()), "pico".into());
    let listener = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let server = server::start(listener, router(Arc::new(answerer), limits, HttpMetrics::new())).unwrap();
    let base = format!("http://{}", server.address());
    (server, base)
}

fn completion(extra: Value) -> Value {
    let mut body = json!({"model": "pico", "prompt": "What is 2 plus 3?", "seed": 1, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_of_an_answer() {
    let (server, base) = start(FrontLimits::default()).await;
    let url = format!("{base}/v1/completions");
    let ask = async |extra: Value| {
        let reply = post(&url, None, &completion(extra)).await;
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        reply.json()
    };
    let ids = ask(json!({"return_token_ids": true, "ignore_eos": true})).await;
    let choice = &ids["choices"][0];
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(ids["usage"]["completion_tokens"], 12);
    let again = ask(json!({"prompt": choice["prompt_token_ids"], "ignore_eos": true})).await;
    assert_eq!(again["choices"][0]["text"], choice["text"], "text and its token ids are the same prompt");

    let with = ask(json!({"logprobs": 3, "ignore_eos": true})).await;
    let logprobs = &with["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 12);
    let best = logprobs["top_logprobs"][0].as_object().unwrap();
    assert!(
        (3..=4).contains(&best.len()) && best[logprobs["tokens"][0].as_str().unwrap()].is_number(),
        "its own too: {best:?}"
    );
    assert!(logprobs["token_logprobs"].as_array().unwrap().iter().all(|l| l.as_f64().unwrap() <= 0.0));
    assert_eq!(with["choices"][0]["text"], choice["text"], "logprobs do not change the answer");

    let many = ask(json!({"n": 3, "temperature": 1.5})).await;
    assert_eq!(many["choices"].as_array().unwrap().len(), 3);
    assert_eq!(many["choices"][2]["index"], 2);

    // A stop text that occurs in the answer ends it there.
    let long = json!({"max_tokens": 80, "ignore_eos": true, "temperature": 1.2});
    let text = ask(long.clone()).await["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(text.chars().count() / 2).take(2).collect();
    assert!(!stop.is_empty(), "80 tokens give some text");
    let mut body = long;
    body["stop"] = json!([stop]);
    let stopped = ask(body).await;
    assert_eq!(stopped["choices"][0]["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    let chat = json!({"model": "pico", "messages": [{"role": "user", "content": "hi"}], "logprobs": true,
        "top_logprobs": 2, "max_tokens": 5, "ignore_eos": true, "stream": true, "n": 2});
    let chunks = stream(&format!("{base}/v1/chat/completions"), None, &chat).await.chunks().await;
    let of = |i: u64| chunks.iter().filter(move |c| c["choices"][0]["index"] == i);
    for i in 0..2 {
        assert_eq!(of(i).next().unwrap()["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(of(i).filter(|c| c["choices"][0]["finish_reason"].is_string()).count(), 1);
        let tokens: Vec<&Value> =
            of(i).filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
        assert_eq!(tokens.len(), 5);
        assert!(tokens.iter().all(|t| t["top_logprobs"].as_array().unwrap().len() == 2));
    }
    server.stop(Duration::from_secs(1)).await;
}

/// Whoever names no limit gets what there is room for; whoever names one that can never be held is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_limit_of_its_own_fits_a_small_cache() {
    let config = EngineConfig { threads: 1, kv_cache: KvCacheSize::Blocks(4), ..EngineConfig::default() };
    let (server, base) = start_over(Engine::start(model(), config).unwrap(), FrontLimits::default()).await;
    let url = format!("{base}/v1/chat/completions");
    let mut body =
        json!({"model": "pico", "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "ignore_eos": true});
    let answer = post(&url, None, &body).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
    assert_eq!(answer["usage"]["total_tokens"], 4 * 16 + 1, "the last token is never computed");
    body["max_tokens"] = json!(200);
    assert_eq!(post(&url, None, &body).await.error().1, "context_length_exceeded");
    server.stop(Duration::from_secs(1)).await;
}

/// OpenAI's `bytes` are there so that characters of several tokens can be put together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_of_a_character_has_its_own_bytes() {
    let (server, base) = start(FrontLimits::default()).await;
    let model = model();
    let tokenizer = model.tokenizer();
    let piece = (0..2048).find(|id| tokenizer.token_bytes(*id) == Some(vec![0xc3])).expect("a byte of its own");
    let body = json!({"model": "pico", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1,
        "logprobs": true, "logit_bias": {piece.to_string(): 100}});
    let answer = post(&format!("{base}/v1/chat/completions"), None, &body).await.json();
    let token = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!((token["token"].as_str(), &token["bytes"]), (Some("\u{fffd}"), &json!([0xc3])));
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_answered_and_a_client_that_leaves_frees_its_place() {
    let limits = FrontLimits { answers_max: 1, body_bytes_max: 1_000 };
    let (server, base) = start(limits).await;
    let url = format!("{base}/v1/completions");
    let long = completion(json!({"max_tokens": 400, "ignore_eos": true, "stream": true, "n": 8}));
    let mut events = stream(&url, None, &long).await;
    assert!(events.next().await.is_some());
    let (status, code, _) = post(&url, None, &completion(json!({}))).await.error();
    assert_eq!((status, code.as_str()), (429, "queue_full"));
    drop(events);
    let begun = Instant::now();
    while post(&url, None, &completion(json!({}))).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the place is never freed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(metric(&base, "polylink:request_success_total", "abort").await >= 1.0);
    while metric(&base, "polylink:num_requests_running", "").await != 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "the generation is never stopped");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, code, _) = send("POST", &url, None, vec![b'x'; 1_001]).await.error();
    assert_eq!((status, code.as_str()), (413, "body_too_large"));
    assert_eq!(get(&format!("{base}/ready"), None).await.status, 200);
    assert_eq!(get(&format!("{base}/health"), None).await.status, 200);
    assert_eq!(post(&url, None, &completion(json!({"model": "x"}))).await.error().1, "model_not_found");
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_priority_takes_the_place_of_a_larger_one() {
    let kv_cache = KvCacheSize::Blocks(256);
    let config = EngineConfig { threads: 1, max_running: 1, kv_cache, ..EngineConfig::default() };
    let (server, base) = start_over(Engine::start(model(), config).unwrap(), FrontLimits::default()).await;
    let url = format!("{base}/v1/completions");
    let long = |priority: i32| {
        completion(json!({"max_tokens": 900, "ignore_eos": true, "stream": true, "n": 8,
        "priority": priority}))
    };
    let mut running = stream(&url, None, &long(0)).await;
    assert!(running.next().await.is_some());
    // One of a larger number waits behind all of it.
    let mut waiting = stream(&url, None, &long(5)).await;
    let reply = post(&url, None, &completion(json!({"priority": -5}))).await;
    assert_eq!(reply.status, 200);
    assert!(metric(&base, "polylink:num_preemptions_total", "").await >= 1.0);
    drop(running);
    assert!(waiting.next().await.is_some(), "its turn comes");
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let error = server::bind(first.local_addr().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains(&first.local_addr().unwrap().to_string()));
    assert!(error.to_string().contains("another port"));
}
