//! From the driver's errors to the ports' vocabulary, with what an operator can do about them.

use rusqlite::ErrorCode;

use crate::store_error::{StoreError, describe};

pub const DEPENDENCY: &str = "database";

/// What an error of the driver means to a caller.
pub fn translate(operation: &'static str, limit_ms: u64, error: rusqlite::Error) -> StoreError {
    let explain =
        |advice: &str| StoreError::unavailable_because(DEPENDENCY, format!("{advice} ({})", describe(&error)));
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => StoreError::Deadline { dependency: DEPENDENCY, operation, limit_ms },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            explain("another process keeps the database locked: end its transaction")
        }
        Some(ErrorCode::DiskFull) => explain("the disk is full: free some space"),
        Some(ErrorCode::ReadOnly) => {
            explain("the database cannot be written: make its file and directory writable for this process")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            explain("the database file cannot be opened: check its path and permissions")
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::corrupt(
            DEPENDENCY,
            format!("the file is damaged or no SQLite database: restore a backup ({})", describe(&error)),
        ),
        _ => StoreError::unavailable(DEPENDENCY, error),
    }
}
