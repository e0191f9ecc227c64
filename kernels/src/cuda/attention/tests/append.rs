//! The append, bit for bit by the rules.

use polylink_protocol::exact_math::{f32_to_bf16, rope_frequencies, rope_turn};

use super::super::*;
use super::bench_case::{POISON, Random};
use crate::cuda::driver::{Device, DeviceBuffer};
use crate::cuda::inputs::{Counts, LONG};
use crate::sampler::fold_lanes;

const LAYERS: u32 = 3;
const LAYER: u32 = 1;
const ROWS: u32 = 37;

struct Shape {
    heads: (u32, u32, u32),
    pairs: u32,
    norms: bool,
    long: bool,
    /// Rows that the launch is made for.
    capacity: u32,
}

/// Rule 4 over one head.
fn normed(head: &mut [f32], weight: &[f32], eps: f32) {
    let mut lanes = [0f32; 64];
    for (i, &x) in head.iter().enumerate() {
        lanes[i % 64] = x.mul_add(x, lanes[i % 64]);
    }
    let scale = 1.0 / (fold_lanes(&mut lanes) / head.len() as f32 + eps).sqrt();
    head.iter_mut().zip(weight).for_each(|(x, weight)| *x = (*x * scale) * weight);
}

/// Rule 5's turn.
fn turned(head: &mut [f32], sine: &[f32], cosine: &[f32]) {
    let pairs = sine.len();
    for i in 0..pairs {
        let (low, high) = (head[i], head[i + pairs]);
        head[i] = low * cosine[i] - high * sine[i];
        head[i + pairs] = high * cosine[i] + low * sine[i];
    }
}

/// Says how many words differ, and where first.
fn differences(what: &str, got: &[u16], want: &[u16], unit: usize, found: &mut Vec<String>) {
    let bad: Vec<usize> = (0..want.len()).filter(|&i| got[i] != want[i]).collect();
    if let Some(&first) = bad.first() {
        found.push(format!(
            "  {what}: {} of {} differ, first at {first} (stretch {}, value {}): got {:04x} want {:04x}; next {:?}",
            bad.len(),
            want.len(),
            first / unit,
            first % unit,
            got[first],
            want[first],
            bad.iter().skip(1).take(5).collect::<Vec<_>>()
        ));
    }
}

fn check(device: &std::sync::Arc<Device>, shape: &Shape, random: &mut Random, found: &mut Vec<String>) {
    let (query_heads, kv_heads, dim) = shape.heads;
    let Shape { norms, long, pairs, capacity, .. } = *shape;
    let name = format!("{:?}, {pairs} pairs, norms {norms}, long {long}, {capacity} rows", shape.heads);
    let heads = AttentionShape { query_heads, kv_heads, head_dim: dim };
    let kernels = AttentionKernels::new(device, heads, KvDtype::Bf16, 64).unwrap();
    // Two sequences: rows 0 … 30 from position 5, then the rest from 100.
    let split = 31;
    let place = |row: u32| if row < split { (0, 5 + row) } else { (1, 100 + row - split) };
    let tables = [7u32, 0, 4, 1, 6, 3, 2];
    let (table_start, flags) = ([0u32, 2], [0, if shape.long { LONG } else { 0 }]);
    let (blocks, positions_max) = (9, 128);
    let per_row = (query_heads + 2 * kv_heads) * dim;
    let qkv: Vec<f32> = (0..capacity * per_row).map(|_| random.value() * 3.0).collect();
    let table = |base: f64| -> (Vec<f32>, Vec<f32>) {
        let frequencies = rope_frequencies(base, 2 * shape.pairs as usize);
        (0..positions_max).flat_map(|p| frequencies.iter().map(move |&f| rope_turn(p, f))).unzip()
    };
    let (short, long) = (table(10_000.0), table(500_000.0));
    let weights: Vec<f32> = (0..2 * dim).map(|_| 1.0 + random.value()).collect();
    let eps = 1e-6;

    let mut want_query = vec![POISON; (capacity * query_heads * dim) as usize];
    let mut want_cache = vec![POISON; (blocks * LAYERS * 2 * kv_heads * 32 * dim) as usize];
    let width = dim as usize;
    for row in 0..ROWS {
        let (sequence, position) = place(row);
        let (sine, cosine) = if flags[sequence] == LONG { &long } else { &short };
        let turn = (position * shape.pairs) as usize..((position + 1) * shape.pairs) as usize;
        let values = &qkv[(row * per_row) as usize..][..per_row as usize];
        for (head, values) in values.chunks(width).enumerate() {
            let (head, mut own) = (head as u32, values.to_vec());
            let is_value = head >= query_heads + kv_heads;
            if !is_value {
                let weight = if head < query_heads { &weights[..width] } else { &weights[width..] };
                if shape.norms {
                    normed(&mut own, weight, eps);
                }
                turned(&mut own, &sine[turn.clone()], &cosine[turn.clone()]);
            }
            let to = if head < query_heads {
                &mut want_query[((row * query_heads + head) * dim) as usize..][..width]
            } else {
                let part = u32::from(is_value);
                let block = tables[(table_start[sequence] + position / 32) as usize];
                let stretch = ((block * LAYERS + LAYER) * 2 + part) * kv_heads + head - query_heads - part * kv_heads;
                &mut want_cache[((stretch * 32 + position % 32) * dim) as usize..][..width]
            };
            to.iter_mut().zip(own).for_each(|(to, value)| *to = f32_to_bf16(value));
        }
    }

    let put = |values: &[f32]| device.from_slice(values).unwrap();
    let words = |values: Vec<u32>| device.from_slice(&values).unwrap();
    let poisoned = |values: usize| -> DeviceBuffer { device.from_slice(&vec![POISON; values]).unwrap() };
    let (qkv, query, cache) = (put(&qkv), poisoned(want_query.len()), poisoned(want_cache.len()));
    let tables_of = [put(&short.0), put(&short.1), put(&long.0), put(&long.1)];
    let norm_weights = put(&weights);
    // Rows beyond the count name positions and sequences that do not exist.
    let of_rows = |each: &dyn Fn(u32) -> u32| {
        words((0..capacity).map(|row| if row < ROWS { each(row) } else { u32::MAX }).collect())
    };
    let positions = of_rows(&|row| place(row).1);
    let sequence_of = of_rows(&|row| place(row).0 as u32);
    let counts = device.from_slice(&[Counts { rows: ROWS, sequences: 2, ..Counts::default() }]).unwrap();
    let (starts, flags, block_tables) = (words(table_start.to_vec()), words(flags.to_vec()), words(tables.to_vec()));
    let inputs = RowInputs {
        counts: counts.ptr(),
        positions: positions.ptr(),
        sequence_of: sequence_of.ptr(),
        table_start: starts.ptr(),
        flags: flags.ptr(),
        block_tables: block_tables.ptr(),
    };
    let rope = RopeTables {
        pairs: shape.pairs,
        sine: tables_of[0].ptr(),
        cosine: tables_of[1].ptr(),
        long: shape.long.then(|| (tables_of[2].ptr(), tables_of[3].ptr())),
    };
    let key_weights = norm_weights.ptr() + 4 * u64::from(dim);
    let norms = shape.norms.then(|| HeadNorms { query: norm_weights.ptr(), key: key_weights, eps });
    let layer = CacheLayer { cache: cache.ptr(), layer: LAYER, layers: LAYERS };
    let launch = kernels.append(&inputs, &layer, &rope, norms, [qkv.ptr(), query.ptr()], capacity as usize);
    launch.run(device).unwrap();
    let got: Vec<u16> = query.read(0, want_query.len()).unwrap();
    differences(&format!("{name}: queries"), &got, &want_query, width, found);
    let got: Vec<u16> = cache.read(0, want_cache.len()).unwrap();
    differences(&format!("{name}: cache"), &got, &want_cache, width, found);
}

#[test]
fn the_append_has_the_bits_of_the_rules() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("append");
    let mut found = Vec::new();
    for heads in [(8, 2, 128), (3, 3, 64), (4, 2, 80), (6, 2, 96), (4, 1, 256), (32, 8, 128)] {
        for (part, norms, long) in [(1, false, false), (1, true, false), (2, true, true), (4, false, true)] {
            for capacity in [ROWS + 11, 100] {
                let shape = Shape { heads, pairs: heads.2 / 2 / part, norms, long, capacity };
                check(&device, &shape, &mut random, &mut found);
            }
        }
    }
    assert!(found.is_empty(), "the append differs:\n{}", found.join("\n"));
}
