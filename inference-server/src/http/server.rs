//! The listening side of every service: a bounded number of connections, header and body limits, orderly shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::patience::Patient;

/// Most bytes of a request's body; more get 413.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Connections open at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 1_024;
/// Longest wait for a request's headers, and then for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {reason}; choose another port, or stop what uses this one")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        reason: std::io::Error,
    },
}

/// A listening service. Dropping it does not stop it: call [`HttpServer::stop`].
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: CancellationToken,
    /// Closes connections whatever they do.
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// Binds an address (port 0: a free one). Separate from [`start`], so that the port is known before the service is made.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|reason| ServeError::Bind { address, reason })
}

/// Serves a router until it is stopped.
pub fn start(listener: TcpListener, router: Router) -> std::io::Result<HttpServer> {
    let address = listener.local_addr()?;
    let (stop, cut, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    tasks.spawn(accept(listener, router, stop.clone(), cut.clone(), tasks.clone()));
    Ok(HttpServer { address, stop, cut, tasks })
}

impl HttpServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new requests, lets the running ones end, at most for `grace`; then closes the rest.
    pub async fn stop(&self, grace: Duration) {
        if !self.drain(grace).await {
            self.cut().await;
        }
    }

    /// Takes no new requests and lets the running ones end, at most for `grace`. Returns whether all have ended.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }

    /// Closes what is still open.
    pub async fn cut(&self) {
        tracing::warn!(address = %self.address, open = self.tasks.len(), "connections are cut after the grace period");
        self.cut.cancel();
        self.tasks.wait().await;
    }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that broke at once: neither is a reason to end.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Tokens are small writes that must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (service, stop, cut) = (TowerToHyperService::new(router.clone()), stop.clone(), cut.clone());
        tasks.spawn(async move {
            let _place = place;
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
            let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(Patient::new(stream)), service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = cut.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

/// A body within the limits.
///
/// # Errors
/// 413 when it is longer than `limit`, 408 when it does not arrive, 400 when the connection breaks.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(READ_TIMEOUT, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_long(&error) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body has more than {limit} bytes, the limit of this service: send a shorter prompt"),
        )),
        Ok(Err(error)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "body_unreadable", format!("the body cannot be read: {error}")))
        }
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body did not arrive within {} s", READ_TIMEOUT.as_secs()),
        )),
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// The answer to an unknown path or method.
pub(crate) async fn not_found(uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "unknown_path", format!("there is nothing at {}", uri.path()))
}

/// The answer to a known path with another method.
pub(crate) async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", format!("{} does not take {method}", uri.path()))
}
