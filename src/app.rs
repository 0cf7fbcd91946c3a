//! The composition root: the only place that picks backends and wires tasks.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::alerts::{AlertLog, Ingest};
use crate::config::Config;
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::push::Push;
use crate::redis::RedisCache;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// What the routes of one service work with.
#[derive(Clone)]
pub struct AppState {
    pub config: Arc<Config>,
    pub directory: Directory,
    pub log: Arc<dyn AlertLog>,
    pub ingest: Ingest,
    pub push: Push,
    pub redis: Option<RedisCache>,
    pub health: HealthBoard,
    pub metrics: Arc<Metrics>,
    pub lifecycle: Lifecycle,
}

/// A running service.
pub struct App {
    pub address: SocketAddr,
    pub state: AppState,
}

impl App {
    /// Migrates, binds and starts everything. Redis and Kafka are not waited for.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let _ = config;
        todo!()
    }

    /// Serves until [`Lifecycle::stop`] and the drain are over.
    pub async fn run_until_stopped(self) -> anyhow::Result<()> {
        todo!()
    }
}
