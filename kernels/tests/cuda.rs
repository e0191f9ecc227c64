//! Products of bf16 on tensor cores, from end to end: a row's bits are the same whatever shares its step, and near to those of
//! a CPU. Exact forms are held to the CPU's bits by `bits.rs` and `golden.rs`, a GPU beside the CPUs.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // tests

mod common;

use common::*;
use polylink_kernels::*;

/// Grouped heads of 64 and 128 values, a model whose sizes are no multiples of a tile, a window.
const SIZES: [Sizes; 3] = [
    Sizes {
        layers: 2,
        hidden: 256,
        query_heads: 8,
        kv_heads: 2,
        head_dim: 64,
        mlp: 704,
        vocabulary: 1003,
        window: None,
        kv_dtype: KvDtype::Bf16,
    },
    Sizes {
        layers: 2,
        hidden: 208,
        query_heads: 6,
        kv_heads: 2,
        head_dim: 128,
        mlp: 336,
        vocabulary: 517,
        window: Some(100),
        kv_dtype: KvDtype::Bf16,
    },
    // Exact attention behind products of bf16.
    Sizes {
        layers: 1,
        hidden: 128,
        query_heads: 4,
        kv_heads: 4,
        head_dim: 32,
        mlp: 256,
        vocabulary: 300,
        window: None,
        kv_dtype: KvDtype::F32,
    },
];

fn built(mut backend: Box<dyn Backend>, sizes: &Sizes) -> Box<dyn Backend> {
    let split = Split::whole(sizes);
    build(&mut *backend, sizes, Dtype::Bf16, WeightForm::TensorBf16, &split, limits(), Box::new(Solo)).unwrap();
    backend
}

fn chunk(prompt: &[u32], slot: u32, first: usize, length: usize, wanted: u32) -> Chunk {
    Chunk { slot, first, tokens: prompt[first..first + length].to_vec(), wanted }
}

#[test]
fn rows_do_not_depend_on_batch_chunks_or_graphs() {
    for sizes in &SIZES {
        let Some(backend) = cuda() else { return };
        let (kv, width) = (sizes.kv(), sizes.vocabulary);
        let mut backend = built(backend, sizes);
        let prompt = tokens(1, 600, width);
        let alone = forward(&mut *backend, &kv, &[chunk(&prompt, 0, 0, 600, 600)]).unwrap();
        // The second time it is a recorded graph.
        let again = forward(&mut *backend, &kv, &[chunk(&prompt, 0, 0, 600, 600)]).unwrap();
        assert!(alone.logits == again.logits, "a graph gives other bits than its launches");
        let other = Chunk { slot: 1, first: 0, tokens: tokens(2, 33, width), wanted: 1 };
        forward(&mut *backend, &kv, &[other.clone(), chunk(&prompt, 2, 0, 130, 0)]).unwrap();
        let two = forward(&mut *backend, &kv, &[chunk(&prompt, 2, 130, 450, 2), other]).unwrap();
        let mut wrong = Vec::new();
        if two.logits[..2 * width] != alone.logits[578 * width..580 * width] {
            wrong.push("chunks".to_owned());
        }
        for position in 580..600 {
            let one = forward(&mut *backend, &kv, &[chunk(&prompt, 2, position, 1, 1)]).unwrap();
            let expected = &alone.logits[position * width..(position + 1) * width];
            let different = one.logits.iter().zip(expected).filter(|(a, b)| a != b).count();
            if different > 0 || one.sketches[0] != alone.sketches[position] {
                wrong.push(format!("row {position}: {different} logits of {width}"));
            }
        }
        assert!(wrong.is_empty(), "head dimension {}: {wrong:?}", sizes.head_dim);
    }
}

#[test]
fn logits_are_near_those_of_a_cpu() {
    for sizes in &SIZES {
        let Some(backend) = cuda() else { return };
        let prompt = tokens(5, 400, sizes.vocabulary);
        let chunks = [chunk(&prompt, 0, 0, 400, 400)];
        let of = |backend: Box<dyn Backend>| -> Vec<f64> {
            let mut backend = built(backend, sizes);
            let found = forward(&mut *backend, &sizes.kv(), &chunks).unwrap();
            found.logits.iter().map(|bits| f64::from(f32::from_bits(*bits))).collect()
        };
        let (gpu, cpu) = (of(backend), of(Box::new(CpuBackend::new(CpuOptions::default()).unwrap())));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let error = norm(&mut gpu.iter().zip(&cpu).map(|(gpu, cpu)| gpu - cpu)) / norm(&mut cpu.iter().copied());
        println!("head dimension {}: relative difference of logits to the CPU {error:.2e}", sizes.head_dim);
        // Both round activations to bf16 (2^-9 each): their sums differ in order only.
        assert!(error < 2e-2, "head dimension {}: relative difference {error}", sizes.head_dim);
    }
}
