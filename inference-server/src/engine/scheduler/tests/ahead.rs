//! Steps planned while the one before is computed: only where an ordinary plan would be the same.

use super::*;

const GOES_ON: fn(SequenceId, usize) -> After = |_, _| After::GoesOn;

/// A step under way, and what is planned after it.
struct Ahead {
    scheduler: Scheduler,
    plan: StepPlan,
    next: StepPlan,
}

impl Ahead {
    fn new(mut scheduler: Scheduler) -> Self {
        let mut plan = StepPlan::with_capacity(64);
        scheduler.plan(&mut plan);
        Self { scheduler, plan, next: StepPlan::with_capacity(64) }
    }

    /// Whether the step after the one under way can be planned now.
    fn plans(&mut self, after: impl Fn(SequenceId, usize) -> After) -> bool {
        self.scheduler.plan_ahead(&self.plan, after, &mut self.next)
    }

    /// Ends the step under way, and goes on with the one after it, planned now if it was not before.
    fn go_on(&mut self, planned: bool) {
        self.scheduler.computed(&self.plan);
        for index in 0..self.plan.rows.len() {
            let planned = self.plan.rows[index];
            if self.scheduler.is_live(&planned) && planned.samples {
                self.scheduler.push_token(planned.sequence, 7);
            }
        }
        if planned {
            std::mem::swap(&mut self.plan, &mut self.next);
        } else {
            self.scheduler.plan(&mut self.plan);
        }
        self.scheduler.check();
    }
}

#[test]
fn those_that_draw_go_one_position_further() {
    let mut scheduler = scheduler(64, 16, 4);
    let [a, b, c] = [0, 100, 200].map(|first| add(&mut scheduler, first..first + 3, 1, 0));
    let mut ahead = Ahead::new(scheduler);
    let after = |id: SequenceId, tokens: usize| {
        assert_eq!(tokens, 4, "the one that is drawn included");
        if id == b { After::Ends } else { After::GoesOn }
    };
    assert!(ahead.plans(after));
    assert_eq!(rows(&ahead.next), [(a.0, 3, 1, true), (c.0, 3, 1, true)], "the last token of b needs no row");
    assert!(ahead.next.rows.iter().all(|planned| planned.ahead));
    assert!(!ahead.plans(|id, _| if id == c { After::Depends } else { After::GoesOn }), "all, or none");
    assert!(!ahead.plans(|_, _| After::Ends), "nothing is left to compute");
    assert!(ahead.plans(after));
    ahead.scheduler.remove(c);
    ahead.go_on(true);
    ahead.scheduler.remove(b);
    assert!(ahead.plans(GOES_ON));
    assert_eq!(rows(&ahead.next), [(a.0, 4, 1, true)], "c has gone");
}

#[test]
fn whoever_may_start_does_not_wait_longer() {
    let mut scheduler = scheduler(6, 16, 3);
    let a = add(&mut scheduler, 0..7, 1, 0);
    let mut ahead = Ahead::new(scheduler);
    assert!(ahead.plans(GOES_ON));
    ahead.go_on(true);
    let b = add(&mut ahead.scheduler, 10..17, 2, 0);
    assert!(!ahead.plans(GOES_ON), "there is a place for b");
    ahead.go_on(false);
    assert_eq!(ahead.plan.rows.len(), 2);
    let c = add(&mut ahead.scheduler, 20..40, 3, 0);
    assert!(!ahead.plans(GOES_ON), "there is a place for c");
    ahead.go_on(false);
    assert_eq!(ahead.plan.rows.len(), 2, "but no blocks");
    assert!(ahead.plans(GOES_ON), "and none has come");
    ahead.scheduler.remove(b);
    assert!(!ahead.plans(GOES_ON), "those of b are free");
    ahead.go_on(false);
    assert_eq!(ahead.plan.rows.len(), 1, "they are not enough");
    assert!(ahead.plans(GOES_ON));
    ahead.go_on(true);
    let d = add(&mut ahead.scheduler, 50..52, 3, 1);
    assert!(!ahead.plans(GOES_ON), "d comes before c");
    ahead.go_on(false);
    assert!(ahead.plan.rows.iter().any(|planned| planned.sequence == d));
    ahead.scheduler.remove(a);
    assert!(!ahead.plans(GOES_ON), "the blocks of a are free");
    ahead.go_on(false);
    assert!(ahead.plan.rows.iter().any(|planned| planned.sequence == c));
}

#[test]
fn whoever_has_had_his_share_gives_way_as_early() {
    let steps = |ahead: bool| {
        let mut scheduler = scheduler(400, 4, 1);
        add(&mut scheduler, 0..4, 1, 0);
        let mut under_way = Ahead::new(scheduler);
        let other = add(&mut under_way.scheduler, 10..14, 2, 0);
        for step in 0..100 {
            if under_way.plan.rows.iter().any(|planned| planned.sequence == other) {
                return step;
            }
            let planned = ahead && under_way.plans(GOES_ON);
            under_way.go_on(planned);
        }
        panic!("it waits for ever");
    };
    let alone = steps(false);
    assert!(alone > LAG_STEPS, "{alone}");
    assert!((alone..=alone + 1).contains(&steps(true)), "a step that is under way is not taken back");
}

#[test]
fn prompts_missing_blocks_and_the_border_are_left_to_an_ordinary_plan() {
    let mut under_way = Ahead::new({
        let mut scheduler = scheduler(64, 8, 4);
        add(&mut scheduler, 0..20, 1, 0);
        scheduler
    });
    assert!(!under_way.plans(GOES_ON), "a prompt is not at its end");
    under_way.go_on(false);
    under_way.go_on(false);
    assert!(under_way.plans(GOES_ON), "now it is");

    let mut scheduler = scheduler(4, 16, 2);
    add(&mut scheduler, 0..7, 1, 0);
    add(&mut scheduler, 10..17, 2, 0);
    let mut under_way = Ahead::new(scheduler);
    assert!(under_way.plans(GOES_ON));
    under_way.go_on(true);
    assert!(!under_way.plans(GOES_ON), "a block is missing");
    under_way.go_on(false);
    assert_eq!(under_way.plan.preempted.len(), 1);

    let mut scheduler = super::scheduler(64, 16, 2).long_beyond(Some(8));
    add(&mut scheduler, 0..7, 1, 0);
    let mut under_way = Ahead::new(scheduler);
    assert!(under_way.plans(GOES_ON));
    under_way.go_on(true);
    assert!(!under_way.plans(GOES_ON), "nine tokens are beyond the border");
    under_way.go_on(false);
    assert!(under_way.plan.rows[0].long);
}
