//! Single operations, for `cargo bench`: the same code that a step runs, without a model around it.

use crate::backend::{BackendError, Dtype, KRanges, Limits, Part, Shard, TensorView, WeightForm};
use crate::cpu::packed::Packed;
use crate::cpu::{CpuOperations, CpuOptions};
use crate::operations::{Operations, Reserve};
use crate::weights;

/// A matrix product `[rows, inputs] × [outputs, inputs]ᵀ`.
pub struct Product {
    operations: CpuOperations,
    matrix: Packed,
    input: Vec<f32>,
    output: Vec<f32>,
}

impl Product {
    /// Weights and inputs are made up.
    ///
    /// # Errors
    /// [`BackendError`] for a form that the sizes do not allow, or instructions that the machine lacks.
    pub fn new(
        options: CpuOptions,
        form: WeightForm,
        (rows, outputs, inputs): (usize, usize, usize),
    ) -> Result<Self, BackendError> {
        let mut operations = CpuOperations::new(options)?;
        let mut state = 1u32;
        let mut values = |count: usize| -> Vec<f32> {
            std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .take(count)
            .collect()
        };
        let bits = |value: &f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
        let data: Vec<u8> = values(outputs * inputs).iter().flat_map(bits).collect();
        let shape = [outputs, inputs];
        let tensor = TensorView { name: "weight", shape: &shape, dtype: Dtype::Bf16, data: &data };
        let part = Part { tensor, shard: Shard::whole(&shape) };
        let matrix = operations.pack(weights::matrix(&[part], KRanges::whole(inputs), form)?);
        let limits = Limits { rows, wanted_rows: 1, slots: 1, kv_blocks: 1, positions: 1 };
        operations.reserve(Reserve { limits, converted_inputs: inputs });
        Ok(Self { operations, matrix, input: values(rows * inputs), output: vec![0.0; rows * outputs] })
    }

    /// Computes it once, as a step would.
    ///
    /// # Errors
    /// [`BackendError::Poisoned`] after a panic in a worker.
    pub fn run(&mut self) -> Result<(), BackendError> {
        let Self { operations, matrix, input, output } = self;
        operations.gemm(matrix, input, output, None, false).map_err(|_| BackendError::Poisoned)
    }
}
