//! Alerts on their way to screens: live, resumed, filtered, over WebSocket and server-sent events, on
//! both engines.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::on_both_engines;
use crate::require_backend;
use crate::support::app::{Answer, PATIENCE, TestApp, eventually};
use crate::support::backends::Database;
use crate::support::events::Events;

on_both_engines!(
    a_client_sees_the_history_and_then_every_alert_as_it_comes,
    a_new_instance_knows_the_newest_alerts_without_a_read_for_each_client,
    what_nobody_listens_to_is_not_read_back,
    a_client_resumes_where_it_was,
    filters_choose_and_the_envelope_numbers,
    every_instance_shows_every_alert,
    thousands_of_alerts_at_once_arrive_once_each_and_in_order,
    a_position_beyond_the_end_is_refused,
    server_sent_events_carry_the_same_and_resume_by_their_id,
);

async fn post_numbers(app: &TestApp, numbers: std::ops::Range<i64>) {
    for chunk in numbers.collect::<Vec<_>>().chunks(1000) {
        let alerts: Vec<Value> = chunk.iter().map(|number| json!({ "number": number })).collect();
        let answer = app.post("/alerts", Value::Array(alerts)).await.expect(200);
        assert_eq!(answer["accepted"], chunk.len());
    }
}

async fn a_client_sees_the_history_and_then_every_alert_as_it_comes(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    post_numbers(&app, 0..130).await;
    let mut listener = app.listen("").await;
    for number in 30..130 {
        assert_eq!(listener.next_text().await, format!("{{\"number\":{number}}}"));
    }
    for number in 130..400 {
        post_numbers(&app, number..number + 1).await;
        assert_eq!(listener.next_json().await["number"], number);
    }
    listener.socket.send(Message::text("ping")).await.expect("sent");
    assert_eq!(listener.next_text().await, r#"{"type":"pong"}"#);
}

async fn a_new_instance_knows_the_newest_alerts_without_a_read_for_each_client(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let replays = |app: &TestApp, reason: &str| app.state.metrics.push_replays.with_label_values(&[reason]).get();
    post_numbers(&app, 1..601).await;
    app.stop().await.expect("an orderly stop");
    let app = TestApp::start_ready(&database, &[]).await;
    eventually("the follower has begun", async || app.state.metrics.alerts_last_seq.get() == 600).await;
    let (mut new, mut resumed) = (app.listen("").await, app.listen("?after=300").await);
    for number in 501..=600 {
        assert_eq!(new.next_json().await["number"], number);
    }
    for number in 301..=600 {
        assert_eq!(resumed.next_json().await["number"], number);
    }
    assert_eq!((replays(&app, "connect"), replays(&app, "behind")), (0, 0));
    // What is not in memory comes out of the log.
    let mut behind = app.listen("?zone_id=none").await;
    let mut first = app.listen("?after=0").await;
    assert_eq!(first.next_json().await["number"], 1);
    app.post("/alerts", json!({ "zone_id": "none" })).await.expect(200);
    assert_eq!(behind.next_json().await["zone_id"], "none");
    assert_eq!(replays(&app, "connect"), 1);
    assert!(replays(&app, "behind") >= 1);
}

async fn what_nobody_listens_to_is_not_read_back(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let reads = || app.state.metrics.store_seconds.with_label_values(&["list_alerts"]).get_sample_count();
    eventually("the follower has begun", async || reads() == 1).await;
    post_numbers(&app, 1..1201).await;
    eventually("the end is seen", async || app.state.metrics.alerts_last_seq.get() == 1200).await;
    assert_eq!(reads(), 1);
    // Who comes is shown the newest, read once for all, and then what comes.
    let (mut one, mut other) = (app.listen("").await, app.listen("").await);
    for number in 1101..=1200 {
        assert_eq!(one.next_json().await["number"], number);
        assert_eq!(other.next_json().await["number"], number);
    }
    post_numbers(&app, 1201..1202).await;
    assert_eq!(one.next_json().await["number"], 1201);
    assert_eq!(other.next_json().await["number"], 1201);
    assert_eq!(app.state.metrics.push_replays.with_label_values(&["connect"]).get(), 0);
}

async fn a_client_resumes_where_it_was(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    post_numbers(&app, 1..1501).await;
    let mut listener = app.listen("?after=200&envelope=true").await;
    for seq in 201..=1500 {
        let frame = listener.next_json().await;
        assert_eq!((&frame["seq"], &frame["alert"]["number"]), (&json!(seq), &json!(seq)));
    }
    post_numbers(&app, 1501..1502).await;
    assert_eq!(listener.next_json().await["seq"], 1501);
    let mut at_end = app.listen("?after=1501").await;
    post_numbers(&app, 1502..1503).await;
    assert_eq!(at_end.next_json().await["number"], 1502);
}

async fn filters_choose_and_the_envelope_numbers(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let mut listener = app.listen("?envelope=true&zone_id=7&zone_id=A&status=violation").await;
    let alerts = json!([
        { "zone_id": 7, "status": "violation" },
        { "zone_id": "7", "status": "authorized" },
        { "zone_id": 8, "status": "violation" },
        { "zone_id": "A", "status": "violation", "user_id": 3 },
        { "status": "violation" },
    ]);
    app.post("/alerts", alerts).await.expect(200);
    assert_eq!(listener.next_text().await, r#"{"seq":1,"alert":{"zone_id":7,"status":"violation"}}"#);
    assert_eq!(listener.next_json().await["seq"], 4);
    // The history of a client with a filter is the newest that match.
    let mut late = app.listen("?user_id=3").await;
    assert_eq!(late.next_json().await["zone_id"], "A");
}

async fn every_instance_shows_every_alert(database: Database) {
    if matches!(database, Database::Sqlite(_)) {
        // One process owns a SQLite file; there is no second instance to speak of.
        return;
    }
    let (one, two) = (TestApp::start_ready(&database, &[]).await, TestApp::start_ready(&database, &[]).await);
    let (mut on_one, mut on_two) = (one.listen("").await, two.listen("").await);
    for number in 0..40 {
        post_numbers(if number % 2 == 0 { &one } else { &two }, number..number + 1).await;
        assert_eq!(on_one.next_json().await["number"], number);
        assert_eq!(on_two.next_json().await["number"], number);
    }
}

async fn thousands_of_alerts_at_once_arrive_once_each_and_in_order(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let mut early = app.listen("?envelope=true").await;
    // A handshake is answered before the session has its place in the log; its first alert shows that it has.
    post_numbers(&app, 1..2).await;
    assert_eq!(early.next_json().await["seq"], 1);
    let posting = async { post_numbers(&app, 2..6001).await };
    // Joins in the middle of it: from the log into the live feed.
    let joining = async {
        eventually("the flood has begun", async || app.state.metrics.alerts_last_seq.get() > 1000).await;
        let mut late = app.listen("?after=500&envelope=true").await;
        for seq in 501..=6000 {
            assert_eq!(late.next_json().await["seq"], seq);
        }
    };
    let reading = async {
        for seq in 2..=6000 {
            assert_eq!(early.next_json().await["seq"], seq);
        }
    };
    tokio::join!(posting, joining, reading);
}

async fn a_position_beyond_the_end_is_refused(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    post_numbers(&app, 1..4).await;
    let mut listener = app.listen("?after=4").await;
    match listener.next().await {
        Message::Close(Some(frame)) => {
            assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1008, "seq_beyond_end"))
        }
        other => panic!("expected a close, got {other:?}"),
    }
    assert_eq!(app.get("/alerts/stream?after=4").await.expect(422)["code"], "seq_beyond_end");
    for bad in ["after=-1", "after=x", "envelope=perhaps", "after=9223372036854775808"] {
        let body = app.get(&format!("/alerts/stream?{bad}")).await.expect(422);
        assert_eq!(body["detail"][0]["loc"][0], "query", "{bad}");
    }
}

async fn next_event(events: &mut Events) -> (String, String) {
    events.next().await.expect("the stream goes on")
}

async fn server_sent_events_carry_the_same_and_resume_by_their_id(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let body = "{\"a\":1,\r\n\"b\":\"line\\nbreak\"}";
    let request = app.client().post(app.url("/alerts")).header("content-type", "application/json").body(body);
    Answer::of(request).await.expect(200);
    let mut events = app.follow("/alerts/stream", None).await;
    assert_eq!(next_event(&mut events).await, ("1".to_owned(), "{\"a\":1,  \"b\":\"line\\nbreak\"}".to_owned()));
    post_numbers(&app, 2..200).await;
    for seq in 2..200 {
        assert_eq!(next_event(&mut events).await, (seq.to_string(), format!("{{\"number\":{seq}}}")));
    }
    let mut resumed = app.follow("/alerts/stream?after=5", Some("150")).await;
    assert_eq!(next_event(&mut resumed).await.0, "151", "Last-Event-ID beats after");
    let mut resumed = app.follow("/alerts/stream?after=5", None).await;
    assert_eq!(next_event(&mut resumed).await.0, "6");
    let mut resumed = app.follow("/alerts/stream?after=5", Some("not ours")).await;
    assert_eq!(next_event(&mut resumed).await.0, "6");
    for beyond in ["200", "99999999999999999999"] {
        let request = app.client().get(app.url("/alerts/stream")).header("last-event-id", beyond);
        assert_eq!(Answer::of(request).await.expect(422)["code"], "seq_beyond_end", "{beyond}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_hosts_may_not_listen_unless_they_are_configured() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("API_CORS_ORIGINS", "https://screens.example")]).await;
    let status = async |origin: &str| {
        let mut request = app.url("/ws/alerts").replacen("http", "ws", 1).into_client_request().expect("a request");
        request.headers_mut().insert("origin", origin.parse().expect("an origin"));
        match tokio_tungstenite::connect_async(request).await {
            Ok((_, response)) => response.status().as_u16(),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => response.status().as_u16(),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(status("https://evil.example").await, 403);
    assert_eq!(status("https://screens.example").await, 101);
    assert_eq!(status(&format!("http://{}", app.address())).await, 101);
    assert_eq!(app.get("/ws/alerts").await.status, 426);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_talk_too_much_are_closed_and_others_do_not_notice() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    let mut good = app.listen("").await;
    let mut large = app.listen("").await;
    // The rest of a message that is refused may find the socket closed already.
    let sent = large.socket.send(Message::text("x".repeat(10_000_000))).await;
    drop(sent);
    eventually("the large message closes its socket", async || {
        matches!(large.socket.next().await, None | Some(Err(_) | Ok(Message::Close(_))))
    })
    .await;
    let mut chatty = app.listen("").await;
    for _ in 0..2_000 {
        chatty.socket.feed(Message::text("ping")).await.expect("fed");
        chatty.socket.feed(Message::binary(vec![0_u8; 100])).await.expect("fed");
    }
    chatty.socket.flush().await.expect("flushed");
    for _ in 0..2_000 {
        assert_eq!(chatty.next_text().await, r#"{"type":"pong"}"#);
    }
    post_numbers(&app, 1..2).await;
    assert_eq!(good.next_json().await["number"], 1);
    assert_eq!(chatty.next_json().await["number"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_cut_and_one_that_is_behind_catches_up() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("ALERTS_WRITE_DEADLINE_SECONDS", "5")]).await;
    let filler = "x".repeat(20_000);
    let mut behind = app.listen("?envelope=true").await;
    // A raw socket that never reads after the handshake.
    let mut frozen = tokio::net::TcpStream::connect(app.address()).await.expect("connected");
    let handshake = format!(
        "GET /ws/alerts HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        app.address()
    );
    frozen.write_all(handshake.as_bytes()).await.expect("the handshake goes out");
    eventually("both are counted", async || app.state.metrics.push_clients.with_label_values(&["ws"]).get() == 2).await;
    for _ in 0..30 {
        let alerts: Vec<Value> = (0..50).map(|_| json!({ "filler": filler })).collect();
        app.post("/alerts", Value::Array(alerts)).await.expect(200);
        // The other one reads a little, so it falls out of the live feed and back into it.
        assert!(behind.next_json().await["seq"].as_i64().is_some_and(|seq| seq > 0));
    }
    for seq in 31..=1500 {
        assert_eq!(behind.next_json().await["seq"], seq);
    }
    eventually("the frozen one is cut", async || app.state.metrics.push_closed.with_label_values(&["slow"]).get() == 1)
        .await;
    eventually("one client is left", async || app.state.metrics.push_clients.with_label_values(&["ws"]).get() == 1)
        .await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, frozen.read_to_end(&mut rest)).await;
    ended.expect("the connection is closed").ok();
}

/// A connection whose own buffers hold little.
async fn connect(app: &TestApp) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(32 * 1024).expect("a small buffer");
    socket.connect(app.address().parse().expect("an address")).await.expect("connected")
}

async fn ask(app: &TestApp, path: &str, headers: &str) -> TcpStream {
    let mut stream = connect(app).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", app.address());
    stream.write_all(request.as_bytes()).await.expect("the request goes out");
    stream
}

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

async fn post_large(app: &TestApp, count: usize) {
    let filler = "x".repeat(1_000_000);
    for _ in 0..count {
        app.post("/alerts", json!({ "filler": filler })).await.expect(200);
    }
}

fn cut_as_slow(app: &TestApp) -> u64 {
    app.state.metrics.push_closed.with_label_values(&["slow"]).get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_a_little_all_the_time_is_not_cut() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("ALERTS_WRITE_DEADLINE_SECONDS", "1")]).await;
    post_large(&app, 4).await;
    let dripping = async |mut stream: TcpStream| {
        let (mut taken, mut buffer) = (0, vec![0; 64 * 1024]);
        // One alert alone takes longer than the deadline.
        while taken < 4_000_000 {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("more comes");
            let read = read.ok().filter(|read| *read > 0).unwrap_or_else(|| panic!("cut after {taken} bytes")) as u64;
            taken += read;
            // Its pace: about 640 KB a second, however little a read gives.
            tokio::time::sleep(Duration::from_micros(100_000 * read / (64 * 1024))).await;
        }
    };
    let web_socket = ask(&app, "/ws/alerts?after=0", UPGRADE).await;
    let events = ask(&app, "/alerts/stream?after=0", "").await;
    tokio::join!(dripping(web_socket), dripping(events));
    assert_eq!(cut_as_slow(&app), 0);
}

/// The next frame of a server: its opcode and payload, which is short.
async fn next_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let reading = async {
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.expect("a frame");
        let mut payload = vec![0; usize::from(head[1])];
        stream.read_exact(&mut payload).await.expect("its payload");
        (head[0] & 0x0f, payload)
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("a frame in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_answers_no_pings_is_left_and_one_that_does_is_not() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("ALERTS_PING_INTERVAL_SECONDS", "0.3")]).await;
    let mut alive = app.listen("").await;
    // Takes everything and says nothing.
    let mut silent = ask(&app, "/ws/alerts", UPGRADE).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(silent.read_u8().await.expect("the answer to the handshake"));
    }
    let watching = async {
        let mut pings = 0;
        loop {
            match next_frame(&mut silent).await {
                (9, _) => pings += 1,
                (8, payload) => break (pings, payload),
                other => panic!("expected a ping or a close, got {other:?}"),
            }
        }
    };
    // A client answers pings while it reads.
    let (pings, close) = tokio::select! {
        closed = watching => closed,
        message = alive.next_text() => panic!("nothing is to be told, got {message}"),
    };
    assert!(pings >= 3, "{pings}");
    assert_eq!((&close[..2], &close[2..]), (&1001_u16.to_be_bytes()[..], &b"no answer to pings"[..]));
    assert_eq!(app.state.metrics.push_closed.with_label_values(&["dead"]).get(), 1);
    post_numbers(&app, 1..2).await;
    assert_eq!(alive.next_json().await["number"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_goodbye_is_answered() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    let mut listener = app.listen("").await;
    listener.socket.close(None).await.expect("closed");
    assert!(matches!(listener.next().await, Message::Close(_)));
    eventually("it is gone", async || app.state.metrics.push_clients.with_label_values(&["ws"]).get() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_again_after_it_was_cut_is_told_where_to_resume() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("ALERTS_WRITE_DEADLINE_SECONDS", "1")]).await;
    post_large(&app, 6).await;
    let stream = connect(&app).await;
    let url = format!("ws://{}/ws/alerts?after=0", app.address());
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("the WebSocket opens");
    eventually("it is cut", async || cut_as_slow(&app) == 1).await;
    let mut count = 0;
    let frame = loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
        match next.expect("a farewell comes first").expect("the socket works") {
            Message::Text(_) => count += 1,
            Message::Close(Some(frame)) => break frame,
            other => panic!("expected alerts and a close, got {other:?}"),
        }
    };
    assert!((1..6).contains(&count), "{count}");
    assert_eq!((u16::from(frame.code), frame.reason.to_string()), (1013, format!("too slow; last seq {count}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_stream_that_takes_nothing_ends() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("ALERTS_WRITE_DEADLINE_SECONDS", "1")]).await;
    post_large(&app, 6).await;
    let mut stream = ask(&app, "/alerts/stream?after=0", "connection: close\r\n").await;
    eventually("it is cut", async || cut_as_slow(&app) == 1).await;
    assert_eq!(app.state.metrics.push_clients.with_label_values(&["sse"]).get(), 0);
    // What it was sent before is whole, and it knows that there is no more.
    let mut taken = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut taken)).await;
    ended.expect("the stream ends").expect("without a reset");
    assert!(taken.len() < 6_000_000 && taken.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", taken.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_replaced_closes_its_streams() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[]).await;
    post_numbers(&app, 1..11).await;
    let mut listener = app.listen("?after=10").await;
    post_numbers(&app, 11..12).await;
    assert_eq!(listener.next_json().await["number"], 11);
    database.execute("DELETE FROM alert WHERE seq > 4; UPDATE alert_log SET last_seq = 4").await;
    match listener.next().await {
        Message::Close(Some(frame)) => assert_eq!(frame.reason.as_str(), "seq_beyond_end"),
        other => panic!("expected a close, got {other:?}"),
    }
    let mut listener = app.listen("?after=4").await;
    post_numbers(&app, 105..106).await;
    assert_eq!(listener.next_json().await["number"], 105);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_replaced_while_nobody_listened_is_shown_as_it_is() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[]).await;
    post_numbers(&app, 1..11).await;
    let ends_at = async |seq: i64| {
        eventually("the follower knows the end", async || app.state.metrics.alerts_last_seq.get() == seq).await;
    };
    ends_at(10).await;
    database.execute("DELETE FROM alert WHERE seq > 4; UPDATE alert_log SET last_seq = 4").await;
    ends_at(4).await;
    let mut listener = app.listen("").await;
    for number in 1..=4 {
        assert_eq!(listener.next_json().await["number"], number);
    }
    post_numbers(&app, 105..106).await;
    assert_eq!(listener.next_json().await["number"], 105);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clients_each_see_each_alert_once() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    let mut listeners = Vec::new();
    for _ in 0..100 {
        listeners.push(app.listen("?after=0&envelope=true").await);
    }
    let reading = futures_util::future::join_all(listeners.into_iter().map(|mut listener| async move {
        for seq in 1..=300 {
            assert_eq!(listener.next_json().await["seq"], seq);
        }
        listener
    }));
    let posting = async {
        for number in 1..301 {
            post_numbers(&app, number..number + 1).await;
        }
    };
    let (listeners, ()) = tokio::join!(reading, posting);
    // Nothing more comes: each was delivered once.
    for mut listener in listeners {
        let more = tokio::time::timeout(Duration::from_millis(1), listener.socket.next()).await;
        assert!(!matches!(more, Ok(Some(Ok(Message::Text(_))))), "{more:?}");
    }
}
