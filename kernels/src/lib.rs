//! Compute: the operations a transformer needs, behind one trait, with the same bits on every device.
//!
//! *Invariant*: this crate does not know what a request, a model file or a token price is. A model is a [`Program`]
//! over prepared weights, a unit of work is a [`Step`], and what comes back is a pure function of them: it does not
//! depend on the batch, on the number of threads, on the instruction set, or on how the model is split over devices
//! (`docs/numerics.md`).

pub mod backend;
pub mod collective;
pub mod program;
pub mod step;

pub use backend::{
    Backend, BackendError, Dtype, KRanges, KvDtype, KvLayout, KvSpec, Limits, Part, Shard, TensorView, Ticket,
    WeightForm, WeightId,
};
pub use collective::{Collective, CollectiveError, LocalCollective, Solo};
pub use program::{
    Activation, AttentionSpec, BufferId, BufferSpec, Epilogue, ExpertWeights, ExpertsSpec, Op, Program, ProgramBuilder,
    RopeGrowth, RopeId, RopeSpec, RowKind,
};
pub use step::{
    ForwardStep, SKETCH_VALUES, SampleParams, SampleRow, SampleStep, Sampled, SequenceRows, SlotStart, Span, Step,
    StepOutput, TEMPERATURE_MIN, TOP_LOGPROBS_MAX, TokenInput, TokenLogprob,
};

#[doc(hidden)]
pub mod bench;
mod blocks;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod executor;
mod experts;
#[cfg(test)]
#[path = "../tests/common/fence.rs"]
mod fence;
#[doc(hidden)]
pub mod limits;
mod margin;
mod memory;
mod operations;
mod plan;
mod quantise;
mod reference;
mod sampler;
mod step_check;
mod weights;

pub use cpu::isa::InstructionSet;
pub use cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
pub use cuda::CudaBackend;
pub use executor::Executor;
pub use margin::{Margin, replay_margin};
pub use sampler::{DrawInputs, SampleScratch, log_sum_exp, sample_token};

#[cfg(test)]
#[global_allocator]
static FENCE: fence::Fence = fence::Fence;

/// The definition: plain scalar loops, one thread. Slow; allocates within a step.
pub type ReferenceBackend = Executor<reference::ReferenceOperations>;

impl ReferenceBackend {
    /// An empty backend.
    pub fn new() -> Self {
        Executor::over(reference::ReferenceOperations::default())
    }
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        Self::new()
    }
}
