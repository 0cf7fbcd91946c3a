//! Alerts that come by Kafka and those that come over HTTP are one log, on every instance.

use super::*;

on_both_engines!(an_event_id_names_an_alert_once_across_kafka_and_http);

async fn an_event_id_names_an_alert_once_across_kafka_and_http(database: Database) {
    let mock = Mock::start(1);
    let app = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let named = |name: &str, way: &str| json!({ "event_id": name, "way": way });
    let send = async |alert: Value| mock.topics.send(0, Some(alert.to_string().as_bytes())).await;
    let duplicates =
        async |source: &str| metric(&app, &format!("alerts_duplicates_total{{source=\"{source}\"}}")).await;

    send(named("first by Kafka", "Kafka")).await;
    eventually("it is stored", async || list_alerts(&app).await.len() == 1).await;
    let answer = app.post("/alerts", json!([named("first by Kafka", "HTTP"), named("first by HTTP", "HTTP")])).await;
    assert_eq!(answer.expect(200), json!({ "accepted": 1, "duplicates": 1, "rejected": [] }));
    send(named("first by HTTP", "Kafka")).await;
    send(named("last", "Kafka")).await;
    eventually("the last one is stored", async || list_alerts(&app).await.len() == 3).await;

    let alerts = list_alerts(&app).await;
    let stored = alerts.iter().map(|alert| (alert["seq"].clone(), alert["alert"].clone()));
    let expected = [("first by Kafka", "Kafka"), ("first by HTTP", "HTTP"), ("last", "Kafka")];
    let expected = (1..).zip(expected).map(|(seq, (name, way))| (json!(seq), named(name, way)));
    assert_eq!(stored.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!((duplicates("http").await, duplicates("kafka").await), (1, 1));
    let rejected = app.get("/alerts/rejected").await.expect(200);
    assert_eq!(rejected["rejected"], json!([]), "a duplicate is no dead letter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_shows_what_any_of_them_reads_from_kafka() {
    let database = require_backend!(Database::postgres().await);
    let mock = Mock::start(2);
    let one = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let two = TestApp::start_ready(&database, &mock.topics.settings(&[])).await;
    let (mut on_one, mut on_two) = (one.listen("").await, two.listen("").await);
    mock.topics.send_numbered(2, 0..100).await;
    let mut heard = [Vec::new(), Vec::new()];
    for _ in 0..200 {
        heard[0].push(on_one.next_json().await);
        heard[1].push(on_two.next_json().await);
    }
    assert_eq!(heard[0], heard[1]);
    assert_in_order(heard[0].iter(), 2, 100);
}
