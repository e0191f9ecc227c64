//! Norms, in all forms, alone and with what is fused with them.

use super::super::Norm;
use super::{Bench, FORMS, Output, Random, Report, checks};
use crate::cuda::rows::RowForm;
use crate::operations::Operations;
use crate::reference::ReferenceOperations;

const EPS: f32 = 1e-5;

/// Rows in the bucket, rows in use, width.
const SHAPES: [(usize, usize, usize); 22] = [
    (1, 1, 1),
    (3, 3, 7),
    (2, 2, 16),
    (5, 4, 32),
    (4, 4, 48),
    (4, 3, 63),
    (9, 9, 64),
    (7, 7, 65),
    (300, 299, 96),
    (2, 2, 130),
    (64, 61, 576),
    (3, 3, 1000),
    (2048, 2047, 1024),
    (8, 8, 2049),
    (1, 1, 4096),
    (64, 64, 4096),
    (600, 513, 4096),
    (2, 2, 4100),
    (300, 300, 4128),
    (1, 1, 5120),
    (2, 1, 8192),
    (2, 2, 16384),
];

fn reference(input: &[f32], weight: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
    let mut output = residual.map_or_else(|| vec![f32::NAN; input.len()], <[f32]>::to_vec);
    ReferenceOperations::default().rms_norm(input, weight, EPS, residual.is_some(), &mut output).expect("one thread");
    output
}

fn norms_have_the_references_bits_in_every_form(bench: &Bench) {
    let (mut random, mut report) = (Random::new("norms"), Report::default());
    for (bucket, rows, width) in SHAPES {
        if bench.too_large(bucket * width) {
            continue;
        }
        let (input, weight) = (random.values(bucket * width), random.weights(width));
        let expected = reference(&input, &weight, None);
        let (from, by, count) = (bench.upload(&input), bench.upload(&weight), bench.upload(&[rows as u32]));
        for form in FORMS {
            if form == RowForm::Q8 && width % 32 != 0 {
                continue;
            }
            let what = format!("norm of {rows} of {bucket} rows of {width}");
            let output = Output::new(bench, form, bucket, width);
            let norm = Norm {
                input: from.ptr(),
                second: Some((by.ptr(), EPS)),
                output: Some(output.target()),
                count: count.ptr(),
                width,
                ..Norm::default()
            };
            bench.run(&what, &bench.kernels.norm(bucket, &norm));
            output.check(&mut report, &what, expected.chunks(width).enumerate().take(rows));
        }
    }
    report.finish("norms");
}

fn norms_after_a_block_add_to_the_stream_and_the_next_norm_reads_it(bench: &Bench) {
    let (mut random, mut report) = (Random::new("norms after blocks"), Report::default());
    for (bucket, rows, width) in SHAPES {
        if bench.too_large(bucket * width) {
            continue;
        }
        let (input, residual) = (random.values(bucket * width), random.values(bucket * width));
        let (first, second) = (random.weights(width), random.weights(width));
        let stream = reference(&input, &first, Some(&residual));
        let sum: Vec<f32> = residual.iter().zip(&input).map(|(residual, x)| residual + x).collect();
        let (from, count) = (bench.upload(&input), bench.upload(&[rows as u32]));
        let (one, two) = (bench.upload(&first), bench.upload(&second));
        for normed in [true, false] {
            let kept = if normed { &stream } else { &sum };
            let expected = reference(kept, &second, None);
            for form in FORMS {
                if form == RowForm::Q8 && width % 32 != 0 {
                    continue;
                }
                let what = format!("(first norm {normed}) residual + {rows} of {bucket} rows of {width}, then a norm");
                let held = bench.upload(&residual);
                let output = Output::new(bench, form, bucket, width);
                let norm = Norm {
                    input: from.ptr(),
                    first: normed.then_some((one.ptr(), EPS)),
                    residual: held.ptr(),
                    stream: held.ptr(),
                    second: Some((two.ptr(), EPS)),
                    output: Some(output.target()),
                    count: count.ptr(),
                    width,
                    ..Norm::default()
                };
                bench.run(&what, &bench.kernels.norm(bucket, &norm));
                let got = held.read::<f32>(0, rows * width).expect("a copy");
                report.floats(&format!("{what}: the stream"), &kept[..rows * width], &got, width);
                output.check(&mut report, &what, expected.chunks(width).enumerate().take(rows));
            }
        }
    }
    report.finish("norms after blocks");
}

fn gathered_rows_are_copied_converted_and_normalised(bench: &Bench) {
    let (mut random, mut report) = (Random::new("gather"), Report::default());
    for (rows, width) in [(1, 33), (5, 64), (31, 576), (64, 4096), (700, 512)] {
        if bench.too_large(2 * rows * width) {
            continue;
        }
        let total = 2 * rows + 3;
        let (input, weight) = (random.values(total * width), random.weights(width));
        let picked: Vec<u32> = (0..rows).map(|_| random.below(total) as u32).collect();
        let gathered: Vec<f32> =
            picked.iter().flat_map(|&row| input[row as usize * width..][..width].to_vec()).collect();
        let normed = reference(&gathered, &weight, None);
        let (from, by) = (bench.upload(&input), bench.upload(&weight));
        let (gather, count) = (bench.upload(&picked), bench.upload(&[rows as u32]));
        for second in [None, Some((by.ptr(), EPS))] {
            let expected = if second.is_some() { &normed } else { &gathered };
            for form in FORMS {
                if form == RowForm::Q8 && width % 32 != 0 {
                    continue;
                }
                let what = format!("gather of {rows} of {total} rows of {width}, norm {}", second.is_some());
                let output = Output::new(bench, form, rows, width);
                let norm = Norm {
                    input: from.ptr(),
                    gather: gather.ptr(),
                    second,
                    output: Some(output.target()),
                    count: count.ptr(),
                    width,
                    ..Norm::default()
                };
                bench.run(&what, &bench.kernels.norm(rows, &norm));
                output.check(&mut report, &what, expected.chunks(width).enumerate());
            }
        }
    }
    report.finish("gather");
}

/// Blocks whose quotients lie on ties and a few steps beside them, under scales of all magnitudes.
fn ties_are_rounded_as_the_reference_rounds_them(bench: &Bench) {
    let (mut random, mut report) = (Random::new("ties"), Report::default());
    let (rows, width) = (64, 1024);
    let mut input = Vec::with_capacity(rows * width);
    for block in 0..rows * width / 32 {
        let exponent = 1 + random.below(240) as u32;
        let fraction = if block % 3 == 0 { 0 } else { random.next() as u32 & 0x007f_ffff };
        let largest = f32::from_bits(exponent << 23 | fraction);
        let scale = largest / 127.0;
        input.push(largest);
        for _ in 1..32 {
            let tie = (random.below(254) as f32 - 127.0 + 0.5) * scale;
            let beside = tie.to_bits().wrapping_add(random.below(7) as u32).wrapping_sub(3);
            let value = if tie == 0.0 { tie } else { f32::from_bits(beside) };
            input.push(value.clamp(-largest, largest));
        }
    }
    let (from, count) = (bench.upload(&input), bench.upload(&[rows as u32]));
    let output = Output::new(bench, RowForm::Q8, rows, width);
    let target = Some(output.target());
    let norm = Norm { input: from.ptr(), output: target, count: count.ptr(), width, ..Norm::default() };
    bench.run("ties", &bench.kernels.norm(rows, &norm));
    output.check(&mut report, "ties", input.chunks(width).enumerate());
    report.finish("ties");
}

checks!(
    ties_are_rounded_as_the_reference_rounds_them,
    norms_have_the_references_bits_in_every_form,
    norms_after_a_block_add_to_the_stream_and_the_next_norm_reads_it,
    gathered_rows_are_copied_converted_and_normalised
);
