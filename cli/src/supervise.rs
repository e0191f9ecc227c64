//! The supervisor: starts roles as child processes, writes their output to logs, restarts what dies, stops in order.
//!
//! Always holds: a child is in a process group of its own, so that Ctrl-C reaches the supervisor alone, which decides
//! the order; a stop waits until a deadline and then kills; the pause before a restart doubles from 0.2 s to 5 s and is
//! never longer; a child whose supervisor is gone reads the end of its standard input, and ends (see
//! [`crate::shutdown`]). CometBFT does not read it, and ends when its application does.

use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::CliError;
use crate::files;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that lived this long has started well: the next pause is the shortest again.
const SETTLED: Duration = Duration::from_secs(20);
/// A log over this size is put aside (one older file is kept) when its role starts.
const LOG_BYTES_MAX: u64 = 32 << 20;

/// One child to run.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name, also that of its log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables set besides the supervisor's own.
    pub env: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
    /// From SIGTERM to SIGKILL.
    pub stop_deadline: Duration,
}

/// What the supervisor says of a role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoleState {
    /// Its name.
    pub name: String,
    /// `running`, `restarting` or `stopped`.
    pub state: String,
    /// While it runs.
    pub pid: Option<u32>,
    /// Starts after the first.
    pub restarts: u32,
    /// How it last ended.
    pub last_exit: Option<String>,
    /// Its log.
    pub log: PathBuf,
}

/// What `run/state.json` holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The supervisor's process.
    pub pid: u32,
    /// `starting`, `ready` or `stopping`.
    pub phase: String,
    /// In the order of starting.
    pub roles: Vec<RoleState>,
}

struct Shared {
    state: Mutex<State>,
    path: PathBuf,
    quiet: bool,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        // A state file that cannot be written must not stop the network; it is for onlookers.
        if let Err(error) = files::write_json(&self.path, &*state) {
            tracing::warn!(%error, "the supervisor's state could not be written");
        }
    }
    fn role(&self, name: &str, change: impl FnOnce(&mut RoleState)) {
        self.change(|state| {
            if let Some(role) = state.roles.iter_mut().find(|r| r.name == name) {
                change(role);
            }
        });
    }
    fn say(&self, line: &str) {
        if !self.quiet {
            println!("{line}");
        }
    }
}

struct Running {
    role: Role,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Children in the order of their start.
pub struct Supervisor {
    shared: Arc<Shared>,
    running: Vec<Running>,
}

impl Supervisor {
    /// Without children yet; its state goes to a file.
    pub fn new(state: &Path, quiet: bool) -> Self {
        let shared = Shared {
            state: Mutex::new(State { pid: std::process::id(), phase: "starting".into(), roles: Vec::new() }),
            path: state.to_owned(),
            quiet,
        };
        shared.change(|_| ());
        Self { shared: Arc::new(shared), running: Vec::new() }
    }

    /// Starts a child and keeps it running until the stop.
    pub fn start(&mut self, role: Role) -> Result<(), CliError> {
        let child = spawn(&role)?;
        let first = RoleState {
            name: role.name.clone(),
            state: "running".into(),
            pid: child.id(),
            log: role.log.clone(),
            ..Default::default()
        };
        self.shared.change(|state| state.roles.push(first));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keep(role.clone(), child, self.shared.clone(), stopped));
        self.running.push(Running { role, stop, task });
        Ok(())
    }

    /// A snapshot of all roles.
    pub fn state(&self) -> State {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that everything is up.
    pub fn set_ready(&self) {
        self.shared.change(|state| state.phase = "ready".into());
    }

    /// Fails with the end of the log when a role has died more often than `restarts`: used while starting.
    pub fn check(&self, restarts: u32) -> Result<(), CliError> {
        let state = self.state();
        let Some(role) = state.roles.iter().find(|r| r.restarts > restarts) else { return Ok(()) };
        let reason = format!(
            "it ended again and again ({}); the end of {}:\n{}",
            role.last_exit.as_deref().unwrap_or("unknown"),
            role.log.display(),
            tail(&role.log, 12)
        );
        Err(CliError::role(&role.name, reason))
    }

    /// Stops all children, the last started first, each within its deadline.
    pub async fn stop(mut self) {
        self.shared.change(|state| state.phase = "stopping".into());
        while let Some(Running { role, stop, task }) = self.running.pop() {
            let start = Instant::now();
            // The receiver is gone only if the task ended, which is what is wanted.
            let _ended = stop.send(true);
            if task.await.is_err() {
                self.shared.say(&format!("{:<10} its supervision failed", role.name));
            }
            self.shared.say(&format!("{:<10} stopped in {:.1} s", role.name, start.elapsed().as_secs_f64()));
        }
    }
}

fn spawn(role: &Role) -> Result<Child, CliError> {
    let wrong =
        |e: std::io::Error| CliError::role(&role.name, format!("{} cannot be started: {e}", role.program.display()));
    rotate(&role.log);
    let log = OpenOptions::new().create(true).append(true).open(&role.log).map_err(|e| CliError::file(&role.log, e))?;
    let errors = log.try_clone().map_err(wrong)?;
    Command::new(&role.program)
        .args(&role.args)
        .envs(role.env.iter().map(|(k, v)| (k, v)))
        .env(crate::shutdown::SUPERVISED, "1")
        .stdin(Stdio::piped())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(wrong)
}

fn rotate(log: &Path) {
    if std::fs::metadata(log).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
        // If it cannot be put aside the role appends to it, and the next start tries again.
        let _kept = std::fs::rename(log, log.with_extension("log.1"));
    }
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(16 << 10)..]).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| format!("  {l}\n")).collect()
}

async fn keep(role: Role, mut child: Child, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        let stdin = child.stdin.take();
        let ended = tokio::select! {
            status = child.wait() => status.map_or_else(|e| e.to_string(), |s| s.to_string()),
            () = stopped(&mut stop) => {
                drop(stdin);
                end(&role, &mut child).await;
                shared.role(&role.name, |r| (r.state, r.pid) = ("stopped".into(), None));
                return;
            }
        };
        drop(stdin);
        pause = if started.elapsed() > SETTLED { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        shared.say(&format!("{:<10} ended ({ended}); starting it again in {:.1} s", role.name, pause.as_secs_f64()));
        shared.role(&role.name, |r| {
            (r.state, r.pid, r.last_exit) = ("restarting".into(), None, Some(ended));
            r.restarts += 1;
        });
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&mut stop) => {
                    shared.role(&role.name, |r| r.state = "stopped".into());
                    return;
                }
            }
            match spawn(&role) {
                Ok(started) => {
                    child = started;
                    break;
                }
                Err(error) => shared.say(&format!("{:<10} {error}", role.name)),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        shared.role(&role.name, |r| (r.state, r.pid) = ("running".into(), child.id()));
    }
}

/// Waits for the stop; a supervisor that is gone has stopped too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _asked_or_gone = stop.wait_for(|stop| *stop).await.is_ok();
}

async fn end(role: &Role, child: &mut Child) {
    terminate(child.id());
    if tokio::time::timeout(role.stop_deadline, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::warn!(role = role.name, %error, "could not be killed");
    }
}

/// Sends SIGTERM to a process; one that is gone already is what is wanted.
pub fn terminate(pid: Option<u32>) {
    send(pid, rustix::process::Signal::TERM);
}

/// Sends SIGKILL to a process.
pub fn kill(pid: Option<u32>) {
    send(pid, rustix::process::Signal::KILL);
}

fn send(pid: Option<u32>, signal: rustix::process::Signal) {
    let pid = pid.and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, name: &str, script: &str, deadline_ms: u64) -> Role {
        Role {
            name: name.into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![],
            log: directory.join(format!("{name}.log")),
            stop_deadline: Duration::from_millis(deadline_ms),
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..200 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn a_dead_role_is_started_again_and_a_stubborn_one_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let mut supervisor = Supervisor::new(&state, true);
        supervisor.start(shell(directory.path(), "dies", "echo hello; exit 3", 1_000)).unwrap();
        supervisor
            .start(shell(directory.path(), "stubborn", "trap '' TERM; while true; do sleep 0.1; done", 300))
            .unwrap();
        until("two restarts", || supervisor.state().roles[0].restarts >= 2).await;
        let error = supervisor.check(1).unwrap_err().to_string();
        assert!(error.contains("dies") && error.contains("exit status: 3") && error.contains("hello"), "{error}");
        assert_eq!(supervisor.state().roles[1].restarts, 0);
        let pid = supervisor.state().roles[1].pid.unwrap();
        let start = Instant::now();
        supervisor.stop().await;
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
        let written: State = files::read_json(&state).unwrap();
        assert!(written.roles.iter().all(|r| r.state == "stopped" && r.pid.is_none()));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = Supervisor::new(&directory.path().join("s.json"), true);
        let mut role = shell(directory.path(), "x", "", 100);
        role.program = "/nonexistent/cometbft".into();
        assert!(supervisor.start(role).unwrap_err().to_string().contains("/nonexistent/cometbft"));
    }
}
