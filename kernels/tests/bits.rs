//! The same bits, whatever the batch, the chunks, the cache, the instruction set, the threads or the split.

#![allow(clippy::unwrap_used)] // tests

mod common;
#[path = "common/fence.rs"]
mod fence;

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use common::*;
use polylink_kernels::*;

/// Arenas, tables, weights and scratch end where nobody may read or write.
#[global_allocator]
static FENCE: fence::Fence = fence::Fence;

const KV: KvSpec = KvSpec::f32(TINY.layers, TINY.kv_heads, TINY.head_dim);

/// Every backend that this machine can run; prints what it cannot.
fn backends() -> Vec<Box<dyn Backend>> {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(ReferenceBackend::new())];
    for set in InstructionSet::ALL.into_iter().chain([InstructionSet::AmxEmulated]) {
        for threads in [1, 3] {
            match CpuBackend::new(CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) }) {
                Ok(backend) => backends.push(Box::new(backend)),
                Err(reason) => println!("skipped {set}: {reason}"),
            }
        }
    }
    backends
}

/// The same, and a GPU where there is one and it computes this form.
fn backends_for(form: WeightForm) -> Vec<Box<dyn Backend>> {
    let mut backends = backends();
    if !matches!(form, WeightForm::Bf16 | WeightForm::AmxBf16) {
        backends.extend(cuda());
    }
    backends
}

fn built(mut backend: Box<dyn Backend>, sizes: &Sizes, dtype: Dtype, form: WeightForm) -> Box<dyn Backend> {
    build(&mut *backend, sizes, dtype, form, &Split::whole(sizes), limits(), Box::new(Solo)).unwrap();
    backend
}

const FORMS: [(&Sizes, Dtype, WeightForm); 9] = [
    (&TINY, Dtype::F32, WeightForm::Float),
    (&TINY, Dtype::Bf16, WeightForm::Float),
    (&TINY, Dtype::Bf16, WeightForm::Q8_0),
    (&TINY, Dtype::Bf16, WeightForm::Q4_0),
    (&TINY, Dtype::F32, WeightForm::Bf16),
    (&TINY, Dtype::F32, WeightForm::AmxBf16),
    (&TINY_KV16, Dtype::Bf16, WeightForm::Bf16),
    (&TINY_KV8, Dtype::Bf16, WeightForm::Q8_0),
    (&TINY_KVF8, Dtype::Bf16, WeightForm::Q8_0),
];

#[test]
fn every_instruction_set_and_thread_count_gives_the_reference_bits() {
    for (sizes, dtype, form) in FORMS {
        let (kv, mut expected) = (sizes.kv(), None::<Forward>);
        for backend in backends_for(form) {
            let mut backend = built(backend, sizes, dtype, form);
            let chunk =
                |slot, length| Chunk { slot, first: 0, tokens: tokens(slot, length, TINY.vocabulary), wanted: 7 };
            let found = forward(&mut *backend, &kv, &[chunk(0, 301), chunk(1, 7), chunk(2, 17)]).unwrap();
            if let Some(expected) = &expected {
                let name = format!("{} {form:?} {dtype:?} {:?}", backend.name(), kv.dtype);
                let different = expected.logits.iter().zip(&found.logits).filter(|(a, b)| a != b).count();
                assert_eq!((different, found.logits.len()), (0, expected.logits.len()), "logits, {name}");
                assert_eq!(expected.sketches, found.sketches, "sketches, {name}");
            } else {
                expected = Some(found);
            }
        }
    }
}

/// Blocks of a file, types mixed within a weight; and superblocks made of floats.
#[test]
fn blocks_and_superblocks_give_the_reference_bits_whatever_the_batch() {
    let kv = SUPER.kv();
    let stored = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K, Dtype::Fp8]
        .map(|dtype| (dtype, WeightForm::Stored));
    let made = [WeightForm::Q4K, WeightForm::Q5K, WeightForm::Q6K].map(|form| (Dtype::Bf16, form));
    for (dtype, form) in stored.into_iter().chain(made) {
        let mut expected: Option<Forward> = None;
        for backend in backends_for(form) {
            let mut backend = built(backend, &SUPER, dtype, form);
            let name = format!("{} {form:?} {dtype:?}", backend.name());
            let chunk =
                |slot, length| Chunk { slot, first: 0, tokens: tokens(slot, length, SUPER.vocabulary), wanted: 3 };
            let found = forward(&mut *backend, &kv, &[chunk(0, 51), chunk(1, 7), chunk(2, 3)]).unwrap();
            let alone = forward(&mut *backend, &kv, &[chunk(2, 3)]).unwrap();
            assert_eq!(alone.logits[..], found.logits[6 * SUPER.vocabulary..], "alone, {name}");
            let expected = expected.get_or_insert(found.clone());
            let different = expected.logits.iter().zip(&found.logits).filter(|(a, b)| a != b).count();
            assert_eq!((different, found.logits.len()), (0, expected.logits.len()), "logits, {name}");
            assert_eq!(expected.sketches, found.sketches, "sketches, {name}");
        }
    }
}

#[test]
fn rows_do_not_depend_on_batch_chunks_or_cache() {
    let all = || backends_for(WeightForm::Float).into_iter();
    let both =
        || [&TINY, &TINY_KV16, &TINY_KV8, &TINY_KVF8].into_iter().flat_map(|sizes| all().map(move |b| (sizes, b)));
    for (sizes, backend) in both() {
        let kv = sizes.kv();
        let mut backend = built(backend, sizes, Dtype::Bf16, WeightForm::Float);
        let prompt = tokens(1, 300, TINY.vocabulary);
        let chunk = |slot, first: usize, length: usize, wanted| Chunk {
            slot,
            first,
            tokens: prompt[first..first + length].to_vec(),
            wanted,
        };
        let alone = forward(&mut *backend, &kv, &[chunk(0, 0, 300, 300)]).unwrap();
        let width = TINY.vocabulary;
        // The same prompt in chunks, beside another sequence, the last rows one by one.
        let other = Chunk { slot: 1, first: 0, tokens: tokens(2, 33, width), wanted: 1 };
        forward(&mut *backend, &kv, &[other.clone(), chunk(2, 0, 130, 0)]).unwrap();
        let two = forward(&mut *backend, &kv, &[chunk(2, 130, 160, 2), other]).unwrap();
        assert_eq!(two.logits[..2 * width], alone.logits[288 * width..290 * width], "{}", backend.name());
        for position in 290..300 {
            let one = forward(&mut *backend, &kv, &[chunk(2, position, 1, 1)]).unwrap();
            assert_eq!(one.logits[..], alone.logits[position * width..(position + 1) * width]);
            assert_eq!(one.sketches[0], alone.sketches[position]);
        }
    }
}

/// Draws `count` tokens for slot 0 after a prompt, each step fed by the last sample, beside `others` more sequences; as many
/// steps are under way as the backend takes.
fn generate(backend: &mut dyn Backend, others: u32, count: usize) -> Vec<(u32, u32, [u16; SKETCH_VALUES])> {
    let slots: Vec<u32> = (0..=others).collect();
    let tables: Vec<Vec<u32>> = slots.iter().map(|&slot| blocks(backend, slot, &KV)).collect();
    let flat = tables.concat();
    let span = |slot: u32| Span { start: slot * tables[0].len() as u32, length: tables[0].len() as u32 };
    let prompts: Vec<Vec<u32>> = slots.iter().map(|&slot| tokens(40 + slot, 20 + 9 * slot as usize, 199)).collect();
    let mut output = StepOutput::with_limits(&limits(), TINY.vocabulary, false);
    let (mut drawn, mut under_way) = (Vec::new(), VecDeque::new());
    for step in 0..count {
        let mut inputs = Vec::new();
        let sequence = |slot: u32, inputs: &mut Vec<TokenInput>| {
            let prompt = &prompts[slot as usize];
            let (first, rows) = if step == 0 { (0, prompt.len()) } else { (prompt.len() + step - 1, 1) };
            match step {
                0 => inputs.extend(prompt.iter().map(|&token| TokenInput::Id(token))),
                _ => inputs.push(TokenInput::LastSample(slot)),
            }
            let (first_position, rows) = (first as u32, rows as u32);
            SequenceRows { slot, first_position, rows, wanted: 1, blocks: span(slot), noise_key: key(), long: false }
        };
        // Slot 0 comes last in its step: its rows lie elsewhere in the batch than when it is alone.
        let sequences: Vec<SequenceRows> = slots.iter().rev().map(|&slot| sequence(slot, &mut inputs)).collect();
        let forward = ForwardStep { sequences: &sequences, tokens: &inputs, block_tables: &flat, logits_out: false };
        under_way.push_back(backend.submit(&Step::Forward(forward)).unwrap());
        let params = SampleParams { temperature: 9.0, top_p: 0.95, noise_key: key(), ..SampleParams::greedy() };
        let none = Span::default();
        let rows: Vec<SampleRow> = (0..=others)
            .map(|row| SampleRow {
                row,
                slot: others - row,
                params,
                logit_bias: none,
                suppressed: none,
                mask: none,
                logprobs: Some(0),
                given: None,
            })
            .collect();
        let sample =
            SampleStep { starts: &[], histories: &[], rows: &rows, logit_bias: &[], suppressed: &[], masks: &[] };
        under_way.push_back(backend.submit(&Step::Sample(sample)).unwrap());
        let keeps = if step + 1 == count { 0 } else { 2 * (backend.depth() - 1) };
        while under_way.len() > keeps {
            for ticket in under_way.drain(..2) {
                backend.wait(ticket, &mut output).unwrap();
            }
            let last = output.samples[others as usize].token;
            drawn.push((last.token, last.logprob.to_bits(), output.sketches[others as usize]));
        }
    }
    drawn
}

#[test]
fn a_generation_is_the_same_alone_in_company_and_on_replay() {
    let mut expected = None;
    for backend in backends_for(WeightForm::Q8_0) {
        let mut backend = built(backend, &TINY, Dtype::Bf16, WeightForm::Q8_0);
        let alone = generate(&mut *backend, 0, 24);
        assert_eq!(alone, generate(&mut *backend, 3, 24), "{}", backend.name());
        // Replay: one prefill over prompt and completion gives every sketch, and every token has margin 0.
        let mut all = tokens(40, 20, 199);
        all.extend(alone.iter().map(|(token, ..)| *token));
        let chunk = Chunk { slot: 0, first: 0, tokens: all[..all.len() - 1].to_vec(), wanted: 24 };
        let replay = forward(&mut *backend, &KV, &[chunk]).unwrap();
        let mut scratch = SampleScratch::new(TINY.vocabulary);
        let params = SampleParams { temperature: 9.0, top_p: 0.95, noise_key: key(), ..SampleParams::greedy() };
        let inputs =
            DrawInputs { params: &params, prompt: &[], completion: &[], logit_bias: &[], suppressed: &[], mask: &[] };
        for (index, logits) in replay.logits.chunks(TINY.vocabulary).enumerate() {
            let logits: Vec<f32> = logits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let (token, _, sketch) = alone[index];
            assert_eq!(replay.sketches[index], sketch);
            let margin = replay_margin(&logits, &inputs, 20 + index as u32, token, &mut scratch).unwrap();
            assert_eq!((margin.value(), margin.drawn), (0.0, token));
        }
        assert!(alone.iter().map(|(token, ..)| token).collect::<std::collections::BTreeSet<_>>().len() > 5);
        assert_eq!(*expected.get_or_insert(alone.clone()), alone, "{}", backend.name());
    }
}

/// Of given tokens logprob and rank are told, the same on every backend; nothing is drawn, and what was drawn last stays.
#[test]
fn given_tokens_are_told_and_change_nothing() {
    let prompt = tokens(3, 60, TINY.vocabulary);
    let mut first: Option<Vec<Sampled>> = None;
    let all = backends_for(WeightForm::Float).into_iter();
    for mut backend in all.map(|backend| built(backend, &TINY, Dtype::Bf16, WeightForm::Float)) {
        let name = backend.name().to_owned();
        let chunk = Chunk { slot: 2, first: 0, tokens: prompt.clone(), wanted: 60 };
        let logits = forward(&mut *backend, &KV, &[chunk]).unwrap().logits;
        let none = Span::default();
        let row = |row: u32, given: Option<u32>| SampleRow {
            row,
            slot: 2,
            params: SampleParams::greedy(),
            logit_bias: none,
            suppressed: none,
            mask: none,
            logprobs: Some(5),
            given,
        };
        let mut output = StepOutput::with_limits(&limits(), TINY.vocabulary, false);
        let sample = |backend: &mut dyn Backend, rows: &[SampleRow], output: &mut StepOutput| {
            let step = SampleStep { starts: &[], histories: &[], rows, logit_bias: &[], suppressed: &[], masks: &[] };
            let ticket = backend.submit(&Step::Sample(step)).unwrap();
            backend.wait(ticket, output).unwrap();
        };
        sample(&mut *backend, &[row(59, None)], &mut output);
        let drawn = output.samples[0].token.token;
        let given: Vec<SampleRow> = (0..59).map(|i| row(i, Some(prompt[i as usize + 1]))).collect();
        sample(&mut *backend, &given, &mut output);
        for (i, told) in output.samples.iter().enumerate() {
            let logits: Vec<f32> =
                logits[i * TINY.vocabulary..][..TINY.vocabulary].iter().map(|bits| f32::from_bits(*bits)).collect();
            let mut order: Vec<u32> = (0..TINY.vocabulary as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let exact = |token: u32| f64::from(logits[token as usize]) - sum.ln();
            assert_eq!(told.token.token, prompt[i + 1]);
            assert_eq!(order[told.rank as usize - 1], prompt[i + 1], "{name}, row {i}: rank {}", told.rank);
            assert!((f64::from(told.token.logprob) - exact(prompt[i + 1])).abs() < 1e-5, "{name}, row {i}");
            let top: Vec<u32> = told.top[..told.top_count as usize].iter().map(|top| top.token).collect();
            assert_eq!(top, order[..5], "{name}, row {i}");
        }
        assert_eq!(&output.samples, first.get_or_insert_with(|| output.samples.clone()), "{name}");
        // The slot's last sample is still what was drawn.
        let blocks = blocks(&*backend, 2, &KV);
        let logits = |backend: &mut dyn Backend, token: TokenInput| {
            let sequence = SequenceRows {
                slot: 2,
                first_position: 60,
                rows: 1,
                wanted: 1,
                blocks: Span { start: 0, length: blocks.len() as u32 },
                noise_key: key(),
                long: false,
            };
            let step =
                ForwardStep { sequences: &[sequence], tokens: &[token], block_tables: &blocks, logits_out: true };
            let mut output = StepOutput::default();
            let ticket = backend.submit(&Step::Forward(step)).unwrap();
            backend.wait(ticket, &mut output).unwrap();
            output.logits
        };
        let last = logits(&mut *backend, TokenInput::LastSample(2));
        assert!(last == logits(&mut *backend, TokenInput::Id(drawn)), "{name}: the last sample is {drawn}");
    }
}
