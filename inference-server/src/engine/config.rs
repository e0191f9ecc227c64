//! How an engine is set up, what it says of itself, and why it may not start.

use std::net::SocketAddr;
use std::time::Duration;

use polylink_kernels::BackendError;

use super::logits_tap::LogitsTap;
use crate::model::{LoadedModel, ModelError};

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCacheSize {
    /// Number of blocks of the backend's block size.
    Blocks(usize),
    /// At most so many bytes on this device.
    Bytes(usize),
    /// What the device has free beside the weights and the step's own memory, less a reserve; [`KvCacheSize::CPU_BYTES`] on
    /// a CPU, whose memory others need too.
    Free,
}

impl KvCacheSize {
    /// Bytes of [`KvCacheSize::Free`] on a CPU.
    pub const CPU_BYTES: usize = 256 << 20;
}

/// Which implementation computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// The CPU, with the widest instructions there are.
    #[default]
    Cpu,
    /// Plain loops that say what is right: slow, for tests.
    Reference,
    /// The first GPU; an error where there is none.
    Cuda,
    /// The first GPU if there is one that can compute this model's profile, else the CPU, with a warning that says why.
    Auto,
}

/// How tokens are guessed ahead, to draw several in one step. Changes no token and no bit of what is drawn.
#[derive(Clone, Debug, Default)]
pub enum Speculation {
    /// Not at all.
    #[default]
    Off,
    /// By what followed when a sequence's last tokens occurred before.
    Lookup,
    /// By a second, smaller model with the same vocabulary, on a backend of the same kind.
    Draft(LoadedModel),
}

/// Settings of an engine; the defaults suit a small model on a laptop.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Rows (tokens) of one step, prefill and decode together; at least 1.
    pub token_budget: usize,
    /// Choices under way at once; cut to `token_budget`, so that each of them gets at least one row in every step.
    pub max_running: usize,
    /// Choices that may wait beyond those that run; more are refused with [`super::AdmissionError::QueueFull`].
    pub max_waiting: usize,
    /// Size of the KV cache.
    pub kv_cache: KvCacheSize,
    /// Compute threads, the engine's own included; 0: one per core. The number changes no bit.
    pub threads: usize,
    /// Whether requests of one tenant share the prefixes of their prompts. Choices of one request always do.
    pub prefix_cache: bool,
    /// Prompt and completion together; `None`: the model's. A larger one than the model's is refused.
    pub context_length: Option<usize>,
    /// Which implementation computes.
    pub backend: BackendKind,
    /// Run the model together with peer processes.
    pub split: Option<SplitConfig>,
    /// Whether tokens are guessed ahead.
    pub speculation: Speculation,
    /// Show every drawn token's row of logits; `None`: they stay in the backend.
    pub logits_tap: Option<LogitsTap>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            token_budget: 256,
            max_running: 16,
            max_waiting: 256,
            kv_cache: KvCacheSize::Free,
            threads: 0,
            prefix_cache: true,
            context_length: None,
            backend: BackendKind::Cpu,
            split: None,
            speculation: Speculation::Off,
            logits_tap: None,
        }
    }
}

/// A tensor split over this process (rank 0, which plans) and peers (`crate::tensor_split::run_peer`).
#[derive(Clone, Debug)]
pub struct SplitConfig {
    /// Proportions, own first, such as `[2, 1]`; one entry per device.
    pub shares: Vec<u32>,
    /// Where the peers listen, in rank order; one fewer than `shares`.
    pub peers: Vec<SocketAddr>,
    /// Both sides must have the same: keeps strangers from joining. Not an encryption: use it in a private network.
    pub secret: String,
    /// Longest wait for a peer in one exchange; a request fails within it and one second.
    pub timeout: Duration,
}

/// What an engine says of itself once it has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Prompt and completion together, in tokens.
    pub context_length: usize,
    /// Sequences of more tokens are turned by other frequencies (LongRoPE): their keys are computed anew.
    pub long_beyond: Option<usize>,
    /// Positions per KV block.
    pub block_tokens: usize,
    /// KV blocks.
    pub kv_blocks: usize,
    /// Choices under way at once.
    pub max_running: usize,
    /// Choices that may wait.
    pub max_waiting: usize,
    /// Rows of one step.
    pub token_budget: usize,
    /// The backend's name.
    pub backend: String,
}

impl EngineInfo {
    /// Tokens of a sequence that has the whole cache for itself.
    pub fn tokens_held(&self) -> usize {
        tokens_held(self.kv_blocks, self.block_tokens)
    }
}

/// As [`EngineInfo::tokens_held`]; the last token is never computed.
pub(super) fn tokens_held(kv_blocks: usize, block_tokens: usize) -> usize {
    kv_blocks * block_tokens + 1
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting is out of its domain.
    #[error("engine setting {field}: {reason}")]
    Config {
        /// The field of [`EngineConfig`].
        field: &'static str,
        /// What is expected.
        reason: String,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The backend refuses the model or the limits.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A peer of the split cannot be reached, or does not fit.
    #[error(transparent)]
    Split(#[from] crate::tensor_split::SplitError),
    /// The engine's thread could not be started.
    #[error("the engine's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}
