//! `polylink bench engine`: flags and defaults of the comparison with the peers.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

use polylink_bench::engine::{self, Figure, Load, Options, Peers, Precision};
use polylink_bench::random_model::{self, Shape};
use polylink_bench::row;

use crate::error::CliError;
use crate::models;
use crate::output::Output;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Prompts of 512 and 4096 tokens
    Prefill,
    /// Tokens of a single stream
    Decode,
    /// Streams of 128 prompt and 64 completion tokens
    Serve,
    /// Streams of 1024 prompt and 128 completion tokens
    ServeLong,
    /// 8 streams whose prompts are alike in 90 %
    SharedPrefix,
    /// Load time and peak memory
    Start,
    /// Ours alone: throughput against streams up to 256, step time against context up to 32k
    Growth,
}

/// Precisions by the names that rows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    F32,
    Bf16,
    #[value(name = "sm90-bf16")]
    Sm90Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<Profile> for Precision {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::F32 => Precision::F32,
            Profile::Bf16 => Precision::Bf16,
            Profile::Sm90Bf16 => Precision::Sm90Bf16,
            Profile::Q8_0 => Precision::Q8_0,
            Profile::Q4_0 => Precision::Q4_0,
        }
    }
}

/// `polylink bench engine`.
#[derive(Args, Debug)]
#[command(after_help = "\
Peers are found where bench/peers/install.sh puts them, or given; all run the same weights with the same threads, in
turns. A ratio is ours over the other, larger is better. Peers of f32 run bf16.

Examples:
  polylink bench engine --quick
  polylink bench engine --shape 0.5b --precision q8_0 --figures prefill,decode --json out.json
  polylink bench engine --peer none --figures growth --precision q4_0
  polylink bench engine --peer none --no-limits --precision sm90-bf16 --prompt 8192 --decode 64x1024+64 --load 32x128+256
  polylink bench engine --peer llama.cpp=/opt/llama.cpp/bin --peer other=http://127.0.0.1:8000")]
pub struct EngineArgs {
    /// Random weights of these sizes, made once: 17m, 0.5b, 1b or 8b [default: 0.5b; with --quick 17m]
    #[arg(long, conflicts_with = "model")]
    shape: Option<String>,
    /// Folder of a Llama model in bf16, or name of one in ./models
    #[arg(long)]
    model: Option<String>,
    /// Which, in this order [default: bf16,q8_0,q4_0; with --quick bf16,q8_0]
    #[arg(long, value_enum, value_delimiter = ',')]
    precision: Vec<Profile>,
    /// What to measure, in this order [default: all; with --quick prefill,decode,serve,shared-prefix]
    #[arg(long, value_enum, value_delimiter = ',')]
    figures: Vec<Group>,
    /// Of serve and serve-long [default: 1,8,32,128; with --quick 1,8,32]
    #[arg(long, value_delimiter = ',')]
    streams: Vec<usize>,
    /// A further figure, as prefill: a prompt of so many tokens. With one of these three, only those that are named
    #[arg(long, value_name = "TOKENS", value_parser = prompt)]
    prompt: Vec<usize>,
    /// A further figure: STREAMSxPROMPT+TOKENS, steps of streams whose prompts are in the cache
    #[arg(long, value_name = "LOAD", value_parser = load)]
    decode: Vec<Load>,
    /// A further figure, as serve: STREAMSxPROMPT+TOKENS
    #[arg(long, value_name = "LOAD", value_parser = load)]
    load: Vec<Load>,
    /// Repetitions; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of a figure after which it is not repeated again, however few runs it has had
    #[arg(long, default_value_t = 300)]
    figure_seconds: u64,
    /// Compute threads of every contestant; 0: one per core
    #[arg(long, env = "POLYLINK_THREADS", default_value_t = 0)]
    threads: usize,
    /// `none`, llama.cpp=FOLDER, transformers=PYTHON or NAME=URL; may be given several times
    #[arg(long)]
    peer: Vec<String>,
    /// Do not measure what the processor does at most: a GPU's limits are not told by it
    #[arg(long)]
    no_limits: bool,
    /// A further flag of our `polylink serve`; may be given several times
    #[arg(long, allow_hyphen_values = true)]
    serve_flag: Vec<String>,
    /// Where models and peers lie [default: ~/.cache/polylink]
    #[arg(long, env = "POLYLINK_CACHE")]
    cache: Option<PathBuf>,
    /// Under three minutes on two cores
    #[arg(long)]
    quick: bool,
    /// Write the rows as JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `32x128+64`.
fn load(text: &str) -> Result<Load, String> {
    let parts = text.split_once('x').and_then(|(streams, rest)| Some((streams, rest.split_once('+')?)));
    let numbers = parts.and_then(|(streams, (prompt, completion))| {
        Some([streams.parse().ok()?, prompt.parse().ok()?, completion.parse().ok()?])
    });
    match numbers {
        Some([streams, ..]) if !(1..=engine::STREAMS_MAX).contains(&streams) => {
            Err(format!("1 to {} streams are expected", engine::STREAMS_MAX))
        }
        Some([streams, prompt, completion]) if prompt > 0 && completion > 0 => {
            Ok(Load::new(streams, prompt, completion))
        }
        _ => Err("STREAMSxPROMPT+TOKENS is expected, such as 32x128+64".into()),
    }
}

fn prompt(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|tokens| *tokens > 0).ok_or_else(|| "at least one token is expected".into())
}

/// Those that were given, or the defaults.
fn given<T: Copy>(given: &[T], quick: bool, quick_default: &[T], default: &[T]) -> Vec<T> {
    match (given.is_empty(), quick) {
        (false, _) => given,
        (true, true) => quick_default,
        (true, false) => default,
    }
    .to_vec()
}

impl EngineArgs {
    fn named(&self) -> Vec<Figure> {
        let prompts = self.prompt.iter().map(|tokens| Figure::Prefill { tokens: *tokens });
        let steps = self.decode.iter().map(|load| Figure::Steps(*load));
        prompts.chain(steps).chain(self.load.iter().map(|load| Figure::Serve(*load))).collect()
    }

    fn groups(&self) -> Vec<Group> {
        if self.figures.is_empty() && !self.named().is_empty() {
            return Vec::new();
        }
        let quick = [Group::Prefill, Group::Decode, Group::Serve, Group::SharedPrefix];
        given(&self.figures, self.quick, &quick, Group::value_variants())
    }

    /// Those that the model's context has room for.
    fn figures(&self, positions: usize) -> Vec<Figure> {
        let streams = given(&self.streams, self.quick, &[1, 8, 32], &[1, 8, 32, 128]);
        let serve = |prompt, completion| {
            streams.iter().map(move |streams| Figure::Serve(Load::new(*streams, prompt, completion))).collect()
        };
        let figures = self.groups().into_iter().flat_map(|group| match group {
            Group::Prefill => vec![Figure::Prefill { tokens: 512 }, Figure::Prefill { tokens: 4_096 }],
            Group::Decode => vec![Figure::Decode],
            Group::Serve => serve(128, 64),
            Group::ServeLong => serve(1_024, 128),
            Group::SharedPrefix => vec![Figure::SharedPrefix(Load { shared: 922, ..Load::new(8, 1_024, 64) })],
            Group::Start | Group::Growth => Vec::new(),
        });
        let figures = figures.filter(|figure| figure.loads().iter().all(|load| load.tokens() <= positions));
        figures.chain(self.named()).collect()
    }
}

/// Runs `polylink bench engine`.
pub async fn run(args: &EngineArgs, output: &Output) -> Result<(), CliError> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = args.cache.clone().unwrap_or_else(|| home.join(".cache/polylink"));
    let models = cache.join("bench");
    let (model, shape) = match &args.model {
        Some(model) => {
            let folder = models::resolve(model);
            let shape = Shape::read(&folder)?;
            (folder, shape)
        }
        None => {
            let name = args.shape.clone().unwrap_or_else(|| if args.quick { "17m" } else { "0.5b" }.into());
            let (folder, shape) = (models.join(&name), Shape::named(&name)?);
            if Shape::read(&folder).ok() != Some(shape) || !folder.join("model.safetensors").is_file() {
                eprintln!("random weights are written to {}", folder.display());
                random_model::write(&shape, 1, &models::resolve("nano"), &folder)?;
            }
            (folder, shape)
        }
    };
    let precisions = given(
        &args.precision,
        args.quick,
        &[Profile::Bf16, Profile::Q8_0],
        &[Profile::Bf16, Profile::Q8_0, Profile::Q4_0],
    );
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let groups = args.groups();
    let options = Options {
        ours: std::env::current_exe().map_err(|e| CliError::role("bench", e))?,
        figures: args.figures(shape.positions),
        precisions: precisions.into_iter().map(Precision::from).collect(),
        start: groups.contains(&Group::Start),
        growth: groups.contains(&Group::Growth),
        runs: args.runs,
        figure_time: std::time::Duration::from_secs(args.figure_seconds),
        threads: if args.threads == 0 { cores } else { args.threads },
        peers: Peers::find(&cache, &args.peer)?,
        limits: !args.no_limits,
        serve_flags: args.serve_flag.clone(),
        cache: models,
        model,
        shape,
    };
    let begun = std::time::Instant::now();
    let report = engine::run(&options, |what| eprintln!("{:>4} s  {what}", begun.elapsed().as_secs())).await?;
    output.say(report.table());
    if let Some(path) = &args.json {
        row::write_json(path, &report.rows())?;
    }
    Ok(())
}
