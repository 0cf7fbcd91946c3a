//! Reads the log as it grows, once per instance. The doorbell saves waiting; the poll is the truth. While nobody
//! listens it only looks where the log ends: reading back what is appended costs the database a third as much
//! again as appending it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::hub::{Entry, Hub};
use crate::alerts::types::{AlertFilter, AlertPage, AlertQuery, Direction};
use crate::alerts::{AlertLog, Doorbell};
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

const PAGE: u32 = 500;
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// After a failure, doubled from one to the next: at the start the database is mostly there in a moment, and
/// clients wait already.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LAST_BACKOFF: Duration = Duration::from_millis(500);
/// How long the log is still read after the last session went: clients that lost their connections together come
/// back, and are served out of memory.
const LINGER: Duration = Duration::from_secs(30);
/// How often the end of the log is looked at for its own sake.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

pub struct Follower {
    log: Arc<dyn AlertLog>,
    hub: Arc<Hub>,
    doorbell: Doorbell,
    poll_interval: Duration,
    metrics: Arc<Metrics>,
}

impl Follower {
    pub fn new(
        log: Arc<dyn AlertLog>,
        hub: Arc<Hub>,
        doorbell: Doorbell,
        poll_interval: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { log, hub, doorbell, poll_interval, metrics }
    }

    pub async fn run(self, closing: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = closing.cancelled() => Ok(()),
            never = self.follow() => never,
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let mut is_begun = false;
        let mut is_failing = false;
        let mut backoff = FIRST_BACKOFF;
        let mut looked_at = Instant::now();
        let mut heard_at: Option<Instant> = None;
        // What was appended while nobody listened was not read.
        let mut is_behind = false;
        // Where the log ended when it was looked at last.
        let mut end = 0;
        loop {
            if self.hub.is_heard() {
                heard_at = Some(Instant::now());
            }
            let is_unheard = heard_at.is_none_or(|at| at.elapsed() >= LINGER);
            let outcome = if !is_begun {
                self.begin(&mut end).await
            } else if is_unheard {
                is_behind = true;
                self.look_at_end(&mut end).await.map(|()| {
                    self.metrics.alerts_last_seq.set(end);
                    false
                })
            } else if is_behind {
                self.resume(&mut end).await.inspect(|_| is_behind = false)
            } else if looked_at.elapsed() >= LOOK_INTERVAL {
                looked_at = Instant::now();
                self.look_at_end(&mut end).await.map(|()| true)
            } else {
                self.read_on().await
            };
            match outcome {
                Ok(is_more) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("the follower reads the alert log again");
                    }
                    is_begun = true;
                    backoff = FIRST_BACKOFF;
                    if is_more {
                        continue;
                    }
                    let published_at = tokio::time::Instant::now();
                    let poll_at = published_at + self.poll_interval;
                    loop {
                        tokio::select! {
                            // Nobody waits for what a ring tells of, unless somebody came.
                            () = self.doorbell.heard() => if !is_unheard || self.hub.is_heard() { break },
                            () = sleep_until(poll_at) => break,
                        }
                    }
                    sleep_until(published_at + self.hub.pause()).await;
                }
                Err(error) => {
                    self.metrics.push_follower_errors.inc();
                    // Before the first look it is the engine that tells what keeps it.
                    if is_begun && !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the follower cannot read the alert log; streams wait, nothing is lost");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(LAST_BACKOFF);
                }
            }
        }
    }

    async fn begin(&self, end: &mut i64) -> Result<bool, StoreError> {
        self.look_at_end(end).await?;
        self.read_newest(*end).await
    }

    /// Somebody listens again.
    async fn resume(&self, end: &mut i64) -> Result<bool, StoreError> {
        self.look_at_end(end).await?;
        if *end > self.hub.last_seq() { self.read_newest(*end).await } else { Ok(true) }
    }

    /// At once, for all the clients that come (back) with the start of an instance or after a pause; what is older
    /// they read from the log themselves.
    async fn read_newest(&self, end: i64) -> Result<bool, StoreError> {
        let mut newest = self.log.list_alerts(&page(Direction::Before(end.saturating_add(1)))).await?.alerts;
        newest.reverse();
        self.hub.begin_at(end, newest.into_iter().map(Entry::new).collect());
        self.metrics.alerts_last_seq.set(end);
        Ok(true)
    }

    /// A log that ends before where it ended before was replaced, mostly by an older copy of itself.
    async fn look_at_end(&self, end: &mut i64) -> Result<(), StoreError> {
        let (known, last_seq) = (self.hub.last_seq().max(*end), self.log.last_seq().await?);
        *end = last_seq;
        if last_seq < known {
            tracing::error!(
                known,
                last_seq,
                "the alert log ends before what was already there: it was replaced; streams are closed and start over"
            );
            self.hub.replaced_by_one_at(last_seq);
            self.metrics.alerts_last_seq.set(last_seq);
        }
        Ok(())
    }

    /// Whether there may be more right away.
    async fn read_on(&self) -> Result<bool, StoreError> {
        let last = self.hub.last_seq();
        let AlertPage { alerts: found, is_cut: is_more } = self.log.list_alerts(&page(Direction::After(last))).await?;
        if found.is_empty() {
            return Ok(false);
        }
        // By construction of the log; checked because everything here rests on it.
        for (expected, alert) in (last + 1..).zip(&found) {
            if alert.seq != expected {
                self.metrics.push_follower_errors.inc();
                tracing::error!(
                    expected,
                    found = alert.seq,
                    "the alert log has a gap: was it edited by hand? going on behind it"
                );
                break;
            }
        }
        let entries: Vec<_> = found.into_iter().map(Entry::new).collect();
        if let Some(newest) = entries.last() {
            self.metrics.alerts_last_seq.set(newest.seq);
        }
        self.hub.publish(entries);
        Ok(is_more)
    }
}

fn page(direction: Direction) -> AlertQuery {
    let filter = AlertFilter::default();
    AlertQuery { direction, limit: PAGE, max_bytes: PAGE_BYTES, filter, from: None, to: None }
}
