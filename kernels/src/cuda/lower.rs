//! From a program to the launches of one bucket of steps.
//!
//! Each operation becomes the launches of its family, with the addresses of the build and the geometry of the bucket. What
//! comes in pairs is joined: a gate with its product, head norms with the cache's append.

use super::activations::Activation;
use super::attend::Attend;
use super::driver::{DevicePtr, Launch};
use super::exact::products::{ExactProducts, Product};
use super::gemm::{GemmCall, GemmKernels, GemmOutput, Numbers, RowsOf};
use super::inputs::{Bucket, StepInputs};
use super::mixture::{Mixture, MixtureIo, MixtureKernels, MixtureMemory};
use super::ropes::DeviceRope;
use super::rows::{Append, Embed, EmbedTable, Norm, RopeAddresses, RowForm, RowKernels};
use super::weights::{Packed, Weight};
use crate::backend::{BackendError, WeightId};
use crate::program::{Activation as Gate, AttentionSpec, BufferId, Epilogue, Op, Program, RopeId, RowKind};

/// All that launches point at.
pub(super) struct Lowering<'a> {
    pub program: &'a Program,
    pub weights: &'a [Weight],
    pub activations: &'a [Activation],
    /// By operation: a product that makes the gate of the operation after it.
    pub gated: &'a [bool],
    pub ropes: &'a [DeviceRope],
    pub rows: &'a RowKernels,
    pub gemm: &'a GemmKernels,
    pub exact: &'a ExactProducts,
    pub attend: &'a Attend,
    /// By operation.
    pub mixtures: &'a [Option<Mixture>],
    pub mixture_memory: Option<&'a MixtureMemory>,
    pub cache: DevicePtr,
    pub last_sample: DevicePtr,
    pub sketches: DevicePtr,
    pub inputs: StepInputs,
    pub bucket: Bucket,
}

type Norms = Option<(DevicePtr, DevicePtr, f32)>;

impl Lowering<'_> {
    /// The launches of a step, in order.
    pub fn launches(&self) -> Result<Vec<Launch>, BackendError> {
        let mut launches = Vec::with_capacity(2 * self.program.ops.len());
        let mut norms: Norms = None;
        for (index, op) in self.program.ops.iter().enumerate() {
            self.op(index, op, &mut norms, &mut launches)?;
        }
        Ok(launches)
    }

    fn op(&self, index: usize, op: &Op, norms: &mut Norms, launches: &mut Vec<Launch>) -> Result<(), BackendError> {
        match op {
            Op::Embed { table, scale, output } => launches.push(self.embed(*table, *scale, *output)?),
            Op::RmsNorm { input, weight, eps, residual, output } => {
                let norm = Norm {
                    input: self.at(*input).f32(),
                    first: residual.is_some().then(|| (self.vector(*weight), *eps)),
                    second: residual.is_none().then(|| (self.vector(*weight), *eps)),
                    residual: residual.map_or(0, |residual| self.at(residual).f32()),
                    ..self.norm(*input)
                };
                self.write(*output, norm, launches);
            }
            Op::HeadNorm { qkv, attention, query, key, eps } => {
                let weights = [self.vector(*query), self.vector(*key)];
                let follows =
                    matches!(self.program.ops.get(index + 1), Some(Op::RopeAppend { qkv: next, .. }) if next == qkv);
                if follows {
                    *norms = Some((weights[0], weights[1], *eps));
                } else {
                    let qkv = self.at(*qkv).f32();
                    launches.push(self.rows.head_norm(
                        self.bucket.rows,
                        attention,
                        qkv,
                        weights,
                        *eps,
                        self.inputs.counts,
                    ));
                }
            }
            Op::Gemm { weight, input, output, epilogue } => {
                let gate = self.gated[index].then(|| match &self.program.ops[index + 1] {
                    Op::GatedMul { activation, output, .. } => (*activation, *output),
                    _ => unreachable!("only a product before a gate is joined with one"),
                });
                self.product(*weight, *input, *output, epilogue, gate, launches);
            }
            Op::RopeAppend { layer, qkv, attention, rope } => {
                let append = self.append(*layer, *qkv, attention, *rope, norms.take());
                launches.push(self.attend.append(self.rows, &append, self.bucket.rows));
            }
            Op::Attention { layer, qkv, output, attention } => {
                let kv = &self.program.kv;
                let (qkv, output) = (self.at(*qkv).f32(), self.at(*output));
                let io = (qkv, output, self.cache);
                let form =
                    self.attend.attention(attention, (*layer, kv.layers), io, &self.inputs, &self.bucket, launches);
                self.convert(output, form, launches);
            }
            Op::GatedMul { .. } if index > 0 && self.gated[index - 1] => {}
            Op::GatedMul { activation, input, output } => {
                let (output, input) = (self.at(*output), self.at(*input).f32());
                let (rows, count) = self.row_count(output.rows);
                for form in output.forms.list() {
                    let to = output.output(form);
                    launches.push(self.rows.gated_mul(rows, *activation, input, output.width, &to, count));
                }
            }
            Op::SoftCap { buffer, cap } => {
                let buffer = self.at(*buffer);
                let (rows, count) = self.row_count(buffer.rows);
                if rows > 0 {
                    launches.push(self.rows.soft_cap(rows, buffer.f32(), buffer.width, *cap, count));
                }
            }
            Op::GatherRows { input, output } => {
                let norm = Norm { input: self.at(*input).f32(), gather: self.inputs.wanted, ..self.norm(*output) };
                self.write(*output, norm, launches);
            }
            Op::Sketch { input } => {
                let input = self.at(*input);
                let (rows, count) = self.row_count(input.rows);
                if rows > 0 {
                    let keys = [self.inputs.sketch_key, self.inputs.sketch_position];
                    launches.push(self.rows.sketch(rows, input.f32(), input.width, keys, self.sketches, count));
                }
            }
            Op::Experts { input, router, spec, output, .. } => {
                let (Some(mixture), Some(memory)) = (&self.mixtures[index], self.mixture_memory) else {
                    unreachable!("experts were put together, and their memory allocated, when the program was built")
                };
                let io = MixtureIo {
                    input: self.at(*input).f32(),
                    router: self.at(*router).f32(),
                    output: self.at(*output).f32(),
                    count: self.inputs.counts,
                    rows: self.bucket.rows,
                };
                let kernels = MixtureKernels { rows: self.rows, gemm: self.gemm, exact: self.exact };
                mixture.launches(&kernels, spec, memory, &io, launches);
            }
            Op::AllReduce { input, planes, epilogue, output } if planes.len() == 1 && epilogue.bias.is_none() => {
                // Of one device: the residual is all that is added.
                let residual = epilogue.residual.map_or(0, |residual| self.at(residual).f32());
                let norm = Norm { input: self.at(*input).f32(), residual, ..self.norm(*output) };
                self.write(*output, norm, launches);
            }
            Op::AllReduce { .. } | Op::AllGather { .. } => {
                let reason = "splits over devices are not made on a GPU yet";
                return Err(BackendError::Program { operation: index, reason: reason.into() });
            }
        }
        Ok(())
    }

    fn at(&self, buffer: BufferId) -> &Activation {
        &self.activations[buffer.0 as usize]
    }

    fn vector(&self, id: WeightId) -> DevicePtr {
        match &self.weights[id.0 as usize] {
            Weight::Vector { values, .. } => values.ptr(),
            _ => unreachable!("the program was checked: a vector stands here"),
        }
    }

    /// Rows of the bucket, and where the device finds how many of them are in use.
    fn row_count(&self, rows: RowKind) -> (usize, DevicePtr) {
        match rows {
            RowKind::Step => (self.bucket.rows, self.inputs.counts),
            RowKind::Wanted => (self.bucket.wanted, self.inputs.counts + 4),
        }
    }

    /// A norm of nothing, of a buffer's rows.
    fn norm(&self, of: BufferId) -> Norm {
        let of = self.at(of);
        Norm { count: self.row_count(of.rows).1, width: of.width, ..Norm::default() }
    }

    /// Launches a norm once per form of its output.
    fn write(&self, output: BufferId, norm: Norm, launches: &mut Vec<Launch>) {
        let output = self.at(output);
        let (rows, _) = self.row_count(output.rows);
        if rows == 0 {
            return;
        }
        let mut first = None;
        for form in output.forms.list() {
            let norm = match first {
                // What is there in f32 already is only brought into another form.
                Some(RowForm::F32) => {
                    Norm { input: output.f32(), count: norm.count, width: norm.width, ..Norm::default() }
                }
                _ => norm,
            };
            launches.push(self.rows.norm(rows, &Norm { output: Some(output.output(form)), ..norm }));
            first = first.or(Some(form));
        }
    }

    /// Brings a buffer that was written in one form into its other ones.
    fn convert(&self, output: &Activation, written: RowForm, launches: &mut Vec<Launch>) {
        let (rows, count) = self.row_count(output.rows);
        for form in output.forms.list().filter(|&form| form != written) {
            let norm = Norm {
                input: output.f32(),
                count,
                width: output.width,
                output: Some(output.output(form)),
                ..Norm::default()
            };
            launches.push(self.rows.norm(rows, &norm));
        }
    }

    fn embed(&self, table: WeightId, scale: f32, output: BufferId) -> Result<Launch, BackendError> {
        let Weight::Matrix(table) = &self.weights[table.0 as usize] else {
            unreachable!("the program was checked: a matrix stands here")
        };
        let (kind, address) = match &table.packed {
            Packed::Tiles(tiles) if tiles.shape.numbers == Numbers::Bf16 => (EmbedTable::Tiles, tiles.buffer.ptr()),
            Packed::Tiles(_) => {
                return Err(BackendError::Unavailable("a table of e4m3 is not read on a GPU".into()));
            }
            // A table is one tensor, of one form.
            Packed::Exact(exact) => EmbedTable::of_exact(exact)
                .ok_or_else(|| BackendError::Unavailable("a table of several forms is not read on a GPU".into()))?,
        };
        let embed = Embed {
            kind,
            table: address,
            tokens: self.inputs.tokens,
            last_sample: self.last_sample,
            output: self.at(output).f32(),
            count: self.inputs.counts,
            width: table.shape.inputs,
            vocabulary: self.program.vocabulary,
            scale,
        };
        Ok(self.rows.embed(self.bucket.rows, &embed))
    }

    fn product(
        &self,
        weight: WeightId,
        input: BufferId,
        output: BufferId,
        epilogue: &Epilogue,
        gate: Option<(Gate, BufferId)>,
        launches: &mut Vec<Launch>,
    ) {
        let Weight::Matrix(matrix) = &self.weights[weight.0 as usize] else {
            unreachable!("the program was checked: a matrix stands here")
        };
        let output = self.at(gate.map_or(output, |(_, output)| output));
        let input = self.at(input);
        let (rows, _) = self.row_count(output.rows);
        if rows == 0 {
            return;
        }
        let bias = epilogue.bias.map(|bias| self.vector(bias));
        let residual = epilogue.residual.map(|residual| self.at(residual).f32());
        match &matrix.packed {
            Packed::Tiles(tiles) => {
                let written = output.forms.list().next().unwrap_or(RowForm::F32);
                let to = match written {
                    RowForm::Bf16Tiled => GemmOutput::Tiled { to: output.tiled(), capacity: output.capacity },
                    _ => GemmOutput::F32 { to: output.f32(), pitch: output.width },
                };
                launches.push(self.gemm.launch(&GemmCall {
                    shape: tiles.shape,
                    activation: gate.map(|(gate, _)| gate),
                    weights: tiles.buffer.ptr(),
                    input: input.tiled(),
                    input_capacity: input.capacity,
                    bias,
                    residual,
                    output: to,
                    counts: self.inputs.counts,
                    rows: if output.rows == RowKind::Step { RowsOf::Step } else { RowsOf::Wanted },
                    rows_max: rows,
                }));
                self.convert(output, written, launches);
            }
            Packed::Exact(exact) => {
                let [quants, scales] = input.q8();
                launches.extend(self.exact.launches(
                    exact,
                    &Product {
                        input: input.f32(),
                        quants,
                        scales,
                        bias: bias.unwrap_or(0),
                        residual: residual.unwrap_or(0),
                        output: output.f32(),
                        counts: self.inputs.counts,
                        wanted: output.rows == RowKind::Wanted,
                        rows: rows as u32,
                        groups: 1,
                    },
                ));
                self.convert(output, RowForm::F32, launches);
            }
        }
    }

    fn append<'b>(
        &'b self,
        layer: usize,
        qkv: BufferId,
        spec: &'b AttentionSpec,
        rope: RopeId,
        norms: Norms,
    ) -> Append<'b> {
        let rope = &self.ropes[rope.0 as usize];
        let long = rope.long.as_ref().map_or([0; 2], |[sine, cosine]| [sine.ptr(), cosine.ptr()]);
        Append {
            spec,
            kv: &self.program.kv,
            layer,
            qkv: self.at(qkv).f32(),
            norms,
            rope: RopeAddresses {
                pairs: rope.pairs,
                sine: rope.sine.ptr(),
                cosine: rope.cosine.ptr(),
                long_sine: long[0],
                long_cosine: long[1],
            },
            inputs: &self.inputs,
            cache: self.cache,
            paired: false,
        }
    }
}

/// By operation: a product whose result only the gate after it reads, and whose weight can be interleaved. `plain`: which
/// weights are products of bf16 that can.
pub(super) fn gated(program: &Program, plain: &dyn Fn(WeightId) -> bool) -> Vec<bool> {
    let alone = |index: usize| {
        let Op::Gemm { weight, output, epilogue, .. } = &program.ops[index] else { return false };
        let Some(Op::GatedMul { input, .. }) = program.ops.get(index + 1) else { return false };
        let (weight, output) = (*weight, *output);
        input == &output
            && *epilogue == Epilogue::default()
            && plain(weight)
            && program.logits != output
            // Every reader of the buffer is the gate after such a product.
            && program.ops.iter().enumerate().filter(|(_, op)| op.reads(output)).all(|(at, op)| {
                matches!(op, Op::GatedMul { .. })
                    && at > 0
                    && matches!(&program.ops[at - 1], Op::Gemm { output: other, .. } if *other == output)
            })
            && uses(program, weight) == 1
    };
    (0..program.ops.len()).map(alone).collect()
}

/// How often a weight is read.
fn uses(program: &Program, weight: WeightId) -> usize {
    let uses = |op: &Op| match op {
        Op::Gemm { weight: own, .. } => usize::from(*own == weight),
        Op::Embed { table, .. } => usize::from(*table == weight),
        Op::Experts { weights, .. } => {
            weights.iter().filter(|expert| expert.gate_up == weight || expert.down == weight).count()
        }
        _ => 0,
    };
    program.ops.iter().map(uses).sum()
}
