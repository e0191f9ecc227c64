//! Worker threads for the tiles of one operation at a time.
//!
//! The engine thread is worker 0 and takes part; helpers claim tiles from one atomic word and are never waited for
//! unless they hold a tile: a helper that the system has not scheduled costs nothing. Helpers spin at most 50 µs for the
//! next operation, then park. A panic in a tile poisons the pool: the operation and all later ones fail, nothing hangs.
//!
//! Which worker computes a tile is left to chance; what a tile contains and the order within it are not, so results do
//! not depend on the number of threads. Running an operation allocates nothing.
#![allow(unsafe_code)] // a job lives on the caller's stack and is handed to the helpers by pointer

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::operations::Poisoned;

/// How long a helper spins for work before it parks.
const SPIN: Duration = Duration::from_micros(50);

/// Tile number that says "no tiles can be claimed": between two operations.
const CLOSED: u64 = u32::MAX as u64;

/// A tile's work: `(tile, worker)`.
type Job<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A word that workers change, on cache lines of its own: reading what stands beside it waits for nobody.
#[repr(align(128))]
struct Alone<T>(T);

impl<T> std::ops::Deref for Alone<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

struct Shared {
    /// Operation number in the upper half, next tile in the lower half. A claim is a compare-and-swap of the whole word,
    /// so that a helper that is late by an operation cannot claim a tile of the next one with the wrong job.
    state: Alone<AtomicU64>,
    tiles: AtomicUsize,
    job: AtomicPtr<()>,
    /// Tiles finished in this operation.
    done: Alone<AtomicUsize>,
    poisoned: AtomicBool,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

impl Shared {
    /// Claims and computes tiles until none are left to claim.
    fn work(&self, worker: usize) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let (tile, tiles) = (state & CLOSED, self.tiles.load(Ordering::Acquire));
            let job = self.job.load(Ordering::Acquire);
            if tile == CLOSED || tile as usize >= tiles {
                return;
            }
            if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
                continue;
            }
            // SAFETY: `run` closes `state` before it changes `tiles` and `job` and opens it with a new operation number
            // after. Both were read between the load of `state` and the successful exchange of the same value, so they
            // belong to this operation. Its `run` does not return, and so the job stays alive, before `done` counts
            // the tile that was just claimed.
            let job: Job<'_> = unsafe { *job.cast::<Job<'_>>() };
            if catch_unwind(AssertUnwindSafe(|| job(tile as usize, worker))).is_err() {
                self.poisoned.store(true, Ordering::Release);
            }
            self.done.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A helper's life.
    fn serve(&self, worker: usize) {
        let mut seen = self.state.load(Ordering::Acquire) >> 32;
        loop {
            let idle = Instant::now();
            let mut turns = 0u32;
            while self.state.load(Ordering::Acquire) >> 32 == seen && !self.stop.load(Ordering::Acquire) {
                std::hint::spin_loop();
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(64) && idle.elapsed() > SPIN {
                    let parked = &self.parked[worker - 1];
                    parked.store(true, Ordering::SeqCst);
                    // Looked at once more after the flag is up: `run` changes the state first and then looks at flags.
                    if self.state.load(Ordering::SeqCst) >> 32 == seen && !self.stop.load(Ordering::SeqCst) {
                        std::thread::park();
                    }
                    parked.store(false, Ordering::SeqCst);
                }
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            seen = self.state.load(Ordering::Acquire) >> 32;
            self.work(worker);
        }
    }
}

/// The pool; dropped, it stops and joins its helpers.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<(Thread, Option<JoinHandle<()>>)>,
    operation: u64,
}

impl Pool {
    /// `threads` in all, the calling one included; fewer if the system refuses to start them.
    pub fn new(threads: usize) -> Self {
        let threads = threads.clamp(1, 256);
        let shared = Arc::new(Shared {
            state: Alone(AtomicU64::new(CLOSED)),
            tiles: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: Alone(AtomicUsize::new(0)),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let helpers = (1..threads).map_while(|worker| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("kernel-{worker}"));
            let life = move || {
                shared.done.fetch_add(1, Ordering::AcqRel);
                shared.serve(worker);
            };
            let handle = builder.spawn(life).ok()?;
            Some((handle.thread().clone(), Some(handle)))
        });
        let helpers: Vec<_> = helpers.collect();
        // What the system allocates for a thread is allocated now, not within a step.
        while shared.done.load(Ordering::Acquire) < helpers.len() {
            std::thread::yield_now();
        }
        Self { shared, helpers, operation: 0 }
    }

    /// Workers, the caller included.
    pub fn workers(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Computes tiles `0..tiles`, each exactly once, on some worker; returns when all are done.
    pub fn run(&mut self, tiles: usize, job: Job<'_>) -> Result<(), Poisoned> {
        let shared = &*self.shared;
        if shared.poisoned.load(Ordering::Acquire) {
            return Err(Poisoned);
        }
        assert!(tiles < CLOSED as usize, "tile numbers have 32 bits");
        if self.helpers.is_empty() || tiles <= 1 {
            let all = AssertUnwindSafe(|| (0..tiles).for_each(|tile| job(tile, 0)));
            return catch_unwind(all).map_err(|_| {
                shared.poisoned.store(true, Ordering::Release);
                Poisoned
            });
        }
        self.operation = (self.operation + 1) & u32::MAX as u64;
        shared.state.store(self.operation << 32 | CLOSED, Ordering::SeqCst);
        shared.tiles.store(tiles, Ordering::Release);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Release);
        shared.done.store(0, Ordering::Release);
        shared.state.store(self.operation << 32, Ordering::SeqCst);
        for ((thread, _), parked) in self.helpers.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.work(0);
        let waiting = Instant::now();
        let mut turns = 0u32;
        while shared.done.load(Ordering::Acquire) < tiles {
            std::hint::spin_loop();
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(64) && waiting.elapsed() > SPIN {
                std::thread::yield_now();
            }
        }
        if shared.poisoned.load(Ordering::Acquire) { Err(Poisoned) } else { Ok(()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.helpers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                let _ = handle.join(); // a helper catches the panics of its tiles; there is nothing to report
            }
        }
    }
}

/// A slice whose parts several workers write: each tile its own elements.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    length: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts through the unsafe `part`, whose callers promise that they do not overlap.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// `count` elements from `from`.
    ///
    /// # Safety
    /// No two workers may hold overlapping parts at a time.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn part(&self, from: usize, count: usize) -> &mut [T] {
        assert!(from <= self.length && count <= self.length - from, "a tile lies within its slice");
        // SAFETY: within bounds by the assertion; exclusive by the caller's promise; alive by the borrow held.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_exactly_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads);
            for tiles in (0..200).chain([5000]) {
                let counts: Vec<AtomicUsize> = (0..tiles).map(|_| AtomicUsize::new(0)).collect();
                let job = |tile: usize, worker: usize| {
                    assert!(worker < threads);
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                };
                pool.run(tiles, &job).unwrap();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parked_helpers_wake_up() {
        let mut pool = Pool::new(2);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            let total = AtomicUsize::new(0);
            pool.run(64, &|tile, _| _ = total.fetch_add(tile, Ordering::Relaxed)).unwrap();
            assert_eq!(total.into_inner(), 64 * 63 / 2);
        }
    }

    #[test]
    fn a_panic_poisons_the_pool_and_hangs_nothing() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads);
            let job = |tile: usize, _: usize| assert!(tile != 7, "a defect in tile 7");
            assert_eq!(pool.run(20, &job), Err(Poisoned));
            assert_eq!(pool.run(1, &|_, _| ()), Err(Poisoned));
        }
    }
}
