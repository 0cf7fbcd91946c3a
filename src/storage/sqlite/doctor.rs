//! Looks a database file over for an operator: what would keep the service from working, and what to
//! do. Changes nothing.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access, statvfs};

use super::migrations;
use crate::storage::MigrationError;
use crate::store_error::describe;
use crate::telemetry::finding::Finding;

const SUBJECT: &str = "database";
const MEGABYTE: u64 = 1024 * 1024;
/// Below this the service will soon refuse to write.
const LEAST_SPACE: u64 = 100 * MEGABYTE;
const LITTLE_SPACE: u64 = 1024 * MEGABYTE;

pub async fn examine(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let directory = directory_of(path);
    if path.exists() {
        examine_file(path, &mut findings).await;
    } else if access(&directory, Access::WRITE_OK).is_ok() {
        findings.push(Finding::ok(SUBJECT, format!("SQLite: {} will be made at the first start", path.display())));
    }
    if access(&directory, Access::WRITE_OK).is_err() {
        let remedy =
            "let the service's user write there: chown it, or choose another place in DATABASE_URL=sqlite:PATH";
        findings.push(Finding::failure(
            SUBJECT,
            format!("the directory {} is not writable", directory.display()),
            remedy,
        ));
    }
    findings.extend(examine_space(&directory));
    findings
}

/// The nearest one that exists; the service makes those below it.
fn directory_of(path: &Path) -> PathBuf {
    let mut ancestors = path.ancestors().skip(1);
    let found = ancestors.find(|ancestor| ancestor.as_os_str().is_empty() || ancestor.is_dir());
    match found {
        Some(directory) if !directory.as_os_str().is_empty() => directory.to_owned(),
        _ => PathBuf::from("."),
    }
}

async fn examine_file(path: &Path, findings: &mut Vec<Finding>) {
    if access(path, Access::READ_OK | Access::WRITE_OK).is_err() {
        let remedy = "let the service's user read and write it: chown or chmod";
        findings.push(Finding::failure(SUBJECT, format!("{} is not writable", path.display()), remedy));
        return;
    }
    let file = path.to_owned();
    let checked = tokio::task::spawn_blocking(move || check_integrity(&file)).await;
    let checked =
        checked.map_err(|error| error.to_string()).and_then(|checked| checked.map_err(|error| describe(&error)));
    match checked {
        Ok(faults) if faults.is_empty() => {
            let detail = format!("SQLite {}: {} is whole", rusqlite::version(), path.display());
            findings.push(Finding::ok(SUBJECT, detail));
        }
        Ok(faults) => {
            let remedy = "stop the service, keep a copy, and restore the last backup (or try `sqlite3 FILE .recover`)";
            findings.push(Finding::failure(
                SUBJECT,
                format!("{} is damaged: {}", path.display(), faults.join("; ")),
                remedy,
            ));
            return;
        }
        Err(detail) => {
            let remedy =
                "is it an SQLite database? Choose another file in DATABASE_URL=sqlite:PATH, or restore a backup";
            findings.push(Finding::failure(SUBJECT, format!("{} cannot be read: {detail}", path.display()), remedy));
            return;
        }
    }
    findings.push(match migrations::check(path).await {
        Ok(report) if report.pending.is_empty() => Finding::ok(SUBJECT, "its schema is up to date"),
        Ok(report) => {
            let remedy = "nothing, `serve` applies them when it starts; or run `unified-backend migrate` now";
            Finding::warning(SUBJECT, format!("pending migrations: {}", report.pending.join(", ")), remedy)
        }
        Err(error @ MigrationError::Newer { .. }) => {
            Finding::failure(SUBJECT, error.to_string(), "run the version that made it")
        }
        Err(error) => Finding::failure(SUBJECT, error.to_string(), "stop what else uses the file, and try again"),
    });
}

/// What is damaged; a connection of its own that cannot write.
fn check_integrity(path: &Path) -> rusqlite::Result<Vec<String>> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let mut statement = connection.prepare("PRAGMA quick_check(5)")?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

fn examine_space(directory: &Path) -> Option<Finding> {
    let space = statvfs(directory).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let detail = format!("{} MB free at {}", free / MEGABYTE, directory.display());
    let remedy = "make room, or move the file to a larger disk (DATABASE_URL=sqlite:PATH)";
    Some(match free {
        free if free < LEAST_SPACE => Finding::failure(SUBJECT, detail, remedy),
        free if free < LITTLE_SPACE => Finding::warning(SUBJECT, detail, remedy),
        _ => Finding::ok(SUBJECT, detail),
    })
}
