//! Products of bf16 on tensor cores, their weights in bf16 or e4m3: `output[t][n] = residual[t][n] + (Σ_k input[t][k] × weight[n][k] + bias[n])`.
//!
//! One chain per output, k ascending, for any number of rows: on Hopper of `wgmma` m64nNk16 (weights are the 64), elsewhere
//! of `mma.sync` m16n8k16. Nothing chosen here changes a bit; it only says which block takes which outputs and tokens:
//! * *stream*, few tokens: every multiprocessor takes its share of the outputs, in units of 8, for all tokens, so that all
//!   of them read weights to the end;
//! * *tiles*: up to 256 tokens × 128 outputs per turn; a group of token tiles is walked before the next outputs.
//!
//! Layouts (`common.cuh`): the input in panels of 64 columns, the weight in tiles of 64 × 64, both swizzled and padded with
//! zeros; numbers of e4m3 as the products' registers take them (`gemm_fp8.cuh`). These become bf16 where they are used: the
//! bits are those of the weight that bf16 makes of the same values. Behind a gate the weight's rows are interleaved: 8 gates, their 8 ups, and so on, so that a thread meets a gate with
//! its up; their biases alike.

use std::sync::Arc;

use super::driver::{CudaError, Device, DevicePtr, Function, Launch};
use crate::program::Activation;

mod geometry;
#[cfg(test)]
mod tests;

pub(crate) use self::geometry::{Geometry, Machine, Tuning};

/// Outputs and inputs of a tile of weights.
pub(crate) const TILE: usize = 64;

/// What a weight is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    Bf16,
    /// E4m3, a scale per output and 128 inputs; inputs are a multiple of 128.
    Fp8,
}

impl Numbers {
    /// Bytes of 64 inputs of one output.
    pub const fn row_bytes(self) -> usize {
        match self {
            Numbers::Bf16 => 2 * TILE,
            Numbers::Fp8 => TILE + 2,
        }
    }

    /// k tiles that lie together.
    pub const fn depth(self) -> usize {
        match self {
            Numbers::Bf16 => 1,
            Numbers::Fp8 => 2,
        }
    }
}

/// A weight as the kernels see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GemmShape {
    /// Rows of the weight; behind a gate: gates and ups together.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Whether its rows are gates and ups, interleaved.
    pub gated: bool,
    /// In which form.
    pub numbers: Numbers,
}

impl GemmShape {
    /// Rows that are packed, with the padding: whole tiles; behind a gate so many that the result fills whole panels.
    pub const fn padded_outputs(&self) -> usize {
        self.outputs.next_multiple_of(if self.gated { 2 * TILE } else { TILE })
    }

    /// Tiles along the inputs.
    pub const fn k_tiles(&self) -> usize {
        self.inputs.div_ceil(TILE)
    }

    /// Bytes of the packed weight.
    pub const fn packed_bytes(&self) -> usize {
        self.padded_outputs() * self.k_tiles() * self.numbers.row_bytes()
    }
}

/// How many rows there are, at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowsOf {
    /// The step's rows.
    Step,
    /// Those whose logits are wanted.
    Wanted,
}

/// Where the result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GemmOutput {
    /// `[rows][pitch]` f32, at a multiple of 16 bytes.
    F32 {
        /// Address.
        to: DevicePtr,
        /// Floats between two rows; that of the residual, too.
        pitch: usize,
    },
    /// Panels of bf16, padding columns included; no residual.
    Tiled {
        /// Address.
        to: DevicePtr,
        /// Rows that a panel has.
        capacity: usize,
    },
}

/// One product of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmCall {
    /// The weight's.
    pub shape: GemmShape,
    /// What the gate goes through, of a gated weight.
    pub activation: Option<Activation>,
    /// Tiles, [`GemmShape::packed_bytes`].
    pub weights: DevicePtr,
    /// Panels of bf16.
    pub input: DevicePtr,
    /// Rows that a panel of the input has: a multiple of 256.
    pub input_capacity: usize,
    /// `[outputs]` f32.
    pub bias: Option<DevicePtr>,
    /// Of the output's shape; may be the output itself.
    pub residual: Option<DevicePtr>,
    /// Result.
    pub output: GemmOutput,
    /// The step's counts in device memory.
    pub counts: DevicePtr,
    /// Which of them.
    pub rows: RowsOf,
    /// Most rows of the bucket.
    pub rows_max: usize,
}

/// As `GemmParams` in `gemm_params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct GemmParams {
    weights: DevicePtr,
    input: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    output: DevicePtr,
    counts: DevicePtr,
    wanted: u32,
    input_capacity: u32,
    output_capacity: u32,
    output_pitch: u32,
    outputs: u32,
    padded_outputs: u32,
    k_tiles: u32,
    form: u32,
    gate: u32,
    stream: u32,
    units: u32,
    unit_rows: u32,
    passes: u32,
    pass_rows: u32,
    stage_k_tiles: u32,
    stages: u32,
    cluster: u32,
    group: u32,
    grouped: u32,
}

/// The kernels of a device.
#[derive(Clone, Debug)]
pub(crate) struct GemmKernels {
    /// Of weights in which form, tokens, warpgroups, function.
    functions: Vec<(Numbers, u32, u32, Function)>,
    machine: Machine,
    tuning: Tuning,
}

impl GemmKernels {
    /// Loads them, `wgmma` where the device has it. [`Tuning::from_environment`] overrides choices, for measurements.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Self::with_tuning(device, Tuning::from_environment())
    }

    /// The same, with these choices.
    pub fn with_tuning(device: &Arc<Device>, tuning: Tuning) -> Result<Self, CudaError> {
        let wgmma = device.hopper() && !tuning.plain;
        let machine =
            Machine { multiprocessors: device.multiprocessors(), shared_bytes: device.shared_bytes_max(), wgmma };
        let mut functions = Vec::new();
        for numbers in [Numbers::Bf16, Numbers::Fp8] {
            for &(tokens, groups) in geometry::variants(numbers, wgmma) {
                let (module, name) = Self::names(numbers, wgmma, tokens, groups);
                let function = device.function(module, &name)?;
                function.allow_shared(machine.dynamic_shared(numbers, tokens))?;
                functions.push((numbers, tokens, groups, function));
            }
        }
        Ok(Self { functions, machine, tuning })
    }

    /// Where the kernel of a variant is.
    fn names(numbers: Numbers, wgmma: bool, tokens: u32, groups: u32) -> (&'static str, String) {
        match (numbers, wgmma) {
            (Numbers::Bf16, true) => ("gemm_bf16_sm90a", format!("gemm_n{tokens}_w{groups}")),
            (Numbers::Bf16, false) => ("gemm_bf16", format!("gemm_n{tokens}")),
            (Numbers::Fp8, true) => ("gemm_fp8_sm90a", format!("gemm_fp8_n{tokens}_w{groups}")),
            (Numbers::Fp8, false) => ("gemm_fp8", format!("gemm_fp8_n{tokens}")),
        }
    }

    /// What a call would be launched with.
    pub fn geometry(&self, shape: GemmShape, rows_max: usize) -> Geometry {
        Geometry::choose(shape, rows_max, self.machine, &self.tuning)
    }

    /// The launch of a call.
    pub fn launch(&self, call: &GemmCall) -> Launch {
        self.with_geometry(call, self.geometry(call.shape, call.rows_max), None)
    }

    /// One launch for `groups` products of equal shape, as of a mixture of experts. Group z takes `counts[z]`: its rows are
    /// `first_row … first_row + rows` of input and output (a multiple of 8; rows may be 0, and at most `call.rows_max`), its
    /// weight is number `matrix` of those that lie behind each other from `call.weights` on. `rows_all`: rows of all groups
    /// together, roughly. Neither bias nor residual.
    pub fn launch_grouped(&self, call: &GemmCall, groups: usize, rows_all: usize) -> Launch {
        debug_assert!(call.bias.is_none() && call.residual.is_none());
        let machine = self.machine.shared_by(groups);
        let typical = rows_all.div_ceil(groups.max(1)).min(call.rows_max);
        let geometry = Geometry::choose_for(call.shape, call.rows_max, typical, machine, &self.tuning);
        self.with_geometry(call, geometry, Some(groups))
    }

    fn with_geometry(&self, call: &GemmCall, geometry: Geometry, groups: Option<usize>) -> Launch {
        let function = self
            .functions
            .iter()
            .find(|(numbers, tokens, groups, _)| {
                (*numbers, *tokens, *groups) == (call.shape.numbers, geometry.tokens, geometry.groups)
            })
            .map(|(.., function)| function)
            .expect("the geometry names a variant that was loaded");
        let [x, y, _] = geometry.grid;
        let params = GemmParams::new(call, &geometry, groups.is_some());
        Launch::new(function, [x, y, groups.unwrap_or(1) as u32], geometry.threads, geometry.shared, params)
            .cluster(geometry.cluster)
    }
}

impl GemmParams {
    fn new(call: &GemmCall, geometry: &Geometry, grouped: bool) -> Self {
        let (output, form, pitch, capacity) = match call.output {
            GemmOutput::F32 { to, pitch } => (to, 0, pitch, 0),
            GemmOutput::Tiled { to, capacity } => (to, 1, 0, capacity),
        };
        debug_assert!(form == 0 || call.residual.is_none(), "a residual has the shape of rows of f32");
        debug_assert!(!call.shape.gated || call.shape.outputs.is_multiple_of(16), "gates come in eights");
        debug_assert_eq!(call.shape.gated, call.activation.is_some());
        Self {
            weights: call.weights,
            input: call.input,
            bias: call.bias.unwrap_or(0),
            residual: call.residual.unwrap_or(0),
            output,
            counts: call.counts,
            wanted: u32::from(call.rows == RowsOf::Wanted),
            input_capacity: call.input_capacity as u32,
            output_capacity: capacity as u32,
            output_pitch: pitch as u32,
            outputs: call.shape.outputs as u32,
            padded_outputs: call.shape.padded_outputs() as u32,
            k_tiles: call.shape.k_tiles() as u32,
            form,
            gate: match call.activation {
                None => 0,
                Some(Activation::Silu) => 1,
                Some(Activation::GeluTanh) => 2,
            },
            stream: u32::from(geometry.stream),
            units: geometry.units,
            unit_rows: geometry.unit_rows,
            passes: geometry.passes,
            pass_rows: geometry.pass_rows,
            stage_k_tiles: geometry.stage_k_tiles,
            stages: geometry.stages,
            cluster: geometry.cluster,
            group: geometry.group,
            grouped: u32::from(grouped),
        }
    }
}
