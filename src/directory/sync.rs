//! The barrier.
use std::sync::Arc;
use std::time::Duration;

use super::cursor::Cursor;
use super::replica::Snapshot;
use super::store::DirectoryStore;
use super::{DictDelta, View};
use crate::config::DirectoryConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

#[derive(Clone)]
pub struct Barrier {}
pub struct FreshGuard {}
#[derive(Clone, Debug)]
pub struct Stats {
    pub entries: usize,
    pub bytes: usize,
    pub version: Option<Cursor>,
    pub validated: Option<Duration>,
    pub rebuilds: u64,
}

impl Barrier {
    pub fn start(
        store: Arc<dyn DirectoryStore>,
        config: &DirectoryConfig,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
        health: HealthBoard,
    ) -> Self {
        let _ = (store, config, lifecycle, metrics, health);
        todo!()
    }
    pub async fn read(&self) -> Result<View, StoreError> {
        todo!()
    }
    pub fn find_latest(&self) -> Option<Arc<Snapshot>> {
        todo!()
    }
    pub fn follow(&self) -> tokio::sync::watch::Receiver<Option<Arc<Snapshot>>> {
        todo!()
    }
    pub fn keep_fresh(&self) -> FreshGuard {
        todo!()
    }
    pub async fn dict_delta(&self, since: Option<&Cursor>) -> Result<DictDelta, StoreError> {
        let _ = since;
        todo!()
    }
    pub async fn rebuild(&self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn stats(&self) -> Stats {
        todo!()
    }
}
