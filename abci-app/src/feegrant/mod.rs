//! Accounts that pay the fees of others: `x/feegrant` of the Cosmos SDK.
//!
//! A granter allows a grantee to name it in a transaction's fee. The allowance says how much in all, how much in a period,
//! until when, and for which messages. It is used up in the ante chain, whatever the messages do then; what has expired is
//! dropped at the end of blocks.

mod allowance;
mod messages;
mod query;
#[cfg(test)]
mod tests;

use polylink_protocol::cosmos::cosmos::feegrant::v1beta1::{self as proto, Grant};
use polylink_protocol::{Address, Amount, Message};

use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{KeyBuilder, Order, StateRead, StateWrite};
use allowance::Allowance;

/// Allowances: `0x1a ‖ grantee (20) ‖ granter (20)` → `cosmos.feegrant.v1beta1.Grant`.
pub const ALLOWANCE: u8 = 0x1a;
/// Allowances by who gave them: `0x1b ‖ granter (20) ‖ grantee (20)` → 1.
pub const BY_GRANTER: u8 = 0x1b;
/// Allowances by expiry: `0x1c ‖ seconds u64 ‖ nanoseconds u32 ‖ grantee (20) ‖ granter (20)` → 1.
pub const EXPIRY: u8 = 0x1c;

/// Expired allowances that a block drops at most (the SDK's number).
const DROPPED_MAX: usize = 200;

/// The tables of fee grants.
pub const MODULE: Module = Module {
    name: "feegrant",
    messages: &[
        MessageRoute::of::<proto::MsgGrantAllowance>(),
        MessageRoute::of::<proto::MsgRevokeAllowance>(),
        MessageRoute::of::<proto::MsgPruneAllowances>(),
    ],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryAllowanceRequest>(),
        QueryRoute::of::<proto::QueryAllowancesRequest>(),
        QueryRoute::of::<proto::QueryAllowancesByGranterRequest>(),
    ],
    begin_block: no_hook,
    end_block: |ctx, state| {
        drop_expired(state, ctx.time, DROPPED_MAX);
        Ok(())
    },
    genesis: |_, _, _| Ok(()),
};

/// Why a fee cannot be paid by a grant, in codespace `feegrant` with the codes of `x/feegrant/errors.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeegrantError {
    /// More than is left, in all or of the period.
    #[error("{0}: fee limit exceeded")]
    Exceeded(&'static str),
    /// Too late.
    #[error("fee allowance expired")]
    Expired,
    /// A period that is none.
    #[error("invalid duration: a period is positive")]
    InvalidDuration,
    /// Nothing was granted.
    #[error("no allowance")]
    NoAllowance,
    /// A list of messages without any.
    #[error("allowed messages are empty")]
    NoMessages,
    /// A message that is not in the list.
    #[error("message does not exist in allowed messages: message not allowed")]
    NotAllowed,
}

impl From<FeegrantError> for TxError {
    fn from(error: FeegrantError) -> Self {
        let code = match error {
            FeegrantError::Exceeded(_) => 2,
            FeegrantError::Expired => 3,
            FeegrantError::InvalidDuration => 4,
            FeegrantError::NoAllowance => 5,
            FeegrantError::NoMessages => 6,
            FeegrantError::NotAllowed => 7,
        };
        TxError::Module { codespace: "feegrant", code, log: error.to_string() }
    }
}

fn key(prefix: u8, first: &Address, second: &Address) -> Vec<u8> {
    KeyBuilder::new(prefix).bytes(&first.0).bytes(&second.0).finish()
}

fn expiry_key(at: BlockTime, granter: &Address, grantee: &Address) -> Vec<u8> {
    let key = KeyBuilder::new(EXPIRY).u64(u64::try_from(at.seconds).unwrap_or(0));
    key.u32(u32::try_from(at.nanos).unwrap_or(0)).bytes(&grantee.0).bytes(&granter.0).finish()
}

fn grant(state: &dyn StateRead, granter: &Address, grantee: &Address) -> Option<Grant> {
    let bytes = state.get(&key(ALLOWANCE, grantee, granter))?;
    Some(Grant::decode(bytes.as_slice()).expect("grants are written encoded"))
}

fn allowance(state: &dyn StateRead, granter: &Address, grantee: &Address) -> Option<Allowance> {
    let grant = grant(state, granter, grantee)?;
    Some(Allowance::parse(grant.allowance.as_ref()).expect("allowances are checked before they are written"))
}

fn save(state: &mut dyn StateWrite, granter: &Address, grantee: &Address, allowance: &Allowance) {
    let grant = Grant { granter: granter.account(), grantee: grantee.account(), allowance: Some(allowance.to_any()) };
    state.put(key(ALLOWANCE, grantee, granter), grant.encode_to_vec());
    state.put(key(BY_GRANTER, granter, grantee), vec![1]);
    if let Some(at) = allowance.expires() {
        state.put(expiry_key(at, granter, grantee), vec![1]);
    }
}

fn remove(state: &mut dyn StateWrite, granter: &Address, grantee: &Address, allowance: &Allowance) {
    state.delete(key(ALLOWANCE, grantee, granter));
    state.delete(key(BY_GRANTER, granter, grantee));
    if let Some(at) = allowance.expires() {
        state.delete(expiry_key(at, granter, grantee));
    }
}

fn emit(ctx: &mut Context, kind: &'static str, granter: &Address, grantee: &Address) {
    ctx.emit(kind, [("granter", granter.account()), ("grantee", grantee.account())]);
}

/// Takes a fee out of an allowance: for the ante chain, which then moves the money. An allowance that is used up is gone.
pub(crate) fn pay(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    granter: &Address,
    grantee: &Address,
    fee: Amount,
    messages: &[&str],
) -> Result<(), TxError> {
    let mut allowance = allowance(state, granter, grantee).ok_or(FeegrantError::NoAllowance)?;
    let used_up = allowance.accept(ctx.time, fee, messages)?;
    if used_up {
        remove(state, granter, grantee, &allowance);
        emit(ctx, "revoke_feegrant", granter, grantee);
        emit(ctx, "use_feegrant", granter, grantee);
    } else {
        save(state, granter, grantee, &allowance);
        emit(ctx, "use_feegrant", granter, grantee);
        emit(ctx, "set_feegrant", granter, grantee);
    }
    Ok(())
}

/// Drops what has expired before `now`, `max` at most.
fn drop_expired(state: &mut dyn StateWrite, now: BlockTime, max: usize) {
    let zero = Address([0; 20]);
    let end = expiry_key(now, &zero, &zero);
    let due = state.iter_range(&[EXPIRY], end.get(..13), Order::Ascending).take(max);
    let due: Vec<Vec<u8>> = due.map(|(key, _)| key).collect();
    for expired in due {
        let address = |at: usize| expired.get(at..at + 20).and_then(|bytes| bytes.try_into().ok()).map(Address);
        if let (Some(grantee), Some(granter)) = (address(13), address(33)) {
            state.delete(key(ALLOWANCE, &grantee, &granter));
            state.delete(key(BY_GRANTER, &granter, &grantee));
        }
        state.delete(expired);
    }
}
