//! What the two streaming routes share: what a client may ask for, and who may ask.

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::routing::get;

use super::session::Session;
use super::{Push, sse, ws};
use crate::alerts::routes::{filter_of, seq_beyond_end};
use crate::http::error::ApiError;
use crate::http::extract::Query;
use crate::store_error::StoreError;

/// What a client asked for.
pub(super) struct Wanted {
    pub session: Session,
    pub envelope: bool,
    /// Named with `after` or `Last-Event-ID`.
    pub after: Option<i64>,
}

impl Push {
    /// `/ws/alerts` and `/alerts/stream`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/ws/alerts", get(ws::connect))
            .route("/alerts/stream", get(sse::connect))
            .with_state(self.clone())
    }

    pub(super) fn wanted(&self, query: Option<&str>, last_event_id: Option<&str>) -> Result<Wanted, ApiError> {
        let mut query = Query::parse(query);
        let envelope = query.boolean("envelope", false);
        let mut after = query.find("after").is_some().then(|| query.integer("after", 0, 0..=i64::MAX));
        if let Some(id) = last_event_id.map(str::trim).filter(|id| is_number(id)) {
            // Digits that no seq can have are beyond every log.
            after = Some(id.parse().unwrap_or(i64::MAX));
        }
        let filter = filter_of(&mut query);
        query.finish()?;
        Ok(Wanted { session: Session::new(filter, after), envelope, after })
    }

    /// Refuses a position that this log never reached.
    pub(super) async fn check_position(&self, wanted: &Wanted) -> Result<Result<(), ApiError>, StoreError> {
        let Some(after) = wanted.after.filter(|after| *after > self.hub.last_seq()) else { return Ok(Ok(())) };
        let last = self.log.last_seq().await?;
        Ok(if after > last { Err(seq_beyond_end(after, last)) } else { Ok(()) })
    }

    /// Browsers send `Origin`: only pages of this host or of the configured origins may listen.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
        let is_same_host =
            text(header::HOST).is_some_and(|host| origin.split_once("://").is_some_and(|(_, rest)| rest == host));
        if is_same_host || self.origins.iter().any(|allowed| allowed == origin) {
            return Ok(());
        }
        let detail = format!("pages of {origin} may not listen here; add it to API_CORS_ORIGINS if they should");
        Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
