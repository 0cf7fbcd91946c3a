//! What the polling thread, the partitions' keepers and the report have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::cameras::Cameras;
use super::condition::{Condition, Key};
use super::inbox::{Budget, Inbox};
use crate::telemetry::metrics::Metrics;

pub struct Shared {
    pub metrics: Arc<Metrics>,
    pub condition: Mutex<Condition>,
    pub budget: Arc<Budget>,
    pub cameras: Mutex<Cameras>,
    pub dead_letters: AtomicU64,
    held: Mutex<BTreeMap<Key, Arc<Tenure>>>,
}

/// The time in which one partition is assigned to us, from one rebalance to another.
pub struct Tenure {
    pub key: Key,
    /// The assignment is over, or the service stops: nothing new is begun.
    pub ended: CancellationToken,
    pub inbox: Inbox,
    pub progress: Mutex<Progress>,
}

/// `None`: not known yet.
#[derive(Clone, Copy, Default)]
pub struct Progress {
    /// The first offset that is not stored.
    pub next: Option<i64>,
    /// The offset that the broker will give next.
    pub end: Option<i64>,
}

impl Progress {
    pub fn lag(&self) -> Option<i64> {
        Some((self.end? - self.next?).max(0))
    }
}

impl Shared {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            condition: Mutex::default(),
            budget: Arc::default(),
            cameras: Mutex::default(),
            dead_letters: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }

    pub fn begin_tenure(&self, topic: &str, partition: i32, draining: &CancellationToken) -> Arc<Tenure> {
        let key: Key = (topic.into(), partition);
        let tenure = Arc::new(Tenure {
            key: key.clone(),
            ended: draining.child_token(),
            inbox: Inbox::new(self.budget.clone()),
            progress: Mutex::default(),
        });
        self.held.lock().insert(key, tenure.clone());
        tenure
    }

    pub fn end_tenure(&self, tenure: &Arc<Tenure>) {
        tenure.ended.cancel();
        let mut held = self.held.lock();
        if held.get(&tenure.key).is_some_and(|current| Arc::ptr_eq(current, tenure)) {
            held.remove(&tenure.key);
            self.condition.lock().partitions.remove(&tenure.key);
            let (topic, partition) = (&*tenure.key.0, tenure.key.1.to_string());
            // An error means that there was none.
            if self.metrics.kafka_lag.remove_label_values(&[topic, &partition]).is_err() {
                tracing::trace!(topic, partition, "the partition had no lag yet");
            }
        }
    }

    pub fn list_tenures(&self) -> Vec<Arc<Tenure>> {
        self.held.lock().values().cloned().collect()
    }

    /// What keeps a partition from going on; `None`: nothing any more.
    pub fn report_trouble(&self, tenure: &Arc<Tenure>, trouble: Option<String>) {
        let held = self.held.lock();
        if !held.get(&tenure.key).is_some_and(|current| Arc::ptr_eq(current, tenure)) {
            return;
        }
        let mut condition = self.condition.lock();
        match trouble {
            Some(trouble) => condition.partitions.insert(tenure.key.clone(), trouble),
            None => condition.partitions.remove(&tenure.key),
        };
    }

    pub fn count_dead_letters(&self, reasons: &[&'static str]) {
        self.dead_letters.fetch_add(reasons.len() as u64, Ordering::Relaxed);
        for reason in reasons {
            self.metrics.alerts_rejected.with_label_values(&["kafka", reason]).inc();
        }
    }

    /// Seconds since the oldest message came that is not stored; 0 when all are.
    pub fn oldest_unstored_seconds(&self, now: Instant) -> f64 {
        let oldest = self.list_tenures().iter().filter_map(|tenure| tenure.inbox.waiting_since()).min();
        oldest.map_or(0.0, |oldest| (now.saturating_duration_since(oldest).as_secs_f64() * 1e3).round() / 1e3)
    }
}
