//! The queries of fee grants.

use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{
    Grant, QueryAllowanceRequest, QueryAllowanceResponse, QueryAllowancesByGranterRequest,
    QueryAllowancesByGranterResponse, QueryAllowancesRequest, QueryAllowancesResponse,
};
use polylink_protocol::{Address, Message};

use super::{ALLOWANCE, BY_GRANTER, grant};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::paging;
use crate::store::{KeyBuilder, StateRead};

impl Answer for QueryAllowanceRequest {
    type Response = QueryAllowanceResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAllowanceResponse, QueryError> {
        let (granter, grantee): (Address, Address) = (self.granter.parse()?, self.grantee.parse()?);
        let found = grant(state, &granter, &grantee);
        let found = found.ok_or_else(|| QueryError::NotFound(format!("no allowance of {granter} for {grantee}")))?;
        Ok(QueryAllowanceResponse { allowance: Some(found) })
    }
}

impl Answer for QueryAllowancesRequest {
    type Response = QueryAllowancesResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAllowancesResponse, QueryError> {
        let grantee: Address = self.grantee.parse()?;
        let prefix = KeyBuilder::new(ALLOWANCE).bytes(&grantee.0).finish();
        let (allowances, page) =
            paging::cosmos(state, &prefix, self.pagination.clone(), |_, value| Grant::decode(value).ok())?;
        Ok(QueryAllowancesResponse { allowances, pagination: Some(page) })
    }
}

impl Answer for QueryAllowancesByGranterRequest {
    type Response = QueryAllowancesByGranterResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let granter: Address = self.granter.parse()?;
        let prefix = KeyBuilder::new(BY_GRANTER).bytes(&granter.0).finish();
        let (allowances, page) = paging::cosmos(state, &prefix, self.pagination.clone(), |tail, _| {
            grant(state, &granter, &Address(tail.try_into().ok()?))
        })?;
        Ok(QueryAllowancesByGranterResponse { allowances, pagination: Some(page) })
    }
}
