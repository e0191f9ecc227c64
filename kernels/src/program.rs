//! A forward pass as data: a flat list of operations over numbered activation buffers and prepared weights.
//!
//! Why data: the CPU backend walks the list, a CUDA backend captures it in a graph, and both can be checked once, at
//! build, instead of at every step. Nothing in it depends on a step: row counts, positions and block tables come with
//! the [`Step`](crate::Step).
//!
//! Buffers are row-major `[rows][width]` f32. A *step* buffer has one row per input token, a *wanted* buffer one per row
//! whose logits are wanted. An operation may not write the buffer it reads, except where it says "in place".
//!
//! A Llama layer, on one device or as one of several (`builder.row_parallel` emits the exchange only when it must):
//! ```text
//! RmsNorm(x → h)  Gemm(qkv: h → qkv)  RopeAppend(qkv)  Attention(qkv → a)  row_parallel(o: a, + x → x)
//! RmsNorm(x → h)  Gemm(gate|up: h → g)  GatedMul(g → m)  row_parallel(down: m, + x → x)
//! ```
//! What other architectures add: `HeadNorm(qkv)` before `RopeAppend`; a norm after a block, `RmsNorm(h, + x → x)`; a
//! mixture of experts in place of the MLP, `Gemm(router: h → r) Experts(h, r → e) AllReduce(e, + x → x)`; `SoftCap(logits)`.
//! and the end: `GatherRows(x → y) RmsNorm(y → z) Sketch(z) Gemm(head: z → logits)`, `AllGather` if split by vocabulary.

use polylink_protocol::exact_math::{exp_f64, ln_f64, rope_frequencies};

use crate::backend::{KvSpec, WeightId};

/// Number of an activation buffer of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub(crate) u32);

/// Number of a RoPE table of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeId(pub(crate) u32);

/// How many rows a buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// One per input token of the step.
    Step,
    /// One per row whose logits are wanted.
    Wanted,
}

/// An activation buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSpec {
    /// Values per row.
    pub width: usize,
    /// Rows.
    pub rows: RowKind,
}

/// What is done to a finished sum before it is stored; in this order: `out = residual + (sum + bias)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epilogue {
    /// A vector added to every row.
    pub bias: Option<WeightId>,
    /// A buffer of the output's shape added last; may be the output itself (in place).
    pub residual: Option<BufferId>,
}

/// Shape and scaling of an attention layer on this device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads held here: a multiple of `kv_heads`.
    pub query_heads: usize,
    /// KV heads held here. Query head `h` reads KV head `h / (query_heads / kv_heads)`.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Multiplies q·k; usually `1 / √head_dim`.
    pub scale: f32,
    /// Only the last so many positions are seen (sliding window); `None`: all.
    pub window: Option<usize>,
    /// Scores are kept within ± this by `cap × tanh(score ÷ cap)`, after the scale; `None`: as they are.
    pub soft_cap: Option<f32>,
}

/// What an MLP's gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(−x))`.
    Silu,
    /// GELU by its hyperbolic tangent (`exact_math::gelu_tanh`).
    GeluTanh,
}

/// A mixture of experts: how rows find their experts, and which of them this device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// Experts of the unsharded layer.
    pub experts: usize,
    /// The first expert held here; the ones after it follow, as many as the operation has weights.
    pub first: usize,
    /// Experts per row: those with the largest router logits, ties to the lowest number.
    pub top_k: usize,
    /// Their probabilities are divided by their sum.
    pub normalise: bool,
    /// The gate of every expert.
    pub activation: Activation,
}

impl ExpertsSpec {
    /// Planes of partial sums that the holder of these experts leaves: one (its running sum) if it holds the first
    /// expert, else one for each of a row's experts, in ascending order, 0 where it does not hold that expert.
    pub const fn planes(&self) -> usize {
        if self.first == 0 { 1 } else { self.top_k }
    }
}

/// One expert's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertWeights {
    /// `[2 × mlp, hidden]`: gate over up.
    pub gate_up: WeightId,
    /// `[hidden, mlp]`.
    pub down: WeightId,
}

/// One operation. Shapes: `R` rows of the step, `W` wanted rows.
///
/// More will follow (`Send`/`Receive` of a pipeline split): hence non-exhaustive.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// `output[r] = table[token(r)] × scale`; table `[vocabulary, width]`, whole on every device; quantised tables are
    /// expanded (`q × scale of the block`). A tied table is the output head's weight: it is not kept twice.
    Embed {
        /// The table.
        table: WeightId,
        /// Multiplies every value; 1 changes none.
        scale: f32,
        /// `[R][hidden]`.
        output: BufferId,
    },
    /// `output[r][i] = residual[r][i] + (input[r][i] × (1 / √(mean(input[r]²) + eps))) × weight[i]`.
    RmsNorm {
        /// `[rows][n]`.
        input: BufferId,
        /// Vector of `n`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
        /// A buffer of the output's shape added last; may be the output itself (in place).
        residual: Option<BufferId>,
        /// `[rows][n]`.
        output: BufferId,
    },
    /// The same norm, without residual, over every query head and every key head by itself, in place.
    HeadNorm {
        /// `[R][(query_heads + 2 × kv_heads) × head_dim]`: q, k, v of each row; v stays as it is.
        qkv: BufferId,
        /// Heads.
        attention: AttentionSpec,
        /// Vector of `head_dim` for all query heads.
        query: WeightId,
        /// Vector of `head_dim` for all key heads.
        key: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// `output[r][n] = epilogue(Σ_k input[r][k] × weight[n][k])`.
    ///
    /// If the weight holds columns that do not start at 0 (a later shard of a K split), the output holds its partial
    /// planes, `[rows][planes][n]`, and the epilogue must be empty.
    Gemm {
        /// Matrix `[n, k]` (its shard).
        weight: WeightId,
        /// `[rows][k]`.
        input: BufferId,
        /// `[rows][n]`, or `[rows][planes × n]`.
        output: BufferId,
        /// Bias and residual.
        epilogue: Epilogue,
    },
    /// Turns q and k by their positions (rotate-half convention: pairs `(i, i + n)` of a table of n frequencies; values
    /// from `2 n` on stay), in place, and appends k and v to the KV cache of `layer`.
    RopeAppend {
        /// Layer of the KV cache.
        layer: usize,
        /// `[R][(query_heads + 2 × kv_heads) × head_dim]`: q, k, v of each row.
        qkv: BufferId,
        /// Heads.
        attention: AttentionSpec,
        /// The table.
        rope: RopeId,
    },
    /// Causal attention of every row's q over its sequence's KV cache, the row itself included.
    Attention {
        /// Layer of the KV cache.
        layer: usize,
        /// As left by `RopeAppend`.
        qkv: BufferId,
        /// `[R][query_heads × head_dim]`.
        output: BufferId,
        /// Heads and scale.
        attention: AttentionSpec,
    },
    /// `output[r][i] = activation(input[r][i]) × input[r][n + i]`.
    GatedMul {
        /// What the gate goes through.
        activation: Activation,
        /// `[rows][2 n]`: gate, then up.
        input: BufferId,
        /// `[rows][n]`.
        output: BufferId,
    },
    /// A mixture of experts over every row; the output must go through an `AllReduce`, which adds the residual, on one
    /// device as on several. Only the rows that chose an expert are multiplied with it.
    Experts {
        /// `[R][hidden]`.
        input: BufferId,
        /// `[R][experts]`: the router's logits.
        router: BufferId,
        /// How rows find their experts.
        spec: ExpertsSpec,
        /// The experts held here, ascending.
        weights: Vec<ExpertWeights>,
        /// `[R][planes × hidden]`, planes as [`ExpertsSpec::planes`] says.
        output: BufferId,
    },
    /// `cap × tanh(value ÷ cap)`, in place.
    SoftCap {
        /// Any.
        buffer: BufferId,
        /// The bound.
        cap: f32,
    },
    /// Keeps the rows whose logits are wanted, in the step's order.
    GatherRows {
        /// `[R][n]`.
        input: BufferId,
        /// `[W][n]`.
        output: BufferId,
    },
    /// The activation sketch: per wanted row 8 sums `Σ_i ±input[i]`, signs from the sequence's noise key and the
    /// position of the token to be sampled (`protocol::noise`), stored as saturating f16. At most one per program.
    Sketch {
        /// `[W][hidden]`: the final normalised hidden state.
        input: BufferId,
    },
    /// Exchange: adds the partial planes of all ranks in range order, then the epilogue.
    AllReduce {
        /// `[rows][planes[rank] × n]`: what a `Gemm` of a K split left.
        input: BufferId,
        /// Planes of every rank ([`crate::KRanges::planes`]); one entry per rank.
        planes: Vec<usize>,
        /// Bias and residual.
        epilogue: Epilogue,
        /// `[rows][n]`.
        output: BufferId,
    },
    /// Exchange: puts the column slices of all ranks beside each other (logits by vocabulary).
    AllGather {
        /// `[rows][widths[rank]]`.
        input: BufferId,
        /// Columns of every rank.
        widths: Vec<usize>,
        /// `[rows][Σ widths]`.
        output: BufferId,
    },
}

impl Op {
    /// Whether it reads what this buffer held before.
    pub(crate) fn reads(&self, buffer: BufferId) -> bool {
        match self {
            Op::Embed { .. } => false,
            Op::RmsNorm { input, residual, .. } => *input == buffer || *residual == Some(buffer),
            Op::HeadNorm { qkv, .. } | Op::RopeAppend { qkv, .. } | Op::Attention { qkv, .. } => *qkv == buffer,
            Op::Gemm { input, epilogue, .. } | Op::AllReduce { input, epilogue, .. } => {
                *input == buffer || epilogue.residual == Some(buffer)
            }
            Op::GatedMul { input, .. } | Op::GatherRows { input, .. } | Op::Sketch { input } => *input == buffer,
            Op::AllGather { input, .. } => *input == buffer,
            Op::Experts { input, router, .. } => *input == buffer || *router == buffer,
            Op::SoftCap { buffer: own, .. } => *own == buffer,
        }
    }
}

/// Inverse frequencies of a RoPE table; the table itself is computed at build for `Limits::positions`:
/// angle = position × frequency in f32, sine and cosine of that angle in f64 ([`polylink_protocol::exact_math`]), each
/// rounded to f32 and multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// At most `head_dim / 2` values, as many as pairs are turned; see `exact_math::rope_frequencies`.
    pub frequencies: Vec<f32>,
    /// Multiplies sine and cosine (YaRN's attention factor); usually 1.
    pub scale: f32,
    /// How frequencies fall beyond the length that the model was trained with; `None`: they do not.
    pub growth: Option<RopeGrowth>,
    /// The frequencies of sequences that are said to be long ([`crate::SequenceRows::long`]), as many; `None`: the same.
    pub long: Option<Vec<f32>>,
}

/// Dynamic NTK scaling: position `p ≥ trained` is turned as the last one of a sequence of `p + 1` is, with the
/// frequencies of base `base × (factor × (p + 1) ÷ trained − (factor − 1))^(n ÷ (n − 2))`, n values being turned.
///
/// A function of the position alone, so that neither chunks nor batch nor replay change a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeGrowth {
    /// Base of the frequencies up to `trained`.
    pub base: f64,
    /// Scaling factor.
    pub factor: f64,
    /// Positions below it use [`RopeSpec::frequencies`].
    pub trained: usize,
}

impl RopeGrowth {
    /// Frequencies of one position beyond `trained`, `pairs` of them.
    pub fn frequencies(&self, position: usize, pairs: usize) -> Vec<f32> {
        let (turned, length) = (2 * pairs, (position + 1) as f64);
        let stretch = self.factor * length / self.trained as f64 - (self.factor - 1.0);
        let exponent = turned as f64 / (turned as f64 - 2.0);
        rope_frequencies(self.base * exp_f64(ln_f64(stretch) * exponent), turned)
    }
}

/// A whole forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Activation buffers; [`BufferId`]s index them.
    pub buffers: Vec<BufferSpec>,
    /// RoPE tables; [`RopeId`]s index them.
    pub ropes: Vec<RopeSpec>,
    /// In order of execution.
    pub ops: Vec<Op>,
    /// The cache of this device.
    pub kv: KvSpec,
    /// `[W][vocabulary]`: where the logits are at the end.
    pub logits: BufferId,
    /// Tokens of the (unsharded) vocabulary.
    pub vocabulary: usize,
}

/// Builds a [`Program`].
#[derive(Clone, Debug)]
pub struct ProgramBuilder {
    buffers: Vec<BufferSpec>,
    ropes: Vec<RopeSpec>,
    ops: Vec<Op>,
    kv: KvSpec,
    vocabulary: usize,
}

impl ProgramBuilder {
    /// Starts an empty program.
    pub fn new(kv: KvSpec, vocabulary: usize) -> Self {
        Self { buffers: Vec::new(), ropes: Vec::new(), ops: Vec::new(), kv, vocabulary }
    }

    /// A buffer with one row per input token.
    pub fn step_buffer(&mut self, width: usize) -> BufferId {
        self.buffer(width, RowKind::Step)
    }

    /// A buffer with one row per wanted row.
    pub fn wanted_buffer(&mut self, width: usize) -> BufferId {
        self.buffer(width, RowKind::Wanted)
    }

    fn buffer(&mut self, width: usize, rows: RowKind) -> BufferId {
        self.buffers.push(BufferSpec { width, rows });
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// A RoPE table.
    pub fn rope(&mut self, rope: RopeSpec) -> RopeId {
        self.ropes.push(rope);
        RopeId(self.ropes.len() as u32 - 1)
    }

    /// Appends an operation.
    pub fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// A matrix product whose K dimension may be split over devices: one `Gemm`, and an `AllReduce` when `planes` (one
    /// entry per rank) has more than one. `output` and `residual` are `[rows][n]`.
    pub fn row_parallel(
        &mut self,
        weight: WeightId,
        input: BufferId,
        planes: &[usize],
        rank: usize,
        epilogue: Epilogue,
        output: BufferId,
    ) -> &mut Self {
        if planes.len() <= 1 {
            return self.push(Op::Gemm { weight, input, output, epilogue });
        }
        let BufferSpec { width, rows } = self.buffers[output.0 as usize];
        let partial = self.buffer(width * planes[rank], rows);
        self.push(Op::Gemm { weight, input, output: partial, epilogue: Epilogue::default() });
        self.push(Op::AllReduce { input: partial, planes: planes.to_vec(), epilogue, output })
    }

    /// A matrix product whose outputs (the vocabulary) may be split over devices: one `Gemm`, and an `AllGather` when
    /// `widths` (one entry per rank) has more than one.
    pub fn column_parallel_gathered(
        &mut self,
        weight: WeightId,
        input: BufferId,
        widths: &[usize],
        rank: usize,
        output: BufferId,
    ) -> &mut Self {
        if widths.len() <= 1 {
            return self.push(Op::Gemm { weight, input, output, epilogue: Epilogue::default() });
        }
        let rows = self.buffers[output.0 as usize].rows;
        let slice = self.buffer(widths[rank], rows);
        self.push(Op::Gemm { weight, input, output: slice, epilogue: Epilogue::default() });
        self.push(Op::AllGather { input: slice, widths: widths.to_vec(), output })
    }

    /// The program; it is checked by [`crate::Backend::build`].
    pub fn finish(self, logits: BufferId) -> Program {
        let Self { buffers, ropes, ops, kv, vocabulary } = self;
        Program { buffers, ropes, ops, kv, logits, vocabulary }
    }
}
