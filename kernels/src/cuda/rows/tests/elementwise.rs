//! Gates, soft caps, sketches, norms of heads.

use polylink_protocol::noise::NoiseKey;

use super::{Bench, FORMS, Output, Random, Report, checks};
use crate::cuda::rows::RowForm;
use crate::operations::{Operations, SketchRow};
use crate::program::{Activation, AttentionSpec};
use crate::reference::ReferenceOperations;
use crate::step::SKETCH_VALUES;

fn gates_have_the_references_bits_in_every_form(bench: &Bench) {
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
        if bench.too_large(bucket * width) {
            continue;
        }
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
                let output = Output::new(bench, form, bucket, width);
                let target = output.target();
                let launch = bench.kernels.gated_mul(bucket, activation, from.ptr(), width, &target, count.ptr());
                bench.run(&what, &launch);
                output.check(&mut report, &what, expected.chunks(width).enumerate().take(rows));
            }
        }
    }
    report.finish("gates");
}

fn soft_caps_have_the_references_bits(bench: &Bench) {
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

fn sketches_have_the_references_bits(bench: &Bench) {
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

fn norms_of_heads_have_the_references_bits(bench: &Bench) {
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

checks!(
    gates_have_the_references_bits_in_every_form,
    soft_caps_have_the_references_bits,
    sketches_have_the_references_bits,
    norms_of_heads_have_the_references_bits
);
