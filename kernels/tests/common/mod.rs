//! A tiny random Llama written against the public interface, whole or as one shard of several.
#![allow(dead_code)] // each test binary uses its own part

use std::ops::Range;

use polylink_kernels::*;
use polylink_protocol::exact_math::{f32_to_bf16, f32_to_e4m3_saturating, f32_to_f16_saturating, rope_frequencies};
use polylink_protocol::noise::{NoiseKey, noise_key, philox_4x32_10};

/// Sizes of the model.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mlp: usize,
    pub vocabulary: usize,
    pub window: Option<usize>,
    pub kv_dtype: KvDtype,
}

impl Sizes {
    /// The cache of the whole model.
    pub const fn kv(&self) -> KvSpec {
        KvSpec { layers: self.layers, heads: self.kv_heads, head_dim: self.head_dim, dtype: self.kv_dtype }
    }
}

pub const TINY: Sizes = Sizes {
    layers: 2,
    hidden: 96,
    query_heads: 6,
    kv_heads: 3,
    head_dim: 32,
    mlp: 192,
    vocabulary: 199,
    window: None,
    kv_dtype: KvDtype::F32,
};

/// The same with a cache of bf16.
pub const TINY_KV16: Sizes = Sizes { kv_dtype: KvDtype::Bf16, ..TINY };

/// The same with a cache of 8-bit integers.
pub const TINY_KV8: Sizes = Sizes { kv_dtype: KvDtype::Int8, ..TINY };

/// The same with a cache of e4m3.
pub const TINY_KVF8: Sizes = Sizes { kv_dtype: KvDtype::Fp8, ..TINY };

/// Inputs in whole superblocks, but ranges that end within them.
pub const SUPER: Sizes = Sizes {
    layers: 1,
    hidden: 256,
    query_heads: 8,
    kv_heads: 4,
    head_dim: 32,
    mlp: 768,
    vocabulary: 199,
    window: None,
    kv_dtype: KvDtype::F32,
};

/// A GPU, where this program has kernels for one and the machine has it; else says why not.
pub fn cuda() -> Option<Box<dyn Backend>> {
    #[cfg(feature = "cuda")]
    match CudaBackend::open(0) {
        Ok(backend) => return Some(Box::new(backend)),
        Err(reason) => println!("skipped: no CUDA device ({reason})"),
    }
    None
}

/// What one device of several holds.
#[derive(Clone)]
pub struct Split {
    pub rank: usize,
    pub kv_heads: Vec<Range<usize>>,
    pub mlp: Vec<Range<usize>>,
    pub vocabulary: Vec<Range<usize>>,
}

impl Split {
    pub fn whole(sizes: &Sizes) -> Self {
        let one = |n| std::iter::once(0..n).collect();
        Self { rank: 0, kv_heads: one(sizes.kv_heads), mlp: one(sizes.mlp), vocabulary: one(sizes.vocabulary) }
    }
}

/// Uniform values in −1..1 from a counter: the same on every machine.
pub fn uniform(stream: u32, index: u32) -> f32 {
    unit(philox_4x32_10([index / 4, stream, 0, 0], 0x7465_7374)[(index % 4) as usize])
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / 8_388_608.0 - 1.0
}

/// A named tensor.
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub data: Vec<u8>,
}

impl Tensor {
    pub fn random(name: &str, stream: u32, shape: &[usize], dtype: Dtype, scale: f32, offset: f32) -> Self {
        let count: usize = shape.iter().product();
        let words = (0..count.div_ceil(4) as u32).flat_map(|i| philox_4x32_10([i, stream, 0, 0], 0x7465_7374));
        let values = words.take(count).map(|word| unit(word) * scale + offset);
        let data = match dtype {
            _ if !dtype.is_float() => return Self::blocks(name, stream, shape, dtype, scale),
            Dtype::Bf16 => values.flat_map(|value| f32_to_bf16(value).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        let dtype = if dtype == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        Self { name: name.into(), shape: shape.to_vec(), dtype, data }
    }

    /// Blocks of random integers and scales, as a file might hold them, with values about as large as `scale`.
    fn blocks(name: &str, stream: u32, shape: &[usize], dtype: Dtype, scale: f32) -> Self {
        if dtype == Dtype::Fp8 {
            return Self::fp8(name, stream, shape, scale);
        }
        let count = dtype.bytes(shape).expect("whole blocks");
        let mut data: Vec<u8> = (0..count as u32).map(|i| ((uniform(stream, i) + 1.0) * 128.0) as u8).collect();
        // Where a block's f16 scales lie, and how many of them make a value of 1.
        let (places, steps): (&[usize], &[f32]) = match dtype {
            Dtype::Q8_0 => (&[0], &[127.0]),
            Dtype::Q4_0 => (&[0], &[8.0]),
            Dtype::Q4K => (&[0, 2], &[500.0, 60.0]),
            Dtype::Q5K => (&[0, 2], &[1000.0, 60.0]),
            _ => (&[208], &[2000.0]),
        };
        for block in data.chunks_exact_mut(dtype.block().1) {
            for (&place, &steps) in places.iter().zip(steps) {
                let d = f32_to_f16_saturating(scale / steps * (1.0 + block[place] as f32 / 256.0));
                block[place..place + 2].copy_from_slice(&d.to_le_bytes());
            }
        }
        Self { name: name.into(), shape: shape.to_vec(), dtype, data }
    }

    /// Numbers of e4m3 of all sizes, and scales.
    fn fp8(name: &str, stream: u32, shape: &[usize], scale: f32) -> Self {
        let mut data = Vec::new();
        let (block, bytes) = Dtype::Fp8.block();
        for index in 0..(Dtype::Fp8.bytes(shape).expect("whole blocks") / bytes) as u32 {
            let values = (0..block as u32).map(|i| uniform(stream, index * block as u32 + i) * 256.0);
            data.extend(values.map(f32_to_e4m3_saturating));
            data.extend((scale / 256.0 * (1.25 + uniform(stream + 500, index) / 4.0)).to_le_bytes());
        }
        Self { name: name.into(), shape: shape.to_vec(), dtype: Dtype::Fp8, data }
    }

    pub fn view(&self) -> TensorView<'_> {
        TensorView { name: &self.name, shape: &self.shape, dtype: self.dtype, data: &self.data }
    }
}

/// Prepares and builds the model on a backend. All ranks must use the same sizes, dtype and form.
pub fn build(
    backend: &mut dyn Backend,
    sizes: &Sizes,
    dtype: Dtype,
    form: WeightForm,
    split: &Split,
    limits: Limits,
    collective: Box<dyn Collective>,
) -> Result<(), BackendError> {
    let Sizes { layers, hidden, query_heads, kv_heads, head_dim, mlp, vocabulary, window, kv_dtype } = *sizes;
    let (rank, group) = (split.rank, query_heads / kv_heads);
    let (kv, columns, tokens) = (&split.kv_heads[rank], &split.mlp[rank], &split.vocabulary[rank]);
    let queries = kv.start * group..kv.end * group;
    let by_dim = |heads: &Range<usize>| heads.start * head_dim..heads.end * head_dim;
    let matrix = |name: &str, stream: u32, n: usize, k: usize| {
        // Files mix types: values and down projections are often finer.
        let dtype = match (name, dtype) {
            ("v" | "down", Dtype::Q4K) => Dtype::Q6K,
            ("v", Dtype::Q5K) => Dtype::Bf16,
            _ => dtype,
        };
        Tensor::random(name, stream, &[n, k], dtype, 1.5 / (k as f32).sqrt(), 0.0)
    };
    let norm = |stream: u32| Tensor::random("norm", stream, &[hidden], Dtype::F32, 0.2, 1.0);

    let mut stream = 0;
    let mut next = || {
        stream += 1;
        stream
    };
    let vector = |backend: &mut dyn Backend, tensor: &Tensor| {
        let part = Part { tensor: tensor.view(), shard: Shard::whole(&tensor.shape) };
        backend.prepare(&[part], KRanges::whole(1), WeightForm::Vector)
    };
    let embedding = Tensor::random("embedding", 1000, &[vocabulary, hidden], dtype, 1.0, 0.0);
    let part = Part { tensor: embedding.view(), shard: Shard::whole(&embedding.shape) };
    let table = backend.prepare(&[part], KRanges::whole(hidden), form)?;

    let mut builder = ProgramBuilder::new(KvSpec { layers, heads: kv.len(), head_dim, dtype: kv_dtype }, vocabulary);
    let (x, h) = (builder.step_buffer(hidden), builder.step_buffer(hidden));
    let qkv = builder.step_buffer((queries.len() + 2 * kv.len()) * head_dim);
    let mixed = builder.step_buffer(queries.len() * head_dim);
    let (gate_up, act) = (builder.step_buffer(2 * columns.len()), builder.step_buffer(columns.len()));
    let rope = builder.rope(RopeSpec {
        frequencies: rope_frequencies(10_000.0, head_dim),
        scale: 1.0,
        growth: None,
        long: None,
    });
    let attention = AttentionSpec {
        query_heads: queries.len(),
        kv_heads: kv.len(),
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
        soft_cap: None,
    };
    let onto = |buffer| Epilogue { bias: None, residual: Some(buffer) };
    builder.push(Op::Embed { table, scale: 1.0, output: x });
    for layer in 0..layers {
        let norm_weight = vector(backend, &norm(next()))?;
        let (q, k) =
            (matrix("q", next(), query_heads * head_dim, hidden), matrix("k", next(), kv_heads * head_dim, hidden));
        let (v, o) =
            (matrix("v", next(), kv_heads * head_dim, hidden), matrix("o", next(), hidden, query_heads * head_dim));
        let rows = |tensor: &Tensor, rows: Range<usize>| Shard::rows(rows, tensor.shape[1]);
        let parts = [
            Part { tensor: q.view(), shard: rows(&q, by_dim(&queries)) },
            Part { tensor: k.view(), shard: rows(&k, by_dim(kv)) },
            Part { tensor: v.view(), shard: rows(&v, by_dim(kv)) },
        ];
        let qkv_weight = backend.prepare(&parts, KRanges::whole(hidden), form)?;
        let bias = Tensor::random("bias", next(), &[(query_heads + 2 * kv_heads) * head_dim], Dtype::F32, 0.1, 0.0);
        let offsets = [0, query_heads * head_dim, (query_heads + kv_heads) * head_dim];
        let bias_parts: Vec<Part<'_>> = [by_dim(&queries), by_dim(kv), by_dim(kv)]
            .into_iter()
            .zip(offsets)
            .map(|(rows, offset)| Part {
                tensor: bias.view(),
                shard: Shard { rows: offset + rows.start..offset + rows.end, columns: 0..1 },
            })
            .collect();
        let bias = backend.prepare(&bias_parts, KRanges::whole(1), WeightForm::Vector)?;

        let o_ranges = KRanges::kv_groups(query_heads * head_dim, group * head_dim);
        let part = Part { tensor: o.view(), shard: Shard::columns(hidden, by_dim(&queries)) };
        let o_weight = backend.prepare(&[part], o_ranges, form)?;
        let o_planes: Vec<usize> = split
            .kv_heads
            .iter()
            .map(|kv| o_ranges.planes(&(kv.start * group * head_dim..kv.end * group * head_dim)))
            .collect();

        builder.push(Op::RmsNorm { input: x, weight: norm_weight, eps: 1e-5, residual: None, output: h });
        builder.push(Op::Gemm {
            weight: qkv_weight,
            input: h,
            output: qkv,
            epilogue: Epilogue { bias: Some(bias), residual: None },
        });
        builder.push(Op::RopeAppend { layer, qkv, attention, rope });
        builder.push(Op::Attention { layer, qkv, output: mixed, attention });
        builder.row_parallel(o_weight, mixed, &o_planes, rank, onto(x), x);

        let norm_weight = vector(backend, &norm(next()))?;
        let (gate, up) = (matrix("gate", next(), mlp, hidden), matrix("up", next(), mlp, hidden));
        let parts = [
            Part { tensor: gate.view(), shard: rows(&gate, columns.clone()) },
            Part { tensor: up.view(), shard: rows(&up, columns.clone()) },
        ];
        let gate_up_weight = backend.prepare(&parts, KRanges::whole(hidden), form)?;
        let down = matrix("down", next(), hidden, mlp);
        let part = Part { tensor: down.view(), shard: Shard::columns(hidden, columns.clone()) };
        let down_weight = backend.prepare(&[part], KRanges::mlp(mlp), form)?;
        let down_planes: Vec<usize> = split.mlp.iter().map(|columns| KRanges::mlp(mlp).planes(columns)).collect();
        builder.push(Op::RmsNorm { input: x, weight: norm_weight, eps: 1e-5, residual: None, output: h });
        builder.push(Op::Gemm { weight: gate_up_weight, input: h, output: gate_up, epilogue: Epilogue::default() });
        builder.push(Op::GatedMul { activation: Activation::Silu, input: gate_up, output: act });
        builder.row_parallel(down_weight, act, &down_planes, rank, onto(x), x);
    }
    let (last, normed) = (builder.wanted_buffer(hidden), builder.wanted_buffer(hidden));
    let logits = builder.wanted_buffer(vocabulary);
    let norm_weight = vector(backend, &norm(next()))?;
    builder.push(Op::GatherRows { input: x, output: last });
    builder.push(Op::RmsNorm { input: last, weight: norm_weight, eps: 1e-5, residual: None, output: normed });
    builder.push(Op::Sketch { input: normed });
    let head = if split.vocabulary.len() == 1 {
        table // tied: the embedding itself
    } else {
        let part = Part { tensor: embedding.view(), shard: Shard::rows(tokens.clone(), hidden) };
        backend.prepare(&[part], KRanges::whole(hidden), form)?
    };
    let widths: Vec<usize> = split.vocabulary.iter().map(|tokens| tokens.len()).collect();
    builder.column_parallel_gathered(head, normed, &widths, rank, logits);
    backend.build(builder.finish(logits), limits, collective)
}

pub fn limits() -> Limits {
    Limits { rows: 640, wanted_rows: 640, slots: 8, kv_blocks: 400, positions: 700 }
}

pub fn key() -> NoiseKey {
    noise_key(b"test", 0)
}

/// The block table of a slot: its own stretch of blocks, in a scattered order.
pub fn blocks(backend: &dyn Backend, slot: u32, kv: &KvSpec) -> Vec<u32> {
    let tokens = backend.kv_layout(kv).block_tokens;
    let count = 720u32.div_ceil(tokens as u32).min(limits().kv_blocks as u32 / 4);
    (0..count).map(|i| slot % 4 * count + (i * 7 + 3) % count).collect()
}

/// Bits of a forward step over whole chunks: (logits, sketches) of the wanted rows.
#[derive(Clone)]
pub struct Forward {
    pub logits: Vec<u32>,
    pub sketches: Vec<[u16; SKETCH_VALUES]>,
}

/// One sequence's rows of a step.
#[derive(Clone)]
pub struct Chunk {
    pub slot: u32,
    pub first: usize,
    pub tokens: Vec<u32>,
    pub wanted: u32,
}

/// Runs a step of chunks. `capacity` tells how many blocks of `blocks()` there are.
pub fn forward(backend: &mut dyn Backend, kv: &KvSpec, chunks: &[Chunk]) -> Result<Forward, BackendError> {
    let (mut tables, mut tokens, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        let blocks = blocks(backend, chunk.slot, kv);
        let span = Span { start: tables.len() as u32, length: blocks.len() as u32 };
        tables.extend(blocks);
        tokens.extend(chunk.tokens.iter().map(|&token| TokenInput::Id(token)));
        sequences.push(SequenceRows {
            slot: chunk.slot,
            first_position: chunk.first as u32,
            rows: chunk.tokens.len() as u32,
            wanted: chunk.wanted,
            blocks: span,
            noise_key: key(),
            long: false,
        });
    }
    let step = ForwardStep { sequences: &sequences, tokens: &tokens, block_tables: &tables, logits_out: true };
    let mut output = StepOutput::default();
    let ticket = backend.submit(&Step::Forward(step))?;
    backend.wait(ticket, &mut output)?;
    let logits = output.logits.iter().map(|logit| logit.to_bits()).collect();
    Ok(Forward { logits, sketches: output.sketches })
}

/// Some tokens of the vocabulary.
pub fn tokens(stream: u32, count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count as u32)
        .map(|i| ((uniform(9000 + stream, i) * 0.5 + 0.5) * vocabulary as f32) as u32 % vocabulary as u32)
        .collect()
}
