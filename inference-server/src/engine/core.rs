//! One engine step after the other: requests in, tokens out. Everything that the engine's thread owns but the thread.
//!
//! What always holds: within [`Core::step`] nothing is allocated (lists were reserved by [`Core::admit`] or at start), but
//! for what a grammar's library does for the rows that have one;
//! a token is given out exactly once, in order, and only after the step that drew it had succeeded as a whole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use polylink_kernels::{Limits, StepOutput, Ticket};

mod buffers;
mod guess;
mod steps;

use self::buffers::{Buffers, Reserved};
use self::steps::{Clock, Flight, UNDER_WAY_MAX};

use super::api::{CHOICES_MAX, FailureCode, FinishReason, Usage};
use super::config::EngineConfig;
use super::handle::{Job, Shared};
use super::kv_pool::{BlockTable, ChainHash, KvPool};
use super::logits_tap::{LogitsRow, LogitsTap};
use super::metrics::{add, add_since, set};
use super::scheduler::{NewSequence, Scheduler, SequenceId, StepPlan};
use super::speculate::{Drafter, Payoff, Reach, Wanted};

/// A request under way.
#[derive(Debug)]
struct Request {
    job: Box<Job>,
    /// By choice; `None` once it has ended.
    sequences: [Option<SequenceId>; CHOICES_MAX as usize],
    /// Further choices wait for the first one's prompt.
    parked: bool,
    usage: Usage,
}

impl Request {
    fn choices(&self) -> u32 {
        self.job.params.len() as u32
    }
}

/// What the engine knows of a sequence beyond the scheduler.
#[derive(Clone, Copy, Debug)]
struct Choice {
    request: u32,
    choice: u32,
    /// The backend's slot has its history (needed for penalties).
    history_sent: bool,
    last_token: Option<Instant>,
    reach: Reach,
}

/// Scheduler, live requests and the lists between them and the backend.
#[derive(Debug)]
pub(crate) struct Core {
    shared: Arc<Shared>,
    scheduler: Scheduler,
    /// The step that is under way, or was given out last.
    plan: StepPlan,
    /// The step after it.
    ahead: StepPlan,
    flight: Option<Flight>,
    /// What was submitted and not waited for, oldest first.
    under_way: VecDeque<Ticket>,
    clock: Clock,
    requests: Vec<Option<Request>>,
    unused_requests: Vec<u32>,
    /// By sequence.
    choices: Vec<Choice>,
    /// Requests that are to be looked at; only used within a step.
    signalled: Vec<u32>,
    reserved: Reserved,
    buffers: Buffers,
    output: StepOutput,
    prefix_cache: bool,
    drafter: Option<Drafter>,
    payoff: Payoff,
    /// Who is to be guessed; only used within a step.
    wanted: Vec<Wanted>,
    /// Rows of one step whose logits may be wanted beyond one of each sequence; so many guesses at most.
    extra_wanted: usize,
    logits_tap: Option<LogitsTap>,
    vocabulary: usize,
    /// Requests so far: their own salts, when they do not share.
    admitted: u64,
}

impl Core {
    /// `drafter`: what guesses tokens ahead.
    pub(crate) fn new(
        shared: Arc<Shared>,
        limits: &Limits,
        vocabulary: usize,
        config: &EngineConfig,
        drafter: Option<Drafter>,
    ) -> Self {
        let info = &shared.info;
        let live_max = info.max_running + info.max_waiting;
        let pool = KvPool::new(info.kv_blocks, info.block_tokens);
        let running = info.max_running;
        let extra_wanted = limits.wanted_rows - running;
        let scheduler = Scheduler::new(pool, info.token_budget, running, live_max);
        let scheduler = scheduler.extra_wanted(extra_wanted).long_beyond(info.long_beyond);
        let blocks_per_sequence = info.context_length.div_ceil(info.block_tokens);
        let buffers = Buffers {
            sequences: Vec::with_capacity(running),
            tokens: Vec::with_capacity(info.token_budget),
            block_tables: Vec::with_capacity(running * blocks_per_sequence),
            starts: Vec::with_capacity(running),
            rows: Vec::with_capacity(limits.wanted_rows),
            ..Buffers::default()
        };
        set(&shared.metrics.kv_blocks_total, info.kv_blocks);
        let choice = Choice { request: 0, choice: 0, history_sent: false, last_token: None, reach: Reach::START };
        Self {
            plan: StepPlan::with_capacity(running),
            ahead: StepPlan::with_capacity(running),
            flight: None,
            under_way: VecDeque::with_capacity(UNDER_WAY_MAX),
            clock: Clock::default(),
            requests: (0..live_max).map(|_| None).collect(),
            unused_requests: (0..live_max as u32).rev().collect(),
            choices: vec![choice; live_max],
            signalled: Vec::new(),
            reserved: Reserved::default(),
            buffers,
            output: StepOutput::with_limits(limits, vocabulary, config.logits_tap.is_some()),
            prefix_cache: config.prefix_cache,
            drafter,
            payoff: Payoff::default(),
            wanted: Vec::with_capacity(running),
            extra_wanted,
            logits_tap: config.logits_tap.clone(),
            vocabulary,
            admitted: 0,
            scheduler,
            shared,
        }
    }

    /// Nothing is live, nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.live() == 0 && self.flight.is_none()
    }

    /// Takes a job; its choices wait.
    pub(crate) fn admit(&mut self, mut job: Box<Job>) {
        let begun = Instant::now();
        self.admitted += 1;
        let root = if self.prefix_cache {
            ChainHash::root(&job.tenant)
        } else {
            let mut salt = job.tenant;
            salt[..8].copy_from_slice(&self.admitted.to_be_bytes());
            ChainHash::root(&salt)
        };
        let blocks_max = job.tokens_max.div_ceil(self.shared.info.block_tokens);
        let prompt = std::mem::take(&mut job.prompt);
        let index = self.unused_requests.pop().expect("places of live choices are counted by the handle");
        let mut sequences = [None; CHOICES_MAX as usize];
        for choice in 0..job.params.len() as u32 {
            let mut tokens = Vec::with_capacity(job.tokens_max);
            tokens.extend_from_slice(&prompt);
            let new = NewSequence {
                tokens,
                table: BlockTable::new(root, blocks_max),
                tenant: job.tenant,
                priority: job.priority,
                parked: choice > 0,
                scores_prompt: choice == 0 && job.prompt_logprobs.is_some(),
            };
            let id = self.scheduler.add(new).expect("places of live choices are counted by the handle");
            sequences[choice as usize] = Some(id);
            let (history_sent, last_token, reach) = (false, None, Reach::START);
            self.choices[id.index()] = Choice { request: index, choice, history_sent, last_token, reach };
        }
        // A step has at most `max_running` choices, whatever waits. The lists are empty between steps, so `reserve` counts
        // from their start.
        self.reserved = self.reserved.with(&job);
        let running = self.shared.info.max_running;
        self.buffers.clear_sample();
        self.buffers.histories.reserve(running * self.reserved.histories);
        self.buffers.logit_bias.reserve(running * self.reserved.logit_bias);
        self.buffers.suppressed.reserve(running * self.reserved.suppressed);
        self.buffers.masks.reserve(running * self.reserved.masks);
        let usage = Usage { prompt_tokens: prompt.len() as u64, ..Usage::default() };
        let parked = job.params.len() > 1;
        job.outbox.settle(index);
        self.requests[index as usize] = Some(Request { job, sequences, parked, usage });
        add_since(&self.shared.metrics.step_ns, begun);
    }

    /// Ends what its reader no longer wants; only looks where a reader has said so.
    fn hear(&mut self) {
        let mut signalled = std::mem::take(&mut self.signalled);
        self.shared.signals.take(&mut signalled);
        for &index in &signalled {
            let Some(request) = &self.requests[index as usize] else { continue };
            request.job.outbox.hear();
            let cancelled = request.job.outbox.is_cancelled();
            for choice in 0..request.choices() {
                // The request goes with its last choice.
                let Some(request) = &self.requests[index as usize] else { break };
                let Some(id) = request.sequences[choice as usize] else { continue };
                if cancelled {
                    self.finish(id, FinishReason::Cancelled);
                } else if request.job.outbox.is_stopped(choice) {
                    self.finish(id, FinishReason::Stop);
                }
            }
        }
        self.signalled = signalled;
    }

    /// Gives prompt tokens' logprobs and drawn tokens out, these as far as guesses before them were right, and ends what is
    /// complete.
    fn give_out(&mut self) {
        let now = Instant::now();
        let mut first = 0;
        for index in 0..self.plan.rows.len() {
            let planned = self.plan.rows[index];
            if !self.scheduler.is_live(&planned) {
                // It has ended since this was planned.
                first += planned.wanted();
                continue;
            }
            if planned.scores > 0 {
                let request = self.choices[planned.sequence.index()].request as usize;
                let request = self.requests[request].as_ref().expect("a live sequence has its request");
                let told = &self.output.samples[first..][..planned.scores];
                told.iter().for_each(|told| request.job.outbox.prompt(told));
                first += planned.scores;
            }
            if !planned.samples {
                continue;
            }
            let guesses = planned.guesses;
            let wrong = (0..=guesses).find(|ahead| !self.give(planned.sequence, first + ahead, now));
            self.learn(planned.sequence.index(), guesses, wrong.unwrap_or(guesses));
            first += 1 + guesses;
        }
    }

    /// Gives one drawn token out; whether it was guessed, so that what was drawn after it is the next one.
    fn give(&mut self, id: SequenceId, row: usize, now: Instant) -> bool {
        let shared = Arc::clone(&self.shared);
        let metrics = &shared.metrics;
        let sampled = &self.output.samples[row];
        let token = sampled.token.token;
        let known = &mut self.choices[id.index()];
        let choice = known.choice;
        let request = self.requests[known.request as usize].as_mut().expect("a live sequence has its request");
        let sequence = self.scheduler.sequence(id);
        if known.last_token.is_none() && choice == 0 {
            let (prompt, cached) = (sequence.prompt_tokens, sequence.cached_tokens);
            request.usage.cached_tokens = cached as u64;
            add(&metrics.prompt_tokens, prompt);
            add(&metrics.prefix_queries, prompt);
            add(&metrics.prefix_hits, cached);
        }
        if sequence.tokens.len() >= request.job.tokens_max {
            // The prompt alone was asked for.
            self.finish(id, FinishReason::Length);
            return false;
        }
        if let Some(tap) = &self.logits_tap {
            tap.show(&LogitsRow {
                noise_key: request.job.params[choice as usize].noise_key,
                index: sequence.tokens.len() - sequence.prompt_tokens,
                logits: &self.output.logits[row * self.vocabulary..][..self.vocabulary],
            });
        }
        request.job.outbox.token(choice, sampled, &self.output.sketches[row]);
        request.usage.completion_tokens += 1;
        add(&metrics.completion_tokens, 1);
        match known.last_token.replace(now) {
            Some(before) => metrics.inter_token_latency.observe(now - before),
            None if choice == 0 => metrics.time_to_first_token.observe(now - request.job.submitted),
            None => {}
        }
        let ends = request.job.end_tokens.binary_search(&token).is_ok();
        let grammar = request.job.grammars.get_mut(choice as usize);
        let stuck = grammar.is_some_and(|grammar| {
            grammar.accept(token);
            grammar.is_stuck()
        });
        let tokens_max = request.job.tokens_max;
        if choice == 0 {
            self.unpark(id);
        }
        let guessed = self.scheduler.push_token(id, token);
        if ends {
            // A grammar that could not go on: the answer is as incomplete as one that is cut at its limit.
            self.finish(id, if stuck { FinishReason::Length } else { FinishReason::Stop });
            return false;
        }
        if self.scheduler.sequence(id).tokens.len() >= tokens_max {
            self.finish(id, FinishReason::Length);
            return false;
        }
        guessed
    }

    /// Lets the further choices of a request start, whose first choice is `first`.
    fn unpark(&mut self, first: SequenceId) {
        let request = self.choices[first.index()].request as usize;
        let request = self.requests[request].as_mut().expect("a live sequence has its request");
        if std::mem::take(&mut request.parked) {
            for id in request.sequences.iter().flatten() {
                self.scheduler.unpark(*id);
            }
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.unpark(id);
        self.scheduler.remove(id);
        let Choice { request: index, choice, .. } = self.choices[id.index()];
        let request = self.requests[index as usize].as_mut().expect("a live sequence has its request");
        request.sequences[choice as usize] = None;
        let metrics = &self.shared.metrics;
        let counter = match reason {
            FinishReason::Stop => &metrics.finished_stop,
            FinishReason::Length => &metrics.finished_length,
            FinishReason::Cancelled => &metrics.finished_cancelled,
        };
        add(counter, 1);
        request.job.outbox.finished(choice, reason);
        if request.sequences.iter().all(Option::is_none) {
            metrics.end_to_end_latency.observe(request.job.submitted.elapsed());
            request.job.outbox.done(request.usage);
            self.drop_request(index);
        }
    }

    fn drop_request(&mut self, index: u32) {
        if self.requests[index as usize].take().is_some() {
            self.unused_requests.push(index);
        }
    }

    /// Fails every live request and forgets all cached blocks, whose contents can no longer be trusted.
    pub(crate) fn fail_all(&mut self, code: FailureCode, message: &str) {
        for index in 0..self.requests.len() as u32 {
            if let Some(request) = &self.requests[index as usize] {
                // Counted before it is told: whoever has read the end finds it in the figures.
                add(&self.shared.metrics.requests_failed, 1);
                request.job.outbox.failed(code, message);
                for id in request.sequences.into_iter().flatten() {
                    self.scheduler.remove(id);
                }
                self.drop_request(index);
            }
        }
        let info = &self.shared.info;
        let pool = KvPool::new(info.kv_blocks, info.block_tokens);
        let live_max = info.max_running + info.max_waiting;
        let scheduler = Scheduler::new(pool, info.token_budget, info.max_running, live_max);
        self.scheduler = scheduler.extra_wanted(self.extra_wanted).long_beyond(info.long_beyond);
        self.tell_gauges();
    }

    /// Checks that an idle engine holds nothing.
    pub(crate) fn check_idle(&self) {
        self.scheduler.check_idle();
    }

    /// Checks conservation, counting everything.
    pub(crate) fn check(&self) {
        self.scheduler.check();
    }

    fn tell_gauges(&self) {
        let metrics = &self.shared.metrics;
        let counts = self.scheduler.pool().counts();
        set(&metrics.running, self.scheduler.running());
        set(&metrics.waiting, self.scheduler.waiting());
        set(&metrics.kv_blocks_used, counts.in_use);
        set(&metrics.kv_blocks_cached, counts.cached);
    }
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
