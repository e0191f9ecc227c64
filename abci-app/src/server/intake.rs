//! Reading ahead: what CometBFT writes is taken off the socket at once, whatever the application is busy with.
//!
//! CometBFT's client asks its timer again every 20 ns for as long as one of its writes waits (`flushThrottleMS` of v0.38
//! is a number of nanoseconds): a socket that is full costs the node a processor core. So each connection has a thread
//! that only reads.
//!
//! Invariant: the frames that are held have at most [`HELD_BYTES_MAX`] bytes, and the one that exceeds it; beyond that the
//! peer waits after all.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::codec::{FrameError, FrameReader};

/// Bytes of frames that were read and not taken: some 50,000 transfers.
pub(super) const HELD_BYTES_MAX: usize = 16 << 20;

/// Where a connection's frames come from.
pub(crate) trait Frames {
    /// The next frame, or `None` where the stream ends between two frames.
    fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError>;

    /// Whether the next frame is there already.
    fn is_ready(&self) -> bool;
}

impl<R: Read> Frames for FrameReader<R> {
    fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        FrameReader::next_frame(self)
    }

    fn is_ready(&self) -> bool {
        false
    }
}

/// The frames between the thread that reads and the one that executes. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Intake(Arc<Shared>);

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    /// A frame has come, or there will be none.
    came: Condvar,
    /// Frames were taken, or none is wanted any more.
    room: Condvar,
}

#[derive(Default)]
struct Held {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// How the stream ended.
    ended: Option<Result<(), FrameError>>,
    /// No frame is wanted any more.
    closed: bool,
    /// The reader waits for room.
    full: bool,
}

impl Intake {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the stream ends or the intake is closed.
    pub(super) fn read(&self, mut frames: FrameReader<impl Read>) {
        loop {
            let ended = match frames.next_frame() {
                Ok(Some(frame)) => match self.put(frame) {
                    true => continue,
                    false => return,
                },
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            self.lock().ended = Some(ended);
            return self.0.came.notify_one();
        }
    }

    /// Whether the frame was wanted.
    fn put(&self, frame: Bytes) -> bool {
        let mut held = self.lock();
        while held.bytes >= HELD_BYTES_MAX && !held.closed {
            held.full = true;
            held = self.0.room.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.bytes += frame.len();
        held.frames.push_back(frame);
        self.0.came.notify_one();
        !held.closed
    }

    /// Drops what is held: no further frame is wanted.
    pub(super) fn close(&self) {
        let mut held = self.lock();
        (held.closed, held.bytes) = (true, 0);
        held.frames.clear();
        self.0.came.notify_one();
        self.0.room.notify_one();
    }
}

impl Frames for Intake {
    fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let mut held = self.lock();
        loop {
            if held.closed {
                return Ok(None);
            }
            if let Some(frame) = held.frames.pop_front() {
                held.bytes -= frame.len();
                if held.full && held.bytes < HELD_BYTES_MAX {
                    held.full = false;
                    self.0.room.notify_one();
                }
                return Ok(Some(frame));
            }
            if let Some(ended) = held.ended.take() {
                return ended.map(|()| None);
            }
            held = self.0.came.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_ready(&self) -> bool {
        !self.lock().frames.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames without an end, each of 1 MiB.
    struct Endless(usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            const HEADER: [u8; 4] = [0x80, 0x80, 0x40, 0];
            for byte in buffer.iter_mut() {
                *byte = if self.0 < 3 { HEADER[self.0] } else { 7 };
                self.0 = (self.0 + 1) % ((1 << 20) + 3);
            }
            Ok(buffer.len())
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_nothing_of_it_is_lost() {
        let mut intake = Intake::default();
        let reading = intake.clone();
        let reader = std::thread::spawn(move || reading.read(FrameReader::new(Endless(0), 2 << 20)));
        for _ in 0..3 {
            while !intake.lock().full {
                std::thread::yield_now();
            }
            assert!(intake.lock().bytes <= HELD_BYTES_MAX + (1 << 20));
            for _ in 0..20 {
                assert_eq!(intake.next_frame().unwrap().map(|frame| frame.len()), Some(1 << 20));
            }
        }
        intake.close();
        reader.join().unwrap();
        assert!(intake.next_frame().unwrap().is_none());
    }
}
