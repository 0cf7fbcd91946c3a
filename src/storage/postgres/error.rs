//! From the driver's errors to the ports' vocabulary.

use tokio_postgres::error::SqlState;

use crate::store_error::StoreError;

pub const DEPENDENCY: &str = "database";

/// What an error of the driver means to a caller.
pub fn translate(operation: &'static str, limit_ms: u64, error: tokio_postgres::Error) -> StoreError {
    match error.code() {
        Some(code) if *code == SqlState::QUERY_CANCELED || *code == SqlState::LOCK_NOT_AVAILABLE => {
            StoreError::Deadline { dependency: DEPENDENCY, operation, limit_ms }
        }
        Some(code) if is_conflict(code) => StoreError::Conflict { dependency: DEPENDENCY, operation },
        _ => StoreError::unavailable(DEPENDENCY, error),
    }
}

/// Whether the server undid the transaction because of concurrent work, so that it may be repeated.
pub fn is_retryable(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(is_conflict)
}

/// Whether the server refused what a row holds (SQLSTATE classes 22 and 23): nothing of the statement
/// was kept, and other rows may be fine.
pub fn is_about_rows(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("22") || code.code().starts_with("23"))
}

fn is_conflict(code: &SqlState) -> bool {
    *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED
}
