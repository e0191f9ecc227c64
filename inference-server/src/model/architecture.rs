//! Which architectures there are: a table from the names in `config.json` to what each adds to a Llama, and the
//! configuration that results, checked field by field.
//!
//! One decoder definition ([`super::decoder`]) is driven by [`DecoderConfig`] alone; it never asks for a name. What a
//! field means follows `transformers`' classes of the same names. A field that asks for something that is not built is
//! refused, never passed over.

use polylink_kernels::{Activation, RopeSpec};
use serde_json::Value;

use super::config::{flag, positive, refuse_unless, set, size, size_or, size_within, token_ids, with_unnamed, wrong};
use super::error::ModelError;
use super::rope;

/// Most layers, and most experts of one.
const LAYERS_MAX: u64 = 4_096;

/// Which projections of attention have biases.
#[derive(Clone, Copy, PartialEq)]
enum Biases {
    Never,
    /// q, k and v always have.
    Qkv,
    /// All four have if `attention_bias` says so.
    Asked,
}

/// Which layers see only a window.
#[derive(Clone, Copy, PartialEq)]
enum Windows {
    Never,
    /// All, if `sliding_window` is set.
    All,
    /// All, if `use_sliding_window` and `sliding_window` are set.
    AllIfUsed,
    /// As `layer_types` says; without it those from `max_window_layers` on, if `use_sliding_window` is set.
    LaterIfUsed,
    /// As `layer_types` says; without it all but every n-th (`sliding_window_pattern`, or this).
    Interleaved(usize),
}

/// Where the experts of a mixture lie.
#[derive(Clone, Copy, PartialEq)]
enum Mixture {
    None,
    Mixtral,
    Qwen3,
}

/// What an architecture adds to a Llama.
struct Architecture {
    name: &'static str,
    biases: Biases,
    mlp_bias: bool,
    head_norms: bool,
    windows: Windows,
    mixture: Mixture,
    /// Scaled embedding, norms by 1 + weight, a norm after each block, GELU, `query_pre_attn_scalar`.
    gemma: bool,
    soft_caps: bool,
    /// `rope_local_base_freq`, or `rope_parameters` by kind of layer.
    local_rope: bool,
    /// q, k, v in one tensor, gate and up in another; `partial_rotary_factor`.
    phi: bool,
    rope_theta: f64,
}

const LLAMA: Architecture = Architecture {
    name: "LlamaForCausalLM",
    biases: Biases::Asked,
    mlp_bias: true,
    head_norms: false,
    windows: Windows::Never,
    mixture: Mixture::None,
    gemma: false,
    soft_caps: false,
    local_rope: false,
    phi: false,
    rope_theta: 10_000.0,
};

const PLAIN: Architecture = Architecture { biases: Biases::Never, mlp_bias: false, ..LLAMA };

const ARCHITECTURES: [Architecture; 9] = [
    LLAMA,
    Architecture { name: "MistralForCausalLM", windows: Windows::All, ..PLAIN },
    Architecture {
        name: "MixtralForCausalLM",
        windows: Windows::All,
        mixture: Mixture::Mixtral,
        rope_theta: 1e6,
        ..PLAIN
    },
    Architecture { name: "Qwen2ForCausalLM", biases: Biases::Qkv, windows: Windows::LaterIfUsed, ..PLAIN },
    Architecture {
        name: "Qwen3ForCausalLM",
        biases: Biases::Asked,
        head_norms: true,
        windows: Windows::LaterIfUsed,
        ..PLAIN
    },
    Architecture {
        name: "Qwen3MoeForCausalLM",
        biases: Biases::Asked,
        head_norms: true,
        windows: Windows::AllIfUsed,
        mixture: Mixture::Qwen3,
        ..PLAIN
    },
    Architecture {
        name: "Gemma2ForCausalLM",
        biases: Biases::Asked,
        windows: Windows::Interleaved(2),
        gemma: true,
        soft_caps: true,
        ..PLAIN
    },
    Architecture {
        name: "Gemma3ForCausalLM",
        biases: Biases::Asked,
        head_norms: true,
        windows: Windows::Interleaved(6),
        gemma: true,
        local_rope: true,
        rope_theta: 1e6,
        ..PLAIN
    },
    Architecture { name: "Phi3ForCausalLM", windows: Windows::All, phi: true, ..PLAIN },
];

/// What one layer has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Positions that attention sees; `None`: all.
    pub window: Option<usize>,
    /// Its table among [`DecoderConfig::ropes`].
    pub rope: usize,
    /// It has a mixture of experts in place of the MLP.
    pub mixture: bool,
}

/// The mixtures of experts of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixtureConfig {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Their probabilities are divided by their sum.
    pub normalise: bool,
    /// Width of one expert's MLP.
    pub intermediate_size: usize,
    /// What the layers' tensors start with.
    pub prefix: &'static str,
    /// Names of an expert's gate, up and down projections.
    pub projections: [&'static str; 3],
}

/// A decoder's shape, in Hugging Face's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// As `config.json` names it.
    pub architecture: &'static str,
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// KV heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Prompt and completion together: `max_position_embeddings`, or as far as the RoPE variant reaches.
    pub context_length: usize,
    /// LongRoPE: sequences of more tokens are turned by other frequencies, from their first token on.
    pub long_beyond: Option<usize>,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// Norms multiply by 1 + weight, as the files of Gemma hold them.
    pub norm_plus_one: bool,
    /// The outputs of attention and MLP are normalised before they are added.
    pub post_norms: bool,
    /// Query and key heads are normalised.
    pub head_norms: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The output projection has a bias.
    pub output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// q, k, v lie in one tensor, gate and up in another.
    pub fused: bool,
    /// The gate's function.
    pub activation: Activation,
    /// Multiplies the embedding.
    pub embedding_scale: f32,
    /// Multiplies q·k.
    pub attention_scale: f32,
    /// Bound of attention scores.
    pub attention_soft_cap: Option<f32>,
    /// Bound of logits.
    pub logit_soft_cap: Option<f32>,
    /// RoPE tables that the layers name.
    pub ropes: Vec<RopeSpec>,
    /// One per layer.
    pub layers: Vec<LayerConfig>,
    /// The mixtures of experts, if some layer has one.
    pub mixture: Option<MixtureConfig>,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// End tokens named here, if any.
    pub eos_token_ids: Vec<u32>,
}

/// The RoPE tables, which of them each layer uses, how far they reach, and where their long sets begin.
struct Ropes {
    specs: Vec<RopeSpec>,
    tables: Vec<usize>,
    reach: usize,
    long_beyond: Option<usize>,
}

impl Architecture {
    fn of(config: &Value) -> Result<&'static Self, ModelError> {
        let name = config["architectures"][0].as_str().unwrap_or("(none named)");
        ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
            let supported = ARCHITECTURES.each_ref().map(|known| known.name).join(", ");
            let supported = format!("{supported}, Gemma3ForConditionalGeneration (its text part)");
            ModelError::Architecture { architecture: name.into(), supported }
        })
    }

    /// Refuses what this architecture does not have, and what is not built.
    fn refuse_others(&self, config: &Value) -> Result<(), ModelError> {
        let without = |has: bool, field: &str| {
            let reason = format!("{} is built without it", self.name);
            if has { Ok(()) } else { refuse_unless(config, field, &reason, |value| value == false) }
        };
        without(self.biases != Biases::Never, "attention_bias")?;
        without(self.mlp_bias, "mlp_bias")?;
        without(self.soft_caps, "attn_logit_softcapping")?;
        without(self.gemma, "final_logit_softcapping")?;
        without(matches!(self.windows, Windows::LaterIfUsed | Windows::Interleaved(_)), "layer_types")?;
        without(false, "use_bidirectional_attention")?;
        refuse_unless(config, "quantization_config", "quantised folders are not built: use a bf16 one", |_| false)
    }

    fn activation(&self, config: &Value) -> Result<Activation, ModelError> {
        let (field, missing) =
            if self.gemma { ("hidden_activation", Activation::GeluTanh) } else { ("hidden_act", Activation::Silu) };
        match &config[field] {
            Value::Null => Ok(missing),
            value if value == "silu" => Ok(Activation::Silu),
            value if value == "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            value => Err(wrong(field, &format!("silu or gelu_pytorch_tanh is expected, {value} was found"))),
        }
    }

    /// Whether each layer sees only a window, and how far that reaches.
    fn windows(&self, config: &Value, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
        let used = match self.windows {
            Windows::Never => false,
            Windows::All | Windows::Interleaved(_) => true,
            Windows::AllIfUsed | Windows::LaterIfUsed => flag(config, "use_sliding_window", false)?,
        };
        if !used || !set(config, "sliding_window") {
            refuse_unless(config, "layer_types", "without a sliding window all layers see all", |types| {
                types.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
            })?;
            return Ok(vec![None; layers]);
        }
        let window = size(config, "sliding_window")?;
        let slides: Vec<bool> = match (self.windows, &config["layer_types"]) {
            (Windows::LaterIfUsed | Windows::Interleaved(_), Value::Array(types)) => {
                let slides = types.iter().map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(wrong(
                        "layer_types",
                        &format!("full_attention or sliding_attention is expected, not {kind}"),
                    )),
                });
                slides.collect::<Result<_, _>>()?
            }
            (Windows::LaterIfUsed, _) => {
                let first = config["max_window_layers"].as_u64().unwrap_or(28) as usize;
                (0..layers).map(|layer| layer >= first).collect()
            }
            (Windows::Interleaved(pattern), _) => {
                let pattern = size_or(config, "sliding_window_pattern", pattern)?;
                (0..layers).map(|layer| !(layer + 1).is_multiple_of(pattern)).collect()
            }
            _ => vec![true; layers],
        };
        if slides.len() != layers {
            return Err(wrong("layer_types", &format!("{} layers are named, there are {layers}", slides.len())));
        }
        Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
    }

    /// The mixture, and whether each layer has one.
    fn mixture(&self, config: &Value, layers: usize) -> Result<(Option<MixtureConfig>, Vec<bool>), ModelError> {
        let (mixture, at) = match self.mixture {
            Mixture::None => return Ok((None, vec![false; layers])),
            Mixture::Mixtral => {
                let mixture = MixtureConfig {
                    experts: size_within(config, "num_local_experts", LAYERS_MAX)?,
                    top_k: size(config, "num_experts_per_tok")?,
                    normalise: true,
                    intermediate_size: size(config, "intermediate_size")?,
                    prefix: "block_sparse_moe",
                    projections: ["w1", "w3", "w2"],
                };
                (mixture, vec![true; layers])
            }
            Mixture::Qwen3 => {
                let experts = if set(config, "num_experts") { "num_experts" } else { "num_local_experts" };
                let mixture = MixtureConfig {
                    experts: size_within(config, experts, LAYERS_MAX)?,
                    top_k: size(config, "num_experts_per_tok")?,
                    normalise: flag(config, "norm_topk_prob", false)?,
                    intermediate_size: size(config, "moe_intermediate_size")?,
                    prefix: "mlp",
                    projections: ["gate_proj", "up_proj", "down_proj"],
                };
                let step = size_or(config, "decoder_sparse_step", 1)?;
                let plain = |layer: usize| {
                    config["mlp_only_layers"].as_array().is_some_and(|plain| plain.iter().any(|n| *n == layer))
                };
                (mixture, (0..layers).map(|layer| (layer + 1).is_multiple_of(step) && !plain(layer)).collect())
            }
        };
        if mixture.top_k > mixture.experts {
            return Err(wrong("num_experts_per_tok", &format!("there are only {} experts", mixture.experts)));
        }
        Ok((Some(mixture), at))
    }

    /// The RoPE tables.
    fn ropes(&self, config: &Value, head_dim: usize, windows: &[Option<usize>]) -> Result<Ropes, ModelError> {
        let shape = rope::Shape {
            head_dim,
            partial: self.phi,
            long_by_other_names: self.phi,
            theta: self.rope_theta,
            positions: size(config, "max_position_embeddings")?,
        };
        if !self.local_rope {
            let rope = rope::parse(config, rope::parameters(config), &shape)?;
            let rope::Rope { spec, reach, long_beyond } = rope;
            return Ok(Ropes { specs: vec![spec], tables: vec![0; windows.len()], reach, long_beyond });
        }
        let by_kind = &config["rope_parameters"];
        let global = if by_kind.is_object() { &by_kind["full_attention"] } else { &config["rope_scaling"] };
        let global = rope::parse(config, global, &shape)?;
        let theta = positive(config, "rope_local_base_freq")?.unwrap_or(10_000.0);
        // Without `rope_theta` of its own it would fall back to the model's, which is the global one.
        let local = match &by_kind["sliding_attention"] {
            Value::Object(local) if local.contains_key("rope_theta") => Value::Object(local.clone()),
            _ => serde_json::json!({ "rope_theta": theta }),
        };
        let local = rope::parse(config, &local, &shape)?;
        let tables = windows.iter().map(|window| usize::from(window.is_some())).collect();
        let reach = global.reach.min(local.reach);
        Ok(Ropes { specs: vec![global.spec, local.spec], tables, reach, long_beyond: None })
    }
}

/// The configuration of a multimodal model's text part, as if it stood alone; `None` for a model that does.
///
/// Such a `text_config` names only what differs from its class's defaults (transformers, `Gemma3TextConfig`).
fn text_config(config: &Value) -> Result<Option<Value>, ModelError> {
    if config["architectures"][0] != "Gemma3ForConditionalGeneration" {
        return Ok(None);
    }
    let Value::Object(text) = &config["text_config"] else {
        return Err(wrong("text_config", "the text part's fields are expected"));
    };
    let mut whole = serde_json::json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1e6,
    });
    for (field, value) in text.iter().filter(|(_, value)| !value.is_null()) {
        whole[field] = value.clone();
    }
    for field in ["eos_token_id", "tie_word_embeddings"] {
        if set(config, field) {
            whole[field] = config[field].clone();
        }
    }
    whole["architectures"] = serde_json::json!(["Gemma3ForCausalLM"]);
    Ok(Some(whole))
}

impl DecoderConfig {
    /// Reads and checks the text of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] for another architecture, [`ModelError::Config`] for a field.
    pub fn parse(config: &Value) -> Result<Self, ModelError> {
        let text = text_config(config)?;
        let config = text.as_ref().unwrap_or(config);
        let architecture = Architecture::of(config)?;
        let config = &with_unnamed(architecture.name, config);
        architecture.refuse_others(config)?;
        let (hidden_size, heads) = (size(config, "hidden_size")?, size(config, "num_attention_heads")?);
        let head_dim = size_or(config, "head_dim", hidden_size / heads)?;
        let num_hidden_layers = size_within(config, "num_hidden_layers", LAYERS_MAX)?;
        let windows = architecture.windows(config, num_hidden_layers)?;
        let Ropes { specs: ropes, tables, reach: context_length, long_beyond } =
            architecture.ropes(config, head_dim, &windows)?;
        let (mixture, mixed) = architecture.mixture(config, num_hidden_layers)?;
        let layers = windows.into_iter().zip(tables).zip(mixed);
        let asked_bias = architecture.biases == Biases::Asked && flag(config, "attention_bias", false)?;
        let scaled_by = if architecture.gemma {
            positive(config, "query_pre_attn_scalar")?.unwrap_or(256.0)
        } else {
            head_dim as f64
        };
        let soft_cap = |has: bool, field: &str| match has {
            true => positive(config, field).map(|cap| cap.map(|cap| cap as f32)),
            false => Ok(None),
        };
        let parsed = Self {
            architecture: architecture.name,
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: size_or(config, "num_key_value_heads", heads)?,
            head_dim,
            context_length,
            long_beyond,
            rms_norm_eps: config["rms_norm_eps"]
                .as_f64()
                .ok_or_else(|| wrong("rms_norm_eps", "a number is expected"))? as f32,
            norm_plus_one: architecture.gemma,
            post_norms: architecture.gemma,
            head_norms: architecture.head_norms,
            qkv_bias: asked_bias || architecture.biases == Biases::Qkv,
            output_bias: asked_bias,
            mlp_bias: architecture.mlp_bias && flag(config, "mlp_bias", false)?,
            fused: architecture.phi,
            activation: architecture.activation(config)?,
            embedding_scale: if architecture.gemma { (hidden_size as f32).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (scaled_by as f32).sqrt(),
            attention_soft_cap: soft_cap(architecture.soft_caps, "attn_logit_softcapping")?,
            logit_soft_cap: soft_cap(architecture.gemma, "final_logit_softcapping")?,
            ropes,
            layers: layers.map(|((window, rope), mixture)| LayerConfig { window, rope, mixture }).collect(),
            mixture,
            tie_word_embeddings: flag(config, "tie_word_embeddings", architecture.gemma)?,
            eos_token_ids: token_ids(config, "eos_token_id")?,
        };
        parsed.check()?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), ModelError> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(wrong("num_key_value_heads", "it must divide num_attention_heads"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", "an even number is expected (RoPE turns pairs)"));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            return Err(wrong("rms_norm_eps", "a small number, not negative, is expected"));
        }
        let token = |token: &u32| (*token as usize) < self.vocab_size;
        if !self.eos_token_ids.iter().all(token) {
            return Err(wrong("eos_token_id", "it is beyond vocab_size"));
        }
        Ok(())
    }

    /// Query heads per KV head.
    pub fn group_heads(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}

#[cfg(test)]
#[path = "architecture/tests.rs"]
mod tests;
