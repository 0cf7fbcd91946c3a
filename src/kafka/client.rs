//! The client library's callbacks: rebalances, errors, statistics, logs. All of them run on the polling
//! thread, inside a poll; none may wait for anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::IntCounter;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio_util::sync::CancellationToken;

use super::shared::{Shared, Tenure};
use super::statistics::Statistics;

pub struct Context {
    pub shared: Arc<Shared>,
    pub draining: CancellationToken,
    pub seats: Mutex<Seats>,
}

/// What the polling thread knows of one assigned partition.
pub struct Seat {
    pub tenure: Arc<Tenure>,
    /// Whether the library fetches it. Assigned partitions wait for their keeper to claim them.
    pub is_open: bool,
    /// The position that the broker is not told yet.
    pub to_commit: Option<i64>,
    pub messages: IntCounter,
}

#[derive(Default)]
pub struct Seats {
    by_topic: HashMap<Arc<str>, HashMap<i32, Seat>>,
    /// Assigned since this was looked at last; they need a keeper.
    pub begun: Vec<Arc<Tenure>>,
    pub rebalanced_at: Option<Instant>,
}

impl Seats {
    pub fn find(&mut self, topic: &str, partition: i32) -> Option<&mut Seat> {
        self.by_topic.get_mut(topic)?.get_mut(&partition)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.by_topic.values_mut().flat_map(HashMap::values_mut)
    }

    /// The partitions that the library fetches.
    pub fn list_open(&mut self) -> TopicPartitionList {
        let mut open = TopicPartitionList::new();
        for seat in self.iter_mut().filter(|seat| seat.is_open) {
            open.add_partition(&seat.tenure.key.0, seat.tenure.key.1);
        }
        open
    }

    fn remove(&mut self, topic: &str, partition: i32) -> Option<Seat> {
        self.by_topic.get_mut(topic)?.remove(&partition)
    }
}

impl Context {
    fn take_seats(&self, assigned: &TopicPartitionList) {
        let mut seats = self.seats.lock();
        for element in assigned.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            if let Some(earlier) = seats.remove(topic, partition) {
                self.shared.end_tenure(&earlier.tenure);
            }
            let tenure = self.shared.begin_tenure(topic, partition, &self.draining);
            let messages = self.shared.metrics.kafka_messages.with_label_values(&[topic, &partition.to_string()]);
            let seat = Seat { tenure: tenure.clone(), is_open: false, to_commit: None, messages };
            seats.by_topic.entry(tenure.key.0.clone()).or_default().insert(partition, seat);
            seats.begun.push(tenure);
        }
        seats.rebalanced_at = Some(Instant::now());
    }

    /// Of those given up, the ones that the library fetches.
    fn leave_seats(&self, revoked: &TopicPartitionList) -> TopicPartitionList {
        let mut seats = self.seats.lock();
        let mut open = TopicPartitionList::new();
        for element in revoked.elements() {
            let Some(seat) = seats.remove(element.topic(), element.partition()) else { continue };
            self.shared.end_tenure(&seat.tenure);
            if seat.is_open {
                open.add_partition(element.topic(), element.partition());
            }
        }
        seats.rebalanced_at = Some(Instant::now());
        open
    }

    fn count_rebalance(&self, kind: &'static str, partitions: &TopicPartitionList) {
        self.shared.metrics.kafka_rebalances.with_label_values(&[kind]).inc();
        let list: Vec<_> =
            partitions.elements().iter().map(|one| format!("{}/{}", one.topic(), one.partition())).collect();
        tracing::info!(kind, partitions = list.join(","), "Kafka rebalance: {} partitions {kind}", list.len());
    }
}

/// Adds partitions to what the library fetches, each from its offset.
pub fn open(
    consumer: &BaseConsumer<Context>,
    seats: &mut Seats,
    topic: &str,
    partition: i32,
    offset: i64,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    if is_eager(consumer) {
        // The eager protocol knows only whole assignments; the others go on where they are.
        for seat in seats.iter_mut().filter(|seat| seat.is_open) {
            let place = seat.tenure.inbox.expected().map_or(Offset::Invalid, Offset::Offset);
            list.add_partition_offset(&seat.tenure.key.0, seat.tenure.key.1, place)?;
        }
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        return consumer.assign(&list);
    }
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.incremental_assign(&list)
}

/// Takes a partition out of what the library fetches, while it stays assigned by the group.
pub fn close(consumer: &BaseConsumer<Context>, seats: &mut Seats, topic: &str, partition: i32) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    if is_eager(consumer) {
        for seat in seats
            .iter_mut()
            .filter(|seat| seat.is_open && (&*seat.tenure.key.0, seat.tenure.key.1) != (topic, partition))
        {
            let place = seat.tenure.inbox.expected().map_or(Offset::Invalid, Offset::Offset);
            list.add_partition_offset(&seat.tenure.key.0, seat.tenure.key.1, place)?;
        }
        return consumer.assign(&list);
    }
    list.add_partition(topic, partition);
    consumer.incremental_unassign(&list)
}

fn is_eager(consumer: &BaseConsumer<Context>) -> bool {
    matches!(consumer.rebalance_protocol(), RebalanceProtocol::Eager)
}

impl ConsumerContext for Context {
    /// The library goes on with the group's protocol once it is told an assignment; it is told an empty
    /// one, so that nothing is fetched before the database said from where.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let told = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.count_rebalance("assigned", partitions);
            self.take_seats(partitions);
            {
                let mut condition = self.shared.condition.lock();
                condition.has_joined = true;
                condition.group = None;
            }
            let none = TopicPartitionList::new();
            if is_eager(consumer) { consumer.assign(&none) } else { consumer.incremental_assign(&none) }
        } else {
            self.count_rebalance(if consumer.assignment_lost() { "lost" } else { "revoked" }, partitions);
            let open = self.leave_seats(partitions);
            if is_eager(consumer) { consumer.unassign() } else { consumer.incremental_unassign(&open) }
        };
        if let Err(error) = told {
            tracing::error!(%error, "the Kafka client does not take the answer to a rebalance");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Harmless: our own positions are what counts, and the next commit tells more.
            self.shared.metrics.kafka_errors.with_label_values(&["commit"]).inc();
            tracing::debug!(%error, "the broker was not told our positions");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        // Each failed attempt to connect is one of these; a change of state is reported once elsewhere.
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "librdkafka", facility, "{text}");
            }
            _ => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let statistics = match Statistics::parse(statistics) {
            Ok(statistics) => statistics,
            Err(error) => return tracing::warn!(%error, "the Kafka client's statistics cannot be read"),
        };
        self.shared.condition.lock().brokers = statistics.brokers();
        let mut seats = self.seats.lock();
        for (topic, partition, end) in statistics.ends() {
            if let Some(seat) = seats.find(topic, partition) {
                seat.tenure.progress.lock().end = Some(end);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        if code == RDKafkaErrorCode::PartitionEOF {
            return;
        }
        self.shared.metrics.kafka_errors.with_label_values(&[kind(code)]).inc();
        let mut condition = self.shared.condition.lock();
        match kind(code) {
            "connection" | "authentication" => condition.connection = Some(reason.to_owned()),
            "topic" => {
                condition.topic =
                    Some(format!("{reason}: create the topic or allow reading it; it is looked for again"));
            }
            "group" => {
                condition.group = Some(format!("the consumer group does not take us ({reason}): see KAFKA_GROUP_ID"));
            }
            _ => {}
        }
        tracing::debug!(%error, reason, "the Kafka client reports an error");
    }
}

/// The label of `kafka_errors_total`.
fn kind(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as Code;
    match code {
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::OperationTimedOut | Code::SSL => {
            "connection"
        }
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => "authentication",
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::TopicAuthorizationFailed
        | Code::InvalidTopic => "topic",
        Code::GroupAuthorizationFailed
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::InvalidSessionTimeout
        | Code::GroupMaxSizeReached
        | Code::FencedInstanceId => "group",
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => "out_of_range",
        Code::PollExceeded => "poll_exceeded",
        Code::Fatal => "fatal",
        _ => "other",
    }
}
