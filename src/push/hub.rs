//! The newest alerts in memory, serialised once for all who listen.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use axum::extract::ws::Utf8Bytes;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::alerts::types::{AlertColumns, StoredAlert};

/// A session that is further behind than this reads the log.
const RECENT_ALERTS: usize = 1024;
const RECENT_BYTES: usize = 4 * 1024 * 1024;

/// One alert, ready to be written.
pub struct Entry {
    pub seq: i64,
    pub columns: AlertColumns,
    body: Bytes,
    text: OnceLock<Utf8Bytes>,
    envelope: OnceLock<Utf8Bytes>,
    event: OnceLock<Bytes>,
}

impl Entry {
    pub fn new(alert: StoredAlert) -> Self {
        let (text, envelope, event) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { seq: alert.seq, columns: alert.columns, body: alert.body, text, envelope, event }
    }

    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The object as it came.
    pub fn text(&self) -> Utf8Bytes {
        self.text.get_or_init(|| Utf8Bytes::try_from(self.body.clone()).unwrap_or_default()).clone()
    }

    pub fn envelope(&self) -> Utf8Bytes {
        self.envelope.get_or_init(|| format!("{{\"seq\":{},\"alert\":{}}}", self.seq, self.text()).into()).clone()
    }

    /// As a server-sent event. Line breaks stand between tokens only, where spaces mean the same.
    pub fn event(&self) -> Bytes {
        let event = self.event.get_or_init(|| {
            let body = self.text().replace(['\r', '\n'], " ");
            format!("id: {}\ndata: {body}\n\n", self.seq).into()
        });
        event.clone()
    }
}

pub struct Hub {
    recent: RwLock<Arc<Recent>>,
    last_seq: watch::Sender<i64>,
}

/// Neighbours without a gap, oldest first.
#[derive(Clone, Default)]
pub struct Recent {
    pub entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Where the log ends as far as the follower knows.
    pub last_seq: i64,
    /// Raised when the log turned out to be another one.
    pub generation: u64,
}

impl Recent {
    pub fn at(last_seq: i64) -> Self {
        Self { last_seq, ..Self::default() }
    }

    pub fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += entry.bytes();
        self.last_seq = entry.seq;
        self.entries.push_back(entry);
        while self.entries.len() > RECENT_ALERTS || (self.bytes > RECENT_BYTES && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes();
        }
    }
}

impl Hub {
    pub fn new() -> Self {
        Self { recent: RwLock::new(Arc::new(Recent::default())), last_seq: watch::Sender::new(0) }
    }

    pub fn recent(&self) -> Arc<Recent> {
        self.recent.read().clone()
    }

    pub fn last_seq(&self) -> i64 {
        *self.last_seq.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.last_seq.subscribe()
    }

    /// The follower knows where the log ends, and nothing of what is before.
    pub fn begin_at(&self, last_seq: i64) {
        let generation = self.recent().generation;
        *self.recent.write() = Arc::new(Recent { generation, ..Recent::at(last_seq) });
        self.last_seq.send_replace(last_seq);
    }

    /// The log is another one, which ends here.
    pub fn replaced_by_one_at(&self, last_seq: i64) {
        let generation = self.recent().generation + 1;
        *self.recent.write() = Arc::new(Recent { generation, ..Recent::at(last_seq) });
        self.last_seq.send_replace(last_seq);
    }

    pub fn publish(&self, entries: Vec<Arc<Entry>>) {
        let mut recent = (*self.recent()).clone();
        entries.into_iter().for_each(|entry| recent.push(entry));
        let last_seq = recent.last_seq;
        *self.recent.write() = Arc::new(recent);
        self.last_seq.send_replace(last_seq);
    }
}
