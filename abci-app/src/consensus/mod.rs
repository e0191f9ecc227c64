//! The parameters of consensus, which CometBFT keeps to: how long blocks may be, how much gas they hold, how old evidence
//! may be: `x/consensus` of the Cosmos SDK.
//!
//! The chain begins with those of its genesis document, as `InitChain` hands them over. Governance changes them; what it
//! wrote in a block goes to CometBFT with that block's result and holds from the next height on.
//!
//! Invariant: a block that keeps to them holds any transaction that the ledger takes, and evidence is taken for as long as
//! stake that left can still be slashed.

pub mod proto;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::tendermint::types::{BlockParams, ConsensusParams, EvidenceParams, ValidatorParams};
use polylink_protocol::{Address, Message};

use crate::context::Context;
use crate::error::{GenesisError, QueryError, TxError};
use crate::gov::check_authority;
use crate::modules::{Answer, Handle, MessageRoute, Module, QueryContext, QueryRoute, no_hook};
use crate::store::{StateRead, StateWrite};
use crate::{staking, tx};

/// Parameters: `0x04` → `tendermint.types.ConsensusParams` without its version; absent where `InitChain` named none.
pub const PARAMS: u8 = 0x04;

/// The least that a block may be allowed to hold, in bytes: twice the longest transaction, so that header, signatures and
/// evidence have room beside it.
pub const BLOCK_BYTES_MIN: i64 = 2 * tx::TX_BYTES_MAX as i64;
/// The most: CometBFT's own limit.
pub const BLOCK_BYTES_MAX: i64 = 100 << 20;
/// The least gas of a block. Proposals must fit, else nothing could ever change it again.
pub const BLOCK_GAS_MIN: i64 = 10_000_000;

/// The tables of the parameters of consensus.
pub const MODULE: Module = Module {
    name: "consensus",
    messages: &[MessageRoute::of::<proto::MsgUpdateParams>()],
    refused: &[],
    queries: &[QueryRoute::of::<proto::QueryParamsRequest>()],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: |_, _, _| Ok(()),
};

/// The parameters in force; `None` on a chain whose `InitChain` named none, until governance writes some.
pub fn params(state: &dyn StateRead) -> Option<ConsensusParams> {
    let bytes = state.get(&[PARAMS])?;
    Some(ConsensusParams::decode(bytes.as_slice()).expect("parameters are written encoded"))
}

/// The gas that the transactions of one block may ask for together: [`tx::BLOCK_GAS_MAX`] where nothing else is said.
pub fn block_gas_max(state: &dyn StateRead) -> u64 {
    let said = params(state).and_then(|params| params.block).and_then(|block| u64::try_from(block.max_gas).ok());
    said.filter(|gas| *gas > 0).unwrap_or(tx::BLOCK_GAS_MAX)
}

/// Whether evidence is taken for as long as stake that left can still be slashed, where the parameters say for how long.
///
/// # Errors
/// How long it should be.
pub fn check_age(state: &dyn StateRead) -> Result<(), GenesisError> {
    let said = params(state).and_then(|params| params.evidence?.max_age_duration);
    let unbonding = unbonding_seconds(state);
    match said {
        Some(age) if age.seconds < unbonding => {
            let reason = format!("{} seconds are less than the unbonding time, {unbonding} seconds", age.seconds);
            Err(GenesisError::invalid("consensus_params.evidence.max_age_duration", reason))
        }
        _ => Ok(()),
    }
}

fn unbonding_seconds(state: &dyn StateRead) -> i64 {
    staking::params(state).unbonding_time.map_or(0, |time| time.seconds)
}

fn wrong(field: &str, what: &str) -> TxError {
    TxError::invalid(format!("{field}: {what}"))
}

fn check_block(block: &BlockParams) -> Result<(), TxError> {
    if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block.max_bytes) {
        return Err(wrong("block.max_bytes", &format!("{BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX} bytes are expected")));
    }
    if block.max_gas != -1 && block.max_gas < BLOCK_GAS_MIN {
        return Err(wrong("block.max_gas", &format!("at least {BLOCK_GAS_MIN}, or -1, is expected")));
    }
    Ok(())
}

fn check_evidence(evidence: &EvidenceParams, block: &BlockParams) -> Result<(), TxError> {
    if evidence.max_age_num_blocks <= 0 {
        return Err(wrong("evidence.max_age_num_blocks", "a positive number of blocks is expected"));
    }
    if !evidence.max_age_duration.as_ref().is_some_and(|age| age.seconds > 0 && (0..1_000_000_000).contains(&age.nanos))
    {
        return Err(wrong("evidence.max_age_duration", "a positive time is expected"));
    }
    if !(0..=block.max_bytes).contains(&evidence.max_bytes) {
        return Err(wrong("evidence.max_bytes", "at most those of a block are expected"));
    }
    Ok(())
}

/// The three that the message must have, as the SDK demands.
fn parts(message: &proto::MsgUpdateParams) -> Result<(BlockParams, EvidenceParams, ValidatorParams), TxError> {
    let parts = message.block.zip(message.evidence).zip(message.validator.clone());
    let ((block, evidence), validator) = parts.ok_or_else(|| TxError::invalid("all parameters must be present"))?;
    Ok((block, evidence, validator))
}

impl Handle for proto::MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/consensus/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = proto::MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        let (block, evidence, validator) = parts(self)?;
        check_block(&block)?;
        check_evidence(&evidence, &block)?;
        if validator.pub_key_types != ["ed25519"] {
            return Err(wrong("validator.pub_key_types", "validators have ed25519 keys, and no others"));
        }
        match self.abci.as_ref().map_or(0, |abci| abci.vote_extensions_enable_height) {
            0 => Ok(()),
            _ => Err(wrong("abci.vote_extensions_enable_height", "votes carry nothing here: 0 is expected")),
        }
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (block, evidence, validator) = parts(self)?;
        let unbonding = unbonding_seconds(state);
        if evidence.max_age_duration.as_ref().is_none_or(|age| age.seconds < unbonding) {
            let what = format!("at least the unbonding time, {unbonding} seconds, is expected");
            return Err(wrong("evidence.max_age_duration", &what));
        }
        let (block, evidence, validator) = (Some(block), Some(evidence), Some(validator));
        let params = ConsensusParams { block, evidence, validator, ..Default::default() };
        state.put(vec![PARAMS], params.encode_to_vec());
        Ok(proto::MsgUpdateParamsResponse {})
    }
}

impl Answer for proto::QueryParamsRequest {
    type Response = proto::QueryParamsResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<Self::Response, QueryError> {
        let params = params(state).ok_or_else(|| QueryError::NotFound("the genesis document names none".into()))?;
        Ok(proto::QueryParamsResponse { params: Some(params) })
    }
}
