//! How the client library is set up: our defaults, and the operator's properties, which win.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::position::Reset;
use crate::config::KafkaConfig;

const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "unified-backend"),
    // Positions are ours; the broker's are advisory and committed after storing.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
    ("check.crcs", "true"),
    // Longer than any append may take, as the poll goes on meanwhile; another instance goes on within
    // 10 s after a kill.
    ("max.poll.interval.ms", "60000"),
    // New partitions and topics that appear later.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // A broker that is back is used within a few seconds; one that is silent is left.
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.timeout.ms", "10000"),
    ("socket.connection.setup.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    // Memory: what is fetched ahead. The backoff is for full queues; its default of 1 s starves us.
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "8192"),
    ("fetch.queue.backoff.ms", "20"),
    ("fetch.max.bytes", "16777216"),
    ("receive.message.max.bytes", "104857600"),
];

/// Lag and the brokers' states come with the statistics.
const STATISTICS_INTERVAL: &str = "statistics.interval.ms";

/// Refused by the library for `group.protocol=consumer`, where the broker decides them.
const CLASSIC: &[(&str, &str)] = &[
    ("group.protocol", "classic"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("session.timeout.ms", "6000"),
    ("heartbeat.interval.ms", "2000"),
];

pub fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.bootstrap_servers);
    client.set("group.id", &config.group_id);
    let is_classic =
        !config.properties.iter().any(|(name, value)| name == "group.protocol" && value.expose() == "consumer");
    for (name, value) in DEFAULTS.iter().chain(if is_classic { CLASSIC } else { &[] }) {
        client.set(*name, *value);
    }
    for (name, value) in &config.properties {
        client.set(name, value.expose());
    }
    if client.get(STATISTICS_INTERVAL).is_none_or(|interval| interval.trim() == "0") {
        // Without statistics nobody knows whether any broker answers.
        client.set(STATISTICS_INTERVAL, "1000");
    }
    // What the operator says there is our policy; the library itself must never reset silently.
    client.set(Reset::PROPERTY, "error");
    client.set_log_level(RDKafkaLogLevel::Info);
    client
}

/// Topics and patterns as the library subscribes to them.
pub fn subscription(config: &KafkaConfig) -> Vec<&str> {
    config.topic.split(',').map(str::trim).filter(|topic| !topic.is_empty()).collect()
}

/// Why the library takes no such configuration and what to do. Values may be secrets and are not told.
pub fn explain(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            format!("the Kafka client knows no property `{name}`: remove {} or correct its name", variable(name))
        }
        KafkaError::ClientConfig(_, _, name, _) => invalid(name),
        KafkaError::ClientCreation(reason) => format!("the Kafka client refuses its configuration: {reason}"),
        other => format!("the Kafka client does not start: {other}"),
    }
}

pub fn invalid(name: &str) -> String {
    format!("the Kafka client does not take the value of its property `{name}`: correct {}", variable(name))
}

fn variable(name: &str) -> String {
    format!("KAFKA_PROPERTY_{}", name.to_ascii_uppercase().replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn config(properties: &[(&str, &str)]) -> KafkaConfig {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        KafkaConfig {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            topic: "alerts, ^cameras\\..*,".to_owned(),
            group_id: "screens".to_owned(),
            properties,
        }
    }

    #[test]
    fn the_operators_properties_win_but_for_the_silent_reset() {
        let client = client_config(&config(&[("check.crcs", "false"), ("auto.offset.reset", "latest")]));
        assert_eq!(client.get("check.crcs"), Some("false"));
        assert_eq!(client.get("auto.offset.reset"), Some("error"));
        assert_eq!(client.get("enable.auto.commit"), Some("false"));
    }

    #[test]
    fn the_library_takes_our_defaults() {
        for properties in [&[][..], &[("group.protocol", "consumer")]] {
            let client = client_config(&config(properties));
            let created: Result<rdkafka::consumer::BaseConsumer, _> = client.create();
            assert!(created.is_ok(), "{:?}", created.err());
        }
    }

    #[test]
    fn a_property_that_is_wrong_is_named_without_its_value() {
        let refused = |name, value| {
            let created = client_config(&config(&[(name, value)])).create_native_config();
            explain(&created.err().expect("refused"))
        };
        let unknown = refused("sasl.pasword", "hunter2");
        assert!(unknown.contains("KAFKA_PROPERTY_SASL_PASWORD") && !unknown.contains("hunter2"), "{unknown}");
        let invalid = refused("session.timeout.ms", "soon");
        assert!(invalid.contains("session.timeout.ms") && !invalid.contains("soon"), "{invalid}");
    }

    #[test]
    fn lists_and_patterns_are_subscribed_to() {
        assert_eq!(subscription(&config(&[])), ["alerts", "^cameras\\..*"]);
    }
}
