//! MsgSoftwareUpgrade and MsgCancelUpgrade.

use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{
    MsgCancelUpgrade, MsgCancelUpgradeResponse, MsgSoftwareUpgrade, MsgSoftwareUpgradeResponse, Plan,
};
use polylink_protocol::{Address, Message};

use super::{PLAN, done};
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Bytes of a plan's name at most: it is part of a key.
const NAME_MAX: usize = 128;
/// Bytes of what a plan says at most.
const INFO_MAX: usize = 4_096;

#[allow(deprecated, reason = "the SDK refuses what is set there")]
fn check(plan: &Plan) -> Result<(), TxError> {
    if plan.name.is_empty() || plan.name.len() > NAME_MAX || plan.info.len() > INFO_MAX {
        return Err(TxError::invalid(format!("a plan has a name of 1 to {NAME_MAX} bytes and an info of {INFO_MAX}")));
    }
    if plan.time.is_some() || plan.upgraded_client_state.is_some() {
        return Err(TxError::invalid("time-based upgrades and upgraded client states are deprecated"));
    }
    if plan.height <= 0 { Err(TxError::invalid("height must be greater than 0")) } else { Ok(()) }
}

impl Handle for MsgSoftwareUpgrade {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgSoftwareUpgrade";
    const GOVERNED: bool = true;
    type Response = MsgSoftwareUpgradeResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        check(self.plan.as_ref().ok_or_else(|| TxError::invalid("plan: nothing"))?)
    }

    /// A later plan takes the place of one that waits.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSoftwareUpgradeResponse, TxError> {
        let plan = self.plan.as_ref().ok_or_else(|| TxError::invalid("plan: nothing"))?;
        if plan.height.max(0).unsigned_abs() <= ctx.height {
            return Err(TxError::invalid("upgrade cannot be scheduled in the past"));
        }
        if done(state, &plan.name).is_some() {
            return Err(TxError::invalid(format!("upgrade with name {} has already been completed", plan.name)));
        }
        state.put(vec![PLAN], plan.encode_to_vec());
        Ok(MsgSoftwareUpgradeResponse {})
    }
}

impl Handle for MsgCancelUpgrade {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCancelUpgrade";
    const GOVERNED: bool = true;
    type Response = MsgCancelUpgradeResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority).map(|_| ())
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCancelUpgradeResponse, TxError> {
        state.delete(vec![PLAN]);
        Ok(MsgCancelUpgradeResponse {})
    }
}
