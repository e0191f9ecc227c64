//! What goes wrong fails the requests concerned with a clear error, and the engine goes on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use polylink_inference_server::engine::{
    Engine, EngineConfig, EngineHandle, EngineStatus, Event, FailureCode, FinishReason, KvCacheSize,
};
use polylink_kernels::{
    Backend, BackendError, Collective, ForwardStep, KRanges, KvLayout, KvSpec, Limits, Part, Program, Step, StepOutput,
    Ticket, WeightForm, WeightId,
};
use polylink_protocol::market_v1::Sampling;

use crate::ahead::Queued;
use crate::support::*;

/// What goes wrong in the forward steps to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The last entry of the step's block tables names a block that there is not.
    BlockTable,
    /// The sequence's table is too short.
    ShortTable,
    /// A kernel panics outside of the threads that catch it.
    Panic,
    /// A thread of the pool panicked.
    Poisoned,
}

/// The real backend, with faults on order.
struct Faulty {
    inner: Box<dyn Backend>,
    fault: Arc<Mutex<Fault>>,
}

impl Backend for Faulty {
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
    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError> {
        let Step::Forward(forward) = step else { return self.inner.submit(step) };
        let fault = *self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut tables = forward.block_tables.to_vec();
        match fault {
            Fault::None => return self.inner.submit(step),
            Fault::BlockTable => *tables.last_mut().unwrap() = u32::MAX - 1,
            Fault::ShortTable => drop(tables.pop()),
            Fault::Panic => panic!("a defect in a kernel, on order"),
            Fault::Poisoned => return Err(BackendError::Poisoned),
        }
        self.inner.submit(&Step::Forward(ForwardStep { block_tables: &tables, ..*forward }))
    }
    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
        self.inner.wait(ticket, output)
    }
}

/// The engine, its fault, and how often its backend was built. `ahead`: it takes a step while it computes one.
fn faulty(config: EngineConfig, ahead: bool) -> (EngineHandle, Arc<Mutex<Fault>>, Arc<AtomicU32>) {
    let (fault, built) = (Arc::new(Mutex::new(Fault::None)), Arc::new(AtomicU32::new(0)));
    let (on_order, count) = (Arc::clone(&fault), Arc::clone(&built));
    let engine = Engine::start_over(model("pico"), config, move |inner| {
        count.fetch_add(1, Ordering::Relaxed);
        let faulty = Box::new(Faulty { inner, fault: Arc::clone(&on_order) });
        if ahead { Box::new(Queued::over(faulty)) } else { faulty }
    });
    (engine.unwrap(), fault, built)
}

#[test]
fn faults_of_a_step_fail_its_requests_and_the_engine_goes_on() {
    for (fault, says, builds, ahead) in [
        (Fault::BlockTable, "a block beyond", 1, false),
        (Fault::ShortTable, "block table", 1, false),
        (Fault::Panic, "panicked", 2, false),
        (Fault::Poisoned, "panicked", 2, false),
        (Fault::BlockTable, "a block beyond", 1, true),
        (Fault::Panic, "panicked", 2, true),
    ] {
        let (engine, order, built) = faulty(EngineConfig { max_running: 2, ..small() }, ahead);
        let ask = |salt| request(prompt(salt, 40), Sampling { max_tokens: 900, ..sampling() }, 0);
        let expected = run(&engine, request(prompt(9, 40), sampling(), 0));
        let mut streams: Vec<_> = (0..3).map(|salt| engine.submit(ask(salt)).unwrap()).collect();
        for stream in &mut streams[..2] {
            assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
        }
        *order.lock().unwrap() = fault;
        // The one that waits fails too: nobody knows what the cache holds now.
        for mut stream in streams {
            let last = std::iter::from_fn(|| stream.blocking_next()).last().unwrap();
            let Event::Failed { code, message } = last else { panic!("{fault:?}: {last:?}") };
            assert_eq!(code, FailureCode::EngineFailed, "{fault:?}");
            assert!(message.contains(says), "{fault:?}: {message:?} does not say {says:?}");
        }
        *order.lock().unwrap() = Fault::None;
        let deadline = Instant::now() + Duration::from_secs(20);
        while engine.status() != EngineStatus::Ready {
            assert!(Instant::now() < deadline, "{fault:?}: {:?}", engine.status());
            std::thread::sleep(Duration::from_millis(5));
        }
        let again = run(&engine, request(prompt(9, 40), sampling(), 0));
        assert_eq!(again.choices, expected.choices, "{fault:?}: the same answer as before");
        assert_eq!(again.usage.cached_tokens, 0, "{fault:?}: what was cached is not trusted any more");
        assert_eq!(built.load(Ordering::Relaxed), builds, "{fault:?}: times that the backend was built");
        assert_eq!(engine.metrics().requests_failed.load(Ordering::Relaxed), 3);
        // Gauges are told after the step's last event.
        while engine.metrics().kv_blocks_used.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "{fault:?}: blocks are held for nobody");
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_answer_ends_where_the_context_does_and_a_prompt_that_fills_it_is_refused() {
    let engine = start("pico", EngineConfig { context_length: Some(64), token_budget: 16, ..small() });
    let ask = |length| request(prompt(1, length), Sampling { max_tokens: 1_000, ..sampling() }, 0);
    for length in [1, 50, 63] {
        let answer = run(&engine, ask(length));
        assert_eq!(answer.choices[0].tokens.len(), 64 - length as usize, "a prompt of {length}");
        assert_eq!(answer.choices[0].reason, Some(FinishReason::Length));
    }
    for length in [64, 65, 5_000] {
        let refused = engine.submit(ask(length)).unwrap_err();
        assert_eq!(refused.http_status(), 400);
        let (length, message) = (length.to_string(), refused.to_string());
        assert!(message.contains(&length) && message.contains("64"), "with the numbers: {message}");
    }
    run(&engine, ask(10));
}

/// Twelve answers of which hardly two fit at once: each comes whole, and the same as when it is alone.
#[test]
fn a_full_pool_only_makes_answers_wait() {
    let ask = |salt| request(prompt(salt, 60), Sampling { max_tokens: 60, ..noisy() }, salt as u8);
    let roomy = start("pico", small());
    let blocks = 2 * 119_usize.div_ceil(roomy.info().block_tokens) + 1;
    let engine = start("pico", EngineConfig { kv_cache: KvCacheSize::Blocks(blocks), max_running: 12, ..small() });
    let streams: Vec<_> = (0..12).map(|salt| engine.submit(ask(salt)).unwrap()).collect();
    for (salt, stream) in streams.into_iter().enumerate() {
        assert_eq!(collect(stream).choices, run(&roomy, ask(salt as u32)).choices);
    }
    assert!(engine.metrics().preemptions.load(Ordering::Relaxed) > 0, "the pool was never full");
}
