//! Logs to standard error, as text or JSON.

use crate::config::LoggingConfig;

/// Installs the subscriber of the process. Called once, by the binary.
pub fn install(config: &LoggingConfig) -> anyhow::Result<()> {
    let _ = config;
    todo!()
}
