//! The engine: one thread that owns the scheduler, the paged KV cache and the backend, and turns requests into tokens.
//!
//! ```text
//! submit ─► bounded command queue ─►┌ engine thread: drain commands ─ plan ─ forward ─ sample ─ give out ┐─► event queues
//!           (refused: 400, 429, 503)└──────────────────────── once per step ─────────────────────────────┘   (per request)
//! ```
//!
//! What always holds:
//! * the thread never waits for anything but its command queue, and that only when it has nothing to compute;
//! * a request's tokens, logprobs and sketches do not depend on what else runs, on the token budget, on prefix hits, on
//!   preemption, or on the number of threads (for exact profiles);
//! * nor on whether tokens are guessed ahead;
//! * within a step nothing is allocated: what a request needs was reserved when it was admitted.

pub mod api;
mod config;
mod core;
mod draft_model;
pub mod grammar;
mod guard;
mod handle;
pub mod kv_pool;
mod logits_tap;
mod metrics;
mod outbox;
mod replay;
pub mod scheduler;
mod speculate;
pub(crate) mod start;
mod text;
mod thread;

pub use api::{AdmissionError, Event, FailureCode, FinishReason, GenerateRequest, PromptToken, TokenEvent, Usage};
pub use config::{BackendKind, EngineConfig, EngineError, EngineInfo, KvCacheSize, Speculation, SplitConfig};
pub use handle::{EngineHandle, EngineStatus};
pub use logits_tap::{LogitsRow, LogitsTap};
pub use metrics::{EngineMetrics, LATENCY_BUCKETS_MS, LatencyHistogram, LatencySnapshot};
pub use outbox::RequestStream;
pub use polylink_kernels::TokenLogprob;
pub use replay::{ReplayError, ReplayRequest, ReplayedToken, Replayer};
pub use start::Engine;
pub use text::{TextEvent, TextStream};
