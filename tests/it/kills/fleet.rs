//! The real binary, several times on one database and one topic, each in a process that can be killed,
//! frozen and replaced.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::Served;

/// Where the instances that may be used listen.
#[derive(Clone, Default)]
pub struct Living(Arc<Mutex<Vec<String>>>);

impl Living {
    /// Any of them; `None` while there is none.
    pub fn pick(&self) -> Option<String> {
        let urls = self.0.lock().expect("no panic");
        (!urls.is_empty()).then(|| urls[rand::random_range(0..urls.len())].clone())
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut self.0.lock().expect("no panic"));
    }
}

pub struct Fleet {
    directory: tempfile::TempDir,
    settings: Vec<(String, String)>,
    /// Whether each instance has a name in the group that the one in its place takes over.
    is_named: bool,
    instances: Vec<Served>,
    client: reqwest::Client,
    pub living: Living,
}

impl Fleet {
    pub async fn start(count: usize, settings: &[(&str, &str)], is_named: bool) -> Self {
        // The log goes to a pipe that nobody reads.
        let own = [("API_PORT", "0"), ("LOGGING_LEVEL", "error"), ("DATABASE_POOL_SIZE", "4")];
        let settings = own.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut fleet = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            settings: settings.collect(),
            is_named,
            instances: Vec::new(),
            client: reqwest::Client::builder().timeout(Duration::from_secs(2)).build().expect("a client"),
            living: Living::default(),
        };
        for slot in 0..count {
            let instance = fleet.start_one(slot).await;
            fleet.instances.push(instance);
        }
        fleet
    }

    async fn start_one(&self, slot: usize) -> Served {
        let name = format!("instance-{slot}");
        let mut settings: Vec<_> = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if self.is_named {
            settings.push(("KAFKA_PROPERTY_GROUP_INSTANCE_ID", &name));
        }
        let served = Served::start(self.directory.path(), &settings, &["serve"]).await;
        self.living.change(|urls| urls.push(served.url.clone()));
        served
    }

    /// Kills an instance with SIGKILL, whatever it does at that moment, and starts another in its place.
    pub async fn replace(&mut self, slot: usize) {
        self.assert_all_run().await;
        let url = self.instances[slot].url.clone();
        self.instances[slot].signal(Signal::KILL);
        self.living.change(|urls| urls.retain(|one| *one != url));
        self.instances[slot] = self.start_one(slot).await;
    }

    pub fn freeze(&self, slot: usize) {
        self.instances[slot].signal(Signal::STOP);
    }

    pub fn thaw(&self, slot: usize) {
        self.instances[slot].signal(Signal::CONT);
    }

    /// Nobody ended but those who were killed.
    pub async fn assert_all_run(&mut self) {
        for (slot, instance) in self.instances.iter_mut().enumerate() {
            assert!(instance.still_runs_after(Duration::ZERO).await, "instance {slot} ended by itself");
        }
    }

    pub async fn are_ready(&self) -> bool {
        for instance in &self.instances {
            let answer = self.client.get(format!("{}/health/ready", instance.url)).send().await;
            if !answer.is_ok_and(|answer| answer.status() == 200) {
                return false;
            }
        }
        true
    }

    /// How many partitions each instance has; 0 where it does not say.
    pub async fn assigned(&self) -> Vec<i64> {
        let mut assigned = Vec::new();
        for instance in &self.instances {
            let asking = async {
                let answer = self.client.get(format!("{}/health", instance.url)).send().await?;
                answer.json::<Value>().await
            };
            let health = asking.await.unwrap_or_default();
            assigned.push(health["checks"]["kafka"]["partitions_assigned"].as_i64().unwrap_or(0));
        }
        assigned
    }

    /// A counter of one instance; 0 where it never counted.
    pub async fn count(&self, slot: usize, counter: &str) -> u64 {
        let url = format!("{}/metrics", self.instances[slot].url);
        let answer = self.client.get(url).send().await.expect("the instance answers");
        let text = answer.text().await.expect("its metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
        value.unwrap_or(0)
    }
}
