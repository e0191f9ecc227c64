//! Scores: first everybody commits, then everybody reveals.

use polylink_protocol::tiqe::score_commitment;
use polylink_protocol::tiqe_v1::{
    MsgCommitScores, MsgCommitScoresResponse, MsgRevealScores, MsgRevealScoresResponse, Sample, Score, Scores, Seat,
};
use polylink_protocol::{Address, Digest};

use super::error::TiqeError;
use super::{SAMPLES_PER_ROUND_MAX, keys, params, round};
use crate::context::Context;
use crate::error::TxError;
use crate::market::models;
use crate::market::records::{load, save};
use crate::market::schedule::Window;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// Refuses a score out of its range, without the state.
pub(super) fn check_ranges(scores: Option<&Scores>) -> Result<&Scores, TiqeError> {
    let scores = scores.ok_or_else(|| TiqeError::Scores("the message has none".into()))?;
    if scores.scores.len() > SAMPLES_PER_ROUND_MAX {
        let found = scores.scores.len();
        return Err(TiqeError::Scores(format!("at most {SAMPLES_PER_ROUND_MAX} are expected, not {found}")));
    }
    for score in &scores.scores {
        let wrong = |what: &str| Err(TiqeError::Scores(format!("of sample {}: {what}", score.sample)));
        if score.cross_bps > 10_000 || score.llm_bps > 10_000 {
            return wrong("cross and llm are basis points, at most 10,000");
        }
        if !score.has_llm && score.llm_bps != 0 {
            return wrong("an llm score without has_llm");
        }
        if score.token_mismatches > score.tokens {
            return wrong("more mismatches than tokens");
        }
    }
    Ok(scores)
}

/// Refuses scores that are not one for each sample, in order, with evidence within the clip.
pub(super) fn check_complete(scores: &[Score], samples: &[Sample], clip_milli: u64) -> Result<(), TiqeError> {
    if scores.len() != samples.len() || scores.iter().zip(samples).any(|(score, sample)| score.sample != sample.number)
    {
        let reason = format!("one for each of the {} samples is expected, in their order", samples.len());
        return Err(TiqeError::Scores(reason));
    }
    if let Some(score) = scores.iter().find(|score| score.evidence_milli.unsigned_abs() > clip_milli) {
        let (sample, found) = (score.sample, score.evidence_milli);
        return Err(TiqeError::Scores(format!(
            "of sample {sample}: evidence of {found}, beyond the clip ±{clip_milli}"
        )));
    }
    Ok(())
}

fn seat_of(state: &dyn StateRead, epoch: u64, profile: &Digest, judge: &Address) -> Result<Seat, TiqeError> {
    load(state, &keys::in_round(keys::SEAT, epoch, profile, judge)).ok_or(TiqeError::NoSeat(epoch))
}

impl Handle for MsgCommitScores {
    const AMINO_NAME: &'static str = "polylink/tiqe/CommitScores";
    type Response = MsgCommitScoresResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.judge.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        models::digest(&self.profile_digest)?;
        if self.commitment.len() != 32 {
            return Err(TiqeError::Commitment(self.commitment.len()).into());
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCommitScoresResponse, TxError> {
        let (judge, profile): (Address, Digest) = (self.judge.parse()?, models::digest(&self.profile_digest)?);
        round::in_window(ctx, state, "commitments", Window::Commit, self.epoch, &profile)?;
        let mut seat = seat_of(state, self.epoch, &profile, &judge)?;
        if !seat.commitment.is_empty() {
            return Err(TiqeError::Twice("commitment").into());
        }
        seat.commitment.clone_from(&self.commitment);
        save(state, keys::in_round(keys::SEAT, self.epoch, &profile, &judge), &seat);
        ctx.emit(
            "commit_scores",
            [("judge", judge.account()), ("profile", profile.to_string()), ("epoch", self.epoch.to_string())],
        );
        Ok(MsgCommitScoresResponse {})
    }
}

impl Handle for MsgRevealScores {
    const AMINO_NAME: &'static str = "polylink/tiqe/RevealScores";
    type Response = MsgRevealScoresResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.judge.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        models::digest(&self.profile_digest)?;
        if self.salt.len() != 32 {
            return Err(TiqeError::OtherScores.into());
        }
        check_ranges(self.scores.as_ref())?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRevealScoresResponse, TxError> {
        let (judge, profile): (Address, Digest) = (self.judge.parse()?, models::digest(&self.profile_digest)?);
        let scores = check_ranges(self.scores.as_ref())?;
        let round = round::in_window(ctx, state, "reveals", Window::Reveal, self.epoch, &profile)?;
        let seat = seat_of(state, self.epoch, &profile, &judge)?;
        if seat.commitment.is_empty() {
            return Err(TiqeError::NotCommitted(self.epoch).into());
        }
        let key = keys::in_round(keys::REVEAL, self.epoch, &profile, &judge);
        if state.contains(&key) {
            return Err(TiqeError::Twice("scores").into());
        }
        let salt: [u8; 32] = self.salt.as_slice().try_into().map_err(|_| TiqeError::OtherScores)?;
        let commitment = score_commitment(&ctx.chain_id, self.epoch, &profile, &judge, &salt, scores);
        if seat.commitment != commitment.0 {
            return Err(TiqeError::OtherScores.into());
        }
        let clip = params::at(state, ctx.epoch).evidence_clip_milli;
        check_complete(&scores.scores, &round.samples, clip)?;
        save(state, key, scores);
        ctx.emit(
            "reveal_scores",
            [("judge", judge.account()), ("profile", profile.to_string()), ("epoch", self.epoch.to_string())],
        );
        Ok(MsgRevealScoresResponse {})
    }
}
