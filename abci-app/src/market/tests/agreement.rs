//! Random sequences of 500 messages over epochs, against an independent model of the market: the same money, records and
//! refusals after every message, and after every block the test bed's own invariants.

mod model;

use std::collections::BTreeMap;

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::Sum;
use polylink_protocol::{Address, DENOM};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use self::model::{Model, Prices, Refusal};
use crate::bank;
use crate::market::testbed::*;
use crate::market::{keys, price, records};
use crate::modules::Handle;
use crate::store::StateRead;

const PAYERS: [u8; 2] = [1, 5];
/// Payees: two that are or become workers, one that stays a gateway; and a payer, who may not pay itself.
const PAYEES: [u8; 4] = [3, 4, 2, 1];
const WORKERS: [u8; 2] = [3, 4];

fn account(number: u8) -> Address {
    Address([number; 20])
}

#[derive(Clone, Debug)]
enum Step {
    Open {
        payer: u8,
        payee: u8,
        deposit: u128,
        cap: Option<u128>,
        named: bool,
        private: bool,
        epochs: u64,
    },
    TopUp {
        payer: u8,
        session: u64,
        amount: u128,
        cap: Option<u128>,
    },
    Revoke {
        payer: u8,
        session: u64,
    },
    Redeem {
        payee: u8,
        session: u64,
        voucher: (u64, u128, u64),
    },
    /// A part of what is left, by the payee itself, for the epoch before or this one.
    Pay {
        session: u64,
        part: u128,
        back: u64,
    },
    /// By its payee, its payer, or somebody else.
    Close {
        by: u8,
        session: u64,
        voucher: Option<(u64, u128, u64)>,
    },
    Register {
        operator: u8,
        bond: u128,
        key: u8,
        ask: u64,
        capacity: u64,
    },
    Update {
        operator: u8,
        key: u8,
        offer: Option<(u64, u64)>,
    },
    Bond {
        operator: u8,
        amount: u128,
    },
    Unbond {
        operator: u8,
        amount: u128,
    },
    /// Of the epoch so many before; the amount as a share of what tokens cost.
    Commit {
        operator: u8,
        back: u64,
        count: u64,
        tokens: u64,
        amount: u128,
        /// Of the private receipts: a part of the same sums.
        private: Option<u64>,
    },
    Royalty {
        provider: u8,
        bps: u32,
    },
    Blocks(u64),
    /// To the first block of the next epoch, so that commitments meet their window.
    Epoch,
}

fn one_of(these: &'static [u8]) -> impl Strategy<Value = u8> {
    proptest::sample::select(these)
}

fn step() -> impl Strategy<Value = Step> {
    let amount =
        || prop_oneof![1 => Just(0_u128), 4 => 1_u128..2_000, 12 => 1_000_u128..3_000_000, 1 => Just(FUNDS + 1)];
    let bonds = || prop_oneof![2 => 0_u128..50, 3 => Just(100_000_000_u128), 2 => 99_999_990_u128..250_000_000];
    let cap = || proptest::option::weighted(0.2, 0_u128..3_000_000);
    let session = || prop_oneof![4 => 0_u64..6, 1 => 0_u64..16];
    let voucher = || (0_u64..4, amount(), 0_u64..40);
    let offer = || (0_u64..3_000, prop_oneof![Just(1_000_000_u64), 1_u64..5_000, Just(u64::MAX)]);
    prop_oneof![
        10 => (one_of(&PAYERS), one_of(&PAYEES), amount(), cap(), proptest::bool::weighted(0.7),
            proptest::bool::weighted(0.4), 0_u64..40).prop_map(|(payer, payee, deposit, cap, named, private, epochs)| {
            Step::Open { payer, payee, deposit, cap, named, private, epochs }
        }),
        5 => (one_of(&PAYERS), session(), amount(), cap())
            .prop_map(|(payer, session, amount, cap)| Step::TopUp { payer, session, amount, cap }),
        2 => (one_of(&PAYERS), session()).prop_map(|(payer, session)| Step::Revoke { payer, session }),
        6 => (one_of(&PAYEES), session(), voucher())
            .prop_map(|(payee, session, voucher)| Step::Redeem { payee, session, voucher }),
        16 => (session(), 1_u128..100, 0_u64..2).prop_map(|(session, part, back)| Step::Pay { session, part, back }),
        4 => (0_u8..3, session(), proptest::option::weighted(0.3, voucher()))
            .prop_map(|(by, session, voucher)| Step::Close { by, session, voucher }),
        2 => (one_of(&WORKERS), bonds(), 20_u8..24, offer()).prop_map(|(operator, bond, key, (ask, capacity))| {
            Step::Register { operator, bond, key, ask, capacity }
        }),
        4 => (one_of(&WORKERS), 20_u8..24, proptest::option::weighted(0.7, offer()))
            .prop_map(|(operator, key, offer)| Step::Update { operator, key, offer }),
        4 => (one_of(&WORKERS), bonds()).prop_map(|(operator, amount)| Step::Bond { operator, amount }),
        3 => (one_of(&WORKERS), bonds()).prop_map(|(operator, amount)| Step::Unbond { operator, amount }),
        14 => (one_of(&WORKERS), 0_u64..8, 0_u64..5, prop_oneof![0_u64..9_000, 0_u64..900_000], 1_u128..3_000,
            proptest::option::weighted(0.6, 0_u64..4)).prop_map(|(operator, back, count, tokens, price, private)| {
            let amount = u128::from(tokens) * price / 1_000;
            Step::Commit { operator, back: back.saturating_sub(5), count, tokens, amount, private }
        }),
        2 => (one_of(&[2, 3]), prop_oneof![0_u32..5_000, Just(5_001)])
            .prop_map(|(provider, bps)| Step::Royalty { provider, bps }),
        6 => (1_u64..9).prop_map(Step::Blocks),
        6 => Just(Step::Epoch),
    ]
}

fn prices(p: Prices) -> TokenPrices {
    TokenPrices { prompt: p.0, cached_prompt: p.1, completion: p.2 }
}

fn ask(ask: u64) -> Prices {
    (ask, ask / 10, ask * 3)
}

fn offer(bed: &Bed, ((p, c, o), capacity): (Prices, u64)) -> Offer {
    let ask = Some(prices((p, c, o)));
    Offer { profile_digest: bed.profile.to_vec(), ask, capacity_tokens_per_epoch: capacity }
}

fn key(number: u8) -> Vec<u8> {
    ServiceKey::from_bytes(&[number; 32]).public_key().to_vec()
}

/// A root by its sums; what hashes to it is nobody's business here.
fn root_of((count, tokens, amount): (u64, u64, u128)) -> SumNode {
    if count == 0 {
        return Sum::empty().to_proto();
    }
    SumNode { hash: vec![count as u8; 32], count, tokens, amount: amount.to_string() }
}

struct Run {
    bed: Bed,
    model: Model,
    seen: BTreeMap<String, usize>,
}

impl Run {
    fn new() -> Self {
        let bed = Bed::with(0, |genesis| {
            let params = &mut genesis.market.params;
            (params.unbonding_epochs, params.vesting_epochs) = (model::UNBONDING, model::VESTING);
            params.dispute_epochs = model::DISPUTE;
        });
        let coins = (1..=5).map(|number| (number, bed.balance(account(number)))).collect();
        let TokenPrices { prompt, cached_prompt, completion } = price();
        let registered = (prompt, cached_prompt, completion);
        let terms = vec![model::Terms { from: 0, key: 9, offer: Some((registered, 1_000_000)) }];
        let worker = model::Worker { bond: model::MIN_BOND, unbonding: vec![], terms, place: true };
        let model = Model {
            height: bed.ctx.height,
            coins,
            minted: 0,
            burned: 0,
            sessions: vec![],
            workers: BTreeMap::from([(3, worker)]),
            pots: BTreeMap::new(),
            vesting: BTreeMap::new(),
            royalties: vec![(0, 500)],
            levels: BTreeMap::new(),
            registered,
        };
        Run { bed, model, seen: BTreeMap::new() }
    }

    fn send<M: Handle>(&mut self, message: &M, expected: Result<(), Refusal>) -> Result<(), TestCaseError> {
        let found = self.bed.send(message);
        let found = found.map(|_| ()).map_err(|error| (error.code(), error.to_string()));
        let name = M::NAME.strip_prefix("Msg").unwrap_or_default();
        let kind = match &found {
            Ok(()) => name.to_owned(),
            Err(((_, code), _)) => format!("{name} {code}"),
        };
        *self.seen.entry(kind).or_default() += 1;
        let codes = found.as_ref().copied().map_err(|(code, _)| *code);
        prop_assert_eq!(codes, expected, "{:?} at {}: {:?}", message, self.model.height, found);
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let now = self.model.epoch();
        let text = |cap: Option<u128>| cap.map_or(String::new(), |cap| cap.to_string());
        let at = |(back, amount, count): (u64, u128, u64)| (now.saturating_sub(back), amount, count);
        match step.clone() {
            Step::Open { payer, payee, deposit, cap, named, private, epochs } => {
                let message = MsgOpenSession {
                    payer: account(payer).account(),
                    payee: account(payee).account(),
                    spend_key: spend_key().public_key().to_vec(),
                    deposit: deposit.to_string(),
                    cap: text(cap),
                    window: 8,
                    expiry_epoch: now + epochs,
                    private,
                    profile_digest: if named { self.bed.profile.to_vec() } else { vec![] },
                };
                let expected = self.model.open(payer, payee, (deposit, cap), (named, private), now + epochs);
                self.send(&message, expected)?;
            }
            Step::TopUp { payer, session, amount, cap } => {
                let (payer_text, amount_text) = (account(payer).account(), amount.to_string());
                let message = MsgTopUp { payer: payer_text, session, amount: amount_text, cap: text(cap) };
                let expected = self.model.top_up(payer, session, amount, cap);
                self.send(&message, expected)?;
            }
            Step::Revoke { payer, session } => {
                let spend_key = spend_key().public_key().to_vec();
                let message = MsgRevokeSpendKey { payer: account(payer).account(), session, spend_key };
                let expected = self.model.revoke(payer, session);
                self.send(&message, expected)?;
            }
            Step::Redeem { payee, session, voucher: said } => {
                let (epoch, amount, count) = at(said);
                let signed = Some(voucher(session, epoch, amount, count));
                let expected = self.model.redeem(payee, session, (epoch, amount, count));
                self.send(&MsgRedeem { payee: account(payee).account(), voucher: signed }, expected)?;
            }
            Step::Pay { session, part, back } => {
                let Some(record) = session.checked_sub(1).and_then(|at| self.model.sessions.get(at as usize)) else {
                    return Ok(());
                };
                let left = record.deposit.min(record.cap).saturating_sub(record.redeemed);
                let said = (back, record.redeemed + left * part / 100, record.count + 1);
                let step = Step::Redeem { payee: record.payee, session, voucher: said };
                return self.apply(&step);
            }
            Step::Close { by, session, voucher: said } => {
                let found = session.checked_sub(1).and_then(|at| self.model.sessions.get(at as usize));
                let signer = match (by, found) {
                    (0, Some(record)) => record.payee,
                    (1, Some(record)) => record.payer,
                    _ => 2,
                };
                let said = said.map(at);
                let signed = said.map(|(epoch, amount, count)| voucher(session, epoch, amount, count));
                let expected = self.model.close(signer, session, said);
                let message = MsgCloseSession { signer: account(signer).account(), session, voucher: signed };
                self.send(&message, expected)?;
            }
            Step::Register { operator, bond, key: number, ask: price, capacity } => {
                let offered = (ask(price), capacity);
                let message = MsgRegisterWorker {
                    receipt_key: key(number),
                    offers: vec![offer(&self.bed, offered)],
                    bond: bond.to_string(),
                    ..register_worker(account(operator))
                };
                let expected = self.model.register(operator, bond, number, offered);
                self.send(&message, expected)?;
            }
            Step::Update { operator, key: number, offer: offered } => {
                let offered = offered.map(|(price, capacity)| (ask(price), capacity));
                let message = MsgUpdateWorker {
                    operator: account(operator).account(),
                    receipt_key: key(number),
                    offers: offered.iter().map(|offered| offer(&self.bed, *offered)).collect(),
                    ..Default::default()
                };
                let expected = self.model.update(operator, number, offered);
                self.send(&message, expected)?;
            }
            Step::Bond { operator, amount } => {
                let message = MsgBond { operator: account(operator).account(), amount: amount.to_string() };
                let expected = self.model.bond(operator, amount);
                self.send(&message, expected)?;
            }
            Step::Unbond { operator, amount } => {
                let message = MsgUnbond { operator: account(operator).account(), amount: amount.to_string() };
                let expected = self.model.unbond(operator, amount);
                self.send(&message, expected)?;
            }
            Step::Commit { operator, back, count, tokens, amount, private } => {
                let sums = |count: u64| if count == 0 { (0, 0, 0) } else { (count, tokens, amount) };
                let (sums, private) = (sums(count), private.map(sums));
                let epoch = now.saturating_sub(1 + back);
                let message = MsgCommitReceipts {
                    operator: account(operator).account(),
                    epoch,
                    profile_digest: self.bed.profile.to_vec(),
                    root: Some(root_of(sums)),
                    private_root: private.map(root_of),
                };
                let expected = self.model.commit(operator, epoch, sums, private);
                self.send(&message, expected)?;
            }
            Step::Royalty { provider, bps } => {
                let message = MsgUpdateModel {
                    provider: account(provider).account(),
                    profile_digest: self.bed.profile.to_vec(),
                    royalty_bps: bps,
                };
                let expected = self.model.change_royalty(provider, bps);
                self.send(&message, expected)?;
            }
            Step::Blocks(blocks) => self.blocks(blocks)?,
            Step::Epoch => self.blocks(model::EPOCH_BLOCKS - self.model.offset())?,
        }
        self.compare_coins()
    }

    fn blocks(&mut self, blocks: u64) -> Result<(), TestCaseError> {
        for _ in 0..blocks {
            self.bed.block();
            self.model.block();
            self.compare_coins()?;
        }
        self.compare_records()
    }

    fn compare_coins(&self) -> Result<(), TestCaseError> {
        for (number, coins) in &self.model.coins {
            prop_assert_eq!(self.bed.balance(account(*number)), *coins, "coins of {}", number);
        }
        let (minted, burned) = bank::flows(&self.bed.state, DENOM);
        prop_assert_eq!((minted.0, burned.0), (self.model.minted, self.model.burned));
        Ok(())
    }

    fn compare_records(&self) -> Result<(), TestCaseError> {
        let (state, model) = (&self.bed.state, &self.model);
        prop_assert_eq!(self.bed.ctx.height, model.height);
        let uplk = |text: &str| records::uplk(text).0;
        for (at, expected) in model.sessions.iter().enumerate() {
            let s = records::session(state, at as u64 + 1).unwrap();
            prop_assert_eq!(
                (uplk(&s.deposit), uplk(&s.cap), uplk(&s.redeemed)),
                (expected.deposit, expected.cap, expected.redeemed)
            );
            prop_assert_eq!((s.redeemed_count, s.redeemed_epoch), (expected.count, expected.newest));
            prop_assert_eq!(
                (s.expiry_epoch, s.closed, s.revoked),
                (expected.expiry, expected.closed, expected.revoked)
            );
        }
        for (number, expected) in &model.workers {
            let operator = account(*number);
            let w = records::worker(state, &operator).unwrap();
            prop_assert_eq!(uplk(&w.bond), expected.bond);
            let waiting: u128 = w.unbonding.iter().map(|entry| uplk(&entry.amount)).sum();
            prop_assert_eq!(waiting, expected.unbonding.iter().map(|(_, amount)| amount).sum::<u128>());
            prop_assert_eq!(state.contains(&keys::offer(&self.bed.profile, &operator)), expected.place);
            let newest = expected.terms.last().unwrap();
            let found = w.terms.last().unwrap();
            prop_assert_eq!((found.from_epoch, &found.receipt_key), (newest.from, &key(newest.key)));
            prop_assert_eq!(found.offers.len(), usize::from(newest.offer.is_some()));
        }
        let pots = [keys::POT, keys::PRIVATE_POT].map(|table| state.iter_prefix(&[table]).count());
        prop_assert_eq!(pots.iter().sum::<usize>(), model.pots.len());
        for ((epoch, number, private), expected) in &model.pots {
            let kind = records::Kind::of(*private);
            let pot = records::pot(state, kind, *epoch, &self.bed.profile, &account(*number)).unwrap();
            let root = pot.root.as_ref().map(|root| (root.count, root.tokens, uplk(&root.amount)));
            let known = expected.root.is_some();
            let p = pot.price.unwrap_or_default();
            let found = model::Pot {
                redeemed: uplk(&pot.redeemed),
                carried_in: uplk(&pot.carried_in),
                allowance: uplk(&pot.allowance),
                root,
                key: if known && pot.receipt_key == key(expected.key) { expected.key } else { 0 },
                price: (p.prompt, p.cached_prompt, p.completion),
                settled: pot.settled,
                paid: uplk(&pot.paid),
                burned: uplk(&pot.fees_burned),
                emission: uplk(&pot.emission),
                royalty: uplk(&pot.royalty),
                worker: uplk(&pot.worker_reward),
                withheld: uplk(&pot.withheld),
                carried_out: uplk(&pot.carried_out),
                expired: uplk(&pot.expired),
                alpha: pot.alpha_bps.into(),
            };
            prop_assert_eq!(&found, expected, "{:?} pot of {} in epoch {}", kind, number, epoch);
        }
        prop_assert_eq!(state.iter_prefix(&[keys::VESTING]).count(), model.vesting.len());
        for ((epoch, number), expected) in &model.vesting {
            prop_assert_eq!(records::amount(state, &keys::vesting(*epoch, &account(*number))).0, *expected);
        }
        let now = self.bed.ctx.epoch;
        let record = records::model(state, &self.bed.profile).unwrap();
        let found = polylink_protocol::market::price_at(&record, now);
        prop_assert_eq!(found, Some(prices(model.price(now))), "price of epoch {}", now);
        prop_assert_eq!(polylink_protocol::market::royalty_at(&record, now), model.royalty(now));
        prop_assert!(record.price_level as u128 <= 2_000 * u128::from(price::LEVEL_ONE));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_market_agrees_with_the_model(steps in proptest::collection::vec(step(), 500)) {
        let mut run = Run::new();
        for step in &steps {
            run.apply(step)?;
        }
        // Everything comes to rest alike.
        run.blocks(model::EPOCH_BLOCKS * (model::VESTING + 4))?;
        prop_assert!(run.model.pots.values().all(|pot| pot.settled) && run.model.vesting.is_empty());
        let private = run.model.pots.iter().filter(|((.., private), pot)| *private && pot.paid > 0).count();
        for kind in ["OpenSession", "Redeem", "CommitReceipts", "UpdateWorker"] {
            prop_assert!(run.seen.contains_key(kind), "no {} in {:?}", kind, run.seen);
        }
        println!("{} epochs, {private} private pots paid, {:?}", run.model.epoch(), run.seen);
    }
}
