//! People, zones and who may be where. Reads come from a replica in memory that is validated against
//! the database after the read arrived; writes go through the store. Knows no engine.

mod audit;
pub mod cursor;
pub mod dict;
pub mod geometry;
mod history;
pub mod json;
mod pages;
pub mod replica;
pub mod routes;
pub mod store;
pub mod sync;
mod types;

use std::sync::Arc;
use std::time::Duration;

pub use cursor::Cursor;
pub use replica::Snapshot;
pub use store::DirectoryStore;
pub use types::{
    Command, NAME_CHARACTERS, NewUser, NewZone, Outcome, Refusal, User, UserPatch, WriteError, Zone, ZonePatch,
};

use tokio_util::sync::CancellationToken;

use crate::config::DirectoryConfig;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// The directory of one service. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    store: Arc<dyn DirectoryStore>,
    barrier: sync::Barrier,
    lifecycle: Lifecycle,
}

/// A snapshot that a read may be answered from.
#[derive(Clone)]
pub struct View {
    pub snapshot: Arc<Snapshot>,
    /// The moment up to which the snapshot's content is known to hold; its own cursor or later.
    pub cursor: Arc<Cursor>,
    /// `None`: validated after the read arrived. Else how old it is at most; the answer is marked.
    pub stale: Option<Duration>,
}

/// What changed after a client's token.
#[derive(Debug, Clone)]
pub struct DictDelta {
    pub version: Cursor,
    /// The token could not be followed: `set` is the whole map.
    pub reset: bool,
    /// Ascending by global id.
    pub set: Vec<(i64, Box<str>)>,
    pub deleted: Vec<i64>,
}

impl DictDelta {
    /// The whole map, for a client whose token cannot be followed.
    fn whole(snapshot: &Snapshot) -> Self {
        let set = snapshot.dict_entries().map(|(global_id, name)| (global_id, name.into())).collect();
        Self { version: snapshot.cursor().clone(), reset: true, set, deleted: Vec::new() }
    }

    /// The snapshot's entries of `ids`, which are all that changed after `since`. Ascending.
    fn of(snapshot: &Snapshot, since: &Cursor, ids: Vec<i64>) -> Self {
        let version = if since.is_within(snapshot.cursor()) { snapshot.cursor() } else { since };
        let (mut set, mut deleted) = (Vec::new(), Vec::new());
        for global_id in ids {
            match snapshot.find_user_by_global_id(global_id) {
                Some(user) => set.push((global_id, user.name.clone())),
                None => deleted.push(global_id),
            }
        }
        Self { version: version.clone(), reset: false, set, deleted }
    }

    /// `None`: the snapshot does not remember that far back, or the token is not of its past.
    fn remembered(snapshot: &Snapshot, validated: &Cursor, since: &Cursor) -> Option<Self> {
        Some(Self::of(snapshot, since, snapshot.find_dict_changes(since, validated)?))
    }
}

impl Directory {
    /// Starts the barrier task; the first load begins at once and start-up does not wait for it.
    pub fn start(
        store: Arc<dyn DirectoryStore>,
        config: &DirectoryConfig,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let barrier = sync::Barrier::start(store.clone(), config, lifecycle, metrics.clone());
        let directory = Self { store, barrier, lifecycle: lifecycle.clone() };
        lifecycle.spawn_service("directory audit", audit::run(directory.clone(), config.audit_interval, metrics));
        directory
    }

    /// A view that contains every write acknowledged before this call, whoever made it.
    /// One database round trip, shared by all who wait.
    pub async fn read(&self) -> Result<View, StoreError> {
        self.barrier.read().await
    }

    /// The newest snapshot at hand, unvalidated; `None` before the first load.
    pub fn find_latest(&self) -> Option<Arc<Snapshot>> {
        self.barrier.find_latest()
    }

    /// Follows the snapshots as they are published (the newest only), validated or not.
    pub fn follow(&self) -> tokio::sync::watch::Receiver<Option<Arc<Snapshot>>> {
        self.barrier.follow()
    }

    /// Keeps the replica fresh without readers while the guard lives: validates at least once per
    /// tick of the adaptive poll. Followers (long polls, streams, the mirror) hold one.
    pub fn keep_fresh(&self) -> sync::FreshGuard {
        self.barrier.keep_fresh()
    }

    /// Carries out a command. What was begun is finished even when the caller goes away.
    pub async fn write(&self, command: Command) -> Result<Outcome, WriteError> {
        let outcome = self.store.write(command).await;
        self.barrier.nudge();
        outcome
    }

    /// What changed between `since` and a view that contains all writes acknowledged before this call.
    /// O(changes) where the token is known, else the whole map.
    pub async fn dict_delta(&self, since: Option<&Cursor>) -> Result<DictDelta, StoreError> {
        self.barrier.dict_delta(since).await
    }

    /// What changed between `since` and a snapshot at hand, for followers who were just handed it.
    /// Asks the database only where the snapshot does not remember.
    pub async fn dict_delta_at(&self, snapshot: &Snapshot, since: Option<&Cursor>) -> Result<DictDelta, StoreError> {
        let Some(since) = since else { return Ok(DictDelta::whole(snapshot)) };
        match DictDelta::remembered(snapshot, snapshot.cursor(), since) {
            Some(delta) => Ok(delta),
            None => self.dict_delta(Some(since)).await,
        }
    }

    /// Fires when streams and long polls are to end.
    pub fn draining(&self) -> CancellationToken {
        self.lifecycle.draining().clone()
    }

    /// The dict as the database holds it, past the replica.
    pub async fn read_users_dict_uncached(&self) -> Result<std::collections::BTreeMap<i64, String>, StoreError> {
        self.store.read_users_dict().await
    }

    /// Forgets the past and loads the replica anew; answers when it is there. Other instances and clients
    /// with tokens follow with their next question.
    pub async fn rebuild(&self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let begun = self.lifecycle.spawn_work(async move { store.begin_epoch().await }).await;
        begun.unwrap_or_else(|join| Err(StoreError::unavailable("database", join)))?;
        self.barrier.rebuild().await
    }

    /// For `/cache/stats`.
    pub fn stats(&self) -> sync::Stats {
        self.barrier.stats()
    }

    pub fn store(&self) -> &Arc<dyn DirectoryStore> {
        &self.store
    }
}
