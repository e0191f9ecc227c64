//! The border between a model and the device that runs it.
//!
//! A model definition (not in this crate) turns its weights into [`WeightId`]s with [`Backend::prepare`], writes its
//! forward pass down as a [`Program`] (data, not code: a CPU walks it, a GPU captures it in a graph), and hands both to
//! [`Backend::build`], which allocates **one arena**. From then on the engine only submits [`Step`]s.
//!
//! What always holds:
//! * After `build` nothing is allocated: `submit` and `wait` work inside the arena. (A GPU's host makes and records the launches
//!   of a new size of steps, and reads logits for a replay through memory of their size.)
//! * A row's result does not depend on what else is in the step (batch invariance): every sum has an order fixed by the
//!   tensor's unsharded shape alone. For the exact profiles (f32, int8) it does not depend on the device either
//!   (`docs/numerics.md`).
//! * A backend knows rows, slots and block numbers. It does not know requests, files or prices.
//!
//! Two implementations: [`crate::ReferenceBackend`], plain loops that say what is right, and [`crate::CpuBackend`].

use std::ops::Range;

use crate::collective::{Collective, CollectiveError};
use crate::program::Program;
use crate::step::{Step, StepOutput};

/// A weight prepared by a backend: opaque, packed for its device, valid for the backend that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightId(pub(crate) u32);

/// Element type of a tensor as it lies in a file; little-endian. The blocks are those of ggml, along the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE binary16.
    F16,
    /// 32 integers of 8 bits and their scale.
    Q8_0,
    /// 32 integers of 4 bits and their scale.
    Q4_0,
    /// 256 integers of 4 bits; a scale and a minimum of 6 bits per 32.
    Q4K,
    /// 256 integers of 5 bits; a scale and a minimum of 6 bits per 32.
    Q5K,
    /// 256 integers of 6 bits; a scale of 8 bits per 16.
    Q6K,
    /// 128 numbers of e4m3 and their scale, an f32 behind them; values are numbers × scale in f32. (Not ggml's: what a folder
    /// of fp8 is read as.)
    Fp8,
}

impl Dtype {
    /// Values of a block, and its bytes. Floats are blocks of one.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 4),
            Dtype::Bf16 | Dtype::F16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
            Dtype::Fp8 => (128, 132),
        }
    }

    /// Whether its values are plain floats, not blocks.
    pub const fn is_float(self) -> bool {
        self.block().0 == 1
    }

    /// Whether it is blocks of integers, which [`WeightForm::Stored`] computes with in exact int8.
    pub const fn is_integers(self) -> bool {
        !self.is_float() && !matches!(self, Dtype::Fp8)
    }

    /// Bytes of a row of `values`; None if they are no whole blocks, or too many to count.
    pub const fn row_bytes(self, values: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        if values.is_multiple_of(block) { (values / block).checked_mul(bytes) } else { None }
    }

    /// Bytes of a tensor of this shape, its last dimension being cut into blocks; None as for [`Dtype::row_bytes`].
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (&last, rest) = shape.split_last()?;
        rest.iter().try_fold(self.row_bytes(last)?, |bytes, &n| bytes.checked_mul(n))
    }
}

/// A tensor of a model file, borrowed (typically from a memory map; no alignment is asked for).
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file; only used in errors.
    pub name: &'a str,
    /// `[n]` for a vector, `[n, k]` (row-major: `n` outputs of `k` inputs, as in `torch.nn.Linear`) for a matrix.
    pub shape: &'a [usize],
    /// Element type.
    pub dtype: Dtype,
    /// `dtype.bytes(shape)` bytes.
    pub data: &'a [u8],
}

/// The part of an **unsharded** tensor `[n, k]` that one device holds.
///
/// | split | rows | columns |
/// | --- | --- | --- |
/// | nothing | `0..n` | `0..k` |
/// | q, k, v projection by heads | `first_head × head_dim .. last_head × head_dim` | `0..k` |
/// | gate, up by MLP columns | own columns | `0..k` |
/// | output projection by KV groups | `0..n` | own heads × head_dim |
/// | down projection | `0..n` | own MLP columns |
/// | output head by vocabulary | own tokens | `0..k` |
///
/// `columns` must start and end on a border of the weight's [`KRanges`] (or at `k`). For a vector, `rows` selects
/// elements and `columns` is `0..1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Outputs held (rows of the tensor).
    pub rows: Range<usize>,
    /// Inputs held (columns of the tensor).
    pub columns: Range<usize>,
}

impl Shard {
    /// All of a tensor of this shape (`[n]` or `[n, k]`).
    pub fn whole(shape: &[usize]) -> Self {
        Self { rows: 0..shape.first().copied().unwrap_or(0), columns: 0..shape.get(1).copied().unwrap_or(1) }
    }

    /// Some outputs of `[n, k]`: heads × head_dim, MLP columns or vocabulary.
    pub fn rows(rows: Range<usize>, k: usize) -> Self {
        Self { rows, columns: 0..k }
    }

    /// Some inputs of `[n, k]`.
    pub fn columns(n: usize, columns: Range<usize>) -> Self {
        Self { rows: 0..n, columns }
    }
}

/// How the K dimension (inputs) of a matrix is cut into ranges; it follows the unsharded tensor, never the split.
///
/// Each output sums every range in one fma chain, k ascending from 0, and a running total takes the ranges in order
/// (numerics rule 2). A split over K hands out whole ranges, so that it changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KRanges {
    /// Inputs of the unsharded tensor.
    pub inputs: usize,
    /// Inputs per range (the last may be shorter).
    pub length: usize,
}

impl KRanges {
    /// One range: every projection whose inputs are the hidden state (q, k, v, gate, up, output head).
    pub const fn whole(inputs: usize) -> Self {
        Self { inputs, length: inputs }
    }

    /// The output projection: one range per KV group, `group_width = query heads per KV head × head_dim`.
    pub const fn kv_groups(inputs: usize, group_width: usize) -> Self {
        Self { inputs, length: group_width }
    }

    /// The down projection: at most 16 ranges, each the same multiple of 32.
    pub const fn mlp(inputs: usize) -> Self {
        Self { inputs, length: 32 * inputs.div_ceil(32).div_ceil(16) }
    }

    /// Number of ranges in the unsharded tensor.
    pub const fn count(&self) -> usize {
        if self.length == 0 { 0 } else { self.inputs.div_ceil(self.length) }
    }

    /// Planes of partial sums that the holder of `columns` sends into an all-reduce: the first shard one (its running
    /// total), any other one per range.
    pub const fn planes(&self, columns: &Range<usize>) -> usize {
        if columns.start == 0 { 1 } else { (columns.end - columns.start).div_ceil(self.length) }
    }
}

/// How a weight is kept and computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// A vector of f32 (norm weights, biases).
    Vector,
    /// A matrix of f32, bf16 or e4m3 (as the tensor is), computed in exact f32.
    Float,
    /// A matrix of bf16 (rounded to it if the tensor is wider), computed in bf16 pairs: numerics `vdp-bf16`, not exact.
    Bf16,
    /// As [`WeightForm::Bf16`], in the order of AMX tiles: numerics `amx-bf16`.
    AmxBf16,
    /// A matrix of bf16 for the tensor cores of a GPU: numerics `sm90-bf16`, not exact; of e4m3 it is kept, and rounded where it
    /// is used. A CPU, which has none, computes it as [`WeightForm::Bf16`]: other bits, near enough for a judge's margins.
    TensorBf16,
    /// A matrix of 8-bit integers, one f16 scale per 32 inputs; quantised here unless given so; exact int8.
    Q8_0,
    /// A matrix of 4-bit integers, one f16 scale per 32 inputs; exact int8.
    Q4_0,
    /// A matrix of 4-bit integers in blocks of 256, a scale and a minimum per 32 inputs; exact int8.
    Q4K,
    /// As [`WeightForm::Q4K`], of 5-bit integers.
    Q5K,
    /// A matrix of 6-bit integers in blocks of 256, a scale per 16 inputs; exact int8.
    Q6K,
    /// As each of the tensors is: floats as [`WeightForm::Float`], blocks in exact int8 as they are. The parts may differ.
    Stored,
}

/// In which order products of bf16 are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairOrder {
    /// As `vdpbf16ps`: pair by pair, the odd element first.
    Vdp,
    /// As `tdpbf16ps`: in steps of 32 inputs, even and odd elements apart.
    Amx,
}

/// One tensor's share in a weight. Parts are stacked along the outputs (q over k over v; gate over up).
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The unsharded tensor.
    pub tensor: TensorView<'a>,
    /// What this device holds of it.
    pub shard: Shard,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to bf16, the nearest, ties to even: half of the bytes.
    Bf16,
    /// 8-bit integers, one f32 scale per position, head, and key or value (numerics rule 5): about a quarter of the bytes.
    Int8,
    /// Numbers of e4m3, one power of two per position, head, and key or value (numerics rule 5): as many bytes as `Int8`.
    Fp8,
}

/// Shape of the KV cache of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers that keep keys and values.
    pub layers: usize,
    /// KV heads **held by this device** (its shard).
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// How they are kept.
    pub dtype: KvDtype,
}

impl KvSpec {
    /// A cache that keeps f32.
    pub const fn f32(layers: usize, heads: usize, head_dim: usize) -> Self {
        Self { layers, heads, head_dim, dtype: KvDtype::F32 }
    }
}

/// How a backend keeps the KV cache; the pool treats blocks as opaque numbers `0..kv_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Positions per block: sequence position `p` lies in entry `p / block_tokens` of the block table.
    pub block_tokens: usize,
    /// Bytes of one block: keys and values of all layers.
    pub bytes_per_block: usize,
}

/// What one step may contain at most; fixes the size of the arena. A step beyond a limit is refused, never grown into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Input rows (tokens) of one step.
    pub rows: usize,
    /// Rows of one step whose logits are wanted.
    pub wanted_rows: usize,
    /// Slots: sequences that can be under way at once, and sequences in a step.
    pub slots: usize,
    /// KV blocks in the arena.
    pub kv_blocks: usize,
    /// Positions of one sequence, prompt and completion together.
    pub positions: usize,
}

/// A step under way. Every ticket must be waited for, in order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a submitted step must be waited for"]
pub struct Ticket(pub(crate) u64);

/// A device that runs programs. All methods are called by one thread, the engine's.
pub trait Backend: Send {
    /// A short name for logs and for `/metrics`: `cpu-avx512`, `reference`, …
    fn name(&self) -> &str;

    /// Packs a weight. Output `n` of the weight runs over the parts' shards in order; all parts have the same columns.
    /// `ranges` describes the unsharded tensors' K dimension (ignored for vectors). The source may be dropped after.
    ///
    /// # Errors
    /// [`BackendError::Tensor`] for a wrong shape, size, a shard off a range border, or a value that is not finite.
    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<WeightId, BackendError>;

    /// Block size and bytes for a cache of this shape: what the pool needs to know to count blocks.
    fn kv_layout(&self, spec: &KvSpec) -> KvLayout;

    /// Bytes of KV cache that there is room for beside what [`Backend::build`] takes for this program, less a reserve
    /// (`limits.kv_blocks` is not looked at); `None`: the device shares its memory, and somebody else must decide.
    fn cache_room(&self, _program: &Program, _limits: &Limits) -> Option<usize> {
        None
    }

    /// Checks the program against the weights, allocates the arena, and takes the collective (use
    /// [`crate::Solo`] on one device). Called once, after all `prepare`.
    ///
    /// # Errors
    /// [`BackendError::Program`] if the program is inconsistent, [`BackendError::Memory`] if the arena is too large.
    fn build(&mut self, program: Program, limits: Limits, collective: Box<dyn Collective>) -> Result<(), BackendError>;

    /// Forward steps that may be under way at once, each with the draws behind it. Beyond one, the host can plan a step while
    /// the one before is computed, feeding it with [`crate::TokenInput::LastSample`].
    fn depth(&self) -> usize {
        1
    }

    /// Starts a step. On the CPU it is synchronous: the result is there when the call returns. A sample step belongs to the
    /// forward step before it, whether that was waited for or not; a forward step needs that of those before it fewer than
    /// [`Backend::depth`] are under way, draws included.
    ///
    /// # Errors
    /// [`BackendError::Step`] if the step is inconsistent or beyond the limits: nothing was computed. After
    /// [`BackendError::Lost`] or [`BackendError::Poisoned`] the backend refuses all further steps.
    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError>;

    /// Waits for a step and fills in what it gives: a forward step `sketches` (and `logits`, if asked for), a sample
    /// step `samples`. Fields of the other kind are left as they are.
    ///
    /// # Errors
    /// What went wrong in the step; [`BackendError::Step`] for a ticket that is not the oldest one.
    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError>;
}

/// What a backend answers when it cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A tensor does not fit: names it and says what was expected.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Name in the model file.
        name: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The program is inconsistent: a defect of the model definition.
    #[error("program, operation {operation}: {reason}")]
    Program {
        /// Index in the list of operations.
        operation: usize,
        /// What is wrong.
        reason: String,
    },
    /// The arena does not fit in memory.
    #[error(
        "the arena needs {needed_bytes} bytes, which could not be allocated: lower the KV cache size or the token budget"
    )]
    Memory {
        /// Bytes asked for.
        needed_bytes: usize,
    },
    /// What was asked for does not exist on this machine.
    #[error("{0}: choose another backend or instruction set, or let it be detected")]
    Unavailable(String),
    /// The step is inconsistent or beyond the limits; nothing was computed.
    #[error("step refused: {0}")]
    Step(String),
    /// Logits hold a value that is not finite: the weights or the inputs are damaged.
    #[error("logits of row {row} are not finite: the model's weights are damaged or overflow in this numeric profile")]
    NotFinite {
        /// Index among the wanted rows.
        row: usize,
    },
    /// A peer device was lost in the middle of a step; its sequences must be failed or replayed.
    #[error("a peer device was lost: {0}")]
    Lost(#[from] CollectiveError),
    /// The device failed in the middle of its work; the backend must be built anew.
    #[error("{0}: the device must be opened again (is it lost, or out of memory?)")]
    Device(String),
    /// A worker thread panicked; the backend must be built anew.
    #[error("a compute thread panicked in an earlier step: the backend must be restarted")]
    Poisoned,
}
