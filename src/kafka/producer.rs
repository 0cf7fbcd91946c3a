//! Alerts into Kafka, as detectors publish them: for simulated sites.

use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::properties::explain;
use crate::config::KafkaConfig;

const TIMEOUT: Duration = Duration::from_secs(5);
const DELIVERY_TIMEOUT_MS: &str = "5000";

pub struct AlertProducer {
    producer: FutureProducer,
    admin: AdminClient<DefaultClientContext>,
    topic: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("KAFKA_TOPIC={0} names no topic to publish to, only patterns")]
    NoTopic(String),
    #[error("{}", explain(.0))]
    Client(KafkaError),
    #[error("Kafka does not make the topic {topic}: {reason}")]
    NotMade { topic: String, reason: String },
    #[error("Kafka took {delivered} of {total} messages: {reason}")]
    Undelivered { delivered: usize, total: usize, reason: KafkaError },
}

impl AlertProducer {
    /// To the first configured topic that is not a pattern. Connects by itself.
    pub fn new(config: &KafkaConfig) -> Result<Self, PublishError> {
        let mut topics = config.topic.split(',').map(str::trim).filter(|topic| !topic.is_empty());
        let topic = topics.find(|topic| !topic.starts_with('^'));
        let topic = topic.ok_or_else(|| PublishError::NoTopic(config.topic.clone()))?.to_owned();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &config.bootstrap_servers);
        // How to reach the brokers; what is for consumers would only be warned of.
        let shared = ["security.", "sasl.", "ssl.", "client.", "broker.", "socket.", "metadata."];
        for (name, value) in &config.properties {
            if shared.iter().any(|prefix| name.starts_with(prefix)) {
                client.set(name, value.expose());
            }
        }
        let admin = client.create().map_err(PublishError::Client)?;
        client.set("enable.idempotence", "true").set("message.timeout.ms", DELIVERY_TIMEOUT_MS).set("linger.ms", "5");
        Ok(Self { producer: client.create().map_err(PublishError::Client)?, admin, topic })
    }

    /// Makes the topic, with what the brokers hold for right, unless it is there.
    pub async fn ensure_topic(&self) -> Result<(), PublishError> {
        const BROKERS_DEFAULT: i32 = -1;
        let topic = NewTopic::new(&self.topic, BROKERS_DEFAULT, TopicReplication::Fixed(BROKERS_DEFAULT));
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
        let not_made = |reason: String| PublishError::NotMade { topic: self.topic.clone(), reason };
        let made = self.admin.create_topics([&topic], &options).await.map_err(|error| not_made(error.to_string()))?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(not_made(code.to_string())),
            _ => Ok(()),
        }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// (key, value); messages of one key keep their order. Answers when the brokers have them all.
    pub async fn publish(&self, messages: &[(String, Vec<u8>)]) -> Result<(), PublishError> {
        let sending = messages.iter().map(|(key, value)| {
            let record = FutureRecord::to(&self.topic).key(key).payload(value);
            self.producer.send(record, TIMEOUT)
        });
        let outcomes = join_all(sending).await;
        let delivered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        match outcomes.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some((reason, _)) => Err(PublishError::Undelivered { delivered, total: messages.len(), reason }),
        }
    }
}
