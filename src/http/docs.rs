//! `/docs`, `/redoc` and `/openapi.json`. Everything is in the binary; a content security policy holds
//! the pages to that.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;

use super::error::ApiError;
use super::openapi;

const POLICY: &str = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data:; worker-src 'self' blob:; font-src 'self' data:";

pub fn router() -> Router {
    Router::new()
        .route("/openapi.json", get(document))
        .route("/docs", get(|| async { Redirect::temporary("docs/index.html") }))
        .route("/docs/{file}", get(swagger))
        .route("/redoc", get(redoc))
}

async fn document() -> Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(openapi::render);
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

async fn swagger(Path(file): Path<String>) -> Response {
    let config = std::sync::Arc::new(utoipa_swagger_ui::Config::from("../openapi.json"));
    match utoipa_swagger_ui::serve(&file, config) {
        Ok(Some(asset)) => {
            let headers =
                [(header::CONTENT_TYPE, asset.content_type), (header::CONTENT_SECURITY_POLICY, POLICY.to_owned())];
            (headers, asset.bytes.into_owned()).into_response()
        }
        Ok(None) => ApiError::new(StatusCode::NOT_FOUND, "not_found", "Not Found").into_response(),
        Err(error) => {
            ApiError::unavailable("documentation", "documentation_unavailable", error.to_string()).into_response()
        }
    }
}

async fn redoc() -> Response {
    let page = aide::redoc::Redoc::new("openapi.json").with_title("unified-backend").html();
    // The bundle would fetch its maker's logo.
    let page = page.replace("https://cdn.redoc.ly/redoc/logo-mini.svg", "data:,");
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()
}
