//! Questions to the broker, or to the client, that wait for an answer: asked off the runtime, bounded.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::Context;
use super::condition::Key;
use super::position::Watermarks;

const LIMIT: Duration = Duration::from_secs(2);

/// Of one client; answers an error once that is closed. Cheap to clone.
#[derive(Clone)]
pub struct Lookup {
    consumer: Weak<BaseConsumer<Context>>,
}

impl Lookup {
    pub fn new(consumer: Weak<BaseConsumer<Context>>) -> Self {
        Self { consumer }
    }

    pub async fn watermarks(&self, (topic, partition): Key) -> Result<Watermarks, String> {
        self.ask(move |consumer| {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, LIMIT).map_err(|error| error.to_string())?;
            if low < 0 || high < low {
                return Err(format!("the broker says that the partition goes from {low} to {high}"));
            }
            Ok(Watermarks { low, high })
        })
        .await
    }

    /// The group's committed offset, if it has one.
    pub async fn committed(&self, (topic, partition): Key) -> Result<Option<i64>, String> {
        self.ask(move |consumer| {
            let mut list = TopicPartitionList::new();
            list.add_partition(&topic, partition);
            let answered = consumer.committed_offsets(list, LIMIT).map_err(|error| error.to_string())?;
            let Some(element) = answered.find_partition(&topic, partition) else { return Ok(None) };
            element.error().map_err(|error| error.to_string())?;
            Ok(match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
        })
        .await
    }

    /// Whether the topic is there to be read.
    pub async fn has_topic(&self, topic: String) -> Result<bool, String> {
        self.ask(move |consumer| {
            let metadata = consumer.fetch_metadata(Some(&topic), LIMIT).map_err(|error| error.to_string())?;
            Ok(metadata
                .topics()
                .iter()
                .any(|found| found.name() == topic && found.error().is_none() && !found.partitions().is_empty()))
        })
        .await
    }

    /// Wakes the client's own thread. It waits by the wall clock: where that is set back, it would sleep for
    /// as long, without heartbeats, until something happens; this is something.
    pub async fn nudge(&self) -> Result<(), String> {
        self.ask(|consumer| consumer.assignment().map(drop).map_err(|error| error.to_string())).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Context>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let consumer: Arc<_> = self.consumer.upgrade().ok_or("the Kafka client is closed")?;
        let asking = tokio::task::spawn_blocking(move || question(&consumer));
        asking.await.unwrap_or_else(|join| Err(join.to_string()))
    }
}
