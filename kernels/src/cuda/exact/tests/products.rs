//! Products against [`ReferenceOperations::gemm`], with every tile.

use polylink_protocol::exact_math::{f16_to_f32, f32_to_bf16};

use super::*;
use crate::blocks::{KBlock, KKind};
use crate::cuda::exact::products::{Section, TILES, Tile, floats_call, integers_call, pack_group};
use crate::operations::Operations;
use crate::quantise::{self, BLOCK};
use crate::reference::ReferenceOperations;
use crate::weights::{MatrixShape, PlainMatrix, PlainValues};

/// The forms, by number; the last one is a stack.
const NAMES: [&str; 8] = ["f32", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "stack"];

/// A scale of a file: f16, some 0, denormal, negative or large.
fn scale(random: &mut Random) -> f32 {
    match random.below(20) {
        0 => 0.0,
        1 => f16_to_f32(random.below(1024) as u16),
        2 => f16_to_f32(0x7bff),
        3 => -f16_to_f32(0x1800 + random.below(1024) as u16),
        _ => f16_to_f32(0x1000 + random.below(0x0c00) as u16),
    }
}

fn k_blocks(random: &mut Random, kind: KKind, outputs: usize, inputs: usize) -> Vec<KBlock> {
    let mut blocks = Vec::new();
    for _ in 0..outputs {
        let (mut d, mut dmin) = (0.0, 0.0);
        for block in 0..inputs / BLOCK {
            if block % 8 == 0 {
                (d, dmin) = (scale(random), if kind == KKind::Q6 { 0.0 } else { scale(random) });
            }
            let most = [16, 32, 64][kind as usize];
            let quants = std::array::from_fn(|_| random.below(most) as u8);
            let scales = if kind == KKind::Q6 {
                [random.next() as i8, random.next() as i8]
            } else {
                [random.below(64) as i8; 2]
            };
            let min = if kind == KKind::Q6 { 0 } else { random.below(64) as u8 };
            blocks.push(KBlock { quants, scales, min, d, dmin });
        }
    }
    blocks
}

fn plain(random: &mut Random, shape: MatrixShape, form: usize) -> PlainMatrix {
    let (outputs, inputs) = (shape.outputs, shape.inputs);
    let count = outputs * inputs;
    let values = match form {
        0 => PlainValues::F32(random.values(count)),
        1 => PlainValues::Bf16(random.values(count).into_iter().map(f32_to_bf16).collect()),
        2 | 3 => {
            let quants = (0..count).map(|_| if form == 2 { random.next() as i8 } else { random.below(16) as i8 - 8 });
            let quants = quants.collect();
            let scales = (0..count / BLOCK).map(|_| scale(random)).collect();
            PlainValues::Int8 { quants, scales, nibbles: form == 3 }
        }
        4..7 => {
            let kind = [KKind::Q4, KKind::Q5, KKind::Q6][form - 4];
            PlainValues::K { kind, blocks: k_blocks(random, kind, outputs, inputs), first: 0 }
        }
        _ => {
            let first = outputs / 3;
            let parts = [(first, 4), (outputs / 2, 0), (outputs - first - outputs / 2, 2)];
            let parts = parts.into_iter().filter(|(outputs, _)| *outputs > 0);
            let part = |(outputs, form)| plain(random, MatrixShape { outputs, ..shape }, form);
            PlainValues::Stack(parts.map(part).collect())
        }
    };
    PlainMatrix { shape, values }
}

/// A product's rows on a machine.
struct Rows {
    input: Memory,
    quants: Memory,
    scales: Memory,
}

impl Rows {
    /// Brings rows to the machine, as floats and (if their width is whole blocks) as integers; what lies beyond a row's
    /// width is not to be used.
    fn new(machine: &Machine, rows: usize, width: usize, values: &[f32]) -> Self {
        let pitch = q8_pitch(width);
        let (mut quants, mut scales) = (vec![-1i8; rows * pitch], vec![f32::NAN; rows * pitch / BLOCK]);
        if width.is_multiple_of(BLOCK) {
            for (block, values) in values[..rows * width].as_chunks().0.iter().enumerate() {
                let at = block / (width / BLOCK) * pitch + block % (width / BLOCK) * BLOCK;
                let to = quants[at..].first_chunk_mut().unwrap();
                scales[at / BLOCK] = quantise::activations(values, to);
            }
        }
        Self { input: machine.holding(values), quants: machine.holding(&quants), scales: machine.holding(&scales) }
    }
}

/// Packed matrices on a machine.
struct On {
    shape: MatrixShape,
    sections: Vec<Section>,
    _memory: Vec<Memory>,
}

impl On {
    fn new(machine: &Machine, matrices: &[PlainMatrix]) -> Self {
        let (shape, packed) = pack_group(matrices).unwrap();
        let memory: Vec<Memory> = packed.iter().map(|(_, bytes)| machine.holding(bytes)).collect();
        let sections = packed.into_iter().zip(&memory);
        let sections = sections.map(|((section, _), memory)| Section { weights: memory.ptr(), ..section }).collect();
        Self { shape, sections, _memory: memory }
    }

    /// What would be chosen on a device of so many multiprocessors.
    fn run(&self, machine: &Machine, product: &Product) -> Result<(), String> {
        self.sections.iter().try_for_each(|section| {
            if !section.form.takes_integers() {
                return machine.run(&floats_call(&self.shape, section, product));
            }
            let tile = Tile::choose(&self.shape, section.outputs, product.rows, machine.multiprocessors());
            machine.run(&integers_call(&self.shape, section, product, tile))
        })
    }
}

/// A matrix of one form times up to `most` rows, with every geometry.
fn check(
    machine: &Machine,
    random: &mut Random,
    report: &mut Report,
    (case, form): (usize, usize),
    (outputs, inputs, range_length, most): (usize, usize, usize, usize),
) {
    let shape = MatrixShape { outputs, inputs, range_length, planes: 1 };
    let matrix = plain(random, shape, form);
    let input = random.values(most * inputs);
    let bias = (case % 2 == 0).then(|| random.values(outputs));
    let residual = (case % 3 == 0).then(|| random.values(most * outputs));
    let mut expected = residual.clone().unwrap_or_else(|| vec![f32::NAN; most * outputs]);
    let mut reference = ReferenceOperations::default();
    reference.gemm(&matrix, &input, &mut expected, bias.as_deref(), residual.is_some()).unwrap();
    let packed = On::new(machine, std::slice::from_ref(&matrix));
    let rows_on = Rows::new(machine, most, inputs, &input);
    let bias_on = bias.as_ref().map(|bias| machine.holding(bias));
    let out = machine.memory((most + 1) * outputs * 4);
    let counts_of_rows: &[usize] =
        if machine.slow() { &[1, 7, 8, 20, 130] } else { &[1, 2, 7, 8, 16, 20, 64, 65, 130, 200, 2048] };
    for rows in counts_of_rows.iter().copied().filter(|rows| *rows <= most) {
        let counts = counts(machine, &[count(rows, 0, 0)]);
        let product = Product {
            input: rows_on.input.ptr(),
            quants: rows_on.quants.ptr(),
            scales: rows_on.scales.ptr(),
            bias: bias_on.as_ref().map_or(0, Memory::ptr),
            residual: if residual.is_some() { out.ptr() } else { 0 },
            output: out.ptr(),
            counts: counts.ptr(),
            wanted: case % 2 == 1,
            // The bucket may be larger than the step.
            rows: (rows + case % 3) as u32,
            groups: 1,
        };
        // What is chosen, and every tile that could be.
        let mut ways = vec![None];
        if packed.sections.len() == 1 && form > 1 {
            ways.extend(TILES.into_iter().filter(|tile| tile.takes(&shape)).map(Some));
        }
        for way in ways {
            out.poison();
            if let Some(residual) = &residual {
                out.write(residual);
            }
            let tile = way.map_or("chosen", |tile| tile.name);
            let name = format!(
                "{}: {} {outputs} × {inputs} in {range_length}, {rows} rows, {tile}",
                machine.name(),
                NAMES[form]
            );
            let done = match way {
                None => packed.run(machine, &product),
                Some(tile) => machine.run(&integers_call(&shape, &packed.sections[0], &product, tile)),
            };
            done.unwrap_or_else(|error| panic!("{name}: {error}"));
            let found: Vec<f32> = out.read((rows + 1) * outputs);
            report.compare(&name, outputs, &expected[..rows * outputs], &found[..rows * outputs]);
            let after = match &residual {
                Some(residual) if rows < most => residual[rows * outputs..(rows + 1) * outputs].to_vec(),
                _ => vec![f32::from_bits(u32::MAX); outputs],
            };
            report.compare(&format!("{name}, the row after"), outputs, &after, &found[rows * outputs..]);
        }
    }
}

#[test]
fn products_have_the_bits_of_the_definition() {
    let (mut random, mut report) = (Random::new("products"), Report::default());
    let shapes = [
        (1, 32, 32, 8),
        (16, 96, 32, 20),
        (17, 64, 64, 20),
        (31, 288, 96, 130),
        (48, 512, 32, 65),
        (70, 160, 64, 20),
        (18, 1088, 1088, 20),
        (136, 896, 64, 16),
        (270, 512, 512, 20),
        (40, 256, 256, 2048),
        (9, 4864, 4864, 20),
        (10, 4864, 448, 20),
        (33, 45, 45, 130),
        (5, 7, 3, 20),
        (130, 66, 22, 20),
    ];
    for machine in Machine::all() {
        for (case, mut shape) in shapes.into_iter().enumerate() {
            if machine.slow() {
                shape.3 = shape.3.min(if case == 3 { 130 } else { 8 });
            }
            for form in 0..NAMES.len() {
                if form > 1 && (shape.1 % BLOCK != 0 || shape.2 % BLOCK != 0) {
                    continue;
                }
                check(&machine, &mut random, &mut report, (case, form), shape);
            }
        }
    }
    report.end("products");
}

#[test]
fn groups_take_their_own_rows_and_matrix() {
    let (mut random, mut report) = (Random::new("groups"), Report::default());
    let mut reference = ReferenceOperations::default();
    let shape = MatrixShape { outputs: 70, inputs: 320, range_length: 64, planes: 1 };
    // First row, rows, matrix.
    let groups = [(0, 3, 2), (8, 0, 0), (8, 20, 1), (32, 1, 4)];
    for machine in Machine::all() {
        for (form, form_name) in NAMES.into_iter().enumerate() {
            let matrices: Vec<_> = (0..5).map(|_| plain(&mut random, shape, form)).collect();
            let packed = On::new(&machine, &matrices);
            let input = random.values(40 * shape.inputs);
            let rows_on = Rows::new(&machine, 40, shape.inputs, &input);
            let mut expected = vec![f32::from_bits(u32::MAX); 40 * shape.outputs];
            for (first, rows, matrix) in groups {
                let x = &input[first * shape.inputs..(first + rows) * shape.inputs];
                let out = &mut expected[first * shape.outputs..(first + rows) * shape.outputs];
                reference.gemm(&matrices[matrix], x, out, None, false).unwrap();
            }
            let of = |(first, rows, matrix)| [rows as u32, 0, 0, 0, 0, 0, first as u32, matrix as u32];
            let counts = counts(&machine, &groups.map(of));
            let out = machine.memory(40 * shape.outputs * 4);
            for rows in [20, 40] {
                out.poison();
                let product = Product {
                    input: rows_on.input.ptr(),
                    quants: rows_on.quants.ptr(),
                    scales: rows_on.scales.ptr(),
                    output: out.ptr(),
                    counts: counts.ptr(),
                    rows,
                    groups: groups.len() as u32,
                    ..Product::default()
                };
                packed.run(&machine, &product).unwrap();
                let found: Vec<f32> = out.read(40 * shape.outputs);
                let case = format!("{}: {form_name} groups, {rows} rows", machine.name());
                report.compare(&case, shape.outputs, &expected, &found);
            }
        }
    }
    report.end("groups");
}

#[test]
fn what_has_no_kernel_is_refused() {
    use crate::backend::PairOrder;
    use crate::cuda::exact::packing::pack;
    let shape = MatrixShape { outputs: 2, inputs: 32, range_length: 32, planes: 1 };
    let float = |shape| PlainMatrix { shape, values: PlainValues::F32(vec![1.0; 64]) };
    assert!(pack(&float(shape)).is_ok());
    assert!(pack(&float(MatrixShape { planes: 2, range_length: 16, ..shape })).is_err());
    let pairs = PlainMatrix { shape, values: PlainValues::Bf16Pairs(vec![0; 64], PairOrder::Vdp) };
    assert!(pack(&pairs).is_err());
    let mut random = Random::new("refusals");
    let values = |first, random: &mut Random| PlainMatrix {
        shape,
        values: PlainValues::K { kind: KKind::Q5, blocks: k_blocks(random, KKind::Q5, 2, 32), first },
    };
    assert!(pack(&values(0, &mut random)).is_ok());
    assert!(pack(&values(3, &mut random)).is_err());
}
