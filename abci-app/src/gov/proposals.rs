//! A proposal's life before it is decided: it is submitted, voted on, perhaps cancelled.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{
    MsgSubmitProposal, Proposal, ProposalStatus, TallyResult, Vote, WeightedVoteOption,
};
use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::deposits::{charge, check_deposit, deposit, min_deposit};
use super::params::ratio;
use super::records::{
    after, delete_proposal, delete_votes, enqueue, is_open, next_id, params, proposal, set_proposal, set_vote,
    timestamp,
};
use super::{DEPOSIT_QUEUE, GovError, MESSAGES_MAX, METADATA_MAX, SUMMARY_MAX, authority, tally};
use crate::context::Context;
use crate::error::TxError;
use crate::router;
use crate::store::StateWrite;

fn check_length(what: &'static str, text: &str) -> Result<(), GovError> {
    let (length, max) = (text.len(), METADATA_MAX);
    if length > max { Err(GovError::MetadataTooLong { what, length, max }) } else { Ok(()) }
}

/// What can be said against a proposal without the state.
pub(super) fn check(message: &MsgSubmitProposal) -> Result<(), TxError> {
    if message.title.is_empty() || message.summary.is_empty() {
        return Err(TxError::invalid("proposal title and summary cannot be empty"));
    }
    if message.messages.is_empty() && message.metadata.is_empty() {
        return Err(GovError::NoMessages.into());
    }
    check_metadata(message)?;
    check_length("metadata", &message.metadata)?;
    check_length("title", &message.title)?;
    if message.summary.len() > SUMMARY_MAX {
        return Err(GovError::SummaryTooLong { length: message.summary.len(), max: SUMMARY_MAX }.into());
    }
    if message.messages.len() > MESSAGES_MAX {
        return Err(TxError::invalid(format!("{MESSAGES_MAX} messages of a proposal are the most")));
    }
    for any in &message.messages {
        check_message(any)?;
    }
    if message.initial_deposit.is_empty() { Ok(()) } else { check_deposit(&message.initial_deposit).map(|_| ()) }
}

/// Metadata that is a JSON object repeats title and summary.
fn check_metadata(message: &MsgSubmitProposal) -> Result<(), GovError> {
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(&message.metadata) else { return Ok(()) };
    for (name, expected) in [("title", &message.title), ("summary", &message.summary)] {
        let found = object.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        if found != expected {
            return Err(GovError::Content(format!(
                "metadata {name} '{found}' must equal proposal {name} '{expected}'"
            )));
        }
    }
    Ok(())
}

fn check_message(any: &Any) -> Result<(), TxError> {
    let shown = || any.type_url.chars().take(128).flat_map(char::escape_debug).collect::<String>();
    let route = router::message(&any.type_url).filter(|route| route.governed);
    let route = route.ok_or_else(|| GovError::Unroutable(shown()))?;
    let signer = (route.check)(&any.value).map_err(|error| match error {
        error @ TxError::Module { codespace: "gov", .. } => error,
        error => GovError::Message(error.to_string()).into(),
    })?;
    if signer == authority() { Ok(()) } else { Err(GovError::Signer(signer.account()).into()) }
}

/// Takes a checked proposal. Returns its number.
pub(super) fn submit(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    message: &MsgSubmitProposal,
    proposer: &Address,
) -> Result<u64, TxError> {
    let params = params(state);
    let initial =
        if message.initial_deposit.is_empty() { Amount::ZERO } else { check_deposit(&message.initial_deposit)? };
    let part = ratio(&params.min_initial_deposit_ratio).unwrap_or(Dec::ZERO);
    let needed = part.mul_int(min_deposit(&params, message.expedited).0).and_then(Dec::round).unwrap_or(Amount::ZERO);
    if initial < needed {
        return Err(GovError::DepositTooSmall(format!("was ({initial}{DENOM}), need ({needed}{DENOM})")).into());
    }
    let id = next_id(state);
    let now = timestamp(ctx.time);
    let deposit_end = after(&now, params.max_deposit_period.as_ref());
    let zero = || "0".to_owned();
    let proposal = Proposal {
        id,
        messages: message.messages.clone(),
        status: ProposalStatus::DepositPeriod.into(),
        final_tally_result: Some(TallyResult {
            yes_count: zero(),
            abstain_count: zero(),
            no_count: zero(),
            no_with_veto_count: zero(),
        }),
        submit_time: Some(now),
        deposit_end_time: Some(deposit_end),
        metadata: message.metadata.clone(),
        title: message.title.clone(),
        summary: message.summary.clone(),
        proposer: proposer.account(),
        expedited: message.expedited,
        ..Default::default()
    };
    set_proposal(state, &proposal);
    enqueue(state, DEPOSIT_QUEUE, &deposit_end, id);
    let urls: String = message.messages.iter().map(|any| format!(",{}", any.type_url)).collect();
    let attributes =
        [("proposal_id", id.to_string()), ("proposal_proposer", proposer.account()), ("proposal_messages", urls)];
    ctx.emit("submit_proposal", attributes);
    if deposit(ctx, state, id, proposer, initial)? {
        ctx.emit("submit_proposal", [("voting_period_start", id.to_string())]);
    }
    Ok(id)
}

/// One option with all the weight.
pub(super) fn whole(option: i32) -> Vec<WeightedVoteOption> {
    vec![WeightedVoteOption { option, weight: Dec::one().to_string() }]
}

/// What can be said against options without the state: known ones, each once, with weights that make one.
pub(super) fn check_options(options: &[WeightedVoteOption]) -> Result<(), TxError> {
    if options.is_empty() {
        return Err(TxError::invalid("no vote options"));
    }
    let mut total = Dec::ZERO;
    for (index, option) in options.iter().enumerate() {
        if !(1..=4).contains(&option.option) {
            return Err(GovError::Vote(option.option.to_string()).into());
        }
        let weight = ratio(&option.weight).filter(|weight| !weight.is_zero());
        let weight = weight.ok_or_else(|| {
            let shown: String = option.weight.chars().take(32).flat_map(char::escape_debug).collect();
            GovError::Vote(format!("invalid weight: {shown}"))
        })?;
        if options[..index].iter().any(|other| other.option == option.option) {
            return Err(GovError::Vote("duplicated vote option".into()).into());
        }
        total = total.checked_add(weight).unwrap_or(total);
    }
    match total.cmp(&Dec::one()) {
        std::cmp::Ordering::Greater => Err(GovError::Vote("total weight overflow 1.00".into()).into()),
        std::cmp::Ordering::Less => Err(GovError::Vote("total weight lower than 1.00".into()).into()),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

/// Takes a vote with checked options; a later one of the same voter replaces it.
pub(super) fn vote(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    id: u64,
    voter: &Address,
    options: Vec<WeightedVoteOption>,
    metadata: &str,
) -> Result<(), TxError> {
    let found = proposal(state, id).filter(|found| found.status() == ProposalStatus::VotingPeriod);
    found.ok_or(GovError::Inactive(id))?;
    check_length("metadata", metadata)?;
    let text =
        |option: &WeightedVoteOption| format!("option:{} weight:\"{}\"", option.option().as_str_name(), option.weight);
    let shown: Vec<String> = options.iter().map(text).collect();
    tally::read_delegations(state, voter);
    let vote = Vote { proposal_id: id, voter: voter.account(), options, metadata: metadata.to_owned() };
    set_vote(state, voter, &vote);
    let attributes = [("voter", voter.account()), ("option", shown.join("\n")), ("proposal_id", id.to_string())];
    ctx.emit("proposal_vote", attributes);
    Ok(())
}

/// Withdraws a proposal before it is decided. That costs a part of its deposits.
pub(super) fn cancel(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    id: u64,
    proposer: &Address,
) -> Result<(), TxError> {
    let found = proposal(state, id).ok_or(GovError::UnknownProposal(id))?;
    if found.proposer != proposer.account() {
        return Err(GovError::Proposer(proposer.account()).into());
    }
    if !is_open(&found) {
        return Err(GovError::Proposal("proposal should be in the deposit or voting period".into()).into());
    }
    charge(ctx, state, id)?;
    delete_votes(state, id);
    delete_proposal(state, &found);
    ctx.emit("cancel_proposal", [("sender", proposer.account()), ("proposal_id", id.to_string())]);
    Ok(())
}

/// Coins as events show them.
pub(super) fn shown(coins: &[Coin]) -> String {
    coins.iter().map(|coin| format!("{}{}", coin.amount, coin.denom)).collect::<Vec<_>>().join(",")
}
