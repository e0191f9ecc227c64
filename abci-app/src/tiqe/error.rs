//! Why the audit refuses a message. Codes of codespace `tiqe`, listed in `docs/market-and-tiqe.md`.

use polylink_protocol::Digest;

use crate::error::TxError;

/// The codespace of these refusals.
pub const CODESPACE: &str = "tiqe";

/// A refusal: what is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TiqeError {
    /// No judge of this operator.
    #[error("{0} is not registered as a judge; send MsgRegisterJudge first")]
    UnknownJudge(String),
    /// The operator has a judge.
    #[error("{0} is registered as a judge already")]
    JudgeExists(String),
    /// A key that is none.
    #[error("the {name}: {reason}")]
    Key {
        /// Which key.
        name: &'static str,
        /// What is expected.
        reason: &'static str,
    },
    /// Another judge has this VRF key, so that the two would draw one lot twice.
    #[error("the VRF key belongs to the judge {0}; every judge has its own")]
    VrfKeyTaken(String),
    /// Too few or too many.
    #[error("{found} tickets; 1 to {max} are expected")]
    Tickets {
        /// Asked for.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// None, too many, or one twice.
    #[error("the profiles: {0}")]
    Profiles(String),
    /// The profile's places are taken.
    #[error("{max} judges hold the profile {profile} already, none with less bond; take more tickets to have a place")]
    TooManyJudges {
        /// Which profile.
        profile: Digest,
        /// The limit.
        max: usize,
    },
    /// It lost its bond.
    #[error("the judge {0} is jailed: penalties took half of its bond")]
    Jailed(String),
    /// Registered too recently.
    #[error("the judge takes part from epoch {from}, now is epoch {now}")]
    NotActive {
        /// Its first epoch.
        from: u64,
        /// The current one.
        now: u64,
    },
    /// Not registered for the profile.
    #[error("the judge is not registered for the profile {0}")]
    OtherProfile(Digest),
    /// No such round.
    #[error("there is no round over epoch {epoch} for the profile {profile}: {reason}")]
    NoRound {
        /// The audited epoch.
        epoch: u64,
        /// The profile.
        profile: Digest,
        /// Why not.
        reason: String,
    },
    /// The right message at the wrong time.
    #[error("{what} of the round over epoch {epoch} are taken from height {from} to {to}, this is height {height}")]
    OutsideWindow {
        /// What was sent.
        what: &'static str,
        /// The audited epoch.
        epoch: u64,
        /// The window's first height.
        from: u64,
        /// Its last.
        to: u64,
        /// The block's.
        height: u64,
    },
    /// A second one.
    #[error("the judge has sent its {0} already; the first one counts")]
    Twice(&'static str),
    /// A proof that is none.
    #[error("{0}")]
    Proof(String),
    /// It did not draw a seat.
    #[error("the judge has no seat in the round over epoch {0}")]
    NoSeat(u64),
    /// A commitment that is none.
    #[error("a commitment of {0} bytes; 32 are expected")]
    Commitment(usize),
    /// It did not commit in time.
    #[error("the judge committed to no scores in the round over epoch {0}")]
    NotCommitted(u64),
    /// Not what was committed to.
    #[error("salt and scores do not give the commitment; reveal exactly what was committed to")]
    OtherScores,
    /// Scores out of their ranges, or not one per sample.
    #[error("the scores: {0}")]
    Scores(String),
    /// It has left.
    #[error("the judge {judge} has left; its bond comes back in epoch {release_epoch}, and then it may register anew")]
    Left {
        /// Who.
        judge: String,
        /// When.
        release_epoch: u64,
    },
    /// It may not leave yet.
    #[error("the judge owes {what} to the round over epoch {epoch}; send it first, then leave")]
    Owes {
        /// What is missing.
        what: &'static str,
        /// Which round.
        epoch: u64,
    },
    /// No such trial.
    #[error("there is no trial {0}")]
    UnknownTrial(u64),
    /// It takes no votes.
    #[error("trial {id} takes no votes: {reason}")]
    TrialClosed {
        /// Which trial.
        id: u64,
        /// Why not.
        reason: String,
    },
    /// Nothing that can be appealed against, or not by this account.
    #[error("no appeal in trial {id}: {reason}")]
    Appeal {
        /// Which trial.
        id: u64,
        /// Why not.
        reason: String,
    },
}

impl TiqeError {
    /// Its code. Codes never change their meaning.
    pub fn code(&self) -> u32 {
        use TiqeError::*;
        match self {
            UnknownJudge(_) => 2,
            JudgeExists(_) => 3,
            Key { .. } => 4,
            VrfKeyTaken(_) => 5,
            Tickets { .. } => 6,
            Profiles(_) => 7,
            TooManyJudges { .. } => 8,
            Jailed(_) => 9,
            NotActive { .. } => 10,
            OtherProfile(_) => 11,
            NoRound { .. } => 12,
            OutsideWindow { .. } => 13,
            Twice(_) => 14,
            Proof(_) => 15,
            NoSeat(_) => 16,
            Commitment(_) => 17,
            NotCommitted(_) => 18,
            OtherScores => 19,
            Scores(_) => 20,
            UnknownTrial(_) => 21,
            TrialClosed { .. } => 22,
            Left { .. } => 23,
            Owes { .. } => 24,
            Appeal { .. } => 25,
        }
    }
}

impl From<TiqeError> for TxError {
    fn from(error: TiqeError) -> Self {
        TxError::Module { codespace: CODESPACE, code: error.code(), log: error.to_string() }
    }
}
