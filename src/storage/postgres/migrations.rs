//! The schema of this engine, embedded, and how it is brought forward.

use std::time::Duration;

use tokio_postgres::Client;

use super::connection::Endpoint;
use super::error::DEPENDENCY;
use crate::config::Secret;
use crate::storage::{MigrationError, MigrationReport};
use crate::store_error::{StoreError, describe};

mod embedded {
    refinery::embed_migrations!("migrations/postgres");
}

/// One number for all of this service's migrations: two instances that start at once take turns.
const LOCK_KEY: &str = "SELECT pg_advisory_lock(7230211, 1)";

/// Applies what is pending. Waits for another process that is at it.
pub async fn migrate(url: &Secret) -> Result<MigrationReport, MigrationError> {
    let mut client = Endpoint::parse(url, Duration::ZERO)?.connect().await?;
    client.batch_execute(LOCK_KEY).await.map_err(|error| StoreError::unavailable(DEPENDENCY, error))?;
    let applied = find_pending(&client).await?;
    if !applied.is_empty() {
        // The lock ends with the connection, also after a failure.
        embedded::migrations::runner()
            .set_grouped(true)
            .run_async(&mut client)
            .await
            .map_err(|error| MigrationError::Failed(describe(&error)))?;
    }
    Ok(MigrationReport { applied, pending: Vec::new() })
}

/// What [`migrate`] would apply.
pub async fn check(url: &Secret) -> Result<MigrationReport, MigrationError> {
    let client = Endpoint::parse(url, Duration::ZERO)?.connect().await?;
    Ok(MigrationReport { applied: Vec::new(), pending: find_pending(&client).await? })
}

async fn find_pending(client: &Client) -> Result<Vec<String>, MigrationError> {
    let failed = |error| StoreError::unavailable(DEPENDENCY, error);
    let encoding: String = client.query_one("SHOW server_encoding", &[]).await.map_err(failed)?.get(0);
    if encoding != "UTF8" {
        return Err(MigrationError::Failed(format!(
            "the database's encoding is {encoding}, names and alerts need UTF8: create a database with \
             ENCODING 'UTF8' and move the data there"
        )));
    }
    let exists = client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await;
    let mut present: Vec<(i32, String)> = Vec::new();
    if exists.map_err(failed)?.get(0) {
        let rows = client.query("SELECT version, name FROM refinery_schema_history ORDER BY version", &[]).await;
        present = rows.map_err(failed)?.iter().map(|row| (row.get(0), row.get(1))).collect();
    }
    let runner = embedded::migrations::runner();
    let known = runner.get_migrations();
    let newest = known.iter().map(|migration| i64::from(migration.version())).max().unwrap_or(0);
    if let Some((version, name)) = present.iter().find(|(version, _)| i64::from(*version) > newest) {
        return Err(MigrationError::Newer { version: i64::from(*version), name: name.clone() });
    }
    let mut pending: Vec<_> = known
        .iter()
        .filter(|migration| !present.iter().any(|(version, _)| i64::from(*version) == i64::from(migration.version())))
        .collect();
    pending.sort_by_key(|migration| migration.version());
    Ok(pending.iter().map(|migration| format!("{:04}_{}", migration.version(), migration.name())).collect())
}
