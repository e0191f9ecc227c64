//! The elementary functions of `protocol::exact_math`, 16 lanes at a time: the same operations in the same order, so the
//! same bits.
#![allow(unsafe_code)] // vector intrinsics

use super::lanes::Lanes;

/// Adding it rounds an f32 of magnitude below 2²² to the nearest integer (ties to even), left in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Nearest integers, ties to even, of values below 2²² in magnitude.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
pub(crate) unsafe fn round<L: Lanes>(x: L::F32) -> L::I32 {
    // SAFETY: as the caller's.
    unsafe { L::sub_i32(L::bits(L::add(x, L::splat(ROUND))), L::splat_i32(ROUND.to_bits() as i32)) }
}

/// `exact_math::exp` of numbers (no NaN).
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::F32) -> L::F32 {
    // SAFETY: as the caller's.
    unsafe {
        let x = L::min(L::max(x, L::splat(-104.0)), L::splat(89.0));
        let shifted = L::add(L::mul(x, L::splat(std::f32::consts::LOG2_E)), L::splat(ROUND));
        let n = L::sub(shifted, L::splat(ROUND));
        let integer = L::sub_i32(L::bits(shifted), L::splat_i32(ROUND.to_bits() as i32));
        let r = L::sub(x, L::mul(n, L::splat(0.693_359_4)));
        let r = L::sub(r, L::mul(n, L::splat(-2.121_944_4e-4)));
        let p = L::splat(1.987_569_2e-4);
        let p = L::add(L::mul(p, r), L::splat(1.398_2e-3));
        let p = L::add(L::mul(p, r), L::splat(8.333_452e-3));
        let p = L::add(L::mul(p, r), L::splat(4.166_579_6e-2));
        let p = L::add(L::mul(p, r), L::splat(1.666_666_5e-1));
        let p = L::add(L::mul(p, r), L::splat(0.5));
        let p = L::add(L::add(L::mul(p, L::mul(r, r)), r), L::splat(1.0));
        let (half, bias) = (L::halve(integer), L::splat_i32(127));
        let low = L::exponent(L::add_i32(half, bias));
        let high = L::exponent(L::add_i32(L::sub_i32(integer, half), bias));
        L::mul(L::mul(p, low), high)
    }
}

/// `exact_math::silu` of numbers (no NaN).
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L::F32) -> L::F32 {
    // SAFETY: as the caller's.
    unsafe { L::div(x, L::add(L::splat(1.0), exp::<L>(L::mul(x, L::splat(-1.0))))) }
}
