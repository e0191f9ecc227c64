//! MsgUpdateParams: governance changes what absence and double signatures cost.

use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{MsgUpdateParams, MsgUpdateParamsResponse, Params};
use polylink_protocol::{Address, Dec, Message};

use super::{PARAMS, liveness, params};
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::StateWrite;

fn check(params: &Params) -> Result<(), TxError> {
    let wrong = |field: &str, what: &str| Err(TxError::invalid(format!("{field}: {what}")));
    let ratio = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?;
        Dec::from_atomics_str(text).filter(|ratio| !text.is_empty() && *ratio <= Dec::one())
    };
    if !(1..=100_000).contains(&params.signed_blocks_window) {
        return wrong("signed_blocks_window", "1 to 100,000 blocks are expected");
    }
    if ratio(&params.min_signed_per_window).is_none_or(Dec::is_zero) {
        return wrong("min_signed_per_window", "a decimal above 0, at most 1 is expected");
    }
    match &params.downtime_jail_duration {
        Some(time) if time.seconds > 0 && time.nanos == 0 => {}
        _ => return wrong("downtime_jail_duration", "positive whole seconds are expected"),
    }
    if ratio(&params.slash_fraction_double_sign).is_none() || ratio(&params.slash_fraction_downtime).is_none() {
        return wrong("slash_fraction_double_sign, slash_fraction_downtime", "decimals between 0 and 1 are expected");
    }
    Ok(())
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/slashing/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        check(self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?)
    }

    /// Signatures are counted anew where the window changes: marks of another one would mean other blocks.
    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        let new = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        if new.signed_blocks_window != params(state).signed_blocks_window {
            liveness::restart(ctx, state);
        }
        state.put(vec![PARAMS], new.encode_to_vec());
        Ok(MsgUpdateParamsResponse {})
    }
}
