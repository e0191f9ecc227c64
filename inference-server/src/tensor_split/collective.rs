//! The exchanges of a device group over TCP, in a star around rank 0.
//!
//! An exchange: every peer sends its slice to rank 0; rank 0 puts all slices beside each other and sends each peer those
//! of the others. Per message `number of the exchange u64 LE ‖ values u32 LE ‖ values, f32 LE`: a device that runs
//! another step or program is found out at once. f32 travel bit for bit; sums are formed by each device in range order.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use polylink_kernels::{Collective, CollectiveError};

use super::wire::{read_by, write_by};

const HEAD_BYTES: usize = 12;

/// One device's end.
#[derive(Debug)]
pub struct TcpCollective {
    rank: usize,
    world: usize,
    /// Rank 0: to ranks 1, 2, …; other ranks: to rank 0.
    streams: Vec<TcpStream>,
    timeout: Duration,
    sequence: u64,
    /// One message; grows to the largest and stays.
    buffer: Vec<u8>,
}

impl TcpCollective {
    /// Over connections that have been greeted.
    pub(super) fn new(rank: usize, world: usize, streams: Vec<TcpStream>, timeout: Duration) -> Self {
        assert_eq!(streams.len(), if rank == 0 { world - 1 } else { 1 }, "a star has one connection per peer");
        Self { rank, world, streams, timeout, sequence: 0, buffer: Vec::new() }
    }

    fn error(&self, rank: usize, error: &std::io::Error) -> CollectiveError {
        match error.kind() {
            ErrorKind::TimedOut => {
                CollectiveError::Timeout { waited_ms: self.timeout.as_millis() as u64, sequence: self.sequence }
            }
            _ => CollectiveError::PeerLost { rank, reason: error.to_string() },
        }
    }

    /// Sends slices one after the other as one message.
    fn send(&mut self, stream: usize, slices: [&[f32]; 2], deadline: Instant) -> Result<(), CollectiveError> {
        let values: usize = slices.iter().map(|slice| slice.len()).sum();
        self.buffer.clear();
        self.buffer.extend_from_slice(&self.sequence.to_le_bytes());
        self.buffer.extend_from_slice(&(values as u32).to_le_bytes());
        for slice in slices {
            self.buffer.extend(slice.iter().flat_map(|value| value.to_le_bytes()));
        }
        write_by(&mut self.streams[stream], &self.buffer, deadline)
            .map_err(|error| self.error(self.other(stream), &error))
    }

    /// Receives one message into slices, which must be filled exactly.
    fn receive(&mut self, stream: usize, slices: [&mut [f32]; 2], deadline: Instant) -> Result<(), CollectiveError> {
        let rank = self.other(stream);
        let expected: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut head = [0; HEAD_BYTES];
        if let Err(error) = read_by(&mut self.streams[stream], &mut head, Some(deadline)) {
            return Err(self.error(rank, &error));
        }
        let sequence = u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if sequence != self.sequence {
            let reason = format!("it is at exchange {sequence}, this device at {}", self.sequence);
            return Err(CollectiveError::PeerLost { rank, reason });
        }
        if found != expected {
            return Err(CollectiveError::Mismatch { rank, expected, found });
        }
        self.buffer.resize(4 * expected, 0);
        if let Err(error) = read_by(&mut self.streams[stream], &mut self.buffer, Some(deadline)) {
            return Err(self.error(rank, &error));
        }
        let values = slices.into_iter().flatten();
        for (value, bytes) in values.zip(self.buffer.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }

    /// Rank at the other end of a connection.
    fn other(&self, stream: usize) -> usize {
        if self.rank == 0 { stream + 1 } else { 0 }
    }
}

impl Collective for TcpCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_gather(&mut self, own: &[f32], lengths: &[usize], all: &mut [f32]) -> Result<(), CollectiveError> {
        if own.len() != lengths[self.rank] {
            return Err(CollectiveError::Mismatch { rank: self.rank, expected: lengths[self.rank], found: own.len() });
        }
        let deadline = Instant::now() + self.timeout;
        let start = |rank: usize| lengths[..rank].iter().sum::<usize>();
        all[start(self.rank)..][..own.len()].copy_from_slice(own);
        if self.rank == 0 {
            for rank in 1..self.world {
                self.receive(rank - 1, [&mut all[start(rank)..][..lengths[rank]], &mut []], deadline)?;
            }
            for rank in 1..self.world {
                self.send(rank - 1, [&all[..start(rank)], &all[start(rank + 1)..]], deadline)?;
            }
        } else {
            self.send(0, [own, &[]], deadline)?;
            let (before, rest) = all.split_at_mut(start(self.rank));
            self.receive(0, [before, &mut rest[own.len()..]], deadline)?;
        }
        self.sequence += 1;
        Ok(())
    }
}
