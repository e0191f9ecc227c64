//! MsgUpdateParams: governance changes what a transaction may have and what its bytes and signatures cost.

use polylink_protocol::cosmos::cosmos::auth::v1beta1::{MsgUpdateParams, MsgUpdateParamsResponse, Params};
use polylink_protocol::{Address, Message};

use super::PARAMS;
use crate::context::Context;
use crate::error::TxError;
use crate::gas::COSTS;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::{StateRead, StateWrite};
use crate::tx;

/// The most that a byte may cost, so that a proposal that mends it can always be paid.
const BYTE_COST_MAX: u64 = 1_000;
/// The most that a signature or proof may cost, likewise.
const SIGNATURE_COST_MAX: u64 = 1_000_000;

/// The parameters in force: those of the gas table and of the decoder until governance writes others.
pub fn params(state: &dyn StateRead) -> Params {
    let written = state.get(&[PARAMS]);
    written.map_or_else(
        || Params {
            max_memo_characters: tx::MEMO_CHARACTERS_MAX as u64,
            tx_sig_limit: tx::SIGNATURES_MAX as u64,
            tx_size_cost_per_byte: COSTS.tx_byte,
            sig_verify_cost_ed25519: COSTS.proof,
            sig_verify_cost_secp256k1: COSTS.signature,
        },
        |bytes| Params::decode(bytes.as_slice()).expect("parameters are written encoded"),
    )
}

/// None is zero, as in the SDK; and none is beyond what the decoder takes, or what can be paid.
fn check(params: &Params) -> Result<(), TxError> {
    for (field, value, max) in [
        ("max_memo_characters", params.max_memo_characters, tx::MEMO_CHARACTERS_MAX as u64),
        ("tx_sig_limit", params.tx_sig_limit, tx::SIGNATURES_MAX as u64),
        ("tx_size_cost_per_byte", params.tx_size_cost_per_byte, BYTE_COST_MAX),
        ("sig_verify_cost_ed25519", params.sig_verify_cost_ed25519, SIGNATURE_COST_MAX),
        ("sig_verify_cost_secp256k1", params.sig_verify_cost_secp256k1, SIGNATURE_COST_MAX),
    ] {
        if !(1..=max).contains(&value) {
            return Err(TxError::invalid(format!("{field}: 1 to {max} is expected, not {value}")));
        }
    }
    Ok(())
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/auth/MsgUpdateParams";
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
