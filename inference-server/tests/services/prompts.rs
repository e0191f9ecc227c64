//! The prompt in an answer: `echo` as OpenAI has it and `prompt_logprobs` as vLLM has it, from an engine alone and through
//! gateway and worker, where they are no part of what is signed.

use std::time::Duration;

use polylink_inference_server::http::FrontLimits;
use serde_json::{Value, json};

use super::http::{post, stream};
use super::local::start;
use super::network::{MODEL, Network};

const PROMPT: &str = "What is 2 plus 3?";

fn body(model: &str, extra: Value) -> Value {
    let mut body = json!({"model": model, "prompt": PROMPT, "seed": 1, "max_tokens": 12, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn list<'a>(logprobs: &'a Value, name: &str) -> &'a Vec<Value> {
    logprobs[name].as_array().unwrap_or_else(|| panic!("{name} in {logprobs}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_alone_echoes_and_scores_prompts() {
    let (server, base) = start(FrontLimits::default()).await;
    let url = format!("{base}/v1/completions");
    let ask = async |extra: Value| {
        let reply = post(&url, None, &body("pico", extra)).await;
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        reply.json()
    };
    let plain = ask(json!({"return_token_ids": true, "logprobs": 3})).await;
    let ids: Vec<u64> = serde_json::from_value(plain["choices"][0]["prompt_token_ids"].clone()).unwrap();
    let answer = ask(json!({"echo": true, "logprobs": 3, "n": 2})).await;
    for (choice, first) in answer["choices"].as_array().unwrap().iter().zip([true, false]) {
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(PROMPT), "{text}");
        assert!(!first || text == format!("{PROMPT}{}", plain["choices"][0]["text"].as_str().unwrap()));
        let logprobs = &choice["logprobs"];
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(logprobs, name).len(), ids.len() + 12, "{name}");
        }
        let (own, top) = (list(logprobs, "token_logprobs"), list(logprobs, "top_logprobs"));
        assert!(own[0].is_null() && top[0].is_null(), "nothing is before the first token");
        for ((own, top), token) in own.iter().zip(top).zip(list(logprobs, "tokens")).skip(1) {
            assert!(own.as_f64().unwrap() <= 0.0);
            let top = top.as_object().unwrap();
            assert!((3..=4).contains(&top.len()) && top[token.as_str().unwrap()] == *own, "{token} in {top:?}");
        }
        for (token, offset) in list(logprobs, "tokens").iter().zip(list(logprobs, "text_offset")).take(ids.len()) {
            assert!(
                text[offset.as_u64().unwrap() as usize..].starts_with(token.as_str().unwrap()),
                "{token} at {offset}"
            );
        }
        assert_eq!(list(logprobs, "text_offset")[ids.len()], PROMPT.len(), "where the completion begins");
    }
    let own = &list(&answer["choices"][0]["logprobs"], "token_logprobs")[ids.len()..];
    assert_eq!(own, list(&plain["choices"][0]["logprobs"], "token_logprobs"), "the completion's own");

    // vLLM's map says the same.
    let mapped = ask(json!({"prompt_logprobs": 2, "echo": true, "logprobs": 3})).await;
    assert_eq!(mapped["choices"][0]["logprobs"], answer["choices"][0]["logprobs"]);
    let told = mapped["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (ids.len(), &Value::Null));
    for (i, told) in told.iter().enumerate().skip(1) {
        let own = &told[ids[i].to_string()];
        assert_eq!(own["logprob"], answer["choices"][0]["logprobs"]["token_logprobs"][i]);
        assert_eq!(own["decoded_token"], answer["choices"][0]["logprobs"]["tokens"][i]);
        let ranks: Vec<u64> = told.as_object().unwrap().values().map(|entry| entry["rank"].as_u64().unwrap()).collect();
        let beside = own["rank"].as_u64().unwrap() > 2;
        assert!(ranks.contains(&1) && ranks.contains(&2) && ranks.len() == 2 + usize::from(beside), "{told}");
    }
    assert_eq!(mapped["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "all of it was computed");
    let zero = ask(json!({"prompt_logprobs": 0})).await;
    assert!(zero["choices"][0]["prompt_logprobs"][1].as_object().unwrap().len() == 1);
    assert!(ask(json!({})).await["choices"][0].get("prompt_logprobs").is_none(), "only where it was asked for");

    // The prompt alone; token ids; no logprobs.
    let only = ask(json!({"echo": true, "max_tokens": 0, "logprobs": 3})).await;
    assert_eq!((&only["choices"][0]["text"], &only["choices"][0]["finish_reason"]), (&json!(PROMPT), &json!("length")));
    assert_eq!(list(&only["choices"][0]["logprobs"], "tokens").len(), ids.len());
    let all = &list(&answer["choices"][0]["logprobs"], "token_logprobs")[..ids.len()];
    assert_eq!(list(&only["choices"][0]["logprobs"], "token_logprobs"), all);
    assert_eq!((&only["usage"]["completion_tokens"], &only["usage"]["total_tokens"]), (&json!(0), &json!(ids.len())));
    let bare = ask(json!({"prompt": ids, "echo": true, "max_tokens": 0})).await;
    assert_eq!((&bare["choices"][0]["text"], &bare["choices"][0]["logprobs"]), (&json!(PROMPT), &Value::Null));

    // Streamed, the parts are those of the whole.
    let asked = body("pico", json!({"echo": true, "logprobs": 3, "n": 2, "stream": true}));
    let chunks = stream(&url, None, &asked).await.chunks().await;
    for (index, whole) in answer["choices"].as_array().unwrap().iter().enumerate() {
        let of = || chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = of().filter_map(|choice| choice["text"].as_str()).collect();
        assert_eq!(text, whole["text"]);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<Value> =
                of().filter_map(|choice| choice["logprobs"][name].as_array()).flatten().cloned().collect();
            assert_eq!(joined, *list(&whole["logprobs"], name), "{name}");
        }
    }

    let chat = json!({"model": "pico", "messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 1,
        "max_tokens": 2, "return_token_ids": true});
    let chat = post(&format!("{base}/v1/chat/completions"), None, &chat).await.json();
    let tokens = chat["prompt_token_ids"].as_array().unwrap().len();
    assert_eq!(chat["prompt_logprobs"].as_array().unwrap().len(), tokens);
    server.stop(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_and_worker_pass_them_on_and_bill_what_the_receipt_says() {
    let (local, base) = start(FrontLimits::default()).await;
    let network = Network::start().await;
    let (url, api_key) = (network.url("/v1/completions"), Some(network.api_key.as_str()));
    let both = async |extra: Value| {
        let alone = post(&format!("{base}/v1/completions"), None, &body("pico", extra.clone())).await;
        let market = post(&url, api_key, &body(MODEL, extra)).await;
        assert_eq!((alone.status, market.status), (200, 200), "{}", String::from_utf8_lossy(&market.body));
        (alone.json(), market.json())
    };
    let (alone, market) = both(json!({"echo": true, "logprobs": 4, "prompt_logprobs": 2, "n": 2})).await;
    assert_eq!(market["choices"], alone["choices"]);
    assert_eq!(market["usage"]["completion_tokens"], 24);
    assert_eq!(market["polylink"]["receipt"]["completion_tokens"], 24, "the receipt knows nothing of them");

    // One token is drawn, billed and not shown.
    let (alone, market) = both(json!({"echo": true, "max_tokens": 0, "logprobs": 1})).await;
    assert_eq!(market["choices"], alone["choices"]);
    assert_eq!((&alone["usage"]["completion_tokens"], &market["usage"]["completion_tokens"]), (&json!(0), &json!(1)));
    assert_eq!(market["polylink"]["receipt"]["completion_tokens"], 1);

    let streamed = body(MODEL, json!({"echo": true, "logprobs": 0, "stream": true}));
    let chunks = stream(&url, api_key, &streamed).await.chunks().await;
    assert_eq!(chunks[0]["choices"][0]["text"], PROMPT, "the prompt comes first");
    assert!(list(&chunks[0]["choices"][0]["logprobs"], "token_logprobs")[0].is_null());

    let refused = post(&url, api_key, &body(MODEL, json!({"max_tokens": 0}))).await;
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("max_tokens")));
    network.stop().await;
    local.stop(Duration::from_secs(1)).await;
}
