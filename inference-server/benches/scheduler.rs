//! What a step's plan costs against the number of those that wait: `cargo bench -p polylink-inference-server --bench
//! scheduler`. The figures should hardly grow from 1 waiting sequence to 100,000, whoever's they are.

use std::time::{Duration, Instant};

use polylink_inference_server::engine::kv_pool::{BlockTable, ChainHash, KvPool};
use polylink_inference_server::engine::scheduler::{NewSequence, Scheduler, SequenceId, StepPlan};

const RUNNING: usize = 32;
const BUDGET: usize = 256;
const BLOCK_TOKENS: usize = 32;
const STEPS: usize = 2_000;

/// A sequence of 40 tokens that may have 168.
fn sequence(tenant: u32) -> NewSequence {
    let mut name = [0; 32];
    name[..4].copy_from_slice(&tenant.to_be_bytes());
    let mut tokens: Vec<u32> = Vec::with_capacity(168);
    tokens.extend((0..40).map(|i| tenant.wrapping_mul(31) + i));
    let table = BlockTable::new(ChainHash::root(&name), 168 / BLOCK_TOKENS + 1);
    NewSequence { tokens, table, tenant: name, priority: (tenant % 3) as i32, parked: false, scores_prompt: false }
}

struct Figures {
    plan: Duration,
    worst: Duration,
    add: Duration,
    cancel: Duration,
}

/// Keeps `waiting` sequences waiting, of so many tenants, while others run to their end.
fn measure(waiting: usize, tenants: u32) -> Figures {
    let pool = KvPool::new(4_096, BLOCK_TOKENS);
    let mut scheduler = Scheduler::new(pool, BUDGET, RUNNING, waiting + RUNNING + 1);
    let mut plan = StepPlan::with_capacity(RUNNING);
    let mut added = 0;
    let mut add = |scheduler: &mut Scheduler| {
        added += 1;
        scheduler.add(sequence(added % tenants)).expect("there is room")
    };
    let (mut plans, mut worst, mut adds, mut cancels) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut added_in_steps = 0;
    let mut ended: Vec<SequenceId> = Vec::new();
    for _ in 0..STEPS {
        let begun = Instant::now();
        while scheduler.waiting() < waiting {
            add(&mut scheduler);
            added_in_steps += 1;
        }
        adds += begun.elapsed();
        let begun = Instant::now();
        scheduler.plan(&mut plan);
        let took = begun.elapsed();
        (plans, worst) = (plans + took, worst.max(took));
        scheduler.computed(&plan);
        for planned in plan.rows.iter().filter(|planned| planned.samples) {
            scheduler.push_token(planned.sequence, 7);
            if scheduler.sequence(planned.sequence).tokens.len() == 168 {
                ended.push(planned.sequence);
            }
        }
        ended.drain(..).for_each(|id| scheduler.remove(id));
        // One that waits goes, and another one comes.
        let id = add(&mut scheduler);
        let begun = Instant::now();
        scheduler.remove(id);
        cancels += begun.elapsed();
    }
    Figures { plan: plans / STEPS as u32, worst, add: adds / added_in_steps.max(1), cancel: cancels / STEPS as u32 }
}

fn main() {
    println!("{RUNNING} running, budget {BUDGET}; {STEPS} steps each");
    println!("| waiting | tenants | plan, µs | worst plan, µs | add, µs | cancel, µs |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    let us = |duration: Duration| duration.as_nanos() as f64 / 1e3;
    for waiting in [1, 10, 100, 1_000, 10_000, 100_000] {
        for tenants in [1, 100_000] {
            let Figures { plan, worst, add, cancel } = measure(waiting, tenants);
            let (plan, worst, add, cancel) = (us(plan), us(worst), us(add), us(cancel));
            println!("| {waiting} | {tenants} | {plan:.1} | {worst:.1} | {add:.2} | {cancel:.2} |");
        }
    }
}
