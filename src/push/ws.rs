//! The WebSocket skin over a session.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::hub::Entry;
use super::routes::Wanted;
use super::{Present, Push};
use crate::http::error::ApiError;
use crate::http::taken::Taken;

const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Three pings unanswered: nobody is there.
const DEAD_AFTER: Duration = Duration::from_secs(65);
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Clients say `ping` and nothing else.
const MAX_INBOUND_BYTES: usize = 64 * 1024;
/// The library's own would be 128 KiB for each client.
const READ_BUFFER_BYTES: usize = 4 * 1024;
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

type Sink = SplitSink<WebSocket, Message>;

/// Why we end a connection.
struct Farewell {
    code: u16,
    reason: String,
    label: &'static str,
}

pub async fn connect(
    State(push): State<Push>,
    headers: HeaderMap,
    taken: Taken,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::new(
            axum::http::StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            format!("this is a WebSocket: {rejection}"),
        )
    })?;
    push.check_origin(&headers)?;
    let wanted = push.wanted(query.as_deref(), None)?;
    let lifecycle = push.lifecycle.clone();
    let upgrade = upgrade
        .max_message_size(MAX_INBOUND_BYTES)
        .max_frame_size(MAX_INBOUND_BYTES)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES);
    Ok(upgrade.on_upgrade(|socket| async move {
        // The drain waits for streams to say goodbye.
        if let Err(join) = lifecycle.spawn_work(serve(push, wanted, socket, taken)).await {
            tracing::error!(error = %join, "a WebSocket session ended badly");
        }
    }))
}

async fn serve(push: Push, wanted: Wanted, socket: WebSocket, taken: Taken) {
    let present = Present::new(push.metrics.clone(), "ws");
    let (mut sink, mut stream) = socket.split();
    let farewell = match push.check_position(&wanted).await {
        Ok(Ok(())) => stream_alerts(&push, &present, wanted, &mut sink, &mut stream, &taken).await,
        Ok(Err(_)) => Some(beyond_end("protocol")),
        Err(_) => {
            Some(Farewell { code: close_code::AGAIN, reason: "database_unavailable".to_owned(), label: "unavailable" })
        }
    };
    let Some(Farewell { code, reason, label }) = farewell else { return };
    push.metrics.push_closed.with_label_values(&[label]).inc();
    let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    if !matches!(timeout(CLOSE_TIME, sink.send(close)).await, Ok(Ok(()))) {
        return;
    }
    // Until the client's own close, so that ours is not lost in a reset.
    let answered = async { while let Some(Ok(_)) = stream.next().await {} };
    if timeout(CLOSE_TIME, answered).await.is_err() {
        tracing::debug!("a client did not answer the close");
    }
}

/// `None`: the client went away.
async fn stream_alerts(
    push: &Push,
    present: &Present,
    wanted: Wanted,
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
    taken: &Taken,
) -> Option<Farewell> {
    let mut alerts = pin!(push.stream(wanted.session));
    let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard_at = Instant::now();
    let mut delivered = Delivered(wanted.after);
    loop {
        let event = tokio::select! {
            () = push.lifecycle.draining().cancelled() => {
                return Some(delivered.farewell(close_code::AWAY, "shutdown", "shutdown"));
            }
            message = stream.next() => Event::Heard(message),
            _ = pings.tick() => Event::PingDue,
            entries = alerts.next() => Event::Alerts(entries),
        };
        // What came while something was written was not read yet.
        let event = match event {
            Event::PingDue if heard_at.elapsed() > DEAD_AFTER => {
                stream.next().now_or_never().map_or(Event::Silence, Event::Heard)
            }
            event => event,
        };
        let messages: Vec<(Option<i64>, Message)> = match event {
            Event::Heard(Some(Ok(Message::Text(text)))) if text.trim() == "ping" => {
                heard_at = Instant::now();
                vec![(None, Message::Text("{\"type\":\"pong\"}".into()))]
            }
            Event::Heard(None | Some(Ok(Message::Close(_)))) => return None,
            Event::Heard(Some(Ok(_))) => {
                heard_at = Instant::now();
                continue;
            }
            Event::Heard(Some(Err(error))) => {
                tracing::debug!(%error, "a WebSocket ended early");
                return is_too_large(&error)
                    .then(|| delivered.farewell(close_code::SIZE, "message too large", "protocol"));
            }
            Event::Silence => return Some(delivered.farewell(close_code::AWAY, "no answer to pings", "dead")),
            Event::PingDue => vec![(None, Message::Ping(axum::body::Bytes::new()))],
            Event::Alerts(None) => return Some(beyond_end("log_replaced")),
            Event::Alerts(Some(entries)) => {
                present.delivered(entries.len());
                let text = |entry: &Arc<Entry>| if wanted.envelope { entry.envelope() } else { entry.text() };
                entries.iter().map(|entry| (Some(entry.seq), Message::Text(text(entry)))).collect()
            }
        };
        let begun_at = Instant::now();
        let written = tokio::select! {
            written = taken.unless_stuck(push.write_deadline, write(sink, messages, &mut delivered)) => written,
            () = push.lifecycle.draining().cancelled() => {
                return Some(delivered.farewell(close_code::AWAY, "shutdown", "shutdown"));
            }
        };
        match written {
            Some(Ok(())) => {}
            Some(Err(_)) => return None,
            None => return Some(delivered.farewell(close_code::AGAIN, "too slow", "slow")),
        }
        // It took all of that, and was sent no ping meanwhile.
        if begun_at.elapsed() > PING_INTERVAL {
            heard_at = Instant::now();
        }
    }
}

enum Event {
    Heard(Option<Result<Message, axum::Error>>),
    PingDue,
    /// Pings were due for long, and nothing is there to be read.
    Silence,
    Alerts(Option<Vec<Arc<Entry>>>),
}

/// The last alert that was handed to the connection, ahead of our farewell: who reads that has it, and
/// resumes there.
struct Delivered(Option<i64>);

impl Delivered {
    fn farewell(&self, code: u16, why: &str, label: &'static str) -> Farewell {
        let reason = self.0.map_or_else(|| why.to_owned(), |seq| format!("{why}; last seq {seq}"));
        Farewell { code, reason, label }
    }
}

fn beyond_end(label: &'static str) -> Farewell {
    Farewell { code: close_code::POLICY, reason: "seq_beyond_end".to_owned(), label }
}

/// One flush for all of them.
async fn write(
    sink: &mut Sink,
    messages: Vec<(Option<i64>, Message)>,
    delivered: &mut Delivered,
) -> Result<(), axum::Error> {
    for (seq, message) in messages {
        sink.feed(message).await?;
        delivered.0 = seq.or(delivered.0);
    }
    sink.flush().await
}

/// The library tells it in words alone.
fn is_too_large(error: &axum::Error) -> bool {
    error.to_string().starts_with("Space limit exceeded")
}
