//! The messages of `cosmos.consensus.v1`, which the crate with the SDK's messages leaves out.

use polylink_protocol::Name;
use polylink_protocol::cosmos::tendermint::types::{
    AbciParams, BlockParams, ConsensusParams, EvidenceParams, ValidatorParams,
};

const PACKAGE: &str = "cosmos.consensus.v1";

/// New parameters: all of them are there, but for `abci`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MsgUpdateParams {
    /// In whose name: governance's.
    #[prost(string, tag = "1")]
    pub authority: String,
    /// Of blocks.
    #[prost(message, optional, tag = "2")]
    pub block: Option<BlockParams>,
    /// Of evidence.
    #[prost(message, optional, tag = "3")]
    pub evidence: Option<EvidenceParams>,
    /// Of validators' keys.
    #[prost(message, optional, tag = "4")]
    pub validator: Option<ValidatorParams>,
    /// Of what votes carry.
    #[prost(message, optional, tag = "5")]
    pub abci: Option<AbciParams>,
}

/// Nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MsgUpdateParamsResponse {}

/// Asks for the parameters.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryParamsRequest {}

/// The parameters, without the version.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryParamsResponse {
    /// In force.
    #[prost(message, optional, tag = "1")]
    pub params: Option<ConsensusParams>,
}

impl Name for MsgUpdateParams {
    const NAME: &'static str = "MsgUpdateParams";
    const PACKAGE: &'static str = PACKAGE;
}
impl Name for MsgUpdateParamsResponse {
    const NAME: &'static str = "MsgUpdateParamsResponse";
    const PACKAGE: &'static str = PACKAGE;
}
impl Name for QueryParamsRequest {
    const NAME: &'static str = "QueryParamsRequest";
    const PACKAGE: &'static str = PACKAGE;
}
impl Name for QueryParamsResponse {
    const NAME: &'static str = "QueryParamsResponse";
    const PACKAGE: &'static str = PACKAGE;
}
