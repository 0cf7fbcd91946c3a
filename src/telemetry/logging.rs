//! Logs to standard error, as text or JSON; with the cargo feature `otlp` also traces to a collector.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, LoggingConfig};

/// Libraries whose chatter nobody needs; whoever does names them in `LOGGING_LEVEL`, which comes later
/// and so counts.
const QUIET: &str = "refinery_core=warn";

/// Installs the subscriber of the process. Called once, by the binary, which keeps the guard until its
/// end: what was not sent yet is sent when it is dropped.
pub fn install(config: &LoggingConfig) -> anyhow::Result<TraceGuard> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.level))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let guard = TraceGuard::start()?;
    let installed = tracing_subscriber::registry().with(filter).with(lines).with(guard.layer()).try_init();
    installed.map_err(|error| anyhow::anyhow!("logging cannot be installed: {error}"))?;
    Ok(guard)
}

/// Sends spans over OTLP/HTTP to where the variables of the OpenTelemetry specification say
/// (`OTEL_EXPORTER_OTLP_ENDPOINT`, default `http://localhost:4318`).
#[cfg(feature = "otlp")]
pub struct TraceGuard(opentelemetry_sdk::trace::SdkTracerProvider);

#[cfg(feature = "otlp")]
impl TraceGuard {
    fn start() -> anyhow::Result<Self> {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
        let resource = opentelemetry_sdk::Resource::builder().with_service_name("unified-backend").build();
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder();
        Ok(Self(provider.with_batch_exporter(exporter).with_resource(resource).build()))
    }

    fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    {
        use opentelemetry::trace::TracerProvider;
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("unified-backend"))
    }
}

#[cfg(feature = "otlp")]
impl Drop for TraceGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Without the feature `otlp` there is nothing to send.
#[cfg(not(feature = "otlp"))]
pub struct TraceGuard;

#[cfg(not(feature = "otlp"))]
impl TraceGuard {
    fn start() -> anyhow::Result<Self> {
        Ok(Self)
    }

    fn layer(&self) -> tracing_subscriber::layer::Identity {
        tracing_subscriber::layer::Identity::new()
    }
}
