//! A payer revokes a session's spend key, because somebody else has it or may have it.
//!
//! To both sides it is as if the session expired with the next epoch, in which everybody has noticed. The payee is still
//! paid for what it has served: vouchers of epochs up to that one are taken for the dispute window, and neither deposit nor cap shrinks; so a payer that
//! revokes to get out of paying gains nothing. Who has the key gets nothing more: services refuse its requests at once,
//! the deposit cannot grow, vouchers of later epochs are refused, and after the dispute window the rest goes back to the
//! payer. What nothing on a ledger can tell apart is an older voucher and one that the thief dates back together with the
//! payee: such a pair could take the cap at any time, and the cap is what bounds it.

use polylink_protocol::Address;
use polylink_protocol::keys::is_ed25519_key;
use polylink_protocol::market_v1::{MsgRevokeSpendKey, MsgRevokeSpendKeyResponse};

use super::error::MarketError;
use super::records::save;
use super::{keys, params, sessions};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

impl Handle for MsgRevokeSpendKey {
    const AMINO_NAME: &'static str = "polylink/market/RevokeSpendKey";
    type Response = MsgRevokeSpendKeyResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.payer.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        if is_ed25519_key(&self.spend_key) {
            return Ok(());
        }
        let reason = "the session's ed25519 public key of 32 bytes is expected";
        Err(MarketError::Key { name: "spend key", reason }.into())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgRevokeSpendKeyResponse, TxError> {
        let payer: Address = self.payer.parse()?;
        let mut record = sessions::known(state, self.session)?;
        if record.payer != payer.account() {
            let reason = format!("only its payer {} may revoke its spend key", record.payer);
            return Err(MarketError::NotParty { session: self.session, reason }.into());
        }
        if record.closed {
            return Err(MarketError::Closed(self.session).into());
        }
        if record.revoked {
            return Err(MarketError::Revoked(self.session).into());
        }
        if record.spend_key != self.spend_key {
            let reason = "the session is spent by another one; revoke the one that the query Session shows";
            return Err(MarketError::Key { name: "spend key", reason }.into());
        }
        record.revoked = true;
        record.expiry_epoch = record.expiry_epoch.min(ctx.epoch.saturating_add(1));
        let until = sessions::last_redeem_epoch(&record, &params::at(state, ctx.epoch));
        save(state, keys::session(record.id), &record);
        ctx.emit(
            "revoke_spend_key",
            [
                ("session", record.id.to_string()),
                ("payer", record.payer),
                ("payee", record.payee),
                ("redeemable_until_epoch", until.to_string()),
            ],
        );
        Ok(MsgRevokeSpendKeyResponse { redeemable_until_epoch: until })
    }
}
