//! Checks a program against its weights once, and lays its buffers out in the arena.
//!
//! After [`check`] has passed, every operation's shapes fit for any step within the limits; the executor relies on it.

use crate::backend::{BackendError, Limits, WeightId};
use crate::experts::ExpertState;
use crate::program::{AttentionSpec, BufferId, Epilogue, ExpertWeights, ExpertsSpec, Op, Program, RowKind};
use crate::weights::MatrixShape;

/// Largest head dimension: each worker has space for the sums of so many.
pub(crate) const HEAD_DIM_MAX: usize = 512;

/// What the plan needs to know of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WeightKind {
    Vector(usize),
    Matrix { shape: MatrixShape, converts: bool },
}

/// Where a buffer lies in the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub offset: usize,
    pub width: usize,
    pub rows: RowKind,
}

/// The arena's layout and the sizes of everything beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    pub places: Vec<Place>,
    pub arena_floats: usize,
    /// Gathered partial planes and logits of all ranks.
    pub exchange_floats: usize,
    pub converted_inputs: usize,
    /// Scratch of mixtures of experts, and their rows × top_k.
    pub expert_floats: usize,
    pub expert_choices: usize,
}

struct Checker<'a> {
    program: &'a Program,
    weights: &'a dyn Fn(WeightId) -> Option<WeightKind>,
    operation: usize,
}

type Checked<T> = Result<T, BackendError>;

impl Checker<'_> {
    fn wrong<T>(&self, reason: impl Into<String>) -> Checked<T> {
        Err(BackendError::Program { operation: self.operation, reason: reason.into() })
    }

    fn ensure(&self, holds: bool, reason: impl FnOnce() -> String) -> Checked<()> {
        if holds { Ok(()) } else { self.wrong(reason()) }
    }

    fn buffer(&self, id: BufferId) -> Checked<(usize, RowKind)> {
        match self.program.buffers.get(id.0 as usize) {
            Some(spec) => Ok((spec.width, spec.rows)),
            None => self.wrong(format!("buffer {} does not exist", id.0)),
        }
    }

    fn matrix(&self, id: WeightId) -> Checked<(MatrixShape, bool)> {
        match (self.weights)(id) {
            Some(WeightKind::Matrix { shape, converts }) => Ok((shape, converts)),
            Some(WeightKind::Vector(_)) => self.wrong("a vector stands where a matrix is needed"),
            None => self.wrong("a weight of another backend"),
        }
    }

    fn vector(&self, id: WeightId, length: usize) -> Checked<()> {
        match (self.weights)(id) {
            Some(WeightKind::Vector(found)) if found == length => Ok(()),
            Some(WeightKind::Vector(found)) => self.wrong(format!("a vector of {found} where {length} are needed")),
            _ => self.wrong("a matrix or foreign weight where a vector is needed"),
        }
    }

    /// Output has this width and the rows of the input; and is not the input.
    fn output(&self, input: BufferId, output: BufferId, width: usize) -> Checked<()> {
        let ((_, in_rows), (found, out_rows)) = (self.buffer(input)?, self.buffer(output)?);
        self.ensure(input != output, || "reads and writes the same buffer".into())?;
        self.ensure(in_rows == out_rows, || "input and output have different kinds of rows".into())?;
        self.ensure(found == width, || format!("the output is {found} wide, {width} are needed"))
    }

    fn width(&self, id: BufferId, width: usize) -> Checked<()> {
        let (found, _) = self.buffer(id)?;
        self.ensure(found == width, || format!("the input is {found} wide, {width} are needed"))
    }

    fn epilogue(&self, epilogue: &Epilogue, output: BufferId, width: usize) -> Checked<()> {
        if let Some(bias) = epilogue.bias {
            self.vector(bias, width)?;
        }
        self.residual(epilogue.residual, output)
    }

    fn residual(&self, residual: Option<BufferId>, output: BufferId) -> Checked<()> {
        match residual {
            Some(residual) => self.ensure(self.buffer(residual)? == self.buffer(output)?, || {
                "the residual's shape is not the output's".into()
            }),
            None => Ok(()),
        }
    }

    fn attention(&self, spec: &AttentionSpec, layer: usize, qkv: BufferId) -> Checked<()> {
        let kv = &self.program.kv;
        let AttentionSpec { query_heads, kv_heads, head_dim, .. } = *spec;
        self.ensure(layer < kv.layers, || format!("layer {layer} of a cache of {} layers", kv.layers))?;
        self.ensure(kv_heads == kv.heads && head_dim == kv.head_dim, || "heads differ from the KV cache's".into())?;
        let grouped = kv_heads > 0 && query_heads > 0 && query_heads % kv_heads == 0;
        self.ensure(grouped, || format!("{query_heads} query heads cannot share {kv_heads} KV heads"))?;
        self.ensure(head_dim % 16 == 0 && (16..=HEAD_DIM_MAX).contains(&head_dim), || {
            format!("head dimension {head_dim} is not a multiple of 16 up to {HEAD_DIM_MAX}")
        })?;
        self.ensure(spec.window != Some(0), || "a sliding window of 0 positions sees nothing".into())?;
        self.ensure(spec.soft_cap.is_none_or(positive), || "a soft cap must be positive".into())?;
        let (_, rows) = self.buffer(qkv)?;
        self.ensure(rows == RowKind::Step, || "attention needs the rows of the step".into())?;
        self.width(qkv, (query_heads + 2 * kv_heads) * head_dim)
    }

    fn experts(
        &self,
        (input, router, output): (BufferId, BufferId, BufferId),
        spec: &ExpertsSpec,
        weights: &[ExpertWeights],
        limits: &Limits,
        layout: &mut Layout,
    ) -> Checked<()> {
        let (hidden, rows) = self.buffer(input)?;
        let held = spec.first..spec.first + weights.len();
        self.ensure(!held.is_empty() && held.end <= spec.experts && spec.experts < 1 << 16, || {
            format!("experts {held:?} of {}", spec.experts)
        })?;
        self.ensure((1..=spec.experts).contains(&spec.top_k), || format!("{} experts per row", spec.top_k))?;
        self.ensure(rows == RowKind::Step && self.buffer(router)? == (spec.experts, rows), || {
            "the router's logits: [rows of the step][experts]".into()
        })?;
        self.ensure(router != output, || "reads and writes the same buffer".into())?;
        self.output(input, output, spec.planes() * hidden)?;
        let mut mlp_max = 0;
        for weights in weights {
            let ((gate_up, first), (down, second)) = (self.matrix(weights.gate_up)?, self.matrix(weights.down)?);
            let fits = (gate_up.inputs, down.outputs, gate_up.outputs) == (hidden, hidden, 2 * down.inputs);
            self.ensure(fits && gate_up.planes == 1 && down.planes == 1, || {
                "an expert's weights are [2 mlp, hidden] and [hidden, mlp], whole".into()
            })?;
            let converted = [(first, hidden), (second, down.inputs)];
            for (_, inputs) in converted.into_iter().filter(|(converts, _)| *converts) {
                layout.converted_inputs = layout.converted_inputs.max(inputs);
            }
            mlp_max = mlp_max.max(down.inputs);
        }
        layout.expert_floats = layout.expert_floats.max(ExpertState::floats(limits.rows, hidden, mlp_max));
        layout.expert_choices = layout.expert_choices.max(limits.rows * spec.top_k);
        Ok(())
    }

    fn op(&self, op: &Op, rank: usize, world: usize, layout: &mut Layout, limits: &Limits) -> Checked<()> {
        let rows_of = |kind| if kind == RowKind::Step { limits.rows } else { limits.wanted_rows };
        match op {
            Op::Embed { table, scale, output } => {
                let (shape, _) = self.matrix(*table)?;
                let (width, rows) = self.buffer(*output)?;
                self.ensure(shape.outputs == self.program.vocabulary && shape.planes == 1, || {
                    "the embedding table must be whole on every device".into()
                })?;
                self.ensure(scale.is_finite(), || format!("scale {scale} is not a number"))?;
                self.ensure(width == shape.inputs && rows == RowKind::Step, || "the output's shape is wrong".into())
            }
            Op::RmsNorm { input, weight, eps, residual, output } => {
                let (width, _) = self.buffer(*input)?;
                self.ensure(positive(*eps), || format!("eps {eps} is not positive"))?;
                self.vector(*weight, width)?;
                self.output(*input, *output, width)?;
                self.ensure(*residual != Some(*input), || "the residual is the input".into())?;
                self.residual(*residual, *output)
            }
            Op::HeadNorm { qkv, attention, query, key, eps } => {
                self.ensure(positive(*eps), || format!("eps {eps} is not positive"))?;
                self.vector(*query, attention.head_dim)?;
                self.vector(*key, attention.head_dim)?;
                self.attention(attention, 0, *qkv)
            }
            Op::Gemm { weight, input, output, epilogue } => {
                let (shape, converts) = self.matrix(*weight)?;
                self.width(*input, shape.inputs)?;
                self.output(*input, *output, shape.outputs * shape.planes)?;
                self.ensure(shape.planes == 1 || *epilogue == Epilogue::default(), || {
                    "partial planes take no epilogue".into()
                })?;
                if converts {
                    layout.converted_inputs = layout.converted_inputs.max(shape.inputs);
                }
                self.ensure(epilogue.residual != Some(*input), || "the residual is the input".into())?;
                self.epilogue(epilogue, *output, shape.outputs)
            }
            Op::RopeAppend { layer, qkv, attention, rope } => {
                let table = self.program.ropes.get(rope.0 as usize);
                let pairs = 1..=attention.head_dim / 2;
                let fits = table.is_some_and(|table| pairs.contains(&table.frequencies.len()));
                self.ensure(fits, || "the RoPE table is empty or longer than half the head dimension".into())?;
                let long =
                    table.and_then(|table| table.long.as_ref().map(|long| long.len() == table.frequencies.len()));
                self.ensure(long.unwrap_or(true), || "a RoPE table's two sets differ in length".into())?;
                let grows =
                    table.and_then(|table| table.growth.as_ref().map(|growth| (table.frequencies.len(), growth)));
                self.ensure(
                    grows.is_none_or(|(pairs, growth)| {
                        pairs > 1 && growth.trained > 0 && growth.factor >= 1.0 && growth.base > 1.0
                    }),
                    || "a RoPE table that grows needs two pairs, a trained length, a factor and a base".into(),
                )?;
                self.attention(attention, *layer, *qkv)
            }
            Op::Attention { layer, qkv, output, attention } => {
                self.attention(attention, *layer, *qkv)?;
                self.output(*qkv, *output, attention.query_heads * attention.head_dim)
            }
            Op::GatedMul { input, output, .. } => {
                let (width, _) = self.buffer(*input)?;
                self.ensure(width % 2 == 0, || "gate and up differ in width".into())?;
                self.output(*input, *output, width / 2)
            }
            Op::Experts { input, router, spec, weights, output } => {
                self.experts((*input, *router, *output), spec, weights, limits, layout)
            }
            Op::SoftCap { buffer, cap } => {
                self.ensure(positive(*cap), || "a soft cap must be positive".into())?;
                self.buffer(*buffer).map(|_| ())
            }
            Op::GatherRows { input, output } => {
                let ((from, from_rows), (to, to_rows)) = (self.buffer(*input)?, self.buffer(*output)?);
                let fits = from == to && (from_rows, to_rows) == (RowKind::Step, RowKind::Wanted);
                self.ensure(fits, || "gathers from step rows to wanted rows of the same width".into())
            }
            Op::Sketch { input } => {
                let (_, rows) = self.buffer(*input)?;
                let count = self.program.ops.iter().filter(|op| matches!(op, Op::Sketch { .. })).count();
                self.ensure(count == 1, || "at most one sketch per program".into())?;
                self.ensure(rows == RowKind::Wanted, || "the sketch needs wanted rows".into())
            }
            Op::AllReduce { input, planes, epilogue, output } => {
                let (width, rows) = self.buffer(*output)?;
                self.ensure(planes.len() == world, || format!("planes of {} ranks, there are {world}", planes.len()))?;
                let sensible = planes[0] == 1 && planes.iter().all(|&planes| planes > 0);
                self.ensure(sensible, || "rank 0 sends one plane, every other at least one".into())?;
                self.width(*input, width * planes[rank])?;
                self.output(*input, *output, width)?;
                let gathered = rows_of(rows) * width * (planes.iter().sum::<usize>() + 1);
                layout.exchange_floats = layout.exchange_floats.max(gathered);
                self.epilogue(epilogue, *output, width)
            }
            Op::AllGather { input, widths, output } => {
                self.ensure(widths.len() == world, || format!("widths of {} ranks, there are {world}", widths.len()))?;
                self.width(*input, widths[rank])?;
                let total = widths.iter().sum();
                self.output(*input, *output, total)?;
                let (_, rows) = self.buffer(*output)?;
                layout.exchange_floats = layout.exchange_floats.max(rows_of(rows) * total);
                Ok(())
            }
        }
    }
}

fn positive(value: f32) -> bool {
    value > 0.0 && value.is_finite()
}

/// Checks everything and lays the buffers out.
pub(crate) fn check(
    program: &Program,
    weights: &dyn Fn(WeightId) -> Option<WeightKind>,
    limits: &Limits,
    rank: usize,
    world: usize,
) -> Result<Layout, BackendError> {
    let mut checker = Checker { program, weights, operation: 0 };
    let Limits { rows, wanted_rows, slots, kv_blocks, positions } = *limits;
    let positive = [rows, wanted_rows, slots, kv_blocks, positions].iter().all(|&limit| limit > 0);
    checker.ensure(positive && wanted_rows <= rows, || format!("limits are empty or inconsistent: {limits:?}"))?;
    checker.ensure(program.vocabulary > 0 && program.vocabulary < 1 << 24, || "vocabulary out of range".into())?;
    let mut layout = Layout::default();
    for buffer in &program.buffers {
        // Buffers start at multiples of 16 values: one cache line.
        let count = if buffer.rows == RowKind::Step { rows } else { wanted_rows };
        layout.places.push(Place { offset: layout.arena_floats, width: buffer.width, rows: buffer.rows });
        layout.arena_floats += (count * buffer.width).next_multiple_of(16);
    }
    for (index, op) in program.ops.iter().enumerate() {
        checker.operation = index;
        checker.op(op, rank, world, &mut layout, limits)?;
    }
    let (width, kind) = checker.buffer(program.logits)?;
    checker.ensure(width == program.vocabulary && kind == RowKind::Wanted, || "logits: [wanted][vocabulary]".into())?;
    Ok(layout)
}
