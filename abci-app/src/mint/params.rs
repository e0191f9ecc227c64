//! MsgUpdateParams: governance changes the inflation.

use polylink_protocol::cosmos::cosmos::mint::v1beta1::{MsgUpdateParams, MsgUpdateParamsResponse, Params};
use polylink_protocol::{Address, DENOM, Dec, Message};

use super::PARAMS;
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::StateWrite;

fn check(params: &Params) -> Result<(), TxError> {
    let ratio = |field: &str, text: &str| {
        let ratio = Dec::from_atomics_str(text).filter(|ratio| *ratio <= Dec::one());
        ratio.ok_or_else(|| TxError::invalid(format!("{field}: a decimal between 0 and 1 is expected")))
    };
    ratio("inflation_rate_change", &params.inflation_rate_change)?;
    let (least, most) =
        (ratio("inflation_min", &params.inflation_min)?, ratio("inflation_max", &params.inflation_max)?);
    if most < least {
        return Err(TxError::invalid("max inflation must be greater than or equal to min inflation"));
    }
    if ratio("goal_bonded", &params.goal_bonded)?.is_zero() || params.blocks_per_year == 0 {
        return Err(TxError::invalid("goal_bonded and blocks_per_year must be positive"));
    }
    if params.mint_denom == DENOM { Ok(()) } else { Err(TxError::invalid("mint_denom: it is uplk that is minted")) }
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/mint/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        check(self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?)
    }

    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        let params = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        state.put(vec![PARAMS], params.encode_to_vec());
        Ok(MsgUpdateParamsResponse {})
    }
}
