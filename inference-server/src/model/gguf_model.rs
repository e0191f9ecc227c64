//! A GGUF's metadata and tensors in Hugging Face's terms: the `config.json` that its model would have, and its tensors
//! under the names that the decoder asks for.
//!
//! The same parser then checks the one as it checks a folder's. Keys and names are those of llama.cpp (`gguf-py`'s
//! `constants.py` and `tensor_mapping.py`). What a file holds otherwise than a folder is undone while it is read: llama
//! files have the rows of q and k as pairs, Gemma's norms are 1 + weight, the experts of a layer lie in one tensor.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::error::ModelError;
use super::gguf::{Gguf, GgufTensor};
use super::weights::{Reading, TensorPlace};

/// llama.cpp's names of what is built, and `transformers`'.
const ARCHITECTURES: [(&str, &str); 7] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("qwen3moe", "Qwen3MoeForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "Gemma3ForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
];

/// Tensors that the configuration takes up.
const ROPE_TENSORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// The metadata of one file.
pub(super) struct Description<'a> {
    gguf: &'a Gguf,
    /// As llama.cpp calls it.
    architecture: String,
    mixture: bool,
}

fn wrong(key: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Metadata { key: key.into(), reason: reason.into() }
}

impl<'a> Description<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Result<Self, ModelError> {
        let architecture = gguf.metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("(none named)");
        let architecture = architecture.to_owned();
        if !ARCHITECTURES.iter().any(|(name, _)| *name == architecture) {
            let supported = format!("{} of GGUF files", ARCHITECTURES.map(|(name, _)| name).join(", "));
            return Err(ModelError::Architecture { architecture, supported });
        }
        let mut description = Self { gguf, architecture, mixture: false };
        description.mixture = description.own("expert_count")?.as_u64().unwrap_or(0) > 0;
        Ok(description)
    }

    /// A key of the architecture; a list of equal values stands for one of them.
    fn own(&self, key: &str) -> Result<Value, ModelError> {
        let key = format!("{}.{key}", self.architecture);
        match self.gguf.metadata.get(&key) {
            None => Ok(Value::Null),
            Some(Value::Array(values)) if !values.is_empty() && values.iter().all(|value| *value == values[0]) => {
                Ok(values[0].clone())
            }
            Some(Value::Array(_)) => Err(wrong(&key, "another value for each layer is not built")),
            // A float that is no number.
            Some(Value::Null) => Err(wrong(&key, "a finite number is expected")),
            Some(value) => Ok(value.clone()),
        }
    }

    /// Refuses what would change the model and is not built; other keys that are not read say nothing of its values.
    fn refuse_others(&self, head_dim: u64) -> Result<(), ModelError> {
        let refuse = |key: &str, good: &dyn Fn(&Value) -> bool| match self.own(key)? {
            value if value.is_null() || good(&value) => Ok(()),
            value => Err(wrong(&format!("{}.{key}", self.architecture), format!("{value} is not built"))),
        };
        let one = |value: &Value| value.as_f64() == Some(1.0);
        refuse("attention.causal", &|value| value == true)?;
        for key in ["attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias"] {
            refuse(key, &|value| value.as_f64() == Some(0.0))?;
        }
        for key in ["logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale"] {
            refuse(key, &|value| one(value) || value.as_f64() == Some(0.0))?;
        }
        // Softmax is the first of llama.cpp's kinds of gates.
        refuse("expert_gating_func", &one)?;
        if self.architecture != "phi3" {
            refuse("rope.dimension_count", &|value| *value == head_dim)?;
        }
        Ok(())
    }

    fn size(&self, key: &str) -> Result<u64, ModelError> {
        let value = self.own(key)?;
        let key = || format!("{}.{key}", self.architecture);
        value.as_u64().filter(|n| *n > 0).ok_or_else(|| wrong(&key(), format!("a size is expected, {value} was found")))
    }

    fn tensor(&self, name: &str) -> Option<&'a GgufTensor> {
        self.gguf.tensors.iter().find(|tensor| tensor.name == name)
    }

    fn head_dim(&self) -> Result<u64, ModelError> {
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = self.own("attention.key_length")?.as_u64().unwrap_or(hidden / heads);
        match self.own("attention.value_length")?.as_u64() {
            Some(length) if length != head_dim => {
                Err(wrong("attention.value_length", format!("{head_dim}, as long as keys are, is expected")))
            }
            _ => Ok(head_dim),
        }
    }

    /// The `config.json` of a folder with this model. `factors` reads a tensor of RoPE factors.
    pub(super) fn config(
        &self,
        end_tokens: &[u32],
        factors: impl Fn(&GgufTensor) -> Result<Vec<f32>, ModelError>,
    ) -> Result<Value, ModelError> {
        let embedding = self.tensor("token_embd.weight").filter(|tensor| tensor.shape.len() == 2);
        let embedding = embedding.ok_or_else(|| ModelError::Tensor {
            tensor: "token_embd.weight".into(),
            reason: "it is missing; a matrix of one row per token is expected".into(),
        })?;
        let (hidden, heads, head_dim) =
            (self.size("embedding_length")?, self.size("attention.head_count")?, self.head_dim()?);
        self.refuse_others(head_dim)?;
        let positions = self.size("context_length")?;
        let name = ARCHITECTURES.iter().find(|(name, _)| *name == self.architecture).map(|(_, name)| *name);
        let name = if self.architecture == "llama" && self.mixture { Some("MixtralForCausalLM") } else { name };
        let layers = self.size("block_count")?;
        let kv_heads = self.own("attention.head_count_kv")?;
        let mut config = json!({
            "architectures": [name],
            "vocab_size": embedding.shape[0],
            "hidden_size": hidden,
            "intermediate_size": self.own("feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": if kv_heads.is_null() { heads.into() } else { kv_heads },
            "head_dim": head_dim,
            "max_position_embeddings": positions,
            "rms_norm_eps": self.own("attention.layer_norm_rms_epsilon")?,
            "tie_word_embeddings": self.tensor("output.weight").is_none(),
            "eos_token_id": end_tokens,
            "hidden_act": "silu",
        });
        let mut set = |key: &str, value: Value| _ = config.as_object_mut().map(|map| map.insert(key.into(), value));
        set("rope_theta", self.own("rope.freq_base")?);
        let scaling = self.rope_scaling(positions, factors)?;
        if !scaling.is_empty() {
            set("rope_scaling", scaling.into());
        }
        let window = self.own("attention.sliding_window")?;
        match self.architecture.as_str() {
            "llama" if !self.mixture => {
                set("attention_bias", self.tensor("blk.0.attn_q.bias").is_some().into());
                set("mlp_bias", self.tensor("blk.0.ffn_up.bias").is_some().into());
            }
            "llama" => {
                set("num_local_experts", self.size("expert_count")?.into());
                set("num_experts_per_tok", self.size("expert_used_count")?.into());
            }
            "qwen3moe" => {
                set("num_experts", self.size("expert_count")?.into());
                set("num_experts_per_tok", self.size("expert_used_count")?.into());
                set("moe_intermediate_size", self.size("expert_feed_forward_length")?.into());
                set("norm_topk_prob", true.into());
                if self.own("feed_forward_length")?.is_null() {
                    set("intermediate_size", self.size("expert_feed_forward_length")?.into());
                }
            }
            "gemma2" | "gemma3" => {
                set("hidden_act", Value::Null);
                set("hidden_activation", "gelu_pytorch_tanh".into());
                // The largest model of each family divides by another width.
                let largest = if self.architecture == "gemma2" { 46 } else { 62 };
                set("query_pre_attn_scalar", if layers == largest { hidden / heads } else { head_dim }.into());
                if self.architecture == "gemma2" {
                    // The first files of the family do not name what all of it has.
                    let or = |value: Value, missing: Value| if value.is_null() { missing } else { value };
                    set("sliding_window", or(window, 4_096.into()));
                    for (key, missing) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
                        set(key, or(self.own(key)?, missing.into()));
                    }
                } else {
                    set("sliding_window", window);
                    let local = self.own("rope.freq_base_swa")?;
                    set("rope_local_base_freq", if local.is_null() { 10_000.into() } else { local });
                }
            }
            "phi3" => {
                set("sliding_window", window);
                let turned = self.own("rope.dimension_count")?.as_u64().unwrap_or(head_dim);
                set("partial_rotary_factor", (turned as f64 / head_dim as f64).into());
            }
            _ => {}
        }
        Ok(config)
    }

    /// `rope_scaling`, empty if there is none.
    fn rope_scaling(
        &self,
        positions: u64,
        factors: impl Fn(&GgufTensor) -> Result<Vec<f32>, ModelError>,
    ) -> Result<Map<String, Value>, ModelError> {
        let mut scaling = Map::new();
        let original = self.own("rope.scaling.original_context_length")?;
        // Factors of Llama 3 are of all positions; those of Phi 3 of the positions it was first trained for.
        if let Some(tensor) = self.tensor("rope_freqs.weight") {
            let factors = factors(tensor)?;
            scaling.insert("rope_type".into(), "longrope".into());
            scaling.insert("short_factor".into(), factors.clone().into());
            scaling.insert("long_factor".into(), factors.into());
            scaling.insert("attention_factor".into(), 1.into());
            scaling.insert("original_max_position_embeddings".into(), positions.into());
            return Ok(scaling);
        }
        if let Some(short) = self.tensor("rope_factors_short.weight") {
            let long = self.tensor("rope_factors_long.weight").unwrap_or(short);
            scaling.insert("rope_type".into(), "longrope".into());
            scaling.insert("short_factor".into(), factors(short)?.into());
            scaling.insert("long_factor".into(), factors(long)?.into());
            scaling.insert("original_max_position_embeddings".into(), original);
            let scale = self.own("rope.scaling.attn_factor")?;
            if !scale.is_null() {
                scaling.insert("attention_factor".into(), scale);
            }
            return Ok(scaling);
        }
        let kind = self.own("rope.scaling.type")?;
        match kind.as_str() {
            None | Some("none") => {}
            Some("linear") => _ = scaling.insert("rope_type".into(), "linear".into()),
            Some("yarn") => {
                scaling.insert("rope_type".into(), "yarn".into());
                for (from, to) in [
                    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
                    ("rope.scaling.yarn_beta_fast", "beta_fast"),
                    ("rope.scaling.yarn_beta_slow", "beta_slow"),
                ] {
                    let value = self.own(from)?;
                    if !value.is_null() {
                        scaling.insert(to.into(), value);
                    }
                }
            }
            Some(other) => {
                return Err(wrong("rope.scaling.type", format!("none, linear and yarn are built, {other} was found")));
            }
        }
        if !scaling.is_empty() {
            scaling.insert("factor".into(), self.own("rope.scaling.factor")?);
        }
        Ok(scaling)
    }

    /// All tensors under the names of a folder.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, TensorPlace>, ModelError> {
        let head_dim = self.head_dim()? as usize;
        let mut all = BTreeMap::new();
        for tensor in &self.gguf.tensors {
            if ROPE_TENSORS.contains(&tensor.name.as_str()) {
                continue;
            }
            for (name, place) in self.places(tensor, head_dim)? {
                if all.insert(name, place).is_some() {
                    return Err(refuse(tensor, "another tensor of the file means the same"));
                }
            }
        }
        Ok(all)
    }

    /// What one tensor is: itself under another name, or the experts of a layer.
    fn places(&self, tensor: &GgufTensor, head_dim: usize) -> Result<Vec<(String, TensorPlace)>, ModelError> {
        let unknown = || refuse(tensor, &format!("it is none of a {} model that is known here", self.architecture));
        let plain = TensorPlace {
            shard: 0,
            offset: tensor.offset,
            bytes: tensor.bytes,
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            reading: Reading::Plain,
        };
        let gemma = self.architecture.starts_with("gemma");
        let plus_one = gemma && tensor.name.contains("norm");
        let reading = if plus_one { Reading::PlusOne } else { Reading::Plain };
        if plus_one && tensor.dtype != polylink_kernels::Dtype::F32 {
            return Err(refuse(tensor, "a norm in f32 is expected"));
        }
        let global = match tensor.name.as_str() {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output.weight" => Some("lm_head.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            _ => None,
        };
        if let Some(name) = global {
            return Ok(vec![(name.into(), TensorPlace { reading, ..plain })]);
        }
        let (layer, rest) =
            tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let (part, ending) = rest.rsplit_once('.').ok_or_else(unknown)?;
        if layer.parse::<u32>().is_err() || !matches!(ending, "weight" | "bias") {
            return Err(unknown());
        }
        let layer = format!("model.layers.{layer}");
        if let Some(experts) = self.expert_names(part) {
            return self.experts(tensor, &layer, experts, &plain);
        }
        let interleaved = self.architecture == "llama" && matches!(part, "attn_q" | "attn_k");
        let reading = if interleaved { Reading::Interleaved { head_dim } } else { reading };
        if interleaved && (!head_dim.is_multiple_of(2) || !tensor.shape[0].is_multiple_of(head_dim)) {
            return Err(refuse(tensor, &format!("its rows are no whole heads of {head_dim}")));
        }
        let name = self.layer_name(part).ok_or_else(unknown)?;
        Ok(vec![(format!("{layer}.{name}.{ending}"), TensorPlace { reading, ..plain })])
    }

    fn layer_name(&self, part: &str) -> Option<&'static str> {
        let (gemma, phi) = (self.architecture.starts_with("gemma"), self.architecture == "phi3");
        Some(match part {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_qkv" if phi => "self_attn.qkv_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_norm" if gemma => "pre_feedforward_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "post_attention_norm" if gemma => "post_attention_layernorm",
            "post_ffw_norm" if gemma => "post_feedforward_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" if phi => "mlp.gate_up_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "ffn_gate_inp" if self.architecture == "qwen3moe" => "mlp.gate",
            "ffn_gate_inp" if self.mixture => "block_sparse_moe.gate",
            _ => return None,
        })
    }

    /// Where the experts of a layer lie in a folder, and what this projection of them is called.
    fn expert_names(&self, part: &str) -> Option<(&'static str, &'static str)> {
        let qwen = self.architecture == "qwen3moe";
        let names = match part {
            "ffn_gate_exps" => ["gate_proj", "w1"],
            "ffn_up_exps" => ["up_proj", "w3"],
            "ffn_down_exps" => ["down_proj", "w2"],
            _ => return None,
        };
        self.mixture.then_some(if qwen { ("mlp.experts", names[0]) } else { ("block_sparse_moe.experts", names[1]) })
    }

    fn experts(
        &self,
        tensor: &GgufTensor,
        layer: &str,
        (prefix, projection): (&str, &str),
        plain: &TensorPlace,
    ) -> Result<Vec<(String, TensorPlace)>, ModelError> {
        let &[experts, n, k] = &tensor.shape[..] else {
            return Err(refuse(tensor, "three dimensions are expected: experts, outputs, inputs"));
        };
        let bytes = tensor.bytes / experts;
        let place = |expert: usize| TensorPlace {
            offset: tensor.offset + (expert * bytes) as u64,
            bytes,
            shape: vec![n, k],
            ..plain.clone()
        };
        Ok((0..experts).map(|e| (format!("{layer}.{prefix}.{e}.{projection}.weight"), place(e))).collect())
    }
}

fn refuse(tensor: &GgufTensor, reason: &str) -> ModelError {
    ModelError::Tensor { tensor: tensor.name.clone(), reason: reason.into() }
}
