//! The border between devices that share one model: exchanging partial sums and slices of logits.
//!
//! Only two exchanges exist, and both are all-gathers on the wire: partial sums travel apart and every device adds them
//! itself **in range order** (numerics rule 2), so an uneven split changes no bit; no ring order, no tree order.
//!
//! [`Solo`] is one device; [`LocalCollective`] joins threads of one process; the TCP one lives with the server.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Why an exchange failed. After any of these the device group is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A peer closed its end or failed.
    #[error("rank {rank} is gone: {reason}; restart it, or serve without it")]
    PeerLost {
        /// The lost rank (or the own one where the transport cannot tell).
        rank: usize,
        /// What the transport said.
        reason: String,
    },
    /// A peer did not deliver in time.
    #[error("no answer from the peers within {waited_ms} ms (exchange {sequence})")]
    Timeout {
        /// How long was waited.
        waited_ms: u64,
        /// Number of the exchange since the start.
        sequence: u64,
    },
    /// The ranks disagree on what is being exchanged: they run different programs or steps.
    #[error("rank {rank} sent {found} values where {expected} were expected: the devices run different plans")]
    Mismatch {
        /// The rank that sent them.
        rank: usize,
        /// Values expected.
        expected: usize,
        /// Values found.
        found: usize,
    },
}

/// A group of devices that run the same program on different shards, in lockstep.
pub trait Collective: Send {
    /// This device's place, `0..world()`. Rank 0 holds the first K ranges, the first heads, the first tokens.
    fn rank(&self) -> usize;

    /// Number of devices.
    fn world(&self) -> usize;

    /// Every rank contributes a slice; every rank receives all slices, concatenated by rank.
    ///
    /// * `lengths[r]`: number of values rank `r` contributes (all ranks pass the same `lengths`);
    /// * `own.len() == lengths[rank()]`;
    /// * `all.len() == sum(lengths)`.
    ///
    /// f32 values travel bit for bit. Called at most a few times per layer; must not allocate once warm.
    ///
    /// # Errors
    /// When a peer is lost, too slow, or sends another number of values. Never blocks beyond its timeout.
    fn all_gather(&mut self, own: &[f32], lengths: &[usize], all: &mut [f32]) -> Result<(), CollectiveError>;

    /// Sums partial planes over all ranks in range order.
    ///
    /// Each rank `r` contributes `rows × planes[r] × width` values (row-major: `[rows][planes[r]][width]`): rank 0 one
    /// plane with its running total, the others one plane per K range. Afterwards
    /// `sum[row][c] = ((p₀ + p₁) + p₂) + …` over all planes of all ranks in rank and range order, on every rank.
    /// `scratch.len() ≥ rows × width × Σ planes`; `lengths.len() == world()` is overwritten.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    #[allow(clippy::too_many_arguments)]
    fn all_reduce_ranges(
        &mut self,
        own: &[f32],
        planes: &[usize],
        rows: usize,
        width: usize,
        lengths: &mut [usize],
        scratch: &mut [f32],
        sum: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let mut total = 0;
        for (length, planes) in lengths.iter_mut().zip(planes) {
            *length = rows * planes * width;
            total += *length;
        }
        let scratch = &mut scratch[..total];
        self.all_gather(own, lengths, scratch)?;
        let mut offset = 0;
        for (rank, &planes) in planes.iter().enumerate() {
            for row in 0..rows {
                let sum = &mut sum[row * width..][..width];
                for plane in 0..planes {
                    let partial = &scratch[offset + (row * planes + plane) * width..][..width];
                    if rank == 0 && plane == 0 {
                        sum.copy_from_slice(partial);
                    } else {
                        sum.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
                    }
                }
            }
            offset += lengths[rank];
        }
        Ok(())
    }
}

/// One device alone: an exchange is a copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_gather(&mut self, own: &[f32], lengths: &[usize], all: &mut [f32]) -> Result<(), CollectiveError> {
        check_length(0, lengths.first().copied().unwrap_or(0), own.len())?;
        all.copy_from_slice(own);
        Ok(())
    }
}

fn check_length(rank: usize, expected: usize, found: usize) -> Result<(), CollectiveError> {
    if expected == found { Ok(()) } else { Err(CollectiveError::Mismatch { rank, expected, found }) }
}

/// Threads of one process as a device group; each thread owns one member.
///
/// An exchange has two phases: everyone writes its slice, then everyone reads all slices. A member that is dropped fails
/// the exchanges of the others at once; one that is late fails them after the timeout.
#[derive(Debug)]
pub struct LocalCollective {
    rank: usize,
    timeout: Duration,
    sequence: u64,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Exchange>,
    changed: Condvar,
    world: usize,
}

#[derive(Debug)]
struct Exchange {
    slices: Vec<Vec<f32>>,
    /// Exchanges written and read by each rank so far.
    written: Vec<u64>,
    read: Vec<u64>,
    gone: Option<usize>,
}

impl LocalCollective {
    /// A group of `world` members; `timeout` bounds every exchange.
    pub fn group(world: usize, timeout: Duration) -> Vec<LocalCollective> {
        let state =
            Exchange { slices: vec![Vec::new(); world], written: vec![0; world], read: vec![0; world], gone: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), world });
        (0..world).map(|rank| LocalCollective { rank, timeout, sequence: 0, shared: Arc::clone(&shared) }).collect()
    }

    /// Waits until `ready`, a peer is gone, or the timeout is over.
    fn wait<'a>(
        &'a self,
        deadline: Instant,
        ready: impl Fn(&Exchange) -> bool,
    ) -> Result<std::sync::MutexGuard<'a, Exchange>, CollectiveError> {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return Ok(state);
            }
            if let Some(rank) = state.gone {
                return Err(CollectiveError::PeerLost { rank, reason: "its thread ended".into() });
            }
            let now = Instant::now();
            if now >= deadline {
                let waited_ms = self.timeout.as_millis() as u64;
                return Err(CollectiveError::Timeout { waited_ms, sequence: self.sequence });
            }
            state = match self.shared.changed.wait_timeout(state, deadline - now) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Exchange> {
        // A panic while the lock is held cannot leave the state torn: every write below is a whole slice or a counter,
        // and the panicking member's drop marks the group as gone.
        self.shared.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.shared.world
    }

    fn all_gather(&mut self, own: &[f32], lengths: &[usize], all: &mut [f32]) -> Result<(), CollectiveError> {
        check_length(self.rank, lengths[self.rank], own.len())?;
        let deadline = Instant::now() + self.timeout;
        let number = self.sequence;
        self.sequence += 1;
        {
            let mut state = self.wait(deadline, |state| state.read.iter().all(|&read| read == number))?;
            let slice = &mut state.slices[self.rank];
            slice.clear();
            slice.extend_from_slice(own);
            state.written[self.rank] = number + 1;
        }
        self.shared.changed.notify_all();
        let mut state = self.wait(deadline, |state| state.written.iter().all(|&written| written > number))?;
        let mut offset = 0;
        for (rank, (slice, &length)) in state.slices.iter().zip(lengths).enumerate() {
            check_length(rank, length, slice.len())?;
            all[offset..offset + length].copy_from_slice(slice);
            offset += length;
        }
        state.read[self.rank] = number + 1;
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        self.lock().gone = Some(self.rank);
        self.shared.changed.notify_all();
    }
}
