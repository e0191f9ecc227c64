//! MsgWithdrawDelegatorReward, MsgWithdrawValidatorCommission, MsgSetWithdrawAddress, MsgFundCommunityPool.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::distribution::v1beta1::{
    MsgFundCommunityPool, MsgFundCommunityPoolResponse, MsgSetWithdrawAddress, MsgSetWithdrawAddressResponse,
    MsgWithdrawDelegatorReward, MsgWithdrawDelegatorRewardResponse, MsgWithdrawValidatorCommission,
    MsgWithdrawValidatorCommissionResponse,
};
use polylink_protocol::{Address, Amount, DENOM, Dec};

use super::DistributionError;
use super::allocate::fund_community_pool;
use super::records::{
    commission, current, outstanding, params, set_commission, set_outstanding, set_withdraw_address, starting,
    withdraw_address,
};
use super::rewards::{minus, overflow, withdraw_and_go_on};
use crate::bank::{Pool, check_coins, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

/// Zero is no coin.
fn coins(amount: Amount) -> Vec<Coin> {
    if amount.is_zero() { Vec::new() } else { vec![Coin { denom: DENOM.into(), amount: amount.to_string() }] }
}

impl Handle for MsgWithdrawDelegatorReward {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgWithdrawDelegationReward";
    type Response = MsgWithdrawDelegatorRewardResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        Address::from_valoper(&self.validator_address)?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (delegator, operator) = (self.signer()?, Address::from_valoper(&self.validator_address)?);
        current(state, &operator).ok_or(DistributionError::NoValidator)?;
        starting(state, &operator, &delegator).ok_or(DistributionError::NoDelegation)?;
        let paid = withdraw_and_go_on(ctx, state, &delegator, &operator)?;
        Ok(MsgWithdrawDelegatorRewardResponse { amount: coins(paid) })
    }
}

impl Handle for MsgWithdrawValidatorCommission {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgWithdrawValCommission";
    type Response = MsgWithdrawValidatorCommissionResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(Address::from_valoper(&self.validator_address)?)
    }

    fn check(&self) -> Result<(), TxError> {
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let operator = self.signer()?;
        let earned = commission(state, &operator);
        if earned.is_zero() {
            return Err(DistributionError::NoCommission.into());
        }
        let open = outstanding(state, &operator);
        // The last decimals of delegators may have taken of it.
        let paid = earned.min(open).truncate().ok_or_else(overflow)?;
        set_commission(state, &operator, minus(earned, Dec::from_amount(paid))?);
        set_outstanding(state, &operator, minus(open, Dec::from_amount(paid))?);
        let to = withdraw_address(state, &operator);
        transfer(ctx, state, Pool::Distribution, to, paid)?;
        let shown = if paid.is_zero() { String::new() } else { format!("{paid}{DENOM}") };
        ctx.emit("withdraw_commission", [("amount", shown)]);
        Ok(MsgWithdrawValidatorCommissionResponse { amount: coins(paid) })
    }
}

impl Handle for MsgSetWithdrawAddress {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgModifyWithdrawAddress";
    type Response = MsgSetWithdrawAddressResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.delegator_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        self.withdraw_address.parse::<Address>()?;
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let (delegator, to): (Address, Address) = (self.signer()?, self.withdraw_address.parse()?);
        if Pool::of_address(&to).is_some() {
            return Err(TxError::Unauthorized(format!("{to} is not allowed to receive external funds")));
        }
        if !params(state).withdraw_addr_enabled {
            return Err(DistributionError::WithdrawAddressDisabled.into());
        }
        set_withdraw_address(state, &delegator, &to);
        ctx.emit("set_withdraw_address", [("withdraw_address", to.account())]);
        Ok(MsgSetWithdrawAddressResponse {})
    }
}

impl Handle for MsgFundCommunityPool {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgFundCommunityPool";
    type Response = MsgFundCommunityPoolResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.depositor.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        check_coins(&self.amount)?;
        match self.amount.iter().find(|coin| coin.denom != DENOM) {
            Some(coin) => Err(TxError::InvalidCoins(format!("the community pool holds {DENOM}, not {}", coin.denom))),
            None => Ok(()),
        }
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let depositor = self.signer()?;
        for coin in &self.amount {
            fund_community_pool(ctx, state, depositor, coin.amount.parse()?)?;
        }
        Ok(MsgFundCommunityPoolResponse {})
    }
}
