//! Every architecture against Hugging Face transformers, on tiny models with made-up weights (`tiny`): logits, greedy
//! tokens, the same bits whatever the file's type, the backend or the split, and what is refused by name.

use std::fs;

use polylink_inference_server::engine::{BackendKind, Engine, Replayer};
use polylink_inference_server::model::{LoadedModel, Precision};
use polylink_protocol::Digest;
use polylink_protocol::market_v1::Sampling;
use serde_json::{Map, Value, json};

use crate::split::{bits, peer_thread, split_over};
use crate::support::*;
use crate::tiny::{FileType, Golden, goldens};

/// Logits after every token of prompt and greedy answer but the last.
pub fn logits(model: &LoadedModel, golden: &Golden, kind: BackendKind) -> Vec<Vec<f32>> {
    let tokens = [golden.tokens("prompt"), golden.tokens("greedy")].concat();
    Replayer::new(model, kind, 1).unwrap().logits(&tokens[..1], &tokens[1..]).unwrap()
}

pub fn bits_of(logits: &[Vec<f32>]) -> Vec<u32> {
    logits.iter().flatten().map(|logit| logit.to_bits()).collect()
}

/// Errors against the f64 logits: root mean square, largest, and the median of the rows' root mean squares.
fn errors(found: &[Vec<f32>], golden: &Golden) -> [(&'static str, f64); 3] {
    let stride = golden.value["stride"].as_u64().unwrap() as usize;
    let rows = golden.value["rows"].as_array().unwrap().iter().zip(golden.value["logits"].as_array().unwrap());
    let (mut worst, mut count, mut squares) = (0f64, 0, Vec::new());
    for (row, expected) in rows {
        let mut sum = 0.0;
        let expected = expected.as_array().unwrap();
        let found = found[row.as_u64().unwrap() as usize].iter().step_by(stride);
        for (found, expected) in found.zip(expected) {
            let error = (f64::from(*found) - expected.as_f64().unwrap()).abs();
            (sum, worst, count) = (sum + error * error, worst.max(error), count + 1);
        }
        squares.push(sum / expected.len() as f64);
    }
    assert!(count >= 100, "{}: enough logits are compared", golden.name);
    squares.sort_by(f64::total_cmp);
    let mean = squares.iter().sum::<f64>() / squares.len() as f64;
    [("rms", mean.sqrt()), ("max", worst), ("median", squares[squares.len() / 2].sqrt())]
}

pub fn assert_as_good_as_transformers(found: &[Vec<f32>], golden: &Golden, dtype: &str) {
    // In bf16 some row is near a tie between two experts and takes the other one, with transformers as with us: what
    // follows from that is no rounding error, so mixtures are held to the median row.
    let mixture = golden.name.contains("moe") || golden.name.contains("mixtral");
    for (measure, ours) in errors(found, golden) {
        let theirs = golden.value["transformers"][dtype][measure].as_f64().unwrap();
        println!("{:17} {dtype:4} {measure:6}: {ours:.1e}, {:.2} of theirs", golden.name, ours / theirs);
        let held = dtype == "f32" || !mixture || measure == "median";
        assert!(!held || ours <= 1.5 * theirs, "{} {dtype} {measure}: {ours:e} against {theirs:e}", golden.name);
    }
}

#[test]
fn logits_and_greedy_tokens_of_every_architecture_agree_with_transformers() {
    let goldens = goldens();
    assert!(goldens.len() >= 17, "the goldens are there");
    for golden in &goldens {
        let model = golden.open(FileType::F32, Precision::F32);
        let exact = logits(&model, golden, BackendKind::Cpu);
        assert_as_good_as_transformers(&exact, golden, "f32");
        let expected = golden.tokens("greedy");
        let engine = Engine::start(model, small()).unwrap();
        let sampling = Sampling { max_tokens: expected.len() as u32, ..sampling() };
        let answer = run(&engine, request(golden.tokens("prompt"), sampling, 0));
        assert_eq!(answer.choices[0].ids(), expected, "{}", golden.name);
        // The same values in another type of file are the same model.
        for file_type in [FileType::Bf16, FileType::F16] {
            let found = logits(&golden.open(file_type, Precision::F32), golden, BackendKind::Cpu);
            assert!(bits_of(&found) == bits_of(&exact), "{} from a file of {file_type:?}", golden.name);
        }
        let rounded = logits(&golden.open(FileType::Bf16, Precision::Bf16), golden, BackendKind::Cpu);
        assert_as_good_as_transformers(&rounded, golden, "bf16");
    }
}

/// Digests of all logits, a line per architecture and precision. To write them anew after a change of the numerics'
/// version: `POLYLINK_WRITE_GOLDEN=1 cargo test -p polylink-inference-server --test engine architectures`.
const BITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/architecture_bits.txt");

#[test]
fn every_architecture_has_the_pinned_bits_on_both_backends() {
    let mut lines = String::new();
    for golden in goldens() {
        for precision in [Precision::F32, Precision::Q8_0] {
            let model = golden.open(FileType::Bf16, precision);
            let [packed, plain] = [BackendKind::Cpu, BackendKind::Reference].map(|kind| logits(&model, &golden, kind));
            assert!(bits_of(&packed) == bits_of(&plain), "{} {precision:?}", golden.name);
            let bytes: Vec<u8> = bits_of(&plain).into_iter().flat_map(u32::to_le_bytes).collect();
            lines += &format!("{} {precision:?} {}\n", golden.name, &Digest::of(&bytes).to_string()[..32]);
        }
    }
    if std::env::var_os("POLYLINK_WRITE_GOLDEN").is_some() {
        fs::write(BITS, &lines).unwrap();
    }
    let pinned = fs::read_to_string(BITS).unwrap();
    lines.lines().zip(pinned.lines()).for_each(|(found, pinned)| assert_eq!(found, pinned));
    assert_eq!(lines.lines().count(), pinned.lines().count());
}

#[test]
fn every_architecture_has_the_same_bits_split_over_two_devices() {
    for golden in goldens() {
        let precision = if golden.name.contains("moe") { Precision::Q8_0 } else { Precision::F32 };
        let model = golden.open(FileType::Bf16, precision);
        let alone = Engine::start(model.clone(), small()).unwrap();
        let split = split_over(&[1, 1], &[peer_thread(model.clone())]);
        let split = Engine::start(model, split).unwrap();
        let prompt = golden.tokens("prompt");
        assert_eq!(bits(&split, prompt.clone()), bits(&alone, prompt), "{}", golden.name);
    }
}

/// The same model as the text part of a multimodal one, with either way of naming tensors, and a picture's tensors beside it.
#[test]
fn the_text_part_of_a_multimodal_model_is_the_same_model() {
    let goldens = goldens();
    let golden = goldens.iter().find(|golden| golden.name == "gemma3").unwrap();
    let expected = bits_of(&logits(&golden.open(FileType::Bf16, Precision::F32), golden, BackendKind::Cpu));
    for (model, head) in [("language_model.model.", "language_model."), ("model.language_model.", "")] {
        let folder = golden.write(FileType::Bf16);
        let mut text = golden.value["config"].clone();
        text.as_object_mut().unwrap().retain(|field, _| !["architectures", "eos_token_id"].contains(&field.as_str()));
        let mut config = json!({
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": golden.value["config"]["eos_token_id"],
            "vision_config": {"hidden_size": 8},
            "text_config": text,
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let file = folder.path().join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..][..header_bytes]).unwrap();
        let renamed = header.into_iter().map(|(name, place)| match name.strip_prefix("model.") {
            Some(rest) => (format!("{model}{rest}"), place),
            None => (format!("{head}{name}"), place),
        });
        let mut header: Map<String, Value> = renamed.collect();
        let data = &bytes[8 + header_bytes..];
        let offsets = [data.len(), data.len() + 2];
        header.insert("vision_tower.patch".into(), json!({"dtype": "BF16", "shape": [1], "data_offsets": offsets}));
        let header = Value::from(header).to_string();
        let file_bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data, &[0, 0]];
        fs::write(&file, file_bytes.concat()).unwrap();
        let opened = LoadedModel::open(folder.path(), Precision::F32).unwrap();
        assert!(bits_of(&logits(&opened, golden, BackendKind::Cpu)) == expected, "{model}");
        config["text_config"] = Value::Null;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = LoadedModel::open(folder.path(), Precision::F32).unwrap_err().to_string();
        assert!(error.contains("text_config"), "{error}");
    }
}

#[test]
fn what_an_architecture_does_not_have_is_refused_by_field() {
    let goldens = goldens();
    for (name, field, value, expected) in [
        ("llama", "architectures", json!(["MambaForCausalLM"]), "LlamaForCausalLM, MistralForCausalLM"),
        ("mistral", "attention_bias", json!(true), "attention_bias: MistralForCausalLM is built without it"),
        ("llama", "final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("gemma3", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("gemma3", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("gemma2", "hidden_activation", json!("relu"), "hidden_activation: silu or gelu_pytorch_tanh"),
        ("gemma2", "layer_types", json!(["chunked_attention"]), "layer_types"),
        ("gemma2", "layer_types", json!(["full_attention"]), "1 layers are named, there are 4"),
        ("mixtral", "num_experts_per_tok", json!(5), "num_experts_per_tok: there are only 4 experts"),
        ("mixtral", "num_local_experts", json!(5), "config.json asks for [5, 64]"),
        ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("phi3", "partial_rotary_factor", json!(2.0), "partial_rotary_factor"),
        ("llama", "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        ("qwen2", "rope_scaling", json!({"type": "mrope"}), "mrope was found"),
        ("llama", "quantization_config", json!({"quant_method": "none"}), "quantization_config"),
        ("qwen3", "attention_bias", json!(true), "self_attn.q_proj.bias"),
        ("llama_biases", "attention_bias", json!(false), "self_attn.k_proj.bias: it is there and not zero"),
        ("llama_biases", "mlp_bias", json!(false), "mlp.down_proj.bias: it is there and not zero"),
        ("llama", "rope_scaling", json!("yarn"), "an object is expected"),
        ("llama", "num_hidden_layers", json!(1 << 24), "num_hidden_layers: a number of 1 to 4096"),
        ("mixtral", "num_local_experts", json!(1 << 24), "num_local_experts: a number of 1 to 4096"),
    ] {
        let golden = goldens.iter().find(|golden| golden.name == name).unwrap();
        let folder = golden.write(FileType::Bf16);
        let mut config: Value = golden.value["config"].clone();
        config[field] = value;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = LoadedModel::open(folder.path(), Precision::F32).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
}
