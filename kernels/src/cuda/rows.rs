//! Row-wise kernels (`rows.cu`, `embed.cu`, `norms.cu`, `append.cu`, `experts.cu`): what stands between the products, with the CPU's bits.
//!
//! Functions here make [`Launch`]es for given addresses and a number of rows, the bucket's; how many of them are in use lies
//! at `count` on the device (a word of `StepCounts`). A null address (0) means that a part is not there. All activations
//! begin at multiples of 16 bytes.

use std::sync::Arc;

use super::driver::{CudaError, Device, DevicePtr, Function, Launch};
use crate::program::{Activation, AttentionSpec};

mod append;
mod embed;
mod experts;
mod norm;
#[cfg(test)]
mod tests;

pub(crate) use self::append::{Append, RopeAddresses};
pub(crate) use self::embed::{Embed, EmbedTable};
pub(crate) use self::experts::{ExpertRows, Gather, Place, Route};
pub(crate) use self::norm::Norm;

/// Values per scale of rows of 8-bit integers.
const BLOCK: u32 = 32;
/// Threads of elementwise blocks, four columns each.
const THREADS: u32 = 256;

/// How a writer leaves rows of activations (`RowForm` in `common.cuh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RowForm {
    /// `[rows][width]` f32.
    F32,
    /// bf16 in swizzled panels of 64 columns, filled up with zeros.
    Bf16Tiled,
    /// `[rows][pitch]` i8 and `[rows][pitch / 32]` f32 scales ([`q8_pitch`]).
    Q8,
}

/// Byte of element (row, col) of activations in bf16 (`tiled_offset` in `common.cuh`).
#[cfg(test)]
pub(crate) const fn tiled_offset(row: usize, col: usize, row_capacity: usize) -> usize {
    (col / 64) * row_capacity * 128 + row * 128 + (((col / 8) % 8) ^ (row % 8)) * 16 + (col % 8) * 2
}

/// Values from row to row of 8-bit activations.
pub(crate) const fn q8_pitch(width: usize) -> usize {
    width.next_multiple_of(256)
}

/// `RowTarget` in `row_store.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RowTarget {
    data: DevicePtr,
    scales: DevicePtr,
    row_capacity: u32,
    pitch: u32,
}

/// Where rows of activations go, and in which form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowOutput {
    form: RowForm,
    target: RowTarget,
}

impl RowOutput {
    /// `[rows][width]` f32.
    pub fn f32(data: DevicePtr, width: usize) -> Self {
        Self { form: RowForm::F32, target: RowTarget { data, pitch: width as u32, ..RowTarget::default() } }
    }

    /// Panels of bf16 with so many rows.
    pub fn bf16_tiled(data: DevicePtr, row_capacity: usize) -> Self {
        let target = RowTarget { data, row_capacity: row_capacity as u32, ..RowTarget::default() };
        Self { form: RowForm::Bf16Tiled, target }
    }

    /// 8-bit integers of rows of `width` values, a multiple of 32, and their scales.
    pub fn q8(data: DevicePtr, scales: DevicePtr, width: usize) -> Self {
        debug_assert!((width as u32).is_multiple_of(BLOCK), "a block has 32 values");
        let pitch = q8_pitch(width) as u32;
        Self { form: RowForm::Q8, target: RowTarget { data, scales, row_capacity: 0, pitch } }
    }

    /// Columns that are written of rows of `width`.
    fn written(&self, width: usize) -> u32 {
        (if self.form == RowForm::Bf16Tiled { width.next_multiple_of(64) } else { width }) as u32
    }
}

/// Finds a function by module and name.
type Load<'a> = &'a dyn Fn(&str, &str) -> Result<Function, CudaError>;

/// One kernel per form.
#[derive(Clone, Copy, Debug)]
struct ByForm([Function; 3]);

impl ByForm {
    /// `{prefix}f32{suffix}` and so on.
    fn load(from: Load<'_>, module: &str, prefix: &str, suffix: &str) -> Result<Self, CudaError> {
        let load = |form: &str| from(module, &format!("{prefix}{form}{suffix}"));
        Ok(Self([load("f32")?, load("bf16")?, load("q8")?]))
    }

    fn of(&self, form: RowForm) -> &Function {
        &self.0[form as usize]
    }
}

/// `GatedParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct GatedParams {
    input: DevicePtr,
    output: RowTarget,
    count: DevicePtr,
    width: u32,
    spare: u32,
}

/// `SoftCapParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SoftCapParams {
    values: DevicePtr,
    count: DevicePtr,
    width: u32,
    cap: f32,
}

/// `SketchParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SketchParams {
    input: DevicePtr,
    keys: DevicePtr,
    positions: DevicePtr,
    output: DevicePtr,
    count: DevicePtr,
    width: u32,
    spare: u32,
}

/// `HeadNormParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct HeadNormParams {
    qkv: DevicePtr,
    query_weight: DevicePtr,
    key_weight: DevicePtr,
    count: DevicePtr,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    eps: f32,
}

/// The kernels, loaded.
#[derive(Clone, Debug)]
pub(crate) struct RowKernels {
    multiprocessors: u32,
    embed: embed::Functions,
    /// SiLU, GELU.
    gated: [ByForm; 2],
    soft_cap: Function,
    sketch: Function,
    head_norm: Function,
    /// One and four pieces of a row per thread.
    norm: [ByForm; 2],
    append: append::Functions,
    experts: experts::Functions,
}

impl RowKernels {
    /// Of this device.
    pub fn load(device: &Arc<Device>) -> Result<Self, CudaError> {
        let kernels = Self::with(device.multiprocessors(), &|module, name| device.function(module, name))?;
        kernels.allow_shared()?;
        Ok(kernels)
    }

    /// Of whatever finds functions by module and name.
    fn with(multiprocessors: u32, load: Load<'_>) -> Result<Self, CudaError> {
        Ok(Self {
            multiprocessors,
            embed: embed::Functions::load(load)?,
            gated: [ByForm::load(load, "rows", "gated_silu_", "")?, ByForm::load(load, "rows", "gated_gelu_", "")?],
            soft_cap: load("rows", "soft_cap")?,
            sketch: load("rows", "sketch")?,
            head_norm: load("append", "head_norm")?,
            norm: [ByForm::load(load, "norms", "norm_", "_1")?, ByForm::load(load, "norms", "norm_", "_4")?],
            append: append::Functions::load(load)?,
            experts: experts::Functions::load(load)?,
        })
    }

    /// `input: [rows][2 × width]` f32, gate then up.
    pub fn gated_mul(
        &self,
        rows: usize,
        activation: Activation,
        input: DevicePtr,
        width: usize,
        output: &RowOutput,
        count: DevicePtr,
    ) -> Launch {
        let kernels = match activation {
            Activation::Silu => &self.gated[0],
            Activation::GeluTanh => &self.gated[1],
        };
        let params = GatedParams { input, output: output.target, count, width: width as u32, spare: 0 };
        let grid = columns(rows, output.written(width));
        Launch::new(kernels.of(output.form), grid, THREADS, 0, params)
    }

    /// `values: [rows][width]` f32, in place.
    pub fn soft_cap(&self, rows: usize, values: DevicePtr, width: usize, cap: f32, count: DevicePtr) -> Launch {
        let params = SoftCapParams { values, count, width: width as u32, cap };
        Launch::new(&self.soft_cap, columns(rows, width as u32), THREADS, 0, params)
    }

    /// `input: [rows][width]` f32, `keys`: `[rows]` u64 of the signs, `output: [rows][8]` f16.
    pub fn sketch(
        &self,
        rows: usize,
        input: DevicePtr,
        width: usize,
        [keys, positions]: [DevicePtr; 2],
        output: DevicePtr,
        count: DevicePtr,
    ) -> Launch {
        let params = SketchParams { input, keys, positions, output, count, width: width as u32, spare: 0 };
        Launch::new(&self.sketch, [rows as u32, 1, 1], 64 * crate::step::SKETCH_VALUES as u32, 0, params)
    }

    /// Norms of query and key heads alone; [`RowKernels::append`] does the same on its way.
    pub fn head_norm(
        &self,
        rows: usize,
        spec: &AttentionSpec,
        qkv: DevicePtr,
        [query_weight, key_weight]: [DevicePtr; 2],
        eps: f32,
        count: DevicePtr,
    ) -> Launch {
        let params = HeadNormParams {
            qkv,
            query_weight,
            key_weight,
            count,
            query_heads: spec.query_heads as u32,
            kv_heads: spec.kv_heads as u32,
            head_dim: spec.head_dim as u32,
            eps,
        };
        let heads = (spec.query_heads + spec.kv_heads) as u32;
        let grid = [rows as u32, heads.div_ceil(append::WARPS), 1];
        Launch::new(&self.head_norm, grid, 32 * append::WARPS, 0, params)
    }
}

/// A grid of rows × stretches of columns.
fn columns(rows: usize, width: u32) -> [u32; 3] {
    [rows as u32, width.div_ceil(4 * THREADS), 1]
}
