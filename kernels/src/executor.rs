//! Walks a program on the CPU: the part of a [`Backend`] that is the same for plain and for packed operations.
//!
//! It owns the weights, the arena, the KV cache and the slots. Everything is allocated in `build`; a step only indexes.
//! Steps are checked in full before anything is computed, so that a refused step leaves no trace.

use crate::backend::{Backend, BackendError, KRanges, KvLayout, KvSpec, Limits, Part, Ticket, WeightForm, WeightId};
use crate::collective::Collective;
use crate::experts::ExpertState;
use crate::memory::Aligned;
use crate::operations::{Batch, Operations, Poisoned, Reserve, RopeTable, SketchRow, finish};
use crate::plan::{self, Layout, Place, WeightKind};
use crate::program::{BufferId, Op, Program, RowKind};
use crate::sampler::{NO_TOKEN, NOT_FINITE, SampleContext, SampleJob, SampleScratch, SlotHistory};
use crate::step::{ForwardStep, SKETCH_VALUES, SampleStep, Sampled, Step, StepOutput};
use crate::{step_check, weights};
use polylink_protocol::noise::NoiseKey;

enum Weight<M> {
    Vector(Vec<f32>),
    Matrix(M),
}

/// A CPU backend over some implementation of the operations.
#[allow(private_bounds)] // sealed: which operations there are is this crate's own business
pub struct Executor<O: Operations> {
    operations: O,
    weights: Vec<Weight<O::Matrix>>,
    built: Option<Built>,
    /// Set by a lost peer or a panic: all further steps are refused.
    broken: bool,
}

/// What submitted steps left to be collected by `wait`.
#[derive(Clone, Copy, Default)]
struct Pending {
    /// Its ticket, and whether it gives logits.
    forward: Option<(Ticket, bool)>,
    sample: Option<Ticket>,
}

struct Built {
    program: Program,
    /// Per operation: a gated product whose output is the input of the product that follows, and of nothing else.
    joined: Vec<bool>,
    limits: Limits,
    layout: Layout,
    collective: Box<dyn Collective>,
    /// Activations, then the exchange's scratch, then the KV cache.
    arena: Aligned<f32>,
    exchange: Aligned<f32>,
    cache: Aligned<f32>,
    ropes: Vec<RopeTable>,
    experts: ExpertState,
    lengths: Vec<usize>,
    rows: RowState,
    slots: SlotState,
    sketches: Vec<[u16; SKETCH_VALUES]>,
    samples: Vec<Sampled>,
    next_ticket: u64,
    pending: Pending,
}

/// Per row of the current step.
#[derive(Default)]
pub(crate) struct RowState {
    pub tokens: Vec<u32>,
    pub sequence_of: Vec<u32>,
    pub positions: Vec<u32>,
    /// Input row of each wanted row, and its sketch.
    pub wanted: Vec<u32>,
    pub sketch_rows: Vec<SketchRow>,
}

impl RowState {
    /// No rows: what a refused step leaves, so that nothing can be sampled from it.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.sequence_of.clear();
        self.positions.clear();
        self.wanted.clear();
        self.sketch_rows.clear();
    }
}

/// Per slot, and the sampler's memory.
pub(crate) struct SlotState {
    pub last_sample: Vec<Option<u32>>,
    pub histories: Vec<SlotHistory>,
    pub jobs: Vec<SampleJob>,
    pub scratch: Vec<SampleScratch>,
}

#[allow(private_bounds)]
impl<O: Operations> Executor<O> {
    pub(crate) fn over(operations: O) -> Self {
        Self { operations, weights: Vec::new(), built: None, broken: false }
    }

    fn kind(&self, id: WeightId) -> Option<WeightKind> {
        self.weights.get(id.0 as usize).map(|weight| match weight {
            Weight::Vector(values) => WeightKind::Vector(values.len()),
            Weight::Matrix(matrix) => {
                WeightKind::Matrix { shape: self.operations.shape(matrix), converts: self.operations.converts(matrix) }
            }
        })
    }

    fn forward(&mut self, step: &ForwardStep<'_>) -> Result<(), BackendError> {
        let Some(built) = &mut self.built else { return Err(not_built()) };
        let block_tokens = self.operations.block_tokens();
        let (limits, vocabulary) = (built.limits, built.program.vocabulary);
        let last_sample = &built.slots.last_sample;
        if let Err(refused) = step_check::forward(step, &limits, block_tokens, vocabulary, last_sample, &mut built.rows)
        {
            built.rows.clear();
            return Err(refused);
        }
        built.samples.clear();
        for index in 0..built.program.ops.len() {
            run_op(&mut self.operations, &self.weights, built, index, step)?;
        }
        Ok(())
    }

    fn sample(&mut self, step: &SampleStep<'_>) -> Result<(), BackendError> {
        let Some(built) = &mut self.built else { return Err(not_built()) };
        let Built { rows, slots, program, limits, layout, arena, samples, .. } = built;
        let vocabulary = program.vocabulary;
        step_check::sample(step, limits, vocabulary, rows, slots)?;
        let logits = &arena[place(layout, program.logits, rows)];
        samples.clear();
        samples.resize(slots.jobs.len(), Sampled::default());
        let context = SampleContext {
            vocabulary,
            logit_bias: step.logit_bias,
            suppressed: step.suppressed,
            masks: step.masks,
            histories: &slots.histories,
        };
        self.operations.sample(&slots.jobs, logits, &context, &mut slots.scratch, samples)?;
        if let Some(index) = samples.iter().position(|sampled| sampled.token.token == NOT_FINITE) {
            return Err(BackendError::NotFinite { row: slots.jobs[index].row.row as usize });
        }
        if let Some(index) = samples.iter().position(|sampled| sampled.token.token == NO_TOKEN) {
            let reason = format!("every token of sample row {index} is masked: the grammar has no way on");
            return Err(BackendError::Step(reason));
        }
        for (job, sampled) in slots.jobs.iter().zip(samples.iter()).filter(|(job, _)| job.row.given.is_none()) {
            let slot = job.row.slot as usize;
            slots.last_sample[slot] = Some(sampled.token.token);
            let history = &mut slots.histories[slot];
            if history.tokens.len() < history.tokens.capacity() {
                history.tokens.push(sampled.token.token);
            } else {
                history.known = false;
            }
        }
        Ok(())
    }
}

fn not_built() -> BackendError {
    BackendError::Step("no program was built on this backend".into())
}

/// A buffer's rows of this step.
fn place(layout: &Layout, buffer: BufferId, rows: &RowState) -> std::ops::Range<usize> {
    let Place { offset, width, rows: kind } = layout.places[buffer.0 as usize];
    let count = if kind == RowKind::Step { rows.tokens.len() } else { rows.wanted.len() };
    offset..offset + count * width
}

/// Two different buffers, one to read and one to write.
fn pair(arena: &mut [f32], input: std::ops::Range<usize>, output: std::ops::Range<usize>) -> (&[f32], &mut [f32]) {
    if input.start < output.start {
        let (low, high) = arena.split_at_mut(output.start);
        (&low[input], &mut high[..output.end - output.start])
    } else {
        let (low, high) = arena.split_at_mut(input.start);
        (&high[..input.end - input.start], &mut low[output])
    }
}

/// Whether operation `index` is a `GatedMul` that only the `Gemm` after it reads: both are then computed together.
fn joined(program: &Program, index: usize) -> bool {
    let Op::GatedMul { output, .. } = program.ops[index] else { return false };
    let gates = |op: &Op| matches!(op, Op::GatedMul { output: other, .. } if *other == output);
    let multiplies = |op: &Op| {
        let other = |residual| residual != Some(output);
        matches!(op, Op::Gemm { input, epilogue, .. } if *input == output && other(epilogue.residual))
    };
    let follows = |place: usize| place > 0 && gates(&program.ops[place - 1]) && multiplies(&program.ops[place]);
    let readers = program.ops.iter().enumerate().filter(|(_, op)| op.reads(output));
    program.logits != output
        && program.ops.get(index + 1).is_some_and(multiplies)
        && readers.map(|(place, _)| place).all(follows)
}

fn vector<M>(weights: &[Weight<M>], id: WeightId) -> &[f32] {
    match &weights[id.0 as usize] {
        Weight::Vector(values) => values,
        Weight::Matrix(_) => unreachable!("the program was checked: a vector stands here"),
    }
}

fn matrix<M>(weights: &[Weight<M>], id: WeightId) -> &M {
    match &weights[id.0 as usize] {
        Weight::Matrix(matrix) => matrix,
        Weight::Vector(_) => unreachable!("the program was checked: a matrix stands here"),
    }
}

fn run_op<O: Operations>(
    operations: &mut O,
    weights: &[Weight<O::Matrix>],
    built: &mut Built,
    index: usize,
    step: &ForwardStep<'_>,
) -> Result<(), BackendError> {
    let Built { program, joined, layout, arena, exchange, cache, ropes, lengths, rows, collective, sketches, .. } =
        built;
    let experts = &mut built.experts;
    let at = |buffer: BufferId| place(layout, buffer, rows);
    let (positions, sequence_of) = (&rows.positions[..], &rows.sequence_of[..]);
    let batch = Batch { sequences: step.sequences, block_tables: step.block_tables, sequence_of, positions };
    match &program.ops[index] {
        Op::Embed { table, scale, output } => {
            operations.embed(matrix(weights, *table), &rows.tokens, *scale, &mut arena[at(*output)])?;
        }
        Op::RmsNorm { input, weight, eps, residual, output } => {
            bring_residual(arena, *residual, *output, &at);
            let (input, output) = pair(arena, at(*input), at(*output));
            operations.rms_norm(input, vector(weights, *weight), *eps, residual.is_some(), output)?;
        }
        Op::HeadNorm { qkv, attention, query, key, eps } => {
            let norms = [vector(weights, *query), vector(weights, *key)];
            operations.head_norm(attention, norms, *eps, &mut arena[at(*qkv)])?;
        }
        Op::Gemm { weight, input, output, epilogue } => {
            bring_residual(arena, epilogue.residual, *output, &at);
            let bias = epilogue.bias.map(|bias| vector(weights, bias));
            if let Some(Op::GatedMul { activation, input: gated, .. }) = index.checked_sub(1).map(|i| &program.ops[i])
                && joined[index - 1]
            {
                let places = [at(*gated), at(*input), at(*output)];
                let Ok([gated, between, output]) = arena.get_disjoint_mut(places) else {
                    unreachable!("the program was checked: buffers lie apart");
                };
                let matrix = matrix(weights, *weight);
                let residual = epilogue.residual.is_some();
                operations.gated_gemm(*activation, matrix, gated, between, output, bias, residual)?;
                return Ok(());
            }
            let (input, output) = pair(arena, at(*input), at(*output));
            operations.gemm(matrix(weights, *weight), input, output, bias, epilogue.residual.is_some())?;
        }
        Op::RopeAppend { layer, qkv, attention, rope } => {
            let (rope, qkv) = (&ropes[rope.0 as usize], &mut arena[at(*qkv)]);
            operations.rope_append(attention, rope, &batch, &program.kv, *layer, cache, qkv)?;
        }
        Op::Attention { layer, qkv, output, attention } => {
            let (qkv, output) = pair(arena, at(*qkv), at(*output));
            operations.attention(attention, &batch, &program.kv, *layer, cache, qkv, output)?;
        }
        Op::GatedMul { .. } if joined[index] => {}
        Op::GatedMul { activation, input, output } => {
            let width = layout.places[output.0 as usize].width;
            let (input, output) = pair(arena, at(*input), at(*output));
            operations.gated_mul(*activation, input, output, width)?;
        }
        Op::Experts { input, router, spec, weights: held, output } => {
            experts.route(spec, &arena[at(*router)]);
            let hidden = layout.places[input.0 as usize].width;
            let held = held.iter().map(|held| [matrix(weights, held.gate_up), matrix(weights, held.down)]);
            experts.run(operations, spec, held, hidden, pair(arena, at(*input), at(*output)))?;
        }
        Op::SoftCap { buffer, cap } => operations.soft_cap(&mut arena[at(*buffer)], *cap)?,
        Op::GatherRows { input, output } => {
            let width = layout.places[output.0 as usize].width;
            let (input, output) = pair(arena, at(*input), at(*output));
            for (output, &row) in output.chunks_exact_mut(width.max(1)).zip(&rows.wanted) {
                output.copy_from_slice(&input[row as usize * width..][..width]);
            }
        }
        Op::Sketch { input } => {
            let width = layout.places[input.0 as usize].width;
            sketches.resize(rows.wanted.len(), [0; SKETCH_VALUES]);
            operations.sketch(&arena[at(*input)], width, &rows.sketch_rows, sketches)?;
        }
        Op::AllReduce { input, planes, epilogue, output } => {
            let width = layout.places[output.0 as usize].width;
            let (own, out) = (at(*input), at(*output));
            let (sum, scratch) = exchange.split_at_mut(out.len());
            collective.all_reduce_ranges(&arena[own], planes, out.len() / width, width, lengths, scratch, sum)?;
            bring_residual(arena, epilogue.residual, *output, &at);
            let bias = epilogue.bias.map(|bias| vector(weights, bias));
            for (i, (output, sum)) in arena[out].iter_mut().zip(sum).enumerate() {
                *output = finish(*sum, bias.map(|bias| bias[i % width]), epilogue.residual.map(|_| *output));
            }
        }
        Op::AllGather { input, widths, output } => {
            let count = at(*output).len() / layout.places[output.0 as usize].width;
            lengths.iter_mut().zip(widths).for_each(|(length, width)| *length = width * count);
            let gathered = &mut exchange[..at(*output).len()];
            collective.all_gather(&arena[at(*input)], lengths, gathered)?;
            let total: usize = widths.iter().sum();
            let (mut from, mut column) = (0, 0);
            for &width in widths {
                for row in arena[at(*output)].chunks_exact_mut(total) {
                    row[column..column + width].copy_from_slice(&gathered[from..from + width]);
                    from += width;
                }
                column += width;
            }
        }
    }
    Ok(())
}

/// Operations add onto what their output holds: copies a residual that lies elsewhere there first.
fn bring_residual(
    arena: &mut [f32],
    residual: Option<BufferId>,
    output: BufferId,
    at: &dyn Fn(BufferId) -> std::ops::Range<usize>,
) {
    if let Some(residual) = residual.filter(|&residual| residual != output) {
        let from = at(residual);
        arena.copy_within(from, at(output).start);
    }
}

impl From<Poisoned> for BackendError {
    fn from(Poisoned: Poisoned) -> Self {
        BackendError::Poisoned
    }
}

fn zeroed(count: usize) -> Result<Aligned<f32>, BackendError> {
    let needed_bytes = count.saturating_mul(size_of::<f32>());
    Aligned::try_zeroed(count).ok_or(BackendError::Memory { needed_bytes })
}

impl<O: Operations> Backend for Executor<O> {
    fn name(&self) -> &str {
        self.operations.name()
    }

    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<WeightId, BackendError> {
        let weight = match form {
            WeightForm::Vector => Weight::Vector(weights::vector(parts)?),
            _ => Weight::Matrix(self.operations.prepare(parts, ranges, form)?),
        };
        self.weights.push(weight);
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    fn kv_layout(&self, spec: &KvSpec) -> KvLayout {
        let bytes_per_block = 4 * self.operations.block_floats(spec);
        KvLayout { block_tokens: self.operations.block_tokens(), bytes_per_block }
    }

    fn build(&mut self, program: Program, limits: Limits, collective: Box<dyn Collective>) -> Result<(), BackendError> {
        let (rank, world) = (collective.rank(), collective.world());
        let layout = plan::check(&program, &|id| self.kind(id), &limits, rank, world)?;
        let arena = zeroed(layout.arena_floats)?;
        let exchange = zeroed(layout.exchange_floats)?;
        let cache = zeroed(limits.kv_blocks.saturating_mul(self.operations.block_floats(&program.kv)))?;
        let ropes = program.ropes.iter().map(|spec| RopeTable::new(spec, limits.positions)).collect();
        let experts = ExpertState::new(layout.expert_choices, zeroed(layout.expert_floats)?);
        let vocabulary = program.vocabulary;
        self.operations.reserve(Reserve { limits, converted_inputs: layout.converted_inputs });
        let blank = SketchRow { noise_key: NoiseKey(0), position: 0 };
        let rows = RowState {
            tokens: Vec::with_capacity(limits.rows),
            sequence_of: Vec::with_capacity(limits.rows),
            positions: Vec::with_capacity(limits.rows),
            wanted: Vec::with_capacity(limits.wanted_rows),
            sketch_rows: {
                let mut rows = vec![blank; limits.wanted_rows];
                rows.clear();
                rows
            },
        };
        let history = || SlotHistory { tokens: Vec::with_capacity(limits.positions), ..SlotHistory::default() };
        let slots = SlotState {
            last_sample: vec![None; limits.slots],
            histories: (0..limits.slots).map(|_| history()).collect(),
            jobs: Vec::with_capacity(limits.wanted_rows),
            scratch: (0..self.operations.workers()).map(|_| SampleScratch::new(vocabulary)).collect(),
        };
        self.built = Some(Built {
            layout,
            collective,
            arena,
            exchange,
            cache,
            ropes,
            experts,
            lengths: vec![0; world],
            rows,
            slots,
            sketches: Vec::with_capacity(limits.wanted_rows),
            samples: Vec::with_capacity(limits.wanted_rows),
            next_ticket: 0,
            pending: Pending::default(),
            joined: (0..program.ops.len()).map(|index| joined(&program, index)).collect(),
            program,
            limits,
        });
        Ok(())
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError> {
        if self.broken {
            return Err(BackendError::Poisoned);
        }
        let Some(built) = &self.built else { return Err(not_built()) };
        let Pending { forward, sample } = built.pending;
        if sample.is_some() || forward.is_some() && matches!(step, Step::Forward(_)) {
            return Err(BackendError::Step("the step before was not waited for".into()));
        }
        let result = match step {
            Step::Forward(step) => self.forward(step),
            Step::Sample(step) => self.sample(step),
        };
        self.broken |= matches!(result, Err(BackendError::Lost(_) | BackendError::Poisoned));
        result?;
        let Some(built) = &mut self.built else { return Err(not_built()) };
        built.next_ticket += 1;
        let ticket = Ticket(built.next_ticket);
        match step {
            Step::Forward(step) => built.pending.forward = Some((ticket, step.logits_out)),
            Step::Sample(_) => built.pending.sample = Some(ticket),
        }
        Ok(ticket)
    }

    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
        let Some(built) = &mut self.built else { return Err(not_built()) };
        let Pending { forward, sample } = &mut built.pending;
        match (*forward, *sample) {
            (Some((oldest, logits_out)), _) if oldest == ticket => {
                *forward = None;
                output.sketches.clear();
                output.sketches.extend_from_slice(&built.sketches);
                output.logits.clear();
                if logits_out {
                    let logits = place(&built.layout, built.program.logits, &built.rows);
                    output.logits.extend_from_slice(&built.arena[logits]);
                }
            }
            (None, Some(oldest)) if oldest == ticket => {
                *sample = None;
                output.samples.clear();
                output.samples.extend_from_slice(&built.samples);
            }
            (None, None) => return Err(BackendError::Step("this step was waited for already".into())),
            _ => return Err(BackendError::Step(format!("ticket {} is not the oldest one under way", ticket.0))),
        }
        Ok(())
    }
}
