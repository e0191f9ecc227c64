use super::*;
use crate::engine::kv_pool::{BlockTable, ChainHash};

#[path = "tests/ahead.rs"]
mod ahead;
#[path = "tests/fairness.rs"]
mod fairness;
#[path = "tests/simulation.rs"]
mod simulation;

const BLOCK: usize = 4;

fn scheduler(blocks: usize, budget: usize, running: usize) -> Scheduler {
    Scheduler::new(KvPool::new(blocks, BLOCK), budget, running, 64)
}

fn new(tokens: Vec<u32>, tenant: u8, priority: i32) -> NewSequence {
    let table = BlockTable::new(ChainHash::root(&[tenant; 32]), 64);
    NewSequence { tokens, table, tenant: [tenant; 32], priority, parked: false, scores_prompt: false }
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
fn a_sequence_that_outgrows_the_border_starts_from_zero_once_with_keys_of_its_own() {
    let mut scheduler = scheduler(64, 8, 4).long_beyond(Some(10));
    let a = add(&mut scheduler, 0..9, 1, 0);
    for (expected, long) in [
        ((0, 8, false), false),
        ((8, 1, true), false),
        ((9, 1, true), false),
        // Eleven tokens: all of them again.
        ((0, 8, false), true),
        ((8, 3, true), true),
        ((11, 1, true), true),
    ] {
        let plan = step(&mut scheduler);
        assert_eq!(rows(&plan), [(a.0, expected.0, expected.1, expected.2)]);
        assert_eq!(plan.rows[0].long, long, "{expected:?}");
    }
    scheduler.remove(a);
    // Prefixes of either side are found by sequences of that side: two blocks of the short one, two of the long one.
    let short = add(&mut scheduler, 0..9, 1, 0);
    assert_eq!(rows(&step(&mut scheduler)), [(short.0, 8, 1, true)]);
    scheduler.remove(short);
    let tokens = (0..9).chain([7, 7, 3, 4]).collect();
    let long = scheduler.add(new(tokens, 1, 0)).expect("there is room");
    let plan = step(&mut scheduler);
    assert_eq!((rows(&plan), plan.rows[0].long), (vec![(long.0, 8, 5, true)], true));
    let other = scheduler.add(new((0..9).chain([1, 2, 3, 4]).collect(), 2, 0)).expect("there is room");
    step(&mut scheduler);
    assert_eq!(scheduler.sequence(other).cached_tokens, 0, "another tenant");
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
    for _ in 0..3 {
        assert_eq!(step(&mut scheduler).rows[0].sequence, first);
    }
    let urgent = add(&mut scheduler, 30..34, 1, 1);
    let mut order = vec![step(&mut scheduler).rows[0].sequence];
    while scheduler.live() > 1 {
        scheduler.remove(order[order.len() - 1]);
        order.push(step(&mut scheduler).rows[0].sequence);
    }
    assert_eq!(order, [urgent, other_tenant, first, same_tenant]);
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
