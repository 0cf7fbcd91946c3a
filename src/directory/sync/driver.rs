//! The one task behind the barrier: keeps a feed open, sends validations that overlap, applies their
//! results in order, and answers everyone who waits, also while the database is away.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use prometheus::IntCounter;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::rounds::Answer;
use super::{Shared, View, now, off_runtime, stopping};
use crate::config::DirectoryConfig;
use crate::directory::cursor::Cursor;
use crate::directory::replica::Snapshot;
use crate::directory::store::{Changes, DirectoryFeed, DirectoryStore, Progress};
use crate::gathering::{Gathering, PATIENCE};
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// Validations under way at once; on a far database more would only queue up there.
const MAX_FLIGHTS: usize = 16;
/// A round trip of this, the wait for our own thread included: on nearer databases a round that has half of the
/// readers departs at once.
const NEAR: Duration = Duration::from_millis(10);
/// A new validation begins at most this often while another one is under way.
const MIN_PACE: Duration = Duration::from_micros(1500);
/// ... or every such part of a round trip, which is what a reader waits on top of its own.
const PACE_DIVISOR: u32 = 32;
/// How often a snapshot takes over a moved cursor although its content did not change: tokens of
/// clients stay young enough for the log, entity tags and followers are left alone.
const CURSOR_REFRESH: Duration = Duration::from_secs(30);
/// The poll for followers: this soon after a change, doubled up to the longest while all is quiet.
const SHORTEST_POLL: Duration = Duration::from_millis(25);
const LONGEST_POLL: Duration = Duration::from_millis(200);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// More changed rows than this are applied off the runtime's threads.
const ROWS_APPLIED_INLINE: usize = 2_000;
/// After so many validations in a row that took too long, everything is loaded instead.
const DEADLINES_BEFORE_LOAD: u32 = 2;
/// ... and this soon after a write of this instance: what is written meanwhile is read together. Polls
/// never overlap, for each would read the changes of all that are still under way once more.
const NUDGED_POLL: Duration = Duration::from_millis(10);
/// Without followers: often enough that the log still reaches back to the cursor.
const IDLE_POLL: Duration = Duration::from_secs(60);
/// A load may take long; nobody waits for it longer than for any read.
const LOAD_TIMEOUT: Duration = Duration::from_secs(300);

pub struct Driver {
    shared: Arc<Shared>,
    store: Arc<dyn DirectoryStore>,
    config: DirectoryConfig,
    metrics: Arc<Metrics>,
    unchanged: IntCounter,
    changed: IntCounter,
    replica: Option<Replica>,
    outage: Option<Outage>,
    /// Whether a feed is open: then readers wait for it, however long the outage before it lasted.
    is_connected: bool,
    /// Sessions in a row that ended because a validation took too long.
    deadlines: u32,
    /// Smoothed round trip of a validation.
    round_trip: Duration,
    poll_pause: Duration,
    gathering: Gathering,
    /// When readers were answered last.
    answered_at: Instant,
}

/// The newest content and how far it is known to hold.
struct Replica {
    snapshot: Arc<Snapshot>,
    cursor: Arc<Cursor>,
    refreshed_at: Instant,
}

struct Outage {
    since: Instant,
    error: StoreError,
    told: bool,
}

/// A validation that came back.
struct Landing {
    /// It answers every reader through this round.
    round: u64,
    begun_at: Instant,
    result: Result<Progress, StoreError>,
}

impl Driver {
    pub fn new(
        shared: Arc<Shared>,
        store: Arc<dyn DirectoryStore>,
        config: DirectoryConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        let count = |result| metrics.directory_validations.with_label_values(&[result]);
        let (unchanged, changed) = (count("unchanged"), count("changed"));
        let error = StoreError::unavailable_because("database", "the directory is not loaded yet");
        Self {
            shared,
            store,
            config,
            unchanged,
            changed,
            metrics,
            replica: None,
            is_connected: false,
            deadlines: 0,
            outage: Some(Outage { since: now(), error, told: true }),
            round_trip: Duration::ZERO,
            poll_pause: SHORTEST_POLL,
            gathering: Gathering::default(),
            answered_at: now(),
        }
    }

    pub async fn run(mut self, closing: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            never = self.keep_serving() => match never {},
        }
        self.shared.rounds.close(|| Err(stopping()));
        self.shared.rebuild_requests.lock().clear();
        Ok(())
    }

    async fn keep_serving(&mut self) -> Infallible {
        let mut backoff = Duration::ZERO;
        loop {
            let Err(error) = self.session(&mut backoff).await;
            *self.shared.feed.lock() = None;
            // Changes that are too many for a validation are not too many for a load.
            let was_overdue = self.is_connected && matches!(error, StoreError::Deadline { .. });
            self.deadlines = if was_overdue { self.deadlines + 1 } else { 0 };
            self.is_connected = false;
            self.metrics.directory_validations.with_label_values(&["failed"]).inc();
            self.begin_outage(error);
            self.attend(tokio::time::sleep(backoff)).await;
            backoff = (backoff * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
        }
    }

    /// One feed from its opening to its failure. The first attempt after a working session is made at
    /// once, so a cut connection costs its readers one reconnect.
    async fn session(&mut self, backoff: &mut Duration) -> Result<Infallible, StoreError> {
        let store = self.store.clone();
        let feed = self.attend(store.open_feed()).await?;
        *self.shared.feed.lock() = Some(feed.clone());
        self.is_connected = true;
        let rebuild_requests = std::mem::take(&mut *self.shared.rebuild_requests.lock());
        let reason = match (&self.replica, rebuild_requests.is_empty(), self.deadlines) {
            (None, ..) => Some("start"),
            (_, false, _) => Some("requested"),
            (_, _, DEADLINES_BEFORE_LOAD..) => Some("overdue"),
            _ => None,
        };
        if let Some(reason) = reason {
            self.load(&feed, reason, rebuild_requests).await?;
            self.deadlines = 0;
        }
        self.serve(&feed, backoff).await
    }

    async fn serve(&mut self, feed: &Arc<dyn DirectoryFeed>, backoff: &mut Duration) -> Result<Infallible, StoreError> {
        let mut flights = FuturesOrdered::new();
        let mut covered = 0;
        let mut last_begun: Option<Instant> = None;
        // The newest round whose validation came back and whose readers were not told yet.
        let mut landed: Option<u64> = None;
        loop {
            let requests = std::mem::take(&mut *self.shared.rebuild_requests.lock());
            if !requests.is_empty() {
                flights.clear();
                covered = 0;
                self.answer_through(landed.take());
                self.load(feed, "requested", requests).await?;
            }
            if landed.is_some() {
                // Many have asked meanwhile whom this thread has not read yet: they join the next round before it
                // departs, and it departs before the readers of this one have the thread, so that the database
                // works while they are answered.
                tokio::task::yield_now().await;
            }
            let moment = now();
            let pace = MIN_PACE.max(self.round_trip / PACE_DIVISOR);
            let next_poll = self.next_poll(last_begun, moment);
            let due = self.shared.rounds.has_uncovered(covered)
                || (flights.is_empty() && next_poll.is_some_and(|at| at <= moment));
            let free_at = last_begun.filter(|_| !flights.is_empty()).map(|begun| begun + pace);
            let room = flights.len() < MAX_FLIGHTS;
            let is_near = self.round_trip < NEAR;
            let is_half_full = self.shared.rounds.is_half_full();
            let is_second_half = is_near && is_half_full && flights.len() == 1;
            let departs = due && room && (is_second_half || free_at.is_none_or(|at| at <= moment));
            if departs {
                if is_near && !is_half_full && flights.is_empty() {
                    // Those who are answered now ask again, and may still join.
                    self.answer_through(landed.take());
                    self.gather().await;
                }
                self.shared.nudged.store(false, Ordering::SeqCst);
                covered = self.shared.rounds.take();
                let begun_at = now();
                last_begun = Some(begun_at);
                flights.push_back(self.launch(feed, covered, begun_at)?);
            }
            self.answer_through(landed.take());
            if departs {
                continue;
            }
            let timer =
                [self.next_deadline(), free_at.filter(|_| due && room), next_poll.filter(|_| flights.is_empty())];
            tokio::select! {
                biased;
                Some(landing) = flights.next(), if !flights.is_empty() => {
                    let landing: Landing = landing;
                    let round = landing.round;
                    match self.land(landing).await? {
                        None => landed = Some(round),
                        Some(reset) => {
                            flights.clear();
                            covered = 0;
                            self.load(feed, reset, Vec::new()).await?;
                        }
                    }
                    *backoff = Duration::ZERO;
                }
                () = self.shared.wake.notified() => {}
                () = sleep_until_earliest(&timer) => self.answer_overdue(),
            }
        }
    }

    /// Waits for those who are at the door until half of the usual ones are there: while every turn of this thread
    /// brings another reader, and shortly for those who were answered just now. A round of the few who came first
    /// would be one validation more for each lap.
    async fn gather(&mut self) {
        let begun_at = now();
        let mut before = self.shared.rounds.count_collecting();
        while !self.shared.rounds.is_half_full() && now() < begun_at + MIN_PACE {
            tokio::task::yield_now().await;
            let readers = self.shared.rounds.count_collecting();
            if readers <= before {
                break;
            }
            before = readers;
        }
        let rounds = &self.shared.rounds;
        let patience = (self.answered_at + PATIENCE).saturating_duration_since(now());
        if !patience.is_zero() && rounds.is_busy() && !rounds.is_half_full() && self.gathering.may_wait() {
            let half = async {
                while !rounds.is_half_full() {
                    self.shared.wake.notified().await;
                }
            };
            self.gathering.waited(timeout(patience, half).await.is_ok());
        }
    }

    fn launch(
        &self,
        feed: &Arc<dyn DirectoryFeed>,
        round: u64,
        begun_at: Instant,
    ) -> Result<impl Future<Output = Landing> + Send + use<>, StoreError> {
        let Some(replica) = &self.replica else {
            return Err(StoreError::corrupt("database", "a validation was asked for before the first load"));
        };
        // Half of a reader's patience: who meets a dead connection is still answered by the next one.
        let (feed, cursor, limit) = (feed.clone(), replica.cursor.clone(), self.config.read_deadline / 2);
        // A task, so that it departs by itself; it ends with the session.
        let asking = AbortOnDropHandle::new(tokio::spawn(async move { feed.changes_since(&cursor).await }));
        Ok(async move {
            let result = match timeout(limit, asking).await {
                Ok(Ok(result)) => result,
                Ok(Err(join)) => Err(StoreError::unavailable("database", join)),
                Err(_) => Err(overdue(limit)),
            };
            Landing { round, begun_at, result }
        })
    }

    fn answer_through(&mut self, round: Option<u64>) {
        if let Some(round) = round {
            self.answered_at = now();
            self.shared.rounds.answer_through(round, || self.answer());
        }
    }

    /// Brings a result into the replica. `Some`: load everything, why.
    async fn land(&mut self, landing: Landing) -> Result<Option<&'static str>, StoreError> {
        let Landing { begun_at, result, .. } = landing;
        let took = now().saturating_duration_since(begun_at);
        self.metrics.directory_validation_seconds.observe(took.as_secs_f64());
        self.round_trip = if self.round_trip.is_zero() { took } else { (self.round_trip * 7 + took) / 8 };
        match result? {
            Progress::Unchanged(cursor) => {
                self.unchanged.inc();
                self.poll_pause = (self.poll_pause * 2).min(LONGEST_POLL);
                self.advance(cursor, begun_at);
            }
            Progress::Changed(changes) => {
                self.changed.inc();
                self.poll_pause = SHORTEST_POLL;
                self.apply(changes).await?;
            }
            Progress::Reset(reason) => {
                self.metrics.directory_validations.with_label_values(&["reset"]).inc();
                return Ok(Some(reason.label()));
            }
        }
        self.end_outage();
        *self.shared.validated_at.lock() = Some(begun_at);
        Ok(None)
    }

    fn advance(&mut self, cursor: Cursor, moment: Instant) {
        let Some(replica) = &mut self.replica else { return };
        if *replica.cursor == cursor || cursor.is_within(&replica.cursor) {
            return;
        }
        replica.cursor = Arc::new(cursor);
        if moment.saturating_duration_since(replica.refreshed_at) >= CURSOR_REFRESH {
            replica.refreshed_at = moment;
            replica.snapshot = Arc::new(replica.snapshot.at((*replica.cursor).clone()));
            self.shared.latest.send_replace(Some(replica.snapshot.clone()));
        }
    }

    async fn apply(&mut self, changes: Changes) -> Result<(), StoreError> {
        let Some(replica) = &mut self.replica else { return Ok(()) };
        // Overlapping validations may overtake each other inside the feed; older rows must not win.
        if changes.cursor.is_within(&replica.cursor) {
            return Ok(());
        }
        let rows = changes.users.len() + changes.zones.len();
        let cursor = Arc::new(changes.cursor.clone());
        let before = replica.snapshot.clone();
        let snapshot = if rows <= ROWS_APPLIED_INLINE {
            before.apply(&changes)
        } else {
            off_runtime(move || before.apply(&changes)).await?
        };
        let snapshot = Arc::new(snapshot);
        *replica = Replica { snapshot: snapshot.clone(), cursor, refreshed_at: now() };
        self.metrics.directory_rows_applied.inc_by(rows as u64);
        self.metrics.directory_bytes.set(i64::try_from(snapshot.count_bytes()).unwrap_or(i64::MAX));
        self.metrics.directory_users.set(i64::try_from(snapshot.count_users()).unwrap_or(i64::MAX));
        self.shared.latest.send_replace(Some(snapshot));
        Ok(())
    }

    /// Loads everything. Those who wait now are answered by it: they came before it began.
    async fn load(
        &mut self,
        feed: &Arc<dyn DirectoryFeed>,
        reason: &'static str,
        requests: Vec<oneshot::Sender<Result<(), StoreError>>>,
    ) -> Result<(), StoreError> {
        let begun_at = now();
        let round = self.shared.rounds.take();
        let source = feed.clone();
        let loading = async move {
            let loaded = timeout(LOAD_TIMEOUT, source.load()).await.unwrap_or_else(|_| Err(overdue(LOAD_TIMEOUT)))?;
            off_runtime(move || {
                let snapshot = Snapshot::load(loaded);
                let bytes = snapshot.count_bytes();
                (snapshot, bytes)
            })
            .await
        };
        let loaded = self.attend(loading).await;
        for request in requests {
            let told = loaded.as_ref().map(|_| ()).map_err(StoreError::repeat);
            if request.send(told).is_err() {
                tracing::debug!("who asked for a rebuild did not wait for it");
            }
        }
        let (snapshot, bytes) = loaded?;
        let snapshot = Arc::new(snapshot);
        let took_ms = now().saturating_duration_since(begun_at).as_millis();
        tracing::info!(
            reason,
            users = snapshot.count_users(),
            zones = snapshot.count_zones(),
            took_ms,
            "directory loaded"
        );
        self.metrics.directory_rebuilds.with_label_values(&[reason]).inc();
        self.metrics.directory_users.set(i64::try_from(snapshot.count_users()).unwrap_or(i64::MAX));
        self.metrics.directory_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.shared.loads.fetch_add(1, Ordering::SeqCst);
        let cursor = Arc::new(snapshot.cursor().clone());
        let old = self.replica.replace(Replica { snapshot: snapshot.clone(), cursor, refreshed_at: now() });
        self.shared.latest.send_replace(Some(snapshot));
        // Freeing a million users takes long enough to be noticed.
        tokio::task::spawn_blocking(move || drop(old));
        self.end_outage();
        *self.shared.validated_at.lock() = Some(begun_at);
        self.shared.rounds.answer_through(round, || self.answer());
        Ok(())
    }

    /// Waits for `future` while it answers readers whose time is over.
    async fn attend<F: Future>(&self, future: F) -> F::Output {
        tokio::pin!(future);
        loop {
            let deadline = [self.next_deadline()];
            tokio::select! {
                biased;
                output = &mut future => return output,
                () = sleep_until_earliest(&deadline) => self.answer_overdue(),
                () = self.shared.wake.notified() => {}
            }
        }
    }

    fn next_poll(&self, last_begun: Option<Instant>, moment: Instant) -> Option<Instant> {
        if self.shared.followers.load(Ordering::SeqCst) == 0 {
            return Some(last_begun.map_or(moment + IDLE_POLL, |begun| begun + IDLE_POLL));
        }
        let is_nudged = self.shared.nudged.load(Ordering::SeqCst);
        let pause = if is_nudged { self.poll_pause.min(NUDGED_POLL) } else { self.poll_pause };
        Some(last_begun.map_or(moment, |begun| begun + pause))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.shared.rounds.next_deadline(self.away_since())
    }

    fn answer_overdue(&self) {
        self.shared.rounds.answer_overdue(now(), self.away_since(), || self.late_answer());
    }

    fn away_since(&self) -> Option<Instant> {
        self.outage.as_ref().filter(|_| !self.is_connected).map(|outage| outage.since)
    }

    fn answer(&self) -> Answer {
        match &self.replica {
            Some(replica) => {
                Ok(View { snapshot: replica.snapshot.clone(), cursor: replica.cursor.clone(), stale: None })
            }
            None => Err(StoreError::unavailable_because("database", "the directory is not loaded yet")),
        }
    }

    /// For those whose time is over: the last known content where that is allowed, else why not.
    fn late_answer(&self) -> Answer {
        let age = self.shared.validated_at.lock().map(|at| now().saturating_duration_since(at));
        match (&self.replica, age) {
            (Some(replica), Some(age)) if age <= self.config.stale_if_error => {
                Ok(View { snapshot: replica.snapshot.clone(), cursor: replica.cursor.clone(), stale: Some(age) })
            }
            _ => Err(self.outage.as_ref().map_or_else(|| overdue(self.config.read_deadline), |o| o.error.repeat())),
        }
    }

    fn begin_outage(&mut self, error: StoreError) {
        match &mut self.outage {
            Some(outage) => outage.error = error,
            None => {
                tracing::warn!(error = %error, "the directory lost its database; reads wait, then answer 503");
                self.outage = Some(Outage { since: now(), error, told: false });
            }
        }
    }

    fn end_outage(&mut self) {
        if let Some(outage) = self.outage.take().filter(|outage| !outage.told) {
            let lasted_ms = now().saturating_duration_since(outage.since).as_millis();
            tracing::info!(lasted_ms, "the directory has its database again");
        }
    }
}

fn overdue(limit: Duration) -> StoreError {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    StoreError::Deadline { dependency: "database", operation: "validate the directory", limit_ms }
}

async fn sleep_until_earliest(moments: &[Option<Instant>]) {
    match moments.iter().flatten().min() {
        Some(moment) => tokio::time::sleep_until((*moment).into()).await,
        None => std::future::pending().await,
    }
}
