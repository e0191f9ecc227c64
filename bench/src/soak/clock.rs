//! A clock that stands still while this process does: what was stopped together with its server (a suspended machine, a
//! frozen group of processes) has not seen it stall, and not how it treats what was under way.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(100);
/// What a tick counts at most.
const TICK_MAX: Duration = Duration::from_secs(1);
/// A tick that took so long was a stop.
const STOP: Duration = Duration::from_secs(5);

/// Ticks for as long as anybody has it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    milliseconds: AtomicU64,
    stops: AtomicU64,
}

impl Clock {
    /// A clock that starts now, within a runtime.
    pub fn start() -> Arc<Self> {
        let clock = Arc::new(Self::default());
        let own = Arc::downgrade(&clock);
        tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(TICK).await;
                let Some(clock) = own.upgrade() else { break };
                let now = Instant::now();
                clock.pass(now - last);
                last = now;
            }
        });
        clock
    }

    fn pass(&self, elapsed: Duration) {
        self.milliseconds.fetch_add(elapsed.min(TICK_MAX).as_millis() as u64, Ordering::Relaxed);
        self.stops.fetch_add(u64::from(elapsed >= STOP), Ordering::Relaxed);
    }

    /// How often it stood still.
    pub fn stops(&self) -> u64 {
        self.stops.load(Ordering::Relaxed)
    }

    /// Whether it stood still more often than that, the moment before included.
    pub async fn stopped_since(&self, stops: u64) -> bool {
        tokio::time::sleep(2 * TICK).await;
        self.stops() > stops
    }

    /// Since its start.
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    /// What the future gives, if it does within `limit`.
    pub async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let (mut future, end) = (pin!(future), self.now() + limit);
        loop {
            let left = end.saturating_sub(self.now());
            if left.is_zero() {
                return None;
            }
            if let Ok(output) = tokio::time::timeout(left.max(TICK), &mut future).await {
                return Some(output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_as_one_tick() {
        let clock = Clock::default();
        clock.pass(Duration::from_millis(150));
        clock.pass(Duration::from_secs(3_600));
        assert_eq!((clock.now(), clock.stops()), (Duration::from_millis(1_150), 1));
    }

    #[tokio::test]
    async fn what_comes_in_time_is_given_and_what_never_comes_is_not() {
        let clock = Clock::start();
        assert_eq!(clock.within(TICK, async { 7 }).await, Some(7));
        assert_eq!(clock.within(TICK, std::future::pending::<u8>()).await, None);
    }
}
