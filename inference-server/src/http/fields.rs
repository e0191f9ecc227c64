//! Reading a JSON object field by field, so that each wrong value is answered with its name and what is expected, and
//! each field that nobody asked for is known at the end.

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields that are still unread.
pub(crate) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// From a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let wrong = |message: String| ApiError::new(axum::http::StatusCode::BAD_REQUEST, "invalid_json", message);
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| wrong(format!("the body is not JSON: {e}; send an object such as {{\"model\": …}}")))?;
        match value {
            Value::Object(map) => Ok(Self { map }),
            other => Err(wrong(format!("the body is {}, a JSON object is expected", kind(&other)))),
        }
    }

    /// Whether a field is there, with a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field; `null` is as good as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A number within bounds.
    pub(crate) fn number(&mut self, name: &str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|n| (low..=high).contains(n));
        let number = number.ok_or_else(|| {
            ApiError::field(name, format!("`{name}` is {}, a number from {low} to {high} is expected", shown(&value)))
        })?;
        Ok(Some(number as f32))
    }

    /// A whole number within bounds.
    pub(crate) fn integer(&mut self, name: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64().filter(|n| (low..=high).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::field(
                name,
                format!("`{name}` is {}, a whole number from {low} to {high} is expected", shown(&value)),
            )),
        }
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(expected(name, &other, "true or false")),
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(expected(name, &other, "a text")),
        }
    }

    /// Names of what was not read, in alphabetical order.
    pub(crate) fn rest(self) -> Vec<String> {
        let mut names: Vec<String> =
            self.map.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect();
        names.sort();
        names
    }
}

/// A 400 that says what the field is and what it should be.
pub(crate) fn expected(name: &str, found: &Value, what: &str) -> ApiError {
    ApiError::field(name, format!("`{name}` is {}, {what} is expected", shown(found)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        other => {
            let text = other.to_string();
            if text.chars().count() > 60 { format!("{} of {} bytes", kind(other), text.len()) } else { text }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
