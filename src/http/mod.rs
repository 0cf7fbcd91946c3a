//! The HTTP rim: the listener with its limits, the surface with what stands around every request, the router
//! that mounts the features.

pub mod answer;
mod docs;
pub mod error;
pub mod extract;
mod keeper;
mod listener;
pub mod openapi;
mod routes;
mod service;
mod surface;
pub mod taken;
pub mod websocket;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use listener::{bind, serve};
pub use surface::Surface;

use self::error::ApiError;
use crate::alerts::decode::DecodeLimits;
use crate::app::AppState;
use crate::store_error::StoreError;
use crate::{alerts, directory, redis};

/// The whole HTTP surface of a service.
pub fn surface(state: AppState) -> anyhow::Result<Surface> {
    let (directory, config, metrics) = (state.directory.clone(), state.config.clone(), state.metrics.clone());
    Surface::new(router(state), directory, &config.api, metrics)
}

fn router(state: AppState) -> Router {
    let limits =
        DecodeLimits { max_bytes: state.config.alerts.max_bytes, timezone: state.config.alerts.timezone.clone() };
    let routes = Router::new()
        .merge(directory::routes::router(state.directory.clone()))
        .merge(alerts::routes::router(state.log.clone(), state.ingest.clone(), limits))
        .merge(state.push.router())
        .merge(redis::routes::router(state.redis.clone(), state.directory.clone()))
        .merge(service::router(state.clone()))
        .merge(docs::router())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    // The surface has read the body within our own limits.
    let routes = routes.layer(DefaultBodyLimit::disable());
    match cors(&state.config.api.cors_origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    }
}

/// Runs a handler's work; what is long (milliseconds) beside the runtime's threads, which have others to serve
/// meanwhile. A panic is the request's, wherever it happens.
pub async fn compute<T: Send + 'static>(
    is_long: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    if !is_long {
        return Ok(work());
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
        Err(join) => Err(StoreError::unavailable("service", join)),
    }
}

/// A trailing slash is a slip of the client's; everything else is not here.
async fn not_found(uri: Uri) -> Response {
    let path = uri.path();
    // A path that begins with two slashes (browsers read `\` as one) would redirect to another host.
    let is_elsewhere = path.starts_with("//") || path.starts_with("/\\");
    if path.len() > 1 && path.ends_with('/') && !is_elsewhere {
        let path = path.trim_end_matches('/');
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(location) = HeaderValue::try_from(format!("{path}{query}")) {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
    }
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "Not Found").into_response()
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed")
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let exposed = ["etag", "dict-version", "x-total-count", "x-request-id", "retry-after", "age", "cache-status"];
    Some(
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers([
                header::CONTENT_TYPE,
                header::IF_NONE_MATCH,
                answer::REQUEST_ID,
                HeaderName::from_static("last-event-id"),
            ])
            .expose_headers(exposed.map(HeaderName::from_static))
            .max_age(std::time::Duration::from_secs(3600)),
    )
}
