//! Bugs that systems of this kind have had, planted behind the alert log's port: the checker must see each
//! of them, or its silence about the real thing would mean nothing. Each scenario also runs with nothing
//! planted, and then has no flaw.
//!
//! The stores are real, and so is the push, follower and sessions and all. The consumers are a model: what
//! the port sees of one, so that a crash or a freeze comes exactly where the bug is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use unified_backend::alerts::decode::{DecodeLimits, decode};
use unified_backend::alerts::types::{
    AlertColumns, AlertPage, AlertQuery, AppendBatch, Appended, DeadLetter, Direction, NewAlert, PartitionAdvance,
    PartitionClaim, Source, StoredAlert,
};
use unified_backend::alerts::{AlertLog, AppendError, Doorbell};
use unified_backend::config::Config;
use unified_backend::http;
use unified_backend::lifecycle::Lifecycle;
use unified_backend::push::Push;
use unified_backend::store_error::StoreError;
use unified_backend::telemetry::metrics::Metrics;
use unified_backend::time::Timestamp;

use super::ledger::{Flaw, Line, Screening, Sent, check_lanes, check_numbers, check_screen};
use super::load::line;
use crate::support::app::{PATIENCE, TestApp};
use crate::support::backends::Database;
use crate::support::kafka::list_alerts;
use crate::{on_both_engines, require_backend};

const LANE: &str = "camera";

on_both_engines!(a_position_stored_after_the_rows_is_caught, a_position_without_an_epoch_is_caught);

enum Plant {
    Nothing,
    /// Rows in one transaction, the position in another.
    PositionAfterRows,
    /// Whoever stores moves the position, and nobody asks whose it is.
    NoEpoch,
    /// A session is told that its replay is over while it is not.
    ShortPages,
    /// `WHERE id > last` over a sequence: numbers are given at the insert, rows are seen at the commit.
    SequenceCursor(tokio_postgres::Client),
}

/// The real log but for one bug.
struct Planted {
    real: Arc<dyn AlertLog>,
    plant: Plant,
    /// The process dies in its next append, as late as it can without being done.
    crashes: AtomicBool,
}

impl Planted {
    fn new(real: &Arc<dyn AlertLog>, plant: Plant) -> Arc<Self> {
        Arc::new(Self { real: real.clone(), plant, crashes: AtomicBool::new(false) })
    }

    fn crash(&self) -> Result<(), AppendError> {
        if self.crashes.swap(false, Ordering::SeqCst) {
            return Err(StoreError::unavailable_because("process", "killed").into());
        }
        Ok(())
    }
}

#[async_trait]
impl AlertLog for Planted {
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, AppendError> {
        let mut batch = batch.clone();
        match self.plant {
            Plant::PositionAfterRows => {
                let advances = std::mem::take(&mut batch.advances);
                let appended = self.real.append(&batch).await?;
                self.crash()?;
                self.real.append(&AppendBatch { advances, ..AppendBatch::default() }).await?;
                return Ok(appended);
            }
            Plant::NoEpoch => {
                let positions = self.real.list_positions().await?;
                for advance in &mut batch.advances {
                    let held = positions.iter().find(|(_, partition, _)| *partition == advance.partition);
                    let (_, _, held) = held.expect("it was claimed");
                    (advance.epoch, advance.expected_next) = (held.epoch, held.next);
                }
            }
            _ => {}
        }
        let appended = self.real.append(&batch).await?;
        self.crash()?;
        Ok(appended)
    }

    async fn list_alerts(&self, query: &AlertQuery) -> Result<AlertPage, StoreError> {
        if let (Plant::SequenceCursor(client), Direction::After(after)) = (&self.plant, query.direction) {
            let sql = "SELECT id, body FROM planted_alert WHERE id > $1 ORDER BY id";
            let rows = client.query(sql, &[&after]).await.expect("rows");
            let alert = |row: &tokio_postgres::Row| StoredAlert {
                seq: row.get(0),
                received_at: Timestamp::from_micros(0),
                occurred_at: None,
                source: "http".to_owned(),
                columns: AlertColumns::default(),
                user_name: None,
                body: row.get::<_, String>(1).into(),
            };
            return Ok(AlertPage { alerts: rows.iter().map(alert).collect(), is_cut: false });
        }
        let mut page = self.real.list_alerts(query).await?;
        if matches!(self.plant, Plant::ShortPages) {
            page.alerts.truncate(query.limit as usize / 2);
            page.is_cut = false;
        }
        Ok(page)
    }

    async fn last_seq(&self) -> Result<i64, StoreError> {
        let Plant::SequenceCursor(client) = &self.plant else { return self.real.last_seq().await };
        let sql = "SELECT coalesce(max(id), 0) FROM planted_alert";
        Ok(client.query_one(sql, &[]).await.expect("a row").get(0))
    }

    async fn claim_partition(&self, topic: &str, partition: i32) -> Result<PartitionClaim, StoreError> {
        self.real.claim_partition(topic, partition).await
    }

    async fn list_positions(&self) -> Result<Vec<(String, i32, PartitionClaim)>, StoreError> {
        self.real.list_positions().await
    }

    async fn list_dead_letters(&self, after: i64, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        self.real.list_dead_letters(after, limit).await
    }

    async fn find_dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        self.real.find_dead_letter(id).await
    }

    async fn resolve_dead_letter(&self, id: i64, alert: &NewAlert) -> Result<Option<Option<i64>>, StoreError> {
        self.real.resolve_dead_letter(id, alert).await
    }
}

/// What the log sees of a consumer: it takes a partition and stores what it read of it.
struct Consumer<'a> {
    log: &'a Planted,
    topic: Arc<str>,
    claim: PartitionClaim,
}

impl<'a> Consumer<'a> {
    /// Of a topic of its own in each scenario.
    async fn take(log: &'a Planted, topic: &str) -> Self {
        let claim = log.claim_partition(topic, 0).await.expect("claimed");
        Self { log, topic: topic.into(), claim }
    }

    /// Reads from its position on and stores, up to there.
    async fn store_until(&mut self, end: i64) -> Result<(), AppendError> {
        let begin = self.claim.next.unwrap_or(0);
        let alerts = (begin..end).map(|offset| self.alert(offset)).collect();
        let advance = PartitionAdvance {
            topic: self.topic.clone(),
            partition: 0,
            epoch: self.claim.epoch,
            expected_next: self.claim.next,
            next: end,
        };
        self.log.append(&AppendBatch { alerts, advances: vec![advance], ..AppendBatch::default() }).await?;
        self.claim.next = Some(end);
        Ok(())
    }

    fn alert(&self, offset: i64) -> NewAlert {
        let source = Source::Kafka { topic: self.topic.clone(), partition: 0, offset };
        new_alert(&self.topic, offset, source)
    }
}

fn new_alert(lane: &str, number: i64, source: Source) -> NewAlert {
    let limits = DecodeLimits { max_bytes: 1024, timezone: Config::from_settings(&[]).expect("valid").alerts.timezone };
    let text = json!({"lane": lane, "number": number}).to_string();
    NewAlert { alert: decode(Bytes::from(text), &limits).expect("an alert"), source }
}

/// What the log holds of one lane, and what is wrong with it.
async fn check(app: &TestApp, lane: &str, count: i64) -> Vec<Flaw> {
    let lines = log_lines(app).await;
    assert_eq!(check_numbers(&lines), []);
    check_lanes(&Sent::from([(lane.to_owned(), count)]), lines.iter().filter(|line| line.lane == lane))
}

async fn log_lines(app: &TestApp) -> Vec<Line> {
    let alerts = list_alerts(app).await;
    alerts.iter().map(|stored| line(stored["seq"].as_i64().expect("a number"), &stored["alert"])).collect()
}

async fn a_position_stored_after_the_rows_is_caught(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let doubled = Flaw::Doubled { lane: "planted".to_owned(), number: 10, seq: 51 };
    for (topic, plant, flaw) in [("real", Plant::Nothing, None), ("planted", Plant::PositionAfterRows, Some(doubled))] {
        let log = Planted::new(&app.state.log, plant);
        let mut first = Consumer::take(&log, topic).await;
        first.store_until(10).await.expect("stored");
        log.crashes.store(true, Ordering::SeqCst);
        first.store_until(20).await.expect_err("killed amid it");
        let mut second = Consumer::take(&log, topic).await;
        second.store_until(30).await.expect("stored");
        assert_eq!(check(&app, topic, 30).await.first(), flaw.as_ref(), "{topic}");
    }
}

async fn a_position_without_an_epoch_is_caught(database: Database) {
    let app = TestApp::start_ready(&database, &[]).await;
    let doubled = Flaw::Doubled { lane: "planted".to_owned(), number: 10, seq: 61 };
    for (topic, plant, flaw) in [("real", Plant::Nothing, None), ("planted", Plant::NoEpoch, Some(doubled))] {
        let log = Planted::new(&app.state.log, plant);
        let mut frozen = Consumer::take(&log, topic).await;
        frozen.store_until(10).await.expect("stored");
        let mut other = Consumer::take(&log, topic).await;
        other.store_until(20).await.expect("stored");
        other.store_until(30).await.expect("stored");
        // It wakes up and goes on where it was.
        let woken = frozen.store_until(20).await;
        assert_eq!(matches!(woken, Err(AppendError::Fenced(_))), flaw.is_none(), "{woken:?}");
        assert_eq!(check(&app, topic, 30).await.first(), flaw.as_ref(), "{topic}");
    }
}

/// The real push on a log, with one screen that was there from the beginning.
struct Shown {
    lifecycle: Lifecycle,
    socket: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
    seen: Vec<Line>,
}

impl Shown {
    async fn start(app: &TestApp, log: Arc<dyn AlertLog>) -> Self {
        let config = Config::from_settings(&[]).expect("valid");
        let (lifecycle, metrics) = (Lifecycle::new(), Arc::new(Metrics::new().expect("metrics")));
        let push = Push::start(log, Doorbell::default(), &config.alerts, &config.api, &lifecycle, metrics.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("ws://{}/ws/alerts?envelope=true&after=0", listener.local_addr().expect("bound"));
        let directory = app.state.directory.clone();
        let surface = http::Surface::new(push.router(), directory, &config.api, metrics.clone()).expect("a surface");
        let serving = http::serve(listener, surface, config.api, lifecycle.clone(), metrics);
        tokio::spawn(lifecycle.aborting().clone().run_until_cancelled_owned(serving));
        let (socket, _) = tokio_tungstenite::connect_async(url).await.expect("the WebSocket opens");
        Self { lifecycle, socket, seen: Vec::new() }
    }

    /// Until it was shown this one.
    async fn watch_until(&mut self, last: i64) {
        while self.seen.last().is_none_or(|line| line.seq != last) {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("it comes in time");
            if let Message::Text(text) = next.expect("the socket is open").expect("it works") {
                let shown: Value = serde_json::from_str(&text).expect("JSON");
                self.seen.push(line(shown["seq"].as_i64().expect("a number"), &shown["alert"]));
            }
        }
    }

    fn check(self, log: &[Line]) -> Vec<Flaw> {
        self.lifecycle.abort();
        check_screen(&Screening { name: "screen".to_owned(), after: Some(0), seen: self.seen }, log)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_the_live_feed_before_the_replay_is_over_is_caught() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    let store = async |numbers: std::ops::Range<i64>| {
        let alerts = numbers.map(|number| new_alert(LANE, number, Source::Http)).collect();
        app.state.log.append(&AppendBatch { alerts, ..AppendBatch::default() }).await.expect("stored");
    };
    store(0..2_000).await;
    for (plant, end) in [(Plant::Nothing, 2_001), (Plant::ShortPages, 2_002)] {
        let is_planted = matches!(plant, Plant::ShortPages);
        let mut shown = Shown::start(&app, Planted::new(&app.state.log, plant)).await;
        shown.watch_until(100).await;
        store(end - 1..end).await;
        shown.watch_until(end).await;
        let flaws = shown.check(&log_lines(&app).await);
        let missed = Flaw::Missed { screen: "screen".to_owned(), seq: 129 };
        assert_eq!(flaws.first(), is_planted.then_some(&missed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_a_sequence_is_caught() {
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[]).await;
    database.execute("CREATE TABLE planted_alert (id bigserial PRIMARY KEY, body text NOT NULL)").await;
    let Database::Postgres(postgres) = &database else { panic!("PostgreSQL") };
    let (mut slow, quick) = (postgres.connect().await, postgres.connect().await);
    let insert = |number: i64| {
        let text = json!({"lane": LANE, "number": number}).to_string();
        format!("INSERT INTO planted_alert (body) VALUES ('{text}')")
    };
    let log = Planted::new(&app.state.log, Plant::SequenceCursor(postgres.connect().await));
    let mut shown = Shown::start(&app, log).await;
    // Two append at the same time; the first that has a number is the last that commits.
    let transaction = slow.transaction().await.expect("a transaction");
    transaction.batch_execute(&insert(0)).await.expect("inserted");
    quick.batch_execute(&insert(1)).await.expect("inserted");
    shown.watch_until(2).await;
    transaction.commit().await.expect("committed");
    quick.batch_execute(&insert(2)).await.expect("inserted");
    shown.watch_until(3).await;
    let rows = quick.query("SELECT id, body FROM planted_alert ORDER BY id", &[]).await.expect("rows");
    let body = |row: &tokio_postgres::Row| serde_json::from_str::<Value>(row.get(1)).expect("JSON");
    let lines: Vec<Line> = rows.iter().map(|row| line(row.get(0), &body(row))).collect();
    assert_eq!(shown.check(&lines), [Flaw::Missed { screen: "screen".to_owned(), seq: 1 }]);
}
