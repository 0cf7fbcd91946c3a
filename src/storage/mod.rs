//! The two engines behind the ports. Both folders hold the same files; both promise the same.

pub mod postgres;
pub mod sqlite;

use std::sync::Arc;

use crate::alerts::AlertLog;
use crate::config::{DatabaseConfig, DatabaseEngine};
use crate::directory::DirectoryStore;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::finding::Finding;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// One opened engine.
#[derive(Clone)]
pub struct Storage {
    pub directory: Arc<dyn DirectoryStore>,
    pub alerts: Arc<dyn AlertLog>,
}

/// What a migration found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// Names of migrations that were applied by this call, e.g. `0001_directory`.
    pub applied: Vec<String>,
    /// Names of those that the binary has and the database lacks (only `check_migrations` leaves any).
    pub pending: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(
        "the database has migration {version} `{name}`, which this binary does not know: it was made by a newer \
         version; run that version, or restore the backup taken before the upgrade"
    )]
    Newer { version: i64, name: String },
    #[error("migration failed, nothing of it was kept: {0}")]
    Failed(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens the configured engine without waiting for it: a service task migrates it as soon as it can be
/// reached and reports to the board; until then every unit of work answers `Unavailable`. A schema that
/// is newer than the binary stops the service.
pub fn start(
    config: &DatabaseConfig,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) -> Result<Storage, StoreError> {
    match &config.engine {
        DatabaseEngine::Postgres { url } => postgres::start(url, config, lifecycle, metrics, health),
        DatabaseEngine::Sqlite { path } => sqlite::start(path, config, lifecycle, metrics, health),
    }
}

/// Applies what is pending and waits for it; safe to run from several processes at once.
pub async fn migrate(config: &DatabaseConfig) -> Result<MigrationReport, MigrationError> {
    match &config.engine {
        DatabaseEngine::Postgres { url } => postgres::migrations::migrate(url).await,
        DatabaseEngine::Sqlite { path } => sqlite::migrations::migrate(path).await,
    }
}

/// What [`migrate`] would do; changes nothing.
pub async fn check_migrations(config: &DatabaseConfig) -> Result<MigrationReport, MigrationError> {
    match &config.engine {
        DatabaseEngine::Postgres { url } => postgres::migrations::check(url).await,
        DatabaseEngine::Sqlite { path } => sqlite::migrations::check(path).await,
    }
}

/// Looks the configured database over; changes nothing.
pub async fn examine(config: &DatabaseConfig) -> Vec<Finding> {
    match &config.engine {
        DatabaseEngine::Postgres { url } => postgres::doctor::examine(url).await,
        DatabaseEngine::Sqlite { path } => sqlite::doctor::examine(path).await,
    }
}
