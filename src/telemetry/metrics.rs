//! Every metric of a service, in one table. What each means and what to do when it is bad stands in
//! `docs/operations.md`; a test holds the two against each other. Each service has a registry of its
//! own: nothing here is static.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Buckets in seconds, from a cached answer to a request's deadline.
const LATENCY_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets for counts of things handled at once.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1000.0];

macro_rules! metrics {
    ($( $field:ident : $type:ident = $name:literal $([$($label:literal),+])? $(in $buckets:ident)? , $help:literal; )+) => {
        /// Handles to all metrics of one service; cheap to use, shared by reference.
        pub struct Metrics {
            registry: Registry,
            $( #[doc = $help] pub $field: $type, )+
        }

        impl Metrics {
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $( let $field = register(&registry, metrics!(@make $type, $name, $help, [$($($label),+)?] $(, $buckets)?)?)?; )+
                #[cfg(target_os = "linux")]
                registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
                Ok(Self { registry, $( $field, )+ })
            }

            /// Names of our own metrics, without those of the process.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }
    };
    (@make IntCounter, $name:literal, $help:literal, []) => { IntCounter::new($name, $help) };
    (@make IntGauge, $name:literal, $help:literal, []) => { IntGauge::new($name, $help) };
    (@make Gauge, $name:literal, $help:literal, []) => { Gauge::new($name, $help) };
    (@make IntCounterVec, $name:literal, $help:literal, [$($label:literal),+]) => { IntCounterVec::new(Opts::new($name, $help), &[$($label),+]) };
    (@make IntGaugeVec, $name:literal, $help:literal, [$($label:literal),+]) => { IntGaugeVec::new(Opts::new($name, $help), &[$($label),+]) };
    (@make Histogram, $name:literal, $help:literal, [], $buckets:ident) => { Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec())) };
    (@make HistogramVec, $name:literal, $help:literal, [$($label:literal),+], $buckets:ident) => { HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &[$($label),+]) };
}

metrics! {
    http_requests: IntCounterVec = "http_requests_total" ["method", "route", "status"], "Finished requests.";
    http_request_seconds: HistogramVec = "http_request_seconds" ["method", "route"] in LATENCY_SECONDS, "From the last byte of the headers to the first of the answer.";
    http_connections: IntGauge = "http_connections", "Open client connections.";
    http_connections_refused: IntCounterVec = "http_connections_refused_total" ["reason"], "Connections closed without an answer: over the limit, or too slow.";
    http_panics: IntCounter = "http_panics_total", "Handlers that panicked and were answered with 500.";

    store_seconds: HistogramVec = "store_seconds" ["operation"] in LATENCY_SECONDS, "Units of work in the database.";
    store_errors: IntCounterVec = "store_errors_total" ["operation", "kind"], "Units of work that failed.";
    store_pool_connections: IntGauge = "store_pool_connections", "Connections that the pool holds.";
    store_pool_idle: IntGauge = "store_pool_idle", "Pooled connections that nobody uses.";
    store_pool_waiting: IntGauge = "store_pool_waiting", "Units of work that wait for a connection.";
    store_pool_discarded: IntCounter = "store_pool_discarded_total", "Connections thrown away after an unclean end.";

    directory_reads: IntCounterVec = "directory_reads_total" ["kind"], "Directory reads by how they were answered: validated, stale, refused.";
    directory_validations: IntCounterVec = "directory_validations_total" ["result"], "Queries that validated the replica: unchanged, changed, reset, failed.";
    directory_validation_seconds: Histogram = "directory_validation_seconds" in LATENCY_SECONDS, "Round trip of a validation.";
    directory_rows_applied: IntCounter = "directory_rows_applied_total", "Changed rows brought into the replica.";
    directory_rebuilds: IntCounterVec = "directory_rebuilds_total" ["reason"], "Full loads of the replica.";
    directory_users: IntGauge = "directory_users", "Users in the replica.";
    directory_bytes: IntGauge = "directory_bytes", "Estimated memory of the replica.";
    directory_audits: IntCounterVec = "directory_audits_total" ["result"], "Comparisons of the replica with the tables: equal, different, busy, failed.";

    mirror_lag_seconds: Gauge = "mirror_lag_seconds", "Age of the oldest change that the Redis hash lacks.";
    mirror_writes: IntCounterVec = "mirror_writes_total" ["result"], "Updates of the Redis hash: delta, rebuild, renewed, lost, failed.";

    redis_calls: IntCounterVec = "redis_calls_total" ["operation", "result"], "Redis calls: ok, error, timeout, rejected by the breaker.";
    redis_call_seconds: Histogram = "redis_call_seconds" in LATENCY_SECONDS, "Round trips to Redis.";
    redis_breaker_open: IntGauge = "redis_breaker_open", "1 while the breaker keeps calls away from Redis.";

    kafka_messages: IntCounterVec = "kafka_messages_total" ["topic", "partition"], "Messages received.";
    kafka_lag: IntGaugeVec = "kafka_lag" ["topic", "partition"], "Messages in the partition that are not stored yet.";
    kafka_rebalances: IntCounterVec = "kafka_rebalances_total" ["kind"], "Partitions assigned, revoked, lost.";
    kafka_fenced: IntCounter = "kafka_fenced_total", "Batches refused because another consumer holds the partition.";
    kafka_gap_messages: IntCounter = "kafka_gap_messages_total", "Messages that the broker deleted before we read them.";
    kafka_errors: IntCounterVec = "kafka_errors_total" ["kind"], "Errors of the Kafka client.";

    alerts_accepted: IntCounterVec = "alerts_accepted_total" ["source"], "Alerts stored.";
    alerts_duplicates: IntCounterVec = "alerts_duplicates_total" ["source"], "Alerts whose event_id was stored before.";
    alerts_rejected: IntCounterVec = "alerts_rejected_total" ["source", "reason"], "Messages that are no alert.";
    alerts_append_seconds: Histogram = "alerts_append_seconds" in LATENCY_SECONDS, "Appends to the log.";
    alerts_append_rows: Histogram = "alerts_append_rows" in BATCH_SIZES, "Alerts per append.";
    alerts_appends_ahead: IntCounterVec = "alerts_appends_ahead_total" ["outcome"], "Appends to PostgreSQL begun before the one under way was committed: kept, repeated.";
    alerts_waiting: IntGauge = "alerts_waiting", "Alerts received and not stored yet.";
    alerts_last_seq: IntGauge = "alerts_last_seq", "The last alert that this instance has seen in the log.";

    push_clients: IntGaugeVec = "push_clients" ["transport"], "Streaming clients.";
    push_delivered: IntCounterVec = "push_delivered_total" ["transport"], "Alerts handed to clients.";
    push_replays: IntCounterVec = "push_replays_total" ["reason"], "Times a client was served from the log: connect, behind.";
    push_closed: IntCounterVec = "push_closed_total" ["reason"], "Streams closed by us: slow, dead, protocol, log_replaced, unavailable, shutdown.";
    push_follower_errors: IntCounter = "push_follower_errors_total", "Reads of the log that failed in the follower.";
}

impl Metrics {
    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
