//! How the real binary ends, and what its log says of the requests before.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::on_both_engines;
use crate::support::app::{Answer, PATIENCE, eventually};
use crate::support::backends::Database;
use crate::support::events::Events;
use crate::support::process::Served;

on_both_engines!(sigterm_says_goodbye_to_everyone_and_ends_in_time);

async fn serve(database: &Database, settings: &[(&str, &str)]) -> Served {
    let url = database.url();
    let base = [("DATABASE_URL", url.as_str()), ("API_PORT", "0"), ("SHUTDOWN_SETTLE_SECONDS", "0")];
    let place = tempfile::tempdir().expect("a temporary directory");
    Served::start(place.path(), &[&base[..], settings].concat(), &[]).await
}

async fn until_ready(served: &Served) {
    let ready = async || Answer::of(reqwest::Client::new().get(format!("{}/health/ready", served.url))).await.status;
    eventually("the service is ready", async || ready().await == 200).await;
}

async fn sigterm_says_goodbye_to_everyone_and_ends_in_time(database: Database) {
    let served = serve(&database, &[]).await;
    until_ready(&served).await;
    let client = reqwest::Client::new();
    let at = |path: &str| format!("{}{path}", served.url);
    Answer::of(client.post(at("/alerts")).json(&json!({ "a": 1 }))).await.expect(200);
    let (mut socket, _) = tokio_tungstenite::connect_async(at("/ws/alerts").replacen("http", "ws", 1))
        .await
        .expect("the WebSocket opens");
    assert_eq!(socket.next().await.expect("open").expect("works"), Message::text(r#"{"a":1}"#));
    let open = async |path: &str| Events::open(client.get(at(path))).await;
    let mut streams = [open("/alerts/stream").await, open("/users-dict").await];
    for (stream, shown) in streams.iter_mut().zip([r#"{"a":1}"#, r#""reset":true"#]) {
        let (_, data) = stream.next().await.expect("an event");
        assert!(data.contains(shown), "{data}");
    }
    let token = Answer::of(client.get(at("/users-dict"))).await.header("dict-version").to_owned();
    let polling = tokio::spawn(client.get(at(&format!("/users-dict?since={token}&wait=60"))).send());
    let open_connections = async || {
        let metrics = Answer::of(client.get(at("/metrics"))).await;
        let line = metrics.text().lines().find_map(|line| line.strip_prefix("http_connections ")).expect("counted");
        line.parse::<f64>().expect("a number")
    };
    // The socket, two streams, the poll, and the one that asks.
    eventually("the long poll is under way", async || open_connections().await >= 5.0).await;
    let begun_at = Instant::now();
    served.signal(Signal::TERM);
    match tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time") {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1001),
        other => panic!("expected a close, got {other:?}"),
    }
    for stream in &mut streams {
        assert_eq!(stream.next().await, None);
    }
    let answer = polling.await.expect("the poll's task").expect("an answer");
    let delta: Value = answer.json().await.expect("JSON");
    assert_eq!((&delta["reset"], &delta["set"], &delta["del"]), (&json!(false), &json!({}), &json!([])));
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    assert!(begun_at.elapsed() < Duration::from_secs(10), "{:?}", begun_at.elapsed());
}

#[tokio::test]
async fn a_stop_that_drops_what_is_under_way_has_a_code_of_its_own() {
    let database = Database::sqlite();
    let served = serve(&database, &[("SHUTDOWN_DRAIN_SECONDS", "0.3")]).await;
    until_ready(&served).await;
    let mut slow = tokio::net::TcpStream::connect(served.url.trim_start_matches("http://")).await.expect("it accepts");
    let head = "POST /alerts HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("sent");
    // Its word to go on: it waits for the body now.
    slow.readable().await.expect("open");
    served.signal(Signal::TERM);
    let (code, log) = served.ended().await;
    assert_eq!(code, 124, "{log}");
    assert!(log.contains("the drain time (300ms) was over"), "{log}");
}

#[tokio::test]
async fn the_log_line_of_a_failed_request_has_its_id_at_every_level() {
    let settings = [
        ("DATABASE_URL", "postgres://u@127.0.0.1:1/x"),
        ("LOGGING_LEVEL", "WARNING"),
        ("LOGGING_FORMAT", "json"),
        ("API_PORT", "0"),
        ("SHUTDOWN_SETTLE_SECONDS", "0"),
    ];
    let place = tempfile::tempdir().expect("a temporary directory");
    let served = Served::start(place.path(), &settings, &[]).await;
    let request = reqwest::Client::new().get(format!("{}/users", served.url)).header("x-request-id", "shift-7");
    Answer::of(request).await.expect(503);
    served.signal(Signal::TERM);
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let failed = lines.iter().find(|line| line["message"] == "request failed").expect("told");
    assert_eq!((&failed["request_id"], &failed["status"]), (&json!("shift-7"), &json!(503)), "{failed}");
}
