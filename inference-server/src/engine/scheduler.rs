//! Who computes what in the next step. Pure: no clock, no I/O, no randomness; the same calls give the same plans.
//!
//! One rule instead of a prefill phase and a decode phase: a sequence's computed count chases its token count, and each
//! step spends one budget of rows on that. A decode is a chase of one, a chunked prefill a chase in several steps, a
//! prefix hit a head start, a preemption a start from zero.
//!
//! A **turn** is: higher priority first, then the tenant that was served least (rows given to it, each counted once),
//! then earlier arrival.
//! 1. Whose turn it is among those that wait takes the place of a running one, if there is none for it otherwise and that
//!    one is of a lower priority, or its tenant was served [`LAG_STEPS`] budgets more. Only a sequence that has computed
//!    its prompt, and has doubled since it came back, gives way like this: so what is computed twice is bounded.
//! 2. Every running sequence gets one row; if its block is missing, the running one whose turn comes last, never the first
//!    by priority and arrival, gives its blocks up and waits.
//! 3. What is left of the budget goes to running sequences by turn, as far as blocks are there, and then to waiting ones,
//!    if all their tokens fit at once and nobody was preempted for want of blocks in this step; before a running one if
//!    that is ahead as in 1.
//! 4. What is still left goes to guesses of what running sequences will draw next, if there are any.
//!
//! Logits are wanted of one row of each running sequence at most, and of `extra_wanted` more: guesses, and rows of prompts
//! whose tokens' logprobs are asked for. Such a prompt goes as far in one step as these reach, and takes no prefix that
//! would leave such a row out.
//!
//! A sequence that outgrows `long_beyond` tokens (LongRoPE) gives its blocks back and starts from zero, once: the keys of
//! all its tokens change then.
//!
//! What always holds: a plan has at most `token_budget` rows; every running sequence is in it; the first running one by
//! priority and arrival is never preempted for want of blocks, and each fits alone (checked at admission), so the engine
//! always moves on. Of one priority, nobody waits for ever: a tenant's turn comes when those that run are ahead of it by
//! the lag. A lower priority has what higher ones leave.

mod ahead;
mod check;
mod forest;
mod queue;
mod sequence;

use self::queue::Queue;
use self::sequence::{Guesses, State};
use super::kv_pool::KvPool;

pub use self::ahead::After;
pub use self::queue::PRIORITY_MAX;
pub use self::sequence::{DRAFT_TOKENS_MAX, NewSequence, PlannedRows, Sequence, SequenceId, StepPlan};

/// Budgets of rows by which a tenant may be ahead of one that waits.
pub const LAG_STEPS: usize = 4;

/// All live sequences and their blocks.
#[derive(Debug)]
pub struct Scheduler {
    pool: KvPool,
    token_budget: usize,
    running_max: usize,
    extra_wanted: usize,
    long_beyond: usize,
    sequences: Vec<Option<Sequence>>,
    unused: Vec<SequenceId>,
    /// Best rank first.
    running: Vec<SequenceId>,
    queue: Queue,
    /// Whose turn it was and did not fit, in the last plan.
    blocked: Option<SequenceId>,
    /// Something was given back since the last plan but for those made ahead.
    freed: bool,
    /// Running sequences with more than one row to compute, by turn; only used within a plan.
    chasing: Vec<SequenceId>,
    slots: Vec<u32>,
    arrivals: u64,
}

impl Scheduler {
    /// Rows of one plan whose logits may be wanted beyond one of each running sequence.
    pub fn extra_wanted(self, extra_wanted: usize) -> Self {
        Self { extra_wanted, ..self }
    }

    /// Sequences of more tokens than this have other keys from their first token on; `None`: none has.
    pub fn long_beyond(self, tokens: Option<usize>) -> Self {
        Self { long_beyond: tokens.unwrap_or(usize::MAX), ..self }
    }

    /// `sequences_max`: live sequences, running and waiting. `running_max` is at most `token_budget`.
    pub fn new(pool: KvPool, token_budget: usize, running_max: usize, sequences_max: usize) -> Self {
        assert!(0 < running_max && running_max <= token_budget, "the configuration is checked");
        Self {
            pool,
            token_budget,
            running_max,
            extra_wanted: 0,
            long_beyond: usize::MAX,
            sequences: (0..sequences_max).map(|_| None).collect(),
            unused: (0..sequences_max as u32).rev().map(SequenceId).collect(),
            running: Vec::with_capacity(running_max),
            queue: Queue::new(sequences_max),
            blocked: None,
            freed: false,
            chasing: Vec::with_capacity(running_max),
            slots: (0..running_max as u32).rev().collect(),
            arrivals: 0,
        }
    }

    /// The block pool.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// A live sequence.
    pub fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences[id.index()].as_ref().expect("ids are held by live sequences only")
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        self.sequences[id.index()].as_mut().expect("ids are held by live sequences only")
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait, parked ones included.
    pub fn waiting(&self) -> usize {
        self.live() - self.running.len()
    }

    /// All live sequences.
    pub fn live(&self) -> usize {
        self.sequences.len() - self.unused.len()
    }

    /// Takes a sequence; it waits. `None` when `sequences_max` are live.
    pub fn add(&mut self, new: NewSequence) -> Option<SequenceId> {
        assert!(new.priority.abs() <= PRIORITY_MAX, "priorities are checked at admission");
        let id = self.unused.pop()?;
        let flow = self.queue.enter(new.tenant, new.priority);
        let state = if new.parked { State::Parked } else { State::Waiting };
        self.sequences[id.index()] = Some(Sequence {
            prompt_tokens: new.tokens.len(),
            scored: if new.scores_prompt { 0 } else { new.tokens.len().saturating_sub(1) },
            tokens: new.tokens,
            cached_tokens: 0,
            priority: new.priority,
            flow,
            arrival: self.arrivals,
            computed: 0,
            charged: 0,
            started: false,
            long: false,
            resumed_at: 0,
            state,
            table: new.table,
            planned: 0,
            guesses: Guesses::default(),
        });
        if !new.parked {
            self.queue.push_new(flow, id, self.arrivals);
        }
        self.arrivals += 1;
        Some(id)
    }

    /// Lets a parked sequence wait for its start.
    pub fn unpark(&mut self, id: SequenceId) {
        let sequence = self.sequence_mut(id);
        if sequence.state == State::Parked {
            sequence.state = State::Waiting;
            let (flow, arrival) = (sequence.flow, sequence.arrival);
            self.queue.push_new(flow, id, arrival);
        }
    }

    /// Plans the next step; empty when nothing is there to compute.
    pub fn plan(&mut self, plan: &mut StepPlan) {
        plan.clear();
        self.freed = false;
        for index in 0..self.running.len() {
            self.outgrow(self.running[index]);
        }
        self.make_way(plan);
        let enough = self.one_row_each(plan);
        let mut extra = self.extra_wanted;
        let left = self.spend(self.token_budget - self.running.len(), &mut extra, enough, plan);
        self.spend_on_guesses(left.min(extra));
        self.write_down(plan);
        debug_assert!(plan.total_rows() <= self.token_budget);
    }

    /// Starts a sequence that has just outgrown `long_beyond` from zero, or from what is cached of such a one.
    fn outgrow(&mut self, id: SequenceId) {
        let sequence = self.sequences[id.index()].as_mut().expect("ids are held by live sequences only");
        if sequence.long || sequence.tokens.len() <= self.long_beyond {
            return;
        }
        sequence.long = true;
        self.pool.release(&mut sequence.table);
        sequence.table.start_apart();
        sequence.computed = match sequence.state {
            State::Running { .. } => sequence.find_prefix(&mut self.pool),
            State::Waiting | State::Parked => 0,
        };
    }

    /// Smaller goes first.
    fn turn(&self, id: SequenceId) -> (i64, u64, u64) {
        let sequence = self.sequence(id);
        let (priority, arrival) = sequence.rank();
        (priority, self.queue.served(sequence.flow), arrival)
    }

    /// Whether `id` is so far ahead of one that waits that it should be the other way round.
    fn is_ahead(&self, id: SequenceId, of: SequenceId) -> bool {
        let (ahead, behind) = (self.turn(id), self.turn(of));
        let lag = (LAG_STEPS * self.token_budget) as u64;
        ahead.0 > behind.0 || ahead.0 == behind.0 && ahead.1 > behind.1 + lag
    }

    /// Preempts one that is ahead of the next to start, if that finds no place.
    fn make_way(&mut self, plan: &mut StepPlan) {
        if let Some(index) = self.queue.first().and_then(|next| self.gives_way(next)) {
            self.preempt(index, plan);
        }
    }

    /// Whether the next to start found a place in a plan made now, as far as is known without making one.
    fn has_place(&self, next: SequenceId) -> bool {
        self.running.len() < self.running_max && self.blocked != Some(next)
    }

    /// Which running one gives way to the next to start.
    fn gives_way(&self, next: SequenceId) -> Option<usize> {
        if self.has_place(next) {
            return None;
        }
        let may = |id: &SequenceId| {
            let sequence = self.sequence(*id);
            let settled = sequence.remaining() <= 1 && sequence.tokens.len() >= 2 * sequence.resumed_at;
            settled && self.is_ahead(*id, next)
        };
        let may = (0..self.running.len()).filter(|&index| may(&self.running[index]));
        may.max_by_key(|&index| self.turn(self.running[index]))
    }

    /// Whether blocks were there for all of them.
    fn one_row_each(&mut self, plan: &mut StepPlan) -> bool {
        let (mut next, mut enough) = (0, true);
        while let Some(&id) = self.running.get(next) {
            if self.grow(id, 1) {
                self.sequence_mut(id).planned = 1;
                next += 1;
                continue;
            }
            enough = false;
            let last = (1..self.running.len()).max_by_key(|&index| self.turn(self.running[index]));
            let last = last.expect("a sequence that runs alone has its blocks: checked at admission");
            self.preempt(last, plan);
            next -= usize::from(last < next);
        }
        enough
    }

    /// Whether blocks are there for `rows` more rows of a sequence; takes what is missing.
    fn grow(&mut self, id: SequenceId, rows: usize) -> bool {
        let sequence = self.sequences[id.index()].as_mut().expect("ids are held by live sequences only");
        self.pool.grow(&mut sequence.table, sequence.computed + rows)
    }

    /// Gives what is left of the budget to running and waiting sequences; returns what nobody needs.
    fn spend(&mut self, mut budget: usize, extra: &mut usize, mut may_start: bool, plan: &mut StepPlan) -> usize {
        let mut chasing = std::mem::take(&mut self.chasing);
        chasing.clear();
        chasing.extend(self.running.iter().filter(|&&id| self.sequence(id).remaining() > 1));
        chasing.sort_unstable_by_key(|&id| self.turn(id));
        let mut running = chasing.iter().copied().peekable();
        self.blocked = None;
        while budget > 0 {
            let next = self.queue.first().filter(|_| may_start && self.running.len() < self.running_max);
            match (running.peek().copied(), next) {
                (Some(id), None) => {
                    running.next();
                    self.extend(id, &mut budget, extra);
                }
                (Some(id), Some(next)) if !self.is_ahead(id, next) => {
                    running.next();
                    self.extend(id, &mut budget, extra);
                }
                (_, Some(next)) => {
                    may_start = self.start(next, &mut budget, extra, plan);
                    self.blocked = (!may_start).then_some(next);
                }
                (None, None) => break,
            }
        }
        self.chasing = chasing;
        budget
    }

    /// Gives rows to guesses, from what is left of budget and blocks.
    fn spend_on_guesses(&mut self, mut left: usize) {
        for &id in &self.running {
            let sequence = self.sequences[id.index()].as_mut().expect("running sequences are live");
            let end = sequence.computed + sequence.planned;
            // Beyond the border a guess would have to be computed with other keys.
            let room = if sequence.long { left } else { left.min(self.long_beyond - sequence.tokens.len()) };
            let wanted = sequence.guesses.count.min(room);
            if wanted > 0 && end == sequence.tokens.len() {
                self.pool.grow(&mut sequence.table, end + wanted);
                sequence.guesses.count = wanted.min(self.pool.covered(&sequence.table) - end);
                left -= sequence.guesses.count;
            } else {
                sequence.guesses.count = 0;
            }
        }
    }

    /// More rows for a running sequence; short of blocks, it goes as far as those it has.
    fn extend(&mut self, id: SequenceId, budget: &mut usize, extra: &mut usize) {
        let wanted = self.sequence(id).rows_with(*extra).min(1 + *budget);
        self.grow(id, wanted);
        let sequence = self.sequence(id);
        let rows = wanted.min(self.pool.covered(&sequence.table) - sequence.computed);
        let sequence = self.sequence_mut(id);
        sequence.planned = rows;
        *budget -= rows - 1;
        *extra -= sequence.extra_wanted();
    }

    /// Starts a waiting sequence, if blocks are there for all its tokens.
    fn start(&mut self, id: SequenceId, budget: &mut usize, extra: &mut usize, plan: &mut StepPlan) -> bool {
        self.outgrow(id);
        let sequence = self.sequences[id.index()].as_mut().expect("waiting sequences are live");
        if self.pool.available() == 0 {
            return false;
        }
        let cached = sequence.find_prefix(&mut self.pool);
        let total_blocks = sequence.tokens.len().div_ceil(self.pool.block_tokens());
        if total_blocks - sequence.table.blocks().len() > self.pool.available() {
            self.pool.release(&mut sequence.table);
            return false;
        }
        sequence.computed = cached;
        if sequence.started {
            sequence.resumed_at = sequence.tokens.len();
        } else {
            sequence.started = true;
            sequence.cached_tokens = cached;
        }
        let rows = sequence.rows_with(*extra).min(*budget);
        let grown = self.pool.grow(&mut sequence.table, cached + rows);
        assert!(grown, "the blocks were counted above");
        sequence.planned = rows;
        *budget -= rows;
        *extra -= sequence.extra_wanted();
        let slot = self.slots.pop().expect("there is a slot for every running sequence");
        sequence.state = State::Running { slot };
        let (flow, rank) = (sequence.flow, sequence.rank());
        self.queue.remove(flow, id);
        let place = self.running.partition_point(|&other| self.sequence(other).rank() < rank);
        self.running.insert(place, id);
        plan.started.push(id);
        true
    }

    /// Takes slot and blocks of a running sequence away; it will compute all of it again (or find it in the prefix
    /// cache).
    fn preempt(&mut self, index: usize, plan: &mut StepPlan) {
        let id = self.running.remove(index);
        let sequence = self.sequences[id.index()].as_mut().expect("running sequences are live");
        let State::Running { slot } = sequence.state else { unreachable!("only running sequences are preempted") };
        self.pool.release(&mut sequence.table);
        self.slots.push(slot);
        sequence.state = State::Waiting;
        sequence.computed = 0;
        sequence.planned = 0;
        sequence.guesses = Guesses::default();
        let (flow, arrival) = (sequence.flow, sequence.arrival);
        self.queue.push(flow, id, arrival);
        plan.preempted.push(id);
    }

    /// Turns what was planned into rows, and counts those that are computed for the first time.
    fn write_down(&mut self, plan: &mut StepPlan) {
        for &id in &self.running {
            let sequence = self.sequences[id.index()].as_mut().expect("running sequences are live");
            let State::Running { slot } = sequence.state else { unreachable!("running sequences have a slot") };
            let (planned, guesses) = (std::mem::take(&mut sequence.planned), sequence.guesses.count);
            let rows = planned + guesses;
            let end = sequence.computed + rows;
            debug_assert!(rows > 0 && end <= self.pool.covered(&sequence.table));
            self.queue.charge(sequence.flow, end.saturating_sub(sequence.charged.max(sequence.computed)));
            sequence.charged = sequence.charged.max(end);
            let samples = planned == sequence.remaining();
            let (first_position, long, scores) = (sequence.computed, sequence.long, sequence.scores(planned));
            let (sequence, arrival, ahead) = (id, sequence.arrival, false);
            let planned =
                PlannedRows { sequence, arrival, slot, first_position, rows, scores, samples, guesses, long, ahead };
            plan.rows.push(planned);
        }
        for planned in &plan.rows {
            self.queue.settle(self.sequence(planned.sequence).flow);
        }
    }

    /// A running sequence, in order of rank, and its slot, if all it needs next is one row.
    pub fn decoding(&self, index: usize) -> Option<(SequenceId, u32)> {
        let id = self.running[index];
        match self.sequence(id) {
            Sequence { state: State::Running { slot }, .. } if self.sequence(id).remaining() == 1 => Some((id, *slot)),
            _ => None,
        }
    }

    /// The slot of a sequence that runs.
    pub fn slot(&self, id: SequenceId) -> Option<u32> {
        match self.sequence(id).state {
            State::Running { slot } => Some(slot),
            _ => None,
        }
    }

    /// Guesses what a decoding sequence draws next, at most [`DRAFT_TOKENS_MAX`] tokens; its last token may not be among
    /// them. The next plan has rows for as many as it has room for.
    pub fn propose(&mut self, id: SequenceId, guesses: &[u32]) {
        let sequence = self.sequence_mut(id);
        debug_assert!(sequence.remaining() == 1, "only who decodes is guessed");
        sequence.guesses = Guesses::of(guesses);
    }

    /// The step was computed: counts its rows but for guesses, and names the blocks that became full. Of sequences that ended
    /// meanwhile nothing is left to count.
    pub fn computed(&mut self, plan: &StepPlan) {
        for planned in &plan.rows {
            let sequence = self.sequences[planned.sequence.index()].as_mut();
            let Some(sequence) = sequence.filter(|sequence| sequence.arrival == planned.arrival) else { continue };
            sequence.computed += planned.rows - planned.guesses;
            sequence.scored += planned.scores;
            self.pool.name_full_blocks(&mut sequence.table, &sequence.tokens, sequence.computed);
        }
    }

    /// Appends a drawn token. Whether it was guessed: then its row is computed, and what was drawn from that row is the
    /// next token. Else what was computed beyond counts for nothing, and will be written over.
    pub fn push_token(&mut self, id: SequenceId, token: u32) -> bool {
        let sequence = self.sequences[id.index()].as_mut().expect("ids are held by live sequences only");
        sequence.tokens.push(token);
        let guessed = sequence.guesses.is_right(token);
        if guessed {
            sequence.computed += 1;
            self.pool.name_full_blocks(&mut sequence.table, &sequence.tokens, sequence.computed);
        } else {
            sequence.guesses = Guesses::default();
        }
        guessed
    }

    /// Ends a sequence, in whatever state it is, and gives back all that it holds.
    pub fn remove(&mut self, id: SequenceId) {
        let mut sequence = self.sequences[id.index()].take().expect("ids are held by live sequences only");
        self.pool.release(&mut sequence.table);
        match sequence.state {
            State::Parked => {}
            State::Waiting => self.queue.remove(sequence.flow, id),
            State::Running { slot } => {
                self.running.retain(|&other| other != id);
                self.slots.push(slot);
            }
        }
        self.queue.leave(sequence.flow);
        if self.blocked == Some(id) {
            self.blocked = None;
        }
        self.freed = true;
        self.unused.push(id);
    }
}

#[cfg(test)]
#[path = "scheduler/tests.rs"]
mod tests;
