//! All of the service as one function from a request to its answer: what stands around every request (its
//! id, its body within limits, its deadline, the guard against panics, its metrics and its one log line),
//! then the short way for reads of the directory, or the router.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Limited};
use tower::ServiceExt;
use tracing::{Instrument, Level};

use super::answer::{Answer, AnswerBody, Pieces};
use super::error::{ApiError, ErrorBody, FailureCause, Fault};
use super::routes::{Route, RouteTable};
use super::taken::Taken;
use crate::config::ApiConfig;
use crate::directory::Directory;
use crate::directory::routes::{Asked, Read};
use crate::lifecycle::panic_text;
use crate::telemetry::metrics::Metrics;

const REQUEST_ID: &str = "x-request-id";
/// A collector wants a span for each request, whatever the level of the log lines, which have the id
/// themselves. Without one it would be made for nobody.
const SPAN_LEVEL: Level = if cfg!(feature = "otlp") { Level::ERROR } else { Level::DEBUG };

/// Cheap to clone.
#[derive(Clone)]
pub struct Surface(Arc<Inner>);

struct Inner {
    routes: RouteTable,
    router: axum::Router,
    directory: Directory,
    body_timeout: Duration,
    request_deadline: Duration,
    metrics: Arc<Metrics>,
}

impl Surface {
    pub fn new(
        router: axum::Router,
        directory: Directory,
        config: &ApiConfig,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (body_timeout, request_deadline) = (config.body_timeout, config.request_deadline);
        let routes = RouteTable::new()?;
        Ok(Self(Arc::new(Inner { routes, router, directory, body_timeout, request_deadline, metrics })))
    }

    /// `taken`: what the client has taken of its answers, for those who stream.
    pub async fn answer<B>(&self, request: Request<B>, taken: &Taken) -> Answer
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let begun_at = Instant::now();
        let id = request_id(request.headers());
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let (route, parameters) = self.0.routes.find(uri.path());
        let span =
            tracing::span!(SPAN_LEVEL, "request", request_id = id.to_str().ok(), %method, route = route.template);
        let answering = async {
            match self.find_read(route, &parameters, &request) {
                Some(Ok(read)) => read.answer(&self.0.directory).await.unwrap_or_else(into_answer),
                Some(Err(error)) => into_answer(error),
                // Boxed, so that the short way need not carry the room for it.
                None => Box::pin(self.pass_on(route, request, taken)).await,
            }
        };
        let answered = AssertUnwindSafe(answering).catch_unwind().instrument(span).await;
        let mut answer = answered.unwrap_or_else(|panic| {
            self.0.metrics.http_panics.inc();
            let (id, text) = (id.to_str().unwrap_or_default(), panic_text(panic.as_ref()));
            tracing::error!(request_id = id, path = uri.path(), panic = text, "a handler panicked");
            into_answer(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal Server Error"))
        });
        let took = begun_at.elapsed();
        route.record(&self.0.metrics, &method, answer.status(), took);
        write_line(&answer, &id, &method, &uri, took);
        if let Some(error) = answer.extensions_mut().remove::<ErrorBody>() {
            write_error(&mut answer, &error, &id, method == Method::HEAD);
        }
        answer.headers_mut().insert(REQUEST_ID, id);
        answer
    }

    /// Whether the short way answers this: a plain `GET` of a read, as programs send it.
    fn find_read<B: hyper::body::Body>(
        &self,
        route: &Route,
        parameters: &[&str],
        request: &Request<B>,
    ) -> Option<Result<Read, ApiError>> {
        let parse = route.parse?;
        let is_plain = *request.method() == Method::GET
            && request.body().is_end_stream()
            && !request.headers().contains_key(header::ORIGIN)
            && !request.uri().path().contains('%');
        let asked = Asked { parameters, query: request.uri().query(), headers: request.headers() };
        is_plain.then(|| parse(&asked))
    }

    async fn pass_on<B>(&self, route: &Route, request: Request<B>, taken: &Taken) -> Answer
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(taken.clone());
        let request = match self.with_whole_body(route.body_limit, parts, Body::new(body)).await {
            Ok(request) => request,
            Err(error) => return into_answer(error),
        };
        let answering = self.0.router.clone().oneshot(request);
        let Ok(response) = if route.is_waiting {
            answering.await
        } else {
            match tokio::time::timeout(self.0.request_deadline, answering).await {
                Ok(answered) => answered,
                Err(_) => {
                    let why = "the request took too long";
                    return into_answer(ApiError::unavailable("service", "request_deadline", why));
                }
            }
        };
        response.map(AnswerBody::Made)
    }

    /// Reads the body here, once for all handlers: within its limit and its time, or not at all.
    async fn with_whole_body(&self, limit: usize, parts: Parts, body: Body) -> Result<Request<Body>, ApiError> {
        let declared =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|bytes| bytes > limit as u64) {
            return Err(too_large(limit));
        }
        if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) || declared == Some(0) {
            return Ok(Request::from_parts(parts, body));
        }
        let reading = Limited::new(body, limit).collect();
        let bytes: Bytes = match tokio::time::timeout(self.0.body_timeout, reading).await {
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
                self.0.metrics.http_connections_refused.with_label_values(&["body"]).inc();
                let detail = format!("the body did not arrive within {} s", self.0.body_timeout.as_secs_f64());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail));
            }
        };
        match parts.headers.get(header::CONTENT_TYPE) {
            Some(content_type) if !bytes.is_empty() && !is_json(content_type) => Err(not_json(content_type)),
            _ => Ok(Request::from_parts(parts, Body::from(bytes))),
        }
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

fn into_answer(error: ApiError) -> Answer {
    error.into_response().map(AnswerBody::Made)
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_sane = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=128).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(byte))
    };
    headers.get(REQUEST_ID).filter(is_sane).cloned().unwrap_or_else(|| {
        let mut text = [0; uuid::fmt::Simple::LENGTH];
        let id = uuid::Uuid::new_v4().simple().encode_lower(&mut text);
        // Hexadecimal digits are a value.
        HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

fn write_line(answer: &Answer, id: &HeaderValue, method: &Method, uri: &Uri, took: Duration) {
    let (status, path) = (answer.status(), uri.path());
    let id = || id.to_str().unwrap_or_default();
    if status.is_server_error() {
        let cause = answer.extensions().get::<FailureCause>().map_or("", |cause| &cause.0);
        let (status, took_ms) = (status.as_u16(), elapsed_ms(took));
        tracing::warn!(request_id = id(), %method, path, status, cause, took_ms, "request failed");
    } else {
        tracing::debug!(request_id = id(), %method, path, status = status.as_u16(), took_ms = elapsed_ms(took), "request");
    }
}

fn elapsed_ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

fn write_error(answer: &mut Answer, error: &ErrorBody, id: &HeaderValue, is_head: bool) {
    let body = error.render(id.to_str().unwrap_or_default());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *answer.body_mut() = AnswerBody::Ready(Pieces::One(if is_head { Bytes::new() } else { body.into() }));
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::config::DirectoryConfig;
    use crate::directory::store::DirectoryFeed;
    use crate::directory::{Command, DirectoryStore, Outcome, Refusal, WriteError};
    use crate::lifecycle::Lifecycle;
    use crate::store_error::StoreError;

    /// A database that is away.
    struct Away;

    fn away() -> StoreError {
        StoreError::unavailable_because("database", "connection refused")
    }

    #[async_trait]
    impl DirectoryStore for Away {
        async fn write(&self, _: Command) -> Result<Outcome, WriteError> {
            Err(away().into())
        }

        async fn write_all(&self, _: Vec<Command>) -> Result<Vec<Result<Outcome, Refusal>>, StoreError> {
            Err(away())
        }

        async fn read_users_dict(&self) -> Result<std::collections::BTreeMap<i64, String>, StoreError> {
            Err(away())
        }

        async fn begin_epoch(&self) -> Result<(), StoreError> {
            Err(away())
        }

        async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError> {
            Err(away())
        }
    }

    fn surface(router: Router) -> Surface {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let directory = DirectoryConfig {
            read_deadline: Duration::from_secs(2),
            stale_if_error: Duration::ZERO,
            audit_interval: Duration::from_secs(3600),
        };
        let directory = Directory::start(Arc::new(Away), &directory, &Lifecycle::new(), metrics.clone());
        Surface(Arc::new(Inner {
            routes: RouteTable::new().expect("routes"),
            router,
            directory,
            body_timeout: Duration::from_secs(1),
            request_deadline: Duration::from_secs(30),
            metrics,
        }))
    }

    async fn ask(surface: &Surface, request: axum::http::request::Builder) -> (u16, HeaderMap, String) {
        let request = request.body(Body::empty()).expect("a request");
        let (parts, body) = surface.answer(request, &Taken::default()).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).expect("UTF-8"))
    }

    #[tokio::test]
    async fn a_panic_is_one_request_s_500_and_is_counted() {
        let panics = get(async || {
            if true {
                panic!("out of ink")
            }
        });
        let surface = surface(Router::new().route("/", get(async || "fine")).route("/metrics", panics));
        for (path, status) in [("/", 200), ("/metrics", 500), ("/", 200)] {
            let (answered, headers, body) = ask(&surface, Request::get(path).header(REQUEST_ID, "r-1")).await;
            assert_eq!((answered, &headers[REQUEST_ID]), (status, &HeaderValue::from_static("r-1")));
            if status == 500 {
                let expected = r#"{"detail":"Internal Server Error","code":"internal_error","request_id":"r-1"}"#;
                assert_eq!(body, expected);
            }
        }
        assert_eq!(surface.0.metrics.http_panics.get(), 1);
        let count = |route, status| surface.0.metrics.http_requests.with_label_values(&["GET", route, status]).get();
        assert_eq!((count("/", "200"), count("/metrics", "500")), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_does_not_end_is_answered_503() {
        let surface = surface(Router::new().route("/", get(std::future::pending::<()>)));
        let (status, headers, _) = ask(&surface, Request::get("/")).await;
        assert_eq!((status, &headers[header::RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_takes_the_short_way_only_when_it_is_plain() {
        let surface = surface(Router::new().fallback(async || "router"));
        let (status, headers, body) = ask(&surface, Request::get("/users/7")).await;
        assert_eq!((status, &headers[header::RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
        assert!(body.contains("database_unavailable") && headers.contains_key(REQUEST_ID), "{body}");
        let (status, _, body) = ask(&surface, Request::get("/users/seven")).await;
        assert!(status == 422 && body.contains("int_parsing"), "{body}");
        for request in [
            Request::head("/users/7"),
            Request::delete("/users/7"),
            Request::get("/users/%37"),
            Request::get("/users/7").header(header::ORIGIN, "https://screens.example"),
            Request::get("/users/7/"),
        ] {
            let (status, _, body) = ask(&surface, request).await;
            assert!(status == 200 && (body == "router" || body.is_empty()), "{body}");
        }
    }
}
