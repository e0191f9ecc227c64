//! The judge service: watches the chain, and in each window of a round does what its seat asks for.
//!
//! | window | duty |
//! | --- | --- |
//! | beacon | one VRF proof per held profile |
//! | commit | with a seat: disclose and score every sample, write salt and scores down, commit to them |
//! | reveal | reveal what was written down |
//! | any | vote in open trials whose samples are drawn |
//!
//! Each duty is a task of its own, and the evaluators have threads of their own: the chain is watched whatever they wait for,
//! a trial holds up no round and no round a trial. Rounds that are due together are scored together.
//!
//! Always holds: what is committed lies durably in the journal first; every call has a deadline; an audit ends in time
//! for its transaction, whatever the workers do; an error of one duty is logged and the duty tried again while its window
//! lasts.

mod disclose;
mod duties;
mod duty;
mod journal;
mod pace;
mod tasks;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use polylink_protocol::Digest;
use polylink_protocol::client::{ChainClient, ClientError};
use polylink_protocol::keys::{AccountKey, ServiceKey};
use polylink_protocol::market_v1::Params as MarketParams;
use polylink_protocol::tiqe::VrfKey;
use polylink_protocol::tiqe_v1::{Trial, TrialState};
use tokio::time::Instant;

use crate::{Auditor, JudgeError};
use duties::{Due, Duties};
use duty::{Duty, blocks_to_commit, blocks_to_vote, duty};
use journal::Journal;
use pace::{Pace, Plan};
use tasks::{Key, Tasks};

/// Votes under way at once; further trials wait for them.
const VOTES_MAX: usize = 4;
/// How long a trial rests after a vote in it failed.
const VOTE_REST: Duration = Duration::from_secs(5);

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
    duties: Arc<Duties>,
    pace: Pace,
    tasks: Tasks,
    /// Trials that need nothing more before this instant; None: nothing ever. The ledger refuses a second vote anyway.
    voted: BTreeMap<u64, Option<Instant>>,
}

/// Runs until `shutdown` resolves, or the evaluators are gone.
pub async fn run(
    config: JudgeConfig,
    chain: ChainClient,
    auditor: Auditor,
    shutdown: impl Future<Output = ()>,
) -> Result<(), JudgeError> {
    let chain_id = chain.status().await?.chain_id;
    let journal = Journal::open(&config.home)?;
    let disclosing = disclose::Client::new()?;
    let mut ticks = tokio::time::interval(config.poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let duties = Duties { config, chain, chain_id, auditor, journal, disclosing };
    let mut judge =
        Judge { duties: Arc::new(duties), pace: Pace::default(), tasks: Tasks::default(), voted: BTreeMap::new() };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            _ = ticks.tick() => {}
            () = judge.tasks.ended() => {}
        }
        // Dropping a look or a duty midway loses nothing, since what counts is in the journal or on chain.
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            looked = judge.look() => match looked {
                Err(error @ JudgeError::EvaluatorsEnded) => return Err(error),
                Err(error) => tracing::warn!(%error, "the chain could not be looked at; it is tried again"),
                Ok(()) => {}
            }
        }
    }
}

impl Judge {
    /// Begins what is due and not under way yet.
    async fn look(&mut self) -> Result<(), JudgeError> {
        self.reap().await?;
        let chain = &self.duties.chain;
        let (epoch, height) = chain.epoch().await?;
        self.pace.observe(Instant::now(), height);
        let market = chain.market_params().await?;
        if let Some(audited) = epoch.checked_sub(1) {
            let mut rounds = Vec::new();
            for held in self.duties.auditor.held() {
                let round = chain.round(audited, &held.profile).await?;
                rounds.extend(round.map(|round| Due { epoch: audited, held: *held, round }));
            }
            let mut due = Vec::new();
            for round in rounds {
                self.attend(&market, height, round, &mut due)?;
            }
            self.score(&market, height, due);
            self.duties.journal.forget_before(audited.saturating_sub(2))?;
        }
        self.vote(&market, height).await
    }

    async fn reap(&mut self) -> Result<(), JudgeError> {
        for (keys, result) in self.tasks.reap().await {
            let voted = match keys[..] {
                [Key::Vote(id)] => Some(id),
                _ => None,
            };
            match result {
                Ok(()) => _ = voted.map(|id| self.voted.insert(id, None)),
                Err(error @ JudgeError::EvaluatorsEnded) => return Err(error),
                Err(error) => {
                    tracing::warn!(?keys, %error, "a duty failed; it is tried again while its window lasts");
                    // What the ledger refused it refuses again; a node that did not answer may have a better day.
                    let refused = matches!(error, JudgeError::Chain(ClientError::Refused { .. }));
                    let rest = (!refused).then(|| Instant::now() + VOTE_REST);
                    voted.map(|id| self.voted.insert(id, rest));
                }
            }
        }
        Ok(())
    }

    /// Begins the round's duty of this block; one that is to be scored is put with the others.
    fn attend(&mut self, market: &MarketParams, height: u64, due: Due, score: &mut Vec<Due>) -> Result<(), JudgeError> {
        let (epoch, profile) = (due.epoch, due.held.profile);
        let entry = self.duties.journal.load(epoch, &profile)?;
        let now = duty(market, height, epoch, &due.round, &self.duties.me(), entry.is_some());
        let key = Key::Round(epoch, profile, now);
        if now == Duty::None || self.tasks.has(&key) {
            return Ok(());
        }
        let duties = Arc::clone(&self.duties);
        match (now, entry) {
            (Duty::Beacon, _) => {
                self.tasks.begin(vec![key], async move { duties.submit_beacon(epoch, &profile).await });
            }
            (Duty::Commit, Some(entry)) => {
                self.tasks.begin(vec![key], async move { duties.commit(epoch, &profile, &entry).await });
            }
            (Duty::Commit, None) if !self.tasks.has(&Key::Score(epoch, profile)) => score.push(due),
            (Duty::Reveal, Some(entry)) => {
                self.tasks.begin(vec![key], async move { duties.reveal(epoch, &profile, entry).await });
            }
            _ => {}
        }
        Ok(())
    }

    /// Scores rounds together, as long as there is time.
    fn score(&mut self, market: &MarketParams, height: u64, due: Vec<Due>) {
        let Some(first) = due.first() else { return };
        // A judge that just started watches a block first: else it could not tell a slow worker from a late one.
        let Some(block_time) = self.pace.block_time() else { return };
        let left = blocks_to_commit(market, height, first.epoch);
        let Some(plan) = Plan::new(Instant::now(), block_time, left) else {
            tracing::warn!(epoch = first.epoch, "too late to score: the commit window is about to close");
            return;
        };
        let keys = due.iter().map(|due| Key::Score(due.epoch, due.held.profile)).collect();
        let duties = Arc::clone(&self.duties);
        self.tasks.begin(keys, async move { duties.score_rounds(due, plan).await });
    }

    async fn vote(&mut self, market: &MarketParams, height: u64) -> Result<(), JudgeError> {
        let open: Vec<Trial> =
            self.duties.trials().await?.into_iter().filter(|t| t.state() == TrialState::Open).collect();
        self.voted.retain(|id, _| open.iter().any(|trial| trial.id == *id));
        let Some(block_time) = self.pace.block_time() else { return Ok(()) };
        let now = Instant::now();
        for trial in open {
            let rests = self.voted.get(&trial.id).is_some_and(|until| until.is_none_or(|until| now < until));
            if rests || trial.samples.is_empty() || self.tasks.has(&Key::Vote(trial.id)) {
                continue;
            }
            if self.tasks.votes() >= VOTES_MAX {
                break;
            }
            let profile = Digest::from_slice(&trial.profile_digest);
            let held = self.duties.auditor.held().iter().find(|h| Some(h.profile) == profile).copied();
            let plan = Plan::new(now, block_time, blocks_to_vote(market, height, trial.deadline_epoch));
            let (Some(held), Some(plan)) = (held, plan) else { continue };
            // In an appeal everybody votes anew.
            let appeal = trial.appealed_epoch > 0;
            if trial.votes.iter().all(|vote| vote.judge != self.duties.me() || vote.appeal != appeal) {
                let (duties, key) = (Arc::clone(&self.duties), Key::Vote(trial.id));
                self.tasks.begin(vec![key], async move { duties.vote(trial, held, plan).await });
            }
        }
        Ok(())
    }
}
