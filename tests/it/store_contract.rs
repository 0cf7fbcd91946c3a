//! What both engines promise behind the ports, each behaviour written once and run on both; at the end
//! what only a file or only a server can do wrong.

mod ahead;
mod alerts;
mod feed;
mod sqlite_file;
mod writes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use unified_backend::alerts::AlertLog;
use unified_backend::config::Config;
use unified_backend::directory::{Command, DirectoryStore, NewUser, NewZone, Outcome, Refusal, User, WriteError, Zone};
use unified_backend::lifecycle::{Lifecycle, StopFailure};
use unified_backend::storage;
use unified_backend::store_error::StoreError;
use unified_backend::telemetry::health::{HealthBoard, State, name};
use unified_backend::telemetry::metrics::Metrics;

use crate::support::app::PATIENCE;
use crate::support::backends::Database;

/// One opened engine without a service around it.
pub struct Store {
    pub directory: Arc<dyn DirectoryStore>,
    pub alerts: Arc<dyn AlertLog>,
    pub health: HealthBoard,
    pub metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
}

impl Store {
    /// Opens it and waits until it answers.
    pub async fn open(database: &Database) -> Self {
        let store = Self::start(&database.url(), &[]).expect("the engine starts");
        store.until(State::Up).await;
        store
    }

    pub fn start(url: &str, settings: &[(&str, &str)]) -> Result<Self, StoreError> {
        let all: Vec<_> = [("DATABASE_URL", url)].into_iter().chain(settings.iter().copied()).collect();
        let config = Config::from_settings(&all).expect("valid settings");
        let (lifecycle, health) = (Lifecycle::new(), HealthBoard::default());
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let storage = storage::start(&config.database, &lifecycle, metrics.clone(), health.clone())?;
        Ok(Self { directory: storage.directory, alerts: storage.alerts, health, metrics, lifecycle })
    }

    pub async fn until(&self, state: State) {
        let begun_at = Instant::now();
        loop {
            let check = self.health.find(name::DATABASE);
            if check.as_ref().is_some_and(|check| check.state == state) {
                return;
            }
            assert!(begun_at.elapsed() < PATIENCE, "not {state:?} in {PATIENCE:?}: {check:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops it in order.
    pub async fn close(self) {
        self.lifecycle.stop();
        let stopping = self.lifecycle.stopped(Duration::ZERO, Duration::from_secs(10));
        stopping.await.expect("no task of the engine failed");
    }

    /// Waits until it stops by itself.
    pub async fn until_stopped(&self) -> Result<(), StopFailure> {
        let stopping = self.lifecycle.stopped(Duration::ZERO, Duration::from_secs(10));
        tokio::time::timeout(PATIENCE, stopping).await.expect("it stops")
    }

    pub async fn refusal(&self, command: Command) -> Refusal {
        match self.directory.write(command).await {
            Err(WriteError::Refused(refusal)) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub async fn write(&self, command: Command) -> Outcome {
        self.directory.write(command).await.expect("it is carried out")
    }

    pub async fn create_user(&self, global_id: i64, name: &str, zone_ids: &[&str]) -> User {
        user(self.write(create_user(global_id, name, zone_ids)).await)
    }

    pub async fn create_zone(&self, zone_id: &str) -> Zone {
        zone(self.write(Command::CreateZone(new_zone(zone_id))).await)
    }

    /// The user as it is stored now.
    pub async fn find_user(&self, id: i64) -> User {
        let loaded = self.directory.open_feed().await.expect("a feed").load().await.expect("everything");
        loaded.users.into_iter().find(|user| user.id == id).expect("the user is there")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.lifecycle.abort();
    }
}

pub fn create_user(global_id: i64, name: &str, zone_ids: &[&str]) -> Command {
    Command::CreateUser(NewUser { global_id, name: name.to_owned(), zone_ids: owned(zone_ids) })
}

pub fn new_zone(zone_id: &str) -> NewZone {
    let corners = [[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [0.0, 3.0]];
    NewZone { zone_id: zone_id.to_owned(), zone_name: format!("Zone {zone_id}"), corners }
}

pub fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[track_caller]
pub fn user(outcome: Outcome) -> User {
    match outcome {
        Outcome::User(user) => user,
        other => panic!("expected a user, got {other:?}"),
    }
}

#[track_caller]
pub fn zone(outcome: Outcome) -> Zone {
    match outcome {
        Outcome::Zone(zone) => zone,
        other => panic!("expected a zone, got {other:?}"),
    }
}

/// The assignments as stored, and whether they changed.
#[track_caller]
pub fn assignments(outcome: Outcome) -> (Vec<String>, bool) {
    match outcome {
        Outcome::Assignments { zone_ids, changed } => (zone_ids.iter().map(ToString::to_string).collect(), changed),
        other => panic!("expected assignments, got {other:?}"),
    }
}

pub fn zones_of(user: &User) -> Vec<&str> {
    user.zone_ids.iter().map(AsRef::as_ref).collect()
}
