//! Single operations, for `cargo bench`: the same code that a step runs, without a model around it.

use polylink_protocol::exact_math::f32_to_e4m3_saturating;
use polylink_protocol::noise::{NoiseKey, noise_key};

use crate::backend::{BackendError, Dtype, KRanges, KvDtype, KvSpec, Limits, Part, Shard, TensorView, WeightForm};
use crate::cpu::packed::Packed;
use crate::cpu::{CpuOperations, CpuOptions};
use crate::limits::Unit;
use crate::memory::Aligned;
use crate::operations::{Batch, Operations, Poisoned, Reserve, RopeTable, SketchRow};
use crate::program::{Activation, AttentionSpec, RopeSpec};
use crate::sampler::{SampleContext, SampleJob, SampleScratch, SlotHistory};
use crate::step::{SKETCH_VALUES, SampleParams, SampleRow, Sampled, SequenceRows, Span};
use crate::weights;

/// What is run. Values are made up.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// `[rows, inputs] × [outputs, inputs]ᵀ`, the conversion of its activations included.
    Product {
        /// What the weights are kept as; [`WeightForm::Stored`]: e4m3.
        form: WeightForm,
        /// Rows, outputs, inputs.
        sizes: (usize, usize, usize),
        /// Inputs are summed in ranges, as those of an MLP's down projection, so that a split changes no bit; else in one.
        ranges: bool,
    },
    /// What a product of this form makes of its activations first.
    Convert {
        /// What the weights are kept as.
        form: WeightForm,
        /// Rows, inputs.
        sizes: (usize, usize),
    },
    /// The last `rows` positions of each sequence over all of its `context`.
    Attention(Sequences),
    /// RoPE of the last `rows` positions of each sequence, which are then put into its cache.
    RopeAppend(Sequences),
    /// Rows, width.
    RmsNorm(usize, usize),
    /// SiLU of a gate times its values: rows, width.
    GatedMul(usize, usize),
    /// Rows, width.
    Sketch(usize, usize),
    /// One token for each row.
    Sample {
        /// Rows, vocabulary.
        sizes: (usize, usize),
        /// How.
        params: SampleParams,
        /// Most likely tokens that are told, with the drawn one.
        logprobs: Option<u32>,
    },
}

/// Sequences of a step, all alike.
#[derive(Clone, Copy, Debug)]
pub struct Sequences {
    /// How many.
    pub count: usize,
    /// Rows of each.
    pub rows: usize,
    /// Positions of each, the rows' included.
    pub context: usize,
    /// Query heads, KV heads, values per head.
    pub heads: (usize, usize, usize),
    /// What keys and values are kept as.
    pub kv: KvDtype,
}

/// The least that a kernel must do.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Multiplications and additions of its products; of a kernel that has none, 0.
    pub operations: f64,
    /// What these are made in.
    pub unit: Unit,
    /// Bytes read: weights, keys and values or inputs, each once.
    pub bytes: f64,
}

impl Kernel {
    /// The least that it must do.
    pub fn work(&self) -> Work {
        let values = |count: usize| Work { operations: 0.0, unit: Unit::F32, bytes: 4.0 * count as f64 };
        match *self {
            Self::Product { form, sizes: (rows, outputs, inputs), .. } => {
                let (unit, bits) = match form {
                    WeightForm::Float => (Unit::F32, 16.0), // kept as the bf16 of its file
                    WeightForm::Bf16 | WeightForm::AmxBf16 | WeightForm::TensorBf16 => (Unit::Bf16, 16.0),
                    WeightForm::Q8_0 => (Unit::Int8, 8.5),
                    WeightForm::Q4_0 | WeightForm::Q4K => (Unit::Int8, 4.5),
                    WeightForm::Q5K => (Unit::Int8, 5.5),
                    WeightForm::Q6K => (Unit::Int8, 6.5625),
                    WeightForm::Stored => (Unit::F32, 8.25), // of e4m3
                    WeightForm::Vector => (Unit::F32, 16.0), // no product: `Bench::new` refuses
                };
                let weights = (outputs * inputs) as f64;
                let bytes = weights * bits / 8.0 + 4.0 * (rows * inputs) as f64;
                Work { operations: 2.0 * rows as f64 * weights, unit, bytes }
            }
            Self::Convert { sizes: (rows, inputs), .. } => values(rows * inputs),
            Self::Attention(Sequences { count, rows, context, heads: (query_heads, kv_heads, dim), kv }) => {
                let seen: usize = (context - rows + 1..=context).sum();
                let position = match kv {
                    KvDtype::F32 => 4 * dim,
                    KvDtype::Bf16 => 2 * dim,
                    KvDtype::Int8 | KvDtype::Fp8 => 4 + dim,
                };
                Work {
                    operations: 4.0 * (count * seen * query_heads * dim) as f64,
                    unit: Unit::F32,
                    bytes: 2.0 * (count * context * kv_heads * position) as f64,
                }
            }
            Self::RopeAppend(Sequences { count, rows, heads: (query_heads, kv_heads, dim), .. }) => {
                values(count * rows * (query_heads + 2 * kv_heads) * dim)
            }
            Self::GatedMul(rows, width) => values(2 * rows * width),
            Self::RmsNorm(rows, width) | Self::Sketch(rows, width) | Self::Sample { sizes: (rows, width), .. } => {
                values(rows * width)
            }
        }
    }
}

/// What kernels of one kind need besides the operations.
enum State {
    Product(Packed),
    Convert(Packed),
    Attention(Cache),
    RopeAppend(Cache, RopeTable),
    RmsNorm(Vec<f32>),
    GatedMul(usize),
    Sketch(usize, Vec<SketchRow>, Vec<[u16; SKETCH_VALUES]>),
    Sample { vocabulary: usize, jobs: Vec<SampleJob>, scratch: Vec<SampleScratch>, sampled: Vec<Sampled> },
}

/// A cache and the sequences in it.
struct Cache {
    spec: AttentionSpec,
    kv: KvSpec,
    words: Aligned<f32>,
    sequences: Vec<SequenceRows>,
    block_tables: Vec<u32>,
    sequence_of: Vec<u32>,
    positions: Vec<u32>,
}

impl Cache {
    fn new(operations: &CpuOperations, shape: Sequences) -> Self {
        let Sequences { count, rows, context, heads: (query_heads, kv_heads, head_dim), kv } = shape;
        let kv = KvSpec { layers: 1, heads: kv_heads, head_dim, dtype: kv };
        let blocks = context.div_ceil(operations.block_tokens());
        let sequence = |slot: usize| SequenceRows {
            slot: slot as u32,
            first_position: (context - rows) as u32,
            rows: rows as u32,
            wanted: 1,
            blocks: Span { start: (slot * blocks) as u32, length: blocks as u32 },
            noise_key: NoiseKey(0),
            long: false,
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            spec: AttentionSpec { query_heads, kv_heads, head_dim, scale, window: None, soft_cap: None },
            words: Aligned::zeroed(count * blocks * operations.block_floats(&kv)),
            kv,
            sequences: (0..count).map(sequence).collect(),
            block_tables: (0..(count * blocks) as u32).collect(),
            sequence_of: (0..count * rows).map(|row| (row / rows) as u32).collect(),
            positions: (0..count * rows).map(|row| (context - rows + row % rows) as u32).collect(),
        }
    }

    /// The cache's words, and the rest.
    fn split(&mut self) -> (&mut [f32], &AttentionSpec, &KvSpec, Batch<'_>) {
        let Self { spec, kv, words, sequences, block_tables, sequence_of, positions } = self;
        (words, spec, kv, Batch { sequences, block_tables, sequence_of, positions })
    }

    /// Keys and values of all positions: as many rows as there are in the step, again and again.
    fn fill(&mut self, operations: &mut CpuOperations, rope: &RopeTable, qkv: &mut [f32]) -> Result<(), Poisoned> {
        let (positions, rows) = (self.positions.clone(), self.sequences[0].rows);
        let context = self.sequences[0].first_position + rows;
        for begin in (0..context).step_by(rows as usize) {
            self.positions
                .iter_mut()
                .zip(&positions)
                .for_each(|(to, from)| *to = (begin + from % rows).min(context - 1));
            let (words, spec, kv, batch) = self.split();
            operations.rope_append(spec, rope, &batch, kv, 0, words, qkv)?;
        }
        self.positions = positions;
        Ok(())
    }
}

/// An operation with all that it reads and writes.
pub struct Bench {
    operations: CpuOperations,
    state: State,
    input: Vec<f32>,
    output: Vec<f32>,
}

/// Numbers between -0.5 and 0.5.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    })
    .take(count)
    .collect()
}

impl Bench {
    /// Makes values up.
    ///
    /// # Errors
    /// [`BackendError`] for a form that the sizes do not allow, or instructions that the machine lacks.
    pub fn new(options: CpuOptions, kernel: Kernel) -> Result<Self, BackendError> {
        let mut operations = CpuOperations::new(options)?;
        let (state, input, output) = match kernel {
            Kernel::Product { form, sizes: (rows, outputs, inputs), ranges } => {
                let ranges = if ranges { KRanges::mlp(inputs) } else { KRanges::whole(inputs) };
                let matrix = matrix(&mut operations, form, (rows, outputs, inputs), ranges)?;
                (State::Product(matrix), values(rows * inputs), vec![0.0; rows * outputs])
            }
            Kernel::Convert { form, sizes: (rows, inputs) } => {
                let matrix = matrix(&mut operations, form, (rows, 16, inputs), KRanges::whole(inputs))?;
                (State::Convert(matrix), values(rows * inputs), Vec::new())
            }
            Kernel::Attention(shape) | Kernel::RopeAppend(shape) => {
                let (query_heads, kv_heads, dim) = shape.heads;
                let frequencies =
                    (0..dim / 2).map(|pair| 1.0 / 10_000f32.powf(2.0 * pair as f32 / dim as f32)).collect();
                let spec = RopeSpec { frequencies, scale: 1.0, growth: None, long: None };
                let rope = RopeTable::new(&spec, shape.context);
                let mut cache = Cache::new(&operations, shape);
                let rows = shape.count * shape.rows;
                let mut qkv = values(rows * (query_heads + 2 * kv_heads) * dim);
                cache.fill(&mut operations, &rope, &mut qkv).map_err(|_| BackendError::Poisoned)?;
                let state = match kernel {
                    Kernel::Attention(_) => State::Attention(cache),
                    _ => State::RopeAppend(cache, rope),
                };
                (state, qkv, vec![0.0; rows * query_heads * dim])
            }
            Kernel::RmsNorm(rows, width) => {
                (State::RmsNorm(values(width)), values(rows * width), vec![0.0; rows * width])
            }
            Kernel::GatedMul(rows, width) => {
                (State::GatedMul(width), values(2 * rows * width), vec![0.0; rows * width])
            }
            Kernel::Sketch(rows, width) => {
                let row = |row| SketchRow { noise_key: noise_key(b"bench", row), position: row };
                let state = State::Sketch(width, (0..rows as u32).map(row).collect(), vec![[0; SKETCH_VALUES]; rows]);
                (state, values(rows * width), Vec::new())
            }
            Kernel::Sample { sizes: (rows, vocabulary), params, logprobs } => {
                let none = Span::default();
                let job = |row: u32| SampleJob {
                    row: SampleRow {
                        row,
                        slot: 0,
                        params: SampleParams { noise_key: noise_key(b"bench", row), ..params },
                        logit_bias: none,
                        suppressed: none,
                        mask: none,
                        logprobs,
                        given: None,
                    },
                    position: row,
                };
                let state = State::Sample {
                    vocabulary,
                    jobs: (0..rows as u32).map(job).collect(),
                    scratch: vec![SampleScratch::new(vocabulary); operations.workers()],
                    sampled: vec![Sampled::default(); rows],
                };
                // Logits as a model gives them: the likeliest stand out.
                let logits = values(rows * vocabulary).into_iter().map(|value| 16.0 * value * value * value * 8.0);
                (state, logits.collect(), Vec::new())
            }
        };
        Ok(Self { operations, state, input, output })
    }

    /// Computes it once, as a step would.
    ///
    /// # Errors
    /// [`BackendError::Poisoned`] after a panic in a worker.
    pub fn run(&mut self) -> Result<(), BackendError> {
        let Self { operations, state, input, output } = self;
        let done = match state {
            State::Product(matrix) => operations.gemm(matrix, input, output, None, false),
            State::Convert(matrix) => operations.convert(matrix, input),
            State::Attention(cache) => {
                let (words, spec, kv, batch) = cache.split();
                operations.attention(spec, &batch, kv, 0, words, input, output)
            }
            State::RopeAppend(cache, rope) => {
                let (words, spec, kv, batch) = cache.split();
                operations.rope_append(spec, rope, &batch, kv, 0, words, input)
            }
            State::RmsNorm(weight) => operations.rms_norm(input, weight, 1e-5, false, output),
            State::GatedMul(width) => operations.gated_mul(Activation::Silu, input, output, *width),
            State::Sketch(width, rows, sketches) => operations.sketch(input, *width, rows, sketches),
            State::Sample { vocabulary, jobs, scratch, sampled } => {
                let histories = [SlotHistory::default()];
                let (logit_bias, suppressed, masks) = (&[], &[], &[]);
                let context =
                    SampleContext { vocabulary: *vocabulary, logit_bias, suppressed, masks, histories: &histories };
                operations.sample(jobs, input, &context, scratch, sampled)
            }
        };
        done.map_err(|Poisoned| BackendError::Poisoned)
    }
}

/// Packs made-up weights, and makes room for the activations of so many rows.
fn matrix(
    operations: &mut CpuOperations,
    form: WeightForm,
    (rows, outputs, inputs): (usize, usize, usize),
    ranges: KRanges,
) -> Result<Packed, BackendError> {
    let (shape, values) = ([outputs, inputs], values(outputs * inputs));
    let (dtype, data): (Dtype, Vec<u8>) = if form == WeightForm::Stored {
        let block = |values: &[f32]| {
            let numbers: Vec<u8> = values.iter().map(|&value| f32_to_e4m3_saturating(value)).collect();
            [&numbers[..], &0.5f32.to_le_bytes()].concat()
        };
        (Dtype::Fp8, values.chunks(Dtype::Fp8.block().0).flat_map(block).collect())
    } else {
        (Dtype::Bf16, values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect())
    };
    let tensor = TensorView { name: "weight", shape: &shape, dtype, data: &data };
    let part = Part { tensor, shard: Shard::whole(&shape) };
    let matrix = operations.pack(weights::matrix(&[part], ranges, form)?);
    let limits = Limits { rows, wanted_rows: 1, slots: 1, kv_blocks: 1, positions: 1 };
    operations.reserve(Reserve { limits, converted_inputs: inputs });
    Ok(matrix)
}
