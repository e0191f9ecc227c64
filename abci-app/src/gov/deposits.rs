//! Deposits: they bring a proposal to the vote, and go back to those who put them down or are burned.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{Params, Proposal, ProposalStatus};
use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::params::ratio;
use super::proposals::shown;
use super::records::{
    after, coins, dequeue, enqueue, is_open, params, proposal, set_deposit, set_proposal, take_deposits, timestamp,
    total,
};
use super::{DEPOSIT_QUEUE, GovError, VOTING_QUEUE, records};
use crate::bank::{Pool, burn, check_coins, transfer};
use crate::context::Context;
use crate::distribution;
use crate::error::TxError;
use crate::store::StateWrite;

/// What a proposal needs before it is voted on.
pub(super) fn min_deposit(params: &Params, expedited: bool) -> Amount {
    let coins = if expedited { &params.expedited_min_deposit } else { &params.min_deposit };
    coins.first().and_then(|coin| coin.amount.parse().ok()).unwrap_or_default()
}

/// How much a deposit is; it is in one coin.
pub(super) fn check_deposit(coins: &[Coin]) -> Result<Amount, TxError> {
    check_coins(coins)?;
    if coins.iter().any(|coin| coin.denom != DENOM) {
        let log = format!("deposited {}, but gov accepts only the following denom(s): [{DENOM}]", shown(coins));
        return Err(GovError::DepositDenom(log).into());
    }
    Ok(coins[0].amount.parse()?)
}

/// Puts an amount down for a proposal, with it or later: each deposit has a minimum. Returns whether it is voted on from now.
pub(super) fn deposit(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    id: u64,
    depositor: &Address,
    amount: Amount,
) -> Result<bool, TxError> {
    let mut proposal = proposal(state, id).ok_or(GovError::UnknownProposal(id))?;
    if !is_open(&proposal) {
        return Err(GovError::Inactive(id).into());
    }
    let params = params(state);
    let enough = min_deposit(&params, proposal.expedited);
    let part = ratio(&params.min_deposit_ratio).unwrap_or(Dec::ZERO);
    let least = part.mul_int(enough.0).and_then(Dec::truncate).unwrap_or(Amount::ZERO);
    if amount < least {
        let log = format!("received {amount}{DENOM} but need at least one of the following: {least}{DENOM}");
        return Err(GovError::DepositTooSmall(log).into());
    }
    transfer(ctx, state, *depositor, Pool::Gov, amount)?;
    let overflow = || TxError::InvalidCoins("more than an amount can hold".into());
    let sum = total(&proposal).checked_add(amount).ok_or_else(overflow)?;
    proposal.total_deposit = coins(sum);
    set_proposal(state, &proposal);
    let begins = proposal.status() == ProposalStatus::DepositPeriod && sum >= enough;
    if begins {
        begin_voting(ctx, state, &mut proposal, &params);
    }
    let held = records::deposit(state, id, depositor).unwrap_or(Amount::ZERO);
    if !amount.is_zero() {
        set_deposit(state, id, depositor, held.checked_add(amount).ok_or_else(overflow)?);
    }
    let attributes =
        [("depositor", depositor.account()), ("amount", shown(&coins(amount))), ("proposal_id", id.to_string())];
    ctx.emit("proposal_deposit", attributes);
    Ok(begins)
}

fn begin_voting(ctx: &Context, state: &mut dyn StateWrite, proposal: &mut Proposal, params: &Params) {
    if let Some(end) = &proposal.deposit_end_time {
        dequeue(state, DEPOSIT_QUEUE, end, proposal.id);
    }
    let now = timestamp(ctx.time);
    let period = if proposal.expedited { &params.expedited_voting_period } else { &params.voting_period };
    let end = after(&now, period.as_ref());
    enqueue(state, VOTING_QUEUE, &end, proposal.id);
    proposal.voting_start_time = Some(now);
    proposal.voting_end_time = Some(end);
    proposal.status = ProposalStatus::VotingPeriod.into();
    set_proposal(state, proposal);
}

/// Gives all deposits of a proposal back.
pub(super) fn refund(ctx: &mut Context, state: &mut dyn StateWrite, id: u64) -> Result<(), TxError> {
    for (depositor, amount) in take_deposits(state, id) {
        transfer(ctx, state, Pool::Gov, depositor, amount)?;
    }
    Ok(())
}

/// Burns all deposits of a proposal.
pub(super) fn burn_all(ctx: &mut Context, state: &mut dyn StateWrite, id: u64) -> Result<(), TxError> {
    let sum: Amount = take_deposits(state, id).into_iter().map(|(_, amount)| amount).sum();
    burn(ctx, state, Pool::Gov, sum)
}

/// Takes what cancelling costs, and gives the rest back.
pub(super) fn charge(ctx: &mut Context, state: &mut dyn StateWrite, id: u64) -> Result<(), TxError> {
    let params = params(state);
    let part = ratio(&params.proposal_cancel_ratio).unwrap_or(Dec::ZERO);
    let mut charged = Amount::ZERO;
    for (depositor, amount) in take_deposits(state, id) {
        let kept = part.mul_int(amount.0).and_then(Dec::truncate).unwrap_or(Amount::ZERO);
        charged = Amount(charged.0.saturating_add(kept.0));
        transfer(ctx, state, Pool::Gov, depositor, amount.saturating_sub(kept))?;
    }
    match params.proposal_cancel_dest.parse::<Address>() {
        Err(_) => burn(ctx, state, Pool::Gov, charged),
        Ok(pool) if pool == Pool::Distribution.address() => {
            distribution::fund_community_pool(ctx, state, Pool::Gov, charged)
        }
        Ok(account) => transfer(ctx, state, Pool::Gov, account, charged),
    }
}
