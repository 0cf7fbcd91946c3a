//! All of the service as one function from a request to its answer: what stands around every request (its
//! id, its body within limits, its deadline, the guard against panics, its metrics and its one log line),
//! then the short way for calls of the directory, or the router.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::IntoResponse;
use compact_str::CompactString;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Limited};
use tower::ServiceExt;
use tracing::{Instrument, Level};

use super::answer::{Answer, AnswerBody, JSON, Pieces, REQUEST_ID};
use super::error::{ApiError, ErrorBody, FailureCause, Fault};
use super::routes::{Route, RouteTable};
use super::taken::Taken;
use crate::config::ApiConfig;
use crate::directory::Directory;
use crate::directory::routes::{Asked, Call, Parse};
use crate::lifecycle::panic_text;
use crate::telemetry::metrics::Metrics;

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
    ///
    /// What needs no body is understood before this returns, and the request given up: whatever is kept of it keeps
    /// the buffer it came in, and its connection, which reads on before it polls the answer, would need another one.
    pub fn answer<'a, B>(
        &'a self,
        request: Request<B>,
        taken: &'a Taken,
    ) -> impl Future<Output = Answer> + Send + use<'a, B>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let begun_at = Instant::now();
        let id = request_id(request.headers());
        let method = request.method().clone();
        let path = CompactString::from(request.uri().path());
        let (route, parameters) = self.0.routes.find(&path);
        let arrived = match find_call(route, &request) {
            Some(parse) if has_no_body(&method) => Arrived::Call(understand(parse, &request, parameters)),
            // Boxed, so that the future of a plain read, which is moved about, need not carry the room for it.
            parse => Arrived::Later(Box::pin(self.answer_later(route, parse, request, taken))),
        };
        async move {
            let span =
                tracing::span!(SPAN_LEVEL, "request", request_id = id.to_str().ok(), %method, route = route.template);
            let answering = async {
                match arrived {
                    Arrived::Call(Ok(Ok(call))) => call.answer(&self.0.directory).await.unwrap_or_else(into_answer),
                    Arrived::Call(Ok(Err(error))) => into_answer(error),
                    Arrived::Call(Err(panic)) => std::panic::resume_unwind(panic),
                    Arrived::Later(answering) => answering.await,
                }
            };
            let answered = AssertUnwindSafe(answering).catch_unwind().instrument(span).await;
            let mut answer = answered.unwrap_or_else(|panic| {
                self.0.metrics.http_panics.inc();
                let (id, text) = (id.to_str().unwrap_or_default(), panic_text(panic.as_ref()));
                tracing::error!(request_id = id, path = &*path, panic = text, "a handler panicked");
                into_answer(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Internal Server Error"))
            });
            let took = begun_at.elapsed();
            route.record(&self.0.metrics, &method, answer.status(), took);
            write_line(&answer, &id, &method, &path, took);
            if let Some(error) = answer.extensions_mut().remove::<ErrorBody>() {
                write_error(&mut answer, &error, &id, method == Method::HEAD);
            }
            answer.headers_mut().insert(REQUEST_ID, id);
            answer
        }
    }

    /// `parse`: how to understand it, where the short way answers it once its body is there.
    async fn answer_later<B>(&self, route: &Route, parse: Option<Parse>, request: Request<B>, taken: &Taken) -> Answer
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match parse {
            Some(parse) => self.call(parse, route, request).await.unwrap_or_else(into_answer),
            None => self.pass_on(route, request, taken).await,
        }
    }

    /// The short way of calls with a body.
    async fn call<B>(&self, parse: Parse, route: &Route, request: Request<B>) -> Result<Answer, ApiError>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let body = self.read_body(route.body_limit, &parts, body).await?;
        let (_, parameters) = self.0.routes.find(parts.uri.path());
        let asked = Asked { parameters, query: parts.uri.query(), headers: &parts.headers, body: &body };
        let call = parse(&asked)?;
        drop((parts, body));
        self.in_time(call.answer(&self.0.directory)).await?
    }

    async fn pass_on<B>(&self, route: &Route, request: Request<B>, taken: &Taken) -> Answer
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(taken.clone());
        let request = match self.read_body(route.body_limit, &parts, body).await {
            Ok(body) => Request::from_parts(parts, Body::from(body)),
            Err(error) => return into_answer(error),
        };
        let answering = self.0.router.clone().oneshot(request);
        let answered = if route.is_waiting { Ok(answering.await) } else { self.in_time(answering).await };
        match answered {
            Ok(Ok(response)) => response.map(AnswerBody::Made),
            Err(error) => into_answer(error),
        }
    }

    async fn in_time<T>(&self, answering: impl Future<Output = T>) -> Result<T, ApiError> {
        let answered = tokio::time::timeout(self.0.request_deadline, answering).await;
        answered.map_err(|_| ApiError::unavailable("service", "request_deadline", "the request took too long"))
    }

    /// Reads the body here, once for all handlers: within its limit and its time, or not at all. Those of methods
    /// that have none are nobody's.
    async fn read_body<B>(&self, limit: usize, parts: &Parts, body: B) -> Result<Bytes, ApiError>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let declared =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|bytes| bytes > limit as u64) {
            return Err(too_large(limit));
        }
        if has_no_body(&parts.method) || declared == Some(0) {
            return Ok(Bytes::new());
        }
        let mut reading = pin!(Limited::new(body, limit).collect());
        // Most have come with their head and need no timer.
        let read = match reading.as_mut().now_or_never() {
            Some(read) => Ok(read),
            None => tokio::time::timeout(self.0.body_timeout, reading).await,
        };
        let bytes: Bytes = match read {
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
            _ => Ok(bytes),
        }
    }
}

/// What is to be done.
enum Arrived<'a> {
    /// Or what is wrong with the request, or a panic.
    Call(std::thread::Result<Result<Call, ApiError>>),
    Later(BoxFuture<'a, Answer>),
}

fn understand<B>(
    parse: Parse,
    request: &Request<B>,
    parameters: [&str; 2],
) -> std::thread::Result<Result<Call, ApiError>> {
    let asked = Asked { parameters, query: request.uri().query(), headers: request.headers(), body: b"" };
    std::panic::catch_unwind(AssertUnwindSafe(|| parse(&asked)))
}

fn has_no_body(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether the short way answers this: a plain call of the directory, as programs send it.
fn find_call<B: hyper::body::Body>(route: &Route, request: &Request<B>) -> Option<Parse> {
    let has_odd_body = has_no_body(request.method()) && !request.body().is_end_stream();
    let is_plain =
        !has_odd_body && !request.headers().contains_key(header::ORIGIN) && !request.uri().path().contains('%');
    if is_plain { route.find_call(request.method()) } else { None }
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

fn write_line(answer: &Answer, id: &HeaderValue, method: &Method, path: &str, took: Duration) {
    let status = answer.status();
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
    answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *answer.body_mut() = AnswerBody::Ready(Pieces::One(if is_head { Bytes::new() } else { body.into() }));
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;
    use axum::Router;
    use axum::routing::get;

    use super::*;
    use crate::config::DirectoryConfig;
    use crate::directory::store::DirectoryFeed;
    use crate::directory::{Command, DirectoryStore, Outcome, Refusal, WriteError};
    use crate::lifecycle::Lifecycle;
    use crate::store_error::StoreError;

    /// A database that is away, or takes writes and does not answer them.
    struct Away {
        is_silent: bool,
    }

    fn away() -> StoreError {
        StoreError::unavailable_because("database", "connection refused")
    }

    #[async_trait]
    impl DirectoryStore for Away {
        async fn write(&self, _: Command) -> Result<Outcome, WriteError> {
            if self.is_silent {
                std::future::pending::<()>().await;
            }
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

    pub fn surface(router: Router) -> Surface {
        surface_over(Away { is_silent: false }, router)
    }

    fn surface_over(store: Away, router: Router) -> Surface {
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let directory = DirectoryConfig {
            read_deadline: Duration::from_secs(2),
            stale_if_error: Duration::ZERO,
            audit_interval: Duration::from_secs(3600),
        };
        let directory = Directory::start(Arc::new(store), &directory, &Lifecycle::new(), metrics.clone());
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
        ask_with(surface, request, "").await
    }

    async fn ask_with(
        surface: &Surface,
        request: axum::http::request::Builder,
        body: &'static str,
    ) -> (u16, HeaderMap, String) {
        let request = request.body(Body::from(body)).expect("a request");
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
    async fn a_write_that_does_not_end_is_answered_503_on_either_way() {
        let surface = surface_over(Away { is_silent: true }, Router::new());
        let directory = surface.0.directory.clone();
        let surface = Surface(Arc::new(Inner {
            routes: RouteTable::new().expect("routes"),
            router: crate::directory::routes::router(directory.clone()),
            directory,
            metrics: surface.0.metrics.clone(),
            ..*surface.0
        }));
        let origin = (header::ORIGIN, "https://screens.example");
        for request in [Request::delete("/users/7"), Request::delete("/users/7").header(origin.0, origin.1)] {
            let begun_at = tokio::time::Instant::now();
            let answered = tokio::time::timeout(Duration::from_secs(100), ask(&surface, request)).await;
            let (status, _, body) = answered.expect("an answer");
            assert!(status == 503 && body.contains("request_deadline"), "{body}");
            assert_eq!(begun_at.elapsed().as_secs(), 30);
        }
    }

    #[test]
    fn a_panic_of_what_understands_a_request_is_caught() {
        let request = Request::get("/users/7").body(Body::empty()).expect("a request");
        let panics: Parse = |asked| panic!("no {}", asked.text(0));
        let panic = understand(panics, &request, ["7", ""]).err().expect("a panic");
        assert_eq!(panic_text(panic.as_ref()), "no 7");
    }

    #[tokio::test]
    async fn a_body_of_the_short_way_is_checked_before_the_directory_is_asked() {
        let surface = surface(Router::new());
        let post = || Request::post("/users").header(header::CONTENT_TYPE, "application/json");
        for (request, body, status, code) in [
            (Request::post("/users").header(header::CONTENT_TYPE, "text/plain"), "{}", 422, "content-type"),
            (post(), "{", 422, "json_invalid"),
            (post(), "[]", 422, "model_attributes_type"),
            (post(), r#"{"global_id":1}"#, 422, "missing"),
            (post().header(header::CONTENT_LENGTH, "9999999999"), "{}", 413, "body_too_large"),
            (post(), r#"{"global_id":1,"name":"Ann"}"#, 503, "database_unavailable"),
        ] {
            let (answered, _, text) = ask_with(&surface, request, body).await;
            assert!(answered == status && text.contains(code), "{body}: {answered} {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_takes_the_short_way_only_when_it_is_plain() {
        let surface = surface(Router::new().fallback(async || "router"));
        let (status, headers, body) = ask(&surface, Request::get("/users/7")).await;
        assert_eq!((status, &headers[header::RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
        assert!(body.contains("database_unavailable") && headers.contains_key(REQUEST_ID), "{body}");
        let (status, _, body) = ask(&surface, Request::get("/users/seven")).await;
        assert!(status == 422 && body.contains("int_parsing"), "{body}");
        let (status, _, body) = ask(&surface, Request::delete("/users/7")).await;
        assert!(status == 503 && body.contains("database_unavailable"), "{body}");
        for request in [
            Request::head("/users/7"),
            Request::patch("/users/7"),
            Request::get("/users/%37"),
            Request::get("/users/7").header(header::ORIGIN, "https://screens.example"),
            Request::get("/users/7/"),
        ] {
            let (status, _, body) = ask(&surface, request).await;
            assert!(status == 200 && (body == "router" || body.is_empty()), "{body}");
        }
        let with_body = [
            Request::get("/users/7"),
            Request::post("/users")
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ORIGIN, "https://screens.example"),
        ];
        for request in with_body {
            assert_eq!(ask_with(&surface, request, "{}").await.2, "router");
        }
    }
}
