//! The server-sent events skin over a session.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::hub::Entry;
use super::routes::Wanted;
use super::{Present, Push};
use crate::http::error::ApiError;
use crate::http::taken::Taken;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub async fn connect(
    State(push): State<Push>,
    headers: HeaderMap,
    taken: Taken,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    push.check_origin(&headers)?;
    let last_event_id = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let wanted = push.wanted(query.as_deref(), last_event_id)?;
    push.check_position(&wanted).await??;
    let (sender, receiver) = mpsc::channel(1);
    let lifecycle = push.lifecycle.clone();
    lifecycle.spawn_work(serve(push, wanted, sender, taken));
    let frames = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async move {
        receiver.recv().await.map(|frame| (Ok::<_, Infallible>(frame), receiver))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, [("x-accel-buffering", "no")], Body::from_stream(frames)).into_response())
}

async fn serve(push: Push, wanted: Wanted, sender: mpsc::Sender<Bytes>, taken: Taken) {
    let present = Present::new(&push.metrics, "sse");
    let mut alerts = pin!(push.stream(wanted.session, Entry::event));
    // The headers go out with the first bytes; a quiet log must not keep the client waiting for them.
    let mut frames = vec![Bytes::from_static(b": connected\n\n")];
    let reason = loop {
        let sending = async {
            for frame in frames {
                sender.send(frame).await?;
            }
            Ok::<_, mpsc::error::SendError<Bytes>>(())
        };
        tokio::select! {
            biased;
            () = push.lifecycle.draining().cancelled() => break "shutdown",
            sent = taken.unless_stuck(push.write_deadline, sending) => match sent {
                Some(Ok(())) => {}
                Some(Err(_)) => return,
                None => break "slow",
            },
        }
        frames = tokio::select! {
            biased;
            () = push.lifecycle.draining().cancelled() => break "shutdown",
            () = sender.closed() => return,
            batch = alerts.next() => match batch {
                Some(batch) => {
                    present.delivered(batch.alerts);
                    batch.pieces
                }
                None => break "log_replaced",
            },
            () = tokio::time::sleep(KEEP_ALIVE) => vec![Bytes::from_static(b": keep-alive\n\n")],
        };
    };
    push.metrics.push_closed.with_label_values(&[reason]).inc();
}
