//! Layouts and geometry without a device; products against f64, and rows' bits across batches and geometries, on one.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use polylink_protocol::exact_math::{f32_to_bf16, gelu_tanh, silu};

use super::*;
use crate::cuda::driver::DeviceBuffer;
use crate::cuda::rows::tiled_offset;

mod fp8;
mod grouped;
mod layout;
mod products;
mod timing;

/// Words of `StepCounts`.
const COUNTS: usize = 8;

impl GemmShape {
    /// Values of a row of the result.
    const fn width(&self) -> usize {
        if self.gated { self.outputs / 2 } else { self.outputs }
    }

    /// Byte of element `(n, k)` of the packed weight.
    const fn packed_offset(&self, n: usize, k: usize) -> usize {
        let tile = (n / TILE) * self.k_tiles() + k / TILE;
        tile * TILE * TILE * 2 + (n % TILE) * 128 + (((k / 8) % 8) ^ (n % 8)) * 16 + (k % 8) * 2
    }
}

/// Row of `gate over up` (`half` rows each, a multiple of 8) that packed row `row` of a gated weight holds; `None`: padding.
const fn gated_source(row: usize, half: usize) -> Option<usize> {
    let (pair, within) = (row / 16, row % 16);
    let column = 8 * pair + within % 8;
    if column >= half {
        None
    } else if within < 8 {
        Some(column)
    } else {
        Some(half + column)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Seeded by the clock, or by `POLYLINK_SEED`; printed.
    fn fresh(test: &str) -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("POLYLINK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(clock);
        println!("{test}: POLYLINK_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In −1 … 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn bf16s(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| f32_to_bf16(self.unit())).collect()
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Packs rows of `inputs` bf16; `None`: a row of padding.
fn pack_weight<'a>(shape: GemmShape, row: impl Fn(usize) -> Option<&'a [u16]>) -> Vec<u16> {
    let mut packed = vec![0; shape.packed_bytes() / 2];
    for n in 0..shape.padded_outputs() {
        for (k, value) in row(n).unwrap_or_default().iter().enumerate() {
            packed[shape.packed_offset(n, k) / 2] = *value;
        }
    }
    packed
}

/// Panels of `capacity` rows; padding columns are 0, padding rows NaN.
fn pack_input(x: &[u16], inputs: usize, capacity: usize) -> Vec<u16> {
    let rows = x.len() / inputs;
    let padded = inputs.next_multiple_of(64);
    let mut packed = vec![0xffff; padded * capacity];
    for row in 0..rows {
        for column in 0..padded {
            let value = if column < inputs { x[row * inputs + column] } else { 0 };
            packed[tiled_offset(row, column, capacity) / 2] = value;
        }
    }
    packed
}

/// A weight on the device and off it.
struct Weight {
    shape: GemmShape,
    /// `[outputs][inputs]`, gates over ups.
    plain: Vec<u16>,
    packed: DeviceBuffer,
    bias: Vec<f32>,
    packed_bias: DeviceBuffer,
}

impl Weight {
    fn new(device: &Arc<Device>, shape: GemmShape, random: &mut Random) -> Self {
        let plain = random.bf16s(shape.outputs * shape.inputs);
        let bias = random.floats(shape.outputs);
        let source = |row: usize| {
            if shape.gated { gated_source(row, shape.outputs / 2) } else { (row < shape.outputs).then_some(row) }
        };
        let row = |n: usize| source(n).map(|n| &plain[n * shape.inputs..(n + 1) * shape.inputs]);
        let packed = device.from_slice(&pack_weight(shape, row)).unwrap();
        // As many as there are outputs: reading beyond would be an error.
        let order: Vec<f32> = (0..shape.padded_outputs()).filter_map(source).map(|n| bias[n]).collect();
        let packed_bias = device.from_slice(&order).unwrap();
        Self { shape, plain, packed, bias, packed_bias }
    }

    /// Of output n (of gates over ups) and a row of inputs: the sum and the sum of magnitudes.
    fn sum(&self, n: usize, x: &[u16]) -> (f64, f64) {
        let row = &self.plain[n * self.shape.inputs..(n + 1) * self.shape.inputs];
        row.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| {
            let product = f64::from(widen(*w)) * f64::from(widen(*x));
            (sum + product, size + product.abs())
        })
    }
}

/// What is asked of a product.
#[derive(Clone, Copy, Debug, Default)]
struct Ask {
    bias: bool,
    residual: bool,
    tiled: bool,
    activation: Option<Activation>,
    wanted: bool,
    /// Rows that the geometry is made for, where more than there are.
    bucket: Option<usize>,
}

/// Rows of the result as f32 (widened where they are bf16), and whether what must not be written was not.
struct Answer {
    values: Vec<f32>,
    untouched: bool,
}

/// Runs a product over `x` (`[rows][inputs]`), the output poisoned (or holding the residual) before.
fn product(
    device: &Arc<Device>,
    kernels: &GemmKernels,
    weight: &Weight,
    x: &[u16],
    residual: &[f32],
    ask: Ask,
) -> Result<Answer, CudaError> {
    let (shape, width) = (weight.shape, weight.shape.width());
    let rows = x.len() / shape.inputs;
    let rows_max = ask.bucket.unwrap_or(rows).max(1);
    let capacity = rows_max.next_multiple_of(256);
    let input = device.from_slice(&pack_input(x, shape.inputs, capacity))?;
    let mut counts = [0u32; COUNTS];
    // The other count is wrong on purpose.
    (counts[0], counts[1]) = if ask.wanted { (1, rows as u32) } else { (rows as u32, 3) };
    let counts = device.from_slice(&counts)?;
    let panels = width.next_multiple_of(64);
    let bytes = if ask.tiled { panels * capacity * 2 } else { width * capacity * 4 };
    let output = device.alloc(bytes)?;
    output.fill(0xff)?;
    if ask.residual {
        output.write(0, &residual[..rows * width])?;
    }
    let call = GemmCall {
        shape,
        activation: ask.activation,
        weights: weight.packed.ptr(),
        input: input.ptr(),
        input_capacity: capacity,
        bias: ask.bias.then_some(weight.packed_bias.ptr()),
        residual: ask.residual.then_some(output.ptr()),
        output: if ask.tiled {
            GemmOutput::Tiled { to: output.ptr(), capacity }
        } else {
            GemmOutput::F32 { to: output.ptr(), pitch: width }
        },
        counts: counts.ptr(),
        rows: if ask.wanted { RowsOf::Wanted } else { RowsOf::Step },
        rows_max,
    };
    device.bind()?;
    kernels.launch(&call).run(device)?;
    device.synchronize()?;
    if ask.tiled {
        let all = output.read::<u16>(0, panels * capacity)?;
        let at = |row: usize, column: usize| all[tiled_offset(row, column, capacity) / 2];
        let values = (0..rows * width).map(|i| widen(at(i / width, i % width))).collect();
        let zeros = (0..rows).all(|row| (width..panels).all(|column| at(row, column) == 0));
        let beyond = (rows..capacity).all(|row| (0..panels).all(|column| at(row, column) == 0xffff));
        Ok(Answer { values, untouched: zeros && beyond })
    } else {
        let mut values = output.read::<f32>(0, width * capacity)?;
        let untouched = values[rows * width..].iter().all(|value| value.to_bits() == u32::MAX);
        values.truncate(rows * width);
        Ok(Answer { values, untouched })
    }
}

/// Where two arrays `[rows][width]` differ in bits, in words; empty if nowhere.
fn difference(got: &[f32], expected: &[f32], width: usize) -> String {
    let bad: Vec<usize> = (0..expected.len()).filter(|&i| got[i].to_bits() != expected[i].to_bits()).collect();
    if bad.is_empty() {
        return String::new();
    }
    let mut text = format!("{} of {} differ; {}", bad.len(), expected.len(), spread(&bad, width));
    for &i in bad.iter().take(4) {
        let (row, column) = (i / width, i % width);
        write!(text, " [{row}][{column}] {:e} for {:e};", got[i], expected[i]).unwrap();
    }
    text
}

/// Which rows and columns indexes of `[rows][width]` lie in, by their remainders.
fn spread(bad: &[usize], width: usize) -> String {
    let distinct = |of: &dyn Fn(usize) -> usize| {
        let mut all: Vec<usize> = bad.iter().map(|&i| of(i)).collect();
        all.sort_unstable();
        all.dedup();
        let shown: Vec<String> = all.iter().take(12).map(usize::to_string).collect();
        format!("{}{}", shown.join(","), if all.len() > 12 { format!("… ({})", all.len()) } else { String::new() })
    };
    format!(
        "rows {} | rows mod 8 {} | columns {} | columns mod 64 {};",
        distinct(&|i| i / width),
        distinct(&|i| i / width % 8),
        distinct(&|i| i % width),
        distinct(&|i| i % width % 64),
    )
}

/// Ends a test that collected what went wrong: some of it at length, the rest by its name.
fn conclude(failures: &[String]) {
    for failure in failures.iter().take(8) {
        println!("FAILED {}", failure.chars().take(450).collect::<String>());
    }
    for failure in failures.iter().skip(8).take(40) {
        println!("and {}", failure.chars().take(70).collect::<String>());
    }
    assert!(failures.is_empty(), "{} checks failed; they are listed above", failures.len());
}
