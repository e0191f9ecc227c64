//! Steps: planned, submitted, waited for. Where a backend takes a step while it computes one ([`Backend::depth`]), the next one
//! is planned and submitted meanwhile, if all that it needs of this one are the tokens that it draws.

use std::time::{Duration, Instant};

use polylink_kernels::{
    Backend, BackendError, ForwardStep, SampleRow, SampleStep, SequenceRows, SlotStart, Span, Step, TokenInput,
};

use super::buffers::{Buffers, append, given};
use super::guess::depends_on_tokens_alone;
use super::{Choice, Core};
use crate::engine::guard;
use crate::engine::metrics::{add, add_since};
use crate::engine::scheduler::{After, SequenceId};

/// What is under way at most: two steps, each a forward pass and its draws.
pub(super) const UNDER_WAY_MAX: usize = 4;

/// A step under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    begun: Instant,
    /// It draws tokens.
    draws: bool,
}

/// A moment at which the backend had something to do.
struct Mark {
    at: Instant,
    called: Duration,
}

/// Where the time of a step goes.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The backend computes while it is not called.
    overlaps: bool,
    /// Within calls of the backend.
    called: Duration,
    /// Outside of them, while it had something to do.
    hidden: Duration,
}

impl Core {
    /// Computes one step, if there is anything to compute, and gives out what it drew. The one after it may be under way then.
    ///
    /// # Errors
    /// What the backend said; the step gave nothing, nothing is under way, and [`Core::fail_all`] must follow.
    pub(crate) fn step(&mut self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        let begun = Instant::now();
        self.clock = Clock { overlaps: backend.depth() > 1, ..Clock::default() };
        let result = self.step_with(backend);
        if result.is_err() {
            self.land(backend);
        }
        self.tell_gauges();
        add_since(&self.shared.metrics.step_ns, begun);
        add(&self.shared.metrics.backend_ns, (self.clock.called + self.clock.hidden).as_nanos() as usize);
        result
    }

    /// Waits for all that is under way, for nothing.
    pub(crate) fn land(&mut self, backend: &mut dyn Backend) {
        self.flight = None;
        while let Some(ticket) = self.under_way.pop_front() {
            if let Err(error) = guard::wait(backend, ticket, &mut self.output) {
                tracing::debug!(%error, "a step that nobody waits for failed");
            }
        }
    }

    fn step_with(&mut self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        let mark = self.mark();
        self.hear();
        self.hide(mark);
        let flight = match self.flight.take() {
            Some(flight) => flight,
            None => {
                self.guess();
                self.scheduler.plan(&mut self.plan);
                add(&self.shared.metrics.preemptions, self.plan.preempted.len());
                self.forget_slots();
                if self.plan.rows.is_empty() {
                    return Ok(());
                }
                self.submit(backend)?
            }
        };
        let mark = self.mark();
        let next = if self.clock.overlaps && self.plan_ahead() { Some(self.submit_ahead(backend)?) } else { None };
        self.hide(mark);
        self.wait(backend)?;
        let mark = self.mark();
        self.scheduler.computed(&self.plan);
        self.hide(mark);
        if flight.draws {
            self.wait(backend)?;
        }
        let mark = self.mark();
        self.weigh(flight.begun.elapsed());
        add(&self.shared.metrics.steps, 1);
        add(&self.shared.metrics.rows, self.plan.total_rows());
        self.give_out();
        if next.is_some() {
            std::mem::swap(&mut self.plan, &mut self.ahead);
        }
        self.flight = next;
        self.hide(mark);
        Ok(())
    }

    /// Submits what is planned: the forward pass, and the draws behind it. Masks are computed while a device computes.
    fn submit(&mut self, backend: &mut dyn Backend) -> Result<Flight, BackendError> {
        let begun = Instant::now();
        self.forward(backend)?;
        let draws = self.sample(backend)?;
        Ok(Flight { begun, draws })
    }

    /// Plans the step after the one under way; false where that one must be given out first.
    fn plan_ahead(&mut self) -> bool {
        if self.drafter.is_some() || self.logits_tap.is_some() {
            return false;
        }
        let Self { scheduler, plan, ahead, choices, requests, .. } = self;
        let after = |id: SequenceId, tokens: usize| {
            let request = requests[choices[id.index()].request as usize].as_ref();
            let job = &request.expect("a live sequence has its request").job;
            match depends_on_tokens_alone(job) {
                false => After::Depends,
                true if tokens >= job.tokens_max => After::Ends,
                true => After::GoesOn,
            }
        };
        scheduler.plan_ahead(plan, after, ahead)
    }

    /// Submits the step after the one under way.
    fn submit_ahead(&mut self, backend: &mut dyn Backend) -> Result<Flight, BackendError> {
        std::mem::swap(&mut self.plan, &mut self.ahead);
        let flight = self.submit(backend);
        std::mem::swap(&mut self.plan, &mut self.ahead);
        add(&self.shared.metrics.steps_ahead, usize::from(flight.is_ok()));
        flight
    }

    fn forward(&mut self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        let Buffers { sequences, tokens, block_tables, .. } = &mut self.buffers;
        sequences.clear();
        tokens.clear();
        block_tables.clear();
        for planned in &self.plan.rows {
            let sequence = self.scheduler.sequence(planned.sequence);
            let Choice { request, choice, .. } = self.choices[planned.sequence.index()];
            let job = &self.requests[request as usize].as_ref().expect("a live sequence has its request").job;
            let end = planned.first_position + planned.rows;
            let blocks = &sequence.table().blocks()[..end.div_ceil(self.shared.info.block_tokens)];
            sequences.push(SequenceRows {
                slot: planned.slot,
                first_position: planned.first_position as u32,
                rows: planned.rows as u32,
                wanted: planned.wanted() as u32,
                blocks: Span { start: block_tables.len() as u32, length: blocks.len() as u32 },
                noise_key: job.params[choice as usize].noise_key,
                long: planned.long,
            });
            block_tables.extend_from_slice(blocks);
            if planned.ahead {
                tokens.push(TokenInput::LastSample(planned.slot));
                continue;
            }
            let known = &sequence.tokens[planned.first_position..end - planned.guesses];
            tokens.extend(known.iter().chain(sequence.guesses()).map(|&token| TokenInput::Id(token)));
        }
        let step = ForwardStep { sequences, tokens, block_tables, logits_out: self.logits_tap.is_some() };
        let ticket = timed(&mut self.clock, || guard::submit(backend, &Step::Forward(step)))?;
        self.under_way.push_back(ticket);
        Ok(())
    }

    /// Whether anything is drawn in this step.
    fn sample(&mut self, backend: &mut dyn Backend) -> Result<bool, BackendError> {
        self.buffers.clear_sample();
        let Buffers { starts, histories, rows, logit_bias, suppressed, masks, .. } = &mut self.buffers;
        for planned in self.plan.rows.iter().filter(|planned| planned.wanted() > 0) {
            let id = planned.sequence;
            let sequence = self.scheduler.sequence(id);
            let known = &mut self.choices[id.index()];
            let request = self.requests[known.request as usize].as_mut().expect("a live sequence has its request");
            let job = &mut request.job;
            for position in planned.scored() {
                rows.push(given(rows.len(), planned.slot, sequence.tokens[position + 1], job.prompt_logprobs));
            }
            if !planned.samples {
                continue;
            }
            let params = job.params[known.choice as usize];
            let completion = sequence.tokens.len() - sequence.prompt_tokens + usize::from(planned.ahead);
            if params.has_penalties() && !known.history_sent {
                known.history_sent = true;
                let start = histories.len() as u32;
                let prompt = Span { start, length: sequence.prompt_tokens as u32 };
                let completion = Span { start: start + prompt.length, length: completion as u32 };
                histories.extend_from_slice(&sequence.tokens);
                starts.push(SlotStart { slot: planned.slot, prompt, completion });
            }
            let logit_bias = append(logit_bias, &job.logit_bias);
            let held_back = if completion < job.min_tokens { &job.end_tokens[..] } else { &[] };
            let (end_tokens, mask) = match job.grammars.get_mut(known.choice as usize) {
                // A grammar knows whether it can go on without the end tokens; nothing of it is guessed.
                Some(grammar) => (Span::default(), append(masks, grammar.mask(held_back))),
                None => (append(suppressed, held_back), Span::default()),
            };
            for ahead in 0..=planned.guesses {
                rows.push(SampleRow {
                    row: rows.len() as u32,
                    slot: planned.slot,
                    params,
                    logit_bias,
                    suppressed: if completion + ahead < job.min_tokens { end_tokens } else { Span::default() },
                    mask,
                    logprobs: job.logprobs,
                    given: None,
                });
            }
        }
        if rows.is_empty() {
            return Ok(false);
        }
        let step = SampleStep { starts, histories, rows, logit_bias, suppressed, masks };
        let ticket = timed(&mut self.clock, || guard::submit(backend, &Step::Sample(step)))?;
        self.under_way.push_back(ticket);
        Ok(true)
    }

    /// Waits for what was submitted first.
    fn wait(&mut self, backend: &mut dyn Backend) -> Result<(), BackendError> {
        let ticket = self.under_way.pop_front().expect("a step's parts are waited for as they were submitted");
        timed(&mut self.clock, || guard::wait(backend, ticket, &mut self.output))
    }

    /// Now, if the backend has something to do while the host goes on.
    fn mark(&self) -> Option<Mark> {
        let busy = self.clock.overlaps && !self.under_way.is_empty();
        busy.then(|| Mark { at: Instant::now(), called: self.clock.called })
    }

    /// Counts the time since then as the backend's.
    fn hide(&mut self, mark: Option<Mark>) {
        if let Some(Mark { at, called }) = mark {
            self.clock.hidden += at.elapsed().saturating_sub(self.clock.called - called);
        }
    }
}

/// Counts the time of what the backend does.
fn timed<T>(clock: &mut Clock, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    clock.called += begun.elapsed();
    result
}
