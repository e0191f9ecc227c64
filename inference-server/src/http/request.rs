//! `/v1/chat/completions` and `/v1/completions`: from a body to what is to be answered.
//!
//! Three kinds of fields: those that are obeyed; those that would change the answer and are not built, which get a 400
//! that names them; and the rest, which are ignored and named in the header `x-polylink-ignored-fields`.

use polylink_protocol::market_v1::Sampling;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, expected};
use super::grammar::{AskedGrammar, grammar};
use super::sampling::{client_seed, sampling, token_ids};
use super::tools::{Dialect, ToolChoice, ToolReader, Tools, tools};
use crate::engine::scheduler::PRIORITY_MAX;
use crate::model::{ChatMessage, Conversation};

/// Most messages of a conversation.
const MESSAGES_MAX: usize = 2_048;
/// Most token ids of a prompt.
const PROMPT_IDS_MAX: usize = 1 << 20;
/// Most logprobs per token.
const TOP_LOGPROBS_MAX: i64 = 20;
/// What `/v1/completions` generates when `max_tokens` is absent, as OpenAI documents it.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// Which endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation for the model's chat template.
    Chat(Box<Conversation>),
    /// A text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Parameters that a request did not name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unset {
    /// `temperature`.
    pub temperature: bool,
    /// `top_p`.
    pub top_p: bool,
    /// `top_k`.
    pub top_k: bool,
    /// `repetition_penalty`.
    pub repetition_penalty: bool,
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerRequest {
    /// Which endpoint.
    pub kind: Kind,
    /// The model's name.
    pub model: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Everything that changes which tokens come out; `max_tokens` 0 means as many as the context holds.
    pub sampling: Sampling,
    /// Which of these the request left to the model's generation config.
    pub unset: Unset,
    /// From the client's `seed`; absent: 32 random bytes are to be drawn.
    pub seed: Option<[u8; 32]>,
    /// Absent: no logprobs; else so many alternatives per token.
    pub logprobs: Option<u32>,
    /// The text begins with the prompt, and so do the logprobs.
    pub echo: bool,
    /// Absent: no logprobs of the prompt's tokens by themselves; else so many alternatives per token.
    pub prompt_logprobs: Option<u32>,
    /// No token is to be drawn: the echo is the answer.
    pub prompt_only: bool,
    /// What every choice must look like; its digest is not yet in `sampling`.
    pub grammar: Option<AskedGrammar>,
    /// Tools that the model may call, or must.
    pub tools: Option<Tools>,
    /// Smaller goes first, as vLLM has it; absent: 0.
    pub priority: Option<i32>,
    /// Special tokens that the tokenizer puts around a text, such as a first one; absent: around texts, not around
    /// conversations, whose template has them.
    pub add_special_tokens: Option<bool>,
    /// Server-sent events.
    pub stream: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// Token ids beside the texts.
    pub return_token_ids: bool,
    /// Ignored fields, to be named in the answer's header.
    pub ignored: Vec<String>,
}

/// Whether a value asks for nothing that is not done anyway.
type MeansNothing = fn(&Value) -> bool;

/// Fields that would change the answer: name, what is said, and which values mean nothing.
const REFUSED: &[(&str, &str, MeansNothing)] = &[
    ("functions", "leave it out", is_empty),
    ("function_call", "leave it out, or send \"none\" or \"auto\"", is_auto),
    ("modalities", "leave it out, or send [\"text\"]", |v| *v == serde_json::json!(["text"])),
    ("audio", "leave it out", is_empty),
    ("prediction", "leave it out", is_empty),
    ("web_search_options", "leave it out", |_| false),
    ("reasoning_effort", "leave it out, or send \"none\"", |v| v == "none"),
    ("verbosity", "leave it out, or send \"medium\"", |v| v == "medium"),
    ("best_of", "leave it out, or send 1; use `n` for several choices", |v| *v == 1),
    ("suffix", "leave it out", |v| v == ""),
    ("use_beam_search", "leave it out, or send false", |v| *v == false),
    ("include_stop_str_in_output", "leave it out, or send false", |v| *v == false),
    ("skip_special_tokens", "leave it out, or send true; `return_token_ids` gives them all", |v| *v == true),
    ("return_tokens_as_token_ids", "use `return_token_ids`", |v| *v == false),
    ("length_penalty", "leave it out, or send 1", |v| v.as_f64() == Some(1.0)),
    ("bad_words", "use `logit_bias`", is_empty),
    ("allowed_token_ids", "use `logit_bias`", is_empty),
    ("logits_processors", "leave it out", is_empty),
    ("truncate_prompt_tokens", "shorten the prompt", |_| false),
    ("prompt_embeds", "send token ids", is_empty),
    ("chat_template", "the model's own template is part of its profile", |_| false),
    ("add_generation_prompt", "leave it out, or send true", |v| *v == true),
    ("continue_final_message", "leave it out, or send false", |v| *v == false),
    ("documents", "put them into a message", is_empty),
    ("lora", "leave it out", is_empty),
];

/// Fields that are known and change nothing here.
const HARMLESS: &[&str] = &["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn is_auto(value: &Value) -> bool {
    value == "none" || value == "auto"
}

impl AnswerRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 that names the field and what is expected.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        for (name, instead, means_nothing) in REFUSED {
            if fields.take(name).is_some_and(|value| !means_nothing(&value)) {
                return Err(ApiError::unsupported(name, instead));
            }
        }
        for name in HARMLESS {
            fields.take(name);
        }
        let model = fields
            .text("model")?
            .ok_or_else(|| ApiError::field("model", "`model` is missing: name one of GET /v1/models"))?;
        let prompt = prompt_of(kind, &mut fields)?;
        let limit = i64::from(u32::MAX);
        let echo = fields.boolean("echo")?.unwrap_or(false);
        if echo && kind == Kind::Chat {
            return Err(ApiError::unsupported("echo", "use /v1/completions"));
        }
        let least = i64::from(!echo);
        let max_tokens = fields.integer("max_tokens", least, limit)?;
        let max_tokens = fields.integer("max_completion_tokens", least, limit)?.or(max_tokens).map(|n| n as u32);
        let prompt_only = max_tokens == Some(0);
        let default = if kind == Kind::Chat { 0 } else { COMPLETION_TOKENS_DEFAULT };
        let unset = Unset {
            temperature: !fields.has("temperature"),
            top_p: !fields.has("top_p"),
            top_k: !fields.has("top_k"),
            repetition_penalty: !fields.has("repetition_penalty"),
        };
        let sampling = sampling(&mut fields, max_tokens.unwrap_or(default))?;
        if prompt_only && sampling.min_tokens > 0 {
            return Err(ApiError::field("min_tokens", "`min_tokens` is more than max_tokens (0)"));
        }
        let grammar = grammar(&mut fields)?;
        let tools = if kind == Kind::Chat { tools(&mut fields)? } else { None };
        if let (Some(grammar), Some(Tools { choice: ToolChoice::Required | ToolChoice::Named(_), .. })) =
            (&grammar, &tools)
        {
            let message = format!("`tool_choice` and `{}` both constrain the answer", grammar.field);
            return Err(ApiError::field("tool_choice", message));
        }
        let logprobs = match kind {
            Kind::Chat => chat_logprobs(&mut fields)?,
            Kind::Completion => fields.integer("logprobs", 0, TOP_LOGPROBS_MAX)?.map(|n| n as u32),
        };
        let prompt_logprobs = fields.integer("prompt_logprobs", 0, TOP_LOGPROBS_MAX)?.map(|n| n as u32);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        if stream && prompt_logprobs.is_some() {
            let message =
                "`prompt_logprobs` come with a whole answer: leave out `stream`, or use `echo` and `logprobs`";
            return Err(ApiError::field("prompt_logprobs", message));
        }
        let include_usage = stream_options(&mut fields, stream)?;
        Ok(Self {
            kind,
            model,
            prompt,
            sampling,
            unset,
            seed: fields.integer("seed", i64::MIN, i64::MAX)?.map(client_seed),
            logprobs,
            echo,
            prompt_logprobs,
            prompt_only,
            grammar,
            tools,
            priority: fields.integer("priority", i64::from(-PRIORITY_MAX), i64::from(PRIORITY_MAX))?.map(|p| p as i32),
            add_special_tokens: fields.boolean("add_special_tokens")?,
            stream,
            include_usage,
            return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            ignored: fields.rest(),
        })
    }
}

/// The conversation, or the text or token ids.
pub(crate) fn prompt_of(kind: Kind, fields: &mut Fields) -> Result<Prompt, ApiError> {
    match kind {
        Kind::Chat => {
            let messages = messages(fields)?;
            let variables = match fields.take("chat_template_kwargs") {
                None => Map::new(),
                Some(Value::Object(map)) => map,
                Some(other) => return Err(expected("chat_template_kwargs", &other, "an object")),
            };
            Ok(Prompt::Chat(Box::new(Conversation { messages, tools: vec![], variables })))
        }
        Kind::Completion => prompt(fields),
    }
}

impl AnswerRequest {
    /// Alternatives per prompt token that somebody has to compute; None: no logprobs of the prompt are asked for.
    pub fn scored_prompt(&self) -> Option<u32> {
        self.logprobs.filter(|_| self.echo).max(self.prompt_logprobs)
    }

    /// Puts the tools where the template finds them, and returns what reads their calls.
    pub(crate) fn take_tools(&mut self, dialect: Option<Dialect>) -> Option<ToolReader> {
        let (tools, dialect) = self.tools.take().zip(dialect)?;
        let reader = tools.reader(dialect);
        if let Prompt::Chat(conversation) = &mut self.prompt {
            conversation.tools = tools.list;
        }
        Some(reader)
    }
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    if top.is_some_and(|n| n > 0) && !wanted {
        return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
    }
    Ok(wanted.then_some(top.unwrap_or(0) as u32))
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    match fields.take("stream_options") {
        None => Ok(false),
        Some(_) if !stream => Err(ApiError::field("stream_options", "`stream_options` needs `stream`: true")),
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(wanted)) => Ok(*wanted),
            Some(other) => Err(expected("stream_options.include_usage", other, "true or false")),
        },
        Some(other) => Err(expected("stream_options", &other, "an object such as {\"include_usage\": true}")),
    }
}

fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    const WHAT: &str = "a text or a list of token ids (one prompt per request)";
    match fields.take("prompt") {
        None => Err(ApiError::field("prompt", format!("`prompt` is missing: {WHAT} is expected"))),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(mut list)) if list.len() == 1 && !list[0].is_number() => match list.remove(0) {
            Value::String(text) => Ok(Prompt::Text(text)),
            inner @ Value::Array(_) => ids_of(inner),
            other => Err(expected("prompt", &other, WHAT)),
        },
        Some(Value::Array(list)) if list.len() > 1 && !list[0].is_number() => {
            Err(ApiError::unsupported("prompt", "send one prompt per request"))
        }
        Some(list @ Value::Array(_)) => ids_of(list),
        Some(other) => Err(expected("prompt", &other, WHAT)),
    }
}

fn ids_of(list: Value) -> Result<Prompt, ApiError> {
    let mut one = Fields::parse(serde_json::json!({ "prompt": list }).to_string().as_bytes())?;
    let ids = token_ids(&mut one, "prompt", PROMPT_IDS_MAX)?.unwrap_or_default();
    if ids.is_empty() {
        return Err(ApiError::field("prompt", "`prompt` is an empty list: at least one token is expected"));
    }
    Ok(Prompt::Ids(ids))
}

fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    const WHAT: &str = "a list of {\"role\", \"content\"}";
    let list = match fields.take("messages") {
        None => return Err(ApiError::field("messages", format!("`messages` is missing: {WHAT} is expected"))),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(expected("messages", &other, WHAT)),
    };
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let message = format!("`messages` has {} entries, 1 to {MESSAGES_MAX} are expected", list.len());
        return Err(ApiError::field("messages", message));
    }
    list.into_iter().enumerate().map(|(i, value)| message(i, value)).collect()
}

fn message(i: usize, value: Value) -> Result<ChatMessage, ApiError> {
    const ROLES: &str = "system, user, assistant or tool";
    let at = |field: &str| format!("messages[{i}].{field}");
    let Value::Object(mut map) = value else {
        return Err(expected(&format!("messages[{i}]"), &value, "an object with role and content"));
    };
    let role = match map.remove("role") {
        Some(Value::String(role)) => role,
        other => return Err(expected(&at("role"), &other.unwrap_or_default(), ROLES)),
    };
    let role = match role.as_str() {
        "system" | "user" | "assistant" | "tool" => role,
        // OpenAI's newer name of the same role.
        "developer" => "system".into(),
        "function" => return Err(ApiError::unsupported(&at("role"), "use `tool`")),
        _ => return Err(expected(&at("role"), &Value::String(role), ROLES)),
    };
    for name in ["function_call", "audio"] {
        if map.remove(name).is_some_and(|v| !v.is_null() && !is_empty(&v)) {
            return Err(ApiError::unsupported(&at(name), "leave it out"));
        }
    }
    let mut more = Map::new();
    if let Some(calls) = map.remove("tool_calls").filter(|v| !v.is_null() && !is_empty(v)) {
        more.insert("tool_calls".into(), tool_calls(calls, &at("tool_calls"))?);
    }
    for name in ["tool_call_id", "name", "reasoning_content"] {
        match map.remove(name) {
            None | Some(Value::Null) => {}
            Some(text @ Value::String(_)) => drop(more.insert(name.into(), text)),
            Some(other) => return Err(expected(&at(name), &other, "a text")),
        }
    }
    let content = match map.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| text_part(part, &at("content"))).collect::<Result<String, _>>()?
        }
        None | Some(Value::Null) if more.contains_key("tool_calls") => String::new(),
        other => return Err(expected(&at("content"), &other.unwrap_or_default(), "a text or a list of text parts")),
    };
    Ok(ChatMessage { role, content, more })
}

/// Calls that an assistant has made. Their arguments come as JSON in a text, and templates expect the object.
fn tool_calls(calls: Value, name: &str) -> Result<Value, ApiError> {
    const WHAT: &str = "a list of {\"id\", \"type\": \"function\", \"function\": {\"name\", \"arguments\"}}";
    let Value::Array(mut list) = calls else { return Err(expected(name, &calls, WHAT)) };
    for call in &mut list {
        if !call["function"]["name"].is_string() {
            return Err(expected(name, call, WHAT));
        }
        let parsed = match &call["function"]["arguments"] {
            Value::Object(_) => continue,
            Value::String(text) => serde_json::from_str::<Map<String, Value>>(text).ok(),
            Value::Null => Some(Map::new()),
            _ => None,
        };
        let arguments =
            parsed.ok_or_else(|| ApiError::field(name, format!("`{name}`: arguments are no JSON object")))?;
        call["function"]["arguments"] = Value::Object(arguments);
    }
    Ok(Value::Array(list))
}

fn text_part<'a>(part: &'a Value, name: &str) -> Result<&'a str, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (Some("text") | None, _) => Err(expected(name, part, "parts of the form {\"type\": \"text\", \"text\": …}")),
        (Some(other), _) => {
            Err(ApiError::unsupported(name, &format!("parts of type {other:?} are not built, only text")))
        }
    }
}

#[cfg(test)]
mod tests;
