//! A real network in a directory of its own: CometBFT, ledger, worker, judges and gateway as processes, stopped when
//! the test ends however it ends.
#![allow(dead_code, clippy::unwrap_used)]

pub mod books;
pub mod rounds;
pub mod stream;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Short blocks: an epoch of 20 lasts about ten seconds.
pub const BLOCK_TIME_MS: &str = "400";
/// The longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(150);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_polylink")
}

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("models")
}

/// A command with this repository's models and without the caller's settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("POLYLINK_") && name != "POLYLINK_CACHE") {
        command.env_remove(name);
    }
    command.env("POLYLINK_MODELS", models()).env("POLYLINK_RECORD_REQUESTS", "true").args(args).stdin(Stdio::null());
    command
}

/// Checks what nodes have asked the ledger of a home, in all its lives, against CometBFT's grammar.
pub fn requests_keep_to_the_grammar(home: &Path) {
    let (lives, requests) = polylink_abci_app::server::check_records(&home.join("requests")).unwrap();
    assert!(lives > 0 && requests > 0, "nothing was written down in {}", home.display());
    println!("{requests} requests in {lives} lives of {} keep to the grammar", home.display());
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to its end, which must be a failure; returns what it said.
pub fn fails(args: &[&str]) -> String {
    let output = command(args).output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} should have failed: {}", text(&output.stdout));
    assert!(!said.contains("panicked"), "{args:?} panicked: {said}");
    said
}

/// A child process that does not outlive the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub fn kill_hard(pid: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub struct Net {
    pub home: tempfile::TempDir,
    pub endpoint: String,
    pub api_key: String,
    pub model: String,
    pub rpc: String,
    pub gateway: String,
    pub worker: String,
    pub http: reqwest::Client,
}

impl Net {
    pub fn up(more: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("pl").tempdir().unwrap();
        Self::up_in(home, more)
    }

    /// Starts the network of a home, new or not.
    pub fn up_in(home: tempfile::TempDir, more: &[&str]) -> Self {
        let start = Instant::now();
        let path = home.path().display().to_string();
        let mut net = Self {
            home,
            endpoint: String::new(),
            api_key: String::new(),
            model: String::new(),
            rpc: String::new(),
            gateway: String::new(),
            worker: String::new(),
            http: reqwest::Client::new(),
        };
        let mut args = vec!["up", "--home", &path, "--detach", "--no-ask"];
        args.extend(more);
        if !more.contains(&"--block-time-ms") {
            args.extend(["--block-time-ms", BLOCK_TIME_MS]);
        }
        let output = command(&args).output().unwrap();
        assert!(output.status.success(), "up failed: {}{}", text(&output.stdout), text(&output.stderr));
        let status = net.status();
        let field =
            |name: &str| status[name].as_str().unwrap_or_else(|| panic!("status has no {name}: {status}")).to_owned();
        net.endpoint = field("endpoint");
        net.api_key = field("api_key");
        net.model = field("model");
        net.rpc = field("rpc");
        net.worker = field("worker");
        net.gateway = net.endpoint.trim_end_matches("/v1").to_owned();
        println!("network up in {:.1} s", start.elapsed().as_secs_f64());
        net
    }

    pub fn path(&self) -> String {
        self.home.path().display().to_string()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        command(args).args(["--home", &self.path()]).output().unwrap()
    }

    /// Runs with `--json`; it must succeed.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", text(&output.stdout)))
    }

    /// Runs; it must fail. Returns what it said.
    pub fn fails(&self, args: &[&str]) -> String {
        let path = self.path();
        fails(&[args, &["--home", &path]].concat())
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    pub fn epoch(&self) -> u64 {
        self.json(&["query", "epoch"])["epoch"]["number"].as_u64().unwrap()
    }

    pub fn pid(&self, role: &str) -> Option<u64> {
        let status = self.status();
        let roles = status["roles"].as_array().unwrap().clone();
        roles.iter().find(|r| r["name"] == role).and_then(|r| r["pid"].as_u64())
    }

    /// One chat completion: status and body.
    pub async fn chat(&self, question: &str, more: Value) -> (u16, Value) {
        let mut body = json!({"model": self.model, "messages": [{"role": "user", "content": question}],
                              "max_completion_tokens": 48, "temperature": 0});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.post("/v1/chat/completions", &self.api_key, &body.to_string()).await
    }

    pub async fn post(&self, path: &str, key: &str, body: &str) -> (u16, Value) {
        let request = self.http.post(format!("{}{path}", self.gateway)).bearer_auth(key);
        let request = request.header("content-type", "application/json").timeout(Duration::from_secs(60));
        let response = request.body(body.to_owned()).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// An answer that must come, tried again while the network finds itself.
    pub async fn answer(&self, question: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failed = match self.http.get(format!("{}/ready", self.gateway)).send().await {
                Err(error) => error.to_string(),
                Ok(_) => match self.chat(question, json!({})).await {
                    (200, answer) => return answer,
                    (status, body) => format!("{status} {body}"),
                },
            };
            assert!(Instant::now() < deadline, "no answer: {failed}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    pub async fn record(&self, id: &str) -> Value {
        let request = self.http.get(format!("{}/polylink/v1/receipts/{id}", self.gateway)).bearer_auth(&self.api_key);
        request.send().await.unwrap().json().await.unwrap()
    }

    /// `abci_query` by CometBFT's RPC alone.
    pub async fn abci_query(&self, path: &str, data: &[u8]) -> Vec<u8> {
        use base64::Engine as _;
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "abci_query",
                          "params": {"path": path, "data": hex::encode(data), "prove": false}});
        let answer: Value = self.http.post(&self.rpc).json(&body).send().await.unwrap().json().await.unwrap();
        let response = &answer["result"]["response"];
        assert_eq!(response["code"].as_u64().unwrap_or(0), 0, "{path}: {answer}");
        base64::engine::general_purpose::STANDARD.decode(response["value"].as_str().unwrap_or_default()).unwrap()
    }

    pub async fn until_epoch(&self, epoch: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.epoch() < epoch {
            assert!(Instant::now() < deadline, "epoch {epoch} does not come");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until everything is healthy.
    pub async fn until_ok(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status["health"] == "ok" {
                return;
            }
            assert!(Instant::now() < deadline, "not healthy again: {status:#}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// The address of a key.
    pub fn address(&self, name: &str) -> String {
        self.json(&["query", "balance", name])["address"].as_str().unwrap().to_owned()
    }

    /// Waits until a worker stands on chain.
    pub async fn until_registered(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.run(&["query", "worker", name]).status.success() {
            assert!(Instant::now() < deadline, "{name} does not register");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// A further role of this network, beside the supervisor's.
    pub fn role(&self, name: &str, args: &[&str]) -> Running {
        let log = std::fs::File::create(self.home.path().join(format!("logs/{name}.log"))).unwrap();
        let mut command = command(args);
        command.args(["--home", &self.path()]).stdout(log.try_clone().unwrap()).stderr(log);
        Running(command.spawn().unwrap())
    }

    /// Starts the stopped network of this home again.
    pub fn again(mut self) -> Self {
        let home = std::mem::replace(&mut self.home, tempfile::tempdir().unwrap());
        Self::up_in(home, &[])
    }

    pub fn down(&self) {
        let output = self.run(&["down"]);
        assert!(output.status.success(), "down: {}", text(&output.stderr));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.home.path().join("logs")).into_iter().flatten().flatten() {
                let log = std::fs::read(entry.path()).unwrap_or_default();
                let log = text(&log[log.len().saturating_sub(3_000)..]);
                eprintln!("==== end of {}\n{log}", entry.path().display());
            }
        }
        let down = self.run(&["down"]);
        if !down.status.success() {
            eprintln!("down: {}", text(&down.stderr));
        } else if !std::thread::panicking() && self.home.path().join("logs/ledger.log").exists() {
            requests_keep_to_the_grammar(self.home.path());
        }
    }
}

/// A question that training never saw.
pub struct Question {
    pub category: String,
    /// `instance` or `wording`: what is new of it.
    pub kind: String,
    /// The conversation.
    pub messages: Value,
    /// The one right answer.
    pub answer: String,
}

/// Held-out questions: the first `count` of each category and kind.
pub fn held_out(count: usize) -> Vec<Question> {
    let lines = std::fs::read_to_string(models().join("eval/heldout.jsonl")).unwrap();
    let mut taken = std::collections::BTreeMap::<(String, String), usize>::new();
    lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap().to_owned();
            let (category, kind, answer) = (text("category"), text("kind"), text("answer"));
            Question { category, kind, messages: line["messages"].clone(), answer }
        })
        .filter(|q| {
            let seen = taken.entry((q.category.clone(), q.kind.clone())).or_default();
            *seen += 1;
            *seen <= count
        })
        .collect()
}

/// The answer's text.
pub fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}
