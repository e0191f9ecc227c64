//! Appeals: a worker that is convicted may have itself tried once more, by fresh samples of the same pots and the same
//! judges, for a deposit that it has back when it is acquitted. Its judges may have been cut off from it, or it from its own
//! transcripts; who cheats gains the time of one more trial, in which its pay and bond are held.
//!
//! A conviction without appeal is executed with the last block of the epochs that it may be appealed in.

use polylink_protocol::tiqe_v1::{MsgAppeal, MsgAppealResponse, Trial, TrialState};
use polylink_protocol::{Address, Digest};

use super::error::TiqeError;
use super::{keys, params, round, trial};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::market::models;
use crate::market::records::{save, uplk};
use crate::modules::Handle;
use crate::store::StateWrite;

/// A first conviction: its worker has so many epochs to appeal.
pub(super) fn wait(ctx: &mut Context, state: &mut dyn StateWrite, mut trial: Trial, epochs: u64) {
    trial.set_state(TrialState::Convicted);
    trial.appeal_until_epoch = ctx.epoch.saturating_add(epochs);
    state.put(keys::trial_due(trial.appeal_until_epoch, trial.id), keys::THERE.to_vec());
    save(state, keys::trial(trial.id), &trial);
    trial::event(ctx, &trial, "convicted");
}

/// What becomes of the deposit: the acquitted worker's, else burned.
pub(super) fn end(ctx: &mut Context, state: &mut dyn StateWrite, trial: &Trial, guilty: bool) -> Result<(), TxError> {
    let deposit = uplk(&trial.appeal_deposit);
    match guilty {
        true => bank::burn(ctx, state, Pool::MarketEscrow, deposit),
        false => bank::transfer(ctx, state, Pool::MarketEscrow, trial.worker.parse::<Address>()?, deposit),
    }
}

impl Handle for MsgAppeal {
    const AMINO_NAME: &'static str = "polylink/tiqe/Appeal";
    type Response = MsgAppealResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.worker.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgAppealResponse, TxError> {
        let worker: Address = self.worker.parse()?;
        let mut trial = trial::stored(state, self.trial).ok_or(TiqeError::UnknownTrial(self.trial))?;
        let refused = |reason: String| TiqeError::Appeal { id: self.trial, reason };
        if trial.worker != worker.account() {
            return Err(refused(format!("it is the worker {}'s to appeal", trial.worker)).into());
        }
        if trial.state() != TrialState::Convicted {
            return Err(refused("it takes a conviction that does not hold yet".into()).into());
        }
        // What waits beyond its epochs does so because a block takes a bounded number of verdicts.
        if ctx.epoch > trial.appeal_until_epoch {
            return Err(refused(format!("it could be appealed until epoch {}", trial.appeal_until_epoch)).into());
        }
        let deposit = uplk(&params::at(state, ctx.epoch).appeal_deposit);
        bank::transfer(ctx, state, worker, Pool::MarketEscrow, deposit)?;
        let profile: Digest = models::digest(&trial.profile_digest)?;
        state.delete(keys::trial_due(trial.appeal_until_epoch, trial.id));
        trial.set_state(TrialState::Open);
        (trial.appealed_epoch, trial.appeal_deposit) = (ctx.epoch, deposit.to_string());
        // As when it opened: by a beacon that nobody can know yet.
        trial.samples.clear();
        trial.deadline_epoch = 0;
        state.put(keys::waiting_trials(&profile).u64(trial.id).finish(), keys::THERE.to_vec());
        round::open(state, ctx.epoch, &profile);
        save(state, keys::trial(trial.id), &trial);
        trial::event(ctx, &trial, "appealed");
        Ok(MsgAppealResponse {})
    }
}
