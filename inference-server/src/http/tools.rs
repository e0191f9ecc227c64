//! Tools: what a request offers, the grammar that makes a model call one, and the calls in what it says.
//!
//! Two ways of writing a call are known, told by the model's own template: JSON between `<tool_call>` and `</tool_call>`
//! (Hermes, Qwen), and JSON alone with `parameters` (Llama 3). What cannot be read as calls of offered tools stays text.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, expected};
use crate::engine::grammar::in_json_style;
use crate::model::ChatTemplate;

/// Most tools of a request.
const TOOLS_MAX: usize = 128;
/// Longest name of a tool.
const NAME_BYTES_MAX: usize = 64;
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Whether a tool is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// Some tool, in any case.
    Required,
    /// This one.
    Named(String),
}

/// Tools that a request offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// As OpenAI describes them: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub list: Vec<Value>,
    /// Whether one is to be called.
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// JSON with `arguments`, between tags.
    Tagged,
    /// JSON with `parameters`, alone.
    Bare,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`; none where no tool may be called.
pub(crate) fn tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    const WHAT: &str = "a list of {\"type\": \"function\", \"function\": {\"name\", \"parameters\"}}";
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let list = match fields.take("tools") {
        None => vec![],
        Some(Value::Array(list)) if list.len() <= TOOLS_MAX => list,
        Some(other) => return Err(expected("tools", &other, &format!("{WHAT}, at most {TOOLS_MAX}"))),
    };
    let mut names = std::collections::BTreeSet::new();
    for (i, tool) in list.iter().enumerate() {
        let name = tool["function"]["name"].as_str().unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if tool["type"] != "function" || !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.chars().all(plain) {
            let message =
                format!("`tools[{i}]` has no type function, or no name of 1 to {NAME_BYTES_MAX} plain characters");
            return Err(ApiError::field(format!("tools[{i}]"), message));
        }
        let parameters = &tool["function"]["parameters"];
        if !parameters.is_null() && !parameters.is_object() {
            return Err(expected(&format!("tools[{i}].function.parameters"), parameters, "a JSON schema, an object"));
        }
        if !names.insert(name) {
            return Err(ApiError::field(format!("tools[{i}]"), format!("`tools` has the name {name:?} twice")));
        }
    }
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(text)) if text == "none" => return Ok(None),
        Some(Value::String(text)) if text == "auto" => ToolChoice::Auto,
        Some(Value::String(text)) if text == "required" => ToolChoice::Required,
        Some(value @ Value::Object(_)) => match value["function"]["name"].as_str() {
            Some(name) if names.contains(name) => ToolChoice::Named(name.into()),
            _ => return Err(ApiError::field("tool_choice", "`tool_choice` names none of the tools in `tools`")),
        },
        Some(other) => {
            return Err(expected("tool_choice", &other, "none, auto, required, or an object that names a tool"));
        }
    };
    if list.is_empty() {
        return match choice {
            ToolChoice::Auto => Ok(None),
            _ => Err(ApiError::field("tool_choice", "`tool_choice` needs `tools`")),
        };
    }
    Ok(Some(Tools { list, choice, parallel }))
}

impl Tools {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|tool| tool["function"]["name"].as_str())
    }

    /// The grammar of an answer that has to be a call.
    pub(crate) fn grammar(&self, dialect: Dialect) -> Option<String> {
        let wanted = |tool: &&Value| match &self.choice {
            ToolChoice::Auto => false,
            ToolChoice::Required => true,
            ToolChoice::Named(name) => tool["function"]["name"] == *name,
        };
        let mut calls: Vec<Value> = self.list.iter().filter(wanted).map(|tool| dialect.schema(tool)).collect();
        let mut schema = match calls.len() {
            0 => return None,
            1 => calls.remove(0),
            _ => json!({"anyOf": calls}),
        };
        if dialect == Dialect::Bare {
            return Some(format!("json:{schema}"));
        }
        in_json_style(&mut schema);
        Some(format!("lark:start: \"{OPEN}\\n\" call \"\\n{CLOSE}\"\ncall: %json {schema}\n"))
    }

    /// Reads one choice's calls.
    pub(crate) fn reader(&self, dialect: Dialect) -> ToolReader {
        let calls_max = if self.parallel { TOOLS_MAX } else { 1 };
        ToolReader { dialect, names: self.names().map(str::to_owned).collect(), calls_max, held: String::new() }
    }
}

impl Dialect {
    /// What a template's text says of it; `None`: the model knows no tools.
    pub(crate) fn of(template: &ChatTemplate) -> Option<Self> {
        match (template.text().contains(OPEN), template.knows_tools()) {
            (true, true) => Some(Self::Tagged),
            (false, true) => Some(Self::Bare),
            (_, false) => None,
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Tagged => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// A call of one tool. Definitions that its parameters refer to stand at the root of a schema.
    fn schema(self, tool: &Value) -> Value {
        let mut parameters = match &tool["function"]["parameters"] {
            Value::Null => json!({"type": "object"}),
            given => given.clone(),
        };
        let definitions: Vec<(&str, Value)> = ["$defs", "definitions"]
            .into_iter()
            .filter_map(|name| Some((name, parameters.as_object_mut()?.remove(name)?)))
            .collect();
        let arguments = self.arguments();
        let mut schema = json!({
            "type": "object",
            "properties": {"name": {"const": tool["function"]["name"]}, arguments: parameters},
            "required": ["name", arguments],
            "additionalProperties": false,
        });
        for (name, definition) in definitions {
            schema[name] = definition;
        }
        schema
    }
}

/// A call that a model has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolCall {
    /// Of an offered tool.
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

impl ToolCall {
    /// As it stands in a message; `id` names the answer, choice and place.
    pub(crate) fn to_json(&self, id: String) -> Value {
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

/// Holds back what may be calls, and gives the rest out as text.
#[derive(Clone, Debug)]
pub struct ToolReader {
    dialect: Dialect,
    names: Vec<String>,
    calls_max: usize,
    held: String,
}

impl ToolReader {
    /// Takes text; returns what is text in any case.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let keep_from = match self.dialect {
            Dialect::Tagged => self.held.find(OPEN).unwrap_or_else(|| self.held.len() - overlap(&self.held, OPEN)),
            Dialect::Bare => match self.held.trim_start().chars().next() {
                None | Some('{' | '[') => 0,
                // What has been given out begins otherwise: nothing of it is a call.
                Some(_) => self.held.len(),
            },
        };
        let rest = self.held.split_off(keep_from);
        let shown = std::mem::replace(&mut self.held, rest);
        if self.dialect == Dialect::Bare && !shown.is_empty() {
            self.dialect = Dialect::Tagged;
            self.names.clear();
        }
        shown
    }

    /// The end of the choice: the last of its text, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<ToolCall>) {
        let held = std::mem::take(&mut self.held);
        let found = match self.dialect {
            Dialect::Tagged => tagged(&held),
            Dialect::Bare => bare(&held).map(|values| (String::new(), values)),
        };
        let calls = found.and_then(|(text, values)| {
            let calls: Option<Vec<ToolCall>> = values.iter().map(|value| self.call(value)).collect();
            Some((text, calls.filter(|calls| !calls.is_empty())?))
        });
        match calls {
            Some((text, mut calls)) => {
                calls.truncate(self.calls_max);
                (text, calls)
            }
            None => (held, vec![]),
        }
    }

    fn call(&self, value: &Value) -> Option<ToolCall> {
        let name = value["name"].as_str().filter(|name| self.names.iter().any(|known| known == name))?;
        let given = ["arguments", "parameters"].into_iter().find_map(|key| value.get(key));
        let arguments: &Map<String, Value> = match given {
            None => return Some(ToolCall { name: name.into(), arguments: "{}".into() }),
            Some(given) => given.as_object()?,
        };
        Some(ToolCall { name: name.into(), arguments: serde_json::to_string(arguments).ok()? })
    }
}

/// What stands between tags, and what stands outside of them.
fn tagged(held: &str) -> Option<(String, Vec<Value>)> {
    let (mut text, mut values, mut rest) = (String::new(), Vec::new(), held);
    while let Some((before, after)) = rest.split_once(OPEN) {
        text.push_str(before.trim());
        let (inside, after) = after.split_once(CLOSE).unwrap_or((after, ""));
        values.push(serde_json::from_str(inside.trim()).ok()?);
        rest = after;
    }
    text.push_str(rest.trim());
    Some((text, values))
}

/// One object, a list of them, or several with `;` between.
fn bare(held: &str) -> Option<Vec<Value>> {
    match serde_json::from_str(held.trim()) {
        Ok(Value::Array(list)) => Some(list),
        Ok(value) => Some(vec![value]),
        Err(_) => held.split(';').map(|part| serde_json::from_str(part.trim()).ok()).collect(),
    }
}

/// Bytes at the end of `text` that are a proper beginning of `tag`.
fn overlap(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|length| text.ends_with(&tag[..*length])).unwrap_or(0)
}

#[cfg(test)]
#[path = "tools/tests.rs"]
mod tests;
