//! `/alerts`, `/alerts/rejected`, `/messages/recent`: the log over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use base64::Engine;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::decode::{DecodeLimits, decode, parse_time};
use super::types::{
    AlertFilter, AlertPage, AlertQuery, AppendBatch, DeadLetter, Direction, NewAlert, Source, StoredAlert,
};
use super::{AlertLog, AppendError, Ingest};
use crate::http::answer::{Answer, to_json};
use crate::http::compute;
use crate::http::error::{ApiError, Fault};
use crate::http::extract::{Location, PathTexts, Query, not_found, parse_json};
use crate::time::Timestamp;

const MAX_ITEMS: usize = 1000;
/// Larger bodies are read beside the runtime's threads.
const BYTES_READ_INLINE: usize = 64 * 1024;
/// Bodies of one answer; alerts of ordinary size never get there.
const PAGE_BYTES: usize = 16 * 1024 * 1024;
/// Alternatives of one filter.
const MAX_FILTER_VALUES: usize = 100;

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
pub fn filter_of(query: &mut Query) -> AlertFilter {
    let mut values = |name: &'static str| {
        let values = query.list(name);
        if values.len() > MAX_FILTER_VALUES {
            let msg =
                format!("List should have at most {MAX_FILTER_VALUES} items after validation, not {}", values.len());
            query.faults.push("too_long", Location::of("query", name), msg, &values.len().into());
        }
        values
    };
    AlertFilter {
        zone_ids: values("zone_id"),
        user_ids: values("user_id"),
        statuses: values("status"),
        camera_ids: values("camera_id"),
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

async fn list_alerts(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Answer, ApiError> {
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
        let msg = "Value error, give after or before, not both".to_owned();
        query.faults.push("value_error", Location::of("query", "before"), msg, &json!(before));
    }
    let timezone = &alerts.limits.timezone;
    let (from, to) = (moment(&mut query, "from", timezone), moment(&mut query, "to", timezone));
    let filter = filter_of(&mut query);
    query.finish()?;
    let direction = after.map_or(Direction::Before(before), Direction::After);
    let limit = u32::try_from(limit).unwrap_or(1000);
    let wanted = AlertQuery { direction, limit, max_bytes: PAGE_BYTES, filter, from, to };
    let AlertPage { alerts: found, is_cut } = alerts.log.list_alerts(&wanted).await?;
    if let (Some(after), true) = (after, found.is_empty()) {
        let last = alerts.log.last_seq().await?;
        if after > last {
            return Err(seq_beyond_end(after, last));
        }
    }
    let next = found.last().filter(|_| is_cut).map(|alert| alert.seq);
    let shown = found.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    to_json(&Page { alerts: shown, next })
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

async fn list_recent(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Answer, ApiError> {
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
        max_bytes: PAGE_BYTES,
        filter: AlertFilter::default(),
        from: None,
        to: None,
    };
    let found = alerts.log.list_alerts(&newest).await?.alerts;
    let messages = found.iter().rev().map(raw).collect::<Result<Vec<_>, _>>()?;
    to_json(&Recent { count: messages.len(), messages })
}

async fn accept_alerts(State(alerts): State<Alerts>, body: Bytes) -> Result<Answer, ApiError> {
    let (bytes, limits) = (body.len(), alerts.limits.clone());
    // A body of the largest size takes tens of milliseconds, for which everybody would wait.
    let (batch, rejected) = compute(bytes > BYTES_READ_INLINE, move || understand(&body, &limits)).await??;
    let (mut accepted, mut duplicates) = (0, 0);
    if !batch.alerts.is_empty() {
        let appended = alerts.ingest.accept_in_time(batch, bytes).await.map_err(append_error)?;
        accepted = appended.seqs.iter().flatten().count();
        duplicates = appended.seqs.len() - accepted;
    }
    to_json(&json!({ "accepted": accepted, "duplicates": duplicates, "rejected": rejected }))
}

/// The alerts in a body, and why the other items are none.
fn understand(body: &Bytes, limits: &DecodeLimits) -> Result<(AppendBatch, Vec<serde_json::Value>), ApiError> {
    let mut batch = AppendBatch::default();
    let mut rejected = Vec::new();
    for (index, item) in items_of(body)?.into_iter().enumerate() {
        match decode(body.slice_ref(item.get().as_bytes()), limits) {
            Ok(alert) => batch.alerts.push(NewAlert { alert, source: Source::Http }),
            Err(error) => rejected.push(json!({ "index": index, "reason": error.to_string() })),
        }
    }
    Ok((batch, rejected))
}

/// Anything that is not an array is one item.
fn items_of(body: &Bytes) -> Result<Vec<&RawValue>, ApiError> {
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
        return Ok(vec![parse_json(body)?]);
    }
    let Items { first, count } = parse_json(body)?;
    if count > MAX_ITEMS {
        let text = format!("List should have at most {MAX_ITEMS} items after validation, not {count}");
        return Err(ApiError::invalid(vec![fault("too_long", &text)]));
    }
    Ok(first)
}

/// The items of an array; those over the limit are counted and not held.
struct Items<'a> {
    first: Vec<&'a RawValue>,
    count: usize,
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Items<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Items<'de>, A::Error> {
                let mut first = Vec::new();
                while let Some(item) = (first.len() < MAX_ITEMS).then(|| items.next_element()).transpose()?.flatten() {
                    first.push(item);
                }
                let mut count = first.len();
                while items.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Items { first, count })
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

fn fault(kind: &'static str, msg: &str) -> Fault {
    Fault { kind, loc: vec!["body".into()], msg: msg.to_owned(), input: serde_json::Value::Null }
}

async fn list_rejected(State(alerts): State<Alerts>, RawQuery(query): RawQuery) -> Result<Answer, ApiError> {
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
    let limit = usize::try_from(limit).unwrap_or(100);
    // One past the page tells whether there is more.
    let mut letters = alerts.log.list_dead_letters(after, u32::try_from(limit + 1).unwrap_or(1)).await?;
    let has_more = letters.len() > limit;
    letters.truncate(limit);
    let next = letters.last().filter(|_| has_more).map(|letter| letter.id);
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
    to_json(&Page { rejected: rejected.collect(), next })
}

async fn retry_rejected(State(alerts): State<Alerts>, path: PathTexts) -> Result<Answer, ApiError> {
    let id = path.integer(0, "id")?;
    let missing = || not_found("dead_letter_not_found", "Rejected message not found");
    let letter = alerts.log.find_dead_letter(id).await?.ok_or_else(missing)?;
    if letter.raw.len() as u64 != letter.size {
        let detail = format!("only {} of its {} bytes were kept: publish it again", letter.raw.len(), letter.size);
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "still_rejected", detail));
    }
    let alert = decode(letter.raw.clone(), &alerts.limits)
        .map_err(|error| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "still_rejected", error.to_string()))?;
    let source = Source::Kafka { topic: letter.topic.into(), partition: letter.partition, offset: letter.offset };
    let seq = alerts.ingest.accept_dead_letter(id, NewAlert { alert, source }).await?.ok_or_else(missing)?;
    to_json(&json!({ "id": id, "seq": seq }))
}

fn append_error(error: AppendError) -> ApiError {
    match error {
        AppendError::Store(error) => error.into(),
        fenced @ AppendError::Fenced(_) => {
            ApiError::unavailable("database", "database_unavailable", fenced.to_string())
        }
    }
}

fn moment(query: &mut Query, name: &'static str, timezone: &jiff::tz::TimeZone) -> Option<Timestamp> {
    let text = query.find(name)?.to_owned();
    let parsed = parse_time(&text, timezone);
    if parsed.is_none() {
        let msg = "Input should be a valid datetime, as in 2026-11-24T09:24:00Z".to_owned();
        query.faults.push("datetime_parsing", Location::of("query", name), msg, &text.into());
    }
    parsed
}
