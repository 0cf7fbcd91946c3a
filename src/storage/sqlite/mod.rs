//! SQLite behind the ports. Owns the file, its schema and its upkeep; knows no transport.

mod alerts;
mod codec;
mod connection;
mod directory;
pub mod doctor;
mod error;
mod feed;
pub mod migrations;
mod pool;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::connection::Opened;
use self::pool::{Pool, Thread};
use super::{MigrationError, Storage};
use crate::config::DatabaseConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const MIGRATION_RETRY: Duration = Duration::from_millis(500);
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// Clients may follow a dict token at least this long.
const CHANGES_KEPT: Duration = Duration::from_secs(3600);
/// Rows deleted in one transaction: nobody waits long behind it.
const TRIM_CHUNK: i64 = 10_000;

/// The error says that another service holds the file, or that there can be none at this path.
pub fn start(
    path: &Path,
    config: &DatabaseConfig,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) -> Result<Storage, StoreError> {
    connection::create_parent(path)?;
    let lock = connection::lock(path)?;
    let path: Arc<Path> = path.into();
    let (obstacle, waiting) = watch::channel(Some("it is not opened yet".to_owned()));
    let (pool, threads) = Pool::start(&path, config.pool_size, config.operation_timeout, waiting, lock, metrics)?;
    health.report(name::DATABASE, State::Starting, Some("opening".to_owned()));
    let keeper = Keeper { path, pool: pool.clone(), obstacle, health, closing: lifecycle.closing().clone() };
    lifecycle.spawn_service("database", keeper.run(threads));
    Ok(Storage {
        directory: Arc::new(directory::SqliteDirectory::new(pool.clone())),
        alerts: Arc::new(alerts::SqliteAlertLog::new(pool)),
    })
}

/// The one task of the engine: migrates, then probes and trims until the service closes; notices the
/// death of a thread.
struct Keeper {
    path: Arc<Path>,
    pool: Pool,
    obstacle: watch::Sender<Option<String>>,
    health: HealthBoard,
    closing: CancellationToken,
}

impl Keeper {
    async fn run(self, threads: Vec<Thread>) -> anyhow::Result<()> {
        let end = |thread: Thread| thread.ended.map(move |end| (thread.name, end));
        let mut ends: FuturesUnordered<_> = threads.into_iter().map(end).collect();
        let closing = self.closing.clone();
        let outcome = tokio::select! {
            biased;
            () = closing.cancelled() => Ok(()),
            outcome = self.keep() => outcome,
            Some((thread, end)) = ends.next() => Err(match end {
                Ok(Err(panic)) => anyhow::anyhow!("{thread} panicked: {panic}"),
                _ => anyhow::anyhow!("{thread} ended"),
            }),
        };
        // The last connection brings the write-ahead log into the file and removes it, but only if no other
        // one closes at the same moment.
        ends.extend(self.pool.close_reads().into_iter().map(end));
        while ends.len() > 1 {
            ends.next().await;
        }
        self.pool.close_writes();
        while ends.next().await.is_some() {}
        outcome
    }

    async fn keep(&self) -> anyhow::Result<()> {
        self.migrate().await?;
        let mut seen = VecDeque::new();
        let mut trimmed_at = Instant::now();
        loop {
            self.probe().await;
            if trimmed_at.elapsed() >= TRIM_INTERVAL {
                trimmed_at = Instant::now();
                if let Err(error) = self.trim(&mut seen).await {
                    tracing::warn!(error = %error, "the change log could not be trimmed; tried again in a minute");
                }
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }

    /// Retries for as long as it takes; a schema from the future is the one thing that waiting does
    /// not mend.
    async fn migrate(&self) -> anyhow::Result<()> {
        loop {
            match migrations::migrate(&self.path).await {
                Ok(report) => {
                    if !report.applied.is_empty() {
                        tracing::info!(applied = report.applied.join(", "), "database schema brought forward");
                    }
                    self.obstacle.send_replace(None);
                    return Ok(());
                }
                Err(error @ MigrationError::Newer { .. }) => return Err(error.into()),
                Err(error) => {
                    let detail = error.to_string();
                    if self.health.report(name::DATABASE, State::Down, Some(detail.clone())) {
                        tracing::error!(error = %detail, "the database cannot be used yet; trying again");
                    }
                    self.obstacle.send_replace(Some(detail));
                }
            }
            tokio::time::sleep(MIGRATION_RETRY).await;
        }
    }

    async fn probe(&self) {
        let begun_at = Instant::now();
        let reading = self.pool.read("probe", |connection: &Opened| {
            Ok(connection
                .prepare_cached("SELECT last_seq FROM alert_log")?
                .query_row([], |row| row.get::<_, i64>(0))?)
        });
        let (state, detail) = match reading.await {
            Ok(_) => match self.probe_writing().await {
                Ok(()) => (State::Up, None),
                Err(error) => (State::Degraded, Some(format!("reads work, writes do not: {error}"))),
            },
            Err(error) => (State::Down, Some(error.to_string())),
        };
        let told = detail.clone().unwrap_or_default();
        if self.health.report(name::DATABASE, state, detail) {
            match state {
                State::Up => tracing::info!("the database answers"),
                State::Degraded => {
                    tracing::error!(error = %told, "the database refuses writes; they are answered with 503")
                }
                _ => {
                    tracing::error!(error = %told, "the database does not answer; requests that need it are refused with 503")
                }
            }
        }
        if state != State::Down {
            self.health.report_latency(name::DATABASE, begun_at.elapsed());
        }
    }

    /// Once a write failed, whether one works again; while they work nothing is written for it.
    async fn probe_writing(&self) -> Result<(), StoreError> {
        if self.pool.find_write_failure().is_none() {
            return Ok(());
        }
        let write = |connection: &Opened| Ok(connection.execute("UPDATE alert_log SET last_seq = last_seq", [])?);
        self.pool.write("probe", write).await.map(|_| ())
    }

    /// Deletes what no cursor younger than [`CHANGES_KEPT`] can need. `seen`: when the log ended where.
    /// The last row stays: it is the moment that cursors of an idle directory stand on.
    async fn trim(&self, seen: &mut VecDeque<(Instant, i64)>) -> Result<(), StoreError> {
        let last = self.pool.read("trim_changes", |connection: &Opened| {
            Ok(connection.query_row("SELECT coalesce(max(seq), 0) FROM directory_change", [], |row| row.get(0))?)
        });
        seen.push_back((Instant::now(), last.await?));
        let mut floor = None;
        while seen.front().is_some_and(|(at, _)| at.elapsed() >= CHANGES_KEPT) {
            floor = seen.pop_front().map(|(_, last)| last);
        }
        let Some(floor) = floor else { return Ok(()) };
        loop {
            let deleted = self.pool.write("trim_changes", move |connection: &Opened| {
                let sql = "DELETE FROM directory_change WHERE seq IN \
                           (SELECT seq FROM directory_change WHERE seq < min(?1, (SELECT max(seq) FROM directory_change)) \
                           ORDER BY seq LIMIT ?2)";
                Ok(connection.execute(sql, [floor, TRIM_CHUNK])?)
            });
            let rows = deleted.await?;
            tracing::debug!(rows, "change log trimmed");
            if rows == 0 {
                return Ok(());
            }
        }
    }
}
