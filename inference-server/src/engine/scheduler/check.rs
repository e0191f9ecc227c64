//! Conservation: what is held is held by somebody, once.

use super::{Scheduler, State};

impl Scheduler {
    /// What an idle scheduler can say of itself at no cost; [`Scheduler::check`] counts everything.
    ///
    /// # Panics
    /// When something is held by nobody.
    pub fn check_idle(&self) {
        let held = (self.running.len(), self.queue.len(), self.pool.counts().in_use);
        assert_eq!((self.live(), held), (0, (0, 0, 0)), "an idle engine holds no block and no place");
        assert_eq!(self.slots.len(), self.running_max, "an idle engine holds no slot");
    }

    /// Counts all blocks, slots and sequences again.
    ///
    /// # Panics
    /// When anything was lost or is held twice.
    pub fn check(&self) {
        let live = || self.sequences.iter().flatten();
        self.pool.check(live().map(|sequence| &sequence.table));
        let running = live().filter(|sequence| matches!(sequence.state, State::Running { .. })).count();
        assert_eq!(running, self.running.len(), "running sequences");
        assert_eq!(self.slots.len() + running, self.running_max, "slots");
        let waiting = live().filter(|sequence| sequence.state == State::Waiting).count();
        assert_eq!(waiting, self.queue.len(), "waiting sequences");
        assert_eq!(live().count(), self.live(), "live sequences");
        self.queue.check(self.live());
        assert!(self.running.is_sorted_by_key(|&id| self.sequence(id).rank()), "running ones are in order");
        for sequence in live() {
            let covered = self.pool.covered(&sequence.table);
            assert!(
                sequence.computed <= sequence.tokens.len() && sequence.computed <= covered,
                "computed ≤ tokens, covered"
            );
            assert!(sequence.computed <= sequence.first_wanted() + 1, "no row whose logits are wanted is left out");
        }
        if self.live() == 0 {
            self.check_idle();
        }
    }
}
