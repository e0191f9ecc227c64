//! `polylink bench`: measurements over public interfaces.

mod engine;
mod faults;
mod ledger;

use clap::{Args, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polylink_bench::serve::{self, Options, Target};
use polylink_bench::soak;
use polylink_bench::{random_model, row};

use crate::error::CliError;
use crate::home::Home;
use crate::models;
use crate::output::Output;
use crate::shutdown;

/// `polylink bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Load any OpenAI endpoint: TTFT, inter-token latency, throughput (p50, p95, p99), errors
    Serve(ServeArgs),
    /// Compare the engine with llama.cpp and transformers on the same weights: rates, memory, load time, growth
    Engine(engine::EngineArgs),
    /// Measure the ledger: sends in process, over RPC beside CometBFT's key-value store, growth with the state
    Ledger(ledger::LedgerArgs),
    /// Kill, stop, wipe and cut validators under load, and look whether all agree
    Faults(faults::FaultsArgs),
    /// A part of `bench ledger` in a process of its own
    #[command(hide = true)]
    LedgerPart(ledger::PartArgs),
    /// More than a server can take, for hours: leaks, stalls, unequal shares, answers without a reason
    Soak(SoakArgs),
    /// Make a model of any size with random weights, to measure with
    Model(ModelArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink bench soak --endpoint http://127.0.0.1:8000/v1 --model nano --pid $(pidof polylink) --seconds 600")]
struct SoakArgs {
    /// Base URL up to /v1
    #[arg(long)]
    endpoint: String,
    /// Model's name
    #[arg(long)]
    model: String,
    /// For how long
    #[arg(long, default_value_t = 3_600)]
    seconds: u64,
    /// Clients of each tenant
    #[arg(long, value_delimiter = ',', default_value = "12,16,28,56")]
    clients: Vec<usize>,
    /// Process whose memory is watched
    #[arg(long)]
    pid: Option<u32>,
    /// Of all that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the rows as JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

async fn run_soak(args: &SoakArgs, output: &Output) -> Result<(), CliError> {
    let options = soak::Options {
        endpoint: args.endpoint.clone(),
        model: args.model.clone(),
        duration: Duration::from_secs(args.seconds),
        clients: args.clients.clone(),
        pid: args.pid,
        seed: args.seed,
    };
    let rows = soak::run(&options, |line| eprintln!("{line}")).await?;
    output.say(row::table(&rows));
    match &args.json {
        Some(path) => Ok(row::write_json(path, &rows)?),
        None => Ok(()),
    }
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  polylink bench model --shape 0.5b --out /tmp/half && polylink serve --local --model /tmp/half
  polylink bench model --shape 17m --layers 12 --hidden 768 --heads 12 --kv-heads 4 --mlp 2048 --out /tmp/own")]
struct ModelArgs {
    /// Sizes: 17m, 0.5b, 1b or 8b, but for those given one by one
    #[arg(long, default_value = "0.5b")]
    shape: String,
    /// Layers
    #[arg(long)]
    layers: Option<usize>,
    /// Values of a row between the layers
    #[arg(long)]
    hidden: Option<usize>,
    /// Attention heads
    #[arg(long)]
    heads: Option<usize>,
    /// Heads of keys and values
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Values of a head
    #[arg(long)]
    head_dim: Option<usize>,
    /// Values between the MLP's matrices
    #[arg(long)]
    mlp: Option<usize>,
    /// Tokens of the vocabulary
    #[arg(long)]
    vocabulary: Option<usize>,
    /// Whether the output head is the embedding
    #[arg(long)]
    tied: Option<bool>,
    /// Prompt and completion together, in tokens
    #[arg(long, default_value_t = 32_768)]
    context: usize,
    /// Of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the model, or name of one in ./models, whose tokenizer is taken
    #[arg(long, default_value = "nano")]
    tokenizer: String,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
}

fn make_model(args: &ModelArgs, output: &Output) -> Result<(), CliError> {
    let named = random_model::Shape::named(&args.shape)?;
    let shape = random_model::Shape {
        layers: args.layers.unwrap_or(named.layers),
        hidden: args.hidden.unwrap_or(named.hidden),
        heads: args.heads.unwrap_or(named.heads),
        kv_heads: args.kv_heads.unwrap_or(named.kv_heads),
        head_dim: args.head_dim.unwrap_or(named.head_dim),
        mlp: args.mlp.unwrap_or(named.mlp),
        vocabulary: args.vocabulary.unwrap_or(named.vocabulary),
        tied: args.tied.unwrap_or(named.tied),
        positions: args.context,
    };
    let tokenizer = models::resolve(&args.tokenizer);
    random_model::write(&shape, args.seed, &tokenizer, &args.out)?;
    output.say(format!("{}: {} parameters, bf16, random (seed {})", args.out.display(), shape.parameters(), args.seed));
    Ok(())
}

#[derive(Args, Debug)]
#[command(after_help = "\
Without --rate a closed loop keeps --concurrency requests in flight; with it, requests arrive by a Poisson process and
those that find --concurrency in flight are counted as not sent.

Examples:
  polylink bench serve --quick
  polylink bench serve --concurrency 32 --requests 500 --json out.json
  polylink bench serve --endpoint http://127.0.0.1:8000/v1 --api-key x --model m --rate 20")]
struct ServeArgs {
    /// Base URL up to /v1 [default: the local gateway]
    #[arg(long, env = "POLYLINK_ENDPOINT")]
    endpoint: Option<String>,
    /// Bearer token [default: the local network's]
    #[arg(long, env = "POLYLINK_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Model's name [default: the local network's]
    #[arg(long)]
    model: Option<String>,
    /// Requests in flight
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Arrivals per second (open loop)
    #[arg(long)]
    rate: Option<f64>,
    /// At most this many requests
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// No request starts after so many seconds
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// Completion tokens of an answer, at most
    #[arg(long, default_value_t = 64)]
    max_tokens: u32,
    /// Make every answer exactly --max-tokens long
    #[arg(long)]
    ignore_eos: bool,
    /// Prompts: one per line, or JSON lines with `question` or `prompt` [default: built in]
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Of arrivals and requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A few seconds only: at most 32 requests within 10 s
    #[arg(long)]
    quick: bool,
    /// Write the rows as JSON to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs until it has ended or shall end: the processes that it has started, and its folder, go with it.
async fn unless_stopped(work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    tokio::select! {
        result = work => result,
        reason = shutdown::requested() => Err(CliError::role("bench", format!("ended by {}", reason?))),
    }
}

/// Runs `polylink bench`.
pub async fn run(args: &BenchArgs, home: &Path, output: &Output) -> Result<(), CliError> {
    let args = match &args.what {
        What::Engine(args) => return engine::run(args, output).await,
        What::Ledger(args) => return unless_stopped(ledger::run(args, output)).await,
        What::Faults(args) => return unless_stopped(faults::run(args, output)).await,
        What::LedgerPart(args) => return ledger::part(args),
        What::Model(args) => return make_model(args, output),
        What::Soak(args) => return run_soak(args, output).await,
        What::Serve(args) => args,
    };
    let (endpoint, api_key, model) = match (&args.endpoint, &args.model) {
        (Some(endpoint), Some(model)) => (endpoint.clone(), args.api_key.clone().unwrap_or_default(), model.clone()),
        _ => {
            let network = Home::new(home)?.require_network()?;
            let endpoint = args.endpoint.clone().map_or_else(|| network.endpoint(), Ok)?;
            let key = args.api_key.clone().unwrap_or_else(|| network.api_key.clone());
            (endpoint, key, args.model.clone().unwrap_or(network.model))
        }
    };
    let (requests, seconds) =
        if args.quick { (args.requests.min(32), args.duration.min(10)) } else { (args.requests, args.duration) };
    let options = Options {
        target: Target {
            endpoint,
            api_key,
            model,
            max_tokens: args.max_tokens,
            ignore_eos: args.ignore_eos,
            timeout: Duration::from_secs(120),
        },
        concurrency: args.concurrency,
        rate_per_second: args.rate,
        requests,
        duration: Duration::from_secs(seconds),
        prompts: args.prompts.clone(),
        seed: args.seed,
    };
    let report = serve::run(&options, |ended, failed| {
        if ended % 10 == 0 {
            eprint!("\r{ended} ended, {failed} failed ");
            // Progress that cannot be shown is no reason to stop measuring.
            let _shown = std::io::stderr().flush();
        }
    })
    .await?;
    eprintln!();
    output.say(row::table(&report.rows));
    if let Some(error) = &report.first_error {
        output.say(format!("first of {} errors: {error}", report.failed));
    }
    if let Some(path) = &args.json {
        row::write_json(path, &report.rows)?;
    }
    Ok(())
}
