//! Embedding, gates, soft caps, sketches, norms of heads.

use polylink_protocol::exact_math::{bf16_to_f32, f32_to_bf16};
use polylink_protocol::noise::NoiseKey;

use super::super::{Embed, EmbedTable};
use super::{Bench, FORMS, Output, Random, Report};
use crate::cuda::rows::RowForm;
use crate::operations::{Operations, SketchRow};
use crate::program::{Activation, AttentionSpec};
use crate::reference::ReferenceOperations;
use crate::step::SKETCH_VALUES;
use crate::weights::{MatrixShape, PlainMatrix, PlainValues};

#[test]
fn embedded_tokens_are_the_tables_rows() {
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut report) = (Random::new("embed"), Report::default());
    for (rows, width, vocabulary) in [(1, 17, 5), (7, 64, 100), (300, 200, 77), (64, 576, 1000), (2, 4096, 70)] {
        let table = random.values(vocabulary * width);
        let last: Vec<u32> = (0..9).map(|_| random.below(vocabulary) as u32).collect();
        let mut tokens: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
        let known = tokens.clone();
        let mut known = known;
        for row in (0..rows).step_by(3) {
            let slot = random.below(last.len());
            (tokens[row], known[row]) = (1 << 31 | slot as u32, last[slot]);
        }
        let (ids, samples) = (bench.upload(&tokens), bench.upload(&last));
        let count = bench.upload(&[rows as u32]);
        let shape = MatrixShape { outputs: vocabulary, inputs: width, range_length: width, planes: 1 };
        let rounded: Vec<u16> = table.iter().map(|&value| f32_to_bf16(value)).collect();
        let tiles = tiles(&rounded, vocabulary, width);
        let wide: Vec<f32> = rounded.iter().map(|&bits| bf16_to_f32(bits)).collect();
        for scale in [1.0, 64.0 / 3.0] {
            for kind in [EmbedTable::F32, EmbedTable::Tiles] {
                let (values, packed) = match kind {
                    EmbedTable::F32 => (table.clone(), bench.upload(&table)),
                    EmbedTable::Tiles => (wide.clone(), bench.upload(&tiles)),
                };
                let plain = PlainMatrix { shape, values: PlainValues::F32(values) };
                let mut expected = vec![f32::NAN; rows * width];
                let mut reference = ReferenceOperations::default();
                reference.embed(&plain, &known, scale, &mut expected).expect("one thread");
                let output = bench.poisoned(4 * rows * width);
                let embed = Embed {
                    kind,
                    table: packed.ptr(),
                    tokens: ids.ptr(),
                    last_sample: samples.ptr(),
                    output: output.ptr(),
                    count: count.ptr(),
                    width,
                    vocabulary,
                    scale,
                };
                let what = format!("embed {rows} rows of {vocabulary} × {width} {kind:?} × {scale}");
                bench.run(&what, &bench.kernels.embed(rows, &embed));
                report.floats(&what, &expected, &output.read(0, rows * width).expect("a copy"), width);
            }
        }
    }
    report.finish("embed");
}

/// A weight of bf16 as products read it: by the formula of `weight_tile_offset`.
fn tiles(values: &[u16], outputs: usize, inputs: usize) -> Vec<u16> {
    let (n_padded, k_padded) = (outputs.next_multiple_of(64), inputs.next_multiple_of(64));
    let mut packed = vec![0u16; n_padded * k_padded];
    for n in 0..outputs {
        for k in 0..inputs {
            let tile = (n / 64) * (k_padded / 64) + k / 64;
            let byte = tile * 8192 + (n % 64) * 128 + (((k / 8) % 8) ^ (n % 8)) * 16 + (k % 8) * 2;
            packed[byte / 2] = values[n * inputs + k];
        }
    }
    packed
}

#[test]
fn gates_have_the_references_bits_in_every_form() {
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut report) = (Random::new("gates"), Report::default());
    for (bucket, rows, width) in [
        (1, 1, 1),
        (3, 2, 33),
        (2, 2, 64),
        (5, 5, 96),
        (300, 299, 1376),
        (1, 1, 14336),
        (64, 64, 2048),
        (2048, 2048, 160),
    ] {
        let input = random.values(bucket * 2 * width);
        let (from, count) = (bench.upload(&input), bench.upload(&[rows as u32]));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut expected = vec![f32::NAN; bucket * width];
            let mut reference = ReferenceOperations::default();
            reference.gated_mul(activation, &input, &mut expected, width).expect("one thread");
            for form in FORMS {
                if form == RowForm::Q8 && width % 32 != 0 {
                    continue;
                }
                let what = format!("{activation:?} of {rows} of {bucket} rows of {width}");
                let output = Output::new(&bench, form, bucket, width);
                let target = output.target();
                let launch = bench.kernels.gated_mul(bucket, activation, from.ptr(), width, &target, count.ptr());
                bench.run(&what, &launch);
                output.check(&mut report, &what, expected.chunks(width).enumerate().take(rows));
            }
        }
    }
    report.finish("gates");
}

#[test]
fn soft_caps_have_the_references_bits() {
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut report) = (Random::new("soft caps"), Report::default());
    for (bucket, rows, width) in [(1, 1, 1), (2, 2, 33), (9, 7, 1000), (3, 3, 32001)] {
        for cap in [30.0, 0.7] {
            let mut values = random.values(bucket * width);
            let (held, count) = (bench.upload(&values), bench.upload(&[rows as u32]));
            let what = format!("cap {cap} of {rows} of {bucket} rows of {width}");
            bench.run(&what, &bench.kernels.soft_cap(bucket, held.ptr(), width, cap, count.ptr()));
            ReferenceOperations::default().soft_cap(&mut values[..rows * width], cap).expect("one thread");
            report.floats(&what, &values, &held.read(0, bucket * width).expect("a copy"), width);
        }
    }
    report.finish("soft caps");
}

#[test]
fn sketches_have_the_references_bits() {
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut report) = (Random::new("sketches"), Report::default());
    for (rows, width) in [(1, 1), (2, 15), (3, 64), (5, 100), (64, 576), (2, 4096), (3, 4111), (2, 9000)] {
        let input: Vec<f32> = random.values(rows * width);
        let sketches: Vec<SketchRow> = (0..rows)
            .map(|_| SketchRow { noise_key: NoiseKey(random.next()), position: random.next() as u32 >> 8 })
            .collect();
        let mut expected = vec![[0u16; SKETCH_VALUES]; rows];
        let mut reference = ReferenceOperations::default();
        reference.sketch(&input, width, &sketches, &mut expected).expect("one thread");
        let keys: Vec<u64> = sketches.iter().map(|row| row.noise_key.sketch_key().bits()).collect();
        let positions: Vec<u32> = sketches.iter().map(|row| row.position).collect();
        let (from, count) = (bench.upload(&input), bench.upload(&[rows as u32]));
        let (keys, positions) = (bench.upload(&keys), bench.upload(&positions));
        let output = bench.poisoned(2 * SKETCH_VALUES * rows);
        let what = format!("sketches of {rows} rows of {width}");
        let at = [keys.ptr(), positions.ptr()];
        bench.run(&what, &bench.kernels.sketch(rows, from.ptr(), width, at, output.ptr(), count.ptr()));
        let got = output.read::<u16>(0, SKETCH_VALUES * rows).expect("a copy");
        let wide = |values: &[u16]| values.iter().map(|&bits| u32::from(bits)).collect::<Vec<_>>();
        report.words(&what, &wide(expected.as_flattened()), &wide(&got), SKETCH_VALUES);
    }
    report.finish("sketches");
}

#[test]
fn norms_of_heads_have_the_references_bits() {
    let Some(bench) = Bench::new() else { return };
    let (mut random, mut report) = (Random::new("norms of heads"), Report::default());
    for (bucket, rows, query_heads, kv_heads, head_dim) in
        [(1, 1, 32, 8, 128), (5, 4, 3, 1, 16), (300, 300, 4, 2, 80), (64, 64, 6, 2, 64), (3, 3, 4, 4, 512)]
    {
        let spec = AttentionSpec { query_heads, kv_heads, head_dim, scale: 1.0, window: None, soft_cap: None };
        let width = (query_heads + 2 * kv_heads) * head_dim;
        let mut values = random.values(bucket * width);
        let (query, key) = (random.weights(head_dim), random.weights(head_dim));
        let (held, count) = (bench.upload(&values), bench.upload(&[rows as u32]));
        let (by_query, by_key) = (bench.upload(&query), bench.upload(&key));
        let what = format!("heads {query_heads} + {kv_heads} of {head_dim}, {rows} of {bucket} rows");
        let at = [by_query.ptr(), by_key.ptr()];
        bench.run(&what, &bench.kernels.head_norm(bucket, &spec, held.ptr(), at, 1e-6, count.ptr()));
        let mut reference = ReferenceOperations::default();
        reference.head_norm(&spec, [&query, &key], 1e-6, &mut values[..rows * width]).expect("one thread");
        report.floats(&what, &values, &held.read(0, bucket * width).expect("a copy"), width);
    }
    report.finish("norms of heads");
}
