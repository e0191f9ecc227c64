//! Elementary functions whose bits are the same on every machine.
//!
//! The platform's `exp`, `ln`, `sin` differ in the last bit between C libraries and devices; a judge who replays a
//! worker's answer must not. Everything here is built from IEEE 754 `+ − × ÷` (nearest-even, denormals kept) and integer
//! operations, in the order written: no fused multiply-add, no table, no call to a C library. A port (CUDA, WebGPU)
//! must forbid contraction (`-fmad=false` or `__fmul_rn`/`__fadd_rn`). The golden vectors of this crate and of `kernels`
//! pin the bits; `docs/numerics.md` states the rules.
//!
//! Errors against the exact value, measured over the ranges in the tests: `exp` ≤ 1 ulp for results that are normal,
//! `ln` ≤ 1 ulp, `silu` ≤ 4 ulp, `tanh` ≤ 2 ulp, `gelu_tanh` ≤ 4 ulp for |x| ≤ 1 (and 2.5e-7 of |x| elsewhere), f64
//! `sine_cosine` ≤ 2.3e-16 absolute for |x| ≤ 1e6, f64 `exp`/`ln` ≤ 9e-16 relative.

/// Adding and subtracting it rounds an f32 of magnitude below 2²² to the nearest integer (ties to even).
const ROUND_F32: f32 = 12_582_912.0;
/// The same for f64 below 2⁵¹.
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// eˣ. Finite x; below −104 it is 0 or the least denormal, above 88.72 it is +∞; `exp(0) = 1` exactly.
///
/// x = n ln 2 + r with |r| ≤ ½ ln 2 (ln 2 in two parts, the first with 9 significant bits, so that n × it is exact), a
/// polynomial of degree 7 for eʳ, and 2ⁿ in two factors, so that a denormal result is rounded once.
/// (Coefficients: Cephes `expf`, Moshier.)
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND_F32;
    let n = shifted - ROUND_F32;
    let integer = (shifted.to_bits() as i32).wrapping_sub(ROUND_F32.to_bits() as i32);
    let r = x - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = (p * (r * r) + r) + 1.0;
    let half = integer >> 1;
    (p * power_of_two(half)) * power_of_two(integer.wrapping_sub(half))
}

/// Natural logarithm of a positive, normal, finite x; `ln(1) = +0`.
///
/// x = m·2ᵉ with √½ ≤ m < √2 and a polynomial of degree 8 in m − 1. (Coefficients: Cephes `logf`, Moshier.)
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    // Adding (1 − √½) in units of the last place carries into the exponent exactly when the significand is ≥ √2.
    let bits = x.to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let e = (bits >> 23) as i32 - 127;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let f = m - 1.0;
    let z = f * f;
    let mut p = 7.037_683_6e-2;
    p = p * f + -1.151_461e-1;
    p = p * f + 1.167_699_9e-1;
    p = p * f + -1.242_014_1e-1;
    p = p * f + 1.424_932_3e-1;
    p = p * f + -1.666_805_7e-1;
    p = p * f + 2.000_071_5e-1;
    p = p * f + -2.499_999_4e-1;
    p = p * f + 3.333_333e-1;
    let y = (f * z) * p;
    let e = e as f32;
    let y = y + e * -2.121_944_4e-4;
    let y = y - 0.5 * z;
    (f + y) + e * 0.693_359_4
}

/// `x / (1 + exp(−x))`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Hyperbolic tangent; ±1 far from 0.
///
/// Below 0.625 an odd polynomial of degree 11 (coefficients: Cephes `tanhf`, Moshier), above it `1 − 2 ÷ (exp(2|x|) + 1)`
/// with the sign of x.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_908_8e-2;
    p = p * z + -5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z + -3.333_328e-1;
    let near = (p * z) * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * magnitude) + 1.0);
    let far = f32::from_bits(far.to_bits() | (x.to_bits() & 0x8000_0000));
    if magnitude < 0.625 { near } else { far }
}

/// GELU by its hyperbolic tangent, `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`, as `x ÷ (1 + exp(−u))` with
/// `u = x × (2√(2/π) + 2√(2/π)·0.044715 × x²)`: the same function, without the cancellation of 1 + tanh.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    let u = x * (1.595_769 + 7.135_481e-2 * (x * x));
    x / (1.0 + exp(-u))
}

/// `cap × tanh(x ÷ cap)`: keeps x within ±cap.
#[inline(always)]
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// f32 → bf16, nearest-even by integers (denormals kept; NaN stays NaN).
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x0040;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// bf16 → f32, exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// f32 → f16, nearest-even by integers, saturating: beyond ±65504 the result is ±65504, never infinite. NaN becomes
/// `0x7e00`.
pub fn f32_to_f16_saturating(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7e00;
    }
    if magnitude >= 0x477f_e000 {
        return sign | 0x7bff;
    }
    if magnitude < 0x3880_0000 {
        // Denormal in f16: the value in units of 2⁻²⁴, rounded to the nearest integer by the addition to 2²³·2⁻²⁴.
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let rounded = magnitude + 0x0fff + ((magnitude >> 13) & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// f16 → f32, exact.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let exponent = (bits >> 10) & 0x1f;
    let fraction = bits as u32 & 0x03ff;
    let magnitude = match exponent {
        0 => fraction as f32 * f32::from_bits(0x3380_0000),
        0x1f => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(((exponent as u32 + 112) << 23) | fraction << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// f32 → e4m3 (a sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities), nearest-even by integers,
/// saturating: beyond ±448 the result is ±448. NaN becomes `0x7f`.
#[inline(always)]
pub fn f32_to_e4m3_saturating(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7f;
    }
    if magnitude < 0x3c80_0000 {
        // Denormal in e4m3: the value in units of 2⁻⁹, rounded to the nearest integer by the addition to 2²³·2⁻⁹.
        let rounded = f32::from_bits(magnitude) + 16_384.0;
        return sign | (rounded.to_bits() - 16_384f32.to_bits()) as u8;
    }
    let rounded = (magnitude + 0x7_ffff + ((magnitude >> 20) & 1)) >> 20;
    sign | (rounded.min(0x43e) - 0x3c0) as u8
}

/// e4m3 → f32, exact.
#[inline(always)]
pub fn e4m3_to_f32(bits: u8) -> f32 {
    let (sign, magnitude) = ((bits as u32 & 0x80) << 24, bits as u32 & 0x7f);
    let value = match magnitude {
        0x7f => f32::NAN,
        0..=7 => magnitude as f32 * f32::from_bits(0x3b00_0000),
        _ => f32::from_bits((magnitude << 20) + 0x3c00_0000),
    };
    f32::from_bits(value.to_bits() | sign)
}

/// eˣ in f64 for |x| ≤ 700.
pub fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E + ROUND_F64) - ROUND_F64;
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for k in (1..=14).rev() {
        p = 1.0 + p * (r / k as f64);
    }
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Natural logarithm in f64 of a positive, normal, finite x.
pub fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits() + (0x3ff0_0000_0000_0000 - 0x3fe6_a09e_667f_3bcd);
    let e = ((bits >> 52) as i64 - 1023) as f64;
    let m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) + 0x3fe6_a09e_667f_3bcd);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 0.0;
    for k in (0..=13).rev() {
        p = p * z + 1.0 / (2 * k + 1) as f64;
    }
    (e * 1.908_214_929_270_587_7e-10 + 2.0 * (s * p)) + e * 6.931_471_803_691_238e-1
}

/// Sine and cosine in f64 for |x| ≤ 1,600,000.
///
/// x − n·π/2 with π/2 in three parts of which the first two have 33 bits (n × them is exact for n < 2²⁰), then Taylor
/// polynomials on |r| ≤ π/4. (Parts of π/2: fdlibm `__ieee754_rem_pio2`.)
pub fn sine_cosine(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI + ROUND_F64) - ROUND_F64;
    let r = ((x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_303_966e-11) - n * 2.022_266_248_795_950_6e-21;
    let z = r * r;
    let (mut sine, mut cosine) = (1.0, 1.0);
    for k in (1..=9).rev() {
        let even = (2 * k) as f64;
        sine = 1.0 - sine * (z / (even * (even + 1.0)));
        cosine = 1.0 - cosine * (z / (even * (even - 1.0)));
    }
    let sine = r * sine;
    match n as i64 & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// RoPE's inverse frequencies `base^(−2i / head_dim)`, `head_dim / 2` of them, computed in f64 and rounded to f32.
pub fn rope_frequencies(base: f64, head_dim: usize) -> Vec<f32> {
    let log_base = ln_f64(base);
    (0..head_dim / 2).map(|i| exp_f64(-((2 * i) as f64 / head_dim as f64) * log_base) as f32).collect()
}

/// (sine, cosine) of `position × frequency`; the angle is rounded to f32 (as the reference implementations in torch do),
/// its sine and cosine are rounded from f64.
pub fn rope_turn(position: u32, frequency: f32) -> (f32, f32) {
    let (sine, cosine) = sine_cosine((position as f32 * frequency) as f64);
    (sine as f32, cosine as f32)
}

#[cfg(test)]
#[path = "exact_math/tests.rs"]
mod tests;
