//! The bits of numerics version 1, pinned: `golden/v1.txt`. Every implementation that this machine can run must give
//! them; one that it cannot is skipped with the reason printed. A difference means either a defect or a new version of
//! `docs/numerics.md`.
//!
//! To write the file anew: `POLYLINK_WRITE_GOLDEN=1 cargo test -p polylink-kernels --test golden`.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::fmt::Write as _;
use std::num::NonZeroUsize;

use common::*;
use polylink_kernels::*;
use polylink_protocol::noise::noise_key;
use sha2::{Digest, Sha256};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt");

/// Head dimension 64, one KV head per query head, K that is no multiple of a range, a vocabulary that fills its strips.
const WIDE: Sizes = Sizes {
    layers: 1,
    hidden: 128,
    query_heads: 2,
    kv_heads: 2,
    head_dim: 64,
    mlp: 1056,
    vocabulary: 256,
    window: Some(100),
    kv_dtype: KvDtype::F32,
};

fn digest(words: impl Iterator<Item = u32>) -> String {
    let hash = words.fold(Sha256::new(), |hash, word| hash.chain_update(word.to_le_bytes())).finalize();
    hash.iter().take(16).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The models' logits are large (the embedding is tied and random): temperatures to match, so that draws differ.
fn sample_table() -> Vec<SampleParams> {
    let base = SampleParams { temperature: 8.0, noise_key: noise_key(b"golden", 0), ..SampleParams::greedy() };
    vec![
        SampleParams::greedy(),
        base,
        SampleParams { temperature: 5.6, top_k: 40, ..base },
        SampleParams { temperature: 10.0, top_p: 0.9, ..base },
        SampleParams { min_p: 0.05, ..base },
        SampleParams { repetition_penalty: 1.2, frequency_penalty: 0.3, presence_penalty: 0.2, ..base },
        SampleParams { temperature: 16.0, top_k: 100, top_p: 0.95, min_p: 0.01, repetition_penalty: 0.9, ..base },
        SampleParams { noise_key: noise_key(b"golden", 1), ..base },
    ]
}

/// One line per case of a form that the backend takes: what it gives for it.
fn lines(make: &dyn Fn() -> Box<dyn Backend>, takes: &dyn Fn(WeightForm) -> bool) -> String {
    let mut text = String::new();
    let forms = [
        (Dtype::F32, WeightForm::Float),
        (Dtype::Bf16, WeightForm::Float),
        (Dtype::Bf16, WeightForm::Q8_0),
        (Dtype::Bf16, WeightForm::Q4_0),
        (Dtype::Bf16, WeightForm::Bf16),
        (Dtype::Bf16, WeightForm::AmxBf16),
    ];
    let superblocks = [
        (Dtype::Bf16, WeightForm::Q4K),
        (Dtype::Bf16, WeightForm::Q5K),
        (Dtype::Bf16, WeightForm::Q6K),
        (Dtype::Q8_0, WeightForm::Stored),
        (Dtype::Q4_0, WeightForm::Stored),
        (Dtype::Q4K, WeightForm::Stored),
        (Dtype::Q5K, WeightForm::Stored),
        (Dtype::Q6K, WeightForm::Stored),
        (Dtype::Fp8, WeightForm::Stored),
    ];
    for (model, sizes, forms, rows) in [
        ("tiny", &TINY, &forms[..], 530),
        ("wide", &WIDE, &forms, 530),
        ("tiny-kv16", &TINY_KV16, &forms[1..2], 530),
        ("tiny-kv8", &TINY_KV8, &forms[2..3], 530),
        ("tiny-kvf8", &TINY_KVF8, &forms[1..2], 530),
        ("super", &SUPER, &superblocks, 45),
    ] {
        for &(dtype, form) in forms.iter().filter(|(_, form)| takes(*form)) {
            let mut backend = make();
            build(&mut *backend, sizes, dtype, form, &Split::whole(sizes), limits(), Box::new(Solo)).unwrap();
            let kv = sizes.kv();
            let chunk =
                |slot, length, wanted| Chunk { slot, first: 0, tokens: tokens(slot, length, sizes.vocabulary), wanted };
            let found = forward(&mut *backend, &kv, &[chunk(0, rows, 9), chunk(1, 5, 5)]).unwrap();
            let sketch = found.sketches.iter().flatten().map(|&bits| bits as u32);
            let first: Vec<String> = found.logits[..4].iter().map(|bits| format!("{bits:08x}")).collect();
            let (logits, sketch) = (digest(found.logits.iter().copied()), digest(sketch));
            writeln!(text, "{model} {dtype:?} {form:?}: logits {} … {logits} sketches {sketch}", first.join(" "))
                .unwrap();

            let history = tokens(7, 40, sizes.vocabulary);
            let starts = [SlotStart {
                slot: 0,
                prompt: Span { start: 0, length: 25 },
                completion: Span { start: 25, length: 15 },
            }];
            let mut drawn = Vec::new();
            for row in 0..9 {
                for params in sample_table() {
                    let spans = (Span { start: 0, length: 2 }, Span::default());
                    let rows = [SampleRow {
                        row,
                        slot: 0,
                        params,
                        logit_bias: spans.0,
                        suppressed: spans.1,
                        mask: spans.1,
                        logprobs: Some(3),
                        given: None,
                    }];
                    let step = SampleStep {
                        starts: &starts,
                        histories: &history,
                        rows: &rows,
                        logit_bias: &[(3, 0.5), (9, -1.0)],
                        suppressed: &[],
                        masks: &[],
                    };
                    let mut output = StepOutput::default();
                    let ticket = backend.submit(&Step::Sample(step)).unwrap();
                    backend.wait(ticket, &mut output).unwrap();
                    let sampled = output.samples[0];
                    drawn.push(sampled.token.token);
                    drawn.extend(sampled.top[..3].iter().flat_map(|top| [top.token, top.logprob.to_bits()]));
                }
            }
            let first: Vec<String> = drawn.chunks(7).take(8).map(|chunk| chunk[0].to_string()).collect();
            let all = digest(drawn.iter().copied());
            writeln!(text, "{model} {dtype:?} {form:?}: drawn {} … {all}", first.join(" ")).unwrap();
        }
    }
    text
}

#[test]
fn every_implementation_gives_the_pinned_bits() {
    let reference = lines(&|| Box::new(ReferenceBackend::new()), &|_| true);
    if std::env::var_os("POLYLINK_WRITE_GOLDEN").is_some() {
        std::fs::write(PATH, &reference).unwrap();
    }
    let pinned = std::fs::read_to_string(PATH).unwrap();
    let compare = |name: &str, found: &str| {
        for (found, pinned) in found.lines().zip(pinned.lines()) {
            assert_eq!(found, pinned, "{name}");
        }
        assert_eq!(found.lines().count(), pinned.lines().count());
        println!("{name}: meets {} golden lines", pinned.lines().count());
    };
    compare("reference", &reference);
    for set in InstructionSet::ALL.into_iter().chain([InstructionSet::AmxEmulated]) {
        let options = |threads| CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) };
        if let Err(reason) = CpuBackend::new(options(1)) {
            println!("skipped {set}: {reason}");
            continue;
        }
        let found = lines(&|| Box::new(CpuBackend::new(options(2)).unwrap()), &|_| true);
        compare(&set.to_string(), &found);
    }
    if cuda().is_some() {
        // Products of bf16 in a CPU's order are not a GPU's.
        let takes = |form| !matches!(form, WeightForm::Bf16 | WeightForm::AmxBf16);
        let found = lines(&|| cuda().unwrap(), &takes);
        let exact = pinned.lines().filter(|line| !line.contains(" Bf16:") && !line.contains(" AmxBf16:"));
        let exact: Vec<&str> = exact.collect();
        let different: Vec<_> = found.lines().zip(&exact).filter(|(found, pinned)| found != *pinned).collect();
        println!("cuda: {} of {} golden lines are met", exact.len() - different.len(), exact.len());
        assert!(different.is_empty() && found.lines().count() == exact.len(), "cuda, found and pinned: {different:#?}");
    }
}
