//! `/users-dict`: whole, by changes, held, streamed.

use std::io::Read;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::{assert_fault, assert_order, create, start, start_second};
use crate::on_both_engines;
use crate::support::app::{Answer, PATIENCE, TestApp, eventually};
use crate::support::backends::Database;
use crate::support::events::Events;

on_both_engines!(
    the_dict_is_the_whole_map_in_numeric_order,
    the_dict_has_one_entity_tag_everywhere,
    the_dict_tells_what_changed_since_a_token,
    a_long_poll_is_answered_by_a_write,
    a_long_poll_ends_empty_when_nothing_changes,
    dict_events_resume_by_last_event_id,
    streams_and_long_polls_end_with_the_service,
);

async fn fetch_dict(app: &TestApp, headers: &[(&str, &str)]) -> Answer {
    let mut request = app.client().get(app.url("/users-dict"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request).await
}

async fn the_dict_is_the_whole_map_in_numeric_order(database: Database) {
    let app = start(&database).await;
    let empty = app.get("/users-dict").await;
    assert_eq!((empty.status.as_u16(), empty.text(), empty.header("content-type")), (200, "{}", "application/json"));
    for (global_id, name) in
        [(10, "ten"), (9, "n\"i\\ne"), (-10, "minus"), (i64::MAX, "last"), (i64::MIN, "first"), (0, "zéro")]
    {
        create(&app, json!({"global_id": global_id, "name": name})).await;
    }
    let expected = r#"{"-9223372036854775808":"first","-10":"minus","0":"zéro","9":"n\"i\\ne","10":"ten","9223372036854775807":"last"}"#;
    let dict = app.get("/users-dict").await;
    assert_eq!(dict.text(), expected);
    assert_eq!(dict.header("content-length"), expected.len().to_string());
    assert_eq!(app.get("/users-dict?use_cache=true").await.text(), expected);
    let uncached = app.get("/users-dict?use_cache=false").await;
    assert_eq!((uncached.text(), uncached.header("cache-control")), (expected, "no-cache"));
    assert_fault(&app.get("/users-dict?use_cache=maybe").await, "bool_parsing", json!(["query", "use_cache"]));
    let head = app.call(Method::HEAD, "/users-dict", None).await;
    assert_eq!(
        (head.status.as_u16(), head.header("content-length"), head.body.len()),
        (200, dict.header("content-length"), 0)
    );
    assert_eq!(head.header("etag"), dict.header("etag"));

    let zipped = fetch_dict(&app, &[("accept-encoding", "br;q=1, gzip;q=0.8")]).await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    assert_eq!(zipped.header("content-length"), zipped.body.len().to_string());
    let mut text = String::new();
    flate2::read::GzDecoder::new(zipped.body.as_ref()).read_to_string(&mut text).expect("gzip");
    assert_eq!(text, expected);
    for header in ["etag", "vary", "cache-control", "dict-version"] {
        assert_eq!(zipped.header(header), dict.header(header), "{header}");
    }
    assert_eq!((dict.header("vary"), dict.header("cache-control")), ("accept-encoding", "no-cache"));
    let refused = fetch_dict(&app, &[("accept-encoding", "gzip;q=0, identity")]).await;
    assert_eq!((refused.header("content-encoding"), refused.text()), ("", expected));
}

async fn the_dict_has_one_entity_tag_everywhere(database: Database) {
    let app = start(&database).await;
    let second = start_second(&database).await;
    let other = second.as_ref().unwrap_or(&app);
    let empty = app.get("/users-dict").await.header("etag").to_owned();
    assert!(empty.starts_with("W/\""), "{empty}");
    create(&app, json!({"global_id": 1, "name": "Ann"})).await;
    let bob = create(&app, json!({"global_id": 2, "name": "Bob"})).await;
    let tag = app.get("/users-dict").await.header("etag").to_owned();
    assert_ne!(tag, empty);
    assert_eq!(other.get("/users-dict").await.header("etag"), tag);
    other.put(&format!("/users/{}", bob["id"]), json!({"name": "Rob"})).await.expect(200);
    assert_ne!(app.get("/users-dict").await.header("etag"), tag);
    other.put(&format!("/users/{}", bob["id"]), json!({"name": "Bob"})).await.expect(200);
    assert_eq!(app.get("/users-dict").await.header("etag"), tag, "equal content, equal tag");

    let strong = tag.trim_start_matches("W/");
    for known in [tag.clone(), "*".to_owned(), strong.to_owned(), format!("\"x\", {tag} , W/\"y\"")] {
        let answer = fetch_dict(&app, &[("if-none-match", &known)]).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (304, 0), "{known}");
        assert_eq!(answer.header("etag"), tag);
        assert_eq!((answer.header("vary"), answer.header("cache-control")), ("accept-encoding", "no-cache"));
        assert!(!answer.header("dict-version").is_empty() && answer.header("content-length").is_empty());
        assert_eq!(answer.header("x-request-id").len(), 32);
    }
    for unknown in [empty.as_str(), "\"\"", "", "W/\"", "garbage"] {
        assert_eq!(fetch_dict(&app, &[("if-none-match", unknown)]).await.status.as_u16(), 200, "{unknown}");
    }
    app.stop().await.expect("stopped in order");
    drop(second);
    let restarted = start(&database).await;
    assert_eq!(restarted.get("/users-dict").await.header("etag"), tag);
}

async fn the_dict_tells_what_changed_since_a_token(database: Database) {
    let app = start(&database).await;
    let ann = create(&app, json!({"global_id": 1, "name": "Ann"})).await;
    let bob = create(&app, json!({"global_id": 12, "name": "Bob"})).await;
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let nothing = app.get(&format!("/users-dict?since={token}")).await;
    assert_order(nothing.text(), &["version", "reset", "set", "del"]);
    let body = nothing.expect(200);
    assert_eq!((&body["reset"], &body["set"], &body["del"]), (&json!(false), &json!({}), &json!([])));
    assert_eq!(nothing.header("dict-version"), body["version"]);
    assert_eq!(nothing.header("cache-control"), "no-cache");

    app.put(&format!("/users/{}", bob["id"]), json!({"name": "Rob"})).await.expect(200);
    app.delete(&format!("/users/{}", ann["id"])).await.expect(200);
    create(&app, json!({"global_id": -3, "name": "Eve"})).await;
    let changed = app.get(&format!("/users-dict?since={token}")).await;
    let body = changed.expect(200);
    assert_eq!(
        (&body["reset"], &body["set"], &body["del"]),
        (&json!(false), &json!({"-3": "Eve", "12": "Rob"}), &json!(["1"]))
    );
    assert!(changed.text().contains(r#""set":{"-3":"Eve","12":"Rob"}"#), "in numeric order: {}", changed.text());
    assert_ne!(body["version"], token);
    let next = format!("/users-dict?since={}", body["version"].as_str().expect("a token"));
    assert_eq!(app.get(&next).await.expect(200)["set"], json!({}));

    if let Some(other) = start_second(&database).await {
        let there = other.get(&format!("/users-dict?since={token}")).await.expect(200);
        assert_eq!((&there["reset"], &there["set"]), (&json!(false), &json!({"-3": "Eve", "12": "Rob"})));
    }

    let whole = json!({"-3": "Eve", "12": "Rob"});
    for garbage in
        ["", "x", "0.0", "-1.5", "1.2.3.4", "ffffffffffffffff.1", "7fffffffffffffff.1", "%F0%9F%98%80", "W/%22a%22"]
    {
        // Answered at once, whatever the wait.
        let answer = app.get(&format!("/users-dict?since={garbage}&wait=60")).await.expect(200);
        assert_eq!((&answer["reset"], &answer["set"], &answer["del"]), (&json!(true), &whole, &json!([])), "{garbage}");
    }
    // `Last-Event-ID` beats `since`; with either, `If-None-Match` and `use_cache` are ignored.
    let request = app.client().get(app.url("/users-dict?since=garbage&use_cache=false"));
    let answer = Answer::of(request.header("last-event-id", &token).header("if-none-match", "*")).await.expect(200);
    assert_eq!((&answer["reset"], &answer["del"]), (&json!(false), &json!(["1"])));
    for (wait, kind) in [("61", "less_than_equal"), ("-1", "greater_than_equal"), ("x", "int_parsing")] {
        assert_fault(&app.get(&format!("/users-dict?since={token}&wait={wait}")).await, kind, json!(["query", "wait"]));
    }
}

async fn a_long_poll_is_answered_by_a_write(database: Database) {
    let app = start(&database).await;
    let second = start_second(&database).await;
    let other = second.as_ref().unwrap_or(&app);
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let path = format!("/users-dict?since={token}&wait=60");
    let reads = || app.state.metrics.directory_reads.with_label_values(&["validated"]).get();
    let before = reads();
    let writing = async {
        eventually("the poll has found nothing new and waits", async || reads() > before).await;
        other.post("/users", json!({"global_id": 5, "name": "Eve"})).await.expect(200);
    };
    let begun = std::time::Instant::now();
    let (answer, ()) = tokio::join!(app.get(&path), writing);
    assert_eq!(answer.expect(200)["set"], json!({"5": "Eve"}));
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    // And by plain SQL.
    let token = answer.header("dict-version").to_owned();
    let path = format!("/users-dict?since={token}&wait=60");
    let (answer, ()) = tokio::join!(app.get(&path), database.execute("DELETE FROM \"user\" WHERE global_id = 5"));
    assert_eq!(answer.expect(200)["del"], json!(["5"]));
}

async fn a_long_poll_ends_empty_when_nothing_changes(database: Database) {
    let app = start(&database).await;
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let begun = std::time::Instant::now();
    let answer = app.get(&format!("/users-dict?since={token}&wait=1")).await.expect(200);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!((&answer["reset"], &answer["set"], &answer["del"]), (&json!(false), &json!({}), &json!([])));
}

async fn next_change(events: &mut Events) -> (String, Value) {
    let (id, data) = events.next().await.expect("an event");
    (id, serde_json::from_str(&data).expect("JSON"))
}

async fn dict_events_resume_by_last_event_id(database: Database) {
    let app = start(&database).await;
    create(&app, json!({"global_id": 1, "name": "Ann"})).await;
    let mut events = app.follow("/users-dict", None).await;
    let (id, first) = next_change(&mut events).await;
    assert_eq!((&first["reset"], &first["set"], &first["version"]), (&json!(true), &json!({"1": "Ann"}), &json!(id)));
    create(&app, json!({"global_id": 2, "name": "Bob"})).await;
    let (second_id, second) = next_change(&mut events).await;
    assert_eq!((&second["reset"], &second["set"]), (&json!(false), &json!({"2": "Bob"})));
    drop(events);
    database.execute("DELETE FROM \"user\" WHERE global_id = 1").await;
    let mut resumed = app.follow("/users-dict?since=garbage", Some(&second_id)).await;
    let (_, third) = next_change(&mut resumed).await;
    assert_eq!((&third["reset"], &third["set"], &third["del"]), (&json!(false), &json!({}), &json!(["1"])));
    let mut old = app.follow(&format!("/users-dict?since={id}"), None).await;
    let (_, missed) = next_change(&mut old).await;
    assert_eq!((&missed["set"], &missed["del"]), (&json!({"2": "Bob"}), &json!(["1"])));
    let mut lost = app.follow("/users-dict", Some("unknown")).await;
    assert_eq!(next_change(&mut lost).await.1["reset"], true);
}

async fn streams_and_long_polls_end_with_the_service(database: Database) {
    let app = start(&database).await;
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let mut events = app.follow("/users-dict", None).await;
    events.next().await.expect("the whole map");
    let request = app.client().get(app.url(&format!("/users-dict?since={token}&wait=60")));
    let polling = tokio::spawn(Answer::of(request));
    eventually("the poll is there", async || app.state.metrics.http_connections.get() >= 2).await;
    let begun = std::time::Instant::now();
    app.stop().await.expect("stopped in order");
    assert!(begun.elapsed() < Duration::from_secs(8), "within the drain time: {:?}", begun.elapsed());
    let answer = polling.await.expect("an answer").expect(200);
    assert_eq!((&answer["reset"], &answer["set"], &answer["del"]), (&json!(false), &json!({}), &json!([])));
    assert_eq!(events.next().await, None);
}
