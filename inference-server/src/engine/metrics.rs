//! What the engine counts: atomics that its thread writes and anybody reads.
//!
//! Counters only grow; gauges hold the state after the last step. Latencies are taken at engine steps: when the step
//! that gave a token had ended, not when somebody read it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of the latency buckets, in milliseconds.
pub const LATENCY_BUCKETS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];

/// Latencies, counted in fixed buckets.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    /// One per bound, and a last one for everything beyond.
    buckets: [AtomicU64; LATENCY_BUCKETS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl LatencyHistogram {
    /// Counts one.
    pub fn observe(&self, latency: Duration) {
        let us = latency.as_micros().min(u128::from(u64::MAX)) as u64;
        let bucket =
            LATENCY_BUCKETS_MS.iter().position(|&bound| us <= bound * 1_000).unwrap_or(LATENCY_BUCKETS_MS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> LatencySnapshot {
        let mut counts = [0; LATENCY_BUCKETS_MS.len() + 1];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        LatencySnapshot { counts, sum_seconds: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencySnapshot {
    /// Per bucket of [`LATENCY_BUCKETS_MS`] (not cumulative); the last one: beyond all bounds.
    pub counts: [u64; LATENCY_BUCKETS_MS.len() + 1],
    /// Of all latencies.
    pub sum_seconds: f64,
}

/// Live figures of an engine. Read each with `load(Ordering::Relaxed)`.
#[derive(Debug, Default)]
pub struct EngineMetrics {
    /// Gauge: choices that run.
    pub running: AtomicU64,
    /// Gauge: choices that wait.
    pub waiting: AtomicU64,
    /// Gauge: KV blocks that running choices hold.
    pub kv_blocks_used: AtomicU64,
    /// Gauge: KV blocks that hold a reusable prefix and belong to nobody.
    pub kv_blocks_cached: AtomicU64,
    /// KV blocks there are.
    pub kv_blocks_total: AtomicU64,
    /// Requests accepted.
    pub requests_accepted: AtomicU64,
    /// Requests refused at admission.
    pub requests_refused: AtomicU64,
    /// Choices that ended with `stop`.
    pub finished_stop: AtomicU64,
    /// Choices that ended with `length`.
    pub finished_length: AtomicU64,
    /// Choices that were cancelled.
    pub finished_cancelled: AtomicU64,
    /// Requests that failed.
    pub requests_failed: AtomicU64,
    /// Prompt tokens of first choices, cached ones included.
    pub prompt_tokens: AtomicU64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: AtomicU64,
    /// Prompt tokens found there.
    pub prefix_hits: AtomicU64,
    /// Completion tokens.
    pub completion_tokens: AtomicU64,
    /// Times that a running choice gave its blocks up for another one.
    pub preemptions: AtomicU64,
    /// Engine steps.
    pub steps: AtomicU64,
    /// Nanoseconds that the engine's thread spent on steps and admissions.
    pub step_ns: AtomicU64,
    /// Steps that were planned and submitted while the one before was computed.
    pub steps_ahead: AtomicU64,
    /// Nanoseconds of these that the backend had, be it that it computed while the host did something else.
    pub backend_ns: AtomicU64,
    /// Rows (tokens) computed in all steps.
    pub rows: AtomicU64,
    /// Steps of sequences for which tokens were guessed.
    pub drafts: AtomicU64,
    /// Tokens that were guessed.
    pub drafted_tokens: AtomicU64,
    /// Guessed tokens that were drawn.
    pub accepted_tokens: AtomicU64,
    /// From admission to the first token of a request.
    pub time_to_first_token: LatencyHistogram,
    /// Between two tokens of a choice.
    pub inter_token_latency: LatencyHistogram,
    /// From admission to the end of a request.
    pub end_to_end_latency: LatencyHistogram,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// Adds the time since a moment to a counter of nanoseconds.
pub(crate) fn add_since(counter: &AtomicU64, since: Instant) {
    counter.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

/// Sets a gauge.
pub(crate) fn set(gauge: &AtomicU64, to: usize) {
    gauge.store(to as u64, Ordering::Relaxed);
}
