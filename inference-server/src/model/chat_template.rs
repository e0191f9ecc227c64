//! The chat template of `tokenizer_config.json`: a conversation to token ids.
//!
//! Templates are Jinja as transformers runs it: [`super::python`] has what they expect of Python.
//!
//! What always holds: text that a user wrote never becomes a special token. A conversation without such texts is encoded
//! as one rendered text, as everybody does; otherwise those texts are encoded apart from what stands around them.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::error::ModelError;
use super::python;
use super::tokenizer::Tokenizer;

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, as the template knows them.
    pub role: String,
    /// Text.
    #[serde(default)]
    pub content: String,
    /// What else the template may read: `tool_calls`, `tool_call_id`, `name`.
    #[serde(flatten)]
    pub more: Map<String, Json>,
}

impl ChatMessage {
    /// A message that is a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), more: Map::new() }
    }
}

/// What a template renders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// In order.
    pub messages: Vec<ChatMessage>,
    /// Tools that the model may call, as OpenAI describes them; empty: none.
    pub tools: Vec<Json>,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Json>,
}

impl From<&[ChatMessage]> for Conversation {
    fn from(messages: &[ChatMessage]) -> Self {
        Self { messages: messages.to_vec(), ..Self::default() }
    }
}

/// Special tokens that templates refer to by name, such as `bos_token`.
#[derive(Clone, Debug, Default)]
pub(crate) struct TemplateTokens(pub(crate) Vec<(&'static str, String)>);

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    text: String,
    tokens: TemplateTokens,
}

/// Surrounds the number of a text that is encoded apart, while the template is rendered around it; a private-use
/// character that no tokenizer treats specially.
const MARK: char = '\u{f8ff}';

impl ChatTemplate {
    pub(crate) fn parse(text: String, tokens: TemplateTokens) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|output, _, value| {
            if !value.is_undefined() {
                output.write_str(&python::text(value)?)?;
            }
            Ok(())
        });
        environment.add_filter("tojson", |value: Value, options: Kwargs| python::tojson(&value, options));
        environment.add_filter("string", |value: Value| python::text(&value));
        environment.add_test("iterable", |value: Value| {
            matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            python::strftime(&format, now.as_secs())
        });
        environment.add_template_owned("chat", without_generation(&text)).map_err(template_error)?;
        Ok(Self { environment, text, tokens })
    }

    /// The template's own text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the template does anything with tools.
    pub fn knows_tools(&self) -> bool {
        self.text.contains("tools")
    }

    /// The conversation as one text, with the beginning of the assistant's answer.
    ///
    /// # Errors
    /// [`ModelError::Template`]: what the template says against the conversation, such as an unknown role.
    pub fn render(&self, conversation: &Conversation) -> Result<String, ModelError> {
        let template = self.environment.get_template("chat").map_err(template_error)?;
        let mut variables = conversation.variables.clone();
        // What is not there is none, which is not the same as undefined.
        let tools = if conversation.tools.is_empty() { Json::Null } else { conversation.tools.clone().into() };
        let messages = serde_json::to_value(&conversation.messages)
            .map_err(|error| ModelError::Template { reason: error.to_string() })?;
        variables.insert("messages".into(), messages);
        variables.insert("tools".into(), tools);
        variables.insert("documents".into(), Json::Null);
        variables.insert("add_generation_prompt".into(), true.into());
        for (name, token) in &self.tokens.0 {
            variables.insert((*name).into(), token.clone().into());
        }
        template.render(Value::from_serialize(variables)).map_err(template_error)
    }

    /// The conversation's token ids: the prompt of a request.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and where the text of a special token stands in something else than a content.
    pub fn encode(&self, conversation: &Conversation, tokenizer: &Tokenizer) -> Result<Vec<u32>, ModelError> {
        let wrong = |reason: String| Err(ModelError::Template { reason });
        let plain = |role: &str| !role.is_empty() && role.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let messages = &conversation.messages;
        if let Some(message) = messages.iter().find(|message| !plain(&message.role)) {
            return wrong(format!("role {:?} is not a plain word", message.role));
        }
        let elsewhere = messages.iter().flat_map(|message| message.more.values()).chain(&conversation.tools);
        for value in elsewhere.chain(conversation.variables.values()) {
            // Also as it stands in JSON, where a template may put it.
            let text = value.to_string();
            if tokenizer.has_special(&text) || any_text(value, &|text| tokenizer.has_special(text)) {
                return wrong("the text of a special token stands in a tool or a tool call".into());
            }
        }
        if !messages.iter().any(|message| tokenizer.has_special(&message.content) || message.content.contains(MARK)) {
            return tokenizer.encode(&self.render(conversation)?);
        }
        let mut apart: Vec<String> = Vec::new();
        let mut marked = conversation.clone();
        for message in &mut marked.messages {
            message.content = mark(&message.content, tokenizer, &mut apart);
        }
        // Odd pieces are numbers of texts.
        let mut ids = Vec::new();
        for (i, piece) in self.render(&marked)?.split(MARK).enumerate() {
            match piece.parse::<usize>().ok().filter(|_| i % 2 == 1).and_then(|index| apart.get(index)) {
                Some(text) => ids.extend(tokenizer.encode_plain(text)?),
                None => ids.extend(tokenizer.encode(piece)?),
            }
        }
        Ok(ids)
    }
}

/// Puts the texts of special tokens aside (and marks that a user wrote), a number in the place of each.
fn mark(content: &str, tokenizer: &Tokenizer, apart: &mut Vec<String>) -> String {
    let mut out = String::with_capacity(content.len());
    let mut marks = content.match_indices(MARK).map(|(at, mark)| at..at + mark.len()).peekable();
    let mut specials = tokenizer.specials_in(content).peekable();
    let mut end = 0;
    loop {
        let mark_is_next = match (marks.peek(), specials.peek()) {
            (Some(mark), Some(special)) => mark.start < special.start,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => break,
        };
        let next = if mark_is_next { marks.next() } else { specials.next() };
        let Some(found) = next.filter(|found| found.start >= end) else { continue };
        out.push_str(&content[end..found.start]);
        out.push(MARK);
        out.push_str(&apart.len().to_string());
        out.push(MARK);
        apart.push(content[found.clone()].to_owned());
        end = found.end;
    }
    out.push_str(&content[end..]);
    out
}

fn any_text(value: &Json, holds: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Json::String(text) => holds(text),
        Json::Array(list) => list.iter().any(|value| any_text(value, holds)),
        Json::Object(map) => map.iter().any(|(name, value)| holds(name) || any_text(value, holds)),
        _ => false,
    }
}

/// `{% generation %}` marks what an assistant has said, for training; here it is a block that is always there.
fn without_generation(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let end = rest[at..].find("%}").map_or(rest.len(), |end| at + end);
        let tag = &rest[at + 2..end];
        out.push_str(&rest[..at + 2]);
        match tag.trim_matches(['-', '+', ' ', '\n', '\t']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn template_error(error: minijinja::Error) -> ModelError {
    let reason = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    ModelError::Template { reason }
}

#[cfg(test)]
#[path = "chat_template/tests.rs"]
mod tests;
