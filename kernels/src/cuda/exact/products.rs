//! Exact products: packed matrices on the device, and the launches that multiply by them.

use std::collections::HashMap;
use std::sync::Arc;

use super::packing::{self, Form};
use super::{Call, ExactError, q8_pitch};
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

pub(crate) const TILES: [Tile; 10] = [
    tile("rows_8_by_16", 8, 16, 64, 8, None),
    tile("rows_8_by_32", 8, 32, 128, 8, None),
    tile("rows_16_by_16", 16, 16, 64, 8, None),
    tile("rows_16_by_32", 16, 32, 128, 8, None),
    tile("rows_64_by_32", 64, 32, 128, 4, None),
    tile("rows_64_by_64", 64, 64, 128, 3, None),
    tile("rows_128_by_128", 128, 128, 512, 3, Some(false)),
    tile("rows_128_by_128_split", 128, 128, 512, 3, Some(true)),
    tile("rows_64_by_16", 64, 16, 128, 4, None),
    tile("rows_128_by_128_tall", 128, 128, 256, 3, Some(false)),
];

impl Tile {
    /// Bytes of dynamic shared memory.
    pub fn shared(&self, form: Form) -> u32 {
        self.stages * (self.outputs / 8 * form.record() as u32 + self.rows * (272 + 48) + 8)
    }

    /// Whether it computes this matrix.
    pub fn takes(&self, shape: &MatrixShape) -> bool {
        self.ranges.is_none_or(|several| several == (shape.range_length < shape.inputs))
    }

    /// The tile for so many rows (of the launch, not of the step): any gives the same bits.
    pub fn choose(shape: &MatrixShape, outputs: usize, rows: u32, multiprocessors: u32) -> Tile {
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

/// A geometry of the kernels over floats.
#[derive(Clone, Copy, Debug)]
struct FloatTile {
    /// With f32 weights, with bf16.
    names: [&'static str; 2],
    rows: u32,
    outputs: u32,
    threads: u32,
    /// Inputs of a stage, stages, and floats from a row of activations to the next.
    stage: (u32, u32, u32),
}

const FLOAT_TILES: [FloatTile; 4] = [
    FloatTile { names: ["f32_rows_1", "bf16_rows_1"], rows: 1, outputs: 32, threads: 32, stage: (64, 6, 64) },
    FloatTile { names: ["f32_rows_8", "bf16_rows_8"], rows: 8, outputs: 32, threads: 32, stage: (64, 6, 64) },
    FloatTile { names: ["f32_rows_64", "bf16_rows_64"], rows: 64, outputs: 64, threads: 256, stage: (32, 3, 36) },
    FloatTile { names: ["f32_rows_128", "bf16_rows_128"], rows: 128, outputs: 64, threads: 256, stage: (32, 3, 36) },
];

impl FloatTile {
    fn name(&self, form: Form) -> &'static str {
        self.names[usize::from(form == Form::Bf16)]
    }

    /// Bytes of dynamic shared memory.
    fn shared(&self, form: Form) -> u32 {
        let (depth, stages, pitch) = self.stage;
        let weight = if form == Form::F32 { 4 } else { 2 };
        stages * (self.outputs * depth * weight + self.rows * pitch * 4)
    }
}

/// Parameters of the kernels over integers: `Int8Params`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8Params {
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
pub(crate) struct FloatParams {
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub form: Form,
    /// Its first output in the matrix.
    pub first: usize,
    pub outputs: usize,
    /// Bytes of one matrix of a group.
    pub matrix_bytes: usize,
    /// Where the packed matrices lie on the device.
    pub weights: DevicePtr,
}

/// A matrix on the device, or a group of matrices of one shape (a layer's experts).
#[derive(Debug)]
pub(crate) struct ExactMatrix {
    pub shape: MatrixShape,
    pub sections: Vec<Section>,
    /// The sections' weights.
    pub buffers: Vec<DeviceBuffer>,
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
        let buffer = device.from_slice(bytes)?;
        let (outputs, matrix_bytes, weights) = (*outputs, bytes.len(), buffer.ptr());
        let section = Section { form: *form, first: 0, outputs, matrix_bytes, weights };
        Ok(Self { shape, sections: vec![section], buffers: vec![buffer] })
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
        let (mut sections, mut buffers) = (Vec::new(), Vec::new());
        for section in &matrices[0].sections {
            let buffer = device.alloc(section.matrix_bytes * count)?;
            sections.push(Section { weights: buffer.ptr(), ..*section });
            buffers.push(buffer);
        }
        for (number, matrix) in matrices.into_iter().enumerate() {
            for (section, (to, from)) in sections.iter().zip(buffers.iter().zip(&matrix.buffers)) {
                to.copy_from(number * section.matrix_bytes, from, section.matrix_bytes)?;
            }
        }
        Ok(Self { shape, sections, buffers })
    }

    /// Packs matrices of the same shape and forms, one after the other.
    ///
    /// # Errors
    /// As [`ExactMatrix::new`]; [`ExactError::Unsupported`] if the matrices are unlike, or there is none.
    pub fn group(device: &Arc<Device>, matrices: &[PlainMatrix]) -> Result<Self, ExactError> {
        let (shape, packed) = pack_group(matrices)?;
        let (mut sections, mut buffers) = (Vec::with_capacity(packed.len()), Vec::with_capacity(packed.len()));
        for (section, bytes) in packed {
            let buffer = device.from_slice(&bytes)?;
            sections.push(Section { weights: buffer.ptr(), ..section });
            buffers.push(buffer);
        }
        Ok(Self { shape, sections, buffers })
    }

    /// Whether a section takes activations of 8 bits.
    pub fn takes_integers(&self) -> bool {
        self.sections.iter().any(|section| section.form.takes_integers())
    }

    /// Whether a section takes activations in f32.
    pub fn takes_floats(&self) -> bool {
        self.sections.iter().any(|section| !section.form.takes_integers())
    }
}

/// A shape, and sections with their bytes.
pub(crate) type PackedGroup = (MatrixShape, Vec<(Section, Vec<u8>)>);

/// The sections of matrices of the same shape and forms, with nothing on the device yet, and their bytes.
pub(crate) fn pack_group(matrices: &[PlainMatrix]) -> Result<PackedGroup, ExactError> {
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
        let forms = |packed: &[packing::Packed]| packed.iter().map(|one| (one.form, one.outputs)).collect::<Vec<_>>();
        if matrix.shape != head.shape || forms(&packed) != forms(&groups) {
            return Err(ExactError::Unsupported("matrices of a group are of unlike shapes or forms".into()));
        }
        for (all, mut one) in groups.iter_mut().zip(packed) {
            all.bytes.append(&mut one.bytes);
        }
    }
    let (mut sections, mut first) = (Vec::with_capacity(groups.len()), 0);
    for packing::Packed { form, outputs, bytes } in groups {
        let matrix_bytes = bytes.len() / matrices.len();
        sections.push((Section { form, first, outputs, matrix_bytes, weights: 0 }, bytes));
        first += outputs;
    }
    Ok((head.shape, sections))
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

/// Address of a section's first column in a row or vector of outputs.
fn column(address: DevicePtr, section: &Section) -> DevicePtr {
    if address == 0 { 0 } else { address + 4 * section.first as u64 }
}

/// The kernel over integers with a tile that takes the matrix ([`Tile::takes`]).
pub(crate) fn integers_call(shape: &MatrixShape, section: &Section, product: &Product, tile: Tile) -> Call<Int8Params> {
    let params = Int8Params {
        weights: section.weights,
        quants: product.quants,
        scales: product.scales,
        bias: column(product.bias, section),
        residual: column(product.residual, section),
        out: column(product.output, section),
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
    let columns = (section.outputs as u32).div_ceil(tile.outputs);
    let grid = [columns, product.rows.div_ceil(tile.rows), product.groups.max(1)];
    let shared = tile.shared(section.form);
    Call { module: module(section.form), name: tile.name, grid, block: tile.threads, shared, params }
}

/// The kernel over floats.
pub(crate) fn floats_call(shape: &MatrixShape, section: &Section, product: &Product) -> Call<FloatParams> {
    let size = match product.rows {
        0..=1 => 0,
        2..=16 => 1,
        17..=512 => 2,
        _ => 3,
    };
    let params = FloatParams {
        weights: section.weights,
        input: product.input,
        bias: column(product.bias, section),
        residual: column(product.residual, section),
        out: column(product.output, section),
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
    let tile = FLOAT_TILES[size];
    let columns = (section.outputs as u32).div_ceil(tile.outputs);
    let grid = [columns, product.rows.div_ceil(tile.rows), product.groups.max(1)];
    let shared = tile.shared(section.form);
    Call { module: module(section.form), name: tile.name(section.form), grid, block: tile.threads, shared, params }
}

/// The file of a form's kernels.
fn module(form: Form) -> &'static str {
    match form {
        Form::Q8_0 => "gemm_q8_0",
        Form::Q4_0 => "gemm_q4_0",
        Form::Q4K => "gemm_q4_k",
        Form::Q5K => "gemm_q5_k",
        Form::Q6K => "gemm_q6_k",
        Form::F32 | Form::Bf16 => "gemm_f32",
    }
}

/// The kernels.
#[derive(Clone, Debug)]
pub(crate) struct ExactProducts {
    functions: HashMap<(&'static str, &'static str), Function>,
    multiprocessors: u32,
}

impl ExactProducts {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let mut functions = HashMap::new();
        let most = device.shared_bytes_max();
        let mut look_up = |form, name, shared| {
            let function = device.function(module(form), name)?;
            function.allow_shared(shared)?;
            functions.insert((module(form), name), function);
            Ok::<(), CudaError>(())
        };
        for form in Form::INTEGERS {
            // A device of less shared memory goes without the largest tiles.
            for tile in TILES.iter().filter(|tile| tile.shared(form) <= most) {
                look_up(form, tile.name, tile.shared(form))?;
            }
        }
        for form in Form::FLOATS {
            for tile in FLOAT_TILES {
                look_up(form, tile.name(form), tile.shared(form))?;
            }
        }
        Ok(Self { functions, multiprocessors: device.multiprocessors() })
    }

    /// The launches of a product, one per section: `output = residual + (Σ + bias)`.
    pub fn launches(&self, matrix: &ExactMatrix, product: &Product) -> Vec<Launch> {
        let shape = &matrix.shape;
        let section = |section: &Section| {
            if !section.form.takes_integers() {
                return self.launch(&floats_call(shape, section, product));
            }
            let tile = Tile::choose(shape, section.outputs, product.rows, self.multiprocessors);
            let known = self.functions.contains_key(&(module(section.form), tile.name));
            self.integers(shape, section, product, if known { tile } else { TILES[5] })
        };
        matrix.sections.iter().map(section).collect()
    }

    /// The launch with a tile of one's choice.
    pub fn integers(&self, shape: &MatrixShape, section: &Section, product: &Product, tile: Tile) -> Launch {
        self.launch(&integers_call(shape, section, product, tile))
    }

    fn launch<P: Copy>(&self, call: &Call<P>) -> Launch {
        call.launch(&self.functions[&(call.module, call.name)])
    }
}
