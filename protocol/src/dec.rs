//! `Dec`: the Cosmos SDK's fixed-point number, 18 decimals in 256 bits, products in 512 bits.
//!
//! Unsigned: the ledger's ratios (F1 rewards per share, exchange rates, commissions) are never negative.
//! Rounding is in each method's name, as in the SDK's `LegacyDec`: where it truncates, so does the ledger, and where it
//! rounds half to even (`Mul`, `Quo`, `RoundInt`), so does the ledger.

use bnum::types::{U256, U512};
use std::{fmt, str::FromStr};

use crate::Amount;

/// Atomics per unit: 10^18.
const SCALE: u128 = 1_000_000_000_000_000_000;

/// A fixed-point number with 18 decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dec(U256);

impl Dec {
    /// Zero.
    pub const ZERO: Self = Self(U256::ZERO);

    /// One.
    pub fn one() -> Self {
        Self(U256::from(SCALE))
    }
    /// A whole number of units.
    pub fn from_amount(amount: Amount) -> Self {
        Self(U256::from(amount.0) * U256::from(SCALE))
    }
    /// A ratio in basis points.
    pub fn from_bps(bps: u32) -> Self {
        Self(U256::from(u128::from(bps) * (SCALE / 10_000)))
    }
    /// From atomics (10^-18), as the wire has them.
    pub fn from_atomics(atomics: u128) -> Self {
        Self(U256::from(atomics))
    }
    /// `numerator / denominator`, truncated. None when the denominator is zero.
    pub fn from_ratio(numerator: u128, denominator: u128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        Some(Self(U256::from(numerator) * U256::from(SCALE) / U256::from(denominator)))
    }
    /// None on overflow of 256 bits.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
    /// None when `other` is more.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
    /// Truncated product through 512 bits. None when it does not fit 256.
    pub fn mul_truncate(self, other: Self) -> Option<Self> {
        narrow(widen(self.0) * widen(other.0) / U512::from(SCALE))
    }
    /// Truncated quotient. None on zero or overflow.
    pub fn quo_truncate(self, other: Self) -> Option<Self> {
        if other.0 == U256::ZERO {
            return None;
        }
        narrow(widen(self.0) * U512::from(SCALE) / widen(other.0))
    }
    /// Product rounded half to even (the SDK's `Mul`). None when it does not fit 256 bits.
    pub fn mul_round(self, other: Self) -> Option<Self> {
        narrow(half_even(widen(self.0) * widen(other.0)))
    }
    /// Quotient rounded half to even after 36 decimals, as the SDK's `Quo` has it. None on zero or overflow.
    pub fn quo_round(self, other: Self) -> Option<Self> {
        if other.0 == U256::ZERO {
            return None;
        }
        narrow(half_even(widen(self.0) * U512::from(SCALE) * U512::from(SCALE) / widen(other.0)))
    }
    /// Quotient rounded up. None on zero or overflow.
    pub fn quo_up(self, other: Self) -> Option<Self> {
        if other.0 == U256::ZERO {
            return None;
        }
        let (scaled, divisor) = (widen(self.0) * U512::from(SCALE), widen(other.0));
        let rest = if scaled % divisor == U512::ZERO { U512::ZERO } else { U512::ONE };
        narrow(scaled / divisor + rest)
    }
    /// Exact product with a whole number. None when it does not fit 256 bits.
    pub fn mul_int(self, factor: u128) -> Option<Self> {
        self.0.checked_mul(U256::from(factor)).map(Self)
    }
    /// Truncated quotient by a whole number. None on zero.
    pub fn quo_int(self, divisor: u128) -> Option<Self> {
        self.0.checked_div(U256::from(divisor)).map(Self)
    }
    /// `self − other`, or zero when `other` is more.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// What lies behind the decimal point.
    #[must_use]
    pub fn fraction(self) -> Self {
        Self(self.0 % U256::from(SCALE))
    }
    /// Whole units, rounded half to even. None above 2^128 − 1 units.
    pub fn round(self) -> Option<Amount> {
        let whole = narrow(half_even(widen(self.0)))?;
        u128::try_from(whole.0).ok().map(Amount)
    }
    /// Whole units, the rest cut off. None above 2^128 − 1 units.
    pub fn truncate(self) -> Option<Amount> {
        u128::try_from(self.0 / U256::from(SCALE)).ok().map(Amount)
    }
    /// True for zero.
    pub fn is_zero(self) -> bool {
        self.0 == U256::ZERO
    }
    /// The wire text: atomics in decimal digits (6-wallet-conformance, Dec on the wire).
    pub fn to_atomics_string(self) -> String {
        self.0.to_string()
    }
    /// From the wire text; an empty one is zero.
    pub fn from_atomics_str(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::ZERO);
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        U256::from_str(text).ok().map(Self)
    }
    /// From a decimal as people write it: digits, perhaps a point and at most 18 more digits. None of anything else, an
    /// empty text too.
    pub fn from_decimal_str(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || whole.len() > 60
            || part.len() > 18
            || !digits(whole)
            || !digits(part)
            || text.ends_with('.')
        {
            return None;
        }
        U256::from_str(&format!("{whole}{part:0<18}")).ok().map(Self)
    }
    /// 32 bytes, big-endian: how the store keeps it.
    pub fn to_be_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (i, word) in self.0.digits().iter().enumerate() {
            out[32 - 8 * (i + 1)..32 - 8 * i].copy_from_slice(&word.to_be_bytes());
        }
        out
    }
    /// The inverse of [`Self::to_be_bytes`].
    pub fn from_be_bytes(bytes: &[u8; 32]) -> Self {
        let mut value = U256::ZERO;
        for byte in bytes {
            value = (value << 8) | U256::from(*byte);
        }
        Self(value)
    }
}

/// `value / 10^18`, rounded half to even.
fn half_even(value: U512) -> U512 {
    let (scale, half) = (U512::from(SCALE), U512::from(SCALE / 2));
    let (whole, rest) = (value / scale, value % scale);
    let odd = whole % U512::TWO == U512::ONE;
    if rest > half || (rest == half && odd) { whole + U512::ONE } else { whole }
}

fn widen(value: U256) -> U512 {
    let mut digits = [0_u64; 8];
    digits[..4].copy_from_slice(value.digits());
    U512::from_digits(digits)
}

fn narrow(value: U512) -> Option<Dec> {
    let digits = value.digits();
    if digits[4..].iter().any(|d| *d != 0) {
        return None;
    }
    let mut low = [0_u64; 4];
    low.copy_from_slice(&digits[..4]);
    Some(Dec(U256::from_digits(low)))
}

impl fmt::Display for Dec {
    /// Units, a point, 18 decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = U256::from(SCALE);
        write!(f, "{}.{:0>18}", self.0 / scale, (self.0 % scale).to_string())
    }
}
impl fmt::Debug for Dec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_use_512_bits() {
        // 2^100 · 2^100 atomics overflow 256 bits before the division by 10^18 when widened too late.
        let big = Dec::from_amount(Amount(1 << 100));
        assert_eq!(big.mul_truncate(Dec::one()), Some(big));
        assert_eq!(big.mul_truncate(big), None);
        assert_eq!(big.quo_truncate(big), Some(Dec::one()));
    }

    #[test]
    fn truncates_toward_zero() {
        let third = Dec::from_ratio(1, 3).unwrap();
        assert_eq!(third.to_string(), "0.333333333333333333");
        assert_eq!(third.mul_truncate(Dec::from_amount(Amount(3))).unwrap().truncate(), Some(Amount(0)));
        assert_eq!(Dec::from_bps(1_234).to_string(), "0.123400000000000000");
    }

    #[test]
    fn rounds_as_its_names_say() {
        let dec = |atomics: u128| Dec::from_atomics(atomics);
        // 0.5 · 10^-18 and 1.5 · 10^-18: to the even neighbour.
        let half = dec(SCALE / 2);
        assert_eq!((dec(1).mul_round(half), dec(3).mul_round(half)), (Some(dec(0)), Some(dec(2))));
        assert_eq!((dec(1).mul_truncate(half), dec(3).mul_truncate(half)), (Some(dec(0)), Some(dec(1))));
        let two_thirds = Dec::from_ratio(2, 3).unwrap();
        let [two, three] = [2, 3].map(|n| Dec::from_amount(Amount(n)));
        assert_eq!(two.quo_round(three).unwrap().to_string(), "0.666666666666666667");
        assert_eq!((two.quo_truncate(three), two.quo_int(3)), (Some(two_thirds), Some(two_thirds)));
        assert_eq!(Dec::one().quo_up(three).unwrap().to_string(), "0.333333333333333334");
        assert_eq!(three.quo_up(three), Some(Dec::one()));
        assert_eq!((dec(5).quo_round(Dec::ZERO), dec(5).quo_int(0), dec(5).quo_up(Dec::ZERO)), (None, None, None));
        let rounded = |atomics: u128| dec(atomics).round().unwrap().0;
        assert_eq!([SCALE / 2, SCALE / 2 + 1, SCALE * 3 / 2, SCALE * 5 / 2].map(rounded), [0, 1, 2, 2]);
        assert_eq!((two_thirds.mul_int(3).unwrap().fraction(), three.fraction()), (dec(SCALE - 2), Dec::ZERO));
        assert_eq!(Dec::from_amount(Amount(u128::MAX)).mul_int(u128::MAX), None);
        assert_eq!(two.saturating_sub(three), Dec::ZERO);
    }

    #[test]
    fn bytes_and_text_go_round() {
        for value in [Dec::ZERO, Dec::one(), Dec::from_amount(Amount(u128::MAX)), Dec::from_ratio(22, 7).unwrap()] {
            assert_eq!(Dec::from_be_bytes(&value.to_be_bytes()), value);
            assert_eq!(Dec::from_atomics_str(&value.to_atomics_string()), Some(value));
        }
        assert_eq!(Dec::from_atomics_str("1.5"), None);
        for (text, bps) in
            [("0", 0), ("1", 10_000), ("0.334", 3_340), ("0.500000000000000000", 5_000), ("12.5", 125_000)]
        {
            assert_eq!(Dec::from_decimal_str(text), Some(Dec::from_bps(bps)), "{text}");
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000000000000000001", "1.5.5", " 1", &"9".repeat(80)] {
            assert_eq!(Dec::from_decimal_str(text), None, "{text}");
        }
    }
}
