//! Whole rows of logits, every bit of them: the same alone, beside 16 others, in chunks of 16 tokens, after a prefix hit,
//! after a forced preemption, on one and on two threads, and the same as a judge's replay computes.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use polylink_inference_server::engine::{
    BackendKind, Engine, EngineConfig, EngineHandle, GenerateRequest, KvCacheSize, LogitsTap, Replayer,
};
use polylink_inference_server::model::Precision;
use polylink_protocol::market_v1::Sampling;
use polylink_protocol::noise::{NoiseKey, noise_key};

use crate::support::*;

/// The probe's seed, which no other request has.
const SEED: u8 = 203;

/// The probe's rows in the order of their tokens, bit for bit.
type Rows = Vec<Vec<u32>>;

/// What the tap saw: whose row, which token's, its bits (kept of the probe only).
type Seen = Arc<Mutex<Vec<(NoiseKey, usize, Vec<u32>)>>>;

/// An engine whose logits are looked at.
struct Tapped {
    engine: EngineHandle,
    seen: Seen,
}

fn probe_key() -> NoiseKey {
    noise_key(&[SEED; 32], 0)
}

fn probe() -> GenerateRequest {
    // First among those that wait, so that it is not alone at the end where only 16 run at once.
    GenerateRequest { priority: 1, ..request(prompt(1, 70), noisy(), SEED) }
}

/// Long enough that they still run when the probe ends.
fn longer() -> Sampling {
    Sampling { max_tokens: 64, ..noisy() }
}

impl Tapped {
    fn new(quantization: Precision, config: EngineConfig) -> Self {
        let seen = Seen::default();
        let log = Arc::clone(&seen);
        let tap = LogitsTap::new(move |row| {
            let ours = row.noise_key == probe_key();
            let bits = if ours { row.logits.iter().map(|logit| logit.to_bits()).collect() } else { Vec::new() };
            log.lock().unwrap().push((row.noise_key, row.index, bits));
        });
        let config = EngineConfig { logits_tap: Some(tap), ..config };
        Self { engine: Engine::start(quantized("nano", quantization), config).unwrap(), seen }
    }

    /// Runs the probe beside `others` other requests; returns its rows, its answer, and how many others drew tokens
    /// between its first and its last one.
    fn run(&self, others: u32) -> (Rows, Answer, usize) {
        self.seen.lock().unwrap().clear();
        let others: Vec<_> = (0..others)
            .map(|i| self.engine.submit(request(prompt(50 + i, 5 + 3 * i), longer(), i as u8)).unwrap())
            .collect();
        let answer = run(&self.engine, probe());
        others.into_iter().for_each(|stream| drop(collect(stream)));
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        let ours = |(key, ..): &(NoiseKey, usize, Vec<u32>)| *key == probe_key();
        let (first, last) = (seen.iter().position(ours).unwrap(), seen.iter().rposition(ours).unwrap());
        let beside: BTreeSet<u64> = seen[first..=last].iter().filter(|row| !ours(row)).map(|row| row.0.0).collect();
        let mut rows = Rows::new();
        for (_, index, bits) in seen.into_iter().filter(ours) {
            assert_eq!(index, rows.len(), "one row per token, in order");
            rows.push(bits);
        }
        assert_eq!(rows.len(), answer.choices[0].tokens.len());
        assert!(rows.iter().all(|row| row.len() == 2_048), "whole rows");
        (rows, answer, beside.len())
    }
}

/// Which tokens differ, and in how many logits: what a failure should say.
fn assert_same(rows: &Rows, alone: &Rows, when: &str) {
    assert_eq!(rows.len(), alone.len(), "{when}");
    let differ = |(a, b): (&Vec<u32>, &Vec<u32>)| a.iter().zip(b).filter(|(a, b)| a != b).count();
    let differ: Vec<usize> = rows.iter().zip(alone).map(differ).collect();
    assert!(differ.iter().all(|n| *n == 0), "{when}: logits that differ, by token: {differ:?}");
}

fn full_logits_are_the_same(quantization: Precision) {
    let (alone, answer, beside) = Tapped::new(quantization, small()).run(0);
    assert_eq!((alone.len(), beside), (16, 0));
    let distinct: BTreeSet<_> = alone.iter().collect();
    assert_eq!(distinct.len(), alone.len(), "every token has logits of its own");

    for threads in [1, 2] {
        for (budget, beside_min) in [(256, 16), (16, 4)] {
            // Room for all of them at once, and for the probe's prefix afterwards.
            let kv_cache = KvCacheSize::Blocks(512);
            let config = EngineConfig { threads, token_budget: budget, max_running: 32, kv_cache, ..small() };
            let tapped = Tapped::new(quantization, config);
            let when = format!("{quantization:?}, {threads} threads, token budget {budget}");
            let (rows, _, beside) = tapped.run(16);
            assert!(beside >= beside_min, "{when}: only {beside} others ran beside the probe");
            println!("{when}: {beside} others drew tokens beside the probe");
            assert_same(&rows, &alone, &format!("{when}, under load"));
            let (rows, again, _) = tapped.run(0);
            assert!(again.usage.cached_tokens >= 32, "{when}: no prefix hit: {:?}", again.usage);
            assert_same(&rows, &alone, &format!("{when}, after a prefix hit"));
        }
    }
    assert_same(&preempted(quantization), &alone, &format!("{quantization:?}, after a preemption"));

    let mut replayer = Replayer::new(&quantized("nano", quantization), BackendKind::Cpu, 1).unwrap();
    let replayed = replayer.logits(&prompt(1, 70), &answer.choices[0].ids()).unwrap();
    let replayed: Rows = replayed.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect();
    assert_same(&replayed, &alone, &format!("{quantization:?}, replayed"));
}

/// The probe's rows when it was thrown out of the KV cache on the way.
fn preempted(quantization: Precision) -> Rows {
    let block_tokens = start("nano", small()).info().block_tokens;
    // Room for the probe and hardly anything else; the others come first, so the probe is the worst.
    let blocks = 86_usize.div_ceil(block_tokens) + 2;
    let config = EngineConfig { kv_cache: KvCacheSize::Blocks(blocks), prefix_cache: false, ..small() };
    let tapped = Tapped::new(quantization, config);
    for attempt in 0..20 {
        let other = |salt| request(prompt(salt, block_tokens as u32 - 3), noisy(), 9);
        let first = tapped.engine.submit(other(90 + attempt)).unwrap();
        let second = tapped.engine.submit(other(60 + attempt)).unwrap();
        let (rows, ..) = tapped.run(0);
        collect(first);
        collect(second);
        if tapped.engine.metrics().preemptions.load(Ordering::Relaxed) > 0 {
            return rows;
        }
    }
    panic!("nothing was preempted: the test forces nothing");
}

#[test]
fn full_logits_have_the_same_bits_in_f32() {
    full_logits_are_the_same(Precision::F32);
}

#[test]
fn full_logits_have_the_same_bits_in_q8_0() {
    full_logits_are_the_same(Precision::Q8_0);
}
