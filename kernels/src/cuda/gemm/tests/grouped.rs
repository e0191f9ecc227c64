//! Products of a mixture of experts: one launch for all.

use super::*;

/// Every group has the bits that its rows have alone; what lies between groups is not written.
#[test]
fn groups_are_the_products_they_consist_of() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("groups");
    let mut failures = Vec::new();
    let families = [false, true].map(|plain| Tuning { plain, ..Tuning::default() });
    for (outputs, inputs, gated) in [(1536, 1024, true), (1024, 768, false), (208, 144, false)] {
        let shape = GemmShape { outputs, inputs, gated, numbers: Numbers::Bf16 };
        let width = shape.width();
        // Four matrices behind each other; five groups, of which two have no rows, in another order.
        let matrices: Vec<Weight> = (0..4).map(|_| Weight::new(&device, shape, &mut random)).collect();
        let packed = device.alloc(4 * shape.packed_bytes()).unwrap();
        for (number, matrix) in matrices.iter().enumerate() {
            let bytes = matrix.packed.read::<u8>(0, shape.packed_bytes()).unwrap();
            packed.write(number * shape.packed_bytes(), &bytes).unwrap();
        }
        for (largest, tiled) in [(1usize, true), (9, false), (61, true), (300, false), (1031, true)] {
            let groups = [(2, largest), (0, 0), (3, 1), (1, largest.div_ceil(2)), (0, 0)];
            let mut counts = Vec::new();
            let (mut firsts, mut next) = (Vec::new(), 8usize);
            for (matrix, rows) in groups {
                counts.extend([rows as u32, 77, 0, 0, 0, 0, next as u32, matrix as u32]);
                firsts.push(next);
                next = (next + rows + 9).next_multiple_of(8);
            }
            let capacity = next.next_multiple_of(256);
            let x = random.bf16s(next * inputs);
            let input = device.from_slice(&pack_input(&x, inputs, capacity)).unwrap();
            let counts = device.from_slice(&counts).unwrap();
            let activation = gated.then_some(Activation::Silu);
            let panels = width.next_multiple_of(64);
            let bytes = if tiled { panels * capacity * 2 } else { width * capacity * 4 };
            for tuning in families {
                let kernels = GemmKernels::with_tuning(&device, tuning).unwrap();
                let output = device.alloc(bytes).unwrap();
                output.fill(0xff).unwrap();
                let call = GemmCall {
                    shape,
                    activation,
                    weights: packed.ptr(),
                    input: input.ptr(),
                    input_capacity: capacity,
                    bias: None,
                    residual: None,
                    output: if tiled {
                        GemmOutput::Tiled { to: output.ptr(), capacity }
                    } else {
                        GemmOutput::F32 { to: output.ptr(), pitch: width }
                    },
                    counts: counts.ptr(),
                    rows: RowsOf::Step,
                    rows_max: largest,
                };
                let what = format!("{shape:?} largest {largest} tiled {tiled} plain {}", tuning.plain);
                let ran = kernels.launch_grouped(&call, groups.len(), 2 * largest).run(&device);
                if let Err(error) = ran.and_then(|()| device.synchronize()) {
                    failures.push(format!("{what}: {error}"));
                    conclude(&failures);
                }
                let mut written = vec![false; capacity];
                let value: Vec<f32> = if tiled {
                    let all = output.read::<u16>(0, panels * capacity).unwrap();
                    let places = (0..capacity * width).map(|i| tiled_offset(i / width, i % width, capacity) / 2);
                    places.map(|place| widen(all[place])).collect()
                } else {
                    output.read(0, width * capacity).unwrap()
                };
                for ((matrix, rows), first) in groups.into_iter().zip(&firsts) {
                    written[*first..first + rows].fill(true);
                    let ask = Ask { tiled, activation, ..Ask::default() };
                    let part = &x[first * inputs..(first + rows) * inputs];
                    let alone = product(&device, &kernels, &matrices[matrix], part, &[], ask).unwrap().values;
                    let wrong = difference(&value[first * width..(first + rows) * width], &alone, width);
                    if !wrong.is_empty() {
                        failures.push(format!("{what}: {rows} rows at {first} of matrix {matrix}: {wrong}"));
                    }
                }
                let poison = if tiled { widen(0xffff).to_bits() } else { u32::MAX };
                let kept = |row: usize| value[row * width..(row + 1) * width].iter().all(|v| v.to_bits() == poison);
                let stray: Vec<usize> = (0..capacity).filter(|row| !written[*row] && !kept(*row)).collect();
                if !stray.is_empty() {
                    failures.push(format!("{what}: rows {stray:?} of no group were written"));
                }
            }
        }
    }
    conclude(&failures);
}
