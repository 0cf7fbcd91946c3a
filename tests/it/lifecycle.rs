//! Start and stop, in this process. The real binary and its signals are in `cli.rs`.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::on_both_engines;
use crate::support::app::{PATIENCE, TestApp, eventually};
use crate::support::backends::Database;

on_both_engines!(a_stop_says_goodbye_to_everyone_and_ends_in_time, requests_under_way_are_finished);

async fn a_stop_says_goodbye_to_everyone_and_ends_in_time(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    app.post("/alerts", json!({ "a": 1 })).await.expect(200);
    let mut socket = app.listen("?envelope=true").await;
    assert_eq!(socket.next_json().await["seq"], 1);
    let mut streams = [app.follow("/alerts/stream", None).await, app.follow("/users-dict", None).await];
    for stream in &mut streams {
        stream.next().await.expect("an event");
    }
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    let poll = tokio::spawn(app.client().get(app.url(&format!("/users-dict?since={token}&wait=60"))).send());
    // While it holds the idle connection, another request needs a fifth.
    eventually("the long poll is under way", async || {
        app.get("/health/live").await;
        app.state.metrics.http_connections.get() >= 5
    })
    .await;
    let begin = Instant::now();
    let (stopped, ()) = tokio::join!(app.stop(), async {
        match socket.next().await {
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), 1001);
                assert_eq!(frame.reason.as_str(), "shutdown; last seq 1");
            }
            other => panic!("expected a close, got {other:?}"),
        }
        assert!(!matches!(socket.socket.next().await, Some(Ok(_))), "nothing after the close");
        let answer = poll.await.expect("the poll's task").expect("an answer").json::<serde_json::Value>().await;
        let answer = answer.expect("JSON");
        assert_eq!((&answer["reset"], &answer["set"], &answer["del"]), (&json!(false), &json!({}), &json!([])));
        for stream in &mut streams {
            assert_eq!(stream.next().await, None);
        }
    });
    stopped.expect("an orderly stop");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

async fn requests_under_way_are_finished(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let url = app.url("/users");
    let clients = (0..20_i64).map(|global_id| {
        let request = app.client().post(&url).json(&json!({ "global_id": global_id, "name": "n" }));
        tokio::spawn(request.send())
    });
    let clients: Vec<_> = clients.collect();
    eventually("they have arrived", async || app.state.metrics.http_connections.get() > 0).await;
    app.stop().await.expect("an orderly stop");
    let mut created = Vec::new();
    for (global_id, client) in clients.into_iter().enumerate() {
        // Whoever came too late was refused a connection, which is no answer; an answer is always whole.
        if let Ok(answer) = client.await.expect("the client's task") {
            assert_eq!(answer.status(), 200);
            created.push(global_id.to_string());
        }
    }
    let again = TestApp::start_ready(&database, &[]).await;
    let dict = again.get("/users-dict").await.expect(200);
    assert!(created.iter().all(|global_id| dict.get(global_id).is_some()), "{created:?} {dict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_services_live_in_one_process() {
    let databases: Vec<Database> = (0..10).map(|_| Database::sqlite()).collect();
    let mut apps = Vec::new();
    for database in &databases {
        apps.push(TestApp::start_ready(database, &[]).await);
    }
    for (number, app) in (0_i64..).zip(&apps) {
        app.post("/users", json!({ "global_id": number, "name": format!("of {number}") })).await.expect(200);
    }
    for (number, app) in apps.iter().enumerate() {
        assert_eq!(app.get("/users-dict").await.expect(200), json!({ number.to_string(): format!("of {number}") }));
        let metrics = app.get("/metrics").await;
        assert!(metrics.text().contains("directory_users 1\n"), "each has metrics of its own");
    }
    apps.remove(3).stop().await.expect("an orderly stop");
    assert_eq!(apps[3].get("/health/live").await.status, 200, "the others go on");
    futures_util::stream::iter(apps)
        .for_each_concurrent(None, async |app| app.stop().await.expect("an orderly stop"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settle_time_is_for_balancers() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("SHUTDOWN_SETTLE_SECONDS", "60")]).await;
    app.state.lifecycle.stop();
    eventually("not ready any more", async || app.get("/health/ready").await.status == 503).await;
    assert_eq!(app.get("/health/live").await.status, 200);
    assert_eq!(app.get("/users").await.status, 200, "connections are still accepted and served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_task_that_dies_takes_the_service_down_by_name() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    app.state.lifecycle.spawn_service("canary", async { panic!("no air") });
    let error = tokio::time::timeout(PATIENCE, app.ended()).await.expect("the service ends").expect_err("not in order");
    let told = format!("{error:#}");
    assert!(told.contains("canary") && told.contains("no air"), "{told}");
}
