//! Alerts out of Kafka. Positions live in the alert log beside the rows; the broker's committed
//! offsets are advisory.

use std::sync::Arc;

use crate::alerts::decode::DecodeLimits;
use crate::alerts::{AlertLog, Ingest};
use crate::config::KafkaConfig;
use crate::lifecycle::Lifecycle;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

pub mod doctor;
pub mod producer;

/// Starts the consumer; never waits for a broker.
pub fn start(
    config: &KafkaConfig,
    limits: DecodeLimits,
    log: Arc<dyn AlertLog>,
    ingest: Ingest,
    lifecycle: &Lifecycle,
    metrics: Arc<Metrics>,
    health: HealthBoard,
) {
    let _ = (config, limits, log, ingest, lifecycle, metrics, health);
    todo!()
}
