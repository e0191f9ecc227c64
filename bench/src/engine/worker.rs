//! A contestant in Python without a server: loads go to its standard input, the seconds come back.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};

use super::load::Load;
use crate::BenchError;
use crate::process::Process;

const SCRIPT: &str = include_str!("../../peers/transformers_worker.py");
/// The longest wait for a line.
const LINE_MAX: Duration = Duration::from_secs(900);

/// transformers.
pub struct Worker {
    process: Process,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// From its start until it was ready, in seconds.
    pub start_seconds: f64,
}

impl Worker {
    /// Starts it with the interpreter of an environment that has transformers.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it does not get ready.
    pub async fn start(name: &str, python: &Path, folder: &Path, threads: usize) -> Result<Self, BenchError> {
        let begun = std::time::Instant::now();
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).arg(folder).arg(threads.to_string());
        command.env("TRANSFORMERS_OFFLINE", "1").env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
        let (process, input, output) = Process::start_piped(name, &mut command)?;
        let mut worker = Self { process, input, output: BufReader::new(output), start_seconds: 0.0 };
        let ready = worker.line().await?;
        if ready["ready"] != true {
            return Err(worker.process.failed(format!("it should say that it is ready, it says {ready}")));
        }
        worker.start_seconds = begun.elapsed().as_secs_f64();
        Ok(worker)
    }

    async fn line(&mut self) -> Result<Value, BenchError> {
        let mut line = String::new();
        let read = tokio::time::timeout(LINE_MAX, self.output.read_line(&mut line)).await;
        match read {
            Ok(Ok(bytes)) if bytes > 0 => {
                serde_json::from_str(&line).map_err(|e| self.process.failed(format!("not JSON ({e}): {line}")))
            }
            Ok(Ok(_)) => Err(self.process.failed("it ended")),
            Ok(Err(error)) => Err(self.process.failed(error)),
            Err(_) => Err(self.process.failed(format!("no answer within {} s", LINE_MAX.as_secs()))),
        }
    }

    /// Seconds of a load, or why it is not run.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] for an answer that is not exactly as long as asked for.
    pub async fn take(&mut self, load: &Load) -> Result<Result<f64, String>, BenchError> {
        let asked = json!({
            "streams": load.streams, "prompt_tokens": load.prompt, "completion_tokens": load.completion,
        });
        let sent = self.input.write_all(format!("{asked}\n").as_bytes()).await;
        sent.map_err(|e| self.process.failed(e))?;
        let answer = self.line().await?;
        if let Some(reason) = answer["refused"].as_str() {
            return Ok(Err(reason.to_owned()));
        }
        let counted = (answer["prompt_tokens"].as_u64(), answer["completion_tokens"].as_u64());
        let expected = ((load.streams * load.prompt) as u64, load.completed() as u64);
        match answer["seconds"].as_f64() {
            Some(seconds) if counted == (Some(expected.0), Some(expected.1)) => Ok(Ok(seconds)),
            _ => Err(self.process.failed(format!("asked for {asked}, it answers {answer}"))),
        }
    }

    /// The most memory that it has held, in bytes.
    pub fn peak_bytes(&self) -> Option<f64> {
        self.process.peak_bytes()
    }

    /// Ends it.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}
