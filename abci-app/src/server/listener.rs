//! Unix and TCP sockets behind one face.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::SockRef;

use super::{Address, ServerError};

/// A bound socket. A unix socket's file is removed when it is dropped.
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, Address),
}

impl Listener {
    /// Binds `address`. A socket file that nobody answers on is what a killed process left: it is
    /// replaced. One that is answered, or a file that is no socket, is left alone.
    pub(super) fn bind(address: &Address) -> Result<Self, ServerError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ServerError::InUse { address: address.clone() },
            _ => ServerError::Listen { address: address.clone(), error },
        };
        match address {
            Address::Unix(path) => {
                clear_stale(path, address)?;
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                // Whoever can write to the socket is the consensus engine: the owner alone may.
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                Ok(Listener::Unix(listener, path.clone()))
            }
            Address::Tcp(host_port) => {
                let listener = TcpListener::bind(host_port).map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Ok(Listener::Tcp(listener, Address::Tcp(bound.to_string())))
            }
        }
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Listener::Unix(_, path) => Address::Unix(path.clone()),
            Listener::Tcp(_, address) => address.clone(),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// Makes a blocked `accept` return: shutting the listening socket down does on Linux, a
    /// connection does elsewhere (and may fail here, the socket being down or its file gone).
    pub(super) fn wake(&self) {
        match self {
            Listener::Unix(listener, path) => {
                let _ = SockRef::from(listener).shutdown(Shutdown::Both);
                let _ = UnixStream::connect(path);
            }
            Listener::Tcp(listener, address) => {
                let _ = SockRef::from(listener).shutdown(Shutdown::Both);
                if let Address::Tcp(host_port) = address {
                    // A listener on all interfaces answers on the loopback one.
                    let target = host_port.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
                    let _ = TcpStream::connect(target);
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

fn clear_stale(path: &Path, address: &Address) -> Result<(), ServerError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_path_buf() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse { address: address.clone() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| ServerError::Listen { address: address.clone(), error })
        }
        Err(error) => Err(ServerError::Listen { address: address.clone(), error }),
    }
}

/// An accepted connection.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(super) fn try_clone(&self) -> io::Result<Stream> {
        match self {
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
        }
    }

    /// Ends both directions, which wakes whoever reads or writes.
    pub(super) fn shutdown(&self) {
        // It fails where the peer has gone already, which is the state wanted.
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.flush(),
            Stream::Tcp(stream) => stream.flush(),
        }
    }
}
