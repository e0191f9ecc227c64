//! A [`Backend`] on one GPU.
//!
//! The device's memory is allocated by `build`. A step's inputs go to the device in a few copies (`inputs.rs`); its kernels were
//! recorded for the sizes of its [`Bucket`] and are submitted as one graph. Draws are submitted behind it and read its logits
//! where they are. A second step may be submitted meanwhile: it is fed with what the first one draws, on the device. The host
//! waits once a step, for the tokens.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::CudaUnavailable;
use super::activations::{self, Activation, Forms};
use super::attend::Attend;
use super::driver::{CudaError, Device, DeviceBuffer, Graph, Launch};
use super::exact::products::ExactProducts;
use super::gemm::GemmKernels;
use super::inputs::{Bucket, Counts};
use super::lower::{self, Lowering};
use super::mixture::{Mixture, MixtureMemory};
use super::ropes::DeviceRope;
use super::rows::RowKernels;
use super::sampling::{DEPTH, Sampler, SamplerShape};
use super::weights::{self, Packed, Weight};
use crate::backend::{
    Backend, BackendError, KRanges, KvDtype, KvLayout, KvSpec, Limits, Part, Ticket, WeightForm, WeightId,
};
use crate::collective::Collective;
use crate::executor::SlotState;
use crate::plan;
use crate::program::{Op, Program, RowKind};
use crate::sampler::SlotHistory;
use crate::step::{ForwardStep, SKETCH_VALUES, SampleStep, Sampled, Step, StepOutput};
use crate::step_check;

mod experts;
mod passage;

use self::passage::Passage;

/// Positions per block of the cache.
pub(super) const BLOCK_TOKENS: usize = 32;
/// Bytes that a device keeps free, for the driver and for what others do with it.
const RESERVE_BYTES: usize = 512 << 20;
/// Recorded buckets; one more, and all are forgotten and recorded anew as they come.
const RECORDED_MAX: usize = 256;

/// A program on a GPU.
pub struct CudaBackend {
    device: Arc<Device>,
    name: String,
    rows: RowKernels,
    gemm: GemmKernels,
    exact: ExactProducts,
    weights: Vec<Weight>,
    built: Option<Built>,
    /// Set when the device has failed: all further steps are refused.
    broken: bool,
    /// Whether steps are recorded as graphs.
    records: bool,
}

struct Built {
    program: Program,
    limits: Limits,
    activations: Vec<Activation>,
    gated: Vec<bool>,
    ropes: Vec<DeviceRope>,
    attend: Attend,
    mixtures: Vec<Option<Mixture>>,
    mixture_memory: Option<MixtureMemory>,
    sampler: Sampler,
    cache: DeviceBuffer,
    inputs: DeviceBuffer,
    used: Vec<Range<usize>>,
    recorded: HashMap<Bucket, Recorded>,
    sketches: DeviceBuffer,
    slots: SlotState,
    samples: Vec<Sampled>,
    next_ticket: u64,
    passages: [Passage; DEPTH],
    /// The passage of the last forward step: what is sampled from.
    newest: usize,
}

/// A bucket's launches, and, from the second time on, their graph.
struct Recorded {
    launches: Vec<Launch>,
    graph: Option<Graph>,
}

impl CudaBackend {
    /// Opens a GPU of the driver's list.
    ///
    /// # Errors
    /// [`CudaUnavailable`]: no driver, no such device, one that is too old, or no kernels in this program.
    pub fn open(ordinal: usize) -> Result<Self, CudaUnavailable> {
        let device = Device::open(ordinal)?;
        let driver = |error: CudaError| CudaUnavailable::Driver(error.to_string());
        let (major, minor) = device.capability();
        Ok(Self {
            name: format!("cuda-sm{major}{minor}"),
            rows: RowKernels::load(&device).map_err(driver)?,
            gemm: GemmKernels::new(&device).map_err(driver)?,
            exact: ExactProducts::new(&device).map_err(driver)?,
            weights: Vec::new(),
            built: None,
            broken: false,
            records: true,
            device,
        })
    }

    /// Launches kernels one by one instead of as graphs: for measurements, and for tools that look at kernels.
    pub fn without_graphs(mut self) -> Self {
        self.records = false;
        self
    }

    /// Seconds from when the last forward step reached the device until the draws behind it were done, both waited for; the
    /// rest of a step is the host's.
    #[doc(hidden)]
    pub fn device_seconds(&self) -> Option<f64> {
        let built = self.built.as_ref()?;
        let passage = &built.passages[built.newest];
        passage.begun.seconds_until(&passage.sample_done).ok()
    }

    /// The device's marketing name.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// By operation, whether a product makes its gate itself.
    fn gated(&self, program: &Program) -> Vec<bool> {
        lower::gated(program, &|id| match &self.weights[id.0 as usize] {
            Weight::Matrix(matrix) => matches!(&matrix.packed, Packed::Tiles(tiles) if tiles.can_interleave()),
            Weight::Vector { .. } | Weight::Moved => false,
        })
    }

    fn planned(&self, program: &Program, limits: &Limits, gated: &[bool]) -> Vec<Activation> {
        let exact = !(self.tensor(program) && Attend::is_tensor(&self.device, program));
        activations::plan(program, limits, &|id| Forms::of_input(&self.weights[id.0 as usize]), exact, gated)
    }

    /// Whether products are of bf16 on tensor cores.
    fn tensor(&self, program: &Program) -> bool {
        program.ops.iter().any(|op| match op {
            Op::Gemm { weight, .. } => match &self.weights[weight.0 as usize] {
                Weight::Matrix(matrix) => matches!(matrix.packed, Packed::Tiles(_)),
                Weight::Vector { .. } | Weight::Moved => false,
            },
            _ => false,
        })
    }

    fn bucket(&self, built: &Built, step: &ForwardStep<'_>, wanted: usize) -> Bucket {
        let up = |count: usize, most: usize| count.next_power_of_two().min(most);
        let rows = up(step.tokens.len(), built.limits.rows);
        let wanted = match wanted {
            0 => 0,
            count => up(count, built.limits.wanted_rows),
        };
        let sequences = rows.min(built.limits.slots);
        Bucket { rows, wanted, sequences, plan_words: built.attend.plan_words(rows, sequences) }
    }

    fn forward(&mut self, step: &ForwardStep<'_>) -> Result<(), BackendError> {
        let Some(mut built) = self.built.take() else { return Err(not_built()) };
        let result = self.forward_with(&mut built, step);
        self.built = Some(built);
        result
    }

    fn forward_with(&mut self, built: &mut Built, step: &ForwardStep<'_>) -> Result<(), BackendError> {
        let (limits, vocabulary) = (built.limits, built.program.vocabulary);
        built.newest = (built.newest + 1) % DEPTH;
        let Built { slots, passages, newest, .. } = &mut *built;
        let passage = &mut passages[*newest];
        passage.logits_out = step.logits_out;
        let rows = &mut passage.rows;
        if let Err(refused) = step_check::forward(step, &limits, BLOCK_TOKENS, vocabulary, &slots.last_sample, rows) {
            rows.clear();
            return Err(refused);
        }
        if step.tokens.is_empty() {
            passage.forward_done.record()?;
            return Ok(());
        }
        let wanted = passage.rows.wanted.len();
        let bucket = self.bucket(built, step, wanted);
        let Built { attend, passages, newest, used, inputs, .. } = &mut *built;
        let passage = &mut passages[*newest];
        let words = passage.staging.as_mut_slice();
        bucket.fill(step, &passage.rows, words, used, |words, counts: &mut Counts, used| {
            attend.plan(step, &bucket, words, counts, used);
        });
        self.device.bind()?;
        passage.begun.record()?;
        for range in used.iter().filter(|range| !range.is_empty()) {
            self.device.upload_from(&passage.staging, range.clone(), inputs.ptr() + 4 * range.start as u64)?;
        }
        self.run(built, bucket)?;
        let Built { passages, newest, sketches, .. } = &mut *built;
        let passage = &mut passages[*newest];
        if wanted > 0 {
            self.device.download(sketches.ptr(), &mut passage.sketches, wanted)?;
        }
        passage.forward_done.record()?;
        Ok(())
    }

    /// Submits a bucket's kernels: one by one the first time, then as a graph.
    fn run(&self, built: &mut Built, bucket: Bucket) -> Result<(), BackendError> {
        if let Some(recorded) = built.recorded.get_mut(&bucket) {
            if self.records && recorded.graph.is_none() {
                let launches = &recorded.launches;
                let graph = self.device.capture(|| launches.iter().try_for_each(|launch| launch.run(&self.device)))?;
                recorded.graph = Some(graph);
            }
            return match &recorded.graph {
                Some(graph) => graph.launch(),
                None => recorded.launches.iter().try_for_each(|launch| launch.run(&self.device)),
            }
            .map_err(BackendError::from);
        }
        let lowering = Lowering {
            program: &built.program,
            weights: &self.weights,
            activations: &built.activations,
            gated: &built.gated,
            ropes: &built.ropes,
            rows: &self.rows,
            gemm: &self.gemm,
            exact: &self.exact,
            attend: &built.attend,
            mixtures: &built.mixtures,
            mixture_memory: built.mixture_memory.as_ref(),
            cache: built.cache.ptr(),
            last_sample: built.sampler.last_sample(),
            sketches: built.sketches.ptr(),
            inputs: bucket.inputs(built.inputs.ptr()),
            bucket,
        };
        let launches = lowering.launches()?;
        launches.iter().try_for_each(|launch| launch.run(&self.device))?;
        if built.recorded.len() >= RECORDED_MAX {
            // A step before may run one of these graphs.
            self.device.synchronize()?;
            built.recorded.clear();
        }
        built.recorded.insert(bucket, Recorded { launches, graph: None });
        Ok(())
    }

    fn sample(&mut self, step: &SampleStep<'_>) -> Result<(), BackendError> {
        let Some(built) = &mut self.built else { return Err(not_built()) };
        let Built { passages, newest, slots, program, limits, sampler, .. } = built;
        let passage = &passages[*newest];
        step_check::sample(step, limits, program.vocabulary, &passage.rows, slots)?;
        sampler.prepare(step, slots)?;
        sampler.submit(step, slots)?;
        passage.sample_done.record()?;
        // What is drawn is known to the device before it is known here.
        for job in slots.jobs.iter().filter(|job| job.row.given.is_none()) {
            slots.last_sample[job.row.slot as usize].get_or_insert(0);
        }
        Ok(())
    }
}

fn not_built() -> BackendError {
    BackendError::Step("no program was built on this backend".into())
}

/// Bytes of a block of the cache.
fn block_bytes(kv: &KvSpec) -> usize {
    let position = match kv.dtype {
        KvDtype::F32 => 4 * kv.head_dim,
        KvDtype::Bf16 => 2 * kv.head_dim,
        KvDtype::Int8 | KvDtype::Fp8 => kv.head_dim + 4,
    };
    2 * kv.layers * kv.heads * BLOCK_TOKENS * position
}

impl Backend for CudaBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, parts: &[Part<'_>], ranges: KRanges, form: WeightForm) -> Result<WeightId, BackendError> {
        self.device.bind()?;
        let weight = weights::prepare(&self.device, parts, ranges, form)?;
        self.weights.push(weight);
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    fn kv_layout(&self, spec: &KvSpec) -> KvLayout {
        KvLayout { block_tokens: BLOCK_TOKENS, bytes_per_block: block_bytes(spec) }
    }

    fn cache_room(&self, program: &Program, limits: &Limits) -> Option<usize> {
        let free = self.device.free_bytes().ok()?;
        let gated = self.gated(program);
        let activations: usize = self.planned(program, limits, &gated).iter().map(Activation::bytes).sum();
        let ropes: usize = program.ropes.iter().map(|spec| DeviceRope::bytes(spec, limits.positions)).sum();
        let sampler = Sampler::bytes_for(sampler_shape(program, limits, 0));
        // Interleaved weights are made one at a time; attention's scratch is small.
        let mixtures = self.mixture_sizes(program, limits).map_or(0, |sizes| sizes.bytes());
        let taken = activations + ropes + sampler + mixtures + RESERVE_BYTES + RESERVE_BYTES / 2;
        Some((free.saturating_sub(taken) as f64 * 0.97) as usize)
    }

    fn build(&mut self, program: Program, limits: Limits, collective: Box<dyn Collective>) -> Result<(), BackendError> {
        if collective.world() != 1 {
            let reason = "a model split over several devices is not computed by a GPU yet";
            return Err(BackendError::Unavailable(reason.into()));
        }
        let kind = |id: WeightId| self.weights.get(id.0 as usize).map(Weight::kind);
        plan::check(&program, &kind, &limits, 0, 1)?;
        let gated = self.gated(&program);
        let device = Arc::clone(&self.device);
        for (op, _) in program.ops.iter().zip(&gated).filter(|(_, gated)| **gated) {
            if let Op::Gemm { weight, .. } = op
                && let Weight::Matrix(matrix) = &mut self.weights[weight.0 as usize]
                && let Packed::Tiles(tiles) = &mut matrix.packed
            {
                tiles.interleave(&device)?;
            }
        }
        let mixture_memory = self.mixture_sizes(&program, &limits)?.allocate(&device)?;
        let mixtures = self.mixtures(&program)?;
        let tensor = self.tensor(&program);
        let activations = activations::allocate(&device, self.planned(&program, &limits, &gated))?;
        let attend = Attend::new(&device, &program, &limits, tensor)?;
        let ropes = program.ropes.iter().map(|spec| DeviceRope::new(&device, spec, limits.positions));
        let ropes = ropes.collect::<Result<Vec<_>, _>>()?;
        let logits = &activations[program.logits.0 as usize];
        let sampler = Sampler::new(&device, sampler_shape(&program, &limits, logits.f32()))?;
        let largest = Bucket {
            rows: limits.rows,
            wanted: limits.wanted_rows,
            sequences: limits.slots.min(limits.rows),
            plan_words: attend.plan_words(limits.rows, limits.slots.min(limits.rows)),
        };
        let entries = limits.slots * limits.positions.div_ceil(BLOCK_TOKENS);
        // A smaller bucket may have a longer plan (its tiles are narrower).
        let plan_words = (0..usize::BITS).map(|bit| 1usize << bit).take_while(|rows| *rows < limits.rows);
        let plan_words = plan_words.map(|rows| attend.plan_words(rows, rows.min(limits.slots))).max().unwrap_or(0);
        let words = Bucket { plan_words: plan_words.max(largest.plan_words), ..largest }.words(entries);
        let history = || SlotHistory { tokens: Vec::with_capacity(limits.positions), ..SlotHistory::default() };
        let slots = SlotState {
            last_sample: vec![None; limits.slots],
            histories: (0..limits.slots).map(|_| history()).collect(),
            jobs: Vec::with_capacity(limits.wanted_rows),
            scratch: Vec::new(),
        };
        let cache = device.alloc(limits.kv_blocks.saturating_mul(block_bytes(&program.kv)))?;
        self.built = Some(Built {
            sampler,
            cache,
            inputs: device.alloc(4 * words)?,
            used: Vec::with_capacity(16),
            recorded: HashMap::with_capacity(RECORDED_MAX),
            sketches: device.alloc(limits.wanted_rows * size_of::<[u16; SKETCH_VALUES]>())?,
            slots,
            samples: Vec::with_capacity(limits.wanted_rows),
            next_ticket: 0,
            passages: [Passage::new(&device, words, &limits)?, Passage::new(&device, words, &limits)?],
            newest: 0,
            activations,
            gated,
            ropes,
            attend,
            mixtures,
            mixture_memory,
            program,
            limits,
        });
        device.synchronize()?;
        Ok(())
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, BackendError> {
        if self.broken {
            return Err(BackendError::Device("CUDA: the device has failed in an earlier step".into()));
        }
        let Some(built) = &self.built else { return Err(not_built()) };
        let refused = match step {
            Step::Forward(_) => built.passages[(built.newest + 1) % DEPTH].is_under_way(),
            Step::Sample(_) => built.passages[built.newest].sample.is_some(),
        };
        if refused {
            return Err(BackendError::Step("the step before was not waited for".into()));
        }
        self.device.bind()?;
        let result = match step {
            Step::Forward(step) => self.forward(step),
            Step::Sample(step) => self.sample(step),
        };
        self.broken |= matches!(result, Err(BackendError::Device(_)));
        result?;
        let Some(built) = &mut self.built else { return Err(not_built()) };
        built.next_ticket += 1;
        let ticket = Ticket(built.next_ticket);
        let passage = &mut built.passages[built.newest];
        match step {
            Step::Forward(_) => passage.forward = Some(ticket),
            Step::Sample(_) => passage.sample = Some(ticket),
        }
        Ok(ticket)
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn wait(&mut self, ticket: Ticket, output: &mut StepOutput) -> Result<(), BackendError> {
        let Some(built) = &mut self.built else { return Err(not_built()) };
        let order = [(built.newest + 1) % DEPTH, built.newest];
        let Some(index) = order.into_iter().find(|index| built.passages[*index].is_under_way()) else {
            return Err(BackendError::Step("this step was waited for already".into()));
        };
        if built.passages[index].oldest() != Some(ticket) {
            return Err(BackendError::Step(format!("ticket {} is not the oldest one under way", ticket.0)));
        }
        let result = match built.passages[index].forward.take() {
            Some(_) => built.take_forward(index, output),
            None => {
                built.passages[index].sample = None;
                built.take_samples(index, output)
            }
        };
        self.broken |= matches!(result, Err(BackendError::Device(_)));
        result
    }
}

impl Built {
    fn take_forward(&mut self, index: usize, output: &mut StepOutput) -> Result<(), BackendError> {
        let passage = &self.passages[index];
        passage.forward_done.wait()?;
        let wanted = passage.rows.wanted.len();
        output.sketches.clear();
        if self.program.ops.iter().any(|op| matches!(op, Op::Sketch { .. })) {
            output.sketches.extend_from_slice(&passage.sketches.as_slice()[..wanted]);
        }
        output.logits.clear();
        if passage.logits_out {
            let logits = &self.activations[self.program.logits.0 as usize];
            if let Some(buffer) = logits.f32_buffer() {
                output.logits.extend_from_slice(&buffer.read::<f32>(0, wanted * logits.width)?);
            }
        }
        Ok(())
    }

    fn take_samples(&mut self, index: usize, output: &mut StepOutput) -> Result<(), BackendError> {
        self.passages[index].sample_done.wait()?;
        self.sampler.take(&mut self.slots, &mut self.samples)?;
        output.samples.clear();
        output.samples.extend_from_slice(&self.samples);
        Ok(())
    }
}

fn sampler_shape(program: &Program, limits: &Limits, logits: u64) -> SamplerShape {
    debug_assert!(program.buffers[program.logits.0 as usize].rows == RowKind::Wanted, "checked by the plan");
    SamplerShape { limits: *limits, vocabulary: program.vocabulary, logits, logits_stride: program.vocabulary }
}
