//! The audit (TIQE): judges, beacons, seats, samples, scores, quality, evidence and trials (`docs/market-and-tiqe.md`).
//!
//! A round audits the receipts of one epoch and profile during the next epoch: every judge of the profile proves a VRF
//! output, the outputs give the beacon, the beacon draws seats and samples, the seated judges commit to scores and
//! reveal them, medians set the pay (α) and move the evidence statistic (a reflected CUSUM) of each worker. Rounds set
//! pay; only a trial, with fresh samples and every judge of the profile voting by bond, slashes.
//!
//! Invariants: judge bonds pool = Σ bonds; at most one open trial per (worker, profile); a round is in at most one
//! stage queue, and in none once it is settled or postponed.

mod appeal;
mod beacon;
pub mod error;
mod genesis;
mod judges;
pub mod keys;
mod leaving;
pub mod params;
mod query;
mod round;
mod scores;
pub mod scoring;
#[cfg(test)]
mod tests;
mod trial;

use polylink_protocol::tiqe_v1::*;

use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};

pub use error::TiqeError;
pub use genesis::TiqeGenesis;
pub(crate) use genesis::start_judges;
pub use round::Verdict;
pub(crate) use round::{is_pending, open as open_round, verdict};
pub use trial::on_trial;

/// Judges registered for one profile at most.
pub const JUDGES_PER_PROFILE_MAX: usize = 64;
/// Profiles of one judge at most.
pub const PROFILES_PER_JUDGE_MAX: usize = 16;
/// Tickets of one judge at most.
pub const TICKETS_MAX: u32 = 1_000;
/// Samples of one round at most: what a reveal carries scores for. Pots beyond it keep their average α.
pub const SAMPLES_PER_ROUND_MAX: usize = 256;
/// Samples of one trial at most.
pub const TRIAL_SAMPLES_MAX: u32 = 64;
/// A trial's samples are numbered from here, so that they are not the round's: `sample_point` takes the number.
pub const TRIAL_SAMPLE_FIRST: u32 = 1_000_000;
/// Those of an appeal from here.
pub const APPEAL_SAMPLE_FIRST: u32 = 2_000_000;
/// Epochs whose pots a trial's samples are drawn from: the one whose scores opened it and those before it.
pub const TRIAL_POT_EPOCHS: u64 = 4;
/// Trials of one profile that one beacon draws samples for at most; others wait for the next.
pub const TRIALS_PER_BEACON: usize = 64;
/// Trials whose verdict is due that one block takes at most.
pub const VERDICTS_PER_BLOCK: usize = 16;

/// The audit's tables.
pub const MODULE: Module = Module {
    name: "tiqe",
    messages: &[
        MessageRoute::of::<MsgRegisterJudge>(),
        MessageRoute::of::<MsgUnbondJudge>(),
        MessageRoute::of::<MsgSubmitBeacon>(),
        MessageRoute::of::<MsgCommitScores>(),
        MessageRoute::of::<MsgRevealScores>(),
        MessageRoute::of::<MsgVoteTrial>(),
        MessageRoute::of::<MsgAppeal>(),
        MessageRoute::of::<MsgUpdateParams>(),
    ],
    refused: &["/polylink.tiqe.v1.MsgChallenge", "/polylink.tiqe.v1.MsgAnswerChallenge"],
    queries: &[
        QueryRoute::of::<QueryRoundRequest>(),
        QueryRoute::of::<QueryQualityRequest>(),
        QueryRoute::of::<QueryJudgesRequest>(),
        QueryRoute::of::<QueryBeaconRequest>(),
        QueryRoute::of::<QueryTrialsRequest>(),
        QueryRoute::of::<QueryParamsRequest>(),
    ],
    begin_block: no_hook,
    end_block: round::end_block,
    genesis: genesis::start,
};
