//! The reference against the mathematics: the same model written a second time, in f64, from the papers' formulas.
//!
//! The other tests hold implementations to each other's bits; this one would notice if all of them were wrong alike.

#![allow(clippy::unwrap_used)] // tests

mod common;

use common::*;
use polylink_kernels::*;

/// y = W x, W given by `value(row, column)`.
fn product(n: usize, x: &[f64], value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..n).map(|row| x.iter().enumerate().map(|(column, x)| x * value(row, column)).sum()).collect()
}

fn norm(x: &[f64], stream: u32) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let weight = |i: usize| (uniform(stream, i as u32) * 0.2 + 1.0) as f64;
    x.iter().enumerate().map(|(i, x)| x / (mean + 1e-5).sqrt() * weight(i)).collect()
}

fn rotate(x: &mut [f64], position: usize) {
    let half = x.len() / 2;
    for i in 0..half {
        let angle = position as f64 / 10_000f64.powf(i as f64 / half as f64);
        let (low, high) = (x[i], x[i + half]);
        x[i] = low * angle.cos() - high * angle.sin();
        x[i + half] = high * angle.cos() + low * angle.sin();
    }
}

/// Logits of all positions of one sequence: a Llama with f32 weights of the same streams as `common::build`.
fn llama(sizes: &Sizes, tokens: &[u32]) -> Vec<Vec<f64>> {
    let Sizes { layers, hidden, query_heads, kv_heads, head_dim, mlp, vocabulary, .. } = *sizes;
    let at = |stream: u32, k: usize| {
        let scale = 1.5 / (k as f32).sqrt();
        move |row: usize, column: usize| (uniform(stream, (row * k + column) as u32) * scale) as f64
    };
    let embedding = |row: usize, column: usize| uniform(1000, (row * hidden + column) as u32) as f64;
    let mut x: Vec<Vec<f64>> =
        tokens.iter().map(|&token| (0..hidden).map(|i| embedding(token as usize, i)).collect()).collect();
    let mut stream = 0;
    for _ in 0..layers {
        let [norm1, q, k, v, o, bias, norm2, gate, up, down] = std::array::from_fn(|i| stream + 1 + i as u32);
        stream += 10;
        let biased = |values: Vec<f64>, offset: usize| -> Vec<f64> {
            let bias = |i: usize| (uniform(bias, (offset + i) as u32) * 0.1) as f64;
            values.into_iter().enumerate().map(|(i, value)| value + bias(i)).collect()
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in x.iter_mut().enumerate() {
            let h = norm(x, norm1);
            let (q_width, kv_width) = (query_heads * head_dim, kv_heads * head_dim);
            let mut queries = biased(product(q_width, &h, at(q, hidden)), 0);
            let mut key = biased(product(kv_width, &h, at(k, hidden)), q_width);
            queries.chunks_mut(head_dim).for_each(|head| rotate(head, position));
            key.chunks_mut(head_dim).for_each(|head| rotate(head, position));
            keys.push(key);
            values.push(biased(product(kv_width, &h, at(v, hidden)), q_width + kv_width));
            let mut mixed = Vec::new();
            for (head, query) in queries.chunks(head_dim).enumerate() {
                let range =
                    head / (query_heads / kv_heads) * head_dim..(head / (query_heads / kv_heads) + 1) * head_dim;
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| query.iter().zip(&key[range.clone()]).map(|(q, k)| q * k).sum::<f64>())
                    .map(|score| (score / (head_dim as f64).sqrt()).exp())
                    .collect();
                let total: f64 = scores.iter().sum();
                mixed.extend(range.map(|d| values.iter().zip(&scores).map(|(v, s)| v[d] * s).sum::<f64>() / total));
            }
            let out = product(hidden, &mixed, at(o, query_heads * head_dim));
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
            let h = norm(x, norm2);
            let (gate, up) = (product(mlp, &h, at(gate, hidden)), product(mlp, &h, at(up, hidden)));
            let act: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            let out = product(hidden, &act, at(down, mlp));
            x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
    }
    x.iter().map(|x| product(vocabulary, &norm(x, stream + 1), embedding)).collect()
}

#[test]
fn logits_agree_with_a_second_implementation_in_f64() {
    let kv = KvSpec::f32(TINY.layers, TINY.kv_heads, TINY.head_dim);
    let tokens = tokens(3, 270, TINY.vocabulary);
    let expected = llama(&TINY, &tokens);
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let split = Split::whole(&TINY);
    build(&mut backend, &TINY, Dtype::F32, WeightForm::Float, &split, limits(), Box::new(Solo)).unwrap();
    let chunk = Chunk { slot: 0, first: 0, wanted: tokens.len() as u32, tokens };
    let found = forward(&mut backend, &kv, &[chunk]).unwrap();
    let mut worst = 0f64;
    for (found, expected) in found.logits.iter().zip(expected.iter().flatten()) {
        worst = worst.max((f32::from_bits(*found) as f64 - expected).abs());
    }
    let spread = expected.iter().flatten().fold(0f64, |spread, logit| spread.max(logit.abs()));
    println!("largest difference {worst:e} at logits up to {spread:.1}");
    assert!(worst < 2e-4 && spread > 5.0);
}

/// Relative error of the logits of a form, and of the sizes' cache, against unquantised ones in an f32 cache.
fn error(sizes: &Sizes, form: WeightForm) -> f64 {
    let run = |sizes: &Sizes, form| {
        let kv = sizes.kv();
        let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
        build(&mut backend, sizes, Dtype::Bf16, form, &Split::whole(sizes), limits(), Box::new(Solo)).unwrap();
        let chunk = Chunk { slot: 0, first: 0, tokens: tokens(3, 64, sizes.vocabulary), wanted: 64 };
        let found = forward(&mut backend, &kv, &[chunk]).unwrap();
        found.logits.iter().map(|bits| f32::from_bits(*bits) as f64).collect::<Vec<f64>>()
    };
    let (exact, found) = (run(&Sizes { kv_dtype: KvDtype::F32, ..*sizes }, WeightForm::Float), run(sizes, form));
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    (square(&mut exact.iter().zip(found).map(|(a, b)| a - b)) / square(&mut exact.iter().copied())).sqrt()
}

#[test]
fn quantised_logits_are_near_the_unquantised_ones() {
    let (eight, four) = (error(&TINY, WeightForm::Q8_0), error(&TINY, WeightForm::Q4_0));
    let (cache, half) = (error(&TINY_KV8, WeightForm::Float), error(&TINY_KV16, WeightForm::Float));
    let float = error(&TINY_KVF8, WeightForm::Float);
    println!(
        "relative error of logits: Q8_0 {eight:.4}, Q4_0 {four:.4}, 8-bit cache {cache:.4}, of bf16 {half:.4}, of e4m3 {float:.4}"
    );
    assert!(eight > 1e-4 && eight < 0.03 && four > eight && four < 0.4);
    assert!(half > 1e-5 && half < cache && cache < 0.03);
    // Four bits of mantissa fewer than bf16: each key and value is off by 16 times as much of itself, to first order logits too.
    assert!(float > 8.0 * half && float < 32.0 * half);
    let [four, five, six] = [WeightForm::Q4K, WeightForm::Q5K, WeightForm::Q6K].map(|form| error(&SUPER, form));
    println!("superblocks: Q4_K {four:.4}, Q5_K {five:.4}, Q6_K {six:.4}");
    assert!(six > 1e-3 && six < five && five < 0.7 * four && four < 0.3);
}

/// What integers and scales mean: products of a file's blocks, against the same blocks expanded to floats. They differ
/// by the rounding of the activations alone.
#[test]
fn blocks_of_a_file_mean_what_their_expanded_values_say() {
    let kv = SUPER.kv();
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
        let [expanded, stored] = [WeightForm::Float, WeightForm::Stored].map(|form| {
            let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
            build(&mut backend, &SUPER, dtype, form, &Split::whole(&SUPER), limits(), Box::new(Solo)).unwrap();
            let chunk = Chunk { slot: 0, first: 0, tokens: tokens(3, 40, SUPER.vocabulary), wanted: 40 };
            let found = forward(&mut backend, &kv, &[chunk]).unwrap();
            found.logits.iter().map(|bits| f32::from_bits(*bits) as f64).collect::<Vec<f64>>()
        });
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let error = (square(&mut expanded.iter().zip(&stored).map(|(a, b)| a - b))
            / square(&mut expanded.iter().copied()))
        .sqrt();
        println!("{dtype:?}: relative error of integer products {error:.5}");
        assert!(error > 1e-5 && error < 0.02, "{dtype:?}: {error}");
    }
}
