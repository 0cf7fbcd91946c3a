//! Every cache operation once, on keys that nobody else has, against the configured server.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::connection::Connection;
use super::operations::{CacheError, Operations};
use crate::config::RedisConfig;

/// Should the cleaning up fail, Redis does it.
const LIFE: Duration = Duration::from_secs(60);

/// One line per operation. Leaves nothing behind.
pub async fn run(connection: &Connection, config: &RedisConfig) -> Vec<(&'static str, Result<String, CacheError>)> {
    let own = format!("unified_backend:selftest:{}", uuid::Uuid::new_v4().simple());
    let operations = Operations::new(connection.clone(), &format!("{own}:dict"), &format!("{own}:keys"));
    let key = format!("{own}:value");
    let value = json!({ "text": "Zoë", "numbers": [1, 2.5, null] });
    let people = BTreeMap::from([(-1, "Ann".to_owned()), (i64::MAX, "Zoë".to_owned())]);
    let mut lines = Vec::new();
    lines.push(("connect", operations.connect().await.map(|()| "connected".to_owned())));
    lines.push(("cache_users_dict", operations.cache_users_dict(&people, LIFE).await.map(|()| "2 people".to_owned())));
    let expected = people.iter().map(|(global_id, name)| (global_id.to_string(), name.clone())).collect();
    lines.push(("get_users_dict", operations.get_users_dict().await.and_then(|found| same(&found, &Some(expected)))));
    lines.push(("invalidate_users_dict", operations.invalidate_users_dict().await.and_then(|was| same(&was, &true))));
    lines.push(("set", operations.set(&key, &value, LIFE).await.map(|()| value.to_string())));
    lines.push(("get", operations.get(&key).await.and_then(|found| same(&found, &Some(value.clone())))));
    lines.push(("exists", operations.exists(&key).await.and_then(|is| same(&is, &true))));
    lines.push(("delete", operations.delete(&key).await.and_then(|was| same(&was, &true))));
    lines.push(("get_stats", operations.read_stats(config).await.map(|stats| stats.to_string())));
    let kept = operations.set(&key, &value, LIFE).await;
    let cleared = match kept {
        Ok(()) => operations.clear_all().await,
        Err(error) => Err(error),
    };
    lines.push(("clear_all", cleared.and_then(|cleared| same(&cleared, &1))));
    connection.close();
    lines.push(("close", operations.exists(&key).await.map(|_| "closed, and connected again".to_owned())));
    lines
}

fn same<T: PartialEq + serde::Serialize>(found: &T, expected: &T) -> Result<String, CacheError> {
    if found == expected {
        return Ok(json!(found).to_string());
    }
    Err(CacheError::Unexpected(format!("{} instead of {}", json!(found), json!(expected))))
}
