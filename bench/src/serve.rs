//! `polylink bench serve`: drives any OpenAI endpoint and reports TTFT, inter-token latency, end-to-end latency,
//! throughput and errors.
//!
//! Two loads: *closed loop* keeps a number of requests in flight; *open loop* sends at the times of a Poisson process
//! whatever the server does (at most `concurrency` at once; an arrival beyond that is counted as refused here, so a
//! slow server cannot make the generator grow). A run ends after `requests` or `duration`, whichever comes first.

mod arrivals;
mod exchange;
mod prompts;

use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use arrivals::Gaps;
pub use exchange::{Target, Timing};
pub use prompts::{built_in, from_file};

use crate::BenchError;
use crate::row::Row;
use crate::stats::Summary;

/// The most requests of one run.
pub const REQUESTS_MAX: usize = 1_000_000;
/// The most requests in flight.
pub const CONCURRENCY_MAX: usize = 4_096;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to ask.
    pub target: Target,
    /// In flight at once.
    pub concurrency: usize,
    /// Arrivals per second of the open loop; None is the closed loop.
    pub rate_per_second: Option<f64>,
    /// The most requests.
    pub requests: usize,
    /// No request starts after it.
    pub duration: Duration,
    /// Prompts, one per line; None uses the built-in ones.
    pub prompts: Option<PathBuf>,
    /// Of arrivals and of the requests' seeds.
    pub seed: u64,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rows, in the table's order.
    pub rows: Vec<Row>,
    /// Answers that came whole.
    pub succeeded: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Open-loop arrivals that found `concurrency` requests in flight.
    pub not_sent: usize,
    /// The first error's text.
    pub first_error: Option<String>,
}

impl Options {
    fn check(&self) -> Result<(), BenchError> {
        let wrong = |option, reason: String| Err(BenchError::Option { option, reason });
        if self.concurrency == 0 || self.concurrency > CONCURRENCY_MAX {
            return wrong("--concurrency", format!("1 to {CONCURRENCY_MAX} is expected"));
        }
        if self.requests == 0 || self.requests > REQUESTS_MAX {
            return wrong("--requests", format!("1 to {REQUESTS_MAX} is expected"));
        }
        if self.duration.is_zero() {
            return wrong("--duration", "more than nothing is expected".into());
        }
        if let Some(rate) = self.rate_per_second
            && !(rate.is_finite() && rate > 0.0 && rate <= 100_000.0)
        {
            return wrong("--rate", "a positive number of requests per second, at most 100,000, is expected".into());
        }
        if !self.target.endpoint.starts_with("http://") && !self.target.endpoint.starts_with("https://") {
            return wrong("--endpoint", format!("`{}` is not an http(s) URL", self.target.endpoint));
        }
        Ok(())
    }
}

/// Runs the load to its end. `progress` is called with (ended, failed) after each request.
pub async fn run(options: &Options, mut progress: impl FnMut(usize, usize)) -> Result<Report, BenchError> {
    options.check()?;
    let prompts = match &options.prompts {
        Some(path) => from_file(path)?,
        None => built_in(),
    };
    let client =
        reqwest::Client::builder().pool_max_idle_per_host(options.concurrency).build().map_err(BenchError::Client)?;
    let ask = |number: usize| {
        let (client, target) = (client.clone(), options.target.clone());
        let prompt = prompts[number % prompts.len()].clone();
        let seed = options.seed.wrapping_add(number as u64) >> 1;
        async move { exchange::ask(&client, &target, &prompt, seed).await }
    };
    let mut gaps = options.rate_per_second.map(|rate| Gaps::new(options.seed, rate));
    let mut in_flight = FuturesUnordered::new();
    let (mut sent, mut not_sent, mut ended, mut failed) = (0, 0, 0, 0);
    let mut timings = Vec::new();
    let mut first_error = None;
    let start = Instant::now();
    let mut next_arrival = start;
    loop {
        let open = sent + not_sent < options.requests && start.elapsed() < options.duration;
        if !open && in_flight.is_empty() {
            break;
        }
        let may_send = open && (gaps.is_some() || in_flight.len() < options.concurrency);
        let arrival = tokio::time::sleep_until(if gaps.is_some() { next_arrival.into() } else { start.into() });
        tokio::select! {
            biased;
            Some(result) = in_flight.next(), if !in_flight.is_empty() => {
                ended += 1;
                match result {
                    Ok(timing) => timings.push(timing),
                    Err(error) => { failed += 1; first_error.get_or_insert(error); }
                }
                progress(ended, failed);
            }
            () = arrival, if may_send => {
                if in_flight.len() < options.concurrency {
                    in_flight.push(ask(sent));
                    sent += 1;
                } else {
                    not_sent += 1;
                }
                if let Some(gap) = gaps.as_mut().and_then(Iterator::next) {
                    next_arrival += gap;
                }
            }
        }
    }
    let wall = start.elapsed();
    if timings.is_empty() {
        let first = first_error.unwrap_or_else(|| "no request was sent".into());
        return Err(BenchError::NothingSucceeded { endpoint: options.target.endpoint.clone(), sent, first });
    }
    let rows = rows(&timings, failed, not_sent, wall);
    Ok(Report { rows, succeeded: timings.len(), failed, not_sent, first_error })
}

fn rows(timings: &[Timing], failed: usize, not_sent: usize, wall: Duration) -> Vec<Row> {
    let ms = |d: &Duration| d.as_secs_f64() * 1e3;
    let first = Summary::of(timings.iter().map(|t| ms(&t.first_token)).collect());
    let gaps = Summary::of(timings.iter().flat_map(|t| t.gaps.iter().map(ms)).collect());
    let total = Summary::of(timings.iter().map(|t| ms(&t.total)).collect());
    let seconds = wall.as_secs_f64();
    let (prompt, completion) = timings.iter().fold((0, 0), |(p, c), t| (p + t.prompt_tokens, c + t.completion_tokens));
    let n = timings.len();
    let mut rows = Row::percentiles("serve.ttft", "ms", &first);
    rows.extend(Row::percentiles("serve.inter_token", "ms", &gaps));
    rows.extend(Row::percentiles("serve.end_to_end", "ms", &total));
    rows.push(Row::new("serve.requests", n as f64 / seconds, "1/s", n, 0.0));
    rows.push(Row::new("serve.prompt_tokens", prompt as f64 / seconds, "tokens/s", n, 0.0));
    rows.push(Row::new("serve.completion_tokens", completion as f64 / seconds, "tokens/s", n, 0.0));
    rows.push(Row::new("serve.errors", failed as f64, "requests", n + failed, 0.0));
    rows.push(Row::new("serve.not_sent", not_sent as f64, "requests", n + failed + not_sent, 0.0));
    rows
}
