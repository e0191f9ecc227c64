//! Trials: the only thing that slashes a worker.
//!
//! A worker whose evidence crosses the threshold is tried once per profile at a time, by what it had already committed:
//! the pots of the epoch whose scores opened the trial and of the three before it, of which the next beacon of the
//! profile, unknown until then, draws samples by amount. That beacon comes whether or not anybody commits anything, so
//! that neither silence nor honest answers from then on help. Every judge of the profile that was active when the trial
//! opened has its bond as its vote; guilty needs more than two thirds of that bond. A conviction holds when its worker has
//! not appealed in time ([`super::appeal`]), or has been convicted again. Until then the worker's vesting pay and unbonding
//! wait, and nothing is slashed.

use polylink_protocol::market_v1::Pot;
use polylink_protocol::tiqe::sample_point;
use polylink_protocol::tiqe_v1::{
    MsgVoteTrial, MsgVoteTrialResponse, Params, Quality, Round, Sample, Trial, TrialState, TrialVote,
};
use polylink_protocol::{Address, Amount, Bps, Digest, Message as _};

use super::error::TiqeError;
use super::{
    APPEAL_SAMPLE_FIRST, TRIAL_POT_EPOCHS, TRIAL_SAMPLE_FIRST, TRIALS_PER_BEACON, VERDICTS_PER_BLOCK, appeal, judges,
    keys, params, round, scores,
};
use crate::context::Context;
use crate::error::TxError;
use crate::market::records::{counter, load, save, uplk};
use crate::market::{self, Kind, bonds, committed, models, refunds, vesting};
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// True while a worker is on trial for any profile.
pub fn on_trial(state: &dyn StateRead, worker: &Address) -> bool {
    state.iter_prefix(&keys::open_trials(worker).finish()).next().is_some()
}

fn open_for(state: &dyn StateRead, worker: &Address, profile: &Digest) -> Option<u64> {
    let key = keys::open_trials(worker).bytes(&profile.0).finish();
    state.contains(&key).then(|| counter(state, &key))
}

pub(super) fn stored(state: &dyn StateRead, id: u64) -> Option<Trial> {
    load(state, &keys::trial(id))
}

/// The votes of a trial, by judge.
pub(super) fn votes(state: &dyn StateRead, id: u64) -> Vec<(Address, TrialVote)> {
    let prefix = keys::votes(id).finish();
    state
        .iter_prefix(&prefix)
        .filter_map(|(key, value)| Some((keys::last_address(&key)?, TrialVote::decode(value.as_slice()).ok()?)))
        .collect()
}

/// Whether a judge has voted in the trial, or, after an appeal, in that: there it votes anew, in place of its first vote.
fn has_voted(state: &dyn StateRead, trial: &Trial, judge: &Address) -> bool {
    let vote: Option<TrialVote> = load(state, &keys::votes(trial.id).bytes(&judge.0).finish());
    vote.is_some_and(|vote| vote.appeal == (trial.appealed_epoch > 0))
}

pub(super) fn event(ctx: &mut Context, trial: &Trial, what: &str) {
    let profile = Digest::from_slice(&trial.profile_digest).map_or_else(String::new, |profile| profile.to_string());
    ctx.emit(
        "trial",
        [
            ("trial", trial.id.to_string()),
            ("worker", trial.worker.clone()),
            ("profile", profile),
            ("state", what.into()),
            ("slashed", trial.slashed.clone()),
            ("clawed_back", trial.clawed_back.clone()),
            ("refunds", trial.refunds.clone()),
        ],
    );
}

/// Opens a trial over the receipts up to `evidence_epoch`, unless one is open for this worker and profile, or the worker
/// is jailed: what it did before its conviction is punished once.
pub(super) fn open(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    worker: &Address,
    profile: &Digest,
    evidence_epoch: u64,
) {
    let jailed = market::worker(state, worker).is_some_and(|record| record.jailed);
    if jailed || open_for(state, worker, profile).is_some() {
        return;
    }
    let id = counter(state, &[keys::TRIAL_NEXT]).max(1);
    state.put(vec![keys::TRIAL_NEXT], id.saturating_add(1).to_be_bytes().to_vec());
    let mut trial = Trial {
        id,
        worker: worker.account(),
        profile_digest: profile.to_vec(),
        opened_epoch: ctx.epoch,
        evidence_epoch,
        ..Default::default()
    };
    trial.set_state(TrialState::Open);
    save(state, keys::trial(id), &trial);
    state.put(keys::open_trials(worker).bytes(&profile.0).finish(), id.to_be_bytes().to_vec());
    state.put(keys::trials_of(worker).u64(id).finish(), keys::THERE.to_vec());
    state.put(keys::waiting_trials(profile).u64(id).finish(), keys::THERE.to_vec());
    // The next beacon that nobody can know yet: of the round over the epoch that runs now.
    round::open(state, ctx.epoch, profile);
    event(ctx, &trial, "open");
}

/// True while a trial of the profile waits for its samples.
pub(super) fn is_waiting(state: &dyn StateRead, profile: &Digest) -> bool {
    state.iter_prefix(&keys::waiting_trials(profile).finish()).next().is_some()
}

/// Draws the samples of the profile's trials that wait for this round's beacon.
pub(super) fn draw(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    drawn: &Round,
    profile: &Digest,
    beacon: &Digest,
    params: &Params,
) -> Result<(), TxError> {
    let prefix = keys::waiting_trials(profile).finish();
    let waiting: Vec<u64> =
        state.iter_prefix(&prefix).take(TRIALS_PER_BEACON).filter_map(|(key, _)| keys::last_id(&key)).collect();
    for id in waiting {
        // A trial that opened, or was appealed, after this beacon's window began waits for the next one.
        let known = |trial: &Trial| trial.opened_epoch.max(trial.appealed_epoch) <= drawn.epoch;
        let Some(mut trial) = stored(state, id).filter(known) else { continue };
        state.delete(keys::waiting_trials(profile).u64(id).finish());
        trial.samples = sample(state, &trial, profile, beacon, params)?;
        trial.deadline_epoch = ctx.epoch.saturating_add(params.trial_epochs);
        save(state, keys::trial(id), &trial);
        state.put(keys::trial_due(trial.deadline_epoch, id), keys::THERE.to_vec());
        event(ctx, &trial, "sampled");
    }
    Ok(())
}

/// Points of the worker's last pots up to the trial's epoch, by amount over all of them together; at most one for each
/// receipt in them.
fn sample(
    state: &dyn StateRead,
    trial: &Trial,
    profile: &Digest,
    beacon: &Digest,
    params: &Params,
) -> Result<Vec<Sample>, TxError> {
    let worker: Address = trial.worker.parse()?;
    let pots: Vec<Pot> = (0..TRIAL_POT_EPOCHS)
        .filter_map(|back| trial.evidence_epoch.checked_sub(back))
        .filter_map(|epoch| market::pot(state, Kind::Audited, epoch, profile, &worker))
        .filter(|pot| !committed(pot).is_zero())
        .collect();
    let total: Amount = pots.iter().map(committed).sum();
    let receipts = pots.iter().filter_map(|pot| pot.root.as_ref()).fold(0_u64, |sum, r| sum.saturating_add(r.count));
    let first = if trial.appealed_epoch == 0 { TRIAL_SAMPLE_FIRST } else { APPEAL_SAMPLE_FIRST };
    let mut samples = Vec::new();
    for at in 0..u64::from(params.trial_samples).min(receipts) as u32 {
        let number = first.saturating_add(at);
        let Some(mut point) = sample_point(beacon, &worker, profile, number, total) else { break };
        for pot in &pots {
            if point < committed(pot) {
                samples.push(round::sample_of(pot, number, point));
                break;
            }
            point = point.saturating_sub(committed(pot));
        }
    }
    Ok(samples)
}

impl Handle for MsgVoteTrial {
    const AMINO_NAME: &'static str = "polylink/tiqe/VoteTrial";
    type Response = MsgVoteTrialResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.judge.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        scores::check_ranges(self.scores.as_ref())?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgVoteTrialResponse, TxError> {
        let operator: Address = self.judge.parse()?;
        let scores = scores::check_ranges(self.scores.as_ref())?;
        let trial = stored(state, self.trial).ok_or(TiqeError::UnknownTrial(self.trial))?;
        let closed = |reason: String| TiqeError::TrialClosed { id: self.trial, reason };
        if trial.state() != TrialState::Open {
            return Err(closed("it has its verdict".into()).into());
        }
        if trial.samples.is_empty() {
            return Err(closed("its samples are not drawn yet".into()).into());
        }
        if ctx.epoch > trial.deadline_epoch {
            return Err(closed(format!("votes were taken until epoch {}", trial.deadline_epoch)).into());
        }
        let profile = models::digest(&trial.profile_digest)?;
        // Bond that came after the trial was opened has no vote in it.
        let judge = judges::acting(state, &operator, &profile, trial.opened_epoch)?;
        let key = keys::votes(trial.id).bytes(&operator.0).finish();
        if has_voted(state, &trial, &operator) {
            return Err(TiqeError::Twice("vote").into());
        }
        scores::check_complete(&scores.scores, &trial.samples, params::at(state, ctx.epoch).evidence_clip_milli)?;
        let vote = TrialVote {
            judge: operator.account(),
            guilty: self.guilty,
            bond: judge.bond,
            scores: Some(scores.clone()),
            appeal: trial.appealed_epoch > 0,
        };
        save(state, key, &vote);
        ctx.emit(
            "vote_trial",
            [("trial", trial.id.to_string()), ("judge", operator.account()), ("guilty", self.guilty.to_string())],
        );
        let voters = judges::active_for(state, &profile, trial.opened_epoch);
        if voters.iter().all(|(judge, _)| has_voted(state, &trial, judge)) {
            // Nothing more to wait for: due with this block.
            state.delete(keys::trial_due(trial.deadline_epoch, trial.id));
            state.put(keys::trial_due(0, trial.id), keys::THERE.to_vec());
        }
        Ok(MsgVoteTrialResponse {})
    }
}

/// Trials whose votes are all in, or whose deadline (for an appeal, where they are convicted) has passed with this block, at
/// most [`VERDICTS_PER_BLOCK`].
pub(super) fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let last_block = ctx.epoch_offset.saturating_add(1) >= ctx.epoch_blocks;
    let due: Vec<(u64, u64)> = state
        .iter_prefix(&[keys::TRIAL_DUE])
        .take(VERDICTS_PER_BLOCK)
        .filter_map(|(key, _)| keys::split_due(&key))
        .take_while(|(deadline, _)| *deadline < ctx.epoch || (*deadline == ctx.epoch && last_block))
        .collect();
    for (deadline, id) in due {
        state.delete(keys::trial_due(deadline, id));
        let Some(trial) = stored(state, id) else { continue };
        match trial.state() {
            TrialState::Convicted => conclude(ctx, state, trial, true)?,
            _ => decide(ctx, state, trial)?,
        }
    }
    for (_, id) in market::settle::past_retention(state, keys::TRIAL_DECIDED, ctx.epoch, VERDICTS_PER_BLOCK) {
        forget(state, id);
    }
    Ok(())
}

/// Drops a decided trial with its votes, of which there are at most as many as the profile had judges.
fn forget(state: &mut dyn StateWrite, id: u64) {
    if let Some(worker) = stored(state, id).and_then(|trial| trial.worker.parse::<Address>().ok()) {
        state.delete(keys::trials_of(&worker).u64(id).finish());
    }
    state.delete(keys::trial(id));
    let votes: Vec<Vec<u8>> = state.iter_prefix(&keys::votes(id).finish()).map(|(key, _)| key).collect();
    votes.into_iter().for_each(|key| state.delete(key));
}

/// (bond that votes guilty, bond that may vote): bonds as they are now.
fn count(eligible: &[(Address, Amount)], votes: &[(Address, TrialVote)]) -> (Amount, Amount) {
    let total = eligible.iter().map(|(_, bond)| *bond).sum();
    let guilty = eligible
        .iter()
        .filter(|(judge, _)| votes.iter().any(|(voter, vote)| voter == judge && vote.guilty))
        .map(|(_, bond)| *bond)
        .sum();
    (guilty, total)
}

/// More than two thirds.
fn convicts(guilty: Amount, total: Amount) -> bool {
    guilty.0.saturating_mul(3) > total.0.saturating_mul(2)
}

/// The verdict by the votes. A first conviction waits for an appeal.
fn decide(ctx: &mut Context, state: &mut dyn StateWrite, trial: Trial) -> Result<(), TxError> {
    let params = params::at(state, ctx.epoch);
    let profile = models::digest(&trial.profile_digest)?;
    let mut votes = votes(state, trial.id);
    votes.retain(|(_, vote)| vote.appeal == (trial.appealed_epoch > 0));
    let eligible: Vec<(Address, Amount)> = judges::active_for(state, &profile, trial.opened_epoch)
        .into_iter()
        .map(|(operator, judge)| (operator, uplk(&judge.bond)))
        .collect();
    let (guilty, total) = count(&eligible, &votes);
    // Without samples (beacons that stayed away until the pots were dropped) there was nothing to vote on.
    for (operator, _) in eligible.iter().filter(|_| !trial.samples.is_empty()) {
        if !votes.iter().any(|(voter, _)| voter == operator) {
            judges::penalise(ctx, state, operator, Bps::clamped(params.slash_judge_bps), "no vote")?;
        }
    }
    let guilty = convicts(guilty, total);
    if guilty && trial.appealed_epoch == 0 && params.appeal_epochs > 0 {
        appeal::wait(ctx, state, trial, params.appeal_epochs);
        return Ok(());
    }
    conclude(ctx, state, trial, guilty)
}

/// Executes a verdict that holds.
fn conclude(ctx: &mut Context, state: &mut dyn StateWrite, mut trial: Trial, guilty: bool) -> Result<(), TxError> {
    let params = params::at(state, ctx.epoch);
    let (worker, profile): (Address, Digest) = (trial.worker.parse()?, models::digest(&trial.profile_digest)?);
    appeal::end(ctx, state, &trial, guilty)?;
    if guilty {
        trial.set_state(TrialState::Guilty);
        let slashed = bonds::convict(ctx, state, &worker, Bps::clamped(params.slash_worker_bps))?;
        let clawed_back = vesting::claw_back(ctx, state, &worker);
        let refunds = refunds::open(ctx, state, &trial, slashed, clawed_back)?;
        (trial.slashed, trial.clawed_back) = (slashed.to_string(), clawed_back.to_string());
        trial.refunds = refunds.to_string();
    } else {
        trial.set_state(TrialState::Acquitted);
    }
    state.delete(keys::open_trials(&worker).bytes(&profile.0).finish());
    let key = keys::quality(&worker, &profile);
    if let Some(quality) = load::<Quality>(state, &key) {
        save(state, key, &Quality { cusum_milli: 0, ..quality });
    }
    save(state, keys::trial(trial.id), &trial);
    state.put(keys::trial_decided(ctx.epoch, trial.id), keys::THERE.to_vec());
    event(ctx, &trial, if trial.state() == TrialState::Guilty { "guilty" } else { "acquitted" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_are_not_enough() {
        assert!(!convicts(Amount(20), Amount(30)));
        assert!(convicts(Amount(21), Amount(30)));
        assert!(!convicts(Amount(0), Amount(0)));
    }

    #[test]
    fn only_the_bond_of_eligible_judges_counts() {
        let [a, b, c] = [1, 2, 3].map(|i| Address([i; 20]));
        let vote = |guilty| TrialVote { guilty, ..Default::default() };
        let eligible = [(a, Amount(10)), (b, Amount(20))];
        assert_eq!(count(&eligible, &[(a, vote(true)), (b, vote(false)), (c, vote(true))]), (Amount(10), Amount(30)));
    }
}
