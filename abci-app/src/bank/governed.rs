//! MsgUpdateParams and MsgSetSendEnabled: governance decides which coins may be sent. What the ledger itself moves (fees,
//! stake, rewards, escrow) goes on.

use polylink_protocol::cosmos::cosmos::bank::v1beta1::{
    MsgSetSendEnabled, MsgSetSendEnabledResponse, MsgUpdateParams, MsgUpdateParamsResponse, Params, SendEnabled,
};
use polylink_protocol::{Address, Message};

use super::{PARAMS, is_denom};
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};

/// Coins that something else than the default can be said of.
const ENTRIES_MAX: usize = 100;

/// The parameters in force, with all coins that something else than the default is said of, by denomination. Everything may
/// be sent until governance says otherwise.
pub fn params(state: &dyn StateRead) -> Params {
    let written = state.get(&[PARAMS]);
    written.map_or_else(
        || Params { default_send_enabled: true, ..Default::default() },
        |bytes| Params::decode(bytes.as_slice()).expect("parameters are written encoded"),
    )
}

/// What is said of single coins.
#[allow(deprecated, reason = "the SDK keeps them elsewhere; here one record has both")]
pub(super) fn entries(params: &Params) -> &[SendEnabled] {
    &params.send_enabled
}

/// Whether a coin may be sent.
pub fn is_send_enabled(params: &Params, denom: &str) -> bool {
    let said = entries(params).iter().find(|entry| entry.denom == denom);
    said.map_or(params.default_send_enabled, |entry| entry.enabled)
}

/// Writes the default, with the entries after `new` is said and `forgotten` is forgotten.
#[allow(deprecated, reason = "the SDK keeps them elsewhere; here one record has both")]
fn save(state: &mut dyn StateWrite, default: bool, new: &[SendEnabled], forgotten: &[String]) -> Result<(), TxError> {
    let mut send_enabled = entries(&params(state)).to_vec();
    send_enabled.retain(|entry| !forgotten.contains(&entry.denom) && !new.iter().any(|new| new.denom == entry.denom));
    send_enabled.extend_from_slice(new);
    send_enabled.sort_by(|a, b| a.denom.cmp(&b.denom));
    if send_enabled.len() > ENTRIES_MAX {
        return Err(TxError::invalid(format!("at most {ENTRIES_MAX} coins can differ from the default")));
    }
    state.put(vec![PARAMS], Params { send_enabled, default_send_enabled: default }.encode_to_vec());
    Ok(())
}

/// Denominations, each once.
fn check_denoms<'a>(denoms: impl Iterator<Item = &'a str>) -> Result<(), TxError> {
    let mut seen: Vec<&str> = Vec::new();
    for denom in denoms {
        if !is_denom(denom) {
            return Err(TxError::invalid(format!("`{}` is not a denomination", denom.escape_debug())));
        }
        if seen.contains(&denom) {
            return Err(TxError::invalid(format!("duplicate denom entries found for \"{denom}\"")));
        }
        if seen.len() >= ENTRIES_MAX {
            return Err(TxError::invalid(format!("at most {ENTRIES_MAX} coins are expected")));
        }
        seen.push(denom);
    }
    Ok(())
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/bank/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        let params = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        check_denoms(entries(params).iter().map(|entry| entry.denom.as_str()))
    }

    /// As in the SDK: the default is set, and what is said of single coins is said beside what was.
    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        let params = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        save(state, params.default_send_enabled, entries(params), &[])?;
        Ok(MsgUpdateParamsResponse {})
    }
}

impl Handle for MsgSetSendEnabled {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgSetSendEnabled";
    const GOVERNED: bool = true;
    type Response = MsgSetSendEnabledResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        check_denoms(self.send_enabled.iter().map(|entry| entry.denom.as_str()))?;
        check_denoms(self.use_default_for.iter().map(String::as_str))
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSetSendEnabledResponse, TxError> {
        let default = params(state).default_send_enabled;
        save(state, default, &self.send_enabled, &self.use_default_for)?;
        Ok(MsgSetSendEnabledResponse {})
    }
}
