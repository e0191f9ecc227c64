//! The evaluators on real answers of the project's own models: an honest worker, one with 8-bit and one with 4-bit
//! weights, and one that serves the smaller model, all claiming the full one in exact f32.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::OnceLock;

use polylink_inference_server::engine::{Engine, EngineConfig, EngineHandle, Event, GenerateRequest, KvCacheSize};
use polylink_inference_server::model::{ChatMessage, LoadedModel, Quantization};
use polylink_judge::transcript::Completion;
use polylink_judge::{Auditor, AuditorConfig, Finding, HeldModel, Transcript};
use polylink_protocol::market;
use polylink_protocol::market_v1::{FinishReason, Receipt, Request, Sampling};

const ID: &str = "polylink/nano@1";
const CLIP_MILLI: u64 = 6_000;

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn questions(n: usize) -> Vec<Vec<ChatMessage>> {
    let text = std::fs::read_to_string(models().join("eval/heldout.jsonl")).unwrap();
    let every = text.lines().count() / n;
    text.lines()
        .step_by(every)
        .take(n)
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            serde_json::from_value(row["messages"].clone()).unwrap()
        })
        .collect()
}

fn sampling(temperature: f32) -> Sampling {
    Sampling {
        temperature,
        top_p: 0.95,
        top_k: 50,
        repetition_penalty: 1.0,
        max_tokens: 40,
        n: 1,
        ..Default::default()
    }
}

fn profile_digest() -> Vec<u8> {
    static DIGEST: OnceLock<Vec<u8>> = OnceLock::new();
    let digest = || {
        let model = LoadedModel::open(models().join("nano"), Quantization::None).unwrap();
        market::profile_digest(&model.profile(ID).unwrap()).to_vec()
    };
    DIGEST.get_or_init(digest).clone()
}

fn engine(folder: &str, quantization: Quantization) -> EngineHandle {
    let model = LoadedModel::open(models().join(folder), quantization).unwrap();
    let config = EngineConfig { threads: 1, kv_cache: KvCacheSize::Bytes(64 << 20), ..Default::default() };
    Engine::start(model, config).unwrap()
}

/// Serves every question at once and packs what came out as a judge would see it.
async fn serve(
    folder: &str,
    quantization: Quantization,
    questions: &[Vec<ChatMessage>],
    temperature: f32,
) -> Vec<Transcript> {
    let (engine, tokens) =
        (engine(folder, quantization), LoadedModel::open(models().join("nano"), Quantization::None).unwrap());
    let mut streams = Vec::new();
    for (index, messages) in questions.iter().enumerate() {
        let request = GenerateRequest {
            prompt_ids: tokens.encode_chat(messages).unwrap(),
            sampling: sampling(temperature),
            seed: [index as u8 + 1; 32],
            tenant: [0; 32],
            priority: 0,
            logprobs: 0,
        };
        streams.push((request.clone(), engine.submit(request).unwrap()));
    }
    let mut transcripts = Vec::new();
    for (request, mut stream) in streams {
        let mut completion = Completion { token_ids: Vec::new(), sketches: Vec::new() };
        while let Some(event) = stream.next().await {
            match event {
                Event::Token(token) => {
                    completion.token_ids.push(token.id);
                    completion.sketches.push(token.sketch);
                }
                Event::Failed { message, .. } => panic!("{message}"),
                Event::Finished { .. } | Event::Done { .. } => {}
            }
        }
        transcripts.push(Transcript {
            request: Request { sampling: Some(request.sampling), seed: request.seed.to_vec(), ..Default::default() },
            receipt: Receipt { profile_digest: profile_digest(), ..Default::default() },
            prompt_ids: request.prompt_ids,
            completions: vec![completion],
        });
    }
    transcripts
}

fn auditor() -> Auditor {
    let config = AuditorConfig {
        models: vec![HeldModel { folder: models().join("nano"), quantization: Quantization::None, id: ID.into() }],
        cross_encoder: models().join("cross-encoder"),
        rubric: models().join("judge_prompt.json"),
        endpoint: None,
        llm_fraction_bps: 0,
        threads: 1,
    };
    Auditor::open(&config).unwrap()
}

fn report(name: &str, findings: &[Finding]) {
    let tokens: u32 = findings.iter().map(|f| f.score.tokens).sum();
    let wrong: u32 = findings.iter().map(|f| f.score.token_mismatches).sum();
    let mut errors: Vec<f64> = findings.iter().map(|f| f.sketch_error).collect();
    errors.sort_by(f64::total_cmp);
    let margin = findings.iter().map(|f| f.margin).fold(0.0, f32::max);
    let caught = findings.iter().filter(|f| f.mismatch).count();
    println!(
        "{name}: {caught} of {} answers differ; {wrong} of {tokens} tokens; largest margin {margin:.3}; sketch error min {:.1e}, median {:.1e}, max {:.1e}",
        findings.len(),
        errors[0],
        errors[errors.len() / 2],
        errors[errors.len() - 1]
    );
}

#[tokio::test]
async fn honest_answers_replay_to_the_bit_and_others_do_not() {
    let mut auditor = auditor();
    for temperature in [0.0, 1.0] {
        let questions = questions(16);
        let honest = serve("nano", Quantization::None, &questions, temperature).await;
        let findings = auditor.evaluate(&honest, CLIP_MILLI).await.unwrap();
        report(&format!("honest f32, temperature {temperature}"), &findings);
        for finding in &findings {
            assert!(!finding.mismatch && finding.margin == 0.0 && finding.sketch_error == 0.0, "{finding:?}");
            assert_eq!(finding.score.evidence_milli, -442);
        }
        for (name, folder, quantization) in [
            ("8-bit", "nano", Quantization::Q8_0),
            ("4-bit", "nano", Quantization::Q4_0),
            ("pico", "pico", Quantization::None),
        ] {
            let cheating = serve(folder, quantization, &questions, temperature).await;
            let findings = auditor.evaluate(&cheating, CLIP_MILLI).await.unwrap();
            report(&format!("{name}, temperature {temperature}"), &findings);
            assert!(findings.iter().all(|f| f.mismatch && f.score.evidence_milli == 6_000), "each answer shows it");
        }
    }
}

#[tokio::test]
async fn one_forward_serves_transcripts_of_several_workers() {
    let mut auditor = auditor();
    let mut mixed = serve("nano", Quantization::None, &questions(5), 0.0).await;
    mixed.extend(serve("pico", Quantization::None, &questions(4), 0.0).await);
    let before = auditor.cross_encoder.forwards();
    let findings = auditor.evaluate(&mixed, CLIP_MILLI).await.unwrap();
    assert_eq!(findings.len(), 9);
    assert_eq!(auditor.cross_encoder.forwards() - before, 1, "one batch, whoever served them");
}

#[tokio::test]
async fn cheap_tokens_under_honest_sketches_and_the_reverse_are_noticed() {
    let mut auditor = auditor();
    let questions = questions(8);
    let honest = serve("nano", Quantization::None, &questions, 1.0).await;
    let cheap = serve("pico", Quantization::None, &questions, 1.0).await;
    // The smaller model's tokens, then a prefill of them by the declared model for the sketches.
    let model = LoadedModel::open(models().join("nano"), Quantization::None).unwrap();
    let mut declared = polylink_judge::replay::LocalReplay::open(&model, 1).unwrap();
    let mut caught = 0;
    for transcript in cheap {
        let mut forged = transcript.clone();
        let tokens = polylink_judge::replay::Replay::replay(&mut declared, &transcript, 0).unwrap();
        forged.completions[0].sketches = tokens.iter().map(|t| t.sketch).collect();
        let finding = auditor.evaluate(&[forged], CLIP_MILLI).await.unwrap().remove(0);
        assert_eq!(finding.sketch_error, 0.0);
        caught += usize::from(finding.mismatch);
    }
    println!("cheap tokens under honest sketches: {caught} of 8 answers differ");
    assert!(caught > 0, "tokens give it away where the models disagree");
    let mut altered = honest[0].clone();
    altered.completions[0].token_ids[0] ^= 1;
    assert!(auditor.evaluate(&[altered], CLIP_MILLI).await.unwrap()[0].mismatch);
    let mut cut = honest[0].clone();
    cut.completions[0].token_ids.pop();
    cut.completions[0].sketches.pop();
    assert!(auditor.evaluate(&[cut.clone()], CLIP_MILLI).await.unwrap()[0].mismatch, "cut short");
    cut.receipt.finish_reason = FinishReason::Cancelled as i32;
    assert!(!auditor.evaluate(&[cut], CLIP_MILLI).await.unwrap()[0].mismatch, "its user went away");
    let mut outside = honest[0].clone();
    outside.completions[0].token_ids[0] = u32::MAX;
    assert!(auditor.evaluate(&[outside], CLIP_MILLI).await.unwrap()[0].mismatch);
}
