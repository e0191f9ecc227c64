//! The mint's queries. Decimals stand as text in bytes, as in the SDK.

use polylink_protocol::cosmos::cosmos::mint::v1beta1::{
    QueryAnnualProvisionsRequest, QueryAnnualProvisionsResponse, QueryInflationRequest, QueryInflationResponse,
    QueryParamsRequest, QueryParamsResponse,
};

use super::{minter, params};
use crate::error::QueryError;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryParamsResponse, QueryError> {
        Ok(QueryParamsResponse { params: Some(params(state)) })
    }
}

impl Answer for QueryInflationRequest {
    type Response = QueryInflationResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryInflationResponse, QueryError> {
        Ok(QueryInflationResponse { inflation: minter(state).0.to_atomics_string().into_bytes() })
    }
}

impl Answer for QueryAnnualProvisionsRequest {
    type Response = QueryAnnualProvisionsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAnnualProvisionsResponse, QueryError> {
        Ok(QueryAnnualProvisionsResponse { annual_provisions: minter(state).1.to_atomics_string().into_bytes() })
    }
}
