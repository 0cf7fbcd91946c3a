//! Logs to standard error, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LoggingConfig};

/// Libraries whose chatter nobody needs; whoever does names them in `LOGGING_LEVEL`, which comes later
/// and so counts.
const QUIET: &str = "refinery_core=warn";

/// Installs the subscriber of the process. Called once, by the binary.
pub fn install(config: &LoggingConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match config.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("logging cannot be installed: {error}"))
}
