//! GGUF files against llama.cpp (goldens of `models/make_gguf_goldens.py`): logits of every type of weights, token ids;
//! and what is wrong with a file is said by name.

use std::path::{Path, PathBuf};

use polylink_inference_server::engine::{BackendKind, Engine, Replayer};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_protocol::market::check_profile;
use tempfile::TempDir;

use crate::gguf_files::*;
use crate::support::*;

fn golden(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(folder("goldens").join(name)).unwrap()).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A file of the goldens' model in a folder that lives as long as it is held.
fn file(pairs: &Pairs, tensors: &Tensors) -> (TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let digest = write(&path, pairs, tensors);
    (folder, path, digest)
}

fn opened(path: &Path) -> LoadedModel {
    LoadedModel::open(path, Precision::F32).unwrap()
}

/// Values kept as hex of little-endian f32.
fn floats(value: &serde_json::Value) -> Vec<f32> {
    let bytes = hex::decode(value.as_str().unwrap()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Logits after the prompt's tokens at these positions.
fn logits_at(path: &Path, prompt: &[u32], positions: &[u32]) -> Vec<f32> {
    let mut replayer = Replayer::new(&opened(path), BackendKind::Cpu, 1).unwrap();
    let mut rest = prompt[1..].to_vec();
    rest.push(0);
    let logits = replayer.logits(&prompt[..1], &rest).unwrap();
    positions.iter().flat_map(|&position| logits[position as usize].iter().copied()).collect()
}

fn type_name(name: &str) -> &'static str {
    TYPES.iter().find(|(own, ..)| *own == name).unwrap().0
}

/// Both round activations, so neither gives the dequantised weights' exact logits: ours are at most half again as far off
/// as llama.cpp's. Where llama.cpp computes in f32 as well, the order of sums is all that differs.
#[test]
fn logits_of_every_type_are_as_near_the_exact_ones_as_those_of_llama_cpp() {
    let golden = golden("gguf_logits.json");
    let (prompt, positions) = (numbers(&golden["prompt"]), numbers(&golden["positions"]));
    for case in golden["cases"].as_array().unwrap() {
        let label = case["label"].as_str().unwrap();
        let tensors = llama_tensors(type_name(case["type"].as_str().unwrap()), case["mixed"] == true);
        let (_folder, path, digest) = file(&llama_pairs("llama"), &tensors);
        assert_eq!(digest, case["sha256"].as_str().unwrap(), "{label}: the file is that of the goldens");
        let exact = floats(&case["exact"]);
        let found = logits_at(&path, &prompt, &positions);
        let square: f64 = found.iter().zip(&exact).map(|(found, exact)| f64::from(found - exact).powi(2)).sum();
        let (error, theirs) = ((square / exact.len() as f64).sqrt(), case["llama_cpp_error"].as_f64().unwrap());
        println!("{label}: error {error:.2e}, llama.cpp's {theirs:.2e}");
        assert!(error <= (1.5 * theirs).max(2e-6), "{label}: {error} against {theirs}");
    }
}

/// Files of f32, so that nothing but the order of sums differs.
#[test]
fn other_architectures_give_the_logits_of_llama_cpp() {
    let golden = golden("gguf_architectures.json");
    let (prompt, positions) = (numbers(&golden["prompt"]), numbers(&golden["positions"]));
    for case in golden["cases"].as_array().unwrap() {
        let (label, arch) = (case["label"].as_str().unwrap(), case["arch"].as_str().unwrap());
        let layers = case["layers"].as_u64().unwrap();
        let mut pairs = llama_pairs(arch);
        let mut set = |key: &str, value: Value| match pairs.iter_mut().find(|(own, _)| own == key) {
            Some((_, own)) => *own = value,
            None => pairs.push((key.into(), value)),
        };
        set(&format!("{arch}.block_count"), Value::Number(layers as u32));
        let mut own: Vec<_> = case["pairs"].as_object().unwrap().iter().collect();
        own.sort_by_key(|(key, _)| *key); // as the script writes them
        for (key, value) in own {
            let value = match (value.as_u64(), value.as_str()) {
                (Some(number), _) => Value::Number(number as u32),
                (_, Some(text)) => Value::Text(text.into()),
                _ => Value::Float(value.as_f64().unwrap() as f32),
            };
            set(&format!("{arch}.{key}"), value);
        }
        let mut tensors = Tensors::new();
        for tensor in case["tensors"].as_array().unwrap() {
            let name = tensor[0].as_str().unwrap();
            let shape: Vec<usize> = serde_json::from_value(tensor[1].clone()).unwrap();
            for layer in 0..if name.contains('*') { layers } else { 1 } {
                tensors.push((name.replace('*', &layer.to_string()), "F32", shape.clone()));
            }
        }
        let (_folder, path, digest) = file(&pairs, &tensors);
        assert_eq!(digest, case["sha256"].as_str().unwrap(), "{label}: the file is that of the goldens");
        let theirs = floats(&case["logits"]);
        let found = logits_at(&path, &prompt, &positions);
        let worst = found.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{label}: largest difference {worst:.1e}");
        // llama.cpp looks GELU up in a table of f16.
        let bound = if arch.starts_with("gemma") { 3e-3 } else { 2e-5 };
        assert!(worst < bound && found.len() == theirs.len(), "{label}: {worst}");
    }
}

#[test]
fn token_ids_are_those_of_llama_cpp() {
    let golden = golden("gguf_tokenizers.json");
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let model = llama_tensors("F32", false);
    for case in golden["cases"].as_array().unwrap() {
        let source = &golden["sources"][case["source"].as_str().unwrap()];
        let strings = |key: &str| -> Vec<String> { serde_json::from_value(source[key].clone()).unwrap() };
        let tokens = strings("tokens");
        let mut pairs = llama_pairs("llama");
        pairs.retain(|(key, _)| !key.starts_with("tokenizer."));
        let mut add = |key: &str, value: Value| pairs.push((format!("tokenizer.ggml.{key}"), value));
        let bos = match case["pre"].as_str() {
            Some(pre) => {
                add("model", Value::Text("gpt2".into()));
                add("pre", Value::Text(pre.into()));
                add("merges", Value::Texts(strings("merges")));
                tokens.len() - 3
            }
            None => {
                add("model", Value::Text("llama".into()));
                add("scores", Value::Floats(serde_json::from_value(source["scores"].clone()).unwrap()));
                add("add_space_prefix", Value::Flag(case["add_space_prefix"] == true));
                tokens.iter().position(|token| token == "<s>").unwrap()
            }
        };
        add("bos_token_id", Value::Number(bos as u32));
        add("token_type", Value::Numbers(serde_json::from_value(source["types"].clone()).unwrap()));
        let rows = tokens.len();
        add("tokens", Value::Texts(tokens));
        let mut tensors = model.clone();
        tensors[0].2[0] = rows;
        tensors[1].2[0] = rows;
        let (_folder, path, _) = file(&pairs, &tensors);
        let tokenizer = opened(&path).tokenizer().clone();
        let name = format!("{} {}", case["source"], case["pre"]);
        for (index, text) in texts.iter().enumerate() {
            let plain = tokenizer.encode_plain(text).unwrap();
            assert_eq!(plain, numbers(&case["plain"][index]), "{name}, plain: {text:?}");
            let special = tokenizer.encode_whole(text, true).unwrap();
            assert_eq!(special, numbers(&case["special"][index]), "{name}, with special tokens: {text:?}");
            // What was cut apart comes back, special tokens aside.
            if case["source"] == "bytes" && !text.contains("<|") {
                assert_eq!(tokenizer.decode(&plain), *text, "{name}");
            }
        }
    }
}

#[test]
fn a_file_is_served_with_its_template_and_a_profile_of_its_own() {
    let mut pairs = llama_pairs("llama");
    let template = "{{ bos_token }}{% for m in messages %}<|2|>{{ m.content }}{% endfor %}<|3|>";
    pairs.push(("tokenizer.chat_template".into(), Value::Text(template.into())));
    let (_folder, path, _) = file(&pairs, &llama_tensors("Q4_K", true));
    let model = opened(&path);
    assert_eq!(chat(&model, "A<|3|>"), [257, 259, 65, 60, 124, 51, 124, 62, 260], "written special tokens are text");
    let profile = model.profile("polylink/tiny@1").unwrap();
    check_profile(&profile).unwrap();
    assert_eq!((&*profile.weight_quantization, &*profile.compute_dtype), ("gguf", "int8"));
    let engine = Engine::start(model.clone(), small()).unwrap();
    let answer = run(&engine, request(prompt(1, 5).iter().map(|id| id % 256).collect(), sampling(), 1));
    assert_eq!(answer.choices[0].tokens.len(), 16);
    // Another template or another weight is another profile; floats are computed in f32.
    let (_folder, other, _) = file(&llama_pairs("llama"), &llama_tensors("Q4_K", true));
    let other = opened(&other).profile("polylink/tiny@1").unwrap();
    assert_ne!(
        (other.chat_template_digest, other.tokenizer_digest),
        (profile.chat_template_digest, profile.tokenizer_digest)
    );
    assert_eq!(other.config_digest, profile.config_digest);
    let (_folder, floats, _) = file(&llama_pairs("llama"), &llama_tensors("BF16", false));
    let floats = opened(&floats).profile("polylink/tiny@1").unwrap();
    assert_eq!((&*floats.weight_quantization, &*floats.compute_dtype), ("none", "f32"));
}

/// As llama.cpp takes them: what ends an answer by its text, and what the first files of Gemma 2 left out.
#[test]
fn what_a_file_does_not_say_is_what_llama_cpp_takes() {
    let mut pairs = llama_pairs("llama");
    for (key, value) in &mut pairs {
        if let ("tokenizer.ggml.tokens", Value::Texts(tokens)) = (key.as_str(), value) {
            tokens[260] = "<|im_end|>".into();
            tokens[261] = "<|endoftext|>".into();
            tokens[262] = "<|end_of_text|>".into();
        }
    }
    let (_folder, path, _) = file(&pairs, &llama_tensors("F32", false));
    assert_eq!(opened(&path).end_tokens(), [258, 260, 261, 262]);

    let mut tensors = llama_tensors("F32", false);
    tensors.retain(|(name, ..)| name != "output.weight");
    for layer in 0..2 {
        for name in ["post_attention_norm", "post_ffw_norm"] {
            tensors.push((format!("blk.{layer}.{name}.weight"), "F32", vec![256]));
        }
    }
    let (_folder, path, _) = file(&llama_pairs("gemma2"), &tensors);
    let model = opened(&path);
    let config = model.config();
    assert_eq!((config.attention_soft_cap, config.logit_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((config.layers[0].window, config.layers[1].window), (Some(4_096), None));
}

#[test]
fn what_is_wrong_with_a_file_is_said_by_name() {
    let refusal = |pairs: &Pairs, tensors: &Tensors, precision| {
        let (_folder, path, _) = file(pairs, tensors);
        LoadedModel::open(&path, precision).unwrap_err().to_string()
    };
    let (pairs, tensors) = (llama_pairs("llama"), llama_tensors("Q8_0", false));
    let changed = |key: &str, value: Value| {
        let mut pairs = pairs.clone();
        pairs.retain(|(own, _)| own != key);
        pairs.push((key.into(), value));
        refusal(&pairs, &tensors, Precision::F32)
    };
    for (key, value, expected) in [
        ("general.architecture", Value::Text("mamba".into()), "architecture mamba"),
        ("tokenizer.ggml.pre", Value::Text("klingon".into()), "pre-tokenizer klingon"),
        ("tokenizer.ggml.model", Value::Text("t5".into()), "t5 was found"),
        ("tokenizer.ggml.merges", Value::Texts(vec!["ab".into()]), "tokenizer.ggml.merges"),
        ("tokenizer.ggml.bos_token_id", Value::Number(999), "tokenizer.ggml.bos_token_id"),
        ("tokenizer.ggml.token_type", Value::Numbers(vec![1; 3]), "3 types for 272 tokens"),
        ("llama.embedding_length", Value::Number(128), "model.embed_tokens"),
        ("llama.block_count", Value::Number(3), "model.layers.2."),
        ("llama.rope.scaling.type", Value::Text("odd".into()), "odd was found"),
        ("llama.attention.value_length", Value::Number(32), "value_length"),
        ("llama.rope.dimension_count", Value::Number(32), "llama.rope.dimension_count: 32 is not built"),
        ("llama.attention.causal", Value::Flag(false), "llama.attention.causal: false is not built"),
        ("llama.logit_scale", Value::Float(0.5), "llama.logit_scale: 0.5 is not built"),
        ("llama.rope.freq_base", Value::Float(f32::NAN), "llama.rope.freq_base: a finite number"),
        ("llama.block_count", Value::Number(1 << 24), "num_hidden_layers"),
    ] {
        let reason = changed(key, value);
        assert!(reason.contains(expected), "{key}: {expected:?} is not in {reason}");
    }
    let mut odd = tensors.clone();
    odd.push(("blk.0.attn_sinks.weight".into(), "F32", vec![4]));
    assert!(refusal(&pairs, &odd, Precision::F32).contains("blk.0.attn_sinks.weight"));
    let mut biased = tensors.clone();
    biased.push(("blk.1.ffn_down.bias".into(), "F32", vec![256]));
    assert!(refusal(&pairs, &biased, Precision::F32).contains("mlp.down_proj.bias: it is there and not zero"));
    let mut missing = tensors.clone();
    missing.remove(4);
    assert!(refusal(&pairs, &missing, Precision::F32).contains("self_attn.q_proj"));
    assert!(refusal(&pairs, &tensors, Precision::Q4_0).contains("quantised already"));
    // Cut off within the last tensor, and a scale that is no number.
    let (_folder, path, _) = file(&pairs, &tensors);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 64]).unwrap();
    let reason = LoadedModel::open(&path, Precision::F32).unwrap_err().to_string();
    assert!(reason.contains("tensor blk.1.ffn_down.weight") && reason.contains("cut off"), "{reason}");
    let mut spoilt = bytes.clone();
    let at = bytes.len() - 34;
    spoilt[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    std::fs::write(&path, spoilt).unwrap();
    let reason = Engine::start(opened(&path), small()).unwrap_err().to_string();
    assert!(reason.contains("mlp.down_proj") && reason.contains("not finite"), "{reason}");
}
