//! sqlite behind the ports.

pub mod doctor;
pub mod migrations;

use std::path::Path;
use std::sync::Arc;

use super::Storage;
use crate::config::DatabaseConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

pub fn start(
    path: &Path,
    config: &DatabaseConfig,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) -> Result<Storage, StoreError> {
    let _ = (path, config, lifecycle, metrics, health);
    todo!()
}
