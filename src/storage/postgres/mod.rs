//! PostgreSQL behind the ports. Owns connections, the schema and its upkeep; knows no transport.

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
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::connection::Endpoint;
use self::pool::Pool;
use super::{MigrationError, Storage};
use crate::config::{DatabaseConfig, Secret};
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const MIGRATION_RETRY: Duration = Duration::from_millis(500);
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// Clients may follow a dict token at least this long.
const CHANGES_KEPT: Duration = Duration::from_secs(3600);

pub fn start(
    url: &Secret,
    config: &DatabaseConfig,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) -> Result<Storage, StoreError> {
    let limit = config.operation_timeout;
    let endpoint = Endpoint::parse(url, limit)?;
    let (obstacle, waiting) = watch::channel(Some("it is not connected yet".to_owned()));
    let pool = Pool::new(&endpoint, config.pool_size, limit, waiting, metrics.clone())?;
    health.report(name::DATABASE, State::Starting, Some("connecting".to_owned()));
    let keeper =
        Keeper { url: url.clone(), pool: pool.clone(), obstacle, health, closing: lifecycle.closing().clone() };
    lifecycle.spawn_service("database", keeper.run());
    Ok(Storage {
        directory: Arc::new(directory::PostgresDirectory::start(pool.clone(), endpoint, limit, lifecycle)),
        alerts: Arc::new(alerts::PostgresAlertLog::new(pool, metrics)),
    })
}

/// Which transaction was the oldest one running, at what time.
struct Oldest {
    at: Instant,
    epoch: i64,
    xmin: String,
}

/// The one task of the engine: migrates, then probes and trims until the service closes.
struct Keeper {
    url: Secret,
    pool: Pool,
    obstacle: watch::Sender<Option<String>>,
    health: HealthBoard,
    closing: CancellationToken,
}

impl Keeper {
    async fn run(self) -> anyhow::Result<()> {
        let closing = self.closing.clone();
        let outcome = tokio::select! {
            biased;
            () = closing.cancelled() => Ok(()),
            outcome = self.keep() => outcome,
        };
        self.pool.close();
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
            match migrations::migrate(&self.url).await {
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
        let probing = self.pool.run("probe", move |mut lease| async move {
            let client = lease.client()?;
            // A primary that was demoted answers reads; it cannot do what we are for.
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await?;
            Ok((lease, row.try_get::<_, bool>(0)?))
        });
        let (state, detail) = match probing.await {
            Ok(false) => (State::Up, None),
            Ok(true) => {
                (State::Down, Some("the server is a read-only standby: point DATABASE_URL at the primary".to_owned()))
            }
            Err(error) => (State::Down, Some(error.to_string())),
        };
        let told = detail.clone().unwrap_or_default();
        if self.health.report(name::DATABASE, state, detail) {
            match state {
                State::Up => tracing::info!("the database answers"),
                _ => {
                    tracing::error!(error = %told, "the database does not answer; requests that need it are refused with 503")
                }
            }
        }
        if state == State::Up {
            self.health.report_latency(name::DATABASE, begun_at.elapsed());
        }
    }

    /// Deletes what no cursor younger than [`CHANGES_KEPT`] can need. One instance at a time.
    async fn trim(&self, seen: &mut VecDeque<Oldest>) -> Result<(), StoreError> {
        let oldest = self.pool.run("trim_changes", move |mut lease| async move {
            let client = lease.client()?;
            let sql = "SELECT born, pg_snapshot_xmin(pg_current_snapshot())::text FROM directory_epoch \
                       WHERE home = directory_home()";
            let row = client.query_opt(sql, &[]).await?;
            let oldest = row.map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?)));
            Ok((lease, oldest.transpose()?))
        });
        let Some((epoch, xmin)) = oldest.await? else { return Ok(()) };
        // Numbers of another epoch say nothing about this one's.
        seen.retain(|oldest| oldest.epoch == epoch);
        seen.push_back(Oldest { at: Instant::now(), epoch, xmin });
        let mut floor = None;
        while seen.front().is_some_and(|oldest| oldest.at.elapsed() >= CHANGES_KEPT) {
            floor = seen.pop_front().map(|oldest| oldest.xmin);
        }
        let Some(floor) = floor else { return Ok(()) };
        let (floor, epoch) = (&floor, &epoch);
        let deleted = self.pool.run("trim_changes", move |mut lease| async move {
            let client = lease.client()?;
            let transaction = client.transaction().await?;
            let turn = transaction.query_one("SELECT pg_try_advisory_xact_lock(7230211, 3)", &[]).await?;
            if !turn.try_get::<_, bool>(0)? {
                transaction.rollback().await?;
                return Ok((lease, 0));
            }
            let sql = "UPDATE directory_epoch SET floor = greatest(floor, $1::text::xid8) WHERE born = $2";
            let raised = transaction.execute(sql, &[floor, epoch]).await?;
            let sql = "DELETE FROM directory_change WHERE xid < $1::text::xid8 AND $2";
            let deleted = transaction.execute(sql, &[floor, &(raised > 0)]).await?;
            transaction.commit().await?;
            Ok((lease, deleted))
        });
        let rows = deleted.await?;
        tracing::debug!(rows, "change log trimmed");
        Ok(())
    }
}
