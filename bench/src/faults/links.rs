//! The connections between nodes, through this process, so that they can be cut: each node dials each other one by a port
//! of its own here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::BenchError;
use crate::process::failed;

/// Nodes that are cut off now; a change of it ends connections that are open.
type Cut = watch::Sender<BTreeSet<usize>>;

/// All connections.
pub struct Links {
    ports: Vec<Vec<u16>>,
    listeners: Mutex<Vec<(usize, usize, TcpListener)>>,
    cut: Arc<Cut>,
}

impl Links {
    /// Takes a port for each pair of so many nodes.
    ///
    /// # Errors
    /// [`BenchError::Contestant`] if there is none.
    pub async fn bind(nodes: usize) -> Result<Self, BenchError> {
        let wrong = |e: std::io::Error| failed("links", e);
        let (mut ports, mut listeners) = (vec![vec![0; nodes]; nodes], Vec::new());
        for (from, row) in ports.iter_mut().enumerate() {
            for (to, port) in row.iter_mut().enumerate().filter(|(to, _)| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await.map_err(wrong)?;
                *port = listener.local_addr().map_err(wrong)?.port();
                listeners.push((from, to, listener));
            }
        }
        Ok(Self { ports, listeners: Mutex::new(listeners), cut: Arc::new(watch::Sender::new(BTreeSet::new())) })
    }

    /// Where the one node dials the other.
    pub fn port(&self, from: usize, to: usize) -> u16 {
        self.ports[from][to]
    }

    /// Begins to carry connections to the nodes' own ports.
    pub fn start(&self, targets: &[u16]) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to, listener) in listeners.drain(..) {
            let (target, cut) = (SocketAddr::from(([127, 0, 0, 1], targets[to])), self.cut.clone());
            tokio::spawn(async move {
                // It ends with the runtime.
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(carry(stream, target, [from, to], cut.subscribe()));
                }
            });
        }
    }

    /// Cuts a node off from all others, or joins it again.
    pub fn cut(&self, node: usize, off: bool) {
        self.cut.send_modify(|cut| {
            if off {
                cut.insert(node);
            } else {
                cut.remove(&node);
            }
        });
    }
}

async fn carry(mut from: TcpStream, to: SocketAddr, ends: [usize; 2], mut cut: watch::Receiver<BTreeSet<usize>>) {
    let is_cut = |cut: &BTreeSet<usize>| ends.iter().any(|end| cut.contains(end));
    if is_cut(&cut.borrow()) {
        return;
    }
    let Ok(mut to) = TcpStream::connect(to).await else { return };
    // A connection that breaks is dialled again by the nodes.
    tokio::select! {
        _broken = copy_bidirectional(&mut from, &mut to) => {}
        _gone = cut.wait_for(is_cut) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = echo.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = echo.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap_or(0)
                });
            }
        });
        let links = Links::bind(2).await.unwrap();
        links.start(&[port, port]);
        let talk = async || {
            let mut stream = TcpStream::connect(("127.0.0.1", links.port(0, 1))).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            let mut byte = [0];
            (stream.read(&mut byte).await.unwrap_or(0), stream)
        };
        let (read, mut open) = talk().await;
        assert_eq!(read, 1);
        links.cut(1, true);
        assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0, "ended");
        assert_eq!(talk().await.0, 0, "refused");
        links.cut(1, false);
        assert_eq!(talk().await.0, 1, "joined again");
    }
}
