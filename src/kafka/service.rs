//! The consumer as a service: starts the polling thread, gives each assigned partition its keeper, reports,
//! and ends all of it in order.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::condition::judge;
use super::keeper::{Keeper, Tools};
use super::lookup::Lookup;
use super::poller::{Command, Event, Poller};
use super::position::Reset;
use super::properties;
use super::shared::Shared;
use crate::alerts::decode::DecodeLimits;
use crate::alerts::{AlertLog, Ingest};
use crate::config::KafkaConfig;
use crate::lifecycle::{Lifecycle, panic_text};
use crate::telemetry::health::{HealthBoard, State, name};

const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// How often a missing topic is looked for.
const TOPIC_INTERVAL: Duration = Duration::from_secs(2);
/// How often ends are asked for while nothing is fetched.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);
/// How often the client is kept from oversleeping. Well below the group's session timeout.
const NUDGE_INTERVAL: Duration = Duration::from_secs(1);
/// For batches under way.
const FINISHING: Duration = Duration::from_secs(5);
/// For the client to leave the group; a broker that is frozen is not waited for longer.
const LEAVING: Duration = Duration::from_secs(3);

pub struct Service {
    pub config: KafkaConfig,
    pub limits: DecodeLimits,
    pub log: Arc<dyn AlertLog>,
    pub ingest: Ingest,
    pub lifecycle: Lifecycle,
    pub shared: Arc<Shared>,
    pub health: HealthBoard,
}

impl Service {
    pub async fn run(self) -> anyhow::Result<()> {
        let Some(reset) = Reset::of(&self.config) else {
            let reason = properties::invalid(Reset::PROPERTY);
            tracing::error!("Kafka is not used: {reason}");
            self.health.report(name::KAFKA, State::Degraded, Some(reason));
            self.lifecycle.draining().cancelled().await;
            return Ok(());
        };
        let (commands, orders) = mpsc::channel();
        let (events, mut happening) = tokio_mpsc::unbounded_channel();
        let poller = Poller {
            config: self.config.clone(),
            limits: self.limits.clone(),
            shared: self.shared.clone(),
            draining: self.lifecycle.draining().clone(),
            commands: orders,
            events,
        };
        let mut thread = Thread::start(move || poller.run())?;
        let tools = Tools {
            log: self.log.clone(),
            ingest: self.ingest.clone(),
            lifecycle: self.lifecycle.clone(),
            shared: self.shared.clone(),
            commands: commands.clone(),
            reset,
        };
        let mut keepers = JoinSet::new();
        let mut report = Report::new(&self);
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.lifecycle.draining().cancelled() => break,
                ended = &mut thread.ended => return Err(thread.explain(ended.is_ok())),
                Some(joined) = keepers.join_next() => joined?,
                Some(event) = happening.recv() => match event {
                    Event::Client(lookup) => report.lookup = Some(lookup),
                    Event::Assigned(tenure, lookup) => {
                        keepers.spawn(Keeper { tools: tools.clone(), tenure, lookup }.run());
                    }
                },
                _ = ticks.tick() => report.tick(),
            }
        }
        self.stop(thread, keepers, commands).await
    }

    /// Batches under way are stored, then positions committed and the group left.
    async fn stop(
        &self,
        mut thread: Thread,
        mut keepers: JoinSet<()>,
        commands: mpsc::Sender<Command>,
    ) -> anyhow::Result<()> {
        let stopping = async {
            let finishing = async {
                while let Some(joined) = keepers.join_next().await {
                    joined?;
                }
                anyhow::Ok(())
            };
            match tokio::time::timeout(FINISHING, finishing).await {
                Ok(finished) => finished?,
                Err(_) => tracing::warn!(
                    "the database does not say whether the last batches are stored; who goes on will see it there"
                ),
            }
            if commands.send(Command::Stop).is_err() {
                tracing::debug!("the polling thread ended already");
            }
            match tokio::time::timeout(LEAVING, &mut thread.ended).await {
                Ok(Err(_)) => return Err(thread.explain(false)),
                Ok(Ok(())) => {}
                Err(_) => tracing::warn!("the Kafka broker does not answer; the group is left without its word"),
            }
            Ok(())
        };
        self.lifecycle.aborting().run_until_cancelled(stopping).await.unwrap_or(Ok(()))
    }
}

/// The polling thread, and how it ended.
struct Thread {
    handle: Option<std::thread::JoinHandle<()>>,
    /// An error means that it panicked.
    ended: oneshot::Receiver<()>,
}

impl Thread {
    fn start(run: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        let (end, ended) = oneshot::channel();
        let handle = std::thread::Builder::new().name("kafka".to_owned()).spawn(move || {
            run();
            if end.send(()).is_err() {
                tracing::debug!("nobody waited for the polling thread");
            }
        })?;
        Ok(Self { handle: Some(handle), ended })
    }

    fn explain(&mut self, is_returned: bool) -> anyhow::Error {
        if is_returned {
            return anyhow::anyhow!("the polling thread ended although it was not told to");
        }
        // It dropped its end of the channel while it unwound, and is as good as over.
        let payload = self.handle.take().and_then(|handle| handle.join().err());
        let text = payload.map_or_else(|| "without a message".to_owned(), |payload| panic_text(payload.as_ref()));
        anyhow::anyhow!("the polling thread panicked: {text}")
    }
}

/// Brings what is known to `/health` and the metrics.
struct Report<'a> {
    service: &'a Service,
    began_at: Instant,
    lookup: Option<Lookup>,
    look_again_at: Instant,
    looking: Option<JoinHandle<()>>,
    measure_again_at: Instant,
    measuring: Option<JoinHandle<()>>,
    nudge_again_at: Instant,
    nudging: Option<JoinHandle<()>>,
}

impl<'a> Report<'a> {
    fn new(service: &'a Service) -> Self {
        let now = Instant::now();
        Self {
            service,
            began_at: now,
            lookup: None,
            look_again_at: now,
            looking: None,
            measure_again_at: now,
            measuring: None,
            nudge_again_at: now,
            nudging: None,
        }
    }

    fn tick(&mut self) {
        self.look_for_topics();
        self.measure_ends();
        self.nudge();
        let Service { shared, health, config, .. } = self.service;
        let condition = shared.condition.lock().clone();
        let (state, detail) = judge(&condition, &config.bootstrap_servers, self.began_at.elapsed());
        if health.report(name::KAFKA, state, detail.clone()) {
            let detail = detail.unwrap_or_default();
            match state {
                State::Up => tracing::info!("Kafka works"),
                State::Starting => tracing::info!("Kafka: {detail}"),
                State::Degraded | State::Down => tracing::warn!("Kafka: {detail}"),
            }
        }
        let now = Instant::now();
        let tenures = shared.list_tenures();
        let mut lags = BTreeMap::new();
        for tenure in &tenures {
            let Some(lag) = tenure.progress.lock().lag() else { continue };
            let (topic, partition) = (&*tenure.key.0, tenure.key.1.to_string());
            shared.metrics.kafka_lag.with_label_values(&[topic, &partition]).set(lag);
            lags.insert(format!("{topic}/{partition}"), lag);
        }
        let silence = json!(shared.cameras.lock().silence(now));
        health.report_figure(name::KAFKA, "partitions_assigned", tenures.len());
        health.report_figure(name::KAFKA, "lag", json!(lags));
        health.report_figure(name::KAFKA, "seconds_since_last_alert_by_camera", silence);
        health.report_figure(name::KAFKA, "oldest_unstored_seconds", shared.oldest_unstored_seconds(now));
        health.report_figure(name::KAFKA, "dead_letters", shared.dead_letters.load(Ordering::Relaxed));
    }

    /// The client library tells once that a topic is missing, and never that it came.
    fn look_for_topics(&mut self) {
        let shared = self.service.shared.clone();
        if is_running(self.looking.as_ref())
            || Instant::now() < self.look_again_at
            || shared.condition.lock().topic.is_none()
        {
            return;
        }
        let Some(lookup) = self.lookup.clone() else { return };
        self.look_again_at = Instant::now() + TOPIC_INTERVAL;
        let topics = properties::subscription(&self.service.config);
        let topics: Vec<_> = topics.into_iter().filter(|topic| !topic.starts_with('^')).map(str::to_owned).collect();
        self.looking = Some(tokio::spawn(async move {
            for topic in topics {
                if lookup.has_topic(topic).await != Ok(true) {
                    return;
                }
            }
            shared.condition.lock().topic = None;
        }));
    }

    /// The client library learns where a partition ends by fetching it, which it does not while paused.
    fn measure_ends(&mut self) {
        let shared = &self.service.shared;
        let is_fetching = {
            let condition = shared.condition.lock();
            !condition.is_paused && condition.partitions.is_empty()
        };
        if is_fetching || is_running(self.measuring.as_ref()) || Instant::now() < self.measure_again_at {
            return;
        }
        let Some(lookup) = self.lookup.clone() else { return };
        self.measure_again_at = Instant::now() + MEASURE_INTERVAL;
        let tenures = shared.list_tenures();
        self.measuring = Some(tokio::spawn(async move {
            for tenure in tenures {
                if let Ok(marks) = lookup.watermarks(tenure.key.clone()).await {
                    tenure.progress.lock().end = Some(marks.high);
                }
            }
        }));
    }

    fn nudge(&mut self) {
        if is_running(self.nudging.as_ref()) || Instant::now() < self.nudge_again_at {
            return;
        }
        let Some(lookup) = self.lookup.clone() else { return };
        self.nudge_again_at = Instant::now() + NUDGE_INTERVAL;
        self.nudging = Some(tokio::spawn(async move {
            if let Err(error) = lookup.nudge().await {
                tracing::debug!(error, "the Kafka client is gone");
            }
        }));
    }
}

fn is_running(task: Option<&JoinHandle<()>>) -> bool {
    task.is_some_and(|task| !task.is_finished())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_on_the_polling_thread_is_not_lost() {
        let mut thread = Thread::start(|| panic!("out of paper")).expect("a thread");
        let ended = (&mut thread.ended).await;
        assert_eq!(thread.explain(ended.is_ok()).to_string(), "the polling thread panicked: out of paper");
        let mut thread = Thread::start(|| {}).expect("a thread");
        let ended = (&mut thread.ended).await;
        assert!(thread.explain(ended.is_ok()).to_string().contains("not told to"));
    }
}
