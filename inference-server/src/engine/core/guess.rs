//! Asking for guesses before a step is planned, and learning from how many were right.

use std::time::{Duration, Instant};

use super::Core;
use crate::engine::handle::Job;
use crate::engine::metrics::{add, add_since};
use crate::engine::speculate::{Wanted, width};

/// Whether draws of a request depend on nothing but the tokens before them.
pub(super) fn depends_on_tokens_alone(job: &Job) -> bool {
    job.grammars.is_empty() && job.params.iter().all(|params| !params.has_penalties())
}

impl Core {
    /// Has tokens guessed for those sequences that decode.
    pub(super) fn guess(&mut self) {
        let Some(drafter) = &mut self.drafter else { return };
        if !self.payoff.is_worth(self.scheduler.running()) {
            return;
        }
        self.wanted.clear();
        let mut room = self.extra_wanted;
        for (id, slot) in (0..self.scheduler.running()).filter_map(|index| self.scheduler.decoding(index)) {
            let known = &mut self.choices[id.index()];
            let request = self.requests[known.request as usize].as_ref().expect("a live sequence has its request");
            if !depends_on_tokens_alone(&request.job) {
                continue;
            }
            let left = request.job.tokens_max - self.scheduler.sequence(id).tokens.len();
            let tokens = width(&mut known.reach, left).min(room);
            if tokens > 0 {
                room -= tokens;
                let params = request.job.params[known.choice as usize];
                self.wanted.push(Wanted { id, slot, tokens, params });
            }
        }
        let begun = Instant::now();
        let drafted = drafter.draft(&mut self.scheduler, &self.wanted);
        self.payoff.drafted(begun.elapsed().as_secs_f64());
        if drafter.has_backend() {
            add_since(&self.shared.metrics.backend_ns, begun);
        }
        if let Err(error) = drafted {
            tracing::error!(%error, "the draft model failed: tokens are not guessed any more");
            self.drafter = None;
        }
    }

    /// Learns from a step what rows cost, if it did nothing but decode.
    pub(super) fn weigh(&mut self, took: Duration) {
        if self.drafter.is_some() && self.plan.rows.iter().all(|planned| planned.rows == 1 + planned.guesses) {
            self.payoff.step(self.plan.total_rows(), took.as_secs_f64());
        }
    }

    /// Slots that got new sequences have nothing of the old ones.
    pub(super) fn forget_slots(&mut self) {
        for &id in &self.plan.started {
            self.choices[id.index()].history_sent = false;
            if let (Some(drafter), Some(slot)) = (&mut self.drafter, self.scheduler.slot(id)) {
                drafter.forget(slot);
            }
        }
    }

    /// Of a sequence's guesses so many were right.
    pub(super) fn learn(&mut self, sequence: usize, guessed: usize, right: usize) {
        if guessed > 0 {
            self.choices[sequence].reach.learn(guessed, right);
            self.payoff.learn(guessed, right);
            let metrics = &self.shared.metrics;
            add(&metrics.drafts, 1);
            add(&metrics.drafted_tokens, guessed);
            add(&metrics.accepted_tokens, right);
        }
    }
}
