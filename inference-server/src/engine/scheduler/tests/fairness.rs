//! Shares of tenants of one priority under saturation, and what priorities may do to others.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const LIVE_MAX: usize = 512;

/// One tenant's demand: it keeps so many requests live.
#[derive(Clone)]
struct Demand {
    tenant: u8,
    live: usize,
    prompt: std::ops::Range<usize>,
    answer: std::ops::Range<usize>,
}

struct Load {
    rng: StdRng,
    scheduler: Scheduler,
    plan: StepPlan,
    /// Tenant and most tokens, by sequence.
    known: Vec<Option<(u8, usize)>>,
    live: [usize; 256],
    /// Tokens that were computed for the first time, by tenant.
    given: [usize; 256],
    finished: [usize; 256],
}

impl Load {
    fn new(blocks: usize, budget: usize, running: usize) -> Self {
        Self {
            rng: StdRng::seed_from_u64(1),
            scheduler: Scheduler::new(KvPool::new(blocks, BLOCK), budget, running, LIVE_MAX),
            plan: StepPlan::with_capacity(running),
            known: vec![None; LIVE_MAX],
            live: [0; 256],
            given: [0; 256],
            finished: [0; 256],
        }
    }

    fn add(&mut self, tenant: u8, priority: i32, prompt: usize, answer: usize) -> SequenceId {
        // Prompts of their own: what is found in the cache is not given.
        let prompt: Vec<u32> = (0..prompt).map(|_| self.rng.random()).collect();
        let tokens_max = prompt.len() + answer;
        let table = BlockTable::new(ChainHash::root(&[tenant; 32]), tokens_max.div_ceil(BLOCK));
        let new =
            NewSequence { tokens: prompt, table, tenant: [tenant; 32], priority, parked: false, scores_prompt: false };
        let id = self.scheduler.add(new).expect("there is room");
        self.known[id.index()] = Some((tenant, tokens_max));
        self.live[tenant as usize] += 1;
        id
    }

    fn keep(&mut self, demands: &[Demand]) {
        for Demand { tenant, live, prompt, answer } in demands {
            while self.live[*tenant as usize] < *live {
                let (prompt, answer) = (self.rng.random_range(prompt.clone()), self.rng.random_range(answer.clone()));
                self.add(*tenant, 0, prompt, answer);
            }
        }
    }

    fn step(&mut self) {
        self.scheduler.plan(&mut self.plan);
        self.scheduler.computed(&self.plan);
        for planned in &self.plan.rows {
            let id = planned.sequence;
            let (tenant, tokens_max) = self.known[id.index()].expect("it is live");
            if !planned.samples {
                continue;
            }
            self.scheduler.push_token(id, 7);
            self.given[tenant as usize] += 1;
            if self.scheduler.sequence(id).tokens.len() >= tokens_max {
                self.given[tenant as usize] += self.scheduler.sequence(id).prompt_tokens;
                self.scheduler.remove(id);
                self.known[id.index()] = None;
                self.live[tenant as usize] -= 1;
                self.finished[tenant as usize] += 1;
            }
        }
    }

    /// Runs, and returns what each tenant was given meanwhile.
    fn run(&mut self, demands: &[Demand], steps: usize) -> Vec<f64> {
        let before = self.given;
        for _ in 0..steps {
            self.keep(demands);
            self.step();
        }
        self.scheduler.check();
        demands.iter().map(|demand| demand.tenant as usize).map(|t| (self.given[t] - before[t]) as f64).collect()
    }
}

fn assert_equal(given: &[f64]) {
    let mean = given.iter().sum::<f64>() / given.len() as f64;
    println!("{given:?}");
    assert!(given.iter().all(|given| (given / mean - 1.0).abs() < 0.1), "shares within 10 %: {given:?}");
}

#[test]
fn tenants_with_unequal_request_rates_have_equal_shares() {
    let mut load = Load::new(400, 32, 8);
    let demand = |tenant, live| Demand { tenant, live, prompt: 1..60, answer: 1..60 };
    let demands = [demand(1, 12), demand(2, 25), demand(3, 50), demand(4, 300)];
    let given = load.run(&demands, 20_000);
    assert_equal(&given);
}

#[test]
fn a_flood_of_long_answers_leaves_others_their_share() {
    let mut load = Load::new(8_000, 32, 8);
    let flood = Demand { tenant: 1, live: 40, prompt: 20..40, answer: 1_500..2_500 };
    load.run(std::slice::from_ref(&flood), 500);
    let short = Demand { tenant: 2, live: 12, prompt: 1..30, answer: 1..30 };
    let given = load.run(&[flood, short], 20_000);
    assert_equal(&given);
    assert!(load.finished[1] > 10, "what is preempted for others comes to its end: {}", load.finished[1]);
}

#[test]
fn a_flood_of_long_prompts_leaves_others_their_share() {
    let mut load = Load::new(8_000, 32, 8);
    let flood = Demand { tenant: 1, live: 40, prompt: 1_500..2_500, answer: 1..30 };
    load.run(std::slice::from_ref(&flood), 500);
    let short = Demand { tenant: 2, live: 24, prompt: 1..60, answer: 1..30 };
    let given = load.run(&[flood, short], 40_000);
    assert_equal(&given);
}

#[test]
fn short_of_blocks_shares_are_equal_too() {
    let mut load = Load::new(120, 32, 16);
    let demand = |tenant, live| Demand { tenant, live, prompt: 1..60, answer: 1..100 };
    let given = load.run(&[demand(1, 20), demand(2, 60), demand(3, 200)], 30_000);
    assert_equal(&given);
}

/// A tenant that is never seen with two requests at once, and so comes anew with each, beside one that always waits.
#[test]
fn coming_back_pays_no_debt() {
    let mut load = Load::new(400, 16, 1);
    let often = Demand { tenant: 1, live: 1, prompt: 40..41, answer: 40..41 };
    let always = Demand { tenant: 2, live: 5, prompt: 4..5, answer: 4..5 };
    let given = load.run(&[often, always], 20_000);
    assert_equal(&given);
}

/// Newcomers begin where those that wait are: an endless row of them does not keep one waiting who is ahead.
#[test]
fn an_endless_row_of_newcomers_starves_nobody() {
    let mut load = Load::new(400, 16, 1);
    load.add(0, 0, 10, 50);
    load.step();
    let (mut newcomer, mut waited) = (0, 0);
    while load.finished[0] < 2 {
        // Two are always there, of tenants that were not seen for long.
        while load.live[1..].iter().sum::<usize>() < 2 {
            newcomer = newcomer % 250 + 1;
            load.add(newcomer, 0, 5, 5);
        }
        load.step();
        if load.live[0] == 0 && load.finished[0] == 1 {
            load.add(0, 0, 10, 20);
            waited = 0;
        }
        waited += 1;
        assert!(waited < 500, "it waits for ever");
    }
    assert!(waited > 50, "it was ahead, so others went before: {waited}");
}

#[test]
fn a_higher_priority_takes_a_running_place_and_a_lower_one_has_what_is_left() {
    let mut load = Load::new(400, 16, 2);
    let low = [load.add(1, -1, 8, 40), load.add(2, -1, 8, 40)];
    (0..3).for_each(|_| load.step());
    let high = load.add(3, 1, 8, 10);
    load.step();
    assert_eq!((&load.plan.preempted[..], &load.plan.started[..]), (&low[1..], &[high][..]));
    (0..60).for_each(|_| load.step());
    assert_eq!(load.finished[1..4], [1, 1, 1], "it came back, and to its end");
    load.scheduler.check();
}

/// Two sequences that do not fit together, of tenants that are each ahead in turn: both come to their end, since each gives
/// way only after it has doubled.
#[test]
fn taking_turns_is_no_livelock() {
    let mut load = Load::new(60, 8, 4);
    load.add(1, 0, 100, 100);
    load.add(2, 0, 100, 100);
    let mut preempted = 0;
    for _ in 0..1_000 {
        load.step();
        preempted += load.plan.preempted.len();
    }
    assert_eq!(load.finished[1..3], [1, 1]);
    assert!(preempted < 10, "{preempted}");
}
