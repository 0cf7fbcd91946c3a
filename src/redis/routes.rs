//! `/cache/stats`, `/cache/clear`, `/cache/invalidate/users-dict`.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::RedisCache;
use crate::directory::Directory;
use crate::http::error::ApiError;

#[derive(Clone)]
struct Caches {
    redis: Option<RedisCache>,
    directory: Directory,
}

pub fn router(redis: Option<RedisCache>, directory: Directory) -> Router {
    Router::new()
        .route("/cache/stats", get(stats))
        .route("/cache/clear", post(clear))
        .route("/cache/invalidate/users-dict", post(invalidate_users_dict))
        .with_state(Caches { redis, directory })
}

async fn stats(State(caches): State<Caches>) -> Json<Value> {
    let redis = async {
        match &caches.redis {
            Some(redis) => redis.get_stats().await,
            None => json!({ "enabled": false }),
        }
    };
    let (mut stats, counted) = (redis.await, caches.directory.stats());
    stats["directory"] = json!({
        "entries": counted.entries,
        "bytes": counted.bytes,
        "version": counted.version.map(|version| version.to_string()),
        "validated_ms_ago": counted.validated.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        "rebuilds": counted.rebuilds,
    });
    Json(stats)
}

async fn clear(State(caches): State<Caches>) -> Json<Value> {
    let cleared = match &caches.redis {
        Some(redis) => redis.clear_all().await.inspect_err(|error| tracing::info!(%error, "the cache stays")).is_ok(),
        None => false,
    };
    message(if cleared { "All cache cleared successfully" } else { "Redis cache not available" })
}

/// The directory is rebuilt with or without Redis.
async fn invalidate_users_dict(State(caches): State<Caches>) -> Result<Json<Value>, ApiError> {
    caches.directory.rebuild().await?;
    let is_mirrored = match &caches.redis {
        Some(redis) => redis.rebuild_mirror(&caches.directory).await?,
        None => false,
    };
    Ok(message(if is_mirrored { "Users dict cache invalidated" } else { "Redis not available" }))
}

fn message(text: &str) -> Json<Value> {
    Json(json!({ "message": text }))
}
