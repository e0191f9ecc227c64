//! `up --detach`: the same command in the background, awaited until it is healthy.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::CliError;
use crate::files;
use crate::home::Home;
use crate::supervise::{State, tail};

/// How long the whole network may take until it is healthy.
const DEADLINE: Duration = Duration::from_secs(240);

/// Starts the supervisor in a process group of its own, with its output in `logs/up.log`.
pub(super) async fn start(home: &Home) -> Result<(), CliError> {
    let log = home.log("up");
    let file =
        OpenOptions::new().create(true).write(true).truncate(true).open(&log).map_err(|e| CliError::file(&log, e))?;
    let errors = file.try_clone().map_err(|e| CliError::file(&log, e))?;
    let program = std::env::current_exe().map_err(|e| CliError::value("this program's path", e))?;
    let args = std::env::args_os().skip(1).filter(|arg| arg != "--detach");
    let mut child = Command::new(program)
        .args(args)
        // A configuration that asks for detaching must not make the child detach again.
        .env_remove(crate::shutdown::SUPERVISED)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|e| CliError::role("up", e))?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let state: State = files::read_json(&home.state()).unwrap_or_default();
        if state.pid == child.id() && state.phase == "ready" {
            println!("up in the background (process {}); log: {}", child.id(), log.display());
            return Ok(());
        }
        let ended = child.try_wait().map_err(|e| CliError::role("up", e))?;
        if let Some(status) = ended {
            return Err(CliError::role("up", format!("it ended ({status}):\n{}", tail(&log, 15))));
        }
        if Instant::now() > deadline {
            let reason = format!("not healthy within {} s:\n{}", DEADLINE.as_secs(), tail(&log, 15));
            crate::supervise::terminate(Some(child.id()));
            return Err(CliError::role("up", reason));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
