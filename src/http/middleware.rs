//! What stands around every request: its id, its body within limits, its deadline, the guard against
//! panics, its metrics and its one log line.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Limited};
use tracing::Instrument;

use super::error::{ApiError, ErrorBody, FailureCause, Fault};
use crate::config::ApiConfig;
use crate::lifecycle::panic_text;
use crate::telemetry::metrics::Metrics;

const REQUEST_ID: &str = "x-request-id";
const BODY_LIMIT: usize = 1024 * 1024;
/// For `POST /alerts`, which takes a thousand alerts at once.
const ALERTS_BODY_LIMIT: usize = 16 * 1024 * 1024;

/// What [`around`] works with.
#[derive(Clone)]
pub struct Around {
    body_timeout: Duration,
    request_deadline: Duration,
    metrics: Arc<Metrics>,
}

impl Around {
    pub fn new(config: &ApiConfig, metrics: Arc<Metrics>) -> Self {
        Self { body_timeout: config.body_timeout, request_deadline: config.request_deadline, metrics }
    }
}

pub async fn around(State(around): State<Around>, request: Request, next: Next) -> Response {
    let begun_at = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let path = request.uri().path().to_owned();
    // Of the highest level, so that no LOGGING_LEVEL takes the id from the lines.
    let span =
        tracing::error_span!("request", request_id = %id, %method, route = route.as_ref().map(MatchedPath::as_str));
    let mut response = answer(&around, &path, request, next).instrument(span.clone()).await;

    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let status = response.status();
    let took = begun_at.elapsed();
    around.metrics.http_requests.with_label_values(&[method_label(&method), route, status.as_str()]).inc();
    around.metrics.http_request_seconds.with_label_values(&[method_label(&method), route]).observe(took.as_secs_f64());
    let _in_span = span.enter();
    if status.is_server_error() {
        let cause = response.extensions().get::<FailureCause>().map_or("", |cause| &cause.0);
        tracing::warn!(%method, path, status = status.as_u16(), cause, took_ms = took.as_millis(), "request failed");
    } else {
        tracing::debug!(%method, path, status = status.as_u16(), took_ms = took.as_millis(), "request");
    }
    if let Some(error) = response.extensions_mut().remove::<ErrorBody>() {
        write_error(&mut response, &error, &id, method == Method::HEAD);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

async fn answer(around: &Around, path: &str, request: Request, next: Next) -> Response {
    let request = match with_whole_body(around, path, request).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    // These wait for something to happen; each has limits of its own.
    let is_waiting = matches!(path, "/ws/alerts" | "/alerts/stream" | "/users-dict");
    let answering = AssertUnwindSafe(next.run(request)).catch_unwind();
    let outcome = if is_waiting {
        answering.await
    } else {
        match tokio::time::timeout(around.request_deadline, answering).await {
            Ok(outcome) => outcome,
            Err(_) => {
                return ApiError::unavailable("service", "request_deadline", "the request took too long")
                    .into_response();
            }
        }
    };
    outcome.unwrap_or_else(|panic| {
        around.metrics.http_panics.inc();
        let text = panic_text(panic.as_ref());
        tracing::error!(path, panic = text, "a handler panicked");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal Server Error").into_response()
    })
}

/// Reads the body here, once for all handlers: within its limit and its time, or not at all.
async fn with_whole_body(around: &Around, path: &str, request: Request) -> Result<Request, ApiError> {
    let limit = if path == "/alerts" { ALERTS_BODY_LIMIT } else { BODY_LIMIT };
    let declared =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large(limit));
    }
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) || declared == Some(0) {
        return Ok(request);
    }
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let (parts, body) = request.into_parts();
    let reading = Limited::new(body, limit).collect();
    let bytes: Bytes = match tokio::time::timeout(around.body_timeout, reading).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large(limit)),
        Ok(Err(error)) => {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_unreadable",
                format!("the body ended early: {error}"),
            ));
        }
        Err(_) => {
            around.metrics.http_connections_refused.with_label_values(&["body"]).inc();
            let detail = format!("the body did not arrive within {} s", around.body_timeout.as_secs_f64());
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail));
        }
    };
    match content_type {
        Some(content_type) if !bytes.is_empty() && !is_json(&content_type) => Err(not_json(&content_type)),
        _ => Ok(Request::from_parts(parts, Body::from(bytes))),
    }
}

/// A page of another site may send forms and plain text here without being asked; JSON it may not.
fn is_json(content_type: &HeaderValue) -> bool {
    let media_type = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let subtype = media_type.to_ascii_lowercase();
    subtype.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

fn not_json(content_type: &HeaderValue) -> ApiError {
    ApiError::invalid(vec![Fault {
        kind: "value_error",
        loc: vec!["header".into(), "content-type".into()],
        msg: "Value error, the body must be sent as application/json".to_owned(),
        input: String::from_utf8_lossy(content_type.as_bytes()).into(),
    }])
}

fn too_large(limit: usize) -> ApiError {
    let detail = format!("the body is larger than {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// A client may send any word for a method; each would be a time series for ever.
fn method_label(method: &Method) -> &str {
    const STANDARD: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
        Method::CONNECT,
    ];
    if STANDARD.contains(method) { method.as_str() } else { "other" }
}

fn request_id(request: &Request) -> String {
    let is_sane = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(is_sane);
    given.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned)
}

fn write_error(response: &mut Response, error: &ErrorBody, id: &str, is_head: bool) {
    let body = error.render(id);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = if is_head { Body::empty() } else { Body::from(body) };
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_one_request_s_500_and_is_counted() {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let around = Around {
            body_timeout: Duration::from_secs(1),
            request_deadline: Duration::from_secs(1),
            metrics: metrics.clone(),
        };
        let router = Router::new()
            .route("/", get(|| async { "fine" }))
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("out of ink")
                    }
                }),
            )
            .layer(axum::middleware::from_fn_with_state(around, super::around));
        for (path, status) in [("/", 200), ("/panic", 500), ("/", 200)] {
            let request = Request::get(path).header(REQUEST_ID, "r-1").body(Body::empty()).expect("a request");
            let response = router.clone().oneshot(request).await.expect("infallible");
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[REQUEST_ID], "r-1");
            if status == 500 {
                let body = response.into_body().collect().await.expect("a body").to_bytes();
                let expected = r#"{"detail":"Internal Server Error","code":"internal_error","request_id":"r-1"}"#;
                assert_eq!(body, expected);
            }
        }
        assert_eq!(metrics.http_panics.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_does_not_end_is_answered_503() {
        let around = Around {
            body_timeout: Duration::from_secs(1),
            request_deadline: Duration::from_secs(30),
            metrics: Arc::new(Metrics::new().expect("metrics")),
        };
        let router = Router::new()
            .route("/", get(std::future::pending::<()>))
            .layer(axum::middleware::from_fn_with_state(around, super::around));
        let request = Request::get("/").body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
