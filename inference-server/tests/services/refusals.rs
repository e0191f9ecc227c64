//! Bad input, one row each: it is answered by an error that says what and what to do, and the services go on.

use polylink_abci_app::testing::{CHAIN_ID, key};
use polylink_inference_server::chain::Chain;
use polylink_protocol::Amount;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{profile_digest, prompt_digest, sign_request, sign_voucher};
use polylink_protocol::market_v1::{Request, Sampling, Voucher};
use polylink_protocol::transcript::{DisclosureCall, GenerateCall, VoucherCall, disclosure_digest};
use serde_json::{Value, json};

use super::http::{get, post, send};
use super::network::*;

async fn refused_at_the_gateway(network: &Network) {
    let good = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string().into_bytes()
    };
    let chat = "/v1/chat/completions";
    let wrong_key = format!("sk-polylink-{}", "0".repeat(64));
    let long = json!([{"role": "user", "content": "word ".repeat(3_000)}]);
    let right = Some(network.api_key.as_str());
    for (name, method, path, key, body, status, code) in [
        ("no key", "POST", chat, None, with("n", json!(1)), 401, "missing_api_key"),
        ("wrong key", "POST", chat, Some(wrong_key.as_str()), with("n", json!(1)), 401, "invalid_api_key"),
        ("malformed JSON", "POST", chat, right, b"{\"model\": ".to_vec(), 400, "invalid_json"),
        ("unknown model", "POST", chat, right, with("model", json!("gpt-0")), 404, "model_not_found"),
        ("prompt too long", "POST", chat, right, with("messages", long), 400, "context_length_exceeded"),
        ("wrong value", "POST", chat, right, with("temperature", json!(9)), 400, "invalid_value"),
        ("not built", "POST", chat, right, with("best_of", json!(2)), 400, "unsupported_parameter"),
        ("too large", "POST", chat, right, vec![b' '; 2 << 20], 413, "body_too_large"),
        (
            "no such token",
            "POST",
            "/v1/completions",
            right,
            br#"{"model":"pico","prompt":[9999999]}"#.to_vec(),
            400,
            "invalid_value",
        ),
        ("wrong path", "GET", "/v1/nothing", right, vec![], 404, "unknown_path"),
        ("wrong method", "GET", chat, right, vec![], 405, "wrong_method"),
        ("no such answer", "GET", "/polylink/v1/receipts/chatcmpl-0", right, vec![], 404, "unknown_answer"),
        ("models without key", "GET", "/v1/models", None, vec![], 401, "missing_api_key"),
        ("no such model", "GET", "/v1/models/a/b", right, vec![], 404, "model_not_found"),
    ] {
        let reply = send(method, &network.url(path), key, body).await;
        let (found, found_code, message) = reply.error();
        assert_eq!((found, found_code.as_str()), (status, code), "{name}: {message}");
        assert!(message.len() > 15, "{name}: {message}");
    }
    let models = get(&network.url("/v1/models"), right).await.json();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(get(&network.url(&format!("/v1/models/{MODEL}")), right).await.status, 200);
}

fn call(session: u64, epoch: u64, change: impl FnOnce(&mut GenerateCall, &mut Request)) -> GenerateCall {
    let prompt_token_ids = vec![1, 2, 3];
    let mut request = Request {
        chain_id: CHAIN_ID.into(),
        session,
        epoch,
        index: 100_000,
        profile_digest: profile_digest(&model().profile(MODEL).unwrap()).to_vec(),
        prompt_digest: prompt_digest(&[9; 32], &prompt_token_ids).to_vec(),
        sampling: Some(Sampling { top_p: 1.0, repetition_penalty: 1.0, max_tokens: 4, n: 1, ..Default::default() }),
        max_price: Some(PRICE),
        seed: vec![1; 32],
    };
    let mut call = GenerateCall {
        request: Default::default(),
        prompt_salt: vec![9; 32],
        prompt_token_ids,
        grammar: None,
        voucher: None,
        logprobs: 0,
        prompt_logprobs: None,
    };
    change(&mut call, &mut request);
    if call.request.signature.is_empty() {
        call.request = sign_request(request, &spend_key());
    }
    call
}

async fn refused_at_the_worker(network: &Network) {
    let chain: &dyn Chain = &*network.chain;
    let sessions = chain.sessions(&gateway_address(), &worker_operator()).await.unwrap();
    let id = sessions.last().unwrap().id;
    let epoch = chain.epoch().await.unwrap().0;
    let url = format!("{}/polylink/v1/generate", network.worker_url);
    type Change = fn(&mut GenerateCall, &mut Request);
    let table: &[(&str, u64, Change, u16, &str)] = &[
        ("no session", 999_999, |_, _| (), 402, "no_session"),
        ("wrong chain id", id, |_, r| r.chain_id = "other-1".into(), 400, "digest_mismatch"),
        ("altered prompt", id, |c, _| c.prompt_token_ids[0] = 5, 400, "digest_mismatch"),
        (
            "wrong key",
            id,
            |c, r| c.request = sign_request(r.clone(), &ServiceKey::from_bytes(&[9; 32])),
            401,
            "wrong_signature",
        ),
        ("no price", id, |_, r| r.max_price.as_mut().unwrap().completion = 1, 402, "price_too_low"),
        ("far epoch", id, |_, r| r.epoch += 1_000, 409, "epoch_ahead"),
    ];
    for (name, session, change, status, code) in table {
        let call = call(*session, epoch, change);
        let reply = post(&url, None, &serde_json::to_value(&call).unwrap()).await;
        let (found, found_code, message) = reply.error();
        assert_eq!((found, found_code.as_str()), (*status, *code), "{name}: {message}");
    }
    let (status, code, _) = send("POST", &url, None, b"{}".to_vec()).await.error();
    assert_eq!((status, code.as_str()), (400, "invalid_json"));
}

async fn forged_vouchers_and_strangers(network: &Network) {
    let chain: &dyn Chain = &*network.chain;
    let sessions = chain.sessions(&gateway_address(), &worker_operator()).await.unwrap();
    let id = sessions.last().unwrap().id;
    let url = format!("{}/polylink/v1/vouchers", network.worker_url);
    let voucher = Voucher {
        chain_id: CHAIN_ID.into(),
        session: id,
        epoch: 0,
        amount: "1".into(),
        count: 1,
        receipts_hash: vec![0; 32],
    };
    for (signer, status, code) in [([9; 32], 400, "invalid_voucher"), ([42; 32], 409, "not_unpaid")] {
        let voucher = sign_voucher(voucher.clone(), &ServiceKey::from_bytes(&signer));
        let call = VoucherCall { voucher, indexes: vec![77_777] };
        let (found, found_code, message) = post(&url, None, &serde_json::to_value(&call).unwrap()).await.error();
        assert_eq!((found, found_code.as_str()), (status, code), "{message}");
    }
    // Nobody but a drawn judge sees a transcript.
    let judge = key(5).address().account();
    let profile = profile_digest(&model().profile(MODEL).unwrap()).to_vec();
    let digest = disclosure_digest(CHAIN_ID, &key(WORKER).address(), &judge, 0, &profile, Amount(0));
    let signature = ServiceKey::from_bytes(&[5; 32]).sign(&digest.0);
    let call = DisclosureCall { judge, epoch: 0, profile_digest: profile, point: Amount(0), signature };
    let url = format!("{}/polylink/v1/disclose", network.worker_url);
    let (status, code, _) = post(&url, None, &serde_json::to_value(&call).unwrap()).await.error();
    assert_eq!((status, code.as_str()), (403, "no_judge"));
    let proof = format!("{}/polylink/v1/proof?session={id}&index=0&receipt={}", network.worker_url, "00".repeat(32));
    assert_eq!(get(&proof, None).await.error().1, "not_committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_by_name_and_the_services_go_on() {
    let network = Network::start().await;
    refused_at_the_gateway(&network).await;
    refused_at_the_worker(&network).await;
    forged_vouchers_and_strangers(&network).await;
    let body = json!({"model": "pico", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "zzz": 1});
    let reply = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.headers["x-polylink-ignored-fields"], "zzz");
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_and_rates_hold() {
    let network = Network::start().await;
    let keys =
        polylink_inference_server::gateway::keys::ApiKeys::open(&network.folder.path().join("api-keys.json")).unwrap();
    let poor = keys.create("poor", Some(Amount(1)), 0, None).unwrap();
    let slow = keys.create("slow", None, 2, None).unwrap();
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    let url = network.url("/v1/chat/completions");
    let (status, code, _) = post(&url, Some(&poor), &body).await.error();
    assert_eq!((status, code.as_str()), (402, "insufficient_budget"));
    for _ in 0..2 {
        assert_eq!(post(&url, Some(&slow), &body).await.status, 200);
    }
    let reply = post(&url, Some(&slow), &body).await;
    assert_eq!(reply.error().1, "rate_limit_exceeded");
    assert!(reply.headers.contains_key("retry-after"));
    // Another key's answer does not exist for this one.
    let answer = post(&url, Some(&network.api_key), &body).await.json();
    let record = network.url(answer["polylink"]["record"].as_str().unwrap());
    assert_eq!(get(&record, Some(&poor)).await.error().1, "unknown_answer");
    assert_eq!(get(&record, Some(&network.api_key)).await.status, 200);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_worker_the_reason_is_given() {
    let mut network = Network::start().await;
    network.worker.take().unwrap().stop(std::time::Duration::from_millis(10)).await;
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    let (status, _, message) = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await.error();
    assert_eq!(status, 503, "{message}");
    assert!(message.contains(&network.worker_url), "{message}");
    network.stop().await;
}
