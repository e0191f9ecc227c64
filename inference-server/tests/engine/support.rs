//! Models, requests and answers for the tests.

use std::path::PathBuf;

use polylink_inference_server::engine::{
    BackendKind, Engine, EngineConfig, EngineHandle, Event, FinishReason, GenerateRequest, KvCacheSize, PromptToken,
    RequestStream, TokenEvent, Usage,
};
use polylink_inference_server::model::{ChatMessage, Computation, LoadedModel, Precision};
use polylink_protocol::market_v1::Sampling;

/// A folder of the project's own models.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models").join(name)
}

/// A model of the project.
pub fn model(name: &str) -> LoadedModel {
    quantized(name, Precision::F32)
}

pub fn quantized(name: &str, computation: impl Into<Computation>) -> LoadedModel {
    LoadedModel::open(folder(name), computation).unwrap()
}

/// One thread, few blocks: small and quick.
pub fn small() -> EngineConfig {
    EngineConfig {
        threads: 1,
        kv_cache: KvCacheSize::Blocks(128),
        backend: BackendKind::Cpu,
        ..EngineConfig::default()
    }
}

pub fn start(name: &str, config: EngineConfig) -> EngineHandle {
    Engine::start(model(name), config).unwrap()
}

/// Greedy, 16 tokens, end tokens ignored.
pub fn sampling() -> Sampling {
    Sampling { top_p: 1.0, repetition_penalty: 1.0, max_tokens: 16, n: 1, ignore_eos: true, ..Sampling::default() }
}

/// With noise and every kind of cut-off and penalty.
pub fn noisy() -> Sampling {
    Sampling {
        temperature: 1.1,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        ..sampling()
    }
}

pub fn request(prompt_ids: Vec<u32>, sampling: Sampling, seed: u8) -> GenerateRequest {
    GenerateRequest {
        prompt_ids,
        sampling,
        seed: [seed; 32],
        tenant: [1; 32],
        priority: 0,
        logprobs: Some(0),
        prompt_logprobs: None,
        grammar: None,
    }
}

/// A prompt of `length` tokens that depends on `salt` from its first token on.
pub fn prompt(salt: u32, length: u32) -> Vec<u32> {
    (0..length).map(|i| 100 + (salt * 7919 + i * 31) % 1500).collect()
}

pub fn chat(model: &LoadedModel, content: &str) -> Vec<u32> {
    model.encode_chat(&[ChatMessage::new("user", content)]).unwrap()
}

/// All that came of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub prompt: Vec<PromptToken>,
    pub choices: Vec<Choice>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    pub tokens: Vec<TokenEvent>,
    pub reason: Option<FinishReason>,
}

impl Choice {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Reads a stream to its end, checking the order of events.
pub fn collect(mut stream: RequestStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Prompt(token) => {
                assert!(answer.choices.is_empty(), "the prompt comes before all tokens");
                answer.prompt.push(token);
            }
            Event::Token(token) => {
                let choice = choice(&mut answer, token.choice);
                assert_eq!(choice.reason, None, "no token after the end of a choice");
                choice.tokens.push(token);
            }
            Event::Finished { choice: index, reason } => {
                let choice = choice(&mut answer, index);
                assert_eq!(choice.reason, None, "a choice ends once");
                choice.reason = Some(reason);
            }
            Event::Done { usage } => answer.usage = usage,
            Event::Failed { code, message } => panic!("{code:?}: {message}"),
        }
    }
    assert!(answer.choices.iter().all(|choice| choice.reason.is_some()));
    let given: usize = answer.choices.iter().map(|choice| choice.tokens.len()).sum();
    assert_eq!(answer.usage.completion_tokens as usize, given);
    answer
}

fn choice(answer: &mut Answer, index: u32) -> &mut Choice {
    let index = index as usize;
    if answer.choices.len() <= index {
        answer.choices.resize(index + 1, Choice::default());
    }
    &mut answer.choices[index]
}

pub fn run(engine: &EngineHandle, request: GenerateRequest) -> Answer {
    collect(engine.submit(request).unwrap())
}
