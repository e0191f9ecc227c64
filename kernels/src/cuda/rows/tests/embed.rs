//! Tokens to rows, out of every form of table.

use polylink_protocol::exact_math::{bf16_to_f32, f32_to_bf16};

use super::super::{Embed, EmbedTable};
use super::{Bench, Random, Report, checks};
use crate::backend::{Dtype, KRanges, Part, Shard, TensorView, WeightForm};
use crate::cuda::driver::DevicePtr;
use crate::cuda::exact::packing;
use crate::operations::Operations;
use crate::reference::ReferenceOperations;
use crate::weights::{self, MatrixShape, PlainMatrix, PlainValues};

/// Some rows' tokens: ids, and slots that hold one.
struct Tokens {
    /// As the device is given them.
    words: Vec<u32>,
    last_sample: Vec<u32>,
    /// What they are.
    known: Vec<u32>,
}

fn tokens(random: &mut Random, rows: usize, vocabulary: usize) -> Tokens {
    let last_sample: Vec<u32> = (0..9).map(|_| random.below(vocabulary) as u32).collect();
    let mut known: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
    let mut words = known.clone();
    for row in (0..rows).step_by(3) {
        let slot = random.below(last_sample.len());
        (words[row], known[row]) = (1 << 31 | slot as u32, last_sample[slot]);
    }
    Tokens { words, last_sample, known }
}

/// Compares rows of a table that lies on the device with those of the plain one.
fn check(
    bench: &Bench,
    random: &mut Random,
    report: &mut Report,
    plain: &PlainMatrix,
    (kind, table): (EmbedTable, DevicePtr),
    rows: usize,
) {
    let MatrixShape { outputs: vocabulary, inputs: width, .. } = plain.shape;
    let tokens = tokens(random, rows, vocabulary);
    let (ids, samples) = (bench.upload(&tokens.words), bench.upload(&tokens.last_sample));
    // One row is not in use.
    let count = bench.upload(&[rows as u32 - u32::from(rows > 1)]);
    for scale in [1.0, 64.0 / 3.0] {
        let mut expected = vec![f32::NAN; rows * width];
        ReferenceOperations::default().embed(plain, &tokens.known, scale, &mut expected).expect("one thread");
        if rows > 1 {
            expected[(rows - 1) * width..].fill(f32::from_bits(u32::MAX));
        }
        let output = bench.poisoned(4 * rows * width);
        let embed = Embed {
            kind,
            table,
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

fn embedded_tokens_are_the_tables_rows(bench: &Bench) {
    let (mut random, mut report) = (Random::new("embed"), Report::default());
    for (rows, width, vocabulary) in [(1, 17, 5), (7, 64, 100), (300, 200, 77), (64, 576, 1000), (2, 4096, 70)] {
        let shape = MatrixShape { outputs: vocabulary, inputs: width, range_length: width, planes: 1 };
        let table = random.values(vocabulary * width);
        let rounded: Vec<u16> = table.iter().map(|&value| f32_to_bf16(value)).collect();
        let tiles = bench.upload(&tiles(&rounded, vocabulary, width));
        let wide = rounded.iter().map(|&bits| bf16_to_f32(bits)).collect();
        let plain = PlainMatrix { shape, values: PlainValues::F32(wide) };
        check(bench, &mut random, &mut report, &plain, (EmbedTable::Tiles, tiles.ptr()), rows);
        let floats = bench.upload(&table);
        let plain = PlainMatrix { shape, values: PlainValues::F32(table) };
        check(bench, &mut random, &mut report, &plain, (EmbedTable::F32, floats.ptr()), rows);
    }
    report.finish("embed");
}

fn tables_in_the_forms_of_exact_products_are_read(bench: &Bench) {
    let (mut random, mut report) = (Random::new("embed exact forms"), Report::default());
    let forms = [
        (Dtype::F32, WeightForm::Float),
        (Dtype::Bf16, WeightForm::Float),
        (Dtype::F32, WeightForm::Q8_0),
        (Dtype::F32, WeightForm::Q4_0),
        (Dtype::F32, WeightForm::Q4K),
        (Dtype::F32, WeightForm::Q5K),
        (Dtype::F32, WeightForm::Q6K),
    ];
    for (rows, width, vocabulary) in [(1, 256, 9), (70, 512, 101), (5, 1280, 300), (9, 288, 77), (3, 37, 40)] {
        for (dtype, form) in forms {
            let multiple = match form {
                WeightForm::Float => 1,
                WeightForm::Q8_0 | WeightForm::Q4_0 => 32,
                _ => 256,
            };
            if width % multiple != 0 {
                continue;
            }
            let values = random.values(vocabulary * width);
            let data: Vec<u8> = match dtype {
                Dtype::Bf16 => values.iter().flat_map(|&value| f32_to_bf16(value).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            let size = [vocabulary, width];
            let tensor = TensorView { name: "table", dtype, shape: &size, data: &data };
            let part = Part { tensor, shard: Shard::whole(&size) };
            let plain = weights::matrix(&[part], KRanges::whole(width), form).expect("a sound table");
            let packed = packing::pack(&plain).expect("a form with kernels");
            let [one] = packed.as_slice() else { panic!("a table of one form") };
            let table = bench.upload(&one.bytes);
            check(bench, &mut random, &mut report, &plain, (EmbedTable::of_form(one.form), table.ptr()), rows);
        }
    }
    report.finish("embed exact forms");
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

checks!(embedded_tokens_are_the_tables_rows, tables_in_the_forms_of_exact_products_are_read);
