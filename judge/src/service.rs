//! The judge service: watches the chain, and in each window of a round does what its seat asks for.
//!
//! | window | duty |
//! | --- | --- |
//! | beacon | one VRF proof per held profile |
//! | commit | with a seat: disclose and score every sample, write salt and scores down, commit to them |
//! | reveal | reveal what was written down |
//! | any | vote in open trials whose samples are drawn |
//!
//! Always holds: what is committed lies durably in the journal first; every call has a deadline; an error of one duty is
//! logged and tried again at the next poll while its window lasts.

mod disclose;
mod duty;
mod journal;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use polylink_protocol::client::ChainClient;
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1::Params as MarketParams;
use polylink_protocol::tiqe::{VrfKey, genesis_beacon, score_commitment, vrf_input};
use polylink_protocol::tiqe_v1::{
    MsgCommitScores, MsgRevealScores, MsgSubmitBeacon, MsgVoteTrial, QueryBeaconRequest, QueryBeaconResponse,
    QueryTrialsRequest, QueryTrialsResponse, Round, Sample, Score, Scores, Trial, TrialState,
};
use polylink_protocol::{Digest, tx};

use crate::{Auditor, Finding, JudgeError};
use duty::{Duty, duty};
use journal::{Entry, Journal};

/// A judge's keys and files.
pub struct JudgeConfig {
    /// Signs its transactions.
    pub account: AccountKey,
    /// Proves its beacon outputs.
    pub vrf: VrfKey,
    /// Signs its requests for transcripts.
    pub disclosure: ServiceKey,
    /// Journal and findings.
    pub home: PathBuf,
    /// How often the chain is looked at.
    pub poll: Duration,
}

/// The running service's state.
struct Judge {
    config: JudgeConfig,
    chain: ChainClient,
    chain_id: String,
    auditor: Auditor,
    journal: Journal,
    disclosing: disclose::Client,
    /// Trials voted in by this process; the ledger refuses a second vote in any case.
    voted: BTreeSet<u64>,
}

/// Runs until `shutdown` resolves.
pub async fn run(
    config: JudgeConfig,
    chain: ChainClient,
    auditor: Auditor,
    shutdown: impl Future<Output = ()>,
) -> Result<(), JudgeError> {
    let chain_id = chain.status().await?.chain_id;
    let journal = Journal::open(&config.home)?;
    let disclosing = disclose::Client::new()?;
    let mut judge = Judge { config, chain, chain_id, auditor, journal, disclosing, voted: BTreeSet::new() };
    let mut ticks = tokio::time::interval(judge.config.poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            _ = ticks.tick() => {}
        }
        // A duty may wait for a block; dropping it midway loses nothing, since what counts is in the journal or on chain.
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            looked = judge.look() => {
                if let Err(error) = looked {
                    tracing::warn!(%error, "a duty failed; it is tried again while its window lasts");
                }
            }
        }
    }
}

impl Judge {
    async fn look(&mut self) -> Result<(), JudgeError> {
        let (epoch, height) = self.chain.epoch().await?;
        let Some(audited) = epoch.checked_sub(1) else { return Ok(()) };
        let market = self.chain.market_params().await?;
        let profiles: Vec<Digest> = self.auditor.held.iter().map(|h| h.profile).collect();
        for profile in profiles {
            let round = self.chain.round(audited, &profile).await?;
            self.attend(&market, height, audited, &profile, round).await?;
        }
        self.vote().await?;
        self.journal.forget_before(audited.saturating_sub(2))
    }

    async fn attend(
        &mut self,
        market: &MarketParams,
        height: u64,
        audited: u64,
        profile: &Digest,
        round: Option<Round>,
    ) -> Result<(), JudgeError> {
        let me = self.config.account.address().account();
        let entry = self.journal.load(audited, profile)?;
        match duty(market, height, audited, round.as_ref(), &me, entry.is_some()) {
            Duty::None => Ok(()),
            Duty::Beacon => self.submit_beacon(audited, profile).await,
            Duty::Commit => {
                let round = round.unwrap_or_default();
                let entry = match entry {
                    Some(entry) => entry,
                    None => self.score_round(audited, profile, &round.samples).await?,
                };
                self.commit(audited, profile, &entry).await
            }
            Duty::Reveal => match entry {
                Some(entry) => self.reveal(audited, profile, entry).await,
                None => Ok(()),
            },
        }
    }

    async fn submit_beacon(&self, epoch: u64, profile: &Digest) -> Result<(), JudgeError> {
        let previous = match epoch.checked_sub(1) {
            None => genesis_beacon(&self.chain_id, profile),
            Some(before) => {
                let request = QueryBeaconRequest { epoch: before, profile_digest: profile.to_vec() };
                let answer: QueryBeaconResponse = self.chain.query("/polylink.tiqe.v1.Query/Beacon", &request).await?;
                Digest::from_slice(&answer.beacon).unwrap_or_else(|| genesis_beacon(&self.chain_id, profile))
            }
        };
        let proof = self.config.vrf.prove(&vrf_input(&self.chain_id, &previous, epoch, profile))?;
        let judge = self.config.account.address().account();
        self.send(tx::any(&MsgSubmitBeacon { judge, epoch, profile_digest: profile.to_vec(), proof })).await?;
        tracing::info!(epoch, "beacon proof sent");
        Ok(())
    }

    /// Discloses and scores; what was found is durable when this returns.
    async fn score_round(&mut self, epoch: u64, profile: &Digest, samples: &[Sample]) -> Result<Entry, JudgeError> {
        let scores = self.audit(epoch, profile, samples).await?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| JudgeError::Random(e.to_string()))?;
        let entry = Entry { salt, scores: Scores { scores } };
        self.journal.store(epoch, profile, &entry)?;
        Ok(entry)
    }

    async fn audit(&mut self, epoch: u64, profile: &Digest, samples: &[Sample]) -> Result<Vec<Score>, JudgeError> {
        let clip = self.chain.tiqe_params().await?.evidence_clip_milli;
        let caller = disclose::Caller {
            chain: &self.chain,
            chain_id: &self.chain_id,
            judge: &self.config.account.address().account(),
            key: &self.config.disclosure,
        };
        // All of a round's transcripts are had first, so that the evaluators see them in one batch.
        let disclosed = self.disclosing.all(&caller, profile, samples).await?;
        let transcripts: Vec<_> = disclosed.iter().flatten().cloned().collect();
        let mut findings = self.auditor.evaluate(&transcripts, clip).await?.into_iter();
        let mut scores = Vec::with_capacity(samples.len());
        for (sample, transcript) in samples.iter().zip(&disclosed) {
            let finding = transcript.as_ref().and_then(|_| findings.next());
            self.journal.note(epoch, &sample.worker, finding.as_ref());
            scores.push(match finding {
                Some(Finding { score, .. }) => Score { sample: sample.number, ..score },
                None => Score { sample: sample.number, missing: true, ..Default::default() },
            });
        }
        Ok(scores)
    }

    async fn commit(&self, epoch: u64, profile: &Digest, entry: &Entry) -> Result<(), JudgeError> {
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

    async fn reveal(&self, epoch: u64, profile: &Digest, entry: Entry) -> Result<(), JudgeError> {
        let message = MsgRevealScores {
            judge: self.config.account.address().account(),
            epoch,
            profile_digest: profile.to_vec(),
            salt: entry.salt.to_vec(),
            scores: Some(entry.scores),
        };
        self.send(tx::any(&message)).await?;
        tracing::info!(epoch, "scores revealed");
        Ok(())
    }

    async fn vote(&mut self) -> Result<(), JudgeError> {
        let request = QueryTrialsRequest::default();
        let trials: QueryTrialsResponse = self.chain.query("/polylink.tiqe.v1.Query/Trials", &request).await?;
        let me = self.config.account.address().account();
        let mine = |t: &Trial| {
            t.state() == TrialState::Open
                && !t.samples.is_empty()
                && !self.voted.contains(&t.id)
                && t.votes.iter().all(|v| v.judge != me)
                && self.auditor.held.iter().any(|h| h.profile.0 == t.profile_digest.as_slice())
        };
        let open: Vec<Trial> = trials.trials.into_iter().filter(mine).collect();
        for trial in open {
            let Some(profile) = Digest::from_slice(&trial.profile_digest) else { continue };
            let scores = self.audit(trial.evidence_epoch, &profile, &trial.samples).await?;
            let clip = self.chain.tiqe_params().await?.evidence_clip_milli;
            let guilty = is_guilty(&scores, clip);
            tracing::info!(trial = trial.id, worker = trial.worker, guilty, "vote in a trial");
            let message = MsgVoteTrial { judge: me.clone(), trial: trial.id, guilty, scores: Some(Scores { scores }) };
            self.send(tx::any(&message)).await?;
            self.voted.insert(trial.id);
        }
        Ok(())
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
