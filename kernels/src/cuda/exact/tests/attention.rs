//! Attention against [`ReferenceOperations::attention`].

use polylink_protocol::exact_math::f32_to_bf16;
use polylink_protocol::noise::NoiseKey;

use super::*;
use crate::backend::{KvDtype, KvSpec};
use crate::cuda::backend::BLOCK_TOKENS;
use crate::cuda::exact::attention::{AttentionIo, ExactAttention, PlannedSequence, calls, kernel, tiles_of};
use crate::operations::{Batch, Operations, RopeTable};
use crate::program::AttentionSpec;
use crate::quantise;
use crate::reference::ReferenceOperations;
use crate::step::{SequenceRows, Span};

/// A sequence of a case: its rows in the step are positions `first .. first + rows`.
#[derive(Clone, Copy)]
struct Sequence {
    first: usize,
    rows: usize,
}

/// All positions' q, k, v of a sequence, `[positions][width]`.
type Everything = Vec<Vec<f32>>;

/// Block tables of sequences in blocks of so many positions: the numbers run backwards, so that none is where it is by chance.
fn tables(sequences: &[Sequence], tokens: usize) -> (Vec<u32>, Vec<usize>, usize) {
    let lengths: Vec<usize> = sequences.iter().map(|s| (s.first + s.rows).div_ceil(tokens)).collect();
    let total: usize = lengths.iter().sum();
    let starts = lengths.iter().scan(0, |at, length| Some(std::mem::replace(at, *at + length))).collect();
    ((0..total as u32).rev().collect(), starts, total)
}

fn rows_of(sequence: usize, first: usize, rows: usize, table: (usize, usize)) -> SequenceRows {
    SequenceRows {
        slot: sequence as u32,
        first_position: first as u32,
        rows: rows as u32,
        wanted: 0,
        blocks: Span { start: table.0 as u32, length: table.1 as u32 },
        noise_key: NoiseKey(0),
        long: false,
    }
}

/// What the definition gives for the sequences' rows, `[rows][query_heads × head_dim]`.
fn expected(spec: &AttentionSpec, kv: &KvSpec, layer: usize, sequences: &[Sequence], all: &Everything) -> Vec<f32> {
    let mut reference = ReferenceOperations::default();
    let (table, starts, blocks) = tables(sequences, reference.block_tokens());
    let mut cache = vec![f32::NAN; blocks * reference.block_floats(kv)];
    let width = (spec.query_heads + 2 * spec.kv_heads) * spec.head_dim;
    let rope = RopeTable { pairs: 0, sine: Vec::new(), cosine: Vec::new(), long: None };
    let mut output = Vec::new();
    for (index, sequence) in sequences.iter().enumerate() {
        let end = sequence.first + sequence.rows;
        let span = (starts[index], end.div_ceil(reference.block_tokens()));
        let mut of = |first: usize, work: &mut dyn FnMut(&Batch<'_>, &mut ReferenceOperations)| {
            let rows = [rows_of(index, first, end - first, span)];
            let positions: Vec<u32> = (first as u32..end as u32).collect();
            let sequence_of = vec![0; positions.len()];
            let batch =
                Batch { sequences: &rows, block_tables: &table, sequence_of: &sequence_of, positions: &positions };
            work(&batch, &mut reference);
        };
        let mut qkv = all[index].clone();
        of(0, &mut |batch, reference| {
            reference.rope_append(spec, &rope, batch, kv, layer, &mut cache, &mut qkv).unwrap();
        });
        let mut out = vec![f32::NAN; sequence.rows * spec.query_heads * spec.head_dim];
        of(sequence.first, &mut |batch, reference| {
            let qkv = &all[index][sequence.first * width..];
            reference.attention(spec, batch, kv, layer, &cache, qkv, &mut out).unwrap();
        });
        output.extend(out);
    }
    output
}

/// The cache as `kv_layout.cuh` says, what nobody wrote being NaN.
fn device_cache(
    spec: &AttentionSpec,
    kv: &KvSpec,
    layer: usize,
    sequences: &[Sequence],
    all: &Everything,
    (table, starts, blocks): &(Vec<u32>, Vec<usize>, usize),
) -> Vec<u8> {
    let (dim, width) = (spec.head_dim, (spec.query_heads + 2 * spec.kv_heads) * spec.head_dim);
    let head_bytes = BLOCK_TOKENS
        * match kv.dtype {
            KvDtype::F32 => 4 * dim,
            KvDtype::Bf16 => 2 * dim,
            KvDtype::Int8 | KvDtype::Fp8 => dim + 4,
        };
    let mut cache = vec![0xff; blocks * kv.layers * 2 * kv.heads * head_bytes];
    for (index, sequence) in sequences.iter().enumerate() {
        for position in 0..sequence.first + sequence.rows {
            let block = table[starts[index] + position / BLOCK_TOKENS] as usize;
            let token = position % BLOCK_TOKENS;
            for (part, head) in (0..2).flat_map(|part| (0..kv.heads).map(move |head| (part, head))) {
                let from = position * width + (spec.query_heads + part * kv.heads + head) * dim;
                let values = &all[index][from..from + dim];
                let start = (((block * kv.layers + layer) * 2 + part) * kv.heads + head) * head_bytes;
                let to = &mut cache[start..start + head_bytes];
                match kv.dtype {
                    KvDtype::F32 => {
                        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                        to[token * dim * 4..][..dim * 4].copy_from_slice(&bytes);
                    }
                    KvDtype::Bf16 => {
                        let bytes: Vec<u8> = values.iter().flat_map(|&v| f32_to_bf16(v).to_le_bytes()).collect();
                        to[token * dim * 2..][..dim * 2].copy_from_slice(&bytes);
                    }
                    KvDtype::Int8 => {
                        let mut quants = vec![0i8; dim];
                        let scale = quantise::vector(values, &mut quants);
                        to[token * dim..][..dim].copy_from_slice(&quants.iter().map(|&q| q as u8).collect::<Vec<_>>());
                        to[BLOCK_TOKENS * dim + token * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                    }
                    KvDtype::Fp8 => {
                        let scale = quantise::vector_e4m3(values, &mut to[token * dim..][..dim]);
                        to[BLOCK_TOKENS * dim + token * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                    }
                }
            }
        }
    }
    cache
}

/// Runs one case both ways of planning and with both outputs.
fn check(
    machine: &Machine,
    random: &mut Random,
    report: &mut Report,
    spec: &AttentionSpec,
    dtype: KvDtype,
    sequences: &[Sequence],
) {
    let kv = KvSpec { layers: 2, heads: spec.kv_heads, head_dim: spec.head_dim, dtype };
    let (layer, dim) = (1, spec.head_dim);
    let width = (spec.query_heads + 2 * spec.kv_heads) * dim;
    // Sharp and flat softmaxes, and keys of all magnitudes.
    let all: Everything = sequences
        .iter()
        .map(|s| {
            let sharp = [0.3, 1.0, 4.0][random.below(3) as usize];
            (0..(s.first + s.rows) * width)
                .map(|_| match random.below(50) {
                    0 => 0.0,
                    1 => random.normal() * 1e-39,
                    2 => random.normal() * 1e-22,
                    _ => random.normal() * sharp,
                })
                .collect()
        })
        .collect();
    let expected = expected(spec, &kv, layer, sequences, &all);
    let layout = tables(sequences, BLOCK_TOKENS);
    let cache = machine.holding(&device_cache(spec, &kv, layer, sequences, &all, &layout));
    let block_tables = machine.holding(&layout.0);
    let qkv: Vec<f32> =
        sequences.iter().zip(&all).flat_map(|(s, all)| all[s.first * width..].iter().copied()).collect();
    let rows = qkv.len() / width;
    let qkv = machine.holding(&qkv);
    let mut first_row = 0;
    let planned: Vec<PlannedSequence> = sequences
        .iter()
        .zip(&layout.1)
        .map(|(s, &table)| {
            let planned =
                PlannedSequence { first_row, rows: s.rows as u32, first_position: s.first as u32, table: table as u32 };
            first_row += s.rows as u32;
            planned
        })
        .collect();
    let out_width = spec.query_heads * dim;
    let pitch = q8_pitch(out_width);
    let out = machine.memory((rows + 1) * out_width * 4);
    let (quants, scales) = (machine.memory(rows * pitch), machine.memory(rows * pitch / 8));
    for (split, integers) in [(false, false), (true, false), (false, true), (true, true)] {
        if integers && !ExactAttention::writes_quants(spec) {
            continue;
        }
        let plan = AttentionPlan::new(spec, machine.multiprocessors()).forced(split);
        let (mut items, mut merges) = (Vec::new(), Vec::new());
        plan.fill(&planned, &mut items, &mut merges);
        assert!(items.len() <= plan.items_max(rows, sequences.len()) && merges.len() <= plan.merges_max());
        let counts = counts(machine, &[count(rows, items.len(), merges.len())]);
        // Never empty.
        items.push(AttentionItem::default());
        merges.push(AttentionMerge::default());
        let (items, merges) = (machine.holding(&items), machine.holding(&merges));
        let partial = machine.memory(plan.partial_floats() * 4);
        for buffer in [&out, &partial, &quants, &scales] {
            buffer.poison();
        }
        let io = AttentionIo {
            qkv: qkv.ptr(),
            cache: cache.ptr(),
            items: items.ptr(),
            merges: merges.ptr(),
            block_tables: block_tables.ptr(),
            counts: counts.ptr(),
            partial: partial.ptr(),
            output: if integers { 0 } else { out.ptr() },
            quants: quants.ptr(),
            scales: scales.ptr(),
        };
        let name = format!("{}: {dtype:?} {spec:?}, split {split}, to integers {integers}", machine.name());
        let (of, most) = ((layer, kv.layers), (rows, sequences.len()));
        let calls = calls(kernel(dtype, dim).unwrap(), machine.multiprocessors(), spec, &plan, &io, of, most);
        let done = calls.iter().try_for_each(|call| machine.run(call));
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        if integers {
            let quants: Vec<u8> = quants.read(rows * pitch);
            let scales: Vec<f32> = scales.read(rows * pitch / 32);
            let (mut wanted, mut found) = (Vec::new(), Vec::new());
            for (number, values) in expected.as_chunks::<32>().0.iter().enumerate() {
                let (row, block) = (number * 32 / out_width, number * 32 % out_width / 32);
                let mut integers = [0i8; 32];
                wanted.push(quantise::activations(values, &mut integers));
                wanted.extend(integers.map(f32::from));
                found.push(scales[row * (pitch / 32) + block]);
                let at = row * pitch + block * 32;
                found.extend(quants[at..at + 32].iter().map(|&q| f32::from(q as i8)));
            }
            report.compare(&name, out_width / 32 * 33, &wanted, &found);
        } else {
            let found: Vec<f32> = out.read((rows + 1) * out_width);
            report.compare(&name, out_width, &expected, &found[..rows * out_width]);
            let poison = vec![f32::from_bits(u32::MAX); out_width];
            report.compare(&format!("{name}, the row after"), out_width, &poison, &found[rows * out_width..]);
        }
    }
}

#[test]
fn attention_has_the_bits_of_the_definition() {
    let (mut random, mut report) = (Random::new("attention"), Report::default());
    let ragged = [(700, 1), (0, 37), (255, 2), (256, 1), (511, 3), (1030, 1), (250, 21)];
    let short = [(0, 1), (31, 2), (300, 5)];
    // Query heads, KV heads, values per head, window, soft cap, and whether the sequences are the many ones.
    let specs = [
        (4, 1, 64, None, None, true),
        (8, 2, 128, None, None, true),
        (2, 2, 32, Some(100), None, true),
        (6, 2, 48, Some(256), Some(30.0), true),
        (3, 1, 80, Some(300), None, false),
        (1, 1, 16, None, Some(5.0), false),
        (32, 1, 32, None, None, false),
        (20, 1, 96, Some(1), None, false),
        (4, 2, 256, None, None, false),
        (2, 1, 512, Some(290), None, false),
        (2, 1, 320, None, None, false),
    ];
    for machine in Machine::all() {
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
            for (query_heads, kv_heads, head_dim, window, soft_cap, many) in specs {
                let scale = 1.0 / (head_dim as f32).sqrt();
                let spec = AttentionSpec { query_heads, kv_heads, head_dim, scale, window, soft_cap };
                let sequences = match (many, machine.slow()) {
                    (true, false) => &ragged[..],
                    (true, true) => &ragged[..4],
                    _ => &short[..],
                };
                let sequences: Vec<_> = sequences.iter().map(|&(first, rows)| Sequence { first, rows }).collect();
                check(&machine, &mut random, &mut report, &spec, dtype, &sequences);
            }
        }
    }
    report.end("attention");
}

#[test]
fn every_tile_of_every_row_is_planned_once() {
    let mut random = Random::new("plans");
    for _ in 0..200 {
        let group = 1 + random.below(20) as usize;
        let window = (random.below(2) == 0).then(|| 1 + random.below(600) as usize);
        let spec =
            AttentionSpec { query_heads: 2 * group, kv_heads: 2, head_dim: 64, scale: 1.0, window, soft_cap: None };
        let plan = AttentionPlan::new(&spec, 1 + random.below(140) as u32);
        let mut sequences = Vec::new();
        let mut first_row = 0;
        for _ in 0..1 + random.below(20) {
            let rows = 1 + if random.below(3) == 0 { random.below(200) as u32 } else { 0 };
            let first_position = random.below(3000) as u32;
            sequences.push(PlannedSequence { first_row, rows, first_position, table: 0 });
            first_row += rows;
        }
        let (mut items, mut merges) = (Vec::new(), Vec::new());
        plan.fill(&sequences, &mut items, &mut merges);
        assert!(items.len() <= plan.items_max(first_row as usize, sequences.len()));
        assert!(merges.len() <= plan.merges_max());
        for sequence in &sequences {
            for row in 0..sequence.rows {
                let position = (sequence.first_position + row) as usize;
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window)) / 256;
                let wanted: Vec<u32> = (first as u32..=(position / 256) as u32).collect();
                let found = tiles_of(sequence.first_row + row, &items, &merges);
                let seen: Vec<u32> = found.into_iter().filter(|tile| *tile as usize >= first).collect();
                let seen: Vec<u32> = seen.into_iter().filter(|tile| *tile as usize <= position / 256).collect();
                assert_eq!(seen, wanted, "row {row} of {sequence:?}, {spec:?}");
            }
        }
    }
}
