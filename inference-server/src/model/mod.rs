//! Models: a folder in Hugging Face layout, or a GGUF, becomes token ids, weights on a backend, and a profile digest.
//!
//! What always holds: everything that changes an answer is in the profile ([`LoadedModel::profile`]); a folder that is
//! not complete and sound is refused when it is opened, by name of the file, field or tensor.

mod architecture;
mod chat_template;
mod config;
mod contents;
mod decoder;
mod error;
mod gguf;
mod gguf_model;
mod gguf_tokenizer;
mod loader;
mod precision;
mod python;
mod quantized;
mod rope;
mod safetensors;
mod split_plan;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use polylink_kernels::{Backend, Program};
use polylink_protocol::Digest;
use polylink_protocol::digest::Hasher;
use polylink_protocol::market_v1::ModelProfile;

pub use architecture::{DecoderConfig, LayerConfig, MixtureConfig};
pub use chat_template::{ChatMessage, ChatTemplate, Conversation};
pub use config::GenerationDefaults;
pub use error::ModelError;
pub use polylink_kernels::KvDtype;
pub use precision::{Computation, Precision, kv_dtype_name};
pub use split_plan::{ModelShard, SplitPlan};
pub use tokenizer::{Detokenizer, Tokenizer};

use contents::Contents;
use weights::Weights;

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
    computation: Computation,
    weights: Weights,
    /// Digests of the small files, as profiles name them.
    config_digest: Digest,
    tokenizer_digest: Digest,
    chat_template_digest: Digest,
    generation_config_digest: Digest,
    weights_digest: OnceLock<Digest>,
}

impl LoadedModel {
    /// Opens a folder or a GGUF file and checks everything but the weights' values.
    ///
    /// # Errors
    /// What is missing, damaged or not built, by name.
    pub fn open(folder: impl AsRef<Path>, computation: impl Into<Computation>) -> Result<Self, ModelError> {
        let (folder, computation) = (folder.as_ref(), computation.into());
        let precision = computation.precision;
        let contents = Contents::open(folder)?;
        let config = DecoderConfig::parse(&contents.config)?;
        let generation = GenerationDefaults::parse(&contents.generation)?;
        let (tokenizer, weights) = (contents.tokenizer, contents.weights);
        let text = contents.chat_template;
        let chat_template_digest = Digest::of(text.as_deref().unwrap_or_default().as_bytes());
        let chat_template = text.map(|text| ChatTemplate::parse(text, contents.tokens)).transpose()?.map(Arc::new);
        if tokenizer.base_vocabulary() > config.vocab_size {
            let (tokens, rows) = (tokenizer.base_vocabulary(), config.vocab_size);
            let reason = format!("the tokenizer has {tokens} tokens, the model only {rows}");
            return Err(ModelError::Config { field: "vocab_size".into(), reason });
        }
        let expanded = weights.quantization().is_some() && !weights.has_blocks();
        let in_bf16 = matches!(precision, Precision::Bf16 | Precision::AmxBf16 | Precision::TensorBf16);
        if weights.quantization().is_some() && !(precision == Precision::F32 || expanded && in_bf16) {
            let reason = "the model is quantised already and is served as it is: leave out --quantize";
            let reason = if expanded { reason.into() } else { format!("{reason} and --dtype") };
            return Err(ModelError::Config { field: "quantization".into(), reason });
        }
        decoder::check(&config, &weights)?;
        if let Some(token) = generation.eos_token_ids.iter().find(|token| **token as usize >= config.vocab_size) {
            let reason = format!("generation_config.json names {token}, vocab_size is {}", config.vocab_size);
            return Err(ModelError::Config { field: "eos_token_id".into(), reason });
        }
        let named_there = !generation.eos_token_ids.is_empty();
        let end_tokens = if named_there { generation.eos_token_ids.clone() } else { config.eos_token_ids.clone() };
        Ok(Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                config_digest: contents.config_digest,
                tokenizer_digest: contents.tokenizer_digest,
                chat_template_digest,
                generation_config_digest: contents.generation_digest,
                weights_digest: OnceLock::new(),
                config,
                generation,
                tokenizer: Arc::new(tokenizer),
                chat_template,
                end_tokens,
                computation,
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
        self.inner.computation.precision
    }

    /// How its keys and values are kept.
    pub fn kv_dtype(&self) -> KvDtype {
        self.inner.computation.kv_dtype
    }

    /// Quantisation of the weights as profiles name it: the precision's, or that of the files (`gguf`: each tensor as it
    /// is; `fp8`, `gptq`, `awq`: expanded while loading).
    pub fn weight_quantization(&self) -> &'static str {
        self.inner.weights.quantization().unwrap_or(self.precision().weight_quantization())
    }

    /// Type that products are computed in, as profiles name it: `f32`, `bf16` or `int8`.
    pub fn compute_dtype(&self) -> &'static str {
        if self.inner.weights.has_blocks() { "int8" } else { self.precision().compute_dtype() }
    }

    /// What it could be opened with in place of [`Precision::F32`]; a quantised model is never quantised again.
    pub fn other_precisions(&self) -> &'static [Precision] {
        match self.inner.weights.quantization() {
            None => &Precision::ALL[1..],
            Some(_) if self.inner.weights.has_blocks() => &[],
            Some(_) => &[Precision::Bf16, Precision::AmxBf16, Precision::TensorBf16],
        }
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
            weight_quantization: self.weight_quantization().into(),
            compute_dtype: self.compute_dtype().into(),
            kv_dtype: kv_dtype_name(self.kv_dtype()).into(),
            numerics: self.precision().numerics().into(),
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
        let hasher = Hasher::new("polylink/split-model/v1").fixed(&inner.config_digest.0).fixed(&weights.0);
        let names = [
            self.weight_quantization(),
            self.compute_dtype(),
            self.precision().numerics(),
            kv_dtype_name(self.kv_dtype()),
        ];
        Ok(names.into_iter().fold(hasher, |hasher, name| hasher.bytes(name.as_bytes())).finish())
    }

    /// Prepares the weights of one rank on a backend, and gives its program.
    ///
    /// # Errors
    /// Unreadable or unsuitable tensors, by name.
    pub fn load(&self, split: &SplitPlan, rank: usize, backend: &mut dyn Backend) -> Result<Program, ModelError> {
        let inner = &self.inner;
        decoder::load(
            &inner.config,
            &inner.weights,
            inner.computation.precision.form(),
            self.kv_dtype(),
            split,
            rank,
            backend,
        )
    }
}
