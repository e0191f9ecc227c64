//! Bytes between the devices of a split: bounded frames, and forward steps in them.
//!
//! A frame is `length u32 LE ‖ kind u8 ‖ payload`, `length` counting kind and payload. All integers are little-endian.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use polylink_kernels::{ForwardStep, Limits, SequenceRows, Span, TokenInput};
use polylink_protocol::noise::NoiseKey;
use serde::{Deserialize, Serialize};

/// Largest frame.
pub(super) const FRAME_BYTES_MAX: usize = 64 << 20;

/// Kinds of frames on the control connection.
pub(super) mod kind {
    /// Leader: a [`super::Plan`], as JSON.
    pub const PLAN: u8 = 1;
    /// Peer: the plan is accepted; the data connection may come. Empty.
    pub const ACCEPTED: u8 = 2;
    /// Peer: why not, as text.
    pub const REFUSED: u8 = 3;
    /// Peer: weights are loaded. Empty.
    pub const READY: u8 = 4;
    /// Leader: a forward step.
    pub const STEP: u8 = 5;
}

/// What the leader asks of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    pub shares: Vec<u32>,
    pub rank: usize,
    /// Of the model folder and how it is computed with, in hexadecimal.
    pub model_digest: String,
    pub rows: usize,
    pub wanted_rows: usize,
    pub slots: usize,
    pub kv_blocks: usize,
    pub positions: usize,
    /// Positions per block, which the peer's backend must have too.
    pub block_tokens: usize,
    pub timeout_ms: u64,
}

impl Plan {
    pub(super) fn limits(&self) -> Limits {
        let Self { rows, wanted_rows, slots, kv_blocks, positions, .. } = *self;
        Limits { rows, wanted_rows, slots, kv_blocks, positions }
    }
}

/// Fills `buffer` before the deadline (`None`: whenever it comes).
pub(super) fn read_by(stream: &mut TcpStream, buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = match deadline {
            None => None,
            Some(deadline) => Some(remaining(deadline)?),
        };
        stream.set_read_timeout(left)?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok(length) => filled += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `buffer` before the deadline.
pub(super) fn write_by(stream: &mut TcpStream, mut buffer: &[u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(buffer) {
            Ok(0) => return Err(io::Error::new(ErrorKind::WriteZero, "it takes no more data")),
            Ok(length) => buffer = &buffer[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Sends a frame.
pub(super) fn send_frame(stream: &mut TcpStream, kind: u8, payload: &[u8], deadline: Instant) -> io::Result<()> {
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.extend_from_slice(&((payload.len() + 1) as u32).to_le_bytes());
    frame.push(kind);
    frame.extend_from_slice(payload);
    write_by(stream, &frame, deadline)
}

/// Receives a frame into `payload` and returns its kind.
pub(super) fn receive_frame(
    stream: &mut TcpStream,
    payload: &mut Vec<u8>,
    deadline: Option<Instant>,
    bytes_max: usize,
) -> io::Result<u8> {
    let mut head = [0; 5];
    read_by(stream, &mut head, deadline)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length == 0 || length > bytes_max.min(FRAME_BYTES_MAX) {
        let reason = format!("a frame of {length} bytes, at most {bytes_max} are expected");
        return Err(io::Error::new(ErrorKind::InvalidData, reason));
    }
    payload.resize(length - 1, 0);
    read_by(stream, payload, deadline)?;
    Ok(head[4])
}

/// A forward step as a whole frame, written into a reused buffer.
///
/// `sequences u32 ‖ tokens u32 ‖ block table entries u32`, then per sequence `slot, first_position, rows, wanted, blocks
/// start, blocks length u32 ‖ noise key u64`, per token `kind u32 (0 id, 1 last sample) ‖ value u32`, the entries as u32.
pub(super) fn encode_step(step: &ForwardStep<'_>, frame: &mut Vec<u8>) {
    frame.clear();
    frame.extend_from_slice(&[0, 0, 0, 0, kind::STEP]);
    let mut put = |value: u32| frame.extend_from_slice(&value.to_le_bytes());
    put(step.sequences.len() as u32);
    put(step.tokens.len() as u32);
    put(step.block_tables.len() as u32);
    for sequence in step.sequences {
        let SequenceRows { slot, first_position, rows, wanted, blocks, noise_key, long } = *sequence;
        [slot, first_position, rows, wanted, blocks.start, blocks.length].into_iter().for_each(&mut put);
        [noise_key.0 as u32, (noise_key.0 >> 32) as u32, u32::from(long)].into_iter().for_each(&mut put);
    }
    for token in step.tokens {
        match *token {
            TokenInput::Id(id) => [0, id].into_iter().for_each(&mut put),
            TokenInput::LastSample(slot) => [1, slot].into_iter().for_each(&mut put),
        }
    }
    step.block_tables.iter().for_each(|&block| put(block));
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
}

/// A received step; its lists are reused.
#[derive(Debug, Default)]
pub(super) struct ReceivedStep {
    pub sequences: Vec<SequenceRows>,
    pub tokens: Vec<TokenInput>,
    pub block_tables: Vec<u32>,
}

impl ReceivedStep {
    /// Reads a frame's payload; what it means is checked by the backend.
    pub(super) fn decode(&mut self, payload: &[u8]) -> Result<(), String> {
        let mut words = payload.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let whole = payload.len().is_multiple_of(4);
        let mut next = || words.next().ok_or_else(|| "it ends early".to_owned());
        let (sequences, tokens, entries) = (next()? as usize, next()? as usize, next()? as usize);
        let expected = 3 + 9 * sequences + 2 * tokens + entries;
        if !whole || payload.len() / 4 != expected {
            return Err(format!("a step of {expected} words is announced, it has {} bytes", payload.len()));
        }
        self.sequences.clear();
        self.tokens.clear();
        self.block_tables.clear();
        for _ in 0..sequences {
            self.sequences.push(SequenceRows {
                slot: next()?,
                first_position: next()?,
                rows: next()?,
                wanted: next()?,
                blocks: Span { start: next()?, length: next()? },
                noise_key: NoiseKey(u64::from(next()?) | u64::from(next()?) << 32),
                long: next()? != 0,
            });
        }
        for _ in 0..tokens {
            self.tokens.push(match (next()?, next()?) {
                (0, id) => TokenInput::Id(id),
                (1, slot) => TokenInput::LastSample(slot),
                (kind, _) => return Err(format!("a token of kind {kind}")),
            });
        }
        for _ in 0..entries {
            self.block_tables.push(next()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_the_wire_and_damaged_ones_are_refused() {
        let sequences = [SequenceRows {
            slot: 3,
            first_position: 70_000,
            rows: 2,
            wanted: 1,
            blocks: Span { start: 1, length: 2 },
            noise_key: NoiseKey(0x0123_4567_89ab_cdef),
            long: true,
        }];
        let tokens = [TokenInput::Id(u32::MAX), TokenInput::LastSample(3)];
        let step = ForwardStep { sequences: &sequences, tokens: &tokens, block_tables: &[9, 8, 7], logits_out: false };
        let mut frame = Vec::new();
        encode_step(&step, &mut frame);
        assert_eq!(u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame.len() - 4);
        let payload = &frame[5..];
        let mut received = ReceivedStep::default();
        received.decode(payload).unwrap();
        assert_eq!((&received.sequences[..], &received.tokens[..]), (&sequences[..], &tokens[..]));
        assert_eq!(received.block_tables, [9, 8, 7]);
        for cut in 0..payload.len() {
            assert!(received.decode(&payload[..cut]).is_err(), "{cut} bytes of {}", payload.len());
        }
        let mut huge = payload.to_vec();
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(received.decode(&huge).is_err());
    }
}
