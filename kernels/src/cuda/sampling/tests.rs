//! The device's sampler against the CPU's, bit for bit: on a GPU where there is one, and everywhere under an emulator that
//! runs the same kernels on the CPU.

use super::*;
use crate::InstructionSet;
use crate::executor::RowState;
use crate::operations::SketchRow;
use crate::sampler::{self, SampleContext, SampleScratch};
use crate::step::{SampleParams, SampleRow, SlotStart, Span};
use crate::step_check;
use polylink_protocol::noise::{NoiseKey, noise_key};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod emulated;
mod gpu;

/// What runs steps: a GPU or the emulator.
trait Target {
    /// The forward step's logits, `[wanted rows][logits_stride]`.
    fn set_logits(&mut self, logits: &[f32]);
    /// Overwrites all memory that a step must not rely on.
    fn poison(&mut self);
    fn step(
        &mut self,
        step: &SampleStep<'_>,
        slots: &mut SlotState,
        samples: &mut Vec<Sampled>,
    ) -> Result<(), BackendError>;
    /// Last samples, and histories `[slots][positions]`, as the device has them.
    fn slots(&self) -> (Vec<u32>, Vec<u32>);
}

#[derive(Clone, Copy)]
struct Shape {
    vocabulary: usize,
    stride: usize,
    limits: Limits,
}

impl Shape {
    fn new(vocabulary: usize, stride: usize, wanted_rows: usize) -> Self {
        Self {
            vocabulary,
            stride,
            limits: Limits { rows: wanted_rows, wanted_rows, slots: 6, kv_blocks: 1, positions: 300 },
        }
    }

    fn layout(&self, logits: DevicePtr, scores_rows: usize) -> Layout {
        let Self { vocabulary, stride, limits } = *self;
        Layout::with_scores(
            SamplerShape { limits, vocabulary, logits, logits_stride: stride },
            scores_rows * 4 * vocabulary.next_multiple_of(4),
        )
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }

    fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        // Half of them from a few, so that they repeat.
        (0..count)
            .map(|_| if self.one_in(2) { self.below(vocabulary.min(9)) } else { self.below(vocabulary) } as u32)
            .collect()
    }
}

/// One row's logits, of one of several kinds.
fn logits_row(random: &mut Random, row: &mut [f32]) {
    let scale = random.pick(&[0.5f32, 3.0, 3.0, 8.0]);
    match random.below(9) {
        0 => row.fill(random.normal()),
        1 => row.iter_mut().for_each(|logit| *logit = (random.normal() * 8.0).round() / 8.0),
        2 => row.iter_mut().for_each(|logit| *logit = (random.normal() * 2.0).round() * 0.0),
        3 => {
            // Peaked: one far ahead, some in between.
            row.iter_mut().for_each(|logit| *logit = random.normal() - 20.0);
            for _ in 0..random.below(40) {
                let token = random.below(row.len());
                row[token] = random.normal() * 2.0;
            }
        }
        4 => {
            // Most as if masked by the model.
            row.iter_mut().for_each(|logit| *logit = if random.one_in(50) { random.normal() } else { -1e30 });
        }
        5 => row.iter_mut().enumerate().for_each(|(token, logit)| *logit = -(token as f32) * 0.01),
        _ => row.iter_mut().for_each(|logit| *logit = random.normal() * scale),
    }
}

/// A step's parts, owned.
#[derive(Default)]
struct Parts {
    starts: Vec<SlotStart>,
    histories: Vec<u32>,
    rows: Vec<SampleRow>,
    logit_bias: Vec<(u32, f32)>,
    suppressed: Vec<u32>,
    masks: Vec<u32>,
}

impl Parts {
    fn step(&self) -> SampleStep<'_> {
        let Self { starts, histories, rows, logit_bias, suppressed, masks } = self;
        SampleStep { starts, histories, rows, logit_bias, suppressed, masks }
    }
}

fn span<T>(list: &mut Vec<T>, values: impl IntoIterator<Item = T>) -> Span {
    let start = list.len() as u32;
    list.extend(values);
    Span { start, length: list.len() as u32 - start }
}

fn params(random: &mut Random, vocabulary: usize, penalties: bool) -> SampleParams {
    let mut params = SampleParams {
        temperature: random.pick(&[0.0, 1.0, 1.0, 0.7, 0.3, 1.9, 1e-4]),
        noise_key: noise_key(b"draw", random.below(1 << 20) as u32),
        ..SampleParams::greedy()
    };
    if random.one_in(2) {
        params.top_k =
            random.pick(&[0, 1, 2, 50, 50, vocabulary / 2, vocabulary - 1, vocabulary, vocabulary + 9]) as u32;
        params.top_p = random.pick(&[1.0, 0.9, 0.9, 0.5, 0.0, 0.999, 0.999_999_9, 1.5]);
        params.min_p = random.pick(&[0.0, 0.0, 0.05, 1e-9, 1.0]);
    }
    if penalties {
        params.repetition_penalty = random.pick(&[1.0, 1.3, 0.8]);
        params.presence_penalty = random.pick(&[0.0, 0.5, -0.5]);
        params.frequency_penalty = random.pick(&[0.0, 0.25, -0.125]);
    }
    params
}

/// A random step. `broken`: with a row that fails.
fn parts(random: &mut Random, shape: &Shape, known: &[bool], broken: bool) -> Parts {
    let Shape { vocabulary, limits, .. } = *shape;
    let mut parts = Parts::default();
    for _ in 0..random.pick(&[0, 0, 1, 3]) {
        let length = random.pick(&[0, 1, 30, limits.positions / 2 - 2]);
        let prompt = random.tokens(length, vocabulary);
        let completion = random.tokens(length / 2, vocabulary);
        let (prompt, completion) = (span(&mut parts.histories, prompt), span(&mut parts.histories, completion));
        parts.starts.push(SlotStart { slot: random.below(limits.slots) as u32, prompt, completion });
    }
    let plain = random.one_in(3);
    for _ in 0..1 + random.below(limits.wanted_rows) {
        let slot = random.below(limits.slots) as u32;
        let known = known[slot as usize] || parts.starts.iter().any(|start| start.slot == slot);
        let penalties = !plain && known && random.one_in(2);
        let mut row = SampleRow {
            row: random.below(limits.wanted_rows) as u32,
            slot,
            params: params(random, vocabulary, penalties),
            logit_bias: Span::default(),
            suppressed: Span::default(),
            mask: Span::default(),
            logprobs: random.pick(&[None, None, None, Some(0), Some(1), Some(20)]),
            given: random.one_in(8).then(|| random.below(vocabulary) as u32),
        };
        if !plain && random.one_in(3) {
            let count = 1 + random.below(40);
            let mut tokens = random.tokens(count, vocabulary);
            if !random.one_in(4) {
                tokens.sort_unstable();
                tokens.dedup();
            }
            let biases: Vec<(u32, f32)> =
                tokens.into_iter().map(|token| (token, random.pick(&[-100.0, 2.5, -3.0, 100.0, 0.1]))).collect();
            row.logit_bias = span(&mut parts.logit_bias, biases);
        }
        if !plain && random.one_in(4) {
            let count = 1 + random.below(5);
            let tokens = random.tokens(count, vocabulary);
            row.suppressed = span(&mut parts.suppressed, tokens);
        }
        if !plain && random.one_in(4) {
            let sparse = random.one_in(2);
            let words = (0..vocabulary.div_ceil(32)).map(|_| {
                let word = random.next() as u32;
                if sparse {
                    word & random.next() as u32 & random.next() as u32 & random.next() as u32 | 1
                } else {
                    word
                }
            });
            row.mask = span(&mut parts.masks, words);
        }
        if broken && random.one_in(4) {
            row.mask = span(&mut parts.masks, vec![0; vocabulary.div_ceil(32)]);
        }
        parts.rows.push(row);
    }
    parts
}

fn slot_state(limits: &Limits) -> SlotState {
    let history = || SlotHistory { tokens: Vec::with_capacity(limits.positions), ..SlotHistory::default() };
    SlotState {
        last_sample: vec![None; limits.slots],
        histories: (0..limits.slots).map(|_| history()).collect(),
        jobs: vec![],
        scratch: vec![],
    }
}

/// What the CPU draws, and what it leaves.
fn expected(
    step: &SampleStep<'_>,
    logits: &[f32],
    slots: &mut SlotState,
    scratch: &mut SampleScratch,
    shape: &Shape,
) -> (Result<(), BackendError>, Vec<Sampled>) {
    let context = SampleContext {
        vocabulary: shape.vocabulary,
        logit_bias: step.logit_bias,
        suppressed: step.suppressed,
        masks: step.masks,
        histories: &slots.histories,
    };
    let mut samples = vec![Sampled::default(); slots.jobs.len()];
    for (job, output) in slots.jobs.iter().zip(&mut samples) {
        sampler::run(job, logits, &context, scratch, &InstructionSet::detect(), output);
    }
    (settle(slots, &slots.jobs.clone(), &samples, shape.limits.positions), samples)
}

fn same(a: &Sampled, b: &Sampled) -> bool {
    let failed = a.token.token >= NOT_FINITE;
    let bits =
        |one: &Sampled| -> Vec<u32> { one.top.iter().chain([&one.token]).map(|one| one.logprob.to_bits()).collect() };
    if failed { a.token.token == b.token.token } else { a == b && bits(a) == bits(b) }
}

fn told(sampled: &Sampled) -> String {
    let top = &sampled.top[..sampled.top_count.min(4) as usize];
    format!("{:?} rank {} top {} {top:?}", sampled.token, sampled.rank, sampled.top_count)
}

/// Runs random steps on the target and on the CPU, and tells where they differ.
fn wander(target: &mut dyn Target, shape: &Shape, seed: u64, steps: usize) -> Vec<String> {
    let Shape { vocabulary, stride, limits } = *shape;
    let mut random = Random(seed);
    let (mut device, mut cpu) = (slot_state(&limits), slot_state(&limits));
    let mut scratch = SampleScratch::new(vocabulary);
    let mut wrong = Vec::new();
    let mut rows = RowState::default();
    let mut samples = Vec::new();
    let (mut drawn, mut failed) = (0, 0);
    for number in 0..steps {
        let broken = random.one_in(12);
        let mut logits = vec![0.0; limits.wanted_rows * vocabulary];
        logits.chunks_exact_mut(vocabulary).for_each(|row| logits_row(&mut random, row));
        if broken && random.one_in(2) {
            let at = random.below(logits.len());
            logits[at] = random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        }
        let mut padded = vec![f32::NAN; limits.wanted_rows * stride];
        for (to, from) in padded.chunks_exact_mut(stride).zip(logits.chunks_exact(vocabulary)) {
            to[..vocabulary].copy_from_slice(from);
        }
        target.set_logits(&padded);
        let known: Vec<bool> = cpu.histories.iter().map(|history| history.known).collect();
        let parts = parts(&mut random, shape, &known, broken);
        let step = parts.step();
        rows.clear();
        for row in 0..limits.wanted_rows {
            rows.wanted.push(row as u32);
            rows.sketch_rows.push(SketchRow { noise_key: NoiseKey(0), position: random.below(5000) as u32 });
        }
        for slots in [&mut device, &mut cpu] {
            step_check::sample(&step, &limits, vocabulary, &rows, slots).unwrap();
        }
        target.poison();
        let got = target.step(&step, &mut device, &mut samples).map_err(|error| error.to_string());
        let (right, expected) = expected(&step, &logits, &mut cpu, &mut scratch, shape);
        let right = right.map_err(|error| error.to_string());
        let place = format!("vocabulary {vocabulary}, stride {stride}, seed {seed}, step {number}");
        if got != right {
            wrong.push(format!("{place}: expected {right:?}, got {got:?}"));
        }
        for (index, (expected, got)) in expected.iter().zip(&samples).enumerate() {
            if !same(expected, got) {
                let row = &parts.rows[index];
                wrong.push(format!(
                    "{place}, row {index}: expected {}, got {}: {row:?}, position {}",
                    told(expected),
                    told(got),
                    rows.sketch_rows[row.row as usize].position
                ));
            }
            drawn += usize::from(expected.token.token < NOT_FINITE && parts.rows[index].given.is_none());
        }
        failed += usize::from(right.is_err());
        let (last, histories) = target.slots();
        for slot in 0..limits.slots {
            let history = &cpu.histories[slot].tokens[..];
            let got = &histories[slot * limits.positions..][..history.len()];
            if let Some(at) = (0..history.len()).find(|&at| history[at] != got[at]) {
                wrong.push(format!(
                    "{place}, slot {slot}: history of {} differs at {at}: expected {}, got {}",
                    history.len(),
                    history[at],
                    got[at]
                ));
            }
            if cpu.last_sample[slot].is_some_and(|token| token != last[slot]) {
                wrong.push(format!("{place}, slot {slot}: last {:?}, got {}", cpu.last_sample[slot], last[slot]));
            }
        }
        if wrong.len() > 12 {
            break;
        }
    }
    println!(
        "vocabulary {vocabulary}, stride {stride}: {drawn} tokens drawn, {failed} of {steps} steps failed as they must"
    );
    wrong
}

/// Rows whose likeliest tokens are so many of so few threads that the list of candidates overflows, and plain ones.
fn crowded(target: &mut dyn Target, shape: &Shape, seed: u64) -> Vec<String> {
    let Shape { vocabulary, stride, limits } = *shape;
    let mut random = Random(seed);
    let mut logits = vec![0.0; limits.wanted_rows * vocabulary];
    for (row, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
        for (token, logit) in logits.iter_mut().enumerate() {
            // All of one thread's are larger than those of the next. Rounded, so that ties are common.
            let thread = token / 4 % 1024;
            let ahead = if row % 2 == 0 && thread < 25 { 100.0 - 3.0 * thread as f32 } else { 0.0 };
            *logit = (random.normal() * 8.0).round() / 16.0 + ahead;
        }
    }
    let mut padded = vec![f32::NAN; limits.wanted_rows * stride];
    for (to, from) in padded.chunks_exact_mut(stride).zip(logits.chunks_exact(vocabulary)) {
        to[..vocabulary].copy_from_slice(from);
    }
    target.set_logits(&padded);
    let mut parts = Parts::default();
    let mut rows = RowState::default();
    for row in 0..limits.wanted_rows as u32 {
        let none = Span::default();
        let given = random.one_in(2).then(|| random.below(vocabulary) as u32);
        let (params, logprobs) = (SampleParams { temperature: 1.0, ..SampleParams::greedy() }, Some(20 - row));
        parts.rows.push(SampleRow {
            row,
            slot: 0,
            params,
            logit_bias: none,
            suppressed: none,
            mask: none,
            logprobs,
            given,
        });
        rows.wanted.push(row);
        rows.sketch_rows.push(SketchRow { noise_key: NoiseKey(0), position: row });
    }
    let step = parts.step();
    let (mut device, mut cpu) = (slot_state(&limits), slot_state(&limits));
    for slots in [&mut device, &mut cpu] {
        step_check::sample(&step, &limits, vocabulary, &rows, slots).unwrap();
    }
    target.poison();
    let mut samples = Vec::new();
    target.step(&step, &mut device, &mut samples).unwrap();
    let mut scratch = SampleScratch::new(vocabulary);
    let (right, expected) = expected(&step, &logits, &mut cpu, &mut scratch, shape);
    right.unwrap();
    let differ = |(row, (expected, got)): (usize, (&Sampled, &Sampled))| {
        let text = format!("crowded, seed {seed}, row {row}: expected {}, got {}", told(expected), told(got));
        (!same(expected, got)).then_some(text)
    };
    expected.iter().zip(&samples).enumerate().filter_map(differ).collect()
}

/// A seed that no run before had; POLYLINK_SEED names one.
fn fresh_seed() -> u64 {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("POLYLINK_SEED").ok().map_or_else(now, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    seed
}

fn none_wrong(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
}
