//! A mixture of experts on the CPU: every row finds its experts, every expert its rows.
//!
//! Shared by the plain and the packed operations, which do the products. A row's result does not depend on the batch: its
//! experts and their weights follow from its router logits alone, each expert's product is a row's own, and the products
//! are added in ascending order of the experts, from 0 (numerics, "Experts"). Adding 0 changes no bit of such a sum: so
//! devices that hold different experts can leave a plane per choice, 0 where they hold none.

use polylink_protocol::exact_math::exp;

use crate::memory::Aligned;
use crate::operations::{Operations, Poisoned};
use crate::program::ExpertsSpec;
use crate::sampler::fold_lanes;

/// Memory for the largest step; reused by all layers.
pub(crate) struct ExpertState {
    /// `[rows][top_k]`: each row's experts, ascending.
    chosen: Vec<u32>,
    /// What each product is multiplied with.
    weights: Vec<f32>,
    /// Places in `chosen` of one expert's rows.
    members: Vec<u32>,
    /// Gathered inputs, gate and up, gated, outputs.
    floats: Aligned<f32>,
}

impl ExpertState {
    /// For `choices` = rows × top_k, and `floats` of scratch.
    pub fn new(choices: usize, floats: Aligned<f32>) -> Self {
        let (chosen, members) = (Vec::with_capacity(choices), Vec::with_capacity(choices));
        Self { chosen, weights: Vec::with_capacity(choices), members, floats }
    }

    /// f32 of scratch that `rows` rows need.
    pub const fn floats(rows: usize, hidden: usize, mlp: usize) -> usize {
        rows * (2 * hidden + 3 * mlp)
    }

    /// Chooses every row's experts by its router logits, `[rows][experts]`.
    pub fn route(&mut self, spec: &ExpertsSpec, logits: &[f32]) {
        let choices = logits.len() / spec.experts * spec.top_k;
        self.chosen.resize(choices, 0);
        self.weights.resize(choices, 0.0);
        let chosen = self.chosen.chunks_exact_mut(spec.top_k).zip(self.weights.chunks_exact_mut(spec.top_k));
        for (logits, (chosen, weights)) in logits.chunks_exact(spec.experts).zip(chosen) {
            route_row(spec.normalise, logits, chosen, weights);
        }
    }

    /// Adds the products of the experts held here, `held` from `spec.first` on, as [`ExpertsSpec::planes`] says.
    pub fn run<'a, O: Operations>(
        &mut self,
        operations: &mut O,
        spec: &ExpertsSpec,
        held: impl Iterator<Item = [&'a O::Matrix; 2]>,
        hidden: usize,
        (input, output): (&[f32], &mut [f32]),
    ) -> Result<(), Poisoned>
    where
        O::Matrix: 'a,
    {
        let Self { chosen, weights, members, floats } = self;
        output.fill(0.0);
        for (number, [gate_up, down]) in held.enumerate() {
            let expert = (spec.first + number) as u32;
            members.clear();
            members.extend((0..chosen.len() as u32).filter(|&place| chosen[place as usize] == expert));
            if members.is_empty() {
                continue;
            }
            let (rows, mlp) = (members.len(), operations.shape(down).inputs);
            let (gathered, rest) = floats.split_at_mut(rows * hidden);
            let (gate_and_up, rest) = rest.split_at_mut(rows * 2 * mlp);
            let (gated, rest) = rest.split_at_mut(rows * mlp);
            let product = &mut rest[..rows * hidden];
            for (to, &place) in gathered.chunks_exact_mut(hidden).zip(members.iter()) {
                to.copy_from_slice(&input[place as usize / spec.top_k * hidden..][..hidden]);
            }
            operations.gemm(gate_up, gathered, gate_and_up, None, false)?;
            operations.gated_gemm(spec.activation, down, gate_and_up, gated, product, None, false)?;
            for (product, &place) in product.chunks_exact(hidden).zip(members.iter()) {
                let (place, weight) = (place as usize, weights[place as usize]);
                let plane = if spec.planes() == 1 { place / spec.top_k } else { place };
                let sum = &mut output[plane * hidden..][..hidden];
                sum.iter_mut().zip(product).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        Ok(())
    }
}

/// One row: the `chosen.len()` experts of the largest logits, ascending, and the weights of their products.
pub(crate) fn route_row(normalise: bool, logits: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
    let mut count = 0;
    for (expert, &logit) in logits.iter().enumerate() {
        // Largest first; of equal ones the lower number, which is there already.
        let before = chosen[..count].iter().position(|&other| logit > logits[other as usize]);
        let place = before.unwrap_or(count);
        if place < chosen.len() {
            count = (count + 1).min(chosen.len());
            chosen[place..count].rotate_right(1);
            chosen[place] = expert as u32;
        }
    }
    let max = logits[chosen[0] as usize];
    chosen.sort_unstable();
    for (weight, &expert) in weights.iter_mut().zip(chosen.iter()) {
        *weight = exp(logits[expert as usize] - max);
    }
    let total = if normalise {
        weights.iter().fold(0.0, |sum, weight| sum + weight)
    } else {
        let mut lanes = [0f32; 64];
        for (expert, logit) in logits.iter().enumerate() {
            lanes[expert % 64] += exp(logit - max);
        }
        fold_lanes(&mut lanes)
    };
    weights.iter_mut().for_each(|weight| *weight /= total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_choose_the_largest_logits_and_ties_go_to_the_lowest_number() {
        let choose = |logits: &[f32], top_k: usize, normalise| {
            let (mut chosen, mut weights) = (vec![9; top_k], vec![9.0; top_k]);
            route_row(normalise, logits, &mut chosen, &mut weights);
            (chosen, weights)
        };
        assert_eq!(choose(&[0.0, 3.0, 1.0, 2.0], 2, true).0, [1, 3]);
        assert_eq!(choose(&[1.0, 1.0, 1.0, 1.0], 3, true), (vec![0, 1, 2], vec![1.0 / 3.0; 3]));
        assert_eq!(choose(&[1.0, 2.0, 2.0, 1.0], 3, true).0, [0, 1, 2]);
        assert_eq!(choose(&[-5.0, 7.0], 2, true).0, [0, 1]);
        let (_, weights) = choose(&[0.0, 0.0, 0.0, 0.0], 1, false);
        assert_eq!(weights, [0.25], "a probability among all experts");
        // Logits that are no numbers still choose distinct experts; what they compute is found at the logits.
        assert_eq!(choose(&[f32::NAN, 1.0, f32::NAN, 2.0], 2, true).0, [0, 3]);
    }
}
