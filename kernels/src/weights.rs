//! From tensors of a file to the plain matrices that backends pack: sharding, stacking, widening, quantising.
//!
//! Every backend packs from the same [`PlainMatrix`], so that they agree on the quantised integers by construction.

use crate::backend::{BackendError, Dtype, KRanges, PairOrder, Part, Shard, TensorView, WeightForm};
use crate::blocks::{self, KBlock, KKind, SUPER, SUPER_BLOCKS};
use crate::operations::to_bf16_flushed;
use crate::quantise::{self, BLOCK, superblocks::superblock};
use polylink_protocol::exact_math::{bf16_to_f32, e4m3_to_f32, f16_to_f32, f32_to_bf16};
use std::ops::Range;

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
    pub fn ranges(self) -> Ranges {
        Ranges { next: 0, inputs: self.inputs, length: self.range_length }
    }
}

/// First input of each range, and where it ends. Adapters of iterators would be called, not inlined, by the products.
pub(crate) struct Ranges {
    next: usize,
    inputs: usize,
    length: usize,
}

impl Iterator for Ranges {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let from = self.next;
        if from >= self.inputs {
            return None;
        }
        self.next = from + self.length;
        Some((from, self.inputs.min(self.next)))
    }
}

/// Values of a matrix, row-major `[outputs][inputs]`.
pub(crate) enum PlainValues {
    /// f32 (also widened f16).
    F32(Vec<f32>),
    /// bf16 bits.
    Bf16(Vec<u16>),
    /// bf16 bits without denormals, for products in bf16 pairs.
    Bf16Pairs(Vec<u16>, PairOrder),
    /// Integers with a scale (an f16 value) per block of 32 inputs: `scales` is `[outputs][inputs / 32]`. With `nibbles`
    /// all of them lie in −8..=7.
    Int8 { quants: Vec<i8>, scales: Vec<f32>, nibbles: bool },
    /// Blocks of 32 inputs, `[outputs][inputs / 32]`; the first one is block `first` of its superblock.
    K { kind: KKind, blocks: Vec<KBlock>, first: usize },
    /// Numbers of e4m3, none of them NaN, and a scale for each [`FP8_BLOCK`] inputs of the unsharded tensor: `scales` is
    /// `[outputs][blocks]`; the first input held is number `first` of its block.
    Fp8 { numbers: Vec<u8>, scales: Vec<f32>, first: usize },
    /// Matrices of the same inputs and ranges and unlike forms, stacked along the outputs.
    Stack(Vec<PlainMatrix>),
}

/// A matrix shard before packing.
pub(crate) struct PlainMatrix {
    pub shape: MatrixShape,
    pub values: PlainValues,
}

/// Inputs that have a scale in common, of e4m3.
pub(crate) const FP8_BLOCK: usize = Dtype::Fp8.block().0;

/// Blocks of e4m3 that so many inputs lie in, the first of which is number `first` of its block.
#[inline(always)]
pub(crate) const fn fp8_blocks(first: usize, inputs: usize) -> usize {
    (first + inputs).div_ceil(FP8_BLOCK)
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
    let (found, expected) = (tensor.data.len(), tensor.dtype.bytes(tensor.shape));
    if expected != Some(found) {
        let needed = expected.map_or_else(|| "whole blocks".into(), |bytes| format!("{bytes} bytes"));
        let reason = format!("holds {found} bytes, its shape {:?} of {:?} needs {needed}", tensor.shape, tensor.dtype);
        return Err(wrong(tensor, reason));
    }
    let (rows, columns) = (&part.shard.rows, &part.shard.columns);
    if rows.start >= rows.end || rows.end > n || columns.start >= columns.end || columns.end > k {
        return Err(wrong(tensor, format!("shard {rows:?} × {columns:?} is empty or outside of {:?}", tensor.shape)));
    }
    Ok((n, k))
}

/// One row's columns as f32; blocks are expanded.
pub(crate) fn read_row(tensor: &TensorView<'_>, k: usize, row: usize, columns: Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    // A vector is checked to be of floats, or one row of whole blocks.
    let (block, size) = tensor.dtype.block();
    if block == 1 {
        let bytes = &tensor.data[(row * k + columns.start) * size..(row * k + columns.end) * size];
        match tensor.dtype {
            Dtype::Bf16 => out.extend(bytes.chunks_exact(2).map(|b| bf16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
            Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| f16_to_f32(u16::from_le_bytes([b[0], b[1]])))),
            _ => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
        return;
    }
    let row = &tensor.data[row * (k / block * size)..][..k / block * size];
    if tensor.dtype == Dtype::Fp8 {
        for column in columns {
            let (numbers, scale) = fp8_block(&row[column / block * size..][..size]);
            out.push(e4m3_to_f32(numbers[column % block]) * scale);
        }
        return;
    }
    let (first, last) = (columns.start / BLOCK, columns.end.div_ceil(BLOCK));
    for number in first..last {
        let mut values = [0f32; BLOCK];
        if let Some(kind) = KKind::of(tensor.dtype) {
            let block = blocks::k_block(kind, &row[number / SUPER_BLOCKS * size..][..size], number % SUPER_BLOCKS);
            values = std::array::from_fn(|i| block.value(kind, i));
        } else {
            let mut quants = [0; BLOCK];
            let bytes = &row[number * size..][..size];
            let scale = blocks::plain_block(tensor.dtype == Dtype::Q4_0, bytes, &mut quants);
            values.iter_mut().zip(quants).for_each(|(value, quant)| *value = f32::from(quant) * scale);
        }
        let held =
            columns.start.max(number * BLOCK) - number * BLOCK..columns.end.min((number + 1) * BLOCK) - number * BLOCK;
        out.extend_from_slice(&values[held]);
    }
}

/// Numbers and scale of a block of e4m3.
pub(crate) fn fp8_block(block: &[u8]) -> (&[u8], f32) {
    let (numbers, scale) = block.split_at(FP8_BLOCK);
    (numbers, f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]))
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
    if let Some(part) = parts.iter().find(|part| !part.tensor.dtype.is_float()) {
        return Err(wrong(&part.tensor, format!("is a vector of {:?}, floats are expected", part.tensor.dtype)));
    }
    for_each_row(parts, 1, |row| values.extend_from_slice(row))?;
    Ok(values)
}

/// Checks the parts of a matrix against each other and against its ranges.
fn check_parts(parts: &[Part<'_>], ranges: KRanges) -> Result<(usize, Range<usize>), BackendError> {
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
    Ok((outputs, columns))
}

/// Outputs `first..first + count` of stacked parts.
pub(crate) fn outputs<'a>(parts: &[Part<'a>], first: usize, count: usize) -> Vec<Part<'a>> {
    let (mut start, mut some) = (0, Vec::new());
    for part in parts {
        let rows = &part.shard.rows;
        let (from, to) = (first.max(start) - start, (first + count).saturating_sub(start).min(rows.len()));
        if from < to {
            let shard = Shard { rows: rows.start + from..rows.start + to, columns: part.shard.columns.clone() };
            some.push(Part { tensor: part.tensor, shard });
        }
        start += rows.len();
    }
    some
}

/// What a matrix of these parts is, whatever its form.
#[cfg(feature = "cuda")]
pub(crate) fn shape(parts: &[Part<'_>], ranges: KRanges) -> Result<MatrixShape, BackendError> {
    let (outputs, columns) = check_parts(parts, ranges)?;
    let inputs = columns.len();
    Ok(MatrixShape { outputs, inputs, range_length: ranges.length.min(inputs), planes: ranges.planes(&columns) })
}

/// A matrix from its parts.
pub(crate) fn matrix(parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<PlainMatrix, BackendError> {
    let (outputs, columns) = check_parts(parts, ranges)?;
    let first = &parts[0];
    if form != WeightForm::Stored {
        return one_form(parts, outputs, &columns, ranges, form);
    }
    // Runs of parts of one type; a single one is the whole.
    let same = |a: &Part<'_>, b: &Part<'_>| {
        a.tensor.dtype == b.tensor.dtype || a.tensor.dtype.is_float() && b.tensor.dtype.is_float()
    };
    let mut sections = Vec::new();
    for run in parts.chunk_by(same) {
        let outputs = run.iter().map(|part| part.shard.rows.len()).sum();
        sections.push(one_form(run, outputs, &columns, ranges, stored_form(run[0].tensor.dtype))?);
    }
    if sections.len() > 1 {
        return Ok(PlainMatrix {
            shape: MatrixShape { outputs, ..sections[0].shape },
            values: PlainValues::Stack(sections),
        });
    }
    sections.pop().ok_or_else(|| wrong(&first.tensor, "no part is held".into()))
}

/// The form that a tensor of this type is computed in as it is.
fn stored_form(dtype: Dtype) -> WeightForm {
    match dtype {
        Dtype::F32 | Dtype::Bf16 | Dtype::F16 | Dtype::Fp8 => WeightForm::Float,
        Dtype::Q8_0 => WeightForm::Q8_0,
        Dtype::Q4_0 => WeightForm::Q4_0,
        Dtype::Q4K => WeightForm::Q4K,
        Dtype::Q5K => WeightForm::Q5K,
        Dtype::Q6K => WeightForm::Q6K,
    }
}

/// A matrix whose parts are all kept in one form.
fn one_form(
    parts: &[Part<'_>],
    outputs: usize,
    columns: &Range<usize>,
    ranges: KRanges,
    form: WeightForm,
) -> Result<PlainMatrix, BackendError> {
    let first = &parts[0].tensor;
    let inputs = columns.len();
    let shape =
        MatrixShape { outputs, inputs, range_length: ranges.length.min(inputs), planes: ranges.planes(columns) };
    let kind = match form {
        WeightForm::Q4K => Some(KKind::Q4),
        WeightForm::Q5K => Some(KKind::Q5),
        WeightForm::Q6K => Some(KKind::Q6),
        _ => None,
    };
    let order = match form {
        WeightForm::Bf16 | WeightForm::TensorBf16 => Some(PairOrder::Vdp),
        WeightForm::AmxBf16 => Some(PairOrder::Amx),
        _ => None,
    };
    let integers = kind.is_some() || matches!(form, WeightForm::Q8_0 | WeightForm::Q4_0);
    if integers && (!inputs.is_multiple_of(BLOCK) || !shape.range_length.is_multiple_of(BLOCK)) {
        let reason = format!(
            "{inputs} inputs in ranges of {} cannot be quantised: both must be multiples of {BLOCK}; serve this model in f32",
            shape.range_length
        );
        return Err(wrong(first, reason));
    }
    if kind.is_some() && !ranges.inputs.is_multiple_of(SUPER) {
        let reason = format!(
            "{} inputs are no whole superblocks of {SUPER}: quantise this model to q8_0 or q4_0",
            ranges.inputs
        );
        return Err(wrong(first, reason));
    }
    if form == WeightForm::Bf16 && (!inputs.is_multiple_of(2) || !shape.range_length.is_multiple_of(2)) {
        let reason =
            format!("{inputs} inputs in ranges of {} are no pairs: serve this model in f32", shape.range_length);
        return Err(wrong(first, reason));
    }
    if form == WeightForm::AmxBf16 && (!inputs.is_multiple_of(BLOCK) || !shape.range_length.is_multiple_of(BLOCK)) {
        let reason = format!(
            "{inputs} inputs in ranges of {} are no whole steps of {BLOCK}: serve this model in bf16 or f32",
            shape.range_length
        );
        return Err(wrong(first, reason));
    }
    // Blocks are taken as they are, or expanded to floats: to quantise them once more would change the model twice.
    let stored = |part: &&Part<'_>| part.tensor.dtype.is_float() || stored_form(part.tensor.dtype) == form;
    if let Some(part) = parts.iter().find(|part| integers && !stored(part)) {
        let reason = format!("is quantised already ({:?}) and is not quantised again to {form:?}", part.tensor.dtype);
        return Err(wrong(&part.tensor, reason));
    }
    let count = outputs * inputs;
    let values = if let Some(kind) = kind {
        k_values(parts, columns, kind)?
    } else if integers {
        int8_values(parts, count, form == WeightForm::Q4_0)?
    } else if let Some(order) = order {
        let mut values = Vec::with_capacity(count);
        for_each_row(parts, 2, |row| values.extend(row.iter().map(|&value| to_bf16_flushed(value))))?;
        PlainValues::Bf16Pairs(values, order)
    } else if parts.iter().all(|part| part.tensor.dtype == Dtype::Fp8) {
        fp8_values(parts, columns)?
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

/// A file's block with a scale that is no number.
fn bad_scale(tensor: &TensorView<'_>, row: usize, column: usize) -> BackendError {
    wrong(tensor, format!("the scale of block ({row}, {column}) is not finite: the file is damaged"))
}

/// Integers in blocks of 32: a file's, or quantised here.
fn int8_values(parts: &[Part<'_>], count: usize, nibbles: bool) -> Result<PlainValues, BackendError> {
    let (mut quants, mut scales) = (vec![0i8; count], Vec::with_capacity(count / BLOCK));
    let mut blocks = quants.chunks_exact_mut(BLOCK);
    let mut next = || blocks.next().expect("as many blocks were allocated as there are in all rows");
    for part in parts {
        let tensor = &part.tensor;
        if tensor.dtype.is_float() {
            for_each_row(std::slice::from_ref(part), 2, |row| {
                for values in row.as_chunks::<BLOCK>().0 {
                    let quantise = if nibbles { quantise::q4_0 } else { quantise::q8_0 };
                    scales.push(quantise(values, next()));
                }
            })?;
            continue;
        }
        let (size, row_blocks) = (tensor.dtype.block().1, tensor.shape[1] / BLOCK);
        for row in part.shard.rows.clone() {
            for number in part.shard.columns.start / BLOCK..part.shard.columns.end / BLOCK {
                let bytes = &tensor.data[(row * row_blocks + number) * size..][..size];
                let scale = blocks::plain_block(nibbles, bytes, next());
                if !scale.is_finite() {
                    return Err(bad_scale(tensor, row, number * BLOCK));
                }
                scales.push(scale);
            }
        }
    }
    Ok(PlainValues::Int8 { quants, scales, nibbles })
}

/// Numbers of e4m3 and their scales, as they are.
fn fp8_values(parts: &[Part<'_>], columns: &Range<usize>) -> Result<PlainValues, BackendError> {
    let size = Dtype::Fp8.block().1;
    let outputs: usize = parts.iter().map(|part| part.shard.rows.len()).sum();
    let blocks = columns.start / FP8_BLOCK..columns.end.div_ceil(FP8_BLOCK);
    let (mut numbers, mut scales) =
        (Vec::with_capacity(outputs * columns.len()), Vec::with_capacity(outputs * blocks.len()));
    for part in parts {
        let (tensor, row_bytes) = (&part.tensor, part.tensor.shape[1] / FP8_BLOCK * size);
        for row in part.shard.rows.clone() {
            for block in blocks.clone() {
                let (values, scale) = fp8_block(&tensor.data[row * row_bytes + block * size..][..size]);
                // Of the largest number too, and as a processor keeps it.
                if !(448.0 * 256.0 * scale).is_finite() {
                    return Err(bad_scale(tensor, row, block * FP8_BLOCK));
                }
                let start = block * FP8_BLOCK;
                let held = columns.start.max(start) - start..columns.end.min(start + FP8_BLOCK) - start;
                if let Some(bad) = values[held.clone()].iter().position(|number| number & 0x7f == 0x7f) {
                    let column = start + held.start + bad;
                    let reason = format!("element ({row}, {column}) is NaN: the file is damaged");
                    return Err(wrong(tensor, reason));
                }
                numbers.extend_from_slice(&values[held]);
                scales.push(scale);
            }
        }
    }
    Ok(PlainValues::Fp8 { numbers, scales, first: columns.start % FP8_BLOCK })
}

/// Superblocks: a file's, or quantised here. A shard may begin within one: it is made of the whole tensor's.
fn k_values(parts: &[Part<'_>], columns: &Range<usize>, kind: KKind) -> Result<PlainValues, BackendError> {
    let size = kind.dtype().block().1;
    let (first, last) = (columns.start / BLOCK, columns.end / BLOCK);
    let supers = first / SUPER_BLOCKS..last.div_ceil(SUPER_BLOCKS);
    let mut taken = Vec::with_capacity(parts.iter().map(|part| part.shard.rows.len()).sum::<usize>() * (last - first));
    let mut take = |bytes: &[u8]| {
        for number in first..last {
            let start = (number / SUPER_BLOCKS - supers.start) * size;
            taken.push(blocks::k_block(kind, &bytes[start..start + size], number % SUPER_BLOCKS));
        }
    };
    for part in parts {
        let tensor = &part.tensor;
        if tensor.dtype.is_float() {
            let shard = Shard { rows: part.shard.rows.clone(), columns: supers.start * SUPER..supers.end * SUPER };
            let mut bytes = Vec::with_capacity(supers.len() * size);
            for_each_row(&[Part { tensor: *tensor, shard }], 2, |row| {
                bytes.clear();
                row.as_chunks::<SUPER>().0.iter().for_each(|values| superblock(kind, values, &mut bytes));
                take(&bytes);
            })?;
            continue;
        }
        let row_bytes = tensor.shape[1] / SUPER * size;
        for row in part.shard.rows.clone() {
            take(&tensor.data[row * row_bytes..][supers.start * size..supers.end * size]);
        }
    }
    let finite = |block: &KBlock| block.d.is_finite() && block.dmin.is_finite();
    if let Some(bad) = taken.iter().position(|block| !finite(block)) {
        let mut row = bad / (last - first);
        for part in parts {
            if row < part.shard.rows.len() {
                return Err(bad_scale(
                    &part.tensor,
                    part.shard.rows.start + row,
                    columns.start + bad % (last - first) * BLOCK,
                ));
            }
            row -= part.shard.rows.len();
        }
    }
    Ok(PlainValues::K { kind, blocks: taken, first: first % SUPER_BLOCKS })
}
