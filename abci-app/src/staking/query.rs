//! Staking's queries.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    Delegation, DelegationResponse, Pool as PoolInfo, QueryDelegationRequest, QueryDelegationResponse,
    QueryDelegatorDelegationsRequest, QueryDelegatorDelegationsResponse, QueryDelegatorUnbondingDelegationsRequest,
    QueryDelegatorUnbondingDelegationsResponse, QueryDelegatorValidatorsRequest, QueryDelegatorValidatorsResponse,
    QueryParamsRequest, QueryParamsResponse, QueryPoolRequest, QueryPoolResponse, QueryUnbondingDelegationRequest,
    QueryUnbondingDelegationResponse, QueryValidatorDelegationsRequest, QueryValidatorDelegationsResponse,
    QueryValidatorRequest, QueryValidatorResponse, QueryValidatorsRequest, QueryValidatorsResponse,
    UnbondingDelegation, Validator,
};
use polylink_protocol::{Address, Amount, DENOM, Dec, Message};

use super::ledger::{delegation, params, tokens_of_shares, unbonding, validator};
use super::{DELEGATION, DELEGATOR_INDEX, UNBONDING, VALIDATOR};
use crate::bank::{Pool, balance};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::paging;
use crate::store::{KeyBuilder, StateRead};

fn no_validator(operator: &Address) -> QueryError {
    QueryError::NotFound(format!("validator {} not found", operator.valoper()))
}

fn address(tail: &[u8]) -> Option<Address> {
    tail.try_into().ok().map(Address)
}

fn delegation_response(
    state: &dyn StateRead,
    delegator: &Address,
    operator: &Address,
    shares: Dec,
) -> Option<DelegationResponse> {
    let worth: Amount = tokens_of_shares(&validator(state, operator)?, shares);
    Some(DelegationResponse {
        delegation: Some(Delegation {
            delegator_address: delegator.account(),
            validator_address: operator.valoper(),
            shares: shares.to_atomics_string(),
        }),
        balance: Some(Coin { denom: DENOM.into(), amount: worth.to_string() }),
    })
}

impl Answer for QueryValidatorsRequest {
    type Response = QueryValidatorsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryValidatorsResponse, QueryError> {
        let statuses = ["", "BOND_STATUS_UNBONDED", "BOND_STATUS_UNBONDING", "BOND_STATUS_BONDED"];
        let wanted = statuses.iter().position(|status| *status == self.status).ok_or_else(|| {
            QueryError::InvalidArgument(format!("invalid validator status {}", self.status.escape_debug()))
        })?;
        let (validators, page) = paging::cosmos(state, &[VALIDATOR], self.pagination.clone(), |_, value| {
            let record = Validator::decode(value).ok()?;
            (wanted == 0 || usize::try_from(record.status) == Ok(wanted)).then_some(record)
        })?;
        Ok(QueryValidatorsResponse { validators, pagination: Some(page) })
    }
}

impl Answer for QueryValidatorRequest {
    type Response = QueryValidatorResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryValidatorResponse, QueryError> {
        let operator = Address::from_valoper(&self.validator_addr)?;
        let record = validator(state, &operator).ok_or_else(|| no_validator(&operator))?;
        Ok(QueryValidatorResponse { validator: Some(record) })
    }
}

impl Answer for QueryDelegationRequest {
    type Response = QueryDelegationResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryDelegationResponse, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let operator = Address::from_valoper(&self.validator_addr)?;
        let found = delegation(state, &delegator, &operator)
            .and_then(|shares| delegation_response(state, &delegator, &operator, shares))
            .ok_or_else(|| {
                let validator = operator.valoper();
                QueryError::NotFound(format!(
                    "delegation with delegator {delegator} not found for validator {validator}"
                ))
            })?;
        Ok(QueryDelegationResponse { delegation_response: Some(found) })
    }
}

impl Answer for QueryDelegatorDelegationsRequest {
    type Response = QueryDelegatorDelegationsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let prefix = KeyBuilder::new(DELEGATION).bytes(&delegator.0).finish();
        let (rows, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |tail, value| {
            delegation_response(state, &delegator, &address(tail)?, super::ledger::parse_shares(value))
        })?;
        Ok(QueryDelegatorDelegationsResponse { delegation_responses: rows, pagination: Some(page) })
    }
}

impl Answer for QueryValidatorDelegationsRequest {
    type Response = QueryValidatorDelegationsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = Address::from_valoper(&self.validator_addr)?;
        validator(state, &operator).ok_or_else(|| no_validator(&operator))?;
        let prefix = KeyBuilder::new(DELEGATOR_INDEX).bytes(&operator.0).finish();
        let (rows, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |tail, _| {
            let delegator = address(tail)?;
            delegation_response(state, &delegator, &operator, delegation(state, &delegator, &operator)?)
        })?;
        Ok(QueryValidatorDelegationsResponse { delegation_responses: rows, pagination: Some(page) })
    }
}

impl Answer for QueryUnbondingDelegationRequest {
    type Response = QueryUnbondingDelegationResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let operator = Address::from_valoper(&self.validator_addr)?;
        let found = unbonding(state, &delegator, &operator).ok_or_else(|| {
            let validator = operator.valoper();
            QueryError::NotFound(format!(
                "unbonding delegation with delegator {delegator} not found for validator {validator}"
            ))
        })?;
        Ok(QueryUnbondingDelegationResponse { unbond: Some(found) })
    }
}

impl Answer for QueryDelegatorUnbondingDelegationsRequest {
    type Response = QueryDelegatorUnbondingDelegationsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let prefix = KeyBuilder::new(UNBONDING).bytes(&delegator.0).finish();
        let (rows, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |_, value| {
            UnbondingDelegation::decode(value).ok()
        })?;
        Ok(QueryDelegatorUnbondingDelegationsResponse { unbonding_responses: rows, pagination: Some(page) })
    }
}

impl Answer for QueryDelegatorValidatorsRequest {
    type Response = QueryDelegatorValidatorsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let prefix = KeyBuilder::new(DELEGATION).bytes(&delegator.0).finish();
        let (validators, page) =
            paging::cosmos(state, &prefix, self.pagination.clone(), |tail, _| validator(state, &address(tail)?))?;
        Ok(QueryDelegatorValidatorsResponse { validators, pagination: Some(page) })
    }
}

impl Answer for QueryPoolRequest {
    type Response = QueryPoolResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryPoolResponse, QueryError> {
        let pool = PoolInfo {
            not_bonded_tokens: balance(state, Pool::NotBondedTokens).to_string(),
            bonded_tokens: balance(state, Pool::BondedTokens).to_string(),
        };
        Ok(QueryPoolResponse { pool: Some(pool) })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        Ok(QueryParamsResponse { params: Some(params(state)) })
    }
}
