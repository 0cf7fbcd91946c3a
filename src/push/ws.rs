//! The WebSocket skin over a session.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, timeout};

use super::routes::Wanted;
use super::{Present, Push};
use crate::http::error::ApiError;

const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Three pings unanswered: nobody is there.
const DEAD_AFTER: Duration = Duration::from_secs(65);
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Clients say `ping` and nothing else.
const MAX_INBOUND_BYTES: usize = 64 * 1024;

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
    Ok(upgrade.max_message_size(MAX_INBOUND_BYTES).on_upgrade(|socket| async move {
        // The drain waits for streams to say goodbye.
        if let Err(join) = lifecycle.spawn_work(serve(push, wanted, socket)).await {
            tracing::error!(error = %join, "a WebSocket session ended badly");
        }
    }))
}

async fn serve(push: Push, wanted: Wanted, socket: WebSocket) {
    let present = Present::new(push.metrics.clone(), "ws");
    let (mut sink, mut stream) = socket.split();
    let farewell = match push.check_position(&wanted).await {
        Ok(Ok(())) => stream_alerts(&push, &present, wanted, &mut sink, &mut stream).await,
        Ok(Err(_)) => {
            Some(Farewell { code: close_code::POLICY, reason: "seq_beyond_end".to_owned(), label: "protocol" })
        }
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
    mut wanted: Wanted,
    sink: &mut Sink,
    stream: &mut SplitStream<WebSocket>,
) -> Option<Farewell> {
    let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    let mut heard_at = Instant::now();
    loop {
        let messages = tokio::select! {
            biased;
            () = push.lifecycle.draining().cancelled() => {
                return Some(Farewell { code: close_code::AWAY, reason: format!("shutdown; last seq {}", wanted.session.position()), label: "shutdown" });
            }
            message = stream.next() => {
                heard_at = Instant::now();
                match message {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return None,
                    Some(Ok(Message::Text(text))) if text.trim() == "ping" => vec![Message::Text("{\"type\":\"pong\"}".into())],
                    Some(Ok(_)) => continue,
                }
            }
            _ = pings.tick() => {
                if heard_at.elapsed() > DEAD_AFTER {
                    return Some(Farewell { code: close_code::AWAY, reason: "no answer to pings".to_owned(), label: "dead" });
                }
                vec![Message::Ping(axum::body::Bytes::new())]
            }
            entries = push.next(&mut wanted.session) => match entries {
                Ok(entries) => {
                    present.delivered(entries.len());
                    let message = |entry: &std::sync::Arc<super::hub::Entry>| {
                        Message::Text(if wanted.envelope { entry.envelope() } else { entry.text() })
                    };
                    entries.iter().map(message).collect()
                }
                Err(_) => {
                    // The follower tells of the outage; the client only waits longer.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    continue;
                }
            },
        };
        let writing = async {
            for message in messages {
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        match timeout(push.write_deadline, writing).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => {
                return Some(Farewell {
                    code: close_code::AGAIN,
                    reason: format!("too slow; last seq {}", wanted.session.position()),
                    label: "slow",
                });
            }
        }
    }
}
