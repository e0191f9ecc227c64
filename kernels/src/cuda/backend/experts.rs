//! What `build` does with mixtures of experts.

use super::CudaBackend;
use crate::backend::{BackendError, Limits, WeightId};
use crate::cuda::mixture::{Mixture, MixtureSizes};
use crate::cuda::weights::{Packed, Weight};
use crate::program::{ExpertWeights, Op, Program};

impl CudaBackend {
    /// What mixtures of experts need.
    pub(super) fn mixture_sizes(&self, program: &Program, limits: &Limits) -> Result<MixtureSizes, BackendError> {
        let mut sizes = MixtureSizes::default();
        for op in &program.ops {
            let Op::Experts { spec, weights, .. } = op else { continue };
            let Some(ExpertWeights { gate_up, down }) = weights.first() else { continue };
            let of = |id: &WeightId| &self.weights[id.0 as usize];
            if let (Weight::Matrix(gate_up), Weight::Matrix(down)) = (of(gate_up), of(down)) {
                let widths = [gate_up.shape.inputs, down.shape.inputs];
                sizes = sizes.with(spec, weights.len(), widths, Mixture::forms(gate_up, down), limits.rows)?;
            }
        }
        Ok(sizes)
    }

    /// Puts the experts of each layer together.
    pub(super) fn mixtures(&mut self, program: &Program) -> Result<Vec<Option<Mixture>>, BackendError> {
        let mut mixtures = Vec::with_capacity(program.ops.len());
        for op in &program.ops {
            let Op::Experts { weights, .. } = op else {
                mixtures.push(None);
                continue;
            };
            let mut experts = Vec::with_capacity(weights.len());
            for ExpertWeights { gate_up, down } in weights {
                let mut take = |id: &WeightId| match std::mem::replace(&mut self.weights[id.0 as usize], Weight::Moved)
                {
                    Weight::Matrix(matrix) => Ok(matrix),
                    _ => Err(BackendError::Unavailable("experts that share weights are not made on a GPU".into())),
                };
                let (mut gate_up, down) = (take(gate_up)?, take(down)?);
                if let Packed::Tiles(tiles) = &mut gate_up.packed
                    && tiles.can_interleave()
                {
                    tiles.interleave(&self.device)?;
                }
                experts.push([gate_up, down]);
            }
            mixtures.push(Some(Mixture::new(&self.device, experts)?));
        }
        Ok(mixtures)
    }
}
