//! The step after one that is still being computed.
//!
//! Where all that a step does is to draw one token for each running sequence, the next one is known but for those tokens: the
//! same sequences, one position further, each fed with what its slot drew last. Whoever turns out to have ended with its
//! token has then one row too many, which is thrown away.

use super::{PlannedRows, Scheduler, SequenceId, State, StepPlan};

/// What becomes of a sequence once the step under way has drawn its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on, unless that token is one that ends it.
    GoesOn,
    /// That token is its last one, whatever it is.
    Ends,
    /// How it goes on depends on the token.
    Depends,
}

impl Scheduler {
    /// Whether planned rows are of a sequence that is still live.
    pub fn is_live(&self, planned: &PlannedRows) -> bool {
        let sequence = self.sequences[planned.sequence.index()].as_ref();
        sequence.is_some_and(|sequence| sequence.arrival == planned.arrival)
    }

    /// Plans the step that follows `before`, which is being computed: the rows of those that go on, each [`ahead`]. `after` is
    /// asked by sequence and how many tokens it has then. False where an ordinary plan might be another one:
    /// somebody may start or has to give way, blocks are missing, a prompt is not at its end, a sequence outgrows the
    /// border or depends on its token. Nothing has changed then, but for blocks that a sequence needs next anyway.
    ///
    /// [`ahead`]: PlannedRows::ahead
    pub fn plan_ahead(
        &mut self,
        before: &StepPlan,
        after: impl Fn(SequenceId, usize) -> After,
        plan: &mut StepPlan,
    ) -> bool {
        plan.clear();
        let draws = |planned: &PlannedRows| planned.samples && planned.guesses == 0 && planned.scores == 0;
        if !before.rows.iter().all(draws) || self.may_change() {
            return false;
        }
        for planned in &before.rows {
            if !self.is_live(planned) {
                continue;
            }
            let sequence = self.sequences[planned.sequence.index()].as_mut().expect("it was looked for");
            let State::Running { slot } = sequence.state else { unreachable!("who is computed runs") };
            let position = sequence.tokens.len();
            let goes_on = match after(planned.sequence, position + 1) {
                After::Ends => continue,
                After::Depends => false,
                After::GoesOn => sequence.long || position < self.long_beyond,
            };
            if !goes_on || !self.pool.grow(&mut sequence.table, position + 1) {
                plan.clear();
                return false;
            }
            plan.rows.push(PlannedRows { slot, first_position: position, rows: 1, ahead: true, ..*planned });
        }
        for planned in &plan.rows {
            let sequence = self.sequences[planned.sequence.index()].as_mut().expect("it was planned");
            let end = planned.first_position + planned.rows;
            self.queue.charge(sequence.flow, end.saturating_sub(sequence.charged.max(planned.first_position)));
            sequence.charged = sequence.charged.max(end);
        }
        for planned in &plan.rows {
            self.queue.settle(self.sequence(planned.sequence).flow);
        }
        !plan.rows.is_empty()
    }

    /// Whether an ordinary plan might start somebody, or take somebody's place away.
    fn may_change(&self) -> bool {
        self.queue.first().is_some_and(|next| self.freed || self.has_place(next) || self.gives_way(next).is_some())
    }
}
