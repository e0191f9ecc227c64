//! Amounts of money and basis points. Integers only; every division states its rounding.

use serde::{Deserialize, Serialize};
use std::{fmt, iter::Sum, str::FromStr};

/// An amount in uplk. On the wire: decimal digits without sign, leading zeros or separators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Amount(pub u128);

/// Why a text is not an amount.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AmountError {
    /// Empty, signed, fractional, with leading zeros, or not digits.
    #[error("`{0}` is not an amount: decimal digits of uplk without sign or leading zeros are expected")]
    Malformed(String),
    /// Over 2^128 − 1.
    #[error("`{0}` uplk is more than an amount can hold")]
    TooLarge(String),
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// None on overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
    /// None when `other` is more.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
    /// Zero when `other` is more.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// True for nothing.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
    /// `floor(self · numerator / denominator)`, exact in between. None on overflow or a zero denominator.
    pub fn mul_div_floor(self, numerator: u128, denominator: u128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let product = bnum::types::U256::from(self.0) * bnum::types::U256::from(numerator);
        u128::try_from(product / bnum::types::U256::from(denominator)).ok().map(Self)
    }
    /// From the wire; an unset (empty) field is zero.
    pub fn parse_or_zero(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() { Ok(Self::ZERO) } else { text.parse() }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Amount {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits || (text.len() > 1 && text.starts_with('0')) {
            return Err(AmountError::Malformed(text.chars().take(64).collect()));
        }
        text.parse().map(Self).map_err(|_| AmountError::TooLarge(text.chars().take(64).collect()))
    }
}

impl Sum for Amount {
    /// Saturates: a sum that large cannot come from a conserved supply, and must not wrap to a small one.
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.fold(0, |total, a| total.saturating_add(a.0)))
    }
}

impl Serialize for Amount {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A ratio in basis points, 0 to 10,000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Bps(u32);

impl Bps {
    /// The whole.
    pub const ONE: Self = Self(10_000);
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// None above 10,000.
    pub const fn new(bps: u32) -> Option<Self> {
        if bps <= 10_000 { Some(Self(bps)) } else { None }
    }
    /// Capped at 10,000.
    pub fn clamped(bps: u32) -> Self {
        Self(bps.min(10_000))
    }
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
    /// The rest to the whole.
    pub fn complement(self) -> Self {
        Self(10_000 - self.0)
    }
    /// This share of an amount, rounded down.
    pub fn of_floor(self, amount: Amount) -> Amount {
        amount.mul_div_floor(u128::from(self.0), 10_000).expect("a share of at most one does not overflow")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_text() {
        for (text, ok) in
            [("0", true), ("7", true), ("", false), ("-1", false), ("+1", false), ("01", false), ("1.0", false)]
        {
            assert_eq!(text.parse::<Amount>().is_ok(), ok, "{text:?}");
        }
        assert_eq!("340282366920938463463374607431768211455".parse(), Ok(Amount(u128::MAX)));
        assert!(matches!("340282366920938463463374607431768211456".parse::<Amount>(), Err(AmountError::TooLarge(_))));
    }

    #[test]
    fn shares_round_down_without_overflow() {
        let beta = Bps::new(3_000).unwrap();
        assert_eq!(beta.of_floor(Amount(7)), Amount(2));
        assert_eq!(Bps::ONE.of_floor(Amount(u128::MAX)), Amount(u128::MAX));
        assert_eq!(Amount(10).mul_div_floor(1, 0), None);
        assert_eq!(Amount(u128::MAX).mul_div_floor(2, 1), None);
    }
}
