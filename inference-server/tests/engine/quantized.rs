//! A quantised folder is served as the same folder with its expanded values: the same bits, another profile.

use std::collections::BTreeMap;
use std::path::Path;

use polylink_inference_server::engine::{BackendKind, Replayer};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_protocol::market::check_profile;
use safetensors::{Dtype, SafeTensors, View};
use tempfile::TempDir;

use crate::support::*;

#[derive(Clone)]
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.2[..]).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

/// Pico with these tensors, and this written into its `config.json`.
fn pico_with(tensors: &BTreeMap<String, Tensor>, config: &[(&str, serde_json::Value)]) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder("pico").join(name), copy.path().join(name)).unwrap();
    }
    let file = copy.path().join("config.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (field, value) in config {
        text[*field] = value.clone();
    }
    std::fs::write(&file, text.to_string()).unwrap();
    let file = copy.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors.clone(), None, &file).unwrap();
    copy
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// An fp8 byte's value, by its bits: sign, exponent of bias 7, three bits of mantissa.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, byte & 7);
    let bits = if exponent == 0 {
        return f32::from(mantissa) * 2f32.powi(-9) * if byte < 128 { 1.0 } else { -1.0 };
    } else {
        (u32::from(exponent) + 120) << 23 | u32::from(mantissa) << 20
    };
    f32::from_bits(bits | u32::from(byte >> 7) << 31)
}

/// In fp8 with one scale: (weight, scale, expanded values).
fn fp8(values: &[f32]) -> (Vec<u8>, f32, Vec<f32>) {
    let scale = values.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 448.0;
    let nearest = |value: &f32| {
        let far = |byte: &u8| (e4m3(*byte) - value.abs() / scale).abs();
        let byte = (0..0x7f).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
        if *value < 0.0 { byte | 0x80 } else { byte }
    };
    let bytes: Vec<u8> = values.iter().map(nearest).collect();
    let expanded = bytes.iter().map(|byte| e4m3(*byte) * scale).collect();
    (bytes, scale, expanded)
}

/// In GPTQ's layout, groups of 32 inputs: (qweight, qzeros, scales, expanded values) of a matrix of `k` inputs.
fn gptq(values: &[f32], k: usize) -> (Vec<u8>, Vec<u8>, Vec<u8>, Vec<f32>) {
    let (n, groups) = (values.len() / k, k / 32);
    let (mut quants, mut zeros) = (vec![0u32; k / 8 * n], vec![0u32; groups * n / 8]);
    let (mut scales, mut expanded) = (vec![0u8; 2 * groups * n], values.to_vec());
    for (output, row) in values.chunks(k).enumerate() {
        for (group, run) in row.chunks(32).enumerate() {
            let (low, high) = run.iter().fold((0f32, 0f32), |(low, high), x| (low.min(*x), high.max(*x)));
            let half = half::f16::from_f32((high - low) / 15.0);
            let scale = half.to_f32();
            let zero = (-low / scale).round().clamp(1.0, 15.0);
            scales[2 * (group * n + output)..][..2].copy_from_slice(&half.to_le_bytes());
            zeros[group * n / 8 + output / 8] |= (zero as u32 - 1) << (4 * (output % 8));
            for (i, value) in run.iter().enumerate() {
                let (input, quant) = (32 * group + i, (value / scale + zero).round().clamp(0.0, 15.0));
                quants[input / 8 * n + output] |= (quant as u32) << (4 * (input % 8));
                expanded[output * k + input] = (quant - zero) * scale;
            }
        }
    }
    let bytes = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect();
    (bytes(quants), bytes(zeros), scales, expanded)
}

fn logits(path: &Path) -> Vec<Vec<f32>> {
    let model = LoadedModel::open(path, Precision::F32).unwrap();
    let tokens = prompt(3, 24);
    Replayer::new(&model, BackendKind::Cpu, 1).unwrap().logits(&tokens[..1], &tokens[1..]).unwrap()
}

#[test]
fn quantised_folders_are_served_as_their_expanded_values() {
    let bytes = std::fs::read(folder("pico").join("model.safetensors")).unwrap();
    let pico = SafeTensors::deserialize(&bytes).unwrap();
    for (method, config) in [
        ("fp8", serde_json::json!({"quant_method": "fp8"})),
        ("gptq", serde_json::json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false})),
    ] {
        let (mut quantised, mut plain) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in pico.tensors() {
            let own = Tensor(tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
            let Some(base) = name.strip_suffix("_proj.weight").map(|base| format!("{base}_proj")) else {
                quantised.insert(name.clone(), own.clone());
                plain.insert(name, own);
                continue;
            };
            let values: Vec<f32> = own.2.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
            let (n, k) = (own.1[0], own.1[1]);
            let mut add = |part: &str, dtype, shape: &[usize], data| {
                quantised.insert(format!("{base}.{part}"), Tensor(dtype, shape.to_vec(), data));
            };
            let expanded = if method == "fp8" {
                let (weight, scale, expanded) = fp8(&values);
                add("weight", Dtype::F8_E4M3, &[n, k], weight);
                add("weight_scale", Dtype::F32, &[1], f32_bytes(&[scale]));
                expanded
            } else {
                let (quants, zeros, scales, expanded) = gptq(&values, k);
                add("qweight", Dtype::I32, &[k / 8, n], quants);
                add("qzeros", Dtype::I32, &[k / 32, n / 8], zeros);
                add("scales", Dtype::F16, &[k / 32, n], scales);
                expanded
            };
            plain.insert(name, Tensor(Dtype::F32, own.1, f32_bytes(&expanded)));
        }
        let (plain, with) = (pico_with(&plain, &[]), pico_with(&quantised, &[("quantization_config", config)]));
        assert!(logits(plain.path()) == logits(with.path()), "{method}: the same bits");
        assert!(logits(plain.path()) != logits(&folder("pico")), "{method} changes the weights");
        let profile = LoadedModel::open(with.path(), Precision::Bf16).unwrap().profile("polylink/pico@1").unwrap();
        check_profile(&profile).unwrap();
        assert_eq!((&*profile.weight_quantization, &*profile.compute_dtype), (method, "bf16"));
        let refused = LoadedModel::open(with.path(), Precision::Q8_0).unwrap_err().to_string();
        assert!(refused.contains("quantised already"), "{refused}");
        let unnamed = pico_with(&quantised, &[]);
        let refused = LoadedModel::open(unnamed.path(), Precision::F32).unwrap_err().to_string();
        assert!(refused.contains("F8_E4M3 is not built") || refused.contains("I32 is not built"), "{refused}");
    }
}

/// Inputs in whole blocks, which are kept as they are: two layers of tiles with a scale each.
#[test]
fn fp8_in_blocks_is_served_as_its_expanded_values() {
    let (hidden, mlp) = (128, 256);
    let mut plain = BTreeMap::new();
    let mut state = 7u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let table: Vec<f32> = (0..2048 * hidden).map(|_| random() as f32 / 32_768.0 - 1.0).collect();
    plain.insert("model.embed_tokens.weight".to_owned(), Tensor(Dtype::F32, vec![2048, hidden], f32_bytes(&table)));
    let norms =
        (0..2).flat_map(|layer| ["input", "post_attention"].map(|norm| format!("layers.{layer}.{norm}_layernorm")));
    for norm in norms.chain(["norm".into()]) {
        plain.insert(format!("model.{norm}.weight"), Tensor(Dtype::F32, vec![hidden], f32_bytes(&vec![1.0; hidden])));
    }
    let mut quantised = plain.clone();
    for layer in 0..2 {
        let square = ["q", "k", "v", "o"].map(|name| (format!("self_attn.{name}_proj"), hidden, hidden));
        let wide = [("gate", mlp, hidden), ("up", mlp, hidden), ("down", hidden, mlp)];
        for (name, n, k) in square.into_iter().chain(wide.map(|(name, n, k)| (format!("mlp.{name}_proj"), n, k))) {
            let name = format!("model.layers.{layer}.{name}.weight");
            // All numbers but NaN.
            let bytes: Vec<u8> =
                (0..n * k).map(|_| (random() % 254) as u8).map(|b| if b < 127 { b } else { b + 1 }).collect();
            let tiles = [n / 128, k / 128];
            let scales: Vec<f32> =
                (0..tiles[0] * tiles[1]).map(|_| (1.0 + random() as f32 / 65_536.0) / 1000.0).collect();
            let value = |i: usize| e4m3(bytes[i]) * scales[i / k / 128 * tiles[1] + i % k / 128];
            let expanded: Vec<f32> = (0..n * k).map(value).collect();
            plain.insert(name.clone(), Tensor(Dtype::F32, vec![n, k], f32_bytes(&expanded)));
            quantised.insert(format!("{name}_scale_inv"), Tensor(Dtype::F32, tiles.to_vec(), f32_bytes(&scales)));
            quantised.insert(name, Tensor(Dtype::F8_E4M3, vec![n, k], bytes));
        }
    }
    let sizes = [
        ("hidden_size", hidden),
        ("intermediate_size", mlp),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 4),
    ];
    let mut config: Vec<(&str, serde_json::Value)> = sizes.map(|(name, size)| (name, size.into())).to_vec();
    let plain = pico_with(&plain, &config);
    config.push(("quantization_config", serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 128]})));
    let with = pico_with(&quantised, &config);
    let (expected, found) = (logits(plain.path()), logits(with.path()));
    assert!(expected == found, "the same bits");
    assert!(expected.iter().flatten().all(|logit| logit.is_finite()));
    let model = LoadedModel::open(with.path(), Precision::F32).unwrap();
    let profile = model.profile("polylink/pico@1").unwrap();
    assert_eq!((&*profile.weight_quantization, &*profile.compute_dtype, &*profile.numerics), ("fp8", "f32", "exact-1"));
    assert_eq!(model.other_precisions(), [Precision::Bf16, Precision::AmxBf16, Precision::TensorBf16]);
}
