//! What operators see of a running service: logs, metrics, and the state of each dependency.

pub mod finding;
pub mod health;
pub mod logging;
pub mod metrics;
