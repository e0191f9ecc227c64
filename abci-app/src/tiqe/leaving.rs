//! A judge leaves: its tickets and places at once, its bond after the unbonding.
//!
//! It may not leave while a round waits for what it owes: else it could see the other beacon outputs and choose between
//! its own and none, or drop scores that it has committed to, at no cost. A trial counts the bond of those who are there
//! at the verdict: who left has no vote in it any more.

use polylink_protocol::tiqe_v1::{Judge, MsgUnbondJudge, MsgUnbondJudgeResponse};
use polylink_protocol::{Address, Digest};

use super::error::TiqeError;
use super::judges::{judge, leave_places};
use super::keys;
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::market;
use crate::market::records::{save, uplk};
use crate::market::schedule::{Schedule, Window};
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// What the judge owes a round now: its beacon output once outputs are taken, its scores while it has a seat.
fn owed(ctx: &Context, state: &dyn StateRead, operator: &Address, record: &Judge) -> Option<TiqeError> {
    let epoch = ctx.epoch.checked_sub(1)?;
    let taken = Schedule::new(&market::params::at(state, ctx.epoch)).window(ctx.epoch_offset) != Window::Receipts;
    record.profiles.iter().filter_map(|profile| Digest::from_slice(profile)).find_map(|profile| {
        let there = |table| state.contains(&keys::in_round(table, epoch, &profile, operator));
        let waits = |stage| state.contains(&keys::stage(stage, epoch, &profile));
        let is_active = !record.jailed && record.active_from_epoch <= ctx.epoch;
        if waits(keys::STAGE_BEACON) && taken && is_active && !there(keys::OUTPUT) {
            return Some(TiqeError::Owes { what: "a beacon proof", epoch });
        }
        let unrevealed = waits(keys::STAGE_REVEAL) && there(keys::SEAT) && !there(keys::REVEAL);
        unrevealed.then_some(TiqeError::Owes { what: "scores", epoch })
    })
}

impl Handle for MsgUnbondJudge {
    const AMINO_NAME: &'static str = "polylink/tiqe/UnbondJudge";
    type Response = MsgUnbondJudgeResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    /// A jailed judge may take back what the penalties left.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUnbondJudgeResponse, TxError> {
        let operator: Address = self.operator.parse()?;
        let mut record = judge(state, &operator).ok_or_else(|| TiqeError::UnknownJudge(operator.account()))?;
        if record.release_epoch > 0 {
            return Err(TiqeError::Left { judge: operator.account(), release_epoch: record.release_epoch }.into());
        }
        if let Some(owed) = owed(ctx, state, &operator, &record) {
            return Err(owed.into());
        }
        let unbonding = market::params::at(state, ctx.epoch).unbonding_epochs;
        record.release_epoch = ctx.epoch.saturating_add(unbonding);
        leave_places(state, &operator, &record.profiles);
        save(state, keys::judge(&operator), &record);
        state.put(keys::judge_unbonding(record.release_epoch, &operator), keys::THERE.to_vec());
        ctx.emit("unbond_judge", [("judge", operator.account()), ("release_epoch", record.release_epoch.to_string())]);
        Ok(MsgUnbondJudgeResponse { release_epoch: record.release_epoch })
    }
}

/// Pays back at most `limit` bonds that are due, and forgets their judges.
pub(super) fn release(ctx: &mut Context, state: &mut dyn StateWrite, limit: usize) -> Result<(), TxError> {
    let due: Vec<Vec<u8>> = state
        .iter_prefix(&[keys::JUDGE_UNBONDING])
        .take(limit)
        .map(|(key, _)| key)
        .take_while(|key| keys::split_epoch(key).is_some_and(|epoch| epoch <= ctx.epoch))
        .collect();
    for key in due {
        let operator = keys::last_address(&key);
        state.delete(key);
        let Some((operator, record)) = operator.and_then(|operator| Some((operator, judge(state, &operator)?))) else {
            continue;
        };
        state.delete(keys::judge(&operator));
        state.delete(keys::vrf_key(&record.vrf_key));
        let bond = uplk(&record.bond);
        bank::transfer(ctx, state, Pool::JudgeBonds, operator, bond)?;
        ctx.emit("complete_unbonding_judge", [("judge", operator.account()), ("amount", format!("{bond}uplk"))]);
    }
    Ok(())
}
