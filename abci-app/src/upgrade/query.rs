//! The queries of upgrades.

use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{
    QueryAppliedPlanRequest, QueryAppliedPlanResponse, QueryAuthorityRequest, QueryAuthorityResponse,
    QueryCurrentPlanRequest, QueryCurrentPlanResponse,
};

use super::{done, plan};
use crate::error::QueryError;
use crate::gov;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;

impl Answer for QueryCurrentPlanRequest {
    type Response = QueryCurrentPlanResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryCurrentPlanResponse, QueryError> {
        Ok(QueryCurrentPlanResponse { plan: plan(state) })
    }
}

impl Answer for QueryAppliedPlanRequest {
    type Response = QueryAppliedPlanResponse;

    /// The height of an upgrade that was done, 0 of another.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAppliedPlanResponse, QueryError> {
        // A longer name is none of a plan, and no key either.
        let height = if self.name.len() > 128 { None } else { done(state, &self.name) };
        Ok(QueryAppliedPlanResponse { height: height.map_or(0, |height| i64::try_from(height).unwrap_or(i64::MAX)) })
    }
}

impl Answer for QueryAuthorityRequest {
    type Response = QueryAuthorityResponse;

    fn answer(&self, _: &QueryContext, _: &dyn StateRead) -> Result<QueryAuthorityResponse, QueryError> {
        Ok(QueryAuthorityResponse { address: gov::authority().account() })
    }
}
