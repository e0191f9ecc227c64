//! The audit's queries.

use polylink_protocol::tiqe_v1::*;
use polylink_protocol::{Address, Digest, Message};

use super::{beacon, keys, params, round, trial};
use crate::error::QueryError;
use crate::market::records::load;
use crate::modules::{Answer, QueryContext};
use crate::store::StateRead;

/// Rows of an answer without pages at most.
const ROWS_MAX: usize = 1_000;
/// Trials of an answer at most: their votes come with them.
const TRIALS_MAX: usize = 100;

fn profile(bytes: &[u8]) -> Result<Digest, QueryError> {
    let len = bytes.len();
    Digest::from_slice(bytes)
        .ok_or_else(|| QueryError::InvalidArgument(format!("profile_digest: 32 bytes are expected, not {len}")))
}

impl Answer for QueryRoundRequest {
    type Response = QueryRoundResponse;
    /// The phase is the one that the next block is in.
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let digest = profile(&self.profile_digest)?;
        let round = round::full(state, ctx.height, self.epoch, &digest)
            .ok_or_else(|| QueryError::NotFound(format!("round over epoch {} for {digest}", self.epoch)))?;
        Ok(QueryRoundResponse { round: Some(round) })
    }
}

impl Answer for QueryQualityRequest {
    type Response = QueryQualityResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let (worker, digest): (Address, Digest) = (self.worker.parse()?, profile(&self.profile_digest)?);
        let quality = load(state, &keys::quality(&worker, &digest))
            .ok_or_else(|| QueryError::NotFound(format!("quality of {worker} for {digest}: no audit yet")))?;
        Ok(QueryQualityResponse { quality: Some(quality) })
    }
}

impl Answer for QueryJudgesRequest {
    type Response = QueryJudgesResponse;
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let judges = state
            .iter_prefix(&[keys::JUDGE])
            .take(ROWS_MAX)
            .filter_map(|(_, value)| Judge::decode(value.as_slice()).ok())
            .collect();
        Ok(QueryJudgesResponse { judges })
    }
}

impl Answer for QueryBeaconRequest {
    type Response = QueryBeaconResponse;
    /// The newest beacon at or before the epoch, the genesis beacon where there is none: for a proof over epoch e, ask
    /// for e − 1.
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let digest = profile(&self.profile_digest)?;
        Ok(QueryBeaconResponse { beacon: beacon::at(state, &ctx.chain_id, &digest, self.epoch).to_vec() })
    }
}

impl Answer for QueryTrialsRequest {
    type Response = QueryTrialsResponse;
    /// A worker's trials, or everybody's; the newest first, at most 100.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let prefix = match self.worker.as_str() {
            "" => vec![keys::TRIAL],
            worker => keys::trials_of(&worker.parse()?).finish(),
        };
        let ids = state.iter_prefix_rev(&prefix).take(TRIALS_MAX).filter_map(|(key, _)| keys::last_id(&key));
        let trials = ids
            .filter_map(|id| trial::stored(state, id))
            .map(|trial| Trial {
                votes: trial::votes(state, trial.id).into_iter().map(|(_, vote)| vote).collect(),
                ..trial
            })
            .collect();
        Ok(QueryTrialsResponse { trials })
    }
}

impl Answer for QueryParamsRequest {
    type Response = QueryParamsResponse;
    fn answer(&self, ctx: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        Ok(QueryParamsResponse { params: Some(params::at(state, ctx.epoch)) })
    }
}
