//! The schema of this engine, embedded, and how it is brought forward.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::connection::{Access, create_parent, open};
use super::error::{DEPENDENCY, translate};
use crate::storage::{MigrationError, MigrationReport};
use crate::store_error::{StoreError, describe};

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// How long the migration of another process is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Applies what is pending; makes the file where there is none. Waits for another process that is at it.
pub async fn migrate(path: &Path) -> Result<MigrationReport, MigrationError> {
    off_runtime(path, bring_forward).await
}

/// What [`migrate`] would apply.
pub async fn check(path: &Path) -> Result<MigrationReport, MigrationError> {
    off_runtime(path, |path| {
        let pending = if path.exists() { find_pending(&open(path, Access::Read, BUSY_TIMEOUT)?)? } else { list_all() };
        Ok(MigrationReport { applied: Vec::new(), pending })
    })
    .await
}

async fn off_runtime(
    path: &Path,
    work: fn(&Path) -> Result<MigrationReport, MigrationError>,
) -> Result<MigrationReport, MigrationError> {
    let path = path.to_owned();
    let working = tokio::task::spawn_blocking(move || work(&path));
    working.await.map_err(|error| StoreError::unavailable(DEPENDENCY, error))?
}

fn bring_forward(path: &Path) -> Result<MigrationReport, MigrationError> {
    create_parent(path)?;
    let mut connection = open(path, Access::Create, BUSY_TIMEOUT)?;
    connection.set_transaction_behavior(TransactionBehavior::Immediate);
    loop {
        let pending = find_pending(&connection)?;
        if pending.is_empty() {
            return Ok(MigrationReport { applied: Vec::new(), pending });
        }
        match embedded::migrations::runner().set_grouped(true).run(&mut connection) {
            // All of it is one transaction; another process may have been faster.
            Ok(report) => {
                let done = report.applied_migrations();
                let applied = list(|version| done.iter().any(|migration| i64::from(migration.version()) == version));
                return Ok(MigrationReport { applied, pending: Vec::new() });
            }
            Err(_) if find_pending(&connection)? != pending => {}
            Err(error) => return Err(MigrationError::Failed(describe(&error))),
        }
    }
}

fn find_pending(connection: &Connection) -> Result<Vec<String>, MigrationError> {
    let present = read_history(connection).map_err(|error| translate("read the schema's history", 0, error))?;
    let runner = embedded::migrations::runner();
    let known = runner.get_migrations();
    let newest = known.iter().map(|migration| i64::from(migration.version())).max().unwrap_or(0);
    if let Some((version, name)) = present.iter().find(|(version, _)| *version > newest) {
        return Err(MigrationError::Newer { version: *version, name: name.clone() });
    }
    let is_present = |version: i64| present.iter().any(|(present, _)| *present == version);
    Ok(list(|version| !is_present(version)))
}

fn read_history(connection: &Connection) -> rusqlite::Result<Vec<(i64, String)>> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'refinery_schema_history'";
    if !connection.prepare(sql)?.exists([])? {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare("SELECT version, name FROM refinery_schema_history ORDER BY version")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn list_all() -> Vec<String> {
    list(|_| true)
}

fn list(is_wanted: impl Fn(i64) -> bool) -> Vec<String> {
    let runner = embedded::migrations::runner();
    let mut wanted: Vec<_> =
        runner.get_migrations().iter().filter(|migration| is_wanted(migration.version().into())).collect();
    wanted.sort_by_key(|migration| migration.version());
    wanted.iter().map(|migration| format!("{:04}_{}", migration.version(), migration.name())).collect()
}
