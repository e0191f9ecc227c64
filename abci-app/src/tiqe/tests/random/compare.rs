//! The ledger's audit beside the model's, after a block.

use std::collections::{BTreeMap, BTreeSet};

use polylink_protocol::tiqe_v1::{
    self as proto, QueryJudgesRequest, QueryQualityRequest, QueryRoundRequest, QueryTrialsRequest, RoundPhase,
    SampleResult, TrialState,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::model::*;
use super::{JUDGES, Run};
use crate::market::keys as market_keys;
use crate::market::records::{self, counter};
use crate::market::testbed::*;
use crate::store::StateRead;
use crate::tiqe::keys;

impl Run {
    /// The pots that a verdict in this block may look at, whether or not its trial is open yet.
    pub(super) fn pots(&self) -> BTreeMap<(u64, u8, bool), Pot> {
        let now = self.model.epoch();
        let open = |trial: &&Trial| matches!(trial.verdict, Verdict::None | Verdict::Convicted);
        let open = self.model.trials.values().filter(open);
        let mut epochs: BTreeSet<u64> = (now.saturating_sub(8)..=now).collect();
        epochs.extend(open.flat_map(|trial| trial.evidence.saturating_sub(3)..=trial.evidence + 1));
        let mut all = BTreeMap::new();
        for epoch in epochs {
            for (n, private) in (0..WORKERS).flat_map(|n| [(n, false), (n, true)]) {
                let (state, kind) = (&self.bed.state, records::Kind::of(private));
                let Some(found) = records::pot(state, kind, epoch, &self.bed.profile, &worker(n)) else { continue };
                let amount = |text: &str| records::uplk(text).0;
                let pot = Pot {
                    settled: found.settled,
                    redeemed: amount(&found.redeemed),
                    paid: amount(&found.paid),
                    royalty: amount(&found.royalty),
                    judges: amount(&found.judge_reward),
                    worker: amount(&found.worker_reward),
                    carried_out: amount(&found.carried_out),
                };
                assert!(!private || pot.judges == 0, "nobody has judged this: {found:?}");
                all.insert((epoch, n, private), pot);
            }
        }
        all
    }

    /// What each worker has not received yet.
    pub(super) fn vesting(&self) -> BTreeMap<u8, u128> {
        let buckets: Vec<(Vec<u8>, Vec<u8>)> = self.bed.state.iter_prefix(&[market_keys::VESTING]).collect();
        let of = |n: u8| {
            let own = buckets.iter().filter(|(key, _)| key.ends_with(&worker(n).0));
            own.map(|(_, value)| u128::from_be_bytes(value.as_slice().try_into().unwrap())).sum()
        };
        (0..WORKERS).map(|n| (n, of(n))).collect()
    }

    /// The judges' parts of the pots that this block has settled.
    pub(super) fn pay_judges(&mut self, before: &BTreeMap<(u64, u8, bool), Pot>) {
        for (place, pot) in self.pots() {
            if pot.settled && !before.get(&place).is_some_and(|before| before.settled) && pot.judges > 0 {
                let pay = self.model.rounds[&place.0].pay.clone();
                let all: u128 = pay.values().map(|weight| u128::from(*weight)).sum();
                for (n, weight) in pay {
                    *self.model.money.entry(n).or_default() += (pot.judges * u128::from(weight) / all) as i128;
                }
            }
        }
    }

    /// After a block.
    pub(super) fn compare(&self) -> Result<(), TestCaseError> {
        let model = &self.model;
        let found = self.bed.ask(&QueryJudgesRequest {}).unwrap().judges;
        let found = found.into_iter().map(|found| {
            let (from, jailed, release) = (found.active_from_epoch, found.jailed, found.release_epoch);
            let bond = found.bond.parse().unwrap();
            (found.operator, Judge { bond, tickets: found.tickets, from, jailed, release })
        });
        let expected = model.judges.iter().map(|(n, known)| (judge(*n).account(), known.clone()));
        prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), expected.collect::<BTreeMap<_, _>>());
        for n in 0..JUDGES {
            let money = FUNDS as i128 + model.money.get(&n).copied().unwrap_or(0);
            prop_assert_eq!(self.bed.balance(judge(n)) as i128, money, "judge {}", n);
        }
        for payer in 0..PAYERS {
            let refunds = model.refunds.get(&payer).copied().unwrap_or(0);
            let money = FUNDS - u128::from(WORKERS) * DEPOSIT + refunds;
            prop_assert_eq!(self.bed.balance(super::payer_account(payer)), money, "payer {}", payer);
        }
        let epoch = model.epoch();
        for audited in [epoch.checked_sub(1), Some(epoch)].into_iter().flatten() {
            self.compare_round(audited)?;
        }
        let stages = self.bed.state.iter_prefix(&[keys::STAGE]).count();
        let waiting = |round: &&Round| matches!(round.phase, Phase::Open | Phase::Drawn);
        prop_assert_eq!(stages, model.rounds.values().filter(waiting).count());
        let baseline = counter(&self.bed.state, &keys::baseline(&self.bed.profile));
        prop_assert_eq!(baseline as i64, model.baseline, "baseline");
        (0..WORKERS).try_for_each(|n| self.compare_worker(n))
    }

    fn compare_round(&self, audited: u64) -> Result<(), TestCaseError> {
        let query = QueryRoundRequest { epoch: audited, profile_digest: self.model.profile.to_vec() };
        let found = self.bed.ask(&query).ok().and_then(|answer| answer.round);
        let (Some(found), Some(expected)) = (&found, self.model.rounds.get(&audited)) else {
            prop_assert!(
                found.is_none() && !self.model.rounds.contains_key(&audited),
                "round {}: {:?}",
                audited,
                found
            );
            return Ok(());
        };
        let over = |window: usize| self.model.height + 1 >= (audited + 1) * EPOCH_BLOCKS + WINDOWS[window];
        let phase = match expected.phase {
            Phase::Open if over(0) => RoundPhase::Beacon,
            Phase::Open => RoundPhase::Receipts,
            Phase::Drawn if over(2) => RoundPhase::Reveal,
            Phase::Drawn => RoundPhase::Commit,
            Phase::Settled => RoundPhase::Settled,
            Phase::Postponed => RoundPhase::Postponed,
        };
        prop_assert_eq!(found.phase(), phase, "round {}", audited);
        prop_assert_eq!(&found.beacon, &expected.beacon.map_or(Vec::new(), |beacon| beacon.to_vec()));
        let outputs = found.outputs.iter().map(|output| (output.judge.clone(), output.beta.clone()));
        let known = expected.outputs.iter().map(|(n, beta)| (judge(*n).account(), beta.to_vec()));
        prop_assert_eq!(outputs.collect::<BTreeMap<_, _>>(), known.collect::<BTreeMap<_, _>>());
        let seats = found.seats.iter().map(|seat| {
            let revealed = seat.revealed.clone().map(|scores| scores.scores);
            (seat.judge.clone(), (seat.seats, !seat.commitment.is_empty(), revealed, seat.pay_weight))
        });
        let known = expected.seats.iter().map(|(n, seats)| {
            let (committed, pay) = (expected.committed.contains_key(n), expected.pay.get(n).copied().unwrap_or(0));
            (judge(*n).account(), (*seats, committed, expected.revealed.get(n).cloned(), pay))
        });
        prop_assert_eq!(seats.collect::<BTreeMap<_, _>>(), known.collect::<BTreeMap<_, _>>(), "seats of {}", audited);
        self.compare_samples(&found.samples, &expected.samples)?;
        let reveals = expected.revealed.len() as u32;
        let known = expected.samples.iter().zip(&expected.results).map(|(sample, (quality, evidence))| SampleResult {
            sample: sample.number,
            quality_bps: *quality as u32,
            evidence_milli: *evidence,
            reveals,
        });
        prop_assert_eq!(&found.results, &known.collect::<Vec<_>>(), "results of {}", audited);
        Ok(())
    }

    /// With what each answer is checked against: the root of its own pot.
    fn compare_samples(&self, found: &[proto::Sample], expected: &[Sample]) -> Result<(), TestCaseError> {
        let found = found.iter().map(|sample| {
            let amount = sample.root.as_ref().map(|root| (root.count, root.amount.clone()));
            (sample.number, sample.worker.clone(), sample.epoch, sample.point.clone(), amount)
        });
        let expected = expected.iter().map(|sample| {
            let (count, amount) = self.model.roots[&(sample.epoch, sample.worker)];
            let (account, amount) = (worker(sample.worker).account(), Some((count, amount.to_string())));
            (sample.number, account, sample.epoch, sample.point.to_string(), amount)
        });
        prop_assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "samples");
        Ok(())
    }

    fn compare_worker(&self, n: u8) -> Result<(), TestCaseError> {
        let query = QueryQualityRequest { worker: worker(n).account(), profile_digest: self.model.profile.to_vec() };
        let found = self.bed.ask(&query).ok().and_then(|answer| answer.quality).filter(|quality| quality.audits > 0);
        let found = found.map(|found| Quality {
            alpha: found.alpha_bps.into(),
            quality: found.quality_bps.into(),
            evidence: found.cusum_milli as i64,
            audits: found.audits,
            epoch: found.updated_epoch,
        });
        prop_assert_eq!(found.as_ref(), self.model.quality.get(&n), "quality of {}", n);
        for audited in self.model.epoch().saturating_sub(2)..=self.model.epoch() {
            let alpha = keys::in_round(keys::ALPHA, audited, &self.bed.profile, &worker(n));
            let alpha = self.bed.state.get(&alpha).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()).into());
            prop_assert_eq!(alpha, self.model.alpha.get(&(audited, n)).copied(), "α of {} in {}", n, audited);
        }
        let trials = self.bed.ask(&QueryTrialsRequest { worker: worker(n).account() }).unwrap().trials;
        let known: Vec<_> = self.model.trials.iter().filter(|(_, trial)| trial.worker == n).collect();
        prop_assert_eq!(trials.len(), known.len(), "trials of {}", n);
        for found in trials {
            let expected = &self.model.trials[&found.id];
            let state = match expected.verdict {
                Verdict::None => TrialState::Open,
                Verdict::Convicted => TrialState::Convicted,
                Verdict::Guilty => TrialState::Guilty,
                Verdict::Acquitted => TrialState::Acquitted,
            };
            prop_assert_eq!(
                (found.state(), found.opened_epoch, found.evidence_epoch, found.deadline_epoch),
                (state, expected.opened, expected.evidence, expected.deadline),
                "trial {}",
                found.id
            );
            self.compare_samples(&found.samples, &expected.samples)?;
            prop_assert_eq!(
                (found.appeal_until_epoch, found.appealed_epoch),
                (expected.until, expected.appealed.unwrap_or(0)),
                "appeal of {}",
                found.id
            );
            let counts = |vote: &&proto::TrialVote| vote.appeal == expected.appealed.is_some();
            let votes = found.votes.iter().filter(counts).map(|vote| (vote.judge.clone(), vote.guilty));
            let known = expected.votes.iter().map(|(n, guilty)| (judge(*n).account(), *guilty));
            prop_assert_eq!(votes.collect::<BTreeMap<_, _>>(), known.collect::<BTreeMap<_, _>>());
            let slashed = (expected.verdict == Verdict::Guilty).then(|| self.model.convicted[&n].to_string());
            prop_assert_eq!(found.slashed, slashed.unwrap_or_default(), "slashed in {}", found.id);
            let refunds = (expected.verdict == Verdict::Guilty).then(|| self.model.set_aside[&n].to_string());
            prop_assert_eq!(found.refunds, refunds.unwrap_or_default(), "refunds of {}", found.id);
        }
        Ok(())
    }
}
