//! Users, zones and the users dict over HTTP: the words of the contract, on both engines.

use std::io::Read;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::on_both_engines;
use crate::support::app::{Answer, PATIENCE, TestApp, eventually};
use crate::support::backends::Database;

on_both_engines!(
    a_user_is_created_found_changed_and_deleted,
    a_user_shows_its_fields_in_order,
    parallel_creates_of_one_global_id_give_one_200,
    zone_id_and_zone_ids_mean_the_same,
    updated_at_moves_on_real_changes_only,
    zones_are_assigned_added_and_removed,
    a_zone_is_created_found_changed_and_deleted,
    a_zone_that_is_no_polygon_is_refused,
    lists_come_in_order_and_in_pages,
    zones_with_users_and_statistics_agree,
    integers_are_lax_and_bounded,
    names_are_unicode_of_1_to_100_characters,
    bodies_that_cannot_be_read_are_named,
    every_fault_of_a_request_is_told_at_once,
    zone_ids_are_any_text_in_a_path,
    names_by_sql_are_served_as_stored,
    the_dict_is_the_whole_map_in_numeric_order,
    the_dict_has_one_entity_tag_everywhere,
    the_dict_tells_what_changed_since_a_token,
    a_long_poll_is_answered_by_a_write,
    a_long_poll_ends_empty_when_nothing_changes,
    dict_events_resume_by_last_event_id,
    streams_and_long_polls_end_with_the_service,
);

fn square(zone_id: &str) -> Value {
    json!({"zone_id": zone_id, "zone_name": format!("Zone {zone_id}"),
        "x1": 0, "y1": 0, "x2": 4, "y2": 0, "x3": 4, "y3": 3, "x4": 0, "y4": 3})
}

async fn start(database: &Database) -> TestApp {
    TestApp::start_ready(database, &[]).await
}

/// Another instance on the same database, where the engine has several.
async fn start_second(database: &Database) -> Option<TestApp> {
    match database {
        Database::Sqlite(_) => None,
        Database::Postgres(_) => Some(start(database).await),
    }
}

async fn start_with_zones(database: &Database, zones: &[&str]) -> TestApp {
    let app = start(database).await;
    for zone in zones {
        app.post("/zones", square(zone)).await.expect(200);
    }
    app
}

async fn create(app: &TestApp, body: Value) -> Value {
    app.post("/users", body).await.expect(200)
}

/// Sends a body as it is written.
async fn send(app: &TestApp, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = app.client().request(method, app.url(path)).header("content-type", "application/json").body(body);
    Answer::of(request).await
}

/// The faults of a 422, each as (type, loc), after its form was checked.
#[track_caller]
fn faults(answer: &Answer) -> Vec<(String, Value)> {
    let body = answer.expect(422);
    assert_eq!(body["code"], "validation_error");
    assert_eq!(body["request_id"], answer.header("x-request-id"));
    let keys = |fault: &Value| fault.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
    let list = body["detail"].as_array().unwrap_or_else(|| panic!("a list: {body}"));
    assert!(!list.is_empty(), "a 422 without a fault");
    let read = |fault: &Value| {
        assert_eq!(keys(fault).expect("an object"), ["input", "loc", "msg", "type"], "{fault}");
        (fault["type"].as_str().expect("a type").to_owned(), fault["loc"].clone())
    };
    list.iter().map(read).collect()
}

#[track_caller]
fn assert_fault(answer: &Answer, kind: &str, loc: Value) {
    assert_eq!(faults(answer), [(kind.to_owned(), loc)], "{}", answer.text());
}

/// That a text's fields stand in this order.
#[track_caller]
fn assert_order(text: &str, fields: &[&str]) {
    let places: Vec<usize> = fields
        .iter()
        .map(|field| text.find(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field} in {text}")))
        .collect();
    assert!(places.is_sorted(), "{text}");
}

async fn a_user_is_created_found_changed_and_deleted(database: Database) {
    let app = start(&database).await;
    let ann = create(&app, json!({"global_id": 1005, "name": "Ann", "favourite": "unknown fields are ignored"})).await;
    assert_eq!((&ann["global_id"], &ann["name"]), (&json!(1005), &json!("Ann")));
    assert_eq!((&ann["zone_id"], &ann["zone_ids"], &ann["updated_at"]), (&Value::Null, &json!([]), &Value::Null));
    let id = ann["id"].as_i64().expect("an id");
    let created_at = ann["created_at"].as_str().expect("a time");
    assert!(created_at.len() == 27 && created_at.ends_with('Z'), "{created_at}");

    assert_eq!(app.get(&format!("/users/{id}")).await.expect(200), ann);
    assert_eq!(app.get("/users/global/1005").await.expect(200), ann);
    let repeated = app.post("/users", json!({"global_id": 1005, "name": "Bob"})).await;
    let body = repeated.expect(400);
    assert_eq!(body["detail"], "User with global_id 1005 already exists");
    assert_eq!(body["code"], "user_exists");

    // A PUT of a name works (the first implementation lost it).
    let renamed = app.put(&format!("/users/{id}"), json!({"name": "Anna"})).await.expect(200);
    assert_eq!(renamed["name"], "Anna");
    assert_eq!(app.get(&format!("/users/{id}")).await.expect(200), renamed);
    // What nobody may change is ignored, as any field that is not known here.
    let kept = app.put(&format!("/users/{id}"), json!({"global_id": 7, "id": 9})).await.expect(200);
    assert_eq!(kept["global_id"], 1005);

    let deleted = app.delete(&format!("/users/{id}")).await;
    assert_eq!(deleted.expect(200), json!({"message": format!("User {id} deleted successfully")}));
    for (method, path, body) in [
        (Method::GET, format!("/users/{id}"), None),
        (Method::GET, "/users/global/1005".to_owned(), None),
        (Method::PUT, format!("/users/{id}"), Some(json!({"name": "x"}))),
        (Method::DELETE, format!("/users/{id}"), None),
        (Method::GET, format!("/users/{id}/zones"), None),
        (Method::POST, format!("/users/{id}/zones/assign"), Some(json!({"zone_ids": []}))),
        (Method::DELETE, format!("/users/{id}/zones/A"), None),
    ] {
        let answer = app.call(method.clone(), &path, body).await;
        let body = answer.expect(404);
        assert_eq!(
            (&body["detail"], &body["code"]),
            (&json!("User not found"), &json!("user_not_found")),
            "{method} {path}"
        );
    }
}

async fn a_user_shows_its_fields_in_order(database: Database) {
    let app = start_with_zones(&database, &["A"]).await;
    let created = app.post("/users", json!({"global_id": 1, "name": "Ann", "zone_id": "A"})).await;
    let user = ["global_id", "name", "zone_id", "zone_ids", "id", "created_at", "updated_at"];
    assert_order(created.text(), &user);
    let id = created.json()["id"].clone();
    let with_zones = app.get(&format!("/users/{id}/zones")).await;
    assert_order(with_zones.text(), &[&user[..], &["zones"]].concat());
    let zone = ["zone_id", "zone_name", "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4", "created_at", "updated_at"];
    let shown = app.get("/zones/A").await;
    assert_order(shown.text(), &zone);
    assert!(shown.text().contains(r#""x1":0.0,"y1":0.0,"x2":4.0"#), "{}", shown.text());
    assert_order(app.get("/zones/A/with-users").await.text(), &[&zone[..], &["users"]].concat());
    let assigned = app.post(&format!("/users/{id}/zones/assign"), json!({"zone_ids": ["A"]})).await;
    assert_order(assigned.text(), &["message", "zones"]);
    assert_order(app.get("/stats/zones").await.text(), &["total_zones", "zones", "zone_id", "zone_name", "user_count"]);
    assert_order(app.get("/users/9999").await.text(), &["detail", "code", "request_id"]);
    assert_order(
        app.get("/users?limit=0").await.text(),
        &["detail", "type", "loc", "msg", "input", "code", "request_id"],
    );
    assert_order(app.get("/").await.text(), &["service", "version", "endpoints"]);
    let health = [
        "status",
        "service",
        "version",
        "database",
        "orm",
        "kafka_enabled",
        "kafka_running",
        "messages_received",
        "redis",
        "checks",
    ];
    assert_order(app.get("/health").await.text(), &health);
}

async fn parallel_creates_of_one_global_id_give_one_200(database: Database) {
    let app = start(&database).await;
    let answers = (0..24).map(|_| app.post("/users", json!({"global_id": 5, "name": "Ann"})));
    let mut statuses: Vec<u16> =
        futures_util::future::join_all(answers).await.iter().map(|answer| answer.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200], vec![400; 23]].concat());
    assert_eq!(app.get("/stats/users").await.expect(200), json!({"total_users": 1}));
}

async fn zone_id_and_zone_ids_mean_the_same(database: Database) {
    let app = start_with_zones(&database, &["A", "B", "C"]).await;
    let zones_of = |user: &Value| (user["zone_id"].clone(), user["zone_ids"].clone());
    for (global_id, fields, zone_id, zone_ids) in [
        (1, json!({"zone_id": "B"}), json!("B"), json!(["B"])),
        (2, json!({"zone_id": null}), Value::Null, json!([])),
        (3, json!({"zone_ids": ["C", "A", "C"]}), json!("C"), json!(["C", "A"])),
        (4, json!({"zone_id": "C", "zone_ids": ["C", "B"]}), json!("C"), json!(["C", "B"])),
        (5, json!({"zone_id": null, "zone_ids": []}), Value::Null, json!([])),
        (6, json!({"zone_ids": []}), Value::Null, json!([])),
    ] {
        let mut body = json!({"global_id": global_id, "name": "Ann"});
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let user = create(&app, body).await;
        assert_eq!(zones_of(&user), (zone_id, zone_ids), "{fields}");
        assert_eq!(app.get(&format!("/users/{}", user["id"])).await.expect(200), user);
    }
    let user = create(&app, json!({"global_id": 10, "name": "Bob", "zone_ids": ["A", "B"]})).await;
    let path = format!("/users/{}", user["id"]);
    for fields in [
        json!({"zone_id": "B", "zone_ids": ["A", "B"]}),
        json!({"zone_id": null, "zone_ids": ["A"]}),
        json!({"zone_id": "A", "zone_ids": []}),
    ] {
        let answer = app.put(&path, fields).await;
        assert_fault(&answer, "value_error", json!(["body"]));
        assert!(answer.text().contains("zone_id must be the first of zone_ids"), "{}", answer.text());
    }
    assert_fault(&app.put(&path, json!({"zone_ids": null})).await, "list_type", json!(["body", "zone_ids"]));
    assert_fault(&app.put(&path, json!({"zone_ids": "A"})).await, "list_type", json!(["body", "zone_ids"]));
    assert_fault(&app.put(&path, json!({"zone_ids": ["A", 5]})).await, "string_type", json!(["body", "zone_ids", 1]));
    assert_fault(&app.put(&path, json!({"name": null})).await, "string_type", json!(["body", "name"]));
    for fields in [json!({"zone_ids": ["A", "nowhere"]}), json!({"zone_id": "nowhere"})] {
        let answer = app.put(&path, fields.clone()).await;
        assert_eq!(faults(&answer)[0].0, "value_error");
        assert!(answer.text().contains("unknown zone: nowhere"), "{}", answer.text());
        let mut creation = fields;
        creation["global_id"] = json!(11);
        creation["name"] = json!("Eve");
        assert_eq!(faults(&app.post("/users", creation).await)[0].0, "value_error");
    }
    assert_eq!(app.get(&path).await.expect(200), user, "what is refused changes nothing");
    assert_eq!(app.get("/users/global/11").await.status.as_u16(), 404);

    let moved = app.put(&path, json!({"zone_id": "C"})).await.expect(200);
    assert_eq!(zones_of(&moved), (json!("C"), json!(["C"])));
    let named = app.put(&path, json!({"name": "Rob"})).await.expect(200);
    assert_eq!(zones_of(&named), (json!("C"), json!(["C"])), "an absent field is left alone");
    let cleared = app.put(&path, json!({"zone_id": null})).await.expect(200);
    assert_eq!(zones_of(&cleared), (Value::Null, json!([])));
}

async fn updated_at_moves_on_real_changes_only(database: Database) {
    let app = start_with_zones(&database, &["A", "B"]).await;
    let user = create(&app, json!({"global_id": 1, "name": "Ann", "zone_ids": ["A"]})).await;
    assert_eq!(user["updated_at"], Value::Null);
    let path = format!("/users/{}", user["id"]);
    // A PUT of what GET gave is fine and changes nothing.
    let got = app.get(&path).await.expect(200);
    assert_eq!(app.put(&path, got.clone()).await.expect(200), got);
    assert_eq!(app.put(&path, json!({})).await.expect(200), got);
    app.post(&format!("{path}/zones/assign"), json!({"zone_ids": ["A"]})).await.expect(200);
    app.post(&format!("{path}/zones/A/add"), json!({})).await.expect(200);
    app.delete(&format!("{path}/zones/B")).await.expect(200);
    assert_eq!(app.get(&path).await.expect(200), got);

    let mut last = String::new();
    let mut moved = async |what: &str| {
        let now = app.get(&path).await.expect(200)["updated_at"].as_str().unwrap_or_default().to_owned();
        assert!(now > last, "{what}: {last:?} to {now:?}");
        last = now;
    };
    app.put(&path, json!({"name": "Anna"})).await.expect(200);
    moved("a name").await;
    app.post(&format!("{path}/zones/B/add"), json!({})).await.expect(200);
    moved("a zone added").await;
    app.post(&format!("{path}/zones/assign"), json!({"zone_ids": ["B", "A"]})).await.expect(200);
    moved("another order").await;
    app.delete(&format!("{path}/zones/A")).await.expect(200);
    moved("a zone removed").await;
    app.put(&path, json!({"zone_id": "A"})).await.expect(200);
    moved("another zone").await;
    app.delete("/zones/A").await.expect(200);
    moved("its zone deleted").await;

    let zone = app.get("/zones/B").await.expect(200);
    assert_eq!(zone["updated_at"], Value::Null);
    assert_eq!(app.put("/zones/B", zone.clone()).await.expect(200), zone);
    let changed = app.put("/zones/B", json!({"zone_name": "New"})).await.expect(200);
    assert!(changed["updated_at"].is_string(), "{changed}");
}

async fn zones_are_assigned_added_and_removed(database: Database) {
    let app = start_with_zones(&database, &["A", "B", "C"]).await;
    let id = create(&app, json!({"global_id": 1, "name": "Ann"})).await["id"].clone();
    let path = format!("/users/{id}/zones");
    let assigned = app.post(&format!("{path}/assign"), json!({"zone_ids": ["C", "A", "C"]})).await;
    assert_eq!(assigned.expect(200), json!({"message": format!("Assigned 2 zones to user {id}"), "zones": ["C", "A"]}));
    let added = app.call(Method::POST, &format!("{path}/B/add"), None).await;
    assert_eq!(added.expect(200), json!({"message": format!("Added zone B to user {id}"), "zones": ["C", "A", "B"]}));
    let again = app.call(Method::POST, &format!("{path}/B/add"), None).await;
    assert_eq!(
        again.expect(200),
        json!({"message": format!("User {id} already has zone B"), "zones": ["C", "A", "B"]})
    );
    let removed = app.delete(&format!("{path}/C")).await;
    assert_eq!(removed.expect(200), json!({"message": format!("Removed zone C from user {id}"), "zones": ["A", "B"]}));
    for zone in ["C", "nowhere"] {
        let again = app.delete(&format!("{path}/{zone}")).await;
        let message = format!("User {id} doesn't have zone {zone}");
        assert_eq!(again.expect(200), json!({"message": message, "zones": ["A", "B"]}));
    }
    let unknown = app.call(Method::POST, &format!("{path}/nowhere/add"), None).await.expect(404);
    assert_eq!((&unknown["detail"], &unknown["code"]), (&json!("Zone not found"), &json!("zone_not_found")));
    let nobody = app.call(Method::POST, "/users/999999/zones/A/add", None).await.expect(404);
    assert_eq!(nobody["detail"], "User not found");
    let refused = app.post(&format!("{path}/assign"), json!({"zone_ids": ["A", "roof", "attic"]})).await;
    assert_fault(&refused, "value_error", json!(["body", "zone_ids"]));
    assert!(refused.text().contains("unknown zone: roof, attic"), "{}", refused.text());
    assert_fault(&app.post(&format!("{path}/assign"), json!({})).await, "missing", json!(["body", "zone_ids"]));
    let user = app.get(&path).await.expect(200);
    assert_eq!((&user["zone_id"], &user["zone_ids"]), (&json!("A"), &json!(["A", "B"])));
    let zones: Vec<&Value> = user["zones"].as_array().expect("zones").iter().map(|zone| &zone["zone_id"]).collect();
    assert_eq!(zones, ["A", "B"]);
    assert_eq!(user["zones"][0], app.get("/zones/A").await.expect(200));
    let none = app.post(&format!("{path}/assign"), json!({"zone_ids": []})).await;
    assert_eq!(none.expect(200), json!({"message": format!("Assigned 0 zones to user {id}"), "zones": []}));

    // Of many that add at once none is lost.
    let paths: Vec<String> = ["A", "B", "C"].iter().map(|zone| format!("{path}/{zone}/add")).collect();
    let adding = paths.iter().map(|path| app.call(Method::POST, path, None));
    futures_util::future::join_all(adding).await.iter().for_each(|answer| drop(answer.expect(200)));
    let user = app.get(&path).await.expect(200);
    assert_eq!(user["zone_ids"].as_array().expect("zones").len(), 3, "{user}");
}

async fn a_zone_is_created_found_changed_and_deleted(database: Database) {
    let app = start_with_zones(&database, &["A", "B"]).await;
    let zone = app.get("/zones/A").await.expect(200);
    assert_eq!((&zone["zone_name"], &zone["x3"], &zone["updated_at"]), (&json!("Zone A"), &json!(4.0), &Value::Null));
    let repeated = app.post("/zones", square("A")).await.expect(400);
    assert_eq!(
        (&repeated["detail"], &repeated["code"]),
        (&json!("Zone with zone_id A already exists"), &json!("zone_exists"))
    );
    let changed = app.put("/zones/A", json!({"zone_name": "Dock", "x3": 5.5, "zone_id": "ignored"})).await.expect(200);
    assert_eq!(
        (&changed["zone_id"], &changed["zone_name"], &changed["x3"]),
        (&json!("A"), &json!("Dock"), &json!(5.5))
    );
    assert_eq!(app.get("/zones/A").await.expect(200), changed);

    let ann = create(&app, json!({"global_id": 1, "name": "Ann", "zone_ids": ["A", "B"]})).await;
    assert_eq!(app.delete("/zones/A").await.expect(200), json!({"message": "Zone A deleted successfully"}));
    let kept = app.get(&format!("/users/{}", ann["id"])).await.expect(200);
    assert_eq!((&kept["zone_id"], &kept["zone_ids"]), (&json!("B"), &json!(["B"])));
    for (method, path, body) in [
        (Method::GET, "/zones/A", None),
        (Method::GET, "/zones/A/with-users", None),
        (Method::PUT, "/zones/A", Some(json!({"zone_name": "x"}))),
        (Method::DELETE, "/zones/A", None),
        (Method::DELETE, "/zones/A%00", None),
    ] {
        let body = app.call(method.clone(), path, body).await.expect(404);
        assert_eq!(
            (&body["detail"], &body["code"]),
            (&json!("Zone not found"), &json!("zone_not_found")),
            "{method} {path}"
        );
    }
    assert_eq!(app.get("/users/by-zone/A").await.expect(200), json!([]));
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

async fn lists_come_in_order_and_in_pages(database: Database) {
    let app = start_with_zones(&database, &["b", "a", "Z", "ä", "10", "9"]).await;
    for global_id in [30, -7, 5, i64::MAX, i64::MIN] {
        create(&app, json!({"global_id": global_id, "name": format!("n{global_id}")})).await;
    }
    let ids = |answer: &Answer, key: &str| -> Vec<Value> {
        answer.expect(200).as_array().expect("a list").iter().map(|item| item[key].clone()).collect()
    };
    let users = app.get("/users").await;
    assert_eq!(ids(&users, "global_id"), [i64::MIN, -7, 5, 30, i64::MAX].map(Value::from));
    assert_eq!(users.header("x-total-count"), "5");
    let page = app.get("/users?skip=1&limit=2").await;
    assert_eq!((ids(&page, "global_id"), page.header("x-total-count")), (vec![json!(-7), json!(5)], "5"));
    let past = app.get("/users?skip=5").await;
    assert_eq!((past.expect(200), past.header("x-total-count")), (json!([]), "5"));
    assert_eq!(app.get("/users?skip=9223372036854775807&limit=10000").await.expect(200), json!([]));
    let zones = app.get("/zones?limit=4").await;
    assert_eq!(
        (ids(&zones, "zone_id"), zones.header("x-total-count")),
        (["10", "9", "Z", "a"].map(Value::from).to_vec(), "6")
    );
    assert_eq!(ids(&app.get("/zones?skip=4").await, "zone_id"), ["b", "ä"].map(Value::from));
    for path in ["/users", "/zones"] {
        for (query, kind, name) in [
            ("skip=-1", "greater_than_equal", "skip"),
            ("skip=9223372036854775808", "less_than_equal", "skip"),
            ("skip=x", "int_parsing", "skip"),
            ("limit=0", "greater_than_equal", "limit"),
            ("limit=-5", "greater_than_equal", "limit"),
            ("limit=10001", "less_than_equal", "limit"),
            ("limit=abc", "int_parsing", "limit"),
            ("limit=", "int_parsing", "limit"),
            ("limit=1.5", "int_parsing", "limit"),
            ("limit=%00", "value_error", "limit"),
        ] {
            let answer = app.get(&format!("{path}?{query}")).await;
            let (got, loc) = faults(&answer).remove(0);
            assert_eq!((got.as_str(), loc), (kind, json!(["query", name])), "{path}?{query}");
            let input = url::form_urlencoded::parse(query.as_bytes()).next().expect("a pair").1.into_owned();
            assert_eq!(answer.json()["detail"][0]["input"], input);
        }
        let both = app.get(&format!("{path}?skip=-1&limit=0")).await;
        assert_eq!(faults(&both).len(), 2);
        assert_eq!(app.get(&format!("{path}?limit=10000")).await.status.as_u16(), 200);
    }
}

async fn zones_with_users_and_statistics_agree(database: Database) {
    let app = start(&database).await;
    assert_eq!(app.get("/stats/users").await.expect(200), json!({"total_users": 0}));
    assert_eq!(app.get("/stats/zones").await.expect(200), json!({"total_zones": 0, "zones": []}));
    for zone in ["B", "A", "C"] {
        app.post("/zones", square(zone)).await.expect(200);
    }
    for (global_id, zones) in [(3, json!(["A"])), (1, json!(["A", "B"])), (2, json!([]))] {
        create(&app, json!({"global_id": global_id, "name": "x", "zone_ids": zones})).await;
    }
    let in_zone = app.get("/users/by-zone/A").await.expect(200);
    let ids: Vec<&Value> = in_zone.as_array().expect("a list").iter().map(|user| &user["global_id"]).collect();
    assert_eq!(ids, [1, 3]);
    let zone = app.get("/zones/A/with-users").await.expect(200);
    assert_eq!((&zone["zone_id"], &zone["users"]), (&json!("A"), &in_zone));
    assert_eq!(app.get("/zones/C/with-users").await.expect(200)["users"], json!([]));
    assert_eq!(app.get("/users/by-zone/nowhere").await.expect(200), json!([]));
    assert_eq!(app.get("/stats/users").await.expect(200), json!({"total_users": 3}));
    let counted =
        |zone: &str, users: i64| json!({"zone_id": zone, "zone_name": format!("Zone {zone}"), "user_count": users});
    let expected = json!({"total_zones": 3, "zones": [counted("A", 2), counted("B", 1), counted("C", 0)]});
    assert_eq!(app.get("/stats/zones").await.expect(200), expected);
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

async fn zone_ids_are_any_text_in_a_path(database: Database) {
    let app = start(&database).await;
    let id = create(&app, json!({"global_id": 1, "name": "Ann"})).await["id"].clone();
    for zone_id in ["a/b", "a b", "100%", "%2F", "😀", "a?b#c", "..", "a+b", "\"", "zones"] {
        let encoded: String = url::form_urlencoded::byte_serialize(zone_id.as_bytes()).collect();
        let encoded = encoded.replace('+', "%20").replace('.', "%2E");
        // Clients of URLs walk up at `..`, however it is spelled.
        if zone_id == ".." {
            app.post("/zones", square(zone_id)).await.expect(200);
            continue;
        }
        assert_eq!(app.post("/zones", square(zone_id)).await.expect(200)["zone_id"], zone_id);
        assert_eq!(app.get(&format!("/zones/{encoded}")).await.expect(200)["zone_id"], zone_id);
        assert_eq!(app.get(&format!("/zones/{encoded}/with-users")).await.expect(200)["zone_id"], zone_id);
        let added = app.call(Method::POST, &format!("/users/{id}/zones/{encoded}/add"), None).await.expect(200);
        assert_eq!(added, json!({"message": format!("Added zone {zone_id} to user {id}"), "zones": [zone_id]}));
        assert_eq!(app.get(&format!("/users/by-zone/{encoded}")).await.expect(200)[0]["global_id"], 1);
        let removed = app.delete(&format!("/users/{id}/zones/{encoded}")).await.expect(200);
        assert_eq!(removed["message"], format!("Removed zone {zone_id} from user {id}"));
        app.put(&format!("/zones/{encoded}"), json!({"zone_name": "n"})).await.expect(200);
        let deleted = app.delete(&format!("/zones/{encoded}")).await.expect(200);
        assert_eq!(deleted["message"], format!("Zone {zone_id} deleted successfully"));
    }
    for path in ["/zones/%FF", "/users/by-zone/%C3%28"] {
        let answer = app.get(path).await;
        assert_fault(&answer, "value_error", json!(["path"]));
    }
    assert_eq!(app.get("/users/by-zone/%00").await.expect(200), json!([]));
    assert_eq!(app.get("/zones/%00").await.status.as_u16(), 404);
    assert_eq!(app.call(Method::POST, &format!("/users/{id}/zones/%00/add"), None).await.status.as_u16(), 404);
    assert_eq!(app.delete(&format!("/users/{id}/zones/%00")).await.status.as_u16(), 200);
    assert_eq!(app.put("/zones/%00", json!({})).await.status.as_u16(), 404);
}

async fn names_by_sql_are_served_as_stored(database: Database) {
    let app = start(&database).await;
    let long = "x".repeat(300);
    database
        .execute(&format!("INSERT INTO \"user\" (global_id, name) VALUES (1, ''), (2, 'a\tb\u{1}'), (3, '{long}')"))
        .await;
    let dict = app.get("/users-dict").await.expect(200);
    assert_eq!(dict, json!({"1": "", "2": "a\tb\u{1}", "3": long}));
    let users = app.get("/users").await.expect(200);
    assert_eq!((&users[0]["name"], &users[2]["name"]), (&json!(""), &json!(long)));
    assert_eq!((&users[0]["zone_ids"], &users[0]["updated_at"]), (&json!([]), &Value::Null));
    assert!(users[0]["created_at"].is_string());
    database.execute("UPDATE \"user\" SET name = 'Ann' WHERE global_id = 1").await;
    assert_eq!(app.get("/users/global/1").await.expect(200)["name"], "Ann");
    database.execute("DELETE FROM \"user\"").await;
    assert_eq!(app.get("/users-dict").await.text(), "{}");
}

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

/// Server-sent events, read as they come.
struct Events {
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: String,
}

impl Events {
    async fn open(app: &TestApp, path: &str, last_event_id: Option<&str>) -> Self {
        let mut request = app.client().get(app.url(path)).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { stream: Box::pin(response.bytes_stream()), buffer: String::new() }
    }

    /// (id, data); `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        tokio::time::timeout(PATIENCE, self.read_event()).await.expect("an event in time")
    }

    async fn read_event(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let parsed = field("id:").zip(field("data:"));
                let parsed = parsed.map(|(id, data)| (id.to_owned(), serde_json::from_str(data).expect("JSON")));
                self.buffer = rest.to_owned();
                match parsed {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = self.stream.next().await?;
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()?).expect("UTF-8"));
        }
    }
}

async fn dict_events_resume_by_last_event_id(database: Database) {
    let app = start(&database).await;
    create(&app, json!({"global_id": 1, "name": "Ann"})).await;
    let mut events = Events::open(&app, "/users-dict", None).await;
    let (id, first) = events.next().await.expect("an event");
    assert_eq!((&first["reset"], &first["set"], &first["version"]), (&json!(true), &json!({"1": "Ann"}), &json!(id)));
    create(&app, json!({"global_id": 2, "name": "Bob"})).await;
    let (second_id, second) = events.next().await.expect("an event");
    assert_eq!((&second["reset"], &second["set"]), (&json!(false), &json!({"2": "Bob"})));
    drop(events);
    database.execute("DELETE FROM \"user\" WHERE global_id = 1").await;
    let mut resumed = Events::open(&app, "/users-dict?since=garbage", Some(&second_id)).await;
    let (_, third) = resumed.next().await.expect("an event");
    assert_eq!((&third["reset"], &third["set"], &third["del"]), (&json!(false), &json!({}), &json!(["1"])));
    let mut old = Events::open(&app, &format!("/users-dict?since={id}"), None).await;
    let (_, missed) = old.next().await.expect("an event");
    assert_eq!((&missed["set"], &missed["del"]), (&json!({"2": "Bob"}), &json!(["1"])));
    let mut lost = Events::open(&app, "/users-dict", Some("unknown")).await;
    assert_eq!(lost.next().await.expect("an event").1["reset"], true);
}

async fn streams_and_long_polls_end_with_the_service(database: Database) {
    let app = start(&database).await;
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let mut events = Events::open(&app, "/users-dict", None).await;
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
