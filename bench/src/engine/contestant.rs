//! Whoever takes loads: ours or a peer, each started once, llama.cpp's server once per figure, with as many slots as
//! streams.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::load::{Figure, Load};
use super::peers::{Peers, gguf};
use super::precision::Precision;
use super::server::Server;
use super::worker::Worker;
use super::{Options, Plan};
use crate::BenchError;
use crate::process::failed;
use crate::report::OURS;

/// A contestant of one precision.
pub struct Contestant {
    /// As in the rows.
    pub name: String,
    kind: Kind,
}

enum Kind {
    Server(Server),
    Llama { programs: PathBuf, gguf: PathBuf, threads: usize, vocabulary: usize, running: Option<(Load, Server)> },
    Batched { programs: PathBuf, gguf: PathBuf, threads: usize },
    Worker(Worker),
}

/// Starts our server, with room for every load of the plan.
pub async fn ours(options: &Options, plan: &Plan, precision: Precision) -> Result<Server, BenchError> {
    let mut command = Command::new(&options.ours);
    command.args(["serve", "--local", "--model"]).arg(&options.model).args(precision.flags());
    command.args(["--threads", &options.threads.to_string()]);
    command.args(["--max-running", &plan.streams.max(1).to_string(), "--max-waiting", "512"]);
    command.args(["--kv-cache-mib", &plan.kv_mib.to_string()]);
    command.args(&options.serve_flags);
    let listen = |command: &mut Command, port: u16| {
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
    };
    Server::start(OURS, command, listen, options.shape.vocabulary).await
}

/// Starts llama.cpp's server with a slot for each stream of the load.
pub async fn llama_server(
    programs: &Path,
    gguf: &Path,
    load: &Load,
    threads: usize,
    vocabulary: usize,
) -> Result<Server, BenchError> {
    let threads = threads.to_string();
    // A slot's context is a multiple of 256.
    let context = load.streams * (load.tokens() + 1).next_multiple_of(256);
    let mut command = Command::new(programs.join("llama-server"));
    command.arg("-m").arg(gguf).args(["-t", &threads, "-tb", &threads]);
    command.args(["-c", &context.to_string(), "-np", &load.streams.to_string(), "--no-kv-unified"]);
    // It shall keep prompts in its slots, and not spend time on copies of them elsewhere.
    command.args(["-b", "2048", "-ub", "512", "--cache-ram", "0", "--no-webui"]);
    let listen = |command: &mut Command, port: u16| {
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    };
    Server::start("llama.cpp", command, listen, vocabulary).await
}

/// All contestants of a precision, ours first.
pub async fn all(options: &Options, plan: &Plan, precision: Precision) -> Result<Vec<Contestant>, BenchError> {
    let Options { threads, peers: Peers { llama_cpp, transformers, servers }, shape, .. } = options;
    let (threads, vocabulary) = (*threads, shape.vocabulary);
    let mut all = vec![Contestant { name: OURS.into(), kind: Kind::Server(ours(options, plan, precision).await?) }];
    if let Ok((programs, python)) = llama_cpp {
        let (programs, gguf) = (programs.clone(), gguf(python, &options.model, precision, &options.cache).await?);
        let kind = Kind::Batched { programs: programs.clone(), gguf: gguf.clone(), threads };
        let batched = Contestant { name: "llama-batched-bench".into(), kind };
        let kind = Kind::Llama { programs, gguf, threads, vocabulary, running: None };
        all.extend([Contestant { name: "llama.cpp".into(), kind }, batched]);
    }
    if let Some(python) = transformers.as_ref().ok().filter(|_| precision.in_transformers()) {
        let name = "transformers".to_owned();
        let worker = Worker::start(&name, python, &options.model, threads).await?;
        all.push(Contestant { name, kind: Kind::Worker(worker) });
    }
    for (name, url) in servers {
        all.push(Contestant { name: name.clone(), kind: Kind::Server(Server::at(name, url, vocabulary).await?) });
    }
    Ok(all)
}

impl Contestant {
    /// Makes it ready for a figure: started, warm, the shared part of the prompts seen.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it cannot.
    pub async fn prepare(&mut self, figure: &Figure) -> Result<(), BenchError> {
        // The first load is the largest.
        let load = figure.loads()[0];
        let warm = if load.shared > 0 || load.again { Load { completion: 1, ..load } } else { Load::new(1, 16, 2) };
        match &mut self.kind {
            Kind::Server(server) => server.take(&warm).await.map(drop),
            Kind::Worker(worker) => worker.take(&Load { shared: 0, ..Load::new(1, 16, 2) }).await.map(drop),
            Kind::Batched { .. } => Ok(()),
            Kind::Llama { programs, gguf, threads, vocabulary, running } => {
                if running.as_ref().is_none_or(|(of, _)| *of != load) {
                    if let Some((_, server)) = running.take() {
                        server.stop().await;
                    }
                    *running = Some((load, llama_server(programs, gguf, &load, *threads, *vocabulary).await?));
                }
                match running {
                    Some((_, server)) => server.take(&warm).await.map(drop),
                    None => Ok(()),
                }
            }
        }
    }

    /// Seconds of a load; None where this contestant does not run such a one.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it fails, or answers with another number of tokens than asked for.
    pub async fn take(&mut self, load: &Load) -> Result<Option<f64>, BenchError> {
        match &mut self.kind {
            Kind::Server(server) => server.take(load).await.map(Some),
            Kind::Llama { running, .. } => match running {
                Some((_, server)) => server.take(load).await.map(Some),
                None => Err(failed(&self.name, "it was not started")),
            },
            // Only it knows why, and it would say so each time.
            Kind::Worker(worker) if load.shared == 0 => Ok(worker.take(load).await?.ok()),
            Kind::Batched { programs, gguf, threads }
                if load.shared == 0 && load.completion > 1 && load.streams > 1 =>
            {
                batched_bench(programs, gguf, load, *threads).await.map(Some)
            }
            Kind::Worker(_) | Kind::Batched { .. } => Ok(None),
        }
    }

    /// Ends its process.
    pub async fn stop(self) {
        match self.kind {
            Kind::Server(server) => server.stop().await,
            Kind::Llama { running: Some((_, server)), .. } => server.stop().await,
            Kind::Worker(worker) => worker.stop().await,
            Kind::Llama { running: None, .. } | Kind::Batched { .. } => {}
        }
    }
}

/// llama.cpp without HTTP and without sampling, in the most favourable order: all prompts, then all completions.
async fn batched_bench(programs: &Path, gguf: &Path, load: &Load, threads: usize) -> Result<f64, BenchError> {
    let name = "llama-batched-bench";
    let numbers = [load.prompt, load.completion, load.streams, threads].map(|number| number.to_string());
    let [prompt, completion, streams, threads] = &numbers;
    let context = (load.streams * load.tokens()).next_multiple_of(256).to_string();
    let mut command = Command::new(programs.join(name));
    command.arg("-m").arg(gguf).args(["-t", threads, "-tb", threads, "-c", &context, "-b", "2048", "-ub", "512"]);
    command.args(["-npp", prompt, "-ntg", completion, "-npl", streams, "--output-format", "jsonl"]);
    let output = command.kill_on_drop(true).output().await.map_err(|e| failed(name, e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["t"].is_f64());
    line.and_then(|line| line["t"].as_f64()).ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        let tail: String = errors.chars().skip(errors.chars().count().saturating_sub(400)).collect();
        failed(name, format!("it gave no figure ({}): {tail}", output.status))
    })
}
