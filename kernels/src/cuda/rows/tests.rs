//! Every kernel against the CPU's definition, bit for bit, on a GPU and under the emulator (`kernels/cuda/emulator`). Inputs are random, outputs hold NaN before, and what
//! differs is told in full before a test fails.

use std::time::{SystemTime, UNIX_EPOCH};

use polylink_protocol::exact_math::f32_to_bf16;

use self::bench::{Bench, Memory};
use super::{RowForm, RowOutput, q8_pitch, tiled_offset};
use crate::quantise;

mod append;
mod bench;
mod elementwise;
mod embed;
mod experts;
mod norms;
mod times;

/// Numbers that look random (SplitMix64).
pub(super) struct Random(u64);

impl Random {
    /// Seeded by the clock; the seed is printed.
    pub fn new(test: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
        println!("{test}: seed {now}");
        Self(now)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Mostly within ±4; some zeros of both signs, denormals, tiny and large values.
    pub fn value(&mut self) -> f32 {
        let bits = self.next();
        let plain = ((bits >> 40) as f32 / (1 << 24) as f32 - 0.5) * 8.0;
        let sign = (bits as u32 & 1) << 31;
        match bits >> 1 & 63 {
            0 => f32::from_bits(sign),
            1 => f32::from_bits(sign | (bits >> 20) as u32 & 0x007f_ffff),
            2 => plain * 1e-30,
            3 => plain * 1e4,
            _ => plain,
        }
    }

    /// Now and then a block of 32 is so small that its scale (rule 3) is 0.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..count).map(|_| self.value()).collect();
        let small = values.chunks_mut(32).filter(|_| self.next() & 15 == 0).flatten();
        small.for_each(|value| *value *= 1e-41);
        values
    }

    /// Around 1, as the weights of norms are.
    pub fn weights(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| 1.0 + self.value() * 0.1).collect()
    }
}

/// Differences that a test has found.
#[derive(Default)]
pub(super) struct Report {
    failures: usize,
    checked: usize,
}

impl Report {
    /// Compares bits; `place` names an index.
    pub fn bits(&mut self, what: &str, expected: &[u32], got: &[u32], place: impl Fn(usize) -> String) {
        self.checked += 1;
        let count = if expected.len() == got.len() { 0 } else { 1 };
        let differing: Vec<usize> = (0..expected.len().min(got.len())).filter(|&i| expected[i] != got[i]).collect();
        if differing.is_empty() && count == 0 {
            return;
        }
        self.failures += 1;
        println!("FAILED {what}: {} of {} differ ({} values came)", differing.len(), expected.len(), got.len());
        for &i in differing.iter().take(6).chain(differing.iter().skip(6).rev().take(2)) {
            let (e, g) = (expected[i], got[i]);
            let (ef, gf) = (f32::from_bits(e), f32::from_bits(g));
            let steps = i64::from(g as i32) - i64::from(e as i32);
            println!("  {}: expected {e:#010x} ({ef:e}), got {g:#010x} ({gf:e}), {steps} apart", place(i));
        }
        let unwritten = differing.iter().filter(|&&i| got[i] == u32::MAX).count();
        let last = differing.last().map_or(0, |&last| last);
        println!("  {unwritten} of them never written; first {:?}, last {last}", differing.first());
    }

    pub fn floats(&mut self, what: &str, expected: &[f32], got: &[f32], width: usize) {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        self.bits(what, &bits(expected), &bits(got), |i| format!("row {} col {}", i / width, i % width));
    }

    pub fn words(&mut self, what: &str, expected: &[u32], got: &[u32], width: usize) {
        self.bits(what, expected, got, |i| format!("row {} word {}", i / width, i % width));
    }

    /// Fails the test if anything did.
    pub fn finish(self, test: &str) {
        println!("{test}: {} of {} comparisons failed", self.failures, self.checked);
        assert!(self.checked > 0, "{test} compared nothing");
        assert_eq!(self.failures, 0, "{test}: see above");
    }
}

/// Makes of every check, a function of a [`Bench`], a test on a GPU and one under the emulator.
macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        mod gpu {
            $(#[test]
            fn $name() {
                if let Some(bench) = super::Bench::gpu() {
                    super::$name(&bench);
                }
            })+
        }
        mod emulated {
            $(#[test]
            fn $name() {
                if let Some(bench) = super::Bench::emulated() {
                    super::$name(&bench);
                }
            })+
        }
    };
}
pub(super) use checks;

pub(super) const FORMS: [RowForm; 3] = [RowForm::F32, RowForm::Bf16Tiled, RowForm::Q8];

/// Rows in one of the forms on the device.
pub(super) struct Output {
    form: RowForm,
    data: Memory,
    scales: Memory,
    capacity: usize,
    width: usize,
}

impl Output {
    pub fn new(bench: &Bench, form: RowForm, rows: usize, width: usize) -> Self {
        let capacity = rows.next_multiple_of(8);
        let (data, scales) = match form {
            RowForm::F32 => (4 * rows * width, 0),
            RowForm::Bf16Tiled => (capacity * width.next_multiple_of(64) * 2, 0),
            RowForm::Q8 => (rows * q8_pitch(width), rows * q8_pitch(width) / 8),
        };
        Self { form, data: bench.poisoned(data), scales: bench.poisoned(scales), capacity, width }
    }

    pub fn target(&self) -> RowOutput {
        match self.form {
            RowForm::F32 => RowOutput::f32(self.data.ptr(), self.width),
            RowForm::Bf16Tiled => RowOutput::bf16_tiled(self.data.ptr(), self.capacity),
            RowForm::Q8 => RowOutput::q8(self.data.ptr(), self.scales.ptr(), self.width),
        }
    }

    /// Compares rows (device row, expected values).
    pub fn check<'a>(&self, report: &mut Report, what: &str, rows: impl Iterator<Item = (usize, &'a [f32])>) {
        let width = self.width;
        let what = format!("{what} as {:?}", self.form);
        match self.form {
            RowForm::F32 => {
                let got = self.data.read::<f32>(0, self.data.bytes() / 4).expect("a copy");
                let (expected, got): (Vec<f32>, Vec<f32>) = rows
                    .flat_map(|(row, values)| values.iter().copied().zip(got[row * width..][..width].to_vec()))
                    .unzip();
                report.floats(&what, &expected, &got, width);
            }
            RowForm::Bf16Tiled => {
                let got = self.data.read::<u16>(0, self.data.bytes() / 2).expect("a copy");
                let padded = width.next_multiple_of(64);
                let (mut expected, mut found) = (Vec::new(), Vec::new());
                for (row, values) in rows {
                    for col in 0..padded {
                        // As f32 bits, so that differences read well. Zeros of either sign fill panels up.
                        let number = got[tiled_offset(row, col, self.capacity) / 2];
                        let wanted = values.get(col).map_or(0, |&value| f32_to_bf16(value));
                        expected.push(u32::from(wanted) << 16);
                        found.push(u32::from(if col < width { number } else { number & 0x7fff }) << 16);
                    }
                }
                report.bits(&what, &expected, &found, |i| format!("row {} col {}", i / padded, i % padded));
            }
            RowForm::Q8 => {
                let pitch = q8_pitch(width);
                let quants = self.data.read::<i8>(0, self.data.bytes()).expect("a copy");
                let scales = self.scales.read::<f32>(0, self.scales.bytes() / 4).expect("a copy");
                let (mut expected, mut found) = (Vec::new(), Vec::new());
                for (row, values) in rows {
                    for (block, values) in values.as_chunks::<32>().0.iter().enumerate() {
                        let mut wanted = [0i8; 32];
                        expected.push(quantise::activations(values, &mut wanted).to_bits());
                        expected.extend(wanted.map(|quant| i32::from(quant) as u32));
                        found.push(scales[row * pitch / 32 + block].to_bits());
                        found.extend(quants[row * pitch + 32 * block..][..32].iter().map(|&q| i32::from(q) as u32));
                    }
                }
                let per_row = width / 32 * 33;
                let place = |i: usize| match i % per_row % 33 {
                    0 => format!("row {} block {}: scale", i / per_row, i % per_row / 33),
                    n => format!("row {} block {} value {}", i / per_row, i % per_row / 33, n - 1),
                };
                report.bits(&what, &expected, &found, place);
            }
        }
    }
}
