//! Products of bf16 on tensor cores, from end to end: a row's bits are the same whatever shares its step, and near to those of
//! a CPU. Exact forms are held to the CPU's bits by `bits.rs` and `golden.rs`, a GPU beside the CPUs.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)] // tests

mod common;

use common::*;
use polylink_kernels::*;

/// Grouped heads of 64 and 128 values, a model whose sizes are no multiples of a tile, a window.
const OF_64: Sizes = Sizes {
    layers: 2,
    hidden: 256,
    query_heads: 8,
    kv_heads: 2,
    head_dim: 64,
    mlp: 704,
    vocabulary: 1003,
    window: None,
    kv_dtype: KvDtype::Bf16,
};
const OF_128: Sizes = Sizes {
    layers: 2,
    hidden: 208,
    query_heads: 6,
    kv_heads: 2,
    head_dim: 128,
    mlp: 336,
    vocabulary: 517,
    window: Some(100),
    kv_dtype: KvDtype::Bf16,
};
const SIZES: [Sizes; 5] = [
    OF_64,
    OF_128,
    Sizes { kv_dtype: KvDtype::Fp8, ..OF_64 },
    Sizes { kv_dtype: KvDtype::Fp8, ..OF_128 },
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
        assert!(wrong.is_empty(), "head dimension {}, {:?}: {wrong:?}", sizes.head_dim, sizes.kv_dtype);
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

/// Llama 3.1 8B's.
const EIGHT: Sizes = Sizes {
    layers: 32,
    hidden: 4096,
    query_heads: 32,
    kv_heads: 8,
    head_dim: 128,
    mlp: 14336,
    vocabulary: 128_256,
    window: None,
    kv_dtype: KvDtype::Bf16,
};

/// Sizes of models whose steps are timed, with random weights: name, sizes.
const TIMED: [(&str, Sizes); 4] = [
    ("8b", EIGHT),
    ("8b-kv-fp8", Sizes { kv_dtype: KvDtype::Fp8, ..EIGHT }),
    (
        "1b",
        Sizes {
            layers: 16,
            hidden: 2048,
            query_heads: 32,
            kv_heads: 8,
            head_dim: 64,
            mlp: 8192,
            vocabulary: 128_256,
            window: None,
            kv_dtype: KvDtype::Bf16,
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
            kv_dtype: KvDtype::Bf16,
        },
    ),
];

/// Builds a model whose layers are copies of one random layer, each with memory of its own, of fp8 where `eight` says so. Returns
/// the bytes of weights that a step reads.
fn build_timed(backend: &mut dyn Backend, sizes: &Sizes, form: WeightForm, eight: bool, limits: Limits) -> usize {
    let Sizes { layers, hidden, query_heads, kv_heads, head_dim, mlp, vocabulary, .. } = *sizes;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize, k: usize| -> Vec<u8> {
        let scale = 1.7 / (k as f32).sqrt();
        let mut bytes = Vec::with_capacity(2 * n * k);
        for _ in 0..n * k {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let value = ((state >> 40) as f32 / 8_388_608.0 - 1.0) * scale;
            bytes.extend_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
        }
        bytes
    };
    let (q_all, kv_all) = (query_heads * head_dim, kv_heads * head_dim);
    let shapes = [
        [q_all, hidden],
        [kv_all, hidden],
        [kv_all, hidden],
        [hidden, q_all],
        [mlp, hidden],
        [mlp, hidden],
        [hidden, mlp],
        [vocabulary, hidden],
    ];
    let dtypes: [Dtype; 8] = std::array::from_fn(|index| if eight && index < 7 { Dtype::Fp8 } else { Dtype::Bf16 });
    let data: [Vec<u8>; 8] = std::array::from_fn(|index| {
        let [n, k] = shapes[index];
        let mut data = random(n, k);
        if dtypes[index] == Dtype::Fp8 {
            // Blocks of the same bytes, without NaN, and small scales.
            let block = |bytes: &[u8]| {
                let numbers: Vec<u8> = bytes.iter().map(|byte| if byte & 0x7f == 0x7f { 0 } else { *byte }).collect();
                [&numbers[..], &(0.01 / (k as f32).sqrt()).to_le_bytes()].concat()
            };
            data = data[..n * k].chunks(128).flat_map(block).collect();
        }
        data
    });
    let part = |index: usize| Part {
        tensor: TensorView { name: "random", shape: &shapes[index], dtype: dtypes[index], data: &data[index] },
        shard: Shard::whole(&shapes[index]),
    };
    let ones: Vec<u8> = (0..hidden).flat_map(|_| 1f32.to_le_bytes()).collect();
    let ones_shape = [hidden];
    let norm = Part {
        tensor: TensorView { name: "norm", shape: &ones_shape, dtype: Dtype::F32, data: &ones },
        shard: Shard::whole(&ones_shape),
    };
    let matrix = |backend: &mut dyn Backend, parts: &[usize], ranges: KRanges| {
        let parts: Vec<Part<'_>> = parts.iter().map(|&index| part(index)).collect();
        backend.prepare(&parts, ranges, form).unwrap()
    };
    let norm = backend.prepare(&[norm], KRanges::whole(1), WeightForm::Vector).unwrap();
    let table = matrix(backend, &[7], KRanges::whole(hidden));
    let head = matrix(backend, &[7], KRanges::whole(hidden));
    let mut builder = ProgramBuilder::new(sizes.kv(), vocabulary);
    let (x, h) = (builder.step_buffer(hidden), builder.step_buffer(hidden));
    let (qkv, mixed) = (builder.step_buffer(q_all + 2 * kv_all), builder.step_buffer(q_all));
    let (gate_up, act) = (builder.step_buffer(2 * mlp), builder.step_buffer(mlp));
    let frequencies = polylink_protocol::exact_math::rope_frequencies(500_000.0, head_dim);
    let rope = builder.rope(RopeSpec { frequencies, scale: 1.0, growth: None, long: None });
    let scale = 1.0 / (head_dim as f32).sqrt();
    let attention = AttentionSpec { query_heads, kv_heads, head_dim, scale, window: None, soft_cap: None };
    let onto = Epilogue { bias: None, residual: Some(x) };
    builder.push(Op::Embed { table, scale: 1.0, output: x });
    for layer in 0..layers {
        let weight = matrix(backend, &[0, 1, 2], KRanges::whole(hidden));
        builder.push(Op::RmsNorm { input: x, weight: norm, eps: 1e-5, residual: None, output: h });
        builder.push(Op::Gemm { weight, input: h, output: qkv, epilogue: Epilogue::default() });
        builder.push(Op::RopeAppend { layer, qkv, attention, rope });
        builder.push(Op::Attention { layer, qkv, output: mixed, attention });
        let weight = matrix(backend, &[3], KRanges::kv_groups(q_all, q_all / kv_heads));
        builder.push(Op::Gemm { weight, input: mixed, output: x, epilogue: onto });
        builder.push(Op::RmsNorm { input: x, weight: norm, eps: 1e-5, residual: None, output: h });
        let weight = matrix(backend, &[4, 5], KRanges::whole(hidden));
        builder.push(Op::Gemm { weight, input: h, output: gate_up, epilogue: Epilogue::default() });
        builder.push(Op::GatedMul { activation: Activation::Silu, input: gate_up, output: act });
        let weight = matrix(backend, &[6], KRanges::mlp(mlp));
        builder.push(Op::Gemm { weight, input: act, output: x, epilogue: onto });
    }
    let (last, normed) = (builder.wanted_buffer(hidden), builder.wanted_buffer(hidden));
    let logits = builder.wanted_buffer(vocabulary);
    builder.push(Op::GatherRows { input: x, output: last });
    builder.push(Op::RmsNorm { input: last, weight: norm, eps: 1e-5, residual: None, output: normed });
    builder.push(Op::Sketch { input: normed });
    builder.push(Op::Gemm { weight: head, input: normed, output: logits, epilogue: Epilogue::default() });
    backend.build(builder.finish(logits), limits, Box::new(Solo)).unwrap();
    let bits = if form == WeightForm::Q8_0 { 8.5 } else { 16.0 };
    let values = shapes[..7].iter().map(|[n, k]| n * k).sum::<usize>() * layers;
    let bits = [if eight { 8.25 } else { bits }, bits].map(|bits| bits / 8.0);
    (values as f64 * bits[0] + (vocabulary * hidden) as f64 * bits[1]) as usize
}

/// Seconds, all and on the device, of a step of `batch` sequences of `rows` rows that follow `before` others, and of their draws; the median of
/// several, as the engine would see it.
fn step_seconds(backend: &mut CudaBackend, batch: usize, before: usize, rows: usize, runs: usize) -> [f64; 2] {
    let per = (before + rows).div_ceil(32);
    let tables: Vec<u32> = (0..(batch * per) as u32).collect();
    let sequences: Vec<SequenceRows> = (0..batch as u32)
        .map(|slot| SequenceRows {
            slot,
            first_position: before as u32,
            rows: rows as u32,
            wanted: 1,
            blocks: Span { start: slot * per as u32, length: per as u32 },
            noise_key: key(),
            long: false,
        })
        .collect();
    let inputs: Vec<TokenInput> = (0..batch * rows).map(|i| TokenInput::Id((i * 7919 % 30_000) as u32)).collect();
    let none = Span::default();
    let params = SampleParams { temperature: 1.0, noise_key: key(), ..SampleParams::greedy() };
    let draws: Vec<SampleRow> = (0..batch as u32)
        .map(|row| SampleRow {
            row,
            slot: row,
            params,
            logit_bias: none,
            suppressed: none,
            mask: none,
            logprobs: None,
            given: None,
        })
        .collect();
    let mut output = StepOutput::default();
    let mut times: Vec<[f64; 2]> = (0..runs + 3)
        .map(|_| {
            let begun = std::time::Instant::now();
            let step = ForwardStep { sequences: &sequences, tokens: &inputs, block_tables: &tables, logits_out: false };
            let forward = backend.submit(&Step::Forward(step)).unwrap();
            let sample =
                SampleStep { starts: &[], histories: &[], rows: &draws, logit_bias: &[], suppressed: &[], masks: &[] };
            let sample = backend.submit(&Step::Sample(sample)).unwrap();
            backend.wait(forward, &mut output).unwrap();
            backend.wait(sample, &mut output).unwrap();
            [begun.elapsed().as_secs_f64(), backend.device_seconds().unwrap()]
        })
        .skip(3)
        .collect();
    times.sort_by(|a, b| a[0].total_cmp(&b[0]));
    times[times.len() / 2]
}

/// Whole steps, with all that is between kernels; printed where `POLYLINK_GPU_TIMES` names the models, as `8b,1b`. Shares are
/// of what reading the weights and the cache takes at 4.3 TB/s, and of 790 TFLOP/s: an H200's copy and product by others.
#[test]
fn times_of_steps() {
    let Ok(wanted) = std::env::var("POLYLINK_GPU_TIMES") else { return };
    for (name, sizes) in TIMED.iter().filter(|(name, _)| wanted.split(',').any(|wanted| wanted == *name)) {
        for (form, eight) in
            [(WeightForm::TensorBf16, false), (WeightForm::TensorBf16, true), (WeightForm::Q8_0, false)]
        {
            let Ok(mut backend) = CudaBackend::open(0) else { return };
            let (begun, large) = (std::time::Instant::now(), name.starts_with("8b"));
            let limits = Limits { rows: 8192, wanted_rows: 256, slots: 256, kv_blocks: 11_000, positions: 9_000 };
            let bytes = build_timed(&mut backend, sizes, form, eight, limits);
            let name = if eight { format!("{name} of fp8") } else { (*name).to_owned() };
            println!(
                "{name} {form:?}: {:.2} GB of weights, built in {:.1} s",
                bytes as f64 * 1e-9,
                begun.elapsed().as_secs_f64()
            );
            let head_bytes = if sizes.kv_dtype == KvDtype::Fp8 { sizes.head_dim + 4 } else { 2 * sizes.head_dim };
            let kv = 2.0 * (sizes.layers * sizes.kv_heads * head_bytes) as f64;
            let q_all = sizes.query_heads * sizes.head_dim;
            let Sizes { layers, hidden, mlp, kv_heads, head_dim, vocabulary, .. } = *sizes;
            let weights =
                (layers * hidden * (2 * q_all + 2 * kv_heads * head_dim + 3 * mlp) + vocabulary * hidden) as f64;
            for (batch, before) in [(1, 127), (1, 8000), (8, 1023), (32, 255), (64, 1023), (256, 1023)] {
                let [seconds, device] = step_seconds(&mut backend, batch, before, 1, 20);
                let read = bytes as f64 + kv * (batch * (before + 1)) as f64;
                println!(
                    "{name} {form:?}: decode of {batch} after {before}: {:.3} ms, {:.0} tok/s, {:.0} GB/s, {:.1} % of 4.3 TB/s, host {:.1} %",
                    seconds * 1e3,
                    batch as f64 / seconds,
                    read / seconds * 1e-9,
                    read / seconds / 4.3e12 * 100.0,
                    (seconds - device) / seconds * 100.0,
                );
            }
            for rows in [512, 2048, 8192] {
                let [seconds, _] = step_seconds(&mut backend, 1, 0, rows, if large { 3 } else { 5 });
                let head = (sizes.vocabulary * sizes.hidden) as f64;
                let attention = 2.0 * (rows * rows * q_all * sizes.layers) as f64;
                let flops = 2.0 * (weights - head) * rows as f64 + 2.0 * head + attention;
                println!(
                    "{name} {form:?}: prefill of {rows}: {:.2} ms, {:.0} tok/s, {:.0} TFLOP/s, {:.1} % of 790",
                    seconds * 1e3,
                    rows as f64 / seconds,
                    flops / seconds * 1e-12,
                    flops / seconds / 790e12 * 100.0,
                );
            }
        }
    }
}
