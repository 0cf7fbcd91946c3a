//! From what was given to a checked [`Config`]; all faults at once, each with its value, its source
//! and the remedy.

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::settings::{SETTINGS, Setting};
use super::sources::{Given, Sources};
use super::{
    AlertsConfig, ApiConfig, Config, DatabaseConfig, DatabaseEngine, DirectoryConfig, KafkaConfig, LogFormat,
    LoggingConfig, RedisConfig, Secret, ShutdownConfig,
};

/// A checked configuration and how it came about.
pub struct Loaded {
    pub config: Config,
    /// For the log: likely slips.
    pub warnings: Vec<String>,
    pub values: Vec<EffectiveValue>,
}

/// One setting as it counts.
pub struct EffectiveValue {
    pub key: String,
    /// Redacted where it is a secret.
    pub value: String,
    pub origin: String,
}

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault{}:", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
    }
}

pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader { sources, faults: sources.faults.clone() };
    let config = reader.read();
    if !reader.faults.is_empty() {
        return Err(ConfigErrors(reader.faults));
    }
    let mut warnings = sources.list_unknown();
    warnings.extend(sources.find_unused_redis_password());
    if config.api.allow_unauthenticated && !config.api.host.is_loopback() {
        warnings.push(format!("listening on {} without access control (API_ALLOW_UNAUTHENTICATED)", config.api.host));
    }
    Ok(Loaded { config, warnings, values: list_values(sources) })
}

impl Config {
    /// From environment names and values alone; nothing of the process is looked at.
    pub fn from_settings(settings: &[(&str, &str)]) -> Result<Self, ConfigErrors> {
        load(&Sources::from_settings(settings)).map(|loaded| loaded.config)
    }
}

/// The commented defaults as TOML: `config.default.toml`.
pub fn render_defaults() -> String {
    let mut text = String::from(
        "# Every setting with its default. Environment names stand beside the keys and win over this file.\n",
    );
    let mut table = "";
    for setting in SETTINGS {
        let (this_table, key) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if this_table != table {
            table = this_table;
            let _always_fits = write!(text, "\n[{table}]\n");
        }
        let value = toml::Value::String(setting.default.to_owned());
        let _always_fits = write!(text, "# {} ({})\n{key} = {value}\n", setting.meaning, setting.names.join(", "));
    }
    text.push_str("\n# Properties of the Kafka client by its own names; as KAFKA_PROPERTY_FETCH_MIN_BYTES in the environment.\n[kafka.property]\n");
    text
}

/// What counts, as TOML, each value with where it came from; secrets redacted.
pub fn render_effective(loaded: &Loaded) -> String {
    let mut text = String::new();
    for value in &loaded.values {
        let shown = toml::Value::String(value.value.clone());
        let _always_fits = writeln!(text, "{} = {shown} # {}", value.key, value.origin);
    }
    text
}

/// What of a URL, or of several separated by commas, is certainly no secret: scheme, user beside a
/// password, host, port and path. What cannot be told apart is not shown at all.
pub fn redact_url(text: &str) -> String {
    let parts: Option<Vec<String>> = match text.starts_with("sqlite:") {
        // A file has no password, and its name may hold a comma.
        true => text.split(['?', '#']).next().map(|file| vec![file.to_owned()]),
        false => text.split(',').enumerate().map(|(index, part)| redact_part(part.trim(), index == 0)).collect(),
    };
    parts.map_or_else(|| "[redacted]".to_owned(), |parts| parts.join(","))
}

/// `None`: there is something in it that may be a piece of a secret.
fn redact_part(part: &str, is_first: bool) -> Option<String> {
    // Further hosts of one URL come without a scheme.
    let Some((scheme, _)) = part.split_once("://") else {
        return redact_part(&format!("redis://{part}"), true)
            .filter(|_| !is_first && !part.contains('@'))
            .map(|url| url.replacen("redis://", "", 1));
    };
    let url = Url::parse(part).ok()?;
    // A secret with an unencoded `/`, `?` or `#` looks like a port and a path; its `@` comes after them.
    let is_torn = [Some(url.path()), url.query(), url.fragment()].into_iter().flatten().any(|rest| rest.contains('@'));
    if is_torn || url.path().contains(':') {
        return None;
    }
    let user = match (url.username(), url.password()) {
        ("", None) => String::new(),
        (user, Some(_)) => format!("{user}:redacted@"),
        // Alone it may be a token.
        (_, None) => "redacted@".to_owned(),
    };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{scheme}://{user}{}{port}{}", url.host_str().unwrap_or_default(), url.path()))
}

fn list_values(sources: &Sources) -> Vec<EffectiveValue> {
    let mut values: Vec<EffectiveValue> = SETTINGS
        .iter()
        .map(|setting| {
            let (value, origin) = match sources.find(setting) {
                Some(given) => (given.value.clone(), format!("{}, {}", given.name, given.origin)),
                None => (setting.default.to_owned(), "default".to_owned()),
            };
            EffectiveValue { key: setting.key.to_owned(), value: shown(setting, &value), origin }
        })
        .collect();
    for (name, given) in sources.list_kafka_properties() {
        values.push(EffectiveValue {
            key: format!("kafka.property.{name}"),
            value: "[redacted]".to_owned(),
            origin: format!("{}, {}", given.name, given.origin),
        });
    }
    values
}

fn shown(setting: &Setting, value: &str) -> String {
    match (setting.secret, value.is_empty(), setting.key.ends_with(".url")) {
        (true, false, true) => redact_url(value),
        (true, false, false) => "[redacted]".to_owned(),
        _ => value.to_owned(),
    }
}

struct Reader<'a> {
    sources: &'a Sources,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self) -> Config {
        let api = self.read_api();
        Config {
            database: self.read_database(),
            directory: DirectoryConfig {
                read_deadline: self.seconds("directory.read_deadline_seconds", 0.01, 60.0),
                stale_if_error: self.seconds("directory.stale_if_error_seconds", 0.0, 86_400.0),
                audit_interval: self.seconds("directory.audit_interval_seconds", 0.1, 604_800.0),
            },
            redis: self.read_redis(),
            kafka: self.read_kafka(),
            alerts: AlertsConfig {
                timezone: self
                    .parse("alerts.timezone", "an IANA time zone such as Europe/Berlin", |text| {
                        jiff::tz::TimeZone::get(text).ok()
                    })
                    .unwrap_or(jiff::tz::TimeZone::UTC),
                max_bytes: self.integer("alerts.max_bytes", 1024, 16_777_216) as usize,
                write_deadline: self.seconds("alerts.write_deadline_seconds", 0.1, 3600.0),
                ping_interval: self.seconds("alerts.ping_interval_seconds", 0.1, 3600.0),
                poll_interval: Duration::from_millis(self.integer("alerts.poll_interval_ms", 1, 10_000)),
            },
            logging: self.read_logging(),
            shutdown: ShutdownConfig {
                settle: self.seconds("shutdown.settle_seconds", 0.0, 60.0),
                drain: self.seconds("shutdown.drain_seconds", 0.0, 600.0),
            },
            api,
        }
    }

    fn read_api(&mut self) -> ApiConfig {
        let host = self.parse("api.host", "an IP address such as 127.0.0.1 or 0.0.0.0, or localhost", |text| {
            if text.eq_ignore_ascii_case("localhost") { Some(IpAddr::from([127, 0, 0, 1])) } else { text.parse().ok() }
        });
        let allow_unauthenticated = self.boolean("api.allow_unauthenticated").unwrap_or(false);
        if let Some(host) = host.filter(|host| !host.is_loopback() && !allow_unauthenticated) {
            self.faults.push(format!(
                "API_HOST={host} ({}): whoever reaches this address could read and change everything, because the service \
                 has no access control yet; use 127.0.0.1 behind a proxy that has it, or say API_ALLOW_UNAUTHENTICATED=true",
                self.origin("api.host")
            ));
        }
        let origins = self.text("api.cors_origins");
        let mut cors_origins = Vec::new();
        for origin in list(&origins) {
            let parsed = Url::parse(&origin).map(|url| url.origin().ascii_serialization());
            match parsed {
                Ok(parsed) if parsed == origin.trim_end_matches('/').to_ascii_lowercase() => cors_origins.push(parsed),
                _ => self.fault(
                    "api.cors_origins",
                    &origin,
                    "origins such as https://screens.example:8443, or nothing; * is not offered",
                ),
            }
        }
        ApiConfig {
            host: host.unwrap_or(IpAddr::from([127, 0, 0, 1])),
            port: self.integer("api.port", 0, 65_535) as u16,
            allow_unauthenticated,
            cors_origins,
            max_connections: self.integer("api.max_connections", 1, 1_000_000) as usize,
            threads: self.integer("api.threads", 0, 256) as usize,
            first_byte_timeout: self.seconds("api.first_byte_timeout_seconds", 0.05, 3600.0),
            header_timeout: self.seconds("api.header_timeout_seconds", 0.05, 3600.0),
            body_timeout: self.seconds("api.body_timeout_seconds", 0.05, 3600.0),
            keep_alive_timeout: self.seconds("api.keep_alive_timeout_seconds", 0.05, 86_400.0),
            request_deadline: self.seconds("api.request_deadline_seconds", 0.05, 3600.0),
        }
    }

    fn read_database(&mut self) -> DatabaseConfig {
        let given = self.text("database.url");
        let host = self.text("database.host");
        let port = self.integer("database.port", 1, 65_535);
        let engine = if !given.is_empty() {
            parse_engine(&given).unwrap_or_else(|| {
                let remedy = match is_in_memory(&given) {
                    true => "sqlite:PATH; a database in memory is one per connection, and gone with it",
                    false => "postgres://user:password@host:port/database, or sqlite:PATH",
                };
                self.fault("database.url", &redact_url(&given), remedy);
                DatabaseEngine::Sqlite { path: PathBuf::new() }
            })
        } else if !host.is_empty() {
            let mut url = format!("postgres://{}", encode(&self.text("database.user")));
            let password = self.text("database.password");
            if !password.is_empty() {
                let _always_fits = write!(url, ":{}", encode(&password));
            }
            let host = if host.contains(':') { format!("[{host}]") } else { encode(&host) };
            let _always_fits = write!(url, "@{host}:{port}/{}", encode(&self.text("database.database")));
            DatabaseEngine::Postgres { url: Secret::new(url) }
        } else {
            DatabaseEngine::Sqlite { path: PathBuf::from("data/unified-backend.db") }
        };
        DatabaseConfig {
            engine,
            pool_size: self.integer("database.pool_size", 1, 1000) as usize,
            operation_timeout: self.seconds("database.operation_timeout_seconds", 0.05, 3600.0),
        }
    }

    fn read_redis(&mut self) -> Option<RedisConfig> {
        let url = self.text("redis.url");
        let host = self.text("redis.host");
        let enabled = self.boolean("redis.enabled").unwrap_or(!url.is_empty() || !host.is_empty());
        let port = self.integer("redis.port", 1, 65_535) as u16;
        let database = self.integer("redis.db", 0, 1_000_000) as i64;
        let password = self.text("redis.password");
        let timeout = Duration::from_millis(self.integer("redis.timeout_ms", 1, 10_000));
        let users_dict_ttl = Duration::from_secs(self.integer("redis.users_dict_ttl_seconds", 10, 604_800));
        if !enabled {
            return None;
        }
        if !url.is_empty() {
            let first = url.split(',').next().unwrap_or_default();
            let known = ["redis", "rediss", "redis+unix", "unix", "redis-sentinel", "redis+sentinel"];
            let parsed = Url::parse(first).ok().filter(|parsed| known.contains(&parsed.scheme()));
            let Some(parsed) = parsed else {
                self.fault(
                    "redis.url",
                    &redact_url(first),
                    "redis://[:password@]host:port/database, rediss:// for TLS, unix:// or redis-sentinel://",
                );
                return None;
            };
            let is_sentinel = parsed.scheme().contains("sentinel");
            return Some(RedisConfig {
                host: parsed.host_str().unwrap_or_default().to_owned(),
                port: parsed.port().unwrap_or(if is_sentinel { 26_379 } else { 6379 }),
                database: redis_database(&url, &parsed),
                url: Secret::new(url),
                timeout,
                users_dict_ttl,
            });
        }
        let host = if host.is_empty() { "127.0.0.1".to_owned() } else { host };
        let secret = if password.is_empty() { String::new() } else { format!(":{}@", encode(&password)) };
        let url = Secret::new(format!("redis://{secret}{host}:{port}/{database}"));
        Some(RedisConfig { url, host, port, database, timeout, users_dict_ttl })
    }

    fn read_kafka(&mut self) -> Option<KafkaConfig> {
        let servers = self.text("kafka.bootstrap_servers");
        let enabled = self.boolean("kafka.enabled").unwrap_or(!servers.is_empty());
        let (topic, group_id) = (self.text("kafka.topic"), self.text("kafka.group_id"));
        let properties = self.sources.list_kafka_properties();
        let properties = properties.into_iter().map(|(name, given)| (name, Secret::new(given.value))).collect();
        if !enabled {
            return None;
        }
        let servers = list(&servers);
        let is_address = |server: &String| {
            let address = server.rsplit("://").next().unwrap_or_default();
            address.rsplit_once(':').is_none_or(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        for server in servers.iter().filter(|server| !is_address(server)) {
            self.fault("kafka.bootstrap_servers", server, "host:port, several separated by commas");
        }
        let bootstrap_servers = if servers.is_empty() { "127.0.0.1:9092".to_owned() } else { servers.join(",") };
        Some(KafkaConfig { bootstrap_servers, topic, group_id, properties })
    }

    fn read_logging(&mut self) -> LoggingConfig {
        let level = self.parse(
            "logging.level",
            "DEBUG, INFO, WARNING, ERROR, or directives such as info,unified_backend::kafka=debug",
            parse_log_level,
        );
        let format = self.parse("logging.format", "text or json", |text| match text.to_ascii_lowercase().as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        });
        LoggingConfig { level: level.unwrap_or_else(|| "info".to_owned()), format: format.unwrap_or(LogFormat::Text) }
    }

    fn find(&self, key: &str) -> Option<(&'static Setting, Option<&Given>)> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key)?;
        Some((setting, self.sources.find(setting)))
    }

    fn text(&self, key: &str) -> String {
        match self.find(key) {
            Some((_, Some(given))) => given.value.trim().to_owned(),
            Some((setting, None)) => setting.default.to_owned(),
            None => String::new(),
        }
    }

    fn origin(&self, key: &str) -> String {
        self.find(key).and_then(|(_, given)| given).map_or_else(|| "default".to_owned(), |given| given.origin.clone())
    }

    fn parse<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(key);
        let parsed = parse(&text);
        if parsed.is_none() {
            self.fault(key, &text, expected);
        }
        parsed
    }

    fn boolean(&mut self, key: &str) -> Option<bool> {
        if self.text(key).is_empty() {
            return None;
        }
        self.parse(key, "true or false (also 1/0, yes/no, on/off)", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
            "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
            _ => None,
        })
    }

    fn integer(&mut self, key: &str, least: u64, most: u64) -> u64 {
        let expected = format!("a whole number from {least} to {most}");
        self.parse(key, &expected, |text| text.parse().ok().filter(|value| (least..=most).contains(value)))
            .unwrap_or(least)
    }

    fn seconds(&mut self, key: &str, least: f64, most: f64) -> Duration {
        let expected = format!("a number of seconds from {least} to {most}");
        let value = self.parse(key, &expected, |text| text.parse().ok().filter(|value| (least..=most).contains(value)));
        Duration::from_secs_f64(value.unwrap_or(least))
    }

    fn fault(&mut self, key: &str, value: &str, expected: &str) {
        let Some((setting, given)) = self.find(key) else { return };
        let name = given.map_or(setting.names.first().copied().unwrap_or(key), |given| &given.name);
        let origin = given.map_or("default", |given| &given.origin);
        let value = if setting.secret && !key.ends_with(".url") { "[redacted]" } else { value };
        self.faults.push(format!("{name}={value} ({origin}): expected {expected}"));
    }
}

fn parse_engine(text: &str) -> Option<DatabaseEngine> {
    let (scheme, rest) = text.split_once(':')?;
    let (kind, driver) = scheme.split_once('+').unwrap_or((scheme, ""));
    match kind.to_ascii_lowercase().as_str() {
        "postgres" | "postgresql" if driver.chars().all(|letter| letter.is_ascii_alphanumeric()) => {
            let url = format!("postgres:{rest}");
            let parsed = Url::parse(&url).ok()?;
            (parsed.has_host() || parsed.query().is_some()).then(|| DatabaseEngine::Postgres { url: Secret::new(url) })
        }
        "sqlite" => {
            // sqlite:///relative as SQLAlchemy writes it would be ambiguous: three slashes are absolute.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let is_file = !path.is_empty() && !is_in_memory(text);
            is_file.then(|| DatabaseEngine::Sqlite { path: PathBuf::from(path) })
        }
        _ => None,
    }
}

fn is_in_memory(url: &str) -> bool {
    url.starts_with("sqlite") && (url.contains(":memory:") || url.contains("mode=memory"))
}

/// The logical database that a Redis URL names, in each of its forms.
fn redis_database(url: &str, first: &Url) -> i64 {
    let text = match first.scheme() {
        "unix" | "redis+unix" => first.query_pairs().find(|(name, _)| name == "db").map(|(_, db)| db.into_owned()),
        // …/master/database, behind whichever host has a path.
        "redis-sentinel" | "redis+sentinel" => url.split(',').find_map(|part| {
            let place = part.split_once("://").map_or(part, |(_, rest)| rest).split('?').next()?;
            place.split('/').nth(2).map(str::to_owned)
        }),
        _ => Some(first.path().trim_matches('/').to_owned()),
    };
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A level alone, or directives `target=level`: a misspelt level would be a target, and silence all others.
fn parse_log_level(text: &str) -> Option<String> {
    let directive = |directive: &str| {
        let directive = directive.trim().to_ascii_lowercase();
        match directive.as_str() {
            "warning" | "warn" => Some("warn".to_owned()),
            "critical" | "fatal" | "error" => Some("error".to_owned()),
            "notset" | "trace" => Some("trace".to_owned()),
            "debug" | "info" | "off" => Some(directive),
            _ => directive.contains('=').then_some(directive),
        }
    };
    let directives = text.split(',').map(directive).collect::<Option<Vec<String>>>()?.join(",");
    tracing_subscriber::EnvFilter::try_new(&directives).ok().map(|_| directives)
}

/// `a,b`, or the JSON list that pydantic-settings takes.
fn list(text: &str) -> Vec<String> {
    if let Ok(items) = serde_json::from_str::<Vec<String>>(text) {
        return items;
    }
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests;
