//! `/users-dict`: the whole map, what changed since a token, a long poll, or a stream.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use super::calls::{Asked, Call, USERS_WRITTEN_INLINE};
use crate::directory::dict::DictBody;
use crate::directory::sync::FreshGuard;
use crate::directory::{Cursor, DictDelta, Directory, Snapshot};
use crate::http::answer::{Answer, AnswerBody, JSON, Pieces, REQUEST_ID, json_of, to_json};
use crate::http::compute;
use crate::http::error::ApiError;
use crate::http::extract::Query;
use crate::store_error::StoreError;

const DICT_VERSION: HeaderName = HeaderName::from_static("dict-version");
const LONGEST_WAIT_SECONDS: i64 = 60;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub fn users_dict(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let mut query = Query::parse(asked.query);
    let use_cache = query.boolean("use_cache", true);
    let wait_seconds = query.integer("wait", 0, 0..=LONGEST_WAIT_SECONDS);
    let resumed = asked.headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let token = resumed.or(query.find("since")).map(str::to_owned);
    query.finish()?;
    if accepts(asked.headers, &header::ACCEPT, "text/event-stream") {
        return Ok(Call::of_directory(|directory| follow(directory, token)));
    }
    match token {
        Some(token) => {
            let wait = Duration::from_secs(wait_seconds.unsigned_abs());
            Ok(Call::of_directory(async move |directory| changes(&directory, Cursor::parse(&token), wait).await))
        }
        None if use_cache => Ok(whole(asked.headers)),
        None => Ok(Call::of_directory(async |directory: Directory| {
            let mut answer = to_json(&directory.read_users_dict_uncached().await?)?;
            answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            Ok(answer)
        })),
    }
}

fn whole(headers: &HeaderMap) -> Call {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Several lines are one list (RFC 9110, section 5.3).
    let known = known.map(str::to_owned).reduce(|list, line| list + "," + &line);
    let is_known =
        move |snapshot: &Snapshot| known.as_ref().is_some_and(|list| matches_etag(list, snapshot.dict_etag()));
    if !accepts(headers, &header::ACCEPT_ENCODING, "gzip") {
        return Call::of_view(move |view| {
            let body = (!is_known(&view.snapshot)).then(|| view.snapshot.dict_json());
            Ok(dict_answer(&view.snapshot, body, &HEADERS.json))
        });
    }
    Call::of_long_view(
        |snapshot| snapshot.count_users() > USERS_WRITTEN_INLINE && !snapshot.has_dict_gzip(),
        move |view| {
            let body = (!is_known(&view.snapshot)).then(|| view.snapshot.dict_gzip());
            Ok(dict_answer(&view.snapshot, body, &HEADERS.gzip))
        },
    )
}

/// What is the same in all answers of a kind, and places for what is not: to copy such a map and to fill it in costs half of
/// what it costs to build one.
struct Headers {
    json: HeaderMap,
    gzip: HeaderMap,
    not_modified: HeaderMap,
}

static HEADERS: LazyLock<Headers> = LazyLock::new(|| {
    let mut not_modified = HeaderMap::new();
    not_modified.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    not_modified.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    for place in [header::ETAG, DICT_VERSION, REQUEST_ID] {
        not_modified.insert(place, HeaderValue::from_static(""));
    }
    let mut json = not_modified.clone();
    json.insert(header::CONTENT_TYPE, JSON);
    let mut gzip = json.clone();
    gzip.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    Headers { json, gzip, not_modified }
});

/// Without a body: 304.
fn dict_answer(snapshot: &Snapshot, body: Option<&DictBody>, headers: &HeaderMap) -> Answer {
    let mut answer = Answer::new(AnswerBody::Ready(body.map_or(Pieces::One(Bytes::new()), pieces)));
    *answer.headers_mut() = if body.is_some() { headers } else { &HEADERS.not_modified }.clone();
    if body.is_none() {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    insert(answer.headers_mut(), header::ETAG, snapshot.dict_etag_bytes());
    insert(answer.headers_mut(), DICT_VERSION, snapshot.version_bytes());
    answer
}

/// The chunks as they are, without a copy.
fn pieces(body: &DictBody) -> Pieces {
    match &*body.chunks {
        [one] => Pieces::One(one.clone()),
        _ => Pieces::many(body.chunks.clone(), body.bytes),
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: Bytes) {
    match HeaderValue::from_maybe_shared(value) {
        Ok(value) => headers.insert(name, value),
        Err(_) => headers.remove(name),
    };
}

/// Weak comparison (RFC 9110, section 8.8.3.2) with a list of entity tags or `*`.
fn matches_etag(list: &str, etag: &str) -> bool {
    fn opaque(tag: &str) -> &str {
        tag.trim().strip_prefix("W/").unwrap_or(tag.trim())
    }
    list.split(',').any(|tag| tag.trim() == "*" || opaque(tag) == opaque(etag))
}

/// Whether a header with quality values names the value, or `*` where that means any encoding.
fn accepts(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let is_encoding = *name == header::ACCEPT_ENCODING;
    let mut any = false;
    for item in headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let value = parts.next().unwrap_or_default();
        let is_zero = |quality| std::str::from_utf8(quality).is_ok_and(|quality| quality.parse() == Ok(0.0));
        let refused = parts.filter_map(|part| part.strip_prefix(b"q=")).any(is_zero);
        if value.eq_ignore_ascii_case(wanted.as_bytes()) {
            return !refused;
        }
        any |= is_encoding && value == b"*" && !refused;
    }
    any
}

impl Serialize for DictDelta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Set<'a>(&'a [(i64, Box<str>)]);
        impl Serialize for Set<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(global_id, name)| (global_id, name)))
            }
        }
        let deleted: Vec<String> = self.deleted.iter().map(i64::to_string).collect();
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("version", &self.version.to_string())?;
        map.serialize_entry("reset", &self.reset)?;
        map.serialize_entry("set", &Set(&self.set))?;
        map.serialize_entry("del", &deleted)?;
        map.end()
    }
}

fn is_news(delta: &DictDelta) -> bool {
    delta.reset || !delta.set.is_empty() || !delta.deleted.is_empty()
}

async fn changes(directory: &Directory, since: Option<Cursor>, wait: Duration) -> Result<Answer, ApiError> {
    let mut follower = Follower::new(directory.clone(), since);
    let mut delta = follower.first().await?;
    if !is_news(&delta) && !wait.is_zero() {
        let draining = directory.draining();
        tokio::select! {
            next = follower.next() => delta = next?,
            () = tokio::time::sleep(wait) => {}
            () = draining.cancelled() => {}
        }
    }
    let version = delta.version.to_string();
    let body = encode(delta).await?;
    let mut answer = json_of(body);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    insert(answer.headers_mut(), DICT_VERSION, version.into());
    Ok(answer)
}

async fn encode(delta: DictDelta) -> Result<String, StoreError> {
    let is_long = delta.set.len() > USERS_WRITTEN_INLINE;
    let encoding = move || serde_json::to_string(&delta).map_err(|error| StoreError::unavailable("service", error));
    compute(is_long, encoding).await?
}

async fn follow(directory: Directory, token: Option<String>) -> Result<Answer, ApiError> {
    let draining = directory.draining();
    let since = token.and_then(|token| Cursor::parse(&token));
    let mut follower = Follower::new(directory, since);
    // Before the answer begins: without a database it is a 503, not a stream that ends at once.
    let first = Some(follower.first().await?).filter(is_news);
    let events = stream::unfold((follower, first), |(mut follower, first)| async move {
        // A stream that cannot go on ends; the client resumes with the last id.
        let delta = match first {
            Some(delta) => delta,
            None => follower.next().await.ok()?,
        };
        let event = Event::default().id(delta.version.to_string());
        let event = event.data(encode(delta).await.ok()?);
        Some((Ok::<_, Infallible>(event), (follower, None)))
    });
    let events = futures_util::StreamExt::take_until(events, async move { draining.cancelled().await });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response.map(AnswerBody::Made))
}

/// One client's walk through the changes. While it lives the replica is kept fresh.
struct Follower {
    directory: Directory,
    since: Option<Cursor>,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    _fresh: FreshGuard,
}

impl Follower {
    fn new(directory: Directory, since: Option<Cursor>) -> Self {
        let (snapshots, fresh) = (directory.follow(), directory.keep_fresh());
        Self { directory, since, snapshots, _fresh: fresh }
    }

    /// Up to a validated moment.
    async fn first(&mut self) -> Result<DictDelta, StoreError> {
        self.snapshots.mark_unchanged();
        let delta = self.directory.dict_delta(self.since.as_ref()).await?;
        self.since = Some(delta.version.clone());
        Ok(delta)
    }

    /// Waits for news. Cancel-safe.
    async fn next(&mut self) -> Result<DictDelta, StoreError> {
        loop {
            if self.snapshots.changed().await.is_err() {
                return Err(StoreError::unavailable_because("database", "the service is stopping"));
            }
            let snapshot = self.snapshots.borrow_and_update().clone();
            let Some(snapshot) = snapshot else { continue };
            let delta = self.directory.dict_delta_at(&snapshot, self.since.as_ref()).await?;
            if is_news(&delta) {
                self.since = Some(delta.version.clone());
                return Ok(delta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_compared_weakly_and_in_lists() {
        assert!(matches_etag(r#""a", W/"b""#, r#"W/"b""#));
        assert!(matches_etag(r#""b""#, r#"W/"b""#));
        assert!(matches_etag("*", r#"W/"b""#));
        assert!(!matches_etag(r#""bb""#, r#"W/"b""#));
    }

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        let accepts_gzip = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            accepts(&headers, &header::ACCEPT_ENCODING, "gzip")
        };
        assert!(accepts_gzip("br, gzip") && accepts_gzip("*") && accepts_gzip("gzip;q=0.5"));
        assert!(!accepts_gzip("gzip;q=0") && !accepts_gzip("br") && !accepts_gzip("*, gzip;q=0"));
    }
}
