//! The barrier: answers reads from the replica after it was validated against the database, one
//! round trip for all who wait. Owns the replica's life; [`driver`] is its one task. Knows the port
//! [`DirectoryStore`], no engine and no transport.
//!
//! Why a read is never stale: a reader joins the collecting round; the driver closes that round before
//! it sends the validating statement; the statement's snapshot is therefore younger than the reader,
//! and so contains every commit that was acknowledged before the reader came.

mod driver;
mod rounds;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::{Notify, oneshot, watch};

use self::rounds::Rounds;
use super::cursor::Cursor;
use super::replica::Snapshot;
use super::store::{DirectoryFeed, DirectoryStore};
use super::{DictDelta, View};
use crate::config::DirectoryConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// Handle to the barrier. Cheap to clone.
#[derive(Clone)]
pub struct Barrier {
    shared: Arc<Shared>,
}

/// While one lives the replica is kept fresh without readers.
pub struct FreshGuard {
    shared: Arc<Shared>,
}

/// The replica in figures.
#[derive(Clone, Debug)]
pub struct Stats {
    pub entries: usize,
    /// Estimated memory.
    pub bytes: usize,
    pub version: Option<Cursor>,
    /// How long ago the last successful validation began.
    pub validated: Option<Duration>,
    /// Full loads since start, the first one not counted.
    pub rebuilds: u64,
}

/// What readers and the driver share.
struct Shared {
    rounds: Rounds,
    /// For the driver: something is wanted of it.
    wake: Notify,
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    /// When the last successful validation began.
    validated_at: Mutex<Option<Instant>>,
    feed: Mutex<Option<Arc<dyn DirectoryFeed>>>,
    followers: AtomicUsize,
    /// This instance wrote something: followers need not wait for the next poll.
    nudged: AtomicBool,
    rebuild_requests: Mutex<Vec<oneshot::Sender<Result<(), StoreError>>>>,
    loads: AtomicU64,
    reads_validated: IntCounter,
    reads_stale: IntCounter,
    reads_refused: IntCounter,
}

impl Barrier {
    pub fn start(
        store: Arc<dyn DirectoryStore>,
        config: &DirectoryConfig,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reads = |kind| metrics.directory_reads.with_label_values(&[kind]);
        let shared = Arc::new(Shared {
            rounds: Rounds::new(config.read_deadline),
            wake: Notify::new(),
            latest: watch::Sender::new(None),
            validated_at: Mutex::new(None),
            feed: Mutex::new(None),
            followers: AtomicUsize::new(0),
            nudged: AtomicBool::new(false),
            rebuild_requests: Mutex::new(Vec::new()),
            loads: AtomicU64::new(0),
            reads_validated: reads("validated"),
            reads_stale: reads("stale"),
            reads_refused: reads("refused"),
        });
        let driver = driver::Driver::new(shared.clone(), store, config.clone(), metrics);
        lifecycle.spawn_service("directory barrier", driver.run(lifecycle.closing().clone()));
        Self { shared }
    }

    /// A view that contains every write acknowledged before this call. Cancel-safe.
    pub async fn read(&self) -> Result<View, StoreError> {
        let (round, first) = self.shared.rounds.join(now());
        if first {
            self.shared.wake.notify_one();
        }
        match round.answered().await {
            Ok(view) if view.stale.is_none() => {
                self.shared.reads_validated.inc();
                Ok(view.clone())
            }
            Ok(view) => {
                self.shared.reads_stale.inc();
                Ok(view.clone())
            }
            Err(error) => {
                self.shared.reads_refused.inc();
                Err(error.repeat())
            }
        }
    }

    pub fn find_latest(&self) -> Option<Arc<Snapshot>> {
        self.shared.latest.borrow().clone()
    }

    pub fn follow(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.shared.latest.subscribe()
    }

    pub fn keep_fresh(&self) -> FreshGuard {
        self.shared.followers.fetch_add(1, Ordering::SeqCst);
        self.shared.wake.notify_one();
        FreshGuard { shared: self.shared.clone() }
    }

    /// Tells followers' poll that this instance just wrote.
    pub fn nudge(&self) {
        if self.shared.followers.load(Ordering::SeqCst) > 0 && !self.shared.nudged.swap(true, Ordering::SeqCst) {
            self.shared.wake.notify_one();
        }
    }

    /// See [`super::Directory::dict_delta`].
    pub async fn dict_delta(&self, since: Option<&Cursor>) -> Result<DictDelta, StoreError> {
        let view = self.read().await?;
        let Some(since) = since else { return Ok(DictDelta::whole(&view.snapshot)) };
        if let Some(delta) = DictDelta::remembered(&view.snapshot, &view.cursor, since) {
            return Ok(delta);
        }
        let feed = self.shared.feed.lock().clone();
        let ids = match feed {
            Some(feed) if since.is_within(&view.cursor) => feed.changed_users_since(since).await?,
            _ => None,
        };
        Ok(ids.map_or_else(|| DictDelta::whole(&view.snapshot), |ids| DictDelta::of(&view.snapshot, since, ids)))
    }

    /// Loads everything anew; answers when that load is in place.
    pub async fn rebuild(&self) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.shared.rebuild_requests.lock().push(sender);
        if self.shared.rounds.is_closed() {
            return Err(stopping());
        }
        self.shared.wake.notify_one();
        receiver.await.unwrap_or_else(|_| Err(stopping()))
    }

    pub fn stats(&self) -> Stats {
        let snapshot = self.find_latest();
        Stats {
            entries: snapshot.as_ref().map_or(0, |snapshot| snapshot.count_users()),
            bytes: snapshot.as_ref().map_or(0, |snapshot| snapshot.count_bytes()),
            version: snapshot.map(|snapshot| snapshot.cursor().clone()),
            validated: self.shared.validated_at.lock().map(|at| now().saturating_duration_since(at)),
            rebuilds: self.shared.loads.load(Ordering::SeqCst).saturating_sub(1),
        }
    }
}

impl Drop for FreshGuard {
    fn drop(&mut self) {
        self.shared.followers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The runtime's clock, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Runs what takes milliseconds of computing beside the runtime's threads.
pub(super) async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|join| StoreError::unavailable("database", join))
}

fn stopping() -> StoreError {
    StoreError::unavailable_because("database", "the service is stopping")
}

#[cfg(test)]
mod tests;
