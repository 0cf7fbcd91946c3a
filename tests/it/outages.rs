//! The database as it fails in the field. A reader gets the truth, or a 503 in time; nothing needs a
//! restart or a person afterwards. Redis' and Kafka's outages stand in `redis.rs` and `kafka.rs`.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;

use crate::support::app::{Answer, TestApp, eventually};
use crate::support::backends::Database;
use crate::support::cluster::Cluster;
use crate::support::proxy::{Network, Proxy};
use crate::{on_both_engines, require_backend};

on_both_engines!(what_a_constraint_refuses_costs_its_neighbours_nothing);

/// Much longer than the deadline of a read (0.5 s here), much shorter than any pause of a client.
const IN_TIME: Duration = Duration::from_secs(3);

const IMPATIENT: [(&str, &str); 2] =
    [("DIRECTORY_READ_DEADLINE_SECONDS", "0.5"), ("DATABASE_OPERATION_TIMEOUT_SECONDS", "1")];

/// A service whose database is behind a proxy.
async fn start_behind_proxy(database: &Database, settings: &[(&str, &str)]) -> (TestApp, Proxy) {
    let (proxy, url) = Proxy::in_front_of(&database.url()).await;
    let mut all = vec![("DATABASE_URL", url.as_str())];
    all.extend(IMPATIENT);
    all.extend_from_slice(settings);
    (TestApp::start_ready(database, &all).await, proxy)
}

async fn create_user(app: &TestApp, global_id: i64) -> Answer {
    app.post("/users", json!({ "global_id": global_id, "name": format!("person {global_id}") })).await
}

#[track_caller]
fn assert_unavailable(answer: &Answer) {
    let body = answer.expect(503);
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1));
    assert!(body["code"].as_str().is_some_and(|code| code.starts_with("database_")), "{body}");
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("database")), "{body}");
}

async fn until_it_reads(app: &TestApp) {
    eventually("reads are answered again", async || app.get("/users-dict").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_database_costs_a_503_in_time_and_heals_by_itself() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[]).await;
    create_user(&app, 1).await.expect(200);
    proxy.set(Network::Frozen);
    for _ in 0..3 {
        let begin = Instant::now();
        assert_unavailable(&app.get("/users-dict").await);
        assert_unavailable(&create_user(&app, 2).await);
        assert!(begin.elapsed() < 2 * IN_TIME, "{:?}", begin.elapsed());
    }
    eventually("readiness says so", async || app.get("/health/ready").await.status == 503).await;
    let health = app.get("/health").await.expect(200);
    assert_eq!(
        (health["status"].as_str(), health["checks"]["database"]["state"].as_str()),
        (Some("unhealthy"), Some("down"))
    );
    assert_eq!(app.get("/health/live").await.status, 200);
    proxy.set(Network::Works);
    until_it_reads(&app).await;
    eventually("readiness comes back", async || app.get("/health/ready").await.status == 200).await;
    create_user(&app, 3).await.expect(200);
    assert_eq!(app.get("/users-dict").await.expect(200)["3"], "person 3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_that_cannot_be_stored_are_answered_in_time_and_do_not_pile_up() {
    let database = require_backend!(Database::postgres().await);
    let limit = Duration::from_secs(3);
    let (app, proxy) = start_behind_proxy(&database, &[("DATABASE_OPERATION_TIMEOUT_SECONDS", "3")]).await;
    app.post("/alerts", json!({})).await.expect(200);
    proxy.set(Network::Frozen);
    // Each comes while the one before is being tried.
    let single = async |number: u32| {
        tokio::time::sleep(limit.mul_f64(0.4) * number).await;
        let begun_at = Instant::now();
        assert_unavailable(&app.post("/alerts", json!({ "number": number })).await);
        assert!(begun_at.elapsed() < limit.mul_f64(1.4), "{number}: {:?}", begun_at.elapsed());
    };
    futures_util::future::join_all((0..4).map(single)).await;

    let large = format!("[{}]", vec![format!("{{\"a\":\"{}\"}}", "x".repeat(1_000_000)); 15].join(","));
    let posting = (0..8).map(|_| async {
        let begun_at = Instant::now();
        let request = app.client().post(app.url("/alerts")).header("content-type", "application/json");
        let answer = Answer::of(request.body(large.clone())).await;
        assert_unavailable(&answer);
        (answer.json()["code"] == "database_unavailable", begun_at.elapsed())
    });
    let answers = futures_util::future::join_all(posting).await;
    // 64 MiB may wait: four of these, and those that come when the first were answered.
    assert!(answers.iter().any(|(is_refused, _)| *is_refused), "{answers:?}");

    proxy.set(Network::Works);
    eventually("alerts are stored again", async || app.post("/alerts", json!({})).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_silently_are_thrown_away() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[]).await;
    for round in 0..5 {
        create_user(&app, round).await.expect(200);
        let writes = (0..5).map(|writer| create_user(&app, 1_000 + round * 10 + writer));
        proxy.freeze_open_connections();
        for answer in futures_util::future::join_all(writes).await {
            assert!(matches!(answer.status.as_u16(), 200 | 503), "{}", answer.text());
        }
        until_it_reads(&app).await;
        eventually("writes work again", async || create_user(&app, 100 + round).await.status != 503).await;
    }
    let metrics = app.get("/metrics").await;
    assert!(metrics.text().contains("store_pool_discarded_total "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_costs_its_readers_a_reconnect_and_nothing_else() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[]).await;
    for round in 0..10 {
        proxy.cut();
        database.execute(&format!(r#"INSERT INTO "user" (global_id, name) VALUES ({round}, 'by SQL')"#)).await;
        eventually("the read comes through", async || app.get("/users-dict").await.status == 200).await;
        assert_eq!(app.get("/users-dict").await.expect(200)[round.to_string()], "by SQL");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_late_is_waited_for() {
    let database = require_backend!(Database::postgres().await);
    let (proxy, url) = Proxy::in_front_of(&database.url()).await;
    proxy.set(Network::Down);
    let begin = Instant::now();
    let settings = [IMPATIENT[0], IMPATIENT[1], ("DATABASE_URL", url.as_str())];
    let app = TestApp::start(&database, &settings).await;
    assert!(begin.elapsed() < IN_TIME);
    assert_unavailable(&app.get("/users").await);
    let stream = app.client().get(app.url("/users-dict")).header("accept", "text/event-stream");
    assert_unavailable(&Answer::of(stream).await);
    assert_unavailable(&app.get("/health/ready").await);
    eventually("/health says so", async || {
        let health = app.get("/health").await.expect(200);
        health["status"] == "unhealthy" && health["checks"]["database"]["detail"].is_string()
    })
    .await;
    assert_eq!(app.get("/health/live").await.status, 200);
    proxy.set(Network::Works);
    app.until_ready().await;
    until_it_reads(&app).await;
    assert_eq!(app.get("/health").await.expect(200)["status"], "healthy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_answers_are_given_only_where_allowed_and_are_marked() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[("DIRECTORY_STALE_IF_ERROR", "60")]).await;
    create_user(&app, 1).await.expect(200);
    assert_eq!(app.get("/users-dict").await.header("cache-status"), "");
    proxy.set(Network::Down);
    let stale = app.get("/users-dict").await;
    assert_eq!(stale.expect(200)["1"], "person 1");
    assert!(stale.header("age").parse::<u64>().is_ok());
    assert!(stale.header("cache-status").contains("stale-if-error"), "{:?}", stale.headers);
    assert!(app.get("/users/global/1").await.header("cache-status").contains("stale-if-error"));
    proxy.set(Network::Works);
    eventually("answers are validated again", async || {
        let answer = app.get("/users-dict").await;
        answer.status == 200 && answer.header("cache-status").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_somebody_locked_costs_its_writers_a_503_and_readers_nothing() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &IMPATIENT).await;
    create_user(&app, 1).await.expect(200);
    let Database::Postgres(postgres) = &database else { panic!("PostgreSQL") };
    let mut client = postgres.connect().await;
    let transaction = client.transaction().await.expect("a transaction");
    transaction.batch_execute(r#"LOCK TABLE "user" IN SHARE ROW EXCLUSIVE MODE"#).await.expect("locked");
    assert_unavailable(&create_user(&app, 2).await);
    assert_eq!(app.get("/users-dict").await.expect(200)["1"], "person 1");
    transaction.rollback().await.expect("unlocked");
    create_user(&app, 3).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_away_tear_no_transaction_and_poison_no_connection() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[]).await;
    proxy.set(Network::Slow(Duration::from_millis(3)));
    for global_id in 0..100_i64 {
        let body = json!({ "global_id": global_id, "name": "half" });
        let request = app.client().post(app.url("/users")).json(&body).send();
        // Somewhere between the first and the last step of the write.
        let gone = tokio::time::timeout(Duration::from_millis((global_id % 30).unsigned_abs()), request).await;
        drop(gone);
    }
    proxy.set(Network::Works);
    eventually("every write that was begun is finished or undone", async || {
        let Database::Postgres(postgres) = &database else { panic!("PostgreSQL") };
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
        postgres.connect().await.query_one(sql, &[]).await.expect("activity").get::<_, i64>(0) == 0
    })
    .await;
    for global_id in 1_000..1_020 {
        create_user(&app, global_id).await.expect(200);
    }
    let dict = app.get("/users-dict").await.expect(200);
    let uncached = app.get("/users-dict?use_cache=false").await.expect(200);
    assert_eq!(dict, uncached);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_that_were_acknowledged_are_there_once_whatever_the_network_did() {
    let database = require_backend!(Database::postgres().await);
    let (app, proxy) = start_behind_proxy(&database, &[]).await;
    let mut acknowledged = Vec::new();
    for number in 0..60_i64 {
        match number % 6 {
            1 => proxy.set(Network::AnswersLost),
            2 => proxy.freeze_open_connections(),
            4 => proxy.cut(),
            _ => proxy.set(Network::Works),
        }
        let answer = app.post("/alerts", json!({ "number": number })).await;
        if answer.status == 200 {
            acknowledged.push(number);
        } else {
            assert_unavailable(&answer);
        }
        proxy.set(Network::Works);
    }
    assert!(acknowledged.len() >= 20, "{acknowledged:?}");
    let mut page = json!(null);
    eventually("the log can be read", async || {
        let answer = app.get("/alerts?after=0&limit=1000").await;
        page = if answer.status == 200 { answer.json() } else { json!(null) };
        !page.is_null()
    })
    .await;
    let alerts = page["alerts"].as_array().expect("alerts");
    let seqs: Vec<i64> = alerts.iter().map(|alert| alert["seq"].as_i64().expect("seq")).collect();
    assert_eq!(seqs, (1..=alerts.len() as i64).collect::<Vec<_>>());
    for number in acknowledged {
        let times = alerts.iter().filter(|alert| alert["alert"]["number"] == number).count();
        assert_eq!(times, 1, "alert {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_database_is_noticed_and_everything_is_loaded_anew() {
    let cluster = require_backend!(Cluster::start());
    let app = TestApp::start_ready(&Database::sqlite(), &[("DATABASE_URL", &cluster.url())]).await;
    create_user(&app, 1).await.expect(200);
    let before = app.get("/users-dict").await;
    let token = before.header("dict-version").to_owned();
    cluster.crash();
    assert_unavailable(&app.get("/users-dict").await);
    cluster.resume();
    until_it_reads(&app).await;
    create_user(&app, 2).await.expect(200);
    let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
    assert_eq!((delta["reset"].as_bool(), &delta["set"]), (Some(true), &json!({ "1": "person 1", "2": "person 2" })));
    let after = app.get("/users-dict").await;
    assert_ne!(after.header("dict-version").split('.').next(), token.split('.').next(), "another epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_takes_over() {
    let primary = require_backend!(Cluster::start());
    let proxy = Proxy::start(&primary.address()).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address);
    let app = TestApp::start_ready(&Database::sqlite(), &[("DATABASE_URL", &url)]).await;
    create_user(&app, 1).await.expect(200);
    let standby = primary.standby();
    create_user(&app, 2).await.expect(200);
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    eventually("the standby has everything", async || {
        let (client, connection) =
            tokio_postgres::connect(&standby.url(), tokio_postgres::NoTls).await.expect("standby");
        tokio::spawn(connection);
        client.query_one(r#"SELECT count(*) FROM "user""#, &[]).await.expect("a count").get::<_, i64>(0) == 2
    })
    .await;
    // Before its promotion it is read-only: pointed at it, the service says so and lies to nobody.
    primary.crash();
    proxy.retarget(&standby.address());
    eventually("health names the standby", async || {
        let health = app.get("/health").await.expect(200);
        health["checks"]["database"]["detail"].as_str().is_some_and(|detail| detail.contains("standby"))
    })
    .await;
    assert_unavailable(&app.get("/users-dict").await);
    standby.promote();
    until_it_reads(&app).await;
    eventually("writes go to the new primary", async || create_user(&app, 3).await.status == 200).await;
    let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
    assert_eq!(delta["reset"], true);
    assert_eq!(delta["set"], json!({ "1": "person 1", "2": "person 2", "3": "person 3" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_restored_from_an_older_dump_is_what_counts() {
    let cluster = require_backend!(Cluster::start());
    let app = TestApp::start_ready(&Database::sqlite(), &[("DATABASE_URL", &cluster.url())]).await;
    create_user(&app, 1).await.expect(200);
    let dump = cluster.dump();
    create_user(&app, 2).await.expect(200);
    let later = app.get("/users-dict").await;
    assert_eq!(later.expect(200), json!({ "1": "person 1", "2": "person 2" }));
    cluster.restore(&dump);
    eventually("the restored content is served", async || {
        let answer = app.get("/users-dict").await;
        answer.status == 200 && answer.json() == json!({ "1": "person 1" })
    })
    .await;
    let token = later.header("dict-version");
    let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
    assert_eq!((delta["reset"].as_bool(), &delta["set"]), (Some(true), &json!({ "1": "person 1" })));
    create_user(&app, 3).await.expect(200);
    assert_eq!(app.get("/users-dict").await.expect(200), json!({ "1": "person 1", "3": "person 3" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_somebody_disabled_is_found_by_the_audit() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[("DIRECTORY_AUDIT_INTERVAL_SECONDS", "0.2")]).await;
    create_user(&app, 1).await.expect(200);
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    database.execute(r#"ALTER TABLE "user" DISABLE TRIGGER directory_log_update"#).await;
    database.execute(r#"UPDATE "user" SET name = 'unseen'"#).await;
    eventually("the audit repairs the replica", async || app.get("/users-dict").await.expect(200)["1"] == "unseen")
        .await;
    assert!(audits(&app, "different") >= 1);
    // What the log missed no token can be followed past.
    let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
    assert_eq!((delta["reset"].as_bool(), &delta["set"]), (Some(true), &json!({ "1": "unseen" })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_somebody_disabled_is_found_by_the_next_user_created_here() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[]).await;
    let other = TestApp::start_ready(&database, &[]).await;
    create_user(&app, 1).await.expect(200);
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    database.execute(r#"ALTER TABLE "user" DISABLE TRIGGER directory_log_insert"#).await;
    create_user(&app, 2).await.expect(200);
    let dict = json!({ "1": "person 1", "2": "person 2" });
    for app in [&app, &other] {
        assert_eq!(app.get("/users-dict").await.expect(200), dict);
        let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
        assert_eq!((delta["reset"].as_bool(), &delta["set"]), (Some(true), &dict));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_of_a_healthy_directory_finds_nothing() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[("DIRECTORY_AUDIT_INTERVAL_SECONDS", "0.1")]).await;
    for global_id in 0..50 {
        create_user(&app, global_id).await.expect(200);
    }
    eventually("it was audited", async || audits(&app, "equal") >= 2).await;
    assert_eq!(audits(&app, "different"), 0);
}

fn audits(app: &TestApp, result: &str) -> u64 {
    app.state.metrics.directory_audits.with_label_values(&[result]).get()
}

async fn what_a_constraint_refuses_costs_its_neighbours_nothing(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let constraints = match &database {
        Database::Postgres(_) => {
            r#"ALTER TABLE "user" ADD CHECK (global_id <> 17);
               ALTER TABLE user_zone_association ADD CHECK (zone_id <> 'closed')"#
        }
        // FAIL leaves what its statement did before.
        Database::Sqlite(_) => {
            r#"CREATE TRIGGER no_17 AFTER INSERT ON "user" WHEN NEW.global_id = 17
               BEGIN SELECT RAISE(FAIL, 'no 17'); END;
               CREATE TRIGGER closed BEFORE INSERT ON user_zone_association WHEN NEW.zone_id = 'closed'
               BEGIN SELECT RAISE(ABORT, 'closed'); END"#
        }
    };
    database.execute(constraints).await;
    database.execute("INSERT INTO working_zone (zone_id, zone_name) VALUES ('closed', 'Closed')").await;
    // Together and twice each: they end up in a few groups.
    let creating = (0..100_i64).map(|number| match number / 2 {
        18 => app.post("/users", json!({ "global_id": 18, "name": "person 18", "zone_ids": ["closed"] })).boxed(),
        global_id => create_user(&app, global_id).boxed(),
    });
    let mut statuses = std::collections::BTreeMap::<i64, Vec<u16>>::new();
    for (number, answer) in (0_i64..).zip(futures_util::future::join_all(creating).await) {
        statuses.entry(number / 2).or_default().push(answer.status.as_u16());
    }
    for (global_id, mut both) in statuses {
        both.sort_unstable();
        let is_refused = [17, 18].contains(&global_id);
        assert_eq!(both, if is_refused { [503, 503] } else { [200, 400] }, "global_id {global_id}");
    }
    assert_eq!(app.get("/users-dict").await.expect(200).as_object().map(serde_json::Map::len), Some(48));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_files_put_back_is_another_past() {
    let cluster = require_backend!(Cluster::start());
    let app = TestApp::start_ready(&Database::sqlite(), &[("DATABASE_URL", &cluster.url())]).await;
    create_user(&app, 1).await.expect(200);
    cluster.stop();
    cluster.copy_files();
    cluster.resume();
    eventually("users are created again", async || create_user(&app, 2).await.status == 200).await;
    let token = app.get("/users-dict").await.header("dict-version").to_owned();
    cluster.stop();
    cluster.put_copy_back();
    cluster.resume();
    until_it_reads(&app).await;
    assert_eq!(app.get("/users-dict").await.expect(200), json!({ "1": "person 1" }));
    create_user(&app, 3).await.expect(200);
    let delta = app.get(&format!("/users-dict?since={token}")).await.expect(200);
    assert_eq!((delta["reset"].as_bool(), &delta["set"]), (Some(true), &json!({ "1": "person 1", "3": "person 3" })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_subscription_applies_is_seen_by_the_next_read() {
    let cluster = require_backend!(Cluster::start());
    let app = TestApp::start_ready(&Database::sqlite(), &[("DATABASE_URL", &cluster.url())]).await;
    let connect = async |url: String| {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("PostgreSQL");
        tokio::spawn(connection);
        client
    };
    let target = connect(cluster.url()).await;
    target.batch_execute("CREATE DATABASE source").await.expect("a database");
    let source_url = format!("{}/source", cluster.url().trim_end_matches("/postgres"));
    let source = connect(source_url.clone()).await;
    let sql = r#"CREATE TABLE "user" (id bigint PRIMARY KEY, global_id bigint, name text);
        CREATE PUBLICATION people FOR TABLE "user";"#;
    source.batch_execute(sql).await.expect("a publication");
    source.batch_execute("SELECT pg_create_logical_replication_slot('people', 'pgoutput')").await.expect("a slot");
    let subscription = format!(
        "CREATE SUBSCRIPTION people CONNECTION '{source_url}' PUBLICATION people WITH (create_slot = false, copy_data = false)"
    );
    target.batch_execute(&subscription).await.expect("a subscription");
    let applied = async |name: &str| {
        let sql = r#"SELECT count(*) FROM "user" WHERE name = $1"#;
        eventually("the change is applied", async || {
            target.query_one(sql, &[&name]).await.expect("a count").get::<_, i64>(0) == 1
        })
        .await;
    };
    source.batch_execute(r#"INSERT INTO "user" VALUES (700, 7, 'sent')"#).await.expect("an insert");
    applied("sent").await;
    assert_eq!(app.get("/users-dict").await.expect(200), json!({ "7": "sent" }));
    source.batch_execute(r#"UPDATE "user" SET name = 'sent again'"#).await.expect("an update");
    applied("sent again").await;
    assert_eq!(app.get("/users-dict").await.expect(200), json!({ "7": "sent again" }));
    target.batch_execute("ALTER SUBSCRIPTION people DISABLE").await.expect("disabled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_table_of_the_same_name_swallows_nothing() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[]).await;
    create_user(&app, 1).await.expect(200);
    let sql =
        r#"CREATE TEMP TABLE directory_change (LIKE directory_change INCLUDING ALL); UPDATE "user" SET name = 'seen'"#;
    database.execute(sql).await;
    assert_eq!(app.get("/users-dict").await.expect(200)["1"], "seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_no_longer_than_any_request_may() {
    let settings = [
        ("DATABASE_URL", "postgres://u@127.0.0.1:1/x"),
        ("DIRECTORY_READ_DEADLINE_SECONDS", "60"),
        ("API_REQUEST_DEADLINE_SECONDS", "0.2"),
    ];
    let app = TestApp::start(&Database::sqlite(), &settings).await;
    let answer = tokio::time::timeout(Duration::from_secs(30), app.get("/users")).await.expect("an answer");
    answer.expect(503);
}
