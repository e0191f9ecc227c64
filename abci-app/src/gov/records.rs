//! Governance's records and their keys.

use polylink_protocol::cosmos::Timestamp;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::gov::v1::{Params, Proposal, ProposalStatus, Vote};
use polylink_protocol::cosmos::tendermint::google::protobuf::Duration;
use polylink_protocol::{Address, Amount, DENOM, Message};

use super::{DEPOSIT, NEXT_ID, PARAMS, PROPOSAL, VOTE};
use crate::context::BlockTime;
use crate::store::{KeyBuilder, Order, StateRead, StateWrite};

/// The parameters in force.
pub fn params(state: &dyn StateRead) -> Params {
    let bytes = state.get(&[PARAMS]).unwrap_or_default();
    Params::decode(bytes.as_slice()).expect("parameters are written encoded")
}

pub(super) fn set_params(state: &mut dyn StateWrite, params: &Params) {
    state.put(vec![PARAMS], params.encode_to_vec());
}

/// A number that was not given before.
pub(super) fn next_id(state: &mut dyn StateWrite) -> u64 {
    let id = state.get(&[NEXT_ID]).and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_be_bytes);
    state.put(vec![NEXT_ID], (id + 1).to_be_bytes().to_vec());
    id
}

fn proposal_key(id: u64) -> Vec<u8> {
    KeyBuilder::new(PROPOSAL).u64(id).finish()
}

/// A proposal, until it is cancelled or dropped for want of deposits.
pub fn proposal(state: &dyn StateRead, id: u64) -> Option<Proposal> {
    let bytes = state.get(&proposal_key(id))?;
    Some(Proposal::decode(bytes.as_slice()).expect("proposals are written encoded"))
}

pub(super) fn set_proposal(state: &mut dyn StateWrite, proposal: &Proposal) {
    state.put(proposal_key(proposal.id), proposal.encode_to_vec());
}

/// Forgets a proposal, and its place in either queue.
pub(super) fn delete_proposal(state: &mut dyn StateWrite, proposal: &Proposal) {
    for (prefix, end) in
        [(super::DEPOSIT_QUEUE, &proposal.deposit_end_time), (super::VOTING_QUEUE, &proposal.voting_end_time)]
    {
        if let Some(end) = end {
            dequeue(state, prefix, end, proposal.id);
        }
    }
    state.delete(proposal_key(proposal.id));
}

/// Whether it still has its deposits.
pub(super) fn is_open(proposal: &Proposal) -> bool {
    matches!(proposal.status(), ProposalStatus::DepositPeriod | ProposalStatus::VotingPeriod)
}

/// What was deposited for it in all.
pub(super) fn total(proposal: &Proposal) -> Amount {
    proposal.total_deposit.first().and_then(|coin| coin.amount.parse().ok()).unwrap_or_default()
}

/// Coins of an amount: none of nothing.
pub(super) fn coins(amount: Amount) -> Vec<Coin> {
    if amount.is_zero() { Vec::new() } else { vec![Coin { denom: DENOM.into(), amount: amount.to_string() }] }
}

pub(super) fn of_proposal(prefix: u8, id: u64) -> Vec<u8> {
    KeyBuilder::new(prefix).u64(id).finish()
}

fn of_account(prefix: u8, id: u64, account: &Address) -> Vec<u8> {
    KeyBuilder::new(prefix).u64(id).bytes(&account.0).finish()
}

/// The account in a key of [`VOTE`] or [`DEPOSIT`].
pub(super) fn account(key: &[u8]) -> Option<Address> {
    key.get(9..)?.try_into().ok().map(Address)
}

pub(super) fn vote(state: &dyn StateRead, id: u64, voter: &Address) -> Option<Vote> {
    let bytes = state.get(&of_account(VOTE, id, voter))?;
    Some(Vote::decode(bytes.as_slice()).expect("votes are written encoded"))
}

pub(super) fn set_vote(state: &mut dyn StateWrite, voter: &Address, vote: &Vote) {
    state.put(of_account(VOTE, vote.proposal_id, voter), vote.encode_to_vec());
}

/// The votes on a proposal, in the order of the voters' addresses.
pub(super) fn votes(state: &dyn StateRead, id: u64) -> impl Iterator<Item = (Address, Vote)> {
    let rows = state.iter_prefix(&of_proposal(VOTE, id));
    rows.filter_map(|(key, value)| Some((account(&key)?, Vote::decode(value.as_slice()).ok()?)))
}

pub(super) fn delete_votes(state: &mut dyn StateWrite, id: u64) {
    let keys: Vec<Vec<u8>> = state.iter_prefix(&of_proposal(VOTE, id)).map(|(key, _)| key).collect();
    keys.into_iter().for_each(|key| state.delete(key));
}

pub(super) fn amount(bytes: &[u8]) -> Amount {
    Amount(u128::from_be_bytes(bytes.try_into().expect("amounts are written with 16 bytes")))
}

pub(super) fn deposit(state: &dyn StateRead, id: u64, depositor: &Address) -> Option<Amount> {
    state.get(&of_account(DEPOSIT, id, depositor)).map(|bytes| amount(&bytes))
}

pub(super) fn set_deposit(state: &mut dyn StateWrite, id: u64, depositor: &Address, amount: Amount) {
    state.put(of_account(DEPOSIT, id, depositor), amount.0.to_be_bytes().to_vec());
}

/// Takes all deposits of a proposal out of the records.
pub(super) fn take_deposits(state: &mut dyn StateWrite, id: u64) -> Vec<(Address, Amount)> {
    let rows: Vec<(Vec<u8>, Vec<u8>)> = state.iter_prefix(&of_proposal(DEPOSIT, id)).collect();
    let mut out = Vec::with_capacity(rows.len());
    for (key, value) in rows {
        out.extend(account(&key).map(|depositor| (depositor, amount(&value))));
        state.delete(key);
    }
    out
}

fn queue_key(prefix: u8, end: &Timestamp) -> KeyBuilder {
    let key = KeyBuilder::new(prefix).u64(u64::try_from(end.seconds).unwrap_or(0));
    key.u32(u32::try_from(end.nanos).unwrap_or(0))
}

pub(super) fn enqueue(state: &mut dyn StateWrite, prefix: u8, end: &Timestamp, id: u64) {
    state.put(queue_key(prefix, end).u64(id).finish(), vec![1]);
}

pub(super) fn dequeue(state: &mut dyn StateWrite, prefix: u8, end: &Timestamp, id: u64) {
    state.delete(queue_key(prefix, end).u64(id).finish());
}

/// The proposals whose time is over (until `now`, inclusive), `max` at most.
pub(super) fn due(state: &dyn StateRead, prefix: u8, now: BlockTime, max: usize) -> Vec<u64> {
    let mut end = queue_key(prefix, &timestamp(now)).finish();
    end.extend_from_slice(&[0xff; 9]);
    let rows = state.iter_range(&[prefix], Some(&end), Order::Ascending).take(max);
    rows.filter_map(|(key, _)| Some(u64::from_be_bytes(key.get(13..)?.try_into().ok()?))).collect()
}

pub(super) fn timestamp(time: BlockTime) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: time.nanos }
}

/// A checked period after a time.
pub(super) fn after(start: &Timestamp, period: Option<&Duration>) -> Timestamp {
    let seconds = start.seconds.saturating_add(period.map_or(0, |period| period.seconds));
    Timestamp { seconds, nanos: start.nanos }
}
