//! Random grants, fees and times against an obvious model: whole numbers in a map, nothing indexed, everything looked at in
//! every block.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{
    AllowedMsgAllowance, BasicAllowance, MsgGrantAllowance, MsgPruneAllowances, MsgRevokeAllowance, PeriodicAllowance,
};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::cosmos::{Any, Timestamp};
use polylink_protocol::tx::any;
use polylink_protocol::{Address, Amount, DENOM};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::feegrant::{ALLOWANCE, BY_GRANTER, EXPIRY, MODULE, pay};
use crate::modules::Handle;
use crate::store::{MemoryState, Overlay, StateRead, StateWrite};
use crate::tests::drawn;

const ACCOUNTS: u8 = 4;
const MESSAGES: [&str; 3] = ["/a.A", "/b.B", "/c.C"];

fn account(n: u8) -> Address {
    Address([n; 20])
}

/// A grant as the model has it. Times are seconds since the start.
#[derive(Clone, Debug)]
struct Grant {
    /// What is left in all.
    total: Option<u64>,
    until: Option<u64>,
    period: Option<Period>,
    /// Messages it is for, by their place in [`MESSAGES`].
    only: Option<Vec<usize>>,
}

#[derive(Clone, Debug)]
struct Period {
    seconds: u64,
    limit: u64,
    left: u64,
    /// When the next one begins.
    next: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Grant { from: u8, to: u8, grant: Grant },
    Revoke { from: u8, to: u8 },
    Pay { from: u8, to: u8, fee: u64, messages: Vec<usize> },
    Prune,
    Seconds(u64),
}

fn grant() -> impl Strategy<Value = Grant> {
    let limit = || prop_oneof![1..50_u64, 1..2_000_u64];
    let period = (1..20_u64, limit()).prop_map(|(seconds, limit)| Period { seconds, limit, left: 0, next: 0 });
    let only = proptest::collection::btree_set(0..MESSAGES.len(), 1..3).prop_map(|set| set.into_iter().collect());
    (
        proptest::option::of(limit()),
        proptest::option::of(1..60_u64),
        proptest::option::of(period),
        proptest::option::weighted(0.3, only),
    )
        .prop_map(|(total, until, period, only)| Grant { total, until, period, only })
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 1..=ACCOUNTS;
    let messages = proptest::collection::vec(0..MESSAGES.len(), 1..3);
    let fee = prop_oneof![1 => Just(0_u64), 6 => 1..60_u64, 2 => 1..2_500_u64];
    prop_oneof![
        4 => (who(), who(), grant()).prop_map(|(from, to, grant)| Step::Grant { from, to, grant }),
        1 => (who(), who()).prop_map(|(from, to)| Step::Revoke { from, to }),
        9 => (who(), who(), fee, messages)
            .prop_map(|(from, to, fee, messages)| Step::Pay { from, to, fee, messages }),
        1 => Just(Step::Prune),
        4 => (1..12_u64).prop_map(Step::Seconds),
    ]
}

const START: i64 = 1_700_000_000;

fn coins(amount: u64) -> Vec<Coin> {
    vec![Coin { denom: DENOM.into(), amount: amount.to_string() }]
}

/// The grant as a message has it, made at a time.
fn to_any(grant: &Grant, now: u64) -> Any {
    let basic = BasicAllowance {
        spend_limit: grant.total.map(coins).unwrap_or_default(),
        expiration: grant.until.map(|at| Timestamp { seconds: START.saturating_add_unsigned(now + at), nanos: 0 }),
    };
    let inner = match &grant.period {
        None => any(&basic),
        Some(period) => any(&PeriodicAllowance {
            basic: Some(basic),
            period: Some(Duration { seconds: period.seconds as i64, nanos: 0 }),
            period_spend_limit: coins(period.limit),
            period_can_spend: vec![],
            period_reset: Some(Timestamp { seconds: START.saturating_add_unsigned(now), nanos: 0 }),
        }),
    };
    match &grant.only {
        None => inner,
        Some(only) => any(&AllowedMsgAllowance {
            allowance: Some(inner),
            allowed_messages: only.iter().map(|at| MESSAGES[*at].to_owned()).collect(),
        }),
    }
}

impl Grant {
    /// Takes a fee, or says with which code it cannot.
    fn pay(&mut self, fee: u64, messages: &[usize], now: u64) -> Result<(), u32> {
        if let Some(only) = &self.only
            && messages.iter().any(|message| !only.contains(message))
        {
            return Err(if self.until.is_some_and(|at| now > at) { 3 } else { 7 });
        }
        if self.until.is_some_and(|at| now > at) {
            return Err(3);
        }
        if let Some(period) = &mut self.period {
            if now >= period.next {
                // What is left in all bounds a period too. A period that nobody used is not made up for.
                period.left = self.total.map_or(period.limit, |total| total.min(period.limit));
                period.next += period.seconds;
                if now > period.next {
                    period.next = now + period.seconds;
                }
            }
            period.left = period.left.checked_sub(fee).ok_or(2_u32)?;
        }
        if let Some(total) = &mut self.total {
            *total = total.checked_sub(fee).ok_or(2_u32)?;
        }
        Ok(())
    }
}

struct Run {
    state: MemoryState,
    now: u64,
    grants: BTreeMap<(u8, u8), Grant>,
    seen: BTreeMap<String, usize>,
}

impl Run {
    fn ctx(&self) -> Context {
        let time = BlockTime { seconds: START.saturating_add_unsigned(self.now), nanos: 0 };
        Context::new("polylink-model-4", self.now, time, 1_000)
    }

    /// In a layer of its own, kept on success.
    fn attempt(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Context, &mut dyn StateWrite) -> Result<(), TxError>,
        expect: Result<(), (&'static str, u32)>,
    ) -> Result<bool, TestCaseError> {
        let mut layer = Overlay::new(&self.state);
        let result = work(&mut self.ctx(), &mut layer);
        let found = result.as_ref().copied().map_err(TxError::code);
        prop_assert_eq!(found, expect, "{} at {}: {:?}; {:?}", what, self.now, result, self.grants);
        let kind = if let Err((_, code)) = found { format!("{what} {code}") } else { what.to_owned() };
        *self.seen.entry(kind).or_default() += 1;
        let changes = layer.into_changes();
        if found.is_ok() {
            self.state.apply(&changes);
        }
        Ok(found.is_ok())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step.clone() {
            Step::Grant { from, to, grant } => {
                let allowance = Some(to_any(&grant, self.now));
                let (granter, grantee) = (account(from).account(), account(to).account());
                let message = MsgGrantAllowance { granter, grantee, allowance };
                let expect = match self.grants.contains_key(&(from, to)) {
                    _ if from == to => Err(("sdk", 7)),
                    true => Err(("sdk", 18)),
                    false => Ok(()),
                };
                let work = |ctx: &mut Context, state: &mut dyn StateWrite| {
                    message.check().and_then(|()| message.execute(ctx, state)).map(|_| ())
                };
                if self.attempt("grant", work, expect)? {
                    let until = grant.until.map(|at| self.now + at);
                    let period = grant.period.map(|period| Period { next: self.now, ..period });
                    self.grants.insert((from, to), Grant { until, period, ..grant });
                }
            }
            Step::Revoke { from, to } => {
                let message = MsgRevokeAllowance { granter: account(from).account(), grantee: account(to).account() };
                let expect = match self.grants.contains_key(&(from, to)) {
                    _ if from == to => Err(("sdk", 7)),
                    true => Ok(()),
                    false => Err(("feegrant", 5)),
                };
                let work = |ctx: &mut Context, state: &mut dyn StateWrite| {
                    message.check().and_then(|()| message.execute(ctx, state)).map(|_| ())
                };
                if self.attempt("revoke", work, expect)? {
                    self.grants.remove(&(from, to));
                }
            }
            Step::Pay { from, to, fee, messages } => {
                let mut after = self.grants.get(&(from, to)).cloned();
                let expect = match &mut after {
                    None => Err(5),
                    Some(grant) => grant.pay(fee, &messages, self.now),
                };
                let urls: Vec<&str> = messages.iter().map(|at| MESSAGES[*at]).collect();
                let work = |ctx: &mut Context, state: &mut dyn StateWrite| {
                    pay(ctx, state, &account(from), &account(to), Amount(fee.into()), &urls)
                };
                if self.attempt("pay", work, expect.map_err(|code| ("feegrant", code)))? {
                    match after {
                        Some(grant) if grant.total != Some(0) => drop(self.grants.insert((from, to), grant)),
                        _ => drop(self.grants.remove(&(from, to))),
                    }
                }
            }
            Step::Prune => {
                let message = MsgPruneAllowances { pruner: account(1).account() };
                let work = |ctx: &mut Context, state: &mut dyn StateWrite| message.execute(ctx, state).map(|_| ());
                self.attempt("prune", work, Ok(()))?;
                self.forget();
            }
            Step::Seconds(seconds) => {
                for _ in 0..seconds {
                    (MODULE.end_block)(&mut self.ctx(), &mut self.state).unwrap();
                    self.forget();
                    self.now += 1;
                }
            }
        }
        self.compare()
    }

    fn forget(&mut self) {
        let now = self.now;
        self.grants.retain(|_, grant| grant.until.is_none_or(|until| until >= now));
    }

    /// What is there is what should be, in all three tables.
    fn compare(&self) -> Result<(), TestCaseError> {
        let found = |prefix: u8| self.state.iter_prefix(&[prefix]).count();
        prop_assert_eq!((found(ALLOWANCE), found(BY_GRANTER)), (self.grants.len(), self.grants.len()));
        prop_assert_eq!(found(EXPIRY), self.grants.values().filter(|grant| grant.until.is_some()).count());
        for ((from, to), grant) in &self.grants {
            let held = super::super::allowance(&self.state, &account(*from), &account(*to));
            let held = held.ok_or_else(|| TestCaseError::fail(format!("no grant {from} → {to}")))?;
            let until = grant.until.map(|at| START.saturating_add_unsigned(at));
            prop_assert_eq!(held.expires().map(|at| at.seconds), until);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps do what the model does.
    #[test]
    fn grants_agree_with_the_model(steps in sequences()) {
        println!("{:?}", run(&steps)?.seen);
    }
}

fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

/// A sequence, each step beside the model's.
fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let (state, grants, seen) = (MemoryState::default(), BTreeMap::new(), BTreeMap::new());
    let mut run = Run { state, now: 0, grants, seen };
    for step in steps {
        run.apply(step)?;
    }
    Ok(run)
}

#[test]
fn sequences_do_some_of_everything() {
    let kinds = ["grant", "pay", "pay 2", "pay 5", "pay 7", "revoke", "prune"];
    drawn::all_of(&kinds, 6, sequences(), |steps| run(steps).map(|run| run.seen));
}
