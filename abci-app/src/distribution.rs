//! Fees of transactions: collected during the block, kept for validators and delegators after it.
//!
//! A thin stand-in for the Cosmos SDK's F1 distribution: at the block's end what the fee collector holds moves into the
//! distribution pool and stays there. Nothing is paid out yet, and the messages that would ask for it are refused.

use crate::bank::{Pool, balance, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::{Module, no_hook};
use crate::store::StateWrite;

/// The distribution's tables.
pub const MODULE: Module = Module {
    name: "distribution",
    messages: &[],
    refused: &[
        "/cosmos.distribution.v1beta1.MsgWithdrawDelegatorReward",
        "/cosmos.distribution.v1beta1.MsgWithdrawValidatorCommission",
        "/cosmos.distribution.v1beta1.MsgSetWithdrawAddress",
        "/cosmos.distribution.v1beta1.MsgFundCommunityPool",
    ],
    queries: &[],
    begin_block: no_hook,
    end_block,
    genesis: |_, _, _| Ok(()),
};

fn end_block(ctx: &mut Context, state: &mut dyn StateWrite) -> Result<(), TxError> {
    let collected = balance(state, Pool::FeeCollector);
    transfer(ctx, state, Pool::FeeCollector, Pool::Distribution, collected)
}
