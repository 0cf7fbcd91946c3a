//! Appends to PostgreSQL that are made ahead of the one under way: kept where the log then ends as foretold,
//! repeated where it does not, and never a hole, a repeat or another order.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinHandle;
use unified_backend::alerts::AlertLog;
use unified_backend::alerts::log::AppendError;
use unified_backend::alerts::types::{AppendBatch, Appended, Direction, PartitionClaim};

use super::Store;
use super::alerts::{advance, alerts_of, letter, query, text_alert};
use crate::require_backend;
use crate::support::app::eventually;
use crate::support::backends::Database;

type Appending = JoinHandle<Result<Appended, AppendError>>;

/// One append that is held up in the middle by an operator's lock on its position.
struct HeldUp {
    store: Store,
    operator: tokio_postgres::Client,
    first: Appending,
}

impl HeldUp {
    async fn begin(database: &Database) -> Self {
        let store = Store::open(database).await;
        // From now on the process knows where the log ends.
        store.append(batch(1)).await;
        let claim = store.alerts.claim_partition("t", 0).await.expect("claimed");
        let operator = connect(database).await;
        operator.batch_execute("BEGIN; SELECT FROM kafka_offset FOR UPDATE").await.expect("locked");
        let first = begin(&store, AppendBatch { advances: vec![advance(0, claim, 10)], ..batch(3) });
        until_waiting(database, "transactionid").await;
        Self { store, operator, first }
    }

    /// One behind it, until it is made ahead and waits for it.
    async fn append_ahead(&self, database: &Database, batch: AppendBatch) -> Appending {
        let second = begin(&self.store, batch);
        until_waiting(database, "advisory").await;
        second
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

async fn until_waiting(database: &Database, event: &str) {
    let client = connect(database).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1";
    eventually(&format!("one waits for a lock of the kind {event}"), async || {
        client.query_one(sql, &[&event]).await.expect("an answer").get::<_, i64>(0) == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_is_committed_behind_the_one_before() {
    let database = &require_backend!(Database::postgres().await);
    let held_up = HeldUp::begin(database).await;
    let second = held_up.append_ahead(database, batch(2)).await;
    assert!(held_up.store.seqs(&query(Direction::After(1), 10)).await.is_empty(), "nothing is seen before its turn");
    held_up.release().await;
    let HeldUp { store, first, .. } = held_up;
    assert_eq!((end(first).await, end(second).await), (vec![Some(2), Some(3), Some(4)], vec![Some(5), Some(6)]));
    assert_eq!((count(&store, "kept"), count(&store, "repeated")), (1, 0));
    assert!(store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_of_one_that_fails_takes_its_numbers() {
    let database = &require_backend!(Database::postgres().await);
    let held_up = HeldUp::begin(database).await;
    let second = held_up.append_ahead(database, batch(2)).await;
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event = 'transactionid'";
    held_up.operator.query_one(sql, &[]).await.expect("the first is cut off");
    held_up.first.await.expect("no panic").expect_err("its connection is gone");
    assert_eq!(second.await.expect("no panic").expect("stored").seqs, [Some(2), Some(3)]);
    assert_eq!((count(&held_up.store, "kept"), count(&held_up.store, "repeated")), (0, 1));
    assert!(held_up.store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_by_a_former_holder_stores_nothing() {
    let database = &require_backend!(Database::postgres().await);
    let store = Store::open(database).await;
    let former = store.alerts.claim_partition("t", 7).await.expect("claimed");
    store.alerts.claim_partition("t", 7).await.expect("claimed");
    let void = AppendBatch { advances: vec![advance(7, former, 10)], ..batch(2) };
    let held_up = HeldUp::begin(database).await;
    let second = held_up.append_ahead(database, void.clone()).await;
    held_up.release().await;
    assert_eq!(end(held_up.first).await, [Some(2), Some(3), Some(4)]);
    match second.await.expect("no panic") {
        Err(AppendError::Fenced(fenced)) => assert_eq!(fenced, void.advances),
        other => panic!("{other:?}"),
    }
    assert!(held_up.store.seqs(&query(Direction::After(0), 10)).await.into_iter().eq(1..=4));
}

/// A row of another's is in the way, which its holder may insert only after us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_made_ahead_does_not_wait_for_the_numbers_of_others() {
    let database = &require_backend!(Database::postgres().await);
    let held_up = HeldUp::begin(database).await;
    let other = connect(database).await;
    other.batch_execute("BEGIN; INSERT INTO alert (seq, source, body) VALUES (6, 'other', '{}')").await.expect("held");
    let second = begin(&held_up.store, batch(2));
    eventually("it is given up", async || count(&held_up.store, "repeated") == 1).await;
    other.batch_execute("ROLLBACK").await.expect("gone");
    held_up.release().await;
    assert_eq!(
        (end(held_up.first).await, end(second).await),
        (vec![Some(2), Some(3), Some(4)], vec![Some(5), Some(6)])
    );
}

/// A consumer of one partition as the service has them: what it does not know the outcome of it looks up.
struct Lane {
    store: usize,
    log: Arc<dyn AlertLog>,
    partition: i32,
    claim: PartitionClaim,
}

impl Lane {
    /// Offsets that begin where its position is; some are no alerts, some name events.
    fn next_batch(&self) -> AppendBatch {
        let next = self.claim.next.unwrap_or(0);
        let mut random = rand::rng();
        let end = next + random.random_range(1..40);
        let (mut batch, names_events) = (AppendBatch::default(), random.random_bool(0.1));
        for offset in next..end {
            if random.random_bool(0.05) {
                batch.dead_letters.push(letter(self.partition, offset, b"x"));
            } else {
                let mut new = text_alert(&format!("{{\"lane\":{},\"offset\":{offset}}}", self.partition));
                new.alert.event_id = names_events.then(|| format!("{}/{offset}", self.partition).into());
                batch.alerts.push(new);
            }
        }
        batch.advances.push(advance(self.partition, self.claim, end));
        batch
    }

    async fn append(&mut self) -> bool {
        let batch = self.next_batch();
        if self.log.append(&batch).await.is_ok() {
            self.claim.next = Some(batch.advances[0].next);
            return true;
        }
        loop {
            if let Ok(positions) = self.log.list_positions().await {
                let mine = positions.iter().find(|(_, partition, _)| *partition == self.partition);
                self.claim = mine.expect("its position is kept").2;
                return false;
            }
        }
    }
}

/// Two lanes in each of two processes, one of them with pauses, while connections are cut and somebody follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_made_ahead_by_several_that_are_cut_off_leave_no_hole_and_no_double() {
    const APPENDS: usize = 300;
    // On a busy machine more would cut every append before it is done.
    const CUTS: u64 = 100;
    let database = &require_backend!(Database::postgres().await);
    let stores = [Store::open(database).await, Store::open(database).await];
    let mut lanes = Vec::new();
    for (partition, store) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let log = stores[store].alerts.clone();
        let claim = log.claim_partition("t", partition).await.expect("claimed");
        let mut lane = Lane { store, log, partition, claim };
        lanes.push(tokio::spawn(async move {
            let mut failed = 0;
            for _ in 0..APPENDS / (1 + 5 * lane.store) {
                let pause_ms = if lane.store == 0 { 0 } else { rand::rng().random_range(0..60) };
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                failed += usize::from(!lane.append().await);
            }
            (lane.claim.next.unwrap_or(0), failed)
        }));
    }
    let operator = connect(database).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND \
               pid <> pg_backend_pid() AND query LIKE '%append_alerts(%' ORDER BY random() LIMIT 1";
    let (mut cuts, mut followed) = (0, 0);
    while lanes.iter().any(|lane| !lane.is_finished()) {
        if cuts < CUTS {
            cuts += operator.execute(cut, &[]).await.expect("cut");
        }
        let next = "SELECT count(*), max(seq) FROM alert WHERE seq > $1";
        let row = operator.query_one(next, &[&followed]).await.expect("followed");
        let (count, last): (i64, Option<i64>) = (row.get(0), row.get(1));
        assert_eq!(followed + count, last.unwrap_or(followed), "a hole behind {followed}");
        followed += count;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut ends, mut failed) = (Vec::new(), 0);
    for lane in lanes {
        let (end, failures) = lane.await.expect("no panic");
        ends.push(end);
        failed += failures;
    }
    let sql = "SELECT (body::json->>'lane')::int, (body::json->>'offset')::bigint FROM alert ORDER BY seq";
    let alerts = operator.query(sql, &[]).await.expect("the alerts");
    let letters = operator.query("SELECT \"partition\", \"offset\" FROM dead_letter", &[]).await.expect("the letters");
    let offsets = |rows: &[tokio_postgres::Row], lane: i32| -> Vec<i64> {
        rows.iter().filter(|row| row.get::<_, i32>(0) == lane).map(|row| row.get(1)).collect()
    };
    for (lane, end) in (0..).zip(ends) {
        let mut stored = offsets(&alerts, lane);
        assert!(stored.is_sorted(), "lane {lane} is out of order");
        stored.extend(offsets(&letters, lane));
        stored.sort_unstable();
        assert!(stored.into_iter().eq(0..end), "lane {lane} up to {end}: one is missing or there twice");
    }
    let repeated: u64 = stores.iter().map(|store| count(store, "repeated")).sum();
    assert!(failed > 0 && repeated > 0, "nothing went wrong: {failed} failed, {repeated} repeated");
    let (store, kept) = (&stores[0], count(&stores[0], "kept"));
    eventually("appends are made ahead again once it is quiet", async || {
        for _ in 0..32 {
            let both = [begin(store, batch(1)), begin(store, batch(2))];
            for appending in both {
                end(appending).await;
            }
        }
        count(store, "kept") > kept
    })
    .await;
}
