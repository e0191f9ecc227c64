//! `/openapi.json`: which endpoints there are and what they read, for clients that generate themselves. What each field
//! means is OpenAI's and vLLM's documentation; which ones are taken is the reading code's ([`super::request`]).

use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Fields of both endpoints that answer, with their types.
const ANSWER_FIELDS: [(&str, &str); 33] = [
    ("model", "string"),
    ("temperature", "number"),
    ("top_p", "number"),
    ("top_k", "integer"),
    ("min_p", "number"),
    ("repetition_penalty", "number"),
    ("presence_penalty", "number"),
    ("frequency_penalty", "number"),
    ("logit_bias", "object"),
    ("max_tokens", "integer"),
    ("max_completion_tokens", "integer"),
    ("min_tokens", "integer"),
    ("stop", ""),
    ("stop_token_ids", "array"),
    ("ignore_eos", "boolean"),
    ("n", "integer"),
    ("seed", "integer"),
    ("logprobs", ""),
    ("prompt_logprobs", "integer"),
    ("stream", "boolean"),
    ("stream_options", "object"),
    ("return_token_ids", "boolean"),
    ("add_special_tokens", "boolean"),
    ("priority", "integer"),
    ("response_format", "object"),
    ("structured_outputs", "object"),
    ("guided_json", ""),
    ("guided_regex", "string"),
    ("guided_choice", "array"),
    ("guided_grammar", "string"),
    ("user", "string"),
    ("metadata", "object"),
    ("store", "boolean"),
];
const CHAT_FIELDS: [(&str, &str); 6] = [
    ("messages", "array"),
    ("top_logprobs", "integer"),
    ("tools", "array"),
    ("tool_choice", ""),
    ("parallel_tool_calls", "boolean"),
    ("chat_template_kwargs", "object"),
];
const COMPLETION_FIELDS: [(&str, &str); 2] = [("prompt", ""), ("echo", "boolean")];
const TOKENIZE_FIELDS: [(&str, &str); 5] = [
    ("model", "string"),
    ("prompt", ""),
    ("messages", "array"),
    ("add_special_tokens", "boolean"),
    ("return_token_strs", "boolean"),
];
const DETOKENIZE_FIELDS: [(&str, &str); 2] = [("model", "string"), ("tokens", "array")];

/// An object's schema; an empty type says that there are several.
fn object(fields: &[&[(&str, &str)]], required: &[&str]) -> Value {
    let field = |(name, kind): &(&str, &str)| {
        let schema = if kind.is_empty() { json!({}) } else { json!({"type": kind}) };
        ((*name).to_owned(), schema)
    };
    let properties: Map<String, Value> = fields.iter().flat_map(|list| list.iter().map(field)).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn post(summary: &str, body: &Value) -> Value {
    let answer = json!({"description": "the answer, or server-sent events where `stream` is true"});
    let error = json!({"description": "OpenAI's error object; `param` names the field"});
    json!({"post": {
        "summary": summary,
        "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer, "4XX": error, "5XX": error},
    }})
}

fn get(summary: &str) -> Value {
    json!({"get": {"summary": summary, "responses": {"200": {"description": summary}}}})
}

/// The document.
pub(crate) fn document() -> Value {
    let chat = object(&[&CHAT_FIELDS, &ANSWER_FIELDS], &["model", "messages"]);
    let completion = object(&[&COMPLETION_FIELDS, &ANSWER_FIELDS], &["model", "prompt"]);
    json!({
        "openapi": "3.1.0",
        "info": {"title": "PolyLink", "version": env!("CARGO_PKG_VERSION")},
        "paths": {
            "/v1/chat/completions": post("An answer to a conversation", &chat),
            "/v1/completions": post("A text or token ids, continued", &completion),
            "/tokenize": post("Token ids of a text or a conversation", &object(&[&TOKENIZE_FIELDS], &[])),
            "/detokenize": post("The text of token ids", &object(&[&DETOKENIZE_FIELDS], &["tokens"])),
            "/v1/models": get("The models that can be asked"),
            "/v1/models/{id}": get("One model"),
            "/health": get("The process answers"),
            "/ready": get("Requests would be answered now"),
            "/metrics": get("Figures for Prometheus"),
            "/version": get("The version"),
            "/openapi.json": get("This document"),
        },
    })
}

pub(crate) async fn openapi() -> Response {
    axum::Json(document()).into_response()
}

#[cfg(test)]
mod tests {
    use super::super::request::{AnswerRequest, Kind};
    use super::*;

    /// A field in the document is one that is read: sent as something that it cannot be, it is answered with its name.
    #[test]
    fn every_field_in_the_document_is_read() {
        let harmless = ["user", "metadata", "store"];
        for (kind, own) in [(Kind::Chat, &CHAT_FIELDS[..]), (Kind::Completion, &COMPLETION_FIELDS[..])] {
            for (name, _) in own.iter().chain(&ANSWER_FIELDS).filter(|(name, _)| !harmless.contains(name)) {
                let mut body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}], "prompt": "x"});
                body[*name] = json!({"": [[]]});
                let error = AnswerRequest::parse(kind, body.to_string().as_bytes()).map(|request| request.ignored);
                match error {
                    Err(error) => {
                        assert!(error.param.as_deref().unwrap_or_default().starts_with(name), "{name}: {error}")
                    }
                    // Objects of any kind are fine.
                    Ok(ignored) => {
                        assert!(["chat_template_kwargs", "stream_options", "guided_json"].contains(name), "{name}");
                        assert!(!ignored.iter().any(|field| field == name));
                    }
                }
            }
        }
    }
}
