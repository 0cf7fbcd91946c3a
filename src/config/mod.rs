//! What the service is told by its environment, `.env`, a TOML file or the command line; see
//! `config.default.toml` for every key. Owns parsing, checking and redaction; starts nothing.

mod load;
mod settings;
mod sources;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use load::{ConfigErrors, EffectiveValue, Loaded, load, redact_url, render_defaults, render_effective};
pub use sources::Sources;

/// The checked configuration. Every value is in range.
#[derive(Clone, Debug)]
pub struct Config {
    pub api: ApiConfig,
    pub database: DatabaseConfig,
    pub directory: DirectoryConfig,
    pub redis: Option<RedisConfig>,
    pub kafka: Option<KafkaConfig>,
    pub alerts: AlertsConfig,
    pub logging: LoggingConfig,
    pub shutdown: ShutdownConfig,
}

#[derive(Clone, Debug)]
pub struct ApiConfig {
    pub host: IpAddr,
    /// 0 picks a free port (tests).
    pub port: u16,
    pub allow_unauthenticated: bool,
    /// Exact origins that browsers may call from; empty: none. Also who may open a WebSocket.
    pub cors_origins: Vec<String>,
    pub max_connections: usize,
    /// Threads that answer requests; 0: half of the cores.
    pub threads: usize,
    /// From accept to the first byte of a request.
    pub first_byte_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// How long a connection may be idle between requests.
    pub keep_alive_timeout: Duration,
    /// How long a request may take before it is answered with 503.
    pub request_deadline: Duration,
}

#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub engine: DatabaseEngine,
    /// Pooled connections (PostgreSQL) or reader threads (SQLite).
    pub pool_size: usize,
    pub operation_timeout: Duration,
}

#[derive(Clone, Debug)]
pub enum DatabaseEngine {
    /// A `postgres://` URL with its password.
    Postgres {
        url: Secret,
    },
    Sqlite {
        path: PathBuf,
    },
}

#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// How long a read waits for its validation.
    pub read_deadline: Duration,
    /// How old an answer may be that is served while the database is away; zero: none.
    pub stale_if_error: Duration,
    /// How often the replica is compared with the tables.
    pub audit_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// As the client library takes it, password included; several for Cluster, comma-separated.
    pub url: Secret,
    /// For `/cache/stats`.
    pub host: String,
    pub port: u16,
    pub database: i64,
    /// Budget of every call.
    pub timeout: Duration,
    pub users_dict_ttl: Duration,
}

#[derive(Clone, Debug)]
pub struct KafkaConfig {
    pub bootstrap_servers: String,
    /// A topic, or several separated by commas; one that begins with `^` is a pattern.
    pub topic: String,
    pub group_id: String,
    /// librdkafka properties by their own names; they win over ours.
    pub properties: Vec<(String, Secret)>,
}

#[derive(Clone, Debug)]
pub struct AlertsConfig {
    /// The zone of timestamps that name none.
    pub timezone: jiff::tz::TimeZone,
    /// Largest accepted alert, bytes.
    pub max_bytes: usize,
    /// How long a streaming client may take nothing before it is cut.
    pub write_deadline: Duration,
    /// How often a WebSocket is pinged; one that is silent for three and a quarter of them is closed.
    pub ping_interval: Duration,
    /// How often the follower looks at the log when nothing rings.
    pub poll_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct LoggingConfig {
    /// An `EnvFilter` directive list, e.g. `info` or `info,unified_backend::kafka=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    pub settle: Duration,
    pub drain: Duration,
}

/// A value that is never shown: `Debug` and `Display` print a placeholder.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}
