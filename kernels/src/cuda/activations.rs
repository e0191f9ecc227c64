//! Buffers of a program on the device, each in the forms in which its readers want it.
//!
//! What only products read is never kept in f32: writers round it, or quantise it, on their way out.

use std::sync::Arc;

use super::driver::{CudaError, Device, DeviceBuffer, DevicePtr};
use super::exact::attention::ExactAttention;
use super::rows::{RowForm, RowOutput, q8_pitch};
use super::weights::{Matrix, Packed, Weight};
use crate::backend::{Limits, WeightId};
use crate::program::{BufferId, Op, Program, RowKind};

/// Rows of activations come in whole tiles of products.
const ROW_TILE: usize = 256;

/// In which forms a buffer is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    pub f32: bool,
    pub tiled: bool,
    pub q8: bool,
}

impl Forms {
    /// As a product by this weight takes its input.
    pub fn of_input(weight: &Weight) -> Self {
        match weight {
            Weight::Matrix(matrix) => Self::of_matrix(matrix),
            Weight::Vector { .. } | Weight::Moved => Self { f32: true, ..Self::default() },
        }
    }

    /// The same.
    pub fn of_matrix(matrix: &Matrix) -> Self {
        match &matrix.packed {
            Packed::Tiles(_) => Self { tiled: true, ..Self::default() },
            Packed::Exact(exact) => Self { f32: exact.takes_floats(), q8: exact.takes_integers(), tiled: false },
        }
    }

    /// All of both.
    pub fn with(self, other: Self) -> Self {
        Self { f32: self.f32 || other.f32, tiled: self.tiled || other.tiled, q8: self.q8 || other.q8 }
    }

    /// Those there are, the one that a writer should write first.
    pub fn list(self) -> impl Iterator<Item = RowForm> {
        let all = [(self.f32, RowForm::F32), (self.tiled, RowForm::Bf16Tiled), (self.q8, RowForm::Q8)];
        all.into_iter().filter(|(there, _)| *there).map(|(_, form)| form)
    }
}

/// A program's buffer.
#[derive(Debug)]
pub(super) struct Activation {
    pub width: usize,
    pub rows: RowKind,
    /// Rows that there is room for: a multiple of a product's tile.
    pub capacity: usize,
    pub forms: Forms,
    f32: Option<DeviceBuffer>,
    tiled: Option<DeviceBuffer>,
    q8: Option<[DeviceBuffer; 2]>,
}

impl Activation {
    /// Rows of this width, as many as the limits have.
    pub fn sized(width: usize, rows: RowKind, limits: &Limits, forms: Forms) -> Self {
        let most = if rows == RowKind::Step { limits.rows } else { limits.wanted_rows };
        Self { width, rows, capacity: most.next_multiple_of(ROW_TILE), forms, f32: None, tiled: None, q8: None }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        let Self { width, capacity, forms, .. } = *self;
        let f32 = if forms.f32 { 4 * capacity * width } else { 0 };
        let tiled = if forms.tiled { 2 * capacity * width.next_multiple_of(64) } else { 0 };
        let q8 = if forms.q8 { capacity * q8_pitch(width) / 8 * 9 } else { 0 };
        f32 + tiled + q8
    }

    /// Takes its memory, zeroed.
    pub fn allocate(mut self, device: &Arc<Device>) -> Result<Self, CudaError> {
        let Self { width, capacity, forms, .. } = self;
        // What pads rows and tiles stays as it is at first: zeros.
        let zeroed = |bytes: usize| {
            let buffer = device.alloc(bytes)?;
            buffer.fill(0)?;
            Ok::<_, CudaError>(buffer)
        };
        if forms.f32 {
            self.f32 = Some(zeroed(4 * capacity * width)?);
        }
        if forms.tiled {
            self.tiled = Some(zeroed(2 * capacity * width.next_multiple_of(64))?);
        }
        if forms.q8 {
            let pitch = q8_pitch(width);
            self.q8 = Some([zeroed(capacity * pitch)?, zeroed(4 * capacity * pitch / 32)?]);
        }
        Ok(self)
    }

    /// Address of its f32; 0 if it has none.
    pub fn f32(&self) -> DevicePtr {
        self.f32.as_ref().map_or(0, DeviceBuffer::ptr)
    }

    /// Address of its bf16; 0 if it has none.
    pub fn tiled(&self) -> DevicePtr {
        self.tiled.as_ref().map_or(0, DeviceBuffer::ptr)
    }

    /// Addresses of its integers and their scales; 0 if it has none.
    pub fn q8(&self) -> [DevicePtr; 2] {
        self.q8.as_ref().map_or([0; 2], |[quants, scales]| [quants.ptr(), scales.ptr()])
    }

    /// Its f32.
    pub fn f32_buffer(&self) -> Option<&DeviceBuffer> {
        self.f32.as_ref()
    }

    /// As a writer of a form sees it.
    pub fn output(&self, form: RowForm) -> RowOutput {
        match form {
            RowForm::F32 => RowOutput::f32(self.f32(), self.width),
            RowForm::Bf16Tiled => RowOutput::bf16_tiled(self.tiled(), self.capacity),
            RowForm::Q8 => {
                let [quants, scales] = self.q8();
                RowOutput::q8(quants, scales, self.width)
            }
        }
    }
}

/// The program's buffers, not yet allocated. `exact_attention`: attention can write f32 and rows of 8 bits only. `gated`: by operation, whether a product makes its gate itself, so that the
/// buffer between the two is not needed.
pub(super) fn plan(
    program: &Program,
    limits: &Limits,
    weight: &dyn Fn(WeightId) -> Forms,
    exact_attention: bool,
    gated: &[bool],
) -> Vec<Activation> {
    let f32 = Forms { f32: true, ..Forms::default() };
    let mut forms = vec![Forms::default(); program.buffers.len()];
    let mut reads = |buffer: BufferId, by: Forms| {
        let known = &mut forms[buffer.0 as usize];
        *known = known.with(by);
    };
    reads(program.logits, f32);
    for (index, op) in program.ops.iter().enumerate() {
        match op {
            Op::Embed { output, .. } | Op::GatherRows { output, .. } => reads(*output, f32),
            Op::RmsNorm { input, residual, .. } => {
                reads(*input, f32);
                residual.iter().for_each(|&residual| reads(residual, f32));
            }
            Op::HeadNorm { qkv, .. } | Op::RopeAppend { qkv, .. } | Op::Attention { qkv, .. } => reads(*qkv, f32),
            Op::Gemm { weight: by, input, output, epilogue } => {
                reads(*input, weight(*by));
                if let Some(residual) = epilogue.residual {
                    reads(residual, f32);
                    reads(*output, f32);
                }
                // Exact products write f32; those of bf16 what is read.
                if !gated[index] && !weight(*by).tiled {
                    reads(*output, f32);
                }
            }
            Op::GatedMul { .. } if index > 0 && gated[index - 1] => {}
            Op::GatedMul { input, .. } => reads(*input, f32),
            Op::Experts { input, router, output, .. } => {
                reads(*input, f32);
                reads(*router, f32);
                reads(*output, f32);
            }
            Op::SoftCap { buffer, .. } => reads(*buffer, f32),
            Op::Sketch { input } => reads(*input, f32),
            Op::AllReduce { input, output, epilogue, .. } => {
                reads(*input, f32);
                reads(*output, f32);
                epilogue.residual.iter().for_each(|&residual| reads(residual, f32));
            }
            Op::AllGather { input, output, .. } => {
                reads(*input, f32);
                reads(*output, f32);
            }
        }
    }
    for op in &program.ops {
        match op {
            Op::GatherRows { input, .. } => forms[input.0 as usize].f32 = true,
            Op::Attention { output, attention, .. } => {
                let forms = &mut forms[output.0 as usize];
                let written = forms.f32 || (forms.q8 && ExactAttention::writes_quants(attention));
                forms.f32 |= exact_attention && (forms.tiled || !written);
            }
            _ => {}
        }
    }
    let specs = program.buffers.iter().zip(forms);
    specs.map(|(spec, forms)| Activation::sized(spec.width, spec.rows, limits, forms)).collect()
}

/// Allocates them, zeroed.
pub(super) fn allocate(device: &Arc<Device>, planned: Vec<Activation>) -> Result<Vec<Activation>, CudaError> {
    planned.into_iter().map(|activation| activation.allocate(device)).collect()
}
