//! What the scheduler knows of a sequence, and what it says of a step.

use std::ops::Range;

use super::queue::FlowId;
use crate::engine::kv_pool::{BlockTable, KvPool};

/// Most tokens that may be guessed ahead of a sequence.
pub const DRAFT_TOKENS_MAX: usize = 8;

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
pub(super) enum State {
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
    /// Rows below have told their prompt token's logprob, or need not; at most all but the prompt's last one.
    pub(super) scored: usize,
    /// Prompt tokens that the prefix cache had when it was first started.
    pub cached_tokens: usize,
    /// Larger goes first.
    pub priority: i32,
    pub(super) flow: FlowId,
    pub(super) arrival: u64,
    pub(super) computed: usize,
    /// Rows of positions below are counted as served.
    pub(super) charged: usize,
    pub(super) started: bool,
    /// It has outgrown `long_beyond`.
    pub(super) long: bool,
    /// Tokens that it had when it came back from a preemption last.
    pub(super) resumed_at: usize,
    pub(super) state: State,
    pub(super) table: BlockTable,
    /// Rows in the plan being made.
    pub(super) planned: usize,
    pub(super) guesses: Guesses,
}

/// Tokens that are guessed to follow; in a plan, those that it has rows for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Guesses {
    tokens: [u32; DRAFT_TOKENS_MAX],
    pub(super) count: usize,
    /// So many were drawn.
    pub(super) right: usize,
}

impl Guesses {
    pub(super) fn of(guessed: &[u32]) -> Self {
        let mut tokens = [0; DRAFT_TOKENS_MAX];
        let count = guessed.len().min(DRAFT_TOKENS_MAX);
        tokens[..count].copy_from_slice(&guessed[..count]);
        Self { tokens, count, right: 0 }
    }

    /// Whether the next guess is what was drawn; counts it.
    pub(super) fn is_right(&mut self, drawn: u32) -> bool {
        let right = self.right < self.count && self.tokens[self.right] == drawn;
        self.right += usize::from(right);
        right
    }
}

impl Sequence {
    /// The sequence's blocks.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Guessed tokens that have rows in the plan.
    pub fn guesses(&self) -> &[u32] {
        &self.guesses.tokens[..self.guesses.count]
    }

    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Position of the first row whose logits are wanted: of a prompt that is scored, else the last one.
    pub(super) fn first_wanted(&self) -> usize {
        if self.scored + 1 < self.prompt_tokens { self.scored } else { self.tokens.len() - 1 }
    }

    /// Takes what the pool has of the rows before the first one whose logits are wanted; returns how many.
    pub(super) fn find_prefix(&mut self, pool: &mut KvPool) -> usize {
        let end = self.first_wanted();
        pool.match_prefix(&mut self.table, &self.tokens[..=end])
    }

    /// Rows to compute, where logits of `extra` rows beyond the first one may be wanted.
    pub(super) fn rows_with(&self, extra: usize) -> usize {
        self.remaining().min(self.first_wanted() + 1 + extra - self.computed)
    }

    /// Of the planned rows those whose logits are wanted, but for the first.
    pub(super) fn extra_wanted(&self) -> usize {
        (self.computed + self.planned).saturating_sub(self.first_wanted() + 1)
    }

    /// Of the next `rows` rows those that tell the logprob of a prompt token.
    pub(super) fn scores(&self, rows: usize) -> usize {
        (self.computed + rows).min(self.prompt_tokens - 1).saturating_sub(self.scored)
    }

    /// Smaller is better.
    pub(super) fn rank(&self) -> (i64, u64) {
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
    /// Larger goes first; within ±[`PRIORITY_MAX`].
    pub priority: i32,
    /// Start only after [`super::Scheduler::unpark`].
    pub parked: bool,
    /// Logits are wanted of the prompt's rows too.
    pub scores_prompt: bool,
}

/// Rows of one sequence in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRows {
    /// Whose.
    pub sequence: SequenceId,
    /// Its place in the order of arrivals: ids are given again, this is not.
    pub arrival: u64,
    /// The backend's slot that it has while it runs.
    pub slot: u32,
    /// First position.
    pub first_position: usize,
    /// Number of rows, at least 1, those of guesses included.
    pub rows: usize,
    /// Of how many rows, the last before the one that draws, the logits tell the logprob of the prompt token that follows.
    pub scores: usize,
    /// The rows reach the end: the next token is to be drawn from the last one, or from the one before the guesses.
    pub samples: bool,
    /// How many rows at the end are guesses; from each of them a token is to be drawn too.
    pub guesses: usize,
    /// The sequence has more tokens than `long_beyond`.
    pub long: bool,
    /// The token of its only row is not known yet: the one that the step before draws.
    pub ahead: bool,
}

impl PlannedRows {
    /// Positions whose logits tell the logprob of the token that follows.
    pub fn scored(&self) -> Range<usize> {
        let end = self.first_position + self.rows - self.guesses - usize::from(self.samples);
        end - self.scores..end
    }

    /// How many rows at the end have their logits wanted.
    pub fn wanted(&self) -> usize {
        self.scores + if self.samples { 1 + self.guesses } else { 0 }
    }
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

    /// Makes it empty.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.preempted.clear();
        self.started.clear();
    }

    /// Rows in all.
    pub fn total_rows(&self) -> usize {
        self.rows.iter().map(|planned| planned.rows).sum()
    }
}
