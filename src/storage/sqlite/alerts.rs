//! `AlertLog` over SQL: appends are one unit of work of the only writer, reads are plain statements over
//! the indexes.

use async_trait::async_trait;
use compact_str::CompactString;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::codec;
use super::connection::Opened;
use super::error::DEPENDENCY;
use super::pool::{Pool, WorkError};
use crate::alerts::AlertLog;
use crate::alerts::log::AppendError;
use crate::alerts::types::{
    AlertColumns, AlertPage, AlertQuery, AppendBatch, Appended, DeadLetter, Direction, NewAlert, PartitionAdvance,
    PartitionClaim, StoredAlert,
};
use crate::store_error::StoreError;
use crate::time::Timestamp;

pub struct SqliteAlertLog {
    pool: Pool,
}

impl SqliteAlertLog {
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl AlertLog for SqliteAlertLog {
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, AppendError> {
        let batch = batch.clone();
        let work = move |connection: &Opened| append(connection, &batch);
        self.pool.write("append_alerts", work).await?.map_err(AppendError::Fenced)
    }

    async fn list_alerts(&self, query: &AlertQuery) -> Result<AlertPage, StoreError> {
        let (sql, parameters) = selection(query);
        let (limit, max_bytes) = (query.limit as usize, query.max_bytes);
        let work = move |connection: &Opened| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(&parameters))?;
            let (mut page, mut bytes) = (AlertPage::default(), 0);
            while let Some(row) = rows.next()? {
                let more = codec::text(row, 9)?.len();
                if page.alerts.len() == limit || (bytes + more > max_bytes && !page.alerts.is_empty()) {
                    page.is_cut = true;
                    break;
                }
                bytes += more;
                page.alerts.push(stored_alert(row)?);
            }
            Ok(page)
        };
        self.pool.read("list_alerts", work).await
    }

    async fn last_seq(&self) -> Result<i64, StoreError> {
        self.pool.read("last_seq", |connection: &Opened| Ok(last_seq(connection)?)).await
    }

    async fn claim_partition(&self, topic: &str, partition: i32) -> Result<PartitionClaim, StoreError> {
        let topic = topic.to_owned();
        let work = move |connection: &Opened| {
            let sql = r#"INSERT INTO kafka_offset (topic, "partition", epoch) VALUES (?1, ?2, 1)
                ON CONFLICT (topic, "partition") DO UPDATE SET epoch = epoch + 1 RETURNING epoch, next"#;
            let claim = |row: &Row<'_>| Ok(PartitionClaim { epoch: row.get(0)?, next: row.get(1)? });
            Ok(connection.prepare_cached(sql)?.query_row(params![topic, partition], claim)?)
        };
        self.pool.write("claim_partition", work).await
    }

    async fn list_positions(&self) -> Result<Vec<(String, i32, PartitionClaim)>, StoreError> {
        let work = |connection: &Opened| {
            let sql = r#"SELECT topic, "partition", epoch, next FROM kafka_offset ORDER BY topic, "partition""#;
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                let claim = PartitionClaim { epoch: row.get(2)?, next: row.get(3)? };
                Ok((codec::text(row, 0)?.into_owned(), row.get(1)?, claim))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        self.pool.read("list_positions", work).await
    }

    async fn list_dead_letters(&self, after: i64, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        let work = move |connection: &Opened| {
            let sql = format!("{DEAD_LETTERS} WHERE id > ?1 ORDER BY id LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![after, limit], dead_letter)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        self.pool.read("list_dead_letters", work).await
    }

    async fn find_dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        let work = move |connection: &Opened| {
            let sql = format!("{DEAD_LETTERS} WHERE id = ?1");
            Ok(connection.prepare_cached(&sql)?.query_row([id], dead_letter).optional()?)
        };
        self.pool.read("find_dead_letter", work).await
    }

    async fn resolve_dead_letter(&self, id: i64, alert: &NewAlert) -> Result<Option<Option<i64>>, StoreError> {
        let batch = AppendBatch { alerts: vec![alert.clone()], ..AppendBatch::default() };
        let work = move |connection: &Opened| {
            let deleted = connection.prepare_cached("DELETE FROM dead_letter WHERE id = ?1")?.execute([id])?;
            if deleted == 0 {
                return Ok(None);
            }
            let appended = append(connection, &batch)?;
            Ok(Some(appended.ok().and_then(|appended| appended.seqs.first().copied().flatten())))
        };
        self.pool.write("resolve_dead_letter", work).await
    }
}

const DEAD_LETTERS: &str =
    r#"SELECT id, received_at, topic, "partition", "offset", reason, size, raw FROM dead_letter"#;

const COLUMNS: &str = "seq, received_at, occurred_at, source, zone_id, user_id, status, camera_id, user_name, body";

/// The inner error: the advances that are void; then nothing was done.
fn append(connection: &Connection, batch: &AppendBatch) -> Result<Result<Appended, Vec<PartitionAdvance>>, WorkError> {
    let mut fenced = Vec::new();
    for advance in &batch.advances {
        if !holds(connection, advance)? {
            fenced.push(advance.clone());
        }
    }
    if !fenced.is_empty() {
        return Ok(Err(fenced));
    }
    let received_at = Timestamp::now().as_micros();
    let mut statement =
        connection.prepare_cached(r#"UPDATE kafka_offset SET next = ?3 WHERE topic = ?1 AND "partition" = ?2"#)?;
    for advance in &batch.advances {
        statement.execute(params![advance.topic, advance.partition, advance.next])?;
    }
    let mut statement = connection.prepare_cached(
        r#"INSERT INTO dead_letter (received_at, topic, "partition", "offset", reason, size, raw)
           VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"#,
    )?;
    for letter in &batch.dead_letters {
        let size = i64::try_from(letter.size).unwrap_or(i64::MAX);
        let place = (&letter.topic, letter.partition, letter.offset);
        statement.execute(params![received_at, place.0, place.1, place.2, letter.reason, size, &*letter.raw])?;
    }
    Ok(Ok(Appended { seqs: insert_alerts(connection, &batch.alerts, received_at)? }))
}

/// Whether the log still holds what the batch was read with.
fn holds(connection: &Connection, advance: &PartitionAdvance) -> rusqlite::Result<bool> {
    let sql = r#"SELECT 1 FROM kafka_offset WHERE topic = ?1 AND "partition" = ?2 AND epoch = ?3 AND next IS ?4"#;
    let parameters = params![advance.topic, advance.partition, advance.epoch, advance.expected_next];
    connection.prepare_cached(sql)?.exists(parameters)
}

fn insert_alerts(
    connection: &Connection,
    alerts: &[NewAlert],
    received_at: i64,
) -> Result<Vec<Option<i64>>, WorkError> {
    let before = last_seq(connection)?;
    let mut last = before;
    let mut statement = connection.prepare_cached(
        "INSERT INTO alert (seq, received_at, occurred_at, source, zone_id, user_id, status, camera_id, user_name, \
         event_id, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
         ON CONFLICT (event_id) WHERE event_id IS NOT NULL DO NOTHING",
    )?;
    let mut seqs = Vec::with_capacity(alerts.len());
    for NewAlert { alert, source } in alerts {
        let body = std::str::from_utf8(&alert.body)
            .map_err(|error| StoreError::corrupt(DEPENDENCY, format!("an alert's text: {error}")))?;
        let columns = &alert.columns;
        let inserted = statement.execute(params![
            last + 1,
            received_at,
            alert.occurred_at.map(Timestamp::as_micros),
            source.to_string(),
            columns.zone_id.as_deref(),
            columns.user_id.as_deref(),
            columns.status.as_deref(),
            columns.camera_id.as_deref(),
            alert.user_name.as_deref(),
            alert.event_id.as_deref(),
            body,
        ])?;
        last += i64::from(inserted > 0);
        seqs.push((inserted > 0).then_some(last));
    }
    if last > before {
        connection.prepare_cached("UPDATE alert_log SET last_seq = ?1")?.execute([last])?;
    }
    note_times(connection, alerts, &seqs)?;
    Ok(seqs)
}

fn note_times(connection: &Connection, alerts: &[NewAlert], seqs: &[Option<i64>]) -> rusqlite::Result<()> {
    let mut spans = std::collections::BTreeMap::new();
    for (new, seq) in alerts.iter().zip(seqs) {
        let (Some(seq), Some(time)) = (seq, new.alert.occurred_at.map(Timestamp::as_micros)) else { continue };
        let (earliest, latest) = spans.entry(seq >> 12).or_insert((time, time));
        (*earliest, *latest) = (time.min(*earliest), time.max(*latest));
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO alert_span (number, earliest, latest) VALUES (?1, ?2, ?3) ON CONFLICT (number) DO UPDATE \
         SET earliest = min(earliest, excluded.earliest), latest = max(latest, excluded.latest)",
    )?;
    for (number, (earliest, latest)) in spans {
        statement.execute([number, earliest, latest])?;
    }
    Ok(())
}

fn last_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT last_seq FROM alert_log")?.query_row([], |row| row.get(0))
}

/// SQLite keeps no account of how often values occur, so the index is chosen here. A field with several
/// values is read value by value, each in the order of seq, so that no page costs more than its rows for
/// each of them. The other conditions have a `+`, which keeps the planner from their indexes.
fn selection(query: &AlertQuery) -> (String, Vec<Value>) {
    let filter = &query.filter;
    // The field that is likely to have the fewest alerts for a value comes first.
    let fields = [
        ("user_id", &filter.user_ids),
        ("camera_id", &filter.camera_ids),
        ("zone_id", &filter.zone_ids),
        ("status", &filter.statuses),
    ];
    let mut wanted = fields.into_iter().filter(|(_, values)| !values.is_empty());
    let leading = wanted.next();
    let mut parameters = Vec::new();
    let mut bind = |value: Value| {
        parameters.push(value);
        format!("?{}", parameters.len())
    };
    let (operator, bound, order) = match query.direction {
        Direction::After(after) => (">", after, "ASC"),
        Direction::Before(before) => ("<", before, "DESC"),
    };
    let bound = bind(bound.into());
    let (mut conditions, mut spans) = (Vec::new(), Vec::new());
    for (time, operator, of_span) in [(query.from, ">=", "latest"), (query.to, "<", "earliest")] {
        if let Some(time) = time {
            let time = bind(time.as_micros().into());
            conditions.push(format!("+occurred_at {operator} {time}"));
            spans.push(format!("{of_span} {operator} {time}"));
        }
    }
    // A window of time begins and ends with the spans of the log that have a part in it.
    let spans = spans.join(" AND ");
    let first = format!("coalesce((SELECT min(number) << 12 FROM alert_span WHERE {spans}), {})", i64::MAX);
    let behind = format!("coalesce((SELECT (max(number) + 1) << 12 FROM alert_span WHERE {spans}), 0)");
    conditions.push(match (query.direction, spans.is_empty()) {
        (_, true) => format!("seq {operator} {bound}"),
        (Direction::After(_), false) => format!("seq > max({bound}, {first} - 1) AND seq < {behind}"),
        (Direction::Before(_), false) => format!("seq < min({bound}, {behind}) AND seq >= {first}"),
    });
    for (column, values) in wanted {
        let places: Vec<String> = values.iter().map(|value| bind(value.clone().into())).collect();
        conditions.push(format!("+{column} IN ({})", places.join(", ")));
    }
    let rest = conditions.join(" AND ");
    // One row past the page tells whether there is more.
    let end = format!("ORDER BY seq {order} LIMIT {}", bind((i64::from(query.limit) + 1).into()));
    let alerts = format!("SELECT {COLUMNS} FROM alert WHERE");
    // What has to be sorted first is sorted by number alone: a body is read when its row is stepped to.
    let sorted = |numbers: String| format!("{alerts} seq IN ({numbers}) ORDER BY seq {order}");
    let sql = match leading {
        None => format!("{alerts} {rest} {end}"),
        Some((column, values)) => {
            let distinct: std::collections::BTreeSet<&String> = values.iter().collect();
            let parts: Vec<String> = distinct
                .into_iter()
                .map(|value| format!("{column} = {} AND {rest} {end}", bind(value.clone().into())))
                .collect();
            match parts.as_slice() {
                [part] => format!("{alerts} {part}"),
                _ => {
                    let part = |part: &String| format!("SELECT * FROM (SELECT seq FROM alert WHERE {part})");
                    sorted(format!("{} {end}", parts.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ")))
                }
            }
        }
    };
    (sql, parameters)
}

fn stored_alert(row: &Row<'_>) -> rusqlite::Result<StoredAlert> {
    let text = |index: usize| codec::optional_text(row, index).map(|value| value.map(CompactString::from));
    Ok(StoredAlert {
        seq: row.get(0)?,
        received_at: codec::time(row, 1)?,
        occurred_at: codec::optional_time(row, 2)?,
        source: codec::text(row, 3)?.into_owned(),
        columns: AlertColumns { zone_id: text(4)?, user_id: text(5)?, status: text(6)?, camera_id: text(7)? },
        user_name: text(8)?,
        body: codec::text(row, 9)?.into_owned().into(),
    })
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        received_at: codec::time(row, 1)?,
        topic: codec::text(row, 2)?.into_owned(),
        partition: row.get(3)?,
        offset: row.get(4)?,
        reason: codec::text(row, 5)?.into_owned(),
        size: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
        raw: row.get::<_, Vec<u8>>(7)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::types::AlertFilter;

    fn plan(query: &AlertQuery) -> String {
        let connection = Connection::open_in_memory().expect("SQLite is there");
        let schema = include_str!("../../../migrations/sqlite/V3__alerts.sql");
        connection.execute_batch(schema).expect("the schema is SQL");
        let (sql, parameters) = selection(query);
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("the query is SQL");
        let steps = statement.query_map(params_from_iter(parameters), |row| row.get::<_, String>(3));
        steps.expect("a plan").collect::<rusqlite::Result<Vec<_>>>().expect("a plan").join("\n")
    }

    #[test]
    fn no_query_reads_the_whole_log() {
        let values = |count: usize| -> Vec<String> { (0..count).map(|value| value.to_string()).collect() };
        let time = Some(Timestamp::from_micros(1));
        for direction in [Direction::After(7), Direction::Before(i64::MAX)] {
            for counts in [[0, 0, 0, 0], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2], [2, 1, 2, 1]] {
                for (from, to) in [(None, None), (time, None), (None, time), (time, time)] {
                    let [zone_ids, user_ids, statuses, camera_ids] = counts.map(values);
                    let filter = AlertFilter { zone_ids, user_ids, statuses, camera_ids };
                    let query = AlertQuery { direction, limit: 10, max_bytes: 1 << 20, filter, from, to };
                    let plan = plan(&query);
                    // The spans are few.
                    let scans = plan.lines().filter(|step| step.contains("SCAN alert") && !step.contains("alert_span"));
                    assert_eq!(scans.count(), 0, "{query:?}\n{plan}");
                    let sorted = plan.contains("TEMP B-TREE") && counts.iter().all(|count| *count < 2);
                    assert!(!sorted, "{query:?}\n{plan}");
                }
            }
        }
    }
}
