//! `/alerts`, `/alerts/rejected`, `/messages/recent`: the log over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::decode::{DecodeLimits, decode};
use super::types::{AlertFilter, AlertQuery, AppendBatch, DeadLetter, Direction, NewAlert, Source, StoredAlert};
use super::{AlertLog, AppendError, Ingest};
use crate::http::error::{ApiError, Fault};
use crate::http::extract::{PathTexts, Query, not_found, parse_json};
use crate::time::Timestamp;

const MAX_ITEMS: usize = 1000;

#[derive(Clone)]
struct Alerts {
    log: Arc<dyn AlertLog>,
    ingest: Ingest,
    limits: Arc<DecodeLimits>,
}

pub fn router(log: Arc<dyn AlertLog>, ingest: Ingest, limits: DecodeLimits) -> Router {
    Router::new()
        .route("/alerts", get(list_alerts).post(accept_alerts))
        .route("/alerts/rejected", get(list_rejected))
        .route("/alerts/rejected/{id}/retry", post(retry_rejected))
        .route("/messages/recent", get(list_recent))
        .with_state(Alerts { log, ingest, limits: Arc::new(limits) })
}

/// The filters that every way of reading alerts takes.
pub fn filter_of(query: &Query) -> AlertFilter {
    AlertFilter {
        zone_ids: query.list("zone_id"),
        user_ids: query.list("user_id"),
        statuses: query.list("status"),
        camera_ids: query.list("camera_id"),
    }
}

/// `after` that lies beyond the log belongs to another log.
pub fn seq_beyond_end(after: i64, last: i64) -> ApiError {
    let detail = format!("the log ends at {last}, {after} is beyond it: it is another log, start over without `after`");
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "seq_beyond_end", detail)
}

#[derive(Serialize)]
struct Shown<'a> {
    seq: i64,
    received_at: Timestamp,
    occurred_at: Option<Timestamp>,
    source: &'a str,
    alert: &'a RawValue,
}

async fn list_alerts(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Page<'a> {
        alerts: Vec<Shown<'a>>,
        next: Option<i64>,
    }
    let mut query = Query::parse(query.as_deref());
    let limit = query.integer("limit", 100, 1..=1000);
    let after = query.find("after").is_some().then(|| query.integer("after", 0, 0..=i64::MAX));
    let before = query.integer("before", i64::MAX, 1..=i64::MAX);
    if after.is_some() && query.find("before").is_some() {
        let loc = ["query".into(), "before".into()];
        query.faults.push(
            "value_error",
            &loc,
            "Value error, give after or before, not both".to_owned(),
            &json!(before),
        );
    }
    let (from, to) = (moment(&mut query, "from"), moment(&mut query, "to"));
    let filter = filter_of(&query);
    query.finish()?;
    let direction = after.map_or(Direction::Before(before), Direction::After);
    let limit = u32::try_from(limit).unwrap_or(1000);
    let found = alerts.log.list_alerts(&AlertQuery { direction, limit, filter, from, to }).await?;
    if let (Some(after), true) = (after, found.is_empty()) {
        let last = alerts.log.last_seq().await?;
        if after > last {
            return Err(seq_beyond_end(after, last));
        }
    }
    let next = (found.len() == limit as usize).then(|| found.last().map(|alert| alert.seq)).flatten();
    let next = next.filter(|seq| after.is_some() || *seq > 1);
    let shown = found.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    json_response(&Page { alerts: shown, next })
}

fn shown(alert: &StoredAlert) -> Result<Shown<'_>, ApiError> {
    Ok(Shown {
        seq: alert.seq,
        received_at: alert.received_at,
        occurred_at: alert.occurred_at,
        source: &alert.source,
        alert: raw(alert)?,
    })
}

fn raw(alert: &StoredAlert) -> Result<&RawValue, ApiError> {
    serde_json::from_slice(&alert.body).map_err(|error| {
        ApiError::unavailable("database", "database_unavailable", format!("alert {}: {error}", alert.seq))
    })
}

async fn list_recent(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Recent<'a> {
        count: usize,
        messages: Vec<&'a RawValue>,
    }
    let mut query = Query::parse(query.as_deref());
    let limit = query.integer("limit", 50, 1..=1000);
    query.finish()?;
    let newest = AlertQuery {
        direction: Direction::Before(i64::MAX),
        limit: u32::try_from(limit).unwrap_or(50),
        filter: AlertFilter::default(),
        from: None,
        to: None,
    };
    let found = alerts.log.list_alerts(&newest).await?;
    let messages = found.iter().rev().map(raw).collect::<Result<Vec<_>, _>>()?;
    json_response(&Recent { count: messages.len(), messages })
}

async fn accept_alerts(State(alerts): State<Alerts>, body: Bytes) -> Result<Response, ApiError> {
    let items = items_of(&body)?;
    let mut batch = AppendBatch::default();
    let mut rejected = Vec::new();
    for (index, item) in items.iter().enumerate() {
        match decode(&body.slice_ref(item.get().as_bytes()), &alerts.limits) {
            Ok(alert) => batch.alerts.push(NewAlert { alert, source: Source::Http }),
            Err(error) => rejected.push(json!({ "index": index, "reason": error.to_string() })),
        }
    }
    let (mut accepted, mut duplicates) = (0, 0);
    if !batch.alerts.is_empty() {
        let appended = alerts.ingest.accept(batch).await.map_err(append_error)?;
        accepted = appended.seqs.iter().flatten().count();
        duplicates = appended.seqs.len() - accepted;
    }
    json_response(&json!({ "accepted": accepted, "duplicates": duplicates, "rejected": rejected }))
}

/// Anything that is not an array is one item.
fn items_of(body: &Bytes) -> Result<Vec<&RawValue>, ApiError> {
    let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let items: Result<Vec<&RawValue>, _> =
        if is_array { serde_json::from_slice(body) } else { serde_json::from_slice(body).map(|item| vec![item]) };
    let Ok(items) = items else {
        // For the fault's place; should the body be readable this way only, it is refused all the same.
        parse_json(body)?;
        return Err(ApiError::invalid(vec![fault("json_invalid", "JSON decode error: the body is not JSON")]));
    };
    if items.len() > MAX_ITEMS {
        let text = format!("List should have at most {MAX_ITEMS} items after validation, not {}", items.len());
        return Err(ApiError::invalid(vec![fault("too_long", &text)]));
    }
    Ok(items)
}

fn fault(kind: &'static str, msg: &str) -> Fault {
    Fault { kind, loc: vec!["body".into()], msg: msg.to_owned(), input: serde_json::Value::Null }
}

async fn list_rejected(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    struct Rejected {
        id: i64,
        received_at: Timestamp,
        topic: String,
        partition: i32,
        offset: i64,
        reason: String,
        size: u64,
        raw_base64: String,
    }
    #[derive(Serialize)]
    struct Page {
        rejected: Vec<Rejected>,
        next: Option<i64>,
    }
    let mut query = Query::parse(query.as_deref());
    let limit = query.integer("limit", 100, 1..=1000);
    let after = query.integer("after", 0, 0..=i64::MAX);
    query.finish()?;
    let limit = u32::try_from(limit).unwrap_or(100);
    let letters = alerts.log.list_dead_letters(after, limit).await?;
    let next = (letters.len() == limit as usize).then(|| letters.last().map(|letter| letter.id)).flatten();
    let rejected = letters.into_iter().map(|letter: DeadLetter| Rejected {
        raw_base64: base64::engine::general_purpose::STANDARD.encode(&letter.raw),
        id: letter.id,
        received_at: letter.received_at,
        topic: letter.topic,
        partition: letter.partition,
        offset: letter.offset,
        reason: letter.reason,
        size: letter.size,
    });
    json_response(&Page { rejected: rejected.collect(), next })
}

async fn retry_rejected(State(alerts): State<Alerts>, path: PathTexts) -> Result<Response, ApiError> {
    let id = path.integer(0, "id")?;
    let missing = || not_found("dead_letter_not_found", "Rejected message not found");
    let letter = alerts.log.find_dead_letter(id).await?.ok_or_else(missing)?;
    if letter.raw.len() as u64 != letter.size {
        let detail = format!("only {} of its {} bytes were kept: publish it again", letter.raw.len(), letter.size);
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "still_rejected", detail));
    }
    let alert = decode(&letter.raw, &alerts.limits)
        .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "still_rejected", error.to_string()))?;
    let source = Source::Kafka { topic: letter.topic.into(), partition: letter.partition, offset: letter.offset };
    let seq = alerts.log.resolve_dead_letter(id, &NewAlert { alert, source }).await?.ok_or_else(missing)?;
    json_response(&json!({ "id": id, "seq": seq }))
}

fn append_error(error: AppendError) -> ApiError {
    match error {
        AppendError::Store(error) => error.into(),
        fenced @ AppendError::Fenced(_) => {
            ApiError::unavailable("database", "database_unavailable", fenced.to_string())
        }
    }
}

fn moment(query: &mut Query, name: &'static str) -> Option<Timestamp> {
    let text = query.find(name)?.to_owned();
    let parsed = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let naive = text.parse::<jiff::civil::DateTime>().ok()?;
        jiff::tz::TimeZone::UTC.to_timestamp(naive).ok()
    });
    if parsed.is_none() {
        let msg = "Input should be a valid datetime, as in 2026-11-24T09:24:00Z".to_owned();
        query.faults.push("datetime_parsing", &["query".into(), name.into()], msg, &text.into());
    }
    parsed.map(|instant| Timestamp::from_micros(instant.as_microsecond()))
}

fn json_response(value: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(value)
        .map_err(|error| ApiError::unavailable("service", "not_serializable", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
