//! The exact families on CUDA: products in int8 and f32, and attention, with the bits of the CPU (`docs/numerics.md`).
//!
//! What is here: how weights are packed for the kernels, which geometry a launch has, and the attention's planner. The kernels
//! are in `kernels/cuda`: `gemm_int8.cuh`, `gemm_f32.cu`, `attention_exact.cuh`. Geometries change the speed, never a bit.

use super::driver::{CudaError, Function, Launch};
pub(crate) use super::rows::q8_pitch;

pub(crate) mod attention;
pub(crate) mod packing;
pub(crate) mod products;
#[cfg(test)]
pub(super) mod tests;

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
