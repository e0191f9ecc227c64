//! Weights on the device.
//!
//! Matrices for tensor cores are packed here, by several threads, while the copies before are under way: 64 × 64 tiles in the
//! order in which shared memory wants them (`weight_tile_offset` in `common.cuh`), or numbers of e4m3 ([`fp8`]). Exact forms are packed by their family
//! from the same plain matrices as the CPU's, so that the integers agree by construction.

use std::sync::Arc;

use polylink_protocol::exact_math::f32_to_bf16;

use super::driver::{CudaError, Device, DeviceBuffer, DevicePtr, Launch};
use super::exact::products::ExactMatrix;
use super::exact::{ExactError, packing};
use super::gemm::{GemmShape, Numbers};
use crate::backend::{BackendError, Dtype, KRanges, Part, WeightForm};
use crate::plan::WeightKind;
use crate::weights::{self, MatrixShape};

pub(super) mod fp8;

/// Side of a tile.
const TILE: usize = 64;
/// Bytes of a tile.
const TILE_BYTES: usize = TILE * TILE * 2;

/// A prepared weight.
#[derive(Debug)]
pub(super) enum Weight {
    Vector {
        values: DeviceBuffer,
        length: usize,
    },
    Matrix(Matrix),
    /// An expert's: it lies among those of its layer.
    Moved,
}

/// A prepared matrix.
#[derive(Debug)]
pub(super) struct Matrix {
    pub shape: MatrixShape,
    pub packed: Packed,
}

/// How it lies there.
#[derive(Debug)]
pub(super) enum Packed {
    /// For tensor cores.
    Tiles(Tiles),
    /// In one of the exact forms.
    Exact(ExactMatrix),
}

/// A matrix of bf16 or e4m3 in tiles.
#[derive(Debug)]
pub(super) struct Tiles {
    pub buffer: DeviceBuffer,
    pub shape: GemmShape,
}

/// `InterleaveParams` in `tiles.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct InterleaveParams {
    from: DevicePtr,
    to: DevicePtr,
    half: u32,
    k_tiles: u32,
    pieces: u32,
    spare: u32,
}

impl Matrix {
    /// Matrices of one shape and form, behind each other.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if they are unlike.
    pub fn stack(device: &Arc<Device>, matrices: Vec<Self>) -> Result<Self, BackendError> {
        let unlike = || BackendError::Unavailable("experts of unlike forms are not computed by a GPU".into());
        let shape = matrices.first().ok_or_else(unlike)?.shape;
        if matrices.iter().any(|matrix| matrix.shape != shape) {
            return Err(unlike());
        }
        let (mut tiles, mut exact) = (Vec::new(), Vec::new());
        for matrix in matrices {
            match matrix.packed {
                Packed::Tiles(one) => tiles.push(one),
                Packed::Exact(one) => exact.push(one),
            }
        }
        let packed = match (tiles.first(), exact.is_empty()) {
            (Some(first), true) => {
                let gemm = first.shape;
                let (bytes, count) = (gemm.packed_bytes(), tiles.len());
                let buffer = device.alloc(bytes * count)?;
                for (number, one) in tiles.into_iter().enumerate() {
                    if one.shape != gemm {
                        return Err(unlike());
                    }
                    buffer.copy_from(number * bytes, &one.buffer, bytes)?;
                }
                Packed::Tiles(Tiles { buffer, shape: gemm })
            }
            (None, false) => Packed::Exact(ExactMatrix::stack(device, exact)?),
            _ => return Err(unlike()),
        };
        Ok(Self { shape, packed })
    }
}

impl Tiles {
    /// Puts ups beside their gates, for a product that makes the gate itself.
    pub fn interleave(&mut self, device: &Arc<Device>) -> Result<(), CudaError> {
        let shape = GemmShape { gated: true, ..self.shape };
        let to = device.alloc(shape.packed_bytes())?;
        let params = InterleaveParams {
            from: self.buffer.ptr(),
            to: to.ptr(),
            half: (shape.outputs / 2) as u32,
            k_tiles: (shape.k_tiles() / shape.numbers.depth()) as u32,
            pieces: (8 * shape.numbers.row_bytes() * shape.numbers.depth() / 16) as u32,
            spare: 0,
        };
        let grid = [shape.padded_outputs() as u32 / 8, params.k_tiles, 1];
        device.bind()?;
        Launch::new(&device.function("tiles", "interleave_gates")?, grid, 64, 0, params).run(device)?;
        device.synchronize()?;
        *self = Self { buffer: to, shape };
        Ok(())
    }

    /// Whether [`Tiles::interleave`] can: gates and ups in whole groups of 8.
    pub fn can_interleave(&self) -> bool {
        !self.shape.gated && self.shape.outputs.is_multiple_of(16)
    }
}

impl Weight {
    /// What the plan asks.
    pub fn kind(&self) -> WeightKind {
        match self {
            Weight::Vector { length, .. } => WeightKind::Vector(*length),
            Weight::Moved => WeightKind::Vector(0),
            Weight::Matrix(matrix) => {
                let converts = match &matrix.packed {
                    Packed::Tiles(_) => true,
                    Packed::Exact(exact) => exact.takes_integers(),
                };
                WeightKind::Matrix { shape: matrix.shape, converts }
            }
        }
    }
}

/// As [`crate::Backend::prepare`].
pub(super) fn prepare(
    device: &Arc<Device>,
    parts: &[Part<'_>],
    ranges: KRanges,
    form: WeightForm,
) -> Result<Weight, BackendError> {
    match form {
        WeightForm::Vector => {
            let values = weights::vector(parts)?;
            Ok(Weight::Vector { values: device.from_slice(&values)?, length: values.len() })
        }
        WeightForm::Bf16 | WeightForm::AmxBf16 => Err(BackendError::Unavailable(
            "products of bf16 in the order of a CPU's instructions are not made on a GPU (it has `sm90-bf16`)".into(),
        )),
        WeightForm::TensorBf16 => {
            let shape = weights::shape(parts, ranges)?;
            if shape.planes != 1 {
                let reason = "products split over devices by their inputs are not made on a GPU yet";
                return Err(BackendError::Unavailable(reason.into()));
            }
            let tiles = tiles(device, parts, shape)?;
            Ok(Weight::Matrix(Matrix { shape, packed: Packed::Tiles(tiles) }))
        }
        _ => {
            let matrix = exact(device, parts, ranges, form)?;
            Ok(Weight::Matrix(Matrix { shape: matrix.shape, packed: Packed::Exact(matrix) }))
        }
    }
}

/// Packs an exact form. Some outputs at a time by as many threads as there are: a matrix of one form is the same whether it is
/// made whole or of stretches of whole strips.
fn exact(
    device: &Arc<Device>,
    parts: &[Part<'_>],
    ranges: KRanges,
    form: WeightForm,
) -> Result<ExactMatrix, BackendError> {
    let shape = weights::shape(parts, ranges)?;
    let one_form = form != WeightForm::Stored || parts.iter().all(|part| part.tensor.dtype == parts[0].tensor.dtype);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(64);
    let each = shape.outputs.div_ceil(threads).next_multiple_of(TILE);
    if !one_form || each >= shape.outputs {
        return Ok(ExactMatrix::new(device, &weights::matrix(parts, ranges, form)?)?);
    }
    let pack = |first: usize| {
        let some = weights::outputs(parts, first, each.min(shape.outputs - first));
        packing::pack(&weights::matrix(&some, ranges, form)?).map_err(BackendError::from)
    };
    let mut packed = std::thread::scope(|scope| {
        let starts = (0..shape.outputs).step_by(each);
        let packers: Vec<_> = starts.map(|first| scope.spawn(move || pack(first))).collect();
        let join = packers.into_iter().map(|packer| packer.join().unwrap_or(Err(BackendError::Poisoned)));
        join.collect::<Result<Vec<_>, _>>()
    })?
    .into_iter()
    .flatten();
    let Some(mut whole) = packed.next() else { return Err(BackendError::Poisoned) };
    for mut next in packed {
        whole.outputs += next.outputs;
        whole.bytes.append(&mut next.bytes);
    }
    Ok(ExactMatrix::of_packed(device, shape, &whole)?)
}

/// Rows of a tensor part, of which a weight's outputs are made.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    part: &'a Part<'a>,
    /// First output of the weight.
    first: usize,
}

/// Packs tiles: stretches of 64 outputs by as many threads as there are, uploaded in pieces.
fn tiles(device: &Arc<Device>, parts: &[Part<'_>], shape: MatrixShape) -> Result<Tiles, BackendError> {
    let numbers = if fp8::takes(parts) { Numbers::Fp8 } else { Numbers::Bf16 };
    let gemm = GemmShape { outputs: shape.outputs, inputs: shape.inputs, gated: false, numbers };
    let (strip, strips) = (strip_words(&gemm), gemm.padded_outputs() / TILE);
    let buffer = device.alloc(2 * strips * strip)?;
    let stretches = stretches(parts);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(32);
    // Pieces of about 64 MiB: one is packed while the other is copied.
    let piece = (32 * 1024 * 1024 / strip).clamp(1, strips);
    let mut staging = [device.pinned::<u16>(piece * strip)?, device.pinned::<u16>(piece * strip)?];
    let copied = [device.event(false)?, device.event(false)?];
    for (turn, begin) in (0..strips).step_by(piece).enumerate() {
        let count = piece.min(strips - begin);
        let (staging, copied) = (&mut staging[turn % 2], &copied[turn % 2]);
        if turn >= 2 {
            copied.wait()?;
        }
        let space = &mut staging.as_mut_slice()[..count * strip];
        let each = count.div_ceil(threads);
        let stretches = &stretches;
        std::thread::scope(|scope| {
            let packers: Vec<_> = space
                .chunks_mut(each * strip)
                .enumerate()
                .map(|(number, space)| {
                    scope.spawn(move || {
                        let rows = (begin + number * each) * TILE;
                        pack_strips(stretches, &gemm, rows, space)
                    })
                })
                .collect();
            packers.into_iter().try_for_each(|packer| packer.join().unwrap_or(Err(BackendError::Poisoned)))
        })?;
        let to: DevicePtr = buffer.ptr() + (2 * begin * strip) as u64;
        device.upload(staging, count * strip, to)?;
        copied.record()?;
    }
    device.synchronize()?;
    Ok(Tiles { buffer, shape: gemm })
}

/// Words of 16 bits of 64 outputs.
const fn strip_words(shape: &GemmShape) -> usize {
    TILE * shape.k_tiles() * shape.numbers.row_bytes() / 2
}

/// Parts, each with its first output.
fn stretches<'a>(parts: &'a [Part<'a>]) -> Vec<Stretch<'a>> {
    let mut first = 0;
    let mut next = |part: &'a Part<'a>| {
        first += part.shard.rows.len();
        Stretch { part, first: first - part.shard.rows.len() }
    };
    parts.iter().map(&mut next).collect()
}

impl<'a> Stretch<'a> {
    /// The one that has an output, and its row there.
    fn of(stretches: &[Stretch<'a>], output: usize) -> Option<(&'a Part<'a>, usize)> {
        let stretch = stretches.iter().rev().find(|stretch| stretch.first <= output)?;
        Some((stretch.part, stretch.part.shard.rows.start + output - stretch.first))
    }
}

/// Fills whole strips of 64 outputs, from output `first` on.
fn pack_strips(
    stretches: &[Stretch<'_>],
    shape: &GemmShape,
    first: usize,
    space: &mut [u16],
) -> Result<(), BackendError> {
    if shape.numbers == Numbers::Fp8 {
        return fp8::pack_strips(stretches, shape, first, space);
    }
    let inputs = shape.k_tiles() * TILE;
    let mut values = vec![0u16; inputs];
    let mut floats = Vec::new();
    for (number, strip) in space.chunks_mut(TILE * inputs).enumerate() {
        for row in 0..TILE {
            let output = first + number * TILE + row;
            values.fill(0);
            if output < shape.outputs {
                read_bf16(stretches, output, &mut values[..shape.inputs], &mut floats)?;
            }
            for (tile, values) in strip.chunks_mut(TILE_BYTES / 2).zip(values.chunks(TILE)) {
                for (piece, values) in values.chunks(8).enumerate() {
                    let place = row * TILE + (piece ^ (row % 8)) * 8;
                    tile[place..place + 8].copy_from_slice(values);
                }
            }
        }
    }
    Ok(())
}

/// One output's inputs as bf16, rounded to the nearest.
fn read_bf16(
    stretches: &[Stretch<'_>],
    output: usize,
    values: &mut [u16],
    floats: &mut Vec<f32>,
) -> Result<(), BackendError> {
    let Some((part, row)) = Stretch::of(stretches, output) else { return Ok(()) };
    let bad = |column: usize| BackendError::Tensor {
        name: part.tensor.name.into(),
        reason: format!("element ({row}, {}) is not finite: the file is damaged", part.shard.columns.start + column),
    };
    if part.tensor.dtype == Dtype::Bf16 {
        let columns = part.shard.columns.clone();
        let start = row * part.tensor.shape[1];
        let bytes = &part.tensor.data[2 * (start + columns.start)..2 * (start + columns.end)];
        let mut any = false;
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = u16::from_le_bytes(*bytes);
            any |= *value & 0x7f80 == 0x7f80;
        }
        if any {
            let column = values.iter().position(|value| value & 0x7f80 == 0x7f80).unwrap_or(0);
            return Err(bad(column));
        }
        return Ok(());
    }
    weights::read_row(&part.tensor, part.tensor.shape[1], row, part.shard.columns.clone(), floats);
    if let Some(column) = floats.iter().position(|value| !value.is_finite()) {
        return Err(bad(column));
    }
    values.iter_mut().zip(&*floats).for_each(|(value, &float)| *value = f32_to_bf16(float));
    Ok(())
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Memory { bytes, .. } => BackendError::Memory { needed_bytes: bytes },
            CudaError::NoKernel { .. } => BackendError::Unavailable(error.to_string()),
            CudaError::Driver { .. } => BackendError::Device(error.to_string()),
        }
    }
}

impl From<ExactError> for BackendError {
    fn from(error: ExactError) -> Self {
        match error {
            ExactError::Unsupported(reason) => BackendError::Unavailable(reason),
            ExactError::Cuda(error) => error.into(),
        }
    }
}
