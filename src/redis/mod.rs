//! Redis: the mirror of the users dict for readers of old, the generic cache operations, and the
//! doorbell between instances. Never on the path of a read; losing it costs only those readers.

mod breaker;
mod connection;
mod dict_hash;
pub mod doctor;
mod doorbell;
mod fault;
mod mirror;
mod operations;
pub mod routes;
mod script;
mod selftest;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use operations::CacheError;

use self::connection::Connection;
use self::mirror::Mirror;
use self::operations::Operations;
use crate::alerts::Doorbell;
use crate::config::RedisConfig;
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// The hash that readers know.
const USERS_DICT: &str = "users:dict";
/// The sorted set of the keys that were set here.
const KEYS: &str = "unified_backend:keys";

/// Lazy, bounded, behind a breaker. Cheap to clone.
#[derive(Clone)]
pub struct RedisCache {
    inner: Arc<Inner>,
}

struct Inner {
    config: RedisConfig,
    connection: Connection,
    operations: Operations,
    metrics: Arc<Metrics>,
}

impl RedisCache {
    /// Connects on first use.
    pub fn new(config: &RedisConfig, metrics: Arc<Metrics>, health: HealthBoard) -> Self {
        let connection = Connection::new(config, metrics.clone(), health);
        let operations = Operations::new(connection.clone(), USERS_DICT, KEYS);
        Self { inner: Arc::new(Inner { config: config.clone(), connection, operations, metrics }) }
    }

    /// Starts the mirror of the users dict and the carrier of rings between instances.
    pub fn start_services(&self, directory: &Directory, doorbell: &Doorbell, lifecycle: &Lifecycle) {
        lifecycle.spawn_service("redis mirror", self.mirror(directory).run(lifecycle.closing().clone()));
        let carrier = doorbell::Carrier::new(self.inner.connection.clone(), doorbell.clone());
        lifecycle.spawn_service("redis doorbell", carrier.run(lifecycle.closing().clone()));
    }

    /// Writes the mirror anew from what the database holds now. `false`: Redis is not available.
    pub async fn rebuild_mirror(&self, directory: &Directory) -> Result<bool, StoreError> {
        self.mirror(directory).rebuild().await
    }

    /// Waits for the connection, for those who make one call and end: a far server, or one behind TLS,
    /// may take longer to connect to than a call may take. Everybody else just calls.
    pub async fn connect(&self) -> Result<(), CacheError> {
        self.inner.operations.connect().await
    }

    /// Puts these entries in the place of the users dict, in one step. Where the service mirrors its
    /// directory, that wins within a tick.
    pub async fn cache_users_dict(&self, entries: &BTreeMap<i64, String>, ttl: Duration) -> Result<(), CacheError> {
        self.inner.operations.cache_users_dict(entries, ttl).await
    }

    /// `None`: there is none, or nobody in it.
    pub async fn get_users_dict(&self) -> Result<Option<BTreeMap<String, String>>, CacheError> {
        self.inner.operations.get_users_dict().await
    }

    /// Whether there was one.
    pub async fn invalidate_users_dict(&self) -> Result<bool, CacheError> {
        self.inner.operations.invalidate_users_dict().await
    }

    /// The key is used as it is given.
    pub async fn set(&self, key: &str, value: &serde_json::Value, ttl: Duration) -> Result<(), CacheError> {
        self.inner.operations.set(key, value, ttl).await
    }

    pub async fn get(&self, key: &str) -> Result<Option<serde_json::Value>, CacheError> {
        self.inner.operations.get(key).await
    }

    /// Whether it was there.
    pub async fn delete(&self, key: &str) -> Result<bool, CacheError> {
        self.inner.operations.delete(key).await
    }

    pub async fn exists(&self, key: &str) -> Result<bool, CacheError> {
        self.inner.operations.exists(key).await
    }

    /// RedisStats; tells what is wrong when Redis is not available.
    pub async fn get_stats(&self) -> serde_json::Value {
        self.inner.operations.get_stats(&self.inner.config).await
    }

    /// Removes the users dict and everything that was set through here, nothing else; how many keys.
    pub async fn clear_all(&self) -> Result<u64, CacheError> {
        self.inner.operations.clear_all().await
    }

    /// Lets the connection go. The next use makes a new one.
    #[expect(clippy::unused_async, reason = "as all operations; a later one may have something to wait for")]
    pub async fn close(&self) {
        self.inner.connection.close();
    }

    /// Runs every operation on keys of its own and leaves nothing behind.
    pub async fn selftest(&self) -> Vec<(&'static str, Result<String, CacheError>)> {
        selftest::run(&self.inner.connection, &self.inner.config).await
    }

    fn mirror(&self, directory: &Directory) -> Mirror {
        let inner = &self.inner;
        Mirror::new(inner.connection.clone(), directory.clone(), inner.config.users_dict_ttl, inner.metrics.clone())
    }
}
