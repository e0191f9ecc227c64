//! MsgGrantAllowance, MsgRevokeAllowance, MsgPruneAllowances.

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{
    MsgGrantAllowance, MsgGrantAllowanceResponse, MsgPruneAllowances, MsgPruneAllowancesResponse, MsgRevokeAllowance,
    MsgRevokeAllowanceResponse,
};

use super::allowance::Allowance;
use super::{FeegrantError, allowance, drop_expired, emit, remove, save};
use crate::auth;
use crate::bank::Pool;
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Expired allowances that one message drops at most (the SDK's number).
const PRUNED_MAX: usize = 75;

impl Handle for MsgGrantAllowance {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgGrantAllowance";
    type Response = MsgGrantAllowanceResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.granter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        if self.grantee.parse::<Address>()? == self.signer()? {
            return Err(TxError::InvalidAddress("cannot self-grant fee authorization".into()));
        }
        Allowance::parse(self.allowance.as_ref())?.check()
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgGrantAllowanceResponse, TxError> {
        let (granter, grantee) = (self.signer()?, self.grantee.parse()?);
        if allowance(state, &granter, &grantee).is_some() {
            return Err(TxError::invalid("fee allowance already exists"));
        }
        if Pool::of_address(&grantee).is_some() {
            return Err(TxError::Unauthorized(format!("{grantee} signs nothing")));
        }
        let allowance = Allowance::parse(self.allowance.as_ref())?;
        if allowance.expires().is_some_and(|at| at < ctx.time) {
            return Err(TxError::invalid("expiration is before current block time"));
        }
        // So that it can sign a first transaction, which somebody else pays.
        auth::ensure_account(state, &grantee);
        save(state, &granter, &grantee, &allowance);
        emit(ctx, "set_feegrant", &granter, &grantee);
        Ok(MsgGrantAllowanceResponse {})
    }
}

impl Handle for MsgRevokeAllowance {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgRevokeAllowance";
    type Response = MsgRevokeAllowanceResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.granter.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        if self.grantee.parse::<Address>()? == self.signer()? {
            return Err(TxError::InvalidAddress("addresses must be different".into()));
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRevokeAllowanceResponse, TxError> {
        let (granter, grantee) = (self.signer()?, self.grantee.parse()?);
        let allowance = allowance(state, &granter, &grantee).ok_or(FeegrantError::NoAllowance)?;
        remove(state, &granter, &grantee, &allowance);
        emit(ctx, "revoke_feegrant", &granter, &grantee);
        Ok(MsgRevokeAllowanceResponse {})
    }
}

impl Handle for MsgPruneAllowances {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgPruneAllowances";
    type Response = MsgPruneAllowancesResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.pruner.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgPruneAllowancesResponse, TxError> {
        drop_expired(state, ctx.time, PRUNED_MAX);
        ctx.emit("prune_feegrant", [("pruner", self.pruner.clone())]);
        Ok(MsgPruneAllowancesResponse {})
    }
}
