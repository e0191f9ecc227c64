//! Errors as the SDK's gateway gives them: a gRPC code, a message, and the HTTP status that belongs to the code.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The gRPC code.
    pub code: u32,
    /// What is wrong.
    pub message: String,
}

/// gRPC: the caller's fault.
pub const INVALID_ARGUMENT: u32 = 3;
/// gRPC: it took too long.
pub const DEADLINE_EXCEEDED: u32 = 4;
/// gRPC: there is no such thing.
pub const NOT_FOUND: u32 = 5;
/// gRPC: no place for the request now.
pub const RESOURCE_EXHAUSTED: u32 = 8;
/// gRPC: no such method.
pub const UNIMPLEMENTED: u32 = 12;
/// gRPC: the node does not answer.
pub const UNAVAILABLE: u32 = 14;
const UNKNOWN: u32 = 2;
const UNAUTHENTICATED: u32 = 16;

impl ApiError {
    /// With a gRPC code.
    pub fn new(code: u32, message: impl std::fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// The caller's fault.
    pub fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(INVALID_ARGUMENT, message)
    }

    /// The node's fault.
    pub fn unavailable(message: impl std::fmt::Display) -> Self {
        Self::new(UNAVAILABLE, message)
    }

    /// Of an ABCI query's refusal.
    pub fn of_query(codespace: &str, code: u64, log: &str) -> Self {
        let code = match (codespace, code) {
            ("sdk", 18 | 26) => INVALID_ARGUMENT,
            ("sdk", 22 | 38) => NOT_FOUND,
            ("sdk", 6) => UNIMPLEMENTED,
            ("sdk", 4) => UNAUTHENTICATED,
            _ => UNKNOWN,
        };
        Self::new(code, log)
    }

    /// The HTTP status of its code.
    pub fn status(&self) -> StatusCode {
        match self.code {
            INVALID_ARGUMENT => StatusCode::BAD_REQUEST,
            DEADLINE_EXCEEDED => StatusCode::GATEWAY_TIMEOUT,
            NOT_FOUND => StatusCode::NOT_FOUND,
            RESOURCE_EXHAUSTED => StatusCode::TOO_MANY_REQUESTS,
            UNIMPLEMENTED => StatusCode::NOT_IMPLEMENTED,
            UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
            UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), Json(json!({"code": self.code, "message": self.message, "details": []}))).into_response()
    }
}
