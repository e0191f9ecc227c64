//! A second, smaller model that runs ahead of the first one, on a backend of its own.
//!
//! It has the engine's slots and a KV cache that is its own: what it has computed of a slot's sequence stays, as far as the
//! sequence agrees with it. It draws with the sequence's own noise, so that where both models agree they draw the same.
//! Everything is allocated at start. What always holds: `known` of a slot are the tokens whose keys and values its blocks
//! hold, and a slot's blocks are its alone.

use polylink_kernels::{
    Backend, BackendError, ForwardStep, Limits, SampleParams, SampleRow, SampleStep, SequenceRows, Span, Step,
    StepOutput, TokenInput,
};

use super::guard::compute;
use super::scheduler::{DRAFT_TOKENS_MAX, Scheduler};
use super::speculate::Wanted;

/// What a slot's sequence has in this model's cache.
#[derive(Debug)]
struct Slot {
    known: Vec<u32>,
    blocks: Vec<u32>,
}

/// A sequence in one round.
#[derive(Clone, Copy, Debug)]
struct Running {
    /// Index in the list of wanted ones.
    wanted: usize,
    guesses: [u32; DRAFT_TOKENS_MAX],
    count: usize,
    /// Rows of this round.
    rows: usize,
    /// They reach the end.
    samples: bool,
}

/// The second model.
pub(crate) struct DraftModel {
    backend: Box<dyn Backend>,
    limits: Limits,
    block_tokens: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    running: Vec<Running>,
    sequences: Vec<SequenceRows>,
    tokens: Vec<TokenInput>,
    block_tables: Vec<u32>,
    samples: Vec<SampleRow>,
    output: StepOutput,
}

impl DraftModel {
    /// Over a backend with its program; `limits` are those that it was built with.
    pub(crate) fn new(backend: Box<dyn Backend>, limits: Limits, block_tokens: usize, vocabulary: usize) -> Self {
        let (slots, positions) = (limits.slots, limits.positions);
        let blocks_max = positions.div_ceil(block_tokens);
        let slot = || Slot { known: Vec::with_capacity(positions), blocks: Vec::with_capacity(blocks_max) };
        Self {
            backend,
            limits,
            block_tokens,
            slots: (0..slots).map(|_| slot()).collect(),
            free: (0..limits.kv_blocks as u32).rev().collect(),
            running: Vec::with_capacity(slots),
            sequences: Vec::with_capacity(slots),
            tokens: Vec::with_capacity(limits.rows),
            block_tables: Vec::with_capacity(slots * blocks_max),
            samples: Vec::with_capacity(slots),
            output: StepOutput::with_limits(&limits, vocabulary, false),
        }
    }

    /// A slot has another sequence from now on.
    pub(crate) fn forget(&mut self, slot: u32) {
        let slot = &mut self.slots[slot as usize];
        slot.known.clear();
        self.free.append(&mut slot.blocks);
    }

    /// Guesses for all of `wanted`, whose slots differ, as far as its cache and its step's rows go.
    pub(crate) fn draft(&mut self, scheduler: &mut Scheduler, wanted: &[Wanted]) -> Result<(), BackendError> {
        let nobody = Running { wanted: 0, guesses: [0; DRAFT_TOKENS_MAX], count: 0, rows: 0, samples: false };
        self.running.clear();
        for (index, one) in wanted.iter().enumerate().filter(|(_, one)| one.tokens > 0) {
            let known = &mut self.slots[one.slot as usize].known;
            let tokens = &scheduler.sequence(one.id).tokens;
            let agreed = known.iter().zip(&tokens[..tokens.len() - 1]).take_while(|(a, b)| a == b).count();
            known.truncate(agreed);
            self.running.push(Running { wanted: index, ..nobody });
        }
        for _ in 0..DRAFT_TOKENS_MAX {
            self.lay_out(scheduler, wanted);
            if self.tokens.is_empty() {
                break;
            }
            self.forward()?;
            self.sample(scheduler, wanted)?;
            // Who did not reach the end goes on in the engine's next step; who has its guesses is done.
            self.running.retain(|one| one.samples && one.count < wanted[one.wanted].tokens);
        }
        Ok(())
    }

    /// The rows of one round: all that a sequence has and the cache has not.
    fn lay_out(&mut self, scheduler: &Scheduler, wanted: &[Wanted]) {
        self.sequences.clear();
        self.tokens.clear();
        self.block_tables.clear();
        self.samples.clear();
        for one in &mut self.running {
            let Wanted { id, slot: number, params, .. } = wanted[one.wanted];
            let slot = &mut self.slots[number as usize];
            let tokens = &scheduler.sequence(id).tokens;
            let total = tokens.len() + one.count;
            let first = slot.known.len();
            let rows = (total - first).min(self.limits.rows - self.tokens.len());
            let end = (first + rows).min(self.limits.positions);
            while slot.blocks.len() * self.block_tokens < end {
                let Some(block) = self.free.pop() else { break };
                slot.blocks.push(block);
            }
            let end = end.min(slot.blocks.len() * self.block_tokens);
            one.rows = end.saturating_sub(first);
            one.samples = one.rows > 0 && end == total;
            if one.rows == 0 {
                continue;
            }
            for position in first..end {
                let token =
                    if position < tokens.len() { tokens[position] } else { one.guesses[position - tokens.len()] };
                slot.known.push(token);
                self.tokens.push(TokenInput::Id(token));
            }
            let start = self.block_tables.len() as u32;
            self.block_tables.extend_from_slice(&slot.blocks);
            self.sequences.push(SequenceRows {
                slot: number,
                first_position: first as u32,
                rows: one.rows as u32,
                wanted: u32::from(one.samples),
                blocks: Span { start, length: slot.blocks.len() as u32 },
                noise_key: params.noise_key,
                // Wrong keys would only guess worse.
                long: false,
            });
            if one.samples {
                self.samples.push(sample_row(self.samples.len() as u32, number, params));
            }
        }
    }

    fn forward(&mut self) -> Result<(), BackendError> {
        let Self { sequences, tokens, block_tables, .. } = self;
        let step = ForwardStep { sequences, tokens, block_tables, logits_out: false };
        compute(&mut *self.backend, &Step::Forward(step), &mut self.output)
    }

    fn sample(&mut self, scheduler: &mut Scheduler, wanted: &[Wanted]) -> Result<(), BackendError> {
        if self.samples.is_empty() {
            return Ok(());
        }
        let step = SampleStep {
            starts: &[],
            histories: &[],
            rows: &self.samples,
            logit_bias: &[],
            suppressed: &[],
            masks: &[],
        };
        compute(&mut *self.backend, &Step::Sample(step), &mut self.output)?;
        for (one, sampled) in self.running.iter_mut().filter(|one| one.samples).zip(&self.output.samples) {
            one.guesses[one.count] = sampled.token.token;
            one.count += 1;
            scheduler.propose(wanted[one.wanted].id, &one.guesses[..one.count]);
        }
        Ok(())
    }
}

fn sample_row(row: u32, slot: u32, params: SampleParams) -> SampleRow {
    let nothing = Span::default();
    SampleRow {
        row,
        slot,
        params,
        logit_bias: nothing,
        suppressed: nothing,
        mask: nothing,
        logprobs: None,
        given: None,
    }
}
