//! Alerts from the log to every screen, live and resumable. One follower per instance reads the log,
//! serialises each alert once and hands the same bytes to all sessions.

use std::sync::Arc;

use crate::alerts::{AlertLog, Doorbell};
use crate::config::{AlertsConfig, ApiConfig};
use crate::lifecycle::Lifecycle;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub struct Push {}

impl Push {
    pub fn start(
        log: Arc<dyn AlertLog>,
        doorbell: Doorbell,
        alerts: &AlertsConfig,
        api: &ApiConfig,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
        health: HealthBoard,
    ) -> Self {
        let _ = (log, doorbell, alerts, api, lifecycle, metrics, health);
        todo!()
    }

    /// `/ws/alerts` and `/alerts/stream`.
    pub fn router(&self) -> axum::Router {
        todo!()
    }
}
