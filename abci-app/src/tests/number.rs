//! Decimals with 18 places as plain whole numbers, with each rounding written out: the models' own arithmetic, which has
//! nothing in common with `Dec` but the last place.

use polylink_protocol::Dec;

/// A decimal in units of its last place. Products of two of them and 36 more places stay far below 512 bits.
pub type Number = bnum::types::U512;

/// Last places of one.
pub const ONE: u128 = 1_000_000_000_000_000_000;

/// A whole number of last places.
pub fn places(value: u128) -> Number {
    Number::from(value)
}

/// A whole number.
pub fn whole(value: u128) -> Number {
    places(value) * places(ONE)
}

/// A ledger's decimal.
pub fn of(value: Dec) -> Number {
    value.to_atomics_string().parse().unwrap()
}

/// What stands before the point.
pub fn floor(value: Number) -> u128 {
    u128::try_from(value / places(ONE)).unwrap()
}

/// What stands behind the point.
pub fn fraction(value: Number) -> Number {
    value % places(ONE)
}

/// A product, cut off.
pub fn times(a: Number, b: Number) -> Number {
    a * b / places(ONE)
}

/// A product, rounded half to even.
pub fn times_even(a: Number, b: Number) -> Number {
    even(a * b)
}

/// A quotient, cut off.
pub fn over(a: Number, b: Number) -> Number {
    a * places(ONE) / b
}

/// A quotient, cut off at 36 places and rounded half to even at 18.
pub fn over_even(a: Number, b: Number) -> Number {
    even(a * places(ONE) * places(ONE) / b)
}

/// A quotient, rounded up.
pub fn over_up(a: Number, b: Number) -> Number {
    (a * places(ONE) + b - places(1)) / b
}

/// 36 places rounded to 18, half to even.
fn even(value: Number) -> Number {
    let (below, rest) = (value / places(ONE), value % places(ONE));
    let twice = rest * places(2);
    let up = twice > places(ONE) || (twice == places(ONE) && below % places(2) == places(1));
    if up { below + places(1) } else { below }
}
