//! Text to token ids and back: `tokenizer.json` through the `tokenizers` crate, and decoding token by token.
//!
//! What always holds: the pieces that a [`Detokenizer`] gives, joined, are what decoding all of its tokens at once gives
//! (special tokens skipped), and a piece never ends inside a character; except that bytes which make no character within
//! 16 tokens are given out as U+FFFD. Text is never held back longer than that.

use std::path::Path;
use std::sync::Arc;

use super::config::read_json;
use super::error::ModelError;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Takes the texts of special tokens for ordinary text.
    plain: tokenizers::Tokenizer,
    /// Texts of the special tokens.
    special: Vec<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::Damaged`] if it is not a tokenizer.
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { file: file.to_owned(), reason };
        // The tokenizers crate panics on some malformed files: JSON that is none is found here, the rest is caught.
        read_json(file)?;
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_file(file))
            .map_err(|_| damaged("it is not a tokenizer that is understood".into()))?
            .map_err(|error| damaged(error.to_string()))?;
        let special = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self { inner, plain, special })
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids of a text in which the texts of special tokens mean these tokens: rendered chat templates.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`], which a byte-level tokenizer never gives.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode(&self.inner, text)
    }

    /// Token ids of a user's text: special tokens that are written out in it stay ordinary text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode(&self.plain, text)
    }

    /// Whether a text contains the text of a special token.
    pub fn has_special(&self, text: &str) -> bool {
        self.special.iter().any(|special| text.contains(special.as_str()))
    }

    /// The text of token ids, special tokens skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        // The crate's only errors are of exotic decoders; an unknown id decodes to nothing.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// The id of a token given by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How one token reads by itself (for logprobs): special tokens by their names, others decoded; a piece of a
    /// character becomes U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        match self.inner.decode(&[id], false) {
            Ok(text) if !text.is_empty() => text,
            _ => self.inner.id_to_token(id).unwrap_or_default(),
        }
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, ModelError> {
    tokenizer
        .encode_fast(text, false)
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| ModelError::Tokenize { reason: error.to_string() })
}

/// Longest run of tokens that is looked at for one character; a run without a complete character is given out as it is.
const UNFINISHED_TOKENS_MAX: usize = 16;

/// Decodes one choice's tokens as they come.
///
/// Method (as in text-generation-inference): decode a short window with and without the new tokens; the difference is
/// the new text, unless it ends in the middle of a character.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens of the window: those given out last, then those not given out yet.
    window: Vec<u32>,
    /// How many of the window were given out.
    given: usize,
}

impl Detokenizer {
    /// At the start of a completion.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), given: 0 }
    }

    /// Takes a token and returns the text that became complete.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        let before = self.tokenizer.decode(&self.window[..self.given]);
        let after = self.tokenizer.decode(&self.window);
        let waited = self.window.len() - self.given >= UNFINISHED_TOKENS_MAX;
        let text = match after.strip_prefix(before.as_str()) {
            Some(text) if waited || !after.ends_with('\u{fffd}') => text.to_owned(),
            // The window's first part was given out as U+FFFD, and with the new tokens it is something else.
            None if waited => self.tokenizer.decode(&self.window[self.given..]),
            _ => return String::new(),
        };
        self.window.drain(..self.given);
        self.given = self.window.len();
        text
    }

    /// What is left at the end: an unfinished character as U+FFFD.
    pub fn finish(&mut self) -> String {
        let before = self.tokenizer.decode(&self.window[..self.given]);
        let after = self.tokenizer.decode(&self.window);
        let text = match after.strip_prefix(before.as_str()) {
            Some(text) => text.to_owned(),
            None => self.tokenizer.decode(&self.window[self.given..]),
        };
        self.given = self.window.len();
        text
    }
}
