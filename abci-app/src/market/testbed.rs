//! A market and its audit in memory, for tests: messages go through their handlers, blocks through the hooks, and after
//! every block the money of each pool is compared with what the records say.

use polylink_protocol::keys::ServiceKey;
use polylink_protocol::market::{RECEIPT_CHAIN_START, sign_voucher};
use polylink_protocol::market_v1::*;
use polylink_protocol::merkle_sum::{Leaf, Tree};
use polylink_protocol::tiqe::{VrfKey, score_commitment, vrf_input};
use polylink_protocol::tiqe_v1::{
    MsgCommitScores, MsgRegisterJudge, MsgRevealScores, MsgSubmitBeacon, MsgVoteTrial, QueryBeaconRequest,
    QueryRoundRequest, Round, RoundPhase, Score, Scores, Trial, TrialState,
};
use polylink_protocol::{Address, Amount, DENOM, Digest, Message, market::profile_digest};

use super::records::{self, Kind};
use super::{committed, keys};
use crate::bank::{self, Pool};
use crate::context::{BlockTime, Context, Event};
use crate::error::{QueryError, TxError};
use crate::genesis::Genesis;
use crate::modules::{Answer, Handle, Module, QueryContext};
use crate::store::{MemoryState, Overlay, StateRead};
use crate::tiqe;

pub const CHAIN: &str = "test-1";
pub const PAYER: Address = Address([1; 20]);
pub const PROVIDER: Address = Address([2; 20]);
pub const WORKER: Address = Address([3; 20]);
pub const GATEWAY: Address = Address([4; 20]);
pub const STRANGER: Address = Address([5; 20]);
pub const FUNDS: u128 = 1_000_000_000_000;

const HOOKS: [Module; 2] = [tiqe::MODULE, super::MODULE];

pub fn judge(number: u8) -> Address {
    Address([100 + number; 20])
}
pub fn vrf(number: u8) -> VrfKey {
    VrfKey::from_bytes(&[100 + number; 32])
}
pub fn spend_key() -> ServiceKey {
    ServiceKey::from_bytes(&[42; 32])
}

pub fn profile() -> ModelProfile {
    let digest = |byte: u8| vec![byte; 32];
    ModelProfile {
        id: "polylink/nano@1".into(),
        config_digest: digest(1),
        tokenizer_digest: digest(2),
        chat_template_digest: digest(3),
        generation_config_digest: digest(4),
        weights_digest: digest(5),
        weight_quantization: "none".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        numerics: "exact-1".into(),
    }
}

pub fn price() -> TokenPrices {
    TokenPrices { prompt: 1_000, cached_prompt: 100, completion: 3_000 }
}

pub fn register_model() -> MsgRegisterModel {
    MsgRegisterModel {
        provider: PROVIDER.account(),
        profile: Some(profile()),
        context_length: 2_048,
        royalty_bps: 500,
        price: Some(price()),
    }
}

pub fn register_worker(operator: Address) -> MsgRegisterWorker {
    MsgRegisterWorker {
        operator: operator.account(),
        endpoint: "http://127.0.0.1:9000".into(),
        tls_key: vec![],
        receipt_key: ServiceKey::from_bytes(&[9; 32]).public_key().to_vec(),
        offers: vec![Offer {
            profile_digest: profile_digest(&profile()).to_vec(),
            ask: Some(price()),
            capacity_tokens_per_epoch: 1_000_000,
        }],
        bond: "100000000".into(),
    }
}

pub fn register_judge(number: u8) -> MsgRegisterJudge {
    MsgRegisterJudge {
        operator: judge(number).account(),
        vrf_key: vrf(number).public_key().to_vec(),
        x25519_key: vec![number + 1; 32],
        disclosure_key: ServiceKey::from_bytes(&[150 + number; 32]).public_key().to_vec(),
        tickets: 10,
        profiles: vec![profile_digest(&profile()).to_vec()],
    }
}

pub fn voucher(session: u64, epoch: u64, amount: u128, count: u64) -> SignedVoucher {
    let voucher = Voucher {
        chain_id: CHAIN.into(),
        session,
        epoch,
        amount: amount.to_string(),
        count,
        receipts_hash: RECEIPT_CHAIN_START.to_vec(),
    };
    sign_voucher(voucher, &spend_key())
}

/// The root of a tree with `count` receipts of `amount` uplk each.
pub fn root(count: u64, amount: u128) -> SumNode {
    let leaf =
        |index| Leaf { session: 1, index, receipt: Digest([index as u8; 32]), tokens: 100, amount: Amount(amount) };
    Tree::new((0..count).map(leaf).collect()).unwrap().root().to_proto()
}

pub struct Bed {
    pub state: MemoryState,
    pub ctx: Context,
    pub profile: Digest,
    /// What the accounts were given at the start, bonds included.
    genesis: u128,
}

impl Bed {
    /// One model, one worker, `judges` judges; funded accounts.
    pub fn new(judges: u8) -> Self {
        Self::with(judges, |_| {})
    }

    pub fn with(judges: u8, alter: impl FnOnce(&mut Genesis)) -> Self {
        let mut genesis = Genesis::default();
        let holders = [PAYER, PROVIDER, WORKER, GATEWAY, STRANGER].into_iter().chain((0..judges).map(judge));
        for holder in holders {
            genesis = genesis.with_account(&holder, Amount(FUNDS));
        }
        genesis.market.models.push(register_model());
        genesis.market.workers.push(register_worker(WORKER));
        genesis.tiqe.judges = (0..judges).map(register_judge).collect();
        // Convictions hold at once, where a test does not say otherwise.
        genesis.tiqe.params.appeal_epochs = 0;
        alter(&mut genesis);
        let given = genesis.accounts.iter().map(|account| account.balance.0).sum();
        let blocks = genesis.epoch_blocks();
        let mut state = MemoryState::default();
        let mut ctx = Context::new(CHAIN, 0, BlockTime::default(), blocks);
        for module in [crate::bank::MODULE].iter().chain(&HOOKS) {
            (module.genesis)(&mut ctx, &mut state, &genesis).unwrap();
        }
        let mut bed = Bed { state, ctx, profile: profile_digest(&profile()), genesis: given };
        bed.begin();
        bed
    }

    fn begin(&mut self) {
        let height = self.ctx.height + 1;
        self.ctx = Context::new(CHAIN, height, BlockTime::default(), self.ctx.epoch_blocks);
        for module in HOOKS {
            (module.begin_block)(&mut self.ctx, &mut self.state).unwrap();
        }
    }

    /// Ends the block, checks the books, and begins the next one. Returns the ended block's events.
    pub fn block(&mut self) -> Vec<Event> {
        for module in HOOKS {
            (module.end_block)(&mut self.ctx, &mut self.state).unwrap();
        }
        self.check_books();
        let events = std::mem::take(&mut self.ctx.events);
        self.begin();
        events
    }

    /// Goes on until the block in work is this one; returns the events on the way.
    pub fn until(&mut self, epoch: u64, offset: u64) -> Vec<Event> {
        let mut events = vec![];
        while (self.ctx.epoch, self.ctx.epoch_offset) < (epoch, offset) {
            events.extend(self.block());
        }
        assert_eq!((self.ctx.epoch, self.ctx.epoch_offset), (epoch, offset), "that block is over");
        events
    }

    /// A message in the block in work: all or nothing, as in a transaction.
    pub fn send<M: Handle>(&mut self, message: &M) -> Result<M::Response, TxError> {
        // Handlers see what came over the wire.
        let message = M::decode(message.encode_to_vec().as_slice()).unwrap();
        message.signer()?;
        message.check()?;
        let mut ctx = self.ctx.clone();
        let mut layer = Overlay::new(&self.state);
        let response = message.execute(&mut ctx, &mut layer)?;
        let changes = layer.into_changes();
        bank::check_conservation(&self.state, &changes).unwrap();
        self.state.apply(&changes);
        self.ctx = ctx;
        Ok(response)
    }

    /// The refusal of a message.
    pub fn refused<M: Handle>(&mut self, message: &M) -> (&'static str, u32) {
        match self.send(message) {
            Ok(_) => panic!("{message:?} was taken"),
            Err(error) => error.code(),
        }
    }

    /// A query, answered from the state as it stands after the last block.
    pub fn ask<Q: Answer>(&self, query: &Q) -> Result<Q::Response, QueryError> {
        let height = self.ctx.height - 1;
        let (epoch_blocks, epoch) = (self.ctx.epoch_blocks, height / self.ctx.epoch_blocks);
        query.answer(&QueryContext { chain_id: CHAIN.into(), height, epoch, epoch_blocks }, &self.state)
    }

    pub fn balance(&self, who: impl Into<Address>) -> u128 {
        bank::balance(&self.state, who).0
    }

    pub fn pot(&self, epoch: u64) -> Pot {
        self.pot_of(Kind::Audited, epoch)
    }

    pub fn pot_of(&self, kind: Kind, epoch: u64) -> Pot {
        records::pot(&self.state, kind, epoch, &self.profile, &WORKER).unwrap()
    }

    /// As a verdict does, without a trial and so without refunds.
    pub fn convict(&mut self, operator: Address, bps: u32) {
        let share = polylink_protocol::Bps::clamped(bps);
        let slashed = super::bonds::convict(&mut self.ctx, &mut self.state, &operator, share).unwrap();
        bank::burn(&mut self.ctx, &mut self.state, Pool::WorkerBonds, slashed).unwrap();
    }

    pub fn open_session(&mut self, deposit: u128) -> u64 {
        self.open_session_with(WORKER, deposit)
    }

    pub fn open_session_with(&mut self, worker: Address, deposit: u128) -> u64 {
        self.open_session_of(PAYER, worker, deposit)
    }

    pub fn open_session_of(&mut self, payer: Address, worker: Address, deposit: u128) -> u64 {
        self.open_session_as(payer, worker, deposit, false)
    }

    pub fn open_private_session(&mut self, deposit: u128) -> u64 {
        self.open_session_as(PAYER, WORKER, deposit, true)
    }

    pub fn open_session_as(&mut self, payer: Address, worker: Address, deposit: u128, private: bool) -> u64 {
        let message = MsgOpenSession {
            payer: payer.account(),
            payee: worker.account(),
            spend_key: spend_key().public_key().to_vec(),
            deposit: deposit.to_string(),
            window: 8,
            expiry_epoch: self.ctx.epoch + 1_000,
            private,
            profile_digest: self.profile.to_vec(),
            ..Default::default()
        };
        self.send(&message).unwrap().session
    }

    pub fn redeem(&mut self, session: u64, epoch: u64, amount: u128, count: u64) -> Result<Amount, TxError> {
        let voucher = Some(voucher(session, epoch, amount, count));
        Ok(self.send(&MsgRedeem { payee: WORKER.account(), voucher })?.increase.parse()?)
    }

    pub fn commit(&mut self, epoch: u64, root: SumNode) -> Result<(), TxError> {
        self.commit_both(epoch, root, None)
    }

    pub fn commit_both(&mut self, epoch: u64, root: SumNode, private_root: Option<SumNode>) -> Result<(), TxError> {
        let (operator, profile_digest) = (WORKER.account(), self.profile.to_vec());
        self.send(&MsgCommitReceipts { operator, epoch, profile_digest, root: Some(root), private_root }).map(|_| ())
    }

    pub fn round(&self, epoch: u64) -> Round {
        self.ask(&QueryRoundRequest { epoch, profile_digest: self.profile.to_vec() }).unwrap().round.unwrap()
    }

    pub fn submit_beacon(&mut self, number: u8, epoch: u64) -> Result<(), TxError> {
        let query = QueryBeaconRequest { epoch: epoch.saturating_sub(1), profile_digest: self.profile.to_vec() };
        let previous = Digest::from_slice(&self.ask(&query).unwrap().beacon).unwrap();
        let proof = vrf(number).prove(&vrf_input(CHAIN, &previous, epoch, &self.profile)).unwrap();
        let profile_digest = self.profile.to_vec();
        self.send(&MsgSubmitBeacon { judge: judge(number).account(), epoch, profile_digest, proof }).map(|_| ())
    }

    pub fn commit_scores(&mut self, number: u8, epoch: u64, scores: &Scores) -> Result<(), TxError> {
        let judge = judge(number);
        let commitment = score_commitment(CHAIN, epoch, &self.profile, &judge, &[number; 32], scores).to_vec();
        let profile_digest = self.profile.to_vec();
        self.send(&MsgCommitScores { judge: judge.account(), epoch, profile_digest, commitment }).map(|_| ())
    }

    pub fn reveal_scores(&mut self, number: u8, epoch: u64, scores: &Scores) -> Result<(), TxError> {
        let (salt, scores, profile_digest) = (vec![number; 32], Some(scores.clone()), self.profile.to_vec());
        let judge = judge(number).account();
        self.send(&MsgRevealScores { judge, epoch, profile_digest, salt, scores }).map(|_| ())
    }

    pub fn vote(&mut self, number: u8, trial: u64, guilty: bool, scores: &Scores) -> Result<(), TxError> {
        let (judge, scores) = (judge(number).account(), Some(scores.clone()));
        self.send(&MsgVoteTrial { judge, trial, guilty, scores }).map(|_| ())
    }

    /// A whole round over `epoch` by these judges, from its beacon window on, up to its epoch's last block.
    pub fn run_round(&mut self, epoch: u64, judges: &[u8], score: impl Fn(u8, u32) -> Score) -> Vec<Event> {
        let mut events = self.until(epoch + 1, 5);
        judges.iter().for_each(|number| self.submit_beacon(*number, epoch).unwrap());
        events.extend(self.until(epoch + 1, 9));
        let round = self.round(epoch);
        assert_eq!(round.phase(), RoundPhase::Commit);
        let seated = |number: u8| round.seats.iter().any(|seat| seat.judge == judge(number).account());
        let scores = |number| Scores {
            scores: round.samples.iter().map(|s| Score { sample: s.number, ..score(number, s.number) }).collect(),
        };
        let seated: Vec<u8> = judges.iter().copied().filter(|number| seated(*number)).collect();
        seated.iter().for_each(|number| self.commit_scores(*number, epoch, &scores(*number)).unwrap());
        events.extend(self.until(epoch + 1, 14));
        seated.iter().for_each(|number| self.reveal_scores(*number, epoch, &scores(*number)).unwrap());
        events.extend(self.until(epoch + 1, 19));
        events
    }

    /// Every pool holds what the records say, and all of it is the supply.
    pub fn check_books(&self) {
        bank::scan(&self.state).unwrap();
        let (minted, burned) = bank::flows(&self.state, DENOM);
        assert_eq!(bank::supply(&self.state, DENOM).0 + burned.0, self.genesis + minted.0);
        let all = |prefix: u8| self.state.iter_prefix(&[prefix]).map(|(_, value)| value).collect::<Vec<_>>();
        let uplk = |text: &str| records::uplk(text).0;
        let escrow: u128 = all(keys::SESSION)
            .iter()
            .map(|value| Session::decode(value.as_slice()).unwrap())
            .filter(|session| !session.closed)
            .map(|session| uplk(&session.deposit) - uplk(&session.redeemed))
            .sum();
        let reports = all(keys::REPORT);
        let reports = reports.iter().map(|value| uplk(&OmissionReport::decode(value.as_slice()).unwrap().deposit));
        let refunds = all(keys::REFUNDING);
        let refunds = refunds.iter().map(|value| uplk(&Refunding::decode(value.as_slice()).unwrap().left));
        let appeals = all(tiqe::keys::TRIAL);
        let appeals = appeals.iter().map(|value| Trial::decode(value.as_slice()).unwrap());
        let open = |trial: &Trial| trial.state() == TrialState::Open && trial.appealed_epoch > 0;
        let appeals = appeals.filter(open).map(|trial| uplk(&trial.appeal_deposit));
        let others = reports.sum::<u128>() + refunds.sum::<u128>() + appeals.sum::<u128>();
        assert_eq!(self.balance(Pool::MarketEscrow), escrow + others, "escrow");
        let mut payers = std::collections::BTreeMap::<_, u128>::new();
        for (table, private) in [(keys::PAID, false), (keys::PRIVATE_PAID, true)] {
            for (key, value) in self.state.iter_prefix(&[table]) {
                let pot = (private, key[1..9].to_vec(), key[9..41].to_vec(), key[41..61].to_vec());
                *payers.entry(pot).or_default() += u128::from_be_bytes(value.as_slice().try_into().unwrap());
            }
        }
        let of_kind = |table, private| all(table).into_iter().map(move |value| (private, value));
        let pots = of_kind(keys::POT, false).chain(of_kind(keys::PRIVATE_POT, true));
        let pots: Vec<(bool, Pot)> =
            pots.map(|(private, value)| (private, Pot::decode(value.as_slice()).unwrap())).collect();
        for (private, pot) in &pots {
            assert_eq!(pot.private, *private, "a pot in the other table: {pot:?}");
            let worker: Address = pot.worker.parse().unwrap();
            let refunded = records::worker(&self.state, &worker).unwrap().jailed;
            let place = (*private, pot.epoch.to_be_bytes().to_vec(), pot.profile_digest.clone(), worker.0.to_vec());
            let paid = payers.remove(&place).unwrap_or(0);
            // What is past its retention is dropped table by table.
            let dropped = pot.epoch + super::POT_RETENTION_EPOCHS < self.ctx.epoch;
            let known = paid == uplk(&pot.redeemed) || ((refunded || dropped) && paid < uplk(&pot.redeemed));
            assert!(known, "payers of {pot:?}: {paid}");
        }
        let open = |prefix: u8| self.state.iter_prefix(&[prefix]).count();
        assert_eq!([keys::REPORT_DUE, keys::REPORT_BY_WORKER].map(open), [open(keys::REPORT); 2], "open reports");
        let mut deposits = std::collections::BTreeMap::new();
        for session in all(keys::SESSION).iter().map(|value| Session::decode(value.as_slice()).unwrap()) {
            if !session.closed && !session.profile_digest.is_empty() {
                let profile = Digest::from_slice(&session.profile_digest).unwrap();
                let key = keys::deposits(Kind::of(session.private), &session.payee.parse().unwrap(), &profile);
                *deposits.entry(key).or_insert(0) += uplk(&session.deposit);
            }
        }
        let sums = [keys::DEPOSITS, keys::PRIVATE_DEPOSITS]
            .into_iter()
            .flat_map(|table| self.state.iter_prefix(&[table]).collect::<Vec<_>>());
        let sums = sums.map(|(key, value)| (key, u128::from_be_bytes(value.as_slice().try_into().unwrap())));
        assert_eq!(sums.collect::<std::collections::BTreeMap<_, _>>(), deposits, "deposits by worker and profile");
        for (key, _) in self.state.iter_prefix(&[keys::OFFER]) {
            let worker = records::worker(&self.state, &keys::last_address(&key).unwrap()).unwrap();
            let offered = worker.terms.last().unwrap().offers.iter().any(|offer| offer.profile_digest == key[1..33]);
            assert!(offered && !worker.jailed && uplk(&worker.bond) >= 100_000_000, "a place of nobody's: {worker:?}");
        }
        let pots: u128 = pots
            .iter()
            .map(|(_, pot)| pot)
            .inspect(|pot| assert!(!pot.settled || uplk(&pot.paid) <= committed(pot).0 + uplk(&pot.allowance)))
            .filter(|pot| !pot.settled)
            .map(|pot| uplk(&pot.redeemed) + uplk(&pot.carried_in))
            .sum();
        assert_eq!(self.balance(Pool::MarketPots), pots, "pots");
        let vesting: u128 =
            all(keys::VESTING).iter().map(|value| u128::from_be_bytes(value.as_slice().try_into().unwrap())).sum();
        assert_eq!(self.balance(Pool::MarketVesting), vesting, "vesting");
        let bonds: u128 = all(keys::WORKER)
            .iter()
            .map(|value| Worker::decode(value.as_slice()).unwrap())
            .map(|w| uplk(&w.bond) + w.unbonding.iter().map(|entry| uplk(&entry.amount)).sum::<u128>())
            .sum();
        assert_eq!(self.balance(Pool::WorkerBonds), bonds, "worker bonds");
        let judges: u128 = all(tiqe::keys::JUDGE)
            .iter()
            .map(|value| polylink_protocol::tiqe_v1::Judge::decode(value.as_slice()).unwrap())
            .map(|judge| uplk(&judge.bond))
            .sum();
        assert_eq!(self.balance(Pool::JudgeBonds), judges, "judge bonds");
    }
}
