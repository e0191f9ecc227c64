//! Exact products: packed matrices on the device, and the launches that multiply by them.

use std::collections::HashMap;
use std::sync::Arc;

use super::packing::{self, FLOAT_STRIP, Form};
use super::{ExactError, q8_pitch};
use crate::cuda::driver::{CudaError, Device, DeviceBuffer, DevicePtr, Function, Launch};
use crate::quantise::BLOCK;
use crate::weights::{MatrixShape, PlainMatrix};

/// A shape of tile of the kernels over integers (`POLYLINK_INT8_KERNELS` in `gemm_int8.cuh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    pub name: &'static str,
    pub rows: u32,
    pub outputs: u32,
    threads: u32,
    stages: u32,
    /// Whether it takes matrices of several K ranges, of one range, or of any number.
    ranges: Option<bool>,
}

const fn tile(name: &'static str, rows: u32, outputs: u32, threads: u32, stages: u32, ranges: Option<bool>) -> Tile {
    Tile { name, rows, outputs, threads, stages, ranges }
}

pub(crate) const TILES: [Tile; 8] = [
    tile("rows_8_by_16", 8, 16, 64, 8, None),
    tile("rows_8_by_32", 8, 32, 128, 8, None),
    tile("rows_16_by_16", 16, 16, 64, 8, None),
    tile("rows_16_by_32", 16, 32, 128, 8, None),
    tile("rows_64_by_32", 64, 32, 128, 4, None),
    tile("rows_64_by_64", 64, 64, 128, 3, None),
    tile("rows_128_by_128", 128, 128, 256, 3, Some(false)),
    tile("rows_128_by_128_split", 128, 128, 256, 3, Some(true)),
];

impl Tile {
    /// Bytes of dynamic shared memory.
    pub fn shared(&self, form: Form) -> u32 {
        self.stages * (self.outputs / 8 * form.record() as u32 + self.rows * (256 + 32))
    }

    /// Whether it computes this matrix.
    pub fn takes(&self, shape: &MatrixShape) -> bool {
        self.ranges.is_none_or(|several| several == (shape.range_length < shape.inputs))
    }

    /// The tile for so many rows (of the launch, not of the step): any gives the same bits.
    fn choose(shape: &MatrixShape, outputs: usize, rows: u32, multiprocessors: u32) -> Tile {
        // Share of the multiprocessors that have work while any has.
        let even = |tile: &Tile| {
            let blocks = (outputs as u32).div_ceil(tile.outputs) * rows.div_ceil(tile.rows);
            f64::from(blocks) / f64::from(blocks.next_multiple_of(multiprocessors))
        };
        let [a, b, c, d, e, f, ..] = TILES;
        let (narrow, wide) = match rows {
            0..=8 => (a, b),
            9..=16 => (c, d),
            17..=64 => (e, f),
            _ => (f, if TILES[6].takes(shape) { TILES[6] } else { TILES[7] }),
        };
        // A wide tile reads less; a narrow one is chosen where that leaves multiprocessors idle.
        if even(&wide) >= 0.85 * even(&narrow) { wide } else { narrow }
    }
}

/// Geometries of the kernels over floats: name, rows, outputs, threads, inputs and number of stages, floats between rows.
const FLOAT_TILES: [(&str, u32, u32, u32, u32, u32, u32); 4] = [
    ("rows_1", 1, 32, 32, 64, 6, 64),
    ("rows_8", 8, 32, 32, 64, 6, 64),
    ("rows_64", 64, 64, 256, 32, 3, 36),
    ("rows_128", 128, 64, 256, 32, 3, 36),
];

/// Parameters of the kernels over integers: `Int8Params`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Int8Params {
    weights: DevicePtr,
    quants: DevicePtr,
    scales: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    out: DevicePtr,
    counts: DevicePtr,
    matrix_bytes: u64,
    rows: u32,
    wanted: u32,
    pitch: u32,
    outputs: u32,
    blocks: u32,
    range_blocks: u32,
    out_pitch: u32,
}

/// Parameters of the kernels over floats: `FloatParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FloatParams {
    weights: DevicePtr,
    input: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    out: DevicePtr,
    counts: DevicePtr,
    matrix_bytes: u64,
    rows: u32,
    wanted: u32,
    in_pitch: u32,
    outputs: u32,
    inputs: u32,
    range: u32,
    out_pitch: u32,
}

/// What of a matrix is in one form: a stack has several, each with the outputs that follow the one before.
#[derive(Debug)]
pub(crate) struct Section {
    pub form: Form,
    /// Its first output in the matrix.
    pub first: usize,
    pub outputs: usize,
    /// Bytes of one matrix of a group.
    pub matrix_bytes: usize,
    weights: DeviceBuffer,
}

impl Section {
    /// Address of the packed matrices.
    pub fn weights(&self) -> DevicePtr {
        self.weights.ptr()
    }

    /// Of a whole matrix whose bytes are there.
    #[cfg(test)]
    pub fn of(form: Form, outputs: usize, matrix_bytes: usize, weights: DeviceBuffer) -> Self {
        Self { form, first: 0, outputs, matrix_bytes, weights }
    }
}

/// A matrix on the device, or a group of matrices of one shape (a layer's experts).
#[derive(Debug)]
pub(crate) struct ExactMatrix {
    pub shape: MatrixShape,
    pub sections: Vec<Section>,
}

impl ExactMatrix {
    /// Packs a matrix and brings it to the device.
    ///
    /// # Errors
    /// As [`packing::pack`]; [`ExactError::Cuda`] if there is no memory.
    pub fn new(device: &Arc<Device>, plain: &PlainMatrix) -> Result<Self, ExactError> {
        Self::group(device, std::slice::from_ref(plain))
    }

    /// Brings a matrix of one form to the device, packed already.
    pub fn of_packed(device: &Arc<Device>, shape: MatrixShape, packed: &packing::Packed) -> Result<Self, ExactError> {
        let packing::Packed { form, outputs, bytes } = packed;
        let weights = device.from_slice(bytes)?;
        let section = Section { form: *form, first: 0, outputs: *outputs, matrix_bytes: bytes.len(), weights };
        Ok(Self { shape, sections: vec![section] })
    }

    /// Puts matrices of the same shape and forms behind each other.
    ///
    /// # Errors
    /// [`ExactError::Unsupported`] if they are unlike, or there is none.
    pub fn stack(device: &Arc<Device>, matrices: Vec<Self>) -> Result<Self, ExactError> {
        let count = matrices.len();
        let forms =
            |matrix: &Self| matrix.sections.iter().map(|section| (section.form, section.outputs)).collect::<Vec<_>>();
        let alike = |matrix: &Self| matrix.shape == matrices[0].shape && forms(matrix) == forms(&matrices[0]);
        if count == 0 || !matrices.iter().all(alike) {
            return Err(ExactError::Unsupported("matrices of a group are of unlike shapes or forms".into()));
        }
        let shape = matrices[0].shape;
        let mut sections = Vec::with_capacity(matrices[0].sections.len());
        for section in &matrices[0].sections {
            let weights = device.alloc(section.matrix_bytes * count)?;
            let Section { form, first, outputs, matrix_bytes, .. } = *section;
            sections.push(Section { form, first, outputs, matrix_bytes, weights });
        }
        for (number, matrix) in matrices.into_iter().enumerate() {
            for (to, from) in sections.iter().zip(matrix.sections) {
                to.weights.copy_from(number * to.matrix_bytes, &from.weights, to.matrix_bytes)?;
            }
        }
        Ok(Self { shape, sections })
    }

    /// Packs matrices of the same shape and forms, one after the other.
    ///
    /// # Errors
    /// As [`ExactMatrix::new`]; [`ExactError::Unsupported`] if the matrices are unlike, or there is none.
    pub fn group(device: &Arc<Device>, matrices: &[PlainMatrix]) -> Result<Self, ExactError> {
        let Some(head) = matrices.first() else {
            return Err(ExactError::Unsupported("a group of no matrices".into()));
        };
        let mut groups: Vec<packing::Packed> = Vec::new();
        for (number, matrix) in matrices.iter().enumerate() {
            let packed = packing::pack(matrix)?;
            if number == 0 {
                groups = packed;
                continue;
            }
            let forms =
                |packed: &[packing::Packed]| packed.iter().map(|one| (one.form, one.outputs)).collect::<Vec<_>>();
            if matrix.shape != head.shape || forms(&packed) != forms(&groups) {
                return Err(ExactError::Unsupported("matrices of a group are of unlike shapes or forms".into()));
            }
            for (all, mut one) in groups.iter_mut().zip(packed) {
                all.bytes.append(&mut one.bytes);
            }
        }
        let (mut sections, mut first) = (Vec::with_capacity(groups.len()), 0);
        for packing::Packed { form, outputs, bytes } in groups {
            let (weights, matrix_bytes) = (device.from_slice(&bytes)?, bytes.len() / matrices.len());
            sections.push(Section { form, first, outputs, matrix_bytes, weights });
            first += outputs;
        }
        Ok(Self { shape: head.shape, sections })
    }

    /// Whether a section takes activations of 8 bits.
    pub fn takes_integers(&self) -> bool {
        self.sections.iter().any(|section| section.form.takes_integers())
    }

    /// Whether a section takes activations in f32.
    pub fn takes_floats(&self) -> bool {
        self.sections.iter().any(|section| !section.form.takes_integers())
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.sections.iter().map(|section| section.weights.bytes()).sum()
    }
}

/// What a product reads and writes. Addresses in the device's memory; 0 where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Product {
    /// `[rows][inputs]` f32, for sections of floats.
    pub input: DevicePtr,
    /// `[rows][q8_pitch(inputs)]` i8 and `[rows][q8_pitch(inputs) / 32]` f32, for sections of integers.
    pub quants: DevicePtr,
    pub scales: DevicePtr,
    /// `[outputs]`.
    pub bias: DevicePtr,
    /// `[rows][outputs]`; may be the output.
    pub residual: DevicePtr,
    /// `[rows][outputs]` f32.
    pub output: DevicePtr,
    /// `StepCounts`, one per group.
    pub counts: DevicePtr,
    /// Whether the rows are the wanted ones.
    pub wanted: bool,
    /// Rows of the launch: the bucket.
    pub rows: u32,
    /// Groups; 1 but for a mixture of experts.
    pub groups: u32,
}

/// The kernels.
#[derive(Clone, Debug)]
pub(crate) struct ExactProducts {
    integers: HashMap<(Form, &'static str), Function>,
    floats: HashMap<(Form, &'static str), Function>,
    multiprocessors: u32,
}

impl ExactProducts {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let (mut integers, mut floats) = (HashMap::new(), HashMap::new());
        let most = device.shared_bytes_max();
        for form in Form::INTEGERS {
            let module = match form {
                Form::Q8_0 => "gemm_q8_0",
                Form::Q4_0 => "gemm_q4_0",
                Form::Q4K => "gemm_q4_k",
                Form::Q5K => "gemm_q5_k",
                _ => "gemm_q6_k",
            };
            // A device of less shared memory goes without the largest tiles.
            for tile in TILES.iter().filter(|tile| tile.shared(form) <= most) {
                let function = device.function(module, tile.name)?;
                function.allow_shared(tile.shared(form))?;
                integers.insert((form, tile.name), function);
            }
        }
        for form in Form::FLOATS {
            let prefix = if form == Form::F32 { "f32" } else { "bf16" };
            for tile in FLOAT_TILES {
                let function = device.function("gemm_f32", &format!("{prefix}_{}", tile.0))?;
                function.allow_shared(float_shared(form, tile))?;
                floats.insert((form, tile.0), function);
            }
        }
        Ok(Self { integers, floats, multiprocessors: device.multiprocessors() })
    }

    /// The launches of a product, one per section.
    ///
    /// `output = residual + (Σ + bias)`.
    pub fn launches(&self, matrix: &ExactMatrix, product: &Product) -> Vec<Launch> {
        let shape = &matrix.shape;
        let section = |section: &Section| {
            if !section.form.takes_integers() {
                return self.floats(shape, section, product);
            }
            let mut tile = Tile::choose(shape, section.outputs, product.rows, self.multiprocessors);
            if !self.integers.contains_key(&(section.form, tile.name)) {
                tile = TILES[5];
            }
            self.integers(shape, section, product, tile)
        };
        matrix.sections.iter().map(section).collect()
    }

    /// The launch with a tile of one's choice, which [`Tile::takes`] the matrix.
    pub fn integers(&self, shape: &MatrixShape, section: &Section, product: &Product, tile: Tile) -> Launch {
        let at = |address: DevicePtr| if address == 0 { 0 } else { address + 4 * section.first as u64 };
        let params = Int8Params {
            weights: section.weights.ptr(),
            quants: product.quants,
            scales: product.scales,
            bias: at(product.bias),
            residual: at(product.residual),
            out: at(product.output),
            counts: product.counts,
            matrix_bytes: section.matrix_bytes as u64,
            rows: product.rows,
            wanted: product.wanted.into(),
            pitch: q8_pitch(shape.inputs) as u32,
            outputs: section.outputs as u32,
            blocks: (shape.inputs / BLOCK) as u32,
            range_blocks: (shape.range_length / BLOCK) as u32,
            out_pitch: shape.outputs as u32,
        };
        let grid =
            [(section.outputs as u32).div_ceil(tile.outputs), product.rows.div_ceil(tile.rows), product.groups.max(1)];
        let function = &self.integers[&(section.form, tile.name)];
        Launch::new(function, grid, tile.threads, tile.shared(section.form), params)
    }

    fn floats(&self, shape: &MatrixShape, section: &Section, product: &Product) -> Launch {
        let tile = match product.rows {
            0..=1 => FLOAT_TILES[0],
            2..=16 => FLOAT_TILES[1],
            17..=512 => FLOAT_TILES[2],
            _ => FLOAT_TILES[3],
        };
        let at = |address: DevicePtr| if address == 0 { 0 } else { address + 4 * section.first as u64 };
        let params = FloatParams {
            weights: section.weights.ptr(),
            input: product.input,
            bias: at(product.bias),
            residual: at(product.residual),
            out: at(product.output),
            counts: product.counts,
            matrix_bytes: section.matrix_bytes as u64,
            rows: product.rows,
            wanted: product.wanted.into(),
            in_pitch: shape.inputs as u32,
            outputs: section.outputs as u32,
            inputs: shape.inputs as u32,
            range: shape.range_length as u32,
            out_pitch: shape.outputs as u32,
        };
        let (name, rows, outputs, threads, ..) = tile;
        let grid = [(section.outputs as u32).div_ceil(outputs), product.rows.div_ceil(rows), product.groups.max(1)];
        let function = &self.floats[&(section.form, name)];
        Launch::new(function, grid, threads, float_shared(section.form, tile), params)
    }
}

/// Bytes of shared memory of a geometry over floats.
fn float_shared(form: Form, (_, rows, outputs, _, depth, stages, pitch): (&str, u32, u32, u32, u32, u32, u32)) -> u32 {
    let weight = if form == Form::F32 { 4 } else { 2 };
    stages * (outputs * depth * weight + rows * pitch * 4)
}

const _: () = assert!(FLOAT_STRIP == 32, "the geometries over floats are made of strips of 32");
