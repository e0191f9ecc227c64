//! The frames of the ABCI socket protocol: a protobuf varint of the length, then that many bytes of
//! a `Request` or `Response`.
//!
//! Invariants: no frame longer than the limit is ever buffered, and memory grows with the bytes that
//! have arrived, never with the length that a peer merely announces.

use std::io::{self, Read};

use bytes::Bytes;
use prost_014::Message;
use tendermint_proto::v0_38::abci::Response;

/// How much is asked of the socket at a time.
const READ_BYTES: usize = 64 * 1024;

/// The longest varint of a `u64`.
const MAX_VARINT_BYTES: usize = 10;

/// Why a frame cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is not a varint of 64 bits.
    #[error("the frame's length is not a varint: the peer does not speak ABCI (socket transport)")]
    Length,
    /// The frame is longer than the server takes.
    #[error("a frame of {bytes} bytes is over the limit of {limit}: lower the block size or raise the server's limit")]
    TooLong {
        /// The length announced.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// The peer went away in the middle of a frame.
    #[error("the connection ended within a frame, {have} bytes into it")]
    Truncated {
        /// Bytes of the frame, and of its length, that had arrived.
        have: usize,
    },
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

/// Takes frames off a byte stream.
pub struct FrameReader<R> {
    source: R,
    /// What was read and not taken lies between `start` and `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
}

impl<R: Read> FrameReader<R> {
    /// Reads frames of at most `limit` bytes from `source`.
    pub fn new(source: R, limit: usize) -> Self {
        FrameReader { source, buffer: vec![0; READ_BYTES], start: 0, end: 0, limit }
    }

    /// The next frame, or `None` where the stream ends between two frames. It holds no memory but its own.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some((header, length)) = self.announced()? {
                let first = self.start + header;
                if self.end - self.start >= header + length {
                    self.start = first + length;
                    return Ok(Some(Bytes::copy_from_slice(&self.buffer[first..self.start])));
                }
            }
            self.make_room();
            let held = self.end - self.start;
            let read = loop {
                match self.source.read(&mut self.buffer[self.end..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    other => break other,
                }
            };
            match read {
                Ok(0) if held == 0 => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated { have: held }),
                Ok(read) => self.end += read,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves what is held to the front, and doubles the buffer when it is full of one frame.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == 0 && self.buffer.len() > READ_BYTES {
            self.buffer = vec![0; READ_BYTES];
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(2 * self.end, 0);
        }
    }

    /// The bytes of the length prefix and the length it announces, once it is complete.
    fn announced(&self) -> Result<Option<(usize, usize)>, FrameError> {
        let mut length = 0u64;
        let held = &self.buffer[self.start..self.end];
        for (index, &byte) in held.iter().take(MAX_VARINT_BYTES).enumerate() {
            if index == MAX_VARINT_BYTES - 1 && byte > 1 {
                return Err(FrameError::Length);
            }
            length |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return match usize::try_from(length) {
                    Ok(bytes) if bytes <= self.limit => Ok(Some((index + 1, bytes))),
                    _ => Err(FrameError::TooLong { bytes: length, limit: self.limit }),
                };
            }
        }
        if held.len() >= MAX_VARINT_BYTES { Err(FrameError::Length) } else { Ok(None) }
    }
}

/// Appends `response` as one frame.
pub fn put_frame(out: &mut Vec<u8>, response: &Response) {
    out.reserve(response.encoded_len() + MAX_VARINT_BYTES);
    response.encode_length_delimited(out).expect("a Vec grows as it is written to");
}
