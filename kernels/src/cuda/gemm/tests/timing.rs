//! Times, printed where `POLYLINK_GPU_TIMES=1` asks for them.

use super::*;

/// Weights and activations larger than the L2 cache several times over.
const ROTATE_BYTES: usize = 512 * 1024 * 1024;

struct Bench<'a> {
    device: &'a Arc<Device>,
    weights: &'a DeviceBuffer,
    input: &'a DeviceBuffer,
    output: &'a DeviceBuffer,
    counts: &'a DeviceBuffer,
}

impl Bench<'_> {
    /// Median seconds of one product of `rows` rows, behind one another as in a step.
    fn seconds(&self, kernels: &GemmKernels, shape: GemmShape, rows: usize) -> Result<f64, CudaError> {
        let copies =
            (ROTATE_BYTES / shape.packed_bytes()).clamp(1, 40).min(self.weights.bytes() / shape.packed_bytes());
        let capacity = rows.next_multiple_of(256);
        self.counts.write(0, &[rows as u32, rows as u32])?;
        let launches: Vec<Launch> = (0..copies)
            .map(|copy| {
                kernels.launch(&GemmCall {
                    shape,
                    activation: shape.gated.then_some(Activation::Silu),
                    weights: self.weights.ptr() + (copy * shape.packed_bytes()) as u64,
                    input: self.input.ptr(),
                    input_capacity: capacity,
                    bias: None,
                    residual: (!shape.gated && shape.inputs >= shape.outputs).then_some(self.output.ptr()),
                    output: if shape.gated {
                        GemmOutput::Tiled { to: self.output.ptr(), capacity }
                    } else {
                        GemmOutput::F32 { to: self.output.ptr(), pitch: shape.outputs }
                    },
                    counts: self.counts.ptr(),
                    rows: RowsOf::Step,
                    rows_max: rows,
                })
            })
            .collect();
        let turns = if rows > 512 { 1 } else { 40usize.div_ceil(copies) };
        let graph = self
            .device
            .capture(|| (0..turns).flat_map(|_| &launches).try_for_each(|launch| launch.run(self.device)))?;
        graph.launch()?;
        let runs = 5;
        let seconds = self.device.time(runs, || graph.launch())?;
        Ok(seconds / (turns * copies) as f64)
    }
}

#[test]
fn times_of_the_8b_shapes() {
    let Some(device) = Device::for_tests() else { return };
    if std::env::var("POLYLINK_GPU_TIMES").is_err() {
        println!("skipped: POLYLINK_GPU_TIMES is not set");
        return;
    }
    let begun = std::time::Instant::now();
    let mut random = Random::fresh("times");
    let weights = device.alloc(1536 * 1024 * 1024).unwrap();
    let piece = random.bf16s(8 * 1024 * 1024);
    for at in (0..weights.bytes()).step_by(2 * piece.len()) {
        weights.write(at, &piece).unwrap();
    }
    let input = device.alloc(14336 * 8192 * 2).unwrap();
    for at in (0..input.bytes() - 2 * piece.len()).step_by(2 * piece.len()) {
        input.write(at, &piece).unwrap();
    }
    let output = device.alloc(28672 * 8192 * 4).unwrap();
    output.fill(0).unwrap();
    let counts = device.from_slice(&[0u32; COUNTS]).unwrap();
    let bench = Bench { device: &device, weights: &weights, input: &input, output: &output, counts: &counts };
    let shapes =
        [(6144, 4096, false), (4096, 4096, false), (28672, 4096, true), (4096, 14336, false), (128_256, 4096, false)];
    let best = GemmKernels::with_tuning(&device, Tuning::default()).unwrap();
    println!("us at rows (% of 4.3 TB/s or 790 TFLOP/s, whichever is slower)");
    let mut chosen = Vec::new();
    let numbers = [Numbers::Bf16, Numbers::Fp8].into_iter();
    for (numbers, (outputs, inputs, gated)) in numbers.flat_map(|numbers| shapes.map(|shape| (numbers, shape))) {
        let shape = GemmShape { outputs, inputs, gated, numbers };
        let mut line = format!("{numbers:?} [{outputs}, {inputs}]");
        for rows in [1, 8, 16, 32, 64, 128, 256, 512, 2048, 8192] {
            if outputs > 100_000 && rows > 512 {
                continue;
            }
            match bench.seconds(&best, shape, rows) {
                Ok(seconds) => {
                    write!(line, " {rows}: {:.1} ({:.0})", 1e6 * seconds, 100.0 * floor(shape, rows) / seconds)
                        .unwrap();
                    chosen.push((shape, rows, seconds));
                }
                Err(error) => write!(line, " {rows}: {error}").unwrap(),
            }
        }
        println!("{line}");
    }
    if !device.hopper() {
        return;
    }
    let tuned = |(shape, ..): &(GemmShape, usize, f64)| shape.outputs < 100_000 && shape.numbers == Numbers::Bf16;
    println!("faster by 3 % or more (s: stream, t: tiles; n tokens, w warpgroups, c cluster, r stages × k tiles):");
    for (shape, rows, seconds) in chosen.into_iter().filter(tuned) {
        let mut line = String::new();
        for tuning in variants(rows as u32) {
            let kernels = GemmKernels::with_tuning(&device, tuning).unwrap();
            let other = kernels.geometry(shape, rows);
            if begun.elapsed().as_secs() > 20 || other == best.geometry(shape, rows) {
                continue;
            }
            let name = short(&other);
            match bench.seconds(&kernels, shape, rows) {
                Ok(other) if other < 0.97 * seconds => write!(line, " {name} {:.1}", 1e6 * other).unwrap(),
                Ok(_) => {}
                Err(error) => write!(line, " {name} {error}").unwrap(),
            }
        }
        if !line.is_empty() {
            let used = short(&best.geometry(shape, rows));
            println!("[{}, {}] × {rows}: {used} {:.1};{line}", shape.outputs, shape.inputs, 1e6 * seconds);
        }
    }
    println!("{} s", begun.elapsed().as_secs());
}

/// Seconds that the bytes take at 4.3 TB/s or the operations at 790 TFLOP/s.
fn floor(shape: GemmShape, rows: usize) -> f64 {
    let bytes = (shape.outputs * shape.k_tiles() * shape.numbers.row_bytes()) as f64
        + (rows * (2 * shape.inputs + 4 * shape.width())) as f64;
    (bytes / 4.3e12).max(2.0 * (rows * shape.outputs * shape.inputs) as f64 / 790e12)
}

fn short(geometry: &Geometry) -> String {
    let Geometry { tokens, groups, cluster, stages, stage_k_tiles, .. } = geometry;
    let kind = if geometry.stream { "s" } else { "t" };
    format!("{kind}n{tokens}w{groups}c{cluster}r{stages}×{stage_k_tiles}")
}

/// What might be better than the choice.
fn variants(rows: u32) -> Vec<Tuning> {
    let base = Tuning::default();
    let only = |tokens, groups, stream| Tuning { only: Some((tokens, groups, stream)), ..base };
    let all = 200 * 1024;
    match rows {
        1 | 8 => vec![
            only(8, 1, true),
            only(8, 2, true),
            Tuning { ring_bytes: all, ..only(8, 1, true) },
            Tuning { ring_bytes: all, ..only(8, 2, true) },
            Tuning { stage_bytes: 16 * 1024, ..only(8, 1, true) },
        ],
        16 => vec![only(16, 1, true), only(16, 2, true), Tuning { ring_bytes: all, ..only(16, 1, true) }],
        32 | 64 => [1, 2, 4]
            .into_iter()
            .flat_map(|cluster| [1, 4].map(|groups| Tuning { stream_cluster: cluster, ..only(rows, groups, true) }))
            .chain([only(64, 1, false), Tuning { stage_bytes: 16 * 1024, ..only(rows, 1, true) }])
            .collect(),
        128 | 256 => [(64, 1), (64, 4), (128, 1), (128, 2), (256, 2)]
            .into_iter()
            .map(|(tokens, groups)| only(tokens, groups, false))
            .chain([only(128, 1, true), only(128, 2, true)].into_iter().filter(|_| rows == 128))
            .collect(),
        _ => vec![only(128, 2, false), only(256, 2, false), Tuning { tile_cluster: 2, ..only(256, 2, false) }],
    }
}
