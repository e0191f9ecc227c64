"""Tiny configurations of every architecture, as their `config.json` files look: each RoPE variant, windows shorter than
the sequence, grouped queries, biases, tied and untied heads, mixtures of experts."""

VOCABULARY = 160

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def made(architecture: str, model_type: str, **fields) -> dict:
    return {"architectures": [architecture], "model_type": model_type, **SHAPE, **fields}


def llama(**fields) -> dict:
    return made("LlamaForCausalLM", "llama", hidden_act="silu", **{"rope_theta": 10000.0, **fields})


GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "rms_norm_eps": 1e-6,
}

LONG = {
    "type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.0 + 3.0 * i for i in range(12)],
}

CASES = {
    "llama": llama(),
    "llama_biases": llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=4, head_dim=32),
    "llama_llama3": llama(
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama_linear": llama(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_dynamic": llama(max_position_embeddings=64, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama_parameters": {
        **{key: value for key, value in llama().items() if key != "rope_theta"},
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    },
    "mistral": made("MistralForCausalLM", "mistral", hidden_act="silu", rope_theta=10000.0, sliding_window=12, head_dim=32),
    "mixtral": made(
        "MixtralForCausalLM",
        "mixtral",
        hidden_act="silu",
        rope_theta=1000000.0,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen2": made(
        "Qwen2ForCausalLM", "qwen2", hidden_act="silu", rope_theta=1000000.0, tie_word_embeddings=True, use_sliding_window=False
    ),
    "qwen2_yarn": made(
        "Qwen2ForCausalLM",
        "qwen2",
        hidden_act="silu",
        rope_theta=1000000.0,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    ),
    "qwen3": made(
        "Qwen3ForCausalLM", "qwen3", hidden_act="silu", rope_theta=1000000.0, head_dim=32, tie_word_embeddings=True, rms_norm_eps=1e-6
    ),
    "qwen3_moe": made(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        hidden_act="silu",
        rope_theta=1000000.0,
        head_dim=32,
        num_hidden_layers=3,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
    ),
    "qwen3_moe_raw": made(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        hidden_act="silu",
        rope_theta=1000000.0,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
    "gemma2": made(
        "Gemma2ForCausalLM",
        "gemma2",
        rope_theta=10000.0,
        sliding_window=16,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=1.0,
        **GEMMA,
    ),
    "gemma3": made(
        "Gemma3ForCausalLM",
        "gemma3_text",
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=12,
        sliding_window_pattern=2,
        **GEMMA,
    ),
    "phi3": made("Phi3ForCausalLM", "phi3", hidden_act="silu", rope_theta=10000.0, sliding_window=20, original_max_position_embeddings=256),
    "phi3_long": made(
        "Phi3ForCausalLM",
        "phi3",
        hidden_act="silu",
        rope_theta=10000.0,
        num_attention_heads=2,
        num_key_value_heads=2,
        partial_rotary_factor=0.75,
        rope_scaling=LONG,
        original_max_position_embeddings=64,
        tie_word_embeddings=True,
    ),
}
