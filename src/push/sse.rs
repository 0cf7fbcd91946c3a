//! The server-sent events skin over a session.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;

use super::routes::Wanted;
use super::{Present, Push};
use crate::http::error::ApiError;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub async fn connect(
    State(push): State<Push>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    push.check_origin(&headers)?;
    let last_event_id = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let wanted = push.wanted(query.as_deref(), last_event_id)?;
    push.check_position(&wanted).await??;
    let (sender, receiver) = mpsc::channel(1);
    let lifecycle = push.lifecycle.clone();
    lifecycle.spawn_work(serve(push, wanted, sender));
    let frames = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|frame| (Ok::<_, Infallible>(frame), receiver))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, [("x-accel-buffering", "no")], Body::from_stream(frames)).into_response())
}

async fn serve(push: Push, mut wanted: Wanted, sender: mpsc::Sender<Bytes>) {
    let present = Present::new(push.metrics.clone(), "sse");
    // The headers go out with the first bytes; a quiet log must not keep the client waiting for them.
    let mut frame = Bytes::from_static(b": connected\n\n");
    loop {
        match tokio::time::timeout(push.write_deadline, sender.send(frame)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => return push.metrics.push_closed.with_label_values(&["slow"]).inc(),
        }
        frame = tokio::select! {
            biased;
            () = push.lifecycle.draining().cancelled() => return push.metrics.push_closed.with_label_values(&["shutdown"]).inc(),
            () = sender.closed() => return,
            entries = push.next(&mut wanted.session) => match entries {
                Ok(entries) => {
                    present.delivered(entries.len());
                    entries.iter().flat_map(|entry| entry.event()).collect()
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    Bytes::from_static(b": waiting for the database\n\n")
                }
            },
            () = tokio::time::sleep(KEEP_ALIVE) => Bytes::from_static(b": keep-alive\n\n"),
        };
    }
}
