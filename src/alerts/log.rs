//! The alert log's port to a database: one ordered log, appended to by whoever hears of alerts and
//! followed by every instance. Each method is one unit of work and one round trip.

use async_trait::async_trait;

use super::types::{
    AlertPage, AlertQuery, AppendBatch, Appended, DeadLetter, NewAlert, PartitionAdvance, PartitionClaim,
};
use crate::store_error::StoreError;

#[async_trait]
pub trait AlertLog: Send + Sync + 'static {
    /// Stores a batch: positions compared and moved, rows numbered without a gap, dead letters kept,
    /// all of it or nothing. A repeat of an `event_id`, in the log or in the batch, is not stored.
    ///
    /// On `Unavailable` and `Deadline` it is unknown whether the batch was stored. With advances the
    /// caller may simply repeat it after asking [`Self::list_positions`]: a stored batch has moved them.
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, AppendError>;

    /// At most `query.limit` alerts of `query.max_bytes`. O(limit) with `after`/`before` alone.
    async fn list_alerts(&self, query: &AlertQuery) -> Result<AlertPage, StoreError>;

    /// The last number given; 0 for an empty log.
    async fn last_seq(&self) -> Result<i64, StoreError>;

    /// Takes a partition: raises its epoch, so that the append of whoever held it before fails.
    async fn claim_partition(&self, topic: &str, partition: i32) -> Result<PartitionClaim, StoreError>;

    /// Every partition the log has a position for: (topic, partition, claim).
    async fn list_positions(&self) -> Result<Vec<(String, i32, PartitionClaim)>, StoreError>;

    /// Dead letters with `id > after`, ascending, at most `limit`.
    async fn list_dead_letters(&self, after: i64, limit: u32) -> Result<Vec<DeadLetter>, StoreError>;

    async fn find_dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError>;

    /// Appends the alert and removes the letter, in one transaction. `None`: the letter is gone
    /// already. The inner `None`: the alert was a duplicate, the letter is removed.
    async fn resolve_dead_letter(&self, id: i64, alert: &NewAlert) -> Result<Option<Option<i64>>, StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Someone else holds these partitions now; nothing was stored.
    #[error("another consumer took over {}", partitions(.0))]
    Fenced(Vec<PartitionAdvance>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn partitions(advances: &[PartitionAdvance]) -> String {
    advances.iter().map(|advance| format!("{}/{}", advance.topic, advance.partition)).collect::<Vec<_>>().join(", ")
}
