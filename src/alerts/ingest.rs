//! The one way in: Kafka and HTTP both end here. Forms batches by itself: while one append runs, the
//! next fills. Fills missing names from the directory. Knows neither Kafka nor HTTP.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::doorbell::Doorbell;
use super::log::{AlertLog, AppendError};
use super::types::{AppendBatch, Appended, NewAlert, Source};
use crate::directory::Directory;
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

/// Batches that wait for their append; more callers wait for a place.
const QUEUED_BATCHES: usize = 1024;
/// One append takes at most so much, unless one caller's batch alone is larger.
const MAX_ALERTS: usize = 2_000;
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    queue: mpsc::Sender<Request>,
    appender: Arc<Appender>,
}

struct Request {
    batch: AppendBatch,
    answer: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Ingest {
    pub fn start(
        log: Arc<dyn AlertLog>,
        directory: Directory,
        doorbell: Doorbell,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
        health: HealthBoard,
    ) -> Self {
        let (queue, requests) = mpsc::channel(QUEUED_BATCHES);
        let appender = Arc::new(Appender { log, directory, doorbell, metrics, health });
        lifecycle.spawn_service("alert ingest", appender.clone().run(requests, lifecycle.closing().clone()));
        Self { queue, appender }
    }

    /// Answers after the commit. Several callers' batches may share one append; an error concerns the
    /// caller's batch alone. The work goes on when the caller goes away.
    pub async fn accept(&self, batch: AppendBatch) -> Result<Appended, AppendError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || AppendError::Store(StoreError::unavailable_because("alert log", "the service is stopping"));
        self.queue.send(Request { batch, answer }).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Appends what a dead letter turned out to be, and removes the letter; answers as the log does.
    pub async fn accept_dead_letter(&self, id: i64, mut new: NewAlert) -> Result<Option<Option<i64>>, StoreError> {
        self.appender.fill_names(std::slice::from_mut(&mut new));
        let resolved = self.appender.log.resolve_dead_letter(id, &new).await?;
        if matches!(resolved, Some(Some(_))) {
            self.appender.doorbell.announce();
        }
        Ok(resolved)
    }
}

struct Appender {
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
        loop {
            let first = match held.take() {
                Some(request) => request,
                None => tokio::select! {
                    biased;
                    request = requests.recv() => match request {
                        Some(request) => request,
                        None => return Ok(()),
                    },
                    () = closing.cancelled() => return Ok(()),
                },
            };
            let mut group = vec![first];
            let (mut alerts, mut bytes) = size(&group[0].batch);
            // What came while the last append ran goes into this one.
            while let Ok(request) = requests.try_recv() {
                let (more_alerts, more_bytes) = size(&request.batch);
                if alerts + more_alerts > MAX_ALERTS
                    || bytes + more_bytes > MAX_BYTES
                    || shares_partition(&group, &request)
                {
                    held = Some(request);
                    break;
                }
                alerts += more_alerts;
                bytes += more_bytes;
                group.push(request);
            }
            self.metrics.alerts_waiting.set(i64::try_from(alerts + requests.len()).unwrap_or(i64::MAX));
            self.append(group).await;
            self.metrics.alerts_waiting.set(i64::try_from(requests.len()).unwrap_or(i64::MAX));
        }
    }

    async fn append(&self, mut group: Vec<Request>) {
        for request in &mut group {
            self.fill_names(&mut request.batch.alerts);
        }
        if group.len() > 1 {
            let together = merge(&group);
            match self.append_batch(&together).await {
                Ok(appended) => return answer_each(group, appended),
                // Whose fault it is shows when each goes alone; nothing of the whole was stored.
                Err(AppendError::Fenced(_)) => {}
                Err(AppendError::Store(error)) => {
                    for request in group {
                        tell(request.answer, Err(AppendError::Store(error.repeat())));
                    }
                    return;
                }
            }
        }
        for request in group {
            let appended = self.append_batch(&request.batch).await;
            tell(request.answer, appended);
        }
    }

    async fn append_batch(&self, batch: &AppendBatch) -> Result<Appended, AppendError> {
        let begun_at = Instant::now();
        let result = self.log.append(batch).await;
        self.metrics.alerts_append_seconds.observe(begun_at.elapsed().as_secs_f64());
        match &result {
            Ok(appended) => {
                self.metrics.alerts_append_rows.observe(batch.alerts.len() as f64);
                for (new, seq) in batch.alerts.iter().zip(&appended.seqs) {
                    let label = source_label(&new.source);
                    let counter =
                        if seq.is_some() { &self.metrics.alerts_accepted } else { &self.metrics.alerts_duplicates };
                    counter.with_label_values(&[label]).inc();
                }
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

    /// Only the stored columns; the object stays as it came.
    fn fill_names(&self, alerts: &mut [NewAlert]) {
        let Some(snapshot) = self.directory.find_latest() else { return };
        for new in alerts.iter_mut().filter(|new| new.alert.user_name.is_none()) {
            let global_id = new.alert.columns.user_id.as_deref().and_then(|text| text.parse::<i64>().ok());
            let user = global_id.and_then(|global_id| snapshot.find_user_by_global_id(global_id));
            new.alert.user_name = user.map(|user| user.name.to_string());
        }
    }
}

fn size(batch: &AppendBatch) -> (usize, usize) {
    let letters: usize = batch.dead_letters.iter().map(|letter| letter.raw.len()).sum();
    (batch.alerts.len(), batch.alerts.iter().map(|new| new.alert.body.len()).sum::<usize>() + letters)
}

/// The log takes at most one advance per partition.
fn shares_partition(group: &[Request], request: &Request) -> bool {
    let taken = group.iter().flat_map(|earlier| &earlier.batch.advances);
    taken.into_iter().any(|earlier| {
        request.batch.advances.iter().any(|later| later.partition == earlier.partition && later.topic == earlier.topic)
    })
}

fn merge(group: &[Request]) -> AppendBatch {
    let mut together = AppendBatch::default();
    for Request { batch, .. } in group {
        together.alerts.extend(batch.alerts.iter().cloned());
        together.dead_letters.extend(batch.dead_letters.iter().cloned());
        together.advances.extend(batch.advances.iter().cloned());
    }
    together
}

fn answer_each(group: Vec<Request>, appended: Appended) {
    let mut seqs = appended.seqs.into_iter();
    for request in group {
        let own = seqs.by_ref().take(request.batch.alerts.len()).collect();
        tell(request.answer, Ok(Appended { seqs: own }));
    }
}

fn tell(answer: oneshot::Sender<Result<Appended, AppendError>>, result: Result<Appended, AppendError>) {
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
