//! Models: a folder in Hugging Face layout becomes token ids, weights on a backend, and a profile digest.
//!
//! What always holds: everything that changes an answer is in the profile ([`LoadedModel::profile`]); a folder that is
//! not complete and sound is refused when it is opened, by name of the file, field or tensor.

mod chat_template;
mod error;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatTemplate};
pub use error::ModelError;
pub use tokenizer::{Detokenizer, Tokenizer};
