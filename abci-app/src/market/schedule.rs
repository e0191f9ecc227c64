//! When things happen: the windows of an epoch, counted in blocks from its first one.
//!
//! During epoch e+1 the receipts of epoch e are committed, a beacon is drawn, judges commit and reveal scores, and the
//! pots are settled. Height h belongs to epoch h / epoch_blocks; epoch 0 audits nothing.
//!
//! Invariant: the five windows follow each other without a gap, and the last one has at least one block.

use polylink_protocol::market_v1::Params;

/// What is taken in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    /// `MsgCommitReceipts` of the epoch that has just ended.
    Receipts,
    /// `MsgSubmitBeacon`.
    Beacon,
    /// `MsgCommitScores`.
    Commit,
    /// `MsgRevealScores`.
    Reveal,
    /// Nothing: pots are settled.
    Settle,
}

/// The windows' ends, as offsets from an epoch's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    epoch_blocks: u64,
    ends: [u64; 4],
}

impl Schedule {
    /// Of parameters that passed `params::check`.
    pub fn new(params: &Params) -> Self {
        let receipts = params.receipts_window_blocks;
        let beacon = receipts.saturating_add(params.beacon_window_blocks);
        let commit = beacon.saturating_add(params.commit_window_blocks);
        let reveal = commit.saturating_add(params.reveal_window_blocks);
        Schedule { epoch_blocks: params.epoch_blocks.max(1), ends: [receipts, beacon, commit, reveal] }
    }

    /// The window of a block by its offset in the epoch.
    pub fn window(&self, offset: u64) -> Window {
        const WINDOWS: [Window; 4] = [Window::Receipts, Window::Beacon, Window::Commit, Window::Reveal];
        let at = self.ends.iter().position(|end| offset < *end);
        at.map_or(Window::Settle, |at| WINDOWS[at])
    }

    /// True when, after the block at `height`, the given window of the round over `audited` has no block left. For
    /// [`Window::Settle`] that is the end of the epoch.
    pub fn is_over(&self, window: Window, audited: u64, height: u64) -> bool {
        let end = match window {
            Window::Receipts => self.ends[0],
            Window::Beacon => self.ends[1],
            Window::Commit => self.ends[2],
            Window::Reveal => self.ends[3],
            Window::Settle => self.epoch_blocks,
        };
        let first_after = audited.saturating_add(1).saturating_mul(self.epoch_blocks).saturating_add(end);
        height.saturating_add(1) >= first_after
    }

    /// The heights of a window of the round over `audited`: from, to (exclusive).
    pub fn heights(&self, window: Window, audited: u64) -> (u64, u64) {
        let first = audited.saturating_add(1).saturating_mul(self.epoch_blocks);
        let (from, to) = match window {
            Window::Receipts => (0, self.ends[0]),
            Window::Beacon => (self.ends[0], self.ends[1]),
            Window::Commit => (self.ends[1], self.ends[2]),
            Window::Reveal => (self.ends[2], self.ends[3]),
            Window::Settle => (self.ends[3], self.epoch_blocks),
        };
        (first.saturating_add(from), first.saturating_add(to))
    }

    /// The oldest epoch whose pots still take money in a block: the audited one until its reveal window is over, then
    /// the current one.
    pub fn oldest_open_pot(&self, epoch: u64, offset: u64) -> u64 {
        if self.window(offset) == Window::Settle { epoch } else { epoch.saturating_sub(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::params;

    #[test]
    fn windows_partition_the_epoch() {
        let schedule = Schedule::new(&params::default());
        let windows: Vec<Window> = (0..20).map(|offset| schedule.window(offset)).collect();
        assert!(windows.is_sorted());
        let count = |w| windows.iter().filter(|x| **x == w).count();
        use Window::*;
        assert_eq!([Receipts, Beacon, Commit, Reveal, Settle].map(count), [5, 4, 5, 4, 2]);
        for window in [Receipts, Beacon, Commit, Reveal, Settle] {
            let (from, to) = schedule.heights(window, 3);
            assert!((from..to).all(|h| h / 20 == 4 && schedule.window(h % 20) == window));
            assert!(!schedule.is_over(window, 3, to - 2) && schedule.is_over(window, 3, to - 1));
        }
    }

    #[test]
    fn a_pot_takes_money_until_its_reveals_are_over() {
        let schedule = Schedule::new(&params::default());
        assert_eq!(schedule.oldest_open_pot(0, 3), 0);
        assert_eq!(schedule.oldest_open_pot(5, 17), 4);
        assert_eq!(schedule.oldest_open_pot(5, 18), 5);
    }
}
