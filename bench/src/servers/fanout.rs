//! The limit of the alert stream: what is posted goes to every WebSocket, through a broadcast channel of
//! prepared frames. No log, no filters, no resumption.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, post};
use futures_util::SinkExt;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use super::announce;

const RING: usize = 4096;
const FRAMES_AT_ONCE: usize = 128;

type Frames = broadcast::Sender<Utf8Bytes>;

pub async fn serve(listener: TcpListener, address: SocketAddr) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/alerts", post(publish))
        .route("/ws/alerts", any(connect))
        .with_state(broadcast::channel::<Utf8Bytes>(RING).0);
    announce(address);
    Ok(axum::serve(listener, router).await?)
}

async fn publish(State(frames): State<Frames>, body: String) -> Result<String, StatusCode> {
    let alerts: Vec<&RawValue> = serde_json::from_str(&body).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    let count = alerts.len();
    for alert in alerts {
        if frames.send(alert.get().into()).is_err() {
            return Err(StatusCode::CONFLICT);
        }
    }
    Ok(format!("{{\"accepted\":{count}}}"))
}

async fn connect(State(frames): State<Frames>, upgrade: WebSocketUpgrade) -> Response {
    let frames = frames.subscribe();
    upgrade.read_buffer_size(4096).write_buffer_size(16 * 1024).on_upgrade(|socket| forward(socket, frames))
}

/// Ends with the socket, or when it lags.
async fn forward(mut socket: WebSocket, mut frames: broadcast::Receiver<Utf8Bytes>) {
    while let Ok(first) = frames.recv().await {
        let mut next = Some(first);
        for _ in 0..FRAMES_AT_ONCE {
            let Some(frame) = next else { break };
            if socket.feed(Message::Text(frame)).await.is_err() {
                return;
            }
            next = frames.try_recv().ok();
        }
        // Taken out of the ring and beyond the batch: it must not be lost.
        if let Some(frame) = next
            && socket.feed(Message::Text(frame)).await.is_err()
        {
            return;
        }
        if socket.flush().await.is_err() {
            return;
        }
    }
}
