//! What shares of a validator are worth, and what an amount buys: `x/staking/types/validator.go`, with its rounding.
//!
//! All of a validator's shares are worth all of its tokens. Slashing takes tokens and leaves the shares, so that each
//! share is worth less from then on. `None` stands for an overflow of 256 bits, which no conserved supply reaches.

use polylink_protocol::cosmos::cosmos::staking::v1beta1::Validator;
use polylink_protocol::{Amount, Dec};

/// A validator's tokens.
pub(crate) fn tokens(validator: &Validator) -> Amount {
    Amount::parse_or_zero(&validator.tokens).expect("tokens are written as an amount")
}

/// All shares of a validator.
pub(crate) fn shares(validator: &Validator) -> Dec {
    Dec::from_atomics_str(&validator.delegator_shares).expect("shares are written as atomics")
}

/// Shares without a token behind them: nothing can be bought.
pub(super) fn has_invalid_rate(validator: &Validator) -> bool {
    tokens(validator).is_zero() && !shares(validator).is_zero()
}

/// The worth of `part`, rounded half to even in the last decimal (`TokensFromShares`).
pub(crate) fn tokens_of_shares(validator: &Validator, part: Dec) -> Option<Dec> {
    part.mul_int(tokens(validator).0)?.quo_round(shares(validator))
}

/// The worth of `part`, never more than it is (`TokensFromSharesTruncated`).
pub(crate) fn tokens_of_shares_truncated(validator: &Validator, part: Dec) -> Option<Dec> {
    part.mul_int(tokens(validator).0)?.quo_truncate(shares(validator))
}

/// The worth of `part` in whole micro-units, as it would be paid. A validator without shares has none to value.
pub(crate) fn worth(validator: &Validator, part: Dec) -> Amount {
    tokens_of_shares(validator, part).and_then(Dec::truncate).unwrap_or(Amount::ZERO)
}

/// The shares that are worth an amount (`SharesFromTokens`). `None` also where the validator has no tokens.
pub(super) fn shares_of_tokens(validator: &Validator, amount: Amount) -> Option<Dec> {
    shares(validator).mul_int(amount.0)?.quo_int(tokens(validator).0)
}

/// Adds an amount; returns the shares it bought, one each before there are any (`AddTokensFromDel`).
pub(super) fn add_tokens(validator: &mut Validator, amount: Amount) -> Option<Dec> {
    let all = shares(validator);
    let bought = if all.is_zero() { Dec::from_amount(amount) } else { shares_of_tokens(validator, amount)? };
    validator.tokens = tokens(validator).checked_add(amount)?.to_string();
    validator.delegator_shares = all.checked_add(bought)?.to_atomics_string();
    Some(bought)
}

/// Takes shares away; returns what they are worth. The last ones get all that is left (`RemoveDelShares`).
pub(super) fn remove_shares(validator: &mut Validator, part: Dec) -> Option<Amount> {
    let rest = shares(validator).checked_sub(part)?;
    let held = tokens(validator);
    let paid = if rest.is_zero() { held } else { tokens_of_shares(validator, part)?.truncate()? };
    validator.tokens = held.checked_sub(paid)?.to_string();
    validator.delegator_shares = rest.to_atomics_string();
    Some(paid)
}

/// Takes tokens away and leaves the shares: a slash.
pub(super) fn remove_tokens(validator: &mut Validator, amount: Amount) -> Option<()> {
    validator.tokens = tokens(validator).checked_sub(amount)?.to_string();
    Some(())
}
