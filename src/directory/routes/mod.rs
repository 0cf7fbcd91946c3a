//! `/users`, `/zones`, `/stats`, `/users-dict`: the directory over HTTP. Knows the facade alone.

mod calls;
mod dict;
mod users;
mod zones;

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};

pub use self::calls::{Asked, CALLS, Call, Parse, router};
use crate::http::answer::Answer;
use crate::http::error::ApiError;
use crate::http::extract::Query;

const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

/// (skip, limit)
fn page(query: Option<&str>) -> Result<(usize, usize), ApiError> {
    let mut query = Query::parse(query);
    let skip = query.integer("skip", 0, 0..=i64::MAX);
    let limit = query.integer("limit", 100, 1..=10_000);
    query.finish()?;
    Ok((usize::try_from(skip).unwrap_or(usize::MAX), usize::try_from(limit).unwrap_or(0)))
}

/// A JSON object with one more field.
fn with_field(mut object: Vec<u8>, name: &'static str, value: &[u8]) -> Vec<u8> {
    object.pop();
    object.extend_from_slice(b",\"");
    object.extend_from_slice(name.as_bytes());
    object.extend_from_slice(b"\":");
    object.extend_from_slice(value);
    object.push(b'}');
    object
}

/// An answer from before the database went away says so.
fn mark(response: &mut Answer, stale: Option<Duration>) {
    if let Some(age) = stale {
        response.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
        let status = HeaderValue::from_static("unified-backend; hit; detail=stale-if-error");
        response.headers_mut().insert(HeaderName::from_static("cache-status"), status);
    }
}
