//! Workers' bonds: raised, taken back after a delay, slashed on a conviction.
//!
//! Invariant: the balance of the worker bond pool = the sum of all bonds and unbonding entries.

use polylink_protocol::market_v1::{MsgBond, MsgBondResponse, MsgUnbond, MsgUnbondResponse, Params, Unbonding, Worker};
use polylink_protocol::{Address, Amount, Bps};

use super::error::MarketError;
use super::params::{self, min_bond};
use super::records::{save, uplk, worker};
use super::{UNBONDING_ENTRIES_MAX, keys, places, workers};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;
use crate::tiqe;

fn positive(text: &str) -> Result<Amount, TxError> {
    let amount: Amount = text.parse()?;
    if amount.is_zero() {
        return Err(TxError::InvalidCoins("0uplk: the amount must be positive".into()));
    }
    Ok(amount)
}

impl Handle for MsgBond {
    const AMINO_NAME: &'static str = "polylink/market/Bond";
    type Response = MsgBondResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        positive(&self.amount).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgBondResponse, TxError> {
        let (operator, amount): (Address, Amount) = (self.operator.parse()?, positive(&self.amount)?);
        let mut record = workers::known(state, &operator)?;
        if record.jailed {
            return Err(MarketError::Jailed(record.operator).into());
        }
        bank::transfer(ctx, state, operator, Pool::WorkerBonds, amount)?;
        // Cannot overflow: both were in one bank's balances.
        record.bond = Amount(uplk(&record.bond).0.saturating_add(amount.0)).to_string();
        save(state, keys::worker(&operator), &record);
        ctx.emit("bond", [("operator", operator.account()), ("amount", format!("{amount}uplk"))]);
        Ok(MsgBondResponse {})
    }
}

impl Handle for MsgUnbond {
    const AMINO_NAME: &'static str = "polylink/market/Unbond";
    type Response = MsgUnbondResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.operator.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        positive(&self.amount).map(|_| ())
    }

    /// A jailed worker may take back what its conviction left.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUnbondResponse, TxError> {
        let (operator, amount): (Address, Amount) = (self.operator.parse()?, positive(&self.amount)?);
        let params = params::at(state, ctx.epoch);
        let mut record = workers::known(state, &operator)?;
        let bond = uplk(&record.bond);
        let rest = bond
            .checked_sub(amount)
            .ok_or_else(|| MarketError::Unbonding(format!("{amount} uplk of a bond of {bond} uplk")))?;
        let min = min_bond(&params);
        if !rest.is_zero() && rest < min && !record.jailed {
            return Err(MarketError::BondTooSmall { found: rest, min }.into());
        }
        let release_epoch = ctx.epoch.saturating_add(params.unbonding_epochs);
        let waiting = record.unbonding.len();
        match record.unbonding.iter_mut().find(|entry| entry.release_epoch == release_epoch) {
            Some(entry) => entry.amount = Amount(uplk(&entry.amount).0.saturating_add(amount.0)).to_string(),
            None if waiting >= UNBONDING_ENTRIES_MAX => {
                return Err(MarketError::Unbonding(format!(
                    "{UNBONDING_ENTRIES_MAX} epochs of unbonding wait already; wait until one is released"
                ))
                .into());
            }
            None => record.unbonding.push(Unbonding { amount: amount.to_string(), release_epoch }),
        }
        record.bond = rest.to_string();
        if rest < min {
            places::leave(ctx, state, &operator, &mut record, |_| true);
        }
        state.put(keys::unbonding(release_epoch, &operator), keys::THERE.to_vec());
        save(state, keys::worker(&operator), &record);
        ctx.emit(
            "unbond_worker",
            [
                ("operator", operator.account()),
                ("amount", format!("{amount}uplk")),
                ("release_epoch", release_epoch.to_string()),
            ],
        );
        Ok(MsgUnbondResponse { release_epoch })
    }
}

/// Pays out at most `limit` workers' unbonding that is due; a worker's on trial waits for the verdict.
pub(super) fn release(ctx: &mut Context, state: &mut dyn StateWrite, limit: usize) -> Result<(), TxError> {
    let due: Vec<(u64, Address)> = state
        .iter_prefix(&[keys::UNBONDING])
        .take(limit)
        .filter_map(|(key, _)| keys::split_epoch_address(&key))
        .take_while(|(epoch, _)| *epoch <= ctx.epoch)
        .collect();
    for (epoch, operator) in due {
        state.delete(keys::unbonding(epoch, &operator));
        let Some(mut record) = worker(state, &operator) else { continue };
        if tiqe::on_trial(state, &operator) {
            state.put(keys::unbonding(ctx.epoch.saturating_add(1), &operator), keys::THERE.to_vec());
            continue;
        }
        let (free, waiting): (Vec<_>, Vec<_>) =
            record.unbonding.into_iter().partition(|entry| entry.release_epoch <= ctx.epoch);
        let amount: Amount = free.iter().map(|entry| uplk(&entry.amount)).sum();
        record.unbonding = waiting;
        save(state, keys::worker(&operator), &record);
        bank::transfer(ctx, state, Pool::WorkerBonds, operator, amount)?;
        ctx.emit("complete_unbonding_worker", [("operator", operator.account()), ("amount", format!("{amount}uplk"))]);
    }
    Ok(())
}

/// Takes a share of bond and unbonding, each rounded down, out of a worker's record. The money is the caller's to move.
fn take(record: &mut Worker, share: Bps) -> Amount {
    let mut total = Amount::ZERO;
    let mut slash = |text: &mut String| {
        let (bond, part) = (uplk(text), share.of_floor(uplk(text)));
        *text = bond.saturating_sub(part).to_string();
        total = Amount(total.0.saturating_add(part.0));
    };
    slash(&mut record.bond);
    record.unbonding.iter_mut().for_each(|entry| slash(&mut entry.amount));
    total
}

/// Takes a share of bond and unbonding for a single fault. A worker that is left with less than the minimum loses its
/// places, as after an unbonding. Returns what is for the caller to pay out of the pool of bonds or burn.
pub(super) fn slash(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    share: Bps,
    params: &Params,
) -> Result<Amount, TxError> {
    let Some(mut record) = worker(state, operator) else { return Ok(Amount::ZERO) };
    let total = take(&mut record, share);
    if uplk(&record.bond) < min_bond(params) {
        places::leave(ctx, state, operator, &mut record, |_| true);
    }
    save(state, keys::worker(operator), &record);
    ctx.emit("slash_worker", [("operator", operator.account()), ("amount", format!("{total}uplk"))]);
    Ok(total)
}

/// Executes a verdict: takes a share of bond and unbonding, and jails. Returns what is for the caller to pay out of the pool of
/// bonds or burn.
pub(crate) fn convict(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    operator: &Address,
    share: Bps,
) -> Result<Amount, TxError> {
    let Some(mut record) = worker(state, operator) else { return Ok(Amount::ZERO) };
    let total = take(&mut record, share);
    record.jailed = true;
    places::leave(ctx, state, operator, &mut record, |_| true);
    save(state, keys::worker(operator), &record);
    ctx.emit("slash_worker", [("operator", operator.account()), ("amount", format!("{total}uplk"))]);
    Ok(total)
}
