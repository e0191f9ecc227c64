//! MsgSend and MsgMultiSend.

use std::collections::BTreeMap;

use polylink_protocol::cosmos::cosmos::bank::v1beta1::{MsgMultiSend, MsgMultiSendResponse, MsgSend, MsgSendResponse};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::{Address, Amount};

use super::{Pool, is_denom, is_send_enabled, receive, spend};
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
fn check_coin(coin: &Coin) -> Result<Amount, TxError> {
    if !is_denom(&coin.denom) {
        return Err(TxError::InvalidCoins(format!("`{}` is not a denomination", coin.denom.escape_debug())));
    }
    let amount: Amount = coin.amount.parse()?;
    if amount.is_zero() {
        return Err(TxError::InvalidCoins(format!("0{}: the amount must be positive", coin.denom)));
    }
    Ok(amount)
}

/// Why the bank refuses, in its own codespace with the codes of `x/bank/types/errors.go`.
fn refusal(code: u32, log: &str) -> TxError {
    TxError::Module { codespace: "bank", code, log: log.into() }
}

/// Coins to an account that may have them: nobody sends to a module's.
fn receiver(address: &str) -> Result<Address, TxError> {
    let to: Address = address.parse()?;
    if Pool::of_address(&to).is_some() {
        return Err(TxError::Unauthorized(format!("{to} is not allowed to receive funds")));
    }
    Ok(to)
}

/// Governance may keep a coin from being sent.
fn check_enabled(ctx: &Context, coins: &[Coin]) -> Result<(), TxError> {
    match coins.iter().find(|coin| !is_send_enabled(&ctx.rules.bank, &coin.denom)) {
        Some(coin) => Err(refusal(5, &format!("{} transfers are currently disabled", coin.denom))),
        None => Ok(()),
    }
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
        check_enabled(ctx, &self.amount)?;
        let (from, to) = (self.signer()?, receiver(&self.to_address)?);
        let coins = amounts(&self.amount)?;
        spend(ctx, state, &from, &coins)?;
        receive(ctx, state, &from, &to, &coins)?;
        Ok(MsgSendResponse {})
    }
}

/// Coins with their amounts read.
fn amounts(coins: &[Coin]) -> Result<Vec<(&str, Amount)>, TxError> {
    coins.iter().map(|coin| Ok((coin.denom.as_str(), coin.amount.parse()?))).collect()
}

/// The sum of lists of coins, by denomination.
fn sum<'a>(lists: impl Iterator<Item = &'a Vec<Coin>>) -> Result<BTreeMap<&'a str, Amount>, TxError> {
    let mut sums: BTreeMap<&str, Amount> = BTreeMap::new();
    for coin in lists.flatten() {
        let sum = sums.entry(coin.denom.as_str()).or_default();
        let total = sum.checked_add(coin.amount.parse()?);
        *sum = total.ok_or_else(|| TxError::InvalidCoins("more than an amount can hold".into()))?;
    }
    Ok(sums)
}

impl Handle for MsgMultiSend {
    const AMINO_NAME: &'static str = "cosmos-sdk/MsgMultiSend";
    type Response = MsgMultiSendResponse;

    /// One sender: several have not been allowed since the SDK's 0.47.
    fn signer(&self) -> Result<Address, TxError> {
        match self.inputs.as_slice() {
            [] => Err(refusal(2, "no inputs to send transaction")),
            [input] => Ok(input.address.parse()?),
            _ => Err(refusal(9, "multiple senders not allowed")),
        }
    }

    fn check(&self) -> Result<(), TxError> {
        if self.outputs.is_empty() {
            return Err(refusal(3, "no outputs to send transaction"));
        }
        for input in &self.inputs {
            check_coins(&input.coins)?;
        }
        for output in &self.outputs {
            output.address.parse::<Address>()?;
            check_coins(&output.coins)?;
        }
        if sum(self.inputs.iter().map(|input| &input.coins))? != sum(self.outputs.iter().map(|output| &output.coins))? {
            return Err(refusal(4, "sum inputs != sum outputs"));
        }
        Ok(())
    }

    fn execute(&self, ctx: &mut Context, state: &mut dyn StateWrite) -> Result<MsgMultiSendResponse, TxError> {
        let from = self.signer()?;
        for input in &self.inputs {
            check_enabled(ctx, &input.coins)?;
        }
        let to = self.outputs.iter().map(|output| receiver(&output.address)).collect::<Result<Vec<_>, _>>()?;
        for input in &self.inputs {
            spend(ctx, state, &from, &amounts(&input.coins)?)?;
        }
        for (output, to) in self.outputs.iter().zip(to) {
            receive(ctx, state, &from, &to, &amounts(&output.coins)?)?;
        }
        Ok(MsgMultiSendResponse {})
    }
}
