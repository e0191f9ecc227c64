//! From an answer's events to OpenAI's objects, whole or in chunks.
//!
//! What always holds: the chunk with the `finish_reason` of the choice that ends last is sent only when the answer's
//! receipt is there, and carries it; texts and logprobs of the chunks, joined, are those of the whole answer.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::echo::{Columns, Echo, PromptPiece, prompt_logprobs};
use super::error::ApiError;
use super::request::Kind;
use super::tools::{ToolCall, ToolReader};
use crate::model::Tokenizer;

/// A completion token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPiece {
    /// The token.
    pub id: u32,
    /// Its logprob, when asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// What is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerUsage {
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    /// Of all choices.
    pub completion_tokens: u64,
}

/// Something that happened to an answer, in order. `Done` or `Failed` is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerEvent {
    /// Logprobs of the next prompt tokens, from the second one on; before all completion tokens.
    Prompt(Vec<PromptPiece>),
    /// Completion tokens of one choice, and the text to show now.
    Tokens {
        /// Which choice.
        choice: u32,
        /// At least one.
        tokens: Vec<TokenPiece>,
        /// May lag behind the tokens.
        text: String,
    },
    /// A choice has ended.
    Finish {
        /// Which choice.
        choice: u32,
        /// `stop` or `length`.
        reason: String,
        /// The last of its text.
        text: String,
    },
    /// All is there and, where there is one, the receipt is verified.
    Done {
        /// Counts.
        usage: AnswerUsage,
        /// The `polylink` object.
        polylink: Option<Value>,
    },
    /// It failed; nothing is billed.
    Failed(ApiError),
}

/// What all objects of one answer have in common.
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) created: u64,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) logprobs: Option<u32>,
    pub(crate) echo: Option<Echo>,
    /// Logprobs of the prompt by themselves.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) token_ids: bool,
    pub(crate) include_usage: bool,
    pub(crate) prompt_token_ids: Vec<u32>,
    /// Reads calls of tools in a choice's text.
    pub(crate) tools: Option<ToolReader>,
}

fn usage_object(usage: &AnswerUsage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

impl Shape {
    fn object(&self, name: &str) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".into(), self.id.clone().into());
        object.insert("object".into(), name.into());
        object.insert("created".into(), self.created.into());
        object.insert("model".into(), self.model.clone().into());
        object
    }

    /// Calls as they stand in a message, each with an id of its own.
    fn calls(&self, choice: u32, calls: &[ToolCall]) -> Vec<Value> {
        let answer = self.id.rsplit('-').next().unwrap_or_default();
        calls.iter().enumerate().map(|(i, call)| call.to_json(format!("call_{answer}_{choice}_{i}"))).collect()
    }

    fn token_object(&self, id: u32, logprob: f32) -> Value {
        let text = self.tokenizer.token_text(id);
        // Those of a piece of a character, too: its text alone is U+FFFD.
        let bytes = self.tokenizer.token_bytes(id).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.unwrap_or_else(|| text.clone().into_bytes());
        json!({"bytes": bytes, "token": text, "logprob": logprob})
    }

    /// OpenAI's logprobs of some tokens: lists for chat, parallel arrays for completions.
    fn logprobs(&self, tokens: &[TokenPiece], text_offset: &mut usize) -> Value {
        if self.logprobs.is_none() {
            return Value::Null;
        }
        if self.kind == Kind::Chat {
            let content = tokens.iter().map(|token| {
                let mut object = self.token_object(token.id, token.logprob.unwrap_or_default());
                object["top_logprobs"] =
                    token.top.iter().map(|(id, logprob)| self.token_object(*id, *logprob)).collect();
                object
            });
            return json!({"content": content.collect::<Vec<_>>(), "refusal": null});
        }
        let mut columns = Columns::default();
        for token in tokens {
            let length = columns.push(&self.tokenizer, *text_offset, token.id, token.logprob, &token.top);
            *text_offset += length;
        }
        columns.into_json()
    }

    /// The prompt's part of a choice's logprobs.
    fn echoed_logprobs(&self, echo: &Echo, prompt: &[PromptPiece]) -> Value {
        let Some(top) = self.logprobs else { return Value::Null };
        echo.columns(&self.tokenizer, &self.prompt_token_ids, prompt, top as usize).into_json()
    }
}

/// Appends the lists of one object of logprobs to those of another.
fn append(to: &mut Value, mut from: Value) {
    if let Value::Object(lists) = to {
        for (name, list) in lists {
            if let (Value::Array(list), Value::Array(more)) = (list, from[name.as_str()].take()) {
                list.extend(more);
            }
        }
    }
}

/// Builds the chunks of a streamed answer.
pub(crate) struct Chunks {
    shape: Shape,
    prompt: Vec<PromptPiece>,
    choices: Vec<ChunkState>,
    /// The end of a choice, held back until it is known whether the answer ends with it.
    held: Option<(u32, String)>,
}

#[derive(Clone, Default)]
struct ChunkState {
    tools: Option<ToolReader>,
    started: bool,
    echoed: bool,
    text_offset: usize,
}

impl Chunks {
    pub(crate) fn new(shape: Shape, n: u32) -> Self {
        let state = ChunkState { tools: shape.tools.clone(), ..ChunkState::default() };
        Self { shape, prompt: vec![], choices: vec![state; n as usize], held: None }
    }

    /// The chunks that an event gives.
    pub(crate) fn take(&mut self, event: AnswerEvent) -> Vec<Value> {
        let mut out = Vec::new();
        match event {
            AnswerEvent::Prompt(pieces) => self.prompt.extend(pieces),
            AnswerEvent::Tokens { choice, tokens, text } => {
                out.extend(self.echo(choice));
                let text = match self.tools(choice) {
                    Some(reader) => reader.push(&text),
                    None => text,
                };
                if !text.is_empty() || self.shape.logprobs.is_some() || self.shape.token_ids {
                    out.push(self.chunk(choice, &text, &tokens, None));
                }
            }
            AnswerEvent::Finish { choice, reason, text } => {
                out.extend(self.release(None));
                out.extend(self.echo(choice));
                let (text, calls) = match self.tools(choice) {
                    Some(reader) => last_of(reader, &text),
                    None => (text, vec![]),
                };
                if !text.is_empty() {
                    out.push(self.chunk(choice, &text, &[], None));
                }
                if !calls.is_empty() {
                    let mut chunk = self.chunk(choice, "", &[], None);
                    let mut calls = self.shape.calls(choice, &calls);
                    calls.iter_mut().enumerate().for_each(|(i, call)| call["index"] = i.into());
                    let delta = &mut chunk["choices"][0]["delta"];
                    delta["tool_calls"] = calls.into();
                    delta["content"] = Value::Null;
                    out.push(chunk);
                    self.held = Some((choice, called(reason)));
                } else {
                    self.held = Some((choice, reason));
                }
            }
            AnswerEvent::Done { usage, polylink } => {
                out.extend(self.release(polylink));
                if self.shape.include_usage {
                    let mut last = self.shape.object(self.object_name());
                    last.insert("choices".into(), json!([]));
                    last.insert("usage".into(), usage_object(&usage));
                    out.push(last.into());
                }
            }
            AnswerEvent::Failed(error) => out.push(error.to_json()),
        }
        out
    }

    fn tools(&mut self, choice: u32) -> Option<&mut ToolReader> {
        self.choices.get_mut(choice as usize)?.tools.as_mut()
    }

    /// The prompt, before anything else of a choice.
    fn echo(&mut self, choice: u32) -> Option<Value> {
        let state = self.choices.get_mut(choice as usize).filter(|state| !state.echoed)?;
        state.echoed = true;
        let echo = self.shape.echo.take()?;
        state.text_offset = echo.length();
        let mut chunk = self.chunk(choice, echo.text(), &[], None);
        chunk["choices"][0]["logprobs"] = self.shape.echoed_logprobs(&echo, &self.prompt);
        self.shape.echo = Some(echo);
        Some(chunk)
    }

    fn release(&mut self, polylink: Option<Value>) -> Option<Value> {
        let (choice, reason) = self.held.take()?;
        let mut chunk = self.chunk(choice, "", &[], Some(&reason));
        if let Some(polylink) = polylink {
            chunk["polylink"] = polylink;
        }
        Some(chunk)
    }

    fn object_name(&self) -> &'static str {
        if self.shape.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn chunk(&mut self, choice: u32, text: &str, tokens: &[TokenPiece], finish: Option<&str>) -> Value {
        let mut state = self.choices.get(choice as usize).cloned().unwrap_or_default();
        let first = !std::mem::replace(&mut state.started, true);
        let mut object = self.shape.object(self.object_name());
        let mut entry = json!({"index": choice, "finish_reason": finish});
        entry["logprobs"] =
            if tokens.is_empty() { Value::Null } else { self.shape.logprobs(tokens, &mut state.text_offset) };
        if self.shape.kind == Kind::Chat {
            let mut delta = Map::new();
            if first {
                delta.insert("role".into(), "assistant".into());
            }
            if finish.is_none() {
                delta.insert("content".into(), text.into());
            }
            entry["delta"] = delta.into();
        } else {
            entry["text"] = text.into();
        }
        if self.shape.token_ids {
            entry["token_ids"] = tokens.iter().map(|token| token.id).collect();
            if first {
                object.insert("prompt_token_ids".into(), self.shape.prompt_token_ids.clone().into());
            }
        }
        object.insert("choices".into(), json!([entry]));
        if self.shape.include_usage {
            object.insert("usage".into(), Value::Null);
        }
        if let Some(kept) = self.choices.get_mut(choice as usize) {
            *kept = state;
        }
        object.into()
    }
}

/// The last text of a choice, and its calls.
fn last_of(reader: &mut ToolReader, text: &str) -> (String, Vec<ToolCall>) {
    let mut shown = reader.push(text);
    let (rest, calls) = reader.finish();
    shown.push_str(&rest);
    (shown, calls)
}

/// Why a choice with calls has ended.
fn called(reason: String) -> String {
    if reason == "stop" { "tool_calls".into() } else { reason }
}

/// Collects a whole answer.
pub(crate) struct Whole {
    shape: Shape,
    prompt: Vec<PromptPiece>,
    choices: Vec<WholeChoice>,
}

#[derive(Clone, Default)]
struct WholeChoice {
    text: String,
    tokens: Vec<TokenPiece>,
    calls: Vec<ToolCall>,
    finish: Option<String>,
}

impl Whole {
    pub(crate) fn new(shape: Shape, n: u32) -> Self {
        Self { shape, prompt: vec![], choices: vec![WholeChoice::default(); n as usize] }
    }

    /// Takes an event; the object once it is complete.
    pub(crate) fn take(&mut self, event: AnswerEvent) -> Result<Option<Value>, ApiError> {
        match event {
            AnswerEvent::Prompt(pieces) => self.prompt.extend(pieces),
            AnswerEvent::Tokens { choice, tokens, text } => {
                if let Some(state) = self.choices.get_mut(choice as usize) {
                    state.text.push_str(&text);
                    state.tokens.extend(tokens);
                }
            }
            AnswerEvent::Finish { choice, reason, text } => {
                if let Some(state) = self.choices.get_mut(choice as usize) {
                    state.text.push_str(&text);
                    state.finish = Some(reason);
                    if let Some(mut reader) = self.shape.tools.clone() {
                        (state.text, state.calls) = last_of(&mut reader, &state.text);
                        state.finish =
                            state.finish.take().map(|why| if state.calls.is_empty() { why } else { called(why) });
                    }
                }
            }
            AnswerEvent::Done { usage, polylink } => return Ok(Some(self.object(&usage, polylink))),
            AnswerEvent::Failed(error) => return Err(error),
        }
        Ok(None)
    }

    fn object(&self, usage: &AnswerUsage, polylink: Option<Value>) -> Value {
        let chat = self.shape.kind == Kind::Chat;
        let mut object = self.shape.object(if chat { "chat.completion" } else { "text_completion" });
        let told = self.shape.prompt_logprobs.map(|top| prompt_logprobs(&self.shape.tokenizer, &self.prompt, top));
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            let mut offset = self.shape.echo.as_ref().map_or(0, Echo::length);
            let mut logprobs = self.shape.logprobs(&choice.tokens, &mut offset);
            if let Some(echo) = &self.shape.echo {
                let completion = std::mem::replace(&mut logprobs, self.shape.echoed_logprobs(echo, &self.prompt));
                append(&mut logprobs, completion);
            }
            let mut entry = json!({"index": index, "finish_reason": choice.finish, "logprobs": logprobs});
            if chat {
                entry["message"] = json!({"role": "assistant", "content": choice.text, "refusal": null});
                if !choice.calls.is_empty() {
                    entry["message"]["tool_calls"] = self.shape.calls(index as u32, &choice.calls).into();
                    if choice.text.is_empty() {
                        entry["message"]["content"] = Value::Null;
                    }
                }
            } else {
                let prompt = self.shape.echo.as_ref().map_or("", Echo::text);
                entry["text"] = format!("{prompt}{}", choice.text).into();
                if let Some(told) = &told {
                    entry["prompt_logprobs"] = told.clone();
                }
            }
            if self.shape.token_ids {
                entry["token_ids"] = choice.tokens.iter().map(|token| token.id).collect();
                if !chat {
                    entry["prompt_token_ids"] = self.shape.prompt_token_ids.clone().into();
                }
            }
            entry
        });
        object.insert("choices".into(), choices.collect());
        object.insert("usage".into(), usage_object(usage));
        if let Some(told) = told.filter(|_| chat) {
            object.insert("prompt_logprobs".into(), told);
        }
        if self.shape.token_ids && chat {
            object.insert("prompt_token_ids".into(), self.shape.prompt_token_ids.clone().into());
        }
        if let Some(polylink) = polylink {
            object.insert("polylink".into(), polylink);
        }
        object.into()
    }
}
