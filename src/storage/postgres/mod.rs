//! postgres behind the ports.

pub mod migrations;

use crate::config::Secret;
use std::sync::Arc;

use super::Storage;
use crate::config::DatabaseConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

pub fn start(
    url: &Secret,
    config: &DatabaseConfig,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) -> Result<Storage, StoreError> {
    let _ = (url, config, lifecycle, metrics, health);
    todo!()
}
