//! A contestant behind OpenAI's HTTP interface: ours, llama.cpp's server, or any other that runs already.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::process::Command;

use super::load::{Load, Prompts};
use crate::BenchError;
use crate::process::{Process, failed};

/// The longest wait for a server that loads its model.
const START_MAX: Duration = Duration::from_secs(300);
/// The longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(5);

/// A server and a client of it.
pub struct Server {
    name: String,
    process: Option<Process>,
    base: String,
    model: String,
    client: Client,
    prompts: Prompts,
    /// From its start until it was ready, in seconds; 0 for one that ran already.
    pub start_seconds: f64,
}

impl Server {
    /// Starts `command`, which shall listen at the port that `listen` adds to it, and waits until it is ready.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it ends before, or is not ready in time.
    pub async fn start(
        name: &str,
        mut command: Command,
        listen: impl FnOnce(&mut Command, u16),
        vocabulary: usize,
    ) -> Result<Self, BenchError> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.map_err(|e| failed(name, format!("there is no free port: {e}")))?.port();
        listen(&mut command, port);
        let begun = Instant::now();
        let mut process = Process::start(name, &mut command)?;
        let client = Client::builder().build().map_err(BenchError::Client)?;
        let base = format!("http://127.0.0.1:{port}");
        loop {
            process.check()?;
            let answer = client.get(format!("{base}/health")).timeout(Duration::from_secs(5)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            if begun.elapsed() > START_MAX {
                return Err(process.failed(format!("it was not ready within {} s", START_MAX.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
        let start_seconds = begun.elapsed().as_secs_f64();
        let mut server = Self::at(name, &base, vocabulary).await?;
        (server.process, server.start_seconds) = (Some(process), start_seconds);
        Ok(server)
    }

    /// One that runs already, by its URL without `/v1`.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it does not say which model it serves.
    pub async fn at(name: &str, base: &str, vocabulary: usize) -> Result<Self, BenchError> {
        let client = Client::builder().build().map_err(BenchError::Client)?;
        let url = format!("{base}/v1/models");
        let answer = async { client.get(&url).timeout(Duration::from_secs(30)).send().await?.json::<Value>().await };
        let models = answer.await.map_err(|e| failed(name, format!("{url}: {e}")))?;
        let model = models["data"][0]["id"].as_str().ok_or_else(|| failed(name, format!("{url} names no model")))?;
        Ok(Self {
            name: name.to_owned(),
            process: None,
            base: base.to_owned(),
            model: model.to_owned(),
            client,
            prompts: Prompts::new(vocabulary),
            start_seconds: 0.0,
        })
    }

    /// Sends the load's prompts at once, and waits for all answers; in seconds.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] for an answer that is not exactly as long as asked for: its time says nothing.
    pub async fn take(&mut self, load: &Load) -> Result<f64, BenchError> {
        let prompts: Vec<_> = (0..load.streams).map(|stream| self.prompts.next(load, stream)).collect();
        let bodies: Vec<Value> = prompts.iter().map(|prompt| self.body(load, prompt)).collect();
        let begun = Instant::now();
        let answered = try_join_all(bodies.iter().map(|body| self.ask(load, body))).await;
        let seconds = begun.elapsed().as_secs_f64();
        match answered {
            Ok(_) => Ok(seconds),
            Err(reason) => Err(match &mut self.process {
                Some(process) => process.check().err().unwrap_or_else(|| process.failed(reason)),
                None => failed(&self.name, reason),
            }),
        }
    }

    fn body(&self, load: &Load, prompt: &[u32]) -> Value {
        json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": load.completion,
            "ignore_eos": true,
            "temperature": 0,
            // llama.cpp's: others look prompts up by themselves.
            "cache_prompt": load.shared > 0 || load.again,
        })
    }

    async fn ask(&self, load: &Load, body: &Value) -> Result<(), String> {
        let url = format!("{}/v1/completions", self.base);
        let sent = self.client.post(url).json(body).timeout(ANSWER_MAX).send().await;
        let answer = sent.map_err(|e| format!("no answer: {e:?}"))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| format!("the answer broke off: {e}"))?;
        if !status.is_success() {
            return Err(format!("HTTP {status}: {}", text.chars().take(300).collect::<String>()));
        }
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("the answer is not JSON: {e}"))?;
        let usage = &answer["usage"];
        let counted = (usage["prompt_tokens"].as_u64(), usage["completion_tokens"].as_u64());
        if counted != (Some(load.prompt as u64), Some(load.completion as u64)) {
            let asked = format!("{} and {}", load.prompt, load.completion);
            return Err(format!("asked for {asked} prompt and completion tokens, it counts {usage}"));
        }
        Ok(())
    }

    /// The most memory that its process has held, in bytes.
    pub fn peak_bytes(&self) -> Option<f64> {
        self.process.as_ref()?.peak_bytes()
    }

    /// Ends its process, if it has one.
    pub async fn stop(self) {
        if let Some(process) = self.process {
            process.stop().await;
        }
    }
}
