//! What an answer must look like: `response_format`, and vLLM's `structured_outputs` and older `guided_…`, become the text
//! of a grammar ([`crate::engine::grammar`]). At most one of them may be there.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, expected};
use crate::engine::grammar::GRAMMAR_BYTES_MAX;

/// Most choices of `structured_outputs.choice`.
const CHOICES_MAX: usize = 1_024;

/// The grammar that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedGrammar {
    /// The field that asks for it: what an error names.
    pub field: &'static str,
    /// `kind:definition`.
    pub text: String,
}

type Read = fn(&Value, &str) -> Result<Option<String>, ApiError>;

/// Each field, and what its value becomes.
const FIELDS: [(&str, Read); 6] = [
    ("response_format", response_format),
    ("structured_outputs", structured_outputs),
    ("guided_json", |value, name| json(value, name).map(Some)),
    ("guided_regex", |value, name| text(value, name, "regex").map(Some)),
    ("guided_choice", |value, name| choice(value, name).map(Some)),
    ("guided_grammar", |value, name| text(value, name, "lark").map(Some)),
];

/// Reads all of these fields.
///
/// # Errors
/// 400 that names the field: a wrong value, two grammars, a text that is too long.
pub(crate) fn grammar(fields: &mut Fields) -> Result<Option<AskedGrammar>, ApiError> {
    let mut asked: Option<AskedGrammar> = None;
    for (field, read) in FIELDS {
        let Some(value) = fields.take(field) else { continue };
        let Some(text) = read(&value, field)? else { continue };
        if let Some(first) = asked {
            return Err(ApiError::field(field, format!("`{field}` and `{}` both constrain the answer", first.field)));
        }
        if text.len() > GRAMMAR_BYTES_MAX {
            let message = format!("`{field}` has {} bytes, at most {GRAMMAR_BYTES_MAX} are taken", text.len());
            return Err(ApiError::field(field, message));
        }
        asked = Some(AskedGrammar { field, text });
    }
    Ok(asked)
}

fn response_format(value: &Value, name: &str) -> Result<Option<String>, ApiError> {
    match value["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some("json:{\"type\":\"object\"}".into())),
        Some("json_schema") => match &value["json_schema"]["schema"] {
            schema @ Value::Object(_) => Ok(Some(format!("json:{schema}"))),
            other => Err(expected(&format!("{name}.json_schema.schema"), other, "a JSON schema, which is an object")),
        },
        Some(other) => Err(ApiError::unsupported(
            name,
            &format!("its type is {other:?}; there are text, json_object and json_schema"),
        )),
        None => Err(expected(name, value, "an object with a type: text, json_object or json_schema")),
    }
}

fn structured_outputs(value: &Value, name: &str) -> Result<Option<String>, ApiError> {
    const WHAT: &str = "an object with one of json, json_object, regex, choice, grammar";
    let Value::Object(map) = value else { return Err(expected(name, value, WHAT)) };
    let mut given = map.iter().filter(|(_, value)| !value.is_null() && **value != Value::Bool(false));
    match (given.next(), given.next()) {
        (None, _) => Ok(None),
        (Some((kind, value)), None) => {
            let at = format!("{name}.{kind}");
            match kind.as_str() {
                "json" => json(value, &at),
                "json_object" => Ok("json:{\"type\":\"object\"}".into()),
                "regex" => text(value, &at, "regex"),
                "choice" => choice(value, &at),
                "grammar" => text(value, &at, "lark"),
                _ => Err(ApiError::unsupported(&at, WHAT)),
            }
            .map(Some)
        }
        _ => Err(expected(name, value, WHAT)),
    }
}

/// A schema, as an object or as its text.
fn json(value: &Value, name: &str) -> Result<String, ApiError> {
    let parsed: Option<Map<String, Value>> = match value {
        Value::Object(schema) => Some(schema.clone()),
        Value::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let schema = parsed.ok_or_else(|| expected(name, value, "a JSON schema, which is an object"))?;
    Ok(format!("json:{}", Value::Object(schema)))
}

fn text(value: &Value, name: &str, kind: &str) -> Result<String, ApiError> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.map(|text| format!("{kind}:{text}")).ok_or_else(|| expected(name, value, "a text that is not empty"))
}

fn choice(value: &Value, name: &str) -> Result<String, ApiError> {
    let texts = value.as_array().filter(|list| (1..=CHOICES_MAX).contains(&list.len())).and_then(|list| {
        list.iter().map(|item| item.as_str().filter(|text| !text.is_empty()).map(literal)).collect::<Option<Vec<_>>>()
    });
    let texts = texts
        .ok_or_else(|| expected(name, value, &format!("a list of 1 to {CHOICES_MAX} texts that are not empty")))?;
    Ok(format!("regex:{}", texts.join("|")))
}

/// A regular expression that matches this text alone.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation()
            && !matches!(character, '<' | '>' | '/' | '"' | '\'' | ',' | ':' | ';' | '_')
        {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Option<AskedGrammar>, ApiError> {
        grammar(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn each_field_becomes_its_grammar() {
        let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
        let as_text = r#"json:{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}}"#;
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        for (body, field, text) in [
            (json!({"response_format": format}), "response_format", as_text),
            (json!({"response_format": {"type": "json_object"}}), "response_format", "json:{\"type\":\"object\"}"),
            (json!({"structured_outputs": {"json": schema, "regex": null}}), "structured_outputs", as_text),
            (json!({"structured_outputs": {"json": schema.to_string()}}), "structured_outputs", as_text),
            (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs", "regex:a+"),
            (json!({"structured_outputs": {"grammar": "start: \"a\""}}), "structured_outputs", "lark:start: \"a\""),
            (json!({"guided_json": schema}), "guided_json", as_text),
            (json!({"guided_regex": "[0-9]"}), "guided_regex", "regex:[0-9]"),
            (json!({"guided_choice": ["a.b", "c|d"]}), "guided_choice", "regex:a\\.b|c\\|d"),
        ] {
            let asked = read(body).unwrap().unwrap();
            assert_eq!((asked.field, asked.text.as_str()), (field, text));
        }
        assert_eq!(read(json!({"response_format": {"type": "text"}, "structured_outputs": {}})).unwrap(), None);
    }

    #[test]
    fn a_wrong_one_is_named() {
        let long = "a".repeat(GRAMMAR_BYTES_MAX);
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {"type": "xml"}}), "response_format"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "structured_outputs"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
            (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json"),
            (json!({"guided_regex": ""}), "guided_regex"),
            (json!({"guided_regex": long}), "guided_regex"),
            (json!({"guided_choice": ["a", 3]}), "guided_choice"),
            (json!({"guided_regex": "a", "guided_json": {}}), "guided_regex"),
        ] {
            let error = read(body.clone()).expect_err(&body.to_string().chars().take(80).collect::<String>());
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{error}");
        }
    }
}
