//! The alert log over HTTP: in, out, aside and back, on both engines.

use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};
use unified_backend::alerts::types::{
    AlertFilter, AlertQuery, AppendBatch, DEAD_LETTER_BYTES, Direction, NewDeadLetter,
};

use crate::support::app::{Answer, TestApp, eventually};
use crate::support::backends::Database;
use crate::{on_both_engines, require_backend};

on_both_engines!(
    one_alert_or_an_array_is_stored,
    what_is_no_alert_is_reported_and_costs_the_others_nothing,
    an_event_id_names_an_alert_once,
    an_alert_keeps_its_own_text,
    the_log_is_read_in_both_directions,
    filters_are_alternatives_within_and_all_across,
    times_bound_a_page,
    odd_queries_are_refused_or_find_nothing,
    a_position_beyond_the_end_is_another_log,
    the_newest_come_oldest_first,
    a_page_of_large_alerts_ends_early_and_is_continued,
    rejected_messages_are_listed_in_pages,
    a_rejected_message_is_retried,
    a_missing_name_is_filled_in_the_column_only,
);

async fn start(database: &Database) -> TestApp {
    TestApp::start_ready(database, &[]).await
}

/// Sends a body as it is written.
async fn send(app: &TestApp, body: impl Into<reqwest::Body>) -> Answer {
    let request = app.client().post(app.url("/alerts")).header("content-type", "application/json").body(body);
    Answer::of(request).await
}

#[track_caller]
fn assert_fault(answer: &Answer, kind: &str, loc: Value) {
    let body = answer.expect(422);
    assert_eq!((&body["detail"][0]["type"], &body["detail"][0]["loc"]), (&json!(kind), &loc), "{body}");
    assert_eq!(body["code"], "validation_error");
}

fn seqs(page: &Value) -> Vec<i64> {
    page["alerts"].as_array().expect("alerts").iter().map(|alert| alert["seq"].as_i64().expect("a seq")).collect()
}

async fn list(app: &TestApp, query: &str) -> Value {
    app.get(&format!("/alerts{query}")).await.expect(200)
}

/// Statements are planned while the log is new and empty, and go on being carried out as it fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planned_for_an_empty_log_reads_a_full_one_by_its_indexes() {
    let database = require_backend!(Database::postgres().await);
    let Database::Postgres(postgres) = &database else { panic!("asked for PostgreSQL") };
    let client = postgres.connect().await;
    let app = TestApp::start_ready(&database, &[("DATABASE_POOL_SIZE", "1")]).await;
    let batch = |number: usize| -> String {
        let alerts = (0..1000).map(|index| format!(r#"{{"event_id":"{number}-{index}","zone_id":"Z"}}"#));
        format!("[{}]", alerts.collect::<Vec<_>>().join(","))
    };
    // PostgreSQL plans the first five anew, and then may keep a plan.
    for _ in 0..10 {
        list(&app, "?after=0&limit=1000").await;
        send(&app, r#"{"event_id":"first"}"#).await.expect(200);
    }
    for number in 0..20 {
        send(&app, batch(number)).await.expect(200);
    }
    let counts = async || {
        let sql = "SELECT seq_tup_read, coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'alert'";
        let row = client.query_one(sql, &[]).await.expect("statistics");
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    let (_, found_before) = counts().await;
    eventually("reads by an index are counted", async || {
        list(&app, "?after=19000&limit=1000").await;
        send(&app, r#"{"event_id":"first"}"#).await.expect(200);
        counts().await.1 >= found_before + 10
    })
    .await;
    let (read, _) = counts().await;
    assert!(read < 20_000, "{read} rows of the log were read one after the other");
}

async fn one_alert_or_an_array_is_stored(database: Database) {
    let app = start(&database).await;
    let stored = send(&app, r#"{"status":"violation"}"#).await;
    assert_eq!(stored.text(), r#"{"accepted":1,"duplicates":0,"rejected":[]}"#);
    let stored = app.post("/alerts", json!([{"n": 2}, {"n": 3}])).await.expect(200);
    assert_eq!(stored, json!({"accepted": 2, "duplicates": 0, "rejected": []}));
    let nothing = app.post("/alerts", json!([])).await.expect(200);
    assert_eq!(nothing, json!({"accepted": 0, "duplicates": 0, "rejected": []}));
    let most: Vec<Value> = (0..1000).map(|n| json!({"n": n})).collect();
    assert_eq!(app.post("/alerts", json!(most)).await.expect(200)["accepted"], 1000);
    let too_many: Vec<Value> = (0..1001).map(|n| json!({"n": n})).collect();
    let refused = app.post("/alerts", json!(too_many)).await;
    assert_fault(&refused, "too_long", json!(["body"]));
    assert!(refused.text().contains("at most 1000 items after validation, not 1001"), "{}", refused.text());
    // Not a matter of memory: a million items are counted, not held.
    let million = format!("[{}1]", "1,".repeat(1_000_000));
    assert!(send(&app, million).await.text().contains("not 1000001"));
    let page = app.get("/alerts?limit=1").await;
    let fields = ["alerts", "seq", "received_at", "occurred_at", "source", "alert", "next"];
    let places: Vec<_> = fields.iter().map(|field| page.text().find(&format!("\"{field}\":")).expect(field)).collect();
    assert!(places.is_sorted(), "{}", page.text());
    let page = page.expect(200);
    assert_eq!((&page["alerts"][0]["seq"], &page["alerts"][0]["source"]), (&json!(1003), &json!("http")));
    assert_eq!(page["alerts"][0]["occurred_at"], Value::Null);
    for (body, place) in [("{\"a\":", 4), ("[{},", 3), ("[1 2]", 3), ("{} x", 3)] {
        let answer = send(&app, body).await;
        let loc = answer.expect(422)["detail"][0]["loc"].clone();
        assert_fault(&answer, "json_invalid", loc.clone());
        assert_eq!(loc[0], "body");
        assert!(loc[1].as_i64().expect("a place").abs_diff(place) <= 1, "{body}: {loc}");
    }
    assert_fault(&send(&app, "").await, "missing", json!(["body"]));
    assert_fault(&send(&app, "{\"a\":NaN}").await, "json_invalid", json!(["body", 5]));
    let bytes = send(&app, vec![b'[', b'"', 0xff, b'"', b']']).await;
    assert_eq!(bytes.expect(422)["detail"][0]["type"], "json_invalid");
    assert_eq!(seqs(&list(&app, "?limit=1").await), [1003], "what is refused is not stored");
}

async fn what_is_no_alert_is_reported_and_costs_the_others_nothing(database: Database) {
    let app = start(&database).await;
    let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1024 * 1024));
    let body = format!("[{{\"n\":1}},5,null,[],\"x\",{},{},{large},{{\"n\":2}}]", nested(128), nested(129));
    let answer = send(&app, body).await;
    let report = answer.expect(200);
    assert_eq!((&report["accepted"], &report["duplicates"]), (&json!(3), &json!(0)));
    let rejected = report["rejected"].as_array().expect("a list");
    let indices: Vec<&Value> = rejected.iter().map(|item| &item["index"]).collect();
    assert_eq!(indices, [1, 2, 3, 4, 6, 7]);
    for (item, reason) in rejected.iter().zip(["not an object"; 4].iter().chain(&["deeper than 128", "more than"])) {
        assert!(item["reason"].as_str().expect("a reason").contains(reason), "{item}");
    }
    assert_eq!(send(&app, "17").await.expect(200)["rejected"][0]["index"], 0);
    assert_eq!(seqs(&list(&app, "?limit=1").await), [3]);
    // Over HTTP they are told to the sender and not kept.
    assert_eq!(app.get("/alerts/rejected").await.expect(200), json!({"rejected": [], "next": null}));
}

async fn an_event_id_names_an_alert_once(database: Database) {
    let app = start(&database).await;
    let first = app.post("/alerts", json!([{"event_id": "e1", "n": 1}, {"event_id": "e1", "n": 2}, {"n": 3}])).await;
    assert_eq!(first.expect(200), json!({"accepted": 2, "duplicates": 1, "rejected": []}));
    let again = app.post("/alerts", json!({"event_id": "e1"})).await;
    assert_eq!(again.expect(200), json!({"accepted": 0, "duplicates": 1, "rejected": []}));
    // What is no event id does not make alerts the same.
    for id in [json!(""), json!("x".repeat(201)), json!(7), json!(null), json!(["e1"])] {
        for _ in 0..2 {
            assert_eq!(app.post("/alerts", json!({"event_id": id})).await.expect(200)["accepted"], 1, "{id}");
        }
    }
    let longest = json!({"event_id": "é".repeat(200)});
    assert_eq!(app.post("/alerts", longest.clone()).await.expect(200)["accepted"], 1);
    assert_eq!(app.post("/alerts", longest).await.expect(200)["duplicates"], 1);
    let sending = (0..16).map(|n| app.post("/alerts", json!({"event_id": "race", "n": n})));
    let answers = futures_util::future::join_all(sending).await;
    let accepted: i64 = answers.iter().map(|answer| answer.expect(200)["accepted"].as_i64().expect("a count")).sum();
    assert_eq!(accepted, 1);
    // A repeat leaves no hole.
    let page = list(&app, "?after=0&limit=1000").await;
    assert_eq!(seqs(&page), (1..=14).collect::<Vec<_>>());
    assert_eq!(page["alerts"][0]["alert"]["n"], 1, "the first one counts");
}

async fn an_alert_keeps_its_own_text(database: Database) {
    let app = start(&database).await;
    let texts = [
        r#"{"b":1.0, "a":12345678901234567890,"big":1e999}"#,
        r#"{"z":1,"a":{"y":-0.0,"x":[1E2, 100000000000000000000000.5]}}"#,
        r#"{"escaped":"\u0041\/\u00e9\ud83d\ude00","half":"\ud800","nul":"\u0000"}"#,
        r#"{"a":1,"a":2}"#,
        "{\n\t\"spaced\" : true\r\n}",
        r#"{"李":"小龍😀"}"#,
        "{}",
    ];
    assert_eq!(send(&app, format!(" [\n{} ]\n", texts.join(" ,\t"))).await.expect(200)["accepted"], texts.len());
    let page = app.get("/alerts?after=0").await;
    for text in texts {
        assert!(page.text().contains(&format!("\"alert\":{text}}}")), "{text} in {}", page.text());
    }
    let recent = app.get("/messages/recent").await;
    assert_eq!(recent.text(), format!("{{\"count\":{},\"messages\":[{}]}}", texts.len(), texts.join(",")));
    send(&app, " {\"a\" : 1.50}\n").await.expect(200);
    assert_eq!(app.get("/messages/recent?limit=1").await.text(), r#"{"count":1,"messages":[{"a" : 1.50}]}"#);
}

async fn the_log_is_read_in_both_directions(database: Database) {
    let app = start(&database).await;
    assert_eq!(list(&app, "").await, json!({"alerts": [], "next": null}));
    assert_eq!(list(&app, "?after=0").await, json!({"alerts": [], "next": null}));
    let seven: Vec<Value> = (1..=7).map(|n| json!({"n": n})).collect();
    app.post("/alerts", json!(seven)).await.expect(200);
    assert_eq!(seqs(&list(&app, "").await), [7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(list(&app, "?limit=7").await["next"], Value::Null);
    let walk = async |begin: &str, word: &str| {
        let (mut pages, mut query) = (Vec::new(), begin.to_owned());
        loop {
            let page = list(&app, &query).await;
            pages.push(seqs(&page));
            match page["next"].as_i64() {
                Some(next) => query = format!("?limit=3&{word}={next}"),
                None => return pages,
            }
        }
    };
    assert_eq!(walk("?limit=3", "before").await, [vec![7, 6, 5], vec![4, 3, 2], vec![1]]);
    assert_eq!(walk("?limit=3&after=0", "after").await, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
    assert_eq!(walk("?limit=3&after=1", "after").await, [vec![2, 3, 4], vec![5, 6, 7]], "null at the very end");
    assert_eq!(walk("?limit=3&before=4", "before").await, [vec![3, 2, 1]]);
    assert_eq!(seqs(&list(&app, "?after=7").await), [0; 0]);
    assert_eq!(seqs(&list(&app, "?before=1").await), [0; 0]);
    assert_eq!(seqs(&list(&app, "?limit=1000&after=0").await).len(), 7);
}

async fn filters_are_alternatives_within_and_all_across(database: Database) {
    let app = start(&database).await;
    let alerts = json!([
        {"zone_id": "A", "status": "violation", "user_id": 5, "camera_id": 1},
        {"zone_id": "B", "status": "violation", "user_id": "5", "camera_id": 2.0},
        {"zone_id": 7, "status": "authorized", "user_id": null, "camera_id": "2"},
        {"zone_id": "A", "status": ["odd"], "camera_id": {"odd": 1}},
    ]);
    app.post("/alerts", alerts).await.expect(200);
    for (query, expected) in [
        ("zone_id=A", vec![4, 1]),
        ("zone_id=7", vec![3]),
        ("zone_id=A&zone_id=B", vec![4, 2, 1]),
        ("user_id=5", vec![2, 1]),
        ("camera_id=2", vec![3, 2]),
        ("status=violation&status=authorized", vec![3, 2, 1]),
        ("zone_id=A&status=violation", vec![1]),
        ("zone_id=A&zone_id=7&status=authorized&camera_id=2", vec![3]),
        ("zone_id=nowhere", vec![]),
        ("zone_id=", vec![]),
        ("status=odd", vec![]),
        ("zone_id=A'%20OR%201=1", vec![]),
    ] {
        assert_eq!(seqs(&list(&app, &format!("?{query}")).await), expected, "{query}");
        let ascending: Vec<i64> = expected.iter().rev().copied().collect();
        assert_eq!(seqs(&list(&app, &format!("?after=0&{query}")).await), ascending, "{query}");
    }
    let page = list(&app, "?zone_id=A&limit=1").await;
    assert_eq!((seqs(&page), &page["next"]), (vec![4], &json!(4)));
    let page = list(&app, "?zone_id=A&limit=1&before=4").await;
    assert_eq!((seqs(&page), &page["next"]), (vec![1], &Value::Null));
}

async fn times_bound_a_page(database: Database) {
    let app = TestApp::start_ready(&database, &[("ALERTS_TIMEZONE", "Europe/Berlin")]).await;
    for time in [
        "2026-11-24T09:00:00Z",
        "2026-11-24T10:30:00",
        "2026-11-24T12:00:00.123456+02:00",
        "not a time",
        "-009999-01-01T00:00:00Z",
        "9999-12-30T00:00:00Z",
    ] {
        assert_eq!(app.post("/alerts", json!({"timestamp": time})).await.expect(200)["accepted"], 1, "{time}");
    }
    let page = list(&app, "?after=0").await;
    let times: Vec<&Value> =
        page["alerts"].as_array().expect("a list").iter().map(|alert| &alert["occurred_at"]).collect();
    let expected = [
        json!("2026-11-24T09:00:00.000000Z"),
        json!("2026-11-24T09:30:00.000000Z"),
        json!("2026-11-24T10:00:00.123456Z"),
        Value::Null,
        Value::Null,
        json!("9999-12-30T00:00:00.000000Z"),
    ];
    assert_eq!(times, expected.iter().collect::<Vec<_>>());
    for (query, expected) in [
        ("from=2026-11-24T09:30:00Z", vec![2, 3, 6]),
        ("from=2026-11-24T09:30:00.000001Z", vec![3, 6]),
        ("to=2026-11-24T09:30:00Z", vec![1]),
        ("from=2026-11-24T09:00:00Z&to=2026-11-24T10:00:00.123456Z", vec![1, 2]),
        // As in alerts: a time without an offset is local.
        ("from=2026-11-24T10:30:00&to=2026-11-24T10:30:01", vec![2]),
        ("from=2026-11-24T10:00:00%2B01:00&to=2026-11-25", vec![1, 2, 3]),
        ("from=9999-12-30T00:00:00Z", vec![6]),
        ("from=2030-01-01T00:00:00Z&to=2020-01-01T00:00:00Z", vec![]),
    ] {
        assert_eq!(seqs(&list(&app, &format!("?after=0&{query}")).await), expected, "{query}");
    }
    for (name, text) in
        [("from", "noon"), ("to", "2026-13-01T00:00:00Z"), ("from", ""), ("to", "-009999-01-01T00:00:00Z")]
    {
        let answer = app.get(&format!("/alerts?{name}={text}")).await;
        assert_fault(&answer, "datetime_parsing", json!(["query", name]));
        assert_eq!(answer.json()["detail"][0]["input"], text);
    }
}

async fn odd_queries_are_refused_or_find_nothing(database: Database) {
    let app = start(&database).await;
    for (query, kind, name) in [
        ("limit=0", "greater_than_equal", "limit"),
        ("limit=1001", "less_than_equal", "limit"),
        ("limit=x", "int_parsing", "limit"),
        ("after=-1", "greater_than_equal", "after"),
        ("after=x", "int_parsing", "after"),
        ("after=9223372036854775808", "less_than_equal", "after"),
        ("before=0", "greater_than_equal", "before"),
        ("after=1&before=3", "value_error", "before"),
        ("zone_id=a%00b", "value_error", "zone_id"),
    ] {
        assert_fault(&app.get(&format!("/alerts?{query}")).await, kind, json!(["query", name]));
    }
    for query in ["limit=0", "limit=1001", "limit=x"] {
        assert_eq!(app.get(&format!("/messages/recent?{query}")).await.status.as_u16(), 422, "{query}");
        assert_eq!(app.get(&format!("/alerts/rejected?{query}")).await.status.as_u16(), 422, "{query}");
    }
    assert_fault(&app.get("/alerts/rejected?after=-1").await, "greater_than_equal", json!(["query", "after"]));
    let many = |count: usize| (0..count).map(|n| format!("&zone_id={n}&user_id={n}")).collect::<String>();
    assert_eq!(seqs(&list(&app, &format!("?limit=1{}", many(100))).await), [0; 0]);
    for path in ["/alerts", "/alerts/stream"] {
        assert_fault(&app.get(&format!("{path}?{}", many(101))).await, "too_long", json!(["query", "zone_id"]));
    }
    assert_eq!(list(&app, "?zone_id=%FF&camera_id=%F0%9F%98%80&unknown=1").await["next"], Value::Null);
    assert_eq!(list(&app, "?before=9223372036854775807").await["next"], Value::Null);
}

async fn a_position_beyond_the_end_is_another_log(database: Database) {
    let app = start(&database).await;
    app.post("/alerts", json!([{}, {}])).await.expect(200);
    assert_eq!(list(&app, "?after=2").await, json!({"alerts": [], "next": null}));
    for after in ["3", "9223372036854775807"] {
        let body = app.get(&format!("/alerts?after={after}")).await.expect(422);
        assert_eq!(body["code"], "seq_beyond_end");
        assert!(body["detail"].as_str().expect("a text").contains("ends at 2"), "{body}");
    }
    assert_eq!(app.get("/alerts?after=3&zone_id=A").await.expect(422)["code"], "seq_beyond_end");
    assert_eq!(list(&app, "?after=1&zone_id=A").await["next"], Value::Null);
}

async fn the_newest_come_oldest_first(database: Database) {
    let app = start(&database).await;
    assert_eq!(app.get("/messages/recent").await.text(), r#"{"count":0,"messages":[]}"#);
    let alerts: Vec<Value> = (1..=60).map(|n| json!({"n": n})).collect();
    app.post("/alerts", json!(alerts)).await.expect(200);
    let shown = async |query: &str| -> Vec<i64> {
        let recent = app.get(&format!("/messages/recent{query}")).await.expect(200);
        let messages = recent["messages"].as_array().expect("messages");
        assert_eq!(recent["count"], messages.len());
        messages.iter().map(|message| message["n"].as_i64().expect("a number")).collect()
    };
    assert_eq!(shown("").await, (11..=60).collect::<Vec<_>>());
    assert_eq!(shown("?limit=2").await, [59, 60]);
    assert_eq!(shown("?limit=1000").await, (1..=60).collect::<Vec<_>>());
}

async fn a_page_of_large_alerts_ends_early_and_is_continued(database: Database) {
    let app = start(&database).await;
    let filler = "x".repeat(1_000_000);
    for _ in 0..2 {
        app.post("/alerts", json!(vec![json!({ "filler": filler }); 10])).await.expect(200);
    }
    // 16 MiB of alerts are in an answer.
    let first = list(&app, "?limit=1000&after=0").await;
    assert_eq!((seqs(&first), &first["next"]), ((1..=16).collect(), &json!(16)));
    let rest = list(&app, "?limit=1000&after=16").await;
    assert_eq!((seqs(&rest), &rest["next"]), ((17..=20).collect(), &Value::Null));
    let newest = list(&app, "?limit=1000").await;
    assert_eq!((seqs(&newest), &newest["next"]), ((5..=20).rev().collect(), &json!(5)));
    assert_eq!(app.get("/messages/recent?limit=1000").await.expect(200)["count"], 16);
}

async fn put_aside(app: &TestApp, letters: &[&[u8]]) {
    let dead_letters = letters.iter().zip(10..).map(|(raw, offset)| NewDeadLetter {
        topic: Arc::from("person_reid_alerts"),
        partition: 3,
        offset,
        reason: format!("not good: {offset}"),
        size: raw.len() as u64,
        raw: Bytes::copy_from_slice(&raw[..raw.len().min(DEAD_LETTER_BYTES)]),
    });
    let batch = AppendBatch { dead_letters: dead_letters.collect(), ..AppendBatch::default() };
    app.state.ingest.accept(batch).await.expect("they are kept");
}

async fn rejected_messages_are_listed_in_pages(database: Database) {
    let app = start(&database).await;
    let huge = vec![b'x'; DEAD_LETTER_BYTES + 1];
    put_aside(&app, &[b"", b"\xff\x00\xfe", b"NaN", b"[1]", &huge]).await;
    let page = app.get("/alerts/rejected?limit=3").await;
    let fields =
        ["rejected", "id", "received_at", "topic", "partition", "offset", "reason", "size", "raw_base64", "next"];
    let places: Vec<_> = fields.iter().map(|field| page.text().find(&format!("\"{field}\":")).expect(field)).collect();
    assert!(places.is_sorted(), "{}", page.text());
    let page = page.expect(200);
    let first = &page["rejected"][0];
    assert_eq!(
        (&first["topic"], &first["partition"], &first["offset"]),
        (&json!("person_reid_alerts"), &json!(3), &json!(10))
    );
    assert_eq!(
        (&first["reason"], &first["size"], &first["raw_base64"]),
        (&json!("not good: 10"), &json!(0), &json!(""))
    );
    assert_eq!((&page["rejected"][1]["size"], &page["rejected"][1]["raw_base64"]), (&json!(3), &json!("/wD+")));
    assert_eq!(page["next"], page["rejected"][2]["id"]);
    let rest = app.get(&format!("/alerts/rejected?limit=2&after={}", page["next"])).await.expect(200);
    assert_eq!((rest["rejected"].as_array().expect("a list").len(), &rest["next"]), (2, &Value::Null));
    let large = &rest["rejected"][1];
    assert_eq!(large["size"], DEAD_LETTER_BYTES + 1);
    let raw = base64::engine::general_purpose::STANDARD.decode(large["raw_base64"].as_str().expect("a text"));
    assert_eq!(raw.expect("base64").len(), DEAD_LETTER_BYTES);
    let cut = app.post(&format!("/alerts/rejected/{}/retry", large["id"]), json!({})).await.expect(422);
    assert_eq!(cut["code"], "still_rejected");
}

async fn a_rejected_message_is_retried(database: Database) {
    let app = start(&database).await;
    app.post("/users", json!({"global_id": 5, "name": "Ann"})).await.expect(200);
    put_aside(&app, &[b"NaN", br#"{"user_id":5, "event_id":"e"}"#, br#"{"event_id":"e"}"#]).await;
    let page = app.get("/alerts/rejected").await.expect(200);
    let ids: Vec<Value> = page["rejected"].as_array().expect("a list").iter().map(|item| item["id"].clone()).collect();
    let retry = async |id: &Value| app.call(Method::POST, &format!("/alerts/rejected/{id}/retry"), None).await;
    let still = retry(&ids[0]).await.expect(422);
    assert_eq!(still["code"], "still_rejected");
    assert!(still["detail"].as_str().expect("a reason").contains("not JSON"), "{still}");
    let retried = retry(&ids[1]).await;
    assert_eq!(retried.text(), format!(r#"{{"id":{},"seq":1}}"#, ids[1]));
    let gone = retry(&ids[1]).await.expect(404);
    assert_eq!(gone["code"], "dead_letter_not_found");
    assert_eq!(retry(&ids[2]).await.expect(200), json!({"id": ids[2], "seq": null}), "a duplicate");
    let left = app.get("/alerts/rejected").await.expect(200);
    assert_eq!((left["rejected"].as_array().expect("a list").len(), &left["rejected"][0]["id"]), (1, &ids[0]));
    let alert = list(&app, "").await["alerts"][0].clone();
    assert_eq!(alert["source"], "kafka:person_reid_alerts/3/11");
    assert_eq!(stored_names(&app).await, [Some("Ann".to_owned())]);
    for id in ["0", "-1", "9223372036854775807"] {
        assert_eq!(retry(&serde_json::from_str(id).expect("a number")).await.status.as_u16(), 404, "{id}");
    }
    assert_fault(&app.post("/alerts/rejected/x/retry", json!({})).await, "int_parsing", json!(["path", "id"]));
}

async fn stored_names(app: &TestApp) -> Vec<Option<String>> {
    let query = AlertQuery {
        direction: Direction::After(0),
        limit: 100,
        max_bytes: 1 << 20,
        filter: AlertFilter::default(),
        from: None,
        to: None,
    };
    let alerts = app.state.log.list_alerts(&query).await.expect("the log can be read").alerts;
    alerts.into_iter().map(|alert| alert.user_name.map(Into::into)).collect()
}

async fn a_missing_name_is_filled_in_the_column_only(database: Database) {
    let app = start(&database).await;
    app.post("/users", json!({"global_id": 5, "name": "Ann"})).await.expect(200);
    let texts = [
        r#"{"user_id":5}"#,
        r#"{"user_id":"5","user_name":null}"#,
        r#"{"user_id":5,"user_name":"As sent"}"#,
        r#"{"user_id":6}"#,
        r#"{"user_id":null}"#,
    ];
    send(&app, format!("[{}]", texts.join(","))).await.expect(200);
    assert_eq!(
        stored_names(&app).await,
        [Some("Ann"), Some("Ann"), Some("As sent"), None, None].map(|name| name.map(str::to_owned))
    );
    assert_eq!(app.get("/messages/recent").await.text(), format!("{{\"count\":5,\"messages\":[{}]}}", texts.join(",")));
}
