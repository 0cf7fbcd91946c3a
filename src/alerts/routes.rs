//! `/alerts`, `/alerts/rejected`, `/messages/recent`.

use std::sync::Arc;

use super::decode::DecodeLimits;
use super::{AlertLog, Ingest};

pub fn router(log: Arc<dyn AlertLog>, ingest: Ingest, limits: DecodeLimits) -> axum::Router {
    let _ = (log, ingest, limits);
    todo!()
}
