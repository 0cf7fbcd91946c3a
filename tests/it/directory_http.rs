//! Users, zones and the users dict over HTTP: the words of the contract, on both engines.

mod bad_input;
mod dict;

use reqwest::Method;
use serde_json::{Value, json};

use crate::on_both_engines;
use crate::support::app::{Answer, TestApp};
use crate::support::backends::Database;

on_both_engines!(
    a_user_is_created_found_changed_and_deleted,
    a_user_shows_its_fields_in_order,
    parallel_creates_of_one_global_id_give_one_200,
    zone_id_and_zone_ids_mean_the_same,
    updated_at_moves_on_real_changes_only,
    zones_are_assigned_added_and_removed,
    adding_and_removing_in_parallel_loses_nothing,
    a_zone_is_created_found_changed_and_deleted,
    lists_come_in_order_and_in_pages,
    zones_with_users_and_statistics_agree,
    zone_ids_are_any_text_in_a_path,
    names_by_sql_are_served_as_stored,
    a_page_of_another_site_is_answered_as_a_program_is,
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
        assert_eq!(keys(fault).expect("an object"), ["type", "loc", "msg", "input"], "{fault}");
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
    for zone in ["C", "nowhere", "\0", "a\0b"] {
        let again = app.delete(&format!("{path}/{}", zone.replace('\0', "%00"))).await;
        let message = format!("User {id} doesn't have zone {zone}");
        assert_eq!(again.expect(200), json!({"message": message, "zones": ["A", "B"]}));
    }
    let nobody = app.delete("/users/999999/zones/%00").await.expect(404);
    assert_eq!(nobody["detail"], "User not found");
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
}

async fn adding_and_removing_in_parallel_loses_nothing(database: Database) {
    let zones: Vec<String> = (0..20).map(|number| format!("zone-{number:02}")).collect();
    let app = start_with_zones(&database, &zones.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let id = create(&app, json!({"global_id": 1, "name": "Ann"})).await["id"].clone();
    let path = format!("/users/{id}/zones");
    let held = async || {
        let user = app.get(&path).await.expect(200);
        let mut held: Vec<String> = serde_json::from_value(user["zone_ids"].clone()).expect("zones");
        held.sort();
        held
    };
    let add = async |zone: &String| app.call(Method::POST, &format!("{path}/{zone}/add"), None).await.expect(200);
    let remove = async |zone: &String| app.delete(&format!("{path}/{zone}")).await.expect(200);
    futures_util::future::join_all(zones[..10].iter().map(add)).await;
    assert_eq!(held().await, zones[..10], "every one that was added");
    let removing = futures_util::future::join_all(zones[..5].iter().map(remove));
    futures_util::future::join(removing, futures_util::future::join_all(zones[10..].iter().map(add))).await;
    assert_eq!(held().await, zones[5..], "all that were added, none that was removed");
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

/// Calls with an `Origin` take another way through the service.
async fn a_page_of_another_site_is_answered_as_a_program_is(database: Database) {
    let app = start_with_zones(&database, &["A", "B"]).await;
    let ann = create(&app, json!({"global_id": 1, "name": "Ann", "zone_ids": ["A"]})).await;
    let user = format!("/users/{}", ann["id"]);
    let ask = async |method: &Method, path: &str, body: &Option<Value>, is_page: bool| {
        let mut request = app.client().request(method.clone(), app.url(path));
        if let Some(body) = body {
            request = request.json(body);
        }
        if is_page {
            request = request.header("origin", "https://screens.example");
        }
        let answer = Answer::of(request.header("x-request-id", "the-same")).await;
        let shown = ["content-type", "etag", "x-total-count", "dict-version", "x-request-id"];
        (answer.status.as_u16(), shown.map(|name| answer.header(name).to_owned()), answer.text().to_owned())
    };
    // What changes nothing, or nothing the second time.
    for (method, path, body, status) in [
        (Method::GET, "/users?limit=1".to_owned(), None, 200),
        (Method::GET, user.clone(), None, 200),
        (Method::GET, "/users/global/1".to_owned(), None, 200),
        (Method::GET, "/users/global/one".to_owned(), None, 422),
        (Method::GET, "/users/by-zone/A".to_owned(), None, 200),
        (Method::GET, format!("{user}/zones"), None, 200),
        (Method::GET, "/users-dict".to_owned(), None, 200),
        (Method::GET, "/stats/users".to_owned(), None, 200),
        (Method::GET, "/stats/zones".to_owned(), None, 200),
        (Method::GET, "/zones".to_owned(), None, 200),
        (Method::GET, "/zones/A".to_owned(), None, 200),
        (Method::GET, "/zones/C".to_owned(), None, 404),
        (Method::GET, "/zones/A/with-users".to_owned(), None, 200),
        (Method::POST, "/users".to_owned(), Some(json!({"global_id": 1, "name": "Bob"})), 400),
        (Method::POST, "/users".to_owned(), Some(json!({"global_id": "x"})), 422),
        (Method::PUT, user.clone(), Some(json!({"name": "Ann"})), 200),
        (Method::DELETE, "/users/999".to_owned(), None, 404),
        (Method::POST, format!("{user}/zones/assign"), Some(json!({"zone_ids": ["A"]})), 200),
        (Method::POST, format!("{user}/zones/A/add"), None, 200),
        (Method::DELETE, format!("{user}/zones/B"), None, 200),
        (Method::POST, "/zones".to_owned(), Some(square("A")), 400),
        (Method::PUT, "/zones/A".to_owned(), Some(json!({"zone_name": "Zone A"})), 200),
        (Method::DELETE, "/zones/C".to_owned(), None, 404),
    ] {
        let (plain, page) = (ask(&method, &path, &body, false).await, ask(&method, &path, &body, true).await);
        assert_eq!(plain.0, status, "{method} {path}: {}", plain.2);
        assert_eq!(plain, page, "{method} {path}");
    }
}
