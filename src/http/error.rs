//! Failures as clients see them: the only `IntoResponse` for errors. Every answer has a text for
//! people, a code for programs and, added by the surface, a request id.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::directory::{Refusal, WriteError};
use crate::store_error::StoreError;

/// A failed request.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    /// Stable, `snake_case`.
    pub code: &'static str,
    pub detail: Detail,
    /// Seconds, for 503.
    pub retry_after: Option<u32>,
    /// For the log line at the boundary; never sent.
    pub cause: Option<String>,
}

/// What is wrong: a text for people, or for 422 the list of faults.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Detail {
    Text(String),
    Faults(Vec<Fault>),
}

/// One fault of a request, in FastAPI's shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `["body", "name"]`, `["query", "limit"]`, `["path", "id"]`, array indices as numbers.
    pub loc: Vec<Value>,
    pub msg: String,
    pub input: Value,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: Detail::Text(detail.into()), retry_after: None, cause: None }
    }

    /// 422 with FastAPI's list.
    pub fn invalid(faults: Vec<Fault>) -> Self {
        Self { detail: Detail::Faults(faults), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_error", "") }
    }

    /// 503 that names the dependency.
    pub fn unavailable(dependency: &str, code: &'static str, cause: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            cause: Some(cause.into()),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                code,
                format!("{dependency} is not available right now, try again in a moment"),
            )
        }
    }
}

/// Puts the cause where the surface logs it, once.
#[derive(Clone, Debug)]
pub struct FailureCause(pub String);

impl IntoResponse for ApiError {
    /// Without a body: the surface writes it, which is the one that knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(ErrorBody { detail: self.detail, code: self.code });
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(FailureCause(cause));
        }
        response
    }
}

/// The parts of an error's body, for the surface.
#[derive(Clone, Debug)]
pub struct ErrorBody {
    pub detail: Detail,
    pub code: &'static str,
}

impl ErrorBody {
    /// The body as clients see it.
    pub fn render(&self, request_id: &str) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            detail: &'a Detail,
            code: &'a str,
            request_id: &'a str,
        }
        let body = Body { detail: &self.detail, code: self.code, request_id };
        // Texts, numbers and JSON values: there is nothing in it that cannot be written.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let cause = crate::store_error::describe(&error);
        match &error {
            StoreError::Deadline { dependency, .. } => Self::unavailable(dependency, "database_deadline", cause),
            StoreError::Unavailable { dependency, .. }
            | StoreError::Conflict { dependency, .. }
            | StoreError::Corrupt { dependency, .. } => Self::unavailable(dependency, "database_unavailable", cause),
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refusal) => refusal.into(),
            WriteError::Store(error) => error.into(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match &refusal {
            Refusal::UserExists { .. } => (StatusCode::BAD_REQUEST, "user_exists"),
            Refusal::ZoneExists { .. } => (StatusCode::BAD_REQUEST, "zone_exists"),
            Refusal::UserNotFound { .. } => (StatusCode::NOT_FOUND, "user_not_found"),
            Refusal::ZoneNotFound { .. } => (StatusCode::NOT_FOUND, "zone_not_found"),
            Refusal::UnknownZones { zone_ids } => {
                return Self::invalid(vec![Fault {
                    kind: "value_error",
                    loc: vec!["body".into(), "zone_ids".into()],
                    msg: format!("Value error, {refusal}"),
                    input: json!(zone_ids),
                }]);
            }
            Refusal::InvalidPolygon(fault) => {
                return Self::invalid(vec![Fault {
                    kind: "value_error",
                    loc: vec!["body".into()],
                    msg: format!("Value error, {fault}"),
                    input: Value::Null,
                }]);
            }
        };
        Self::new(status, code, refusal.to_string())
    }
}
