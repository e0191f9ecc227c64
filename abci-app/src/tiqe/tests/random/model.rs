//! The audit done again, slowly, from `docs/market-and-tiqe.md` and `docs/wire.md`: plain maps, lists that are searched and
//! sorted, hashes spelled out. It shares the VRF itself with the ledger, and nothing else.

mod refunds;

use std::collections::BTreeMap;

use polylink_protocol::Address;
use polylink_protocol::tiqe_v1::Score;
use sha2::{Digest as _, Sha256};

pub const EPOCH_BLOCKS: u64 = 20;
/// The first offsets of the windows after that of the receipts: beacon, commit, reveal, settle.
pub const WINDOWS: [u64; 4] = [5, 9, 14, 18];
pub const SEATS: usize = 7;
pub const QUORUM: usize = 2;
pub const SAMPLES: u64 = 4;
pub const TRIAL_SAMPLES: u64 = 8;
pub const TICKET: u128 = 10_000_000;
pub const DELAY: u64 = 2;
pub const LAMBDA: u64 = 3_000;
/// Less than the default, so that there are trials within a run.
pub const THRESHOLD: i64 = 7_000;
pub const CLIP: i64 = 6_000;
pub const MISSING: i64 = 2_000;
pub const FLOOR: u64 = 3_000;
pub const TRIAL_EPOCHS: u64 = 3;
pub const APPEAL_EPOCHS: u64 = 1;
pub const UNBONDING: u64 = 2;
/// More than the default, so that judges lose their places within a run.
pub const SLASH_JUDGE: u128 = 500;
pub const SLASH_WORKER: u128 = 5_000;
pub const WORKER_BOND: u128 = 100_000_000;
/// Workers that serve.
pub const WORKERS: u8 = 4;
/// Who pays them.
pub const PAYERS: u8 = 3;
/// Of each session.
pub const DEPOSIT: u128 = 1_000_000_000;
/// Of the market, whose prices and pots another model checks.
pub const VESTING: u64 = 8;
pub const FEE_BURN: u128 = 1_000;
pub const KAPPA: u128 = 5_000;
pub const JUDGES_SHARE: u128 = 3_000;
pub const ROYALTY: u128 = 500;

pub type Hash = [u8; 32];
pub type Beta = [u8; 64];

/// `H(tag; parts)` of `docs/wire.md`.
pub fn hash(tag: &str, parts: &[&[u8]]) -> Hash {
    let mut all = format!("polylink/{tag}/v1").into_bytes();
    all.push(0);
    parts.iter().for_each(|part| all.extend_from_slice(part));
    Sha256::digest(all).into()
}

/// Whether the sessions of a payer are private.
pub fn is_private(payer: u8) -> bool {
    payer + 1 == PAYERS
}

pub fn worker(n: u8) -> Address {
    Address([10 + n; 20])
}

#[derive(Clone, Debug, PartialEq)]
pub struct Judge {
    pub bond: u128,
    pub tickets: u32,
    pub from: u64,
    pub jailed: bool,
    /// Since it has left: when its bond is free.
    pub release: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until the beacon window is over.
    Open,
    /// Until the reveal window is over.
    Drawn,
    Settled,
    Postponed,
}

/// A point in a worker's pot of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub number: u32,
    pub worker: u8,
    pub epoch: u64,
    pub point: u128,
}

#[derive(Clone, Debug)]
pub struct Round {
    pub phase: Phase,
    pub outputs: BTreeMap<u8, Beta>,
    pub beacon: Option<Hash>,
    pub seats: BTreeMap<u8, u32>,
    pub samples: Vec<Sample>,
    pub committed: BTreeMap<u8, Vec<Score>>,
    pub revealed: BTreeMap<u8, Vec<Score>>,
    /// Quality and evidence of each sample.
    pub results: Vec<(u64, i64)>,
    pub pay: BTreeMap<u8, u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    pub alpha: u64,
    pub quality: u64,
    pub evidence: i64,
    pub audits: u64,
    pub epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    None,
    /// Until an appeal, or the time for one is over.
    Convicted,
    Guilty,
    Acquitted,
}

#[derive(Clone, Debug)]
pub struct Trial {
    pub worker: u8,
    pub opened: u64,
    pub evidence: u64,
    pub samples: Vec<Sample>,
    pub deadline: u64,
    /// The last epoch for an appeal, once it is convicted.
    pub until: u64,
    pub appealed: Option<u64>,
    pub votes: BTreeMap<u8, bool>,
    /// Everybody has voted.
    complete: bool,
    pub verdict: Verdict,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub chain: &'static str,
    pub profile: Hash,
    pub height: u64,
    pub judges: BTreeMap<u8, Judge>,
    /// What each judge has put in and got back.
    pub money: BTreeMap<u8, i128>,
    pub rounds: BTreeMap<u64, Round>,
    /// (epoch, worker) → receipts and their amount.
    pub roots: BTreeMap<(u64, u8), (u64, u128)>,
    pub quality: BTreeMap<u8, Quality>,
    /// α by (epoch, worker).
    pub alpha: BTreeMap<(u64, u8), u64>,
    /// The profile's running quality, in a thousandth of a basis point; 0 before there is one.
    pub baseline: i64,
    pub trials: BTreeMap<u64, Trial>,
    pub convicted: BTreeMap<u8, u128>,
    /// By (worker, payer): the newest voucher's amount and count.
    pub vouchers: BTreeMap<(u8, u8), (u128, u64)>,
    /// By (epoch, worker, payer).
    pub paid: BTreeMap<(u64, u8, u8), u128>,
    /// What each payer got back.
    pub refunds: BTreeMap<u8, u128>,
    /// By worker: what its conviction set aside for them.
    pub set_aside: BTreeMap<u8, u128>,
}

/// What the ledger says of a pot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pot {
    pub settled: bool,
    pub redeemed: u128,
    pub paid: u128,
    pub royalty: u128,
    pub judges: u128,
    pub worker: u128,
    pub carried_out: u128,
}

impl Model {
    pub fn epoch(&self) -> u64 {
        self.height / EPOCH_BLOCKS
    }

    pub fn offset(&self) -> u64 {
        self.height % EPOCH_BLOCKS
    }

    /// The judges that take part in what happens in an epoch.
    pub fn active(&self, epoch: u64) -> Vec<u8> {
        let takes_part = |judge: &Judge| !judge.jailed && judge.release == 0 && judge.from <= epoch;
        self.judges.iter().filter(|(_, judge)| takes_part(judge)).map(|(n, _)| *n).collect()
    }

    /// The beacon that the round over an epoch continues.
    pub fn beacon_before(&self, epoch: u64) -> Hash {
        let older = self.rounds.range(..epoch).rev().find_map(|(_, round)| round.beacon);
        let length = (self.chain.len() as u32).to_be_bytes();
        older.unwrap_or_else(|| hash("beacon-genesis", &[&length, self.chain.as_bytes(), &self.profile]))
    }

    pub fn register(&mut self, n: u8, tickets: u32, from: u64) {
        let bond = TICKET * u128::from(tickets);
        self.judges.insert(n, Judge { bond, tickets, from, jailed: false, release: 0 });
        *self.money.entry(n).or_default() -= bond as i128;
    }

    pub fn commit_receipts(&mut self, epoch: u64, worker: u8, count: u64, amount: u128) {
        self.roots.insert((epoch, worker), (count, amount));
        if amount > 0 {
            self.open_round(epoch);
        }
    }

    fn open_round(&mut self, epoch: u64) {
        self.rounds.entry(epoch).or_insert(Round {
            phase: Phase::Open,
            outputs: BTreeMap::new(),
            beacon: None,
            seats: BTreeMap::new(),
            samples: Vec::new(),
            committed: BTreeMap::new(),
            revealed: BTreeMap::new(),
            results: Vec::new(),
            pay: BTreeMap::new(),
        });
    }

    fn penalise(&mut self, n: u8) {
        let Some(judge) = self.judges.get_mut(&n) else { return };
        judge.bond -= judge.bond * SLASH_JUDGE / 10_000;
        judge.jailed |= judge.bond < TICKET * u128::from(judge.tickets) / 2;
    }

    /// Where a sample of a worker falls in an amount.
    fn point(&self, beacon: &Hash, of: u8, number: u32, total: u128) -> u128 {
        let digest = hash("sample", &[beacon, &worker(of).0, &self.profile, &number.to_be_bytes()]);
        // Long division, a bit at a time.
        let bits = digest.iter().flat_map(|byte| (0..8).rev().map(move |bit| u128::from(byte >> bit & 1)));
        bits.fold(0, |rest, bit| (rest * 2 + bit) % total)
    }

    /// The end of a block.
    pub fn end(&mut self) {
        let (epoch, next) = (self.epoch(), self.offset() + 1);
        let audited = epoch.checked_sub(1).filter(|audited| self.rounds.contains_key(audited));
        if let Some(audited) = audited {
            if next >= WINDOWS[1] && self.rounds[&audited].phase == Phase::Open {
                self.draw(audited);
            }
            if next >= WINDOWS[3] && self.rounds[&audited].phase == Phase::Drawn {
                self.score(audited);
            }
        }
        let over = |deadline: u64| deadline < epoch || (deadline == epoch && next == EPOCH_BLOCKS);
        let due = |trial: &Trial| match trial.verdict {
            Verdict::None => !trial.samples.is_empty() && (trial.complete || over(trial.deadline)),
            Verdict::Convicted => over(trial.until),
            Verdict::Guilty | Verdict::Acquitted => false,
        };
        let mut due: Vec<u64> = self.trials.iter().filter(|(_, trial)| due(trial)).map(|(id, _)| *id).collect();
        // Those that all have voted on come first.
        due.sort_by_key(|id| match &self.trials[id] {
            trial if trial.verdict == Verdict::Convicted => (trial.until, *id),
            trial => (if trial.complete { 0 } else { trial.deadline }, *id),
        });
        due.into_iter().for_each(|id| self.decide(id));
        let gone: Vec<u8> =
            self.judges.iter().filter(|(_, j)| j.release > 0 && j.release <= epoch).map(|x| *x.0).collect();
        for n in gone {
            *self.money.entry(n).or_default() += self.judges.remove(&n).unwrap().bond as i128;
        }
    }

    fn draw(&mut self, audited: u64) {
        let (epoch, eligible) = (self.epoch(), self.active(audited + 1));
        let outputs = self.rounds[&audited].outputs.clone();
        eligible.iter().filter(|n| !outputs.contains_key(n)).for_each(|n| self.penalise(*n));
        let waiting = |trial: &Trial| trial.samples.is_empty() && trial.verdict == Verdict::None;
        if outputs.len() < QUORUM {
            self.rounds.get_mut(&audited).unwrap().phase = Phase::Postponed;
        } else {
            let mut sorted: Vec<Beta> = outputs.values().copied().collect();
            sorted.sort_unstable();
            let previous = self.beacon_before(audited);
            let beacon = hash("beacon", &[&previous, &(sorted.len() as u32).to_be_bytes(), &sorted.concat()]);
            self.rounds.get_mut(&audited).unwrap().beacon = Some(beacon);
            // The samples: points in each pot, at most one for each receipt.
            let mut samples = Vec::new();
            for ((_, worker), (count, amount)) in self.roots.range((audited, 0)..=(audited, u8::MAX)) {
                for _ in 0..if *amount == 0 { 0 } else { SAMPLES.min(*count) } {
                    let number = samples.len() as u32;
                    let point = self.point(&beacon, *worker, number, *amount);
                    samples.push(Sample { number, worker: *worker, epoch: audited, point });
                }
            }
            // Trials that have waited for this beacon.
            let known = |t: &Trial| t.appealed.unwrap_or(t.opened) <= audited;
            for id in self.trials.iter().filter(|(_, t)| waiting(t) && known(t)).map(|x| *x.0).collect::<Vec<_>>() {
                let drawn = self.trial_samples(&self.trials[&id], &beacon);
                let trial = self.trials.get_mut(&id).unwrap();
                (trial.samples, trial.deadline) = (drawn, epoch + TRIAL_EPOCHS);
            }
            // The seats: the lowest tickets of those that have shown their output.
            let mut tickets = Vec::new();
            for n in eligible.iter().filter(|n| outputs.contains_key(n)) {
                // Of the tickets at registration: a penalty takes bond, not tickets.
                for ticket in 0..self.judges[n].tickets {
                    tickets.push((hash("seat", &[&outputs[n], &ticket.to_be_bytes()]), *n));
                }
            }
            tickets.sort_unstable();
            let round = self.rounds.get_mut(&audited).unwrap();
            round.phase = if samples.is_empty() { Phase::Settled } else { Phase::Drawn };
            for (_, n) in tickets.into_iter().take(if samples.is_empty() { 0 } else { SEATS }) {
                *round.seats.entry(n).or_default() += 1;
            }
            round.samples = samples;
        }
        if self.trials.values().any(waiting) {
            self.open_round(epoch);
        }
    }

    fn trial_samples(&self, trial: &Trial, beacon: &Hash) -> Vec<Sample> {
        let epochs = (0..4).filter_map(|back| trial.evidence.checked_sub(back));
        let pots = epochs.filter_map(|epoch| Some((epoch, *self.roots.get(&(epoch, trial.worker))?)));
        let pots: Vec<(u64, (u64, u128))> = pots.filter(|(_, (_, amount))| *amount > 0).collect();
        let receipts: u64 = pots.iter().map(|(_, (count, _))| count).sum();
        let total: u128 = pots.iter().map(|(_, (_, amount))| amount).sum();
        let sample = |at: u64| {
            let number = if trial.appealed.is_some() { 2_000_000 } else { 1_000_000 } + at as u32;
            let mut point = self.point(beacon, trial.worker, number, total);
            for (epoch, (_, amount)) in &pots {
                if point < *amount {
                    return Sample { number, worker: trial.worker, epoch: *epoch, point };
                }
                point -= amount;
            }
            unreachable!("the point is below the sum")
        };
        (0..TRIAL_SAMPLES.min(receipts)).map(sample).collect()
    }

    fn score(&mut self, audited: u64) {
        let mut round = self.rounds[&audited].clone();
        let silent = round.seats.keys().filter(|n| !round.revealed.contains_key(n));
        silent.for_each(|n| self.penalise(*n));
        let quality = |score: &Score| match (score.missing, score.has_llm) {
            (true, _) => 0,
            (_, false) => u64::from(score.cross_bps),
            (_, true) => (LAMBDA * u64::from(score.llm_bps) + (10_000 - LAMBDA) * u64::from(score.cross_bps)) / 10_000,
        };
        let evidence = |score: &Score| if score.missing { MISSING } else { score.evidence_milli };
        // The lower median over everybody's seats: each seat is a vote of its own.
        fn median<T: Ord + Copy>(mut votes: Vec<T>) -> T {
            votes.sort_unstable();
            votes[(votes.len() - 1) / 2]
        }
        for at in (0..round.samples.len()).filter(|_| !round.revealed.is_empty()) {
            let votes = |of: &dyn Fn(&Score) -> i64| -> Vec<i64> {
                let each = round.revealed.iter();
                each.flat_map(|(n, scores)| vec![of(&scores[at]); round.seats[n] as usize]).collect()
            };
            let result = (median(votes(&|score| quality(score) as i64)) as u64, median(votes(&evidence)));
            round.results.push(result);
        }
        // How near a judge is to the results, and to those of the next sample.
        let samples = round.results.len();
        let near = |score: &Score, (result, found): (u64, i64)| {
            let apart = evidence(score).abs_diff(found) * 10_000 / (2 * CLIP as u64);
            (10_000 - quality(score).abs_diff(result)) / 2 + (10_000 - apart) / 2
        };
        for (n, scores) in &round.revealed {
            let sum = |shift: usize| -> u64 {
                (0..samples).map(|at| near(&scores[at], round.results[(at + shift) % samples])).sum()
            };
            let informed = sum(0).saturating_sub(sum(1)) * 4;
            round.pay.insert(*n, u64::from(round.seats[n]) * ((sum(0) + informed) / samples as u64));
        }
        round.phase = Phase::Settled;
        let results: Vec<(u8, (u64, i64))> =
            round.samples.iter().map(|sample| sample.worker).zip(round.results.iter().copied()).collect();
        self.rounds.insert(audited, round);
        let before = self.baseline;
        for n in 0..WORKERS {
            let own: Vec<(u64, i64)> = results.iter().filter(|(of, _)| *of == n).map(|(_, result)| *result).collect();
            if !own.is_empty() {
                self.conclude(audited, n, &own, before);
            }
        }
    }

    /// What a round says of a worker; `baseline` is what it was before the round.
    fn conclude(&mut self, audited: u64, n: u8, results: &[(u64, i64)], baseline: i64) {
        let mean = results.iter().map(|(quality, _)| quality).sum::<u64>() / results.len() as u64;
        let relative = match baseline {
            0 => 10_000,
            _ => (mean * 10_000_000 / baseline as u64).min(10_000),
        };
        let relative = if relative < FLOOR { 0 } else { relative };
        if results.iter().all(|(quality, _)| *quality > 0) {
            let new = mean as i64 * 1_000;
            self.baseline = if self.baseline == 0 { new } else { (self.baseline + (new - self.baseline) / 32).max(1) };
        }
        let quality = self.quality.entry(n).or_default();
        let blend = |old: u64, new: u64| if quality.audits == 0 { new } else { (3 * old + new) / 4 };
        (quality.alpha, quality.quality) = (blend(quality.alpha, relative), blend(quality.quality, mean));
        quality.audits += results.len() as u64;
        quality.epoch = audited;
        for (_, evidence) in results {
            quality.evidence = (quality.evidence + evidence.clamp(&-CLIP, &CLIP)).max(0);
        }
        self.alpha.insert((audited, n), quality.alpha);
        let suspect = quality.evidence >= THRESHOLD;
        let open = |trial: &Trial| matches!(trial.verdict, Verdict::None | Verdict::Convicted);
        let tried = self.trials.values().any(|trial| trial.worker == n && open(trial));
        if suspect && !tried && !self.convicted.contains_key(&n) {
            let (opened, evidence) = (self.epoch(), audited);
            let (samples, votes) = (Vec::new(), BTreeMap::new());
            let (deadline, complete, verdict, until, appealed) = (0, false, Verdict::None, 0, None);
            let trial =
                Trial { worker: n, opened, evidence, samples, deadline, until, appealed, votes, complete, verdict };
            self.trials.insert(self.trials.len() as u64 + 1, trial);
            self.open_round(opened);
        }
    }

    pub fn vote(&mut self, id: u64, n: u8, guilty: bool) {
        let voters = self.active(self.trials[&id].opened);
        let trial = self.trials.get_mut(&id).unwrap();
        trial.votes.insert(n, guilty);
        trial.complete |= voters.iter().all(|n| trial.votes.contains_key(n));
    }

    /// The same again, from the samples on.
    pub fn appeal(&mut self, id: u64) {
        let epoch = self.epoch();
        let trial = self.trials.get_mut(&id).unwrap();
        (trial.verdict, trial.appealed, trial.deadline, trial.complete) = (Verdict::None, Some(epoch), 0, false);
        trial.samples.clear();
        trial.votes.clear();
        self.open_round(epoch);
    }

    fn decide(&mut self, id: u64) {
        let trial = self.trials[&id].clone();
        if trial.verdict == Verdict::Convicted {
            return self.execute(id, Verdict::Guilty);
        }
        let voters = self.active(trial.opened);
        let bond = |n: &&u8| self.judges[n].bond;
        let all: u128 = voters.iter().map(|n| bond(&n)).sum();
        let against: u128 = voters.iter().filter(|n| trial.votes.get(n) == Some(&true)).map(|n| bond(&n)).sum();
        voters.iter().filter(|n| !trial.votes.contains_key(n)).for_each(|n| self.penalise(*n));
        match (3 * against > 2 * all, trial.appealed) {
            (true, None) => {
                let until = self.epoch() + APPEAL_EPOCHS;
                let trial = self.trials.get_mut(&id).unwrap();
                (trial.verdict, trial.until) = (Verdict::Convicted, until);
            }
            (true, Some(_)) => self.execute(id, Verdict::Guilty),
            (false, _) => self.execute(id, Verdict::Acquitted),
        }
    }

    fn execute(&mut self, id: u64, verdict: Verdict) {
        let trial = self.trials[&id].clone();
        if verdict == Verdict::Guilty {
            self.convicted.insert(trial.worker, WORKER_BOND * SLASH_WORKER / 10_000);
        }
        self.trials.get_mut(&id).unwrap().verdict = verdict;
        self.quality.get_mut(&trial.worker).unwrap().evidence = 0;
    }
}
