//! When a role is to end: SIGTERM, SIGINT, or, under a supervisor, the end of standard input, which comes when the
//! supervisor is gone however it went.

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::CliError;

/// Set by the supervisor for its children.
pub const SUPERVISED: &str = "POLYLINK_SUPERVISED";

/// The reason when the supervisor has died.
pub const ORPHANED: &str = "the supervisor is gone";

/// Waits for the reason to end, and returns it.
pub async fn requested() -> Result<&'static str, CliError> {
    let wrong = |e: std::io::Error| CliError::value("signals", format!("cannot be watched: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let orphaned = async {
        if std::env::var_os(SUPERVISED).is_none() {
            return std::future::pending().await;
        }
        let mut byte = [0];
        // Bytes mean nothing; an error, like the end, means that nobody is there.
        while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
    };
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = orphaned => ORPHANED,
    })
}
