//! Steps that are submitted while the one before is computed: the same answers, and nothing is lost when they end meanwhile.
//!
//! A GPU computes so. Here the real CPU backend does, behind a queue of results that are handed over when they are waited for.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use polylink_inference_server::engine::{
    Engine, EngineConfig, EngineHandle, Event, FinishReason, GenerateRequest, KvCacheSize,
};
use polylink_kernels::{
    Backend, BackendError, Collective, KRanges, KvLayout, KvSpec, Limits, Part, Program, Step, StepOutput, Ticket,
    WeightForm, WeightId,
};
use polylink_protocol::market::grammar_digest;
use polylink_protocol::market_v1::Sampling;

use crate::determinism::bits;
use crate::support::*;

/// A backend that hands results over when they are waited for, and takes a second step before that.
pub struct Queued {
    pub inner: Box<dyn Backend>,
    /// Of what is under way: its ticket, whether it is a forward step, and what came of it.
    results: VecDeque<(Ticket, bool, StepOutput)>,
}

impl Queued {
    pub fn over(inner: Box<dyn Backend>) -> Self {
        Self { inner, results: VecDeque::new() }
    }
}

impl Backend for Queued {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<WeightId, BackendError> {
        self.inner.prepare(parts, ranges, form)
    }
    fn kv_layout(&self, spec: &KvSpec) -> KvLayout {
        self.inner.kv_layout(spec)
    }
    fn build(&mut self, program: Program, limits: Limits, collective: Box<dyn Collective>) -> Result<(), BackendError> {
        self.inner.build(program, limits, collective)
    }
    fn depth(&self) -> usize {
        2
    }
    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError> {
        let forward = matches!(step, Step::Forward(_));
        let before = self.results.iter().filter(|(_, forward, _)| *forward).count();
        assert!(!forward || before < 2, "two steps are under way already");
        let ticket = self.inner.submit(step)?;
        let mut output = StepOutput::default();
        self.inner.wait(ticket, &mut output)?;
        self.results.push_back((ticket, forward, output));
        Ok(ticket)
    }
    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
        let (oldest, forward, result) = self.results.pop_front().expect("it was submitted, and not waited for yet");
        assert_eq!(oldest, ticket, "steps are waited for as they were submitted");
        if forward {
            (output.sketches, output.logits) = (result.sketches, result.logits);
        } else {
            output.samples = result.samples;
        }
        Ok(())
    }
}

fn ahead(name: &str, config: EngineConfig) -> EngineHandle {
    Engine::start_over(model(name), config, |inner| Box::new(Queued::over(inner))).unwrap()
}

/// Steps, and those of them that were submitted while the one before ran.
pub fn steps(engine: &EngineHandle) -> (u64, u64) {
    let metrics = engine.metrics();
    (metrics.steps.load(Ordering::Relaxed), metrics.steps_ahead.load(Ordering::Relaxed))
}

/// Noise and cut-offs, but nothing that depends on which tokens were drawn before.
fn plain() -> Sampling {
    Sampling { repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, max_tokens: 40, ..noisy() }
}

fn asked(salt: u32, sampling: Sampling) -> GenerateRequest {
    GenerateRequest { logprobs: Some(salt % 4), ..request(prompt(salt, 5 + 7 * (salt % 9)), sampling, salt as u8) }
}

/// One whose answer is an integer.
fn integer(salt: u32) -> GenerateRequest {
    let schema = r#"json:{"type":"integer"}"#;
    let sampling = Sampling { grammar_digest: grammar_digest(Some(schema)), ..plain() };
    GenerateRequest { grammar: Some(schema.into()), ..asked(salt, sampling) }
}

/// One whose answer ends by itself.
fn question(salt: u32) -> GenerateRequest {
    let prompt_ids = chat(&model("pico"), &format!("What is {} plus {salt}?", salt * 3));
    let sampling = Sampling { ignore_eos: false, max_tokens: 100, ..plain() };
    GenerateRequest { prompt_ids, ..asked(salt, sampling) }
}

/// Requests of every kind, to pico.
pub fn mixed() -> Vec<GenerateRequest> {
    let mut requests: Vec<_> = (0..12).map(|salt| asked(salt, plain())).collect();
    requests.extend((0..6).map(question));
    requests.push(asked(21, Sampling { ignore_eos: false, min_tokens: 30, max_tokens: 60, ..plain() }));
    requests.push(asked(22, Sampling { n: 4, ..plain() }));
    requests.extend((1..4).map(|max_tokens| asked(22 + max_tokens, Sampling { max_tokens, ..plain() })));
    requests.push(asked(26, Sampling { max_tokens: 0, ..plain() }));
    requests.push(asked(27, noisy()));
    requests.push(integer(28));
    requests.push(GenerateRequest { prompt_logprobs: Some(2), ..asked(29, plain()) });
    requests
}

#[test]
fn answers_are_those_of_one_step_at_a_time() {
    let alone = start("pico", small());
    let expected: Vec<_> = mixed().into_iter().map(|request| run(&alone, request)).collect();
    assert_eq!(steps(&alone).1, 0, "a CPU computes one step at a time");
    let block_tokens = alone.info().block_tokens;
    let tight = KvCacheSize::Blocks(3 * 110_usize.div_ceil(block_tokens));
    for (config, preempts) in [
        (EngineConfig { max_running: 32, ..small() }, false),
        (EngineConfig { max_running: 3, token_budget: 8, ..small() }, false),
        (EngineConfig { max_running: 32, kv_cache: tight, ..small() }, true),
    ] {
        let engine = ahead("pico", config.clone());
        let streams: Vec<_> = mixed().into_iter().map(|request| engine.submit(request).unwrap()).collect();
        for ((stream, expected), request) in streams.into_iter().zip(&expected).zip(mixed()) {
            let answer = collect(stream);
            assert_eq!(bits(&answer), bits(expected), "{config:?}: {request:?}");
            assert_eq!(answer.choices, expected.choices, "{config:?}: {request:?}");
            assert_eq!(answer.prompt, expected.prompt, "{config:?}: {request:?}");
        }
        let preemptions = engine.metrics().preemptions.load(Ordering::Relaxed);
        assert_eq!(preemptions > 0, preempts, "{preemptions} preemptions");
    }
}

#[test]
fn whoever_only_draws_is_planned_ahead_until_its_last_token() {
    let engine = ahead("pico", small());
    let answer = run(&engine, asked(3, plain()));
    assert_eq!(answer.choices[0].tokens.len(), 40);
    // The prompt's step, and one for each further token, of which none is computed in vain.
    assert_eq!(steps(&engine), (40, 39));
    // Held back until the very token before its last one, an answer ends where it does by itself.
    let natural = run(&engine, question(4));
    let tokens = natural.choices[0].tokens.len() as u32;
    let mut held_back = question(4);
    held_back.sampling.min_tokens = tokens - 1;
    assert_eq!(run(&engine, held_back.clone()).choices, natural.choices);
    held_back.sampling.min_tokens = tokens;
    assert_ne!(run(&engine, held_back).choices, natural.choices);
    let before = steps(&engine).1;
    // What depends on its tokens, is not.
    run(&engine, asked(3, noisy()));
    assert_eq!(steps(&engine).1, before, "penalties");
    run(&engine, integer(3));
    assert_eq!(steps(&engine).1, before, "a grammar");
}

#[test]
fn who_goes_away_or_ends_while_its_next_step_runs_leaves_nothing_behind() {
    let engine = ahead("pico", EngineConfig { max_running: 6, ..small() });
    let alone = start("pico", small());
    let long = Sampling { max_tokens: 300, ..plain() };
    for round in 0..6 {
        let mut streams: Vec<_> = (0..6).map(|salt| engine.submit(asked(40 + salt, long.clone())).unwrap()).collect();
        for stream in &mut streams {
            assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
        }
        // Two stay; others take the places of those that go, and their blocks and slots with them.
        let (mut stays, goes) = (streams.split_off(4), streams);
        drop(goes);
        let newcomers: Vec<_> = (0..8).map(|salt| (salt, engine.submit(asked(60 + salt, plain())).unwrap())).collect();
        for (salt, stream) in newcomers {
            assert_eq!(collect(stream).choices, run(&alone, asked(60 + salt, plain())).choices, "round {round}");
        }
        for stream in &mut stays {
            let last = std::iter::from_fn(|| stream.blocking_next()).last();
            assert!(matches!(last, Some(Event::Done { .. })), "{last:?}");
        }
    }
    let stopped = (0..10).map(|salt| run(&engine, question(salt)));
    let stopped = stopped.filter(|answer| answer.choices[0].reason == Some(FinishReason::Stop)).count();
    assert!(stopped > 3, "{stopped} of 10 drew an end token");
    let (all, ahead) = steps(&engine);
    assert!(2 * ahead > all, "{ahead} of {all} steps");
    assert_eq!(engine.metrics().kv_blocks_used.load(Ordering::Relaxed), 0);
}
