//! Why a model folder cannot be served.

use std::path::PathBuf;

use polylink_kernels::BackendError;

/// What is wrong with a model folder, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder does not exist.
    #[error(
        "model folder {folder} does not exist: give a folder in Hugging Face layout (config.json, model.safetensors, tokenizer.json, tokenizer_config.json) or a GGUF file"
    )]
    NoFolder {
        /// As given.
        folder: PathBuf,
    },
    /// A file is missing or cannot be read.
    #[error("model file {file}: {reason}")]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file is there but not what it should be.
    #[error("model file {file} is damaged: {reason}; download or export it again")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The architecture is not built.
    #[error("architecture {architecture} is not supported: this engine runs {supported}")]
    Architecture {
        /// As config.json names it.
        architecture: String,
        /// Names of those that are.
        supported: String,
    },
    /// A field of config.json asks for something that is not built, or contradicts another one.
    #[error("config.json, {field}: {reason}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The same of a pair of a GGUF's metadata.
    #[error("GGUF metadata, {key}: {reason}")]
    Metadata {
        /// Its key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A tensor is missing or has another shape or type than the configuration says.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The chat template is missing, wrong, or refuses the conversation.
    #[error("chat template: {reason}")]
    Template {
        /// What the template engine said.
        reason: String,
    },
    /// A text cannot be tokenised.
    #[error("the text cannot be tokenised: {reason}")]
    Tokenize {
        /// What the tokenizer said.
        reason: String,
    },
    /// The split does not fit the model.
    #[error("split {shares:?}: {reason}")]
    Split {
        /// The proportions.
        shares: Vec<u32>,
        /// What is wrong.
        reason: String,
    },
    /// The backend refuses a weight or the program.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
