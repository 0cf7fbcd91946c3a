//! Redis: the mirror of the users dict for readers of old, the generic cache operations, and the
//! doorbell between instances. Never on the path of a read; losing it costs only those readers.

use std::sync::Arc;

use crate::alerts::Doorbell;
use crate::config::RedisConfig;
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

pub mod doctor;
pub mod routes;

/// Lazy, bounded, behind a breaker. Cheap to clone.
#[derive(Clone)]
pub struct RedisCache {}

impl RedisCache {
    /// Connects on first use.
    pub fn new(config: &RedisConfig, metrics: Arc<Metrics>, health: HealthBoard) -> Self {
        let _ = (config, metrics, health);
        todo!()
    }

    /// For `/health` and `/cache/stats`.
    pub async fn get_stats(&self) -> serde_json::Value {
        todo!()
    }

    /// Starts the mirror of the users dict and the carrier of rings between instances.
    pub fn start_services(&self, directory: &Directory, doorbell: &Doorbell, lifecycle: &Lifecycle) {
        let _ = (directory, doorbell, lifecycle);
        todo!()
    }
}
