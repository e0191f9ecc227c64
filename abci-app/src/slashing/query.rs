//! Slashing's queries.

use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{
    QueryParamsRequest, QueryParamsResponse, QuerySigningInfoRequest, QuerySigningInfoResponse,
    QuerySigningInfosRequest, QuerySigningInfosResponse, ValidatorSigningInfo,
};
use polylink_protocol::{Address, Message};

use super::{SIGNING_INFO, params, signing_info};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::paging;
use crate::store::StateRead;

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        Ok(QueryParamsResponse { params: Some(params(state)) })
    }
}

impl Answer for QuerySigningInfoRequest {
    type Response = QuerySigningInfoResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QuerySigningInfoResponse, QueryError> {
        let consensus = Address::from_valcons(&self.cons_address)?;
        let info = signing_info(state, &consensus).ok_or_else(|| {
            QueryError::NotFound(format!("SigningInfo not found for validator {}", consensus.valcons()))
        })?;
        Ok(QuerySigningInfoResponse { val_signing_info: Some(info) })
    }
}

impl Answer for QuerySigningInfosRequest {
    type Response = QuerySigningInfosResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QuerySigningInfosResponse, QueryError> {
        let (info, page) = paging::cosmos(state, &[SIGNING_INFO], self.pagination.clone(), |_, value| {
            ValidatorSigningInfo::decode(value).ok()
        })?;
        Ok(QuerySigningInfosResponse { info, pagination: Some(page) })
    }
}
