//! The schema of this engine, embedded.
use crate::storage::{MigrationError, MigrationReport};
use std::path::Path;

pub async fn migrate(path: &Path) -> Result<MigrationReport, MigrationError> {
    let _ = path;
    todo!()
}

pub async fn check(path: &Path) -> Result<MigrationReport, MigrationError> {
    let _ = path;
    todo!()
}
