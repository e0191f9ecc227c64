//! Attention of a program: one of two families, its memory, and the plan of each step.
//!
//! A cache of bf16 or e4m3 behind products of bf16 is read by tensor cores (`attention.rs`); every other one by the exact kernels
//! (`exact/attention.rs`), whose bits are the CPU's.

use std::ops::Range;
use std::sync::Arc;

use super::activations::Activation;
use super::attention::{
    AttentionKernels, AttentionLayer, AttentionScratch, AttentionShape, CacheLayer, HeadNorms, OutputForm, PlanScratch,
    PlanSequence, RopeTables, RowInputs, Unsupported,
};
use super::driver::{Device, DeviceBuffer, DevicePtr, Launch};
use super::exact::attention::{
    AttentionIo, AttentionItem, AttentionMerge, AttentionPlan, ExactAttention, PlannedSequence,
};
use super::inputs::{Bucket, Counts, StepInputs};
use super::rows::{Append, RowForm, RowKernels};
use crate::backend::{BackendError, KvDtype, Limits};
use crate::program::{AttentionSpec, Op, Program};
use crate::step::ForwardStep;

/// Rows of splits that are computed beside each other, of the tensor cores' attention.
const PARTIAL_ROWS: u32 = 16_384;

/// Words of `StepCounts`.
const COUNT_WORDS: usize = size_of::<Counts>() / 4;
const ITEM_WORDS: usize = size_of::<AttentionItem>() / 4;
const MERGE_WORDS: usize = size_of::<AttentionMerge>() / 4;

/// The attention of a program.
pub(super) struct Attend {
    family: Family,
}

enum Family {
    Tensor(Box<Tensor>),
    Exact(Box<Exact>),
    /// A program without attention.
    Nothing,
}

struct Tensor {
    kernels: AttentionKernels,
    /// `[rows][query_heads × head_dim]` bf16; none where the cache is of e4m3.
    query: Option<DeviceBuffer>,
    values: DeviceBuffer,
    folds: DeviceBuffer,
    arrivals: DeviceBuffer,
    scratch: PlanScratch,
}

struct Exact {
    kernels: ExactAttention,
    /// One per window.
    plans: Vec<(Option<usize>, AttentionPlan)>,
    partial: DeviceBuffer,
    items: Vec<AttentionItem>,
    merges: Vec<AttentionMerge>,
    sequences: Vec<PlannedSequence>,
}

/// Words of a plan of the exact family: its counts, its items, its merges.
#[derive(Clone, Copy)]
struct ExactWords {
    items: usize,
    merges: usize,
}

impl ExactWords {
    fn of(plan: &AttentionPlan, rows: usize, sequences: usize) -> Self {
        let merges = plan.merges_max() * MERGE_WORDS;
        Self { items: plan.items_max(rows, sequences) * ITEM_WORDS, merges }
    }

    fn all(self) -> usize {
        COUNT_WORDS + self.items + self.merges
    }
}

fn shape(spec: &AttentionSpec) -> AttentionShape {
    AttentionShape {
        query_heads: spec.query_heads as u32,
        kv_heads: spec.kv_heads as u32,
        head_dim: spec.head_dim as u32,
    }
}

/// The attention operations of a program.
fn specs(program: &Program) -> impl Iterator<Item = &AttentionSpec> {
    program.ops.iter().filter_map(|op| match op {
        Op::Attention { attention, .. } => Some(attention),
        _ => None,
    })
}

impl Attend {
    /// `tensor`: whether products are of bf16 on tensor cores.
    pub fn new(device: &Arc<Device>, program: &Program, limits: &Limits, tensor: bool) -> Result<Self, BackendError> {
        let Some(spec) = specs(program).next() else { return Ok(Self { family: Family::Nothing }) };
        let alike = |other: &AttentionSpec| (other.query_heads, other.kv_heads) == (spec.query_heads, spec.kv_heads);
        if !specs(program).all(alike) {
            return Err(BackendError::Unavailable("layers with unlike numbers of heads are not made on a GPU".into()));
        }
        if tensor {
            match AttentionKernels::new(device, shape(spec), program.kv.dtype, PARTIAL_ROWS) {
                Ok(kernels) => {
                    let arrivals = device.alloc(kernels.arrival_bytes())?;
                    arrivals.fill(0)?;
                    let scratch = PlanScratch::with_limits(kernels.planner(), limits.rows, limits.slots);
                    let query = match program.kv.dtype {
                        KvDtype::Bf16 => Some(device.alloc(limits.rows * spec.query_heads * spec.head_dim * 2)?),
                        _ => None,
                    };
                    return Ok(Self {
                        family: Family::Tensor(Box::new(Tensor {
                            query,
                            values: device.alloc(kernels.partial_value_bytes())?,
                            folds: device.alloc(kernels.partial_fold_bytes())?,
                            arrivals,
                            scratch,
                            kernels,
                        })),
                    });
                }
                Err(Unsupported::Driver(error)) => return Err(error.into()),
                // The exact attention takes every shape and cache.
                Err(_) => {}
            }
        }
        let kernels = ExactAttention::new(device, program.kv.dtype, spec.head_dim)?;
        let mut plans: Vec<(Option<usize>, AttentionPlan)> = Vec::new();
        for spec in specs(program) {
            if !plans.iter().any(|(window, _)| *window == spec.window) {
                plans.push((spec.window, AttentionPlan::new(spec, device.multiprocessors())));
            }
        }
        let floats = plans.iter().map(|(_, plan)| plan.partial_floats()).max().unwrap_or(0);
        let items = plans.iter().map(|(_, plan)| plan.items_max(limits.rows, limits.slots)).max().unwrap_or(0);
        let merges = plans.iter().map(|(_, plan)| plan.merges_max()).max().unwrap_or(0);
        let exact = Exact {
            partial: device.alloc(4 * floats)?,
            items: Vec::with_capacity(items),
            merges: Vec::with_capacity(merges),
            sequences: Vec::with_capacity(limits.slots),
            kernels,
            plans,
        };
        Ok(Self { family: Family::Exact(Box::new(exact)) })
    }

    /// Whether tensor cores would compute it, behind products of bf16.
    pub fn is_tensor(device: &Arc<Device>, program: &Program) -> bool {
        let takes = |spec| AttentionKernels::new(device, shape(spec), program.kv.dtype, PARTIAL_ROWS).is_ok();
        specs(program).next().is_some_and(takes)
    }

    /// Words of the plans of steps of so many rows and sequences.
    pub fn plan_words(&self, rows: usize, sequences: usize) -> usize {
        match &self.family {
            Family::Tensor(tensor) => tensor.kernels.planner().words_max(rows, sequences),
            Family::Exact(exact) => {
                exact.plans.iter().map(|(_, plan)| ExactWords::of(plan, rows, sequences).all()).sum()
            }
            Family::Nothing => 0,
        }
    }

    /// Plans a step; `used` gets the words that it has.
    pub fn plan(
        &mut self,
        step: &ForwardStep<'_>,
        bucket: &Bucket,
        words: &mut [u32],
        counts: &Counts,
        used: &mut Vec<Range<usize>>,
    ) {
        match &mut self.family {
            Family::Tensor(tensor) => {
                let sequences = step.sequences.iter().map(|sequence| PlanSequence {
                    first_position: sequence.first_position,
                    rows: sequence.rows,
                    table_start: sequence.blocks.start,
                });
                let sizes = (bucket.rows, bucket.sequences);
                let length = tensor.kernels.planner().plan(sequences, None, sizes, &mut tensor.scratch, words);
                used.push(0..length);
            }
            Family::Exact(exact) => exact.plan(step, bucket, words, counts, used),
            Family::Nothing => {}
        }
    }

    /// Norms of heads, rotary embedding and the cache's append.
    pub fn append(&self, rows: &RowKernels, append: &Append<'_>, count: usize) -> Launch {
        let Family::Tensor(tensor) = &self.family else { return rows.append(count, append) };
        let Some(query) = &tensor.query else { return rows.append(count, &Append { paired: true, ..*append }) };
        let Append { kv, layer, qkv, norms, rope, inputs, cache, .. } = *append;
        let row_inputs = RowInputs {
            counts: inputs.counts,
            positions: inputs.positions,
            sequence_of: inputs.sequence_of,
            table_start: inputs.table_start,
            flags: inputs.flags,
            block_tables: inputs.block_tables,
        };
        let cache = CacheLayer { cache, layer: layer as u32, layers: kv.layers as u32 };
        let tables = RopeTables {
            pairs: rope.pairs as u32,
            sine: rope.sine,
            cosine: rope.cosine,
            long: (rope.long_sine != 0).then_some((rope.long_sine, rope.long_cosine)),
        };
        let norms = norms.map(|(query, key, eps)| HeadNorms { query, key, eps });
        tensor.kernels.append(&row_inputs, &cache, &tables, norms, [qkv, query.ptr()], count)
    }

    /// One layer's attention, `layer` of `layers` of the cache: of `qkv` (f32, turned) into `output`; returns the form that it
    /// wrote.
    pub fn attention(
        &self,
        spec: &AttentionSpec,
        (layer, layers): (usize, usize),
        (qkv, output, cache): (DevicePtr, &Activation, DevicePtr),
        inputs: &StepInputs,
        bucket: &Bucket,
        launches: &mut Vec<Launch>,
    ) -> RowForm {
        match &self.family {
            Family::Tensor(tensor) => {
                let (address, form, written) = if output.forms.f32 || !output.forms.tiled {
                    (output.f32(), OutputForm::F32, RowForm::F32)
                } else {
                    let row_capacity = output.capacity as u32;
                    (output.tiled(), OutputForm::Bf16Tiled { row_capacity }, RowForm::Bf16Tiled)
                };
                let layer = AttentionLayer {
                    query: tensor.query.as_ref().map_or(qkv, DeviceBuffer::ptr),
                    cache: CacheLayer { cache, layer: layer as u32, layers: layers as u32 },
                    plan: inputs.plan,
                    block_tables: inputs.block_tables,
                    output: address,
                    form,
                    scale: spec.scale,
                    window: spec.window.map(|window| window as u32),
                    soft_cap: spec.soft_cap,
                };
                let scratch = AttentionScratch {
                    values: tensor.values.ptr(),
                    folds: tensor.folds.ptr(),
                    arrivals: tensor.arrivals.ptr(),
                };
                launches.extend(tensor.kernels.attention(&layer, &scratch, bucket.rows, bucket.sequences));
                written
            }
            Family::Exact(exact) => {
                let quants = output.forms.q8 && !output.forms.f32 && ExactAttention::writes_quants(spec);
                let [quant_address, scales] = if quants { output.q8() } else { [0; 2] };
                let mut at = inputs.plan;
                for (window, plan) in &exact.plans {
                    let words = ExactWords::of(plan, bucket.rows, bucket.sequences);
                    if *window == spec.window {
                        let items = at + 4 * COUNT_WORDS as u64;
                        let io = AttentionIo {
                            qkv,
                            cache,
                            items,
                            merges: items + 4 * words.items as u64,
                            block_tables: inputs.block_tables,
                            counts: at,
                            partial: exact.partial.ptr(),
                            output: if quants { 0 } else { output.f32() },
                            quants: quant_address,
                            scales,
                        };
                        let sizes = (bucket.rows, bucket.sequences);
                        launches.extend(exact.kernels.launches(spec, plan, &io, (layer, layers), sizes));
                        break;
                    }
                    at += 4 * words.all() as u64;
                }
                if quants { RowForm::Q8 } else { RowForm::F32 }
            }
            Family::Nothing => RowForm::F32,
        }
    }
}

impl Exact {
    fn plan(
        &mut self,
        step: &ForwardStep<'_>,
        bucket: &Bucket,
        words: &mut [u32],
        counts: &Counts,
        used: &mut Vec<Range<usize>>,
    ) {
        let Self { plans, items, merges, sequences, .. } = self;
        sequences.clear();
        let mut first_row = 0;
        for sequence in step.sequences {
            let (rows, first_position, table) = (sequence.rows, sequence.first_position, sequence.blocks.start);
            sequences.push(PlannedSequence { first_row, rows, first_position, table });
            first_row += rows;
        }
        let mut at = 0;
        for (_, plan) in plans.iter() {
            plan.fill(sequences, items, merges);
            let counts =
                Counts { attention_items: items.len() as u32, attention_merges: merges.len() as u32, ..*counts };
            words[at..at + COUNT_WORDS].copy_from_slice(&counts.words());
            let own = ExactWords::of(plan, bucket.rows, bucket.sequences);
            let first_item = at + COUNT_WORDS;
            for (words, item) in words[first_item..].chunks_exact_mut(ITEM_WORDS).zip(&*items) {
                words.copy_from_slice(&item.words());
            }
            let first_merge = first_item + own.items;
            for (words, merge) in words[first_merge..].chunks_exact_mut(MERGE_WORDS).zip(&*merges) {
                words.copy_from_slice(&merge.words());
            }
            used.push(at..first_item + items.len() * ITEM_WORDS);
            if !merges.is_empty() {
                used.push(first_merge..first_merge + merges.len() * MERGE_WORDS);
            }
            at += own.all();
        }
    }
}
