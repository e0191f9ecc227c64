//! From tensors of a file to the plain matrices that backends pack: sharding, stacking, widening, quantising.
//!
//! Every backend packs from the same [`PlainMatrix`], so that they agree on the quantised integers by construction.

use crate::backend::{BackendError, Dtype, KRanges, Part, TensorView, WeightForm};
use crate::operations::to_bf16_flushed;
use crate::quantise::{self, BLOCK};
use polylink_protocol::exact_math::{bf16_to_f32, f16_to_f32, f32_to_bf16};

/// Size of a matrix shard and the K ranges it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    /// Outputs held (n).
    pub outputs: usize,
    /// Inputs held (k).
    pub inputs: usize,
    /// Inputs per range; ranges start at multiples of it (a shard begins on a border).
    pub range_length: usize,
    /// Planes that a product with it gives: 1 if it holds the first range (the ranges are summed), else one per range.
    pub planes: usize,
}

impl MatrixShape {
    /// Bounds of the ranges among the inputs held.
    #[inline(always)]
    pub fn ranges(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.inputs).step_by(self.range_length).map(move |k| (k, self.inputs.min(k + self.range_length)))
    }
}

/// Values of a matrix, row-major `[outputs][inputs]`.
pub(crate) enum PlainValues {
    /// f32 (also widened f16).
    F32(Vec<f32>),
    /// bf16 bits.
    Bf16(Vec<u16>),
    /// bf16 bits without denormals, for products in bf16 pairs.
    Bf16Pairs(Vec<u16>),
    /// Integers with a scale (an f16 value) per block of 32 inputs: `scales` is `[outputs][inputs / 32]`. With `nibbles`
    /// all of them lie in −8..=7.
    Int8 { quants: Vec<i8>, scales: Vec<f32>, nibbles: bool },
}

/// A matrix shard before packing.
pub(crate) struct PlainMatrix {
    pub shape: MatrixShape,
    pub values: PlainValues,
}

fn wrong(tensor: &TensorView<'_>, reason: String) -> BackendError {
    BackendError::Tensor { name: tensor.name.to_string(), reason }
}

fn check(part: &Part<'_>, dimensions: usize) -> Result<(usize, usize), BackendError> {
    let tensor = &part.tensor;
    if tensor.shape.len() != dimensions {
        return Err(wrong(tensor, format!("has shape {:?}, expected {dimensions} dimension(s)", tensor.shape)));
    }
    let (n, k) = (tensor.shape[0], if dimensions == 2 { tensor.shape[1] } else { 1 });
    let bytes = n.checked_mul(k).and_then(|count| count.checked_mul(tensor.dtype.size()));
    if bytes != Some(tensor.data.len()) {
        let found = tensor.data.len();
        return Err(wrong(
            tensor,
            format!("holds {found} bytes, but its shape {:?} needs another number", tensor.shape),
        ));
    }
    let (rows, columns) = (&part.shard.rows, &part.shard.columns);
    if rows.start >= rows.end || rows.end > n || columns.start >= columns.end || columns.end > k {
        return Err(wrong(tensor, format!("shard {rows:?} × {columns:?} is empty or outside of {:?}", tensor.shape)));
    }
    Ok((n, k))
}

/// One row's columns as f32.
fn read_row(tensor: &TensorView<'_>, k: usize, row: usize, columns: std::ops::Range<usize>, out: &mut Vec<f32>) {
    let size = tensor.dtype.size();
    let bytes = &tensor.data[(row * k + columns.start) * size..(row * k + columns.end) * size];
    out.clear();
    match tensor.dtype {
        Dtype::F32 => {
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        Dtype::Bf16 => out.extend(bytes.chunks_exact(2).map(|b| bf16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
        Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
    }
}

/// Reads the rows of all parts in order, checking that they are finite.
fn for_each_row(parts: &[Part<'_>], dimensions: usize, mut each: impl FnMut(&[f32])) -> Result<(), BackendError> {
    let mut values = Vec::new();
    for part in parts {
        let (_, k) = check(part, dimensions)?;
        for row in part.shard.rows.clone() {
            read_row(&part.tensor, k, row, part.shard.columns.clone(), &mut values);
            if let Some(bad) = values.iter().position(|value| !value.is_finite()) {
                let column = part.shard.columns.start + bad;
                let reason = format!("element ({row}, {column}) is {}: the file is damaged", values[bad]);
                return Err(wrong(&part.tensor, reason));
            }
            each(&values);
        }
    }
    Ok(())
}

/// A vector from its parts.
pub(crate) fn vector(parts: &[Part<'_>]) -> Result<Vec<f32>, BackendError> {
    let mut values = Vec::new();
    for_each_row(parts, 1, |row| values.extend_from_slice(row))?;
    Ok(values)
}

/// A matrix from its parts.
pub(crate) fn matrix(parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<PlainMatrix, BackendError> {
    let Some(first) = parts.first() else {
        return Err(BackendError::Tensor { name: "(none)".into(), reason: "a weight needs at least one part".into() });
    };
    let columns = first.shard.columns.clone();
    let mut outputs = 0;
    for part in parts {
        let (_, k) = check(part, 2)?;
        if k != ranges.inputs || part.shard.columns != columns {
            let reason = format!(
                "has {k} inputs of which {:?} are held, the weight has {}, {columns:?}",
                part.shard.columns, ranges.inputs
            );
            return Err(wrong(&part.tensor, reason));
        }
        outputs += part.shard.rows.len();
    }
    let off_border = |column: usize| column != ranges.inputs && !column.is_multiple_of(ranges.length.max(1));
    if ranges.length == 0 || off_border(columns.start) || off_border(columns.end) {
        let reason = format!("columns {columns:?} do not lie on borders of K ranges of {} inputs", ranges.length);
        return Err(wrong(&first.tensor, reason));
    }
    let inputs = columns.len();
    let shape =
        MatrixShape { outputs, inputs, range_length: ranges.length.min(inputs), planes: ranges.planes(&columns) };
    let integers = matches!(form, WeightForm::Q8_0 | WeightForm::Q4_0);
    if integers && (!inputs.is_multiple_of(BLOCK) || !shape.range_length.is_multiple_of(BLOCK)) {
        let reason = format!(
            "{inputs} inputs in ranges of {} cannot be quantised: both must be multiples of {BLOCK}; serve this model in f32",
            shape.range_length
        );
        return Err(wrong(&first.tensor, reason));
    }
    if form == WeightForm::Bf16 && (!inputs.is_multiple_of(2) || !shape.range_length.is_multiple_of(2)) {
        let reason =
            format!("{inputs} inputs in ranges of {} are no pairs: serve this model in f32", shape.range_length);
        return Err(wrong(&first.tensor, reason));
    }
    let count = outputs * inputs;
    let values = if integers {
        let (mut quants, mut scales) = (vec![0i8; count], Vec::with_capacity(count / BLOCK));
        let mut blocks = quants.chunks_exact_mut(BLOCK);
        for_each_row(parts, 2, |row| {
            for values in row.as_chunks::<BLOCK>().0 {
                let quants = blocks.next().expect("as many blocks were allocated as there are in all rows");
                scales.push(if form == WeightForm::Q8_0 {
                    quantise::q8_0(values, quants)
                } else {
                    quantise::q4_0(values, quants)
                });
            }
        })?;
        PlainValues::Int8 { quants, scales, nibbles: form == WeightForm::Q4_0 }
    } else if form == WeightForm::Bf16 {
        let mut values = Vec::with_capacity(count);
        for_each_row(parts, 2, |row| values.extend(row.iter().map(|&value| to_bf16_flushed(value))))?;
        PlainValues::Bf16Pairs(values)
    } else if parts.iter().all(|part| part.tensor.dtype == Dtype::Bf16) {
        let mut values = Vec::with_capacity(count);
        for_each_row(parts, 2, |row| values.extend(row.iter().map(|&value| f32_to_bf16(value))))?;
        PlainValues::Bf16(values)
    } else {
        let mut values = Vec::with_capacity(count);
        for_each_row(parts, 2, |row| values.extend_from_slice(row))?;
        PlainValues::F32(values)
    };
    Ok(PlainMatrix { shape, values })
}
