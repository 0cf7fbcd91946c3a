//! The table of all settings: parsing, the defaults file and `config print` follow from it.

/// One setting.
pub struct Setting {
    /// Table and key in a TOML file.
    pub key: &'static str,
    /// Environment names; the first is ours, the others are understood too.
    pub names: &'static [&'static str],
    /// As it would be written in the environment; empty: not set.
    pub default: &'static str,
    pub secret: bool,
    /// Meaning, unit and range.
    pub meaning: &'static str,
}

macro_rules! settings {
    ($( $key:literal [$($name:literal),+] = $default:literal $(($secret:ident))? , $meaning:literal; )+) => {
        pub const SETTINGS: &[Setting] = &[$( Setting {
            key: $key, names: &[$($name),+], default: $default, secret: settings!(@secret $($secret)?), meaning: $meaning,
        } ),+];
    };
    (@secret secret) => { true };
    (@secret) => { false };
}

settings! {
    "api.host" ["API_HOST"] = "127.0.0.1", "Address to listen on. Anything but loopback needs api.allow_unauthenticated.";
    "api.port" ["API_PORT"] = "8000", "Port, 0..65535; 0 picks a free one.";
    "api.allow_unauthenticated" ["API_ALLOW_UNAUTHENTICATED"] = "false", "There is no access control yet: true says that the network in front of the service has it.";
    "api.cors_origins" ["API_CORS_ORIGINS"] = "", "Origins whose pages may call the API and open WebSockets, separated by commas.";
    "api.max_connections" ["API_MAX_CONNECTIONS"] = "10000", "Open connections, 1..1000000; one more is answered with 503 and closed.";
    "api.threads" ["API_THREADS"] = "0", "Threads that answer requests, 0..256; 0: half of the cores.";
    "api.first_byte_timeout_seconds" ["API_FIRST_BYTE_TIMEOUT_SECONDS"] = "10", "From accept to the first byte, 0.05..3600.";
    "api.header_timeout_seconds" ["API_HEADER_TIMEOUT_SECONDS"] = "10", "For the headers of a request, 0.05..3600.";
    "api.body_timeout_seconds" ["API_BODY_TIMEOUT_SECONDS"] = "30", "For the body of a request, 0.05..3600.";
    "api.keep_alive_timeout_seconds" ["API_KEEP_ALIVE_TIMEOUT_SECONDS"] = "75", "How long a connection may be idle between requests, 0.05..86400.";
    "api.request_deadline_seconds" ["API_REQUEST_DEADLINE_SECONDS"] = "30", "How long a request may take before it is answered with 503, 0.05..3600.";
    "database.url" ["DATABASE_URL"] = "" (secret), "postgres://user:password@host:port/database or sqlite:PATH. Not set: database.host and so on, else sqlite:data/unified-backend.db.";
    "database.host" ["DATABASE_HOST", "POSTGRES_HOST"] = "", "PostgreSQL's host, when there is no URL.";
    "database.port" ["DATABASE_PORT", "POSTGRES_PORT"] = "5432", "PostgreSQL's port, 1..65535.";
    "database.user" ["DATABASE_USER", "POSTGRES_USER"] = "postgres", "PostgreSQL's user.";
    "database.password" ["DATABASE_PASSWORD", "POSTGRES_PASSWORD"] = "" (secret), "PostgreSQL's password.";
    "database.database" ["DATABASE_DATABASE", "DATABASE_DB", "DATABASE_NAME", "POSTGRES_DATABASE", "POSTGRES_DB"] = "postgres", "PostgreSQL's database.";
    "database.pool_size" ["DATABASE_POOL_SIZE"] = "10", "Pooled connections, 1..1000.";
    "database.operation_timeout_seconds" ["DATABASE_OPERATION_TIMEOUT_SECONDS"] = "5", "How long a unit of work in the database may take, 0.05..3600.";
    "directory.read_deadline_seconds" ["DIRECTORY_READ_DEADLINE_SECONDS"] = "2", "How long a read waits for its validation before it is answered with 503, 0.01..60.";
    "directory.stale_if_error_seconds" ["DIRECTORY_STALE_IF_ERROR", "DIRECTORY_STALE_IF_ERROR_SECONDS"] = "0", "While the database is away, answer reads (marked) from content of at most this age, 0..86400; 0: never.";
    "directory.audit_interval_seconds" ["DIRECTORY_AUDIT_INTERVAL_SECONDS"] = "3600", "How often the replica is compared with the tables, 0.1..604800.";
    "redis.url" ["REDIS_URL"] = "" (secret), "redis://host:port/database, rediss:// over TLS (?ssl_ca_certs=FILE for a root of your own), unix:///path?db=0, redis-sentinel://host:port,host:port/master/database; several redis:// for Cluster, separated by commas. Setting it enables Redis.";
    "redis.enabled" ["REDIS_ENABLED"] = "", "true or false; not set: enabled when a URL or host is.";
    "redis.host" ["REDIS_HOST"] = "", "Redis' host, when there is no URL. Setting it enables Redis.";
    "redis.port" ["REDIS_PORT"] = "6379", "Redis' port, 1..65535.";
    "redis.db" ["REDIS_DB"] = "0", "Redis' database, 0 or more.";
    "redis.password" ["REDIS_PASSWORD"] = "" (secret), "Redis' password.";
    "redis.timeout_ms" ["REDIS_TIMEOUT_MS"] = "50", "Budget of every call, 1..10000 ms.";
    "redis.users_dict_ttl_seconds" ["REDIS_USERS_DICT_TTL_SECONDS"] = "3600", "Life of the mirrored dict without any living instance, 10..604800.";
    "kafka.enabled" ["KAFKA_ENABLED"] = "", "true or false; not set: enabled when bootstrap servers are.";
    "kafka.bootstrap_servers" ["KAFKA_BOOTSTRAP_SERVERS"] = "", "host:port, several separated by commas. Setting it enables Kafka.";
    "kafka.topic" ["KAFKA_TOPIC"] = "person_reid_alerts", "A topic, or several separated by commas; one that begins with ^ is a pattern.";
    "kafka.group_id" ["KAFKA_GROUP_ID"] = "person_reid_ui_consumers", "The consumer group.";
    "alerts.timezone" ["ALERTS_TIMEZONE"] = "UTC", "IANA time zone of timestamps that name none.";
    "alerts.max_bytes" ["ALERTS_MAX_BYTES"] = "1048576", "Largest accepted alert, 1024..16777216 bytes.";
    "alerts.write_deadline_seconds" ["ALERTS_WRITE_DEADLINE_SECONDS"] = "10", "How long a streaming client may take nothing before it is cut, 0.1..3600.";
    "alerts.ping_interval_seconds" ["ALERTS_PING_INTERVAL_SECONDS"] = "20", "How often a WebSocket is pinged, 0.1..3600; one that is silent for 3.25 times as long is closed.";
    "alerts.poll_interval_ms" ["ALERTS_POLL_INTERVAL_MS"] = "250", "How often the log is looked at when nothing rings, 1..10000 ms.";
    "logging.level" ["LOGGING_LEVEL", "LOG_LEVEL"] = "INFO", "DEBUG, INFO, WARNING, ERROR, or directives such as info,unified_backend::kafka=debug.";
    "logging.format" ["LOGGING_FORMAT"] = "text", "text or json.";
    "shutdown.settle_seconds" ["SHUTDOWN_SETTLE_SECONDS"] = "1", "After SIGTERM: not ready, but still accepting, so that a balancer notices; 0..60.";
    "shutdown.drain_seconds" ["SHUTDOWN_DRAIN_SECONDS"] = "10", "Then: how long requests and streams may take to end, 0..600.";
}

/// Prefix of environment names that are handed to the Kafka client: `KAFKA_PROPERTY_FETCH_MIN_BYTES`
/// is its `fetch.min.bytes`. In a TOML file: the table `kafka.property` with the client's own names.
pub const KAFKA_PROPERTY: &str = "KAFKA_PROPERTY_";
