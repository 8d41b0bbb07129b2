//! Answers of the API.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

/// An answer before it becomes HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body,
}

/// What an answer carries.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Empty,
    Json(Value),
    Raw { content_type: &'static str, bytes: Bytes },
}

const DOCUMENTATION: &str = "https://docs.github.com/rest";

impl Reply {
    pub(crate) fn json(status: StatusCode, body: Value) -> Self {
        Self { status, headers: Vec::new(), body: Body::Json(body) }
    }

    pub(crate) fn ok(body: Value) -> Self {
        Self::json(StatusCode::OK, body)
    }

    pub(crate) const fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Body::Empty }
    }

    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        let bytes = Bytes::from(text.into());
        Self {
            status,
            headers: Vec::new(),
            body: Body::Raw { content_type: "text/plain; charset=utf-8", bytes },
        }
    }

    /// An error as GitHub words it.
    pub(crate) fn error(status: StatusCode, message: &str) -> Self {
        Self::json(
            status,
            json!({
                "message": message,
                "documentation_url": DOCUMENTATION,
                "status": status.as_str(),
            }),
        )
    }

    pub(crate) fn not_found() -> Self {
        Self::error(StatusCode::NOT_FOUND, "Not Found")
    }

    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::error(StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::error(StatusCode::FORBIDDEN, message)
    }

    /// 422 with `errors` as plain texts (`validation-error-simple`).
    pub(crate) fn invalid(errors: Vec<String>) -> Self {
        Self::json(
            StatusCode::UNPROCESSABLE_ENTITY,
            json!({
                "message": "Validation Failed",
                "documentation_url": DOCUMENTATION,
                "errors": errors,
            }),
        )
    }

    /// 422 with one located error (`validation-error`).
    pub(crate) fn invalid_field(resource: &str, field: &str, message: &str) -> Self {
        Self::json(
            StatusCode::UNPROCESSABLE_ENTITY,
            json!({
                "message": "Validation Failed",
                "documentation_url": DOCUMENTATION,
                "errors": [
                    {"resource": resource, "field": field, "code": "custom", "message": message}
                ],
            }),
        )
    }

    /// The body as it is sent.
    pub(crate) fn bytes(&self) -> Bytes {
        match &self.body {
            Body::Empty => Bytes::new(),
            Body::Json(value) => Bytes::from(super::text(value)),
            Body::Raw { bytes, .. } => bytes.clone(),
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}
