//! Counting: how much stake is behind each option, and what follows (`x/gov/keeper/tally.go`).
//!
//! Invariant: the count reads no more than the votes have read: who votes pays for his delegations ([`read_delegations`]).
//! It is one block's work all the same, as in the SDK: as much as all votes on the proposal were, without their signatures
//! and fees.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::gov::v1::{Params, TallyResult, VoteOption, WeightedVoteOption};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::Validator;
use polylink_protocol::{Address, Amount, Dec};

use super::params::ratio;
use super::records::votes;
use crate::bank::{Pool, balance};
use crate::error::TxError;
use crate::staking;
use crate::store::StateRead;

/// Stake by option, and of all who have voted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    yes: Dec,
    abstain: Dec,
    no: Dec,
    veto: Dec,
    total: Dec,
}

/// What a tally decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub passes: bool,
    /// Whether the deposits are burned.
    pub burns: bool,
}

fn overflow() -> TxError {
    TxError::InvalidCoins("more stake than a decimal can hold".into())
}

impl Tally {
    fn add(&mut self, power: Dec, options: &[WeightedVoteOption]) -> Option<()> {
        for option in options {
            let part = power.mul_round(ratio(&option.weight)?)?;
            let sum = match option.option() {
                VoteOption::Yes => &mut self.yes,
                VoteOption::Abstain => &mut self.abstain,
                VoteOption::No => &mut self.no,
                VoteOption::NoWithVeto => &mut self.veto,
                VoteOption::Unspecified => continue,
            };
            *sum = sum.checked_add(part)?;
        }
        self.total = self.total.checked_add(power)?;
        Some(())
    }

    /// In whole micro-units, as queries show it.
    pub fn result(&self) -> TallyResult {
        let text = |sum: Dec| sum.truncate().unwrap_or(Amount(u128::MAX)).to_string();
        TallyResult {
            yes_count: text(self.yes),
            abstain_count: text(self.abstain),
            no_count: text(self.no),
            no_with_veto_count: text(self.veto),
        }
    }

    /// What follows from it, given all bonded stake.
    pub fn verdict(&self, bonded: Amount, params: &Params, expedited: bool) -> Verdict {
        let rejected = |burns| Verdict { passes: false, burns };
        let of = |text: &str| ratio(text).unwrap_or(Dec::one());
        let part = |sum: Dec, whole: Dec| sum.quo_round(whole).unwrap_or(Dec::ZERO);
        if bonded.is_zero() {
            return rejected(false);
        }
        if part(self.total, Dec::from_amount(bonded)) < of(&params.quorum) {
            return rejected(params.burn_vote_quorum);
        }
        let decided = self.total.saturating_sub(self.abstain);
        if decided.is_zero() {
            return rejected(false);
        }
        if part(self.veto, self.total) > of(&params.veto_threshold) {
            return rejected(params.burn_vote_veto);
        }
        let threshold = if expedited { &params.expedited_threshold } else { &params.threshold };
        Verdict { passes: part(self.yes, decided) > of(threshold), burns: false }
    }
}

struct Candidate {
    validator: Validator,
    /// Shares of those who have voted themselves.
    deducted: Dec,
    vote: Vec<WeightedVoteOption>,
}

/// Counts the votes on a proposal as they are now.
pub(super) fn count(state: &dyn StateRead, id: u64) -> Result<Tally, TxError> {
    let bonded = staking::bonded_validators(state).into_iter();
    let mut validators: BTreeMap<Address, Candidate> = bonded
        .map(|(operator, validator)| (operator, Candidate { validator, deducted: Dec::ZERO, vote: Vec::new() }))
        .collect();
    let mut tally = Tally::default();
    for (voter, vote) in votes(state, id) {
        if let Some(own) = validators.get_mut(&voter) {
            own.vote.clone_from(&vote.options);
        }
        for (operator, shares) in staking::delegations_of(state, &voter, usize::MAX) {
            let Some(candidate) = validators.get_mut(&operator) else { continue };
            candidate.deducted = candidate.deducted.checked_add(shares).ok_or_else(overflow)?;
            let power = staking::tokens_of_shares(&candidate.validator, shares).ok_or_else(overflow)?;
            tally.add(power, &vote.options).ok_or_else(overflow)?;
        }
    }
    // Those who are silent have voted as their validator.
    for candidate in validators.values().filter(|candidate| !candidate.vote.is_empty()) {
        let silent = staking::shares(&candidate.validator).saturating_sub(candidate.deducted);
        // A validator without shares has nobody behind it.
        let power = staking::tokens_of_shares(&candidate.validator, silent).unwrap_or(Dec::ZERO);
        tally.add(power, &candidate.vote).ok_or_else(overflow)?;
    }
    Ok(tally)
}

/// Reads what a count will read for a vote, so that who votes pays for it.
pub(super) fn read_delegations(state: &dyn StateRead, voter: &Address) {
    let _ = staking::delegations_of(state, voter, usize::MAX);
}

/// All bonded stake.
pub(super) fn bonded(state: &dyn StateRead) -> Amount {
    balance(state, Pool::BondedTokens)
}
