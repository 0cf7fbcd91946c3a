//! The one way in: Kafka and HTTP both end here. Forms batches by itself: while one append runs, the
//! next fills; only a full one does not wait for it. Bounds what waits, in bytes. Fills missing names from the directory. Knows neither Kafka
//! nor HTTP.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::doorbell::Doorbell;
use super::log::{AlertLog, AppendError};
use super::types::{AppendBatch, Appended, NewAlert, PartitionAdvance, Source};
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

/// Batches that wait for their append; more callers wait for a place.
const QUEUED_BATCHES: usize = 1024;
/// One append takes at most so much, unless one caller's batch alone is larger.
const MAX_ALERTS: usize = 4_000;
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Appends of Kafka's alerts, for which nobody waits, begin no sooner one after the other: a commit and a look
/// into the log for each single alert would be most of the work.
const GATHERING: Duration = Duration::from_millis(5);
/// What may wait all in all; a single batch that is larger waits alone.
const WAITING_BYTES: u32 = 64 * 1024 * 1024;
/// What an alert takes besides its body, about.
const BYTES_PER_ALERT: usize = 512;
/// How long an append waits for the newest names; then those at hand have to do.
const NAMES_PATIENCE: Duration = Duration::from_millis(250);

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    queue: mpsc::Sender<Request>,
    appender: Arc<Appender>,
    room: Arc<Semaphore>,
}

struct Request {
    batch: AppendBatch,
    answer: Answer,
    place: Place,
}

/// What a batch has while it waits.
struct Place {
    _room: OwnedSemaphorePermit,
    /// After that nobody waits for the answer.
    due: Option<Instant>,
}

type Answer = oneshot::Sender<Result<Appended, Box<Unstored>>>;

/// A batch that was refused, or of which nobody knows whether it was stored.
#[derive(Debug)]
pub struct Unstored {
    pub error: AppendError,
    /// The batch as it was handed in, for another attempt; `None` when the service ended under it, or its
    /// time was over.
    pub batch: Option<AppendBatch>,
}

impl Ingest {
    /// `limit`: for callers who do not wait for ever.
    pub fn start(
        log: Arc<dyn AlertLog>,
        directory: Directory,
        doorbell: Doorbell,
        limit: Duration,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
        health: HealthBoard,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUED_BATCHES);
        let appender = Arc::new(Appender { limit, log, directory, doorbell, metrics, health });
        lifecycle.spawn_service("alert ingest", appender.clone().run(requests, lifecycle.closing().clone()));
        Self { queue, appender, room: Arc::new(Semaphore::new(WAITING_BYTES as usize)) }
    }

    /// Answers after the commit. Several callers' batches may share one append; an error concerns the
    /// caller's batch alone. The work goes on when the caller goes away.
    pub async fn accept(&self, batch: AppendBatch) -> Result<Appended, AppendError> {
        self.accept_or_return(batch).await.map_err(|unstored| unstored.error)
    }

    /// As [`Self::accept`], for callers that try again: a batch that was not stored comes back. Waits for room.
    pub async fn accept_or_return(&self, batch: AppendBatch) -> Result<Appended, Box<Unstored>> {
        let (alerts, bytes) = size(&batch);
        match self.room.clone().acquire_many_owned(weight(alerts, bytes)).await {
            Ok(room) => self.hand_in(batch, Place { _room: room, due: None }).await,
            Err(_) => Err(Box::new(Unstored { error: stopping(), batch: Some(batch) })),
        }
    }

    /// As [`Self::accept`], for callers that somebody waits for: answers within the limit from now on, and
    /// at once where too much waits already. `bytes`: what the batch keeps in memory.
    pub async fn accept_in_time(&self, batch: AppendBatch, bytes: usize) -> Result<Appended, AppendError> {
        let due = Instant::now() + self.appender.limit;
        let room = self.room.clone().try_acquire_many_owned(weight(batch.alerts.len(), bytes)).map_err(|_| {
            let detail = format!("{} MiB of alerts wait to be stored already", WAITING_BYTES / 1024 / 1024);
            StoreError::unavailable_because("database", detail)
        })?;
        let handing_in = self.hand_in(batch, Place { _room: room, due: Some(due) });
        match timeout_at(due, handing_in).await {
            Ok(outcome) => outcome.map_err(|unstored| unstored.error),
            Err(_) => Err(self.appender.too_late().into()),
        }
    }

    async fn hand_in(&self, batch: AppendBatch, place: Place) -> Result<Appended, Box<Unstored>> {
        let (answer, answered) = oneshot::channel();
        if let Err(mpsc::error::SendError(request)) = self.queue.send(Request { batch, answer, place }).await {
            return Err(Box::new(Unstored { error: stopping(), batch: Some(request.batch) }));
        }
        answered.await.unwrap_or_else(|_| Err(Box::new(Unstored { error: stopping(), batch: None })))
    }

    /// Appends what a dead letter turned out to be, and removes the letter; answers as the log does.
    pub async fn accept_dead_letter(&self, id: i64, mut new: NewAlert) -> Result<Option<Option<i64>>, StoreError> {
        self.appender.fill_names(std::slice::from_mut(&mut new)).await;
        let resolved = self.appender.log.resolve_dead_letter(id, &new).await?;
        if matches!(resolved, Some(Some(_))) {
            self.appender.doorbell.announce();
        }
        Ok(resolved)
    }
}

fn stopping() -> AppendError {
    StoreError::unavailable_because("alert log", "the service is stopping").into()
}

struct Appender {
    limit: Duration,
    log: Arc<dyn AlertLog>,
    directory: Directory,
    doorbell: Doorbell,
    metrics: Arc<Metrics>,
    health: HealthBoard,
}

impl Appender {
    async fn run(
        self: Arc<Self>,
        mut requests: mpsc::Receiver<Request>,
        closing: CancellationToken,
    ) -> anyhow::Result<()> {
        self.health.report(name::ALERTS, State::Up, None);
        let mut held: Option<Request> = None;
        let mut under_way = JoinSet::new();
        let mut begun_at = Instant::now();
        loop {
            let first = match held.take() {
                Some(request) => Some(request),
                None => tokio::select! {
                    biased;
                    request = requests.recv() => request,
                    () = closing.cancelled() => None,
                },
            };
            let Some(first) = first else { break };
            let Some(first) = self.unless_late(first) else { continue };
            let mut group = Group::default();
            group.push(first);
            // What comes until this append begins goes into it.
            loop {
                // Read once: were the pause over for one arm and not for the other, nothing would wake this.
                let pause = begun_at.elapsed();
                tokio::select! {
                    biased;
                    request = requests.recv(), if held.is_none() => {
                        let Some(request) = request else { break };
                        let Some(request) = self.unless_late(request) else { continue };
                        match group.has_room_for(&request.batch) {
                            true => group.push(request),
                            false => held = Some(request),
                        }
                    }
                    () = ready(()), if group.may_begin(under_way.len(), held.is_some(), pause) => break,
                    Some(ended) = under_way.join_next() => as_ours(ended),
                    () = sleep_until(begun_at + GATHERING), if pause < GATHERING => {}
                }
            }
            self.metrics.alerts_waiting.set(i64::try_from(group.alerts + requests.len()).unwrap_or(i64::MAX));
            begun_at = Instant::now();
            under_way.spawn(self.clone().append(group));
        }
        while let Some(ended) = under_way.join_next().await {
            as_ours(ended);
        }
        Ok(())
    }

    /// Who was told that it took too long is not tried for, so that a queue behind an outage is gone at once.
    fn unless_late(&self, request: Request) -> Option<Request> {
        if request.place.due.is_none_or(|due| Instant::now() < due) {
            return Some(request);
        }
        tell(request.answer, Err(Box::new(Unstored { error: self.too_late().into(), batch: None })));
        None
    }

    fn too_late(&self) -> StoreError {
        let limit_ms = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        StoreError::Deadline { dependency: "database", operation: "append_alerts", limit_ms }
    }

    async fn append(self: Arc<Self>, mut group: Group) {
        self.fill_names(&mut group.together.alerts).await;
        // Ends: each round answers someone.
        while !group.shares.is_empty() {
            match self.append_batch(&group.together).await {
                Ok(appended) => return group.answer_stored(appended),
                // Nothing was stored. Those whose fault it is are told, the others go again without them.
                Err(AppendError::Fenced(void)) => group = group.answer_fenced(&void),
                Err(AppendError::Store(error)) => return group.answer_failed(&error),
            }
        }
    }

    async fn append_batch(&self, batch: &AppendBatch) -> Result<Appended, AppendError> {
        let begun_at = Instant::now();
        let result = self.log.append(batch).await;
        self.metrics.alerts_append_seconds.observe(begun_at.elapsed().as_secs_f64());
        match &result {
            Ok(appended) => {
                self.metrics.alerts_append_rows.observe(batch.alerts.len() as f64);
                self.count(batch, appended);
                if appended.seqs.iter().any(Option::is_some) {
                    self.doorbell.announce();
                }
                if self.health.report(name::ALERTS, State::Up, None) {
                    tracing::info!("alerts are stored again");
                }
                self.health.report_latency(name::ALERTS, begun_at.elapsed());
            }
            Err(AppendError::Store(error)) => {
                if self.health.report(name::ALERTS, State::Down, Some(error.to_string())) {
                    tracing::error!(%error, "alerts cannot be stored right now; Kafka is paused, HTTP answers 503");
                }
            }
            Err(AppendError::Fenced(_)) => {}
        }
        result
    }

    fn count(&self, batch: &AppendBatch, appended: &Appended) {
        for label in ["http", "kafka"] {
            let of_source =
                || batch.alerts.iter().zip(&appended.seqs).filter(|(new, _)| source_label(&new.source) == label);
            let all = of_source().count();
            let stored = of_source().filter(|(_, seq)| seq.is_some()).count();
            for (counter, count) in
                [(&self.metrics.alerts_accepted, stored), (&self.metrics.alerts_duplicates, all - stored)]
            {
                if count > 0 {
                    counter.with_label_values(&[label]).inc_by(count as u64);
                }
            }
        }
    }

    /// Only the stored columns; the object stays as it came.
    async fn fill_names(&self, alerts: &mut [NewAlert]) {
        let mut nameless: Vec<_> = alerts.iter_mut().filter_map(|new| Some((find_nameless(new)?, new))).collect();
        if nameless.is_empty() {
            return;
        }
        let snapshot = match timeout(NAMES_PATIENCE, self.directory.read()).await {
            Ok(Ok(view)) => Some(view.snapshot),
            Ok(Err(_)) | Err(_) => self.directory.find_latest(),
        };
        let Some(snapshot) = snapshot else { return };
        for (global_id, new) in &mut nameless {
            new.alert.user_name =
                snapshot.find_user_by_global_id(*global_id).map(|user| CompactString::from(&*user.name));
        }
    }
}

/// Whose name an alert should have and has not.
fn find_nameless(new: &NewAlert) -> Option<i64> {
    let user_id = new.alert.columns.user_id.as_deref().filter(|_| new.alert.user_name.is_none())?;
    user_id.parse().ok()
}

/// Batches of several callers, one behind the other, that go into one append.
#[derive(Default)]
struct Group {
    together: AppendBatch,
    shares: Vec<Share>,
    alerts: usize,
    bytes: usize,
}

/// How much of a group is one caller's.
struct Share {
    alerts: usize,
    dead_letters: usize,
    advances: usize,
    answer: Answer,
    place: Place,
}

impl Group {
    fn push(&mut self, Request { batch, answer, place }: Request) {
        let (alerts, bytes) = size(&batch);
        (self.alerts, self.bytes) = (self.alerts + alerts, self.bytes + bytes);
        self.shares.push(Share {
            alerts: batch.alerts.len(),
            dead_letters: batch.dead_letters.len(),
            advances: batch.advances.len(),
            answer,
            place,
        });
        if self.shares.len() == 1 {
            self.together = batch;
        } else {
            self.together.alerts.extend(batch.alerts);
            self.together.dead_letters.extend(batch.dead_letters);
            self.together.advances.extend(batch.advances);
        }
    }

    fn has_room_for(&self, batch: &AppendBatch) -> bool {
        let (alerts, bytes) = size(batch);
        self.alerts + alerts <= MAX_ALERTS && self.bytes + bytes <= MAX_BYTES && !self.shares_partition(batch)
    }

    fn is_large(&self) -> bool {
        self.alerts >= MAX_ALERTS / 2 || self.bytes >= MAX_BYTES / 2
    }

    /// `under_way`: appends. `is_full`: somebody found no room. `pause`: since the last append began.
    fn may_begin(&self, under_way: usize, is_full: bool, pause: Duration) -> bool {
        let is_waited_for = self.shares.iter().any(|share| share.place.due.is_some());
        // The database takes a large one in while it stores the one before.
        under_way <= usize::from(self.is_large()) && (is_full || self.is_large() || is_waited_for || pause >= GATHERING)
    }

    /// The log takes at most one advance per partition.
    fn shares_partition(&self, batch: &AppendBatch) -> bool {
        batch
            .advances
            .iter()
            .any(|later| self.together.advances.iter().any(|earlier| is_same_partition(earlier, later)))
    }

    fn answer_stored(self, appended: Appended) {
        let mut seqs = appended.seqs.into_iter();
        for share in self.shares {
            tell(share.answer, Ok(Appended { seqs: seqs.by_ref().take(share.alerts).collect() }));
        }
    }

    /// Gives back those whose advances are void; the rest. A refusal that names nobody here is everybody's.
    fn answer_fenced(self, void: &[PartitionAdvance]) -> Self {
        let is_void = |advance: &&PartitionAdvance| void.iter().any(|void| is_same_partition(void, advance));
        let is_nobodys = !self.together.advances.iter().any(|advance| is_void(&advance));
        let mut rest = Self::default();
        for Request { batch, answer, place } in self.into_requests() {
            let own: Vec<_> = batch.advances.iter().filter(is_void).cloned().collect();
            if own.is_empty() && !is_nobodys {
                rest.push(Request { batch, answer, place });
            } else {
                tell(answer, Err(Box::new(Unstored { error: AppendError::Fenced(own), batch: Some(batch) })));
            }
        }
        rest
    }

    fn answer_failed(self, error: &StoreError) {
        for Request { batch, answer, .. } in self.into_requests() {
            let unstored = Unstored { error: AppendError::Store(error.repeat()), batch: Some(batch) };
            tell(answer, Err(Box::new(unstored)));
        }
    }

    fn into_requests(self) -> impl Iterator<Item = Request> {
        let mut alerts = self.together.alerts.into_iter();
        let mut dead_letters = self.together.dead_letters.into_iter();
        let mut advances = self.together.advances.into_iter();
        self.shares.into_iter().map(move |share| Request {
            batch: AppendBatch {
                alerts: alerts.by_ref().take(share.alerts).collect(),
                dead_letters: dead_letters.by_ref().take(share.dead_letters).collect(),
                advances: advances.by_ref().take(share.advances).collect(),
            },
            answer: share.answer,
            place: share.place,
        })
    }
}

fn size(batch: &AppendBatch) -> (usize, usize) {
    let letters: usize = batch.dead_letters.iter().map(|letter| letter.raw.len()).sum();
    (batch.alerts.len(), batch.alerts.iter().map(|new| new.alert.body.len()).sum::<usize>() + letters)
}

/// In the bytes that may wait.
fn weight(alerts: usize, bytes: usize) -> u32 {
    u32::try_from(bytes + alerts * BYTES_PER_ALERT).unwrap_or(WAITING_BYTES).min(WAITING_BYTES)
}

fn is_same_partition(one: &PartitionAdvance, other: &PartitionAdvance) -> bool {
    one.partition == other.partition && one.topic == other.topic
}

/// A panic of an append is one of the whole.
fn as_ours(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn tell(answer: Answer, result: Result<Appended, Box<Unstored>>) {
    if answer.send(result).is_err() {
        tracing::debug!("who handed in a batch did not wait for its answer");
    }
}

fn source_label(source: &Source) -> &'static str {
    match source {
        Source::Http => "http",
        Source::Kafka { .. } => "kafka",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::types::{AlertColumns, DecodedAlert};

    fn group(alerts: usize, due: Option<Instant>) -> Group {
        let alert = DecodedAlert {
            body: "{}".into(),
            columns: AlertColumns::default(),
            user_name: None,
            occurred_at: None,
            event_id: None,
        };
        let batch =
            AppendBatch { alerts: vec![NewAlert { alert, source: Source::Http }; alerts], ..AppendBatch::default() };
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("room");
        let mut group = Group::default();
        group.push(Request { batch, answer: oneshot::channel().0, place: Place { _room: room, due } });
        group
    }

    #[tokio::test]
    async fn an_append_waits_for_more_unless_somebody_waits_for_it() {
        let (soon, late) = (Duration::ZERO, GATHERING);
        let (patient, awaited) = (group(1, None), group(1, Some(Instant::now())));
        assert!(!patient.may_begin(0, false, soon) && patient.may_begin(0, false, late));
        assert!(awaited.may_begin(0, false, soon));
        assert!(patient.may_begin(0, true, soon), "there is no room for more");
        assert!(!patient.may_begin(1, true, late) && !awaited.may_begin(1, false, late), "the next fills meanwhile");
    }

    #[tokio::test]
    async fn a_large_append_does_not_wait_for_the_one_before() {
        let large = group(MAX_ALERTS / 2, None);
        assert!(large.may_begin(0, false, Duration::ZERO) && large.may_begin(1, false, Duration::ZERO));
        assert!(!large.may_begin(2, true, GATHERING));
    }
}
