//! `/`, `/health*` and `/metrics`: the service about itself.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::core::Collector;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::openapi;
use crate::app::AppState;
use crate::config::DatabaseEngine;
use crate::redis::RedisCache;
use crate::telemetry::health::{Check, State as Health, name};

const SERVICE: &str = "unified_backend";

pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn index() -> Json<impl Serialize> {
    #[derive(Serialize)]
    struct Index {
        service: &'static str,
        version: &'static str,
        endpoints: BTreeMap<String, &'static str>,
    }
    let endpoints = openapi::ENDPOINTS
        .iter()
        .map(|endpoint| (format!("{} {}", endpoint.method.to_ascii_uppercase(), endpoint.path), endpoint.summary))
        .collect();
    Json(Index { service: SERVICE, version: env!("CARGO_PKG_VERSION"), endpoints })
}

/// In the order in which the fields are shown.
#[derive(Serialize)]
struct HealthReport {
    status: &'static str,
    service: &'static str,
    version: &'static str,
    database: &'static str,
    orm: &'static str,
    kafka_enabled: bool,
    kafka_running: bool,
    messages_received: u64,
    redis: Value,
    checks: BTreeMap<&'static str, Check>,
}

async fn health(State(state): State<AppState>) -> Json<HealthReport> {
    let checks = state.health.list_checks();
    let worst = checks.values().map(|check| check.state).max().unwrap_or(Health::Starting);
    let status = match worst {
        Health::Up => "healthy",
        Health::Starting | Health::Degraded => "degraded",
        Health::Down => "unhealthy",
    };
    let database = match state.config.database.engine {
        DatabaseEngine::Postgres { .. } => "PostgreSQL + tokio-postgres",
        DatabaseEngine::Sqlite { .. } => "SQLite (embedded)",
    };
    let received: f64 = state
        .metrics
        .kafka_messages
        .collect()
        .iter()
        .flat_map(|family| family.get_metric())
        .map(|metric| metric.get_counter().get_value())
        .sum();
    let is_running = checks.get(name::KAFKA).is_some_and(|check| check.state == Health::Up);
    Json(HealthReport {
        status,
        service: SERVICE,
        version: env!("CARGO_PKG_VERSION"),
        database,
        orm: "none",
        kafka_enabled: state.config.kafka.is_some(),
        kafka_running: is_running,
        messages_received: received as u64,
        redis: redis_stats(state.redis.as_ref()).await,
        checks,
    })
}

async fn redis_stats(redis: Option<&RedisCache>) -> Value {
    match redis {
        Some(redis) => redis.get_stats().await,
        None => json!({ "enabled": false }),
    }
}

async fn live() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    if state.lifecycle.settling().is_cancelled() {
        return Err(ApiError::unavailable("service", "stopping", "the service is stopping"));
    }
    match state.health.find(name::DATABASE) {
        Some(check) if check.state == Health::Up && state.directory.find_latest().is_some() => {
            Ok(Json(json!({ "status": "ready" })))
        }
        Some(check) if check.state == Health::Up => {
            Err(ApiError::unavailable("database", "database_unavailable", "the directory is being loaded"))
        }
        check => {
            let why = check.and_then(|check| check.detail).unwrap_or_else(|| "not connected yet".to_owned());
            Err(ApiError::unavailable("database", "database_unavailable", why))
        }
    }
}

async fn metrics(State(state): State<AppState>) -> Response {
    match state.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => {
            let error = ApiError {
                cause: Some(error.to_string()),
                ..ApiError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "metrics_unavailable",
                    "the metrics cannot be rendered",
                )
            };
            error.into_response()
        }
    }
}
