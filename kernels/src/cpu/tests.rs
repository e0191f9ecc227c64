//! Packed operations against the plain ones, bit by bit, over awkward sizes, on every instruction set of this machine.

use super::*;
use crate::backend::{Dtype, Shard, TensorView};
use crate::backend::{KvDtype, Limits, PairOrder};
use crate::blocks::{KKind, SUPER, SUPER_BLOCKS, k_block};
use crate::quantise::{BLOCK, superblocks::superblock};
use crate::reference::ReferenceOperations;
use crate::sampler::Math;
use crate::step::{SequenceRows, Span};
use crate::weights::{self, FP8_BLOCK, PlainValues, fp8_blocks};
use polylink_protocol::exact_math::{e4m3_to_f32, f32_to_bf16, f32_to_e4m3_saturating};
use polylink_protocol::noise::{NoiseKey, noise_key};

const LIMITS: Limits = Limits { rows: 128, wanted_rows: 64, slots: 8, kv_blocks: 64, positions: 1024 };

fn values(stream: u32, count: usize) -> Vec<f32> {
    let key = noise_key(b"operations", stream);
    (0..count as u32).map(|i| key.gumbel(stream, i) - 0.5).collect()
}

fn packed() -> Vec<CpuOperations> {
    let available = InstructionSet::ALL.into_iter().chain([InstructionSet::AmxEmulated]).filter(|set| {
        if !set.available() {
            println!("skipped {set}: this machine does not have it");
        }
        set.available()
    });
    available
        .map(|set| {
            let mut operations = CpuOperations::over(set, Pool::new(2));
            operations.reserve(Reserve { limits: LIMITS, converted_inputs: 1088 });
            operations
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Scales of e4m3, a few of them small enough that values are denormal.
fn e4m3_scales(count: usize) -> Vec<f32> {
    values(8, count).into_iter().enumerate().map(|(i, value)| if i % 7 == 3 { value * 1e-38 } else { value }).collect()
}

fn plain(shape: MatrixShape, kind: usize) -> PlainMatrix {
    let values = values(7, shape.outputs * shape.inputs);
    let values = match kind {
        0 => PlainValues::F32(values),
        1 => PlainValues::Bf16(values.into_iter().map(f32_to_bf16).collect()),
        4 | 9 => {
            let order = if kind == 4 { PairOrder::Vdp } else { PairOrder::Amx };
            PlainValues::Bf16Pairs(values.into_iter().map(crate::operations::to_bf16_flushed).collect(), order)
        }
        5..8 => {
            let kind = [KKind::Q4, KKind::Q5, KKind::Q6][kind - 5];
            let (first, row_blocks) = (shape.outputs % SUPER_BLOCKS, shape.inputs / BLOCK);
            let mut blocks = Vec::new();
            for row in values.chunks_exact(shape.inputs) {
                // Superblocks of the row's values, moved to begin at block `first`.
                let mut padded = vec![0.5; first * BLOCK];
                padded.extend_from_slice(row);
                padded.resize(padded.len().next_multiple_of(SUPER), -0.25);
                let mut bytes = Vec::new();
                padded.as_chunks::<SUPER>().0.iter().for_each(|values| superblock(kind, values, &mut bytes));
                let size = kind.dtype().block().1;
                let block = |j: usize| k_block(kind, &bytes[j / SUPER_BLOCKS * size..][..size], j % SUPER_BLOCKS);
                blocks.extend((first..first + row_blocks).map(block));
            }
            PlainValues::K { kind, blocks, first }
        }
        8 => {
            let part = |outputs: usize, kind| plain(MatrixShape { outputs, ..shape }, kind);
            let (first, second) = (shape.outputs / 3, shape.outputs / 2);
            let parts = [(first, 5), (second, 0), (shape.outputs - first - second, 7)];
            let parts = parts.into_iter().filter(|(outputs, _)| *outputs > 0);
            PlainValues::Stack(parts.map(|(outputs, kind)| part(outputs, kind)).collect())
        }
        10 => {
            let first = shape.outputs * 37 % FP8_BLOCK;
            let scales = e4m3_scales(shape.outputs * fp8_blocks(first, shape.inputs));
            PlainValues::Fp8 { numbers: values.into_iter().map(f32_to_e4m3_saturating).collect(), scales, first }
        }
        _ => {
            let mut quants = vec![0; values.len()];
            let blocks = values.as_chunks::<BLOCK>().0.iter().zip(quants.chunks_exact_mut(BLOCK));
            let nibbles = kind == 3;
            let quantise = if nibbles { crate::quantise::q4_0 } else { crate::quantise::q8_0 };
            let scales = blocks.map(|(values, quants)| quantise(values, quants)).collect();
            PlainValues::Int8 { quants, scales, nibbles }
        }
    };
    PlainMatrix { shape, values }
}

#[test]
fn products_of_awkward_sizes() {
    let mut reference = ReferenceOperations::default();
    for mut operations in packed() {
        let mut case = 0;
        for (outputs, inputs, range_length) in [
            (1, 32, 32),
            (16, 96, 32),
            (17, 64, 64),
            (31, 288, 96),
            (48, 512, 32),
            (70, 160, 64),
            (18, 1088, 1088),
            (33, 45, 45),
            (5, 7, 3),
        ] {
            for (rows, kind) in (0..11).flat_map(|kind| [0, 1, 2, 5, 6, 8, 13, 20, 101].map(|rows| (rows, kind))) {
                if kind == 4 && (inputs % 2 != 0 || range_length % 2 != 0) {
                    continue;
                }
                if matches!(kind, 2 | 3 | 5..10) && (inputs % BLOCK != 0 || range_length % BLOCK != 0) {
                    continue;
                }
                case += 1;
                let ranges = usize::div_ceil(inputs, range_length);
                let planes = if case % 3 == 0 { ranges } else { 1 };
                let shape = MatrixShape { outputs, inputs, range_length, planes };
                let input = values(case, rows * inputs);
                let bias = values(1, outputs);
                let bias = (planes == 1 && case % 2 == 0).then_some(&bias[..]);
                let residual = planes == 1 && case % 5 < 2;
                // What is not added onto must not matter, and must be written in full.
                let count = rows * outputs * planes;
                let start = if residual { values(2, count) } else { vec![f32::NAN; count] };
                let [mut expected, mut found] = [start.clone(), start];
                let matrix = reference.pack(plain(shape, kind));
                reference.gemm(&matrix, &input, &mut expected, bias, residual).unwrap();
                let matrix = operations.pack(plain(shape, kind));
                operations.gemm(&matrix, &input, &mut found, bias, residual).unwrap();
                assert_eq!(bits(&expected), bits(&found), "{} rows {rows} kind {kind} {shape:?}", operations.name());
            }
        }
    }
}

/// What is kept in e4m3 has the bits of the same values in f32, and is refused where it is damaged.
#[test]
fn numbers_of_e4m3_are_their_values_in_f32() {
    // The second tensor's rows are held in part; columns begin and end within blocks.
    let (inputs, held, shapes) = (384, 96..320, [[21, 384], [40, 384]]);
    let (mut blocks, mut wide) = (Vec::new(), Vec::new());
    for (stream, shape) in (11..).zip(shapes) {
        let scales = e4m3_scales(shape[0] * inputs / FP8_BLOCK);
        let (mut eight, mut floats) = (Vec::new(), Vec::new());
        let numbers: Vec<u8> =
            values(stream, shape[0] * inputs).into_iter().map(|value| f32_to_e4m3_saturating(20.0 * value)).collect();
        for (numbers, scale) in numbers.chunks(FP8_BLOCK).zip(scales) {
            eight.extend_from_slice(numbers);
            eight.extend(scale.to_le_bytes());
            floats.extend(numbers.iter().flat_map(|&number| (e4m3_to_f32(number) * scale).to_le_bytes()));
        }
        blocks.push(eight);
        wide.push(floats);
    }
    let parts = |data: &'static [Vec<u8>], dtype| {
        let rows = [0..21, 3..40];
        let part = |i: usize| {
            let shape: &'static [usize] = [&[21, 384], &[40, 384]][i];
            let tensor = TensorView { name: "w", shape, dtype, data: &data[i] };
            Part { tensor, shard: Shard { rows: rows[i].clone(), columns: held.clone() } }
        };
        [part(0), part(1)]
    };
    let ranges = KRanges { inputs, length: 32 };
    let [blocks, wide]: [&'static [Vec<u8>]; 2] = [blocks, wide].map(|data| &*data.leak());
    let expanded = weights::matrix(&parts(wide, Dtype::F32), ranges, WeightForm::Float).unwrap();
    let mut reference = ReferenceOperations::default();
    let rows = 3;
    let input = values(13, rows * held.len());
    let mut expected = vec![f32::NAN; rows * expanded.shape.outputs * expanded.shape.planes];
    let expanded = reference.pack(expanded);
    reference.gemm(&expanded, &input, &mut expected, None, false).unwrap();
    for form in [WeightForm::Stored, WeightForm::Float] {
        let kept = || weights::matrix(&parts(blocks, Dtype::Fp8), ranges, form).unwrap();
        assert!(matches!(kept().values, PlainValues::Fp8 { .. }), "{form:?}: expanded");
        for mut operations in packed() {
            let mut found = vec![f32::NAN; expected.len()];
            let matrix = operations.pack(kept());
            operations.gemm(&matrix, &input, &mut found, None, false).unwrap();
            assert_eq!(bits(&expected), bits(&found), "{} {form:?}", operations.name());
        }
    }
    // To integers it is not brought; to bf16 it is.
    let refused = |form| weights::matrix(&parts(blocks, Dtype::Fp8), ranges, form).err().map(|error| error.to_string());
    assert!(refused(WeightForm::Q8_0).is_some_and(|reason| reason.contains("is quantised already (Fp8)")));
    assert!(refused(WeightForm::Bf16).is_none());
    let damage = |at: usize, bytes: &[u8]| {
        let mut data = blocks[0].clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        let part = Part {
            tensor: TensorView { data: &data, ..parts(blocks, Dtype::Fp8)[0].tensor },
            shard: Shard::whole(&[21, 384]),
        };
        weights::matrix(&[part], KRanges::whole(inputs), WeightForm::Stored).err().unwrap().to_string()
    };
    assert!(damage(132 + 5, &[0xff]).contains("element (0, 133) is NaN"));
    assert!(damage(3 * 132 + 128, &1e36f32.to_le_bytes()).contains("the scale of block (1, 0) is not finite"));
}

/// A gate and the product that reads it, together as one after the other; of a stack some matrices may read floats.
#[test]
fn gates_joined_to_their_products() {
    let mut reference = ReferenceOperations::default();
    let shape = MatrixShape { outputs: 50, inputs: 288, range_length: 96, planes: 1 };
    for mut operations in packed() {
        for (kind, rows) in (0..11).flat_map(|kind| [1, 3, 20, 101].map(|rows| (kind, rows))) {
            let input = values(kind as u32, rows * 2 * shape.inputs);
            let start = values(2, rows * shape.outputs);
            let [mut expected, mut found] = [start.clone(), start];
            let mut between = vec![f32::NAN; rows * shape.inputs];
            let activation = if kind % 2 == 0 { Activation::Silu } else { Activation::GeluTanh };
            let matrix = reference.pack(plain(shape, kind));
            reference.gated_mul(activation, &input, &mut between, shape.inputs).unwrap();
            reference.gemm(&matrix, &between, &mut expected, None, true).unwrap();
            between.fill(f32::NAN);
            let matrix = operations.pack(plain(shape, kind));
            operations.gated_gemm(activation, &matrix, &input, &mut between, &mut found, None, true).unwrap();
            assert_eq!(bits(&expected), bits(&found), "{} rows {rows} kind {kind}", operations.name());
        }
    }
}

#[test]
fn rows_of_awkward_widths() {
    let mut reference = ReferenceOperations::default();
    for mut operations in packed() {
        for (case, width) in [1, 15, 63, 64, 65, 130, 288].into_iter().enumerate() {
            let (rows, stream) = (3, case as u32 + 50);
            let (input, weight) = (values(stream, 2 * rows * width), values(9, width));
            let (mut expected, mut found) = (vec![0.0; rows * width], vec![f32::NAN; rows * width]);
            for residual in [false, true] {
                reference.rms_norm(&input[..rows * width], &weight, 1e-6, residual, &mut expected).unwrap();
                operations.rms_norm(&input[..rows * width], &weight, 1e-6, residual, &mut found).unwrap();
                assert_eq!(bits(&expected), bits(&found), "norm of {width}");
            }
            for activation in [Activation::Silu, Activation::GeluTanh] {
                reference.gated_mul(activation, &input, &mut expected, width).unwrap();
                operations.gated_mul(activation, &input, &mut found, width).unwrap();
                assert_eq!(bits(&expected), bits(&found), "{activation:?} of {width}");
            }
            let mut capped = [input.clone(), input.clone()];
            reference.soft_cap(&mut capped[0], 1.5).unwrap();
            operations.soft_cap(&mut capped[1], 1.5).unwrap();
            assert_eq!(bits(&capped[0]), bits(&capped[1]), "soft cap of {width}");
            let row = SketchRow { noise_key: noise_key(b"sketch", stream), position: stream };
            let (mut expected, mut found) = ([[0; SKETCH_VALUES]; 3], [[1; SKETCH_VALUES]; 3]);
            reference.sketch(&input[..rows * width], width, &[row; 3], &mut expected).unwrap();
            operations.sketch(&input[..rows * width], width, &[row; 3], &mut found).unwrap();
            assert_eq!(expected, found, "sketch of {width}");
        }
    }
}

#[test]
fn norms_of_heads_leave_values_alone() {
    let mut reference = ReferenceOperations::default();
    for mut operations in packed() {
        for (head_dim, query_heads, kv_heads) in [(16, 3, 1), (48, 2, 2), (80, 4, 2), (128, 7, 1)] {
            let spec = AttentionSpec { query_heads, kv_heads, head_dim, scale: 1.0, window: None, soft_cap: None };
            let (query, key) = (values(3, head_dim), values(4, head_dim));
            let width = (query_heads + 2 * kv_heads) * head_dim;
            let input = values(5, 3 * width);
            let mut qkv = [input.clone(), input.clone()];
            reference.head_norm(&spec, [&query, &key], 1e-6, &mut qkv[0]).unwrap();
            operations.head_norm(&spec, [&query, &key], 1e-6, &mut qkv[1]).unwrap();
            assert_eq!(bits(&qkv[0]), bits(&qkv[1]), "{spec:?}");
            let values = width - kv_heads * head_dim..width;
            assert_eq!(qkv[1][values.clone()], input[values], "{spec:?}");
            assert_ne!(qkv[1][..head_dim], input[..head_dim]);
        }
    }
}

/// Sequences of a step, `(positions before, rows)` each, on blocks in a scattered order, and their rows' bookkeeping.
struct Sequences {
    rows: Vec<SequenceRows>,
    tables: Vec<u32>,
    sequence_of: Vec<u32>,
    positions: Vec<u32>,
}

/// Blocks of a sequence in the cache, and of all.
const SEQUENCE_BLOCKS: usize = 134;
const BLOCKS: usize = 3 * SEQUENCE_BLOCKS;

impl Sequences {
    fn new(sequences: &[(usize, usize)], block_tokens: usize) -> Self {
        let (mut rows, mut tables, mut sequence_of, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (slot, &(first, length)) in sequences.iter().enumerate() {
            let count = (first + length).div_ceil(block_tokens);
            assert!(count <= SEQUENCE_BLOCKS);
            rows.push(SequenceRows {
                slot: slot as u32,
                first_position: first as u32,
                rows: length as u32,
                wanted: 0,
                blocks: Span { start: tables.len() as u32, length: count as u32 },
                noise_key: NoiseKey(0),
                long: first > 0,
            });
            // 37 has no common factor with their number: a permutation of the blocks, which begins with the last one.
            let block = |i| (BLOCKS - 1 - (slot * SEQUENCE_BLOCKS + i) * 37 % BLOCKS) as u32;
            tables.extend((0..count).map(block));
            sequence_of.extend((0..length).map(|_| slot as u32));
            positions.extend((first..first + length).map(|position| position as u32));
        }
        Self { rows, tables, sequence_of, positions }
    }

    fn batch(&self) -> Batch<'_> {
        let Self { rows, tables, sequence_of, positions } = self;
        Batch { sequences: rows, block_tables: tables, sequence_of, positions }
    }
}

/// Appends `length` positions, fewer, and one, of three sequences, and attends from all of them; then from a few more: the
/// bits of all outputs. What was never written is NaN.
fn attend<O: Operations>(operations: &mut O, spec: &AttentionSpec, dtype: KvDtype, length: usize) -> Vec<u32> {
    let kv = KvSpec { dtype, ..KvSpec::f32(2, spec.kv_heads, spec.head_dim) };
    let mut cache = vec![f32::NAN; BLOCKS * operations.block_floats(&kv)];
    // All pairs of a head, or three quarters of them.
    let pairs = spec.head_dim / 2 - if length.is_multiple_of(2) { spec.head_dim / 8 } else { 0 };
    let (sine, cosine) = (values(3, 1024 * pairs), values(4, 1024 * pairs));
    // The few rows that come later are turned as those of a long sequence.
    let long = Some((values(5, 1024 * pairs), values(6, 1024 * pairs)));
    let rope = RopeTable { pairs, sine, cosine, long };
    let width = (spec.query_heads + 2 * spec.kv_heads) * spec.head_dim;
    let (shorter, one) = (length.div_ceil(3), 1);
    let mut all = Vec::new();
    for sequences in [[(0, length), (0, shorter), (0, one)], [(length, 3), (shorter, 1), (one, 9)]] {
        let sequences = Sequences::new(&sequences, operations.block_tokens());
        let rows = sequences.positions.len();
        let mut qkv = values(20 + rows as u32, rows * width);
        operations.rope_append(spec, &rope, &sequences.batch(), &kv, 1, &mut cache, &mut qkv).unwrap();
        all.extend(bits(&qkv));
        let mut output = vec![f32::NAN; rows * spec.query_heads * spec.head_dim];
        operations.attention(spec, &sequences.batch(), &kv, 1, &cache, &qkv, &mut output).unwrap();
        assert!(output.iter().all(|value| value.is_finite()), "{} {dtype:?} length {length}", operations.name());
        all.extend(bits(&output));
    }
    all
}

#[test]
fn attention_of_awkward_lengths_heads_and_windows() {
    let mut reference = ReferenceOperations::default();
    for (length, head_dim, group, window) in [
        (1, 16, 1, None),
        (17, 32, 3, None),
        (255, 48, 1, None),
        (257, 64, 2, Some(1)),
        (300, 80, 1, Some(256)),
        (530, 32, 2, Some(300)),
        (513, 128, 1, None),
        (40, 32, 7, Some(9)),
        (290, 64, 5, None),
    ] {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let soft_cap = (group != 1).then_some(0.7);
        let spec = AttentionSpec { query_heads: 2 * group, kv_heads: 2, head_dim, scale, window, soft_cap };
        for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
            let expected = attend(&mut reference, &spec, dtype, length);
            for mut operations in packed() {
                let found = attend(&mut operations, &spec, dtype, length);
                assert!(expected == found, "{} length {length} {dtype:?} {spec:?}", operations.name());
            }
        }
    }
}

/// Products of pairs whose terms, sums and inputs lie around the least normal number: hardware flushes, and so does
/// everything else, alike.
#[test]
fn bf16_pairs_flush_denormals_alike() {
    let mut reference = ReferenceOperations::default();
    let shape = MatrixShape { outputs: 32, inputs: 64, range_length: 64, planes: 1 };
    for exponent in [-30, -24, -20, -16, 0] {
        let weights: Vec<u16> =
            values(1, 32 * 64).iter().map(|x| crate::operations::to_bf16_flushed(x * 2f32.powi(-100))).collect();
        let input: Vec<f32> = values(2, 8 * 64).iter().map(|x| x * 2f32.powi(exponent)).collect();
        for order in [PairOrder::Vdp, PairOrder::Amx] {
            let plain = || PlainMatrix { shape, values: PlainValues::Bf16Pairs(Vec::clone(&weights), order) };
            let mut expected = vec![0.0; 8 * 32];
            let matrix = reference.pack(plain());
            reference.gemm(&matrix, &input, &mut expected, None, false).unwrap();
            for mut operations in packed() {
                let mut found = vec![1.0; 8 * 32];
                let matrix = operations.pack(plain());
                operations.gemm(&matrix, &input, &mut found, None, false).unwrap();
                assert_eq!(bits(&expected), bits(&found), "{} {order:?} 2^{exponent}", operations.name());
            }
            let zeros = expected.iter().filter(|sum| **sum == 0.0).count();
            assert!(exponent > -24 || zeros > 0, "some sums are flushed at 2^{exponent}: {zeros}");
        }
    }
}

/// A sum that is less than the least normal number by less than half a step of the denormals: IEEE rounding makes that
/// number of it, a bf16 product 0, as its 24 bits lie below.
#[test]
fn bf16_sums_just_below_the_least_normal_number_are_flushed() {
    let shape = MatrixShape { outputs: 16, inputs: 2, range_length: 2, planes: 1 };
    let factors = |place: i32, mantissa: f32| (mantissa * 2f32.powi(-100), -(2f32.powi(place + 100)));
    for (place, mantissa, flushed) in [(-152, 1.75, false), (-151, 1.0, false), (-151, 1.25, true), (-150, 1.0, true)] {
        let (weight, x) = factors(place, mantissa);
        // The odd element comes first and makes the least normal number.
        let pair = [weight, 2f32.powi(-63)].map(f32_to_bf16);
        let plain = || PlainMatrix { shape, values: PlainValues::Bf16Pairs([pair; 16].concat(), PairOrder::Vdp) };
        let input = [x, 2f32.powi(-63)];
        let expected = if flushed { 0 } else { f32::MIN_POSITIVE.to_bits() };
        let mut found = vec![1.0; 16];
        let mut reference = ReferenceOperations::default();
        let matrix = reference.pack(plain());
        reference.gemm(&matrix, &input, &mut found, None, false).unwrap();
        assert_eq!(bits(&found), [expected; 16], "reference, {mantissa} 2^{place}");
        for mut operations in packed() {
            let matrix = operations.pack(plain());
            operations.gemm(&matrix, &input, &mut found, None, false).unwrap();
            assert_eq!(bits(&found), [expected; 16], "{}, {mantissa} 2^{place}", operations.name());
        }
    }
}

/// What a draw computes of every logit, of numbers of logits around those that vectors and runs take together.
#[test]
fn draws_from_awkward_vocabularies() {
    for operations in packed() {
        let set = operations.set;
        for (count, position) in [1, 15, 16, 17, 63, 64, 65, 127, 200, 1031].into_iter().zip(0u32..) {
            let logits = values(count as u32, count);
            let (mut weights, mut expected) = (vec![f32::NAN; count], vec![0.0; count]);
            let likeliest =
                (0..count as u32).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize])).unwrap();
            let max = logits[likeliest as usize];
            let (plain, key) = (&sampler::Plain as &dyn sampler::Math, noise_key(b"draw", position));
            let totals = (plain.weigh(&logits, max, &mut expected), set.weigh(&logits, max, &mut weights));
            assert_eq!((totals.0, bits(&expected)), (totals.1, bits(&weights)), "{set}: weights of {count}");
            assert_eq!(plain.log_sum_exp(&logits), set.log_sum_exp(&logits), "{set}: sum of {count}");
            let draws = [plain, &set].map(|math| math.draw(&logits, likeliest, key, position));
            assert_eq!(draws[0], draws[1], "{set}: draw from {count}");
        }
    }
}
