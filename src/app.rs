//! The composition root: the only place that picks backends and wires tasks.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;

use crate::alerts::decode::DecodeLimits;
use crate::alerts::{AlertLog, Doorbell, Ingest};
use crate::config::Config;
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::push::Push;
use crate::redis::RedisCache;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;
use crate::{http, kafka, storage};

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
    /// Binds and starts everything. No dependency is waited for: what is not there yet is reported by
    /// `/health` and used as soon as it comes.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let address = SocketAddr::new(config.api.host, config.api.port);
        let listener = http::bind(address)
            .with_context(|| format!("cannot listen on {address}: choose another API_HOST or API_PORT"))?;
        let address = listener.local_addr()?;
        let (lifecycle, health) = (Lifecycle::new(), HealthBoard::default());
        let metrics = Arc::new(Metrics::new()?);
        let storage = storage::start(&config.database, &lifecycle, metrics.clone(), health.clone())?;
        let mut reads = config.directory.clone();
        // A read has no other deadline than its validation's, so that one bounds it as any request.
        reads.read_deadline = reads.read_deadline.min(config.api.request_deadline);
        let directory = Directory::start(storage.directory, &reads, &lifecycle, metrics.clone());
        let doorbell = Doorbell::default();
        let log = storage.alerts;
        let ingest = Ingest::start(
            log.clone(),
            directory.clone(),
            doorbell.clone(),
            config.database.operation_timeout,
            &lifecycle,
            metrics.clone(),
            health.clone(),
        );
        let push = Push::start(log.clone(), doorbell.clone(), &config.alerts, &config.api, &lifecycle, metrics.clone());
        let redis = config.redis.as_ref().map(|redis| RedisCache::new(redis, metrics.clone(), health.clone()));
        if let Some(redis) = &redis {
            redis.start_services(&directory, &doorbell, &lifecycle);
        }
        if let Some(kafka) = &config.kafka {
            let limits = DecodeLimits { max_bytes: config.alerts.max_bytes, timezone: config.alerts.timezone.clone() };
            kafka::start(kafka, limits, log.clone(), ingest.clone(), &lifecycle, metrics.clone(), health.clone());
        }
        let state = AppState {
            config: Arc::new(config),
            directory,
            log,
            ingest,
            push,
            redis,
            health,
            metrics: metrics.clone(),
            lifecycle: lifecycle.clone(),
        };
        let surface = http::surface(state.clone())?;
        let serving = http::serve(listener, surface, state.config.api.clone(), lifecycle.clone(), metrics);
        lifecycle.spawn_service("http listener", serving);
        Ok(Self { address, state })
    }

    /// Serves until [`Lifecycle::stop`] and the drain are over.
    pub async fn run_until_stopped(self) -> anyhow::Result<()> {
        let shutdown = &self.state.config.shutdown;
        self.state.lifecycle.stopped(shutdown.settle, shutdown.drain).await?;
        Ok(())
    }
}
