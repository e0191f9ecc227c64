//! The queries of `cosmos.gov.v1beta1`, which CosmJS asks: the same answers in the older shape.
//!
//! A proposal has *content* there: that of its legacy message, a text where it has no messages, and none otherwise.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::gov::v1;
use polylink_protocol::cosmos::cosmos::gov::v1beta1::{
    Deposit, DepositParams, Proposal, QueryDepositRequest, QueryDepositResponse, QueryDepositsRequest,
    QueryDepositsResponse, QueryParamsRequest, QueryParamsResponse, QueryProposalRequest, QueryProposalResponse,
    QueryProposalsRequest, QueryProposalsResponse, QueryTallyResultRequest, QueryTallyResultResponse, QueryVoteRequest,
    QueryVoteResponse, QueryVotesRequest, QueryVotesResponse, TallyParams, TallyResult, TextProposal, Vote,
    VotingParams, WeightedVoteOption,
};
use polylink_protocol::tx::any;
use polylink_protocol::{Dec, Message, Name};

use super::query::{deposits, find, find_deposit, find_vote, list, result, unknown_type, votes};
use super::records::params;
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;

fn tally(result: v1::TallyResult) -> TallyResult {
    TallyResult {
        yes: result.yes_count,
        abstain: result.abstain_count,
        no: result.no_count,
        no_with_veto: result.no_with_veto_count,
    }
}

fn content(proposal: &v1::Proposal) -> Option<Any> {
    if proposal.messages.is_empty() {
        let (title, description) = (proposal.title.clone(), proposal.summary.clone());
        return Some(any(&TextProposal { title, description }));
    }
    let legacy = |any: &&Any| any.type_url == v1::MsgExecLegacyContent::type_url();
    let message = proposal.messages.iter().find(legacy)?;
    v1::MsgExecLegacyContent::decode(message.value.as_slice()).ok()?.content
}

fn proposal(found: v1::Proposal) -> Proposal {
    Proposal {
        proposal_id: found.id,
        content: content(&found),
        status: found.status,
        final_tally_result: found.final_tally_result.map(tally),
        submit_time: found.submit_time,
        deposit_end_time: found.deposit_end_time,
        total_deposit: found.total_deposit,
        voting_start_time: found.voting_start_time,
        voting_end_time: found.voting_end_time,
    }
}

/// A ratio of the parameters in atomics.
fn atomics(text: &str) -> String {
    Dec::from_decimal_str(text).unwrap_or(Dec::ZERO).to_atomics_string()
}

#[allow(deprecated, reason = "older clients read the one option")]
fn vote(found: v1::Vote) -> Vote {
    let options: Vec<WeightedVoteOption> = found
        .options
        .iter()
        .map(|option| WeightedVoteOption { option: option.option, weight: atomics(&option.weight) })
        .collect();
    let option = if let [one] = options.as_slice() { one.option } else { 0 };
    Vote { proposal_id: found.proposal_id, voter: found.voter, option, options }
}

fn deposit(found: v1::Deposit) -> Deposit {
    Deposit { proposal_id: found.proposal_id, depositor: found.depositor, amount: found.amount }
}

impl Answer for QueryProposalRequest {
    type Response = QueryProposalResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryProposalResponse, QueryError> {
        Ok(QueryProposalResponse { proposal: Some(proposal(find(state, self.proposal_id)?)) })
    }
}

impl Answer for QueryProposalsRequest {
    type Response = QueryProposalsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryProposalsResponse, QueryError> {
        let (found, page) = list(state, self.proposal_status, &self.voter, &self.depositor, self.pagination.clone())?;
        Ok(QueryProposalsResponse { proposals: found.into_iter().map(proposal).collect(), pagination: Some(page) })
    }
}

impl Answer for QueryVoteRequest {
    type Response = QueryVoteResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryVoteResponse, QueryError> {
        Ok(QueryVoteResponse { vote: Some(vote(find_vote(state, self.proposal_id, &self.voter)?)) })
    }
}

impl Answer for QueryVotesRequest {
    type Response = QueryVotesResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryVotesResponse, QueryError> {
        let (found, page) = votes(state, self.proposal_id, self.pagination.clone())?;
        Ok(QueryVotesResponse { votes: found.into_iter().map(vote).collect(), pagination: Some(page) })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    /// The parameters of one type.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        let params = params(state);
        let mut response = QueryParamsResponse::default();
        match self.params_type.as_str() {
            "deposit" => {
                response.deposit_params = Some(DepositParams {
                    min_deposit: params.min_deposit,
                    max_deposit_period: params.max_deposit_period,
                });
            }
            "voting" => response.voting_params = Some(VotingParams { voting_period: params.voting_period }),
            "tallying" => {
                response.tally_params = Some(TallyParams {
                    quorum: atomics(&params.quorum).into_bytes(),
                    threshold: atomics(&params.threshold).into_bytes(),
                    veto_threshold: atomics(&params.veto_threshold).into_bytes(),
                });
            }
            other => return Err(unknown_type(other)),
        }
        Ok(response)
    }
}

impl Answer for QueryDepositRequest {
    type Response = QueryDepositResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDepositResponse, QueryError> {
        let found = find_deposit(state, self.proposal_id, &self.depositor)?;
        Ok(QueryDepositResponse { deposit: Some(deposit(found)) })
    }
}

impl Answer for QueryDepositsRequest {
    type Response = QueryDepositsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDepositsResponse, QueryError> {
        let (found, page) = deposits(state, self.proposal_id, self.pagination.clone())?;
        Ok(QueryDepositsResponse { deposits: found.into_iter().map(deposit).collect(), pagination: Some(page) })
    }
}

impl Answer for QueryTallyResultRequest {
    type Response = QueryTallyResultResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryTallyResultResponse, QueryError> {
        Ok(QueryTallyResultResponse { tally: Some(tally(result(state, self.proposal_id)?)) })
    }
}
