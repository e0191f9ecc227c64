//! Logprobs of prompts: what they are, and that they have the same bits whatever runs beside them, in whatever pieces and
//! after whatever was cached.

use std::sync::atomic::Ordering;

use polylink_inference_server::engine::{
    BackendKind, Engine, EngineConfig, EngineHandle, FinishReason, GenerateRequest, KvCacheSize, PromptToken, Replayer,
    Speculation,
};
use polylink_inference_server::model::{Computation, KvDtype, Precision};
use polylink_protocol::market_v1::Sampling;

use crate::determinism::bits;
use crate::split::{peer_thread, split_over};
use crate::support::*;

/// Tokens of the probe's prompt.
const LENGTH: u32 = 70;

fn scored(prompt_ids: Vec<u32>) -> GenerateRequest {
    GenerateRequest { logprobs: Some(5), prompt_logprobs: Some(20), ..request(prompt_ids, noisy(), 3) }
}

fn probe() -> GenerateRequest {
    scored(prompt(1, LENGTH))
}

/// What is said of a prompt token, bit for bit: id, logprob, rank, likeliest tokens.
type ToldBits = (u32, u32, u32, Vec<(u32, u32)>);

fn told(answer: &Answer) -> Vec<ToldBits> {
    let top = |token: &PromptToken| token.top.iter().map(|top| (top.token, top.logprob.to_bits())).collect();
    answer.prompt.iter().map(|token| (token.id, token.logprob.to_bits(), token.rank, top(token))).collect()
}

#[track_caller]
fn assert_same(found: &Answer, alone: &Answer, when: &str) {
    assert_eq!(told(found), told(alone), "{when}");
    assert_eq!(bits(found), bits(alone), "the completion, {when}");
    assert_eq!(found.usage, alone.usage, "{when}");
}

/// Beside 16 others, of which some are scored too.
fn under_load(engine: &EngineHandle) -> Answer {
    let other = |i: u32| {
        let other = request(prompt(50 + i, 5 + 9 * i), noisy(), i as u8);
        GenerateRequest { prompt_logprobs: i.is_multiple_of(3).then_some(i), ..other }
    };
    let others: Vec<_> = (0..16).map(|i| (i, engine.submit(other(i)).unwrap())).collect();
    let answer = run(engine, probe());
    for (i, stream) in others {
        let asked = i.is_multiple_of(3);
        assert_eq!(
            collect(stream).prompt.len() as u32,
            if asked { 4 + 9 * i } else { 0 },
            "of every token but the first"
        );
    }
    answer
}

/// Whole rows of logits of a prompt, by the judge's replay.
fn rows(name: &str, prompt_ids: &[u32]) -> Vec<Vec<f32>> {
    Replayer::new(&model(name), BackendKind::Cpu, 1).unwrap().logits(&prompt_ids[..1], &prompt_ids[1..]).unwrap()
}

#[test]
fn they_are_the_log_softmax_of_the_logits_with_ranks_by_them() {
    let prompt_ids = prompt(1, LENGTH);
    let answer = run(&start("nano", small()), probe());
    assert_eq!(answer.prompt.len(), prompt_ids.len() - 1, "of every token but the first");
    for ((told, logits), &id) in answer.prompt.iter().zip(rows("nano", &prompt_ids)).zip(&prompt_ids[1..]) {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let exact = |token: u32| f64::from(logits[token as usize]) - sum.ln();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
        assert_eq!((told.id, order[told.rank as usize - 1]), (id, id), "rank {}", told.rank);
        assert!((f64::from(told.logprob) - exact(id)).abs() < 1e-5, "{told:?}: {}", exact(id));
        assert_eq!(told.top.iter().map(|top| top.token).collect::<Vec<_>>(), order[..20]);
        assert!(told.top.iter().all(|top| (f64::from(top.logprob) - exact(top.token)).abs() < 1e-5));
    }
}

#[test]
fn they_differ_as_the_logits_of_transformers_do() {
    for name in ["pico", "nano"] {
        let golden = std::fs::read_to_string(folder("goldens").join(format!("{name}_logits.json"))).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let engine = start(name, small());
        let mut compared = 0;
        for case in golden["prompts"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let answer = run(&engine, scored(ids));
            for top in case["top"].as_array().unwrap() {
                // The last row's logits are the first completion token's.
                let Some(told) = answer.prompt.get(top["position"].as_u64().unwrap() as usize) else { continue };
                let expected: Vec<u32> = serde_json::from_value(top["ids"].clone()).unwrap();
                let logits: Vec<f64> = serde_json::from_value(top["logits"].clone()).unwrap();
                let found = |id: u32| told.top.iter().find(|top| top.token == id).map(|top| f64::from(top.logprob));
                let Some(first) = found(expected[0]) else { panic!("the likeliest is among the likeliest") };
                for (id, logit) in expected.iter().zip(&logits) {
                    if let Some(logprob) = found(*id) {
                        let error = ((logprob - first) - (logit - logits[0])).abs();
                        assert!(error < 4e-4, "{name}: token {id} off by {error}");
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 20, "{name}: {compared} logits are compared");
    }
}

#[test]
fn same_bits_alone_loaded_chunked_cached_and_on_two_threads() {
    let alone = run(&start("nano", small()), probe());
    assert_eq!((alone.usage.prompt_tokens, alone.usage.cached_tokens), (u64::from(LENGTH), 0));
    let plain = run(&start("nano", small()), GenerateRequest { prompt_logprobs: None, ..probe() });
    assert_eq!(bits(&alone), bits(&plain), "they do not change the answer");
    let few = run(&start("nano", small()), GenerateRequest { prompt_logprobs: Some(0), ..probe() });
    let own = |answer: &Answer| answer.prompt.iter().map(|t| (t.id, t.logprob.to_bits(), t.rank)).collect::<Vec<_>>();
    assert!(own(&few) == own(&alone) && few.prompt.iter().all(|token| token.top.is_empty()));

    // With 16 rows of budget one row of a step is scored, with 24 nine.
    for (budget, threads) in [(256, 1), (16, 1), (24, 2), (100, 3)] {
        let config = EngineConfig { token_budget: budget, threads, max_running: 16, ..small() };
        let engine = start("nano", EngineConfig { kv_cache: KvCacheSize::Blocks(256), ..config });
        assert_same(&under_load(&engine), &alone, &format!("token budget {budget}, under load"));
        // What is cached is not taken, what was computed is.
        assert_same(&run(&engine, probe()), &alone, &format!("token budget {budget}, when it is cached"));
        let after = run(&engine, GenerateRequest { prompt_logprobs: None, ..probe() });
        assert!(after.usage.cached_tokens >= 32, "{:?}", after.usage);
    }
}

#[test]
fn same_bits_after_a_preemption_in_the_middle_of_the_prompt() {
    let alone = run(&start("nano", small()), probe());
    let block_tokens = start("nano", small()).info().block_tokens;
    let blocks = 86_usize.div_ceil(block_tokens) + 2;
    for prefix_cache in [true, false] {
        // A row of the probe in each step, while the others grow until the blocks run out.
        let config = EngineConfig { kv_cache: KvCacheSize::Blocks(blocks), prefix_cache, ..small() };
        let engine = start("nano", EngineConfig { token_budget: 16, ..config });
        let other = |salt| {
            let sampling = Sampling { max_tokens: 60, ..noisy() };
            engine.submit(request(prompt(salt, block_tokens as u32 - 3), sampling, 9)).unwrap()
        };
        let others = [other(90), other(60)];
        let found = run(&engine, probe());
        others.into_iter().for_each(|stream| drop(collect(stream)));
        assert!(engine.metrics().preemptions.load(Ordering::Relaxed) > 0, "the test forces nothing");
        assert_eq!((told(&found), bits(&found)), (told(&alone), bits(&alone)), "prefix cache: {prefix_cache}");
    }
}

#[test]
fn same_bits_quantised_on_the_reference_backend_and_with_guesses() {
    let eight_bit_cache = Computation { precision: Precision::F32, kv_dtype: KvDtype::Int8 };
    let others = [Precision::F32, Precision::Q8_0, Precision::Bf16].map(Computation::from);
    for computation in others.into_iter().chain([eight_bit_cache]) {
        let start = |config| Engine::start(quantized("pico", computation), config).unwrap();
        let alone = run(&start(small()), probe());
        assert_eq!(alone.prompt.len() as u32, LENGTH - 1);
        let loaded = start(EngineConfig { token_budget: 20, threads: 2, ..small() });
        assert_same(&under_load(&loaded), &alone, &format!("{computation:?}"));
    }
    let alone = run(&start("pico", small()), probe());
    let reference = start("pico", EngineConfig { backend: BackendKind::Reference, ..small() });
    assert_same(&run(&reference, probe()), &alone, "on the reference backend");
    let guessing = start("pico", EngineConfig { speculation: Speculation::Draft(model("pico")), ..small() });
    assert_same(&under_load(&guessing), &alone, "with guesses");
}

#[test]
fn same_bits_split_over_two_devices() {
    let alone = run(&start("nano", small()), probe());
    let split = Engine::start(model("nano"), split_over(&[2, 1], &[peer_thread(model("nano"))])).unwrap();
    assert_same(&run(&split, probe()), &alone, "alone");
    assert_same(&under_load(&split), &alone, "under load");
}

#[test]
fn the_prompt_alone_may_be_asked_for() {
    let engine = start("pico", small());
    let whole = run(&engine, probe());
    let none = Sampling { max_tokens: 0, ..noisy() };
    let only = |prompt_ids: Vec<u32>| GenerateRequest { sampling: none.clone(), ..scored(prompt_ids) };
    let answer = run(&engine, only(prompt(1, LENGTH)));
    assert_eq!(told(&answer), told(&whole));
    assert_eq!((answer.choices[0].tokens.len(), answer.choices[0].reason), (0, Some(FinishReason::Length)));
    assert_eq!((answer.usage.prompt_tokens, answer.usage.completion_tokens), (u64::from(LENGTH), 0));
    assert_eq!(run(&engine, only(vec![7])).prompt, [], "nothing is before the first token");
    // A prompt may fill the context where nothing follows it.
    let context = EngineConfig { context_length: Some(LENGTH as usize), ..small() };
    let full = start("pico", context);
    assert_eq!(told(&run(&full, only(prompt(1, LENGTH)))), told(&whole));
    assert!(full.submit(scored(prompt(1, LENGTH))).unwrap_err().to_string().contains("context"));
    // Choices have one prompt.
    let several = GenerateRequest { sampling: Sampling { n: 3, ..noisy() }, ..probe() };
    let answer = run(&engine, several);
    assert_eq!((told(&answer), answer.choices.len()), (told(&whole), 3));
    assert_eq!(answer.choices[0].ids(), whole.choices[0].ids());
    let several = GenerateRequest { sampling: Sampling { n: 3, ..none }, ..probe() };
    assert_eq!(run(&engine, several).choices.len(), 3);
}
