//! Real answers of the project's own models, packed as a judge sees them, and the judge's evaluators.
#![allow(clippy::unwrap_used, dead_code, reason = "each test crate uses its own part")]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use polylink_inference_server::engine::{Engine, EngineConfig, EngineHandle, Event, GenerateRequest, KvCacheSize};
use polylink_inference_server::model::{ChatMessage, LoadedModel, Precision};
use polylink_judge::llm::Endpoint;
use polylink_judge::transcript::Completion;
use polylink_judge::{Auditor, AuditorConfig, Case, Finding, HeldModel, Transcript};
use polylink_protocol::market_v1::{Receipt, Request, Sampling};
use polylink_protocol::{Digest, market};
use tokio::time::Instant;

pub const ID: &str = "polylink/nano@1";
pub const CLIP_MILLI: u64 = 6_000;

pub fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models")
}

pub fn questions(n: usize) -> Vec<Vec<ChatMessage>> {
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

pub fn sampling(temperature: f32) -> Sampling {
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

pub fn profile_digest() -> Vec<u8> {
    static DIGEST: OnceLock<Vec<u8>> = OnceLock::new();
    DIGEST.get_or_init(|| profile_of(Precision::F32)).clone()
}

/// The profile of nano with these weights.
pub fn profile_of(quantization: Precision) -> Vec<u8> {
    let model = LoadedModel::open(models().join("nano"), quantization).unwrap();
    market::profile_digest(&model.profile(ID).unwrap()).to_vec()
}

pub fn engine(folder: &str, quantization: Precision) -> EngineHandle {
    let model = LoadedModel::open(models().join(folder), quantization).unwrap();
    let config = EngineConfig { threads: 1, kv_cache: KvCacheSize::Bytes(64 << 20), ..Default::default() };
    Engine::start(model, config).unwrap()
}

/// Serves every question at once and packs what came out as a judge would see it.
pub async fn serve(
    folder: &str,
    quantization: Precision,
    questions: &[Vec<ChatMessage>],
    temperature: f32,
) -> Vec<Transcript> {
    let (engine, tokens) =
        (engine(folder, quantization), LoadedModel::open(models().join("nano"), Precision::F32).unwrap());
    let mut streams = Vec::new();
    for (index, messages) in questions.iter().enumerate() {
        let request = GenerateRequest {
            prompt_ids: tokens.encode_chat(messages).unwrap(),
            sampling: sampling(temperature),
            seed: [index as u8 + 1; 32],
            tenant: [0; 32],
            priority: 0,
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
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
                Event::Prompt(_) | Event::Finished { .. } | Event::Done { .. } => {}
            }
        }
        transcripts.push(Transcript {
            request: Request { sampling: Some(request.sampling), seed: request.seed.to_vec(), ..Default::default() },
            receipt: Receipt {
                profile_digest: profile_digest(),
                index: transcripts.len() as u64,
                ..Default::default()
            },
            prompt_ids: request.prompt_ids,
            grammar: None,
            completions: vec![completion],
        });
    }
    transcripts
}

/// Serves a transcript's request again, by the declared model.
pub async fn serve_request(transcript: &Transcript) -> Transcript {
    let engine = engine("nano", Precision::F32);
    let request = GenerateRequest {
        prompt_ids: transcript.prompt_ids.clone(),
        sampling: transcript.sampling().clone(),
        seed: transcript.seed(),
        tenant: [0; 32],
        priority: 0,
        logprobs: None,
        prompt_logprobs: None,
        grammar: transcript.grammar.clone(),
    };
    let mut stream = engine.submit(request).unwrap();
    let none = Completion { token_ids: Vec::new(), sketches: Vec::new() };
    let mut completions = vec![none; transcript.sampling().n as usize];
    while let Some(event) = stream.next().await {
        match event {
            Event::Token(token) => {
                let completion = &mut completions[token.choice as usize];
                completion.token_ids.push(token.id);
                completion.sketches.push(token.sketch);
            }
            Event::Failed { message, .. } => panic!("{message}"),
            Event::Prompt(_) | Event::Finished { .. } | Event::Done { .. } => {}
        }
    }
    Transcript { completions, ..transcript.clone() }
}

pub fn auditor() -> Auditor {
    auditor_with(&[Precision::F32], None, 0)
}

/// That holds nano's profiles with these weights.
pub fn auditor_with(weights: &[Precision], endpoint: Option<Endpoint>, llm_fraction_bps: u32) -> Auditor {
    let held = |precision: Precision| HeldModel {
        folder: models().join("nano"),
        computation: precision.into(),
        id: ID.into(),
    };
    let config = AuditorConfig {
        models: weights.iter().copied().map(held).collect(),
        cross_encoder: models().join("cross-encoder"),
        rubric: models().join("judge_prompt.json"),
        endpoint,
        llm_fraction_bps,
        threads: 1,
    };
    Auditor::open(&config).unwrap()
}

/// Far away: what these tests ask for is there long before.
pub fn in_time() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

pub fn cases(transcripts: &[Transcript]) -> Vec<Case> {
    transcripts.iter().map(|t| Case { transcript: t.clone(), beacon: Digest([1; 32]) }).collect()
}

pub async fn evaluate(auditor: &Auditor, transcripts: &[Transcript]) -> Vec<Finding> {
    auditor.evaluate(cases(transcripts), CLIP_MILLI, in_time()).await.unwrap()
}

pub async fn evaluate_one(auditor: &Auditor, transcript: Transcript) -> Finding {
    evaluate(auditor, &[transcript]).await.remove(0)
}
