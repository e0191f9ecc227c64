//! Staking's queries.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    Delegation, DelegationResponse, Pool as PoolInfo, QueryDelegationRequest, QueryDelegationResponse,
    QueryDelegatorDelegationsRequest, QueryDelegatorDelegationsResponse, QueryDelegatorUnbondingDelegationsRequest,
    QueryDelegatorUnbondingDelegationsResponse, QueryDelegatorValidatorRequest, QueryDelegatorValidatorResponse,
    QueryDelegatorValidatorsRequest, QueryDelegatorValidatorsResponse, QueryHistoricalInfoRequest,
    QueryHistoricalInfoResponse, QueryParamsRequest, QueryParamsResponse, QueryPoolRequest, QueryPoolResponse,
    QueryRedelegationsRequest, QueryRedelegationsResponse, QueryUnbondingDelegationRequest,
    QueryUnbondingDelegationResponse, QueryValidatorDelegationsRequest, QueryValidatorDelegationsResponse,
    QueryValidatorRequest, QueryValidatorResponse, QueryValidatorUnbondingDelegationsRequest,
    QueryValidatorUnbondingDelegationsResponse, QueryValidatorsRequest, QueryValidatorsResponse, Redelegation,
    RedelegationEntryResponse, RedelegationResponse, UnbondingDelegation, Validator,
};
use polylink_protocol::{Address, DENOM, Dec, Message};

use super::records::{delegation, params, parse_shares, validator};
use super::shares::worth;
use super::{
    DELEGATION, DELEGATOR_INDEX, REDELEGATION, REDELEGATION_BY_SOURCE, UNBONDING, UNBONDING_BY_VALIDATOR, VALIDATOR,
    historical, redelegate, unbonding,
};
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
    let worth = worth(&validator(state, operator)?, shares);
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
            delegation_response(state, &delegator, &address(tail)?, parse_shares(value))
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
        let found = unbonding::record(state, &delegator, &operator).ok_or_else(|| {
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

impl Answer for QueryValidatorUnbondingDelegationsRequest {
    type Response = QueryValidatorUnbondingDelegationsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let operator = Address::from_valoper(&self.validator_addr)?;
        let prefix = KeyBuilder::new(UNBONDING_BY_VALIDATOR).bytes(&operator.0).finish();
        let (rows, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |tail, _| {
            unbonding::record(state, &address(tail)?, &operator)
        })?;
        Ok(QueryValidatorUnbondingDelegationsResponse { unbonding_responses: rows, pagination: Some(page) })
    }
}

fn redelegation_response(state: &dyn StateRead, mut record: Redelegation) -> Option<RedelegationResponse> {
    let to = validator(state, &Address::from_valoper(&record.validator_dst_address).ok()?)?;
    let entries = std::mem::take(&mut record.entries).into_iter().map(|entry| {
        let shares = Dec::from_atomics_str(&entry.shares_dst).unwrap_or(Dec::ZERO);
        RedelegationEntryResponse { balance: worth(&to, shares).to_string(), redelegation_entry: Some(entry) }
    });
    let entries = entries.collect();
    Some(RedelegationResponse { redelegation: Some(record), entries })
}

impl Answer for QueryRedelegationsRequest {
    type Response = QueryRedelegationsResponse;

    /// One triple, all away from a validator, or all of a delegator.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryRedelegationsResponse, QueryError> {
        let parse = |text: &str| (!text.is_empty()).then(|| Address::from_valoper(text)).transpose();
        let (from, to) = (parse(&self.src_validator_addr)?, parse(&self.dst_validator_addr)?);
        let (rows, page) = match (self.delegator_addr.as_str(), from, to) {
            ("", Some(from), _) => {
                let prefix = KeyBuilder::new(REDELEGATION_BY_SOURCE).bytes(&from.0).finish();
                paging::cosmos(state, &prefix, self.pagination.clone(), |tail, _| {
                    let (delegator, to) = (address(tail.get(..20)?)?, address(tail.get(20..)?)?);
                    redelegation_response(state, redelegate::record(state, &delegator, &from, &to)?)
                })?
            }
            (delegator, Some(from), Some(to)) => {
                let delegator: Address = delegator.parse()?;
                let found = redelegate::record(state, &delegator, &from, &to).ok_or_else(|| {
                    QueryError::NotFound(format!(
                        "redelegation not found for delegator address {delegator} from validator address {}",
                        from.valoper()
                    ))
                })?;
                (redelegation_response(state, found).into_iter().collect(), Default::default())
            }
            (delegator, ..) => {
                let delegator: Address = delegator.parse()?;
                let prefix = KeyBuilder::new(REDELEGATION).bytes(&delegator.0).finish();
                paging::cosmos(state, &prefix, self.pagination.clone(), |_, value| {
                    redelegation_response(state, Redelegation::decode(value).ok()?)
                })?
            }
        };
        Ok(QueryRedelegationsResponse { redelegation_responses: rows, pagination: Some(page) })
    }
}

impl Answer for QueryDelegatorValidatorRequest {
    type Response = QueryDelegatorValidatorResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let delegator: Address = self.delegator_addr.parse()?;
        let operator = Address::from_valoper(&self.validator_addr)?;
        let found = delegation(state, &delegator, &operator).and_then(|_| validator(state, &operator));
        let found = found.ok_or_else(|| {
            let validator = operator.valoper();
            QueryError::NotFound(format!("no delegation of {delegator} to validator {validator}"))
        })?;
        Ok(QueryDelegatorValidatorResponse { validator: Some(found) })
    }
}

impl Answer for QueryHistoricalInfoRequest {
    type Response = QueryHistoricalInfoResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let height =
            u64::try_from(self.height).map_err(|_| QueryError::InvalidArgument("height cannot be negative".into()))?;
        let found = historical::find(state, height);
        let found =
            found.ok_or_else(|| QueryError::NotFound(format!("historical info for height {height} not found")))?;
        Ok(QueryHistoricalInfoResponse { hist: Some(found) })
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
