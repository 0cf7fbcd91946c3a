//! Appends to PostgreSQL that are made ahead of the one under way: kept where the log then ends as foretold,
//! repeated where it does not, and never a hole, a repeat or another order.

use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinHandle;
use unified_backend::alerts::log::AppendError;
use unified_backend::alerts::types::{AppendBatch, Appended, Direction};

use super::Store;
use super::alerts::{advance, alerts_of, query, text_alert};
use crate::require_backend;
use crate::support::app::eventually;
use crate::support::backends::Database;

type Appending = JoinHandle<Result<Appended, AppendError>>;

/// One append that is held up in the middle by an operator's lock on its position, and one behind it that was
/// made ahead and waits for it.
struct HeldUp {
    store: Store,
    operator: tokio_postgres::Client,
    first: Appending,
    second: Appending,
}

impl HeldUp {
    async fn begin(database: &Database, second: AppendBatch) -> Self {
        let store = Store::open(database).await;
        // From now on the process knows where the log ends.
        store.append(batch(1)).await;
        let claim = store.alerts.claim_partition("t", 0).await.expect("claimed");
        let operator = connect(database).await;
        operator.batch_execute("BEGIN; SELECT FROM kafka_offset FOR UPDATE").await.expect("locked");
        let first = AppendBatch { advances: vec![advance(0, claim, 10)], ..batch(3) };
        let first = begin(&store, first);
        until_waiting(database, "transactionid", 1).await;
        let second = begin(&store, second);
        until_waiting(database, "advisory", 1).await;
        Self { store, operator, first, second }
    }

    async fn release(&self) {
        self.operator.batch_execute("COMMIT").await.expect("released");
    }
}

fn count(store: &Store, outcome: &str) -> u64 {
    store.metrics.alerts_appends_ahead.with_label_values(&[outcome]).get()
}

fn batch(count: usize) -> AppendBatch {
    alerts_of((0..count).map(|n| text_alert(&format!("{{\"n\":{n}}}"))))
}

fn begin(store: &Store, batch: AppendBatch) -> Appending {
    let log = store.alerts.clone();
    tokio::spawn(async move { log.append(&batch).await })
}

async fn end(appending: Appending) -> Vec<Option<i64>> {
    appending.await.expect("no panic").expect("stored").seqs
}

async fn connect(database: &Database) -> tokio_postgres::Client {
    match database {
        Database::Postgres(server) => server.connect().await,
        Database::Sqlite(_) => panic!("SQLite has no connections"),
    }
}

async fn until_waiting(database: &Database, event: &str, count: i64) {
    let client = connect(database).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1";
    eventually(&format!("{count} wait for a lock of the kind {event}"), async || {
        client.query_one(sql, &[&event]).await.expect("an answer").get::<_, i64>(0) == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_is_committed_behind_the_one_before() {
    let database = &require_backend!(Database::postgres().await);
    let held_up = HeldUp::begin(database, batch(2)).await;
    assert!(held_up.store.seqs(&query(Direction::After(1), 10)).await.is_empty(), "nothing is seen before its turn");
    held_up.release().await;
    let HeldUp { store, first, second, .. } = held_up;
    assert_eq!((end(first).await, end(second).await), (vec![Some(2), Some(3), Some(4)], vec![Some(5), Some(6)]));
    assert_eq!((count(&store, "kept"), count(&store, "repeated")), (1, 0));
    assert!(store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_of_one_that_fails_takes_its_numbers() {
    let database = &require_backend!(Database::postgres().await);
    let held_up = HeldUp::begin(database, batch(2)).await;
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'transactionid'";
    held_up.operator.query_one(sql, &[]).await.expect("the first is cut off");
    held_up.first.await.expect("no panic").expect_err("its connection is gone");
    assert_eq!(held_up.second.await.expect("no panic").expect("stored").seqs, [Some(2), Some(3)]);
    assert_eq!((count(&held_up.store, "kept"), count(&held_up.store, "repeated")), (0, 1));
    assert!(held_up.store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_by_a_former_holder_stores_nothing() {
    let database = &require_backend!(Database::postgres().await);
    let store = Store::open(database).await;
    let former = store.alerts.claim_partition("t", 7).await.expect("claimed");
    store.alerts.claim_partition("t", 7).await.expect("claimed");
    let second = AppendBatch { advances: vec![advance(7, former, 10)], ..batch(2) };
    let held_up = HeldUp::begin(database, second.clone()).await;
    held_up.release().await;
    assert_eq!(end(held_up.first).await, [Some(2), Some(3), Some(4)]);
    match held_up.second.await.expect("no panic") {
        Err(AppendError::Fenced(fenced)) => assert_eq!(fenced, second.advances),
        other => panic!("{other:?}"),
    }
    assert!(held_up.store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=4));
}

/// Two appends at a time in one process and some of another between them, while connections are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_made_ahead_by_several_that_are_cut_off_leave_no_hole_and_no_double() {
    const APPENDS: usize = 300;
    let database = &require_backend!(Database::postgres().await);
    let mut stores = Vec::new();
    for _ in 0..2 {
        stores.push(Store::open(database).await);
    }
    let lanes = [0, 0, 1].into_iter().enumerate().map(|(lane, store): (usize, usize)| {
        let log = stores[store].alerts.clone();
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for append in 0..APPENDS / (1 + 5 * store) {
                let pause_ms = if store == 0 { 0 } else { rand::rng().random_range(0..60) };
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                let count = rand::rng().random_range(1..40);
                let texts = (0..count).map(|n| text_alert(&format!("{{\"of\":\"{lane}/{append}\",\"n\":{n}}}")));
                let outcome = log.append(&alerts_of(texts)).await;
                outcomes.push((format!("{lane}/{append}"), count, outcome.map(|appended| appended.seqs)));
            }
            outcomes
        })
    });
    let lanes: Vec<_> = lanes.collect();
    let operator = connect(database).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND \
               pid <> pg_backend_pid() AND query LIKE '%append_alerts(%' ORDER BY random() LIMIT 1";
    while lanes.iter().any(|lane| !lane.is_finished()) {
        operator.execute(cut, &[]).await.expect("cut");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = connect(database).await;
    let rows = client.query("SELECT seq, body::json->>'of', (body::json->>'n')::int FROM alert ORDER BY seq", &[]);
    let rows: Vec<(i64, String, i32)> =
        rows.await.expect("rows").iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    assert!(rows.iter().map(|row| row.0).eq(1..=rows.len() as i64), "a hole");
    let (mut stored, mut failed) = (0, 0);
    for lane in lanes {
        for (name, count, outcome) in lane.await.expect("no panic") {
            let found: Vec<_> = rows.iter().filter(|(_, of, _)| *of == name).collect();
            match &outcome {
                Ok(seqs) => assert!(seqs.iter().copied().eq(found.iter().map(|row| Some(row.0))), "{name}: {seqs:?}"),
                // Nobody knows whether it was stored; all of it or nothing.
                Err(_) => failed += 1,
            }
            assert!(found.is_empty() && outcome.is_err() || found.iter().map(|row| row.2).eq(0..count), "{name}");
            assert!(found.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{name} is torn: {found:?}");
            stored += found.len();
        }
    }
    assert_eq!(stored, rows.len());
    let repeated: u64 = stores.iter().map(|store| count(store, "repeated")).sum();
    assert!(failed > 0 && repeated > 0, "nothing went wrong: {failed} failed, {repeated} repeated");
    let (store, kept) = (&stores[0], count(&stores[0], "kept"));
    eventually("appends are made ahead again once it is quiet", async || {
        let both = [begin(store, batch(1)), begin(store, batch(2))];
        for appending in both {
            end(appending).await;
        }
        count(store, "kept") > kept
    })
    .await;
}
