//! The sampler on the device, with the CPU's bits: rule 6 of `docs/numerics.md`, as `crate::sampler` has it.
//!
//! A step uploads one block of parameters, launches two to seven kernels (`kernels/cuda/sampler*.cu`), and
//! copies one array of results back. Slots' last samples and histories stay on the device: a forward step can read the last
//! samples before the host has seen them. Memory is fixed by the limits; the parts are in [`layout::Layout`].

use std::sync::Arc;

use super::driver::{CudaError, Device, DeviceBuffer, DevicePtr, Function, Launch, Pinned};
use crate::backend::{BackendError, Limits};
use crate::executor::SlotState;
use crate::sampler::{NO_TOKEN, NOT_FINITE, SampleJob, SlotHistory};
use crate::step::{SampleStep, Sampled};

mod layout;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use self::layout::SamplerShape;
use self::layout::{Kernel, Layout, Planned, SampleResult};
use self::plan::Plan;

/// Steps that may be under way at once.
pub(crate) const DEPTH: usize = 2;

/// The host's side of a step under way: what the device copies from and to it.
struct Passage {
    upload: Pinned<u64>,
    results: Pinned<SampleResult>,
    jobs: Vec<SampleJob>,
}

/// The sampler's memory on the device, and the steps that are under way there.
pub(crate) struct Sampler {
    device: Arc<Device>,
    layout: Layout,
    arena: DeviceBuffer,
    functions: [Function; 7],
    passages: [Passage; DEPTH],
    /// The passage of the step to come; those before it, as many as are under way, are taken.
    next: usize,
    under_way: usize,
    plan: Plan,
    /// The plan's launches, and what they were made of: mostly that of the step before.
    launches: Vec<Launch>,
    recorded: Vec<Planned>,
}

impl Sampler {
    /// Allocates for these limits.
    pub fn new(device: &Arc<Device>, shape: SamplerShape) -> Result<Self, CudaError> {
        Self::with_layout(device, Layout::new(shape), &shape.limits)
    }

    fn with_layout(device: &Arc<Device>, layout: Layout, limits: &Limits) -> Result<Self, CudaError> {
        let function = |kernel: Kernel| {
            let (module, name, _) = kernel.entry();
            device.function(module, name)
        };
        let [adjust, scan, weigh, cut, draw, logprobs, finish] = Kernel::ALL.map(function);
        let arena = device.alloc(layout.bytes)?;
        arena.fill(0)?;
        let passage = || -> Result<Passage, CudaError> {
            Ok(Passage {
                upload: device.pinned(layout.upload_words)?,
                results: device.pinned(limits.wanted_rows)?,
                jobs: Vec::with_capacity(limits.wanted_rows),
            })
        };
        Ok(Self {
            device: Arc::clone(device),
            functions: [adjust?, scan?, weigh?, cut?, draw?, logprobs?, finish?],
            passages: [passage()?, passage()?],
            next: 0,
            under_way: 0,
            plan: Plan::new(limits),
            launches: Vec::new(),
            recorded: Vec::new(),
            arena,
            layout,
        })
    }

    /// The slots' last samples, `[slots]` u32.
    pub fn last_sample(&self) -> DevicePtr {
        self.arena.ptr() + self.layout.last_sample as u64
    }

    /// Bytes on the device, for this shape.
    pub fn bytes_for(shape: SamplerShape) -> usize {
        Layout::new(shape).bytes
    }

    /// Prepares a step that `step_check::sample` has accepted: `slots` has its jobs and its starts. Fewer than [`DEPTH`] may be
    /// under way; the tokens that these draw are not in `slots` yet, so that of their slots none may have penalties.
    ///
    /// # Errors
    /// [`BackendError::Step`] if its biases, suppressed tokens and masks are more than there is room for.
    pub fn prepare(&mut self, step: &SampleStep<'_>, slots: &SlotState) -> Result<(), BackendError> {
        let SlotState { jobs, histories, .. } = slots;
        let passage = &mut self.passages[self.next];
        self.plan.make(&self.layout, step, jobs, histories, self.arena.ptr(), passage.upload.as_mut_slice())?;
        passage.jobs.clone_from(jobs);
        if self.recorded != self.plan.launches {
            self.recorded.clone_from(&self.plan.launches);
            self.launches.clear();
            self.launches.extend(self.recorded.iter().map(|planned| {
                let (_, _, block) = planned.kernel.entry();
                Launch::new(&self.functions[planned.kernel as usize], planned.grid, block, 0, planned.args)
            }));
        }
        Ok(())
    }

    /// Uploads and launches the prepared step; `step` and `slots` as they were prepared.
    pub fn submit(&mut self, step: &SampleStep<'_>, slots: &SlotState) -> Result<(), CudaError> {
        for start in step.starts {
            // A history waits for what is under way: once in a sequence, and only where there are penalties.
            let SlotHistory { tokens, .. } = &slots.histories[start.slot as usize];
            let at = self.layout.histories + 4 * start.slot as usize * self.layout.positions();
            self.arena.write(at, tokens)?;
        }
        let passage = &mut self.passages[self.next];
        if !passage.jobs.is_empty() {
            self.device.bind()?;
            self.device.upload(&passage.upload, self.plan.words, self.arena.ptr())?;
            for launch in &self.launches {
                launch.run(&self.device)?;
            }
            let results = self.arena.ptr() + self.layout.results as u64;
            self.device.download(results, &mut passage.results, passage.jobs.len())?;
        }
        self.next = (self.next + 1) % DEPTH;
        self.under_way += 1;
        Ok(())
    }

    /// The prepared step's launches, in order: geometry and arguments depend on the kinds of rows and on their number's
    /// power of two.
    #[cfg(test)]
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// What the oldest submitted step drew, once the device is done with it: fills `samples`, and the slots as the device has them.
    ///
    /// # Errors
    /// As the CPU's sampler: logits that are not finite, a row of which no token may be drawn. No slot has changed then.
    pub fn take(&mut self, slots: &mut SlotState, samples: &mut Vec<Sampled>) -> Result<(), BackendError> {
        let passage = &self.passages[(self.next + DEPTH - self.under_way) % DEPTH];
        self.under_way -= 1;
        samples.clear();
        samples.extend(passage.results.as_slice()[..passage.jobs.len()].iter().map(SampleResult::sampled));
        settle(slots, &passage.jobs, samples, self.layout.positions())
    }
}

/// Refuses a step with a failed row; else brings the host's slots to where the device's are.
fn settle(
    slots: &mut SlotState,
    jobs: &[SampleJob],
    samples: &[Sampled],
    positions: usize,
) -> Result<(), BackendError> {
    if let Some(index) = samples.iter().position(|sampled| sampled.token.token == NOT_FINITE) {
        return Err(BackendError::NotFinite { row: jobs[index].row.row as usize });
    }
    if let Some(index) = samples.iter().position(|sampled| sampled.token.token == NO_TOKEN) {
        let reason = format!("every token of sample row {index} is masked: the grammar has no way on");
        return Err(BackendError::Step(reason));
    }
    for (job, sampled) in jobs.iter().zip(samples).filter(|(job, _)| job.row.given.is_none()) {
        let slot = job.row.slot as usize;
        slots.last_sample[slot] = Some(sampled.token.token);
        let history = &mut slots.histories[slot];
        if history.tokens.len() < positions {
            history.tokens.push(sampled.token.token);
        } else {
            history.known = false;
        }
    }
    Ok(())
}
