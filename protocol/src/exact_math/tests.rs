//! Accuracy against the platform's f64 functions, and pinned bits.

use super::*;

/// Distance of `value` from `exact` in units in the last place of f32 at `exact`.
fn ulps(value: f32, exact: f64) -> f64 {
    let nearest = exact.abs() as f32;
    let step = (f32::from_bits(nearest.to_bits() + 1) as f64 - nearest as f64).max(f32::from_bits(1) as f64);
    (value as f64 - exact).abs() / step
}

/// Every `stride`-th f32 between two positive bounds, by bit pattern.
fn floats(from: f32, to: f32, stride: usize) -> impl Iterator<Item = f32> {
    (from.to_bits()..=to.to_bits()).step_by(stride).map(f32::from_bits)
}

#[test]
fn exp_is_within_an_ulp() {
    let mut worst = 0f64;
    for magnitude in floats(1e-9, 104.0, 97) {
        for x in [magnitude, -magnitude] {
            if (-87.0..88.7).contains(&x) {
                worst = worst.max(ulps(exp(x), (x as f64).exp()));
            } else if x < 0.0 {
                let error = (exp(x) as f64 - (x as f64).exp()).abs();
                assert!(error <= 1.5 * f32::from_bits(1) as f64, "denormal result at {x}: {error:e}");
            }
        }
    }
    println!("exp: worst {worst:.3} ulp");
    assert!(worst <= 1.0, "{worst}");
    assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
    assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
    assert_eq!(exp(1e30), f32::INFINITY);
    assert!(exp(-1e30) <= f32::from_bits(1));
}

#[test]
fn ln_is_within_an_ulp() {
    let mut worst = 0f64;
    for x in floats(f32::MIN_POSITIVE, f32::MAX, 997).chain(floats(0.5, 2.0, 31)) {
        if x != 1.0 {
            worst = worst.max(ulps(ln(x), (x as f64).ln()));
        }
    }
    println!("ln: worst {worst:.3} ulp");
    assert!(worst <= 1.0, "{worst}");
    assert_eq!(ln(1.0).to_bits(), 0);
}

#[test]
fn silu_is_within_four_ulps() {
    let mut worst = 0f64;
    for magnitude in floats(1e-6, 80.0, 997) {
        for x in [magnitude, -magnitude] {
            worst = worst.max(ulps(silu(x), x as f64 / (1.0 + (-x as f64).exp())));
        }
    }
    println!("silu: worst {worst:.3} ulp");
    assert!(worst <= 4.0, "{worst}");
    assert_eq!(silu(0.0), 0.0);
    assert_eq!(silu(-200.0), 0.0);
}

#[test]
fn tanh_is_within_two_ulps() {
    let mut worst = 0f64;
    for magnitude in floats(1e-6, 20.0, 97) {
        for x in [magnitude, -magnitude] {
            worst = worst.max(ulps(tanh(x), (x as f64).tanh()));
        }
    }
    println!("tanh: worst {worst:.3} ulp");
    assert!(worst <= 2.0, "{worst}");
    assert_eq!((tanh(0.0), tanh(1e30), tanh(-1e30)), (0.0, 1.0, -1.0));
    assert_eq!((soft_cap(1e30, 30.0), soft_cap(-1e30, 30.0)), (30.0, -30.0));
    assert!((soft_cap(3.0, 2.0) as f64 - 2.0 * 1.5f64.tanh()).abs() < 3e-7);
}

#[test]
fn gelu_is_within_four_ulps_near_zero_and_of_its_argument_elsewhere() {
    let (mut near, mut far) = (0f64, 0f64);
    for magnitude in floats(1e-6, 20.0, 97) {
        for x in [magnitude, -magnitude] {
            let (found, wide) = (gelu_tanh(x), x as f64);
            // ½(1 + tanh u) = 1 ÷ (1 + exp(−2u)): in f64 as well, 1 + tanh would lose the tail.
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide * wide * wide);
            let exact = wide / (1.0 + (-2.0 * u).exp());
            if magnitude <= 1.0 {
                near = near.max(ulps(found, exact));
            }
            far = far.max((found as f64 - exact).abs() / magnitude as f64);
        }
    }
    println!("gelu: worst {near:.3} ulp up to 1, {far:.2e} of its argument up to 20");
    assert!(near <= 4.0 && far <= 2.5e-7, "{near} {far}");
    assert_eq!((gelu_tanh(0.0), gelu_tanh(100.0)), (0.0, 100.0));
    assert_eq!(gelu_tanh(-100.0), 0.0);
}

#[test]
fn doubles_are_accurate() {
    let (mut sine_worst, mut exp_worst, mut ln_worst) = (0f64, 0f64, 0f64);
    for i in 0..2_000_000u64 {
        let x = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
        let angle = (x - 0.5) * if i % 2 == 0 { 2e6 } else { 10.0 };
        let (sine, cosine) = sine_cosine(angle);
        sine_worst = sine_worst.max((sine - angle.sin()).abs()).max((cosine - angle.cos()).abs());
        let exponent = (x - 0.5) * 1200.0;
        exp_worst = exp_worst.max((exp_f64(exponent) / exponent.exp() - 1.0).abs());
        let value = exponent.exp();
        ln_worst = ln_worst.max((ln_f64(value) - value.ln()).abs() / value.ln().abs().max(f64::MIN_POSITIVE));
    }
    println!("f64: sine and cosine {sine_worst:e} absolute, exp {exp_worst:e}, ln {ln_worst:e} relative");
    assert!(sine_worst <= 2.3e-16 && exp_worst <= 8.9e-16 && ln_worst <= 8.9e-16);
}

#[test]
fn rope_frequencies_follow_the_definition() {
    for (base, head_dim) in [(10_000.0, 32), (10_000.0, 128), (500_000.0, 64), (1_000_000.0, 128)] {
        for (i, &frequency) in rope_frequencies(base, head_dim).iter().enumerate() {
            let exact = 1.0 / base.powf(2.0 * i as f64 / head_dim as f64);
            assert!(ulps(frequency, exact) <= 0.51, "base {base}, pair {i}");
        }
    }
    let (sine, cosine) = rope_turn(1000, 1.0);
    assert_eq!((sine, cosine), (1000f64.sin() as f32, 1000f64.cos() as f32));
}

#[test]
fn half_conversions_are_exact_or_nearest_even() {
    for bits in 0..=u16::MAX {
        let value = f16_to_f32(bits);
        if value.is_finite() {
            assert_eq!(f32_to_f16_saturating(value), bits, "{value:e}");
        }
        let value = bf16_to_f32(bits);
        if !value.is_nan() {
            assert_eq!(f32_to_bf16(value), bits);
        }
    }
    // Halfway between neighbours goes to the even one, just above it up.
    for bits in 0..0x7bffu16 {
        let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
        let middle = (low + high) / 2.0;
        let even = if bits % 2 == 0 { bits } else { bits + 1 };
        assert_eq!(f32_to_f16_saturating(middle), even);
        assert_eq!(f32_to_f16_saturating(f32::from_bits(middle.to_bits() + 1)), bits + 1);
        assert_eq!(f32_to_f16_saturating(-f32::from_bits(middle.to_bits() - 1)), bits | 0x8000);
    }
    for (x, bits) in [(65504.0, 0x7bff), (65520.0, 0x7bff), (1e30, 0x7bff), (-f32::INFINITY, 0xfbff), (1e-30, 0)] {
        assert_eq!(f32_to_f16_saturating(x), bits, "{x}");
    }
    assert_eq!(f32_to_f16_saturating(f32::NAN), 0x7e00);
    assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80, "a tie goes to even");
    assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82, "a tie goes to even");
    assert_eq!(f32_to_bf16(f32::from_bits(0x0000_8001)), 0x0001, "denormals are kept");
}

#[test]
fn e4m3_conversions_are_exact_or_nearest_even_and_saturate() {
    for sign in [0, 0x80] {
        for bits in 0..0x7fu8 {
            let value = e4m3_to_f32(sign | bits);
            assert_eq!(f32_to_e4m3_saturating(value), sign | bits, "{value:e}");
            // By its definition: 4 bits of exponent with bias 7, 3 of mantissa; exponent 0 without a leading one.
            let (exponent, mantissa) = (i32::from(bits >> 3), f64::from(bits & 7) / 8.0);
            let (leading, power) = if exponent == 0 { (0.0, -6) } else { (1.0, exponent - 7) };
            let defined = (leading + mantissa) * 2f64.powi(power) * if sign == 0 { 1.0 } else { -1.0 };
            assert_eq!((f64::from(value), value.is_sign_negative()), (defined, sign != 0), "{bits:#x}");
        }
        assert!(e4m3_to_f32(sign | 0x7f).is_nan());
        let signed = |x: f32| if sign == 0 { x } else { -x };
        // Halfway between neighbours goes to the even one, just beside it to the nearer one.
        for bits in 0..0x7eu8 {
            let middle = (e4m3_to_f32(bits) + e4m3_to_f32(bits + 1)) / 2.0;
            let even = bits + bits % 2;
            assert_eq!(f32_to_e4m3_saturating(signed(middle)), sign | even, "{middle:e}");
            for (step, nearer) in [(-1, bits), (1, bits + 1)] {
                let beside = f32::from_bits(middle.to_bits().wrapping_add_signed(step));
                assert_eq!(f32_to_e4m3_saturating(signed(beside)), sign | nearer, "{beside:e}");
            }
        }
        for x in [449.0, 464.0, 480.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!(f32_to_e4m3_saturating(signed(x)), sign | 0x7e, "{x:e}");
        }
        for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1.0 / 1024.0] {
            assert_eq!(f32_to_e4m3_saturating(signed(x)), sign, "{x:e}");
        }
    }
    assert_eq!(f32_to_e4m3_saturating(f32::NAN), 0x7f);
}

/// The bits of version 1: they may only change together with the numerics version. To regenerate after such a change,
/// copy the digests that the failing assertion prints.
#[test]
fn bits_are_pinned() {
    use sha2::{Digest, Sha256};
    fn fingerprint(values: impl Iterator<Item = u64>) -> String {
        let mut hash = Sha256::new();
        values.for_each(|bits| hash.update(bits.to_le_bytes()));
        hex::encode(&hash.finalize()[..16])
    }
    let signed = || floats(1e-20, 100.0, 1009).flat_map(|x| [x, -x]);
    let positive = floats(f32::MIN_POSITIVE, f32::MAX, 2003);
    let turns = (0..200_000u32).flat_map(|i| {
        let (sine, cosine) = rope_turn(i % 131_072, 1.0 / (1.0 + (i % 977) as f32));
        [sine.to_bits() as u64, cosine.to_bits() as u64]
    });
    let frequencies = [1e4, 5e5, 1e6].into_iter().flat_map(|base| rope_frequencies(base, 128));
    let found = [
        fingerprint(signed().map(|x| exp(x).to_bits() as u64)),
        fingerprint(signed().map(|x| silu(x).to_bits() as u64)),
        fingerprint(positive.map(|x| ln(x).to_bits() as u64)),
        fingerprint(turns),
        fingerprint(frequencies.map(|f| f.to_bits() as u64)),
        fingerprint(signed().map(|x| tanh(x).to_bits() as u64)),
        fingerprint(signed().map(|x| gelu_tanh(x).to_bits() as u64)),
    ];
    assert_eq!(found, GOLDEN);
}

/// exp, silu, ln, rope_turn, rope_frequencies, tanh, gelu_tanh.
const GOLDEN: [&str; 7] = [
    "923fb9453241df924cbe065dc6a23542",
    "22fec6ef3e3487ea1fa0d17a05dcca94",
    "2c71007f0483c7c26047e1876a5338a2",
    "74f81d38fd25f60cdf21a40544a91904",
    "7b81ad98b4706be0cd65ef2a61fa61a9",
    "b3bbe48d43059aafc9aec36f0b919396",
    "05f43d5d5032d46ef9353ef16d4bf399",
];
