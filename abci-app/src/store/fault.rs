//! Crash points: named instants of the store's writes at which a test lets the process die.
//!
//! Outside of this crate's own tests a point is nothing. Inside, the environment variable [`CRASH_AT`] counts down over
//! all points that are reached, and the process aborts at the last: no destructor runs, as under `kill -9`.

/// How many points are passed before the process dies at one.
#[cfg(test)]
pub(crate) const CRASH_AT: &str = "POLYLINK_TEST_CRASH_AT";

/// An instant at which the process may die.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn reach(_point: &str) {}

/// An instant at which the process may die.
#[cfg(test)]
pub(crate) fn reach(point: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    static LEFT: LazyLock<Option<AtomicI64>> =
        LazyLock::new(|| Some(AtomicI64::new(std::env::var(CRASH_AT).ok()?.parse().ok()?)));
    if LEFT.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 0) {
        println!("crash at {point}");
        std::process::abort();
    }
}
