//! Compares the replica with the tables now and then: the proof, in production, that the change log
//! misses nothing. Knows the facade and the feed, no engine.

use std::sync::Arc;
use std::time::Duration;

use super::replica::Snapshot;
use super::store::{DirectoryFeed, Progress};
use super::sync::off_runtime;
use super::{Directory, StoreError};
use crate::telemetry::metrics::Metrics;

/// Tries to catch a moment without a change between the two sides.
const ATTEMPTS: usize = 20;

/// Runs until the service closes.
pub async fn run(directory: Directory, interval: Duration, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let closing = directory.lifecycle.closing().clone();
    loop {
        tokio::select! {
            () = closing.cancelled() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
        let outcome = tokio::select! {
            () = closing.cancelled() => return Ok(()),
            outcome = audit(&directory) => outcome,
        };
        let result = match &outcome {
            Ok(Verdict::Equal) => "equal",
            Ok(Verdict::Different) => "different",
            Ok(Verdict::Busy) => "busy",
            Err(_) => "failed",
        };
        metrics.directory_audits.with_label_values(&[result]).inc();
        match outcome {
            Ok(Verdict::Equal) => tracing::debug!("the replica equals the tables"),
            Ok(Verdict::Busy) => {
                tracing::info!("no quiet moment to compare the replica with the tables; tried again later")
            }
            Ok(Verdict::Different) => {
                tracing::error!(
                    "the replica differs from the tables: the change log missed a write (are its triggers enabled? \
                     run `unified-backend doctor`); loading everything anew"
                );
                if let Err(error) = directory.rebuild().await {
                    tracing::error!(error = %error, "the rebuild after the audit failed; the next audit tries again");
                }
            }
            Err(error) => tracing::warn!(error = %error, "the audit could not read the tables; tried again later"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Different,
    /// Writes came too thick to compare both sides at one moment.
    Busy,
}

/// Loads the tables beside the replica, brings that copy forward, and compares where no change came
/// between two validated reads of the replica. O(n).
pub(super) async fn audit(directory: &Directory) -> Result<Verdict, StoreError> {
    let feed: Arc<dyn DirectoryFeed> = directory.store.open_feed().await?;
    let loaded = feed.load().await?;
    let mut tables = off_runtime(move || Snapshot::load(loaded)).await?;
    for _ in 0..ATTEMPTS {
        let before = directory.read().await?;
        tables = match feed.changes_since(tables.cursor()).await? {
            Progress::Unchanged(cursor) => tables.at(cursor),
            Progress::Changed(changes) => tables.apply(&changes),
            Progress::Reset(_) => return Ok(Verdict::Busy),
        };
        let after = directory.read().await?;
        if Arc::ptr_eq(&before.snapshot, &after.snapshot) {
            return off_runtime(
                move || if is_equal(&after.snapshot, &tables) { Verdict::Equal } else { Verdict::Different },
            )
            .await;
        }
    }
    Ok(Verdict::Busy)
}

fn is_equal(replica: &Snapshot, tables: &Snapshot) -> bool {
    replica.dict_etag() == tables.dict_etag()
        && replica.list_users(0, usize::MAX).eq(tables.list_users(0, usize::MAX))
        && replica.list_zones(0, usize::MAX) == tables.list_zones(0, usize::MAX)
}
