//! A mixture of experts: the same bits on every implementation, in any batch, and split over devices by experts.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Duration;

use common::*;
use polylink_kernels::*;

const HIDDEN: usize = 64;
const MLP: usize = 96;
const EXPERTS: usize = 7;
const VOCABULARY: usize = 48;
const KV: KvSpec = KvSpec::f32(1, 1, 16);

/// Embedding, one mixture onto it, head; the experts of `ranks[rank]` are held.
fn mixture(
    backend: &mut dyn Backend,
    form: WeightForm,
    (top_k, normalise): (usize, bool),
    (ranks, rank): (&[Range<usize>], usize),
    collective: Box<dyn Collective>,
) -> Result<(), BackendError> {
    let mut stream = 0;
    let mut weight = |form: WeightForm, n: usize, k: usize, ranges: KRanges| {
        stream += 1;
        let tensor = Tensor::random("weight", stream, &[n, k], Dtype::Bf16, 1.5 / (k as f32).sqrt(), 0.0);
        backend.prepare(&[Part { tensor: tensor.view(), shard: Shard::whole(&[n, k]) }], ranges, form)
    };
    let whole = KRanges::whole(HIDDEN);
    let table = weight(form, VOCABULARY, HIDDEN, whole)?;
    let router_weight = weight(WeightForm::Float, EXPERTS, HIDDEN, whole)?;
    let mut all = Vec::new();
    for _ in 0..EXPERTS {
        let gate_up = weight(form, 2 * MLP, HIDDEN, whole)?;
        all.push(ExpertWeights { gate_up, down: weight(form, HIDDEN, MLP, KRanges::mlp(MLP))? });
    }
    let spec = |held: &Range<usize>| {
        let activation = Activation::GeluTanh;
        ExpertsSpec { experts: EXPERTS, first: held.start, top_k, normalise, activation }
    };
    let planes: Vec<usize> = ranks.iter().map(|held| spec(held).planes()).collect();
    let mut builder = ProgramBuilder::new(KV, VOCABULARY);
    let (x, router) = (builder.step_buffer(HIDDEN), builder.step_buffer(EXPERTS));
    let (sums, last) = (builder.step_buffer(planes[rank] * HIDDEN), builder.wanted_buffer(HIDDEN));
    let logits = builder.wanted_buffer(VOCABULARY);
    let plain = Epilogue::default();
    builder.push(Op::Embed { table, scale: 3.0, output: x });
    builder.push(Op::Gemm { weight: router_weight, input: x, output: router, epilogue: plain });
    let weights = all[ranks[rank].clone()].to_vec();
    builder.push(Op::Experts { input: x, router, spec: spec(&ranks[rank]), weights, output: sums });
    builder.push(Op::AllReduce {
        input: sums,
        planes,
        epilogue: Epilogue { bias: None, residual: Some(x) },
        output: x,
    });
    builder.push(Op::GatherRows { input: x, output: last });
    builder.push(Op::Gemm { weight: table, input: last, output: logits, epilogue: plain });
    builder.push(Op::SoftCap { buffer: logits, cap: 20.0 });
    backend.build(builder.finish(logits), limits(), collective)
}

fn whole(mut backend: Box<dyn Backend>, form: WeightForm, choice: (usize, bool)) -> Box<dyn Backend> {
    let everything = std::iter::once(0..EXPERTS).collect::<Vec<_>>();
    mixture(&mut *backend, form, choice, (&everything, 0), Box::new(Solo)).unwrap();
    backend
}

fn cpu(threads: usize, instructions: Option<InstructionSet>) -> Result<Box<dyn Backend>, BackendError> {
    let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions };
    Ok(Box::new(CpuBackend::new(options)?))
}

/// All tokens of the vocabulary, and some again.
fn rows(count: u32) -> Chunk {
    Chunk { slot: 0, first: 0, tokens: (0..count).map(|i| i * 5 % VOCABULARY as u32).collect(), wanted: count }
}

#[test]
fn every_implementation_and_every_batch_gives_the_reference_bits() {
    for form in [WeightForm::Float, WeightForm::Q8_0, WeightForm::Q4_0, WeightForm::Bf16, WeightForm::AmxBf16] {
        for choice in [(1, false), (2, true), (3, false), (EXPERTS, true)] {
            let mut reference = whole(Box::new(ReferenceBackend::new()), form, choice);
            let expected = forward(&mut *reference, &KV, &[rows(61)]).unwrap().logits;
            for set in InstructionSet::ALL.into_iter().chain([InstructionSet::AmxEmulated]) {
                let Ok(backend) = cpu(2, Some(set)) else {
                    println!("skipped {set}: this machine does not have it");
                    continue;
                };
                let mut backend = whole(backend, form, choice);
                let found = forward(&mut *backend, &KV, &[rows(61)]).unwrap().logits;
                assert!(found == expected, "{set} {form:?} {choice:?}");
                // Each row alone, whoever else had chosen its experts.
                for (row, expected) in expected.chunks(VOCABULARY).enumerate().step_by(7) {
                    let alone = Chunk { tokens: vec![row as u32 * 5 % VOCABULARY as u32], wanted: 1, ..rows(0) };
                    assert!(forward(&mut *backend, &KV, &[alone]).unwrap().logits == expected, "row {row} alone");
                }
            }
            if matches!(form, WeightForm::Bf16 | WeightForm::AmxBf16) {
                continue;
            }
            if let Some(backend) = cuda() {
                let mut backend = whole(backend, form, choice);
                let found = forward(&mut *backend, &KV, &[rows(61)]).unwrap().logits;
                let different = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
                assert_eq!(different, 0, "cuda {form:?} {choice:?}: logits of {}", expected.len());
                for (row, expected) in expected.chunks(VOCABULARY).enumerate().step_by(7) {
                    let alone = Chunk { tokens: vec![row as u32 * 5 % VOCABULARY as u32], wanted: 1, ..rows(0) };
                    let found = forward(&mut *backend, &KV, &[alone]).unwrap().logits;
                    assert!(found == expected, "cuda {form:?} {choice:?}: row {row} alone");
                }
            }
        }
    }
}

#[test]
fn a_split_by_experts_changes_no_bit() {
    for form in [WeightForm::Float, WeightForm::Q8_0] {
        for (choice, ranks) in [((2, true), vec![0..3, 3..7]), ((3, false), vec![0..1, 1..6, 6..7])] {
            let mut alone = whole(cpu(1, None).unwrap(), form, choice);
            let expected = forward(&mut *alone, &KV, &[rows(50)]).unwrap().logits;
            let members = LocalCollective::group(ranks.len(), Duration::from_secs(60));
            let ranks = &ranks;
            std::thread::scope(|scope| {
                let results: Vec<_> = members
                    .into_iter()
                    .map(|member| {
                        scope.spawn(move || {
                            let rank = member.rank();
                            let mut backend = cpu(1, None).unwrap();
                            mixture(&mut *backend, form, choice, (ranks, rank), Box::new(member)).unwrap();
                            forward(&mut *backend, &KV, &[rows(50)]).unwrap().logits
                        })
                    })
                    .collect();
                for (rank, result) in results.into_iter().enumerate() {
                    assert!(result.join().unwrap() == expected, "{form:?} {choice:?} rank {rank}");
                }
            });
        }
    }
}

#[test]
fn wrong_mixtures_are_refused() {
    let build = |choice, ranks: &[Range<usize>]| {
        let mut backend = ReferenceBackend::new();
        mixture(&mut backend, WeightForm::Float, choice, (ranks, 0), Box::new(Solo)).unwrap_err().to_string()
    };
    let everything = std::iter::once(0..EXPERTS).collect::<Vec<_>>();
    assert!(build((EXPERTS + 1, true), &everything).contains("8 experts per row"));
    assert!(build((0, true), &everything).contains("0 experts per row"));
    let nothing = std::iter::once(0..0).collect::<Vec<_>>();
    assert!(build((1, true), &nothing).contains("experts 0..0 of 7"));
}
