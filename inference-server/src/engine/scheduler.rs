//! Who computes what in the next step. Pure: no clock, no I/O, no randomness; the same calls give the same plans.
//!
//! One rule instead of a prefill phase and a decode phase: a sequence's computed count chases its token count, and each
//! step spends one budget of rows on that. A decode is a chase of one, a chunked prefill a chase in several steps, a
//! prefix hit a head start, a preemption a start from zero.
//!
//! Order: higher priority first, then (among those that wait) the tenant that was served least, then earlier arrival.
//! 1. Every running sequence gets one row; if its block is missing, the worst running one gives its blocks up and waits.
//! 2. What is left of the budget goes to running sequences in order, as far as blocks are there.
//! 3. What is still left starts waiting ones, if all their tokens fit at once and nobody was preempted in this step.
//!
//! What always holds: a plan has at most `token_budget` rows; every running sequence is in it; the best running sequence
//! is never preempted by another, and each fits alone (checked at admission), so the engine always moves on.

use super::kv_pool::{BlockTable, KvPool};

/// Number of a live sequence; reused after it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(pub u32);

impl SequenceId {
    /// As an index into tables of live sequences.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not to be started yet: a further choice whose prompt the first choice still computes.
    Parked,
    Waiting,
    Running {
        slot: u32,
    },
}

/// A sequence: one choice of one request.
#[derive(Debug)]
pub struct Sequence {
    /// Prompt and completion so far; room for `tokens_max` is reserved.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the prefix cache had when it was first started.
    pub cached_tokens: usize,
    /// Larger goes first.
    pub priority: i32,
    tenant: u32,
    arrival: u64,
    computed: usize,
    started: bool,
    state: State,
    table: BlockTable,
    /// Rows in the plan being made.
    planned: usize,
}

impl Sequence {
    /// The sequence's blocks.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Smaller is better.
    fn rank(&self) -> (i64, u64) {
        (-i64::from(self.priority), self.arrival)
    }
}

/// A new sequence, all lists reserved.
#[derive(Debug)]
pub struct NewSequence {
    /// The prompt, with room for the completion.
    pub tokens: Vec<u32>,
    /// Empty, with room for all its blocks.
    pub table: BlockTable,
    /// Who asks.
    pub tenant: [u8; 32],
    /// Larger goes first.
    pub priority: i32,
    /// Start only after [`Scheduler::unpark`].
    pub parked: bool,
}

/// Rows of one sequence in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRows {
    /// Whose.
    pub sequence: SequenceId,
    /// The backend's slot that it has while it runs.
    pub slot: u32,
    /// First position.
    pub first_position: usize,
    /// Number of rows, at least 1.
    pub rows: usize,
    /// The rows reach the end: the next token is to be drawn from the last one.
    pub samples: bool,
}

/// One step. Reused, so that making it allocates nothing.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// In order of rank.
    pub rows: Vec<PlannedRows>,
    /// Sequences that lost their blocks while the plan was made.
    pub preempted: Vec<SequenceId>,
    /// Sequences that started running (for the first time or again), whose slots are new.
    pub started: Vec<SequenceId>,
}

impl StepPlan {
    /// With room for any plan of `running_max` sequences.
    pub fn with_capacity(running_max: usize) -> Self {
        let room = Vec::with_capacity;
        Self {
            rows: room(running_max),
            preempted: Vec::with_capacity(running_max),
            started: Vec::with_capacity(running_max),
        }
    }

    /// Rows in all.
    pub fn total_rows(&self) -> usize {
        self.rows.iter().map(|planned| planned.rows).sum()
    }
}

#[derive(Clone, Copy, Debug)]
struct Tenant {
    key: [u8; 32],
    /// Rows that it was given (virtual token counter of Sheng et al., "Fairness in serving LLMs", OSDI 2024).
    served: u64,
    live: u32,
}

/// All live sequences and their blocks.
#[derive(Debug)]
pub struct Scheduler {
    pool: KvPool,
    token_budget: usize,
    running_max: usize,
    sequences: Vec<Option<Sequence>>,
    unused: Vec<SequenceId>,
    /// Best rank first.
    running: Vec<SequenceId>,
    waiting: Vec<SequenceId>,
    slots: Vec<u32>,
    tenants: Vec<Tenant>,
    arrivals: u64,
}

impl Scheduler {
    /// `sequences_max`: live sequences, running and waiting. `running_max` is at most `token_budget`.
    pub fn new(pool: KvPool, token_budget: usize, running_max: usize, sequences_max: usize) -> Self {
        assert!(0 < running_max && running_max <= token_budget, "the configuration is checked");
        Self {
            pool,
            token_budget,
            running_max,
            sequences: (0..sequences_max).map(|_| None).collect(),
            unused: (0..sequences_max as u32).rev().map(SequenceId).collect(),
            running: Vec::with_capacity(running_max),
            waiting: Vec::with_capacity(sequences_max),
            slots: (0..running_max as u32).rev().collect(),
            tenants: Vec::with_capacity(sequences_max),
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
        let id = self.unused.pop()?;
        let tenant = self.enter(new.tenant);
        let state = if new.parked { State::Parked } else { State::Waiting };
        self.sequences[id.index()] = Some(Sequence {
            prompt_tokens: new.tokens.len(),
            tokens: new.tokens,
            cached_tokens: 0,
            priority: new.priority,
            tenant,
            arrival: self.arrivals,
            computed: 0,
            started: false,
            state,
            table: new.table,
            planned: 0,
        });
        self.arrivals += 1;
        if !new.parked {
            self.waiting.push(id);
        }
        Some(id)
    }

    /// Lets a parked sequence wait for its start.
    pub fn unpark(&mut self, id: SequenceId) {
        let sequence = self.sequence_mut(id);
        if sequence.state == State::Parked {
            sequence.state = State::Waiting;
            self.waiting.push(id);
        }
    }

    /// Counts a tenant in. One that was away starts level with the least served of those present: neither its absence
    /// nor its past counts.
    fn enter(&mut self, key: [u8; 32]) -> u32 {
        if let Some(known) = self.tenants.iter().position(|tenant| tenant.live > 0 && tenant.key == key) {
            self.tenants[known].live += 1;
            return known as u32;
        }
        let served =
            self.tenants.iter().filter(|tenant| tenant.live > 0).map(|tenant| tenant.served).min().unwrap_or(0);
        let tenant = Tenant { key, served, live: 1 };
        match self.tenants.iter().position(|tenant| tenant.live == 0) {
            Some(vacant) => {
                self.tenants[vacant] = tenant;
                vacant as u32
            }
            None => {
                self.tenants.push(tenant);
                self.tenants.len() as u32 - 1
            }
        }
    }

    /// Plans the next step; empty when nothing is there to compute.
    pub fn plan(&mut self, plan: &mut StepPlan) {
        plan.rows.clear();
        plan.preempted.clear();
        plan.started.clear();
        self.one_row_each(plan);
        let mut budget = self.token_budget - self.running.len();
        self.spend_on_running(&mut budget);
        if plan.preempted.is_empty() {
            self.start_waiting(&mut budget, plan);
        }
        for &id in &self.running {
            let sequence = self.sequences[id.index()].as_mut().expect("running sequences are live");
            let State::Running { slot } = sequence.state else { unreachable!("running sequences have a slot") };
            let rows = std::mem::take(&mut sequence.planned);
            debug_assert!(rows > 0 && sequence.computed + rows <= self.pool.covered(&sequence.table));
            self.tenants[sequence.tenant as usize].served += rows as u64;
            plan.rows.push(PlannedRows {
                sequence: id,
                slot,
                first_position: sequence.computed,
                rows,
                samples: rows == sequence.remaining(),
            });
        }
        debug_assert!(plan.total_rows() <= self.token_budget);
    }

    fn one_row_each(&mut self, plan: &mut StepPlan) {
        let mut next = 0;
        while let Some(&id) = self.running.get(next) {
            if self.grow(id, 1) {
                self.sequence_mut(id).planned = 1;
                next += 1;
                continue;
            }
            let worst = self.running.len() - 1;
            assert!(worst > 0, "a sequence that runs alone has its blocks: checked at admission");
            let worst = self.running.remove(worst);
            self.preempt(worst);
            plan.preempted.push(worst);
        }
    }

    /// Whether blocks are there for `rows` more rows of a sequence; takes what is missing.
    fn grow(&mut self, id: SequenceId, rows: usize) -> bool {
        let sequence = self.sequences[id.index()].as_mut().expect("ids are held by live sequences only");
        self.pool.grow(&mut sequence.table, sequence.computed + rows)
    }

    fn spend_on_running(&mut self, budget: &mut usize) {
        for index in 0..self.running.len() {
            let id = self.running[index];
            let sequence = self.sequence(id);
            let wanted = sequence.remaining().min(1 + *budget);
            if wanted > 1 {
                // Short of blocks, it goes as far as those it has.
                self.grow(id, wanted);
                let sequence = self.sequence(id);
                let rows = wanted.min(self.pool.covered(&sequence.table) - sequence.computed);
                self.sequence_mut(id).planned = rows;
                *budget -= rows - 1;
            }
        }
    }

    fn start_waiting(&mut self, budget: &mut usize, plan: &mut StepPlan) {
        while *budget > 0 && self.running.len() < self.running_max && self.pool.available() > 0 {
            let Some(best) = self.best_waiting() else { return };
            let id = self.waiting[best];
            let sequence = self.sequences[id.index()].as_mut().expect("waiting sequences are live");
            let cached = self.pool.match_prefix(&mut sequence.table, &sequence.tokens);
            let total_blocks = sequence.tokens.len().div_ceil(self.pool.block_tokens());
            if total_blocks - sequence.table.blocks().len() > self.pool.available() {
                self.pool.release(&mut sequence.table);
                return;
            }
            sequence.computed = cached;
            if !sequence.started {
                sequence.started = true;
                sequence.cached_tokens = cached;
            }
            let rows = sequence.remaining().min(*budget);
            let grown = self.pool.grow(&mut sequence.table, cached + rows);
            assert!(grown, "the blocks were counted above");
            sequence.planned = rows;
            *budget -= rows;
            let slot = self.slots.pop().expect("there is a slot for every running sequence");
            sequence.state = State::Running { slot };
            let rank = sequence.rank();
            self.waiting.swap_remove(best);
            let place = self.running.partition_point(|&other| self.sequence(other).rank() < rank);
            self.running.insert(place, id);
            plan.started.push(id);
        }
    }

    /// Index in `waiting` of the one to start next.
    fn best_waiting(&self) -> Option<usize> {
        let key = |id: SequenceId| {
            let sequence = self.sequence(id);
            let (priority, arrival) = sequence.rank();
            (priority, self.tenants[sequence.tenant as usize].served, arrival)
        };
        (0..self.waiting.len()).min_by_key(|&index| key(self.waiting[index]))
    }

    /// Takes slot and blocks away; the sequence will compute all of it again (or find it in the prefix cache).
    fn preempt(&mut self, id: SequenceId) {
        let sequence = self.sequences[id.index()].as_mut().expect("ids are held by live sequences only");
        let State::Running { slot } = sequence.state else { unreachable!("only running sequences are preempted") };
        self.pool.release(&mut sequence.table);
        self.slots.push(slot);
        sequence.state = State::Waiting;
        sequence.computed = 0;
        sequence.planned = 0;
        self.waiting.push(id);
    }

    /// The step was computed: counts its rows, and names the blocks that became full.
    pub fn computed(&mut self, plan: &StepPlan) {
        for planned in &plan.rows {
            let sequence = self.sequences[planned.sequence.index()].as_mut().expect("planned sequences are live");
            sequence.computed += planned.rows;
            self.pool.name_full_blocks(&mut sequence.table, &sequence.tokens, sequence.computed);
        }
    }

    /// Appends the drawn token.
    pub fn push_token(&mut self, id: SequenceId, token: u32) {
        self.sequence_mut(id).tokens.push(token);
    }

    /// Ends a sequence, in whatever state it is, and gives back all that it holds.
    pub fn remove(&mut self, id: SequenceId) {
        let mut sequence = self.sequences[id.index()].take().expect("ids are held by live sequences only");
        self.pool.release(&mut sequence.table);
        self.tenants[sequence.tenant as usize].live -= 1;
        match sequence.state {
            State::Parked => {}
            State::Waiting => self.waiting.retain(|&other| other != id),
            State::Running { slot } => {
                self.running.retain(|&other| other != id);
                self.slots.push(slot);
            }
        }
        self.unused.push(id);
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
        assert_eq!(
            live().filter(|sequence| sequence.state == State::Waiting).count(),
            self.waiting.len(),
            "waiting ones"
        );
        assert_eq!(live().count(), self.live(), "live sequences");
        assert_eq!(
            self.tenants.iter().map(|tenant| tenant.live as usize).sum::<usize>(),
            self.live(),
            "tenants' sequences"
        );
        for sequence in live() {
            let covered = self.pool.covered(&sequence.table);
            assert!(
                sequence.computed <= sequence.tokens.len() && sequence.computed <= covered,
                "computed ≤ tokens, covered"
            );
        }
        if self.live() == 0 {
            assert_eq!(self.pool.counts().in_use, 0, "an idle engine holds no block");
        }
    }
}

#[cfg(test)]
#[path = "scheduler/tests.rs"]
mod tests;
