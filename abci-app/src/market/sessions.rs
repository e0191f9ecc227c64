//! Sessions: unidirectional payment channels. The deposit lies in escrow; what the payee redeems leaves it, the rest
//! goes back to the payer at the close.
//!
//! Invariants: the balance of the escrow = the sum of deposit − redeemed over the open sessions; per worker and profile
//! the sum of their deposits stands under a key of its own (of private sessions under another), which bounds what the
//! worker may commit to. Neither deposit nor cap ever shrinks, and both are above 0: vouchers that a payee holds stay good
//! for what they say. Private is what was opened so: the flag never changes.

use polylink_protocol::keys::is_ed25519_key;
use polylink_protocol::market_v1::{
    MsgCloseSession, MsgCloseSessionResponse, MsgOpenSession, MsgOpenSessionResponse, MsgTopUp, MsgTopUpResponse,
    Params, Session,
};
use polylink_protocol::{Address, Amount, DENOM};

use super::error::MarketError;
use super::records::{Kind, amount, counter, save, session, uplk, worker};
use super::settle::past_retention;
use super::{SESSION_EPOCHS_MAX, keys, models, params, redeem, workers};
use crate::bank::{self, Pool};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// The last epoch in which a session's vouchers are taken.
pub fn last_redeem_epoch(session: &Session, params: &Params) -> u64 {
    session.expiry_epoch.saturating_add(params.dispute_epochs)
}

/// Changes the sum of the deposits that pay a worker for a profile; sessions with gateways are in none.
fn count_deposits(
    state: &mut dyn StateWrite,
    session: &Session,
    change: impl FnOnce(Amount) -> Amount,
) -> Result<(), TxError> {
    if !session.profile_digest.is_empty() {
        let kind = Kind::of(session.private);
        let key = keys::deposits(kind, &session.payee.parse()?, &models::digest(&session.profile_digest)?);
        match change(amount(state, &key)) {
            Amount::ZERO => state.delete(key),
            sum => state.put(key, sum.0.to_be_bytes().to_vec()),
        }
    }
    Ok(())
}

fn cap_of(text: &str, otherwise: Amount) -> Result<Amount, TxError> {
    Ok(if text.is_empty() { otherwise } else { text.parse()? })
}

pub(super) fn known(state: &dyn StateRead, id: u64) -> Result<Session, MarketError> {
    session(state, id).ok_or(MarketError::UnknownSession(id))
}

impl Handle for MsgOpenSession {
    const AMINO_NAME: &'static str = "polylink/market/OpenSession";
    type Response = MsgOpenSessionResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.payer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        let payee: Address = self.payee.parse()?;
        if self.private && self.profile_digest.is_empty() {
            return Err(MarketError::PrivateGateway.into());
        }
        if payee == self.payer.parse()? {
            return Err(MarketError::Payee("nobody opens a session with themselves".into()).into());
        }
        if Pool::of_address(&payee).is_some() {
            return Err(MarketError::Payee("a module's account serves nothing".into()).into());
        }
        if !is_ed25519_key(&self.spend_key) {
            let reason = "an ed25519 public key of 32 bytes is expected";
            return Err(MarketError::Key { name: "spend key", reason }.into());
        }
        let deposit: Amount = self.deposit.parse()?;
        let cap = cap_of(&self.cap, deposit)?;
        if deposit.is_zero() || cap.is_zero() {
            return Err(MarketError::Deposit("more than 0 uplk is expected".into()).into());
        }
        if !self.profile_digest.is_empty() {
            models::digest(&self.profile_digest)?;
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgOpenSessionResponse, TxError> {
        let params = params::at(state, ctx.epoch);
        let (payer, payee): (Address, Address) = (self.payer.parse()?, self.payee.parse()?);
        let deposit: Amount = self.deposit.parse()?;
        if !(1..=params.max_window).contains(&self.window) {
            return Err(MarketError::Window { found: self.window, max: params.max_window }.into());
        }
        let max = ctx.epoch.saturating_add(SESSION_EPOCHS_MAX);
        if self.expiry_epoch <= ctx.epoch || self.expiry_epoch > max {
            return Err(MarketError::Expiry { found: self.expiry_epoch, now: ctx.epoch, max }.into());
        }
        match worker(state, &payee) {
            Some(record) => {
                workers::check_active(&record, &params)?;
                if self.profile_digest.is_empty() {
                    let reason = "the payee is a worker, so that the session must name what is served".into();
                    return Err(MarketError::SessionProfile(reason).into());
                }
                let (profile, _) = models::known(state, &self.profile_digest)?;
                // By the newest terms: ahead of an offer, but not when it is about to end.
                if !workers::offers(&record, &profile, ctx.epoch.saturating_add(1)) {
                    return Err(MarketError::SessionProfile(format!("{payee} does not offer {profile}")).into());
                }
            }
            None if !self.profile_digest.is_empty() => {
                let reason = format!("{payee} is no worker; leave the profile empty to pay a gateway");
                return Err(MarketError::SessionProfile(reason).into());
            }
            None => {}
        }
        bank::transfer(ctx, state, payer, Pool::MarketEscrow, deposit)?;
        let id = counter(state, &[keys::SESSION_NEXT]).max(1);
        state.put(vec![keys::SESSION_NEXT], id.saturating_add(1).to_be_bytes().to_vec());
        let record = Session {
            id,
            payer: payer.account(),
            payee: payee.account(),
            spend_key: self.spend_key.clone(),
            denom: DENOM.into(),
            deposit: deposit.to_string(),
            cap: cap_of(&self.cap, deposit)?.to_string(),
            redeemed: "0".into(),
            window: self.window,
            expiry_epoch: self.expiry_epoch,
            private: self.private,
            profile_digest: self.profile_digest.clone(),
            opened_epoch: ctx.epoch,
            redeemed_count: 0,
            redeemed_epoch: 0,
            closed: false,
            revoked: false,
        };
        count_deposits(state, &record, |sum| Amount(sum.0.saturating_add(deposit.0)))?;
        save(state, keys::session(id), &record);
        state.put(keys::sessions_of_payer(&payer).u64(id).finish(), keys::THERE.to_vec());
        state.put(keys::sessions_of_payee(&payee).u64(id).finish(), keys::THERE.to_vec());
        ctx.emit(
            "open_session",
            [
                ("session", id.to_string()),
                ("payer", payer.account()),
                ("payee", payee.account()),
                ("deposit", format!("{deposit}uplk")),
                ("private", self.private.to_string()),
            ],
        );
        Ok(MsgOpenSessionResponse { session: id })
    }
}

impl Handle for MsgTopUp {
    const AMINO_NAME: &'static str = "polylink/market/TopUp";
    type Response = MsgTopUpResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.payer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        if self.amount.parse::<Amount>()?.is_zero() {
            return Err(MarketError::Deposit("more than 0 uplk is expected".into()).into());
        }
        cap_of(&self.cap, Amount::ZERO).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgTopUpResponse, TxError> {
        let (payer, amount): (Address, Amount) = (self.payer.parse()?, self.amount.parse()?);
        let mut record = known(state, self.session)?;
        if record.payer != payer.account() {
            let reason = format!("only its payer {} may add to the deposit", record.payer);
            return Err(MarketError::NotParty { session: self.session, reason }.into());
        }
        if record.closed {
            return Err(MarketError::Closed(self.session).into());
        }
        if record.revoked {
            return Err(MarketError::Revoked(self.session).into());
        }
        if ctx.epoch > record.expiry_epoch {
            let (until, now) = (record.expiry_epoch, ctx.epoch);
            return Err(MarketError::Expired { session: self.session, until, now }.into());
        }
        let raised = |text: &str| Amount(uplk(text).0.saturating_add(amount.0));
        let cap = cap_of(&self.cap, raised(&record.cap))?;
        // What is redeemed is no bound: the payee holds vouchers beyond it, taken against the cap as it stood.
        if cap < uplk(&record.cap) {
            let reason = format!("a cap of {cap} uplk is below the session's {} uplk; it is only raised", record.cap);
            return Err(MarketError::Deposit(reason).into());
        }
        bank::transfer(ctx, state, payer, Pool::MarketEscrow, amount)?;
        count_deposits(state, &record, |sum| Amount(sum.0.saturating_add(amount.0)))?;
        record.deposit = raised(&record.deposit).to_string();
        record.cap = cap.to_string();
        save(state, keys::session(record.id), &record);
        ctx.emit("top_up", [("session", record.id.to_string()), ("amount", format!("{amount}uplk"))]);
        Ok(MsgTopUpResponse {})
    }
}

/// Drops at most `limit` sessions that were closed longer ago than pots are kept: no receipt that stands on one can be
/// proven any more.
pub(super) fn forget(ctx: &Context, state: &mut dyn StateWrite, limit: usize) -> Result<(), TxError> {
    for (_, id) in past_retention(state, keys::SESSION_CLOSED, ctx.epoch, limit) {
        let Some(record) = session(state, id) else { continue };
        state.delete(keys::session(id));
        state.delete(keys::sessions_of_payer(&record.payer.parse()?).u64(id).finish());
        state.delete(keys::sessions_of_payee(&record.payee.parse()?).u64(id).finish());
    }
    Ok(())
}

impl Handle for MsgCloseSession {
    const AMINO_NAME: &'static str = "polylink/market/CloseSession";
    type Response = MsgCloseSessionResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.signer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgCloseSessionResponse, TxError> {
        let params = params::at(state, ctx.epoch);
        let signer = self.signer.parse::<Address>()?.account();
        let mut record = known(state, self.session)?;
        if record.closed {
            return Err(MarketError::Closed(self.session).into());
        }
        let payee: Address = record.payee.parse()?;
        let convicted = worker(state, &payee).is_some_and(|worker| worker.jailed);
        let until = last_redeem_epoch(&record, &params);
        let payer_may = ctx.epoch > until || convicted;
        if signer != record.payee && !(signer == record.payer && payer_may) {
            let reason = format!(
                "its payee {} may close it at any time, its payer {} after epoch {until}, or once the payee is convicted",
                record.payee, record.payer
            );
            return Err(MarketError::NotParty { session: self.session, reason }.into());
        }
        if let Some(voucher) = &self.voucher {
            redeem::redeem(ctx, state, self.session, voucher)?;
            record = known(state, self.session)?;
        }
        let refund = uplk(&record.deposit).saturating_sub(uplk(&record.redeemed));
        let payer: Address = record.payer.parse()?;
        bank::transfer(ctx, state, Pool::MarketEscrow, payer, refund)?;
        count_deposits(state, &record, |sum| sum.saturating_sub(uplk(&record.deposit)))?;
        record.closed = true;
        state.put(keys::session_closed(ctx.epoch, record.id), keys::THERE.to_vec());
        save(state, keys::session(record.id), &record);
        ctx.emit(
            "close_session",
            [("session", record.id.to_string()), ("payer", record.payer), ("refund", format!("{refund}uplk"))],
        );
        Ok(MsgCloseSessionResponse { refund: refund.to_string() })
    }
}
