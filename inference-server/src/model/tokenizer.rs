//! Text to token ids and back: a `tokenizer.json` through the `tokenizers` crate, and decoding token by token.
//!
//! What always holds: the pieces that a [`Detokenizer`] gives, joined, are what decoding all of its tokens behind other text
//! gives (special tokens skipped; decoders that drop the blank at the beginning of a text do not drop it there), and a
//! piece never ends inside a character; except that bytes which make no character within 16 tokens are given out as
//! U+FFFD. Text is never held back longer than that.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::config::read_bounded;
use super::error::ModelError;

/// Largest `tokenizer.json`.
pub(super) const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Takes the texts of special tokens for ordinary text.
    plain: tokenizers::Tokenizer,
    /// Finds the texts of special tokens; `None`: there are none.
    special: Option<AhoCorasick>,
    /// Added tokens, which are spelt as they are, and whether they are special.
    added: HashMap<u32, bool>,
    spelling: Spelling,
    /// A text's tokens to decode others behind, where a decoder drops the first blank.
    anchor: Vec<u32>,
}

/// How the vocabulary spells bytes, by the decoder of `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte (GPT-2's table).
    ByteLevel,
    /// Text, with a mark for the blank, and `<0xNN>` for single bytes (SentencePiece).
    Text {
        /// Such as U+2581.
        blank: Option<char>,
        bytes: bool,
    },
    /// Pieces that are more than their bytes, such as `##ing`.
    Other,
}

impl Spelling {
    fn of(decoder: &Value) -> Self {
        let one = std::slice::from_ref(decoder);
        let list = decoder["decoders"].as_array().map_or(one, Vec::as_slice);
        let (mut blank, mut bytes) = (None, false);
        for decoder in list {
            match decoder["type"].as_str() {
                Some("ByteLevel") => return Self::ByteLevel,
                Some("ByteFallback") => bytes = true,
                Some("Metaspace") => {
                    blank = decoder["replacement"].as_str().and_then(|text| text.chars().next()).or(Some('\u{2581}'));
                }
                Some("Replace") if decoder["content"] == " " => {
                    blank = decoder["pattern"]["String"].as_str().and_then(|text| text.chars().next());
                }
                Some("Replace" | "Fuse" | "Strip") | None => {}
                Some(_) => return Self::Other,
            }
        }
        Self::Text { blank, bytes }
    }
}

/// The byte that a character stands for in GPT-2's table: printable ones stand for themselves, the others follow from
/// U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::File`]; [`ModelError::Damaged`] if it is not a tokenizer.
    pub fn open(file: &Path) -> Result<Self, ModelError> {
        Self::parse(&read_bounded(file, TOKENIZER_BYTES_MAX)?, file)
    }

    /// Reads the text of a `tokenizer.json`; `file` is named in errors.
    ///
    /// # Errors
    /// [`ModelError::Damaged`] if it is not a tokenizer.
    pub(super) fn parse(text: &[u8], file: &Path) -> Result<Self, ModelError> {
        let damaged = |reason: String| ModelError::Damaged { file: file.to_owned(), reason };
        // The tokenizers crate panics on some malformed files: JSON that is none is found here, the rest is caught.
        let json: Value = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text))
            .map_err(|_| damaged("it is not a tokenizer that is understood".into()))?
            .map_err(|error| damaged(error.to_string()))?;
        let tokens = inner.get_added_tokens_decoder();
        let added = tokens.iter().map(|(id, token)| (*id, token.special)).collect();
        let special = tokens.into_values().filter(|token| token.special && !token.content.is_empty());
        let special: Vec<String> = special.map(|token| token.content).collect();
        let special = (!special.is_empty())
            .then(|| AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&special))
            .transpose()
            .map_err(|error| damaged(error.to_string()))?;
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let spelling = Spelling::of(&json["decoder"]);
        let mut tokenizer = Self { inner, plain, special, added, spelling, anchor: vec![] };
        if matches!(spelling, Spelling::Text { blank: Some(_), .. }) {
            let anchor = tokenizer.encode_plain("a").unwrap_or_default();
            if tokenizer.decode(&anchor).ends_with('a') {
                tokenizer.anchor = anchor;
            }
        }
        Ok(tokenizer)
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The same without added ones. Those may lie beyond the model's vocabulary (Gemma 3 has one for images, which its
    /// text models do not know): the engine refuses a prompt with such a token.
    pub(crate) fn base_vocabulary(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// Token ids of a text in which the texts of special tokens mean these tokens: rendered chat templates.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`], which a byte-level tokenizer never gives.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode(&self.inner, text)
    }

    /// As [`Tokenizer::encode`]; with the special tokens that the tokenizer itself puts around a text, such as a first
    /// one, if they are wanted.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_whole(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        encode_with(&self.inner, text, add_special_tokens)
    }

    /// Token ids of a user's text: special tokens that are written out in it stay ordinary text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = encode(&self.plain, text)?;
        let is_special = |id: &u32| self.added.get(id) == Some(&true);
        if !ids.iter().any(is_special) {
            return Ok(ids);
        }
        // The model itself has it as a piece (Unigram): it does not find it in two halves.
        let cut = self.specials_in(text).next();
        let cut = cut.and_then(|Range { start, .. }| Some(start + text[start..].chars().next()?.len_utf8()));
        match cut.filter(|cut| *cut < text.len()) {
            Some(cut) => Ok([self.encode_plain(&text[..cut])?, self.encode_plain(&text[cut..])?].concat()),
            None => {
                ids.retain(|id| !is_special(id));
                Ok(ids)
            }
        }
    }

    /// Whether a text contains the text of a special token.
    pub fn has_special(&self, text: &str) -> bool {
        self.special.as_ref().is_some_and(|special| special.is_match(text))
    }

    /// The texts of special tokens in a text, one after the other, the longest where several begin. Takes time in proportion
    /// to the text: a message may be full of them.
    pub fn specials_in<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.special.iter().flat_map(move |special| special.find_iter(text)).map(|found| found.range())
    }

    /// The text of token ids, special tokens skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        // The crate's only errors are of exotic decoders; an unknown id decodes to nothing.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// The text of token ids, special tokens by their names.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// The id of a token given by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that a token adds to a text; none for special tokens and ids that are none. `None`: this tokenizer's
    /// pieces are more than their bytes.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let special = self.added.get(&id);
        let piece = self.inner.id_to_token(id).filter(|_| special != Some(&true)).unwrap_or_default();
        match self.spelling {
            Spelling::Other => None,
            _ if special.is_some() => Some(piece.into_bytes()),
            // A piece with a character beyond the table stands for no bytes that a decoder would give.
            Spelling::ByteLevel => Some(piece.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_default()),
            Spelling::Text { blank, bytes } => {
                let byte = piece.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>')).filter(|_| bytes);
                if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return Some(vec![byte]);
                }
                Some(blank.map_or(piece.clone(), |mark| piece.replace(mark, " ")).into_bytes())
            }
        }
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
    encode_with(tokenizer, text, false)
}

fn encode_with(tokenizer: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
    tokenizer
        .encode_fast(text, special)
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
        let window = tokenizer.anchor.clone();
        Self { given: window.len(), tokenizer, window }
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
        if text.is_empty() {
            // A special token: what is decoded behind it has the same text before it.
            self.window.truncate(self.given);
            return text;
        }
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

#[cfg(test)]
#[path = "tokenizer/tests.rs"]
mod tests;
