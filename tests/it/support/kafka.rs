//! Kafka to write to: the client library's mock cluster in this process, or topics on the real server.

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use super::app::{PATIENCE, TestApp};

/// A cluster in this process, gone at the end of the test.
pub struct Mock {
    pub cluster: MockCluster<'static, DefaultProducerContext>,
    pub topics: Topics,
}

/// Where a test writes to.
pub struct Topics {
    pub servers: String,
    pub topic: String,
    producer: FutureProducer,
}

impl Mock {
    pub fn start(partitions: i32) -> Self {
        let mock = Self::start_without_topic();
        mock.cluster.create_topic(&mock.topics.topic, partitions, 1).expect("the topic is created");
        mock
    }

    pub fn start_without_topic() -> Self {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        let topics = Topics::of(cluster.bootstrap_servers(), "person_reid_alerts".to_owned());
        Self { cluster, topics }
    }
}

impl Topics {
    pub fn of(servers: String, topic: String) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &servers)
            .set("message.max.bytes", "20000000")
            .set("linger.ms", "2")
            .create()
            .expect("a producer");
        Self { servers, topic, producer }
    }

    /// A topic of its own on the real server; several partitions.
    pub async fn create(servers: &str, partitions: i32) -> Self {
        let topic = format!("alerts-{}", uuid::Uuid::new_v4().simple());
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "20000000");
        let created = admin(servers).create_topics([&new], &AdminOptions::new()).await.expect("the server answers");
        assert!(created.iter().all(Result::is_ok), "{created:?}");
        Self::of(servers.to_owned(), topic)
    }

    /// Kafka as a service is told of it; `more` are added.
    pub fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut settings = vec![
            ("KAFKA_BOOTSTRAP_SERVERS", self.servers.as_str()),
            ("KAFKA_TOPIC", self.topic.as_str()),
            ("KAFKA_PROPERTY_TOPIC_METADATA_REFRESH_INTERVAL_MS", "500"),
            ("KAFKA_PROPERTY_STATISTICS_INTERVAL_MS", "200"),
        ];
        // The first of a name counts.
        settings.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        settings.extend_from_slice(more);
        settings
    }

    pub async fn send(&self, partition: i32, value: Option<&[u8]>) {
        let mut record = FutureRecord::<(), [u8]>::to(&self.topic).partition(partition);
        record.payload = value;
        self.producer.send(record, PATIENCE).await.expect("the broker takes the message");
    }

    /// Alerts `{"partition":p,"n":n}` with n of the range, to each of the partitions in turn.
    pub async fn send_numbered(&self, partitions: i32, numbers: std::ops::Range<i64>) {
        let texts: Vec<_> =
            numbers.flat_map(|n| (0..partitions).map(move |partition| (partition, numbered(partition, n)))).collect();
        let deliveries = texts.iter().map(|(partition, text)| {
            let record = FutureRecord::<(), str>::to(&self.topic).partition(*partition).payload(text);
            self.producer.send(record, PATIENCE)
        });
        for delivered in join_all(deliveries).await {
            delivered.expect("the broker takes the message");
        }
    }

    pub fn consumer(&self, group: &str) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("group.id", group).set("enable.auto.commit", "false");
        config.create().expect("a consumer")
    }

    /// Tells the broker where a group is.
    pub fn commit(&self, group: &str, places: &[(i32, i64)]) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in places {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset)).expect("an offset");
        }
        let consumer = self.consumer(group);
        consumer.assign(&list).expect("assigned");
        consumer.commit(&list, CommitMode::Sync).expect("committed");
    }

    /// What the broker was told.
    pub fn committed(&self, group: &str, partition: i32) -> Offset {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let committed = self.consumer(group).committed_offsets(list, PATIENCE).expect("the broker answers");
        committed.elements()[0].offset()
    }

    pub fn watermarks(&self, partition: i32) -> (i64, i64) {
        self.consumer("watermarks").fetch_watermarks(&self.topic, partition, PATIENCE).expect("the broker answers")
    }
}

pub fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers).create().expect("an admin client")
}

pub fn numbered(partition: i32, n: i64) -> String {
    format!(r#"{{"partition":{partition},"n":{n},"camera_id":{partition},"status":"violation"}}"#)
}

/// Everything in the log, oldest first.
pub async fn list_alerts(app: &TestApp) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let answer = app.get(&format!("/alerts?after={after}&limit=1000")).await;
        // The database may be away while a test waits.
        if answer.status != 200 {
            return all;
        }
        let page = answer.json();
        all.extend(page["alerts"].as_array().expect("a list").iter().cloned());
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => return all,
        }
    }
}
