//! What a client may send wrongly: each is refused by the name of its field, and nothing is stored.

use reqwest::Method;
use serde_json::{Value, json};

use super::{assert_fault, create, faults, square, start, start_with_zones};
use crate::on_both_engines;
use crate::support::app::{Answer, TestApp};
use crate::support::backends::Database;

on_both_engines!(
    a_zone_that_is_no_polygon_is_refused,
    integers_are_lax_and_bounded,
    names_are_unicode_of_1_to_100_characters,
    bodies_that_cannot_be_read_are_named,
    every_fault_of_a_request_is_told_at_once,
);

/// Sends a body as it is written.
async fn send(app: &TestApp, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = app.client().request(method, app.url(path)).header("content-type", "application/json").body(body);
    Answer::of(request).await
}

async fn a_zone_that_is_no_polygon_is_refused(database: Database) {
    let app = start_with_zones(&database, &["A"]).await;
    let zone = |corners: [[f64; 2]; 4]| {
        let mut zone = square("B");
        for (index, [x, y]) in corners.into_iter().enumerate() {
            zone[format!("x{}", index + 1)] = json!(x);
            zone[format!("y{}", index + 1)] = json!(y);
        }
        zone
    };
    let bow_tie = zone([[0.0, 0.0], [4.0, 3.0], [4.0, 0.0], [0.0, 3.0]]);
    let line = zone([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]);
    for (body, text) in [(bow_tie, "cross"), (line, "no area"), (zone([[1.0, 1.0]; 4]), "no area")] {
        let answer = app.post("/zones", body).await;
        assert_fault(&answer, "value_error", json!(["body"]));
        assert!(answer.text().contains(text), "{}", answer.text());
    }
    // The change of one corner is judged with the three that stay.
    let answer = app.put("/zones/A", json!({"x3": -1, "y3": 1})).await;
    assert_eq!(answer.status.as_u16(), 422, "{}", answer.text());
    assert_eq!(app.get("/zones/A").await.expect(200)["x3"], 4.0);

    let with_x3 = |value: &str| square("B").to_string().replace("\"x3\":4", &format!("\"x3\":{value}"));
    for (value, kind) in [
        ("1e999", "finite_number"),
        ("-1e999", "finite_number"),
        ("\"inf\"", "finite_number"),
        ("\"NaN\"", "finite_number"),
        ("\"wide\"", "float_parsing"),
        ("null", "float_type"),
        ("[]", "float_type"),
    ] {
        for (method, path) in [(Method::POST, "/zones"), (Method::PUT, "/zones/A")] {
            let answer = send(&app, method, path, with_x3(value)).await;
            assert_fault(&answer, kind, json!(["body", "x3"]));
        }
    }
    // No JSON.
    for value in ["NaN", "Infinity", "-Infinity"] {
        let answer = send(&app, Method::POST, "/zones", with_x3(value)).await;
        assert_eq!(faults(&answer)[0].0, "json_invalid", "{value}");
    }
    let lax = send(&app, Method::POST, "/zones", with_x3("\"4.5\"")).await;
    assert_eq!(lax.expect(200)["x3"], 4.5);
}

async fn integers_are_lax_and_bounded(database: Database) {
    let app = start(&database).await;
    for (raw, read) in [
        ("\"1005\"", 1005),
        ("2.0", 2),
        ("true", 1),
        ("\" 7 \"", 7),
        ("1e3", 1000),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("\"-9223372036854775807\"", i64::MIN + 1),
    ] {
        let body = format!(r#"{{"global_id":{raw},"name":"Ann"}}"#);
        let answer = send(&app, Method::POST, "/users", body).await;
        assert_eq!(answer.expect(200)["global_id"], read, "{raw}");
        assert_eq!(app.get(&format!("/users/global/{read}")).await.expect(200)["global_id"], read);
    }
    for (raw, kind) in [
        ("9223372036854775808", "less_than_equal"),
        ("-9223372036854775809", "greater_than_equal"),
        ("\"9223372036854775808\"", "less_than_equal"),
        ("99999999999999999999999", "less_than_equal"),
        ("1e300", "less_than_equal"),
        ("1e999", "finite_number"),
        ("1.5", "int_from_float"),
        ("\"1.5\"", "int_parsing"),
        ("\"abc\"", "int_parsing"),
        ("\"\"", "int_parsing"),
        ("null", "int_type"),
        ("[1]", "int_type"),
        ("{}", "int_type"),
    ] {
        let body = format!(r#"{{"global_id":{raw},"name":"Ann"}}"#);
        assert_fault(&send(&app, Method::POST, "/users", body).await, kind, json!(["body", "global_id"]));
    }
    for path in ["/users/abc", "/users/1.5", "/users/9223372036854775808", "/users/abc/zones"] {
        assert_eq!(faults(&app.get(path).await)[0].1, json!(["path", "user_id"]), "{path}");
    }
    assert_fault(&app.get("/users/global/x").await, "int_parsing", json!(["path", "global_id"]));
    // Of a repeated key the last one counts, as in Python.
    let twice =
        send(&app, Method::POST, "/users", r#"{"global_id":50,"name":"Ann","global_id":51,"name":"Bob"}"#).await;
    assert_eq!((&twice.expect(200)["global_id"], &twice.json()["name"]), (&json!(51), &json!("Bob")));
}

async fn names_are_unicode_of_1_to_100_characters(database: Database) {
    let app = start(&database).await;
    let hundred = ["é".repeat(100), "😀".repeat(100), "e\u{301}".repeat(50)];
    for (global_id, name) in
        (1..).zip(["x", " Ann ", "李小龍", "\"quoted\\\"", "👨‍👩‍👧"].into_iter().chain(hundred.iter().map(String::as_str)))
    {
        let user = create(&app, json!({"global_id": global_id, "name": name})).await;
        assert_eq!(user["name"], name);
        assert_eq!(app.get("/users-dict").await.expect(200)[global_id.to_string()], name);
    }
    let long = "😀".repeat(101);
    for (name, kind) in [
        (json!(""), "string_too_short"),
        (json!(long), "string_too_long"),
        (json!("a\u{0}b"), "value_error"),
        (json!("a\nb"), "value_error"),
        (json!("a\u{85}b"), "value_error"),
        (json!(null), "string_type"),
        (json!(5), "string_type"),
    ] {
        assert_fault(&app.post("/users", json!({"global_id": 99, "name": name})).await, kind, json!(["body", "name"]));
        for field in ["zone_id", "zone_name"] {
            let mut zone = square("Z");
            zone[field] = name.clone();
            assert_fault(&app.post("/zones", zone).await, kind, json!(["body", field]));
        }
    }
    for (name, kind) in
        [("\\ud800", "string_unicode"), ("\\ude00\\ud83d", "string_unicode"), ("\\u0000", "value_error")]
    {
        let body = format!(r#"{{"global_id":99,"name":"{name}"}}"#);
        assert_fault(&send(&app, Method::POST, "/users", body).await, kind, json!(["body", "name"]));
    }
    let pair = send(&app, Method::POST, "/users", r#"{"global_id":100,"name":"\ud83d\ude00"}"#).await;
    assert_eq!(pair.expect(200)["name"], "😀");
    assert_eq!(app.get("/users/global/99").await.status.as_u16(), 404, "what is refused is not stored");
}

async fn bodies_that_cannot_be_read_are_named(database: Database) {
    let app = start(&database).await;
    let nested = format!(r#"{{"global_id":1,"name":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert_fault(&send(&app, Method::POST, "/users", nested).await, "json_invalid", json!(["body", "name"]));
    let deep = "[".repeat(10_000);
    assert_eq!(faults(&send(&app, Method::POST, "/users", deep).await)[0].0, "json_invalid");
    assert_fault(&send(&app, Method::POST, "/users", "").await, "missing", json!(["body"]));
    assert_fault(&send(&app, Method::POST, "/users", "{\"a\":}").await, "json_invalid", json!(["body", 5]));
    assert_eq!(faults(&send(&app, Method::POST, "/users", vec![b'{', 0xff, b'}']).await)[0].0, "json_invalid");
    for (body, input) in [("[]", json!([])), ("5", json!(5)), ("null", Value::Null), ("\"x\"", json!("x"))] {
        let answer = send(&app, Method::PUT, "/users/1", body).await;
        assert_fault(&answer, "model_attributes_type", json!(["body"]));
        assert_eq!(answer.json()["detail"][0]["input"], input);
    }
    let body = r#"{"global_id":1,"name":"Ann","junk":1e999,"more":"\ud800"}"#;
    assert_eq!(send(&app, Method::POST, "/users", body).await.expect(200)["name"], "Ann", "unknown fields are ignored");

    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
        let request = app.client().post(app.url("/users")).header("content-type", content_type);
        let answer = Answer::of(request.body(r#"{"global_id":2,"name":"Bob"}"#)).await;
        assert_fault(&answer, "value_error", json!(["header", "content-type"]));
        assert_eq!(answer.json()["detail"][0]["input"], content_type);
    }
    for (global_id, content_type) in
        [(3, "application/json; charset=utf-8"), (4, "Application/JSON"), (5, "application/merge-patch+json")]
    {
        let request = app.client().post(app.url("/users")).header("content-type", content_type);
        Answer::of(request.body(format!(r#"{{"global_id":{global_id},"name":"Bob"}}"#))).await.expect(200);
    }
    let unnamed = Answer::of(app.client().post(app.url("/users")).body(r#"{"global_id":6,"name":"Bob"}"#)).await;
    unnamed.expect(200);
}

async fn every_fault_of_a_request_is_told_at_once(database: Database) {
    let app = start(&database).await;
    let answer = app.post("/users", json!({"zone_ids": [1, ""]})).await;
    let locs: Vec<(String, Value)> = faults(&answer);
    let expected = [
        ("missing", json!(["body", "global_id"])),
        ("missing", json!(["body", "name"])),
        ("string_type", json!(["body", "zone_ids", 0])),
        ("string_too_short", json!(["body", "zone_ids", 1])),
    ];
    assert_eq!(locs, expected.map(|(kind, loc)| (kind.to_owned(), loc)));
    assert_eq!(answer.json()["detail"][0]["input"], json!({"zone_ids": [1, ""]}));
    assert_eq!(faults(&app.post("/zones", json!({})).await).len(), 10);
    // A body full of faults does not come back a hundredfold.
    let many = app.post("/users", json!({"zone_ids": vec![1; 100_000]})).await;
    assert!(many.status.as_u16() == 422 && many.body.len() < 100_000, "{} bytes", many.body.len());
}
