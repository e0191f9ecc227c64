//! The engine's thread: commands, steps, and what happens when a step fails.
//!
//! After a lost peer or a broken backend every live request fails at once with its code; the engine then builds its
//! backend anew, trying once a second, and refuses requests until that succeeds. Nothing waits for a dead peer.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use polylink_kernels::{Backend, BackendError};

use super::api::FailureCode;
use super::config::EngineError;
use super::core::Core;
use super::handle::{Command, EngineStatus, Shared};

/// Makes a fresh backend with the same program and limits.
pub(crate) type Rebuild = Box<dyn FnMut() -> Result<Box<dyn Backend>, EngineError> + Send>;

/// Pause between two attempts to build the backend anew.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// An engine that was idle for so long counts everything again, when nobody waits for it.
const CHECK_AFTER: Duration = Duration::from_millis(100);

pub(crate) struct EngineThread {
    core: Core,
    backend: Box<dyn Backend>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    rebuild: Rebuild,
    draining: bool,
    stopping: bool,
}

/// Tells that the engine has stopped, however its thread ends.
struct TellStopped(Arc<Shared>);

impl Drop for TellStopped {
    fn drop(&mut self) {
        self.0.status.send_replace(EngineStatus::Stopped);
    }
}

impl EngineThread {
    pub(crate) fn new(
        core: Core,
        backend: Box<dyn Backend>,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
        rebuild: Rebuild,
    ) -> Self {
        Self { core, backend, commands, shared, rebuild, draining: false, stopping: false }
    }

    /// Until stopped or drained. Requests that are live then fail with `engine_stopped` as their queues are dropped.
    pub(crate) fn run(mut self) {
        let _tell = TellStopped(Arc::clone(&self.shared));
        while !self.stopping {
            if self.core.is_idle() {
                self.core.check_idle();
                if self.draining {
                    break;
                }
                let Some(command) = self.next_command() else { break };
                self.take(command);
            }
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.stopping = true;
                        break;
                    }
                }
            }
            if self.stopping {
                break;
            }
            if let Err(error) = self.core.step(&mut *self.backend) {
                self.recover(&error);
            }
        }
        self.core.land(&mut *self.backend);
    }

    /// Waits for a command; `None`: the last handle is gone.
    fn next_command(&self) -> Option<Command> {
        match self.commands.recv_timeout(CHECK_AFTER) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.core.check();
                self.commands.recv().ok()
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Run(job) => self.core.admit(job),
            Command::Drain => {
                self.draining = true;
                self.shared.status.send_replace(EngineStatus::Draining);
            }
            Command::Stop => self.stopping = true,
        }
    }

    /// Fails what is live, and makes the backend whole again.
    fn recover(&mut self, error: &BackendError) {
        let (code, rebuild) = match error {
            BackendError::Lost(_) => (FailureCode::PeerLost, true),
            BackendError::Poisoned | BackendError::Device(_) => (FailureCode::EngineFailed, true),
            _ => (FailureCode::EngineFailed, false),
        };
        tracing::error!(code = code.as_str(), %error, "engine step failed");
        let reason = format!("{error}; trying to recover");
        if rebuild {
            // Whoever is told of the failure and asks for the status sees this one.
            self.shared.status.send_replace(EngineStatus::Unavailable(reason.clone()));
        }
        self.core.fail_all(code, &error.to_string());
        if !rebuild {
            return;
        }
        while !self.stopping && !self.draining {
            match (self.rebuild)() {
                Ok(backend) => {
                    self.backend = backend;
                    self.shared.status.send_replace(EngineStatus::Ready);
                    tracing::info!("engine recovered");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the engine cannot recover yet"),
            }
            match self.commands.recv_timeout(REBUILD_PAUSE) {
                // Was on its way when the backend broke.
                Ok(Command::Run(job)) => job.outbox.failed(code, &reason),
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }
}
