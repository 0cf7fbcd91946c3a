//! Alerts as they are stored, and what may be asked of the log. Pure data.

use bytes::Bytes;
use compact_str::CompactString;

use crate::time::Timestamp;

/// An accepted alert: its own text and the columns that filters use. A field that is missing or of an
/// unexpected type leaves its column empty; it never costs the alert.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedAlert {
    /// The JSON object exactly as it came: key order, number spelling, white space.
    pub body: Bytes,
    /// Names the alert once for ever, 1..=200 characters.
    pub event_id: Option<CompactString>,
    pub occurred_at: Option<Timestamp>,
    pub columns: AlertColumns,
    /// `user_name` of the object; filled from the directory at ingest when missing.
    pub user_name: Option<CompactString>,
}

/// Filter columns as text: an integral number reads as its digits, so `5` and `"5"` are the same zone. Nearly all are
/// short, and short ones take no memory of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertColumns {
    pub zone_id: Option<CompactString>,
    pub user_id: Option<CompactString>,
    pub status: Option<CompactString>,
    pub camera_id: Option<CompactString>,
}

/// Where something came from: `http`, or `kafka:<topic>/<partition>/<offset>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Http,
    Kafka { topic: std::sync::Arc<str>, partition: i32, offset: i64 },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http => f.write_str("http"),
            Self::Kafka { topic, partition, offset } => write!(f, "kafka:{topic}/{partition}/{offset}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct NewAlert {
    pub alert: DecodedAlert,
    pub source: Source,
}

/// A message that is no alert, kept for a person to look at.
#[derive(Clone, Debug)]
pub struct NewDeadLetter {
    pub topic: std::sync::Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// What is wrong with it, for a person.
    pub reason: String,
    /// Bytes of the whole message.
    pub size: u64,
    /// The first [`DEAD_LETTER_BYTES`] of it.
    pub raw: Bytes,
}

/// How much of a dead letter is kept.
pub const DEAD_LETTER_BYTES: usize = 64 * 1024;

/// How far a partition is consumed, moved in the same transaction as the rows. The append is refused
/// (`AppendError::Fenced`) unless both `epoch` and `expected_next` are still what the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionAdvance {
    pub topic: std::sync::Arc<str>,
    pub partition: i32,
    pub epoch: i64,
    /// The position before this batch; `None` when the log never had one for the partition.
    pub expected_next: Option<i64>,
    /// The offset of the first message after this batch.
    pub next: i64,
}

/// What a consumer that takes a partition is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionClaim {
    /// Every claim raises it: an append with an older one is a zombie's.
    pub epoch: i64,
    /// The first offset that is not stored yet; `None` for a partition never consumed.
    pub next: Option<i64>,
}

/// One append: all of it is stored, or nothing.
#[derive(Clone, Debug, Default)]
pub struct AppendBatch {
    /// In the order in which they are to be numbered.
    pub alerts: Vec<NewAlert>,
    pub dead_letters: Vec<NewDeadLetter>,
    /// At most one per partition.
    pub advances: Vec<PartitionAdvance>,
}

impl AppendBatch {
    /// Whether some of its alerts may be known already.
    pub fn names_events(&self) -> bool {
        self.alerts.iter().any(|new| new.alert.event_id.is_some())
    }
}

/// For each alert of the batch its `seq`, or `None` for a duplicate by `event_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    pub seqs: Vec<Option<i64>>,
}

/// An alert as the log holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAlert {
    /// From 1, dense, in commit order.
    pub seq: i64,
    pub received_at: Timestamp,
    pub occurred_at: Option<Timestamp>,
    pub source: String,
    pub columns: AlertColumns,
    pub user_name: Option<CompactString>,
    pub body: Bytes,
}

/// Which alerts. Several values of one field are alternatives; several fields must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertFilter {
    pub zone_ids: Vec<String>,
    pub user_ids: Vec<String>,
    pub statuses: Vec<String>,
    pub camera_ids: Vec<String>,
}

impl AlertFilter {
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    pub fn matches(&self, columns: &AlertColumns) -> bool {
        let field = |wanted: &[String], value: &Option<CompactString>| {
            wanted.is_empty() || value.as_deref().is_some_and(|value| wanted.iter().any(|one| one == value))
        };
        field(&self.zone_ids, &columns.zone_id)
            && field(&self.user_ids, &columns.user_id)
            && field(&self.statuses, &columns.status)
            && field(&self.camera_ids, &columns.camera_id)
    }
}

/// The direction in which the log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `seq > after`, ascending.
    After(i64),
    /// `seq < before`, newest first; `i64::MAX` for the end of the log.
    Before(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertQuery {
    pub direction: Direction,
    /// 1..=1000 alerts at most.
    pub limit: u32,
    /// Bytes of bodies at most, but one alert at least. An alert may have a mebibyte: rows alone bound nothing.
    pub max_bytes: usize,
    pub filter: AlertFilter,
    /// `from <= occurred_at`.
    pub from: Option<Timestamp>,
    /// `occurred_at < to`.
    pub to: Option<Timestamp>,
}

/// What the log answers to an [`AlertQuery`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertPage {
    pub alerts: Vec<StoredAlert>,
    /// More match than are here: one of the limits was reached.
    pub is_cut: bool,
}

/// A dead letter as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: i64,
    pub received_at: Timestamp,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub reason: String,
    pub size: u64,
    pub raw: Bytes,
}
