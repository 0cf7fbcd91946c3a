//! The keeper of one assigned partition: takes it in the log, finds where to begin, stores what comes, one
//! batch after the other. While one is stored the next fills. Ends with the assignment.

use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::inbox::{Next, Taken};
use super::lookup::Lookup;
use super::poller::Command;
use super::position::{self, Reason, Reset};
use super::shared::{Shared, Tenure};
use super::verdict::{self, Verdict};
use crate::alerts::ingest::Unstored;
use crate::alerts::types::{AppendBatch, PartitionAdvance, PartitionClaim};
use crate::alerts::{AlertLog, AppendError, Ingest};
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;

/// Between attempts to use a database or broker that is away.
const RETRY: Backoff = Backoff { first: Duration::from_millis(100), last: Duration::from_secs(1) };
/// After another consumer took the partition. Longer than a heartbeat: if the group gave it to the other
/// one, we hear of that first.
const CONTESTED: Backoff = Backoff { first: Duration::from_secs(3), last: Duration::from_secs(60) };

/// What keepers of all partitions work with.
#[derive(Clone)]
pub struct Tools {
    pub log: Arc<dyn AlertLog>,
    pub ingest: Ingest,
    pub lifecycle: Lifecycle,
    pub shared: Arc<Shared>,
    pub commands: mpsc::Sender<Command>,
    pub reset: Reset,
}

pub struct Keeper {
    pub tools: Tools,
    pub tenure: Arc<Tenure>,
    pub lookup: Lookup,
}

/// Why a keeper cannot go on with what it does.
enum Halt {
    /// The assignment is over, or the service stops.
    Ended,
    /// The partition is another consumer's in the log.
    TakenOver,
}

impl Keeper {
    pub async fn run(self) {
        let mut contests = 0;
        while let Err(Halt::TakenOver) = self.keep().await {
            self.tools.shared.metrics.kafka_fenced.inc();
            self.close();
            let (topic, partition) = (&*self.tenure.key.0, self.tenure.key.1);
            tracing::warn!(
                topic,
                partition,
                "another consumer took the partition over; our batch is dropped, nothing is lost"
            );
            self.trouble("another consumer took it over: does a second group or an old process use this database?");
            contests += 1;
            if self.pause(CONTESTED, contests).await.is_err() {
                break;
            }
        }
        self.tenure.inbox.shut();
        self.tools.shared.report_trouble(&self.tenure, None);
    }

    async fn keep(&self) -> Result<Infallible, Halt> {
        let claim = self.claim().await?;
        let mut next = claim.next;
        loop {
            let offset = self.find_place(claim.epoch, next).await?;
            self.tools.shared.report_trouble(&self.tenure, None);
            self.tenure.progress.lock().next = Some(offset);
            self.order(Command::Open(self.tenure.clone(), offset));
            next = Some(self.store_what_comes(claim.epoch, offset).await?);
            self.close();
        }
    }

    async fn claim(&self) -> Result<PartitionClaim, Halt> {
        let mut attempts = 0;
        loop {
            let claiming = self.tools.log.claim_partition(&self.tenure.key.0, self.tenure.key.1);
            match self.unless_ended(claiming).await? {
                Ok(claim) => return Ok(claim),
                Err(error) => {
                    self.trouble(&format!("cannot be taken, waiting for the database: {error}"));
                    attempts += 1;
                    self.pause(RETRY, attempts).await?;
                }
            }
        }
    }

    /// Where to go on, with the position in the log set to it.
    async fn find_place(&self, epoch: i64, stored: Option<i64>) -> Result<i64, Halt> {
        let beginning = self.ask_broker(stored).await?;
        if stored != Some(beginning.offset) {
            let advance = self.advance(epoch, stored, beginning.offset);
            self.store(AppendBatch { advances: vec![advance.clone()], ..AppendBatch::default() }, &advance).await?;
        }
        self.tell(beginning);
        Ok(beginning.offset)
    }

    async fn ask_broker(&self, stored: Option<i64>) -> Result<position::Beginning, Halt> {
        let mut attempts = 0;
        loop {
            let asking = async {
                let committed = match stored {
                    Some(_) => None,
                    None => self.lookup.committed(self.tenure.key.clone()).await?,
                };
                let marks = self.lookup.watermarks(self.tenure.key.clone()).await?;
                Ok::<_, String>(position::begin(stored, committed, marks, self.tools.reset))
            };
            match self.unless_ended(asking).await? {
                Ok(beginning) => return Ok(beginning),
                Err(error) => {
                    self.trouble(&format!(
                        "waiting for the broker to say where the partition begins and ends: {error}"
                    ));
                    attempts += 1;
                    self.pause(RETRY, attempts).await?;
                }
            }
        }
    }

    fn tell(&self, position::Beginning { offset, reason }: position::Beginning) {
        let (topic, partition) = (&*self.tenure.key.0, self.tenure.key.1);
        let metrics = &self.tools.shared.metrics;
        match reason {
            Reason::Stored => tracing::info!(topic, partition, offset, "goes on at our position"),
            Reason::Committed => tracing::info!(topic, partition, offset, "begins at the group's committed offset"),
            Reason::Policy(reset) => tracing::info!(topic, partition, offset, "begins at the {reset:?} offset"),
            Reason::Gap { missed } => {
                metrics.kafka_gap_messages.inc_by(missed);
                tracing::error!(
                    topic,
                    partition,
                    offset,
                    missed,
                    "the broker deleted {missed} messages before they were read (retention); going on behind them"
                );
            }
            Reason::Recreated { position } => {
                metrics.kafka_errors.with_label_values(&["topic_recreated"]).inc();
                tracing::error!(
                    topic,
                    partition,
                    offset,
                    position,
                    "our position is beyond the partition's end: the topic was deleted and made anew, or lost \
                     messages; going on at the earliest of what is there"
                );
            }
        }
    }

    /// Until the broker refuses to go on; then the position.
    async fn store_what_comes(&self, epoch: i64, mut position: i64) -> Result<i64, Halt> {
        loop {
            let Taken { alerts, dead_letters, reasons, next } =
                match self.unless_ended(self.tenure.inbox.next()).await? {
                    Next::Store(taken) => taken,
                    Next::FindPlace => return Ok(position),
                };
            let advance = self.advance(epoch, Some(position), next);
            let batch = AppendBatch { alerts, dead_letters, advances: vec![advance.clone()] };
            self.store(batch, &advance).await?;
            self.tools.shared.count_dead_letters(&reasons);
            position = next;
            self.tenure.progress.lock().next = Some(next);
            self.order(Command::Commit(self.tenure.clone(), next));
        }
    }

    /// Returns when the batch is stored, whatever happens in between. A batch under way is waited for
    /// even when the assignment ends.
    async fn store(&self, mut batch: AppendBatch, advance: &PartitionAdvance) -> Result<(), Halt> {
        let mut attempts = 0;
        loop {
            let ingest = self.tools.ingest.clone();
            let accepting = self.tools.lifecycle.spawn_work(async move { ingest.accept_or_return(batch).await });
            let (error, returned) = match accepting.await {
                Ok(Ok(_)) => break,
                Ok(Err(unstored)) => {
                    let Unstored { error, batch } = *unstored;
                    (error, batch)
                }
                Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
                Err(_) => return Err(Halt::Ended),
            };
            if let AppendError::Store(error) = &error {
                self.trouble(&format!("waiting for the database, nothing is lost: {error}"));
                attempts += 1;
                self.pause(RETRY, attempts).await?;
            }
            let verdict = self.judge(advance).await.inspect_err(|_| {
                // Whoever wakes up as a zombie hears of the end of its assignment before it is told whose it is.
                if matches!(error, AppendError::Fenced(_)) {
                    self.tools.shared.metrics.kafka_fenced.inc();
                }
            })?;
            match verdict {
                Verdict::Stored => break,
                Verdict::TakenOver => return Err(Halt::TakenOver),
                Verdict::Unmoved => {}
            }
            // Without its batch nothing can be repeated, and the service is ending.
            batch = returned.ok_or(Halt::Ended)?;
        }
        if attempts > 0 {
            self.tools.shared.report_trouble(&self.tenure, None);
        }
        Ok(())
    }

    async fn judge(&self, advance: &PartitionAdvance) -> Result<Verdict, Halt> {
        let mut attempts = 0;
        loop {
            match self.unless_ended(self.tools.log.list_positions()).await? {
                Ok(positions) => {
                    let held = verdict::find(&positions, &self.tenure.key.0, self.tenure.key.1);
                    return Ok(verdict::judge(advance, held));
                }
                Err(error) => {
                    self.tell_waiting(&error);
                    attempts += 1;
                    self.pause(RETRY, attempts).await?;
                }
            }
        }
    }

    fn tell_waiting(&self, error: &StoreError) {
        self.trouble(&format!("waiting for the database to say whether a batch was stored: {error}"));
    }

    fn advance(&self, epoch: i64, expected_next: Option<i64>, next: i64) -> PartitionAdvance {
        let (topic, partition) = self.tenure.key.clone();
        PartitionAdvance { topic, partition, epoch, expected_next, next }
    }

    /// What was received and not stored will be received again.
    fn close(&self) {
        self.tenure.inbox.shut();
        self.order(Command::Close(self.tenure.clone()));
    }

    fn order(&self, command: Command) {
        if self.tools.commands.send(command).is_err() {
            tracing::debug!("the polling thread is gone");
        }
    }

    fn trouble(&self, trouble: &str) {
        self.tools.shared.report_trouble(&self.tenure, Some(trouble.to_owned()));
    }

    async fn pause(&self, backoff: Backoff, attempts: u32) -> Result<(), Halt> {
        self.unless_ended(tokio::time::sleep(backoff.delay(attempts))).await
    }

    async fn unless_ended<T>(&self, future: impl Future<Output = T>) -> Result<T, Halt> {
        self.tenure.ended.run_until_cancelled(future).await.ok_or(Halt::Ended)
    }
}

/// Doubles from the first delay to the last, with a part left to chance, so that keepers do not march in
/// step.
#[derive(Clone, Copy)]
struct Backoff {
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// After so many attempts, from 1.
    fn delay(self, attempts: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        doubled.min(self.last).mul_f64(rand::random_range(0.75..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_last() {
        for (attempts, most) in [(1, 100), (2, 200), (3, 400), (5, 1_000), (4_000_000, 1_000)] {
            let delay = RETRY.delay(attempts).as_millis();
            assert!((most * 3 / 4..=most).contains(&delay), "{attempts}: {delay}");
        }
    }
}
