//! MsgUnjail: `x/slashing/keeper/unjail.go`.

use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{MsgUnjail, MsgUnjailResponse};
use polylink_protocol::{Address, Amount};

use super::{SlashingError, signing_info};
use crate::context::{BlockTime, Context};
use crate::error::TxError;
use crate::modules::Handle;
use crate::staking;
use crate::store::StateWrite;

impl Handle for MsgUnjail {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgUnjail";
    type Response = MsgUnjailResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(Address::from_valoper(&self.validator_addr)?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUnjailResponse, TxError> {
        let operator = self.signer()?;
        let validator = staking::validator(state, &operator).ok_or(SlashingError::NoValidator)?;
        let own = staking::delegation(state, &operator, &operator).ok_or(SlashingError::NoSelfDelegation)?;
        let (has, least) = (staking::worth(&validator, own), Amount::parse_or_zero(&validator.min_self_delegation)?);
        if has < least {
            return Err(SlashingError::SelfDelegationTooLow { has, least }.into());
        }
        if !validator.jailed {
            return Err(SlashingError::NotJailed.into());
        }
        // One that never had power has no info: it was jailed for too little stake, and may come out at any time.
        let info = staking::consensus_address(&validator).and_then(|consensus| signing_info(state, &consensus));
        if let Some(info) = info {
            let until = info.jailed_until.unwrap_or_default();
            if info.tombstoned || ctx.time < (BlockTime { seconds: until.seconds, nanos: until.nanos }) {
                return Err(SlashingError::Jailed.into());
            }
        }
        staking::unjail(state, &operator);
        Ok(MsgUnjailResponse {})
    }
}
