//! What is refused, with which words and which status.

use polylink_inference_server::engine::{
    AdmissionError, Engine, EngineConfig, EngineError, GenerateRequest, KvCacheSize,
};
use polylink_protocol::market_v1::{LogitBias, Sampling};

use crate::support::*;

#[test]
fn requests_that_cannot_be_served_are_refused_by_name() {
    let engine = start("pico", EngineConfig { kv_cache: KvCacheSize::Blocks(10), ..small() });
    let (context, blocks) = (engine.info().context_length, engine.info().kv_blocks * engine.info().block_tokens);
    assert!(blocks < context, "or the test cannot see the difference");
    let base = || request(prompt(1, 10), sampling(), 0);
    let with = |sampling: Sampling| GenerateRequest { sampling, ..base() };
    let table = [
        (GenerateRequest { prompt_ids: vec![], ..base() }, "empty"),
        (GenerateRequest { prompt_ids: vec![1; context], ..base() }, "context"),
        (GenerateRequest { prompt_ids: vec![1; blocks], ..base() }, "KV blocks"),
        (GenerateRequest { prompt_ids: vec![99_999], ..base() }, "99999"),
        (GenerateRequest { logprobs: Some(21), ..base() }, "logprobs"),
        (GenerateRequest { prompt_logprobs: Some(21), ..base() }, "prompt_logprobs: 0 to 20"),
        (with(Sampling { temperature: 2.5, ..sampling() }), "temperature"),
        (with(Sampling { temperature: f32::NAN, ..sampling() }), "temperature"),
        (with(Sampling { top_p: 0.0, ..sampling() }), "top_p"),
        (with(Sampling { temperature: 1e-5, ..sampling() }), "temperature"),
        (with(Sampling { repetition_penalty: 0.0, ..sampling() }), "repetition_penalty"),
        (with(Sampling { n: 17, ..sampling() }), "n:"),
        (with(Sampling { logit_bias: vec![LogitBias { token: 5000, bias: 1.0 }], ..sampling() }), "logit_bias"),
        (with(Sampling { grammar_digest: vec![1], ..sampling() }), "grammar"),
        (
            with(Sampling { stop_token_ids: vec![3, u32::MAX], min_tokens: 5, ..sampling() }),
            "stop_token_ids: token 429",
        ),
    ];
    for (request, expected) in table {
        let error = engine.submit(request).unwrap_err();
        assert_eq!(error.http_status(), 400, "{error}");
        assert!(error.to_string().contains(expected), "{expected:?} is not in {error}");
    }
    run(&engine, base());
}

#[test]
fn the_waiting_queue_is_bounded() {
    let engine = start("pico", EngineConfig { max_running: 1, max_waiting: 2, ..small() });
    let long = || request(prompt(1, 10), Sampling { max_tokens: 1000, ..sampling() }, 0);
    let streams: Vec<_> = (0..3).map(|_| engine.submit(long()).unwrap()).collect();
    let refused = engine.submit(long()).unwrap_err();
    assert_eq!((refused.http_status(), &refused), (429, &AdmissionError::QueueFull { waiting: 2, limit: 2 }));
    drop(streams);
    // Places come back as the dropped ones end.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while let Err(error) = engine.submit(request(prompt(1, 10), sampling(), 0)).map(collect) {
        assert!(std::time::Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn a_flood_leaves_others_their_places() {
    let engine = start("pico", EngineConfig { max_running: 1, max_waiting: 7, ..small() });
    let long = |tenant: u8| {
        let request = request(prompt(1, 10), Sampling { max_tokens: 1000, ..sampling() }, 0);
        engine.submit(GenerateRequest { tenant: [tenant; 32], ..request })
    };
    // Alone, a tenant may have six and more; beside another one, four of eight.
    let mut streams: Vec<_> = (0..6).map(|_| long(1).unwrap()).collect();
    streams.push(long(2).unwrap());
    let refused = long(1).unwrap_err();
    assert_eq!(refused, AdmissionError::ShareFull { held: 6, part: 4, tenants: 2 });
    assert_eq!((refused.http_status(), long(2).is_ok()), (429, true));
    drop(streams);
}

#[test]
fn settings_out_of_their_domain_are_refused_by_name() {
    for (config, field) in [
        (EngineConfig { token_budget: 0, ..small() }, "token_budget"),
        (EngineConfig { max_running: 0, ..small() }, "max_running"),
        (EngineConfig { kv_cache: KvCacheSize::Blocks(0), ..small() }, "kv_cache"),
        (EngineConfig { kv_cache: KvCacheSize::Bytes(10), ..small() }, "kv_cache"),
        (EngineConfig { context_length: Some(1 << 20), ..small() }, "context_length"),
        (EngineConfig { threads: 5000, ..small() }, "threads"),
    ] {
        match Engine::start(model("pico"), config) {
            Err(EngineError::Config { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}
