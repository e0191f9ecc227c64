//! Published vectors, pinned bits, and the statistics that sampling relies on.

use super::*;

/// Known answers from Random123 (`kat_vectors`, philox4x32 10).
#[test]
fn philox_meets_its_published_vectors() {
    let zero = philox_4x32_10([0; 4], 0);
    assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox_4x32_10([u32::MAX; 4], u64::MAX);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox_4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn noise_is_finite_bounded_and_ordered_for_every_input() {
    let (mut least, mut largest) = (f32::MAX, f32::MIN);
    for x in 0..1u32 << 23 {
        let noise = gumbel_from_bits(x << 9);
        assert!(noise.is_finite());
        least = least.min(noise);
        largest = largest.max(noise);
    }
    println!("noise in {least} .. {largest}");
    assert!(largest < GUMBEL_MAX && largest > 16.63 && least > -2.82 && least < -2.80);
    assert_eq!(gumbel_from_bits(511), gumbel_from_bits(0), "the low 9 bits are not used");
}

#[test]
fn noise_has_the_gumbel_distribution() {
    let key = noise_key(b"statistics", 0);
    let count = 1_000_000u32;
    let values: Vec<f64> = (0..count).map(|i| key.gumbel(i / 1000, i % 1000) as f64).collect();
    let mean = values.iter().sum::<f64>() / count as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
    assert!((mean - 0.577_215_66).abs() < 0.006, "mean {mean}");
    assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.015, "variance {variance}");
}

#[test]
fn argmax_of_logit_plus_noise_draws_from_the_softmax() {
    let key = noise_key(b"softmax", 0);
    let logits = [0.0f32, 1.0, -1.0, 2.0];
    let total: f64 = logits.iter().map(|&l| (l as f64).exp()).sum();
    let mut counts = [0u32; 4];
    let draws = 200_000;
    for position in 0..draws {
        let score = |token: usize| logits[token] + key.gumbel(position, token as u32);
        counts[(0..4).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap()] += 1;
    }
    for (count, logit) in counts.iter().zip(logits) {
        let expected = (logit as f64).exp() / total;
        assert!((*count as f64 / draws as f64 - expected).abs() < 0.005, "{counts:?}");
    }
}

#[test]
fn keys_depend_on_seed_and_choice_alone() {
    assert_eq!(noise_key(b"seed", 0), noise_key(b"seed", 0));
    assert_ne!(noise_key(b"seed", 0), noise_key(b"seed", 1));
    assert_ne!(noise_key(b"seed", 0), noise_key(b"seee", 0));
    assert_ne!(noise_key(b"seed", 0).sketch_key().0, noise_key(b"seed", 0).0);
}

#[test]
fn sketch_signs_are_balanced_and_differ_by_position() {
    let key = noise_key(b"signs", 0).sketch_key();
    let ones: u32 = (0..10_000).flat_map(|block| key.signs(7, block)).map(u8::count_ones).sum();
    assert!((ones as f64 / 1_280_000.0 - 0.5).abs() < 0.003);
    assert_ne!(key.signs(7, 0), key.signs(8, 0));
}

/// Version 1's bits: a change is a new numerics version.
#[test]
fn bits_are_pinned() {
    let key = noise_key(b"polylink", 3);
    let noise = [(0, 0), (0, 1), (1, 0), (17, 2047), (4095, 151_935)]
        .map(|(position, token)| key.gumbel(position, token).to_bits());
    let every = |hash: Sha256, i: u32| hash.chain_update(gumbel_from_bits(i.wrapping_mul(65_537)).to_le_bytes());
    let found = [
        format!("{:016x}", key.0),
        noise.map(|bits| format!("{bits:08x}")).join(" "),
        hex::encode(&(0..65_536u32).fold(Sha256::new(), every).finalize()[..16]),
        hex::encode(key.sketch_key().signs(5, 2)),
    ];
    assert_eq!(found, GOLDEN);
}

/// Key; noise at five (position, token); digest of −ln(−ln u) over 65,536 words; signs of one block.
const GOLDEN: [&str; 4] = [
    "7370580d17d83bb1",
    "3f6a7a2e bf0f4773 3f0ce634 beadd062 be7cf424",
    "e84620f169920406dc726a5e23dad173",
    "9c40537f40afc39682b45fd312f1627f",
];
