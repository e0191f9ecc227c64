//! Grammars: which tokens may be drawn next, so that an answer can only be what its request describes.
//!
//! A grammar is a text `kind:definition`: `json:` with a JSON schema, `regex:` with a regular expression that the whole
//! answer matches, `lark:` with a context-free grammar. The request names it by digest, the transcript carries it, and a
//! judge's replay computes the same masks: they are a pure function of (grammar, vocabulary, tokens so far). `llguidance`
//! does the work; its version belongs to the numerics, since another one might mask otherwise.
//!
//! What always holds: at least one token may be drawn. Where the grammar is complete, or cannot go on (no token fits, or a
//! limit of this module is reached), these are the model's end tokens and nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use polylink_protocol::market::grammar_digest;
use serde_json::{Value, json};

use crate::model::{LoadedModel, Tokenizer};

/// Longest text of a grammar.
pub const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Grammars that are kept compiled, the newest.
const COMPILED_MAX: usize = 16;
/// Longest reason that is passed on.
const REASON_CHARS_MAX: usize = 300;
/// Between the parts of a JSON text: at most one blank, or a new line that is indented by at most 16; unbounded white space
/// would let a model fill its answer with it.
const JSON_WHITE_SPACE: &str = r"[ ]|\n[ ]{0,16}";

/// Why a grammar is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The text is too long.
    #[error("it has {bytes} bytes, at most {GRAMMAR_BYTES_MAX} are taken")]
    TooLong {
        /// Of its text.
        bytes: usize,
    },
    /// It is not `json:`, `regex:` or `lark:`.
    #[error("its kind is none of json, regex, lark")]
    Kind,
    /// It is malformed, asks for something that cannot be enforced, or is too large to be.
    #[error("{0}")]
    Refused(String),
    /// The model cannot end an answer, or its tokens' bytes are not known.
    #[error("this model cannot be held to a grammar: {0}")]
    Model(String),
}

/// A model's side of grammars: its vocabulary as bytes, made when the first grammar is compiled.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    end_tokens: Arc<[u32]>,
    vocabulary: usize,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    /// Newest last; each as it was before its first mask.
    compiled: Mutex<VecDeque<(Vec<u8>, Matcher)>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model's vocabulary.
    pub fn of(model: &LoadedModel) -> Self {
        Self {
            tokenizer: Arc::clone(model.tokenizer()),
            end_tokens: model.end_tokens().into(),
            vocabulary: model.config().vocab_size,
            factory: OnceLock::new(),
            compiled: Mutex::default(),
        }
    }

    /// Compiles a grammar to the state before the first token. Takes milliseconds: call it from a thread that may block.
    ///
    /// # Errors
    /// Why it cannot be enforced.
    pub fn compile(&self, text: &str) -> Result<GrammarState, GrammarError> {
        if text.len() > GRAMMAR_BYTES_MAX {
            return Err(GrammarError::TooLong { bytes: text.len() });
        }
        let digest = grammar_digest(Some(text));
        let known = self.lock().iter().find(|(known, _)| *known == digest).map(|(_, matcher)| matcher.deep_clone());
        let matcher = match known {
            Some(matcher) => matcher,
            None => {
                let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
                let matcher = Matcher::new(factory.create_parser(top_level(text)?));
                if let Some(reason) = matcher.get_error() {
                    return Err(GrammarError::Refused(short(&reason)));
                }
                let mut compiled = self.lock();
                if compiled.len() == COMPILED_MAX {
                    compiled.pop_front();
                }
                compiled.push_back((digest, matcher.deep_clone()));
                matcher
            }
        };
        Ok(GrammarState {
            matcher,
            end_tokens: Arc::clone(&self.end_tokens),
            mask: vec![0; self.vocabulary.div_ceil(32)],
            vocabulary: self.vocabulary,
            stuck: false,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Vec<u8>, Matcher)>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let model = |reason: &str| GrammarError::Model(reason.into());
        let end_tokens: Vec<u32> =
            self.end_tokens.iter().copied().filter(|token| (*token as usize) < self.vocabulary).collect();
        let first = *end_tokens.first().ok_or_else(|| model("it has no end token"))?;
        let mut words = Vec::with_capacity(self.vocabulary);
        for token in 0..self.vocabulary as u32 {
            let bytes = self.tokenizer.token_bytes(token);
            let bytes = bytes.ok_or_else(|| model("its tokenizer's decoder is of another kind"))?;
            words.push(if end_tokens.contains(&token) { vec![] } else { bytes });
        }
        let trie = TokTrie::from(&TokRxInfo::new(self.vocabulary as u32, first), &words).with_eos_tokens(&end_tokens);
        // Any tokens that spell a text may be drawn for it, not only those that the tokenizer would choose.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| model(&short(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(factory)
    }
}

/// What a grammar may cost. Fuel is counted, not timed, so that a judge runs out where the worker did.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        // About 20 ms.
        initial_lexer_fuel: 1_000_000,
        // About 7 ms per token, and as much for items.
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        // About 20 MB per choice.
        max_lexer_states: 10_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

fn top_level(text: &str) -> Result<TopLevelGrammar, GrammarError> {
    let (kind, definition) = text.split_once(':').ok_or(GrammarError::Kind)?;
    match kind {
        "json" => {
            let refused = |error: serde_json::Error| GrammarError::Refused(format!("it is not JSON: {error}"));
            let mut schema: Value = serde_json::from_str(definition).map_err(refused)?;
            if schema == Value::Bool(true) {
                schema = json!({});
            }
            if !schema.is_object() {
                return Err(GrammarError::Refused("a JSON schema is an object".into()));
            }
            in_json_style(&mut schema);
            Ok(TopLevelGrammar::from_json_schema(schema))
        }
        "regex" => Ok(TopLevelGrammar::from_regex(unanchored(definition))),
        "lark" => Ok(TopLevelGrammar::from_lark(definition.to_owned())),
        _ => Err(GrammarError::Kind),
    }
}

/// Notes in a schema, which is an object, how JSON texts are written here; for schemas within a `lark:` grammar.
pub fn in_json_style(schema: &mut Value) {
    if schema.is_object() {
        let white_space = Some(JSON_WHITE_SPACE.to_owned());
        JsonCompileOptions { whitespace_pattern: white_space, ..Default::default() }.apply_to(schema);
    }
}

/// The whole answer matches in any case: an anchor at either end says nothing more.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

/// What the library says in its first line, and the error at the end of it where that has several.
fn short(reason: &str) -> String {
    let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    if first.is_empty() || first.starts_with("panic") {
        return "it cannot be compiled".into();
    }
    let error = lines.find_map(|line| line.strip_prefix("error: "));
    let whole = error.map_or(first.to_owned(), |error| format!("{first} {error}"));
    whole.chars().take(REASON_CHARS_MAX).collect()
}

/// Where one choice stands in its grammar.
pub struct GrammarState {
    matcher: Matcher,
    end_tokens: Arc<[u32]>,
    /// Bit `t % 32` of word `t / 32`: token `t` may be drawn.
    mask: Vec<u32>,
    vocabulary: usize,
    stuck: bool,
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarState").field("stuck", &self.stuck).finish_non_exhaustive()
    }
}

impl GrammarState {
    /// The same state for another choice, sharing nothing.
    pub(crate) fn separate(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            end_tokens: Arc::clone(&self.end_tokens),
            mask: vec![0; self.mask.len()],
            vocabulary: self.vocabulary,
            stuck: self.stuck,
        }
    }

    /// Words of a mask.
    pub fn words(&self) -> usize {
        self.mask.len()
    }

    /// Which tokens may be drawn next; to be asked once before each token. Those in `held_back` may not, unless nothing
    /// else may.
    pub fn mask(&mut self, held_back: &[u32]) -> &[u32] {
        self.mask.fill(0);
        let complete = self.matcher.is_stopped() && !self.matcher.is_error();
        if !self.stuck && !complete {
            match self.matcher.compute_mask() {
                Ok(allowed) => self.mask.iter_mut().zip(allowed.as_slice()).for_each(|(word, found)| *word = *found),
                Err(error) => self.give_up(&error.to_string()),
            }
            // The library sets bits beyond the vocabulary.
            if let (Some(last), rest @ 1..) = (self.mask.last_mut(), self.vocabulary % 32) {
                *last &= (1 << rest) - 1;
            }
        }
        if self.mask.iter().all(|word| *word == 0) {
            for &token in &*self.end_tokens {
                set(&mut self.mask, token);
            }
        }
        let set_bits: u32 = self.mask.iter().map(|word| word.count_ones()).sum();
        let held = held_back.iter().filter(|token| is_set(&self.mask, **token)).count();
        if (held as u32) < set_bits {
            for &token in held_back {
                clear(&mut self.mask, token);
            }
        }
        &self.mask
    }

    /// Takes a drawn token.
    pub fn accept(&mut self, token: u32) {
        if self.stuck || self.end_tokens.contains(&token) {
            return;
        }
        if let Err(error) = self.matcher.consume_token(token) {
            self.give_up(&error.to_string());
        }
    }

    /// The answer could not be completed: it ends where no token fitted, or a limit was reached.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    fn give_up(&mut self, reason: &str) {
        tracing::debug!(reason = short(reason), "a grammar cannot go on");
        self.stuck = true;
    }
}

fn is_set(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn set(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}

fn clear(mask: &mut [u32], token: u32) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word &= !(1 << (token % 32));
    }
}

#[cfg(test)]
#[path = "grammar/tests.rs"]
mod tests;
