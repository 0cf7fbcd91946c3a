//! From what is known of a consumer to what `/health` says of it. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::health::State;

/// How long brokers may take to be reached before their absence is called one.
const CONNECTING: Duration = Duration::from_secs(3);
/// A broker with requests waiting answers much sooner than this.
const SILENCE: Duration = Duration::from_secs(8);

/// A partition by its name.
pub type Key = (Arc<str>, i32);

/// What is known of a consumer. Every text says what is wrong and what to do.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// The client library does not run, or not with this configuration.
    pub client: Option<String>,
    pub brokers: Brokers,
    /// The last error of a connection; shown while there is none.
    pub connection: Option<String>,
    /// The group does not take us.
    pub group: Option<String>,
    /// Topics that are not there or not ours to read.
    pub topic: Option<String>,
    /// Partitions that cannot go on.
    pub partitions: BTreeMap<Key, String>,
    pub is_paused: bool,
    /// More than half of the newest messages were no alerts.
    pub is_poisoned: bool,
    /// The group assigned us something, or nothing, at least once.
    pub has_joined: bool,
}

/// As the client library's statistics have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brokers {
    pub up: usize,
    /// The longest that a broker with requests waiting has said nothing.
    pub silence: Duration,
}

/// `servers`: as configured. `age`: since the consumer was started.
pub fn judge(condition: &Condition, servers: &str, age: Duration) -> (State, Option<String>) {
    let degraded = |text: String| (State::Degraded, Some(text));
    if let Some(client) = &condition.client {
        return degraded(client.clone());
    }
    if condition.brokers.up == 0 {
        if age < CONNECTING && condition.connection.is_none() {
            return (State::Starting, Some(format!("connecting to {servers}")));
        }
        let reason = condition.connection.as_deref().unwrap_or("no answer");
        return degraded(format!(
            "no broker of {servers} can be used ({reason}): check that Kafka runs, the address and the network; \
             connecting goes on"
        ));
    }
    if condition.brokers.silence >= SILENCE {
        let seconds = condition.brokers.silence.as_secs();
        return degraded(format!("the broker has not answered for {seconds} s: check that it is not frozen"));
    }
    if let Some(group) = &condition.group {
        return degraded(group.clone());
    }
    if let Some(topic) = &condition.topic {
        return degraded(topic.clone());
    }
    if let Some(((topic, partition), trouble)) = condition.partitions.first_key_value() {
        let others = condition.partitions.len() - 1;
        let others = if others > 0 { format!(", and {others} more") } else { String::new() };
        return degraded(format!("{topic}/{partition}{others}: {trouble}"));
    }
    if condition.is_paused {
        return degraded("paused: alerts come faster than they can be stored; goes on by itself".to_owned());
    }
    if condition.is_poisoned {
        return degraded(
            "more than half of the last 1,000 messages are no alerts: look at /alerts/rejected, and at what writes \
             to the topic; the others are stored"
                .to_owned(),
        );
    }
    if !condition.has_joined {
        return (State::Starting, Some("joining the consumer group".to_owned()));
    }
    (State::Up, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working() -> Condition {
        Condition { brokers: Brokers { up: 1, silence: Duration::ZERO }, has_joined: true, ..Condition::default() }
    }

    fn judged(condition: &Condition) -> (State, String) {
        let (state, detail) = judge(condition, "broker:9092", Duration::from_secs(60));
        (state, detail.unwrap_or_default())
    }

    #[test]
    fn a_broker_that_cannot_be_reached_is_first_awaited_and_then_named() {
        let mut condition = Condition::default();
        assert_eq!(judge(&condition, "broker:9092", Duration::from_secs(1)).0, State::Starting);
        let (state, detail) = judged(&condition);
        assert!(state == State::Degraded && detail.contains("broker:9092"), "{detail}");
        condition.connection = Some("connection refused".to_owned());
        let (state, detail) = judge(&condition, "broker:9092", Duration::ZERO);
        assert!(state == State::Degraded && detail.is_some_and(|detail| detail.contains("refused")));
    }

    #[test]
    fn an_old_error_does_not_matter_once_a_broker_answers() {
        let condition = Condition { connection: Some("connection refused".to_owned()), ..working() };
        assert_eq!(judged(&condition).0, State::Up);
        let brokers = Brokers { up: 1, silence: SILENCE };
        assert_eq!(judged(&Condition { brokers, ..working() }).0, State::Degraded);
    }

    #[test]
    fn whatever_keeps_alerts_away_is_told_but_is_never_the_end() {
        let text = || Some("trouble".to_owned());
        let partitions = BTreeMap::from([(("alerts".into(), 3), "trouble".to_owned())]);
        let degraded = [
            Condition { client: text(), ..working() },
            Condition { group: text(), ..working() },
            Condition { topic: text(), ..working() },
            Condition { partitions, ..working() },
            Condition { is_paused: true, ..working() },
            Condition { is_poisoned: true, ..working() },
        ];
        for condition in degraded {
            assert_eq!(judged(&condition).0, State::Degraded, "{condition:?}");
        }
        assert_eq!(judged(&Condition { has_joined: false, ..working() }).0, State::Starting);
        assert_eq!(judged(&working()), (State::Up, String::new()));
    }
}
