//! The directory's port to a database. Each method is one unit of work; no transaction crosses it.
//! Both engines promise the same, and `tests/it/store_contract.rs` checks every word on both.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::cursor::Cursor;
use super::types::{Command, Outcome, Refusal, User, WriteError, Zone};
use crate::store_error::StoreError;

#[async_trait]
pub trait DirectoryStore: Send + Sync + 'static {
    /// Carries out one command and answers after it is durable. What was begun is finished, or undone
    /// as a whole, also when the caller goes away.
    async fn write(&self, command: Command) -> Result<Outcome, WriteError>;

    /// Carries out many commands, in order, in one transaction; each refusal concerns its own
    /// command alone. For imports: O(commands) statements, one commit.
    async fn write_all(&self, commands: Vec<Command>) -> Result<Vec<Result<Outcome, Refusal>>, StoreError>;

    /// The users dict as the database holds it at this moment, past every copy of ours.
    async fn read_users_dict(&self) -> Result<BTreeMap<i64, String>, StoreError>;

    /// Begins a new epoch, because the log is known or suspected to have missed something: every cursor and
    /// token of before, on every instance, is answered with everything.
    async fn begin_epoch(&self) -> Result<(), StoreError>;

    /// Opens what the replica is validated against.
    async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError>;
}

/// One session that tells what changed. Calls may overlap: each is one statement, and their answers
/// come in the order in which they were asked.
#[async_trait]
pub trait DirectoryFeed: Send + Sync + 'static {
    /// Everything, at one moment, and the cursor of that moment.
    async fn load(&self) -> Result<Loaded, StoreError>;

    /// What became visible after `cursor`: it contains every change that was committed before this
    /// call was made.
    async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError>;

    /// The keys that changed after an older `cursor` (a client's token), or `None` when the log does
    /// not reach back that far, or the cursor is of another database or time.
    async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError>;
}

/// The whole directory at one moment.
#[derive(Debug)]
pub struct Loaded {
    pub cursor: Cursor,
    /// In ascending order of `global_id`.
    pub users: Vec<User>,
    /// In ascending order of `zone_id` (by bytes).
    pub zones: Vec<Zone>,
}

#[derive(Debug)]
pub enum Progress {
    /// Nothing of ours changed. The cursor may have moved nevertheless.
    Unchanged(Cursor),
    Changed(Changes),
    /// The cursor can no longer be followed: load everything again.
    Reset(ResetReason),
}

/// Rows as they are at `cursor`; absolute, so applying them twice is harmless.
#[derive(Debug)]
pub struct Changes {
    pub cursor: Cursor,
    /// By `id`; `None`: the user is gone.
    pub users: Vec<(i64, Option<Arc<User>>)>,
    /// By `zone_id`; `None`: the zone is gone.
    pub zones: Vec<(Arc<str>, Option<Zone>)>,
    /// The `global_id` of every user that was written since, also of those that came and went.
    pub global_ids: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The database was restored, promoted, or recovered from a crash; or its log is known to lack something.
    Epoch,
    /// The log was trimmed past the cursor.
    Trimmed,
    /// A table was emptied at a stroke, or so much changed that loading is cheaper.
    Bulk,
}

impl ResetReason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Trimmed => "trimmed",
            Self::Bulk => "bulk",
        }
    }
}
