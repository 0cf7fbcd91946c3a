//! The WebSocket skin over a session.

use std::pin::pin;
use std::time::{Duration, Instant};

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{MissedTickBehavior, timeout};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

use super::batch::{Batch, Form};
use super::hub::Entry;
use super::pulse::Pulse;
use super::routes::Wanted;
use super::{Present, Push};
use crate::http::error::ApiError;
use crate::http::taken::Taken;
use crate::http::websocket::{Upgrade, WebSocket};

const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Clients say `ping` and nothing else.
const MAX_INBOUND_BYTES: usize = 64 * 1024;

/// Why we end a connection.
struct Farewell {
    code: CloseCode,
    reason: String,
    label: &'static str,
}

pub async fn connect(
    State(push): State<Push>,
    headers: HeaderMap,
    taken: Taken,
    RawQuery(query): RawQuery,
    upgrade: Result<Upgrade, ApiError>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade?;
    push.check_origin(&headers)?;
    let wanted = push.wanted(query.as_deref(), None)?;
    let lifecycle = push.lifecycle.clone();
    Ok(upgrade.accept(MAX_INBOUND_BYTES, |socket| async move {
        // The drain waits for streams to say goodbye.
        if let Err(join) = lifecycle.spawn_work(serve(push, wanted, socket, taken)).await {
            tracing::error!(error = %join, "a WebSocket session ended badly");
        }
    }))
}

async fn serve(push: Push, wanted: Wanted, mut socket: WebSocket, taken: Taken) {
    let present = Present::new(&push.metrics, "ws");
    let farewell = match push.check_position(&wanted).await {
        Ok(Ok(())) => stream_alerts(&push, &present, wanted, &mut socket, &taken).await,
        Ok(Err(_)) => Some(beyond_end("protocol")),
        Err(_) => {
            Some(Farewell { code: CloseCode::Again, reason: "database_unavailable".to_owned(), label: "unavailable" })
        }
    };
    if let Some(Farewell { code, reason, label }) = farewell {
        push.metrics.push_closed.with_label_values(&[label]).inc();
        socket.push_close(code, reason);
    }
    // Our close, or the answer to the client's.
    if !matches!(timeout(CLOSE_TIME, socket.flush()).await, Ok(Ok(()))) {
        return;
    }
    // Until the client's own, so that ours is not lost in a reset.
    let answered = async { while let Some(Ok(_)) = socket.read().await {} };
    if timeout(CLOSE_TIME, answered).await.is_err() {
        tracing::debug!("a client did not answer the close");
    }
}

/// `None`: the client went away.
async fn stream_alerts(
    push: &Push,
    present: &Present,
    wanted: Wanted,
    socket: &mut WebSocket,
    taken: &Taken,
) -> Option<Farewell> {
    let form: Form = if wanted.envelope { Entry::envelope } else { Entry::frame };
    let mut alerts = pin!(push.stream(wanted.session, form));
    let mut pings = tokio::time::interval_at(tokio::time::Instant::now() + push.ping_interval, push.ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::new(push.ping_interval, Instant::now());
    let mut delivered = Delivered(wanted.after);
    // Its own, as a shared one would be a lock that all sessions take for each alert.
    let draining = push.lifecycle.draining().child_token();
    let mut draining = pin!(draining.cancelled());
    loop {
        let event = tokio::select! {
            () = &mut draining => return Some(delivered.farewell(CloseCode::Away, "shutdown", "shutdown")),
            message = socket.read() => Event::Heard(message),
            _ = pings.tick() => Event::PingDue,
            batch = alerts.next() => Event::Alerts(batch),
        };
        // What came while something was written was not read yet.
        let event = match event {
            Event::PingDue if pulse.is_dead(Instant::now()) => {
                socket.read().now_or_never().map_or(Event::Silence, Event::Heard)
            }
            event => event,
        };
        match event {
            Event::Heard(None | Some(Ok(Message::Close(_)))) => return None,
            Event::Heard(Some(Ok(message))) => {
                pulse.hear(Instant::now());
                if matches!(message, Message::Text(text) if text.trim() == "ping") {
                    socket.push_message(Message::text("{\"type\":\"pong\"}"));
                }
            }
            Event::Heard(Some(Err(error))) => {
                tracing::debug!(%error, "a WebSocket ended early");
                return matches!(error, Error::Capacity(_))
                    .then(|| delivered.farewell(CloseCode::Size, "message too large", "protocol"));
            }
            Event::Silence => return Some(delivered.farewell(CloseCode::Away, "no answer to pings", "dead")),
            Event::PingDue => socket.push_message(Message::Ping(bytes::Bytes::new())),
            Event::Alerts(None) => return Some(beyond_end("log_replaced")),
            Event::Alerts(Some(Batch { pieces, alerts, last_seq })) => {
                present.delivered(alerts);
                pieces.into_iter().for_each(|piece| socket.push(piece));
                delivered.0 = Some(last_seq);
            }
        }
        // Mostly the connection takes it at once.
        let written = match socket.flush().now_or_never() {
            Some(written) => Some(written),
            None => {
                let begun_at = Instant::now();
                let written = tokio::select! {
                    written = taken.unless_stuck(push.write_deadline, socket.flush()) => written,
                    () = &mut draining => return Some(delivered.farewell(CloseCode::Away, "shutdown", "shutdown")),
                };
                pulse.wrote(begun_at, Instant::now());
                written
            }
        };
        match written {
            Some(Ok(())) => {}
            Some(Err(_)) => return None,
            None => return Some(delivered.farewell(CloseCode::Again, "too slow", "slow")),
        }
    }
}

enum Event {
    Heard(Option<Result<Message, Error>>),
    PingDue,
    /// Pings were due for long, and nothing is there to be read.
    Silence,
    Alerts(Option<Batch>),
}

/// The last alert that was handed to the connection, ahead of our farewell: who reads that has it, and
/// resumes there.
struct Delivered(Option<i64>);

impl Delivered {
    fn farewell(&self, code: CloseCode, why: &str, label: &'static str) -> Farewell {
        let reason = self.0.map_or_else(|| why.to_owned(), |seq| format!("{why}; last seq {seq}"));
        Farewell { code, reason, label }
    }
}

fn beyond_end(label: &'static str) -> Farewell {
    Farewell { code: CloseCode::Policy, reason: "seq_beyond_end".to_owned(), label }
}
