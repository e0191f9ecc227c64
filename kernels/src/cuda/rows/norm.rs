//! Gathered, summed and normalised rows: one launch for whatever stands between two products (`norms.cu`).

use super::super::driver::{CudaError, DevicePtr, Launch};
use super::{RowKernels, RowOutput, RowTarget};

/// Widest row: 1024 threads with four pieces of four values each.
const NORM_WIDTH_MAX: usize = 16_384;

/// What is done to a row, in this order; parts that are not there (addresses of 0, `None`) are left out.
///
/// ```text
/// x = input[gather[row] or row]  or  Σ over the row's choices, ascending from 0, of share × input[place]
/// x = norm(x) × first weight                     a norm after a block
/// x = residual[row] + x;  stream[row] = x
/// output[row] = norm(x) × weight, or x
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Norm {
    /// `[..][width]` f32.
    pub input: DevicePtr,
    /// `[rows]`: the input's row of each row.
    pub gather: DevicePtr,
    /// A mixture of experts: `[rows][top_k]` rows of the input and their shares, and `top_k`.
    pub experts: Option<(DevicePtr, DevicePtr, usize)>,
    /// Weight and eps of the first norm.
    pub first: Option<(DevicePtr, f32)>,
    /// `[rows][width]` f32; may be the stream.
    pub residual: DevicePtr,
    /// `[rows][width]` f32.
    pub stream: DevicePtr,
    /// Weight and eps of the norm of what is in the stream then.
    pub second: Option<(DevicePtr, f32)>,
    pub output: Option<RowOutput>,
    /// Rows in use.
    pub count: DevicePtr,
    pub width: usize,
}

/// `NormParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct NormParams {
    input: DevicePtr,
    gather: DevicePtr,
    places: DevicePtr,
    shares: DevicePtr,
    first_weight: DevicePtr,
    residual: DevicePtr,
    stream: DevicePtr,
    weight: DevicePtr,
    output: RowTarget,
    count: DevicePtr,
    width: u32,
    top_k: u32,
    first_eps: f32,
    eps: f32,
}

impl RowKernels {
    /// Lets blocks have the shared memory that wide rows and many experts need.
    pub(super) fn allow_shared(&self) -> Result<(), CudaError> {
        self.norm[1].0.iter().try_for_each(|function| function.allow_shared(4 * NORM_WIDTH_MAX as u32))?;
        self.experts.allow_shared()
    }

    /// So many rows.
    pub fn norm(&self, rows: usize, norm: &Norm) -> Launch {
        let Norm { input, gather, experts, first, residual, stream, second, output, count, width } = *norm;
        assert!((1..=NORM_WIDTH_MAX).contains(&width), "the backend refuses wider models");
        let output = output.unwrap_or(RowOutput::f32(0, width));
        let (places, shares, top_k) = experts.unwrap_or((0, 0, 0));
        let (first_weight, first_eps) = first.unwrap_or((0, 0.0));
        let (weight, eps) = second.unwrap_or((0, 0.0));
        let params = NormParams {
            input,
            gather,
            places,
            shares,
            first_weight,
            residual,
            stream,
            weight,
            output: output.target,
            count,
            width: width as u32,
            top_k: top_k as u32,
            first_eps,
            eps,
        };
        // Few rows: as many threads to a row as it has pieces, as the latency is what it takes. Many: bandwidth is.
        let pieces = output.written(width).div_ceil(4);
        let few = rows <= 2 * self.multiprocessors as usize && pieces <= 1024;
        let (kernels, each) = if few { (&self.norm[0], 1) } else { (&self.norm[1], 4) };
        let threads = pieces.div_ceil(each).next_multiple_of(64);
        let shared = 4 * width.next_multiple_of(4) as u32;
        Launch::new(kernels.of(output.form), [rows as u32, 1, 1], threads, shared, params)
    }
}
