//! MsgDelegate, MsgBeginRedelegate, MsgUndelegate, MsgCancelUnbondingDelegation.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::staking::v1beta1::{
    MsgBeginRedelegate, MsgBeginRedelegateResponse, MsgCancelUnbondingDelegation, MsgCancelUnbondingDelegationResponse,
    MsgDelegate, MsgDelegateResponse, MsgUndelegate, MsgUndelegateResponse,
};
use polylink_protocol::{Address, Amount, DENOM};

use super::delegate::{Source, delegate, shares_to_unbond, undelegate};
use super::records::{check_denom, require_validator, timestamp};
use super::{redelegate, unbonding};
use crate::bank::is_denom;
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Stake in a message: a positive amount of the coin of stake.
pub(super) fn stake(coin: Option<&Coin>) -> Result<Amount, TxError> {
    let coin =
        coin.filter(|coin| is_denom(&coin.denom)).ok_or_else(|| TxError::invalid("invalid delegation amount"))?;
    let amount: Amount = coin.amount.parse()?;
    if amount.is_zero() {
        return Err(TxError::invalid("invalid delegation amount: it must be positive"));
    }
    check_denom(&coin.denom)?;
    Ok(amount)
}

fn coin(amount: Amount) -> String {
    format!("{amount}{DENOM}")
}

impl Handle for MsgDelegate {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgDelegate";
    type Response = MsgDelegateResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        stake(self.amount.as_ref()).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgDelegateResponse, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        let amount = stake(self.amount.as_ref())?;
        let shares = delegate(ctx, state, &delegator, &operator, amount, Source::Account)?;
        let attributes = [
            ("validator", operator.valoper()),
            ("delegator", delegator.account()),
            ("amount", coin(amount)),
            ("new_shares", shares.to_string()),
        ];
        ctx.emit("delegate", attributes);
        Ok(MsgDelegateResponse {})
    }
}

impl Handle for MsgBeginRedelegate {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgBeginRedelegate";
    type Response = MsgBeginRedelegateResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_src_address)?;
        Address::from_valoper(&self.validator_dst_address)?;
        stake(self.amount.as_ref()).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgBeginRedelegateResponse, TxError> {
        let delegator = self.signer()?;
        let from = Address::from_valoper(&self.validator_src_address)?;
        let to = Address::from_valoper(&self.validator_dst_address)?;
        require_validator(state, &from)?;
        require_validator(state, &to)?;
        let amount = stake(self.amount.as_ref())?;
        let shares = shares_to_unbond(state, &delegator, &from, amount)?;
        let completion = redelegate::redelegate(ctx, state, &delegator, [&from, &to], shares)?;
        let attributes = [
            ("source_validator", from.valoper()),
            ("destination_validator", to.valoper()),
            ("delegator", delegator.account()),
            ("amount", coin(amount)),
            ("completion_time", completion.rfc3339()),
        ];
        ctx.emit("redelegate", attributes);
        Ok(MsgBeginRedelegateResponse { completion_time: Some(timestamp(completion)) })
    }
}

impl Handle for MsgUndelegate {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgUndelegate";
    type Response = MsgUndelegateResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        stake(self.amount.as_ref()).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgUndelegateResponse, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        let shares = shares_to_unbond(state, &delegator, &operator, stake(self.amount.as_ref())?)?;
        let (amount, completion) = undelegate(ctx, state, &delegator, &operator, shares)?;
        let attributes = [
            ("validator", operator.valoper()),
            ("delegator", delegator.account()),
            ("amount", coin(amount)),
            ("completion_time", completion.rfc3339()),
        ];
        ctx.emit("unbond", attributes);
        Ok(MsgUndelegateResponse {
            completion_time: Some(timestamp(completion)),
            amount: Some(Coin { denom: DENOM.into(), amount: amount.to_string() }),
        })
    }
}

impl Handle for MsgCancelUnbondingDelegation {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCancelUnbondingDelegation";
    type Response = MsgCancelUnbondingDelegationResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        stake(self.amount.as_ref())?;
        if self.creation_height <= 0 { Err(TxError::invalid("invalid height")) } else { Ok(()) }
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        let amount = stake(self.amount.as_ref())?;
        unbonding::cancel(ctx, state, &delegator, &operator, amount, self.creation_height)?;
        let attributes = [
            ("amount", coin(amount)),
            ("validator", operator.valoper()),
            ("delegator", delegator.account()),
            ("creation_height", self.creation_height.to_string()),
        ];
        ctx.emit("cancel_unbonding_delegation", attributes);
        Ok(MsgCancelUnbondingDelegationResponse {})
    }
}
