//! One validator: its two processes, and what is done to them.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::ledger::network::Node;
use crate::process::{Process, failed};

/// The longest wait for an application that starts, and for a process that shall end by itself.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A validator as it lies on the disk.
#[derive(Clone, Debug)]
pub struct Home {
    /// Its programs.
    pub node: Node,
    /// CometBFT's settings.
    pub config: PathBuf,
    /// What a wipe removes: all but its keys, its settings, and what it has signed.
    pub wiped: Vec<PathBuf>,
}

/// A validator that runs, or does not at the moment.
pub struct Member {
    pub(super) name: String,
    home: Home,
    app: Option<Process>,
    node: Option<Process>,
    /// As they were written first.
    settings: String,
}

impl Member {
    pub(super) fn new(name: String, home: Home) -> Self {
        Self { name, home, app: None, node: None, settings: String::new() }
    }

    /// Its RPC.
    pub fn rpc(&self) -> &str {
        &self.home.node.rpc
    }

    /// Starts what does not run: the application, then the node.
    pub async fn start(&mut self) -> Result<(), BenchError> {
        let Some((program, socket)) = self.home.node.app.clone() else {
            return Err(failed(&self.name, "it has no application of its own"));
        };
        if self.app.is_none() {
            // What a killed one has left behind is no sign of the next.
            let _absent = std::fs::remove_file(&socket);
            let mut app = program.start(&self.name)?;
            let begun = Instant::now();
            while !socket.exists() {
                app.check()?;
                if begun.elapsed() > WAIT_MAX {
                    return Err(app.failed("it does not listen"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.app = Some(app);
        }
        if self.node.is_none() {
            self.node = Some(self.home.node.node.start(&self.name)?);
        }
        Ok(())
    }

    /// SIGKILL to the application; the node, which has lost it, after.
    pub async fn kill_app(&mut self) {
        if let Some(app) = self.app.take() {
            app.stop().await;
        }
        self.kill_node().await;
    }

    /// SIGKILL to the node; the application stays.
    pub async fn kill_node(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }

    /// SIGTERM to the node, then to the application, and their ends awaited.
    pub async fn stop(&mut self) {
        for process in [self.node.take(), self.app.take()].into_iter().flatten() {
            let mut process = process;
            signal(&process, Signal::TERM);
            let begun = Instant::now();
            while process.check().is_ok() && begun.elapsed() < WAIT_MAX {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            process.stop().await;
        }
    }

    /// Both stand still, or go on.
    pub fn freeze(&self, still: bool) {
        for process in [&self.node, &self.app].into_iter().flatten() {
            signal(process, if still { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Has its settings end with these lines until it is called again.
    pub fn configure(&mut self, more: &str) -> Result<(), BenchError> {
        let path = &self.home.config;
        let wrong = |e: std::io::Error| failed(&self.name, format!("{}: {e}", path.display()));
        if self.settings.is_empty() {
            self.settings = std::fs::read_to_string(path).map_err(wrong)?;
        }
        std::fs::write(path, format!("{}\n{more}", self.settings)).map_err(wrong)
    }

    /// Removes its state; it must not run.
    pub fn wipe(&self) -> Result<(), BenchError> {
        for path in &self.home.wiped {
            let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(&self.name, format!("{}: {e}", path.display())));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn signal(process: &Process, signal: Signal) {
    let pid = process.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // One that is gone cannot be told.
        let _gone = kill_process(pid, signal);
    }
}
