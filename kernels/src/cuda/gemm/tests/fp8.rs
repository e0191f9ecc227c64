//! Products over weights of e4m3 have the bits of those over the bf16 that is made of the same values: by `mma.sync` on a device
//! or under the emulator, by `wgmma` on a device.

use super::*;
use crate::backend::{Dtype, Part, Shard, TensorView};
use crate::cuda::driver::Launch;
use crate::cuda::exact::Call;
use crate::cuda::exact::tests::machine::{Emulated, Machine as Runner, Memory};
use crate::cuda::weights::fp8;
use crate::weights::read_row;

/// A tensor in blocks of e4m3, and the same in bf16: all numbers but NaN, and scales of all kinds.
struct Tensors {
    shape: [usize; 2],
    blocks: Vec<u8>,
    wide: Vec<u8>,
}

impl Tensors {
    fn new([outputs, inputs]: [usize; 2], random: &mut Random) -> Self {
        let (block, size) = Dtype::Fp8.block();
        let mut blocks = Vec::new();
        for index in 0..outputs * inputs / block {
            for _ in 0..block {
                let number = (random.next() % 254) as u8;
                blocks.push(if number < 127 { number } else { number + 1 });
            }
            // Of bf16 and of f32, negative, so small that values are denormal; 0.
            let scale = match (index + index / 5) % 11 {
                3 => 0.0078125,
                5 => -0.3 * random.unit(),
                7 => 1e-38,
                9 => 0.0,
                _ => (1.5 + random.unit()) / 100.0,
            };
            blocks.extend_from_slice(&f32::to_le_bytes(scale));
        }
        assert_eq!(blocks.len(), outputs * inputs / block * size);
        let mut tensors = Self { shape: [outputs, inputs], blocks, wide: Vec::new() };
        let (mut wide, mut row) = (Vec::new(), Vec::new());
        for n in 0..outputs {
            read_row(&tensors.view(true), inputs, n, 0..inputs, &mut row);
            wide.extend(row.iter().flat_map(|&value| f32_to_bf16(value).to_le_bytes()));
        }
        tensors.wide = wide;
        tensors
    }

    fn view(&self, eight: bool) -> TensorView<'_> {
        let (dtype, data) = if eight { (Dtype::Fp8, &self.blocks) } else { (Dtype::Bf16, &self.wide) };
        TensorView { name: "w", shape: &self.shape, dtype, data }
    }

    /// A weight of two of them, the second held in part, as the loader packs it; interleaved if it is gated.
    fn weight(both: &[Self; 2], shape: GemmShape) -> Vec<u16> {
        let eight = shape.numbers == Numbers::Fp8;
        let first = both[0].shape[0];
        let rows = [0..first, both[1].shape[0] - (shape.outputs - first)..both[1].shape[0]];
        let part = |i: usize| {
            let tensor = both[i].view(eight);
            Part { tensor, shard: Shard::rows(rows[i].clone(), shape.inputs) }
        };
        let parts = [part(0), part(1)];
        assert_eq!(fp8::takes(&parts), eight);
        let packed = fp8::packed(&parts, &GemmShape { gated: false, ..shape }).unwrap();
        if !shape.gated {
            return packed;
        }
        // As `interleave_gates` moves groups of 8 outputs.
        let tiles = shape.k_tiles() / shape.numbers.depth();
        let words = 8 * shape.numbers.row_bytes() * shape.numbers.depth() / 2;
        let mut gated = vec![0; shape.packed_bytes() / 2];
        for (group, to) in gated.chunks_mut(words).enumerate() {
            let (tile, eight) = (group / 8, group % 8);
            let (row, column) = (tile / tiles * 64 + eight * 8, tile % tiles);
            if let Some(row) = gated_source(row, shape.outputs / 2) {
                let from = ((row / 64 * tiles + column) * 8 + row % 64 / 8) * words;
                to.copy_from_slice(&packed[from..from + words]);
            }
        }
        gated
    }
}

/// Outputs of the two tensors, inputs, whether they are gates and ups.
const SHAPES: [(usize, usize, usize, bool); 5] =
    [(64, 64, 128, false), (24, 37, 256, false), (48, 48, 384, true), (72, 72, 128, true), (130, 70, 640, false)];

#[test]
fn products_of_e4m3_are_those_of_the_same_values_in_bf16() {
    let mut random = Random::fresh("products of e4m3");
    for machine in Runner::all_for(Emulated::Gemm) {
        let mut failures = Vec::new();
        for (first, second, inputs, gated) in SHAPES {
            let both = [first, second + 5].map(|outputs| Tensors::new([outputs, inputs], &mut random));
            let outputs = first + second;
            for rows in [1, 8, 9, 70] {
                let capacity = 256;
                let input = machine.holding(&pack_input(&random.bf16s(rows * inputs), inputs, capacity));
                let counts = machine.holding(&[rows as u32, 0, 0, 0, 0, 0, 0, 0]);
                let bias = machine.holding(&random.floats(outputs));
                let run = |numbers: Numbers| {
                    let shape = GemmShape { outputs, inputs, gated, numbers };
                    let (weight, width) = (machine.holding(&Tensors::weight(&both, shape)), shape.width());
                    let output: Memory = machine.memory(4 * width * capacity);
                    let call = GemmCall {
                        shape,
                        activation: gated.then_some(Activation::Silu),
                        weights: weight.ptr(),
                        input: input.ptr(),
                        input_capacity: capacity,
                        bias: (!gated).then_some(bias.ptr()),
                        residual: None,
                        output: GemmOutput::F32 { to: output.ptr(), pitch: width },
                        counts: counts.ptr(),
                        rows: RowsOf::Step,
                        rows_max: rows,
                    };
                    let device = Machine { multiprocessors: 3, shared_bytes: 166_912, wgmma: false };
                    let geometry = Geometry::choose(shape, rows, device, &Tuning::default());
                    let (module, name) = GemmKernels::names(numbers, false, geometry.tokens, geometry.groups);
                    machine
                        .run(&Call {
                            module,
                            name: name.leak(),
                            grid: geometry.grid,
                            block: geometry.threads,
                            shared: geometry.shared,
                            params: GemmParams::new(&call, &geometry, false),
                        })
                        .unwrap();
                    let values = output.read::<f32>(width * capacity);
                    assert!(
                        values[rows * width..].iter().all(|value| value.to_bits() == u32::MAX),
                        "rows behind the last"
                    );
                    values[..rows * width].to_vec()
                };
                let (expected, found) = (run(Numbers::Bf16), run(Numbers::Fp8));
                assert!(expected.iter().all(|value| value.is_finite()), "bf16 {first} {second} {inputs} × {rows}");
                let wrong = difference(&found, &expected, expected.len() / rows);
                if !wrong.is_empty() {
                    failures.push(format!("{} + {second} × {inputs}, gated {gated}, {rows} rows: {wrong}", first));
                }
            }
        }
        println!("{}: {} cases", machine.name(), 4 * SHAPES.len());
        conclude(&failures);
    }
}

/// The same for every variant of a device's kernels, and groups of products.
#[test]
fn every_variant_over_e4m3_has_the_bits_of_bf16() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("variants over e4m3");
    let mut failures = Vec::new();
    for (first, second, inputs, gated) in [(640, 384, 1024, false), (704, 704, 896, true), (100, 60, 4864, false)] {
        let both = [first, second + 3].map(|outputs| Tensors::new([outputs, inputs], &mut random));
        let shape = |numbers| GemmShape { outputs: first + second, inputs, gated, numbers };
        let of = |numbers| device.from_slice(&Tensors::weight(&both, shape(numbers))).unwrap();
        let [wide, eight] = [of(Numbers::Bf16), of(Numbers::Fp8)];
        let (rows, width) = (700, shape(Numbers::Bf16).width());
        let capacity = 1024;
        let input = device.from_slice(&pack_input(&random.bf16s(rows * inputs), inputs, capacity)).unwrap();
        let output = device.alloc(4 * width * capacity).unwrap();
        let run = |numbers, weight: &DeviceBuffer, tuning, count: usize| {
            let kernels = GemmKernels::with_tuning(&device, tuning).unwrap();
            let counts = device.from_slice(&[count as u32, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            output.fill(0xff).unwrap();
            let launch: Launch = kernels.launch(&GemmCall {
                shape: shape(numbers),
                activation: gated.then_some(Activation::Silu),
                weights: weight.ptr(),
                input: input.ptr(),
                input_capacity: capacity,
                bias: None,
                residual: None,
                output: GemmOutput::F32 { to: output.ptr(), pitch: width },
                counts: counts.ptr(),
                rows: RowsOf::Step,
                rows_max: count,
            });
            launch.run(&device).unwrap();
            device.synchronize().unwrap();
            output.read::<f32>(0, count * width).unwrap()
        };
        let expected = run(Numbers::Bf16, &wide, Tuning::default(), rows);
        let mut check = |tuning, count: usize| {
            let wrong = difference(&run(Numbers::Fp8, &eight, tuning, count), &expected[..count * width], width);
            if !wrong.is_empty() {
                failures.push(format!("{first} + {second} × {inputs}, {count} rows, {:?}: {wrong}", tuning.only));
            }
        };
        for count in [1, 7, 8, 33, 64, 200, rows] {
            check(Tuning::default(), count);
        }
        if !device.hopper() {
            continue;
        }
        for &(tokens, groups) in geometry::variants(Numbers::Fp8, true) {
            for stream in [true, false] {
                let tuning = Tuning { only: Some((tokens, groups, stream)), ..Tuning::default() };
                check(tuning, if stream { tokens as usize } else { 2 * tokens as usize + 5 });
            }
        }
    }
    conclude(&failures);
}
