//! The thread that polls: hands messages to the inboxes of their partitions, carries out what the keepers
//! order, and never waits for anything but the broker, and for that 100 ms at most.

use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::client::{self, Context, Seats};
use super::inbox::{Content, Received};
use super::lookup::Lookup;
use super::poison::{Change, PoisonWatch};
use super::properties;
use super::shared::{Shared, Tenure};
use crate::alerts::decode::{self, DecodeError, DecodeLimits};
use crate::alerts::types::{DEAD_LETTER_BYTES, NewAlert, NewDeadLetter, Source};
use crate::config::KafkaConfig;

const POLL: Duration = Duration::from_millis(50);
/// How often the broker is told our positions.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Commits within a rebalance would begin another one.
const QUIET_AFTER_REBALANCE: Duration = Duration::from_secs(2);
/// A full inbox is waited for so long before the consumer is paused, which empties what was fetched ahead.
const PATIENCE: Duration = Duration::from_millis(300);
/// From one attempt to use a client that broke to the next.
const RESTART_DELAY: Duration = Duration::from_secs(5);
/// Lookups end by themselves; the client is closed after the last one.
const LOOKUPS_END: Duration = Duration::from_secs(3);

/// What keepers order of the polling thread.
pub enum Command {
    /// Fetch the partition from here on.
    Open(Arc<Tenure>, i64),
    /// Fetch it no more, for now.
    Close(Arc<Tenure>),
    /// Everything before this offset is stored.
    Commit(Arc<Tenure>, i64),
    /// Tell the broker the positions, leave the group and end.
    Stop,
}

/// What the polling thread tells.
pub enum Event {
    /// A client was made; this asks its broker.
    Client(Lookup),
    /// A partition needs a keeper.
    Assigned(Arc<Tenure>, Lookup),
}

pub struct Poller {
    pub config: KafkaConfig,
    pub limits: DecodeLimits,
    pub shared: Arc<Shared>,
    pub draining: CancellationToken,
    pub commands: mpsc::Receiver<Command>,
    pub events: tokio::sync::mpsc::UnboundedSender<Event>,
}

impl Poller {
    /// Until [`Command::Stop`]. A client that cannot be used any more is replaced.
    pub fn run(self) {
        loop {
            let Err(reason) = self.poll_one_client() else { return };
            let before = self.shared.condition.lock().client.replace(reason.clone());
            if before.as_ref() != Some(&reason) {
                tracing::error!("the Kafka consumer does not run: {reason}");
            }
            if self.is_stopped_within(RESTART_DELAY) {
                return;
            }
        }
    }

    fn is_stopped_within(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            match self.commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return true,
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// `Err`: this client is of no use any more, and why.
    fn poll_one_client(&self) -> Result<(), String> {
        let context = Context {
            shared: self.shared.clone(),
            draining: self.draining.clone(),
            seats: parking_lot::Mutex::new(Seats::default()),
        };
        let created = properties::client_config(&self.config).create_with_context(context);
        let consumer: Arc<BaseConsumer<Context>> = Arc::new(created.map_err(|error| properties::explain(&error))?);
        let topics = properties::subscription(&self.config);
        consumer.subscribe(&topics).map_err(|error| {
            format!("KAFKA_TOPIC cannot be subscribed to ({error}): it takes topics and ^patterns, with commas between")
        })?;
        {
            let mut condition = self.shared.condition.lock();
            condition.client = None;
            condition.is_paused = false;
        }
        let lookup = Lookup::new(Arc::downgrade(&consumer));
        self.tell(Event::Client(lookup.clone()));
        let session = Session {
            poller: self,
            lookup,
            poison: PoisonWatch::default(),
            is_paused: false,
            commit_at: Instant::now(),
        };
        let ended = session.run(&consumer);
        self.close(consumer);
        ended
    }

    /// A service that is gone stops us by its commands.
    fn tell(&self, event: Event) {
        if self.events.send(event).is_err() {
            tracing::debug!("the service is gone");
        }
    }

    fn close(&self, consumer: Arc<BaseConsumer<Context>>) {
        for seat in consumer.context().seats.lock().iter_mut() {
            self.shared.end_tenure(&seat.tenure);
        }
        let weak: Weak<_> = Arc::downgrade(&consumer);
        let until = Instant::now() + LOOKUPS_END;
        while weak.strong_count() > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Leaves the group, after the commits under way.
        drop(consumer);
    }
}

/// One client from its creation to its end.
struct Session<'a> {
    poller: &'a Poller,
    lookup: Lookup,
    poison: PoisonWatch,
    is_paused: bool,
    commit_at: Instant,
}

impl Session<'_> {
    fn run(mut self, consumer: &BaseConsumer<Context>) -> Result<(), String> {
        loop {
            while let Some(command) = self.next_command() {
                if let Command::Stop = command {
                    self.commit(consumer);
                    return Ok(());
                }
                self.carry_out(consumer, command);
            }
            match consumer.poll(POLL) {
                Some(Ok(message)) => self.receive(consumer, &message),
                Some(Err(error)) => self.take_error(consumer, &error)?,
                None => {}
            }
            self.hand_over_assigned(consumer);
            self.resume_when_possible(consumer);
            if Instant::now() >= self.commit_at {
                self.commit_at = Instant::now() + COMMIT_INTERVAL;
                let rebalanced_at = consumer.context().seats.lock().rebalanced_at;
                if rebalanced_at.is_none_or(|at| at.elapsed() >= QUIET_AFTER_REBALANCE) {
                    self.commit(consumer);
                }
            }
        }
    }

    /// The service that is gone stops us too.
    fn next_command(&self) -> Option<Command> {
        match self.poller.commands.try_recv() {
            Ok(command) => Some(command),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Command::Stop),
        }
    }

    fn hand_over_assigned(&self, consumer: &BaseConsumer<Context>) {
        let begun = std::mem::take(&mut consumer.context().seats.lock().begun);
        for tenure in begun {
            self.poller.tell(Event::Assigned(tenure, self.lookup.clone()));
        }
    }

    /// An order for an assignment that is over is void.
    fn carry_out(&self, consumer: &BaseConsumer<Context>, command: Command) {
        let (Command::Open(tenure, _) | Command::Close(tenure) | Command::Commit(tenure, _)) = &command else { return };
        let (topic, partition) = (tenure.key.0.clone(), tenure.key.1);
        let mut seats = consumer.context().seats.lock();
        let Some(seat) = seats.find(&topic, partition).filter(|seat| Arc::ptr_eq(&seat.tenure, tenure)) else { return };
        let is_open = seat.is_open;
        let done = match command {
            Command::Commit(_, next) => {
                seat.to_commit = Some(next);
                return;
            }
            Command::Close(_) if is_open => {
                seat.is_open = false;
                client::close(consumer, &mut seats, &topic, partition)
            }
            Command::Open(tenure, offset) if !is_open => {
                tenure.inbox.open(offset);
                let opened = client::open(consumer, &mut seats, &topic, partition, offset);
                if let (Ok(()), Some(seat)) = (&opened, seats.find(&topic, partition)) {
                    seat.is_open = true;
                }
                opened
            }
            _ => return,
        };
        if let Err(error) = done {
            tracing::error!(%error, topic = &*topic, partition, "the Kafka client does not take an assignment");
        }
        if self.is_paused {
            pause(consumer, &mut seats);
        }
    }

    fn receive(&mut self, consumer: &BaseConsumer<Context>, message: &BorrowedMessage<'_>) {
        let tenure = {
            let mut seats = consumer.context().seats.lock();
            let Some(seat) = seats.find(message.topic(), message.partition()).filter(|seat| seat.is_open) else {
                return;
            };
            seat.messages.inc();
            seat.tenure.clone()
        };
        let content = read(message, &tenure.key.0, &self.poller.limits);
        match self.poison.see(matches!(content, Content::DeadLetter(..))) {
            Some(Change::Alarm) => {
                self.poller.shared.condition.lock().is_poisoned = true;
                tracing::error!(
                    topic = message.topic(),
                    "more than half of the last 1,000 messages are no alerts; they are kept at /alerts/rejected, the \
                     others are stored: look at what writes to the topic"
                );
            }
            Some(Change::Calm) => {
                self.poller.shared.condition.lock().is_poisoned = false;
                tracing::info!("most messages are alerts again");
            }
            None => {}
        }
        if let Content::Alert(new) = &content
            && let Some(camera) = &new.alert.columns.camera_id
        {
            self.poller.shared.cameras.lock().hear(camera, Instant::now());
        }
        if tenure.inbox.push(Received { offset: message.offset(), content })
            && !self.is_paused
            && !self.poller.shared.budget.wait_for_room(PATIENCE)
        {
            self.is_paused = true;
            self.poller.shared.condition.lock().is_paused = true;
            pause(consumer, &mut consumer.context().seats.lock());
            tracing::warn!("the Kafka consumer is paused: alerts are not stored as fast as they come");
        }
    }

    fn resume_when_possible(&mut self, consumer: &BaseConsumer<Context>) {
        if !self.is_paused || !self.poller.shared.budget.is_half_empty() {
            return;
        }
        let open = consumer.context().seats.lock().list_open();
        match consumer.resume(&open) {
            Ok(()) => {
                self.is_paused = false;
                self.poller.shared.condition.lock().is_paused = false;
                tracing::info!("the Kafka consumer goes on");
            }
            Err(error) => tracing::warn!(%error, "the Kafka consumer cannot go on yet"),
        }
    }

    fn take_error(&self, consumer: &BaseConsumer<Context>, error: &KafkaError) -> Result<(), String> {
        match error {
            KafkaError::MessageConsumptionFatal(_) => return Err(format!("the Kafka client broke ({error})")),
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            ) => {
                // The library does not say which partition it is about.
                for seat in consumer.context().seats.lock().iter_mut().filter(|seat| seat.is_open) {
                    seat.tenure.inbox.report_out_of_range();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Without waiting for an answer.
    fn commit(&self, consumer: &BaseConsumer<Context>) {
        let mut positions = TopicPartitionList::new();
        for seat in consumer.context().seats.lock().iter_mut() {
            let Some(next) = seat.to_commit.take() else { continue };
            let added = positions.add_partition_offset(&seat.tenure.key.0, seat.tenure.key.1, Offset::Offset(next));
            if let Err(error) = added {
                tracing::warn!(%error, "a position cannot be told to the broker");
            }
        }
        if positions.count() > 0
            && let Err(error) = consumer.commit(&positions, CommitMode::Async)
        {
            tracing::debug!(%error, "the broker is not told our positions");
        }
    }
}

fn pause(consumer: &BaseConsumer<Context>, seats: &mut Seats) {
    if let Err(error) = consumer.pause(&seats.list_open()) {
        tracing::warn!(%error, "the Kafka consumer cannot be paused");
    }
}

/// An alert, or what a person needs in order to see why not.
fn read(message: &BorrowedMessage<'_>, topic: &Arc<str>, limits: &DecodeLimits) -> Content {
    let (partition, offset) = (message.partition(), message.offset());
    let payload = message.payload();
    let raw = payload.unwrap_or_default();
    let decoded = if raw.len() > limits.max_bytes {
        // Not copied as a whole.
        Err(DecodeError::TooLarge { bytes: raw.len(), limit: limits.max_bytes })
    } else {
        decode::decode(Bytes::copy_from_slice(raw), limits)
    };
    match decoded {
        Ok(alert) => Content::Alert(Box::new(NewAlert {
            alert,
            source: Source::Kafka { topic: topic.clone(), partition, offset },
        })),
        Err(error) => {
            let reason = match payload {
                None => "the message has no value (a tombstone)".to_owned(),
                Some(_) => error.to_string(),
            };
            let letter = NewDeadLetter {
                topic: topic.clone(),
                partition,
                offset,
                reason,
                size: raw.len() as u64,
                raw: Bytes::copy_from_slice(&raw[..raw.len().min(DEAD_LETTER_BYTES)]),
            };
            Content::dead_letter(letter, &error)
        }
    }
}
