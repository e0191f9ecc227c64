//! The same request gives the same tokens, and the same bits of logprobs and sketches, whatever runs beside it.

use std::sync::atomic::Ordering;

use polylink_inference_server::engine::{
    BackendKind, EngineConfig, EngineHandle, GenerateRequest, KvCacheSize, ReplayRequest, Replayer,
};
use polylink_inference_server::model::{Computation, KvDtype, Precision};

use crate::support::*;

/// One token: choice, id, bits of its logprob, sketch, bits of the likeliest tokens' logprobs.
pub type TokenBits = (u32, u32, u32, [u8; 16], Vec<(u32, u32)>);

/// Everything that a judge or a user could compare, bit for bit.
pub fn bits(answer: &Answer) -> Vec<TokenBits> {
    let tokens = answer.choices.iter().flat_map(|choice| &choice.tokens);
    tokens
        .map(|token| {
            let top = token.top.iter().map(|top| (top.token, top.logprob.to_bits())).collect();
            (token.choice, token.id, token.logprob.to_bits(), token.sketch, top)
        })
        .collect()
}

fn probe(seed: u8) -> GenerateRequest {
    GenerateRequest { logprobs: Some(20), ..request(prompt(1, 70), noisy(), seed) }
}

/// The probe while 16 other requests run.
pub fn under_load(engine: &EngineHandle, probe: GenerateRequest) -> Answer {
    let others: Vec<_> =
        (0..16).map(|i| engine.submit(request(prompt(50 + i, 5 + 9 * i), noisy(), i as u8)).unwrap()).collect();
    let answer = run(engine, probe);
    others.into_iter().for_each(|stream| drop(collect(stream)));
    answer
}

#[test]
fn same_bits_alone_loaded_chunked_cached_preempted_and_on_two_threads() {
    let alone = run(&start("nano", small()), probe(3));
    assert_eq!(alone.choices[0].tokens.len(), 16);
    assert_eq!(alone.choices[0].tokens[0].top.len(), 20);
    assert_ne!(bits(&alone), bits(&run(&start("nano", small()), probe(4))), "the seed matters");

    let engine = start("nano", EngineConfig { max_running: 32, ..small() });
    assert_eq!(bits(&under_load(&engine, probe(3))), bits(&alone), "under load");
    let again = run(&engine, probe(3));
    assert!(again.usage.cached_tokens >= 32, "{:?}", again.usage);
    assert_eq!(bits(&again), bits(&alone), "after a prefix hit");
    let untold = run(&engine, GenerateRequest { logprobs: None, ..probe(3) });
    assert_eq!(untold.choices[0].ids(), alone.choices[0].ids(), "whether logprobs are told");
    assert!(untold.choices[0].tokens.iter().all(|token| token.logprob == 0.0 && token.top.is_empty()));

    let chunked = start("nano", EngineConfig { token_budget: 16, ..small() });
    assert_eq!(bits(&run(&chunked, probe(3))), bits(&alone), "token budget 16");
    assert_eq!(bits(&under_load(&chunked, probe(3))), bits(&alone), "token budget 16, under load");

    for threads in [2, 3] {
        let threaded = start("nano", EngineConfig { threads, ..small() });
        assert_eq!(bits(&under_load(&threaded, probe(3))), bits(&alone), "{threads} threads");
    }
}

#[test]
fn same_bits_after_a_forced_preemption() {
    let alone = run(&start("nano", small()), probe(3));
    let block_tokens = start("nano", small()).info().block_tokens;
    // Room for the probe and hardly anything else; the others come first, so the probe is the worst.
    let blocks = 86_usize.div_ceil(block_tokens) + 2;
    let engine = start("nano", EngineConfig { kv_cache: KvCacheSize::Blocks(blocks), prefix_cache: false, ..small() });
    for attempt in 0..20 {
        let first = engine.submit(request(prompt(90 + attempt, block_tokens as u32 - 3), noisy(), 9)).unwrap();
        let second = engine.submit(request(prompt(60 + attempt, block_tokens as u32 - 3), noisy(), 9)).unwrap();
        let answer = run(&engine, probe(3));
        assert_eq!(bits(&answer), bits(&alone));
        collect(first);
        collect(second);
        if engine.metrics().preemptions.load(Ordering::Relaxed) > 0 {
            return;
        }
    }
    panic!("nothing was preempted: the test forces nothing");
}

#[test]
fn quantised_models_have_the_same_bits_too() {
    let caches = [KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8]
        .map(|kv_dtype| Computation { precision: Precision::F32, kv_dtype });
    let others = [Precision::Q8_0, Precision::Q4_0, Precision::Bf16, Precision::AmxBf16].map(Computation::from);
    for quantization in others.into_iter().chain(caches) {
        let start =
            |config| polylink_inference_server::engine::Engine::start(quantized("pico", quantization), config).unwrap();
        let alone = run(&start(small()), probe(5));
        let engine = start(EngineConfig { token_budget: 16, threads: 2, ..small() });
        assert_eq!(bits(&under_load(&engine, probe(5))), bits(&alone), "{quantization:?}");
    }
}

#[test]
fn the_reference_backend_gives_the_same_bits() {
    let fast = run(&start("pico", small()), probe(6));
    let plain = run(&start("pico", EngineConfig { backend: BackendKind::Reference, ..small() }), probe(6));
    assert_eq!(bits(&fast), bits(&plain));
}

#[test]
fn choices_of_one_request_are_those_of_their_noise_keys() {
    let engine = start("nano", small());
    let several = GenerateRequest {
        sampling: polylink_protocol::market_v1::Sampling { n: 3, ..noisy() },
        ..request(prompt(2, 50), noisy(), 8)
    };
    let answer = run(&engine, several.clone());
    assert_eq!(answer.choices.len(), 3);
    assert_ne!(answer.choices[0].ids(), answer.choices[1].ids());
    assert_eq!(answer.usage.prompt_tokens, 50);
    let fresh = start("nano", EngineConfig { prefix_cache: false, token_budget: 20, ..small() });
    assert_eq!(bits(&run(&fresh, several)), bits(&answer));
}

#[test]
fn a_replay_finds_the_same_tokens_and_sketches_and_sees_every_change() {
    let engine = start("nano", EngineConfig { token_budget: 24, threads: 2, ..small() });
    let sampling =
        polylink_protocol::market_v1::Sampling { min_tokens: 4, ignore_eos: false, max_tokens: 40, ..noisy() };
    let prompt_ids = prompt(3, 200);
    let answer = under_load(&engine, request(prompt_ids.clone(), sampling.clone(), 77));
    let choice = &answer.choices[0];
    let ids = choice.ids();
    let mut replayer = Replayer::new(&model("nano"), BackendKind::Cpu, 1).unwrap();
    let honest = ReplayRequest {
        prompt_ids: &prompt_ids,
        completion_ids: &ids,
        sampling: &sampling,
        grammar: None,
        seed: &[77; 32],
        choice: 0,
    };
    let replayed = replayer.replay(&honest).unwrap();
    assert_eq!(replayed.len(), ids.len());
    for (replayed, token) in replayed.iter().zip(&choice.tokens) {
        assert_eq!((replayed.margin, replayed.drawn, replayed.sketch), (0.0, token.id, token.sketch));
    }

    let mut beyond = sampling.clone();
    beyond.stop_token_ids.push(u32::MAX);
    let with_it = replayer.replay(&ReplayRequest { sampling: &beyond, ..honest.clone() }).unwrap();
    assert!(with_it.iter().all(|token| token.margin == 0.0), "a stop token that is none changes nothing");

    let frozen = polylink_protocol::market_v1::Sampling { temperature: 1e-40, ..sampling.clone() };
    let refused = replayer.replay(&ReplayRequest { sampling: &frozen, ..honest.clone() }).unwrap_err();
    assert!(refused.to_string().contains("temperature"), "{refused}");

    let other_seed = replayer.replay(&ReplayRequest { seed: &[78; 32], ..honest.clone() }).unwrap();
    assert!(other_seed.iter().any(|token| token.margin > 0.0), "another seed draws other tokens");
    let mut forged = ids.clone();
    forged[3] = (forged[3] + 1) % 2048;
    let seen = replayer.replay(&ReplayRequest { completion_ids: &forged, ..honest.clone() }).unwrap();
    assert!(seen[3].margin > 0.0 && seen[2].margin == 0.0, "{seen:?}");
    let eight_bit_cache = Computation { precision: Precision::F32, kv_dtype: KvDtype::Int8 };
    for (name, quantization) in [
        ("pico", Precision::F32.into()),
        ("nano", Precision::Q8_0.into()),
        ("nano", Precision::Q4_0.into()),
        ("nano", Computation { precision: Precision::F32, kv_dtype: KvDtype::Bf16 }),
        ("nano", eight_bit_cache),
    ] {
        let mut cheat = Replayer::new(&quantized(name, quantization), BackendKind::Cpu, 1).unwrap();
        let cheating = cheat.replay(&honest).unwrap();
        let differ = cheating.iter().zip(&replayed).filter(|(cheat, honest)| cheat.sketch != honest.sketch).count();
        assert_eq!(differ, ids.len(), "{name} {quantization:?}: every sketch shows it");
    }
    let wrong = replayer.replay(&ReplayRequest { completion_ids: &[1 << 20], ..honest }).unwrap_err();
    assert!(wrong.to_string().contains("vocabulary"), "{wrong}");
}
