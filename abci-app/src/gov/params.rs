//! Governance's parameters and its part of the genesis document.

use polylink_protocol::cosmos::cosmos::gov::v1::Params;
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::{Address, Amount, DENOM, Dec};
use serde::{Deserialize, Serialize};

use super::records::{coins, set_params};
use crate::bank::{Pool, check_coins};
use crate::context::Context;
use crate::error::{GenesisError, TxError};
use crate::genesis::Genesis;
use crate::store::StateWrite;

/// Governance at the start of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GovGenesis {
    /// What a proposal needs before it is voted on, in uplk.
    pub min_deposit: Amount,
    /// How long it waits for that.
    pub deposit_seconds: u64,
    /// How long it is voted on.
    pub voting_seconds: u64,
    /// The part of the bonded stake that must vote, in basis points.
    pub quorum_bps: u32,
    /// The part of the votes, abstentions aside, that must be exceeded by Yes.
    pub threshold_bps: u32,
    /// The part of the votes by which NoWithVeto rejects.
    pub veto_bps: u32,
    /// The part of the deposit that must come with the proposal.
    pub min_initial_deposit_bps: u32,
    /// The part of the deposit that each deposit must be.
    pub min_deposit_bps: u32,
    /// The part of the deposits that cancelling costs.
    pub cancel_bps: u32,
    /// What a proposal that is in a hurry needs.
    pub expedited_min_deposit: Amount,
    /// How long it is voted on then.
    pub expedited_voting_seconds: u64,
    /// What must be exceeded by Yes then.
    pub expedited_threshold_bps: u32,
}

impl Default for GovGenesis {
    /// The SDK's: 10 PLK, two days each, 33.4 %, 50 %, 33.4 %; expedited 50 PLK, one day, 66.7 %.
    fn default() -> Self {
        GovGenesis {
            min_deposit: Amount(10_000_000),
            deposit_seconds: 172_800,
            voting_seconds: 172_800,
            quorum_bps: 3_340,
            threshold_bps: 5_000,
            veto_bps: 3_340,
            min_initial_deposit_bps: 0,
            min_deposit_bps: 100,
            cancel_bps: 5_000,
            expedited_min_deposit: Amount(50_000_000),
            expedited_voting_seconds: 86_400,
            expedited_threshold_bps: 6_670,
        }
    }
}

pub(super) fn genesis(_: &mut Context, state: &mut dyn StateWrite, genesis: &Genesis) -> Result<(), GenesisError> {
    let gov = &genesis.gov;
    let bps = |bps| Dec::from_bps(bps).to_string();
    let seconds = |seconds: u64| i64::try_from(seconds).ok().map(|seconds| Duration { seconds, nanos: 0 });
    let params = Params {
        min_deposit: coins(gov.min_deposit),
        max_deposit_period: seconds(gov.deposit_seconds),
        voting_period: seconds(gov.voting_seconds),
        quorum: bps(gov.quorum_bps),
        threshold: bps(gov.threshold_bps),
        veto_threshold: bps(gov.veto_bps),
        min_initial_deposit_ratio: bps(gov.min_initial_deposit_bps),
        proposal_cancel_ratio: bps(gov.cancel_bps),
        proposal_cancel_dest: String::new(),
        expedited_voting_period: seconds(gov.expedited_voting_seconds),
        expedited_threshold: bps(gov.expedited_threshold_bps),
        expedited_min_deposit: coins(gov.expedited_min_deposit),
        burn_vote_quorum: false,
        burn_proposal_deposit_prevote: false,
        burn_vote_veto: true,
        min_deposit_ratio: bps(gov.min_deposit_bps),
    };
    check(&params).map_err(|error| GenesisError::invalid("gov", error))?;
    set_params(state, &params);
    Ok(())
}

/// A ratio of the parameters: a decimal of at most one.
pub(super) fn ratio(text: &str) -> Option<Dec> {
    Dec::from_decimal_str(text).filter(|ratio| *ratio <= Dec::one())
}

fn positive(duration: Option<&Duration>) -> Option<i64> {
    duration.filter(|duration| duration.nanos == 0).map(|duration| duration.seconds).filter(|seconds| *seconds > 0)
}

/// Refuses parameters that proposals could not be decided by (`Params.ValidateBasic`).
pub(super) fn check(params: &Params) -> Result<(), TxError> {
    let wrong = |field: &str, what: &str| Err(TxError::invalid(format!("{field}: {what}")));
    for (field, deposit) in
        [("min_deposit", &params.min_deposit), ("expedited_min_deposit", &params.expedited_min_deposit)]
    {
        check_coins(deposit)?;
        if deposit.iter().any(|coin| coin.denom != DENOM) {
            return wrong(field, "deposits are in uplk");
        }
    }
    let amount = |coins: &[polylink_protocol::cosmos::cosmos::base::v1beta1::Coin]| {
        coins.first().and_then(|coin| coin.amount.parse::<Amount>().ok()).unwrap_or_default()
    };
    if amount(&params.expedited_min_deposit) <= amount(&params.min_deposit) {
        return wrong("expedited_min_deposit", "it must be greater than the minimum deposit");
    }
    let [deposit, voting, expedited] =
        [&params.max_deposit_period, &params.voting_period, &params.expedited_voting_period]
            .map(|period| positive(period.as_ref()));
    let (Some(_), Some(voting), Some(expedited)) = (deposit, voting, expedited) else {
        return wrong("periods", "positive whole seconds are expected");
    };
    if expedited >= voting {
        return wrong("expedited_voting_period", "it must be shorter than the voting period");
    }
    for (field, text, zero_allowed) in [
        ("quorum", &params.quorum, true),
        ("threshold", &params.threshold, false),
        ("expedited_threshold", &params.expedited_threshold, false),
        ("veto_threshold", &params.veto_threshold, false),
        ("min_initial_deposit_ratio", &params.min_initial_deposit_ratio, true),
        ("proposal_cancel_ratio", &params.proposal_cancel_ratio, true),
        ("min_deposit_ratio", &params.min_deposit_ratio, true),
    ] {
        match ratio(text) {
            Some(ratio) if zero_allowed || !ratio.is_zero() => {}
            _ => return wrong(field, "a decimal between 0 and 1 is expected"),
        }
    }
    if ratio(&params.expedited_threshold) <= ratio(&params.threshold) {
        return wrong("expedited_threshold", "it must be greater than the threshold");
    }
    if params.proposal_cancel_dest.is_empty() {
        return Ok(());
    }
    // What other pools hold is of others, to the micro-unit.
    match Pool::of_address(&params.proposal_cancel_dest.parse::<Address>()?) {
        None | Some(Pool::Distribution) => Ok(()),
        Some(_) => wrong("proposal_cancel_dest", "an account, or the community pool's, is expected"),
    }
}
