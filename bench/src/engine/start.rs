//! Load time and peak memory, of processes that are started for it and given a small load.

use super::contestant::{llama_server, ours};
use super::load::Load;
use super::peers::gguf;
use super::precision::Precision;
use super::server::Server;
use super::worker::Worker;
use super::{Options, Plan};
use crate::BenchError;
use crate::report::OURS;
use crate::report::{Compared, Series};

const MIB: f64 = (1 << 20) as f64;

/// Seconds from the start of a process until it answers, and its most memory after the load in MiB.
#[derive(Default)]
struct Seen {
    seconds: Vec<f64>,
    mib: Vec<f64>,
}

impl Seen {
    fn add(&mut self, seconds: f64, peak_bytes: Option<f64>) {
        self.seconds.push(seconds);
        self.mib.extend(peak_bytes.map(|bytes| bytes / MIB));
    }

    async fn server(&mut self, mut server: Server, load: &Load) -> Result<(), BenchError> {
        server.take(load).await?;
        self.add(server.start_seconds, server.peak_bytes());
        server.stop().await;
        Ok(())
    }
}

/// Both figures, in turns. The weights' file is in the system's cache from the first run on.
pub async fn measure(options: &Options, precision: Precision) -> Result<[Compared; 2], BenchError> {
    let load = Load::new(8, 128.min(options.shape.positions / 2), 16);
    let plan = Plan::of(&options.shape, precision, std::iter::once(&load));
    let (mut own, mut llama, mut transformers) = (Seen::default(), Seen::default(), Seen::default());
    for _ in 0..options.runs {
        own.server(ours(options, &plan, precision).await?, &load).await?;
        if let Ok((programs, python)) = &options.peers.llama_cpp {
            let gguf = gguf(python, &options.model, precision, &options.cache).await?;
            let server = llama_server(programs, &gguf, &load, options.threads, options.shape.vocabulary).await?;
            llama.server(server, &load).await?;
        }
        if let Some(python) = options.peers.transformers.as_ref().ok().filter(|_| precision.in_transformers()) {
            let mut worker = Worker::start("transformers", python, &options.model, options.threads).await?;
            // It refuses none of this size.
            let _seconds = worker.take(&load).await?;
            transformers.add(worker.start_seconds, worker.peak_bytes());
            worker.stop().await;
        }
    }
    let weights = options.shape.parameters() as f64 * precision.bytes_per_weight() / MIB;
    let named = [(OURS, own), ("llama.cpp", llama), ("transformers", transformers)];
    let (seconds, mib) =
        named.map(|(name, seen)| (Series::new(name, seen.seconds), Series::new(name, seen.mib))).into_iter().unzip();
    let of = |figure: &str, unit, series, limit| Compared {
        name: format!("{}.{figure}", precision.name()),
        unit,
        more_is_better: false,
        series,
        limit,
    };
    let least = ("weights and KV", weights + plan.kv_mib as f64);
    Ok([of("load_time", "s", seconds, None), of("peak_memory", "MiB", mib, Some(least))])
}
