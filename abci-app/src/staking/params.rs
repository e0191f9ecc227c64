//! MsgUpdateParams: governance changes staking's parameters.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::{MsgUpdateParams, MsgUpdateParamsResponse, Params};
use polylink_protocol::{Address, DENOM, Dec};

use super::records::{self, set_params};
use crate::consensus;
use crate::context::Context;
use crate::error::TxError;
use crate::gov::check_authority;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Validators with power at most, whatever the parameters say: each block looks at all of them.
pub const VALIDATORS_MAX: u32 = 1_000;
/// Headers with their sets that are kept at most.
pub const HISTORICAL_ENTRIES_MAX: u32 = 100_000;

/// Refuses parameters that staking could not run by.
pub(super) fn check(params: &Params) -> Result<(), TxError> {
    let wrong = |field: &str, what: &str| Err(TxError::invalid(format!("{field}: {what}")));
    match &params.unbonding_time {
        Some(time) if time.seconds > 0 && time.nanos == 0 => {}
        _ => return wrong("unbonding_time", "positive whole seconds are expected"),
    }
    if !(1..=VALIDATORS_MAX).contains(&params.max_validators) {
        return wrong("max_validators", "1 to 1,000 are expected");
    }
    if !(1..=1_000).contains(&params.max_entries) {
        return wrong("max_entries", "1 to 1,000 are expected");
    }
    if params.historical_entries > HISTORICAL_ENTRIES_MAX {
        return wrong("historical_entries", "at most 100,000 are kept");
    }
    if params.bond_denom != DENOM {
        return wrong("bond_denom", "stake is in uplk");
    }
    match Dec::from_atomics_str(&params.min_commission_rate) {
        Some(rate) if rate <= Dec::one() => Ok(()),
        _ => wrong("min_commission_rate", "a decimal between 0 and 1 is expected"),
    }
}

impl Handle for MsgUpdateParams {
    const AMINO_NAME: &'static str = "cosmos-sdk/x/staking/MsgUpdateParams";
    const GOVERNED: bool = true;
    type Response = MsgUpdateParamsResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.authority.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_authority(&self.authority)?;
        check(self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?)
    }

    /// What unbonds must not outlive the evidence that it answers for: evidence gets older first (`consensus`).
    fn execute(&self, _: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUpdateParamsResponse, TxError> {
        let params = self.params.as_ref().ok_or_else(|| TxError::invalid("params: nothing"))?;
        let evidence = consensus::params(state).and_then(|params| params.evidence?.max_age_duration);
        let seconds = |params: &Params| params.unbonding_time.map_or(0, |time| time.seconds);
        let (old, new) = (seconds(&records::params(state)), seconds(params));
        if let Some(age) = evidence.map(|age| age.seconds).filter(|age| new > old && new > *age) {
            let reason = format!("unbonding_time: at most the age of evidence, {age} seconds, is expected");
            return Err(TxError::invalid(reason));
        }
        set_params(state, params);
        Ok(MsgUpdateParamsResponse {})
    }
}
