//! The one way in: Kafka and HTTP both end here. Forms batches by itself: while one append runs, the
//! next fills. Fills missing names from the directory. Knows neither Kafka nor HTTP.

use std::sync::Arc;

use super::doorbell::Doorbell;
use super::log::{AlertLog, AppendError};
use super::types::{AppendBatch, Appended};
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {}

impl Ingest {
    pub fn start(
        log: Arc<dyn AlertLog>,
        directory: Directory,
        doorbell: Doorbell,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
        health: HealthBoard,
    ) -> Self {
        let _ = (log, directory, doorbell, lifecycle, metrics, health);
        todo!()
    }

    /// Answers after the commit. Several callers' batches may share one append; an error concerns the
    /// caller's batch alone. The work goes on when the caller goes away.
    pub async fn accept(&self, batch: AppendBatch) -> Result<Appended, AppendError> {
        let _ = batch;
        todo!()
    }
}
