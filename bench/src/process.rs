//! A contestant's process: started with its output in a file, stopped when it is dropped, and asked for its peak memory.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::BenchError;

/// The most bytes of a process's output that an error shows.
const TAIL_BYTES: usize = 600;

/// A process that ends with this value.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it prints goes to a file.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self, BenchError> {
        Self::spawn(name, command, Stdio::null(), false)
    }

    /// As [`Process::start`], with a standard input that ends when this process does, however it goes: a program that
    /// waits for that end does not outlive it.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_bound(name: &str, command: &mut Command) -> Result<Self, BenchError> {
        Self::spawn(name, command, Stdio::piped(), false)
    }

    /// Starts it with its standard input and output in the caller's hands.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_piped(name: &str, command: &mut Command) -> Result<(Self, ChildStdin, ChildStdout), BenchError> {
        let mut process = Self::spawn(name, command, Stdio::piped(), true)?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| failed(name, "its pipes are missing"))?;
        Ok((process, input, output))
    }

    fn spawn(name: &str, command: &mut Command, input: Stdio, piped: bool) -> Result<Self, BenchError> {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("polylink-bench-{}-{number}.log", std::process::id()));
        let file = File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
        let (output, errors) = file.map_err(|source| BenchError::Write { path: log.display().to_string(), source })?;
        let output = if piped { Stdio::piped() } else { Stdio::from(output) };
        command.stdin(input).stdout(output).stderr(errors).kill_on_drop(true);
        let child = command.spawn().map_err(|e| {
            let program = command.as_std().get_program().to_string_lossy().into_owned();
            failed(name, format!("{program} could not be started: {e}"))
        })?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] with the end of its output if it has ended.
    pub fn check(&mut self) -> Result<(), BenchError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(format!("it ended ({status})"))),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    /// An error of this contestant, with the end of its output.
    pub fn failed(&self, reason: impl std::fmt::Display) -> BenchError {
        let said = std::fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(TAIL_BYTES)..]).into_owned();
        failed(&self.name, format!("{reason}; its output ends with: {}", tail.trim()))
    }

    /// The most memory that it has held, in bytes, file pages included; None where the system does not tell.
    pub fn peak_bytes(&self) -> Option<f64> {
        peak_bytes(Some(self.child.id()?))
    }

    /// Its number while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it and waits until it is gone.
    pub async fn stop(mut self) {
        // One that has ended by itself is stopped too.
        let _ended = self.child.kill().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A file that stays in the temporary folder is no harm.
        let _removed = std::fs::remove_file(&self.log);
    }
}

/// An error of a contestant.
pub fn failed(name: &str, reason: impl std::fmt::Display) -> BenchError {
    BenchError::Contestant { name: name.to_owned(), reason: reason.to_string() }
}

fn proc_file(pid: Option<u32>, file: &str) -> Option<String> {
    let pid = pid.map_or("self".into(), |pid| pid.to_string());
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// The most memory that a process, or this one, has held in bytes; None where the system does not tell.
pub fn peak_bytes(pid: Option<u32>) -> Option<f64> {
    let status = proc_file(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// Linux counts processor time of processes in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a process, or of this one, over all its threads, in seconds; 0 where the system does not tell.
pub fn cpu_seconds(pid: Option<u32>) -> f64 {
    let stat = proc_file(pid, "stat").unwrap_or_default();
    // The second field is a name in brackets, with any characters; user and system time are the 14th and 15th.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_and_memory_of_this_process_are_seen() {
        let before = cpu_seconds(None);
        let mut work = 0_u64;
        while cpu_seconds(None) - before < 0.05 {
            work = (0..1_000_000).fold(work, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(peak_bytes(None).is_some_and(|bytes| bytes > 1e6));
        assert_eq!(cpu_seconds(Some(u32::MAX)), 0.0);
    }
}
