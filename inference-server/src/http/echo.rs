//! The prompt in an answer: its text before the completion's (`echo`), and what the model thinks of its tokens, as OpenAI
//! lists it (`logprobs` with `echo`) and as vLLM maps it (`prompt_logprobs`).

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::model::{Detokenizer, Tokenizer};

/// A prompt token after those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptPiece {
    /// The token.
    pub id: u32,
    /// Its logprob.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    pub rank: u32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// A prompt's text.
pub(crate) struct Echo {
    text: String,
    /// Where each token's text begins in it, in characters.
    offsets: Vec<usize>,
    length: usize,
}

impl Echo {
    /// As it was sent, or what its tokens decode to. Takes as long as the prompt is long.
    pub(crate) fn new(sent: Option<String>, ids: &[u32], tokenizer: &Arc<Tokenizer>) -> Self {
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer));
        let (mut decoded, mut offsets) = (String::new(), Vec::with_capacity(ids.len()));
        let mut offset = 0;
        for &id in ids {
            offsets.push(offset);
            let piece = detokenizer.push(id);
            offset += piece.chars().count();
            decoded.push_str(&piece);
        }
        decoded.push_str(&detokenizer.finish());
        let text = sent.unwrap_or_else(|| decoded.clone());
        let length = text.chars().count();
        // Some tokenizers put a blank before a text.
        let blank = usize::from(decoded.starts_with(' ') && !text.starts_with(' '));
        offsets.iter_mut().for_each(|offset| *offset = offset.saturating_sub(blank).min(length));
        Self { text, offsets, length }
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Its characters.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// OpenAI's logprobs of the prompt: none of the first token.
    pub(crate) fn columns(&self, tokenizer: &Tokenizer, ids: &[u32], told: &[PromptPiece], top: usize) -> Columns {
        let mut columns = Columns::default();
        for (i, (&id, &offset)) in ids.iter().zip(&self.offsets).enumerate() {
            let piece = i.checked_sub(1).and_then(|before| told.get(before));
            let best = piece.map_or(&[][..], |piece| &piece.top[..piece.top.len().min(top)]);
            columns.push(tokenizer, offset, id, piece.map(|piece| piece.logprob), best);
        }
        columns
    }
}

/// OpenAI's logprobs of a completion: parallel lists.
#[derive(Default)]
pub(crate) struct Columns {
    offsets: Vec<usize>,
    names: Vec<String>,
    own: Vec<Option<f32>>,
    top: Vec<Option<Map<String, Value>>>,
}

impl Columns {
    /// Appends a token and the likeliest at its place, itself among them, or nothing where there is no logprob; returns its
    /// characters.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        offset: usize,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
    ) -> usize {
        let best = logprob.map(|own| {
            let mut best = Map::new();
            for &(id, logprob) in top.iter().chain(&[(id, own)]) {
                best.entry(tokenizer.token_text(id)).or_insert(json!(logprob));
            }
            best
        });
        let name = tokenizer.token_text(id);
        let length = name.chars().count();
        self.offsets.push(offset);
        self.names.push(name);
        self.own.push(logprob);
        self.top.push(best);
        length
    }

    pub(crate) fn into_json(self) -> Value {
        json!({"text_offset": self.offsets, "token_logprobs": self.own, "tokens": self.names, "top_logprobs": self.top})
    }
}

/// vLLM's list over the prompt's positions: token id to logprob, rank and text, of the likeliest tokens and of the prompt's
/// own.
pub(crate) fn prompt_logprobs(tokenizer: &Tokenizer, told: &[PromptPiece], top: u32) -> Value {
    let entry = |id: u32, logprob: f32, rank: usize| {
        (id.to_string(), json!({"logprob": logprob, "rank": rank, "decoded_token": tokenizer.token_text(id)}))
    };
    let of = |piece: &PromptPiece| {
        let best =
            piece.top.iter().take(top as usize).enumerate().map(|(i, (id, logprob))| entry(*id, *logprob, i + 1));
        Value::Object(best.chain([entry(piece.id, piece.logprob, piece.rank as usize)]).collect())
    };
    [Value::Null].into_iter().chain(told.iter().map(of)).collect()
}
