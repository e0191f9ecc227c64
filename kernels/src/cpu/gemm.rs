//! Matrix products over packed weights.
//!
//! Packed forms; outputs are padded with zeros to a multiple of 16 (a *strip*):
//! * f32, bf16: `[strip][k][16]`: one load gives the weights of 16 outputs for one input;
//! * int8: `[strip][block][k / 2 within the block][16][2]`, scales `[strip][block][16]`.
//!
//! A tile is a few strips by a run of rows. Within it every output has its own chain (numerics rules 2 and 3): lanes are
//! outputs, never inputs, so the number of rows, strips or lanes changes no bit.
#![allow(unsafe_code)] // vector loads from packed weights; tiles write disjoint parts of the output

use super::isa::multiversioned;
use super::lanes::{Lanes, WIDTH};
use super::pool::SharedSlice;
use crate::operations::finish;
use crate::quantise::BLOCK;
use crate::weights::{MatrixShape, PlainMatrix, PlainValues};

/// Packed values of a matrix.
pub(crate) enum PackedValues {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Int8 { quants: Vec<i8>, scales: Vec<f32> },
}

/// A packed matrix.
pub(crate) struct Packed {
    pub shape: MatrixShape,
    pub values: PackedValues,
}

fn pack_strips<T: Copy + Default>(shape: MatrixShape, plain: &[T]) -> Vec<T> {
    let MatrixShape { outputs, inputs, .. } = shape;
    let mut packed = vec![T::default(); outputs.div_ceil(WIDTH) * WIDTH * inputs];
    for (n, row) in plain.chunks_exact(inputs).enumerate() {
        let strip = &mut packed[n / WIDTH * WIDTH * inputs..];
        row.iter().enumerate().for_each(|(k, &value)| strip[k * WIDTH + n % WIDTH] = value);
    }
    packed
}

impl Packed {
    pub fn new(plain: PlainMatrix) -> Self {
        let shape = plain.shape;
        let values = match plain.values {
            PlainValues::F32(values) => PackedValues::F32(pack_strips(shape, &values)),
            PlainValues::Bf16(values) => PackedValues::Bf16(pack_strips(shape, &values)),
            PlainValues::Int8 { quants: plain, scales } => {
                let blocks = MatrixShape { inputs: shape.inputs / BLOCK, ..shape };
                let mut quants = vec![0; shape.outputs.div_ceil(WIDTH) * WIDTH * shape.inputs];
                for (n, row) in plain.chunks_exact(shape.inputs).enumerate() {
                    let strip = &mut quants[n / WIDTH * WIDTH * shape.inputs..];
                    for (k, &quant) in row.iter().enumerate() {
                        strip[k / 2 * (2 * WIDTH) + n % WIDTH * 2 + k % 2] = quant;
                    }
                }
                PackedValues::Int8 { quants, scales: pack_strips(blocks, &scales) }
            }
        };
        Self { shape, values }
    }

    pub fn strips(&self) -> usize {
        self.shape.outputs.div_ceil(WIDTH)
    }

    /// Row `n` expanded to f32 (embedding).
    pub fn row(&self, n: usize, output: &mut [f32]) {
        let (inputs, lane) = (self.shape.inputs, n % WIDTH);
        let start = n / WIDTH * WIDTH * inputs;
        match &self.values {
            PackedValues::F32(values) => {
                let strip = values[start..].chunks_exact(WIDTH);
                output.iter_mut().zip(strip).for_each(|(out, lanes)| *out = lanes[lane]);
            }
            PackedValues::Bf16(values) => {
                let strip = values[start..].chunks_exact(WIDTH);
                output.iter_mut().zip(strip).for_each(|(out, lanes)| *out = f32::from_bits((lanes[lane] as u32) << 16));
            }
            PackedValues::Int8 { quants, scales } => {
                let scales = &scales[start / BLOCK..];
                for (k, out) in output.iter_mut().enumerate() {
                    let quant = quants[start + k / 2 * (2 * WIDTH) + lane * 2 + k % 2];
                    *out = quant as f32 * scales[k / BLOCK * WIDTH + lane];
                }
            }
        }
    }
}

/// One product: what all its tiles share.
pub(crate) struct Product<'a> {
    pub matrix: &'a Packed,
    /// `[rows][inputs]`.
    pub input: &'a [f32],
    /// For an integer matrix: the input quantised, `[rows][inputs]` and `[rows][inputs / 32]`.
    pub quants: &'a [i16],
    pub scales: &'a [f32],
    /// `[rows][planes × outputs]`.
    pub output: SharedSlice<'a, f32>,
    pub bias: Option<&'a [f32]>,
    pub residual: bool,
}

impl Product<'_> {
    /// Stores one strip of one row: a plane's partial sum, or the finished total.
    ///
    /// # Safety
    /// No other worker may write this row and strip.
    #[inline(always)]
    unsafe fn store<L: Lanes>(&self, row: usize, strip: usize, plane: usize, sum: L::F32) {
        let MatrixShape { outputs, planes, .. } = self.matrix.shape;
        let first = strip * WIDTH;
        let count = WIDTH.min(outputs - first);
        // SAFETY: the tile owns this row and strip; the array holds 16 values.
        let (out, sums) = unsafe {
            let mut sums = [0f32; WIDTH];
            L::store(sums.as_mut_ptr(), sum);
            (self.output.part((row * planes + plane) * outputs + first, count), sums)
        };
        if self.bias.is_none() && !self.residual {
            out.copy_from_slice(&sums[..count]);
            return;
        }
        for (i, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
            *out = finish(sum, self.bias.map(|bias| bias[first + i]), self.residual.then_some(*out));
        }
    }

    /// Ends a range: gives its sum away as a plane, or adds it to the total; the last range stores the total.
    ///
    /// # Safety
    /// As [`Product::store`].
    #[inline(always)]
    unsafe fn end_range<L: Lanes, const R: usize, const S: usize>(
        &self,
        row: usize,
        strip: usize,
        (index, last): (usize, bool),
        sums: &[[L::F32; S]; R],
        totals: &mut [[L::F32; S]; R],
    ) {
        for r in 0..R {
            for s in 0..S {
                // SAFETY: as the caller's.
                unsafe {
                    if self.matrix.shape.planes > 1 {
                        self.store::<L>(row + r, strip + s, index, sums[r][s]);
                        continue;
                    }
                    totals[r][s] = if index == 0 { sums[r][s] } else { L::add(totals[r][s], sums[r][s]) };
                    if last {
                        self.store::<L>(row + r, strip + s, 0, totals[r][s]);
                    }
                }
            }
        }
    }
}

/// A stored float that 16 lanes can be loaded of.
trait Stored: Copy {
    unsafe fn load<L: Lanes>(from: *const Self) -> L::F32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load(from) }
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L::F32 {
        // SAFETY: as the caller's.
        unsafe { L::load_bf16(from) }
    }
}

/// R rows by S strips of a float product.
///
/// # Safety
/// The machine has `L`; rows and strips exist; no other worker writes them.
#[inline(always)]
unsafe fn float_block<L: Lanes, W: Stored, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: &[W],
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let inputs = shape.inputs;
    let input = &product.input[row * inputs..][..R * inputs];
    let weights = &weights[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    // SAFETY: the two slices above bound every access: k < inputs, r < R, s < S.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for k in from..to {
                let mut w = [L::zero(); S];
                for (s, w) in w.iter_mut().enumerate() {
                    *w = W::load::<L>(weights.as_ptr().add((s * inputs + k) * WIDTH));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = L::splat(*input.as_ptr().add(r * inputs + k));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = L::fma(x, w, *sum);
                    }
                }
            }
            product.end_range::<L, R, S>(row, strip, (index, to == inputs), &sums, &mut totals);
        }
    }
}

/// R rows by S strips of an integer product.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn integer_block<L: Lanes, const R: usize, const S: usize>(
    product: &Product<'_>,
    weights: (&[i8], &[f32]),
    row: usize,
    strip: usize,
) {
    let shape = product.matrix.shape;
    let (inputs, blocks) = (shape.inputs, shape.inputs / BLOCK);
    let quants = &product.quants[row * inputs..][..R * inputs];
    let scales = &product.scales[row * blocks..][..R * blocks];
    let w = &weights.0[strip * WIDTH * inputs..][..S * WIDTH * inputs];
    let w_scales = &weights.1[strip * WIDTH * blocks..][..S * WIDTH * blocks];
    // SAFETY: the four slices above bound every access: block < blocks, r < R, s < S, pair < 16.
    unsafe {
        let mut totals = [[L::zero(); S]; R];
        for (index, (from, to)) in shape.ranges().enumerate() {
            let mut sums = [[L::zero(); S]; R];
            for block in from / BLOCK..to / BLOCK {
                let mut dots = [[L::zero_i32(); S]; R];
                for pair in 0..BLOCK / 2 {
                    for s in 0..S {
                        let w = L::load_pairs(w.as_ptr().add(((s * blocks + block) * BLOCK + 2 * pair) * WIDTH));
                        for (r, dots) in dots.iter_mut().enumerate() {
                            dots[s] =
                                L::dot_pairs(dots[s], w, quants.as_ptr().add(r * inputs + block * BLOCK + 2 * pair));
                        }
                    }
                }
                for s in 0..S {
                    let scale = L::load(w_scales.as_ptr().add((s * blocks + block) * WIDTH));
                    for r in 0..R {
                        let scale = L::mul(L::splat(*scales.as_ptr().add(r * blocks + block)), scale);
                        sums[r][s] = L::fma(L::to_f32(dots[r][s]), scale, sums[r][s]);
                    }
                }
            }
            product.end_range::<L, R, S>(row, strip, (index, to == inputs), &sums, &mut totals);
        }
    }
}

/// R rows by S strips of any product.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const S: usize>(product: &Product<'_>, row: usize, strip: usize) {
    // SAFETY: as the caller's.
    unsafe {
        match &product.matrix.values {
            PackedValues::F32(values) => float_block::<L, f32, R, S>(product, values, row, strip),
            PackedValues::Bf16(values) => float_block::<L, u16, R, S>(product, values, row, strip),
            PackedValues::Int8 { quants, scales } => integer_block::<L, R, S>(product, (quants, scales), row, strip),
        }
    }
}

/// Strips per tile.
pub(crate) const TILE_STRIPS: usize = 2;

/// All rows of a tile, in blocks of 6, 4, 2 and 1.
///
/// # Safety
/// As [`float_block`].
#[inline(always)]
unsafe fn tile_body<L: Lanes>(product: &Product<'_>, rows: (usize, usize), strip: usize) {
    let two = strip + 1 < product.matrix.strips();
    let mut row = rows.0;
    while row < rows.1 {
        // SAFETY: as the caller's; `step` rows are left.
        let step = unsafe {
            match (rows.1 - row, two) {
                (6.., true) => (block::<L, 6, 2>(product, row, strip), 6).1,
                (4.., true) => (block::<L, 4, 2>(product, row, strip), 4).1,
                (2.., true) => (block::<L, 2, 2>(product, row, strip), 2).1,
                (_, true) => (block::<L, 1, 2>(product, row, strip), 1).1,
                (4.., false) => (block::<L, 4, 1>(product, row, strip), 4).1,
                (_, false) => (block::<L, 1, 1>(product, row, strip), 1).1,
            }
        };
        row += step;
    }
}

multiversioned! {
    /// Computes rows `rows.0..rows.1` of the strips `strip` and, if there is one, `strip + 1`.
    ///
    /// # Safety
    /// The machine has `set`; no other worker writes these rows and strips.
    pub(crate) unsafe fn tile(product: &Product<'_>, rows: (usize, usize), strip: usize) = tile_body
}
