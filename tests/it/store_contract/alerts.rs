//! The alert log: dense numbers in commit order, each alert once, positions fenced, pages by index.

use bytes::Bytes;
use futures_util::future::join_all;
use unified_backend::alerts::log::AppendError;
use unified_backend::alerts::types::{
    AlertColumns, AlertFilter, AlertQuery, AppendBatch, DecodedAlert, Direction, NewAlert, NewDeadLetter,
    PartitionAdvance, PartitionClaim, Source, StoredAlert,
};
use unified_backend::time::Timestamp;

use super::{Store, owned};
use crate::on_both_engines;
use crate::require_backend;
use crate::support::app::eventually;
use crate::support::backends::{Database, PostgresDatabase};

on_both_engines!(
    alerts_are_numbered_from_one_in_their_order,
    an_alert_is_kept_byte_for_byte_with_its_columns,
    a_repeated_event_is_stored_once_and_leaves_no_hole,
    positions_move_with_the_rows,
    an_append_of_a_former_holder_stores_nothing,
    one_fenced_partition_refuses_the_whole_batch,
    dead_letters_are_kept_listed_and_resolved,
    the_log_is_read_in_both_directions_page_by_page,
    filters_are_alternatives_within_a_field_and_all_fields_must_match,
    a_page_ends_at_its_limits_and_says_whether_there_is_more,
    a_window_of_time_has_its_beginning_and_not_its_end,
    concurrent_appends_leave_no_hole_and_no_double,
    a_batch_that_cannot_be_stored_leaves_nothing_and_hurts_nobody,
    an_empty_batch_is_no_error,
);

pub fn text_alert(body: &str) -> NewAlert {
    let alert = DecodedAlert {
        body: Bytes::copy_from_slice(body.as_bytes()),
        event_id: None,
        occurred_at: None,
        columns: AlertColumns::default(),
        user_name: None,
    };
    NewAlert { alert, source: Source::Http }
}

fn event(event_id: &str) -> NewAlert {
    let mut new = text_alert(&format!("{{\"event_id\":\"{event_id}\"}}"));
    new.alert.event_id = Some(event_id.into());
    new
}

/// zone, user, status, camera; empty: none.
fn filed(columns: [&str; 4], occurred_at: i64) -> NewAlert {
    let mut new = text_alert("{}");
    let column = |text: &str| (!text.is_empty()).then(|| text.into());
    let [zone_id, user_id, status, camera_id] = columns.map(column);
    new.alert.columns = AlertColumns { zone_id, user_id, status, camera_id };
    new.alert.occurred_at = Some(Timestamp::from_micros(occurred_at));
    new
}

pub fn alerts_of(alerts: impl IntoIterator<Item = NewAlert>) -> AppendBatch {
    AppendBatch { alerts: alerts.into_iter().collect(), ..AppendBatch::default() }
}

pub fn query(direction: Direction, limit: u32) -> AlertQuery {
    AlertQuery { direction, limit, max_bytes: 1 << 20, filter: AlertFilter::default(), from: None, to: None }
}

pub fn advance(partition: i32, claim: PartitionClaim, next: i64) -> PartitionAdvance {
    PartitionAdvance { topic: "t".into(), partition, epoch: claim.epoch, expected_next: claim.next, next }
}

pub fn letter(partition: i32, offset: i64, raw: &[u8]) -> NewDeadLetter {
    let reason = "not JSON: ☹".to_owned();
    let size = 70_000;
    NewDeadLetter { topic: "t".into(), partition, offset, reason, size, raw: Bytes::copy_from_slice(raw) }
}

impl Store {
    pub async fn append(&self, batch: AppendBatch) -> Vec<Option<i64>> {
        self.alerts.append(&batch).await.expect("it is stored").seqs
    }

    async fn list(&self, query: &AlertQuery) -> Vec<StoredAlert> {
        self.alerts.list_alerts(query).await.expect("the log answers").alerts
    }

    pub async fn seqs(&self, query: &AlertQuery) -> Vec<i64> {
        self.list(query).await.iter().map(|alert| alert.seq).collect()
    }
}

async fn alerts_are_numbered_from_one_in_their_order(database: Database) {
    let store = Store::open(&database).await;
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 0);
    assert!(store.list(&query(Direction::After(0), 10)).await.is_empty());
    let bodies = ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"];
    assert_eq!(store.append(alerts_of(bodies[..2].iter().map(|body| text_alert(body)))).await, [Some(1), Some(2)]);
    assert_eq!(store.append(alerts_of([text_alert(bodies[2])])).await, [Some(3)]);
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 3);
    let stored = store.list(&query(Direction::After(0), 10)).await;
    assert!(stored.iter().map(|alert| &alert.body[..]).eq(bodies.iter().map(|body| body.as_bytes())));
    assert!(stored.is_sorted_by_key(|alert| alert.received_at));
}

async fn an_alert_is_kept_byte_for_byte_with_its_columns(database: Database) {
    let store = Store::open(&database).await;
    let body = "{ \"z\" : 1.0, \"a\":12345678901234567890,\"e\":1e999,\n\t\"name\":\"🧑‍🚀 \\u0000 \\ud83d\", \"z\":2 }";
    let mut first = filed(["дверь 🚪", "7", "violation", "12"], -62_135_596_800_000_000);
    first.alert.body = Bytes::from_static(body.as_bytes());
    first.alert.user_name = Some("Ада 🧑‍🚀".into());
    first.source = Source::Kafka { topic: "person_reid_alerts".into(), partition: 2, offset: i64::MAX };
    let before = Timestamp::now().as_micros();
    store.append(alerts_of([first.clone(), text_alert("{}")])).await;
    let [stored, bare] = store.list(&query(Direction::After(0), 10)).await.try_into().expect("two");
    assert_eq!(stored.body, body.as_bytes());
    assert_eq!(stored.columns, first.alert.columns);
    assert_eq!((stored.occurred_at, stored.user_name), (first.alert.occurred_at, first.alert.user_name));
    assert_eq!(stored.source, format!("kafka:person_reid_alerts/2/{}", i64::MAX));
    // The server's clock is not ours, but it is the same machine's or near.
    assert!((stored.received_at.as_micros() - before).abs() < 60_000_000);
    assert_eq!((bare.occurred_at, bare.user_name, bare.columns), (None, None, AlertColumns::default()));
    assert_eq!(bare.source, "http");
}

async fn a_repeated_event_is_stored_once_and_leaves_no_hole(database: Database) {
    let store = Store::open(&database).await;
    let batch = alerts_of([event("a"), text_alert("{}"), event("a"), event("b"), text_alert("{}")]);
    assert_eq!(store.append(batch).await, [Some(1), Some(2), None, Some(3), Some(4)]);
    let batch = alerts_of([event("b"), event("c"), event("a"), event("A")]);
    assert_eq!(store.append(batch).await, [None, Some(5), None, Some(6)]);
    assert_eq!(store.append(alerts_of([event("a"), event("b")])).await, [None, None]);
    assert_eq!(store.append(alerts_of([text_alert("{}")])).await, [Some(7)]);
    assert_eq!(store.seqs(&query(Direction::After(0), 100)).await, [1, 2, 3, 4, 5, 6, 7]);
}

async fn positions_move_with_the_rows(database: Database) {
    let store = Store::open(&database).await;
    assert!(store.alerts.list_positions().await.expect("the log answers").is_empty());
    let claim = store.alerts.claim_partition("t", 0).await.expect("claimed");
    assert_eq!(claim, PartitionClaim { epoch: 1, next: None });
    let batch = AppendBatch { advances: vec![advance(0, claim, 41)], ..alerts_of([text_alert("{}")]) };
    assert_eq!(store.append(batch.clone()).await, [Some(1)]);
    // The same batch again, as after an unknown outcome: its position has moved already.
    let error = store.alerts.append(&batch).await.expect_err("the position moved");
    assert!(matches!(error, AppendError::Fenced(_)), "{error}");
    let again = store.alerts.claim_partition("t", 0).await.expect("claimed");
    assert_eq!(again, PartitionClaim { epoch: 2, next: Some(41) });
    let other = store.alerts.claim_partition("s", 9).await.expect("claimed");
    let only_moves = AppendBatch { advances: vec![advance(0, again, 50)], ..AppendBatch::default() };
    assert!(store.append(only_moves).await.is_empty());
    let positions = store.alerts.list_positions().await.expect("the log answers");
    let moved = PartitionClaim { epoch: 2, next: Some(50) };
    assert_eq!(positions, [("s".to_owned(), 9, other), ("t".to_owned(), 0, moved)]);
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 1);
}

async fn an_append_of_a_former_holder_stores_nothing(database: Database) {
    let store = Store::open(&database).await;
    let former = store.alerts.claim_partition("t", 0).await.expect("claimed");
    let holder = store.alerts.claim_partition("t", 0).await.expect("claimed");
    let never_claimed = PartitionClaim { epoch: 1, next: None };
    let wrong_position = PartitionClaim { next: Some(3), ..holder };
    for (partition, claim) in [(0, former), (0, wrong_position), (1, never_claimed)] {
        let mut batch = alerts_of([event("e")]);
        batch.dead_letters.push(letter(3, 1, b"x"));
        batch.advances.push(advance(partition, claim, 10));
        match store.alerts.append(&batch).await {
            Err(AppendError::Fenced(fenced)) => assert_eq!(fenced, batch.advances),
            other => panic!("{claim:?}: {other:?}"),
        }
    }
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 0);
    assert!(store.alerts.list_dead_letters(0, 10).await.expect("the log answers").is_empty());
    let batch = AppendBatch { advances: vec![advance(0, holder, 10)], ..alerts_of([event("e")]) };
    assert_eq!(store.append(batch).await, [Some(1)]);
}

async fn one_fenced_partition_refuses_the_whole_batch(database: Database) {
    let store = Store::open(&database).await;
    let (good, bad) = (
        store.alerts.claim_partition("t", 0).await.expect("claimed"),
        store.alerts.claim_partition("t", 1).await.expect("claimed"),
    );
    store.alerts.claim_partition("t", 1).await.expect("claimed");
    let batch =
        AppendBatch { advances: vec![advance(0, good, 5), advance(1, bad, 6)], ..alerts_of([text_alert("{}")]) };
    match store.alerts.append(&batch).await {
        Err(AppendError::Fenced(fenced)) => assert_eq!(fenced, batch.advances[1..]),
        other => panic!("{other:?}"),
    }
    let positions = store.alerts.list_positions().await.expect("the log answers");
    assert!(positions.iter().all(|(_, _, claim)| claim.next.is_none()), "{positions:?}");
    let batch = AppendBatch { advances: vec![advance(0, good, 5)], ..alerts_of([text_alert("{}")]) };
    assert_eq!(store.append(batch).await, [Some(1)]);
}

async fn dead_letters_are_kept_listed_and_resolved(database: Database) {
    let store = Store::open(&database).await;
    let raw = [0, 255, b'{', 0];
    let dead_letters = vec![letter(3, 10, &raw), letter(3, 11, b""), letter(3, 12, b"twelve")];
    store.append(AppendBatch { dead_letters, ..alerts_of([event("known")]) }).await;
    let all = store.alerts.list_dead_letters(0, 10).await.expect("the log answers");
    assert_eq!(all.iter().map(|letter| letter.offset).collect::<Vec<_>>(), [10, 11, 12]);
    let first = &all[0];
    assert_eq!((&*first.topic, first.partition, &*first.reason), ("t", 3, "not JSON: ☹"));
    assert_eq!((first.size, &first.raw[..]), (70_000, &raw[..]));
    let rest = store.alerts.list_dead_letters(first.id, 1).await.expect("the log answers");
    assert_eq!(rest, all[1..2]);
    let found = store.alerts.find_dead_letter(first.id).await.expect("the log answers");
    assert_eq!(found.as_ref(), Some(first));

    let resolve =
        async |id: i64, alert: NewAlert| store.alerts.resolve_dead_letter(id, &alert).await.expect("the log answers");
    assert_eq!(resolve(first.id, event("mended")).await, Some(Some(2)));
    assert_eq!(resolve(first.id, event("mended again")).await, None);
    assert_eq!(store.alerts.find_dead_letter(first.id).await.expect("the log answers"), None);
    assert_eq!(resolve(all[1].id, event("known")).await, Some(None));
    assert_eq!(store.alerts.list_dead_letters(0, 10).await.expect("the log answers"), all[2..]);
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 2);
    assert_eq!(resolve(all[2].id, text_alert("{}")).await, Some(Some(3)));
    store.append(AppendBatch { dead_letters: vec![letter(3, 13, b"x")], ..AppendBatch::default() }).await;
    let last = store.alerts.list_dead_letters(0, 10).await.expect("the log answers");
    assert!(last[0].id > all[2].id, "an id was given again");
}

async fn the_log_is_read_in_both_directions_page_by_page(database: Database) {
    let store = Store::open(&database).await;
    store.append(alerts_of((0..10).map(|_| text_alert("{}")))).await;
    assert_eq!(store.seqs(&query(Direction::After(0), 4)).await, [1, 2, 3, 4]);
    assert_eq!(store.seqs(&query(Direction::After(8), 4)).await, [9, 10]);
    assert!(store.seqs(&query(Direction::After(10), 4)).await.is_empty());
    assert_eq!(store.seqs(&query(Direction::After(-5), 2)).await, [1, 2]);
    assert_eq!(store.seqs(&query(Direction::Before(i64::MAX), 4)).await, [10, 9, 8, 7]);
    assert_eq!(store.seqs(&query(Direction::Before(3), 4)).await, [2, 1]);
    assert!(store.seqs(&query(Direction::Before(1), 4)).await.is_empty());
}

async fn filters_are_alternatives_within_a_field_and_all_fields_must_match(database: Database) {
    let store = Store::open(&database).await;
    let mut filings = Vec::new();
    for turn in 0_usize..240 {
        let pick = |values: [&'static str; 4], step: usize| values[turn / step % 4];
        filings.push([
            pick(["1", "2", "Дом", ""], 1),
            pick(["10", "20", "", "30"], 2),
            pick(["violation", "authorized", "incomplete", ""], 3),
            pick(["c1", "", "c2", "c3"], 5),
        ]);
    }
    store.append(alerts_of(filings.iter().map(|columns| filed(*columns, 0)))).await;
    let filters: Vec<[&[&str]; 4]> = vec![
        [&["1"], &[], &[], &[]],
        [&[], &["20"], &[], &[]],
        [&[], &[], &["violation"], &[]],
        [&[], &[], &[], &["c3"]],
        [&["1", "Дом", "none", "1"], &[], &[], &[]],
        [&[], &["10", "30"], &[], &[]],
        [&[], &[], &["violation", "incomplete"], &[]],
        [&[], &[], &[], &["c1", "c2", "c3"]],
        [&["1", "2"], &["10"], &[], &[]],
        [&["2"], &[], &["authorized", "incomplete"], &["c1", "c2"]],
        [&["1", "2"], &["10", "20"], &["violation", "authorized"], &["c1", "c3"]],
        [&["absent"], &[], &[], &[]],
    ];
    for [zones, users, statuses, cameras] in filters {
        let filter = AlertFilter {
            zone_ids: owned(zones),
            user_ids: owned(users),
            statuses: owned(statuses),
            camera_ids: owned(cameras),
        };
        let all = store.list(&query(Direction::After(0), 1000)).await;
        let mut expected: Vec<i64> =
            all.iter().filter(|alert| filter.matches(&alert.columns)).map(|alert| alert.seq).collect();
        let mut asked = query(Direction::After(40), 7);
        asked.filter = filter.clone();
        let page: Vec<i64> = expected.iter().copied().filter(|seq| *seq > 40).take(7).collect();
        assert_eq!(store.seqs(&asked).await, page, "{filter:?}");
        expected.reverse();
        asked.direction = Direction::Before(200);
        let page: Vec<i64> = expected.into_iter().filter(|seq| *seq < 200).take(7).collect();
        assert_eq!(store.seqs(&asked).await, page, "{filter:?}");
    }
}

async fn a_page_ends_at_its_limits_and_says_whether_there_is_more(database: Database) {
    let store = Store::open(&database).await;
    let body = Bytes::from(format!("{{\"a\":\"{}\"}}", "é".repeat(496)));
    assert_eq!(body.len(), 1000);
    let alerts = [10, 20, 30, 40, 50].map(|time| {
        let mut new = filed([if time == 30 { "1" } else { "2" }, "", "", ""], time);
        new.alert.body = body.clone();
        new
    });
    store.append(alerts_of(alerts)).await;
    let zones = |zones: &[&str]| AlertFilter {
        zone_ids: zones.iter().map(|zone| (*zone).to_owned()).collect(),
        ..AlertFilter::default()
    };
    let window = Some(Timestamp::from_micros(0)).zip(Some(Timestamp::from_micros(99))).unzip();
    for (filter, (from, to)) in [(zones(&[]), (None, None)), (zones(&[]), window), (zones(&["1", "2"]), (None, None))] {
        for (limit, max_bytes, count) in [
            (10, 5000, 5),
            (5, 5000, 5),
            (4, 5000, 4),
            (10, 4999, 4),
            (10, 2500, 2),
            (1, 2500, 1),
            (10, 1000, 1),
            (10, 1, 1),
        ] {
            for direction in [Direction::After(0), Direction::Before(i64::MAX)] {
                let asked = AlertQuery { filter: filter.clone(), from, to, max_bytes, ..query(direction, limit) };
                let page = store.alerts.list_alerts(&asked).await.expect("the log answers");
                assert_eq!((page.alerts.len(), page.is_cut), (count, count < 5), "{asked:?}");
                let first = if direction == Direction::After(0) { 1 } else { 5 };
                assert_eq!(page.alerts[0].seq, first, "{asked:?}");
            }
        }
    }
}

async fn a_window_of_time_has_its_beginning_and_not_its_end(database: Database) {
    let store = Store::open(&database).await;
    // Not in the order of their times, and one without any.
    let times = [50, 10, 30, 20, 40];
    store.append(alerts_of(times.map(|time| filed(["1", "", "", ""], time)))).await;
    store.append(alerts_of([text_alert("{}")])).await;
    let window = |direction, from: Option<i64>, to: Option<i64>| {
        let (from, to) = (from.map(Timestamp::from_micros), to.map(Timestamp::from_micros));
        AlertQuery { from, to, ..query(direction, 10) }
    };
    let (up, down) = (Direction::After(0), Direction::Before(i64::MAX));
    assert_eq!(store.seqs(&window(up, Some(20), Some(50))).await, [3, 4, 5]);
    assert_eq!(store.seqs(&window(down, Some(20), Some(50))).await, [5, 4, 3]);
    assert_eq!(store.seqs(&window(up, Some(30), None)).await, [1, 3, 5]);
    assert_eq!(store.seqs(&window(down, None, Some(30))).await, [4, 2]);
    assert_eq!(store.seqs(&window(Direction::After(3), Some(20), Some(50))).await, [4, 5]);
    assert!(store.seqs(&window(up, Some(50), Some(50))).await.is_empty());
    let mut filtered = window(up, Some(20), Some(50));
    filtered.filter.zone_ids = owned(&["1", "2"]);
    assert_eq!(store.seqs(&filtered).await, [3, 4, 5]);
    filtered.filter.zone_ids = owned(&["2"]);
    assert!(store.seqs(&filtered).await.is_empty());
}

async fn concurrent_appends_leave_no_hole_and_no_double(database: Database) {
    const TASKS: usize = 16;
    const ROUNDS: usize = 20;
    let store = Store::open(&database).await;
    let tasks = (0..TASKS).map(|task| {
        let log = store.alerts.clone();
        tokio::spawn(async move {
            let mut given = Vec::new();
            for round in 0..ROUNDS {
                // One event that every task has, two that only this one has.
                let own = |n: usize| event(&format!("{task}/{round}/{n}"));
                let batch = alerts_of([own(0), event(&format!("shared {round}")), own(1)]);
                given.push(log.append(&batch).await.expect("stored").seqs);
            }
            given
        })
    });
    let mut seqs = Vec::new();
    for task in join_all(tasks).await {
        for batch in task.expect("no task failed") {
            let stored: Vec<i64> = batch.into_iter().flatten().collect();
            assert!(stored.len() >= 2 && stored.windows(2).all(|pair| pair[1] == pair[0] + 1), "{stored:?}");
            seqs.extend(stored);
        }
    }
    seqs.sort_unstable();
    let expected = i64::try_from(TASKS * ROUNDS * 2 + ROUNDS).expect("small");
    assert!(seqs.iter().copied().eq(1..=expected), "{} numbers, {expected} expected", seqs.len());
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), expected);
    assert_eq!(store.seqs(&query(Direction::After(0), 1000)).await, seqs[..seqs.len().min(1000)]);
}

async fn a_batch_that_cannot_be_stored_leaves_nothing_and_hurts_nobody(database: Database) {
    let store = Store::open(&database).await;
    let claim = store.alerts.claim_partition("t", 0).await.expect("claimed");
    let mut broken = alerts_of([event("first"), text_alert("{}")]);
    broken.alerts[1].alert.body = Bytes::from_static(&[b'{', 0xff, b'}']);
    broken.dead_letters.push(letter(3, 1, b"x"));
    broken.advances.push(advance(0, claim, 10));
    let appends = (0..64).map(|turn| {
        let batch = if turn % 2 == 0 { broken.clone() } else { alerts_of([text_alert("{}"), text_alert("{}")]) };
        let log = store.alerts.clone();
        tokio::spawn(async move { log.append(&batch).await.map(|appended| appended.seqs.len()).ok() })
    });
    let outcomes: Vec<_> = join_all(appends).await.into_iter().map(|task| task.expect("no panic")).collect();
    assert!(outcomes.iter().enumerate().all(|(turn, stored)| *stored == (turn % 2 == 1).then_some(2)), "{outcomes:?}");
    assert!(store.seqs(&query(Direction::After(0), 1000)).await.into_iter().eq(1..=64));
    assert!(store.alerts.list_dead_letters(0, 10).await.expect("the log answers").is_empty());
    assert_eq!(store.alerts.list_positions().await.expect("the log answers")[0].2, claim);
    assert_eq!(store.append(alerts_of([event("first")])).await, [Some(65)]);
}

async fn an_empty_batch_is_no_error(database: Database) {
    let store = Store::open(&database).await;
    assert!(store.append(AppendBatch::default()).await.is_empty());
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 0);
}

/// SQLite's plans are looked at beside the statements; PostgreSQL counts how it read a table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_pages_and_filters_by_index() {
    let server = require_backend!(PostgresDatabase::create().await);
    let database = Database::Postgres(server);
    let Database::Postgres(server) = &database else { return };
    let store = Store::open(&database).await;
    for _ in 0..20 {
        let alerts = (0..1000).map(|n| {
            let values = [n % 50, n % 40, n % 30, n % 20].map(|value| value.to_string());
            filed([&*values[0], &*values[1], &*values[2], &*values[3]], n)
        });
        store.append(alerts_of(alerts)).await;
    }
    server.execute("ANALYZE").await;
    let client = server.connect().await;
    let count = async || -> (i64, i64) {
        client.execute("SELECT pg_stat_force_next_flush()", &[]).await.expect("flushed");
        let sql = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'alert'";
        let row = client.query_one(sql, &[]).await.expect("the statistics");
        (row.get(0), row.get(1))
    };
    let before = count().await;
    let mut asked = 0;
    for direction in [Direction::After(17), Direction::Before(i64::MAX)] {
        let two = || owned(&["3", "7"]);
        let filters = [
            AlertFilter::default(),
            AlertFilter { zone_ids: owned(&["3"]), ..AlertFilter::default() },
            AlertFilter { user_ids: owned(&["3"]), ..AlertFilter::default() },
            AlertFilter { statuses: owned(&["3"]), ..AlertFilter::default() },
            AlertFilter { camera_ids: owned(&["3"]), ..AlertFilter::default() },
            AlertFilter { zone_ids: two(), user_ids: two(), statuses: two(), camera_ids: two() },
        ];
        for filter in filters {
            let page = store.list(&AlertQuery { filter, ..query(direction, 50) }).await;
            assert!(!page.is_empty());
            asked += 1;
        }
    }
    eventually("the server has counted", async || count().await.1 >= before.1 + asked).await;
    assert_eq!(count().await.0, before.0, "a query read the whole table");
}
