//! The engine on a GPU: the CPU's bits for the exact profiles, for every architecture; and how far apart the draws of
//! products of bf16 are between a GPU and a CPU, which is what a judge's margins have to allow for.

use std::time::Instant;

use polylink_inference_server::engine::{BackendKind, Engine, EngineConfig, ReplayRequest, Replayer};
use polylink_inference_server::model::{Computation, KvDtype, LoadedModel, Precision};
use polylink_protocol::market_v1::Sampling;

use crate::ahead::{mixed, steps};
use crate::architectures::{assert_as_good_as_transformers, bits_of, logits};
use crate::determinism::{bits, under_load};
use crate::support::*;
use crate::tiny::{FileType, goldens};

/// Whether there is a GPU; says so if not.
fn there_is_a_gpu() -> bool {
    match Replayer::new(&model("pico"), BackendKind::Cuda, 1) {
        Ok(_) => true,
        Err(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}

#[test]
fn every_architecture_has_a_cpus_bits_on_a_gpu() {
    if !there_is_a_gpu() {
        return;
    }
    let mut wrong = Vec::new();
    for golden in goldens() {
        for precision in [Precision::F32, Precision::Q8_0] {
            let model = golden.open(FileType::Bf16, precision);
            let on = |kind| {
                let tokens = [golden.tokens("prompt"), golden.tokens("greedy")].concat();
                let mut replayer = Replayer::new(&model, kind, 2).map_err(|error| error.to_string())?;
                replayer.logits(&tokens[..1], &tokens[1..]).map_err(|error| error.to_string())
            };
            match (on(BackendKind::Cuda), on(BackendKind::Cpu)) {
                (Ok(gpu), Ok(cpu)) => {
                    let (gpu, cpu) = (bits_of(&gpu), bits_of(&cpu));
                    let different = gpu.iter().zip(&cpu).filter(|(gpu, cpu)| gpu != cpu).count();
                    if different > 0 || gpu.len() != cpu.len() {
                        wrong.push(format!("{} {precision:?}: {different} of {} logits", golden.name, cpu.len()));
                    }
                }
                (gpu, _) => wrong.push(format!("{} {precision:?}: {:?}", golden.name, gpu.err())),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bf16_on_a_gpu_is_as_near_to_f64_as_transformers() {
    if !there_is_a_gpu() {
        return;
    }
    for golden in goldens() {
        let computation = Computation { precision: Precision::TensorBf16, kv_dtype: KvDtype::F32 };
        let found = logits(&golden.open(FileType::Bf16, computation), &golden, BackendKind::Cuda);
        assert_as_good_as_transformers(&found, &golden, "bf16");
    }
}

#[test]
fn an_engine_on_a_gpu_gives_a_cpus_bits_whatever_runs_beside() {
    if !there_is_a_gpu() {
        return;
    }
    for computation in [
        Computation::from(Precision::F32),
        Computation::from(Precision::Q8_0),
        Computation { precision: Precision::Q4_0, kv_dtype: KvDtype::Int8 },
        Computation { precision: Precision::F32, kv_dtype: KvDtype::Bf16 },
    ] {
        let start = |backend| {
            let config = EngineConfig { backend, max_running: 32, ..small() };
            Engine::start(quantized("nano", computation), config).unwrap()
        };
        let probe = || {
            let mut probe = request(prompt(1, 70), noisy(), 3);
            probe.logprobs = Some(20);
            probe
        };
        let cpu = run(&start(BackendKind::Cpu), probe());
        let engine = start(BackendKind::Cuda);
        assert_eq!(bits(&run(&engine, probe())), bits(&cpu), "{computation:?}: alone");
        assert_eq!(bits(&under_load(&engine, probe())), bits(&cpu), "{computation:?}: under load, after a prefix hit");
        let again = start(BackendKind::Cuda);
        assert_eq!(bits(&under_load(&again, probe())), bits(&cpu), "{computation:?}: under load");
    }
}

#[test]
fn an_engine_on_a_gpu_plans_ahead_and_answers_as_a_cpu() {
    if !there_is_a_gpu() {
        return;
    }
    for precision in [Precision::F32, Precision::Q8_0] {
        let start = |config| Engine::start(quantized("pico", precision), config).unwrap();
        let cpu = start(small());
        let expected: Vec<_> = mixed().into_iter().map(|request| bits(&run(&cpu, request))).collect();
        let engine = start(EngineConfig { backend: BackendKind::Cuda, max_running: 32, ..small() });
        let streams: Vec<_> = mixed().into_iter().map(|request| engine.submit(request).unwrap()).collect();
        for ((stream, expected), request) in streams.into_iter().zip(&expected).zip(mixed()) {
            assert_eq!(&bits(&collect(stream)), expected, "{precision:?}: {request:?}");
        }
        let (all, ahead) = steps(&engine);
        println!("{precision:?}: {ahead} of {all} steps were planned ahead");
        run(&engine, mixed().swap_remove(0));
        assert!(steps(&engine).1 >= ahead + 30, "an answer of forty tokens, alone");
    }
}

/// Tokens of one answer, and their margins on a replayer.
fn margins(replayer: &mut Replayer, prompt: &[u32], ids: &[u32], sampling: &Sampling, seed: u8) -> Vec<f32> {
    let seed = [seed; 32];
    let request =
        ReplayRequest { prompt_ids: prompt, completion_ids: ids, sampling, grammar: None, seed: &seed, choice: 0 };
    replayer.replay(&request).unwrap().iter().map(|token| token.margin).collect()
}

#[test]
fn margins_of_bf16_between_devices_and_batches() {
    if !there_is_a_gpu() {
        return;
    }
    let open = |precision| -> LoadedModel { quantized("nano", Computation { precision, kv_dtype: KvDtype::Bf16 }) };
    let (gpu, cpu) = (open(Precision::TensorBf16), open(Precision::Bf16));
    let config =
        EngineConfig { backend: BackendKind::Cuda, max_running: 64, token_budget: 512, ..EngineConfig::default() };
    let engine = Engine::start(gpu.clone(), config).unwrap();
    let sampling = Sampling { temperature: 1.0, max_tokens: 96, ..sampling() };
    let questions =
        ["Sort these numbers: 31, 4, 15, 9.", "What is the capital of France?", "Write a short poem about rain."];
    let prompts: Vec<Vec<u32>> =
        (0..48).map(|i| chat(&gpu, &format!("{} ({i})", questions[i % questions.len()]))).collect();
    let begun = Instant::now();
    let streams: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| engine.submit(request(prompt.clone(), sampling.clone(), i as u8)).unwrap())
        .collect();
    let answers: Vec<Vec<u32>> = streams.into_iter().map(|stream| collect(stream).choices[0].ids()).collect();
    let seconds = begun.elapsed().as_secs_f64();
    let tokens: usize = answers.iter().map(Vec::len).sum();
    println!("{tokens} tokens of 48 answers in {seconds:.2} s on the GPU");
    let mut on_gpu = Replayer::new(&gpu, BackendKind::Cuda, 1).unwrap();
    let mut on_cpu = Replayer::new(&cpu, BackendKind::Cpu, 8).unwrap();
    for (name, replayer) in [("another batch of the GPU", &mut on_gpu), ("a CPU", &mut on_cpu)] {
        let mut all: Vec<f32> = Vec::with_capacity(tokens);
        for (i, (prompt, ids)) in prompts.iter().zip(&answers).enumerate() {
            all.extend(margins(replayer, prompt, ids, &sampling, i as u8));
        }
        all.sort_by(f32::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        let exact = all.iter().filter(|margin| **margin == 0.0).count();
        println!(
            "margins against {name}: {exact} of {} are 0; 99 % {:.4}, 99.9 % {:.4}, largest {:.4}",
            all.len(),
            at(0.99),
            at(0.999),
            at(1.0),
        );
        if name.contains("GPU") {
            assert_eq!(exact, all.len(), "a replay in another batch draws other tokens");
        } else {
            assert!(exact * 100 >= all.len() * 95, "{exact} of {} draws are the same on a CPU", all.len());
        }
    }
}
