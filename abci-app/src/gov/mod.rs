//! Governance: stake decides about parameters, upgrades and the community pool: `x/gov` of the Cosmos SDK 0.50.
//!
//! A proposal is a text with messages that the module account `gov` would have to sign. It waits for deposits, then it is
//! voted on: every delegation counts as its delegator votes, or as its validator does where the delegator is silent. What
//! has passed is executed at the end of the block in which the voting ends, all of it or nothing. Deposits go back, or are
//! burned where the parameters say so.
//!
//! A proposal may hold messages of [`Handle::GOVERNED`](crate::modules::Handle::GOVERNED) types alone, none of which spends
//! what the account holds. (In the SDK a proposal may send the deposits of others away.)
//!
//! Invariant: the pool `gov` holds the sum of all deposits ([`scan`]).

mod deposits;
mod end;
mod error;
mod legacy;
mod legacy_query;
mod messages;
mod params;
mod proposals;
mod query;
mod records;
mod tally;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::cosmos::gov::{v1, v1beta1};
use polylink_protocol::{Address, Amount, Message};

use crate::bank::{Pool, balance};
use crate::error::TxError;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::StateRead;

pub use error::GovError;
pub use params::GovGenesis;
pub use records::{params, proposal};

/// Parameters: `0x80` → `cosmos.gov.v1.Params`.
pub const PARAMS: u8 = 0x80;
/// The next proposal's id: `0x81` → u64.
pub const NEXT_ID: u8 = 0x81;
/// Proposals: `0x82 ‖ id u64` → `cosmos.gov.v1.Proposal`.
pub const PROPOSAL: u8 = 0x82;
/// Votes of proposals that are voted on: `0x83 ‖ id u64 ‖ voter (20)` → `cosmos.gov.v1.Vote`.
pub const VOTE: u8 = 0x83;
/// Deposits: `0x84 ‖ id u64 ‖ depositor (20)` → amount, 16 bytes big-endian.
pub const DEPOSIT: u8 = 0x84;
/// Proposals that wait for deposits, by the end of that: `0x85 ‖ seconds u64 ‖ nanoseconds u32 ‖ id u64` → 1.
pub const DEPOSIT_QUEUE: u8 = 0x85;
/// Proposals that are voted on, by the end of that: `0x86 ‖ seconds u64 ‖ nanoseconds u32 ‖ id u64` → 1.
pub const VOTING_QUEUE: u8 = 0x86;

/// Messages of a proposal at most.
pub const MESSAGES_MAX: usize = 16;
/// Bytes of title and metadata at most (the SDK's default).
pub const METADATA_MAX: usize = 255;
/// Bytes of a summary at most (the SDK's: forty times the metadata's).
pub const SUMMARY_MAX: usize = 40 * METADATA_MAX;

/// Governance's tables.
pub const MODULE: Module = Module {
    name: "gov",
    messages: &[
        MessageRoute::of::<v1::MsgSubmitProposal>(),
        MessageRoute::of::<v1::MsgDeposit>(),
        MessageRoute::of::<v1::MsgVote>(),
        MessageRoute::of::<v1::MsgVoteWeighted>(),
        MessageRoute::of::<v1::MsgCancelProposal>(),
        MessageRoute::of::<v1::MsgExecLegacyContent>(),
        MessageRoute::of::<v1::MsgUpdateParams>(),
        MessageRoute::of::<v1beta1::MsgSubmitProposal>(),
        MessageRoute::of::<v1beta1::MsgDeposit>(),
        MessageRoute::of::<v1beta1::MsgVote>(),
        MessageRoute::of::<v1beta1::MsgVoteWeighted>(),
    ],
    refused: &[],
    queries: &[
        QueryRoute::of::<v1::QueryConstitutionRequest>(),
        QueryRoute::of::<v1::QueryProposalRequest>(),
        QueryRoute::of::<v1::QueryProposalsRequest>(),
        QueryRoute::of::<v1::QueryVoteRequest>(),
        QueryRoute::of::<v1::QueryVotesRequest>(),
        QueryRoute::of::<v1::QueryParamsRequest>(),
        QueryRoute::of::<v1::QueryDepositRequest>(),
        QueryRoute::of::<v1::QueryDepositsRequest>(),
        QueryRoute::of::<v1::QueryTallyResultRequest>(),
        QueryRoute::of::<v1beta1::QueryProposalRequest>(),
        QueryRoute::of::<v1beta1::QueryProposalsRequest>(),
        QueryRoute::of::<v1beta1::QueryVoteRequest>(),
        QueryRoute::of::<v1beta1::QueryVotesRequest>(),
        QueryRoute::of::<v1beta1::QueryParamsRequest>(),
        QueryRoute::of::<v1beta1::QueryDepositRequest>(),
        QueryRoute::of::<v1beta1::QueryDepositsRequest>(),
        QueryRoute::of::<v1beta1::QueryTallyResultRequest>(),
    ],
    begin_block: no_hook,
    end_block: end::end_block,
    genesis: params::genesis,
};

/// The account in whose name proposals act: that of the pool `gov`.
pub fn authority() -> Address {
    Pool::Gov.address()
}

/// Refuses a message that only a proposal may hold where another account is named in it.
pub(crate) fn check_authority(named: &str) -> Result<Address, TxError> {
    let authority = authority();
    match named.parse::<Address>()? {
        address if address == authority => Ok(address),
        other => Err(GovError::Signer(format!("invalid authority; expected {authority}, got {other}")).into()),
    }
}

/// The pool is not what was deposited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pool of deposits holds {held} uplk, the deposits add up to {deposited}, the proposals' totals to {totals}"
)]
pub struct Breach {
    /// What the pool holds.
    pub held: Amount,
    /// The sum of the deposits.
    pub deposited: Amount,
    /// The sum of what the undecided proposals say that they have.
    pub totals: Amount,
}

/// Adds up every deposit and compares it with the pool and with what the proposals say: for tests and export.
///
/// # Errors
/// The breach.
pub fn scan(state: &dyn StateRead) -> Result<(), Breach> {
    let deposited: Amount = state.iter_prefix(&[DEPOSIT]).map(|(_, value)| records::amount(&value)).sum();
    let totals = state.iter_prefix(&[PROPOSAL]).filter_map(|(_, value)| v1::Proposal::decode(value.as_slice()).ok());
    let totals = totals.filter(records::is_open).map(|proposal| records::total(&proposal)).sum();
    let held = balance(state, Pool::Gov);
    if held == deposited && held == totals { Ok(()) } else { Err(Breach { held, deposited, totals }) }
}
