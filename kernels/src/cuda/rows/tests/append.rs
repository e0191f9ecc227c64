//! What the cache keeps, and how queries are turned, against the definition with a cache of its own.

use super::super::{Append, RopeAddresses};
use super::{Bench, Random, Report, checks};
use crate::backend::{KvDtype, KvSpec};
use crate::cuda::inputs::{LONG, StepInputs};
use crate::operations::{Batch, Operations, RopeTable};
use crate::program::{AttentionSpec, RopeSpec};
use crate::reference::ReferenceOperations;
use crate::step::{SequenceRows, Span};
use polylink_protocol::exact_math::{f32_to_bf16, f32_to_e4m3_saturating, rope_frequencies};
use polylink_protocol::noise::NoiseKey;

/// Positions of a block on the device, and of one in the definition's cache.
const BLOCK: usize = 32;
const PLAIN_BLOCK: usize = 8;
const POSITIONS: usize = 400;
const EPS: f32 = 1e-6;

#[derive(Clone, Copy, Debug)]
struct Shape {
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    layers: usize,
    layer: usize,
    norms: bool,
    long: bool,
}

/// A step of some sequences: what the definition and what the device is given.
struct Rows {
    sequences: Vec<SequenceRows>,
    sequence_of: Vec<u32>,
    positions: Vec<u32>,
    /// Per sequence, of blocks of 32.
    tables: Vec<u32>,
    blocks: usize,
}

fn rows(random: &mut Random, spans: &[(usize, usize, bool)]) -> Rows {
    let blocks: usize = spans.iter().map(|(first, rows, _)| (first + rows).div_ceil(BLOCK)).sum::<usize>() + 3;
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let mut step =
        Rows { sequences: Vec::new(), sequence_of: Vec::new(), positions: Vec::new(), tables: Vec::new(), blocks };
    for (index, &(first, rows, long)) in spans.iter().enumerate() {
        let length = (first + rows).div_ceil(BLOCK);
        let start = step.tables.len() as u32;
        for _ in 0..length {
            let picked = random.below(free.len());
            step.tables.push(free.swap_remove(picked));
        }
        step.sequences.push(SequenceRows {
            slot: index as u32,
            first_position: first as u32,
            rows: rows as u32,
            wanted: 0,
            blocks: Span { start, length: length as u32 },
            noise_key: NoiseKey(0),
            long,
        });
        step.sequence_of.extend(std::iter::repeat_n(index as u32, rows));
        step.positions.extend((first..first + rows).map(|position| position as u32));
    }
    step
}

impl Rows {
    /// The same for blocks of 8, four of which make one of 32.
    fn plain(&self) -> (Vec<SequenceRows>, Vec<u32>) {
        let times = (BLOCK / PLAIN_BLOCK) as u32;
        let of = |span: Span| Span { start: span.start * times, length: span.length * times };
        let sequences = self.sequences.iter().map(|one| SequenceRows { blocks: of(one.blocks), ..*one }).collect();
        let tables = self.tables.iter().flat_map(|block| (0..times).map(move |part| block * times + part)).collect();
        (sequences, tables)
    }
}

/// `paired`: numbers of e4m3 in pairs.
fn check(
    bench: &Bench,
    random: &mut Random,
    report: &mut Report,
    shape: Shape,
    (dtype, paired): (KvDtype, bool),
    spare: usize,
) {
    let Shape { query_heads, kv_heads, head_dim, pairs, layers, layer, norms, long } = shape;
    let spans = [(0, 5, false), (31, 2, true), (64, 1, long), (100, 170, false), (399, 1, true)];
    let step = rows(random, &spans);
    let used = step.positions.len();
    let bucket = used + spare;
    let spec = AttentionSpec { query_heads, kv_heads, head_dim, scale: 1.0, window: None, soft_cap: None };
    let kv = KvSpec { layers, heads: kv_heads, head_dim, dtype };
    let frequencies = rope_frequencies(10_000.0, 2 * pairs);
    let slower: Vec<f32> = frequencies.iter().map(|frequency| frequency / 4.0).collect();
    let rope = RopeSpec { frequencies, scale: 1.0, growth: None, long: long.then_some(slower) };
    let table = RopeTable::new(&rope, POSITIONS);
    let width = (query_heads + 2 * kv_heads) * head_dim;
    let mut qkv = random.values(bucket * width);
    // Values that are too large for e4m3, and too small.
    for (row, values) in qkv.chunks_mut(width).map(|row| &mut row[(query_heads + kv_heads) * head_dim..]).enumerate() {
        let size = [1e5, 1e-36, 1.0, 1.0][row % 4];
        values.iter_mut().for_each(|value| *value *= size);
    }
    let (query, key) = (random.weights(head_dim), random.weights(head_dim));

    // The definition.
    let (sequences, tables) = step.plain();
    let batch = Batch {
        sequences: &sequences,
        block_tables: &tables,
        sequence_of: &step.sequence_of,
        positions: &step.positions,
    };
    let mut reference = ReferenceOperations::default();
    let mut plain_cache = vec![f32::NAN; step.blocks * (BLOCK / PLAIN_BLOCK) * reference.block_floats(&kv)];
    let mut turned = qkv[..used * width].to_vec();
    if norms {
        reference.head_norm(&spec, [&query, &key], EPS, &mut turned).expect("one thread");
    }
    reference.rope_append(&spec, &table, &batch, &kv, layer, &mut plain_cache, &mut turned).expect("one thread");

    // The device.
    let part_bytes = match dtype {
        KvDtype::F32 => BLOCK * head_dim * 4,
        KvDtype::Bf16 => BLOCK * head_dim * 2,
        KvDtype::Int8 | KvDtype::Fp8 => BLOCK * (head_dim + 4),
    };
    let cache_bytes = step.blocks * layers * 2 * kv_heads * part_bytes;
    let (held, cache) = (bench.upload(&qkv), bench.poisoned(cache_bytes));
    let mut positions = step.positions.clone();
    let mut sequence_of = step.sequence_of.clone();
    // Rows that are not in use name what must not be touched.
    positions.resize(bucket, u32::MAX);
    sequence_of.resize(bucket, u32::MAX);
    let counts = bench.upload(&[used as u32, 0, spans.len() as u32, 0, 0, 0, 0, 0]);
    let starts: Vec<u32> = step.sequences.iter().map(|one| one.blocks.start).collect();
    let flags: Vec<u32> = step.sequences.iter().map(|one| if one.long { LONG } else { 0 }).collect();
    let words = [&positions, &sequence_of, &starts, &flags, &step.tables].map(|words| bench.upload(words));
    let turns = [&table.sine, &table.cosine].map(|values| bench.upload(values));
    let far = table.long.as_ref().map(|(sine, cosine)| [bench.upload(sine), bench.upload(cosine)]);
    let (by_query, by_key) = (bench.upload(&query), bench.upload(&key));
    let inputs = StepInputs {
        counts: counts.ptr(),
        tokens: 0,
        positions: words[0].ptr(),
        sequence_of: words[1].ptr(),
        first_row: 0,
        sequence_rows: 0,
        first_position: 0,
        table_start: words[2].ptr(),
        flags: words[3].ptr(),
        wanted: 0,
        sketch_key: 0,
        sketch_position: 0,
        plan: 0,
        block_tables: words[4].ptr(),
    };
    let append = Append {
        spec: &spec,
        kv: &kv,
        layer,
        qkv: held.ptr(),
        norms: norms.then_some((by_query.ptr(), by_key.ptr(), EPS)),
        rope: RopeAddresses {
            pairs,
            sine: turns[0].ptr(),
            cosine: turns[1].ptr(),
            long_sine: far.as_ref().map_or(0, |far| far[0].ptr()),
            long_cosine: far.as_ref().map_or(0, |far| far[1].ptr()),
        },
        inputs: &inputs,
        cache: cache.ptr(),
        paired,
    };
    let what = format!("{dtype:?}{} {shape:?} {used} of {bucket} rows", if paired { " in pairs" } else { "" });
    bench.run(&what, &bench.kernels.append(bucket, &append));

    let got = held.read::<f32>(0, used * width).expect("a copy");
    let queries = query_heads * head_dim;
    let only = |values: &[f32]| values.chunks(width).flat_map(|row| row[..queries].to_vec()).collect::<Vec<_>>();
    report.floats(&format!("{what}: queries"), &only(&turned), &only(&got), queries);

    // Every byte of the cache: what was appended as expected, the rest as it was.
    let got = cache.read::<u8>(0, cache_bytes).expect("a copy");
    let mut expected = vec![0xffu8; cache_bytes];
    for (row, &position) in step.positions.iter().enumerate() {
        let position = position as usize;
        let span = step.sequences[step.sequence_of[row] as usize].blocks;
        let block = step.tables[span.start as usize + position / BLOCK] as usize;
        let plain = block * (BLOCK / PLAIN_BLOCK) + position % BLOCK / PLAIN_BLOCK;
        for part in 0..2 {
            for head in 0..kv_heads {
                let number = |block: usize| ((block * layers + layer) * 2 + part) * kv_heads + head;
                let at = (number(plain) * PLAIN_BLOCK + position % PLAIN_BLOCK) * (1 + head_dim);
                let (scale, values) = (plain_cache[at], &plain_cache[at + 1..][..head_dim]);
                let (start, token) = (number(block) * part_bytes, position % BLOCK);
                let mut put = |at: usize, bytes: &[u8]| expected[start + at..][..bytes.len()].copy_from_slice(bytes);
                for (d, &value) in values.iter().enumerate() {
                    match dtype {
                        KvDtype::F32 => put((token * head_dim + d) * 4, &value.to_le_bytes()),
                        KvDtype::Bf16 => put((token * head_dim + d) * 2, &f32_to_bf16(value).to_le_bytes()),
                        KvDtype::Int8 => put(token * head_dim + d, &(value as i8).to_le_bytes()),
                        KvDtype::Fp8 => {
                            // Of 16 values, the one of number j lies beside that of number j + 8.
                            let place = if paired { d / 16 * 16 + d % 8 * 2 + d % 16 / 8 } else { d };
                            put(token * head_dim + place, &[f32_to_e4m3_saturating(value)]);
                        }
                    }
                }
                if matches!(dtype, KvDtype::Int8 | KvDtype::Fp8) {
                    put(BLOCK * head_dim + 4 * token, &scale.to_le_bytes());
                }
            }
        }
    }
    let words =
        |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>();
    report.bits(&format!("{what}: cache"), &words(&expected), &words(&got), |word| {
        let (part, within) = (4 * word / part_bytes, 4 * word % part_bytes);
        let (head, part) = (part % kv_heads, part / kv_heads);
        format!("block {} layer {} part {} head {head} byte {within}", part / 2 / layers, part / 2 % layers, part % 2)
    });
}

fn appended_keys_values_and_turned_queries_have_the_references_bits(bench: &Bench) {
    let (mut random, mut report) = (Random::new("append"), Report::default());
    let llama =
        Shape { query_heads: 8, kv_heads: 2, head_dim: 128, pairs: 64, layers: 2, layer: 1, norms: false, long: false };
    let shapes = [
        llama,
        Shape { norms: true, layer: 0, ..llama },
        Shape { query_heads: 3, kv_heads: 1, head_dim: 16, pairs: 8, layers: 1, layer: 0, ..llama },
        Shape { query_heads: 4, kv_heads: 4, head_dim: 64, pairs: 32, long: true, ..llama },
        Shape { head_dim: 80, pairs: 16, norms: true, ..llama },
        Shape { head_dim: 96, pairs: 48, long: true, ..llama },
        Shape { head_dim: 256, pairs: 128, norms: true, ..llama },
        Shape { query_heads: 2, kv_heads: 1, head_dim: 512, pairs: 200, norms: true, long: true, ..llama },
    ];
    for shape in shapes {
        let whole = [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8].map(|dtype| (dtype, false));
        for dtype in whole.into_iter().chain([(KvDtype::Fp8, true)]) {
            for spare in [0, 13] {
                check(bench, &mut random, &mut report, shape, dtype, spare);
            }
        }
    }
    report.finish("append");
}

checks!(appended_keys_values_and_turned_queries_have_the_references_bits);
