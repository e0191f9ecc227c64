use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::engine::kv_pool::ChainHash;

const BLOCK: usize = 4;

fn scheduler(blocks: usize, budget: usize, running: usize) -> Scheduler {
    Scheduler::new(KvPool::new(blocks, BLOCK), budget, running, 64)
}

fn new(tokens: Vec<u32>, tenant: u8, priority: i32) -> NewSequence {
    let table = BlockTable::new(ChainHash::root(&[tenant; 32]), 64);
    NewSequence { tokens, table, tenant: [tenant; 32], priority, parked: false }
}

fn add(scheduler: &mut Scheduler, prompt: std::ops::Range<u32>, tenant: u8, priority: i32) -> SequenceId {
    scheduler.add(new(prompt.collect(), tenant, priority)).expect("there is room")
}

/// Plans a step, computes it, and draws token 7 where one is drawn.
fn step(scheduler: &mut Scheduler) -> StepPlan {
    let mut plan = StepPlan::with_capacity(64);
    scheduler.plan(&mut plan);
    scheduler.computed(&plan);
    for planned in plan.rows.iter().filter(|planned| planned.samples) {
        scheduler.push_token(planned.sequence, 7);
    }
    scheduler.check();
    plan
}

fn rows(plan: &StepPlan) -> Vec<(u32, usize, usize, bool)> {
    plan.rows.iter().map(|rows| (rows.sequence.0, rows.first_position, rows.rows, rows.samples)).collect()
}

#[test]
fn a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_decodes() {
    let mut scheduler = scheduler(64, 8, 4);
    let a = add(&mut scheduler, 0..3, 1, 0);
    assert_eq!(rows(&step(&mut scheduler)), [(a.0, 0, 3, true)]);
    let b = add(&mut scheduler, 100..120, 2, 0);
    assert_eq!(rows(&step(&mut scheduler)), [(a.0, 3, 1, true), (b.0, 0, 7, false)]);
    assert_eq!(rows(&step(&mut scheduler)), [(a.0, 4, 1, true), (b.0, 7, 7, false)]);
    assert_eq!(rows(&step(&mut scheduler)), [(a.0, 5, 1, true), (b.0, 14, 6, true)]);
}

#[test]
fn a_long_prefill_does_not_starve_later_decodes() {
    let mut scheduler = scheduler(64, 8, 4);
    let long = add(&mut scheduler, 0..100, 1, 0);
    step(&mut scheduler);
    let short = add(&mut scheduler, 200..202, 2, 0);
    // All of the budget goes to the earlier one; a later one starts only with what is left ...
    assert_eq!(rows(&step(&mut scheduler)), [(long.0, 8, 8, false)]);
    scheduler.remove(long);
    step(&mut scheduler);
    let late = add(&mut scheduler, 300..400, 1, 0);
    // ... but once it runs it has its row in every step.
    for _ in 0..5 {
        let plan = step(&mut scheduler);
        assert!(plan.rows.iter().any(|rows| rows.sequence == short && rows.samples));
        assert!(plan.rows.iter().any(|rows| rows.sequence == late && rows.rows == 7));
    }
}

#[test]
fn waiting_goes_by_priority_then_least_served_tenant_then_arrival() {
    let mut scheduler = scheduler(64, 4, 1);
    let first = add(&mut scheduler, 0..4, 1, 0);
    step(&mut scheduler);
    let same_tenant = add(&mut scheduler, 10..14, 1, 0);
    let other_tenant = add(&mut scheduler, 20..24, 2, 0);
    let urgent = add(&mut scheduler, 30..34, 1, 1);
    for _ in 0..3 {
        step(&mut scheduler);
    }
    let mut order = vec![];
    for id in [first, urgent, other_tenant, same_tenant] {
        scheduler.remove(id);
        if let Some(rows) = step(&mut scheduler).rows.first() {
            order.push(rows.sequence);
        }
    }
    assert_eq!(order, [urgent, other_tenant, same_tenant]);
}

#[test]
fn out_of_blocks_the_worst_is_preempted_and_comes_back() {
    let mut scheduler = scheduler(4, 16, 4);
    let a = add(&mut scheduler, 0..7, 1, 0);
    let b = add(&mut scheduler, 10..17, 2, 0);
    assert_eq!(step(&mut scheduler).rows.len(), 2);
    assert_eq!(step(&mut scheduler).rows.len(), 2);
    let plan = step(&mut scheduler);
    assert_eq!(plan.preempted, [b]);
    assert_eq!(rows(&plan), [(a.0, 8, 1, true)]);
    scheduler.remove(a);
    let plan = step(&mut scheduler);
    assert_eq!(plan.started, [b]);
    // Its prompt's block was not needed meanwhile, so it is found again.
    let cached = plan.rows[0].first_position;
    assert_eq!((cached % BLOCK, cached + plan.rows[0].rows), (0, 9));
    assert_eq!(scheduler.sequence(b).cached_tokens, 0, "what is billed as cached is what the first start found");
}

#[test]
fn further_choices_share_the_prompts_blocks() {
    let mut scheduler = scheduler(16, 32, 4);
    let first = add(&mut scheduler, 0..9, 1, 0);
    let second = scheduler.add(NewSequence { parked: true, ..new((0..9).collect(), 1, 0) }).expect("there is room");
    assert_eq!(step(&mut scheduler).rows.len(), 1, "a parked one is not started");
    scheduler.unpark(second);
    let plan = step(&mut scheduler);
    assert_eq!(rows(&plan), [(first.0, 9, 1, true), (second.0, 8, 1, true)]);
    assert_eq!(scheduler.sequence(first).table().blocks()[..2], scheduler.sequence(second).table().blocks()[..2]);
}

#[test]
fn no_more_sequences_than_there_are_places() {
    let mut scheduler = Scheduler::new(KvPool::new(4, BLOCK), 4, 2, 3);
    for _ in 0..3 {
        assert!(scheduler.add(new(vec![1], 1, 0)).is_some());
    }
    assert!(scheduler.add(new(vec![1], 1, 0)).is_none());
    assert_eq!((scheduler.live(), scheduler.waiting()), (3, 3));
}

/// What a simulated device holds: for every position of every block, a digest of all tokens up to it.
struct Device(HashMap<(u32, usize), u64>);

fn digest(before: u64, token: u32) -> u64 {
    (before ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_add(1)
}

impl Device {
    /// Computes planned rows as a model would: each reads everything before it.
    fn run(&mut self, sequence: &Sequence, planned: &PlannedRows) {
        let blocks = sequence.table().blocks();
        let mut state = 0;
        for (position, &token) in sequence.tokens[..planned.first_position + planned.rows].iter().enumerate() {
            state = digest(state, token);
            let place = (blocks[position / BLOCK], position % BLOCK);
            if position < planned.first_position {
                assert_eq!(self.0.get(&place), Some(&state), "position {position} was overwritten or never computed");
            } else {
                self.0.insert(place, state);
            }
        }
    }
}

/// 120,000 steps of random arrivals, ends and cancels, with too few blocks, checked against a device that notices
/// whenever a sequence reads something else than its own past.
#[test]
fn simulation_keeps_every_invariant() {
    let (mut steps, mut preempted, mut hits, mut finished) = (0, 0, 0, 0);
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (blocks, budget, running) = (rng.random_range(12..40), rng.random_range(8..40), rng.random_range(1..9));
        let mut scheduler = Scheduler::new(KvPool::new(blocks, BLOCK), budget, running.min(budget), 32);
        let mut device = Device(HashMap::new());
        let mut plan = StepPlan::with_capacity(running);
        let mut tokens_max: HashMap<SequenceId, usize> = HashMap::new();
        for step in 0..10_000 {
            steps += 1;
            while rng.random_bool(0.3) && scheduler.live() < 32 && step < 9_000 {
                // Few different tokens and tenants, so that prefixes are shared often.
                let prompt: Vec<u32> =
                    (0..rng.random_range(1..30)).map(|i| u32::from(rng.random_bool(0.02)) + i).collect();
                let total = (prompt.len() + rng.random_range(1..20)).min(blocks * BLOCK);
                let id =
                    scheduler.add(new(prompt, rng.random_range(0..3), rng.random_range(0..2))).expect("there is room");
                tokens_max.insert(id, total);
            }
            if rng.random_bool(0.02) && !tokens_max.is_empty() {
                let mut ids: Vec<_> = tokens_max.keys().copied().collect();
                ids.sort_by_key(|id| id.0);
                let id = ids[rng.random_range(0..ids.len())];
                scheduler.remove(id);
                tokens_max.remove(&id);
            }
            scheduler.plan(&mut plan);
            assert!(plan.total_rows() <= budget);
            assert_eq!(plan.rows.len(), scheduler.running(), "every running sequence has a row");
            assert!(!plan.rows.is_empty() || scheduler.live() == 0, "while anything is live, something is computed");
            preempted += plan.preempted.len();
            hits += plan.started.iter().filter(|&&id| scheduler.sequence(id).cached_tokens > 0).count();
            let mut slots: Vec<u32> = plan.rows.iter().map(|rows| rows.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), plan.rows.len(), "no slot twice");
            for planned in &plan.rows {
                device.run(scheduler.sequence(planned.sequence), planned);
            }
            scheduler.computed(&plan);
            for planned in plan.rows.iter().filter(|planned| planned.samples) {
                let id = planned.sequence;
                scheduler.push_token(id, rng.random_range(0..3));
                if scheduler.sequence(id).tokens.len() >= tokens_max[&id] {
                    scheduler.remove(id);
                    tokens_max.remove(&id);
                    finished += 1;
                }
            }
            scheduler.check();
        }
        assert_eq!(scheduler.live(), 0, "everything that came was finished");
    }
    assert!(
        steps >= 100_000 && preempted > 100 && hits > 100 && finished > 1_000,
        "{steps} {preempted} {hits} {finished}"
    );
}
