//! The ABCI 2.0 socket server: CometBFT v0.38 on one side, a [`tendermint_abci::Application`] on
//! the other.
//!
//! The application's trait is the library's; the server is ours because the library's answers each
//! call with a write of its own over TCP without TCP_NODELAY (44 ms a call), copies its buffer for
//! every message, has no limit on a frame, cannot be shut down, and panics on an unknown request.
//!
//! CometBFT opens four connections (consensus, mempool, snapshot, query), each of which gets a
//! clone of the application, a thread that executes its calls strictly in order, and one that reads
//! ahead of it.
//!
//! Invariants: a frame, the buffers and the number of connections are bounded; no input makes the
//! server panic; after [`ServerHandle::shutdown`] no thread of it runs and its socket file is gone.
//! Stop the node first, then the application: a node whose application disappears while it is
//! stopping can hang.

mod address;
mod codec;
mod connection;
mod grammar;
mod intake;
mod listener;
mod log;
mod record;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tendermint_abci::Application;
use tendermint_proto::v0_38::abci::request;

pub use address::{Address, MAX_SOCKET_PATH_BYTES};
pub use codec::{FrameError, FrameReader, put_frame};
pub use connection::{ConnectionError, request_name};
pub use grammar::{GrammarError, check_grammar};
pub use log::{LogEntry, RequestLog};
pub use record::{RecordError, check_records, record};

pub(crate) use connection::serve as serve_connection;

use intake::Intake;
use listener::{Listener, Stream};

/// The exit code of a process whose application panicked (EX_SOFTWARE of sysexits).
pub const EXIT_CODE_PANIC: i32 = 70;

/// The number of a connection, in the order of acceptance, from 0.
pub type ConnectionId = u64;

/// Sees each request before the application does.
pub type Observer = Arc<dyn Fn(ConnectionId, &request::Value) + Send + Sync>;

/// The limits of a server, and who watches it.
#[derive(Clone)]
pub struct Options {
    /// The longest frame taken, in bytes: room for a block with its overhead. CometBFT itself sends
    /// up to 100 MiB; our blocks are far below.
    pub frame_bytes_max: usize,
    /// Connections at a time. CometBFT needs four; one more is told so with `Exception`.
    pub connections_max: usize,
    /// Called with every request before it is executed, from the connection's thread.
    pub observer: Option<Observer>,
}

impl Default for Options {
    fn default() -> Self {
        Options { frame_bytes_max: 64 << 20, connections_max: 8, observer: None }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is of no known form.
    #[error("{address:?} is no address to listen on: write unix:///path/to/socket or tcp://host:port")]
    Address {
        /// The text given.
        address: String,
    },
    /// The path does not fit into a socket address.
    #[error(
        "the socket path {} has {bytes} bytes, the system takes {MAX_SOCKET_PATH_BYTES}: use a shorter home directory",
        path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Another process answers there.
    #[error("{address} is in use by a running process: stop it, or choose another home directory or port")]
    InUse {
        /// The address.
        address: Address,
    },
    /// A file that is no socket lies there.
    #[error("{} exists and is not a socket: move it away or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: Address,
        /// What the system says.
        error: std::io::Error,
    },
}

/// A running server. Dropping it shuts it down.
pub struct ServerHandle {
    shared: Arc<Shared>,
    address: Address,
    running: Option<(JoinHandle<()>, Arc<Listener>)>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    requests: AtomicU64,
    connections: Mutex<Vec<Connection>>,
    failures: Mutex<Vec<String>>,
}

struct Connection {
    stream: Stream,
    intake: Intake,
    thread: JoinHandle<()>,
}

/// The reasons of failed connections that are kept for [`ServerHandle::failures`].
const FAILURES_MAX: usize = 64;

/// Locks a list that stays whole even if its holder panicked: every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to serve `app` at `address`. Returns once the socket accepts connections.
pub fn serve<A: Application>(address: &Address, app: A, options: Options) -> Result<ServerHandle, ServerError> {
    let listener = Arc::new(Listener::bind(address)?);
    let address = listener.address();
    let shared = Arc::new(Shared::default());
    let acceptor = {
        let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
        std::thread::Builder::new().name("abci-accept".into()).spawn(move || accept(&listener, app, options, &shared))
    };
    match acceptor {
        Ok(acceptor) => Ok(ServerHandle { shared, address, running: Some((acceptor, listener)) }),
        Err(error) => Err(ServerError::Listen { address, error }),
    }
}

fn accept<A: Application>(listener: &Listener, app: A, options: Options, shared: &Arc<Shared>) {
    for id in 0.. {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors or the like: wait for some to come free instead of spinning.
                tracing::error!("ABCI: cannot accept a connection: {error}");
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        let mut connections = lock(&shared.connections);
        connections.retain(|connection| !connection.thread.is_finished());
        if connections.len() >= options.connections_max {
            drop(connections);
            refuse(stream, options.connections_max);
            continue;
        }
        match start(id, stream, app.clone(), options.clone(), Arc::clone(shared)) {
            Ok(connection) => connections.push(connection),
            Err(error) => tracing::error!("ABCI: cannot start connection {id}: {error}"),
        }
    }
}

fn refuse(mut stream: Stream, limit: usize) {
    use std::io::Write;
    let mut out = Vec::new();
    put_frame(&mut out, &connection::exception(format!("{limit} connections are open already: the limit")));
    let _ = stream.write_all(&out);
}

fn start<A: Application>(
    id: ConnectionId,
    stream: Stream,
    app: A,
    mut options: Options,
    shared: Arc<Shared>,
) -> std::io::Result<Connection> {
    let (source, sink) = (stream.try_clone()?, stream.try_clone()?);
    let counted = Arc::clone(&shared);
    let inner = options.observer.take();
    options.observer = Some(Arc::new(move |id, value| {
        counted.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(inner) = &inner {
            inner(id, value);
        }
    }));
    let closer = stream.try_clone()?;
    let intake = Intake::default();
    let frames = FrameReader::new(source, options.frame_bytes_max);
    let named = |name: String| std::thread::Builder::new().name(name);
    let reading = intake.clone();
    let reader = named(format!("abci-{id}-read")).spawn(move || reading.read(frames))?;
    let taken = intake.clone();
    let executor = named(format!("abci-{id}")).spawn(move || {
        let result = connection::serve(id, taken.clone(), sink, &app, &options);
        taken.close();
        closer.shutdown();
        // It only waits for the socket or for room, and does neither any more.
        let _ = reader.join();
        match result {
            Ok(()) => tracing::debug!("ABCI: connection {id} closed"),
            Err(_) if shared.stopping.load(Ordering::SeqCst) => {}
            Err(error) => {
                tracing::error!("ABCI: connection {id} closed: {error}");
                let mut failures = lock(&shared.failures);
                if failures.len() < FAILURES_MAX {
                    failures.push(error.to_string());
                }
            }
        }
    });
    // Without an executor the reader ends when the stream does.
    let thread = executor.inspect_err(|_| stream.shutdown())?;
    Ok(Connection { stream, intake, thread })
}

impl ServerHandle {
    /// Where it listens; for TCP with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Requests taken since the start, over all connections.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).iter().filter(|connection| !connection.thread.is_finished()).count()
    }

    /// Why connections ended in error, oldest first (the first 64 of them).
    pub fn failures(&self) -> Vec<String> {
        lock(&self.shared.failures).clone()
    }

    /// Stops: no new connection, the request in execution on each open one is finished, all threads
    /// are joined and the socket file is removed.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some((acceptor, listener)) = self.running.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        listener.wake();
        // Neither thread panics of its own: an application's panic has ended the process before.
        let _ = acceptor.join();
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        for connection in &connections {
            connection.intake.close();
            connection.stream.shutdown();
        }
        for connection in connections {
            let _ = connection.thread.join();
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
