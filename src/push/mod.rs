//! Alerts from the log to every screen, live and resumable. One follower per instance reads the log,
//! serialises each alert once and hands the same bytes to all sessions. Knows the log's port, no engine.

mod batch;
mod follower;
mod hub;
mod pulse;
mod routes;
mod session;
mod sse;
mod ws;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Semaphore, watch};

use self::batch::{Batch, BatchBuilder, Form};
use self::hub::{Entry, Hub, Recent};
use self::session::{BATCH_BYTES, HISTORY, Session, Step};
use crate::alerts::types::{AlertPage, AlertQuery, Direction};
use crate::alerts::{AlertLog, Doorbell};
use crate::config::{AlertsConfig, ApiConfig};
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// Pages of the log that are read at once for all clients together.
const READERS: usize = 4;
/// Until a client's read of the log is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Cheap to clone.
#[derive(Clone)]
pub struct Push {
    log: Arc<dyn AlertLog>,
    hub: Arc<Hub>,
    doorbell: Doorbell,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    write_deadline: Duration,
    ping_interval: Duration,
    origins: Arc<[String]>,
    readers: Arc<Semaphore>,
}

impl Push {
    pub fn start(
        log: Arc<dyn AlertLog>,
        doorbell: Doorbell,
        alerts: &AlertsConfig,
        api: &ApiConfig,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let hub = Arc::new(Hub::new());
        let follower =
            follower::Follower::new(log.clone(), hub.clone(), doorbell.clone(), alerts.poll_interval, metrics.clone());
        lifecycle.spawn_service("alert follower", follower.run(lifecycle.closing().clone()));
        Self {
            log,
            hub,
            doorbell,
            lifecycle: lifecycle.clone(),
            metrics,
            write_deadline: alerts.write_deadline,
            ping_interval: alerts.ping_interval,
            origins: api.cors_origins.clone().into(),
            readers: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// What a session is to be shown in a form, batch by batch, for as long as the log stays the same one. An
    /// outage of the store only makes it wait: the follower tells of it. Safe to be polled between other
    /// things: what is under way goes on.
    fn stream(&self, session: Session, form: Form) -> impl Stream<Item = Batch> + Send + use<> {
        let is_first = !self.hub.is_heard();
        let changes = self.hub.subscribe();
        if is_first {
            // The follower does not read for nobody.
            self.doorbell.ring();
        }
        stream::unfold((self.clone(), session, changes), move |(push, mut session, mut changes)| async move {
            let batch = push.next(&mut session, form, &mut changes).await?;
            Some((batch, (push, session, changes)))
        })
    }

    /// `None`: the log is another one now, or the service stops.
    async fn next(&self, session: &mut Session, form: Form, changes: &mut watch::Receiver<Recent>) -> Option<Batch> {
        if session.is_new() {
            self.catch_up(changes).await?;
        }
        loop {
            let mut batch = BatchBuilder::new(form);
            let (step, end) = {
                let recent = changes.borrow_and_update();
                (session.take(&recent, |entry| batch.push(entry)), recent.last_seq)
            };
            let (query, is_history) = match step {
                Step::Delivered => return batch.finish(),
                Step::Wait => {
                    changes.changed().await.ok()?;
                    continue;
                }
                Step::LogReplaced => return None,
                Step::History => (self.page(session, Direction::Before(i64::MAX), HISTORY), true),
                Step::Replay { after, limit } => (self.page(session, Direction::After(after), limit), false),
            };
            let Ok(AlertPage { alerts: mut found, is_cut }) = self.read(query).await else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            self.metrics.push_replays.with_label_values(&[if is_history { "connect" } else { "behind" }]).inc();
            // What is cut off the history is older than what is shown of it.
            let is_complete = is_history || !is_cut;
            if is_history {
                found.reverse();
            }
            session.replayed(found.last().map(|alert| alert.seq), is_complete, end);
            found.into_iter().for_each(|alert| batch.push(&Entry::new(alert)));
            if let Some(batch) = batch.finish() {
                return Some(batch);
            }
        }
    }

    /// Until the follower has what is in the log now: whoever comes after an alert was stored is shown it among
    /// the newest.
    async fn catch_up(&self, changes: &mut watch::Receiver<Recent>) -> Option<()> {
        let end = loop {
            match self.log.last_seq().await {
                Ok(end) => break end,
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        };
        let generation = changes.borrow().generation;
        let caught_up = changes.wait_for(|recent| recent.last_seq >= end || recent.generation != generation).await;
        caught_up.ok().map(drop)
    }

    /// A page of the log, read in a task of its own: a client that goes away costs no connection. Only so
    /// many at once that the pool is left to others.
    async fn read(&self, query: AlertQuery) -> Result<AlertPage, StoreError> {
        let stopping = || StoreError::unavailable_because("alert log", "the service is stopping");
        let turn = self.readers.clone().acquire_owned().await.map_err(|_| stopping())?;
        let log = self.log.clone();
        let reading = tokio::spawn(async move {
            let found = log.list_alerts(&query).await;
            drop(turn);
            found
        });
        reading.await.unwrap_or_else(|_| Err(stopping()))
    }

    fn page(&self, session: &Session, direction: Direction, limit: u32) -> AlertQuery {
        let filter = session.filter().clone();
        AlertQuery { direction, limit, max_bytes: BATCH_BYTES, filter, from: None, to: None }
    }
}

/// Counts a client while it is served.
struct Present {
    clients: IntGauge,
    delivered: IntCounter,
}

impl Present {
    fn new(metrics: &Metrics, transport: &'static str) -> Self {
        let clients = metrics.push_clients.with_label_values(&[transport]);
        clients.inc();
        Self { clients, delivered: metrics.push_delivered.with_label_values(&[transport]) }
    }

    fn delivered(&self, count: usize) {
        self.delivered.inc_by(count as u64);
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.clients.dec();
    }
}
