//! The little that we read of the client library's statistics: which brokers answer, where
//! partitions end. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use super::condition::Brokers;

#[derive(Deserialize)]
pub struct Statistics<'a> {
    #[serde(borrow, default)]
    brokers: HashMap<Cow<'a, str>, Broker<'a>>,
    #[serde(borrow, default)]
    topics: HashMap<Cow<'a, str>, Topic>,
}

#[derive(Deserialize)]
struct Broker<'a> {
    nodeid: i32,
    #[serde(borrow)]
    state: Cow<'a, str>,
    /// Requests that wait for their answer.
    #[serde(default)]
    waitresp_cnt: i64,
    /// Microseconds since anything came; -1: never.
    #[serde(default)]
    rxidle: i64,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: HashMap<String, Partition>,
}

#[derive(Deserialize)]
struct Partition {
    partition: i32,
    /// Negative: not known.
    #[serde(default)]
    hi_offset: i64,
}

impl<'a> Statistics<'a> {
    pub fn parse(json: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub fn brokers(&self) -> Brokers {
        // The group coordinator is listed a second time, without an id; both are connections of ours.
        let up = self.brokers.values().filter(|broker| broker.state == "UP");
        let silent = up.clone().filter(|broker| broker.waitresp_cnt > 0 && broker.nodeid >= 0);
        let silence = silent.filter_map(|broker| u64::try_from(broker.rxidle).ok()).max().unwrap_or(0);
        Brokers { up: up.count(), silence: Duration::from_micros(silence) }
    }

    /// (topic, partition, high watermark) where it is known.
    pub fn ends(&self) -> impl Iterator<Item = (&str, i32, i64)> {
        self.topics.iter().flat_map(|(topic, Topic { partitions })| {
            let known = partitions.values().filter(|partition| partition.partition >= 0 && partition.hi_offset >= 0);
            known.map(|partition| (&**topic, partition.partition, partition.hi_offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_and_ends_are_read_and_the_rest_is_not() {
        let json = br#"{"name":"x","brokers":{
            "a:1/1":{"nodeid":1,"state":"UP","waitresp_cnt":1,"rxidle":9000000,"int_latency":{"min":0}},
            "a:2/2":{"nodeid":2,"state":"UP","waitresp_cnt":0,"rxidle":90000000},
            "a:3/3":{"nodeid":3,"state":"TRY_CONNECT","waitresp_cnt":1,"rxidle":-1}},
            "topics":{"alerts":{"topic":"alerts","partitions":{
                "0":{"partition":0,"hi_offset":17,"lo_offset":0},
                "1":{"partition":1,"hi_offset":-1001},
                "-1":{"partition":-1,"hi_offset":5}}}}}"#;
        let statistics = Statistics::parse(json).expect("statistics");
        assert_eq!(statistics.brokers(), Brokers { up: 2, silence: Duration::from_secs(9) });
        assert_eq!(statistics.ends().collect::<Vec<_>>(), [("alerts", 0, 17)]);
    }
}
