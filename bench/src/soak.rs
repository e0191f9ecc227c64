//! `polylink bench soak`: more than a server can take, for hours, of everything that clients do.
//!
//! Clients of several tenants (one bearer token each, with unequal numbers of clients) ask in closed loops for answers of
//! random lengths; some leave in the middle, some ask for nonsense, some have another priority. Whatever is asked must be
//! answered, or refused with a reason; tokens must come all the time; tenants must have equal shares; and in the end the
//! server must hold no KV block and no more memory than after it had warmed up.
//!
//! A share is what the scheduler counts, seen from outside: tokens of the usual priority that were computed for a tenant,
//! those found in the cache not among them, as long as somebody of it always waits. The fewest clients must be enough for that.

mod client;
mod clock;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Client;

use crate::BenchError;
use crate::row::Row;
use client::Outcome;
use clock::Clock;

/// Time between two looks at the server.
const LOOK: Duration = Duration::from_secs(5);
/// No token of anybody for so long is a stall.
const STALL: Duration = Duration::from_secs(30);
/// A connection that was idle for longer is not used again: the server closes such ones, perhaps while something is sent.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// Who is refused asks again after so many milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 50..500;
/// Largest deviation of a tenant's share from the mean.
const SHARE_DEVIATION_MAX: f64 = 0.1;
/// Memory may grow by this part of what it was after the warm-up, and by so many bytes.
const GROWTH_MAX: (f64, f64) = (0.1, 16e6);
/// Most failures that are told.
const TOLD_MAX: usize = 10;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Base URL up to and with `/v1`.
    pub endpoint: String,
    /// Model's name.
    pub model: String,
    /// For how long.
    pub duration: Duration,
    /// Clients of each tenant; each always has one request under way.
    pub clients: Vec<usize>,
    /// Process whose memory is watched.
    pub pid: Option<u32>,
    /// Of all that is random.
    pub seed: u64,
}

/// What all clients count together.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) nonsense: AtomicU64,
    /// Not answered, and this process stood still meanwhile.
    interrupted: AtomicU64,
    failures: AtomicU64,
    told: Mutex<Vec<String>>,
    stop: AtomicBool,
    /// Shares are counted from the end of the warm-up on.
    warm: AtomicBool,
}

impl Counts {
    fn fail(&self, what: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told();
        // The verdict at the end is told in any case.
        if told.len() < TOLD_MAX || self.stop.load(Ordering::Relaxed) {
            told.push(what);
        }
    }

    /// The first failures.
    fn told(&self) -> MutexGuard<'_, Vec<String>> {
        // No code that holds the lock can panic half-way through a change.
        self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What is seen of the server from outside.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    tokens: f64,
    running: f64,
    waiting: f64,
    kv_usage: f64,
    preemptions: f64,
    memory_bytes: f64,
}

/// The value of a metric, all labels summed.
fn metric(text: &str, name: &str) -> f64 {
    let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Bytes of a process in memory; 0 where the system does not tell.
fn memory_bytes(pid: Option<u32>) -> f64 {
    let text = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok()).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
}

async fn look(client: &Client, options: &Options, clock: &Clock) -> Result<Look, String> {
    let url = format!("{}/metrics", options.endpoint.trim_end_matches('/').trim_end_matches("/v1"));
    let text = async { client.get(url).send().await?.text().await };
    let text = clock.within(STALL, text).await.ok_or("/metrics: nothing comes")?;
    let text = text.map_err(|e| format!("/metrics: {e}"))?;
    Ok(Look {
        tokens: metric(&text, "polylink:generation_tokens_total"),
        running: metric(&text, "polylink:num_requests_running"),
        waiting: metric(&text, "polylink:num_requests_waiting"),
        kv_usage: metric(&text, "polylink:kv_cache_usage_perc"),
        preemptions: metric(&text, "polylink:num_preemptions_total"),
        memory_bytes: memory_bytes(options.pid),
    })
}

/// One client: asks until told to stop, and counts what it was given.
async fn ask_on(
    client: Client,
    options: Arc<Options>,
    tenant: usize,
    number: usize,
    counts: Arc<Counts>,
    given: Arc<Vec<AtomicU64>>,
    clock: Arc<Clock>,
) {
    let mut rng = StdRng::seed_from_u64(options.seed ^ (number as u64) << 20);
    let key = format!("soak-{tenant}");
    while !counts.stop.load(Ordering::Relaxed) {
        let asked = client::Asked::random(&mut rng, &options.model, tenant);
        let stops = clock.stops();
        match client::ask(&client, &options.endpoint, &key, &asked, &clock).await {
            Ok(outcome) => {
                let (counter, tokens) = match outcome {
                    Outcome::Answered { tokens } => (&counts.answered, tokens),
                    Outcome::Left => (&counts.left, 0),
                    Outcome::Refused => (&counts.refused, 0),
                    Outcome::Nonsense => (&counts.nonsense, 0),
                };
                counter.fetch_add(1, Ordering::Relaxed);
                if asked.counts_for_shares() && counts.warm.load(Ordering::Relaxed) {
                    given[tenant].fetch_add(tokens, Ordering::Relaxed);
                }
                if outcome == Outcome::Refused {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
                }
            }
            Err(_) if clock.stopped_since(stops).await => _ = counts.interrupted.fetch_add(1, Ordering::Relaxed),
            Err(error) => counts.fail(format!("{asked:?}: {error}")),
        }
    }
}

/// Runs the load to its end.
///
/// # Errors
/// [`BenchError::Soak`] with everything that was not as it must be.
pub async fn run(options: &Options, mut progress: impl FnMut(String)) -> Result<Vec<Row>, BenchError> {
    let total: usize = options.clients.iter().sum();
    if options.clients.len() < 2 || total == 0 || total > crate::serve::CONCURRENCY_MAX {
        let reason =
            format!("two tenants or more, of at most {} clients together, are expected", crate::serve::CONCURRENCY_MAX);
        return Err(BenchError::Option { option: "--clients", reason });
    }
    let client = Client::builder().pool_max_idle_per_host(total).pool_idle_timeout(IDLE_MAX);
    let client = client.build().map_err(BenchError::Client)?;
    let (options, counts, clock) = (Arc::new(options.clone()), Arc::new(Counts::default()), Clock::start());
    let given: Arc<Vec<AtomicU64>> = Arc::new(options.clients.iter().map(|_| AtomicU64::new(0)).collect());
    let mut tasks = Vec::new();
    for (tenant, &clients) in options.clients.iter().enumerate() {
        for _ in 0..clients {
            let (client, options, counts) = (client.clone(), Arc::clone(&options), Arc::clone(&counts));
            let (given, clock, number) = (Arc::clone(&given), Arc::clone(&clock), tasks.len());
            tasks.push(tokio::spawn(ask_on(client, options, tenant, number, counts, given, clock)));
        }
    }
    let begun = Instant::now();
    let (mut warm, mut last) = (Look::default(), Look::default());
    let (mut moved, mut shown_failures) = (clock.now(), 0);
    while begun.elapsed() < options.duration {
        tokio::time::sleep(LOOK.min(options.duration)).await;
        match look(&client, &options, &clock).await {
            Ok(now) => {
                if now.tokens > last.tokens {
                    moved = clock.now();
                } else if clock.now() - moved > STALL {
                    counts.fail(format!("no token came for {} s", (clock.now() - moved).as_secs()));
                }
                last = now;
                progress(format!("{:>6} s: {}", begun.elapsed().as_secs(), shown(&now, &counts)));
            }
            Err(error) => counts.fail(error),
        }
        while let Some(failure) = counts.told().get(shown_failures).cloned() {
            shown_failures += 1;
            progress(format!("failure: {failure}"));
        }
        if !counts.warm.load(Ordering::Relaxed) && begun.elapsed() >= options.duration / 4 {
            counts.warm.store(true, Ordering::Relaxed);
            warm = last;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    // Shares end here: what comes while clients stop is nobody's share.
    counts.warm.store(false, Ordering::Relaxed);
    counts.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        if task.await.is_err() {
            counts.fail("a client of the load panicked".into());
        }
    }
    let idle = idle(&client, &options, &clock).await;
    judged(&options, &counts, &given, (warm, last), idle, seconds)
}

fn shown(look: &Look, counts: &Counts) -> String {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    format!(
        "{} answered, {} left, {} refused, {} nonsense, {} failures; {} tokens, {} run, {} wait, {:.0} % of blocks, {} preempted, {:.0} MB",
        load(&counts.answered),
        load(&counts.left),
        load(&counts.refused),
        load(&counts.nonsense),
        load(&counts.failures),
        look.tokens,
        look.running,
        look.waiting,
        100.0 * look.kv_usage,
        look.preemptions,
        look.memory_bytes / 1e6
    )
}

/// The server once it has nothing to do; the last look if that does not come.
async fn idle(client: &Client, options: &Options, clock: &Clock) -> Result<Look, String> {
    let begun = clock.now();
    loop {
        let now = look(client, options, clock).await?;
        if now.running + now.waiting + now.kv_usage == 0.0 || clock.now() - begun > STALL {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn judged(
    options: &Options,
    counts: &Counts,
    given: &[AtomicU64],
    (warm, last): (Look, Look),
    idle: Result<Look, String>,
    seconds: f64,
) -> Result<Vec<Row>, BenchError> {
    let given: Vec<f64> = given.iter().map(|tokens| tokens.load(Ordering::Relaxed) as f64).collect();
    let mean = given.iter().sum::<f64>() / given.len() as f64;
    let deviation = given.iter().map(|tokens| (tokens / mean - 1.0).abs()).fold(0.0, f64::max);
    if mean == 0.0 || deviation > SHARE_DEVIATION_MAX {
        counts.fail(format!("shares of the tenants (clients {:?}) are not equal: {given:?} tokens", options.clients));
    }
    match idle {
        Ok(idle) if idle.running + idle.waiting + idle.kv_usage > 0.0 => {
            counts.fail(format!("nobody asks, and the server still has {idle:?}"));
        }
        Ok(idle) => {
            let allowed = warm.memory_bytes * (1.0 + GROWTH_MAX.0) + GROWTH_MAX.1;
            if warm.memory_bytes > 0.0 && idle.memory_bytes > allowed {
                let (before, after) = (warm.memory_bytes / 1e6, idle.memory_bytes / 1e6);
                counts.fail(format!("memory grew from {before:.0} MB after the warm-up to {after:.0} MB"));
            }
        }
        Err(error) => counts.fail(error),
    }
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    if load(&counts.answered) == 0 {
        counts.fail("nothing was answered".into());
    }
    let requests = [&counts.answered, &counts.left, &counts.refused, &counts.nonsense].map(load);
    let all = requests.iter().sum::<u64>() as usize;
    let failures = load(&counts.failures);
    if failures > 0 {
        let told = counts.told().clone();
        return Err(BenchError::Soak { failures, told });
    }
    let row = |name: &str, value: f64, unit: &str| Row::new(name, value, unit, all, 0.0);
    Ok(vec![
        row("soak.answered", requests[0] as f64, "requests"),
        row("soak.left", requests[1] as f64, "requests"),
        row("soak.refused", requests[2] as f64, "requests"),
        row("soak.nonsense", requests[3] as f64, "requests"),
        row("soak.interrupted", load(&counts.interrupted) as f64, "requests"),
        row("soak.completion_tokens", last.tokens / seconds, "tokens/s"),
        row("soak.preemptions", last.preemptions, "preemptions"),
        row("soak.share_deviation", 100.0 * deviation, "%"),
        row("soak.memory_growth", (last.memory_bytes - warm.memory_bytes) / 1e6, "MB"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let text = "# HELP a_total x\na_total{model=\"m\"} 3\na_total{model=\"n\"} 4\na_total_more 9\nb 0.5\n";
        assert_eq!((metric(text, "a_total"), metric(text, "b"), metric(text, "c")), (7.0, 0.5, 0.0));
        let own = memory_bytes(Some(std::process::id()));
        assert!(cfg!(not(target_os = "linux")) || own > 1e6, "{own}");
    }

    fn verdict(given: &[u64], end: Look) -> Result<Vec<Row>, BenchError> {
        let options = Options {
            endpoint: String::new(),
            model: String::new(),
            duration: LOOK,
            clients: vec![1; given.len()],
            pid: None,
            seed: 0,
        };
        let counts = Counts { answered: AtomicU64::new(5), ..Counts::default() };
        let given: Vec<AtomicU64> = given.iter().map(|&tokens| AtomicU64::new(tokens)).collect();
        let warm = Look { memory_bytes: 100e6, tokens: 1.0, ..Look::default() };
        judged(&options, &counts, &given, (warm, warm), Ok(end), 10.0)
    }

    #[test]
    fn unequal_shares_held_blocks_and_grown_memory_are_failures() {
        let end = Look { memory_bytes: 110e6, ..Look::default() };
        assert_eq!(verdict(&[100, 109], end).expect("all is well").len(), 9);
        for (given, end, says) in [
            ([100, 140], end, "shares"),
            ([100, 100], Look { kv_usage: 0.01, ..end }, "still has"),
            ([100, 100], Look { running: 1.0, ..end }, "still has"),
            ([100, 100], Look { memory_bytes: 140e6, ..end }, "memory grew"),
            ([0, 0], end, "shares"),
        ] {
            let error = verdict(&given, end).expect_err(says).to_string();
            assert!(error.contains(says), "{error} does not say {says}");
        }
    }
}
