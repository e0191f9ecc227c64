//! Random sends, multi-sends, rules, mints and burns against an obvious model: whole numbers in a map, every rule asked in the
//! order that the SDK asks it, and what has vested added up by the second ([`model`]).

mod model;

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    Input, MsgMultiSend, MsgSend, MsgSetSendEnabled, MsgUpdateParams, Output, Params, QueryAllBalancesRequest,
    QueryBalanceRequest, QueryDenomOwnersRequest, QuerySendEnabledRequest, QuerySpendableBalanceByDenomRequest,
    QuerySpendableBalancesRequest, QuerySupplyOfRequest, QueryTotalSupplyRequest, SendEnabled,
};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::MsgCreateVestingAccount;
use polylink_protocol::{Address, Amount, DENOM};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::auth;
use crate::bank::{self, Pool, set_balance, set_supply};
use crate::chain::set_last_time;
use crate::context::{BlockTime, Context, Event};
use crate::error::TxError;
use crate::gov::authority;
use crate::modules::{Answer, Handle, QueryContext};
use crate::store::{MemoryState, Overlay, StateRead, StateWrite};
use crate::tests::drawn;
use model::*;

/// Accounts that hold something from the start.
const FUNDED: u8 = 4;
/// Two accounts that vest, then two that come into being when they receive.
const ALL: u8 = 8;
/// Beyond the accounts: modules', to whom nobody sends.
const POOLS: [Pool; 2] = [Pool::Mint, Pool::BondedTokens];
/// Where coins are minted and burned.
const MINT: u8 = ALL + 1;
/// In the order of the alphabet.
const DENOMS: [&str; 3] = ["uaaa", DENOM, "uzzz"];
const FUNDS: u128 = 1_000_000;
const START: i64 = 1_700_000_000;

fn address(n: u8) -> Address {
    match n.checked_sub(ALL + 1) {
        Some(pool) => POOLS[usize::from(pool)].address(),
        None => Address([n; 20]),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        from: u8,
        to: u8,
        coins: Said,
    },
    /// As much of a coin as there is to spend, and more by this.
    All {
        from: u8,
        to: u8,
        denom: usize,
        more: u128,
    },
    /// To several; the input is the sum of the outputs, or more by this.
    Multi {
        inputs: usize,
        from: u8,
        outputs: Vec<(u8, Said)>,
        more: u128,
    },
    /// What governance says of single coins, and of which it says no more.
    Enabled {
        said: Vec<(usize, bool)>,
        forgotten: Vec<usize>,
    },
    Default {
        enabled: bool,
        said: Vec<(usize, bool)>,
    },
    Mint(u128),
    Burn(u128),
    Seconds(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let from = || 1..=ALL;
    let to = || prop_oneof![12 => 1..=ALL, 1 => ALL + 1..=ALL + POOLS.len() as u8];
    let amount = || prop_oneof![1 => Just(0_u128), 6 => 1..100_u128, 6 => 1..FUNDS / 4, 1 => Just(u128::MAX)];
    // Mostly one coin; of several some are sorted and each once.
    let coins = || {
        prop_oneof![
            8 => (0..DENOMS.len(), amount()).prop_map(|coin| vec![coin]),
            2 => (1..1_000_u128, 1..1_000_u128).prop_map(|(one, two)| vec![(0, one), (1, two)]),
            2 => proptest::collection::vec((0..DENOMS.len(), amount()), 0..4),
        ]
    };
    let said = || proptest::collection::vec((0..DENOMS.len(), any::<bool>()), 0..3);
    let outputs = proptest::collection::vec((to(), coins()), 0..4);
    prop_oneof![
        14 => (from(), to(), coins()).prop_map(|(from, to, coins)| Step::Send { from, to, coins }),
        5 => (from(), to(), 0..DENOMS.len(), 0..2_u128)
            .prop_map(|(from, to, denom, more)| Step::All { from, to, denom, more }),
        8 => (prop_oneof![14 => Just(1_usize), 1 => Just(0), 1 => Just(2)], from(), outputs,
            prop_oneof![9 => Just(0_u128), 1 => 1..5_u128])
            .prop_map(|(inputs, from, outputs, more)| Step::Multi { inputs, from, outputs, more }),
        1 => (said(), proptest::collection::vec(0..DENOMS.len(), 0..3))
            .prop_map(|(said, forgotten)| Step::Enabled { said, forgotten }),
        1 => (prop::bool::weighted(0.7), said()).prop_map(|(enabled, said)| Step::Default { enabled, said }),
        2 => amount().prop_map(Step::Mint),
        2 => amount().prop_map(Step::Burn),
        5 => (1..4_u64).prop_map(Step::Seconds),
    ]
}

struct Run {
    state: MemoryState,
    ctx: Context,
    model: Model,
    seen: BTreeMap<String, usize>,
}

fn coins(said: &Said) -> Vec<Coin> {
    said.iter().map(|(denom, amount)| Coin { denom: DENOMS[*denom].into(), amount: amount.to_string() }).collect()
}

fn time(second: u64) -> BlockTime {
    BlockTime { seconds: START.saturating_add_unsigned(second), nanos: 0 }
}

impl Run {
    fn new() -> Self {
        let mut state = MemoryState::default();
        POOLS.iter().for_each(|pool| auth::ensure_account(&mut state, &pool.address()));
        let mut held = BTreeMap::new();
        for n in 1..=FUNDED {
            auth::ensure_account(&mut state, &address(n));
            for (at, denom) in DENOMS.iter().enumerate() {
                set_balance(&mut state, &address(n), denom, Amount(FUNDS));
                held.insert((n, at), FUNDS);
            }
        }
        DENOMS.iter().for_each(|denom| set_supply(&mut state, denom, Amount(FUNDS * u128::from(FUNDED))));
        let supply = (0..DENOMS.len()).map(|denom| (denom, FUNDS * u128::from(FUNDED))).collect();
        let rules = Rules { default: true, single: BTreeMap::new() };
        let model = Model { held, supply, people: (1..=FUNDED).collect(), said: rules.clone(), rules, now: 0 };
        let ctx = Context::new("c-1", 1, time(0), 1_000).under_rules_of(&state);
        let mut run = Run { state, ctx, model, seen: BTreeMap::new() };
        for (n, schedule) in SCHEDULES {
            let amount = u128::from(schedule.seconds) * schedule.each;
            let message = MsgCreateVestingAccount {
                from_address: address(1).account(),
                to_address: address(n).account(),
                amount: coins(&vec![(1, amount)]),
                end_time: time(schedule.seconds).seconds,
                delayed: schedule.delayed,
            };
            message.execute(&mut run.ctx, &mut run.state).unwrap();
            run.model.take(1, &vec![(1, amount)]).unwrap();
            run.model.give(n, &vec![(1, amount)]);
        }
        run.seconds(0);
        run
    }

    /// In a layer of its own, kept on success; then events and balances tell the same.
    fn attempt(
        &mut self,
        what: &str,
        expected: Result<(), Refusal>,
        work: impl FnOnce(&mut Context, &mut dyn StateWrite) -> Result<(), TxError>,
    ) -> Result<(), TestCaseError> {
        let (mut layer, mut ctx) = (Overlay::new(&self.state as &dyn StateRead), self.ctx.clone());
        ctx.events.clear();
        let result = work(&mut ctx, &mut layer);
        let found = result.as_ref().copied().map_err(TxError::code);
        prop_assert_eq!(found, expected, "{} at {}: {:?}", what, self.model.now, result);
        let kind = found.err().map_or(what.to_owned(), |(space, code)| format!("{what} {space} {code}"));
        *self.seen.entry(kind).or_default() += 1;
        if found.is_ok() {
            let changes = layer.into_changes();
            bank::check_conservation(&self.state, &changes)
                .map_err(|breach| TestCaseError::fail(breach.to_string()))?;
            let before = self.state.clone();
            self.state.apply(&changes);
            self.moved_as_said(&before, &ctx.events)?;
        }
        self.compare()
    }

    /// What an account has more of is what events say it received, less what it spent.
    fn moved_as_said(&self, before: &MemoryState, events: &[Event]) -> Result<(), TestCaseError> {
        let told = |kind: &str, key: &str, who: &str, denom: &str| -> u128 {
            let of = |event: &&Event| event.kind == kind && event.attributes[0] == (key_of(key), who.to_owned());
            let amounts = events.iter().filter(of).map(|event| event.attributes[1].1.clone());
            let parts: Vec<String> =
                amounts.flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
            parts.iter().filter_map(|part| part.strip_suffix(denom)?.parse::<u128>().ok()).sum()
        };
        for n in 1..=MINT {
            let who = address(n).account();
            for denom in DENOMS {
                let came = told("coin_received", "receiver", &who, denom);
                let went = told("coin_spent", "spender", &who, denom);
                let [old, new] = [before, &self.state].map(|state| bank::balance_of(state, &address(n), denom).0);
                prop_assert_eq!(old + came, new + went, "{} {} of {:?}", n, denom, events);
            }
        }
        Ok(())
    }

    fn message<M: Handle>(&mut self, message: &M, expected: Result<(), Refusal>) -> Result<(), TestCaseError> {
        self.attempt(M::NAME, expected, |ctx, state| {
            message.signer().and_then(|_| message.check()).and_then(|()| message.execute(ctx, state)).map(|_| ())
        })
    }

    fn send(&mut self, from: u8, to: u8, said: &Said) -> Result<(), TestCaseError> {
        let expected = self.model.send(from, to, said);
        let (from_address, to_address) = (address(from).account(), address(to).account());
        self.message(&MsgSend { from_address, to_address, amount: coins(said) }, expected)
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let entry = |(denom, enabled): &(usize, bool)| SendEnabled { denom: DENOMS[*denom].into(), enabled: *enabled };
        let authority = authority().account();
        match step {
            Step::Send { from, to, coins } => self.send(*from, *to, coins),
            Step::All { from, to, denom, more } => {
                let amount = self.model.spendable(*from, *denom) + more;
                self.send(*from, *to, &vec![(*denom, amount)])
            }
            Step::Multi { inputs, from, outputs, more } => {
                let lists: Vec<&Said> = outputs.iter().map(|(_, coins)| coins).collect();
                let mut sum: Said = total(&lists).unwrap_or_default().into_iter().collect();
                sum.iter_mut().take(1).for_each(|(_, amount)| *amount = amount.saturating_add(*more));
                let given = vec![sum; *inputs];
                let expected = self.model.multi(&given, *from, outputs);
                let input = |said: &Said| Input { address: address(*from).account(), coins: coins(said) };
                let output = |(to, said): &(u8, Said)| Output { address: address(*to).account(), coins: coins(said) };
                let message = MsgMultiSend {
                    inputs: given.iter().map(input).collect(),
                    outputs: outputs.iter().map(output).collect(),
                };
                self.message(&message, expected)
            }
            Step::Enabled { said, forgotten } => {
                let twice = |list: &[usize]| (1..list.len()).any(|at| list[..at].contains(&list[at]));
                let named: Vec<usize> = said.iter().map(|(denom, _)| *denom).collect();
                let bad = twice(&named) || twice(forgotten);
                if !bad {
                    self.model.said.single.retain(|denom, _| !forgotten.contains(denom));
                    self.model.said.single.extend(said.iter().copied());
                }
                let message = MsgSetSendEnabled {
                    authority,
                    send_enabled: said.iter().map(entry).collect(),
                    use_default_for: forgotten.iter().map(|denom| DENOMS[*denom].into()).collect(),
                };
                self.message(&message, if bad { Err(("sdk", 18)) } else { Ok(()) })
            }
            Step::Default { enabled, said } => {
                let bad = said.len() == 2 && said[0].0 == said[1].0;
                if !bad {
                    self.model.said.default = *enabled;
                    self.model.said.single.extend(said.iter().copied());
                }
                #[allow(deprecated, reason = "so the SDK takes what is said of single coins")]
                let params = Params { send_enabled: said.iter().map(entry).collect(), default_send_enabled: *enabled };
                let message = MsgUpdateParams { authority, params: Some(params) };
                self.message(&message, if bad { Err(("sdk", 18)) } else { Ok(()) })
            }
            Step::Mint(amount) => {
                let supply = self.model.supply.get_mut(&1).unwrap();
                let after = supply.checked_add(*amount);
                let expected = after.map(|_| ()).ok_or(("sdk", 10));
                if let Some(after) = after {
                    *supply = after;
                    *self.model.held.entry((MINT, 1)).or_default() += amount;
                }
                self.attempt("mint", expected, |ctx, state| bank::mint(ctx, state, Pool::Mint, Amount(*amount)))
            }
            Step::Burn(amount) => {
                let held = self.model.held.entry((MINT, 1)).or_default();
                let expected = if *held < *amount { Err(("sdk", 5)) } else { Ok(()) };
                if expected.is_ok() {
                    *held -= amount;
                    *self.model.supply.get_mut(&1).unwrap() -= amount;
                }
                self.attempt("burn", expected, |ctx, state| bank::burn(ctx, state, Pool::Mint, Amount(*amount)))
            }
            Step::Seconds(seconds) => {
                self.seconds(*seconds);
                self.compare()
            }
        }
    }

    /// The next block, so much later; what governance has said holds from now on.
    fn seconds(&mut self, seconds: u64) {
        self.model.now += seconds;
        self.model.rules = self.model.said.clone();
        let now = time(self.model.now);
        set_last_time(&mut self.state, now);
        self.ctx = Context::new("c-1", self.ctx.height + 1, now, 1_000).under_rules_of(&self.state);
    }

    fn ask<Q: Answer>(&self, query: &Q) -> Q::Response {
        let ctx = QueryContext { chain_id: "c-1".into(), height: self.ctx.height, epoch: 0, epoch_blocks: 1_000 };
        query.answer(&ctx, &self.state).unwrap()
    }

    /// Every query says what the model holds.
    fn compare(&self) -> Result<(), TestCaseError> {
        let model = &self.model;
        bank::scan(&self.state).map_err(|breach| TestCaseError::fail(breach.to_string()))?;
        let list = |of: &dyn Fn(usize) -> u128| -> Vec<Coin> {
            coins(&(0..DENOMS.len()).map(|denom| (denom, of(denom))).filter(|(_, amount)| *amount > 0).collect())
        };
        for n in 1..=MINT {
            let text = address(n).account();
            let all = self.ask(&QueryAllBalancesRequest { address: text.clone(), ..Default::default() });
            prop_assert_eq!(all.balances, list(&|denom| model.held(n, denom)), "account {}", n);
            let spendable = self.ask(&QuerySpendableBalancesRequest { address: text.clone(), pagination: None });
            prop_assert_eq!(spendable.balances, list(&|denom| model.spendable(n, denom)), "{} at {}", n, model.now);
            for (at, denom) in DENOMS.iter().enumerate() {
                let (address, denom) = (text.clone(), (*denom).to_owned());
                let held = self.ask(&QueryBalanceRequest { address: address.clone(), denom: denom.clone() });
                prop_assert_eq!(held.balance.unwrap().amount, model.held(n, at).to_string());
                let spendable = self.ask(&QuerySpendableBalanceByDenomRequest { address, denom });
                prop_assert_eq!(spendable.balance.unwrap().amount, model.spendable(n, at).to_string());
            }
            let number = model.people.iter().position(|found| *found == n).map(|at| (POOLS.len() + at) as u64);
            if n <= ALL {
                let account = auth::account(&self.state, &address(n));
                prop_assert_eq!(account.map(|account| account.number), number, "number of {}", n);
            }
        }
        let supply = self.ask(&QueryTotalSupplyRequest::default()).supply;
        prop_assert_eq!(supply, list(&|denom| model.supply[&denom]));
        for (at, denom) in DENOMS.iter().enumerate() {
            let denom = (*denom).to_owned();
            let of = self.ask(&QuerySupplyOfRequest { denom: denom.clone() });
            prop_assert_eq!(of.amount.unwrap().amount, model.supply[&at].to_string());
            let owners = self.ask(&QueryDenomOwnersRequest { denom, pagination: None }).denom_owners;
            let holders = model.held.iter().filter(|((_, denom), held)| *denom == at && **held > 0).count();
            prop_assert_eq!(owners.len(), holders);
        }
        let said = self.ask(&QuerySendEnabledRequest::default()).send_enabled;
        let found: Vec<(&str, bool)> = said.iter().map(|entry| (entry.denom.as_str(), entry.enabled)).collect();
        let expected: Vec<(&str, bool)> = model.said.single.iter().map(|(at, on)| (DENOMS[*at], *on)).collect();
        prop_assert_eq!(found, expected);
        Ok(())
    }
}

/// An attribute's key as events have it.
fn key_of(key: &str) -> &'static str {
    if key == "receiver" { "receiver" } else { "spender" }
}

fn sequences() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 500)
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    steps.iter().try_for_each(|step| run.apply(step))?;
    Ok(run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps move what the model moves, and refuse with its codes.
    #[test]
    fn money_agrees_with_the_model(steps in sequences()) {
        println!("{:?}", run(&steps)?.seen);
    }
}

#[test]
fn sequences_do_some_of_everything() {
    let send = ["MsgSend", "MsgSend sdk 4", "MsgSend sdk 5", "MsgSend sdk 10", "MsgSend bank 5"];
    let multi =
        ["MsgMultiSend", "MsgMultiSend sdk 4", "MsgMultiSend sdk 5", "MsgMultiSend bank 2", "MsgMultiSend bank 3"];
    let rest = ["MsgMultiSend bank 4", "MsgMultiSend bank 9", "MsgSetSendEnabled", "MsgUpdateParams", "mint", "burn"];
    drawn::all_of(&[&send[..], &multi, &rest].concat(), 4, sequences(), |steps| run(steps).map(|run| run.seen));
}
