//! A step allocates nothing, counted: whatever its requests ask for, whether they start, run, are preempted or end.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};

use polylink_kernels::Backend;
use polylink_protocol::market_v1::{LogitBias, Sampling};

use super::*;
use crate::engine::handle::{Command, EngineHandle};
use crate::engine::start::{build, drafter};
use crate::engine::{EngineConfig, GenerateRequest, KvCacheSize, RequestStream, Speculation};
use crate::model::{LoadedModel, Precision};

fn pico() -> LoadedModel {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pico");
    LoadedModel::open(folder, Precision::F32).unwrap()
}

struct Bench {
    core: Core,
    backend: Box<dyn Backend>,
    handle: EngineHandle,
    commands: Receiver<Command>,
    steps: usize,
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        let model = pico();
        let drafter = |info: &_| drafter(&model, &config, info).unwrap();
        let built = build(&model, &config).unwrap();
        let vocabulary = model.config().vocab_size;
        let drafter = drafter(&built.info);
        let shared = Arc::new(Shared::new(built.info, &model));
        let core = Core::new(Arc::clone(&shared), &built.limits, vocabulary, &config, drafter);
        let (sender, commands) = sync_channel(64);
        let handle = EngineHandle::new(shared, sender, std::thread::spawn(|| {}));
        Self { core, backend: built.backend, handle, commands, steps: 0 }
    }

    fn admit(&mut self, request: GenerateRequest) -> RequestStream {
        let stream = self.handle.submit(request).unwrap();
        let Ok(Command::Run(job)) = self.commands.try_recv() else { panic!("a request was sent") };
        self.core.admit(job);
        stream
    }

    /// Steps until nothing is live, or `steps` of them; returns the allocations within them.
    fn run(&mut self, steps: usize) -> u64 {
        let mut allocations = 0;
        for _ in 0..steps {
            if self.core.is_idle() {
                break;
            }
            let counted = allocation_counter::measure(|| self.core.step(&mut *self.backend).unwrap());
            allocations += counted.count_total;
            self.steps += 1;
        }
        allocations
    }
}

fn request(salt: u32, length: u32, sampling: Sampling, logprobs: u32) -> GenerateRequest {
    let prompt_ids = (0..length).map(|i| 100 + (salt * 7919 + i * 31) % 1500).collect();
    GenerateRequest {
        prompt_ids,
        sampling,
        seed: [salt as u8; 32],
        tenant: [0; 32],
        priority: 0,
        logprobs: Some(logprobs),
        prompt_logprobs: None,
        grammar: None,
    }
}

fn sampling() -> Sampling {
    Sampling { temperature: 1.0, top_p: 0.9, repetition_penalty: 1.0, max_tokens: 40, n: 1, ..Sampling::default() }
}

#[test]
fn a_step_allocates_nothing() {
    for speculation in [Speculation::Off, Speculation::Lookup, Speculation::Draft(pico())] {
        allocates_nothing(speculation);
    }
}

fn allocates_nothing(speculation: Speculation) {
    let config = EngineConfig {
        speculation: speculation.clone(),
        threads: 1,
        token_budget: 24,
        kv_cache: KvCacheSize::Blocks(20),
        context_length: Some(256),
        ..EngineConfig::default()
    };
    let seen = allocation_counter::measure(|| drop(std::hint::black_box(vec![1; 100]))).count_total;
    assert!(seen > 0, "the counter counts");
    let mut bench = Bench::new(config);
    let penalties = Sampling { repetition_penalty: 1.2, presence_penalty: 0.5, ignore_eos: true, ..sampling() };
    let bias = (0..50).map(|token| LogitBias { token, bias: 0.5 }).collect();
    let mut streams = Vec::new();
    for round in 0..3 {
        streams.push(bench.admit(request(1, 100, sampling(), 20)));
        streams.push(bench.admit(request(2 + round, 60, Sampling { n: 3, ..penalties.clone() }, 5)));
        streams.push(bench.admit(request(9, 90, Sampling { logit_bias: vec![], min_tokens: 30, ..sampling() }, 0)));
        let biased = Sampling { logit_bias: Vec::clone(&bias), min_tokens: 10, ..penalties.clone() };
        streams.push(bench.admit(request(5, 90, biased, 0)));
        let scored = GenerateRequest { prompt_logprobs: Some(20), ..request(40 + round, 90, sampling(), 3) };
        streams.push(bench.admit(scored));
        assert_eq!(bench.run(7), 0, "round {round}");
        // In the middle of it: one more, and one less.
        streams.push(bench.admit(request(20 + round, 30, sampling(), 0)));
        drop(streams.swap_remove(0));
        assert_eq!(bench.run(1000), 0, "round {round}");
        bench.core.check();
    }
    let preemptions = bench.handle.metrics().preemptions.load(std::sync::atomic::Ordering::Relaxed);
    let hits = bench.handle.metrics().prefix_hits.load(std::sync::atomic::Ordering::Relaxed);
    assert!(preemptions > 0 && hits > 0 && bench.steps > 100, "{preemptions} {hits} {}", bench.steps);
    let guessed = bench.handle.metrics().accepted_tokens.load(std::sync::atomic::Ordering::Relaxed);
    match speculation {
        Speculation::Off => assert_eq!(guessed, 0),
        Speculation::Lookup => {}
        Speculation::Draft(_) => assert!(guessed > 0, "it is the same model"),
    }
}
