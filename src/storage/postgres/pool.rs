//! Pooled connections and the frame around every unit of work: a deadline, one name in the metrics,
//! and the rule that a connection is used again only after a clean end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool as Connections, PoolError, RecyclingMethod, Runtime};
use tokio::sync::watch;

use super::connection::Endpoint;
use super::error::{self, DEPENDENCY};
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// How often work that the server undid because of concurrent work is begun again.
const ATTEMPTS: usize = 4;

#[derive(Clone)]
pub struct Pool {
    connections: Connections,
    limit: Duration,
    /// Why nothing can be done yet; `None` once the schema is there.
    obstacle: watch::Receiver<Option<String>>,
    metrics: Arc<Metrics>,
}

/// How a unit of work may end besides its result.
pub enum WorkError {
    Driver(tokio_postgres::Error),
    Store(StoreError),
}

impl From<tokio_postgres::Error> for WorkError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Driver(error)
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A plan that was made while a table was empty reads all of it, and is kept until the server's own statistics
/// come, a minute later or more. Whatever a unit of work looks for has an index; and a page is read in the order of one,
/// not gathered from all that match and sorted.
pub const SESSION: &str = "-c enable_seqscan=off -c enable_bitmapscan=off";

impl Pool {
    pub fn new(
        endpoint: &Endpoint,
        size: usize,
        limit: Duration,
        obstacle: watch::Receiver<Option<String>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let endpoint = endpoint.with_options(SESSION);
        let manager = Manager::from_config(endpoint.config, endpoint.tls, recycling);
        let connections = Connections::builder(manager)
            .max_size(size)
            .queue_mode(deadpool_postgres::QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::unavailable(DEPENDENCY, error))?;
        Ok(Self { connections, limit, obstacle, metrics })
    }

    /// Runs a unit of work; again from the start when the server undid it because of concurrent work.
    /// The work gives the connection back with its result; on every other end it is thrown away.
    pub async fn run<T, F, W>(&self, operation: &'static str, work: F) -> Result<T, StoreError>
    where
        F: Fn(Lease) -> W,
        W: Future<Output = Result<(Lease, T), WorkError>>,
    {
        if let Some(obstacle) = self.obstacle.borrow().as_ref() {
            return Err(StoreError::unavailable_because(DEPENDENCY, obstacle.clone()));
        }
        let begun_at = Instant::now();
        let result = match tokio::time::timeout(self.limit, self.attempt(operation, work)).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Deadline { dependency: DEPENDENCY, operation, limit_ms: self.limit_ms() }),
        };
        self.metrics.store_seconds.with_label_values(&[operation]).observe(begun_at.elapsed().as_secs_f64());
        let status = self.connections.status();
        self.metrics.store_pool_connections.set(count(status.size));
        self.metrics.store_pool_idle.set(count(status.available));
        self.metrics.store_pool_waiting.set(count(status.waiting));
        if let Err(error) = &result {
            self.metrics.store_errors.with_label_values(&[operation, error.kind()]).inc();
        }
        result
    }

    async fn attempt<T, F, W>(&self, operation: &'static str, work: F) -> Result<T, StoreError>
    where
        F: Fn(Lease) -> W,
        W: Future<Output = Result<(Lease, T), WorkError>>,
    {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let object = self.connections.get().await.map_err(|error| match error {
                PoolError::Backend(error) => StoreError::unavailable(DEPENDENCY, error),
                other => StoreError::unavailable(DEPENDENCY, other),
            })?;
            match work(Lease { object: Some(object), metrics: self.metrics.clone() }).await {
                Ok((lease, result)) => {
                    lease.end_cleanly();
                    return Ok(result);
                }
                Err(WorkError::Driver(error)) if error::is_retryable(&error) && attempts < ATTEMPTS => {}
                Err(WorkError::Driver(error)) => return Err(error::translate(operation, self.limit_ms(), error)),
                Err(WorkError::Store(error)) => return Err(error),
            }
        }
    }

    /// Waits until the schema is there.
    pub async fn until_usable(&self) {
        if self.obstacle.clone().wait_for(Option::is_none).await.is_err() {
            tracing::debug!("the database's keeper ended before the schema was there");
        }
    }

    fn limit_ms(&self) -> u64 {
        u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn close(&self) {
        self.connections.close();
    }
}

/// A connection that is thrown away unless its work ended well: after an error, a deadline or a
/// cancellation nobody knows what is still on its way to it.
pub struct Lease {
    /// `Some` until it is given back.
    object: Option<Object>,
    metrics: Arc<Metrics>,
}

impl Lease {
    /// The connection, or an error where it was given back already, which [`Pool::run`] alone does.
    pub fn client(&mut self) -> Result<&mut Object, StoreError> {
        self.object.as_mut().ok_or_else(|| StoreError::corrupt(DEPENDENCY, "a connection was used after its work"))
    }

    fn end_cleanly(mut self) {
        self.object.take();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
            self.metrics.store_pool_discarded.inc();
        }
    }
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
