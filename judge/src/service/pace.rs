//! How fast the chain goes, as the judge sees it, and what time a window of blocks therefore leaves. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Blocks that the mean is taken over.
const BLOCKS_SEEN_MAX: usize = 16;

/// The mean time between the last blocks.
#[derive(Default)]
pub(super) struct Pace {
    /// The height seen last. When the first one was made is not known.
    height: Option<u64>,
    /// When a new height was seen first, ascending.
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// The newest height is this one.
    pub(super) fn observe(&mut self, now: Instant, height: u64) {
        if self.height.is_some_and(|last| height > last) {
            self.seen.push_back((now, height));
            if self.seen.len() > BLOCKS_SEEN_MAX {
                self.seen.pop_front();
            }
        }
        self.height = self.height.max(Some(height));
    }

    /// None until a block was watched from its beginning to its end.
    pub(super) fn block_time(&self) -> Option<Duration> {
        let ((first, from), (last, to)) = (self.seen.front()?, self.seen.back()?);
        let blocks = u32::try_from(to.checked_sub(*from)?).ok().filter(|blocks| *blocks > 0)?;
        Some(last.duration_since(*first) / blocks)
    }
}

/// The deadlines of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// What no worker has disclosed by now is missing.
    pub(super) disclosed_by: Instant,
    /// What is not evaluated by now is scored without; what remains is for the transaction.
    pub(super) evaluated_by: Instant,
}

impl Plan {
    /// For an audit whose transaction may stand in one of the next `blocks_left` blocks, of which the first may be made
    /// this instant. Half a block is kept for the transaction's way into the last of them; of the rest the first half is
    /// the workers', the second half the evaluators'. None with fewer than two blocks: that audit comes too late.
    pub(super) fn new(now: Instant, block_time: Duration, blocks_left: u64) -> Option<Self> {
        let whole = u32::try_from(blocks_left).unwrap_or(u32::MAX).checked_sub(1).filter(|blocks| *blocks > 0)?;
        let time = block_time.saturating_mul(whole).saturating_sub(block_time / 2);
        Some(Self { disclosed_by: now + time / 2, evaluated_by: now + time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_whole_blocks() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for (ms, height) in [(0, 7), (200, 7), (250, 8)] {
            pace.observe(at(ms), height);
            assert_eq!(pace.block_time(), None, "when 7 was made is unknown, 8 is not over");
        }
        pace.observe(at(1_250), 9);
        assert_eq!(pace.block_time(), Some(Duration::from_secs(1)));
        // Two blocks between two looks; an older height from a node that lags counts for nothing.
        pace.observe(at(4_250), 11);
        pace.observe(at(4_300), 10);
        assert_eq!(pace.block_time(), Some(Duration::from_secs(4) / 3));
        for i in 0..100 {
            pace.observe(at(5_000 + 100 * i), 12 + i);
        }
        assert_eq!(pace.block_time(), Some(Duration::from_millis(100)), "what is long ago is forgotten");
    }

    #[test]
    fn the_deadlines_lie_within_the_window() {
        let (now, block) = (Instant::now(), Duration::from_secs(1));
        let after = |ms| now + Duration::from_millis(ms);
        let plan = |left| Plan::new(now, block, left).map(|p| (p.disclosed_by, p.evaluated_by));
        assert_eq!(plan(5), Some((after(1_750), after(3_500))));
        assert_eq!(plan(2), Some((after(250), after(500))));
        assert_eq!(plan(1), None, "the only block left may be made before anything was asked");
        assert_eq!(plan(0), None);
        assert!(Plan::new(now, Duration::ZERO, u64::MAX).is_some());
    }
}
