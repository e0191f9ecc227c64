//! MsgSend.

use polylink_protocol::Address;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{MsgSend, MsgSendResponse};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;

use super::{Pool, is_denom, transfer_coin};
use crate::context::Context;
use crate::error::TxError;
use crate::modules::Handle;
use crate::store::StateWrite;

/// The coins of one message at most: there is one denomination today.
const COINS_MAX: usize = 16;

/// The SDK's `Coins.Validate` and `IsAllPositive`: at least one, sorted by denomination, no duplicates, all positive.
pub(crate) fn check_coins(coins: &[Coin]) -> Result<(), TxError> {
    if coins.is_empty() || coins.len() > COINS_MAX {
        return Err(TxError::InvalidCoins(format!("{} coins; 1 to {COINS_MAX} are expected", coins.len())));
    }
    for coin in coins {
        check_coin(coin)?;
    }
    if coins.windows(2).any(|pair| pair[0].denom >= pair[1].denom) {
        return Err(TxError::InvalidCoins("coins must be sorted by denomination, each once".into()));
    }
    Ok(())
}

/// One coin: a denomination and a positive amount.
fn check_coin(coin: &Coin) -> Result<polylink_protocol::Amount, TxError> {
    if !is_denom(&coin.denom) {
        return Err(TxError::InvalidCoins(format!("`{}` is not a denomination", coin.denom.escape_debug())));
    }
    let amount: polylink_protocol::Amount = coin.amount.parse()?;
    if amount.is_zero() {
        return Err(TxError::InvalidCoins(format!("0{}: the amount must be positive", coin.denom)));
    }
    Ok(amount)
}

impl Handle for MsgSend {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgSend";
    type Response = MsgSendResponse;

    fn signer(&self) -> Result<Address, TxError> {
        Ok(self.from_address.parse()?)
    }

    fn check(&self) -> Result<(), TxError> {
        self.to_address.parse::<Address>()?;
        check_coins(&self.amount)
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgSendResponse, TxError> {
        let (from, to): (Address, Address) = (self.from_address.parse()?, self.to_address.parse()?);
        if Pool::of_address(&to).is_some() {
            return Err(TxError::Unauthorized(format!("{to} is not allowed to receive funds")));
        }
        for coin in &self.amount {
            transfer_coin(ctx, state, &from, &to, &coin.denom, coin.amount.parse()?)?;
        }
        ctx.emit("message", &[("module", "bank".into())]);
        Ok(MsgSendResponse {})
    }
}
