//! `/users`, `/zones`, `/stats`, `/users-dict`: the directory over HTTP. Knows the facade alone.

mod dict;
mod reads;
mod users;
mod zones;

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};

pub use self::reads::{Asked, Parse, READS, Read};
use super::Directory;
use crate::http::answer::Answer;
use crate::http::error::ApiError;
use crate::http::extract::Query;

pub fn router(directory: Directory) -> Router {
    Router::new().merge(users::router()).merge(zones::router()).merge(dict::router()).with_state(directory)
}

const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

/// (skip, limit)
fn page(query: Option<&str>) -> Result<(usize, usize), ApiError> {
    let mut query = Query::parse(query);
    let skip = query.integer("skip", 0, 0..=i64::MAX);
    let limit = query.integer("limit", 100, 1..=10_000);
    query.finish()?;
    Ok((usize::try_from(skip).unwrap_or(usize::MAX), usize::try_from(limit).unwrap_or(0)))
}

/// An answer from before the database went away says so.
fn mark(response: &mut Answer, stale: Option<Duration>) {
    if let Some(age) = stale {
        response.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
        let status = HeaderValue::from_static("unified-backend; hit; detail=stale-if-error");
        response.headers_mut().insert(HeaderName::from_static("cache-status"), status);
    }
}
