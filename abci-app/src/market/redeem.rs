//! Vouchers become money: a session's increase leaves the escrow, into the worker's pot or straight to a gateway.
//!
//! A worker's increase goes into the pot of the voucher's epoch while that epoch's reveals are not over, else into the
//! oldest pot that still takes money; there the settlement pays it within what was committed (`settlement::cover`).

use polylink_protocol::market::verify_voucher;
use polylink_protocol::market_v1::{MsgRedeem, MsgRedeemResponse, Params, Session, SignedVoucher, Voucher};
use polylink_protocol::{Address, Amount};

use super::error::MarketError;
use super::records::{Kind, pot_or_new, save, save_pot, uplk, worker};
use super::schedule::Schedule;
use super::{keys, models, params, refunds, sessions, workers};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

fn body(signed: &SignedVoucher) -> Result<&Voucher, MarketError> {
    signed.voucher.as_ref().ok_or(MarketError::NoVoucher)
}

/// Everything that can be wrong with a voucher for a session, but for its signature. Returns its amount.
pub(super) fn check_voucher(
    chain_id: &str,
    epoch: u64,
    params: &Params,
    session: &Session,
    voucher: &Voucher,
) -> Result<Amount, TxError> {
    if voucher.chain_id != chain_id {
        let found = voucher.chain_id.chars().take(64).collect();
        return Err(MarketError::OtherChain { found, expected: chain_id.into() }.into());
    }
    if voucher.session != session.id {
        return Err(MarketError::OtherSession { found: voucher.session, expected: session.id }.into());
    }
    if session.closed {
        return Err(MarketError::Closed(session.id).into());
    }
    let until = sessions::last_redeem_epoch(session, params);
    if epoch > until {
        return Err(MarketError::Expired { session: session.id, until, now: epoch }.into());
    }
    let wrong_epoch = |reason: String| MarketError::VoucherEpoch { found: voucher.epoch, reason };
    if voucher.epoch > epoch {
        return Err(wrong_epoch(format!("now is epoch {epoch}, it has not begun")).into());
    }
    if voucher.epoch > session.expiry_epoch {
        return Err(wrong_epoch(format!("the session expired in epoch {}", session.expiry_epoch)).into());
    }
    if voucher.epoch < session.redeemed_epoch.max(session.opened_epoch) {
        let least = session.redeemed_epoch.max(session.opened_epoch);
        return Err(
            wrong_epoch(format!("at least epoch {least} is expected, of the last voucher or the opening")).into()
        );
    }
    if voucher.receipts_hash.len() != 32 {
        return Err(MarketError::VoucherSignature("the voucher's receipts hash is not of 32 bytes".into()).into());
    }
    let amount: Amount = voucher.amount.parse()?;
    let limit = uplk(&session.deposit).min(uplk(&session.cap));
    if amount > limit {
        return Err(MarketError::AboveCap { amount, limit }.into());
    }
    let (redeemed, paid) = (uplk(&session.redeemed), session.redeemed_count);
    if amount <= redeemed || voucher.count <= paid {
        return Err(MarketError::NotIncreasing { amount, count: voucher.count, redeemed, paid }.into());
    }
    Ok(amount)
}

/// Redeems a voucher of a session; returns the increase. The signer was judged by the caller.
pub(super) fn redeem(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    id: u64,
    signed: &SignedVoucher,
) -> Result<Amount, TxError> {
    let params = params::at(state, ctx.epoch);
    let mut session = sessions::known(state, id)?;
    let voucher = body(signed)?;
    let amount = check_voucher(&ctx.chain_id, ctx.epoch, &params, &session, voucher)?;
    ctx.charge_proofs(1)?;
    verify_voucher(signed, &session.spend_key).map_err(|error| MarketError::VoucherSignature(error.to_string()))?;

    let increase = amount.saturating_sub(uplk(&session.redeemed));
    let payee: Address = session.payee.parse()?;
    let pot_epoch = if session.profile_digest.is_empty() {
        bank::transfer(ctx, state, Pool::MarketEscrow, payee, increase)?;
        None
    } else {
        let record = workers::known(state, &payee)?;
        if record.jailed {
            return Err(MarketError::Jailed(record.operator).into());
        }
        let profile = models::digest(&session.profile_digest)?;
        let open = Schedule::new(&params).oldest_open_pot(ctx.epoch, ctx.epoch_offset);
        let epoch = voucher.epoch.max(open);
        bank::transfer(ctx, state, Pool::MarketEscrow, Pool::MarketPots, increase)?;
        let kind = Kind::of(session.private);
        let mut pot = pot_or_new(state, kind, epoch, &profile, &payee);
        pot.redeemed = Amount(uplk(&pot.redeemed).0.saturating_add(increase.0)).to_string();
        save_pot(state, &profile, &payee, &pot);
        refunds::note(ctx, state, (kind, epoch, &profile, &payee), &session.payer.parse()?, increase);
        Some(epoch)
    };
    session.redeemed = amount.to_string();
    session.redeemed_count = voucher.count;
    session.redeemed_epoch = voucher.epoch;
    save(state, keys::session(id), &session);
    ctx.emit(
        "redeem",
        [
            ("session", id.to_string()),
            ("payee", session.payee),
            ("increase", format!("{increase}uplk")),
            ("pot_epoch", pot_epoch.map_or(String::new(), |epoch| epoch.to_string())),
        ],
    );
    Ok(increase)
}

impl Handle for MsgRedeem {
    const AMINO_NAME: &'static str = "polylink/market/Redeem";
    type Response = MsgRedeemResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.payee.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        let signed = self.voucher.as_ref().ok_or(MarketError::NoVoucher)?;
        body(signed)?.amount.parse::<Amount>()?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRedeemResponse, TxError> {
        let signed = self.voucher.as_ref().ok_or(MarketError::NoVoucher)?;
        let id = body(signed)?.session;
        let session = sessions::known(state, id)?;
        let payee: Address = self.payee.parse()?;
        if session.payee != payee.account() {
            let reason = format!("only its payee {} redeems its vouchers", session.payee);
            return Err(MarketError::NotParty { session: id, reason }.into());
        }
        // A gateway that became a worker is still paid directly by the sessions that name no profile; one that names a
        // profile pays into the pot of a worker.
        if !session.profile_digest.is_empty() && worker(state, &payee).is_none() {
            return Err(MarketError::UnknownWorker(payee.account()).into());
        }
        let increase = redeem(ctx, state, id, signed)?;
        Ok(MsgRedeemResponse { increase: increase.to_string() })
    }
}
