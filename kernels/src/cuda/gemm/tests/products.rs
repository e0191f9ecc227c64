//! Results, on a device.

use super::*;

/// Kernels by every family of instructions that the device has.
fn families(device: &Arc<Device>) -> Vec<(&'static str, GemmKernels)> {
    let plain = Tuning { plain: true, ..Tuning::default() };
    let mut families = vec![("mma", GemmKernels::with_tuning(device, plain).unwrap())];
    if device.hopper() {
        families.insert(0, ("wgmma", GemmKernels::with_tuning(device, Tuning::default()).unwrap()));
    }
    families
}

/// The value that is meant, and how far from it a result may be.
fn meant(weight: &Weight, x: &[u16], residual: &[f32], ask: Ask, row: usize, n: usize) -> (f64, f64) {
    let (shape, width) = (weight.shape, weight.shape.width());
    let inputs = &x[row * shape.inputs..(row + 1) * shape.inputs];
    let one = |n: usize| {
        let (sum, size) = weight.sum(n, inputs);
        let bias = if ask.bias { f64::from(weight.bias[n]) } else { 0.0 };
        // Sums in f32, shorter ones within the instruction.
        (sum + bias, 1e-6 * size + 3e-7 * (sum.abs() + bias.abs()))
    };
    let (mut value, mut bound) = one(n);
    if let Some(activation) = ask.activation {
        let (up, up_bound) = one(width + n);
        let through = |x: f64| match activation {
            Activation::Silu => f64::from(silu(x as f32)),
            Activation::GeluTanh => f64::from(gelu_tanh(x as f32)),
        };
        // Neither function is steeper than 1.2.
        bound = 1.2 * bound * up.abs() + through(value).abs() * up_bound + 1e-6 * (through(value) * up).abs();
        value = through(value) * up;
    }
    if ask.residual {
        value += f64::from(residual[row * width + n]);
        bound += 1e-7 * value.abs();
    }
    if ask.tiled {
        bound += value.abs() / 256.0;
    }
    (value, bound)
}

/// Compares a sample of rows, every output of each; a line about the worst, and what failed.
fn check(weight: &Weight, x: &[u16], residual: &[f32], ask: Ask, answer: &Answer) -> Result<String, String> {
    let width = weight.shape.width();
    let rows = x.len() / weight.shape.inputs;
    let picked: Vec<usize> = if rows <= 40 {
        (0..rows).collect()
    } else {
        (0..rows).filter(|row| *row < 9 || rows - *row < 9 || row % (rows / 16) < 1).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<(usize, f64, f64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = picked
            .chunks(picked.len().div_ceil(threads).max(1))
            .map(|picked| {
                scope.spawn(move || {
                    let places = picked.iter().flat_map(|row| (0..width).map(move |n| (*row, n)));
                    places
                        .map(|(row, n)| {
                            let (value, bound) = meant(weight, x, residual, ask, row, n);
                            (row * width + n, value, bound)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let off = |&(i, value, bound): &(usize, f64, f64)| (f64::from(answer.values[i]) - value).abs() / bound.max(1e-30);
    let bad: Vec<_> = results.iter().filter(|result| off(result) > 1.0 || answer.values[result.0].is_nan()).collect();
    let worst = results.iter().map(off).fold(0.0, f64::max);
    if bad.is_empty() && answer.untouched {
        return Ok(format!("worst error {worst:.2} of the bound"));
    }
    let places: Vec<usize> = bad.iter().map(|result| result.0).collect();
    let mut text = format!(
        "{} of {} wrong (worst {worst:.2e} of the bound), padding {}; {}",
        bad.len(),
        results.len(),
        if answer.untouched { "as it must be" } else { "WRITTEN OR NOT ZERO" },
        spread(&places, width)
    );
    for (i, value, _) in bad.iter().take(5) {
        write!(text, " [{}][{}] {:e} for {value:e};", i / width, i % width, answer.values[*i]).unwrap();
    }
    Err(text)
}

#[test]
fn products_agree_with_f64() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("products");
    let mut failures = Vec::new();
    let silu = Some(Activation::Silu);
    let gelu = Some(Activation::GeluTanh);
    let none = Ask::default();
    let asks = [
        none,
        Ask { bias: true, residual: true, ..none },
        Ask { residual: true, wanted: true, ..none },
        Ask { tiled: true, ..none },
        Ask { tiled: true, bias: true, ..none },
        Ask { activation: silu, tiled: true, ..none },
        Ask { activation: gelu, bias: true, tiled: true, ..none },
        Ask { activation: silu, ..none },
        Ask { activation: gelu, bias: true, ..none },
    ];
    let shapes =
        [(64, 64), (16, 16), (48, 208), (80, 144), (272, 720), (1040, 528), (4096, 1024), (33, 100), (2050, 64)];
    for (number, (outputs, inputs)) in shapes.into_iter().enumerate() {
        for gated in [false, true] {
            if gated && !usize::is_multiple_of(outputs, 16) {
                continue;
            }
            let weight =
                Weight::new(&device, GemmShape { outputs, inputs, gated, numbers: Numbers::Bf16 }, &mut random);
            for (turn, rows) in [1, 3, 8, 13, 32, 61, 64, 129, 300, 2049].into_iter().enumerate() {
                let x = random.bf16s(rows * inputs);
                let residual = random.floats(rows * outputs);
                // All epilogues of a few sizes, every other one of the others.
                let fitting = asks.into_iter().filter(|ask| ask.activation.is_some() == gated);
                for (which, ask) in fitting.enumerate() {
                    if number > 1 && (turn + which + number) % 3 != 0 {
                        continue;
                    }
                    for (family, kernels) in families(&device) {
                        let what = format!("{family} [{outputs}, {inputs}] gated {gated} × {rows} {ask:?}");
                        let outcome = match product(&device, &kernels, &weight, &x, &residual, ask) {
                            Ok(answer) => check(&weight, &x, &residual, ask, &answer),
                            Err(error) => {
                                // Nothing works after this.
                                failures.push(format!("{what}: {error}"));
                                conclude(&failures);
                                return;
                            }
                        };
                        match outcome {
                            Ok(good) if which == 1 && turn == 6 => println!("{what}: {good}"),
                            Ok(_) => {}
                            Err(bad) => failures.push(format!("{what}: {bad}")),
                        }
                    }
                }
            }
        }
    }
    conclude(&failures);
}

/// The bits of a row are those it has alone, in any batch, by any variant, whatever the bucket.
#[test]
fn rows_do_not_depend_on_the_batch() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("batches");
    let mut failures = Vec::new();
    for (outputs, inputs, gated) in
        [(4096, 4096, false), (1536, 1200, true), (896, 4864, false), (272, 720, false), (4096, 14336, false)]
    {
        let shape = GemmShape { outputs, inputs, gated, numbers: Numbers::Bf16 };
        let weight = Weight::new(&device, shape, &mut random);
        let width = shape.width();
        // Four times the same rows.
        let (period, rows) = (512, 2048);
        let x = random.bf16s(period * inputs).repeat(4);
        let residual = random.floats(period * width).repeat(4);
        let base =
            Ask { bias: true, residual: !gated, activation: gated.then_some(Activation::Silu), ..Ask::default() };
        let mut run = |kernels: &GemmKernels, first: usize, count: usize, ask: Ask, reference: &[f32], what: &str| {
            let part = &x[first * inputs..(first + count) * inputs];
            match product(&device, kernels, &weight, part, &residual[first * width..], ask) {
                Ok(answer) => {
                    let wrong = difference(&answer.values, &reference[first * width..(first + count) * width], width);
                    if !wrong.is_empty() || !answer.untouched {
                        let untouched = answer.untouched;
                        failures.push(format!("{what}: rows {first} + {count}: untouched {untouched}; {wrong}"));
                    }
                }
                Err(error) => failures.push(format!("{what}: rows {first} + {count}: {error}")),
            }
        };
        for (family, kernels) in families(&device) {
            if family == "mma" && inputs > 1200 && device.hopper() {
                continue;
            }
            // The reference: batches of 8.
            let mut eights = Vec::with_capacity(rows * width);
            for first in (0..period).step_by(8) {
                let part = &x[first * inputs..(first + 8) * inputs];
                match product(&device, &kernels, &weight, part, &residual[first * width..], base) {
                    Ok(answer) => eights.extend(answer.values),
                    Err(error) => panic!("{family} {shape:?}: {error}"),
                }
            }
            let eights = eights.repeat(4);
            let name = format!("{family} [{outputs}, {inputs}]");
            for row in (0..period).step_by(61) {
                run(&kernels, row, 1, base, &eights, &name);
            }
            for count in [5, 16, 27, 64, 100, 128, 200, 256, 300, 512, 1000, 2048] {
                run(&kernels, (rows - count) / 8, count, base, &eights, &name);
            }
            for count in [1, 8, 70, 260] {
                run(&kernels, 0, count, Ask { bucket: Some(2048), ..base }, &eights, &format!("{name} bucket 2048"));
            }
            run(&kernels, 3, 3, Ask { bucket: Some(64), ..base }, &eights, &format!("{name} bucket 64"));
            if family != "wgmma" || inputs > 10_000 {
                continue;
            }
            for (tokens, groups) in geometry::WGMMA {
                for stream in [true, false] {
                    for cluster in [1, 2, 4, 8] {
                        if tokens / cluster < 8 || (!stream && (tokens < 256 && cluster > 1 || cluster > 2)) {
                            continue;
                        }
                        let tuning = Tuning {
                            only: Some((tokens, groups, stream)),
                            stream_cluster: cluster,
                            tile_cluster: cluster,
                            ..Tuning::default()
                        };
                        let kernels = GemmKernels::with_tuning(&device, tuning).unwrap();
                        let count = if stream { tokens as usize } else { 2 * tokens as usize + 5 };
                        let what = format!("n{tokens} w{groups} stream {stream} c{cluster} [{outputs}, {inputs}]");
                        run(&kernels, 11, count, base, &eights, &what);
                        run(&kernels, 1, 1, Ask { bucket: Some(count), ..base }, &eights, &what);
                    }
                }
            }
        }
    }
    conclude(&failures);
}

/// A product of no rows writes nothing and ends; one right behind reads what the one before wrote.
#[test]
fn products_follow_each_other() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("sequence");
    let mut failures = Vec::new();
    let shapes = [(1024, 4096), (4096, 1024)].map(|(outputs, inputs)| GemmShape {
        outputs,
        inputs,
        gated: false,
        numbers: Numbers::Bf16,
    });
    let [first, second] = shapes.map(|shape| Weight::new(&device, shape, &mut random));
    for (family, kernels) in families(&device) {
        for bucket in [8, 64, 2048] {
            let ask = Ask { bucket: Some(bucket), ..Ask::default() };
            match product(&device, &kernels, &first, &[], &[], ask) {
                Ok(answer) if answer.untouched => {}
                Ok(_) => failures.push(format!("{family} no rows of {bucket}: written")),
                Err(error) => failures.push(format!("{family} no rows of {bucket}: {error}")),
            }
        }
        for rows in [1, 8, 40, 300] {
            let x = random.bf16s(rows * 4096);
            let between = product(&device, &kernels, &first, &x, &[], Ask { tiled: true, ..Ask::default() }).unwrap();
            let narrow: Vec<u16> = between.values.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
            let expected = product(&device, &kernels, &second, &narrow, &[], Ask::default()).unwrap().values;
            let capacity = rows.next_multiple_of(256);
            let input = device.from_slice(&pack_input(&x, 4096, capacity)).unwrap();
            let counts = device.from_slice(&[rows as u32, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            let (middle, output) =
                (device.alloc(1024 * capacity * 2).unwrap(), device.alloc(4096 * capacity * 4).unwrap());
            let call = |weight: &Weight, from: DevicePtr, to: GemmOutput| {
                kernels.launch(&GemmCall {
                    shape: weight.shape,
                    activation: None,
                    weights: weight.packed.ptr(),
                    input: from,
                    input_capacity: capacity,
                    bias: None,
                    residual: None,
                    output: to,
                    counts: counts.ptr(),
                    rows: RowsOf::Step,
                    rows_max: rows,
                })
            };
            let launches = [
                call(&first, input.ptr(), GemmOutput::Tiled { to: middle.ptr(), capacity }),
                call(&second, middle.ptr(), GemmOutput::F32 { to: output.ptr(), pitch: 4096 }),
            ];
            for turn in 0..50 {
                middle.fill(0xff).unwrap();
                output.fill(0xff).unwrap();
                for launch in &launches {
                    launch.run(&device).unwrap();
                }
                let got = output.read::<f32>(0, rows * 4096).unwrap();
                let wrong = difference(&got, &expected, 4096);
                if !wrong.is_empty() {
                    failures.push(format!("{family} {rows} rows, turn {turn}: {wrong}"));
                    break;
                }
            }
        }
    }
    conclude(&failures);
}
