//! What the duties do. Each runs as a task; they share keys, chain, evaluators and journal.

use polylink_protocol::client::ChainClient;
use polylink_protocol::tiqe::{genesis_beacon, score_commitment, vrf_input};
use polylink_protocol::tiqe_v1::{
    MsgCommitScores, MsgRevealScores, MsgSubmitBeacon, MsgVoteTrial, QueryBeaconRequest, QueryBeaconResponse,
    QueryTrialsRequest, QueryTrialsResponse, Round, Score, Scores, Trial,
};
use polylink_protocol::{Digest, tx};

use super::JudgeConfig;
use super::disclose::{self, Ask};
use super::journal::{Entry, Journal};
use super::pace::Plan;
use crate::evaluate::{Case, HeldProfile};
use crate::{Auditor, Finding, JudgeError};

/// What every duty may use.
pub(super) struct Duties {
    pub(super) config: JudgeConfig,
    pub(super) chain: ChainClient,
    pub(super) chain_id: String,
    pub(super) auditor: Auditor,
    pub(super) journal: Journal,
    pub(super) disclosing: disclose::Client,
}

/// A round of a held profile.
pub(super) struct Due {
    pub(super) epoch: u64,
    pub(super) held: HeldProfile,
    pub(super) round: Round,
}

impl Duties {
    /// The judge's own account.
    pub(super) fn me(&self) -> String {
        self.config.account.address().account()
    }

    pub(super) async fn submit_beacon(&self, epoch: u64, profile: &Digest) -> Result<(), JudgeError> {
        let previous = match epoch.checked_sub(1) {
            None => genesis_beacon(&self.chain_id, profile),
            Some(before) => self.beacon(before, profile).await?,
        };
        let proof = self.config.vrf.prove(&vrf_input(&self.chain_id, &previous, epoch, profile))?;
        let message = MsgSubmitBeacon { judge: self.me(), epoch, profile_digest: profile.to_vec(), proof };
        self.send(tx::any(&message)).await?;
        tracing::info!(epoch, "beacon proof sent");
        Ok(())
    }

    /// The newest beacon of the profile at or before this epoch.
    async fn beacon(&self, epoch: u64, profile: &Digest) -> Result<Digest, JudgeError> {
        let request = QueryBeaconRequest { epoch, profile_digest: profile.to_vec() };
        let answer: QueryBeaconResponse = self.chain.query("/polylink.tiqe.v1.Query/Beacon", &request).await?;
        Ok(Digest::from_slice(&answer.beacon).unwrap_or_else(|| genesis_beacon(&self.chain_id, profile)))
    }

    /// Discloses and scores rounds that are due together, in one batch; what was found is durable when this returns.
    pub(super) async fn score_rounds(&self, rounds: Vec<Due>, plan: Plan) -> Result<(), JudgeError> {
        let mut asked = Vec::new();
        for due in &rounds {
            // Samples are drawn by a beacon, so that a round that has them has it.
            let beacon = Digest::from_slice(&due.round.beacon).unwrap_or(Digest([0; 32]));
            asked.extend(due.round.samples.iter().map(|sample| (Ask { held: due.held, sample }, beacon)));
        }
        let mut scores = self.audit(asked, plan).await?.into_iter();
        for due in &rounds {
            let scores = scores.by_ref().take(due.round.samples.len()).collect();
            let mut salt = [0; 32];
            getrandom::fill(&mut salt).map_err(|e| JudgeError::Random(e.to_string()))?;
            self.journal.store(due.epoch, &due.held.profile, &Entry { salt, scores: Scores { scores } })?;
        }
        Ok(())
    }

    /// One score per sample, in their order.
    async fn audit(&self, asked: Vec<(Ask<'_>, Digest)>, plan: Plan) -> Result<Vec<Score>, JudgeError> {
        let clip = self.chain.tiqe_params().await?.evidence_clip_milli;
        let caller = disclose::Caller {
            chain: &self.chain,
            chain_id: &self.chain_id,
            judge: &self.me(),
            key: &self.config.disclosure,
        };
        let (asks, beacons): (Vec<Ask<'_>>, Vec<Digest>) = asked.into_iter().unzip();
        // All transcripts are had first, so that the evaluators see them in one batch.
        let disclosed = self.disclosing.all(&caller, &asks, plan.disclosed_by).await?;
        let shown: Vec<bool> = disclosed.iter().map(Option::is_some).collect();
        let cases = disclosed.into_iter().zip(beacons);
        let cases = cases.filter_map(|(transcript, beacon)| Some(Case { transcript: transcript?, beacon }));
        let mut findings = self.auditor.evaluate(cases.collect(), clip, plan.evaluated_by).await?.into_iter();
        let mut scores = Vec::with_capacity(asks.len());
        for (ask, shown) in asks.iter().zip(shown) {
            let finding = if shown { findings.next() } else { None };
            self.journal.note(ask.sample.epoch, &ask.sample.worker, finding.as_ref());
            scores.push(match finding {
                Some(Finding { score, .. }) => Score { sample: ask.sample.number, ..score },
                None => Score { sample: ask.sample.number, missing: true, ..Default::default() },
            });
        }
        Ok(scores)
    }

    pub(super) async fn commit(&self, epoch: u64, profile: &Digest, entry: &Entry) -> Result<(), JudgeError> {
        let address = self.config.account.address();
        let commitment = score_commitment(&self.chain_id, epoch, profile, &address, &entry.salt, &entry.scores);
        let message = MsgCommitScores {
            judge: address.account(),
            epoch,
            profile_digest: profile.to_vec(),
            commitment: commitment.to_vec(),
        };
        self.send(tx::any(&message)).await?;
        tracing::info!(epoch, samples = entry.scores.scores.len(), "scores committed");
        Ok(())
    }

    pub(super) async fn reveal(&self, epoch: u64, profile: &Digest, entry: Entry) -> Result<(), JudgeError> {
        let message = MsgRevealScores {
            judge: self.me(),
            epoch,
            profile_digest: profile.to_vec(),
            salt: entry.salt.to_vec(),
            scores: Some(entry.scores),
        };
        self.send(tx::any(&message)).await?;
        tracing::info!(epoch, "scores revealed");
        Ok(())
    }

    /// All trials, decided ones too.
    pub(super) async fn trials(&self) -> Result<Vec<Trial>, JudgeError> {
        let request = QueryTrialsRequest::default();
        let answer: QueryTrialsResponse = self.chain.query("/polylink.tiqe.v1.Query/Trials", &request).await?;
        Ok(answer.trials)
    }

    pub(super) async fn vote(&self, trial: Trial, held: HeldProfile, plan: Plan) -> Result<(), JudgeError> {
        // The newest up to the epoch in which the trial was opened or appealed: nobody knew it when the receipts were committed.
        let beacon = self.beacon(trial.opened_epoch.max(trial.appealed_epoch), &held.profile).await?;
        let asked = trial.samples.iter().map(|sample| (Ask { held, sample }, beacon)).collect();
        let scores = self.audit(asked, plan).await?;
        let guilty = is_guilty(&scores, self.chain.tiqe_params().await?.evidence_clip_milli);
        tracing::info!(trial = trial.id, worker = trial.worker, guilty, "vote in a trial");
        let message = MsgVoteTrial { judge: self.me(), trial: trial.id, guilty, scores: Some(Scores { scores }) };
        self.send(tx::any(&message)).await
    }

    async fn send(&self, message: polylink_protocol::cosmos::Any) -> Result<(), JudgeError> {
        self.chain.broadcast(&self.config.account, vec![message]).await?;
        Ok(())
    }
}

/// A judge's vote: the fresh samples' evidence adds up against the worker. What a worker on trial does not show counts
/// as if it spoke against it, else a cheat would show its honest answers only.
fn is_guilty(scores: &[Score], clip_milli: u64) -> bool {
    let clip = i64::try_from(clip_milli).unwrap_or(i64::MAX);
    let evidence = |s: &Score| if s.missing { clip } else { s.evidence_milli };
    scores.iter().map(evidence).fold(0_i64, i64::saturating_add) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn withholding_does_not_acquit() {
        let shown = Score { evidence_milli: -442, ..Default::default() };
        let withheld = Score { missing: true, ..Default::default() };
        let wrong = Score { evidence_milli: 6_000, ..Default::default() };
        assert!(!is_guilty(&[], 6_000));
        assert!(!is_guilty(&[shown, shown], 6_000));
        assert!(is_guilty(&[shown, shown, wrong], 6_000));
        assert!(is_guilty(&[shown, withheld, withheld], 6_000));
    }
}
