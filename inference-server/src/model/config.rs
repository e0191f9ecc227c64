//! The fields of `config.json` and `generation_config.json`, read one by one; a wrong one is named.

use std::path::Path;

use serde_json::Value;

use super::error::ModelError;

/// Largest value of any size, so that products of two stay far from overflow.
pub(super) const SIZE_MAX: u64 = 1 << 24;

/// Whether a field is there and not null.
pub(super) fn set(config: &Value, field: &str) -> bool {
    !config[field].is_null()
}

/// A configuration with what the classes of `transformers` take where a field is not there at all; null is a value.
pub(super) fn with_unnamed(architecture: &str, config: &Value) -> Value {
    let unnamed: &[(&str, u32)] = match architecture {
        "Gemma2ForCausalLM" => {
            &[("sliding_window", 4_096), ("attn_logit_softcapping", 50), ("final_logit_softcapping", 30)]
        }
        "MistralForCausalLM"
        | "Qwen2ForCausalLM"
        | "Qwen3ForCausalLM"
        | "Qwen3MoeForCausalLM"
        | "Gemma3ForCausalLM" => &[("sliding_window", 4_096)],
        _ => &[],
    };
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        for (field, value) in unnamed {
            fields.entry(*field).or_insert((*value).into());
        }
    }
    config
}

/// The error that a field is wrong.
pub(super) fn wrong(field: &str, reason: &str) -> ModelError {
    ModelError::Config { field: field.into(), reason: reason.into() }
}

/// Refuses a field that is there and not good.
pub(super) fn refuse_unless(
    config: &Value,
    field: &str,
    reason: &str,
    good: impl Fn(&Value) -> bool,
) -> Result<(), ModelError> {
    let value = &config[field];
    if value.is_null() || good(value) { Ok(()) } else { Err(wrong(field, &format!("{reason}; {value} was found"))) }
}

/// A size of at least 1.
pub(super) fn size(config: &Value, field: &str) -> Result<usize, ModelError> {
    size_within(config, field, SIZE_MAX)
}

/// A size of 1 to `max`.
pub(super) fn size_within(config: &Value, field: &str, max: u64) -> Result<usize, ModelError> {
    match config[field].as_u64() {
        Some(value) if (1..=max).contains(&value) => Ok(value as usize),
        _ => Err(wrong(field, &format!("a number of 1 to {max} is expected, {} was found", config[field]))),
    }
}

/// A size that may be left out.
pub(super) fn size_or(config: &Value, field: &str, missing: usize) -> Result<usize, ModelError> {
    if set(config, field) { size(config, field) } else { Ok(missing) }
}

/// A positive number, if it is there.
pub(super) fn positive(config: &Value, field: &str) -> Result<Option<f64>, ModelError> {
    match &config[field] {
        Value::Null => Ok(None),
        value => match value.as_f64() {
            Some(number) if number > 0.0 && number < 1e30 => Ok(Some(number)),
            _ => Err(wrong(field, &format!("a positive number is expected, {value} was found"))),
        },
    }
}

/// A flag that may be left out.
pub(super) fn flag(config: &Value, field: &str, missing: bool) -> Result<bool, ModelError> {
    match &config[field] {
        Value::Null => Ok(missing),
        Value::Bool(flag) => Ok(*flag),
        value => Err(wrong(field, &format!("true or false is expected, {value} was found"))),
    }
}

/// One id, a list of ids, or nothing.
pub(super) fn token_ids(config: &Value, field: &str) -> Result<Vec<u32>, ModelError> {
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
