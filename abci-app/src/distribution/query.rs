//! The distribution's queries. Rewards are those that a withdrawal in the next block would find.

use polylink_protocol::cosmos::cosmos::base::v1beta1::DecCoin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    DelegationDelegatorReward, QueryCommunityPoolRequest, QueryCommunityPoolResponse, QueryDelegationRewardsRequest,
    QueryDelegationRewardsResponse, QueryDelegationTotalRewardsRequest, QueryDelegationTotalRewardsResponse,
    QueryDelegatorValidatorsRequest, QueryDelegatorValidatorsResponse, QueryDelegatorWithdrawAddressRequest,
    QueryDelegatorWithdrawAddressResponse, QueryParamsRequest, QueryParamsResponse, QueryValidatorCommissionRequest,
    QueryValidatorCommissionResponse, QueryValidatorDistributionInfoRequest, QueryValidatorDistributionInfoResponse,
    QueryValidatorOutstandingRewardsRequest, QueryValidatorOutstandingRewardsResponse, QueryValidatorSlashesRequest,
    QueryValidatorSlashesResponse, ValidatorAccumulatedCommission, ValidatorOutstandingRewards, ValidatorSlashEvent,
};
use polylink_protocol::{Address, DENOM, Dec};

use super::SLASH;
use super::records::{commission, community_pool, current, outstanding, params, parse_slash, withdraw_address};
use super::rewards::{earned, end_period};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::{KeyBuilder, Overlay, StateRead};
use crate::{paging, staking};

/// Validators whose rewards one answer adds up at most.
const DELEGATIONS_MAX: usize = 1_000;

/// Zero is no coin.
fn coins(amount: Dec) -> Vec<DecCoin> {
    if amount.is_zero() {
        Vec::new()
    } else {
        vec![DecCoin { denom: DENOM.into(), amount: amount.to_atomics_string() }]
    }
}

fn validator_of(state: &dyn StateRead, text: &str) -> Result<Address, QueryError> {
    let operator = Address::from_valoper(text)?;
    current(state, &operator)
        .map(|_| operator)
        .ok_or_else(|| QueryError::NotFound(format!("validator does not exist: {}", operator.valoper())))
}

/// What a delegation would be paid now, with decimals.
fn rewards(
    ctx: &QueryContext,
    state: &dyn StateRead,
    delegator: &Address,
    operator: &Address,
) -> Result<Dec, QueryError> {
    let mut layer = Overlay::new(state);
    let ending = end_period(&mut layer, operator);
    ending
        .and_then(|ending| earned(&layer, delegator, operator, ending, ctx.height + 1))
        .map_err(|_| QueryError::NotFound(format!("no delegation of {delegator} to validator {}", operator.valoper())))
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        Ok(QueryParamsResponse { params: Some(params(state)) })
    }
}

impl Answer for QueryValidatorDistributionInfoRequest {
    type Response = QueryValidatorDistributionInfoResponse;

    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = validator_of(state, &self.validator_address)?;
        Ok(QueryValidatorDistributionInfoResponse {
            operator_address: operator.account(),
            self_bond_rewards: coins(rewards(ctx, state, &operator, &operator).unwrap_or(Dec::ZERO)),
            commission: coins(commission(state, &operator)),
        })
    }
}

impl Answer for QueryValidatorOutstandingRewardsRequest {
    type Response = QueryValidatorOutstandingRewardsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = validator_of(state, &self.validator_address)?;
        let rewards = ValidatorOutstandingRewards { rewards: coins(outstanding(state, &operator)) };
        Ok(QueryValidatorOutstandingRewardsResponse { rewards: Some(rewards) })
    }
}

impl Answer for QueryValidatorCommissionRequest {
    type Response = QueryValidatorCommissionResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = validator_of(state, &self.validator_address)?;
        let commission = ValidatorAccumulatedCommission { commission: coins(commission(state, &operator)) };
        Ok(QueryValidatorCommissionResponse { commission: Some(commission) })
    }
}

impl Answer for QueryValidatorSlashesRequest {
    type Response = QueryValidatorSlashesResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        if self.ending_height < self.starting_height {
            return Err(QueryError::InvalidArgument(format!(
                "starting height greater than ending height ({} > {})",
                self.starting_height, self.ending_height
            )));
        }
        let operator = validator_of(state, &self.validator_address)?;
        let prefix = KeyBuilder::new(SLASH).bytes(&operator.0).finish();
        let (slashes, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |tail, value| {
            let slash = parse_slash(tail, value)?;
            (self.starting_height..=self.ending_height).contains(&slash.height).then(|| ValidatorSlashEvent {
                validator_period: slash.period,
                fraction: slash.fraction.to_atomics_string(),
            })
        })?;
        Ok(QueryValidatorSlashesResponse { slashes, pagination: Some(page) })
    }
}

impl Answer for QueryDelegationRewardsRequest {
    type Response = QueryDelegationRewardsResponse;

    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = validator_of(state, &self.validator_address)?;
        let rewards = rewards(ctx, state, &self.delegator_address.parse()?, &operator)?;
        Ok(QueryDelegationRewardsResponse { rewards: coins(rewards) })
    }
}

impl Answer for QueryDelegationTotalRewardsRequest {
    type Response = QueryDelegationTotalRewardsResponse;

    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_address.parse()?;
        let mut answer = QueryDelegationTotalRewardsResponse::default();
        let mut total = Dec::ZERO;
        for (operator, _) in staking::delegations_of(state, &delegator, DELEGATIONS_MAX) {
            let rewards = rewards(ctx, state, &delegator, &operator)?;
            total = total.checked_add(rewards).unwrap_or(total);
            let reward = coins(rewards);
            answer.rewards.push(DelegationDelegatorReward { validator_address: operator.valoper(), reward });
        }
        answer.total = coins(total);
        Ok(answer)
    }
}

impl Answer for QueryDelegatorValidatorsRequest {
    type Response = QueryDelegatorValidatorsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegations = staking::delegations_of(state, &self.delegator_address.parse()?, DELEGATIONS_MAX);
        let validators = delegations.into_iter().map(|(operator, _)| operator.valoper()).collect();
        Ok(QueryDelegatorValidatorsResponse { validators })
    }
}

impl Answer for QueryDelegatorWithdrawAddressRequest {
    type Response = QueryDelegatorWithdrawAddressResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let withdraw_address = withdraw_address(state, &self.delegator_address.parse()?).account();
        Ok(QueryDelegatorWithdrawAddressResponse { withdraw_address })
    }
}

impl Answer for QueryCommunityPoolRequest {
    type Response = QueryCommunityPoolResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryCommunityPoolResponse, QueryError> {
        Ok(QueryCommunityPoolResponse { pool: coins(community_pool(state)) })
    }
}
