//! The directory's store without a service around it, for commands that work on all of it at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, DatabaseConfig};
use crate::directory::DirectoryStore;
use crate::lifecycle::Lifecycle;
use crate::storage;
use crate::store_error::StoreError;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

/// A chunk of an import is one unit of work and larger than any request.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(10);

pub struct OpenStore {
    pub directory: Arc<dyn DirectoryStore>,
    lifecycle: Lifecycle,
}

impl OpenStore {
    /// Fails at once when the database cannot be reached. Changes no schema: whoever reads a file must not
    /// adopt the database of the Python version by that, nor make one where the path has a slip.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let config = DatabaseConfig {
            operation_timeout: config.database.operation_timeout.max(OPERATION_TIMEOUT),
            ..config.database.clone()
        };
        if !storage::check_migrations(&config).await?.pending.is_empty() {
            anyhow::bail!("the database is not up to date: run `unified-backend migrate` first");
        }
        let (lifecycle, health) = (Lifecycle::new(), HealthBoard::default());
        let storage = storage::start(&config, &lifecycle, Arc::new(Metrics::new()?), health.clone())?;
        let begun_at = Instant::now();
        while health.find(name::DATABASE).is_none_or(|check| check.state != State::Up) {
            if begun_at.elapsed() > START_TIMEOUT {
                let detail = health.find(name::DATABASE).and_then(|check| check.detail);
                let detail = detail.unwrap_or_else(|| "it did not get ready in time".to_owned());
                return Err(StoreError::unavailable_because("database", detail).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { directory: storage.directory, lifecycle })
    }

    /// Waits until everything is written and closed.
    pub async fn close(self) -> anyhow::Result<()> {
        self.lifecycle.stop();
        Ok(self.lifecycle.stopped(Duration::ZERO, DRAIN).await?)
    }
}
