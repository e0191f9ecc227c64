//! Nothing is allocated within a step, on the engine's thread or on any worker's: counted by the allocator itself.
//!
//! One test in this file: the counter counts the whole process.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use polylink_kernels::*;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One step of three sequences (two decodes from their last samples, one chunk) and its sampling.
fn step(
    backend: &mut dyn Backend,
    sequences: &[SequenceRows],
    tokens: &[TokenInput],
    tables: &[u32],
    samples: &SampleStep<'_>,
    output: &mut StepOutput,
) {
    let forward = ForwardStep { sequences, tokens, block_tables: tables, logits_out: true };
    let ticket = backend.submit(&Step::Forward(forward)).unwrap();
    backend.wait(ticket, output).unwrap();
    let ticket = backend.submit(&Step::Sample(*samples)).unwrap();
    backend.wait(ticket, output).unwrap();
}

#[test]
fn a_step_allocates_nothing() {
    for form in [WeightForm::Float, WeightForm::Q8_0] {
        for threads in [1, 2] {
            let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: None };
            let mut backend = CpuBackend::new(options).unwrap();
            let split = Split::whole(&TINY);
            build(&mut backend, &TINY, Dtype::Bf16, form, &split, limits(), Box::new(Solo)).unwrap();
            let kv = KvSpec::f32(TINY.layers, TINY.kv_heads, TINY.head_dim);
            let mut tables = Vec::new();
            let mut sequences = Vec::new();
            for (slot, first_position, rows) in [(0, 0, 60), (1, 0, 70), (2, 0, 20)] {
                let blocks = blocks(&backend, slot, &kv);
                let span = Span { start: tables.len() as u32, length: blocks.len() as u32 };
                tables.extend(blocks);
                sequences.push(SequenceRows {
                    slot,
                    first_position,
                    rows,
                    wanted: 1,
                    blocks: span,
                    noise_key: key(),
                    long: false,
                });
            }
            let mut inputs: Vec<TokenInput> = (0..150).map(|i| TokenInput::Id(i % 199)).collect();
            let history: Vec<u32> = (0..150).map(|i| i % 199).collect();
            let params = SampleParams {
                temperature: 0.9,
                top_k: 50,
                top_p: 0.9,
                min_p: 0.01,
                repetition_penalty: 1.1,
                frequency_penalty: 0.1,
                presence_penalty: 0.1,
                noise_key: key(),
            };
            let spans = [(0, 60), (60, 70), (130, 20)].map(|(start, length)| Span { start, length });
            let starts: Vec<SlotStart> = (0..3u32)
                .map(|slot| SlotStart { slot, prompt: spans[slot as usize], completion: Span::default() })
                .collect();
            let rows: Vec<SampleRow> = (0..3u32)
                .map(|row| SampleRow {
                    row,
                    slot: row,
                    params: if row == 2 { SampleParams::greedy() } else { params },
                    logit_bias: Span { start: 0, length: row % 2 },
                    suppressed: Span { start: 0, length: 1 },
                    mask: Span { start: 0, length: if row == 1 { 7 } else { 0 } },
                    logprobs: Some(20),
                    given: None,
                })
                .collect();
            let masks = [u32::MAX; 7];
            let mut samples = SampleStep {
                starts: &starts,
                histories: &history,
                rows: &rows,
                logit_bias: &[(5, 1.0)],
                suppressed: &[3],
                masks: &masks,
            };
            let mut output = StepOutput::with_limits(&limits(), TINY.vocabulary, true);
            step(&mut backend, &sequences, &inputs, &tables, &samples, &mut output);
            samples.starts = &[];
            inputs = vec![TokenInput::LastSample(0), TokenInput::LastSample(1)];
            inputs.extend((0..30).map(TokenInput::Id));
            let position = [60, 70, 20];
            for (sequence, position) in sequences.iter_mut().zip(position) {
                (sequence.first_position, sequence.rows) = (position, if position == 20 { 30 } else { 1 });
            }
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            for _ in 0..20 {
                step(&mut backend, &sequences, &inputs, &tables, &samples, &mut output);
                for sequence in &mut sequences {
                    sequence.first_position += sequence.rows;
                }
                if sequences[2].first_position + 30 > 700 {
                    sequences[2].first_position = 0;
                }
            }
            let count = ALLOCATIONS.load(Ordering::SeqCst) - before;
            assert_eq!(count, 0, "allocations in 20 steps, {form:?}, {threads} threads");
            assert!(output.samples.iter().all(|sampled| sampled.top_count == 20 && sampled.token.logprob <= 0.0));
        }
    }
}
