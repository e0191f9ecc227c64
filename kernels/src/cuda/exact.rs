//! The exact families on CUDA: products in int8 and f32, and attention, with the bits of the CPU (`docs/numerics.md`).
//!
//! What is here: how weights are packed for the kernels, which geometry a launch has, and the attention's planner. The kernels
//! are in `kernels/cuda`: `gemm_int8.cuh`, `gemm_f32.cu`, `attention_exact.cuh`, `quantise_rows.cu`. Geometries change the
//! speed, never a bit.

use std::sync::Arc;

use super::driver::{CudaError, Device, DevicePtr, Function, Launch};
pub(crate) use super::rows::q8_pitch;

pub(crate) mod attention;
pub(crate) mod packing;
pub(crate) mod products;
#[cfg(test)]
mod tests;

/// Why a weight cannot be computed with here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExactError {
    /// This form or shard has no kernel.
    #[error("{0}")]
    Unsupported(String),
    /// The device refuses.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A kernel with its geometry and parameters, before the device has looked it up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<P> {
    pub module: &'static str,
    pub name: &'static str,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub params: P,
}

impl<P: Copy> Call<P> {
    /// Bound to the function of that name.
    pub fn launch(&self, function: &Function) -> Launch {
        Launch::new(function, self.grid, self.block, self.shared, self.params)
    }
}

/// Parameters of `quantise_rows`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct QuantiseParams {
    input: DevicePtr,
    quants: DevicePtr,
    scales: DevicePtr,
    counts: DevicePtr,
    rows: u32,
    wanted: u32,
    width: u32,
    spare: u32,
}

/// `input: [rows][width]` f32 to `quants: [rows][q8_pitch(width)]` i8 and `scales: [rows][q8_pitch(width) / 32]` f32; the rows in
/// use (`wanted`: the wanted ones) are those of `counts`. `width` is a multiple of 32.
fn quantise_call(
    [input, quants, scales, counts]: [DevicePtr; 4],
    rows: u32,
    wanted: bool,
    width: u32,
) -> Call<QuantiseParams> {
    let params = QuantiseParams { input, quants, scales, counts, rows, wanted: wanted.into(), width, spare: 0 };
    let grid = [width.div_ceil(1024), rows, 1];
    Call { module: "quantise_rows", name: "quantise_rows", grid, block: 256, shared: 0, params }
}

/// Rows of f32 to rows of 8-bit activations.
#[derive(Clone, Debug)]
pub(crate) struct Quantise {
    function: Function,
}

impl Quantise {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self { function: device.function("quantise_rows", "quantise_rows")? })
    }

    /// Addresses of input, integers, scales and counts; the widths as of [`q8_pitch`].
    pub fn launch(&self, addresses: [DevicePtr; 4], rows: u32, wanted: bool, width: u32) -> Launch {
        quantise_call(addresses, rows, wanted, width).launch(&self.function)
    }
}
