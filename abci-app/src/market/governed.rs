//! MsgUpdateParams of market and audit: governance adds a version of the parameters, for an epoch that has not begun.

use polylink_protocol::Address;
use polylink_protocol::{market_v1, tiqe_v1};

use super::params;
use crate::context::Context;
use crate::error::{GenesisError, TxError};
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};
use crate::tiqe;

fn nothing() -> TxError {
    TxError::invalid("params: nothing")
}

/// What a check of the genesis document says of a parameter.
fn reason(error: GenesisError) -> TxError {
    match error {
        GenesisError::Invalid { field, reason } => TxError::invalid(format!("{field}: {reason}")),
        GenesisError::Malformed(reason) => TxError::invalid(reason),
    }
}

/// The next version, for a later epoch, and not before one that waits already.
fn check_version(ctx: &Context, name: &str, [old, new]: [(u64, u64); 2]) -> Result<(), TxError> {
    if Some(new.0) != old.0.checked_add(1) {
        return Err(TxError::invalid(format!(
            "{name}.params.version: the one after {} is expected, not {}",
            old.0, new.0
        )));
    }
    if new.1 <= ctx.epoch || new.1 < old.1 {
        let least = ctx.epoch.saturating_add(1).max(old.1);
        return Err(TxError::invalid(format!("{name}.params.activation_epoch: {least} or later is expected")));
    }
    Ok(())
}

/// The newest version, in force or waiting.
fn newest(state: &dyn StateRead) -> market_v1::Params {
    params::at(state, u64::MAX - 1)
}

impl Handle for market_v1::MsgUpdateParams {
    const AMINO_NAME: &'static str = "polylink/market/UpdateParams";
    const GOVERNED: bool = true;
    type Response = market_v1::MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        params::check(self.params.as_ref().ok_or_else(nothing)?).map_err(reason)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (new, old) = (self.params.as_ref().ok_or_else(nothing)?, newest(state));
        check_version(ctx, "market", [(old.version, old.activation_epoch), (new.version, new.activation_epoch)])?;
        if new.epoch_blocks != ctx.epoch_blocks {
            return Err(TxError::invalid("market.params.epoch_blocks: the length of an epoch is fixed at genesis"));
        }
        params::put(state, new);
        Ok(market_v1::MsgUpdateParamsResponse {})
    }
}

impl Handle for tiqe_v1::MsgUpdateParams {
    const AMINO_NAME: &'static str = "polylink/tiqe/UpdateParams";
    const GOVERNED: bool = true;
    type Response = tiqe_v1::MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        tiqe::params::check(self.params.as_ref().ok_or_else(nothing)?).map_err(reason)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (new, old) = (self.params.as_ref().ok_or_else(nothing)?, tiqe::params::at(state, u64::MAX - 1));
        check_version(ctx, "tiqe", [(old.version, old.activation_epoch), (new.version, new.activation_epoch)])?;
        tiqe::params::put(state, new);
        Ok(tiqe_v1::MsgUpdateParamsResponse {})
    }
}
