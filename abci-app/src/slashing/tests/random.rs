//! Slashing and evidence beside an obvious model, in random blocks with absences, double signatures, and changes of the
//! parameters: what each validator missed is a list that is counted from its end, and what a slash takes is what the exact
//! model of stake ([`Book`]) says. Nobody earns anything here.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::cosmos::cosmos::evidence::v1beta1::{Equivocation, QueryAllEvidenceRequest};
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{
    MsgUnjail, MsgUpdateParams, Params, QuerySigningInfosRequest, ValidatorSigningInfo,
};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    BondStatus, MsgBeginRedelegate, MsgDelegate, MsgUndelegate, Redelegation, UnbondingDelegation,
};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::{Address, DENOM, Message};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::bank;
use crate::context::{Commit, Misbehavior};
use crate::modules::{Answer, Handle};
use crate::slashing::evidence::NEVER;
use crate::slashing::{MISSED, set_signing_info, signing_info};
use crate::store::{KeyBuilder, StateRead};
use crate::tests::bed::*;
use crate::tests::book::{Book, Entry, Status};
use crate::tests::number::{Number, ONE, of, places};
use crate::{gov, staking};

/// So long that stake which left is slashed more than once.
const UNBONDING_SECONDS: u64 = 20;

/// What may happen. Parts of stake are in percent.
#[derive(Clone, Debug)]
enum Step {
    Delegate {
        by: u8,
        to: u8,
        amount: u128,
    },
    Undelegate {
        by: u8,
        from: u8,
        percent: u128,
    },
    Redelegate {
        by: u8,
        from: u8,
        to: u8,
        percent: u128,
    },
    Create {
        by: u8,
        amount: u128,
    },
    Unjail {
        by: u8,
    },
    /// Ratios are in basis points.
    Params {
        window: i64,
        signed: u128,
        jail: i64,
        double: u128,
        downtime: u128,
    },
    /// Does not sign from now on; somebody else does again.
    Absent {
        who: Option<u8>,
    },
    DoubleSign {
        who: u8,
        back: u64,
        twice: bool,
    },
    /// By no rule: takes back a tombstone, so that there is more than one of each validator in a run.
    Forgive {
        who: u8,
    },
    Blocks(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (by, operator) = (|| 1..=ACCOUNTS, || OPERATORS);
    let percent = || prop_oneof![1 => Just(100_u128), 4 => 1..100_u128];
    let amount = || prop_oneof![1..100_u128, 1..2_000 * PLK];
    prop_oneof![
        5 => (by(), operator(), amount()).prop_map(|(by, to, amount)| Step::Delegate { by, to, amount }),
        4 => (by(), operator(), percent()).prop_map(|(by, from, percent)| Step::Undelegate { by, from, percent }),
        4 => (by(), operator(), operator(), percent())
            .prop_map(|(by, from, to, percent)| Step::Redelegate { by, from, to, percent }),
        1 => (operator(), amount()).prop_map(|(by, amount)| Step::Create { by, amount }),
        3 => operator().prop_map(|by| Step::Unjail { by }),
        1 => (1..9_i64, 1..=10_000_u128, 1..20_i64, 0..=2_000_u128, 0..=500_u128)
            .prop_map(|(window, signed, jail, double, downtime)| Step::Params { window, signed, jail, double, downtime }),
        3 => prop_oneof![1 => Just(None), 3 => operator().prop_map(Some)].prop_map(|who| Step::Absent { who }),
        // Two of the four, so that the others keep the chain alive.
        3 => (4..=5_u8, 0..8_u64, prop::bool::ANY)
            .prop_map(|(who, back, twice)| Step::DoubleSign { who, back, twice }),
        3 => (4..=5_u8).prop_map(|who| Step::Forgive { who }),
        7 => (1..5_u64).prop_map(Step::Blocks),
    ]
}

/// What is known of a key.
#[derive(Clone, Debug, Default)]
struct Signer {
    /// Since when its signatures count.
    start: u64,
    /// Missed or not, since that was last begun anew.
    missed: Vec<bool>,
    /// When it may leave jail.
    until: i64,
    tombstoned: bool,
}

/// The parameters, ratios in basis points.
struct Rules {
    window: usize,
    signed: u128,
    jail: i64,
    double: u128,
    downtime: u128,
}

fn bps(bps: u128) -> Number {
    places(bps * ONE / 10_000)
}

struct Run {
    bed: Bed,
    book: Book,
    signers: BTreeMap<u8, Signer>,
    rules: Rules,
    /// Proofs that counted: whose, and of which height.
    evidence: BTreeSet<(u8, i64)>,
    /// Stake that each account has put in.
    staked: BTreeMap<u8, u128>,
    seen: BTreeMap<&'static str, usize>,
}

fn operator(consensus_address: &Address) -> u8 {
    OPERATORS.into_iter().find(|n| consensus(*n) == *consensus_address).unwrap()
}

impl Run {
    fn new() -> Self {
        let bed = Bed::with(1, |genesis| {
            genesis.distribution.community_tax_bps = 10_000;
            genesis.staking.unbonding_seconds = UNBONDING_SECONDS;
            genesis.staking.max_entries = 7;
        });
        let mut book = Book::new(PLACES, UNBONDING_SECONDS, 1_700_000_000);
        let mut staked = BTreeMap::new();
        for n in OPERATORS {
            let amount = u128::from(n) * 1_000 * PLK + 1;
            book.create(n, amount, bps(commission_bps(n).into()));
            staked.insert(n, amount);
        }
        let signers = book.choose().into_iter().map(|n| (n, Signer::default())).collect();
        let rules = Rules { window: WINDOW, signed: 5_000, jail: JAIL_SECONDS, double: 500, downtime: 100 };
        let (evidence, seen) = (BTreeSet::new(), BTreeMap::new());
        let mut run = Run { bed, book, signers, rules, evidence, staked, seen };
        run.clock();
        run
    }

    fn clock(&mut self) {
        self.book.height = self.bed.ctx.height;
        self.book.now = self.bed.ctx.time.seconds.unsigned_abs();
    }

    fn block(&mut self) -> Result<(), TestCaseError> {
        self.bed.end();
        for n in self.book.end() {
            self.signers.entry(n).or_default().start = self.book.height;
        }
        self.compare()?;
        let commit = self.bed.commit();
        self.bed.begin();
        self.clock();
        let (slashes, missed) = self.punish(&commit);
        let events = |kind: &str| self.bed.ctx.events.iter().filter(|event| event.kind == kind).count();
        prop_assert_eq!((events("slash"), events("liveness")), (slashes, missed));
        *self.seen.entry("slashes").or_default() += slashes;
        self.compare()
    }

    /// The begin of a block. Returns how many were slashed and how many have missed the last block.
    fn punish(&mut self, commit: &Commit) -> (usize, usize) {
        let (mut slashes, mut absences) = (0, 0);
        let (height, now) = (self.book.height, self.book.now as i64);
        for vote in &commit.votes {
            let n = operator(&vote.validator);
            if self.book.validators.get(&n).is_none_or(|validator| validator.jailed) {
                continue;
            }
            let signer = self.signers.get_mut(&n).unwrap();
            let missed = !vote.signed;
            absences += usize::from(missed);
            signer.missed.push(missed);
            let window = self.rules.window;
            let count = signer.missed.iter().rev().take(window).filter(|missed| **missed).count();
            // The blocks that must be signed, rounded half to even.
            let (must, rest) =
                (self.rules.signed * window as u128 / 10_000, self.rules.signed * window as u128 % 10_000);
            let must = must + u128::from(rest > 5_000 || (rest == 5_000 && must % 2 == 1));
            if height > signer.start + window as u64 && count as u128 > window as u128 - must {
                signer.missed.clear();
                signer.until = now + self.rules.jail;
                self.book.slash(n, height as i64 - 2, vote.power.into(), bps(self.rules.downtime));
                self.book.validators.get_mut(&n).unwrap().jailed = true;
                slashes += 1;
            }
        }
        for found in &commit.misbehavior {
            let n = operator(&found.validator);
            let Some(validator) = self.book.validators.get(&n) else { continue };
            let signer = self.signers.get_mut(&n).unwrap();
            if validator.status == Status::Unbonded || signer.tombstoned {
                continue;
            }
            (signer.tombstoned, signer.until) = (true, NEVER.seconds);
            self.book.slash(n, found.height as i64 - 1, found.power.into(), bps(self.rules.double));
            self.book.validators.get_mut(&n).unwrap().jailed = true;
            self.evidence.insert((n, found.height as i64));
            slashes += 1;
        }
        (slashes, absences)
    }

    /// A message that staking may refuse for reasons of its own.
    fn taken<M: Handle>(&mut self, message: &M) -> bool {
        let taken = self.bed.send(message).is_ok();
        *self.seen.entry(if taken { M::NAME } else { "refused" }).or_default() += 1;
        taken
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let (name, valoper) = (|n: u8| account(n).account(), |n: u8| account(n).valoper());
        match *step {
            Step::Delegate { by, to, amount } => {
                let (delegator_address, validator_address) = (name(by), valoper(to));
                if self.taken(&MsgDelegate { delegator_address, validator_address, amount: coin(amount) }) {
                    self.book.delegate(by, to, amount);
                    *self.staked.entry(by).or_default() += amount;
                }
            }
            Step::Undelegate { by, from, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let (delegator_address, validator_address) = (name(by), valoper(from));
                if self.taken(&MsgUndelegate { delegator_address, validator_address, amount: coin(amount) }) {
                    self.book.undelegate(by, from, amount);
                }
            }
            Step::Redelegate { by, from, to, percent } => {
                let amount = self.bed.worth(by, from) * percent / 100;
                let message = MsgBeginRedelegate {
                    delegator_address: name(by),
                    validator_src_address: valoper(from),
                    validator_dst_address: valoper(to),
                    amount: coin(amount),
                };
                if self.taken(&message) {
                    self.book.redelegate(by, from, to, amount);
                }
            }
            Step::Create { by, amount } => {
                if self.taken(&create_validator(by, amount)) {
                    self.book.create(by, amount, bps(commission_bps(by).into()));
                    *self.staked.entry(by).or_default() += amount;
                }
            }
            Step::Unjail { by } => {
                let signer = self.signers.get(&by);
                let held = |signer: &Signer| signer.tombstoned || signer.until > self.book.now as i64;
                let refused = match self.book.validators.get(&by) {
                    None => Some(2),
                    Some(validator) if !validator.shares.contains_key(&by) => Some(6),
                    Some(_) if self.bed.worth(by, by) < 1 => Some(7),
                    Some(validator) if !validator.jailed => Some(5),
                    Some(_) => signer.is_some_and(held).then_some(4),
                };
                let refused = refused.map(|code| ("slashing", code));
                let result = self.bed.send(&MsgUnjail { validator_addr: valoper(by) }).map_err(|error| error.code());
                prop_assert_eq!(result.as_ref().err(), refused.as_ref(), "{:?}", signer);
                if result.is_ok() {
                    *self.seen.entry("MsgUnjail").or_default() += 1;
                    self.book.validators.get_mut(&by).unwrap().jailed = false;
                }
            }
            Step::Params { window, signed, jail, double, downtime } => {
                let bytes = |ratio: u128| bps(ratio).to_string().into_bytes();
                let params = Params {
                    signed_blocks_window: window,
                    min_signed_per_window: bytes(signed),
                    downtime_jail_duration: Some(Duration { seconds: jail, nanos: 0 }),
                    slash_fraction_double_sign: bytes(double),
                    slash_fraction_downtime: bytes(downtime),
                };
                let authority = gov::authority().account();
                self.bed.send(&MsgUpdateParams { authority, params: Some(params) }).unwrap();
                let window = window as usize;
                if window != self.rules.window {
                    for signer in self.signers.values_mut() {
                        (signer.start, signer.missed) = (self.book.height, Vec::new());
                    }
                }
                self.rules = Rules { window, signed, jail, double, downtime };
            }
            Step::Absent { who } => self.bed.absent = who.map(consensus).into_iter().collect(),
            Step::DoubleSign { who, back, twice } => {
                let height = self.bed.ctx.height.saturating_sub(back).max(1);
                if let Some(power) = self.bed.signed[&height].get(&consensus(who)) {
                    *self.seen.entry("double signatures").or_default() += 1;
                    let (validator, time) = (consensus(who), self.bed.ctx.time);
                    let found = Misbehavior { validator, power: *power, height, time };
                    self.bed.misbehavior.extend(vec![found; 1 + usize::from(twice)]);
                }
            }
            Step::Forgive { who } => {
                let known = self.signers.get_mut(&who).filter(|signer| signer.tombstoned);
                if let Some(signer) = known {
                    (signer.tombstoned, signer.until) = (false, 0);
                    let info = signing_info(&self.bed.state, &consensus(who)).unwrap();
                    let jailed_until = Some(Default::default());
                    let info = ValidatorSigningInfo { tombstoned: false, jailed_until, ..info };
                    set_signing_info(&mut self.bed.state, &consensus(who), &info);
                }
            }
            Step::Blocks(blocks) => {
                for _ in 0..blocks {
                    self.block()?;
                }
            }
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let state = &self.bed.state;
        for n in OPERATORS {
            let found = staking::validator(state, &account(n));
            let expected = self.book.validators.get(&n);
            let status = |status| match status {
                Status::Bonded => BondStatus::Bonded,
                Status::Unbonding(..) => BondStatus::Unbonding,
                Status::Unbonded => BondStatus::Unbonded,
            };
            prop_assert_eq!(
                found.map(|found| (found.tokens.clone(), found.jailed, found.status())),
                expected.map(|known| (known.tokens.to_string(), known.jailed, status(known.status))),
                "validator {}",
                n
            );
            for by in 1..=ACCOUNTS {
                let held = staking::delegation(state, &account(by), &account(n)).map(of);
                prop_assert_eq!(held, expected.and_then(|known| known.shares.get(&by).copied()), "{} in {}", by, n);
            }
            // The places of the window that stand for blocks which were missed.
            let missed = self.signers.get(&n).map_or(&[][..], |signer| &signer.missed);
            let window = self.rules.window;
            let last = missed.iter().enumerate().skip(missed.len().saturating_sub(window));
            let marks: BTreeSet<u64> =
                last.filter(|(_, missed)| **missed).map(|(at, _)| (at % window) as u64).collect();
            let rows = KeyBuilder::new(MISSED).bytes(&consensus(n).0).finish();
            let rows = state.iter_prefix(&rows).map(|(key, _)| u64::from_be_bytes(key[21..].try_into().unwrap()));
            prop_assert_eq!(rows.collect::<BTreeSet<u64>>(), marks, "marks of {}", n);
        }
        let infos = QuerySigningInfosRequest::default().answer(&self.bed.query(), state).unwrap().info;
        let infos: BTreeMap<String, ValidatorSigningInfo> =
            infos.into_iter().map(|info| (info.address.clone(), info)).collect();
        let expected = self.signers.iter().map(|(n, signer)| {
            let window = signer.missed.iter().rev().take(self.rules.window);
            let info = ValidatorSigningInfo {
                address: consensus(*n).valcons(),
                start_height: signer.start as i64,
                index_offset: signer.missed.len() as i64,
                jailed_until: Some(polylink_protocol::cosmos::Timestamp { seconds: signer.until, nanos: 0 }),
                tombstoned: signer.tombstoned,
                missed_blocks_counter: window.filter(|missed| **missed).count() as i64,
            };
            (info.address.clone(), info)
        });
        prop_assert_eq!(infos, expected.collect::<BTreeMap<_, _>>());
        let found = QueryAllEvidenceRequest::default().answer(&self.bed.query(), state).unwrap().evidence;
        let found = found.into_iter().map(|any| Equivocation::decode(any.value.as_slice()).unwrap());
        let found =
            found.map(|proof| (operator(&Address::from_valcons(&proof.consensus_address).unwrap()), proof.height));
        prop_assert_eq!(&found.collect::<BTreeSet<_>>(), &self.evidence);
        self.compare_money()
    }

    fn compare_money(&self) -> Result<(), TestCaseError> {
        let state = &self.bed.state;
        let number = |valoper: &str| Address::from_valoper(valoper).unwrap().0[0];
        let mut found: Vec<Entry> = Vec::new();
        for (_, value) in state.iter_prefix(&[staking::UNBONDING]) {
            let record = UnbondingDelegation::decode(value.as_slice()).unwrap();
            found.extend(record.entries.iter().map(|entry| Entry {
                by: record.delegator_address.parse::<Address>().unwrap().0[0],
                from: number(&record.validator_address),
                to: None,
                height: entry.creation_height as u64,
                due: entry.completion_time.as_ref().unwrap().seconds as u64,
                initial: entry.initial_balance.parse().unwrap(),
                left: entry.balance.parse().unwrap(),
                shares: places(0),
            }));
        }
        for (_, value) in state.iter_prefix(&[staking::REDELEGATION]) {
            let record = Redelegation::decode(value.as_slice()).unwrap();
            found.extend(record.entries.iter().map(|entry| Entry {
                by: record.delegator_address.parse::<Address>().unwrap().0[0],
                from: number(&record.validator_src_address),
                to: Some(number(&record.validator_dst_address)),
                height: entry.creation_height as u64,
                due: entry.completion_time.as_ref().unwrap().seconds as u64,
                initial: entry.initial_balance.parse().unwrap(),
                left: 0,
                shares: entry.shares_dst.parse().unwrap(),
            }));
        }
        let mut expected = self.book.entries.clone();
        let key = |e: &Entry| (e.by, e.from, e.to, e.height, e.due, e.initial, e.left, e.shares);
        found.sort_by_key(key);
        expected.sort_by_key(key);
        prop_assert_eq!(found, expected);
        for n in 1..=ACCOUNTS {
            let back = self.book.paid.get(&account(n)).copied().unwrap_or(0);
            let left = FUNDS - self.staked.get(&n).copied().unwrap_or(0) + back;
            prop_assert_eq!(bank::balance(state, account(n)).0, left, "balance of {}", n);
        }
        prop_assert_eq!(bank::flows(state, DENOM).1.0, self.book.burned, "burned");
        Ok(())
    }
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.apply(step)?;
    }
    run.block()?;
    Ok(run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps jail, slash and burn what the model says, to the micro-unit, and the same steps give the
    /// same state.
    #[test]
    fn absence_and_double_signatures_cost_what_the_model_says(steps in proptest::collection::vec(step(), 500)) {
        let first = run(&steps)?;
        prop_assert_eq!(&first.bed.state.0, &run(&steps)?.bed.state.0);
        for kind in ["MsgDelegate", "MsgUndelegate", "MsgBeginRedelegate", "MsgUnjail", "refused", "slashes"] {
            prop_assert!(first.seen.contains_key(kind), "no {} in {:?}", kind, first.seen);
        }
        println!("{:?}, {} blocks, {} proofs", first.seen, first.bed.ctx.height, first.evidence.len());
    }
}
