//! OpenAI's error object: `{"error": {"message", "type", "param", "code"}}` with the HTTP status that says the same.
//!
//! One type for all services: what the gateway tells its client and what a worker tells a gateway have one shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::AdmissionError;

/// An answer that is an error. The message says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`, such as `invalid_request_error`.
    pub kind: String,
    /// A short code for programs, such as `model_not_found`.
    pub code: Option<String>,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For people.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// Of any status; the type follows from it.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            401 | 403 => "authentication_error",
            402 => "insufficient_quota",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let retry_after = matches!(status.as_u16(), 429 | 503).then_some(1);
        Self { status, kind: kind.into(), code: Some(code.into()), param: None, message: message.into(), retry_after }
    }

    /// 400 that names a field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        error.param = Some(param.into());
        error
    }

    /// 400 for a field that would change the answer and is not built.
    pub fn unsupported(param: &str, instead: &str) -> Self {
        let mut error = Self::field(param, format!("`{param}` is not supported yet: {instead}"));
        error.code = Some("unsupported_parameter".into());
        error
    }

    /// 500: a fault of this service; the details are in its log.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// 503 with the reason.
    pub fn unavailable(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// The error object.
    pub fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// From another service's answer. A body of another shape becomes the message, cut to 300 characters.
    pub fn from_response(status: u16, body: &[u8]) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| parsed["error"][name].as_str().map(str::to_owned);
        let message =
            text("message").unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(300).collect::<String>());
        let mut error = Self::new(status, "upstream_error", message);
        error.code = text("code").or(error.code);
        error.param = text("param");
        error
    }

    /// The code, or nothing.
    pub fn code(&self) -> &str {
        self.code.as_deref().unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<AdmissionError> for ApiError {
    fn from(error: AdmissionError) -> Self {
        let message = error.to_string();
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (code, param) = match &error {
            AdmissionError::EmptyPrompt => ("empty_prompt", Some("prompt")),
            AdmissionError::PromptTooLong { .. } => ("context_length_exceeded", Some("prompt")),
            AdmissionError::NeverFits { .. } => ("context_length_exceeded", Some("max_tokens")),
            AdmissionError::Parameter { field, .. } => ("invalid_value", Some(*field)),
            AdmissionError::QueueFull { .. } | AdmissionError::ShareFull { .. } => ("queue_full", None),
            AdmissionError::Draining => ("draining", None),
            AdmissionError::Unavailable { .. } => ("engine_unavailable", None),
        };
        let mut api = Self::new(status, code, message);
        api.param = param.map(str::to_owned);
        api
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_way_from_worker_to_gateway() {
        let error = ApiError::field("top_p", "too large");
        let back = ApiError::from_response(400, error.to_json().to_string().as_bytes());
        assert_eq!(back, error);
        let html = ApiError::from_response(502, b"<html>bad gateway</html>");
        assert_eq!((html.status.as_u16(), html.code()), (502, "upstream_error"));
        assert!(html.message.contains("bad gateway"));
    }

    #[test]
    fn admission_errors_keep_their_numbers() {
        let api = ApiError::from(AdmissionError::PromptTooLong { prompt_tokens: 600, context_length: 512 });
        assert_eq!((api.status.as_u16(), api.code()), (400, "context_length_exceeded"));
        assert!(api.message.contains("600") && api.message.contains("512"));
        assert_eq!(ApiError::from(AdmissionError::QueueFull { waiting: 3, limit: 3 }).retry_after, Some(1));
    }
}
