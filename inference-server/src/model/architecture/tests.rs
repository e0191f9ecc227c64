//! Configurations as the published models have them: none of their fields is refused, and what they mean.

use super::*;
use serde_json::json;

fn parse(architecture: &str, fields: Value) -> DecoderConfig {
    let mut config = json!({"architectures": [architecture], "rms_norm_eps": 1e-6, "eos_token_id": 2});
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    DecoderConfig::parse(&config).unwrap_or_else(|error| panic!("{architecture}: {error}"))
}

#[test]
fn llama_3_2_1b() {
    let config = parse(
        "LlamaForCausalLM",
        json!({"attention_bias": false, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
            "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256}),
    );
    assert_eq!((config.context_length, config.group_heads(), config.qkv_bias), (131_072, 4, false));
    assert!(config.tie_word_embeddings && config.mixture.is_none() && !config.fused);
}

#[test]
fn mistral_and_mixtral() {
    let shape = json!({"hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rope_theta": 1000000.0, "vocab_size": 32000});
    let with = |name: &str, more: Value| {
        let mut fields = shape.clone();
        more.as_object().unwrap().iter().for_each(|(name, value)| fields[name] = value.clone());
        parse(name, fields)
    };
    let first = with("MistralForCausalLM", json!({"sliding_window": 4096, "rope_theta": 10000.0}));
    assert!(first.layers.iter().all(|layer| layer.window == Some(4096)));
    let unnamed = with("MistralForCausalLM", json!({}));
    assert!(unnamed.layers.iter().all(|layer| layer.window == Some(4096)), "as the class has it");
    let later = with("MistralForCausalLM", json!({"sliding_window": null, "attention_dropout": 0.0}));
    assert!(later.layers.iter().all(|layer| layer.window.is_none()));
    let mixtral = with(
        "MixtralForCausalLM",
        json!({"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": false,
            "router_aux_loss_coef": 0.02, "sliding_window": null, "tie_word_embeddings": false}),
    );
    let mixture = mixtral.mixture.unwrap();
    assert_eq!((mixture.experts, mixture.top_k, mixture.normalise), (8, 2, true));
}

#[test]
fn qwen() {
    let qwen2 = parse(
        "Qwen2ForCausalLM",
        json!({"hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
            "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_mrope": false,
            "use_sliding_window": false, "vocab_size": 151936}),
    );
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.head_norms && qwen2.head_dim == 64);
    assert!(qwen2.layers.iter().all(|layer| layer.window.is_none()));
    let qwen3 = parse(
        "Qwen3MoeForCausalLM",
        json!({"attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
            "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
            "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
            "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
            "use_sliding_window": false, "vocab_size": 151936}),
    );
    assert!(qwen3.head_norms && !qwen3.qkv_bias && qwen3.layers.iter().all(|layer| layer.mixture));
    assert_eq!(qwen3.mixture.unwrap().intermediate_size, 768);
}

#[test]
fn gemma() {
    let mut fields = json!({"attention_bias": false, "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
            "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "sliding_window": 4096,
            "vocab_size": 256000});
    let gemma2 = parse("Gemma2ForCausalLM", fields.clone());
    assert_eq!((gemma2.attention_soft_cap, gemma2.logit_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.layers[0].window, gemma2.layers[1].window), (Some(4096), None));
    assert_eq!((gemma2.embedding_scale, gemma2.attention_scale), (48.0, 0.0625));
    assert!(gemma2.tie_word_embeddings && gemma2.post_norms && gemma2.norm_plus_one);
    for field in ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"] {
        fields.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(parse("Gemma2ForCausalLM", fields), gemma2, "what is not named is what the class has");
    let gemma3 = parse(
        "Gemma3ForCausalLM",
        json!({"attention_bias": false, "attn_logit_softcapping": null, "final_logit_softcapping": null,
            "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
            "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000,
            "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
            "vocab_size": 262144}),
    );
    let global: Vec<usize> = (0..26).filter(|&layer| gemma3.layers[layer].window.is_none()).collect();
    assert_eq!(global, [5, 11, 17, 23]);
    assert!(gemma3.layers.iter().all(|layer| layer.rope == usize::from(layer.window.is_some())));
    assert!(gemma3.ropes[0].frequencies[1] < gemma3.ropes[1].frequencies[1], "global layers turn slower");
    // The same as newer files write it.
    let mut newer = gemma3.clone();
    newer.ropes = parse(
        "Gemma3ForCausalLM",
        json!({"head_dim": 256, "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
            "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "sliding_window": 512,
            "rope_parameters": {"full_attention": {"rope_theta": 1000000, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000, "rope_type": "default"}},
            "vocab_size": 262144}),
    )
    .ropes;
    assert_eq!(newer, gemma3);
}

#[test]
fn phi() {
    let shape = json!({"attention_bias": false, "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "resid_pdrop": 0.0, "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047,
        "tie_word_embeddings": false, "vocab_size": 32064});
    let mini = parse("Phi3ForCausalLM", shape.clone());
    assert!(mini.fused && mini.head_dim == 96 && mini.layers[0].window == Some(2047));
    let mut fields = shape;
    for (name, value) in [
        ("max_position_embeddings", json!(131_072)),
        ("num_attention_heads", json!(24)),
        ("num_key_value_heads", json!(8)),
        ("partial_rotary_factor", json!(0.75)),
        ("rope_scaling", json!({"type": "longrope", "long_factor": vec![8.0; 48], "short_factor": vec![1.0; 48]})),
        ("sliding_window", json!(262_144)),
        ("tie_word_embeddings", json!(true)),
    ] {
        fields[name] = value;
    }
    let phi4 = parse("Phi3ForCausalLM", fields);
    assert_eq!((phi4.head_dim, phi4.ropes[0].frequencies.len()), (128, 48));
    assert_eq!((phi4.context_length, phi4.long_beyond, mini.long_beyond), (131_072, Some(4096), None));
    assert!((phi4.ropes[0].scale - 1.190_238).abs() < 1e-5, "√(1 + ln 32 ÷ ln 4096)");
}
