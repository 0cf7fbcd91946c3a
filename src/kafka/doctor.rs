//! Looks the brokers over for an operator: whether they answer, whether the topics are there, how the
//! group does. Changes nothing and joins no group.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::properties::explain;
use crate::config::KafkaConfig;
use crate::telemetry::finding::Finding;

const SUBJECT: &str = "kafka";
const TIMEOUT: Duration = Duration::from_secs(5);

pub async fn examine(config: &KafkaConfig) -> Vec<Finding> {
    let config = config.clone();
    let mut findings = Vec::new();
    // The client library blocks.
    let looked_over = tokio::task::spawn_blocking(move || {
        let outcome = look_over(&config, &mut findings);
        (findings, outcome.err(), config.bootstrap_servers)
    });
    match looked_over.await {
        Ok((findings, None, _)) => findings,
        Ok((mut findings, Some(error), servers)) => {
            let remedy =
                "is a broker running there, and do its advertised.listeners name an address that we can reach?";
            findings.push(Finding::failure(SUBJECT, format!("{servers}: {error}"), remedy));
            findings
        }
        Err(error) => vec![Finding::failure(SUBJECT, error.to_string(), "report this as a bug")],
    }
}

fn look_over(config: &KafkaConfig, findings: &mut Vec<Finding>) -> Result<(), String> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.bootstrap_servers).set("group.id", &config.group_id);
    for (name, value) in &config.properties {
        client.set(name, value.expose());
    }
    // An examination must not make the topic that it looks for.
    client.set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer = client.create().map_err(|error| explain(&error))?;
    let metadata = consumer.fetch_metadata(None, TIMEOUT).map_err(|error| error.to_string())?;
    let brokers: Vec<String> =
        metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect();
    findings.push(Finding::ok(SUBJECT, format!("brokers answer: {}", brokers.join(", "))));
    for topic in config.topic.split(',').map(str::trim).filter(|topic| !topic.is_empty()) {
        if topic.starts_with('^') {
            findings.push(Finding::ok(SUBJECT, format!("topics that match {topic} are looked for by the service")));
            continue;
        }
        findings.push(match metadata.topics().iter().find(|known| known.name() == topic) {
            Some(known) if known.partitions().iter().any(|partition| partition.leader() < 0) => {
                let remedy = "start the brokers that hold it; until then its alerts wait";
                Finding::failure(SUBJECT, format!("topic {topic} has a partition without a leader"), remedy)
            }
            Some(known) => Finding::ok(SUBJECT, format!("topic {topic} has {} partition(s)", known.partitions().len())),
            None => {
                let remedy = format!("create it, or correct KAFKA_TOPIC: kafka-topics.sh --create --topic {topic} …; the service takes it up when it appears");
                Finding::warning(SUBJECT, format!("there is no topic {topic}"), remedy)
            }
        });
    }
    let groups = consumer.fetch_group_list(Some(&config.group_id), TIMEOUT).map_err(|error| error.to_string())?;
    let group = groups.groups().iter().find(|group| group.name() == config.group_id);
    let (state, members) = group.map_or(("not known to the brokers yet", 0), |group| {
        (if group.state().is_empty() { "empty" } else { group.state() }, group.members().len())
    });
    findings.push(Finding::ok(SUBJECT, format!("group {} is {state}, {members} member(s)", config.group_id)));
    Ok(())
}
