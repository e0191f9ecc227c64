//! What a model is made of, read from a folder in Hugging Face layout or from one GGUF file.
//!
//! Digests, as profiles name them. A folder: `config`, `generation_config`: SHA-256 of the file (of nothing, if it is
//! missing); `tokenizer`: SHA-256 of the digests of `tokenizer.json` and `tokenizer_config.json`. A GGUF: `tokenizer`:
//! SHA-256 over the bytes of the metadata's pairs whose keys start with `tokenizer.`, in the file's order; `config`: over
//! those of all other pairs; `generation_config`: of nothing. Both: `chat_template`: SHA-256 of its text.

use std::collections::BTreeMap;
use std::path::Path;

use polylink_kernels::Dtype;
use polylink_protocol::Digest;
use serde_json::Value;

use super::chat_template::TemplateTokens;
use super::config::{read_bounded, read_json};
use super::error::ModelError;
use super::gguf::{Gguf, GgufTensor};
use super::gguf_model::Description;
use super::gguf_tokenizer::GgufTokenizer;
use super::quantized::Scheme;
use super::tokenizer::{TOKENIZER_BYTES_MAX, Tokenizer};
use super::weights::{Reading, TensorPlace, Weights};

/// All of a model, nothing of it checked against the rest yet.
pub(super) struct Contents {
    /// As `config.json`.
    pub config: Value,
    /// As `generation_config.json`; null if there is none.
    pub generation: Value,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<String>,
    pub tokens: TemplateTokens,
    pub weights: Weights,
    pub config_digest: Digest,
    pub tokenizer_digest: Digest,
    pub generation_digest: Digest,
}

impl Contents {
    /// Reads a folder, or a file that ends in `.gguf`.
    pub(super) fn open(model: &Path) -> Result<Self, ModelError> {
        if model.is_dir() {
            Self::of_folder(model)
        } else if model.is_file() {
            Self::of_gguf(model)
        } else {
            Err(ModelError::NoFolder { folder: model.to_owned() })
        }
    }

    fn of_folder(folder: &Path) -> Result<Self, ModelError> {
        let (mut config, config_bytes) = read_json(&folder.join("config.json"))?;
        let scheme = Scheme::parse(&config)?;
        if let Some(config) = config.as_object_mut() {
            config.remove("quantization_config"); // read just now
        }
        let (generation, generation_bytes) = match folder.join("generation_config.json") {
            file if file.exists() => read_json(&file)?,
            _ => (Value::Null, Vec::new()),
        };
        let tokenizer_file = folder.join("tokenizer.json");
        let tokenizer_bytes = read_bounded(&tokenizer_file, TOKENIZER_BYTES_MAX)?;
        let tokenizer = Tokenizer::parse(&tokenizer_bytes, &tokenizer_file)?;
        let (tokenizer_config, tokenizer_config_bytes) = read_json(&folder.join("tokenizer_config.json"))?;
        let named = |field: &str| {
            let value = &tokenizer_config[field];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        Ok(Self {
            chat_template: template_text(folder, &tokenizer_config)?,
            tokens: TemplateTokens(
                ["bos_token", "eos_token", "pad_token", "unk_token"].map(|name| (name, named(name))).into(),
            ),
            weights: Weights::open(folder, scheme)?,
            config_digest: Digest::of(&config_bytes),
            tokenizer_digest: pair_digest(&tokenizer_bytes, &tokenizer_config_bytes),
            generation_digest: Digest::of(&generation_bytes),
            config,
            generation,
            tokenizer,
        })
    }

    fn of_gguf(file: &Path) -> Result<Self, ModelError> {
        let gguf = Gguf::open(file)?;
        let texts = GgufTokenizer::parse(&gguf)?;
        let tokenizer = Tokenizer::parse(texts.json.to_string().as_bytes(), file)?;
        let description = Description::new(&gguf)?;
        let config = description.config(&texts.end_tokens, |tensor| factors(file, tensor))?;
        let weights = Weights::of(vec![file.to_owned()], description.tensors()?);
        Ok(Self {
            config,
            generation: Value::Null,
            tokenizer,
            chat_template: texts.chat_template,
            tokens: TemplateTokens([("bos_token", texts.bos), ("eos_token", texts.eos)].into()),
            weights,
            config_digest: gguf.config_digest,
            tokenizer_digest: gguf.tokenizer_digest,
            generation_digest: Digest::of(&[]),
        })
    }
}

/// RoPE factors: a vector of f32.
fn factors(file: &Path, tensor: &GgufTensor) -> Result<Vec<f32>, ModelError> {
    let GgufTensor { name, shape, dtype, offset, bytes } = tensor;
    if *dtype != Dtype::F32 || shape.len() != 1 {
        let reason = format!("it has shape {shape:?} of {dtype:?}, a vector of F32 is expected");
        return Err(ModelError::Tensor { tensor: name.clone(), reason });
    }
    let (shape, dtype, reading) = (shape.clone(), *dtype, Reading::Plain);
    let place = TensorPlace { shard: 0, offset: *offset, bytes: *bytes, shape, dtype, reading };
    let mut data = Vec::new();
    Weights::of(vec![file.to_owned()], BTreeMap::new()).read(name, &place, &mut data)?;
    Ok(data.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// `SHA-256(tokenizer.json digest ‖ tokenizer_config.json digest)`.
fn pair_digest(first: &[u8], second: &[u8]) -> Digest {
    Digest::of(&[Digest::of(first).0, Digest::of(second).0].concat())
}

/// The template of `chat_template.jinja`, or of `tokenizer_config.json` (a text, or a list of named ones): the file goes first, as
/// in transformers.
fn template_text(folder: &Path, tokenizer_config: &Value) -> Result<Option<String>, ModelError> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        let text = String::from_utf8(read_bounded(&file, 1 << 20)?);
        return text.map(Some).map_err(|error| ModelError::Damaged { file, reason: error.to_string() });
    }
    let field = &tokenizer_config["chat_template"];
    let named = field.as_array().into_iter().flatten().find(|template| template["name"] == "default");
    Ok(field.as_str().or_else(|| named?["template"].as_str()).map(str::to_owned))
}
