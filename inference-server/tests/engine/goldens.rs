//! Agreement with Hugging Face transformers (committed goldens, written by `models/make_goldens.py`) and with candle's
//! own Llama, computed here.

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::llama as candle_llama;
use polylink_inference_server::engine::{BackendKind, Replayer};
use polylink_inference_server::model::ChatMessage;
use serde_json::Value;

use crate::support::*;

fn golden(name: &str) -> Value {
    let file = folder("goldens").join(name);
    serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn messages(value: &Value) -> Vec<ChatMessage> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn logits_and_greedy_tokens_agree_with_transformers() {
    for name in ["pico", "nano"] {
        let model = model(name);
        let golden = golden(&format!("{name}_logits.json"));
        let mut replayer = Replayer::new(&model, BackendKind::Cpu, 1).unwrap();
        let engine = start(name, small());
        let mut worst = 0.0_f64;
        for case in golden["prompts"].as_array().unwrap() {
            let prompt_ids = ids(&case["ids"]);
            assert_eq!(model.encode_chat(&messages(&case["messages"])).unwrap(), prompt_ids);
            // Logits after token p are those that token p + 1 is drawn from: replay with a prompt of one token.
            let mut rest = prompt_ids[1..].to_vec();
            rest.push(0);
            let logits = replayer.logits(&prompt_ids[..1], &rest).unwrap();
            for top in case["top"].as_array().unwrap() {
                let row = &logits[top["position"].as_u64().unwrap() as usize];
                for (id, expected) in ids(&top["ids"]).iter().zip(top["logits"].as_array().unwrap()) {
                    let error = (f64::from(row[*id as usize]) - expected.as_f64().unwrap()).abs();
                    worst = worst.max(error);
                    assert!(error < 2e-4, "{name}: token {id}: {} instead of {expected}", row[*id as usize]);
                }
            }
            let greedy = ids(&case["greedy"]);
            let sampling = polylink_protocol::market_v1::Sampling { max_tokens: greedy.len() as u32, ..sampling() };
            let answer = run(&engine, request(prompt_ids, sampling, 0));
            assert_eq!(answer.choices[0].ids(), greedy, "{name}: {}", case["messages"]);
        }
        println!("{name}: largest error of a logit against transformers {worst:.2e}");
    }
}

#[test]
fn chat_templates_and_token_ids_agree_with_transformers() {
    let model = model("nano");
    let template = model.chat_template().unwrap();
    let mut compared = 0;
    for case in golden("chat_template.json")["conversations"].as_array().unwrap() {
        if case["add_generation_prompt"] == true {
            let messages = messages(&case["messages"]);
            assert_eq!(template.render(&messages.as_slice().into()).unwrap(), case["text"].as_str().unwrap());
            assert_eq!(model.encode_chat(&messages).unwrap(), ids(&case["ids"]));
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn logits_agree_with_candle() {
    for name in ["pico", "nano"] {
        let config = std::fs::read(folder(name).join("config.json")).unwrap();
        let config: candle_llama::LlamaConfig = serde_json::from_slice(&config).unwrap();
        let config = config.into_config(false);
        let tensors = candle_core::safetensors::load(folder(name).join("model.safetensors"), &Device::Cpu).unwrap();
        let variables = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let candle = candle_llama::Llama::load(variables, &config).unwrap();
        let tokens = prompt(4, 40);
        let mut replayer = Replayer::new(&model(name), BackendKind::Cpu, 1).unwrap();
        let own = replayer.logits(&tokens[..1], &tokens[1..]).unwrap();
        let mut worst = 0.0_f32;
        for length in [1, 2, 17, 39] {
            let mut cache = candle_llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let input = Tensor::new(&tokens[..length], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let theirs: Vec<f32> =
                candle.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
            for (own, theirs) in own[length - 1].iter().zip(theirs) {
                worst = worst.max((own - theirs).abs());
            }
        }
        println!("{name}: largest error of a logit against candle {worst:.2e}");
        assert!(worst < 2e-4, "{name}: {worst}");
    }
}
