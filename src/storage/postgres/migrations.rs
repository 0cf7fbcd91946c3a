//! The schema of this engine, embedded.
use crate::config::Secret;
use crate::storage::{MigrationError, MigrationReport};

pub async fn migrate(url: &Secret) -> Result<MigrationReport, MigrationError> {
    let _ = url;
    todo!()
}

pub async fn check(url: &Secret) -> Result<MigrationReport, MigrationError> {
    let _ = url;
    todo!()
}
