//! The generic cache of old: values under keys of anybody's choosing, and the users dict as a whole.
//! Keys that were set here are remembered in a sorted set, by when their life ends, so that they can be
//! cleared without looking at anybody else's: `unified_backend:keys`. Keys are used as they are given,
//! readers know them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{InfoDict, Pipeline, Value, cmd};
use serde_json::json;

use super::connection::{Access, CallError, Connection};
use super::dict_hash::{DictHash, Written, millis};
use crate::config::RedisConfig;

/// How many remembered keys are cleared at once.
const CLEARED_AT_ONCE: usize = 500;
/// Clocks differ: a key is forgotten this long after its end.
const CLOCK_DIFFERENCE_MS: u64 = 60_000;

/// Why a cache operation gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("Redis is not available: {0}")]
    NotAvailable(String),
    #[error("`{key}` in Redis holds another type of value than {expected}: somebody else wrote it")]
    WrongType { key: String, expected: &'static str },
    #[error("`{key}` in Redis holds something that is not JSON ({reason}): somebody else wrote it")]
    NotJson { key: String, reason: String },
    #[error("`{key}` is kept by the service itself: choose another key")]
    Reserved { key: String },
    #[error("Redis answered something unexpected: {0}")]
    Unexpected(String),
}

pub struct Operations {
    connection: Connection,
    pub dict: DictHash,
    /// The sorted set of what was set here.
    registry: String,
}

impl Operations {
    pub fn new(connection: Connection, dict: &str, registry: &str) -> Self {
        Self { dict: DictHash::new(connection.clone(), dict), connection, registry: registry.to_owned() }
    }

    pub async fn connect(&self) -> Result<(), CacheError> {
        self.connection.connect().await.map_err(|error| cache_error(error, "", ""))
    }

    pub async fn cache_users_dict(&self, entries: &BTreeMap<i64, String>, ttl: Duration) -> Result<(), CacheError> {
        let entries = entries.iter().map(|(global_id, name)| (*global_id, &**name));
        match self.dict.replace(None, None, entries, ttl).await.map_err(|error| self.dict_error(error))? {
            Written::Applied => Ok(()),
            Written::Lost | Written::Broken => {
                Err(CacheError::Unexpected("the new dict vanished before it was in place; is memory short?".to_owned()))
            }
        }
    }

    /// Fields that are no integer are left out: they are nobody's global id.
    pub async fn get_users_dict(&self) -> Result<Option<BTreeMap<String, String>>, CacheError> {
        let entries = self.dict.read().await.map_err(|error| self.dict_error(error))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let known = |(field, value): (Vec<u8>, Vec<u8>)| {
            Some((text(field), text(value))).filter(|(field, _)| field.parse::<i64>().is_ok())
        };
        Ok(entries.map(|entries| entries.into_iter().filter_map(known).collect()))
    }

    pub async fn invalidate_users_dict(&self) -> Result<bool, CacheError> {
        self.dict.remove().await.map_err(|error| self.dict_error(error))
    }

    /// The key is remembered before it is set: should we end between the two, nothing is left behind.
    pub async fn set(&self, key: &str, value: &serde_json::Value, ttl: Duration) -> Result<(), CacheError> {
        if self.dict.owns(key) || key == self.registry {
            return Err(CacheError::Reserved { key: key.to_owned() });
        }
        let (now_ms, ttl_ms) = (now_ms(), millis(ttl));
        let mut remember = Pipeline::new();
        remember.cmd("ZADD").arg(&self.registry).arg(now_ms.saturating_add(ttl_ms)).arg(key).ignore();
        let ended = now_ms.saturating_sub(CLOCK_DIFFERENCE_MS);
        remember.cmd("ZREMRANGEBYSCORE").arg(&self.registry).arg("-inf").arg(ended).ignore();
        self.write::<()>("set", &self.registry, &remember).await?;
        let mut set = Pipeline::new();
        set.cmd("SET").arg(key).arg(value.to_string()).arg("PX").arg(ttl_ms).ignore();
        self.write::<()>("set", key, &set).await
    }

    pub async fn get(&self, key: &str) -> Result<Option<serde_json::Value>, CacheError> {
        let mut get = cmd("GET");
        get.arg(key);
        let found: Option<Vec<u8>> = self
            .connection
            .query("get", Access::Read, &get)
            .await
            .map_err(|error| cache_error(error, key, "a text"))?;
        let parse = |text: Vec<u8>| {
            serde_json::from_slice(&text)
                .map_err(|error| CacheError::NotJson { key: key.to_owned(), reason: error.to_string() })
        };
        found.map(parse).transpose()
    }

    pub async fn delete(&self, key: &str) -> Result<bool, CacheError> {
        let mut delete = Pipeline::new();
        delete.cmd("DEL").arg(key);
        let (deleted,): (u64,) = self.write("delete", key, &delete).await?;
        let mut forget = Pipeline::new();
        forget.cmd("ZREM").arg(&self.registry).arg(key).ignore();
        self.write::<()>("delete", &self.registry, &forget).await?;
        Ok(deleted > 0)
    }

    pub async fn exists(&self, key: &str) -> Result<bool, CacheError> {
        let mut exists = cmd("EXISTS");
        exists.arg(key);
        let found: u64 = self
            .connection
            .query("exists", Access::Read, &exists)
            .await
            .map_err(|error| cache_error(error, key, ""))?;
        Ok(found > 0)
    }

    /// How many keys went.
    pub async fn clear_all(&self) -> Result<u64, CacheError> {
        let mut cleared = u64::from(self.invalidate_users_dict().await?);
        loop {
            let mut list = cmd("ZRANGE");
            list.arg(&self.registry).arg(0).arg(CLEARED_AT_ONCE - 1);
            let keys: Result<Vec<Vec<u8>>, CallError> = self.connection.query("clear_all", Access::Read, &list).await;
            let keys = match keys {
                // Whoever put something else there did not remember keys in it.
                Err(CallError::WrongType) => return Ok(cleared),
                keys => keys.map_err(|error| cache_error(error, &self.registry, "a sorted set"))?,
            };
            if keys.is_empty() {
                return Ok(cleared);
            }
            // Not in one pipeline with the rest: a cluster has them on different nodes.
            let mut unlink = cmd("UNLINK");
            unlink.arg(&keys);
            let removed: Result<u64, CallError> = self.connection.query("clear_all", Access::Write, &unlink).await;
            cleared += removed.map_err(|error| cache_error(error, &self.registry, ""))?;
            let mut forget = Pipeline::new();
            forget.cmd("ZREM").arg(&self.registry).arg(&keys).ignore();
            self.write::<()>("clear_all", &self.registry, &forget).await?;
        }
    }

    /// RedisStats.
    pub async fn get_stats(&self, config: &RedisConfig) -> serde_json::Value {
        let stats = self.read_stats(config).await;
        stats.unwrap_or_else(|error| json!({ "enabled": true, "error": error.to_string() }))
    }

    pub async fn read_stats(&self, config: &RedisConfig) -> Result<serde_json::Value, CacheError> {
        let (size, info) = (cmd("DBSIZE"), cmd("INFO"));
        let total_keys = self.connection.query::<u64>("get_stats", Access::Aside, &size);
        let server = self.connection.query::<Value>("get_stats", Access::Aside, &info);
        let (total_keys, server) = futures_util::future::try_join(total_keys, server)
            .await
            .map_err(|error| cache_error(error, "", "what it always is"))?;
        let nodes = infos(server);
        let sum = |name: &str| nodes.iter().filter_map(|node| node.get::<u64>(name)).sum::<u64>();
        Ok(json!({
            "enabled": true,
            "host": config.host,
            "port": config.port,
            "db": config.database,
            "total_keys": total_keys,
            "memory_used": human_bytes(sum("used_memory")),
            "connected_clients": sum("connected_clients"),
            "uptime_seconds": nodes.iter().filter_map(|node| node.get::<u64>("uptime_in_seconds")).max(),
        }))
    }

    async fn write<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        key: &str,
        pipeline: &Pipeline,
    ) -> Result<T, CacheError> {
        let written = self.connection.query(operation, Access::Write, pipeline).await;
        written.map_err(|error| cache_error(error, key, "what we keep there"))
    }

    fn dict_error(&self, error: CallError) -> CacheError {
        cache_error(error, self.dict.name(), "a hash")
    }
}

fn cache_error(error: CallError, key: &str, expected: &'static str) -> CacheError {
    match error {
        CallError::NotAvailable(why) => CacheError::NotAvailable(why),
        CallError::WrongType => CacheError::WrongType { key: key.to_owned(), expected },
        CallError::NoScript => CacheError::Unexpected("it forgets scripts at once".to_owned()),
    }
}

/// One text, or in a cluster one of each node.
fn infos(answer: Value) -> Vec<InfoDict> {
    let texts = match answer {
        Value::Map(nodes) => nodes.into_iter().map(|(_, info)| info).collect(),
        single => vec![single],
    };
    texts.into_iter().filter_map(|text| redis::from_redis_value(text).ok()).collect()
}

/// As Redis writes it: `1.06M`.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["K", "M", "G", "T"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let (mut amount, mut unit) = (bytes as f64 / 1024.0, 0);
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        (amount, unit) = (amount / 1024.0, unit + 1);
    }
    format!("{amount:.2}{}", UNITS[unit])
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_redis_writes_it() {
        for (bytes, text) in [(512, "512B"), (1536, "1.50K"), (1_111_490, "1.06M"), (5_368_709_120, "5.00G")] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
