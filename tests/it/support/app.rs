//! The real service in this process, on a port of its own, and a client for it.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use unified_backend::app::{App, AppState};
use unified_backend::config::Config;

use super::backends::Database;
use super::events::Events;

/// How long a test waits for something that must happen before it calls it missing.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct TestApp {
    pub state: AppState,
    base: String,
    client: reqwest::Client,
    running: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
}

impl TestApp {
    /// On a database, with more settings by environment name.
    pub async fn start(database: &Database, settings: &[(&str, &str)]) -> Self {
        let url = database.url();
        let mut all = vec![("API_PORT", "0"), ("SHUTDOWN_SETTLE_SECONDS", "0"), ("DATABASE_URL", url.as_str())];
        all.extend_from_slice(settings);
        let config = Config::from_settings(&all).expect("the test's settings are valid");
        let app = App::start(config).await.expect("the service starts");
        let (state, base) = (app.state.clone(), format!("http://{}", app.address));
        let running = Some(tokio::spawn(app.run_until_stopped()));
        Self { state, base, client: reqwest::Client::new(), running }
    }

    /// As [`Self::start`], and waits until the database is there.
    pub async fn start_ready(database: &Database, settings: &[(&str, &str)]) -> Self {
        let app = Self::start(database, settings).await;
        app.until_ready().await;
        app
    }

    pub async fn until_ready(&self) {
        eventually("the service is ready", async || self.get("/health/ready").await.status == StatusCode::OK).await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method, self.url(path));
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::of(request).await
    }

    /// Server-sent events.
    pub async fn follow(&self, path: &str, last_event_id: Option<&str>) -> Events {
        let request = self.client().get(self.url(path));
        Events::open(last_event_id.into_iter().fold(request, |request, id| request.header("last-event-id", id))).await
    }

    /// A WebSocket to `/ws/alerts`, `query` with its `?`.
    pub async fn listen(&self, query: &str) -> Listener {
        let url = format!("{}/ws/alerts{query}", self.base.replacen("http", "ws", 1));
        let (socket, _) = tokio_tungstenite::connect_async(url).await.expect("the WebSocket opens");
        Listener { socket }
    }

    /// Stops in order and tells how that went.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.state.lifecycle.stop();
        self.ended().await
    }

    /// Waits until it ended by itself.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        self.running.take().expect("stopped once").await.expect("the service did not panic")
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.state.lifecycle.abort();
    }
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("the service answers");
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.expect("the whole answer") }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a readable header"))
    }

    /// The answer's JSON, after its status was checked.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self.json()
    }
}

/// One client of the alert stream.
pub struct Listener {
    pub socket: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
}

impl Listener {
    /// The next text frame; panics when none comes.
    pub async fn next_text(&mut self) -> String {
        loop {
            match self.next().await {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("expected a text frame, got {other:?}"),
            }
        }
    }

    pub async fn next_json(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).expect("JSON")
    }

    pub async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        next.expect("a frame comes in time").expect("the socket is open").expect("the socket works")
    }
}

/// Waits until something is so; panics with `what` when it does not become so.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
