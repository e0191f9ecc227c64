//! Models: a folder in Hugging Face layout becomes token ids, weights on a backend, and a profile digest.
//!
//! What always holds: everything that changes an answer is in the profile ([`LoadedModel::profile`]); a folder that is
//! not complete and sound is refused when it is opened, by name of the file, field or tensor.

mod architecture;
mod chat_template;
mod config;
mod decoder;
mod error;
mod loader;
mod python;
mod rope;
mod split_plan;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use polylink_kernels::{Backend, Program, WeightForm};
use polylink_protocol::Digest;
use polylink_protocol::digest::Hasher;
use polylink_protocol::market_v1::ModelProfile;

pub use architecture::{DecoderConfig, LayerConfig, MixtureConfig};
pub use chat_template::{ChatMessage, ChatTemplate, Conversation};
pub use config::GenerationDefaults;
pub use error::ModelError;
pub use split_plan::{ModelShard, SplitPlan};
pub use tokenizer::{Detokenizer, Tokenizer};

use chat_template::TemplateTokens;
use config::{read_bounded, read_json};
use weights::Weights;

/// How the folder's weights are held and computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are, in exact f32.
    #[default]
    F32,
    /// In bf16, products in pairs: bit-equal on every CPU (`vdp-bf16`), judged by margins elsewhere.
    Bf16,
    /// 8-bit integers, a scale per 32 inputs, made while loading; exact int8.
    Q8_0,
    /// 4-bit integers, a scale per 32 inputs, made while loading; exact int8.
    Q4_0,
}

impl Precision {
    /// All there are.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::Q8_0, Precision::Q4_0];

    /// Quantisation of the weights as profiles name it: `none`, `q8_0` or `q4_0`.
    pub fn weight_quantization(self) -> &'static str {
        match self {
            Precision::F32 | Precision::Bf16 => "none",
            Precision::Q8_0 => "q8_0",
            Precision::Q4_0 => "q4_0",
        }
    }

    /// Type that products are computed in, as profiles name it: `f32`, `bf16` or `int8`.
    pub fn compute_dtype(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Q8_0 | Precision::Q4_0 => "int8",
        }
    }

    /// Numerics version, as profiles name it.
    pub fn numerics(self) -> &'static str {
        if self == Precision::Bf16 { "vdp-bf16" } else { NUMERICS }
    }

    fn form(self) -> WeightForm {
        match self {
            Precision::F32 => WeightForm::Float,
            Precision::Bf16 => WeightForm::Bf16,
            Precision::Q8_0 => WeightForm::Q8_0,
            Precision::Q4_0 => WeightForm::Q4_0,
        }
    }
}

/// The numerics version of the exact profiles (`docs/numerics.md`).
pub const NUMERICS: &str = "exact-1";

/// A checked model folder. Clones share it; weights are read when a backend is built.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    config: DecoderConfig,
    generation: GenerationDefaults,
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<Arc<ChatTemplate>>,
    end_tokens: Vec<u32>,
    precision: Precision,
    weights: Weights,
    /// Digests of the small files, as profiles name them.
    config_digest: Digest,
    tokenizer_digest: Digest,
    chat_template_digest: Digest,
    generation_config_digest: Digest,
    weights_digest: OnceLock<Digest>,
}

impl LoadedModel {
    /// Opens a folder and checks everything but the weights' values.
    ///
    /// # Errors
    /// What is missing, damaged or not built, by name.
    pub fn open(folder: impl AsRef<Path>, precision: Precision) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        if !folder.is_dir() {
            return Err(ModelError::NoFolder { folder: folder.to_owned() });
        }
        let (config, config_bytes) = read_json(&folder.join("config.json"))?;
        let config = DecoderConfig::parse(&config)?;
        let (generation, generation_bytes) = match folder.join("generation_config.json") {
            file if file.exists() => read_json(&file)?,
            _ => (serde_json::Value::Null, Vec::new()),
        };
        let generation = GenerationDefaults::parse(&generation)?;
        let tokenizer_file = folder.join("tokenizer.json");
        let tokenizer_bytes = read_bounded(&tokenizer_file, 256 << 20)?;
        let tokenizer = Tokenizer::open(&tokenizer_file)?;
        let (tokenizer_config, tokenizer_config_bytes) = read_json(&folder.join("tokenizer_config.json"))?;
        let text = template_text(folder, &tokenizer_config)?;
        let chat_template_digest = Digest::of(text.as_deref().unwrap_or_default().as_bytes());
        let named = |field: &str| {
            let value = &tokenizer_config[field];
            value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
        };
        let tokens =
            TemplateTokens(["bos_token", "eos_token", "pad_token", "unk_token"].map(|name| (name, named(name))).into());
        let chat_template = text.map(|text| ChatTemplate::parse(text, tokens)).transpose()?.map(Arc::new);
        if tokenizer.base_vocabulary() > config.vocab_size {
            let reason = format!(
                "tokenizer.json has {} tokens, the model only {}",
                tokenizer.base_vocabulary(),
                config.vocab_size
            );
            return Err(ModelError::Config { field: "vocab_size".into(), reason });
        }
        let weights = Weights::open(folder)?;
        for (name, shape) in decoder::tensors(&config, &weights) {
            weights.expect(&name, &shape)?;
        }
        let named_there = !generation.eos_token_ids.is_empty();
        let end_tokens = if named_there { generation.eos_token_ids.clone() } else { config.eos_token_ids.clone() };
        Ok(Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                config_digest: Digest::of(&config_bytes),
                tokenizer_digest: pair_digest(&tokenizer_bytes, &tokenizer_config_bytes),
                chat_template_digest,
                generation_config_digest: Digest::of(&generation_bytes),
                weights_digest: OnceLock::new(),
                config,
                generation,
                tokenizer: Arc::new(tokenizer),
                chat_template,
                end_tokens,
                precision,
                weights,
            }),
        })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.inner.config
    }

    /// Defaults of requests.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.inner.generation
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.tokenizer
    }

    /// Its chat template, if the folder has one.
    pub fn chat_template(&self) -> Option<&Arc<ChatTemplate>> {
        self.inner.chat_template.as_ref()
    }

    /// Tokens that end an answer: those of `generation_config.json`, else of `config.json`.
    pub fn end_tokens(&self) -> &[u32] {
        &self.inner.end_tokens
    }

    /// Prompt and completion together, in tokens.
    pub fn context_length(&self) -> usize {
        self.inner.config.context_length
    }

    /// How its weights are computed with.
    pub fn precision(&self) -> Precision {
        self.inner.precision
    }

    /// A conversation's token ids, with the beginning of the answer.
    ///
    /// # Errors
    /// [`ModelError::Template`]: the folder has none, or it refuses the conversation.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, ModelError> {
        let template = self.chat_template().ok_or_else(|| ModelError::Template {
            reason: "this model has none: use /v1/completions, or add one to tokenizer_config.json".into(),
        })?;
        template.encode(&messages.into(), self.tokenizer())
    }

    /// The profile that a worker of this folder claims. `id` is `org/name@revision`. Reads all weights once.
    ///
    /// # Errors
    /// [`ModelError::File`] if a shard cannot be read.
    pub fn profile(&self, id: &str) -> Result<ModelProfile, ModelError> {
        let inner = &self.inner;
        let weights_digest = self.weights_digest()?;
        Ok(ModelProfile {
            id: id.to_owned(),
            config_digest: inner.config_digest.to_vec(),
            tokenizer_digest: inner.tokenizer_digest.to_vec(),
            chat_template_digest: inner.chat_template_digest.to_vec(),
            generation_config_digest: inner.generation_config_digest.to_vec(),
            weights_digest: weights_digest.to_vec(),
            weight_quantization: inner.precision.weight_quantization().into(),
            compute_dtype: inner.precision.compute_dtype().into(),
            kv_dtype: "f32".into(),
            numerics: inner.precision.numerics().into(),
        })
    }

    fn weights_digest(&self) -> Result<Digest, ModelError> {
        if let Some(digest) = self.inner.weights_digest.get() {
            return Ok(*digest);
        }
        let digest = Digest(self.inner.weights.digest()?);
        Ok(*self.inner.weights_digest.get_or_init(|| digest))
    }

    /// What the processes of a split must agree on: the folder's contents and how they are computed with.
    ///
    /// # Errors
    /// As [`LoadedModel::profile`].
    pub(crate) fn split_digest(&self) -> Result<Digest, ModelError> {
        let weights = self.weights_digest()?;
        let inner = &self.inner;
        let precision = inner.precision;
        let hasher = Hasher::new("polylink/split-model/v1").fixed(&inner.config_digest.0).fixed(&weights.0);
        let [weights, compute, numerics] =
            [precision.weight_quantization(), precision.compute_dtype(), precision.numerics()].map(str::as_bytes);
        Ok(hasher.bytes(weights).bytes(compute).bytes(numerics).finish())
    }

    /// Prepares the weights of one rank on a backend, and gives its program.
    ///
    /// # Errors
    /// Unreadable or unsuitable tensors, by name.
    pub fn load(&self, split: &SplitPlan, rank: usize, backend: &mut dyn Backend) -> Result<Program, ModelError> {
        let inner = &self.inner;
        decoder::load(&inner.config, &inner.weights, inner.precision.form(), split, rank, backend)
    }
}

/// `SHA-256(tokenizer.json digest ‖ tokenizer_config.json digest)`.
fn pair_digest(first: &[u8], second: &[u8]) -> Digest {
    Digest::of(&[Digest::of(first).0, Digest::of(second).0].concat())
}

/// The template of `tokenizer_config.json` (a text, or a list of named ones), or `chat_template.jinja`.
fn template_text(folder: &Path, tokenizer_config: &serde_json::Value) -> Result<Option<String>, ModelError> {
    let field = &tokenizer_config["chat_template"];
    if let Some(text) = field.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let named = field.as_array().into_iter().flatten().find(|template| template["name"] == "default");
    if let Some(text) = named.and_then(|template| template["template"].as_str()) {
        return Ok(Some(text.to_owned()));
    }
    let file = folder.join("chat_template.jinja");
    if !file.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read_bounded(&file, 1 << 20)?);
    text.map(Some).map_err(|error| ModelError::Damaged { file, reason: error.to_string() })
}
