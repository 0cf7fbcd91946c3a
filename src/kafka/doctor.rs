//! Looks the brokers over for an operator: whether they answer, whether the topics are there, how the
//! group does. Changes nothing and joins no group.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::properties::explain;
use crate::config::KafkaConfig;
use crate::telemetry::finding::Finding;

const SUBJECT: &str = "kafka";
const TIMEOUT: Duration = Duration::from_secs(5);
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(100);

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
    findings.push(judge_group(&consumer, &config.group_id));
    Ok(())
}

fn judge_group(consumer: &BaseConsumer, name: &str) -> Finding {
    let groups = match once_loaded(|| consumer.fetch_group_list(Some(name), TIMEOUT)) {
        Ok(groups) => groups,
        Err(error) => {
            let remedy = "the brokers answer, but not about groups: is the topic __consumer_offsets healthy, and may this user describe the group?";
            return Finding::failure(SUBJECT, format!("group {name}: {error}"), remedy);
        }
    };
    let group = groups.groups().iter().find(|group| group.name() == name);
    let (state, members) = group.map_or(("not known to the brokers yet", 0), |group| {
        (if group.state().is_empty() { "empty" } else { group.state() }, group.members().len())
    });
    Finding::ok(SUBJECT, format!("group {name} is {state}, {members} member(s)"))
}

/// Asks until the broker knows its groups: for a moment after it started, and while the very first group
/// is made, it only says that it loads them.
fn once_loaded<T>(mut ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Err(KafkaError::GroupListFetch(
                RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator,
            )) if begin.elapsed() < TIMEOUT => std::thread::sleep(BETWEEN_QUESTIONS),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_loads_its_groups_is_asked_again_and_any_other_error_told() {
        let refusal = |code| Err(KafkaError::GroupListFetch(code));
        let mut answers = vec![Ok(7), refusal(RDKafkaErrorCode::CoordinatorLoadInProgress)];
        assert_eq!(once_loaded(|| answers.pop().expect("no further question")), Ok(7));
        let mut answers = vec![Ok(7), refusal(RDKafkaErrorCode::GroupAuthorizationFailed)];
        assert_eq!(
            once_loaded(|| answers.pop().expect("no further question")),
            refusal(RDKafkaErrorCode::GroupAuthorizationFailed)
        );
    }
}
