//! Alerts out of Kafka: each stored once and in order, whatever happens to the broker, the database and the
//! group. The client library's mock cluster speaks the protocol over TCP; what it cannot do is done with
//! an Apache Kafka.

mod across;
mod processes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::support::app::{TestApp, eventually};
use crate::support::backends::{Database, find_kafka};
use crate::support::kafka::{Mock, Topics, admin, list_alerts, numbered};
use crate::support::proxy::{Network, Proxy};
use crate::{on_both_engines, require_backend};

on_both_engines!(
    alerts_arrive_once_and_in_order,
    what_is_no_alert_becomes_a_dead_letter,
    a_restart_goes_on_where_the_log_ends,
    a_gap_and_a_new_topic_are_told_and_survived,
    a_service_does_not_wait_for_a_broker_that_refuses,
    a_service_does_not_wait_for_a_broker_that_is_silent,
    topics_that_appear_later_are_read,
    a_first_start_goes_on_where_the_group_was,
    who_is_fenced_gives_the_partition_up_and_takes_it_again_while_it_is_assigned,
    mostly_poison_raises_an_alarm_and_the_flow_goes_on,
);

/// Waits until the log holds that many and checks that each partition's are 0, 1, 2, …, once and in order.
async fn until_stored_once(app: &TestApp, partitions: i32, each: i64) {
    let expected = usize::try_from(i64::from(partitions) * each).expect("few");
    eventually("all alerts are stored", async || list_alerts(app).await.len() >= expected).await;
    let alerts = list_alerts(app).await;
    assert_in_order(alerts.iter().map(|stored| &stored["alert"]), partitions, each);
    let seqs: Vec<_> = alerts.iter().map(|alert| alert["seq"].as_i64().expect("a number")).collect();
    assert_eq!(seqs, (1..=i64::from(partitions) * each).collect::<Vec<_>>(), "seq is dense");
}

fn assert_in_order<'a>(alerts: impl Iterator<Item = &'a Value>, partitions: i32, each: i64) {
    let mut by_partition = BTreeMap::<i64, Vec<i64>>::new();
    for alert in alerts {
        let number = |key: &str| alert[key].as_i64().expect("a number");
        by_partition.entry(number("partition")).or_default().push(number("n"));
    }
    let expected = (0..i64::from(partitions)).map(|partition| (partition, (0..each).collect())).collect();
    assert_eq!(by_partition, expected);
}

async fn check(app: &TestApp) -> Value {
    app.get("/health").await.json()["checks"]["kafka"].clone()
}

/// Waits until `/health` says so of Kafka.
async fn until_kafka(app: &TestApp, state: &str, detail: &str) {
    let what = format!("Kafka is {state}: {detail}");
    eventually(&what, async || {
        let check = check(app).await;
        check["state"] == state && check["detail"].as_str().unwrap_or_default().contains(detail)
    })
    .await;
}

async fn metric(app: &TestApp, line: &str) -> i64 {
    let metrics = app.get("/metrics").await;
    let value = metrics.text().lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or(0)
}

/// In front of the database, for a network that fails.
async fn behind_proxy(mut database: Database) -> (Proxy, Database) {
    let (proxy, url) = Proxy::in_front_of(&database.url()).await;
    if let Database::Postgres(postgres) = &mut database {
        postgres.url = url;
    }
    (proxy, database)
}

async fn alerts_arrive_once_and_in_order(database: Database) {
    let mock = Mock::start(2);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let mut listener = app.listen("").await;
    mock.topics.send_numbered(2, 0..300).await;
    let mut heard = Vec::new();
    while heard.len() < 600 {
        heard.push(listener.next_json().await);
    }
    assert_in_order(heard.iter(), 2, 300);
    until_stored_once(&app, 2, 300).await;
    let recent = app.get("/messages/recent?limit=1000").await.expect(200);
    assert_in_order(recent["messages"].as_array().expect("a list").iter(), 2, 300);
    let first = &list_alerts(&app).await[0];
    assert!(first["source"].as_str().expect("text").starts_with("kafka:person_reid_alerts/"), "{first}");

    until_kafka(&app, "up", "").await;
    eventually("nothing is left to store", async || {
        check(&app).await["lag"] == json!({"person_reid_alerts/0": 0, "person_reid_alerts/1": 0})
    })
    .await;
    eventually("nothing waits", async || check(&app).await["oldest_unstored_seconds"] == 0.0).await;
    let health = app.get("/health").await.expect(200);
    assert_eq!((&health["kafka_running"], &health["messages_received"]), (&json!(true), &json!(600)), "{health}");
    let check = check(&app).await;
    assert_eq!(check["partitions_assigned"], 2);
    assert_eq!(check["seconds_since_last_alert_by_camera"].as_object().expect("an object").len(), 2);
    assert_eq!(metric(&app, r#"kafka_messages_total{partition="0",topic="person_reid_alerts"}"#).await, 300);
    // The broker is told too, for tools that show lag.
    eventually("the group's offsets are committed", async || {
        mock.topics.committed("person_reid_ui_consumers", 1) == Offset::Offset(300)
    })
    .await;
    app.stop().await.expect("an orderly stop");
}

async fn what_is_no_alert_becomes_a_dead_letter(database: Database) {
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(3 * 1024 * 1024));
    let bad: [(Option<&[u8]>, &str); 12] = [
        (Some(b""), "empty"),
        (None, "tombstone"),
        (Some(b"{\"a\":\"\xff\xfe\"}"), "UTF-8"),
        (Some(br#"{"iop":NaN}"#), "not JSON"),
        (Some(br#"{"iop":Infinity}"#), "not JSON"),
        (Some(br#"{"user_id":1,"#), "not JSON"),
        (Some(b"[1,2]"), "not an object"),
        (Some(br#""text""#), "not an object"),
        (Some(b"17"), "not an object"),
        (Some(b"null"), "not an object"),
        (Some(huge.as_bytes()), "ALERTS_MAX_BYTES"),
        (Some(deep.as_bytes()), "deeper"),
    ];
    let odd = [
        r#"{"iop":1e999}"#,
        r#"{"camera_id":[],"zone_id":{"a":null},"status":5,"timestamp":17,"user_id":true}"#,
        r#"{"status":"violation","status":"authorized"}"#,
        r#"{"n":12345678901234567890.10, "text":"\u0000\ud800", "timestamp":"-009999-01-01T00:00:00Z"}"#,
    ];
    for (index, (value, _)) in bad.iter().enumerate() {
        mock.topics.send(0, *value).await;
        if let Some(text) = odd.get(index) {
            mock.topics.send(0, Some(text.as_bytes())).await;
        }
    }
    mock.topics.send(0, Some(br#"{"last":true}"#)).await;

    // As text: 1e999 is more than the test's own JSON reader takes.
    eventually("the last alert is stored", async || app.get("/messages/recent").await.text().contains("\"last\""))
        .await;
    let recent = app.get("/messages/recent").await;
    assert!(recent.text().starts_with("{\"count\":5,"), "{}", recent.text());
    for text in odd {
        assert!(recent.text().contains(text), "{text} in {}", recent.text());
    }
    let rejected = app.get("/alerts/rejected?limit=100").await.expect(200)["rejected"].clone();
    let rejected = rejected.as_array().expect("a list");
    assert_eq!(rejected.len(), bad.len());
    for (letter, (value, reason)) in rejected.iter().zip(bad) {
        let value = value.unwrap_or_default();
        assert!(letter["reason"].as_str().expect("text").contains(reason), "{reason}: {}", letter["reason"]);
        assert_eq!(letter["size"], value.len());
        assert_eq!(letter["topic"], "person_reid_alerts");
        let kept = letter["raw_base64"].as_str().expect("text").len() * 3 / 4;
        assert!(kept.abs_diff(value.len().min(64 * 1024)) <= 2, "{kept} of {}", value.len());
    }
    assert_eq!(metric(&app, r#"alerts_rejected_total{reason="not_an_object",source="kafka"}"#).await, 4);
    assert_eq!(metric(&app, r#"alerts_rejected_total{reason="empty",source="kafka"}"#).await, 2);
    eventually("the dead letters are counted", async || check(&app).await["dead_letters"] == bad.len()).await;
}

async fn a_restart_goes_on_where_the_log_ends(database: Database) {
    let mock = Mock::start(2);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(2, 0..50).await;
    until_stored_once(&app, 2, 50).await;
    app.stop().await.expect("an orderly stop");
    mock.topics.send_numbered(2, 50..100).await;
    // To a group of another name the broker has nothing committed.
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[("KAFKA_GROUP_ID", "another")])).await;
    until_stored_once(&app, 2, 100).await;
    drop(app);
    // And for this one it is put back to the beginning.
    mock.topics.commit("third", &[(0, 0), (1, 0)]);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[("KAFKA_GROUP_ID", "third")])).await;
    mock.topics.send_numbered(2, 100..110).await;
    until_stored_once(&app, 2, 110).await;
}

async fn a_gap_and_a_new_topic_are_told_and_survived(database: Database) {
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(1, 0..3).await;
    until_stored_once(&app, 1, 3).await;
    app.stop().await.expect("an orderly stop");

    // The mock keeps 5 MiB of a partition.
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(900_000));
    for _ in 0..10 {
        mock.topics.send(0, Some(large.as_bytes())).await;
    }
    let (low, high) = mock.topics.watermarks(0);
    assert!(low > 3, "the broker deleted something that was not read");
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let count = usize::try_from(3 + high - low).expect("few");
    eventually("what is left is stored", async || list_alerts(&app).await.len() == count).await;
    assert_eq!(metric(&app, "kafka_gap_messages_total").await, low - 3);
    app.stop().await.expect("an orderly stop");

    let new = Mock::start(1);
    new.topics.send_numbered(1, 0..2).await;
    let app = TestApp::start_ready(&database, &new.topics.settings(&[])).await;
    eventually("the new topic's alerts are stored", async || list_alerts(&app).await.len() == count + 2).await;
    assert_eq!(metric(&app, r#"kafka_errors_total{kind="topic_recreated"}"#).await, 1);
    assert_eq!(metric(&app, "kafka_gap_messages_total").await, 0);
    new.topics.send_numbered(1, 2..4).await;
    eventually("the flow goes on", async || list_alerts(&app).await.len() == count + 4).await;
}

async fn a_service_does_not_wait_for_a_broker_that_refuses(database: Database) {
    comes_later(database, Network::Down).await;
}

async fn a_service_does_not_wait_for_a_broker_that_is_silent(database: Database) {
    comes_later(database, Network::Frozen).await;
}

async fn comes_later(database: Database, network: Network) {
    let mock = Mock::start(1);
    let proxy = Proxy::start(&mock.topics.servers).await;
    proxy.set(network);
    let address = proxy.address.to_string();
    let begun_at = Instant::now();
    let app = TestApp::start(&database, &mock.topics.settings(&[("KAFKA_BOOTSTRAP_SERVERS", &address)])).await;
    assert_eq!(app.get("/health/live").await.status, 200);
    assert!(begun_at.elapsed() < Duration::from_secs(1), "{:?}", begun_at.elapsed());
    app.until_ready().await;
    until_kafka(&app, "degraded", &format!("no broker of {address}")).await;
    let since = check(&app).await["since"].clone();
    app.post("/alerts", json!({"by": "http"})).await.expect(200);
    assert_eq!(check(&app).await["since"], since, "{network:?}");
    assert_eq!(app.get("/health/ready").await.status, 200);

    mock.topics.send_numbered(1, 0..5).await;
    proxy.set(Network::Works);
    eventually("the alerts are stored", async || list_alerts(&app).await.len() == 6).await;
    until_kafka(&app, "up", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_comes_back() {
    let database = Database::sqlite();
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(1, 0..5).await;
    until_stored_once(&app, 1, 5).await;
    mock.cluster.broker_down(-1).expect("the broker goes away");
    until_kafka(&app, "degraded", "no broker").await;
    mock.cluster.broker_up(-1).expect("the broker comes back");
    mock.topics.send_numbered(1, 5..10).await;
    until_stored_once(&app, 1, 10).await;
    until_kafka(&app, "up", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_freezes_is_noticed_and_used_again_when_it_thaws() {
    let database = Database::sqlite();
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(1, 0..5).await;
    until_stored_once(&app, 1, 5).await;
    mock.cluster.broker_round_trip_time(-1, Duration::from_secs(60)).expect("the broker is slow");
    until_kafka(&app, "degraded", "broker").await;
    let begun_at = Instant::now();
    assert_eq!(app.get("/health/ready").await.status, 200);
    assert!(begun_at.elapsed() < Duration::from_secs(1));
    mock.cluster.broker_round_trip_time(-1, Duration::ZERO).expect("the broker is quick");
    mock.topics.send_numbered(1, 5..10).await;
    until_stored_once(&app, 1, 10).await;
    until_kafka(&app, "up", "").await;
}

async fn topics_that_appear_later_are_read(database: Database) {
    let mock = Mock::start_without_topic();
    let topics = "person_reid_alerts, ^camera-.*";
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[("KAFKA_TOPIC", topics)])).await;
    until_kafka(&app, "degraded", "person_reid_alerts").await;
    mock.cluster.create_topic(&mock.topics.topic, 1, 1).expect("the topic is created");
    mock.topics.send_numbered(1, 0..3).await;
    until_stored_once(&app, 1, 3).await;
    until_kafka(&app, "up", "").await;
    mock.cluster.create_topic("camera-7", 1, 1).expect("the topic is created");
    let of_pattern = Topics::of(mock.topics.servers.clone(), "camera-7".to_owned());
    of_pattern.send(0, Some(br#"{"from":"pattern"}"#)).await;
    eventually("the other topic is read", async || list_alerts(&app).await.len() == 4).await;
    assert_eq!(list_alerts(&app).await[3]["source"], "kafka:camera-7/0/0");
}

async fn a_first_start_goes_on_where_the_group_was(database: Database) {
    let mock = Mock::start(2);
    mock.topics.send_numbered(2, 0..10).await;
    mock.topics.commit("python", &[(0, 7)]);
    // Partition 1 has nothing committed and is begun where the property says.
    let settings = [("KAFKA_GROUP_ID", "python"), ("KAFKA_PROPERTY_AUTO_OFFSET_RESET", "latest")];
    let app = TestApp::start_ready(&database, &mock.topics.settings(&settings)).await;
    eventually("both places are known", async || {
        check(&app).await["lag"].as_object().is_some_and(|lag| lag.len() == 2)
    })
    .await;
    mock.topics.send_numbered(2, 10..11).await;
    let numbers = async || -> Vec<(i64, i64)> {
        let alerts = list_alerts(&app).await;
        let number = |alert: &Value, key: &str| alert["alert"][key].as_i64().expect("a number");
        let mut numbers: Vec<_> = alerts.iter().map(|alert| (number(alert, "partition"), number(alert, "n"))).collect();
        numbers.sort_unstable();
        numbers
    };
    eventually("the new ones are stored", async || numbers().await.len() == 5).await;
    assert_eq!(numbers().await, [(0, 7), (0, 8), (0, 9), (0, 10), (1, 10)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_costs_nothing_and_pauses_the_consumer() {
    let database = require_backend!(Database::postgres().await);
    let (proxy, database) = behind_proxy(database).await;
    let mock = Mock::start(2);
    let settings = [("DATABASE_OPERATION_TIMEOUT_SECONDS", "1")];
    let app = TestApp::start_ready(&database, &mock.topics.settings(&settings)).await;
    mock.topics.send_numbered(2, 0..10).await;
    until_stored_once(&app, 2, 10).await;
    for (round, network) in [Network::Down, Network::Frozen].into_iter().enumerate() {
        proxy.set(network);
        let begin = 10 + 20_000 * i64::try_from(round).expect("small");
        mock.topics.send_numbered(2, begin..begin + 20_000).await;
        until_kafka(&app, "degraded", "waiting for the database").await;
        eventually("the consumer is paused", async || {
            let received = metric(&app, r#"kafka_messages_total{partition="0",topic="person_reid_alerts"}"#).await
                + metric(&app, r#"kafka_messages_total{partition="1",topic="person_reid_alerts"}"#).await;
            // Not all that there is; what is held is bounded.
            received - 2 * begin >= 20_000 && received - 2 * begin < 30_000
        })
        .await;
        eventually("the lag is known all the same", async || {
            check(&app).await["lag"] == json!({"person_reid_alerts/0": 20_000, "person_reid_alerts/1": 20_000})
        })
        .await;
        proxy.set(Network::Works);
        until_stored_once(&app, 2, begin + 20_000).await;
        until_kafka(&app, "up", "").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_whose_answer_was_lost_are_neither_lost_nor_doubled() {
    let database = require_backend!(Database::postgres().await);
    let (proxy, database) = behind_proxy(database).await;
    let mock = Mock::start(2);
    let settings = [("DATABASE_OPERATION_TIMEOUT_SECONDS", "0.2")];
    let app = TestApp::start_ready(&database, &mock.topics.settings(&settings)).await;
    mock.topics.send_numbered(2, 0..1).await;
    until_stored_once(&app, 2, 1).await;
    let mut sent = 1;
    // An append, or the question whether the one before it was stored.
    let lost = async || {
        let count = |operation| format!(r#"store_errors_total{{kind="deadline",operation="{operation}"}}"#);
        metric(&app, &count("append_alerts")).await + metric(&app, &count("list_positions")).await
    };
    for _ in 0..20 {
        let before = lost().await;
        proxy.set(Network::AnswersLost);
        mock.topics.send_numbered(2, sent..sent + 10).await;
        sent += 10;
        eventually("an answer was lost", async || lost().await > before).await;
        proxy.set(Network::Works);
        until_stored_once(&app, 2, sent).await;
    }
    assert_eq!(metric(&app, "kafka_fenced_total").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_service_takes_over() {
    takes_over("cooperative-sticky").await;
}

/// As operators may choose; the library then knows only whole assignments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_service_takes_over_where_the_group_rebalances_eagerly() {
    takes_over("range").await;
}

async fn takes_over(strategy: &str) {
    let database = require_backend!(Database::postgres().await);
    let mock = Mock::start(4);
    let strategy = [("KAFKA_PROPERTY_PARTITION_ASSIGNMENT_STRATEGY", strategy)];
    let first = TestApp::start_ready(&database, &mock.topics.settings(&strategy)).await;
    let second = TestApp::start_ready(&database, &mock.topics.settings(&strategy)).await;
    let assigned = async |app: &TestApp| check(app).await["partitions_assigned"].as_i64().unwrap_or(0);
    eventually("they share the partitions", async || assigned(&first).await == 2 && assigned(&second).await == 2).await;
    mock.topics.send_numbered(4, 0..200).await;
    let sending = mock.topics.send_numbered(4, 200..400);
    let aborting = async {
        eventually("the first stored some", async || {
            metric(&first, r#"alerts_accepted_total{source="kafka"}"#).await > 0
        })
        .await;
        first.state.lifecycle.abort();
    };
    tokio::join!(sending, aborting);
    until_stored_once(&second, 4, 400).await;
    eventually("the second has all", async || assigned(&second).await == 4).await;
}

async fn who_is_fenced_gives_the_partition_up_and_takes_it_again_while_it_is_assigned(database: Database) {
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(1, 0..5).await;
    until_stored_once(&app, 1, 5).await;
    // As another consumer's claim does.
    database.execute("UPDATE kafka_offset SET epoch = epoch + 1").await;
    mock.topics.send_numbered(1, 5..10).await;
    until_kafka(&app, "degraded", "another consumer").await;
    assert_eq!(metric(&app, "kafka_fenced_total").await, 1);
    until_stored_once(&app, 1, 10).await;
    until_kafka(&app, "up", "").await;
}

async fn mostly_poison_raises_an_alarm_and_the_flow_goes_on(database: Database) {
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    join_all((0..600).map(|_| mock.topics.send(0, Some(b"NaN")))).await;
    until_kafka(&app, "degraded", "/alerts/rejected").await;
    mock.topics.send_numbered(1, 0..1_000).await;
    until_stored_once(&app, 1, 1_000).await;
    until_kafka(&app, "up", "").await;
    eventually("the dead letters are counted", async || check(&app).await["dead_letters"] == 600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_property_that_is_wrong_is_named_and_stops_nothing_else() {
    let database = Database::sqlite();
    let mock = Mock::start(1);
    for (name, value) in [
        ("KAFKA_PROPERTY_FETCH_MIN_BITES", "1"),
        ("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "soon"),
        ("KAFKA_PROPERTY_AUTO_OFFSET_RESET", "whenever"),
    ] {
        let app = TestApp::start_ready(&database, &mock.topics.settings(&[(name, value)])).await;
        until_kafka(&app, "degraded", name).await;
        assert!(!check(&app).await["detail"].as_str().expect("text").contains(value));
        assert_eq!(app.get("/health/ready").await.status, 200);
        app.stop().await.expect("an orderly stop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_does_not_wait_for_a_frozen_broker() {
    let database = Database::sqlite();
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(1, 0..5).await;
    until_stored_once(&app, 1, 5).await;
    mock.cluster.broker_round_trip_time(-1, Duration::from_secs(60)).expect("the broker is slow");
    let begun_at = Instant::now();
    app.stop().await.expect("an orderly stop");
    assert!(begun_at.elapsed() < Duration::from_secs(8), "{:?}", begun_at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_does_not_wait_for_a_frozen_database_and_loses_nothing() {
    let database = require_backend!(Database::postgres().await);
    let (proxy, database) = behind_proxy(database).await;
    let mock = Mock::start(2);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    mock.topics.send_numbered(2, 0..5).await;
    until_stored_once(&app, 2, 5).await;
    proxy.set(Network::Frozen);
    mock.topics.send_numbered(2, 5..10).await;
    eventually("a batch is under way", async || {
        check(&app).await["oldest_unstored_seconds"].as_f64().unwrap_or(0.0) > 0.0
    })
    .await;
    let begun_at = Instant::now();
    app.stop().await.expect("an orderly stop");
    assert!(begun_at.elapsed() < Duration::from_secs(11), "{:?}", begun_at.elapsed());
    proxy.set(Network::Works);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    until_stored_once(&app, 2, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_kafka_from_end_to_end() {
    let servers = require_backend!(find_kafka());
    let database = require_backend!(Database::postgres().await);
    let topics = Topics::create(&servers, 2).await;
    let group = topics.topic.clone();
    let app = TestApp::start_ready(&database, &topics.settings(&[("KAFKA_GROUP_ID", &group)])).await;
    let mut listener = app.listen("").await;
    topics.send_numbered(2, 0..500).await;
    let mut heard = Vec::new();
    while heard.len() < 1_000 {
        heard.push(listener.next_json().await);
    }
    assert_in_order(heard.iter(), 2, 500);
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(5_000_000));
    topics.send(0, Some(large.as_bytes())).await;
    eventually("the large message is a dead letter", async || {
        let rejected = app.get("/alerts/rejected").await.expect(200);
        rejected["rejected"][0]["size"] == large.len()
    })
    .await;

    let more = NewPartitions::new(&topics.topic, 4);
    let created = admin(&servers).create_partitions([&more], &AdminOptions::new()).await.expect("the server answers");
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    eventually("the new partitions are assigned", async || check(&app).await["partitions_assigned"] == 4).await;
    topics.send_numbered(2, 500..510).await;
    // A producer of its own: the first one does not know them yet.
    let new = Topics::of(servers.clone(), topics.topic.clone());
    for partition in 2..4 {
        for n in 0..510 {
            new.send(partition, Some(numbered(partition, n).as_bytes())).await;
        }
    }
    until_stored_once(&app, 4, 510).await;
    app.stop().await.expect("an orderly stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_apache_kafka_deletes_under_a_waiting_consumer_is_counted() {
    let servers = require_backend!(find_kafka());
    let database = require_backend!(Database::postgres().await);
    let (proxy, database) = behind_proxy(database).await;
    let topics = Topics::create(&servers, 1).await;
    let group = topics.topic.clone();
    let settings = [("KAFKA_GROUP_ID", group.as_str()), ("KAFKA_PROPERTY_QUEUED_MIN_MESSAGES", "1")];
    let app = TestApp::start_ready(&database, &topics.settings(&settings)).await;
    topics.send_numbered(1, 0..5).await;
    until_stored_once(&app, 1, 5).await;
    proxy.set(Network::Down);
    topics.send_numbered(1, 5..60_000).await;
    eventually("the consumer is paused", async || metric(&app, &received(&topics.topic)).await > 20_000).await;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topics.topic, 0, Offset::Offset(59_000)).expect("an offset");
    admin(&servers).delete_records(&before, &AdminOptions::new()).await.expect("the records are deleted");
    proxy.set(Network::Works);
    topics.send_numbered(1, 60_000..60_010).await;
    eventually("the newest is stored", async || {
        let recent = app.get("/messages/recent?limit=1").await;
        recent.status == 200 && recent.json()["messages"][0]["n"] == 60_009
    })
    .await;
    let stored = i64::try_from(list_alerts(&app).await.len()).expect("few");
    let missed = metric(&app, "kafka_gap_messages_total").await;
    assert!(missed > 0);
    assert_eq!(stored + missed, 60_010);
}

fn received(topic: &str) -> String {
    format!(r#"kafka_messages_total{{partition="0",topic="{topic}"}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_come_and_go_lose_and_double_nothing() {
    let servers = require_backend!(find_kafka());
    let database = require_backend!(Database::postgres().await);
    let topics = Topics::create(&servers, 6).await;
    let group = topics.topic.clone();
    let settings = [("KAFKA_GROUP_ID", group.as_str())];
    let stays = TestApp::start_ready(&database, &topics.settings(&settings)).await;
    let sending = async {
        for hundred in 0..20 {
            topics.send_numbered(6, hundred * 100..(hundred + 1) * 100).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let storming = async {
        for round in 0..4 {
            let one = TestApp::start_ready(&database, &topics.settings(&settings)).await;
            let other = TestApp::start_ready(&database, &topics.settings(&settings)).await;
            eventually("they take part", async || {
                check(&one).await["partitions_assigned"].as_i64().unwrap_or(0) > 0
                    && check(&other).await["partitions_assigned"].as_i64().unwrap_or(0) > 0
            })
            .await;
            if round % 2 == 0 {
                one.state.lifecycle.abort();
            } else {
                one.stop().await.expect("an orderly stop");
            }
            other.stop().await.expect("an orderly stop");
        }
    };
    tokio::join!(sending, storming);
    until_stored_once(&stays, 6, 2_000).await;
}
