//! The audit beside a second one ([`model`]) on random sequences of commitments, proofs, scores, votes, judges that come and
//! go, and much that is refused.

mod compare;
mod model;

use std::collections::BTreeMap;

use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::{MsgCommitReceipts, MsgRedeem};
use polylink_protocol::tiqe::vrf_verify;
use polylink_protocol::tiqe_v1::{
    MsgAppeal, MsgCommitScores, MsgRegisterJudge, MsgRevealScores, MsgSubmitBeacon, MsgUnbondJudge, MsgVoteTrial,
    Score, Scores,
};
use polylink_protocol::{Address, Digest, Message};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::error::TxError;
use crate::market::testbed::*;
use crate::modules::Handle;
use model::*;

/// Judges that may be there.
const JUDGES: u8 = 7;
/// Those of them that the chain begins with.
const FIRST: u8 = 5;

#[derive(Clone, Debug)]
enum Step {
    /// What the window asks for, by those whose bit is set.
    Act {
        who: u8,
        seed: u64,
        /// Reveals other scores than were committed to.
        lie: bool,
    },
    /// Something out of its window.
    Stray {
        who: u8,
        kind: u8,
    },
    Vote {
        trial: u64,
        who: u8,
        guilty: u8,
    },
    /// By a worker, in the newest trial or the one before.
    Appeal {
        worker: u8,
        back: u64,
    },
    Register {
        who: u8,
        tickets: u32,
    },
    Leave {
        who: u8,
    },
    /// A payer's next voucher, into the pot of the epoch.
    Pay {
        worker: u8,
        payer: u8,
        amount: u128,
    },
    Blocks(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let many = || prop_oneof![3 => Just(u8::MAX), 1 => any::<u8>()];
    prop_oneof![
        18 => (many(), any::<u64>(), prop::bool::weighted(0.1)).prop_map(|(who, seed, lie)| Step::Act { who, seed, lie }),
        1 => (0..JUDGES, 0..3_u8).prop_map(|(who, kind)| Step::Stray { who, kind }),
        4 => (0..9_u64, many(), prop_oneof![Just(0), Just(u8::MAX), any::<u8>()])
            .prop_map(|(trial, who, guilty)| Step::Vote { trial, who, guilty }),
        3 => (0..WORKERS + 1, 0..2_u64).prop_map(|(worker, back)| Step::Appeal { worker, back }),
        2 => (0..JUDGES, 1..20_u32).prop_map(|(who, tickets)| Step::Register { who, tickets }),
        1 => (0..JUDGES).prop_map(|who| Step::Leave { who }),
        4 => (0..WORKERS, 0..PAYERS, prop_oneof![1_u128..40, 1_u128..20_000])
            .prop_map(|(worker, payer, amount)| Step::Pay { worker, payer, amount }),
        15 => (1..4_u64).prop_map(Step::Blocks),
    ]
}

fn payer_account(payer: u8) -> Address {
    [PAYER, GATEWAY, STRANGER][usize::from(payer)]
}

/// The id of the session between a worker and a payer.
fn session(n: u8, payer: u8) -> u64 {
    1 + u64::from(n) * u64::from(PAYERS) + u64::from(payer)
}

/// A number that looks random (SplitMix64).
fn noise(seed: u64, a: u8, b: u32) -> u64 {
    let mut x = seed ^ (u64::from(a) << 32 | u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A judge's scores: about what all see, now and then something else.
fn scores(seed: u64, n: u8, samples: &[Sample]) -> Vec<Score> {
    let score = |sample: &Sample| {
        let (truth, own) = (noise(seed, sample.worker, 1), noise(seed, n, sample.number + 7));
        let cheats = truth % 4 == 0;
        let evidence_milli = match own % 8 {
            0 => (own >> 8) as i64 % CLIP,
            _ if cheats => CLIP - (own >> 8) as i64 % 100,
            _ => -((own >> 8) as i64 % 900),
        };
        Score {
            sample: sample.number,
            cross_bps: (truth >> 8) as u32 % 9_000 + (own >> 16) as u32 % 1_000,
            has_llm: own >> 32 & 1 == 1,
            llm_bps: (own >> 32 & 1) as u32 * ((own >> 40) as u32 % 10_000),
            evidence_milli: evidence_milli.clamp(-CLIP, CLIP),
            missing: truth >> 60 == 0 || own >> 60 == 0,
            ..Default::default()
        }
    };
    samples.iter().map(score).collect()
}

struct Run {
    bed: Bed,
    model: Model,
    seen: BTreeMap<&'static str, usize>,
}

type Refusal = Option<(&'static str, u32)>;

impl Run {
    fn new() -> Self {
        let tickets = |n: u8| 2 + 3 * u32::from(n);
        let mut bed = Bed::with(JUDGES, |genesis| {
            genesis.tiqe.params.slash_judge_bps = SLASH_JUDGE as u32;
            genesis.tiqe.params.cusum_threshold_milli = THRESHOLD as u64;
            genesis.tiqe.params.appeal_epochs = APPEAL_EPOCHS;
            genesis.market.params.unbonding_epochs = UNBONDING;
            genesis.tiqe.judges.truncate(FIRST.into());
            (0..FIRST).for_each(|n| genesis.tiqe.judges[usize::from(n)].tickets = tickets(n));
            for n in 0..WORKERS {
                *genesis = std::mem::take(genesis).with_account(&worker(n), polylink_protocol::Amount(FUNDS));
                genesis.market.workers.push(register_worker(worker(n)));
            }
        });
        for n in 0..WORKERS {
            for payer in 0..PAYERS {
                let id = bed.open_session_as(payer_account(payer), worker(n), DEPOSIT, is_private(payer));
                assert_eq!(id, session(n, payer));
            }
        }
        let mut model = Model {
            chain: CHAIN,
            profile: profile_digest(&profile()).0,
            height: bed.ctx.height,
            judges: BTreeMap::new(),
            money: BTreeMap::new(),
            rounds: BTreeMap::new(),
            roots: BTreeMap::new(),
            quality: BTreeMap::new(),
            alpha: BTreeMap::new(),
            baseline: 0,
            trials: BTreeMap::new(),
            convicted: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            paid: BTreeMap::new(),
            refunds: BTreeMap::new(),
            set_aside: BTreeMap::new(),
        };
        (0..FIRST).for_each(|n| model.register(n, tickets(n), 0));
        Run { bed, model, seen: BTreeMap::new() }
    }

    /// A message whose refusal is foretold. Returns whether it was taken.
    fn send<M: Handle>(&mut self, message: &M, refused: Refusal) -> Result<bool, TestCaseError> {
        let result = self.bed.send(message).map_err(|error: TxError| error.code());
        *self.seen.entry(if result.is_ok() { M::NAME } else { "refused" }).or_default() += 1;
        let (epoch, offset) = (self.model.epoch(), self.model.offset());
        prop_assert_eq!(result.as_ref().err(), refused.as_ref(), "in {}, {}: {:?}", epoch, offset, message);
        Ok(result.is_ok())
    }

    /// Why a judge may not act in what concerns those of an epoch.
    fn barred(&self, n: u8, epoch: u64) -> Option<u32> {
        match self.model.judges.get(&n) {
            None => Some(2),
            Some(judge) if judge.jailed => Some(9),
            Some(judge) if judge.release > 0 => Some(23),
            Some(judge) => (judge.from > epoch).then_some(10),
        }
    }

    /// 0 for receipts, 1 for beacons, and so on.
    fn window(&self) -> usize {
        WINDOWS.iter().filter(|first| self.model.offset() >= **first).count()
    }

    fn commit_receipts(&mut self, n: u8, seed: u64) -> Result<(), TestCaseError> {
        let epoch = self.model.epoch() - 1;
        let (count, each) = (noise(seed, n, 2) % 9, u128::from(noise(seed, n, 3) % 4) * 1_237);
        if self.model.roots.contains_key(&(epoch, n)) {
            return Ok(());
        }
        let message = MsgCommitReceipts {
            operator: worker(n).account(),
            epoch,
            profile_digest: self.model.profile.to_vec(),
            root: Some(root(count, each)),
            // No judge ever sees these: the model does not know of them.
            private_root: Some(root(seed % 5, 311)).filter(|root| root.count > 0),
        };
        let convicted = self.model.convicted.contains_key(&n);
        if self.send(&message, convicted.then_some(("market", 14)))? {
            self.model.commit_receipts(epoch, n, count, each * u128::from(count));
        }
        Ok(())
    }

    fn submit_beacon(&mut self, n: u8, stray: Option<u32>) -> Result<(), TestCaseError> {
        let epoch = self.model.epoch().saturating_sub(1);
        let length = (CHAIN.len() as u32).to_be_bytes();
        let previous = self.model.beacon_before(epoch);
        let parts: [&[u8]; 5] = [&length, CHAIN.as_bytes(), &previous, &epoch.to_be_bytes(), &self.model.profile];
        let input = Digest(hash("vrf-input", &parts));
        let proof = vrf(n).prove(&input).unwrap();
        let output = vrf_verify(&vrf(n).public_key(), &input, &proof).unwrap();
        let round = self.model.rounds.get(&epoch).filter(|round| round.phase == Phase::Open);
        let refused = match round {
            _ if stray.is_some() => stray,
            None => Some(12),
            Some(round) => {
                let twice = round.outputs.contains_key(&n).then_some(14);
                self.barred(n, self.model.epoch()).or(twice)
            }
        };
        let (judge, profile_digest) = (judge(n).account(), self.model.profile.to_vec());
        let message = MsgSubmitBeacon { judge, epoch, profile_digest, proof };
        if self.send(&message, refused.map(|code| ("tiqe", code)))? {
            self.model.rounds.get_mut(&epoch).unwrap().outputs.insert(n, output);
        }
        Ok(())
    }

    /// Commits to scores; or reveals them, where `reveal` says whether it lies.
    fn show(&mut self, n: u8, seed: u64, reveal: Option<bool>, stray: Option<u32>) -> Result<(), TestCaseError> {
        let epoch = self.model.epoch().saturating_sub(1);
        let round = self.model.rounds.get(&epoch).filter(|round| round.phase == Phase::Drawn);
        let committed = round.and_then(|round| round.committed.get(&n));
        let refused = match round {
            _ if stray.is_some() => stray,
            None => Some(12),
            Some(round) if !round.seats.contains_key(&n) => Some(16),
            Some(_) if reveal.is_none() => committed.map(|_| 14),
            Some(_) if committed.is_none() => Some(18),
            Some(round) if round.revealed.contains_key(&n) => Some(14),
            Some(_) => (reveal == Some(true)).then_some(19),
        };
        let refused = refused.map(|code| ("tiqe", code));
        let fresh = round.map_or(Vec::new(), |round| scores(seed, n, &round.samples));
        let mut shown = Scores { scores: committed.cloned().filter(|_| reveal.is_some()).unwrap_or(fresh) };
        let (account, profile_digest, salt) = (judge(n).account(), self.model.profile.to_vec(), [n; 32]);
        if let Some(lie) = reveal {
            if lie && let Some(score) = shown.scores.first_mut() {
                score.cross_bps ^= 1;
            }
            let (judge, salt) = (account, salt.to_vec());
            let message = MsgRevealScores { judge, epoch, profile_digest, salt, scores: Some(shown.clone()) };
            if self.send(&message, refused)? {
                self.model.rounds.get_mut(&epoch).unwrap().revealed.insert(n, shown.scores);
            }
            return Ok(());
        }
        let bytes = shown.encode_to_vec();
        let (length, size) = ((CHAIN.len() as u32).to_be_bytes(), (bytes.len() as u32).to_be_bytes());
        let parts: [&[u8]; 8] =
            [&length, CHAIN.as_bytes(), &epoch.to_be_bytes(), &self.model.profile, &judge(n).0, &salt, &size, &bytes];
        let commitment = hash("scores", &parts).to_vec();
        if self.send(&MsgCommitScores { judge: account, epoch, profile_digest, commitment }, refused)? {
            self.model.rounds.get_mut(&epoch).unwrap().committed.insert(n, shown.scores);
        }
        Ok(())
    }

    fn vote(&mut self, id: u64, n: u8, guilty: bool) -> Result<(), TestCaseError> {
        let trial = self.model.trials.get(&id);
        let refused = match trial {
            None => Some(21),
            Some(trial)
                if trial.verdict != Verdict::None
                    || trial.samples.is_empty()
                    || self.model.epoch() > trial.deadline =>
            {
                Some(22)
            }
            Some(trial) => self.barred(n, trial.opened).or(trial.votes.contains_key(&n).then_some(14)),
        };
        let found = |sample: &Sample| Score { sample: sample.number, ..Default::default() };
        let scores = trial.map_or(Vec::new(), |trial| trial.samples.iter().map(found).collect());
        let (judge, scores) = (judge(n).account(), Some(Scores { scores }));
        if self.send(&MsgVoteTrial { judge, trial: id, guilty, scores }, refused.map(|code| ("tiqe", code)))? {
            self.model.vote(id, n, guilty);
        }
        Ok(())
    }

    /// What a judge owes the round that runs.
    fn owes(&self, n: u8) -> bool {
        let Some(audited) = self.model.epoch().checked_sub(1) else { return false };
        let Some(round) = self.model.rounds.get(&audited) else { return false };
        let judge = &self.model.judges[&n];
        let active = !judge.jailed && judge.from <= self.model.epoch();
        match round.phase {
            Phase::Open => active && self.window() > 0 && !round.outputs.contains_key(&n),
            Phase::Drawn => round.seats.contains_key(&n) && !round.revealed.contains_key(&n),
            _ => false,
        }
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let epoch = self.model.epoch();
        match *step {
            Step::Act { who, seed, lie } => {
                let all = if self.window() == 0 { WORKERS } else { JUDGES };
                for n in (0..all).filter(|n| who >> n & 1 == 1 && epoch > 0) {
                    match self.window() {
                        0 => self.commit_receipts(n, seed)?,
                        1 => self.submit_beacon(n, None)?,
                        2 => self.show(n, seed, None, None)?,
                        3 => self.show(n, seed, Some(lie && n % 2 == 0), None)?,
                        _ => {}
                    }
                }
            }
            Step::Stray { who, kind } => {
                let stray = Some(13);
                match (kind, self.window()) {
                    (0, window) if window != 1 => self.submit_beacon(who, stray)?,
                    (1, window) if window != 2 => self.show(who, 0, None, stray)?,
                    (2, window) if window != 3 => self.show(who, 0, Some(false), stray)?,
                    _ => {}
                }
            }
            Step::Vote { trial, who, guilty } => {
                let newest = self.model.trials.len() as u64;
                let id = if trial > 2 { newest } else { newest.saturating_sub(1) + trial };
                for n in (0..JUDGES).filter(|n| who >> n & 1 == 1) {
                    self.vote(id, n, guilty >> n & 1 == 1)?;
                }
            }
            Step::Appeal { worker: n, back } => {
                let id = (self.model.trials.len() as u64).saturating_sub(back);
                let refused = match self.model.trials.get(&id) {
                    None => Some(21),
                    // Mostly the right one.
                    Some(trial) => (n == 0 && trial.worker != 0 || trial.verdict != Verdict::Convicted).then_some(25),
                };
                let of = self.model.trials.get(&id).filter(|_| n > 0).map_or(n, |trial| trial.worker);
                let message = MsgAppeal { worker: worker(of).account(), trial: id };
                if self.send(&message, refused.map(|code| ("tiqe", code)))? {
                    self.model.appeal(id);
                }
            }
            Step::Register { who, tickets } => {
                let there = self.model.judges.contains_key(&who).then_some(("tiqe", 3));
                if self.send(&MsgRegisterJudge { tickets, ..register_judge(who) }, there)? {
                    self.model.register(who, tickets, epoch + DELAY);
                }
            }
            Step::Leave { who } => {
                let refused = match self.model.judges.get(&who) {
                    None => Some(2),
                    Some(judge) if judge.release > 0 => Some(23),
                    Some(_) => self.owes(who).then_some(24),
                };
                let message = MsgUnbondJudge { operator: judge(who).account() };
                if self.send(&message, refused.map(|code| ("tiqe", code)))? {
                    self.model.judges.get_mut(&who).unwrap().release = epoch + UNBONDING;
                }
            }
            Step::Pay { worker: n, payer, amount } => {
                let (before, count) = self.model.vouchers.get(&(n, payer)).copied().unwrap_or((0, 0));
                let signed = voucher(session(n, payer), epoch, before + amount, count + 1);
                let message = MsgRedeem { payee: worker(n).account(), voucher: Some(signed) };
                let convicted = self.model.convicted.contains_key(&n);
                if self.send(&message, convicted.then_some(("market", 14)))? {
                    self.model.vouchers.insert((n, payer), (before + amount, count + 1));
                    *self.model.paid.entry((epoch, n, payer)).or_default() += amount;
                }
            }
            Step::Blocks(blocks) => {
                for _ in 0..blocks {
                    let (pots, vesting) = (self.pots(), self.vesting());
                    self.bed.block();
                    let known = self.model.convicted.clone();
                    self.model.end();
                    let newly = self.model.convicted.keys().filter(|n| !known.contains_key(n));
                    for n in newly.copied().collect::<Vec<u8>>() {
                        self.model.refund(n, &pots, vesting[&n]);
                    }
                    self.pay_judges(&pots);
                    self.compare()?;
                    self.model.height += 1;
                }
            }
        }
        Ok(())
    }
}

fn run(steps: &[Step]) -> Result<Run, TestCaseError> {
    let mut run = Run::new();
    for step in steps {
        run.apply(step)?;
    }
    Ok(run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Random sequences of 500 steps give the rounds, the verdicts and the money that the model says.
    #[test]
    fn audits_are_those_of_the_model(steps in proptest::collection::vec(step(), 500)) {
        let run = run(&steps)?;
        for kind in ["MsgSubmitBeacon", "MsgCommitScores", "MsgRevealScores", "MsgRegisterJudge", "refused"] {
            prop_assert!(run.seen.contains_key(kind), "no {} in {:?}", kind, run.seen);
        }
        let (trials, guilty) = (run.model.trials.len(), run.model.convicted.len());
        let refunds: u128 = run.model.refunds.values().sum();
        let appeals = run.model.trials.values().filter(|trial| trial.appealed.is_some()).count();
        println!("{:?}, epoch {}, {trials} trials, {appeals} appeals, {guilty} guilty, {refunds} refunded", run.seen, run.model.epoch());
    }
}
