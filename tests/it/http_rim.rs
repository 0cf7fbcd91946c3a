//! What stands around every request: ids, methods, redirects, bodies, clients that are slow, rude or
//! gone. Which engine lies beneath does not matter here.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::require_backend;
use crate::support::app::{Answer, PATIENCE, TestApp, eventually};
use crate::support::backends::Database;

/// A service and its database, which lives as long.
struct Rim {
    app: TestApp,
    database: Database,
}

impl Rim {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let database = Database::sqlite();
        let app = TestApp::start_ready(&database, settings).await;
        Self { app, database }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.app.address()).await.expect("the service accepts")
    }

    /// Sends bytes and reads until the service closes.
    async fn talk(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The service may close before it has read everything.
        let sent = stream.write_all(bytes.as_ref()).await;
        let answer = read_to_end(&mut stream).await;
        assert!(sent.is_ok() || !answer.is_empty(), "cut without an answer: {sent:?}");
        answer
    }

    fn refused(&self, reason: &str) -> u64 {
        self.app.state.metrics.http_connections_refused.with_label_values(&[reason]).get()
    }

    async fn assert_well(&self) {
        assert_eq!(self.app.get("/health/ready").await.status.as_u16(), 200);
    }
}

/// Everything up to the end or the reset of the connection.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let ended = reading.expect("the service closes in time");
    assert!(
        ended.is_ok()
            || !bytes.is_empty()
            || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    );
    String::from_utf8_lossy(&bytes).into_owned()
}

const CLOSING: &str = "host: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_request_has_an_id_and_keeps_its_own() {
    let rim = Rim::start(&[]).await;
    let with_id = async |path: &str, id: &str| {
        let request = rim.app.client().get(rim.app.url(path)).header("x-request-id", id);
        Answer::of(request).await
    };
    let long = "x".repeat(128);
    for id in ["ui-7f3a", "A.b_c:9", long.as_str()] {
        assert_eq!(with_id("/health/live", id).await.header("x-request-id"), id);
        for path in ["/nowhere", "/users/x", "/users/1", "/alerts?after=1"] {
            let answer = with_id(path, id).await;
            assert!(answer.status.is_client_error());
            assert_eq!((answer.header("x-request-id"), &answer.json()["request_id"]), (id, &json!(id)), "{path}");
        }
    }
    let longer = "x".repeat(129);
    let mut made = std::collections::BTreeSet::new();
    for id in ["", "a b", "a,b", "<script>", "a\"b", longer.as_str()] {
        let answer = with_id("/nowhere", id).await;
        let new = answer.header("x-request-id").to_owned();
        assert!(new != id && new.len() == 32 && new.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}: {new}");
        assert_eq!(answer.json()["request_id"], new.as_str());
        assert!(made.insert(new), "no id twice");
    }
    let raw =
        rim.talk(b"GET /health/live HTTP/1.1\r\nx-request-id: \xff\xfe\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(raw.starts_with("HTTP/1.1 200"), "{raw}");
}

#[tokio::test]
async fn unknown_paths_and_methods_say_so() {
    let rim = Rim::start(&[]).await;
    for path in ["/nowhere", "/users/1/2/3/4/5", "/favicon.ico", "//", "/%2e%2e/etc/passwd", "/users%2F1"] {
        let body = rim.app.get(path).await.expect(404);
        assert_eq!((&body["detail"], &body["code"]), (&json!("Not Found"), &json!("not_found")), "{path}");
    }
    for (method, path, allow) in [
        (Method::DELETE, "/users", "GET,HEAD,POST"),
        (Method::GET, "/users/1/zones/assign", "POST"),
        (Method::HEAD, "/users/1/zones/assign", "POST"),
        (Method::OPTIONS, "/zones", "GET,HEAD,POST"),
        (Method::TRACE, "/", "GET,HEAD"),
        (Method::from_bytes(b"BREW").expect("a method"), "/health", "GET,HEAD"),
    ] {
        let answer = rim.app.call(method.clone(), path, None).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, allow), "{method} {path}");
        if method != Method::HEAD {
            let body = answer.json();
            assert_eq!((&body["detail"], &body["code"]), (&json!("Method Not Allowed"), &json!("method_not_allowed")));
        }
    }
    let metrics = rim.app.get("/metrics").await;
    assert!(metrics.text().contains(r#"method="other",route="/health""#), "no time series for every word");
    assert!(metrics.text().contains(r#"method="TRACE""#) && !metrics.text().contains("BREW"));
}

#[tokio::test]
async fn a_trailing_slash_is_led_to_the_path_without_it() {
    let rim = Rim::start(&[]).await;
    let raw = async |method: &str, path: &str| rim.talk(format!("{method} {path} HTTP/1.1\r\n{CLOSING}")).await;
    let location = |answer: &str| {
        assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
        let line = answer.lines().find_map(|line| line.strip_prefix("location: "));
        line.expect("a location").to_owned()
    };
    assert_eq!(location(&raw("GET", "/users/").await), "/users");
    assert_eq!(location(&raw("POST", "/users/?a=1&b=%2F").await), "/users?a=1&b=%2F");
    assert_eq!(location(&raw("GET", "/zones/a%2Fb/").await), "/zones/a%2Fb");
    assert_eq!(location(&raw("GET", "/users///").await), "/users");
    for path in ["//evil.example/", "///evil.example//", "/\\evil.example/", "//"] {
        let answer = raw("GET", path).await;
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("location:"), "{path}: {answer}");
    }
    let created =
        Answer::of(rim.app.client().post(rim.app.url("/users/")).json(&json!({"global_id": 1, "name": "Ann"})));
    assert_eq!(created.await.expect(200)["name"], "Ann", "307 keeps method and body");
}

#[tokio::test]
async fn head_works_wherever_get_does() {
    let rim = Rim::start(&[]).await;
    rim.app.post("/users", json!({"global_id": 1, "name": "Ann"})).await.expect(200);
    rim.app.post("/alerts", json!({"status": "violation"})).await.expect(200);
    for path in [
        "/",
        "/users",
        "/users/1",
        "/users/99",
        "/users/x",
        "/users/global/1",
        "/users/by-zone/A",
        "/users/1/zones",
        "/users-dict",
        "/zones",
        "/zones/A",
        "/stats/users",
        "/stats/zones",
        "/alerts",
        "/alerts?limit=0",
        "/messages/recent",
        "/alerts/rejected",
        "/health/live",
        "/health/ready",
        "/openapi.json",
        "/redoc",
        "/docs/index.html",
        "/nowhere",
        "/users-dict?since=x",
    ] {
        let get = rim.app.get(path).await;
        let head = rim.app.call(Method::HEAD, path, None).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        // An error names its request, whose id is as long each time.
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
        for header in ["content-type", "etag", "x-total-count", "dict-version"] {
            assert_eq!(head.header(header), get.header(header), "{path}: {header}");
        }
    }
    for path in ["/health", "/metrics", "/alerts/stream"] {
        let head = rim.app.call(Method::HEAD, path, None).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{path}");
    }
}

#[tokio::test]
async fn only_configured_origins_may_call_from_a_page() {
    let rim = Rim::start(&[("API_CORS_ORIGINS", "https://ui.example")]).await;
    let preflight = async |origin: &str| {
        let request = rim.app.client().request(Method::OPTIONS, rim.app.url("/users")).header("origin", origin);
        let request = request.header("access-control-request-method", "PUT");
        Answer::of(request.header("access-control-request-headers", "content-type,x-request-id")).await
    };
    let allowed = preflight("https://ui.example").await;
    assert_eq!((allowed.status.as_u16(), allowed.header("access-control-allow-origin")), (200, "https://ui.example"));
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
        assert!(allowed.header("access-control-allow-methods").contains(method));
    }
    assert!(allowed.header("access-control-allow-headers").contains("content-type"));
    assert_eq!(preflight("https://evil.example").await.header("access-control-allow-origin"), "");
    let get = async |path: &str, origin: &str| {
        Answer::of(rim.app.client().get(rim.app.url(path)).header("origin", origin)).await
    };
    for (path, status) in [("/users", 200), ("/users-dict", 200), ("/users/x", 422), ("/nowhere", 404)] {
        let answer = get(path, "https://ui.example").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("access-control-allow-origin")),
            (status, "https://ui.example")
        );
        for header in ["etag", "dict-version", "x-total-count", "x-request-id", "retry-after", "age", "cache-status"] {
            assert!(answer.header("access-control-expose-headers").contains(header), "{path}: {header}");
        }
        assert!(
            answer
                .headers
                .get_all("vary")
                .iter()
                .any(|value| value.to_str().is_ok_and(|value| value.contains("origin")))
        );
        assert_eq!(get(path, "https://evil.example").await.header("access-control-allow-origin"), "");
    }
    let closed = Rim::start(&[]).await;
    let request = closed.app.client().get(closed.app.url("/users")).header("origin", "https://ui.example");
    assert_eq!(Answer::of(request).await.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_has_a_limit_whether_it_is_declared_or_not() {
    const MIB: usize = 1024 * 1024;
    let rim = Rim::start(&[]).await;
    let send = async |path: &str, bytes: usize, is_chunked: bool| {
        let body = vec![b' '; bytes];
        let body = if is_chunked {
            let chunks = body.chunks(60_000).map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(chunk)));
            reqwest::Body::wrap_stream(futures_util::stream::iter(chunks.collect::<Vec<_>>()))
        } else {
            body.into()
        };
        // A client of its own: a refused body costs the connection.
        Answer::of(reqwest::Client::new().post(rim.app.url(path)).body(body)).await
    };
    for is_chunked in [false, true] {
        // Read, and then found to be no JSON.
        assert_eq!(send("/users", MIB, is_chunked).await.expect(422)["detail"][0]["type"], "json_invalid");
        assert_eq!(send("/alerts", 16 * MIB, is_chunked).await.expect(422)["detail"][0]["type"], "json_invalid");
        for _ in 0..5 {
            // Every time: the answer is not lost to a reset.
            let body = send("/users", 2 * MIB, is_chunked).await.expect(413);
            assert_eq!(
                (&body["code"], &body["detail"]),
                (&json!("body_too_large"), &json!("the body is larger than 1048576 bytes"))
            );
        }
        assert_eq!(send("/users", MIB + 1, is_chunked).await.status.as_u16(), 413);
        assert_eq!(send("/nowhere", MIB + 1, is_chunked).await.status.as_u16(), 413);
        assert_eq!(send("/alerts", 16 * MIB + 1, is_chunked).await.status.as_u16(), 413);
    }
    let lie = rim.talk(format!("POST /users HTTP/1.1\r\ncontent-length: 99999999999\r\n{CLOSING}")).await;
    assert!(lie.starts_with("HTTP/1.1 413"), "{lie}");
    let expecting =
        rim.talk(format!("POST /users HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2000000\r\n{CLOSING}")).await;
    assert!(expecting.starts_with("HTTP/1.1 413"), "refused before it is sent: {expecting}");
    rim.assert_well().await;
}

/// Short, and far enough apart to tell which one closed a connection.
const SHORT: &[(&str, &str)] = &[
    ("API_FIRST_BYTE_TIMEOUT_SECONDS", "0.3"),
    ("API_HEADER_TIMEOUT_SECONDS", "0.5"),
    ("API_BODY_TIMEOUT_SECONDS", "0.7"),
    ("API_KEEP_ALIVE_TIMEOUT_SECONDS", "0.4"),
];

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let rim = Rim::start(SHORT).await;
    assert_eq!(read_to_end(&mut rim.connect().await).await, "");
    assert_eq!(rim.refused("first_byte"), 1);
}

#[tokio::test]
async fn headers_that_do_not_end_are_cut() {
    let rim = Rim::start(SHORT).await;
    let mut partial = rim.connect().await;
    partial.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow").await.expect("sent");
    assert_eq!(read_to_end(&mut partial).await, "");
    assert_eq!(rim.refused("headers"), 1);

    // A byte now and then does not help: the limit is for all of them.
    let (mut reader, mut writer) = rim.connect().await.into_split();
    let dripping = async {
        writer.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.expect("sent");
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let begun = Instant::now();
    let reading = async {
        let mut bytes = Vec::new();
        drop(reader.read_to_end(&mut bytes).await);
        bytes
    };
    let (bytes, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(reading, dripping) }).await.expect("cut in time");
    assert!(bytes.is_empty() && begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(rim.refused("headers"), 2);
    rim.assert_well().await;
}

#[tokio::test]
async fn a_body_that_does_not_end_is_answered_408() {
    let rim = Rim::start(SHORT).await;
    let (mut reader, mut writer) = rim.connect().await.into_split();
    let dripping = async {
        writer.write_all(b"POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{").await.expect("sent");
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reading = async {
        let mut answer = String::new();
        drop(reader.read_to_string(&mut answer).await);
        answer
    };
    let (answer, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(reading, dripping) }).await.expect("cut in time");
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    assert_eq!(rim.refused("body"), 1);
    rim.assert_well().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_kept() {
    let rim = Rim::start(SHORT).await;
    let mut stream = rim.connect().await;
    let begun = Instant::now();
    let mut answer = vec![0; 4096];
    // Longer than any limit in all, never idle for long.
    while begun.elapsed() < Duration::from_millis(1500) {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        assert!(stream.read(&mut answer).await.expect("kept") > 0);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begun = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((rim.refused("first_byte"), rim.refused("headers")), (0, 0), "not a fault of the client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_news_is_not_idleness() {
    let rim = Rim::start(SHORT).await;
    let token = rim.app.get("/users-dict").await.header("dict-version").to_owned();
    let poll = format!("GET /users-dict?since={token}&wait=2 HTTP/1.1\r\n{CLOSING}");
    let mut stream = rim.connect().await;
    stream.write_all(b"GET /alerts/stream HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut socket = rim.app.listen("").await;
    // Two seconds, five times the limit of an idle connection.
    assert!(rim.talk(poll).await.contains(r#""set":{}"#));
    rim.app.post("/alerts", json!({"late": true})).await.expect(200);
    let mut text = String::new();
    while !text.contains(r#"data: {"late":true}"#) {
        let mut bytes = [0; 1024];
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("in time").expect("open");
        assert!(count > 0, "the stream was cut: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert_eq!(socket.next_json().await, json!({"late": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_of_its_answer_is_cut() {
    let rim = Rim::start(SHORT).await;
    let name = "x".repeat(100);
    let rows: Vec<String> = (0..5000).map(|global_id| format!("({global_id}, '{name}')")).collect();
    rim.database.execute(&format!("INSERT INTO \"user\" (global_id, name) VALUES {}", rows.join(","))).await;
    let length: usize = rim.app.get("/users-dict").await.header("content-length").parse().expect("a length");

    // More than all buffers on the way hold.
    let requests = "GET /users-dict HTTP/1.1\r\nhost: x\r\n\r\n".repeat(40);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
    let mut stuck = socket.connect(rim.app.address().parse().expect("an address")).await.expect("accepted");
    stuck.write_all(requests.as_bytes()).await.expect("sent");
    eventually("the service gives the answer up", async || rim.refused("answer") == 1).await;
    assert!(read_to_end(&mut stuck).await.len() < 40 * length, "not all of it");

    // One that is slow, but takes it, gets everything.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("a small buffer");
    let mut slow = socket.connect(rim.app.address().parse().expect("an address")).await.expect("accepted");
    slow.write_all(format!("GET /users-dict HTTP/1.1\r\n{CLOSING}").as_bytes()).await.expect("sent");
    let (mut bytes, begun) = (Vec::new(), Instant::now());
    let mut buffer = vec![0; 24 * 1024];
    loop {
        match slow.read(&mut buffer).await.expect("not cut") {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(700), "longer than a stuck one is given: {:?}", begun.elapsed());
    assert!(bytes.len() > length && bytes.ends_with(b"}"));
    assert_eq!(rim.refused("answer"), 1);
}

#[tokio::test]
async fn connections_over_the_limit_are_answered_503() {
    let rim = Rim::start(&[("API_MAX_CONNECTIONS", "3")]).await;
    // The test's own client keeps one; a WebSocket counts as long as it is open.
    let socket = rim.app.listen("").await;
    let _held = rim.connect().await;
    eventually("all places are taken", async || rim.app.state.metrics.http_connections.get() == 3).await;
    for _ in 0..10 {
        let refusal = rim.talk(format!("GET /health/live HTTP/1.1\r\n{CLOSING}")).await;
        let (head, body) = refusal.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1"), "{refusal}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{refusal}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["code"], "too_many_connections");
        let id = body["request_id"].as_str().expect("an id");
        assert!(id.len() == 32 && head.contains(&format!("x-request-id: {id}")), "{refusal}");
    }
    assert_eq!(rim.refused("full"), 10);
    drop(socket);
    eventually("the place is free again", async || rim.app.state.metrics.http_connections.get() == 2).await;
    assert!(rim.talk(format!("GET /health/live HTTP/1.1\r\n{CLOSING}")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn of_a_flood_over_the_limit_some_are_told_and_all_are_closed() {
    let rim = Rim::start(&[("API_MAX_CONNECTIONS", "1")]).await;
    // The test's own client has the place, and may have been refused others.
    eventually("the place is taken", async || rim.app.state.metrics.http_connections.get() == 1).await;
    let before = rim.refused("full");
    // They are listened to for a second after the refusal, so these hold all that may be told at once.
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(rim.connect().await);
    }
    let (mut told, mut closed) = (0, 0);
    for mut stream in flood {
        let answer = read_to_end(&mut stream).await;
        *(if answer.starts_with("HTTP/1.1 503") { &mut told } else { &mut closed }) += 1;
    }
    assert!(told >= 64 && closed > 0, "{told} told, {closed} only closed");
    assert_eq!(rim.refused("full") - before, 300);
}

#[tokio::test]
async fn requests_come_in_many_shapes() {
    let rim = Rim::start(&[]).await;
    let pipelined = format!(
        "GET /health/live HTTP/1.1\r\nhost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\nGET /stats/users HTTP/1.1\r\n{CLOSING}"
    );
    let answers = rim.talk(pipelined).await;
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200"], "in their order");
    let old = rim.talk("GET /stats/users HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200") && old.ends_with(r#"{"total_users":0}"#), "{old}");
    let old = rim.talk("GET /users-dict HTTP/1.0\r\nhost: x\r\n\r\n").await;
    assert!(old.ends_with("\r\n\r\n{}") && !old.contains("chunked"), "{old}");
    let absolute = rim.talk(format!("GET http://x/stats/users HTTP/1.1\r\n{CLOSING}")).await;
    assert!(absolute.starts_with("HTTP/1.1 200"), "{absolute}");
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = rim.talk(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{garbage:?}: {answer}");
    }
    rim.assert_well().await;
}

#[tokio::test]
async fn a_request_cannot_be_smuggled_in_another() {
    let rim = Rim::start(&[]).await;
    let body = r#"{"global_id":666,"name":"Mallory"}"#;
    let hidden = format!("POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for headers in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
    ] {
        let answer = rim.talk(format!("POST /users HTTP/1.1\r\nhost: x\r\n{headers}\r\n{hidden}")).await;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{headers}: {answer}");
    }
    // With both, the chunks count, and the connection ends there: what one of the two would take for a
    // second request is never read as one.
    for headers in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "content-length: 4\r\nTransfer-Encoding: chunked\r\ncontent-length: 4\r\n",
    ] {
        let answer = rim.talk(format!("POST /users HTTP/1.1\r\nhost: x\r\n{headers}\r\n0\r\n\r\n{hidden}")).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let old = rim.talk(format!("POST /users HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}")).await;
    assert!(old.matches("HTTP/1.").count() <= 1, "{old}");
    assert_eq!(rim.app.get("/users/global/666").await.status.as_u16(), 404, "nobody was smuggled in");
    let real = rim.talk(format!("{hidden}GET / HTTP/1.1\r\n{CLOSING}")).await;
    assert!(real.starts_with("HTTP/1.1 200"), "the same bytes in the open do work: {real}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let rim = Rim::start(&[]).await;
    let large = rim.talk(format!("GET / HTTP/1.1\r\nx-large: {}\r\n{CLOSING}", "x".repeat(130 * 1024))).await;
    assert!(large.starts_with("HTTP/1.1 431"), "{large}");
    let many: String = (0..5000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = rim.talk(format!("GET / HTTP/1.1\r\n{many}{CLOSING}")).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let long = rim.talk(format!("GET /{} HTTP/1.1\r\n{CLOSING}", "x".repeat(100 * 1024))).await;
    assert!(long.starts_with("HTTP/1.1 414") || long.starts_with("HTTP/1.1 431"), "{long}");
    let fair = rim.talk(format!("GET /users?x={} HTTP/1.1\r\n{CLOSING}", "x".repeat(30 * 1024))).await;
    assert!(fair.starts_with("HTTP/1.1 200"), "{fair}");
    rim.assert_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_leave_nothing_behind() {
    let rim = Rim::start(&[]).await;
    let requests: [&[u8]; 6] = [
        b"",
        b"GET /users HTTP/1.1\r\nhos",
        b"POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\n\r\n{\"glob",
        b"GET /users-dict HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /alerts/stream HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /users HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"gl",
    ];
    for round in 0..20 {
        for request in requests {
            let mut stream = rim.connect().await;
            stream.write_all(request).await.expect("sent");
            // Half of them by a reset.
            if round % 2 == 0 {
                stream.set_zero_linger().expect("an option");
            }
        }
    }
    rim.assert_well().await;
    let connections = || rim.app.state.metrics.http_connections.get();
    eventually("only the test's own connection is left", async || connections() <= 1).await;
    assert_eq!(rim.app.get("/stats/users").await.expect(200), json!({"total_users": 0}));
    assert_eq!(rim.app.state.metrics.http_panics.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_finished_when_its_client_is_gone() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[("DATABASE_POOL_SIZE", "1")]).await;
    let Database::Postgres(server) = &database else { unreachable!("asked for PostgreSQL") };
    let holder = server.connect().await;
    for global_id in 1..=5 {
        holder.batch_execute("BEGIN; LOCK TABLE \"user\" IN SHARE ROW EXCLUSIVE MODE").await.expect("held");
        let body = format!(r#"{{"global_id":{global_id},"name":"Ann"}}"#);
        let mut stream = TcpStream::connect(app.address()).await.expect("accepted");
        let request = format!("POST /users HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.expect("sent");
        eventually("the write waits for the lock", async || {
            let waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '\"user\"'::regclass";
            !holder.query(waiting, &[]).await.expect("an answer").is_empty()
        })
        .await;
        let open = app.state.metrics.http_connections.get();
        drop(stream);
        eventually("the service has seen it go", async || app.state.metrics.http_connections.get() < open).await;
        holder.batch_execute("COMMIT").await.expect("let go");
        let path = format!("/users/global/{global_id}");
        eventually("the write is there", async || app.get(&path).await.status.as_u16() == 200).await;
        // The one connection of the pool is as good as before.
        let next = json!({"global_id": global_id + 100, "name": "Bob"});
        app.post("/users", next).await.expect(200);
    }
}
