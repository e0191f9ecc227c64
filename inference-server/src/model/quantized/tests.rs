//! Layouts against goldens of `models/make_quantized_goldens.py`, and refusals.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::model::weights::Weights;

#[test]
fn e4m3_has_its_known_values() {
    for (byte, value) in [(0, 0.0), (1, 1.0 / 512.0), (8, 1.0 / 64.0), (0x38, 1.0), (0x7e, 448.0), (0xb9, -1.125)] {
        assert_eq!(e4m3_to_f32(byte), value, "{byte:#x}");
    }
    assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    assert!(e4m3_to_f32(0x80).is_sign_negative());
}

#[test]
fn what_is_not_built_is_named() {
    let reason = |config: Value| match Scheme::parse(&json!({ "quantization_config": config })) {
        Ok(scheme) => format!("{scheme:?}"),
        Err(error) => error.to_string(),
    };
    assert!(reason(json!({"quant_method": "gptq", "bits": 8})).contains("bits: 4 are built, 8"));
    assert!(reason(json!({"quant_method": "awq", "bits": 4, "version": "gemv"})).contains("gemv"));
    assert!(reason(json!({"quant_method": "bitsandbytes"})).contains("bitsandbytes was found"));
    assert!(reason(json!({"quant_method": "fp8", "weight_block_size": [0, 1]})).contains("two sizes"));
    assert_eq!(reason(json!({"quant_method": "awq", "bits": 4})), "Some(Awq)");
}

const N: usize = 24;
const K: usize = 96;
const GROUP: usize = 32;

/// splitmix64 from the FNV-1a of the name, as the goldens' script has it.
fn random_bytes(name: &str, count: usize) -> Vec<u8> {
    let fnv = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    });
    words.flat_map(u64::to_le_bytes).take(count).collect()
}

/// A safetensors file of random parts: `(name, type, shape)`.
fn folder(parts: &[(&str, &str, &[usize])]) -> tempfile::TempDir {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape) in parts {
        let (count, start) = (shape.iter().product::<usize>(), data.len());
        let mut bytes = random_bytes(
            name,
            count
                * match *dtype {
                    "F8_E4M3" => 1,
                    "F16" => 2,
                    _ => 4,
                },
        );
        match *dtype {
            "F8_E4M3" => bytes.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte ^= 1),
            "F16" => bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|b| {
                *b = (u16::from_le_bytes(*b) & 0x3ff | 9 << 10).to_le_bytes();
            }),
            "F32" => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|b| {
                *b = (u32::from_le_bytes(*b) & 0x7f_ffff | 120 << 23).to_le_bytes();
            }),
            _ if name.ends_with("g_idx") => {
                bytes = (0..K).flat_map(|i| ((7 * i % K / GROUP) as u32).to_le_bytes()).collect();
            }
            _ => {}
        }
        data.extend(bytes);
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

/// SHA-256 of the matrix that these parts make.
fn expanded(scheme: Scheme, name: &str, parts: &[(&str, &str, &[usize])]) -> Result<String, String> {
    let folder = folder(parts);
    let read = || {
        let weights = Weights::open(folder.path(), Some(scheme))?;
        let (name, mut data) = (format!("{name}.weight"), Vec::new());
        weights.read(&name, weights.expect(&name, &[N, K])?, &mut data)?;
        Ok(hex::encode(Sha256::digest(&data)))
    };
    read().map_err(|error: ModelError| error.to_string())
}

const GPTQ: Scheme = Scheme::Gptq { zero_offset: 1, group: Some(GROUP) };

#[test]
fn matrices_are_those_of_the_formats_own_formulas() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/goldens/quantized.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let check = |scheme, name: &str, parts: &[(&str, &str, &[usize])]| {
        let parts: Vec<(String, &str, &[usize])> =
            parts.iter().map(|(part, dtype, shape)| (format!("{name}.{part}"), *dtype, *shape)).collect();
        let parts: Vec<(&str, &str, &[usize])> = parts.iter().map(|(part, d, s)| (&**part, *d, *s)).collect();
        assert_eq!(expanded(scheme, name, &parts).as_deref(), Ok(golden["sha256"][name].as_str().unwrap()), "{name}");
    };
    let integers: [(&str, &str, &[usize]); 3] =
        [("qweight", "I32", &[K / 8, N]), ("qzeros", "I32", &[K / GROUP, N / 8]), ("scales", "F16", &[K / GROUP, N])];
    check(GPTQ, "gptq", &integers);
    let ordered = [&integers[..], &[("g_idx", "I32", &[K])]].concat();
    check(GPTQ, "gptq-order", &ordered);
    check(Scheme::Gptq { zero_offset: 0, group: Some(GROUP) }, "gptq-v2", &integers);
    check(Scheme::Awq, "awq", &[("qweight", "I32", &[K, N / 8]), integers[1], integers[2]]);
    let weight: (&str, &str, &[usize]) = ("weight", "F8_E4M3", &[N, K]);
    let fp8 = Scheme::Fp8 { tile: [128, 128] };
    check(fp8, "one", &[weight, ("weight_scale", "F32", &[]), ("input_scale", "F32", &[])]);
    check(fp8, "outputs", &[weight, ("weight_scale", "F32", &[N, 1])]);
    check(Scheme::Fp8 { tile: [16, 40] }, "tiles", &[weight, ("weight_scale_inv", "F32", &[2, 3])]);
}

/// fp8 with a scale per tensor, output or tile is handed on in blocks, whose numbers × scales are what is expanded; where blocks
/// do not fit, and of an embedding, it is expanded.
#[test]
fn fp8_comes_in_blocks_where_they_fit() {
    let (n, k) = (24, 256);
    let scales: [(Scheme, &[usize]); 4] = [
        (Scheme::Fp8 { tile: [128, 128] }, &[]),
        (Scheme::Fp8 { tile: [128, 128] }, &[24, 1]),
        (Scheme::Fp8 { tile: [16, 128] }, &[2, 2]),
        (Scheme::Fp8 { tile: [16, 64] }, &[2, 4]),
    ];
    for (scheme, shape) in scales {
        for name in ["x", "model.embed_tokens"] {
            let [weight, scale] = ["weight", "weight_scale"].map(|part| format!("{name}.{part}"));
            let folder = folder(&[(&weight, "F8_E4M3", &[n, k]), (&scale, "F32", shape)]);
            let weights = Weights::open(folder.path(), Some(scheme)).unwrap();
            let place = weights.expect(&weight, &[n, k]).unwrap();
            let in_blocks = name == "x" && shape != [2, 4];
            assert_eq!(place.dtype, if in_blocks { Dtype::Fp8 } else { Dtype::F32 }, "{name} {shape:?}");
            let mut data = Vec::new();
            weights.read(&weight, place, &mut data).unwrap();
            assert_eq!(Some(data.len()), place.dtype.bytes(&[n, k]));
            let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
            let found: Vec<f32> = if in_blocks {
                let value = |block: &[u8]| {
                    block[..128].iter().map(|&q| e4m3_to_f32(q) * float(&block[128..])).collect::<Vec<_>>()
                };
                data.chunks(132).flat_map(value).collect()
            } else {
                data.chunks(4).map(float).collect()
            };
            // By the parts themselves.
            let mut numbers = random_bytes(&weight, n * k);
            numbers.iter_mut().filter(|byte| **byte & 0x7f == 0x7f).for_each(|byte| *byte ^= 1);
            let mut scales = random_bytes(&scale, 4 * 24);
            scales.as_chunks_mut::<4>().0.iter_mut().for_each(|b| {
                *b = (u32::from_le_bytes(*b) & 0x7f_ffff | 120 << 23).to_le_bytes();
            });
            let scale = |n: usize, i: usize| match shape {
                [] => 0,
                [24, 1] => n,
                [_, columns] => n / 16 * columns + i / (k / columns),
                _ => unreachable!(),
            };
            let expected: Vec<f32> = (0..n * k)
                .map(|at| e4m3_to_f32(numbers[at]) * float(&scales[4 * scale(at / k, at % k)..][..4]))
                .collect();
            assert!(found == expected, "{name} {shape:?}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let refusal = |scheme, parts: &[(&str, &str, &[usize])]| expanded(scheme, "x", parts).unwrap_err();
    let integers: [(&str, &str, &[usize]); 3] = [
        ("x.qweight", "I32", &[K / 8, N]),
        ("x.qzeros", "I32", &[K / GROUP, N / 8]),
        ("x.scales", "F16", &[K / GROUP, N]),
    ];
    assert!(refusal(GPTQ, &integers[..2]).contains("x.scales: it is missing"));
    assert!(refusal(GPTQ, &[integers[0], ("x.qzeros", "I32", &[2, N / 8]), integers[2]]).contains("tensor x.qzeros"));
    assert!(refusal(Scheme::Gptq { zero_offset: 1, group: Some(64) }, &integers).contains("3 groups of 64"));
    let few = [integers[0], ("x.qzeros", "I32", &[1, N / 8]), ("x.scales", "F16", &[1, N]), ("x.g_idx", "I32", &[K])];
    assert!(refusal(GPTQ, &few).contains("there are 1"));
    let fp8 = Scheme::Fp8 { tile: [128, 128] };
    let weight: (&str, &str, &[usize]) = ("x.weight", "F8_E4M3", &[N, K]);
    assert!(refusal(fp8, &[weight]).contains("x.weight_scale: it is missing"));
    assert!(refusal(fp8, &[weight, ("x.weight_scale", "F32", &[5])]).contains("tensor x.weight_scale"));
    assert!(refusal(Scheme::Awq, &[weight, ("x.weight_scale", "F32", &[])]).contains("F8_E4M3"), "of another scheme");
}
