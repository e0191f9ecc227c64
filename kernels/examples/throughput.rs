//! Tokens per second of random models on this machine: one prompt, one stream, many streams.
//!
//! `cargo run --release -p polylink-kernels --example throughput -- [nano|17m|0.5b]… [f32|bf16|q8_0|q4_0]…
//! [prefill|decode|streams]… [kv-bf16|kv-int8] [threads]…`
//!
//! Wall time, medians: run it on a machine that does nothing else. A decode step is forward and greedy sampling.

#[path = "../tests/common/mod.rs"]
mod common;

use std::num::NonZeroUsize;
use std::time::Instant;

use common::*;
use polylink_kernels::*;

const SHAPES: [(&str, Sizes); 3] = [
    (
        "nano",
        Sizes {
            layers: 5,
            hidden: 288,
            query_heads: 9,
            kv_heads: 3,
            head_dim: 32,
            mlp: 768,
            vocabulary: 2048,
            window: None,
            kv_dtype: KvDtype::F32,
        },
    ),
    (
        "17m",
        Sizes {
            layers: 8,
            hidden: 384,
            query_heads: 6,
            kv_heads: 6,
            head_dim: 64,
            mlp: 1024,
            vocabulary: 4096,
            window: None,
            kv_dtype: KvDtype::F32,
        },
    ),
    (
        "0.5b",
        Sizes {
            layers: 24,
            hidden: 896,
            query_heads: 14,
            kv_heads: 2,
            head_dim: 64,
            mlp: 4864,
            vocabulary: 151_936,
            window: None,
            kv_dtype: KvDtype::F32,
        },
    ),
];

const FORMS: [(&str, WeightForm); 4] =
    [("f32", WeightForm::Float), ("bf16", WeightForm::Bf16), ("q8_0", WeightForm::Q8_0), ("q4_0", WeightForm::Q4_0)];

/// What is measured; all, unless some are named.
const PHASES: [&str; 3] = ["prefill", "decode", "streams"];

/// Streams at once, and the positions of each.
const STREAMS: u32 = 32;
const POSITIONS: u32 = 640;

struct Runner {
    backend: CpuBackend,
    vocabulary: u32,
    blocks: u32,
    tables: Vec<u32>,
    output: StepOutput,
}

impl Runner {
    fn new(sizes: &Sizes, form: WeightForm, threads: usize) -> Result<Self, BackendError> {
        let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: None };
        let mut backend = CpuBackend::new(options)?;
        let kv = sizes.kv();
        let blocks = POSITIONS.div_ceil(backend.kv_layout(&kv).block_tokens as u32);
        let limits = Limits {
            rows: 512,
            wanted_rows: STREAMS as usize,
            slots: STREAMS as usize,
            kv_blocks: (STREAMS * blocks) as usize,
            positions: POSITIONS as usize,
        };
        build(&mut backend, sizes, Dtype::Bf16, form, &Split::whole(sizes), limits, Box::new(Solo))?;
        let output = StepOutput::with_limits(&limits, sizes.vocabulary, false);
        Ok(Self {
            backend,
            vocabulary: sizes.vocabulary as u32,
            blocks,
            tables: (0..STREAMS * blocks).collect(),
            output,
        })
    }

    /// Seconds of one step of `rows` rows in each of `slots`, from `first` on, and the drawing of a token for each.
    fn step(&mut self, slots: std::ops::Range<u32>, first: u32, rows: u32) -> Result<f64, BackendError> {
        let count = slots.len() as u32;
        let sequence = |slot: u32| SequenceRows {
            slot,
            first_position: first,
            rows,
            wanted: 1,
            blocks: Span { start: slot * self.blocks, length: self.blocks },
            noise_key: key(),
            long: false,
        };
        let sequences: Vec<SequenceRows> = slots.clone().map(sequence).collect();
        let tokens: Vec<TokenInput> =
            (0..count * rows).map(|i| TokenInput::Id((i * 7919 + first) % self.vocabulary)).collect();
        let none = Span::default();
        let draw = |(row, slot)| SampleRow {
            row,
            slot,
            params: SampleParams::greedy(),
            logit_bias: none,
            suppressed: none,
            mask: none,
            logprobs: None,
            given: None,
        };
        let draws: Vec<SampleRow> = (0..count).zip(slots).map(draw).collect();
        let forward =
            ForwardStep { sequences: &sequences, tokens: &tokens, block_tables: &self.tables, logits_out: false };
        let sample =
            SampleStep { starts: &[], histories: &[], rows: &draws, logit_bias: &[], suppressed: &[], masks: &[] };
        let start = Instant::now();
        for step in [Step::Forward(forward), Step::Sample(sample)] {
            let ticket = self.backend.submit(&step)?;
            self.backend.wait(ticket, &mut self.output)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Median seconds of a step after `runs` of them; `forwards`: each one a position further.
    fn median(
        &mut self,
        runs: u32,
        (slots, first, rows, forwards): (std::ops::Range<u32>, u32, u32, u32),
    ) -> Result<f64, BackendError> {
        self.step(slots.clone(), first, rows)?;
        let times = (0..runs).map(|run| self.step(slots.clone(), first + run * forwards, rows));
        let mut times = times.collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

fn main() -> Result<(), BackendError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let any_shape = SHAPES.iter().any(|(name, _)| named(name));
    let any_form = FORMS.iter().any(|(name, _)| named(name));
    let kv_dtype = match (named("kv-bf16"), named("kv-int8")) {
        (true, _) => KvDtype::Bf16,
        (_, true) => KvDtype::Int8,
        _ => KvDtype::F32,
    };
    let mut threads: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, 2];
    }
    for (shape, sizes) in SHAPES.iter().filter(|(name, _)| named(name) || (!any_shape && *name == "nano")) {
        for (name, form) in FORMS.iter().filter(|(name, _)| named(name) || !any_form) {
            for &threads in &threads {
                let mut runner = Runner::new(&Sizes { kv_dtype, ..*sizes }, *form, threads)?;
                let all = !PHASES.iter().any(|phase| named(phase));
                print!("{shape} {name} {} threads {threads}:", runner.backend.name());
                if all || named("prefill") {
                    print!(" prefill of 512 {:.0} tok/s;", 512.0 / runner.median(5, (0..1, 0, 512, 0))?);
                }
                if all || named("decode") {
                    print!(" decode {:.1} tok/s;", 1.0 / runner.median(60, (0..1, 512, 1, 1))?);
                }
                if all || named("streams") {
                    let prompts = runner.median(3, (0..4, 0, 128, 0))? * STREAMS as f64 / 4.0;
                    let eight = runner.median(20, (0..8, 128, 1, 1))?;
                    let every = runner.median(20, (0..STREAMS, 150, 1, 1))?;
                    let served = (STREAMS * 64) as f64 / (prompts + 64.0 * every);
                    print!(" decode of 8 {:.0}, of 32 {:.0} tok/s;", 8.0 / eight, STREAMS as f64 / every);
                    print!(" 32 × (prompt of 128, output of 64): {served:.0} output tok/s");
                }
                println!();
            }
        }
    }
    Ok(())
}
