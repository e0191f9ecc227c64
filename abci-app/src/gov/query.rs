//! The queries of `cosmos.gov.v1`.

use polylink_protocol::cosmos::cosmos::base::query::v1beta1::{PageRequest, PageResponse};
use polylink_protocol::cosmos::cosmos::gov::v1::{
    Deposit, DepositParams, Proposal, ProposalStatus, QueryConstitutionRequest, QueryConstitutionResponse,
    QueryDepositRequest, QueryDepositResponse, QueryDepositsRequest, QueryDepositsResponse, QueryParamsRequest,
    QueryParamsResponse, QueryProposalRequest, QueryProposalResponse, QueryProposalsRequest, QueryProposalsResponse,
    QueryTallyResultRequest, QueryTallyResultResponse, QueryVoteRequest, QueryVoteResponse, QueryVotesRequest,
    QueryVotesResponse, TallyParams, TallyResult, Vote, VotingParams,
};
use polylink_protocol::{Address, Message};

use super::records::{amount, coins, deposit, of_proposal, params, proposal, vote};
use super::{DEPOSIT, PROPOSAL, VOTE, tally};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::paging;
use crate::store::StateRead;

/// Votes that a query counts at most.
pub(super) const COUNTED_MAX: usize = 10_000;

pub(super) fn find(state: &dyn StateRead, id: u64) -> Result<Proposal, QueryError> {
    if id == 0 {
        return Err(QueryError::InvalidArgument("proposal id can not be 0".into()));
    }
    proposal(state, id).ok_or_else(|| QueryError::NotFound(format!("proposal {id} doesn't exist")))
}

/// Proposals in a status, with a vote of an account, with a deposit of one.
pub(super) fn list(
    state: &dyn StateRead,
    status: i32,
    voter: &str,
    depositor: &str,
    page: Option<PageRequest>,
) -> Result<(Vec<Proposal>, PageResponse), QueryError> {
    let parse = |text: &str| (!text.is_empty()).then(|| text.parse::<Address>()).transpose();
    let (voter, depositor) = (parse(voter)?, parse(depositor)?);
    if !(0..=5).contains(&status) {
        return Err(QueryError::InvalidArgument(format!("{status} is no proposal status")));
    }
    paging::cosmos(state, &[PROPOSAL], page, |_, value| {
        let found = Proposal::decode(value).ok()?;
        let wanted = (status == 0 || found.status == status)
            && voter.as_ref().is_none_or(|voter| vote(state, found.id, voter).is_some())
            && depositor.as_ref().is_none_or(|depositor| deposit(state, found.id, depositor).is_some());
        wanted.then_some(found)
    })
}

pub(super) fn find_vote(state: &dyn StateRead, id: u64, voter: &str) -> Result<Vote, QueryError> {
    let voter: Address = voter.parse()?;
    let found = vote(state, id, &voter);
    found.ok_or_else(|| QueryError::NotFound(format!("voter: {voter} not found for proposal: {id}")))
}

pub(super) fn votes(
    state: &dyn StateRead,
    id: u64,
    page: Option<PageRequest>,
) -> Result<(Vec<Vote>, PageResponse), QueryError> {
    if id == 0 {
        return Err(QueryError::InvalidArgument("proposal id can not be 0".into()));
    }
    paging::cosmos(state, &of_proposal(VOTE, id), page, |_, value| Vote::decode(value).ok())
}

pub(super) fn find_deposit(state: &dyn StateRead, id: u64, depositor: &str) -> Result<Deposit, QueryError> {
    let depositor: Address = depositor.parse()?;
    let found = deposit(state, id, &depositor);
    let found =
        found.ok_or_else(|| QueryError::NotFound(format!("depositor: {depositor} not found for proposal: {id}")))?;
    Ok(Deposit { proposal_id: id, depositor: depositor.account(), amount: coins(found) })
}

pub(super) fn deposits(
    state: &dyn StateRead,
    id: u64,
    page: Option<PageRequest>,
) -> Result<(Vec<Deposit>, PageResponse), QueryError> {
    if id == 0 {
        return Err(QueryError::InvalidArgument("proposal id can not be 0".into()));
    }
    paging::cosmos(state, &of_proposal(DEPOSIT, id), page, |tail, value| {
        let depositor = Address(tail.try_into().ok()?).account();
        Some(Deposit { proposal_id: id, depositor, amount: coins(amount(value)) })
    })
}

/// The final result, or what it would be now.
pub(super) fn result(state: &dyn StateRead, id: u64) -> Result<TallyResult, QueryError> {
    let found = find(state, id)?;
    if found.status() == ProposalStatus::VotingPeriod {
        if state.iter_prefix(&of_proposal(VOTE, id)).nth(COUNTED_MAX).is_some() {
            let reason = format!("over {COUNTED_MAX} votes are not counted for a query: ask when the voting is over");
            return Err(QueryError::InvalidArgument(reason));
        }
        let counted = tally::count(state, id).map_err(|error| QueryError::InvalidArgument(error.to_string()))?;
        return Ok(counted.result());
    }
    Ok(found.final_tally_result.unwrap_or_default())
}

pub(super) fn unknown_type(text: &str) -> QueryError {
    let shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    QueryError::InvalidArgument(format!("{shown} is not a valid parameter type"))
}

impl Answer for QueryConstitutionRequest {
    type Response = QueryConstitutionResponse;

    fn answer(&self, _: &QueryContext, _: &dyn StateRead) -> Result<QueryConstitutionResponse, QueryError> {
        Ok(QueryConstitutionResponse { constitution: String::new() })
    }
}

impl Answer for QueryProposalRequest {
    type Response = QueryProposalResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryProposalResponse, QueryError> {
        Ok(QueryProposalResponse { proposal: Some(find(state, self.proposal_id)?) })
    }
}

impl Answer for QueryProposalsRequest {
    type Response = QueryProposalsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryProposalsResponse, QueryError> {
        let (proposals, page) =
            list(state, self.proposal_status, &self.voter, &self.depositor, self.pagination.clone())?;
        Ok(QueryProposalsResponse { proposals, pagination: Some(page) })
    }
}

impl Answer for QueryVoteRequest {
    type Response = QueryVoteResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryVoteResponse, QueryError> {
        Ok(QueryVoteResponse { vote: Some(find_vote(state, self.proposal_id, &self.voter)?) })
    }
}

impl Answer for QueryVotesRequest {
    type Response = QueryVotesResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryVotesResponse, QueryError> {
        let (votes, page) = votes(state, self.proposal_id, self.pagination.clone())?;
        Ok(QueryVotesResponse { votes, pagination: Some(page) })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    /// All parameters, and beside them those of the type that is asked for, as the SDK has it.
    #[allow(deprecated, reason = "clients read both")]
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        let params = params(state);
        let mut response = QueryParamsResponse::default();
        match self.params_type.as_str() {
            "" => {}
            "deposit" => {
                response.deposit_params = Some(DepositParams {
                    min_deposit: params.min_deposit.clone(),
                    max_deposit_period: params.max_deposit_period,
                });
            }
            "voting" => response.voting_params = Some(VotingParams { voting_period: params.voting_period }),
            "tallying" => {
                response.tally_params = Some(TallyParams {
                    quorum: params.quorum.clone(),
                    threshold: params.threshold.clone(),
                    veto_threshold: params.veto_threshold.clone(),
                });
            }
            other => return Err(unknown_type(other)),
        }
        response.params = Some(params);
        Ok(response)
    }
}

impl Answer for QueryDepositRequest {
    type Response = QueryDepositResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDepositResponse, QueryError> {
        Ok(QueryDepositResponse { deposit: Some(find_deposit(state, self.proposal_id, &self.depositor)?) })
    }
}

impl Answer for QueryDepositsRequest {
    type Response = QueryDepositsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDepositsResponse, QueryError> {
        let (deposits, page) = deposits(state, self.proposal_id, self.pagination.clone())?;
        Ok(QueryDepositsResponse { deposits, pagination: Some(page) })
    }
}

impl Answer for QueryTallyResultRequest {
    type Response = QueryTallyResultResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryTallyResultResponse, QueryError> {
        Ok(QueryTallyResultResponse { tally: Some(result(state, self.proposal_id)?) })
    }
}
