//! The board on which each part reports how its dependency does; `/health` reads it.
//! Knows no dependency by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::time::Timestamp;

/// Shared by all parts of one service.
#[derive(Clone, Default)]
pub struct HealthBoard {
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Works.
    Up,
    /// Not known yet, or being connected.
    Starting,
    /// Works with less than it should, or not at all, and the service does without.
    Degraded,
    /// Does not work, and the service cannot do without.
    Down,
}

/// The state of one dependency.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub state: State,
    /// When it entered this state.
    pub since: Timestamp,
    /// How long its last answer took.
    pub latency_ms: Option<f64>,
    /// What is wrong and what to do, or what it is busy with.
    pub detail: Option<String>,
    /// Figures of this dependency, e.g. lag by partition.
    #[serde(flatten)]
    pub figures: BTreeMap<&'static str, serde_json::Value>,
}

impl HealthBoard {
    /// Reports a state. `since` moves only when the state changes. Returns whether it did, so that
    /// the caller logs a change once.
    pub fn report(&self, name: &'static str, state: State, detail: Option<String>) -> bool {
        let mut checks = self.checks.lock();
        let fresh =
            || Check { state, since: Timestamp::now(), latency_ms: None, detail: None, figures: BTreeMap::new() };
        let known = checks.contains_key(name);
        let check = checks.entry(name).or_insert_with(fresh);
        let changed = !known || check.state != state;
        if check.state != state {
            check.state = state;
            check.since = Timestamp::now();
        }
        check.detail = detail;
        changed
    }

    pub fn report_latency(&self, name: &'static str, latency: Duration) {
        if let Some(check) = self.checks.lock().get_mut(name) {
            check.latency_ms = Some((latency.as_secs_f64() * 1e6).round() / 1e3);
        }
    }

    pub fn report_figure(&self, name: &'static str, figure: &'static str, value: impl Into<serde_json::Value>) {
        if let Some(check) = self.checks.lock().get_mut(name) {
            check.figures.insert(figure, value.into());
        }
    }

    pub fn find(&self, name: &str) -> Option<Check> {
        self.checks.lock().get(name).cloned()
    }

    pub fn list_checks(&self) -> BTreeMap<&'static str, Check> {
        self.checks.lock().clone()
    }
}

/// The names under which the parts report.
pub mod name {
    pub const DATABASE: &str = "database";
    pub const REDIS: &str = "redis";
    pub const KAFKA: &str = "kafka";
    pub const ALERTS: &str = "alerts";
}
