//! `config.json` and `generation_config.json`: the shape of a model, checked field by field.

use std::path::Path;

use serde_json::Value;

use super::error::ModelError;

/// Shape of a Llama model, in Hugging Face's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
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
    /// Prompt and completion together.
    pub max_position_embeddings: usize,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// End tokens named here, if any.
    pub eos_token_ids: Vec<u32>,
}

/// Largest value of any size, so that products of two stay far from overflow.
const SIZE_MAX: u64 = 1 << 24;

impl LlamaConfig {
    /// Reads and checks the text of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] for another architecture, [`ModelError::Config`] for a field.
    pub fn parse(config: &Value) -> Result<Self, ModelError> {
        let architecture = config["architectures"][0].as_str().unwrap_or("(none named)");
        if architecture != "LlamaForCausalLM" {
            return Err(ModelError::Architecture { architecture: architecture.into() });
        }
        refuse_unless(config, "hidden_act", "silu is expected", |v| v == "silu")?;
        for field in ["attention_bias", "mlp_bias"] {
            refuse_unless(config, field, "biases are not built", |v| v == false)?;
        }
        refuse_unless(config, "rope_scaling", "RoPE scaling is not built", plain_rope)?;
        refuse_unless(config, "rope_parameters", "RoPE scaling is not built", plain_rope)?;
        refuse_unless(config, "quantization_config", "quantised folders are not built: use a bf16 one", |_| false)?;
        let heads = size(config, "num_attention_heads")?;
        let hidden_size = size(config, "hidden_size")?;
        let theta = &config["rope_theta"];
        let theta = if theta.is_null() { &config["rope_parameters"]["rope_theta"] } else { theta };
        let parsed = Self {
            vocab_size: size(config, "vocab_size")?,
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers: size(config, "num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: if set(config, "num_key_value_heads") {
                size(config, "num_key_value_heads")?
            } else {
                heads
            },
            head_dim: if set(config, "head_dim") { size(config, "head_dim")? } else { hidden_size / heads },
            max_position_embeddings: size(config, "max_position_embeddings")?,
            rms_norm_eps: config["rms_norm_eps"]
                .as_f64()
                .ok_or_else(|| wrong("rms_norm_eps", "a number is expected"))? as f32,
            rope_theta: if theta.is_null() {
                10_000.0
            } else {
                theta
                    .as_f64()
                    .filter(|theta| *theta > 1.0)
                    .ok_or_else(|| wrong("rope_theta", "a number above 1 is expected"))?
            },
            tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap_or(false),
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

fn plain_rope(value: &Value) -> bool {
    let kind = value.get("rope_type").or_else(|| value.get("type"));
    value.is_object() && kind.is_none_or(|kind| kind == "default")
}

fn set(config: &Value, field: &str) -> bool {
    !config[field].is_null()
}

fn wrong(field: &str, reason: &str) -> ModelError {
    ModelError::Config { field: field.into(), reason: reason.into() }
}

fn refuse_unless(config: &Value, field: &str, reason: &str, good: impl Fn(&Value) -> bool) -> Result<(), ModelError> {
    let value = &config[field];
    if value.is_null() || good(value) { Ok(()) } else { Err(wrong(field, &format!("{reason}; {value} was found"))) }
}

fn size(config: &Value, field: &str) -> Result<usize, ModelError> {
    match config[field].as_u64() {
        Some(value) if (1..=SIZE_MAX).contains(&value) => Ok(value as usize),
        _ => Err(wrong(field, &format!("a number of 1 to {SIZE_MAX} is expected, {} was found", config[field]))),
    }
}

/// One id, a list of ids, or nothing.
fn token_ids(config: &Value, field: &str) -> Result<Vec<u32>, ModelError> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(field, "a token id or a list of them is expected"))
    };
    match &config[field] {
        Value::Null => Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(one).collect(),
        id => Ok(vec![one(id)?]),
    }
}

/// What `generation_config.json` says: the defaults of a request that leaves a parameter out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Sampling temperature; 0 if the model is to be decoded greedily.
    pub temperature: Option<f32>,
    /// As named.
    pub top_p: Option<f32>,
    /// As named.
    pub top_k: Option<u32>,
    /// As named.
    pub repetition_penalty: Option<f32>,
    /// End tokens named here.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationDefaults {
    pub(crate) fn parse(config: &Value) -> Result<Self, ModelError> {
        let number = |field: &str| config[field].as_f64().map(|value| value as f32);
        let greedy = config["do_sample"] == false;
        Ok(Self {
            temperature: if greedy { Some(0.0) } else { number("temperature") },
            top_p: number("top_p"),
            top_k: config["top_k"].as_u64().and_then(|k| u32::try_from(k).ok()),
            repetition_penalty: number("repetition_penalty"),
            eos_token_ids: token_ids(config, "eos_token_id")?,
        })
    }
}

/// Reads a JSON file whole; at most 64 MiB.
pub(crate) fn read_json(file: &Path) -> Result<(Value, Vec<u8>), ModelError> {
    let bytes = read_bounded(file, 64 << 20)?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| ModelError::Damaged { file: file.to_owned(), reason: error.to_string() })?;
    Ok((value, bytes))
}

/// Reads a file of at most `bytes_max`.
pub(crate) fn read_bounded(file: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let refuse = |reason: String| ModelError::File { file: file.to_owned(), reason };
    let length = std::fs::metadata(file).map_err(|error| refuse(error.to_string()))?.len();
    if length > bytes_max {
        return Err(refuse(format!("it has {length} bytes, at most {bytes_max} are expected")));
    }
    std::fs::read(file).map_err(|error| refuse(error.to_string()))
}
