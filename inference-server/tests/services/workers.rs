//! Which worker a gateway asks: none above its price limit; another one where one refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use polylink_abci_app::testing::key;
use polylink_inference_server::gateway::PriceLimit;
use polylink_inference_server::gateway::keys::ApiKeys;
use polylink_inference_server::http::server;
use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{answer_amount, profile_digest};
use polylink_protocol::market_v1::TokenPrices;
use serde_json::{Value, json};

use super::http::{get, metric, post};
use super::network::*;
use super::proxy::Proxy;

const CHEAP: u8 = 4;

fn times(factor: u64) -> TokenPrices {
    TokenPrices {
        prompt: factor * PRICE.prompt,
        cached_prompt: factor * PRICE.cached_prompt,
        completion: factor * PRICE.completion,
    }
}

async fn free_port() -> tokio::net::TcpListener {
    server::bind(([127, 0, 0, 1], 0).into()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_above_the_price_limit_is_not_asked() {
    let mut network = Network::start().await;
    // The same worker with three times the ask, which holds from the next epoch on.
    network.worker.take().unwrap().stop(Duration::from_secs(1)).await;
    let port = network.worker_url.rsplit(':').next().unwrap().parse().unwrap();
    let listener = server::bind(([127, 0, 0, 1], port).into()).await.unwrap();
    let mut config = worker_config(WORKER, network.folder.path(), network.worker_url.clone());
    config.ask = times(3);
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, listener).await);
    wait_ready(&network.worker_url).await;
    let url = network.url("/v1/chat/completions");
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    let message = eventually("it is too dear", async || {
        let reply = post(&url, Some(&network.api_key), &body).await;
        if reply.status == 200 {
            let price = reply.json()["polylink"]["price"].clone();
            assert_eq!(price, serde_json::to_value(PRICE).unwrap(), "never more than the limit");
            return None;
        }
        let (status, code, message) = reply.error();
        assert_eq!(status, 503, "{message}");
        (code == "price_above_limit").then_some(message)
    })
    .await;
    assert!(message.contains("30000/7500/90000") && message.contains("20000/5000/60000"), "{message}");
    let models = get(&network.url("/v1/models"), Some(&network.api_key)).await.json();
    assert_eq!(models["data"], json!([]));
    // A gateway that pays as much asks it, and pays exactly that.
    network.gateway.take().unwrap().stop(Duration::from_secs(1)).await;
    let mut config = gateway_config(network.folder.path());
    config.max_price = PriceLimit::Factor(3);
    let gateway = start_gateway_with(config, &network.chain, free_port().await).await;
    network.base = format!("http://{}", gateway.address());
    network.gateway = Some(gateway);
    wait_ready(&network.base).await;
    // The new ask may not be in force yet: until then it costs what it did.
    let (before, answer) = eventually("the new ask is in force", async || {
        let before: u128 = network.usage().await["spent_uplk"].as_str().unwrap().parse().unwrap();
        let answer = post(&network.url("/v1/chat/completions"), Some(&network.api_key), &body).await.json();
        let price = answer["polylink"]["price"].clone();
        (price == serde_json::to_value(times(3)).unwrap()).then_some((before, answer))
    })
    .await;
    let count = |name: &str| answer["polylink"]["receipt"][name].as_u64().unwrap();
    let cost = answer_amount(&times(3), count("prompt_tokens"), count("cached_tokens"), count("completion_tokens"));
    assert_eq!(network.usage().await["spent_uplk"], (before + cost.0).to_string());
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_refuses_is_passed_over_and_rests_unless_all_refuse() {
    let mut network = Network::start().await;
    // The network's own worker asks a bit more, behind a proxy that can refuse; the cheap one refuses every call.
    network.worker.take().unwrap().stop(Duration::from_secs(1)).await;
    let all_refuse = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let refuse = |reply: &mut super::http::Reply| {
        let error =
            json!({"error": {"message": "not with me", "type": "invalid_request_error", "code": "invalid_value"}});
        (reply.status, reply.body) = (400, error.to_string().into_bytes());
    };
    let dear = free_port().await;
    let dear_url = format!("http://{}", dear.local_addr().unwrap());
    let flag = Arc::clone(&all_refuse);
    let dear_proxy = Proxy::start(&dear_url, move |path, reply| {
        if path == "/polylink/v1/generate" && flag.load(Ordering::SeqCst) {
            refuse(reply);
        }
    })
    .await;
    let mut config = worker_config(WORKER, network.folder.path(), dear_proxy.url.clone());
    config.ask = TokenPrices { prompt: PRICE.prompt + 1, ..PRICE };
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, dear).await);
    let cheap = free_port().await;
    let cheap_url = format!("http://{}", cheap.local_addr().unwrap());
    let counted = Arc::clone(&asked);
    let cheap_proxy = Proxy::start(&cheap_url, move |path, reply| {
        if path == "/polylink/v1/generate" {
            counted.fetch_add(1, Ordering::SeqCst);
            refuse(reply);
        }
    })
    .await;
    let mut config = worker_config(CHEAP, network.folder.path(), cheap_proxy.url.clone());
    config.receipt_key = ServiceKey::from_bytes(&[45; 32]);
    let cheap = start_worker_with(config, &network.chain, &network.engine, cheap).await;
    wait_ready(&cheap_url).await;
    eventually("both are known, at their prices", async || {
        let models = get(&network.url("/v1/models"), Some(&network.api_key)).await.json();
        (models["data"][0]["polylink"]["workers"] == 2).then_some(())
    })
    .await;
    let url = network.url("/v1/chat/completions");
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    let ask = async || post(&url, Some(&network.api_key), &body).await;
    // The new ask holds from the next epoch on: from then the other one is the cheapest, and asked first.
    let retried = eventually("the cheap one is asked", async || {
        let reply = ask().await;
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.json()["polylink"]["worker"], worker_operator());
        (asked.load(Ordering::SeqCst) == 1).then_some(())
    });
    retried.await;
    assert_eq!(metric(&network.base, "polylink:gateway_retries_total", "").await, 1.0);
    assert_eq!(ask().await.status, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "it rests");
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    // When all refuse, the user hears why, and none of them rests.
    all_refuse.store(true, Ordering::SeqCst);
    for times in 2..4 {
        let (status, code, message) = ask().await.error();
        assert_eq!((status, code.as_str(), message.as_str()), (400, "invalid_value", "not with me"));
        assert_eq!(asked.load(Ordering::SeqCst), times, "the cheap one is asked first, each time");
    }
    let usage: Value = network.usage().await;
    assert_eq!(usage["reserved_uplk"], "0", "{usage}");
    assert_eq!(cheap.operator(), key(CHEAP).address().account());
    cheap.stop(Duration::from_secs(1)).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_weights_under_the_same_name_are_not_offered() {
    let mut network = Network::start().await;
    network.gateway.take().unwrap().stop(Duration::from_secs(1)).await;
    // Somebody registers the name with other weights, and serves them for the same price. Its digest comes first.
    let genuine = worker_config(WORKER, network.folder.path(), String::new()).profile;
    let mut other = genuine.clone();
    while profile_digest(&other).0 >= profile_digest(&genuine).0 {
        other.weights_digest[0] = other.weights_digest[0].wrapping_add(1);
        assert_ne!(other, genuine, "a smaller digest");
    }
    let listener = free_port().await;
    let impostor_url = format!("http://{}", listener.local_addr().unwrap());
    let mut config = worker_config(CHEAP, network.folder.path(), impostor_url.clone());
    (config.profile, config.receipt_key) = (other.clone(), ServiceKey::from_bytes(&[45; 32]));
    let impostor = start_worker_with(config, &network.chain, &network.engine, listener).await;
    wait_ready(&impostor_url).await;
    let gateway = start_gateway(&network.chain, network.folder.path()).await;
    network.base = format!("http://{}", gateway.address());
    network.gateway = Some(gateway);
    wait_ready(&network.base).await;
    let url = network.url("/v1/chat/completions");
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    for _ in 0..3 {
        let answer = post(&url, Some(&network.api_key), &body).await.json();
        assert_eq!(answer["polylink"]["worker"], worker_operator());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let models = get(&network.url("/v1/models"), Some(&network.api_key)).await.json();
    let digests = models["data"].as_array().unwrap().iter().map(|m| m["polylink"]["profile_digest"].clone());
    assert_eq!(digests.collect::<Vec<_>>(), [json!(profile_digest(&genuine).to_string())]);
    impostor.stop(Duration::from_secs(1)).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_pay_the_best_worker_is_answered_by_a_cheaper_one() {
    let mut network = Network::start().await;
    // The network's own worker asks less and says that it is busy; a free one asks twice as much.
    network.worker.take().unwrap().stop(Duration::from_secs(1)).await;
    let port = network.worker_url.rsplit(':').next().unwrap().parse().unwrap();
    let busy = Proxy::start(&network.worker_url, |path, reply| {
        if path == "/polylink/v1/info" && reply.status == 200 {
            let mut info = reply.json();
            (info["waiting"], info["slots"]) = (json!(1_000), json!(1));
            reply.body = info.to_string().into_bytes();
        }
    })
    .await;
    let listener = server::bind(([127, 0, 0, 1], port).into()).await.unwrap();
    let config = worker_config(WORKER, network.folder.path(), busy.url.clone());
    network.worker = Some(start_worker_with(config, &network.chain, &network.engine, listener).await);
    let listener = free_port().await;
    let dear_url = format!("http://{}", listener.local_addr().unwrap());
    let mut config = worker_config(CHEAP, network.folder.path(), dear_url.clone());
    (config.ask, config.receipt_key) = (times(2), ServiceKey::from_bytes(&[45; 32]));
    let dear = start_worker_with(config, &network.chain, &network.engine, listener).await;
    wait_ready(&dear_url).await;
    let url = network.url("/v1/chat/completions");
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4,
        "ignore_eos": true, "seed": 3});
    let dear_one = key(CHEAP).address().account();
    let answer = eventually("the free one is asked, though it is dear", async || {
        let answer = post(&url, Some(&network.api_key), &body).await.json();
        (answer["polylink"]["worker"] == json!(dear_one)).then_some(answer)
    })
    .await;
    // At the other one's price with nothing cached: what this key may spend in all.
    let count = |name: &str| answer["polylink"]["receipt"][name].as_u64().unwrap();
    let worst = answer_amount(&PRICE, count("prompt_tokens"), 0, 4);
    let keys = ApiKeys::open(&network.folder.path().join("api-keys.json")).unwrap();
    let small = keys.create("small", Some(worst), 0, None).unwrap();
    let reply = post(&url, Some(&small), &body).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.json()["polylink"]["worker"], worker_operator());
    let (status, code, _) = post(&url, Some(&small), &body).await.error();
    assert_eq!(
        (status, code.as_str()),
        (402, "insufficient_budget"),
        "where none is cheap enough that is what is said"
    );
    dear.stop(Duration::from_secs(1)).await;
    network.stop().await;
}
