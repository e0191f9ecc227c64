//! `/metrics` in the Prometheus text format, under vLLM's names with `polylink:` for `vllm:`.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::error::ApiError;
use crate::engine::{EngineHandle, LATENCY_BUCKETS_MS, LatencyHistogram};

/// What a service counts about its requests.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    registry: Registry,
    requests: IntCounterVec,
    /// Answers under way.
    pub active: IntGauge,
}

impl HttpMetrics {
    /// New counters in a registry of their own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("polylink:http_requests_total", "Requests by endpoint and status"),
            &["endpoint", "status"],
        )
        .expect("name and labels are constants that Prometheus allows");
        let active = IntGauge::new("polylink:http_requests_active", "Answers under way")
            .expect("the name is a constant that Prometheus allows");
        for collector in [Box::new(requests.clone()) as Box<dyn prometheus::core::Collector>, Box::new(active.clone())]
        {
            registry.register(collector).expect("each name is registered once in this new registry");
        }
        Self { registry, requests, active }
    }

    /// Counts a request when its status is known.
    pub fn count(&self, endpoint: &str, status: u16) {
        self.requests.with_label_values(&[endpoint, &status.to_string()]).inc();
    }

    /// For further counters of the same service.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The text format of a registry and of further families.
pub fn text(registry: &Registry, more: Vec<MetricFamily>) -> Response {
    let mut families = registry.gather();
    families.extend(more);
    let encoder = TextEncoder::new();
    let mut buffer = Vec::new();
    match encoder.encode(&families, &mut buffer) {
        Ok(()) => {
            let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            ([(header::CONTENT_TYPE, content_type)], buffer).into_response()
        }
        Err(error) => ApiError::internal(format!("metrics cannot be written: {error}")).into_response(),
    }
}

/// The engine's figures, labelled with the model's name.
pub fn engine_families(engine: &EngineHandle, model: &str) -> Vec<MetricFamily> {
    let m = engine.metrics();
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64;
    let label = |more: &[(&str, &str)]| {
        let all = [("model_name", model)].into_iter().chain(more.iter().copied());
        all.map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.into());
            pair.set_value(value.into());
            pair
        })
        .collect::<Vec<_>>()
    };
    let blocks = load(&m.kv_blocks_total).max(1.0);
    let gauge = |name, help, value| number(name, help, MetricType::GAUGE, vec![(label(&[]), value)]);
    let counter =
        |name, help, value: &AtomicU64| number(name, help, MetricType::COUNTER, vec![(label(&[]), load(value))]);
    let seconds =
        |name, help, value: &AtomicU64| number(name, help, MetricType::COUNTER, vec![(label(&[]), load(value) / 1e9)]);
    let reasons = [("stop", &m.finished_stop), ("length", &m.finished_length), ("abort", &m.finished_cancelled)];
    let finished = reasons.iter().map(|(reason, value)| (label(&[("finished_reason", reason)]), load(value))).collect();
    vec![
        gauge("polylink:num_requests_running", "Choices that run", load(&m.running)),
        gauge("polylink:num_requests_waiting", "Choices that wait", load(&m.waiting)),
        gauge(
            "polylink:kv_cache_usage_perc",
            "Share of the KV blocks in use, 1 is all",
            load(&m.kv_blocks_used) / blocks,
        ),
        counter(
            "polylink:prefix_cache_queries_total",
            "Prompt tokens looked up in the prefix cache",
            &m.prefix_queries,
        ),
        counter("polylink:prefix_cache_hits_total", "Prompt tokens found in the prefix cache", &m.prefix_hits),
        counter("polylink:num_preemptions_total", "Times a running choice gave its blocks up", &m.preemptions),
        counter("polylink:prompt_tokens_total", "Prompt tokens", &m.prompt_tokens),
        counter("polylink:generation_tokens_total", "Completion tokens", &m.completion_tokens),
        counter("polylink:engine_steps_total", "Engine steps", &m.steps),
        counter("polylink:engine_steps_ahead_total", "Steps submitted while the one before ran", &m.steps_ahead),
        seconds("polylink:engine_step_seconds_total", "Time in engine steps, admission included", &m.step_ns),
        seconds("polylink:engine_backend_seconds_total", "Time of these that the backend had", &m.backend_ns),
        counter("polylink:spec_decode_num_drafts_total", "Times that tokens were guessed", &m.drafts),
        counter("polylink:spec_decode_num_draft_tokens_total", "Tokens guessed", &m.drafted_tokens),
        counter("polylink:spec_decode_num_accepted_tokens_total", "Guessed tokens drawn", &m.accepted_tokens),
        counter("polylink:request_refused_total", "Requests refused at admission", &m.requests_refused),
        counter("polylink:request_failure_total", "Requests that failed", &m.requests_failed),
        number("polylink:request_success_total", "Choices that ended, by reason", MetricType::COUNTER, finished),
        histogram(
            "polylink:time_to_first_token_seconds",
            "From admission to the first token",
            label(&[]),
            &m.time_to_first_token,
        ),
        histogram(
            "polylink:inter_token_latency_seconds",
            "Between two tokens of a choice",
            label(&[]),
            &m.inter_token_latency,
        ),
        histogram(
            "polylink:e2e_request_latency_seconds",
            "From admission to the end",
            label(&[]),
            &m.end_to_end_latency,
        ),
    ]
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn number(name: &str, help: &str, kind: MetricType, values: Vec<(Vec<LabelPair>, f64)>) -> MetricFamily {
    let metrics = values.into_iter().map(|(labels, value)| {
        let mut metric = Metric::default();
        metric.set_label(labels);
        if kind == MetricType::GAUGE {
            let mut gauge = prometheus::proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        metric
    });
    family(name, help, kind, metrics.collect())
}

fn histogram(name: &str, help: &str, labels: Vec<LabelPair>, latencies: &LatencyHistogram) -> MetricFamily {
    let snapshot = latencies.snapshot();
    let mut histogram = Histogram::default();
    let mut total = 0;
    let buckets = LATENCY_BUCKETS_MS.iter().zip(snapshot.counts).map(|(bound, count)| {
        total += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / 1e3);
        bucket.set_cumulative_count(total);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(snapshot.counts.iter().sum());
    histogram.set_sample_sum(snapshot.sum_seconds);
    let mut metric = Metric::default();
    metric.set_label(labels);
    metric.set_histogram(histogram);
    family(name, help, MetricType::HISTOGRAM, vec![metric])
}
