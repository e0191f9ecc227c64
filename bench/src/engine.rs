//! `polylink bench engine`: our engine and its peers over the same weights in the same run.
//!
//! One precision after another, one figure after another; within a figure the contestants take turns, so that what the
//! machine does besides meets all of them alike. Every contestant is a process of its own that is asked from outside;
//! values are medians. *Invariant*: a time counts only if exactly as many tokens came as were asked for; else the run
//! fails. A peer that is not there is named in the report.

mod contestant;
mod growth;
mod load;
mod peers;
mod precision;
mod server;
mod start;
mod worker;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use load::{Figure, Load};
pub use peers::Peers;
pub use precision::Precision;

use crate::BenchError;
use crate::random_model::Shape;
use crate::report::{Compared, Report, Series, summary};
use crate::row::Row;
use polylink_kernels::limits::Unit;
use precision::Limits;

/// The most repetitions.
pub const RUNS_MAX: usize = 100;
/// The most streams: as many answers as a server of ours has under way.
pub const STREAMS_MAX: usize = 256;
/// What to measure, and whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our binary.
    pub ours: PathBuf,
    /// Hugging Face folder of a Llama model in bf16, in one file.
    pub model: PathBuf,
    /// Its sizes.
    pub shape: Shape,
    /// Where its GGUF files are made.
    pub cache: PathBuf,
    /// One after the other.
    pub precisions: Vec<Precision>,
    /// In this order.
    pub figures: Vec<Figure>,
    /// Load time and peak memory, of processes that are started for it.
    pub start: bool,
    /// Throughput against streams, and step time against context, of ours alone.
    pub growth: bool,
    /// Repetitions.
    pub runs: usize,
    /// No repetition of a figure begins after this time.
    pub figure_time: Duration,
    /// Compute threads of every contestant.
    pub threads: usize,
    /// Whom to measure beside us.
    pub peers: Peers,
    /// Whether to measure what the machine does at most. What a GPU does, this does not know.
    pub limits: bool,
    /// Further flags of `polylink serve`.
    pub serve_flags: Vec<String>,
}

/// What our server must have room for.
#[derive(Clone, Copy, Debug)]
struct Plan {
    streams: usize,
    kv_mib: usize,
}

impl Plan {
    fn of<'a>(shape: &Shape, precision: Precision, loads: impl Iterator<Item = &'a Load>) -> Self {
        let (mut streams, mut tokens) = (1, 0);
        for load in loads {
            streams = streams.max(load.streams);
            // Each stream's last block is partly empty.
            tokens = tokens.max(load.streams * (load.tokens() + 64));
        }
        let bytes = tokens * 2 * shape.layers * shape.kv_heads * shape.head_dim * precision.kv_bytes();
        Self { streams, kv_mib: (bytes >> 20) + 1 }
    }
}

impl Options {
    fn check(&self) -> Result<(), BenchError> {
        let wrong = |option, reason: String| Err(BenchError::Option { option, reason });
        if self.runs == 0 || self.runs > RUNS_MAX {
            return wrong("--runs", format!("1 to {RUNS_MAX} is expected"));
        }
        if self.threads == 0 {
            return wrong("--threads", "at least one is expected".into());
        }
        for load in self.figures.iter().flat_map(Figure::loads) {
            if load.streams == 0 || load.streams > STREAMS_MAX {
                return wrong("--streams", format!("1 to {STREAMS_MAX} are expected"));
            }
            if load.tokens() > self.shape.positions {
                let have = self.shape.positions;
                return wrong("--model", format!("its context of {have} tokens is too short for {}", load.tokens()));
            }
        }
        Ok(())
    }
}

/// Runs everything. `progress` is told what begins.
///
/// # Errors
/// [`BenchError::Option`] for options out of their domain, [`BenchError::Contestant`] for the first contestant that
/// fails.
pub async fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report, BenchError> {
    options.check()?;
    let mut report = Report::new("engine", heading(options));
    let absent = options.peers.absent().into_iter();
    report.absent = absent.map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect();
    for &precision in &options.precisions {
        let mut limits = Limits::default();
        if options.limits {
            limits.measure(&options.shape, precision, options.threads);
        }
        if !options.figures.is_empty() {
            compare(options, precision, &mut limits, &mut report, &mut progress).await?;
        }
        if options.start {
            progress(&format!("{}: load time and memory", precision.name()));
            report.compared.extend(start::measure(options, precision).await?);
        }
        if options.growth {
            progress(&format!("{}: growth", precision.name()));
            report.rows.extend(growth::measure(options, precision).await?);
        }
        if options.limits {
            report.rows.extend(limit_rows(precision, &limits));
        }
    }
    Ok(report)
}

fn heading(options: &Options) -> String {
    let model = options.model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parameters = options.shape.parameters() as f64 / 1e6;
    format!("{model}: {parameters:.0} M parameters; {} threads, medians of {}", options.threads, options.runs)
}

fn limit_rows(precision: Precision, limits: &Limits) -> [Row; 2] {
    let products = match precision.unit() {
        Unit::F32 => "f32",
        Unit::Bf16 => "bf16",
        Unit::Int8 => "int8",
    };
    let name = precision.name();
    let row = |what: String, value: f64, unit| Row::new(format!("limit.{name}.{what}"), value, unit, limits.runs, 0.0);
    let read = row("read".into(), limits.read / 1e9, "GB/s");
    [read, row(format!("{products}_products"), limits.products / 1e9, "GOP/s")]
}

async fn compare(
    options: &Options,
    precision: Precision,
    limits: &mut Limits,
    report: &mut Report,
    progress: &mut impl FnMut(&str),
) -> Result<(), BenchError> {
    let loads: Vec<Load> = options.figures.iter().flat_map(Figure::loads).collect();
    progress(&format!("{}: the contestants start", precision.name()));
    let mut contestants =
        contestant::all(options, &Plan::of(&options.shape, precision, loads.iter()), precision).await?;
    let mut compared = Vec::new();
    for figure in &options.figures {
        progress(&format!("{}: {}", precision.name(), figure.name()));
        let mut rates = vec![Vec::new(); contestants.len()];
        let mut free = Vec::new();
        for contestant in &mut contestants {
            contestant.prepare(figure).await?;
        }
        if options.limits {
            limits.measure(&options.shape, precision, options.threads);
        }
        let begun = Instant::now();
        for turn in 0..options.runs {
            if turn > 0 && begun.elapsed() > options.figure_time {
                break;
            }
            for (at, contestant) in contestants.iter_mut().enumerate() {
                rates[at].extend(rate(contestant, figure).await?);
                if let Some(without) = figure.free_prefix().filter(|_| at == 0) {
                    free.extend(rate(contestant, &without).await?);
                    // That has taken the cache for itself.
                    contestant.prepare(figure).await?;
                }
            }
        }
        let named = contestants.iter().zip(rates).map(|(of, rates)| Series::new(&of.name, rates));
        compared.push((figure, named.collect::<Vec<_>>(), summary(&free)));
    }
    for contestant in contestants {
        contestant.stop().await;
    }
    for (figure, series, free) in compared {
        let limit = match figure {
            _ if !options.limits => None,
            Figure::Decode => Some(("read limit", limits.decode(&options.shape, precision))),
            Figure::Prefill { .. } => Some(("product limit", limits.prefill(&options.shape))),
            Figure::SharedPrefix(_) => free.map(|free| ("hit tokens free", free.p50)),
            Figure::Steps(_) | Figure::Serve(_) | Figure::FreePrefix(_) => None,
        };
        let name = format!("{}.{}", precision.name(), figure.name());
        report.compared.push(Compared { name, unit: "tokens/s", more_is_better: true, series, limit });
    }
    Ok(())
}

/// The figure's rate of one contestant, once; None where it does not run such a load or the times make no sense.
async fn rate(contestant: &mut contestant::Contestant, figure: &Figure) -> Result<Option<f64>, BenchError> {
    let mut seconds = Vec::new();
    for load in figure.loads() {
        match contestant.take(&load).await? {
            Some(time) => seconds.push(time),
            None => return Ok(None),
        }
    }
    Ok(figure.rate(&seconds))
}

/// Seconds that a server at `base` (a URL without `/v1`) takes for a load.
///
/// # Errors
/// [`BenchError::Contestant`] if it fails, or answers with another number of tokens than asked for.
pub async fn probe(name: &str, base: &str, vocabulary: usize, load: &Load) -> Result<f64, BenchError> {
    server::Server::at(name, base, vocabulary).await?.take(load).await
}
