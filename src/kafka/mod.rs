//! Alerts out of Kafka. Positions live in the alert log beside the rows; the broker's committed
//! offsets are advisory. A thread polls the broker; each assigned partition has a keeper on the runtime
//! that takes it in the log and stores what comes. The only place that knows the client library.

mod cameras;
mod client;
mod condition;
pub mod doctor;
mod inbox;
mod keeper;
mod lookup;
mod poison;
mod poller;
mod position;
pub mod producer;
mod properties;
mod service;
mod shared;
mod statistics;
mod verdict;

use std::sync::Arc;

use crate::alerts::decode::DecodeLimits;
use crate::alerts::{AlertLog, Ingest};
use crate::config::KafkaConfig;
use crate::lifecycle::Lifecycle;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

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
    health.report(name::KAFKA, State::Starting, Some(format!("connecting to {}", config.bootstrap_servers)));
    let service = service::Service {
        config: config.clone(),
        limits,
        log,
        ingest,
        lifecycle: lifecycle.clone(),
        shared: Arc::new(shared::Shared::new(metrics)),
        health,
    };
    lifecycle.spawn_service("kafka consumer", service.run());
}
