//! Alerts from the log to every screen, live and resumable. One follower per instance reads the log,
//! serialises each alert once and hands the same bytes to all sessions. Knows the log's port, no engine.

mod follower;
mod hub;
mod routes;
mod session;
mod sse;
mod ws;

use std::sync::Arc;
use std::time::Duration;

use self::hub::Hub;
use self::session::Session;
use crate::alerts::types::{AlertQuery, Direction};
use crate::alerts::{AlertLog, Doorbell};
use crate::config::{AlertsConfig, ApiConfig};
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// How many alerts a client that names no position is shown first.
const HISTORY: u32 = 100;

/// Cheap to clone.
#[derive(Clone)]
pub struct Push {
    log: Arc<dyn AlertLog>,
    hub: Arc<Hub>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
    write_deadline: Duration,
    origins: Arc<[String]>,
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
            follower::Follower::new(log.clone(), hub.clone(), doorbell, alerts.poll_interval, metrics.clone());
        lifecycle.spawn_service("alert follower", follower.run(lifecycle.closing().clone()));
        Self {
            log,
            hub,
            lifecycle: lifecycle.clone(),
            metrics,
            write_deadline: alerts.write_deadline,
            origins: api.cors_origins.clone().into(),
        }
    }

    /// The next alerts for a session, waiting for them. Cancel-safe: what was not returned is not
    /// counted as taken.
    async fn next(&self, session: &mut Session) -> Result<Vec<Arc<hub::Entry>>, StoreError> {
        let mut changes = self.hub.subscribe();
        loop {
            changes.borrow_and_update();
            match session.take(&self.hub.recent()) {
                session::Step::Deliver(entries) => return Ok(entries),
                session::Step::Wait => {
                    if changes.changed().await.is_err() {
                        return Err(StoreError::unavailable_because("alert log", "the service is stopping"));
                    }
                }
                session::Step::History => {
                    let end = self.hub.last_seq();
                    let mut found =
                        self.log.list_alerts(&self.page(session, Direction::Before(i64::MAX), HISTORY)).await?;
                    found.reverse();
                    self.metrics.push_replays.with_label_values(&["connect"]).inc();
                    let entries = found.into_iter().map(|alert| Arc::new(hub::Entry::new(alert))).collect();
                    return Ok(session.replayed(entries, true, end));
                }
                session::Step::Replay { after, limit } => {
                    let end = self.hub.last_seq();
                    let found = self.log.list_alerts(&self.page(session, Direction::After(after), limit)).await?;
                    self.metrics.push_replays.with_label_values(&["behind"]).inc();
                    let is_complete = found.len() < limit as usize;
                    let entries = found.into_iter().map(|alert| Arc::new(hub::Entry::new(alert))).collect();
                    let entries = session.replayed(entries, is_complete, end);
                    if !entries.is_empty() {
                        return Ok(entries);
                    }
                }
            }
        }
    }

    fn page(&self, session: &Session, direction: Direction, limit: u32) -> AlertQuery {
        AlertQuery { direction, limit, filter: session.filter().clone(), from: None, to: None }
    }
}

/// Counts a client while it is served.
struct Present {
    metrics: Arc<Metrics>,
    transport: &'static str,
}

impl Present {
    fn new(metrics: Arc<Metrics>, transport: &'static str) -> Self {
        metrics.push_clients.with_label_values(&[transport]).inc();
        Self { metrics, transport }
    }

    fn delivered(&self, count: usize) {
        self.metrics.push_delivered.with_label_values(&[self.transport]).inc_by(count as u64);
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.metrics.push_clients.with_label_values(&[self.transport]).dec();
    }
}
