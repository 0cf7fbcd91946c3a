//! `AlertLog` over SQL: appends are one call of `append_alerts` (see the migration), two of them beside each
//! other where the second one's place can be foretold; reads are plain statements over the indexes.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use compact_str::CompactString;
use parking_lot::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, accepts, to_sql_checked};
use tokio_postgres::{GenericClient, Row};

use super::codec::Time;
use super::pool::{Pool, WorkError};
use crate::alerts::AlertLog;
use crate::alerts::forecast::{Forecast, Place};
use crate::alerts::log::AppendError;
use crate::alerts::types::{
    AlertColumns, AlertPage, AlertQuery, AppendBatch, Appended, DeadLetter, Direction, NewAlert, NewDeadLetter,
    PartitionAdvance, PartitionClaim, Source, StoredAlert,
};
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

pub struct PostgresAlertLog {
    pool: Pool,
    forecast: Mutex<Forecast>,
    metrics: Arc<Metrics>,
}

impl PostgresAlertLog {
    pub fn new(pool: Pool, metrics: Arc<Metrics>) -> Self {
        Self { pool, forecast: Mutex::default(), metrics }
    }
}

#[async_trait]
impl AlertLog for PostgresAlertLog {
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, AppendError> {
        let place = Mutex::new(Place::take(&self.forecast, batch));
        let (place, metrics) = (&place, &self.metrics);
        let appending = self.pool.run("append_alerts", move |mut lease| async move {
            let client = lease.client()?;
            let statement = client.prepare_cached(APPEND).await?;
            let expected = {
                let place = place.lock();
                place.send();
                place.ahead()
            };
            if let Some(expected) = expected {
                let count = |outcome: &str| metrics.alerts_appends_ahead.with_label_values(&[outcome]).inc();
                match append(&***client, &statement, batch, Some(expected)).await {
                    Err(WorkError::Driver(error)) if is_mistake(&error) => {
                        tracing::debug!(%error, expected, "an append that was made ahead is repeated");
                        place.lock().is_mistaken = true;
                        count("repeated");
                    }
                    Err(error) => return Err(error),
                    Ok(appended) => {
                        count("kept");
                        return Ok((lease, appended));
                    }
                }
            }
            let appended = append(&***client, &statement, batch, None).await?;
            Ok((lease, appended))
        });
        let appended = appending.await?.map(|(appended, last)| {
            place.lock().last = Some(last);
            appended
        });
        appended.map_err(|fenced| {
            let advances = fenced.iter().filter_map(|ordinal| usize::try_from(*ordinal - 1).ok());
            AppendError::Fenced(advances.filter_map(|index| batch.advances.get(index).cloned()).collect())
        })
    }

    async fn list_alerts(&self, query: &AlertQuery) -> Result<AlertPage, StoreError> {
        let (sql, parameters) = selection(query);
        let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|one| one as &(dyn ToSql + Sync)).collect();
        let (sql, parameters, limit) = (&sql, &parameters, query.limit as usize);
        self.pool
            .run("list_alerts", move |mut lease| async move {
                let client = lease.client()?;
                let statement = client.prepare_cached(sql).await?;
                let rows = client.query(&statement, parameters).await?;
                let mut page = AlertPage::default();
                for row in &rows {
                    let alert = if page.alerts.len() < limit { stored_alert(row)? } else { None };
                    let Some(alert) = alert else {
                        page.is_cut = true;
                        break;
                    };
                    page.alerts.push(alert);
                }
                Ok((lease, page))
            })
            .await
    }

    async fn last_seq(&self) -> Result<i64, StoreError> {
        self.pool
            .run("last_seq", move |mut lease| async move {
                let client = lease.client()?;
                let statement = client.prepare_cached("SELECT last_seq FROM alert_log").await?;
                let row = client.query_one(&statement, &[]).await?;
                Ok((lease, row.try_get(0)?))
            })
            .await
    }

    async fn claim_partition(&self, topic: &str, partition: i32) -> Result<PartitionClaim, StoreError> {
        self.pool
            .run("claim_partition", move |mut lease| async move {
                let client = lease.client()?;
                let sql = r#"INSERT INTO kafka_offset AS k (topic, "partition", epoch) VALUES ($1, $2, 1)
                    ON CONFLICT (topic, "partition") DO UPDATE SET epoch = k.epoch + 1 RETURNING epoch, next"#;
                let statement = client.prepare_cached(sql).await?;
                let row = client.query_one(&statement, &[&topic, &partition]).await?;
                Ok((lease, PartitionClaim { epoch: row.try_get(0)?, next: row.try_get(1)? }))
            })
            .await
    }

    async fn list_positions(&self) -> Result<Vec<(String, i32, PartitionClaim)>, StoreError> {
        self.pool
            .run("list_positions", move |mut lease| async move {
                let client = lease.client()?;
                let sql = r#"SELECT topic, "partition", epoch, next FROM kafka_offset ORDER BY topic, "partition""#;
                let statement = client.prepare_cached(sql).await?;
                let rows = client.query(&statement, &[]).await?;
                let position = |row: &Row| {
                    let claim = PartitionClaim { epoch: row.try_get(2)?, next: row.try_get(3)? };
                    Ok((row.try_get(0)?, row.try_get(1)?, claim))
                };
                Ok((lease, rows.iter().map(position).collect::<Result<_, tokio_postgres::Error>>()?))
            })
            .await
    }

    async fn list_dead_letters(&self, after: i64, limit: u32) -> Result<Vec<DeadLetter>, StoreError> {
        self.pool
            .run("list_dead_letters", move |mut lease| async move {
                let client = lease.client()?;
                let sql = format!("{DEAD_LETTERS} WHERE id > $1 ORDER BY id LIMIT $2");
                let statement = client.prepare_cached(&sql).await?;
                let rows = client.query(&statement, &[&after, &i64::from(limit)]).await?;
                Ok((lease, rows.iter().map(dead_letter).collect::<Result<_, _>>()?))
            })
            .await
    }

    async fn find_dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        self.pool
            .run("find_dead_letter", move |mut lease| async move {
                let client = lease.client()?;
                let statement = client.prepare_cached(&format!("{DEAD_LETTERS} WHERE id = $1")).await?;
                let row = client.query_opt(&statement, &[&id]).await?;
                Ok((lease, row.as_ref().map(dead_letter).transpose()?))
            })
            .await
    }

    async fn resolve_dead_letter(&self, id: i64, alert: &NewAlert) -> Result<Option<Option<i64>>, StoreError> {
        let batch = &AppendBatch { alerts: vec![alert.clone()], ..AppendBatch::default() };
        self.pool
            .run("resolve_dead_letter", move |mut lease| async move {
                let client = lease.client()?;
                let transaction = client.transaction().await?;
                let deleted = transaction.execute("DELETE FROM dead_letter WHERE id = $1", &[&id]).await?;
                if deleted == 0 {
                    transaction.commit().await?;
                    return Ok((lease, None));
                }
                let statement = transaction.prepare_cached(APPEND).await?;
                let appended = append(&*transaction, &statement, batch, None).await?;
                transaction.commit().await?;
                let seq = appended.ok().and_then(|(appended, _)| appended.seqs.first().copied().flatten());
                Ok((lease, Some(seq)))
            })
            .await
    }
}

/// The statement for a page and its parameters.
fn selection(query: &AlertQuery) -> (String, Vec<Parameter<'_>>) {
    let mut parameters = Vec::new();
    let mut conditions = Vec::new();
    let (bound, order) = match query.direction {
        Direction::After(after) => (after, "ASC"),
        Direction::Before(before) => (before, "DESC"),
    };
    parameters.push(Parameter::Number(bound));
    let filter = &query.filter;
    let fields = [
        ("zone_id", filter.zone_ids.as_slice()),
        ("user_id", filter.user_ids.as_slice()),
        ("status", filter.statuses.as_slice()),
        ("camera_id", filter.camera_ids.as_slice()),
    ];
    let mut wanted = fields.into_iter().filter(|(_, values)| !values.is_empty());
    let alone = match (wanted.next(), wanted.next()) {
        (Some((column, [value])), None) => Some((column, value)),
        _ => None,
    };
    if alone.is_none() {
        for (column, values) in fields {
            match values {
                [] => {}
                // One value reads its index in the order of seq; the planner knows that of `=` only.
                [value] => {
                    parameters.push(Parameter::Text(value));
                    conditions.push(format!("{column} = ${}", parameters.len()));
                }
                _ => {
                    parameters.push(Parameter::Texts(values));
                    conditions.push(format!("{column} = ANY (${})", parameters.len()));
                }
            }
        }
    }
    let mut spans = Vec::new();
    for (time, operator, of_span) in [(query.from, ">=", "latest"), (query.to, "<", "earliest")] {
        if let Some(time) = time {
            parameters.push(Parameter::Time(Time(time)));
            conditions.push(format!("occurred_at {operator} ${}", parameters.len()));
            spans.push(format!("{of_span} {operator} ${}", parameters.len()));
        }
    }
    // A window of time begins and ends with the spans of the log that have a part in it.
    let spans = spans.join(" AND ");
    let first = format!("coalesce((SELECT min(number) << 12 FROM alert_span WHERE {spans}), {})", i64::MAX);
    let behind = format!("coalesce((SELECT (max(number) + 1) << 12 FROM alert_span WHERE {spans}), 0)");
    let (lower, upper) = match (order, spans.is_empty()) {
        ("ASC", true) => (Some("$1".to_owned()), None),
        (_, true) => (None, Some("$1".to_owned())),
        ("ASC", false) => (Some(format!("greatest($1, {first} - 1)")), Some(behind)),
        (_, false) => (Some(format!("{first} - 1")), Some(format!("least($1, {behind})"))),
    };
    // The statement's plan is one for any value, and would walk the whole log for a rare one, which it takes for a
    // common one. Of pairs and their order only the column's own index knows, and with one value it is that of seq.
    let place = match alone {
        Some((column, value)) => {
            parameters.push(Parameter::Text(value));
            let value = parameters.len();
            conditions.push(format!("{column} IS NOT NULL"));
            let (lower, upper) =
                (lower.unwrap_or_else(|| "0".to_owned()), upper.unwrap_or_else(|| i64::MAX.to_string()));
            conditions.push(format!("({column}, seq) > (${value}, {lower}) AND ({column}, seq) < (${value}, {upper})"));
            format!("{column} {order}, seq {order}")
        }
        None => {
            conditions.extend(lower.map(|lower| format!("seq > {lower}")));
            conditions.extend(upper.map(|upper| format!("seq < {upper}")));
            format!("seq {order}")
        }
    };
    // One row past the page tells whether there is more. The number stands in the text, because the
    // planner has to know how few rows are wanted; a power of two, so that there are few texts.
    let rows = (query.limit + 1).next_power_of_two();
    let max_bytes = i64::try_from(query.max_bytes).unwrap_or(i64::MAX);
    parameters.push(Parameter::Number(max_bytes));
    let bytes_place = parameters.len();
    // The length of a body is known without reading it. Those past the budget are not sent: a result
    // that is given up half-way would still be sent to its end.
    let sql = format!(
        "SELECT seq, received_at, occurred_at, source, zone_id, user_id, status, camera_id, user_name, \
         CASE WHEN bytes <= ${bytes_place} OR bytes = octet_length(body) THEN body END FROM (\
         SELECT *, sum(octet_length(body)) OVER (ORDER BY {place} ROWS UNBOUNDED PRECEDING) AS bytes \
         FROM (SELECT * FROM alert WHERE {} ORDER BY {place} LIMIT {rows}) AS page) AS measured \
         ORDER BY {place}",
        conditions.join(" AND "),
    );
    (sql, parameters)
}

#[derive(Debug)]
enum Parameter<'a> {
    Number(i64),
    Text(&'a String),
    Texts(&'a [String]),
    Time(Time),
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self, kind: &Type, buffer: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Number(number) => number.to_sql_checked(kind, buffer),
            Self::Text(text) => text.to_sql_checked(kind, buffer),
            Self::Texts(texts) => texts.to_sql_checked(kind, buffer),
            Self::Time(time) => time.to_sql_checked(kind, buffer),
        }
    }

    fn accepts(_: &Type) -> bool {
        // Each looks at the type itself.
        true
    }

    to_sql_checked!();
}

const APPEND: &str = "SELECT seqs, last, fenced FROM append_alerts($1, $2, $3, $4, $5, $6, $7)";

const DEAD_LETTERS: &str =
    r#"SELECT id, received_at, topic, "partition", "offset", reason, size, raw FROM dead_letter"#;

/// With where the log then ends. The inner error: ordinals, from 1, of the advances that are void.
async fn append(
    client: &impl GenericClient,
    statement: &tokio_postgres::Statement,
    batch: &AppendBatch,
    expected: Option<i64>,
) -> Result<Result<(Appended, i64), Vec<i64>>, WorkError> {
    let alerts = batch.alerts.iter().map(AlertRow::of).collect::<Result<Vec<_>, _>>()?;
    let names_events = batch.names_events();
    let times = || batch.alerts.iter().filter_map(|new| new.alert.occurred_at);
    let (first_time, last_time) = (times().min().map(Time), times().max().map(Time));
    let letters: Vec<_> = batch.dead_letters.iter().map(DeadLetterRow::of).collect();
    let advances: Vec<_> = batch.advances.iter().map(AdvanceRow::of).collect();
    let parameters: [&(dyn ToSql + Sync); 7] =
        [&alerts, &names_events, &first_time, &last_time, &letters, &advances, &expected];
    let row = client.query_one(statement, &parameters).await?;
    let fenced: Option<Vec<i64>> = row.try_get(2)?;
    if let Some(fenced) = fenced {
        return Ok(Err(fenced));
    }
    let last: i64 = row.try_get(1)?;
    let before = last - i64::try_from(batch.alerts.len()).unwrap_or(last);
    let seqs = row.try_get::<_, Option<_>>(0)?.unwrap_or_else(|| (before + 1..=last).map(Some).collect());
    Ok(Ok((Appended { seqs }, last)))
}

/// Whether an append that was made ahead failed as it may: its place was another's.
fn is_mistake(error: &tokio_postgres::Error) -> bool {
    let mistakes = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::UNIQUE_VIOLATION,
        SqlState::T_R_DEADLOCK_DETECTED,
    ];
    error.code().is_some_and(|code| mistakes.contains(code))
}

#[derive(Debug, ToSql)]
#[postgres(name = "new_alert")]
struct AlertRow<'a> {
    occurred_at: Option<Time>,
    source: SourceText<'a>,
    zone_id: Option<&'a str>,
    user_id: Option<&'a str>,
    status: Option<&'a str>,
    camera_id: Option<&'a str>,
    user_name: Option<&'a str>,
    event_id: Option<&'a str>,
    body: &'a str,
}

impl<'a> AlertRow<'a> {
    fn of(NewAlert { alert, source }: &'a NewAlert) -> Result<Self, StoreError> {
        let columns = &alert.columns;
        let body = std::str::from_utf8(&alert.body)
            .map_err(|error| StoreError::corrupt("database", format!("an alert's text: {error}")))?;
        Ok(Self {
            occurred_at: alert.occurred_at.map(Time),
            source: SourceText(source),
            zone_id: columns.zone_id.as_deref(),
            user_id: columns.user_id.as_deref(),
            status: columns.status.as_deref(),
            camera_id: columns.camera_id.as_deref(),
            user_name: alert.user_name.as_deref(),
            event_id: alert.event_id.as_deref(),
            body,
        })
    }
}

/// Written where it goes, without a text in between.
#[derive(Debug)]
struct SourceText<'a>(&'a Source);

impl ToSql for SourceText<'_> {
    fn to_sql(&self, _: &Type, buffer: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        write!(buffer, "{}", self.0)?;
        Ok(IsNull::No)
    }

    accepts!(TEXT);
    to_sql_checked!();
}

#[derive(Debug, ToSql)]
#[postgres(name = "new_dead_letter")]
struct DeadLetterRow<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    reason: &'a str,
    size: i64,
    raw: &'a [u8],
}

impl<'a> DeadLetterRow<'a> {
    fn of(letter: &'a NewDeadLetter) -> Self {
        Self {
            topic: &letter.topic,
            partition: letter.partition,
            offset: letter.offset,
            reason: &letter.reason,
            size: i64::try_from(letter.size).unwrap_or(i64::MAX),
            raw: &letter.raw,
        }
    }
}

#[derive(Debug, ToSql)]
#[postgres(name = "partition_advance")]
struct AdvanceRow<'a> {
    topic: &'a str,
    partition: i32,
    epoch: i64,
    expected: Option<i64>,
    next: i64,
}

impl<'a> AdvanceRow<'a> {
    fn of(advance: &'a PartitionAdvance) -> Self {
        Self {
            topic: &advance.topic,
            partition: advance.partition,
            epoch: advance.epoch,
            expected: advance.expected_next,
            next: advance.next,
        }
    }
}

/// `None`: it is past the budget of bytes.
fn stored_alert(row: &Row) -> Result<Option<StoredAlert>, tokio_postgres::Error> {
    let Some(body) = row.try_get::<_, Option<String>>(9)? else { return Ok(None) };
    let text = |index: usize| row.try_get::<_, Option<&str>>(index).map(|value| value.map(CompactString::from));
    Ok(Some(StoredAlert {
        seq: row.try_get(0)?,
        received_at: row.try_get::<_, Time>(1)?.0,
        occurred_at: row.try_get::<_, Option<Time>>(2)?.map(|time| time.0),
        source: row.try_get(3)?,
        columns: AlertColumns { zone_id: text(4)?, user_id: text(5)?, status: text(6)?, camera_id: text(7)? },
        user_name: text(8)?,
        body: body.into(),
    }))
}

fn dead_letter(row: &Row) -> Result<DeadLetter, tokio_postgres::Error> {
    Ok(DeadLetter {
        id: row.try_get(0)?,
        received_at: row.try_get::<_, Time>(1)?.0,
        topic: row.try_get(2)?,
        partition: row.try_get(3)?,
        offset: row.try_get(4)?,
        reason: row.try_get(5)?,
        size: u64::try_from(row.try_get::<_, i64>(6)?).unwrap_or(0),
        raw: row.try_get::<_, Vec<u8>>(7)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use tokio_postgres::SimpleQueryMessage;

    use super::super::pool;
    use super::*;
    use crate::alerts::types::AlertFilter;
    use crate::time::Timestamp;

    const ROWS: i64 = 40_000;

    /// In temporary tables, which end with the connection. `None`: there is no server for tests.
    async fn filled() -> Option<tokio_postgres::Client> {
        let url = match std::env::var("TEST_POSTGRES_URL") {
            Ok(url) => url,
            Err(_) if std::env::var("REQUIRE_BACKENDS").is_ok_and(|names| names.contains("postgres")) => {
                panic!("TEST_POSTGRES_URL is not set")
            }
            Err(_) => return None,
        };
        let mut config: tokio_postgres::Config = url.parse().expect("a URL");
        config.options(pool::SESSION);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("connected");
        tokio::spawn(connection);
        let schema = include_str!("../../../migrations/postgres/V3__alerts.sql");
        client.batch_execute(&format!("SET search_path = pg_temp; {schema}")).await.expect("the schema is SQL");
        let fill = format!(
            "INSERT INTO alert (seq, occurred_at, source, zone_id, user_id, status, camera_id, body)
             SELECT n, to_timestamp(n), 'http', n % 8, n % 1000, CASE WHEN n % 2000 = 0 THEN 9 ELSE n % 3 END, n % 16, '{{}}'
             FROM generate_series(1, {ROWS}) n;
             INSERT INTO alert_span SELECT seq >> 12, min(occurred_at), max(occurred_at) FROM alert GROUP BY 1;
             ANALYZE alert; ANALYZE alert_span; SET plan_cache_mode = force_generic_plan"
        );
        client.batch_execute(&fill).await.expect("filled");
        Some(client)
    }

    /// The plan for whatever values, which the service's statements get after some calls, carried out for these.
    async fn explain(client: &tokio_postgres::Client, sql: &str, parameters: &[Parameter<'_>]) -> String {
        let literal = |parameter: &Parameter<'_>| match parameter {
            Parameter::Number(number) => number.to_string(),
            Parameter::Text(text) => format!("'{text}'"),
            Parameter::Texts(texts) => format!("'{{{}}}'", texts.join(",")),
            Parameter::Time(Time(time)) => format!("'{time}'"),
        };
        let literals = parameters.iter().map(literal).collect::<Vec<_>>().join(", ");
        client.batch_execute(&format!("DEALLOCATE ALL; PREPARE page AS {sql}")).await.expect("prepared");
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF) EXECUTE page({literals})");
        let lines = client.simple_query(&explain).await.expect("a plan");
        let text = |line: &SimpleQueryMessage| match line {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        lines.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn a_page_reads_a_page_of_the_log() {
        let Some(client) = filled().await else { return };
        let one = |value: &str| vec![value.to_owned()];
        let filters = [
            AlertFilter::default(),
            AlertFilter { zone_ids: one("3"), ..AlertFilter::default() },
            AlertFilter { user_ids: one("17"), ..AlertFilter::default() },
            AlertFilter { statuses: one("1"), ..AlertFilter::default() },
            AlertFilter { statuses: one("9"), ..AlertFilter::default() },
            AlertFilter { camera_ids: one("5"), ..AlertFilter::default() },
        ];
        let second = |second: i64| Some(Timestamp::from_micros(second * 1_000_000));
        let windows = [(None, None), (second(20_000), None), (None, second(20_000)), (second(20_000), second(36_000))];
        for filter in filters {
            for (from, to) in windows {
                for direction in [Direction::After(0), Direction::Before(i64::MAX)] {
                    let query =
                        AlertQuery { direction, limit: 10, max_bytes: 1 << 20, filter: filter.clone(), from, to };
                    let (sql, parameters) = selection(&query);
                    let plan = explain(&client, &sql, &parameters).await;
                    assert!(!plan.contains("Seq Scan on alert\n") && !plan.contains("Sort Key"), "{query:?}\n{plan}");
                    // The log has 400 pages; one span's rows are read in vain at most.
                    let touched = plan.lines().find(|line| line.contains("Buffers:")).expect("buffers");
                    let pages: i64 = touched
                        .split_whitespace()
                        .filter_map(|word| word.split_once('=').filter(|(name, _)| ["hit", "read"].contains(name)))
                        .map(|(_, count)| count.parse::<i64>().expect("a number"))
                        .sum();
                    assert!(pages < 120, "{pages} pages: {query:?}\n{plan}");
                }
            }
        }
    }
}
