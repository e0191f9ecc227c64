//! Where the application listens: `unix://PATH` (the fast way, and the default) or
//! `tcp://HOST:PORT`, as CometBFT's `proxy_app` writes it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::ServerError;

/// The longest path of a unix socket: `sun_path` has 108 bytes on Linux, the last of which is NUL.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix domain socket: 6–7 µs a call.
    Unix(PathBuf),
    /// `host:port`, without delay (TCP_NODELAY). Port 0 asks the system for a free one.
    Tcp(String),
}

impl Address {
    /// A unix socket at `path`, if the path fits.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        let bytes = path.as_os_str().len();
        if bytes == 0 {
            return Err(ServerError::Address { address: "unix://".into() });
        }
        if bytes > MAX_SOCKET_PATH_BYTES {
            return Err(ServerError::PathTooLong { path: path.to_path_buf(), bytes });
        }
        Ok(Address::Unix(path.to_path_buf()))
    }
}

impl FromStr for Address {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let wrong = || ServerError::Address { address: text.into() };
        if let Some(path) = text.strip_prefix("unix://") {
            return Address::unix(path);
        }
        let host_port = text.strip_prefix("tcp://").ok_or_else(wrong)?;
        let (host, port) = host_port.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong());
        }
        Ok(Address::Tcp(host_port.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(host_port) => write!(f, "tcp://{host_port}"),
        }
    }
}
