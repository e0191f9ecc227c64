//! MsgCreateVestingAccount, MsgCreatePermanentLockedAccount, MsgCreatePeriodicVestingAccount.

use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::cosmos::cosmos::vesting::v1beta1::{
    MsgCreatePeriodicVestingAccount, MsgCreatePeriodicVestingAccountResponse, MsgCreatePermanentLockedAccount,
    MsgCreatePermanentLockedAccountResponse, MsgCreateVestingAccount, MsgCreateVestingAccountResponse,
};
use polylink_protocol::{Address, Amount, DENOM};

use super::schedule::{Kind, Vesting};
use super::{PERIODS_MAX, set_vesting};
use crate::auth;
use crate::bank::{Pool, check_coins, transfer};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

fn check_amount(coins: &[Coin]) -> Result<Amount, TxError> {
    check_coins(coins)?;
    match coins.iter().find(|coin| coin.denom != DENOM) {
        Some(coin) => Err(TxError::InvalidCoins(format!("it is {DENOM} that vests, not {}", coin.denom))),
        None => Ok(coins[0].amount.parse()?),
    }
}

/// Makes an account that was not there, with coins of another.
fn create(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    from: &Address,
    to: &Address,
    vesting: &Vesting,
) -> Result<(), TxError> {
    if Pool::of_address(to).is_some() {
        return Err(TxError::Unauthorized(format!("{to} is not allowed to receive funds")));
    }
    if auth::account(state, to).is_some() {
        return Err(TxError::invalid(format!("account {to} already exists")));
    }
    set_vesting(state, to, vesting);
    transfer(ctx, state, *from, *to, vesting.original)
}

impl Handle for MsgCreateVestingAccount {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCreateVestingAccount";
    type Response = MsgCreateVestingAccountResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.from_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        self.to_address.parse::<Address>()?;
        check_amount(&self.amount)?;
        if self.end_time <= 0 { Err(TxError::invalid("invalid end time")) } else { Ok(()) }
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let kind = if self.delayed { Kind::Delayed } else { Kind::Continuous(ctx.time.seconds) };
        let vesting = Vesting::new(kind, check_amount(&self.amount)?, self.end_time);
        create(ctx, state, &self.signer()?, &self.to_address.parse()?, &vesting)?;
        Ok(MsgCreateVestingAccountResponse {})
    }
}

impl Handle for MsgCreatePermanentLockedAccount {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCreatePermLockedAccount";
    type Response = MsgCreatePermanentLockedAccountResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.from_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        self.to_address.parse::<Address>()?;
        check_amount(&self.amount).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        let vesting = Vesting::new(Kind::Permanent, check_amount(&self.amount)?, 0);
        create(ctx, state, &self.signer()?, &self.to_address.parse()?, &vesting)?;
        Ok(MsgCreatePermanentLockedAccountResponse {})
    }
}

/// The whole schedule of a message.
fn periodic(message: &MsgCreatePeriodicVestingAccount) -> Result<Vesting, TxError> {
    if message.start_time < 1 {
        return Err(TxError::invalid(format!(
            "invalid start time of {}, length must be greater than 0",
            message.start_time
        )));
    }
    if message.vesting_periods.is_empty() || message.vesting_periods.len() > PERIODS_MAX {
        return Err(TxError::invalid(format!("1 to {PERIODS_MAX} vesting periods are expected")));
    }
    let (mut end, mut total, mut periods) = (message.start_time, Amount::ZERO, Vec::new());
    for (index, period) in message.vesting_periods.iter().enumerate() {
        if period.length < 1 {
            return Err(TxError::invalid(format!(
                "invalid period length of {} in period {index}, length must be greater than 0",
                period.length
            )));
        }
        let part = check_amount(&period.amount)?;
        let overflow = || TxError::invalid(format!("period {index}: more than a time or an amount can hold"));
        end = end.checked_add(period.length).ok_or_else(overflow)?;
        total = total.checked_add(part).ok_or_else(overflow)?;
        periods.push((period.length, part));
    }
    Ok(Vesting::new(Kind::Periodic(message.start_time, periods), total, end))
}

impl Handle for MsgCreatePeriodicVestingAccount {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgCreatePeriodVestAccount";
    type Response = MsgCreatePeriodicVestingAccountResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.from_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        self.to_address.parse::<Address>()?;
        periodic(self).map(|_| ())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<Self::Response, TxError> {
        create(ctx, state, &self.signer()?, &self.to_address.parse()?, &periodic(self)?)?;
        Ok(MsgCreatePeriodicVestingAccountResponse {})
    }
}
