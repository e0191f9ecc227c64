//! A million steps of whatever may happen, on pools that are too small, against a device that notices when a sequence
//! reads anything else than its own past.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const LIVE_MAX: usize = 32;
const SEEDS: u64 = 50;
const STEPS: usize = 20_000;

/// What a simulated device holds: for every position of every block, a digest of all tokens up to it.
struct Device(Vec<u64>);

fn digest(before: u64, token: u32) -> u64 {
    (before ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_add(1)
}

/// What the test knows of a live sequence.
struct Known {
    tokens_max: usize,
    /// Of its tokens up to each position.
    digests: Vec<u64>,
    /// Further choices that wait for its prompt.
    parked: Vec<SequenceId>,
    added: usize,
    /// The next row that is to tell its prompt token's logprob.
    scored: usize,
    /// Times that it was preempted while it was the first of those that ran.
    first_preempted: usize,
    /// What the device has drawn for it, and nobody has seen yet.
    drawn: VecDeque<u32>,
}

impl Device {
    /// Computes planned rows as a model would; with `all`, looks at everything that they read. `drawn`: the token that is known
    /// here alone.
    fn run(
        &mut self,
        sequence: &Sequence,
        planned: &PlannedRows,
        digests: &mut Vec<u64>,
        drawn: Option<u32>,
        all: bool,
    ) {
        let known = sequence.tokens.len() + usize::from(planned.ahead);
        for token in sequence.tokens.iter().copied().chain(drawn).take(known).skip(digests.len()) {
            digests.push(digest(digests.last().copied().unwrap_or(0), token));
        }
        let mut guessed = [0; DRAFT_TOKENS_MAX];
        let mut last = digests[known - 1];
        for (guessed, &token) in guessed.iter_mut().zip(sequence.guesses()) {
            last = digest(last, token);
            *guessed = last;
        }
        let blocks = sequence.table().blocks();
        let place = |position: usize| blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
        let read = if all { 0 } else { planned.first_position.saturating_sub(1) };
        for (position, digest) in digests.iter().enumerate().take(planned.first_position).skip(read) {
            assert_eq!(self.0[place(position)], *digest, "position {position} is not this sequence's");
        }
        for position in planned.first_position..planned.first_position + planned.rows {
            self.0[place(position)] = if position < known { digests[position] } else { guessed[position - known] };
        }
    }
}

#[derive(Default, Debug)]
struct Seen {
    steps: usize,
    preempted: usize,
    hits: usize,
    finished: usize,
    choices: usize,
    guessed: usize,
    /// Steps that were planned before the one before was given out, and rows of them whose sequences had ended.
    ahead: usize,
    in_vain: usize,
    scored: usize,
    /// Of these, of sequences that had lost their blocks on the way.
    scored_later: usize,
    /// Longest that one of the highest priority was live, in steps.
    longest: usize,
}

struct Simulation {
    rng: StdRng,
    scheduler: Scheduler,
    positions: usize,
    known: Vec<Option<Known>>,
    device: Device,
    /// The step that is computed, if there is one, and the one after it.
    plan: StepPlan,
    ahead: StepPlan,
    under_way: bool,
    first: Option<SequenceId>,
    seen: Seen,
}

/// Rows of a plan whose logits may be wanted beyond one of each.
const EXTRA: usize = 6;
const PRIORITIES: [i32; 3] = [-3, 0, PRIORITY_MAX];

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (blocks, budget, running) = (rng.random_range(12..40), rng.random_range(8..40), rng.random_range(1..9));
        Self {
            scheduler: Scheduler::new(KvPool::new(blocks, BLOCK), budget, running, LIVE_MAX).extra_wanted(EXTRA),
            rng,
            positions: blocks * BLOCK,
            known: (0..LIVE_MAX).map(|_| None).collect(),
            device: Device(vec![0; blocks * BLOCK]),
            plan: StepPlan::with_capacity(running),
            ahead: StepPlan::with_capacity(running),
            under_way: false,
            first: None,
            seen: Seen::default(),
        }
    }

    /// A request of one to three choices. Few different tokens and tenants, so that prefixes are shared often.
    fn add(&mut self) {
        let rng = &mut self.rng;
        let prompt: Vec<u32> = (0..rng.random_range(1..30)).map(|i| u32::from(rng.random_bool(0.02)) + i).collect();
        let tokens_max = (prompt.len() + rng.random_range(1..20)).min(self.positions);
        let (tenant, priority) = (rng.random_range(0..6), PRIORITIES[rng.random_range(0..3)]);
        let choices = if rng.random_bool(0.2) { rng.random_range(2..4) } else { 1 };
        let choices = choices.min(LIVE_MAX - self.scheduler.live());
        let mut ids: Vec<SequenceId> = Vec::new();
        let scores = rng.random_bool(0.3);
        for choice in 0..choices {
            let (parked, scores_prompt) = (choice > 0, scores && choice == 0);
            let new = NewSequence { parked, scores_prompt, ..new(prompt.clone(), tenant, priority) };
            ids.push(self.scheduler.add(new).expect("there is room"));
        }
        self.seen.choices += choices - 1;
        for (choice, &id) in ids.iter().enumerate() {
            let parked = if choice == 0 { ids[1..].to_vec() } else { vec![] };
            let added = self.seen.steps;
            let scored = if scores && choice == 0 { 0 } else { prompt.len() - 1 };
            let (digests, drawn) = (vec![], VecDeque::new());
            let known = Known { tokens_max, digests, parked, added, scored, first_preempted: 0, drawn };
            assert!(self.known[id.index()].replace(known).is_none(), "a live sequence's number is its own");
        }
    }

    fn unpark(&mut self, id: SequenceId) {
        let known = self.known[id.index()].as_mut().expect("it is live");
        for other in std::mem::take(&mut known.parked) {
            // It may have been cancelled, and its number given to another.
            if self.known[other.index()].is_some() {
                self.scheduler.unpark(other);
            }
        }
    }

    fn remove(&mut self, id: SequenceId) {
        self.unpark(id);
        let top = self.scheduler.sequence(id).priority == PRIORITY_MAX;
        self.scheduler.remove(id);
        let known = self.known[id.index()].take().expect("it is live");
        if top {
            self.seen.longest = self.seen.longest.max(self.seen.steps - known.added);
        }
        for parked in self.known.iter_mut().flatten().map(|known| &mut known.parked) {
            parked.retain(|&other| other != id);
        }
    }

    fn cancel_one(&mut self) {
        let live = self.known.iter().filter(|known| known.is_some()).count();
        let chosen = self.rng.random_range(0..live);
        let mut ids = (0..LIVE_MAX).filter(|&index| self.known[index].is_some());
        let id = ids.nth(chosen).expect("so many are live");
        self.remove(SequenceId(id as u32));
    }

    /// Guesses for some of those that decode.
    fn guess(&mut self) {
        for index in 0..self.scheduler.running() {
            let Some((id, _)) = self.scheduler.decoding(index).filter(|_| self.rng.random_bool(0.3)) else { continue };
            let known = self.known[id.index()].as_ref().expect("it is live");
            let left = known.tokens_max - self.scheduler.sequence(id).tokens.len();
            let guesses: Vec<u32> = (1..left.min(6)).map(|_| self.rng.random_range(0..3)).collect();
            self.scheduler.propose(id, &guesses);
        }
    }

    /// Gives out what was drawn, and draws further tokens for as long as it was guessed what was drawn.
    fn draw(&mut self, id: SequenceId, guesses: usize) {
        for ahead in 0..=guesses {
            let drawn = self.known[id.index()].as_mut().expect("it is live").drawn.pop_front();
            let token = drawn.filter(|_| ahead == 0).unwrap_or_else(|| self.rng.random_range(0..3));
            let guessed = self.scheduler.push_token(id, token);
            self.seen.guessed += usize::from(guessed);
            let tokens_max = self.known[id.index()].as_ref().expect("it is live").tokens_max;
            // Some end before their last token, as with an end token.
            let ends = self.scheduler.sequence(id).tokens.len() >= tokens_max || self.rng.random_bool(0.02);
            if ends {
                self.remove(id);
                self.seen.finished += 1;
                return;
            }
            assert!(!guessed || ahead < guesses, "what was not guessed is not right");
            if !guessed {
                return;
            }
        }
    }

    /// Plans a step while nothing is computed.
    fn plan(&mut self) {
        self.guess();
        let (scheduler, plan) = (&mut self.scheduler, &mut self.plan);
        let first = self.first.filter(|id| self.known[id.index()].is_some());
        scheduler.plan(plan);
        assert!(plan.total_rows() <= scheduler.token_budget, "the budget holds");
        assert_eq!(plan.rows.len(), scheduler.running(), "every running sequence has a row");
        assert!(!plan.rows.is_empty() || scheduler.live() == 0, "while anything is live, something is computed");
        if let Some(first) = first.filter(|first| plan.preempted.contains(first)) {
            let known = self.known[first.index()].as_mut().expect("it is live");
            known.first_preempted += 1;
            assert!(1 << (known.first_preempted - 1) <= known.tokens_max, "each time it has doubled");
        }
        self.first = plan.rows.first().map(|planned| planned.sequence);
        self.seen.preempted += plan.preempted.len();
        self.seen.hits += plan.started.iter().filter(|&&id| scheduler.sequence(id).cached_tokens > 0).count();
        let wanted: usize = plan.rows.iter().map(PlannedRows::wanted).sum();
        assert!(wanted <= plan.rows.len() + EXTRA, "{wanted} rows of logits");
        for planned in &plan.rows {
            let known = self.known[planned.sequence.index()].as_mut().expect("planned sequences are live");
            let (told, prompt) = (planned.scored(), scheduler.sequence(planned.sequence).prompt_tokens);
            assert!(told.is_empty() || told.start == known.scored, "each is told once, in order");
            assert!(!planned.samples || told.is_empty() || told.end == prompt - 1, "those that draw come last");
            known.scored += told.len();
            assert!(!planned.samples || known.scored == prompt - 1, "all are told before a token is drawn");
            self.seen.scored += told.len();
            let resumed = scheduler.sequence(planned.sequence).resumed_at > 0;
            self.seen.scored_later += if resumed { told.len() } else { 0 };
        }
        self.compute();
        self.under_way = true;
    }

    /// Plans the step after the one that is computed, if that can be; whether it was.
    fn plan_ahead(&mut self) -> bool {
        let depends = self.rng.random_bool(0.05);
        let after = |id: SequenceId, tokens: usize| match self.known[id.index()].as_ref() {
            _ if depends => After::Depends,
            Some(known) if tokens < known.tokens_max => After::GoesOn,
            _ => After::Ends,
        };
        if !self.scheduler.plan_ahead(&self.plan, after, &mut self.ahead) {
            return false;
        }
        assert!(self.ahead.rows.iter().all(|planned| planned.ahead && planned.rows == 1 && planned.samples));
        self.seen.ahead += 1;
        std::mem::swap(&mut self.plan, &mut self.ahead);
        self.compute();
        std::mem::swap(&mut self.plan, &mut self.ahead);
        true
    }

    /// The device computes what is planned, after all that it was given before, and draws.
    fn compute(&mut self) {
        let mut slots = 0_u64;
        for planned in &self.plan.rows {
            assert_eq!(slots & 1 << planned.slot, 0, "no slot twice");
            slots |= 1 << planned.slot;
            let known = self.known[planned.sequence.index()].as_mut().expect("planned sequences are live");
            let all = self.rng.random_bool(0.1) || self.plan.started.contains(&planned.sequence);
            let drawn = known.drawn.back().copied().filter(|_| planned.ahead);
            assert_eq!(drawn.is_some(), planned.ahead, "what is not known was drawn in the step before");
            self.device.run(self.scheduler.sequence(planned.sequence), planned, &mut known.digests, drawn, all);
            if planned.samples {
                known.drawn.push_back(self.rng.random_range(0..3));
            }
        }
    }

    fn step(&mut self, arrivals: bool) {
        self.seen.steps += 1;
        while arrivals && self.rng.random_bool(0.3) && self.scheduler.live() < LIVE_MAX {
            self.add();
        }
        if self.rng.random_bool(0.02) && self.scheduler.live() > 0 {
            self.cancel_one();
        }
        if !self.under_way {
            self.plan();
        }
        let goes_on = self.rng.random_bool(0.7) && self.plan_ahead();
        self.scheduler.computed(&self.plan);
        for index in 0..self.plan.rows.len() {
            let planned = self.plan.rows[index];
            if !self.scheduler.is_live(&planned) {
                self.seen.in_vain += 1;
            } else if planned.samples {
                self.unpark(planned.sequence);
                self.draw(planned.sequence, planned.guesses);
            }
        }
        if goes_on {
            std::mem::swap(&mut self.plan, &mut self.ahead);
        }
        self.under_way = goes_on;
        if self.rng.random_bool(0.1) {
            self.scheduler.check();
        } else if self.scheduler.live() == 0 {
            self.scheduler.check_idle();
        }
    }
}

/// A million steps of arrivals, choices that share prompts, ends and cancels, at three priorities, for six tenants.
#[test]
fn a_million_random_steps_keep_every_invariant() {
    let mut all = Seen::default();
    for seed in 0..SEEDS {
        let mut simulation = Simulation::new(seed);
        for step in 0..STEPS {
            simulation.step(step < STEPS - 1_500);
        }
        assert_eq!(simulation.scheduler.live(), 0, "everything that came was finished");
        simulation.scheduler.check();
        let seen = simulation.seen;
        all.steps += seen.steps;
        all.preempted += seen.preempted;
        all.hits += seen.hits;
        all.finished += seen.finished;
        all.choices += seen.choices;
        all.guessed += seen.guessed;
        all.ahead += seen.ahead;
        all.in_vain += seen.in_vain;
        all.scored += seen.scored;
        all.scored_later += seen.scored_later;
        all.longest = all.longest.max(seen.longest);
    }
    println!("{all:?}");
    assert_eq!(all.steps, 1_000_000);
    assert!(all.preempted > 1_000 && all.hits > 1_000 && all.finished > 10_000 && all.choices > 1_000, "{all:?}");
    assert!(all.guessed > 10_000 && all.scored > 100_000 && all.scored_later > 1_000, "{all:?}");
    assert!(all.ahead > 100_000 && all.in_vain > 1_000, "{all:?}");
    // At most 32 of at most 49 tokens, one row per step at worst; what they lose by preemption is bounded too.
    assert!(all.longest < 2 * LIVE_MAX * 49, "of the highest priority nobody waits for ever: {all:?}");
}
