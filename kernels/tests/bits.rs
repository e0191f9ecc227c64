//! The same bits, whatever the batch, the chunks, the cache, the instruction set, the threads or the split.

#![allow(clippy::unwrap_used)] // tests

mod common;

use std::num::NonZeroUsize;

use common::*;
use polylink_kernels::*;

const KV: KvSpec = KvSpec { layers: TINY.layers, heads: TINY.kv_heads, head_dim: TINY.head_dim };

/// Every backend that this machine can run; prints what it cannot.
fn backends() -> Vec<Box<dyn Backend>> {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(ReferenceBackend::new())];
    for set in InstructionSet::ALL {
        for threads in [1, 3] {
            match CpuBackend::new(CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) }) {
                Ok(backend) => backends.push(Box::new(backend)),
                Err(reason) => println!("skipped {set}: {reason}"),
            }
        }
    }
    backends
}

fn built(mut backend: Box<dyn Backend>, dtype: Dtype, form: WeightForm) -> Box<dyn Backend> {
    build(&mut *backend, &TINY, dtype, form, &Split::whole(&TINY), limits(), Box::new(Solo)).unwrap();
    backend
}

const FORMS: [(Dtype, WeightForm); 4] = [
    (Dtype::F32, WeightForm::Float),
    (Dtype::Bf16, WeightForm::Float),
    (Dtype::Bf16, WeightForm::Q8_0),
    (Dtype::Bf16, WeightForm::Q4_0),
];

#[test]
fn every_instruction_set_and_thread_count_gives_the_reference_bits() {
    for (dtype, form) in FORMS {
        let mut expected: Option<Forward> = None;
        for backend in backends() {
            let mut backend = built(backend, dtype, form);
            let chunk =
                |slot, length| Chunk { slot, first: 0, tokens: tokens(slot, length, TINY.vocabulary), wanted: 7 };
            let found = forward(&mut *backend, &KV, &[chunk(0, 301), chunk(1, 7), chunk(2, 17)]).unwrap();
            if let Some(expected) = &expected {
                let name = format!("{} {form:?} {dtype:?}", backend.name());
                let different = expected.logits.iter().zip(&found.logits).filter(|(a, b)| a != b).count();
                assert_eq!((different, found.logits.len()), (0, expected.logits.len()), "logits, {name}");
                assert_eq!(expected.sketches, found.sketches, "sketches, {name}");
            } else {
                expected = Some(found);
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_batch_chunks_or_cache() {
    for backend in backends() {
        let mut backend = built(backend, Dtype::Bf16, WeightForm::Float);
        let prompt = tokens(1, 300, TINY.vocabulary);
        let chunk = |slot, first: usize, length: usize, wanted| Chunk {
            slot,
            first,
            tokens: prompt[first..first + length].to_vec(),
            wanted,
        };
        let alone = forward(&mut *backend, &KV, &[chunk(0, 0, 300, 300)]).unwrap();
        let width = TINY.vocabulary;
        // The same prompt in chunks, beside another sequence, the last rows one by one.
        let other = Chunk { slot: 1, first: 0, tokens: tokens(2, 33, width), wanted: 1 };
        forward(&mut *backend, &KV, &[other.clone(), chunk(2, 0, 130, 0)]).unwrap();
        let two = forward(&mut *backend, &KV, &[chunk(2, 130, 160, 2), other]).unwrap();
        assert_eq!(two.logits[..2 * width], alone.logits[288 * width..290 * width], "{}", backend.name());
        for position in 290..300 {
            let one = forward(&mut *backend, &KV, &[chunk(2, position, 1, 1)]).unwrap();
            assert_eq!(one.logits[..], alone.logits[position * width..(position + 1) * width]);
            assert_eq!(one.sketches[0], alone.sketches[position]);
        }
    }
}
